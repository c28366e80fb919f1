//! Layer 6: a miner's side of a ledger behind a URL.

pub mod submit;
