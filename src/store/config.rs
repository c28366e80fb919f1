//! What the operator chose for one ledger: `gradledger.toml` in its directory. See `schema/ledger.md`.
//!
//! Flags and `GRADLEDGER_*` come before it. Losing it costs choosing again.

use std::{io, num::NonZeroU64, path::PathBuf};

use serde::Deserialize;

use super::{files::read_whole, place::Place};

/// Largest file that is read.
const BYTES_MAX: u64 = 1 << 20;

/// A configuration that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ConfigError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The source names line and column.
    #[error("{path}: {source}", path = path.display())]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
}

/// The choices; what is not there is left to the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which states are kept.
    pub retention: RetentionChoice,
}

/// `[retention]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionChoice {
    /// Every how many rounds a state is kept.
    pub keep_every: Option<NonZeroU64>,
}

impl Config {
    /// The ledger's choices; none if there is no file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the file cannot be read, is larger than 1 MiB, or has a key that is not
    /// known.
    pub fn load(place: &Place) -> Result<Self, ConfigError> {
        let path = place.config();
        let bytes = match read_whole(&*place.files, &path, BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ConfigError::Io { path, source }),
            Ok(bytes) => bytes,
        };
        toml::from_slice(&bytes)
            .map_err(|source| ConfigError::Toml { path, source: Box::new(source) })
    }
}
