//! Layer 2: RFC 6962 trees, their proofs, C2SP tiles and signed notes. Pure functions, no I/O.

pub mod head;
pub mod manifest;
pub mod note;
pub mod pieces;
pub mod rotation;
pub mod tile;
pub mod tree;
