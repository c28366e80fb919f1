//! Layer 3: restricted readers of foreign files. They read by range and never execute anything.

pub mod checkpoint;
pub mod dcp;
pub mod pickle;
pub mod safetensors;
pub mod templar;
pub mod torch;
pub mod zip;
