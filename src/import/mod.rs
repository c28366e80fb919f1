//! Layer 3: restricted readers of foreign files. They read by range and never execute anything.
//!
//! `source` is bytes by range; `zip` and `pickle` are the containers, `torch` the two together. On these
//! stand `dcp` and `safetensors`, which `checkpoint` makes one thing of, and `templar`; the last two
//! have writers. What is taken and what is refused is in `schema/foreign.md`. `wallet` reads Bittensor's
//! hotkey files, see `schema/wallet.md`.

pub mod checkpoint;
pub mod dcp;
pub mod pickle;
pub mod safetensors;
pub mod safetensors_writer;
pub mod source;
pub mod templar;
pub mod templar_writer;
pub mod torch;
pub mod wallet;
pub mod zip;
