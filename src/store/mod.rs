//! Layer 3: what lies on disk. Trusted for nothing but the log: the rest is re-hashed on read.

use std::path::PathBuf;

pub mod artifacts;
pub mod files;
pub mod hashes;
pub mod keys;
pub mod lock;
pub mod log;
pub mod open_round;
pub mod place;
pub mod quarantine;
pub mod segment;

use crate::types::{digest::Digest, json::JsonError};

/// Something on disk is missing, wrong, or could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system's answer.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Its answer.
        source: std::io::Error,
    },
    /// A small file of ours that does not read back.
    #[error("{path}: {source}")]
    Json {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: JsonError,
    },
    /// Bytes that are not what their root says.
    #[error("{what}: piece {piece} has digest {found}, its root asks for {expected}")]
    Piece {
        /// Whose piece.
        what: String,
        /// Which piece of 64 KiB, from 0.
        piece: u64,
        /// As the root says.
        expected: Digest,
        /// As it was read.
        found: Digest,
    },
    /// A segment of an artifact that is missing or does not read.
    #[error("{what}: {source}")]
    Artifact {
        /// Which artifact.
        what: String,
        /// What is wrong with its segment.
        source: segment::SegmentError,
    },
    /// A manifest without the artifact that is wanted.
    #[error("{what}: its manifest does not name it")]
    NoArtifact {
        /// Which artifact.
        what: String,
    },
    /// A segment.
    #[error(transparent)]
    Segment(#[from] segment::SegmentError),
    /// A file of the hashes store.
    #[error(transparent)]
    Hashes(#[from] hashes::HashesError),
    /// A log.
    #[error(transparent)]
    Log(#[from] log::LogError),
    /// A key.
    #[error(transparent)]
    Key(#[from] keys::KeyError),
    /// A head that must not be signed.
    #[error(transparent)]
    Guard(#[from] keys::heads::GuardError),
    /// A refused file in quarantine.
    #[error(transparent)]
    Quarantine(#[from] quarantine::QuarantineError),
}

impl StoreError {
    /// Whether stored bytes contradict a digest, rather than being out of reach.
    pub fn is_mismatch(&self) -> bool {
        use {
            hashes::HashesError, log::LogError, quarantine::QuarantineError, segment::SegmentError,
        };
        match self {
            Self::Io { .. } | Self::Key(_) | Self::Guard(_) => false,
            Self::Artifact { source, .. } | Self::Segment(source) => {
                !matches!(source, SegmentError::Io { .. })
            }
            Self::Hashes(error) => !matches!(error, HashesError::Io { .. }),
            Self::Log(error) => !matches!(error, LogError::Io { .. } | LogError::Missing { .. }),
            Self::Quarantine(error) => !matches!(error, QuarantineError::Io { .. }),
            _ => true,
        }
    }
}
