//! Layer 1: what the ledger's words are as types. No I/O; parsed once, trusted inside.

pub mod bits;
pub mod digest;
pub mod grid;
pub mod json;
pub mod manifest;
pub mod plan;
pub mod progress;
pub mod record;
pub mod refusal;
pub mod rule;
pub mod submission;
pub mod tensor;
pub mod upload;
