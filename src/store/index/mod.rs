//! The index: finds by key what the logs hold by position. Disposable, and trusted for nothing.
//!
//! A backend is an ordered store of small byte strings, kept in files of its own below `index/`,
//! which neither [`Files`](super::files::Files) nor a crash test can see into. So nothing here is
//! believed: [`IndexDir`] uses a backend's files only if they are, byte for byte, those that the last
//! process closed, and starts anew otherwise; `ledger/index.rs` fills it from the logs and looks every
//! hit up there. Only the process that holds the writer lock opens it; readers never do.
//!
//! What stands under which key is in `schema/index.md`. A new backend is a line in `tests/index.rs`.

mod dir;
#[cfg(feature = "index-rocksdb")]
pub mod rocks;
pub mod sled;

use std::{error::Error, io, path::PathBuf};

pub use dir::{IndexDir, Standing};

use crate::types::{digest::Digest, submission::Miner};

/// A key and what stands under it.
pub type Pair = (Vec<u8>, Vec<u8>);

/// An ordered store of small byte strings.
pub trait Index: Send {
    /// What stands under `key`.
    ///
    /// # Errors
    ///
    /// [`IndexError`]; the index is then good for nothing any more.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError>;

    /// The first `max` pairs whose keys start with `prefix`, by key, ascending.
    ///
    /// # Errors
    ///
    /// As [`Index::get`].
    fn scan(&self, prefix: &[u8], max: usize) -> Result<Vec<Pair>, IndexError>;

    /// Puts all pairs, in place of what stood under their keys, or none of them.
    ///
    /// Nothing is durable before [`Index::close`].
    ///
    /// # Errors
    ///
    /// As [`Index::get`].
    fn apply(&mut self, puts: &[Pair]) -> Result<(), IndexError>;

    /// Writes everything out and lets go of the files: they do not change any more.
    ///
    /// # Errors
    ///
    /// As [`Index::get`].
    fn close(self: Box<Self>) -> Result<(), IndexError>;
}

/// The index cannot be used. Never the ledger's end: the logs hold all of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The operating system's answer.
    #[error("the index, {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// What the backend said.
    #[error("the index, kept by {backend}: {source}")]
    Backend {
        /// Its name.
        backend: &'static str,
        /// Its answer.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The backend panicked, as sled does on files that it did not write.
    #[error("the index: its backend panicked: {message}")]
    Panicked {
        /// What it said.
        message: String,
    },
    /// It failed before, and was given up.
    #[error("the index failed before")]
    Closed,
}

/// Where the logs' sizes and roots stand that the index reflects.
pub const REFLECTS: &[u8] = b"reflects";

/// What keys of a statement's id start with; the index in the submissions log follows.
pub fn statement_prefix(id: &Digest) -> Vec<u8> {
    [b"s", &id.as_bytes()[..]].concat()
}

/// What keys of a miner's submissions for a round start with; the index in the log follows.
pub fn miner_prefix(miner: &Miner, round: u64) -> Vec<u8> {
    let mut key = match miner {
        Miner::Uid(uid) => [&b"u"[..], &uid.to_be_bytes()].concat(),
        Miner::Hotkey(hotkey) => [&b"h"[..], hotkey.as_bytes()].concat(),
    };
    key.extend(round.to_be_bytes());
    key
}

/// What the key of a round's record starts with; the index in the rounds log follows.
pub fn round_prefix(round: u64) -> Vec<u8> {
    [&b"r"[..], &round.to_be_bytes()].concat()
}

/// A pair that leads from `prefix` to entry `index` of a log. Big-endian, so that the lowest comes
/// first.
pub fn pointer(mut prefix: Vec<u8>, index: u64) -> Pair {
    prefix.extend(index.to_be_bytes());
    (prefix, Vec::new())
}

/// The entry that a key leads to, if it is one of ours.
pub fn pointed(key: &[u8]) -> Option<u64> {
    key.last_chunk().map(|index| u64::from_be_bytes(*index))
}
