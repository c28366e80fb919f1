//! An append-only log in a directory: entries, tree and signed head as C2SP tlog-tiles files.
//!
//! [`LogWriter`] appends batches, [`LogReader`] reads while a writer runs, takes no lock, and checks
//! the whole in [`LogReader::verify`]. Which file is written when is in `schema/log-dir.md`; in
//! short: bundles, tiles, then `tree-state` renamed into place (the commit point), then the pair
//! recorded beside the key, then the signed head published. A crash leaves a batch absent or whole.
//!
//! Trust: the log is the truth of a ledger, and losing it ends the run. Its files are still read as
//! if a stranger had written them: sizes are bounded and hashes compared.

mod copy;
mod dir;
mod grown;
mod reader;
mod recover;
mod served;
mod tiler;
mod verify;
mod writer;

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::{
    copy::{Copied, mend_copy},
    reader::{Entries, LogReader},
    served::{LogFiles, ServedPart},
    writer::LogWriter,
};
use super::keys::heads::GuardError;
use crate::{
    merkle::{head::HeadError, tile::TileError, tree::LEAVES_MAX},
    types::{digest::Digest, json::JsonError},
};

/// The tree that is committed: what `tree-state` holds, in canonical JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TreeState {
    format: Format,
    origin: String,
    root: Digest,
    size: u64,
}

/// The file's format and version; others are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Format {
    #[serde(rename = "gradledger-tree-state/1")]
    V1,
}

/// A log that cannot be written, read or believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// There is no log in the directory.
    #[error("{path}: there is no log here")]
    Absent {
        /// The file that would be there.
        path: PathBuf,
    },
    /// There is a log already.
    #[error("{path}: there is a log here already")]
    Exists {
        /// The file that shows it.
        path: PathBuf,
    },
    /// An entry is from 1 byte to what a bundle can hold.
    #[error("entry {at} of the batch has {bytes} bytes; an entry has 1 to {bytes_max}")]
    EntryLength {
        /// Its place in the batch, from 0.
        at: usize,
        /// Its length.
        bytes: usize,
        /// The longest there can be.
        bytes_max: usize,
    },
    /// The log does not reach that far.
    #[error("{path}: the log's head has {size} entries, not {asked}")]
    Beyond {
        /// The head's file.
        path: PathBuf,
        /// Entries of the head.
        size: u64,
        /// Entries that the call needs.
        asked: u64,
    },
    /// No proof leads from no entries, or back in size.
    #[error("there is no proof from {size1} entries to {size2}")]
    Sizes {
        /// The smaller size.
        size1: u64,
        /// The larger size.
        size2: u64,
    },
    /// A tile or bundle of the log is not there.
    #[error("{path}: missing, and no wider one is there")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A tile or bundle is not as its name says.
    #[error("{path}: {source}")]
    Tile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: TileError,
    },
    /// `tree-state` is damaged.
    #[error("{path}: {source}")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: JsonError,
    },
    /// The published head is damaged or not signed by the log's key.
    #[error("{path}: {source}")]
    Head {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: HeadError,
    },
    /// The files are of another log.
    #[error("{path}: is of the log {found:?}, not {expected:?}")]
    Origin {
        /// The file.
        path: PathBuf,
        /// The log that was expected.
        expected: String,
        /// The log it names.
        found: String,
    },
    /// A head was published of a tree that is not there.
    #[error(
        "{path}: states {stated} entries, but {size} are committed; are files of the log lost?"
    )]
    Ahead {
        /// The file that states more.
        path: PathBuf,
        /// What it states.
        stated: u64,
        /// Entries of `tree-state`.
        size: u64,
    },
    /// No tree is that large.
    #[error("{path}: states {size} entries; a log has at most {LEAVES_MAX}")]
    Size {
        /// The file.
        path: PathBuf,
        /// What it states.
        size: u64,
    },
    /// A stored root is not that of the tiles.
    #[error("{path}: the root of {size} entries is {stated} here, but {computed} by the tiles")]
    Root {
        /// The file that states it.
        path: PathBuf,
        /// Entries.
        size: u64,
        /// As stated.
        stated: Digest,
        /// As computed.
        computed: Digest,
    },
    /// An entry is not what its leaf hash says.
    #[error("{path}: entry {index} has the leaf hash {computed}, but {} says {stored}", tile.display())]
    Entry {
        /// The bundle.
        path: PathBuf,
        /// The tile.
        tile: Box<Path>,
        /// The entry's index in the log.
        index: u64,
        /// As the tile has it.
        stored: Digest,
        /// As the entry gives it.
        computed: Digest,
    },
    /// A stored hash is not that of the 256 hashes below it.
    #[error("{path}: hash {index} of level {level} is {stored}, but {computed} by what lies below")]
    Hash {
        /// The tile.
        path: PathBuf,
        /// Its level, at least 1.
        level: u8,
        /// The hash's index within the level.
        index: u64,
        /// As stored.
        stored: Digest,
        /// As computed.
        computed: Digest,
    },
    /// A partial tile or bundle is not how the wider one starts.
    #[error("{path}: differs at byte {at} from {wider}")]
    Partial {
        /// The narrower file.
        path: PathBuf,
        /// The wider one.
        wider: PathBuf,
        /// First byte that differs.
        at: usize,
    },
    /// No log has a file of that name.
    #[error("{path}: not a file of a log")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// An earlier append failed: what the disk holds is not known until it is read again.
    #[error("{path}: an earlier append failed; open the ledger anew")]
    Broken {
        /// The log's directory.
        path: PathBuf,
    },
    /// The head is not signed.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}
