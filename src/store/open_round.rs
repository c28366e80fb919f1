//! Who is expected in the round that is open: what an import was told, until the seal records it. See
//! `schema/open-round.md`.
//!
//! Trusted for nothing: losing it costs naming the peers again with `import`.

use std::io;

use serde::{Deserialize, Serialize};

use super::{
    StoreError,
    files::{read_whole, write_whole},
    place::Place,
};
use crate::types::{json, submission::Miner};

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

impl OpenRound {
    /// The open round, if there is one.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the file cannot be read or is not one of ours.
    pub fn load(place: &Place) -> Result<Option<Self>, StoreError> {
        let path = place.open_round();
        match read_whole(&*place.files, &path, BYTES_MAX) {
            Ok(bytes) => json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| StoreError::OpenRound { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    /// Opens this round.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn save(&self, place: &Place) -> Result<(), StoreError> {
        let path = place.open_round();
        write_whole(&*place.files, &path, &json::to_vec(self))
            .map_err(|source| StoreError::Io { path, source })
    }
}
