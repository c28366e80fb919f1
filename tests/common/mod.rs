//! What several test files need.

use std::path::PathBuf;

/// The folder of golden data: `GRADLEDGER_GOLDEN`, or the copy beside the tests.
pub fn golden() -> PathBuf {
    std::env::var_os("GRADLEDGER_GOLDEN").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")),
        PathBuf::from,
    )
}
