//! An embedded ledger of model checkpoints and per-miner gradient deltas.
//!
//! Data flows down the layers: foreign files are read ([`import`]), submissions checked, planned,
//! folded and sealed into Merkle logs ([`store`]). `ARCHITECTURE.md` has the map.

#![forbid(unsafe_code)]

pub mod anchor;
pub mod audit;
pub mod cli;
pub mod codec;
pub mod delta;
pub mod export;
pub mod fold;
pub mod http;
pub mod import;
pub mod intake;
pub mod ledger;
pub mod merkle;
pub mod plan;
pub mod seal;
pub mod store;
pub mod sync;
pub mod types;
