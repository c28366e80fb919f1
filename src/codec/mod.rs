//! Layer 2: how a delta's positions, codes and book are laid out in bytes, and what is refused; and
//! the bytes that a miner signs, statements and requests.
//!
//! Packing itself is arithmetic and lives in the kernels; here it meets the model's tensors.

pub mod book;
pub mod epistula;
pub mod layout;
pub mod parts;
pub mod sr25519;
pub mod ss58;
pub mod statement;
