//! Layer 3: what lies on disk. Trusted for nothing but the log: the rest is re-hashed on read.

pub mod files;
pub mod hashes;
pub mod keys;
pub mod lock;
pub mod log;
pub mod quarantine;
pub mod segment;
