//! Layer 3: what lies on disk. Trusted for nothing but the log: the rest is re-hashed on read.

use std::{io, path::PathBuf};

pub mod anchors;
pub mod artifacts;
pub mod config;
pub mod files;
pub mod hashes;
pub mod hub;
pub mod index;
pub mod keys;
pub mod lock;
pub mod log;
pub mod machine;
pub mod open_round;
pub mod place;
pub mod quarantine;
pub mod remote;
pub mod retention;
pub mod segment;
pub mod uploads;

use self::{
    config::ConfigError, hashes::HashesError, keys::heads::GuardError, log::LogError,
    open_round::OpenRoundError, quarantine::QuarantineError, remote::RemoteError,
    retention::RetentionError, segment::SegmentError,
};
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
        source: io::Error,
    },
    /// A small file of ours that does not read back.
    #[error("{path}: {source}")]
    Json {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: JsonError,
    },
    /// The file that says who is expected in the open round. It is trusted for nothing.
    #[error(
        "{path}: {source}. It is damaged: remove it, and where peers are listed for each round \
         import the same files with --peers again, which appends nothing"
    )]
    OpenRound {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: OpenRoundError,
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
        source: SegmentError,
    },
    /// A manifest without the artifact that is wanted.
    #[error("{what}: its manifest does not name it")]
    NoArtifact {
        /// Which artifact.
        what: String,
    },
    /// A file given at `init` that is not the one the genesis names.
    #[error(
        "{path}: this is not {name} as it was given at init: its SHA-256 is {found}, the genesis says \
         {expected}. Put a copy of the original there"
    )]
    Given {
        /// Where it lies.
        path: PathBuf,
        /// Its name.
        name: String,
        /// As the genesis says.
        expected: Digest,
        /// As it was read.
        found: Digest,
    },
    /// A segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// A file of the hashes store.
    #[error(transparent)]
    Hashes(#[from] HashesError),
    /// A log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A key.
    #[error(transparent)]
    Key(#[from] keys::KeyError),
    /// A head that must not be signed.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// A refused file in quarantine.
    #[error(transparent)]
    Quarantine(#[from] QuarantineError),
    /// The operator's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The list of dropped states.
    #[error(transparent)]
    Retention(#[from] RetentionError),
}

impl StoreError {
    /// Whether stored bytes contradict a digest, rather than being out of reach.
    ///
    /// What the operating system or a server answers (no such file, no space, a failing disk, no
    /// connection) says nothing about the bytes.
    pub fn is_mismatch(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Key(_) | Self::Guard(_) | Self::Config(_) => false,
            // A file that ends early has no error number: that is the bytes' fault.
            _ => self.io().is_none_or(|error| {
                error.raw_os_error().is_none() && !RemoteError::is_behind(error)
            }),
        }
    }

    /// Whether a server did not answer, or not as asked.
    pub fn is_unanswered(&self) -> bool {
        self.io().is_some_and(RemoteError::is_behind)
    }

    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        self.io().is_some_and(|error| full.contains(&error.kind()))
    }

    /// Whether a file is not there.
    pub fn is_not_found(&self) -> bool {
        self.io().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Whether there are more bytes than may be.
    pub fn is_too_large(&self) -> bool {
        self.io().is_some_and(|error| {
            // Our own judgement has no error number.
            error.kind() == io::ErrorKind::FileTooLarge && error.raw_os_error().is_none()
        })
    }

    /// The operating system's answer, if that is what this is about, as far as it can be told again.
    ///
    /// # Errors
    ///
    /// This error, if it is about something else.
    pub fn into_io(self) -> Result<io::Error, Self> {
        match self.io() {
            Some(error) => Ok(match error.raw_os_error() {
                Some(number) => io::Error::from_raw_os_error(number),
                None => io::Error::new(error.kind(), self),
            }),
            None => Err(self),
        }
    }

    /// The operating system's answer, if that is what this is about.
    fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Io { source, .. }
            | Self::Artifact { source: SegmentError::Io { source, .. }, .. }
            | Self::Segment(SegmentError::Io { source, .. })
            | Self::Hashes(HashesError::Io { source, .. })
            | Self::Log(
                LogError::Io { source, .. } | LogError::Guard(GuardError::Io { source, .. }),
            )
            | Self::Quarantine(
                QuarantineError::Io { source, .. } | QuarantineError::Source { source, .. },
            )
            | Self::Retention(RetentionError::Io { source, .. }) => Some(source),
            _ => None,
        }
    }
}
