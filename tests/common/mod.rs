//! What the tests of several files share.
#![allow(dead_code)] // Each test file uses a part.

use std::path::PathBuf;

pub mod desk;
pub mod gradient;
pub mod ledger;
pub mod memfs;
pub mod miner;
pub mod model;
pub mod scenario;
pub mod served;
pub mod server;
pub mod signed;

/// The folder of golden data: `GRADLEDGER_GOLDEN`, or the copy beside the tests.
pub fn golden() -> PathBuf {
    std::env::var_os("GRADLEDGER_GOLDEN").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")),
        PathBuf::from,
    )
}

/// Random numbers that a seed repeats (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
