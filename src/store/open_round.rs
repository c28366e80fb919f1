//! Who is expected in the round that is open: what an import was told, until the seal records it. See
//! `schema/open-round.md`.
//!
//! Trusted for nothing: losing it costs naming the peers again with `import`. A changed bit must not
//! change who is folded, though, so the file holds its own digest.

use std::io;

use serde::{Deserialize, Serialize};

use super::{
    StoreError,
    files::{read_whole, write_whole},
    place::Place,
};
use crate::types::{digest::Digest, json, submission::Miner};

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum OpenRoundError {
    #[error(transparent)]
    Json(#[from] json::JsonError),
    #[error("its content has digest {found}, it says {expected}")]
    Digest { expected: Digest, found: Digest },
}

/// Largest file that is read.
const BYTES_MAX: u64 = 1 << 20;

/// The round that is open and its miners.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenRound {
    /// Its number.
    pub round: u64,
    /// Whose deltas are expected.
    pub listed: Vec<Miner>,
    /// Who takes the places of the missing, in this order.
    pub reserve: Vec<Miner>,
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    open: OpenRound,
    /// Of the canonical JSON of `open`.
    sha256: Digest,
}

impl OpenRound {
    fn sha256(&self) -> Digest {
        Digest::of(&json::to_vec(self))
    }

    /// The open round, if there is one.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the file cannot be read, is not one of ours, or was changed.
    pub fn load(place: &Place) -> Result<Option<Self>, StoreError> {
        let path = place.open_round();
        let bytes = match read_whole(&*place.files, &path, BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { path, source }),
        };
        let damaged = |source| StoreError::OpenRound { path, source };
        match json::from_slice(&bytes) {
            Ok(Stored { open, sha256: expected }) => match open.sha256() {
                found if found == expected => Ok(Some(open)),
                found => Err(damaged(OpenRoundError::Digest { expected, found })),
            },
            Err(source) => Err(damaged(source.into())),
        }
    }

    /// Opens this round.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn save(&self, place: &Place) -> Result<(), StoreError> {
        let path = place.open_round();
        let stored = Stored { open: self.clone(), sha256: self.sha256() };
        write_whole(&*place.files, &path, &json::to_vec(&stored))
            .map_err(|source| StoreError::Io { path, source })
    }
}
