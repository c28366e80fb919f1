//! Which states were dropped, so that what is missing by choice is told from what was lost. See
//! `schema/retention.md`.
//!
//! Written by `gc` before it removes the first file. Trusted for nothing more: a state that is said
//! to be dropped is folded again from an older one and compared with its root all the same. Losing
//! it costs running `gc` again.

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    files::{read_whole, write_whole},
    place::Place,
};
use crate::types::json;

/// Version of the file that is written and read.
const VERSION: u64 = 1;

/// Largest file that is read: half a million ranges.
const BYTES_MAX: u64 = 16 << 20;

/// A list of dropped states that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum RetentionError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {source}; {MEND}", path = path.display())]
    Json { path: PathBuf, source: json::JsonError },
    #[error("{path}: version {found}; this program reads {VERSION}", path = path.display())]
    Version { path: PathBuf, found: u64 },
    #[error(
        "{path}: the range {first}..{last} is empty or does not come after the one before; {MEND}",
        path = path.display()
    )]
    Order { path: PathBuf, first: u64, last: u64 },
}

const MEND: &str = "remove the file and run `gradledger gc` again, which writes it anew";

/// The states that were dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    version: u64,
    dropped: Vec<[u64; 2]>,
}

impl Retention {
    /// That the states after the rounds in `dropped` were dropped: first and last of each run, both
    /// included, ascending.
    pub fn new(dropped: Vec<[u64; 2]>) -> Self {
        Self { version: VERSION, dropped }
    }

    /// First and last round of each run of dropped states, ascending.
    pub fn dropped(&self) -> &[[u64; 2]] {
        &self.dropped
    }

    /// Whether the state after `round` was dropped.
    pub fn has_dropped(&self, round: u64) -> bool {
        let before = self.dropped.partition_point(|[first, _]| *first <= round);
        before.checked_sub(1).is_some_and(|at| round <= self.dropped[at][1])
    }

    /// What was dropped; nothing if there is no file.
    ///
    /// # Errors
    ///
    /// [`RetentionError`] if the file cannot be read or is not one of ours.
    pub fn load(place: &Place) -> Result<Self, RetentionError> {
        let path = place.retention();
        let bytes = match read_whole(&*place.files, &path, BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::new(vec![])),
            Err(source) => return Err(RetentionError::Io { path, source }),
            Ok(bytes) => bytes,
        };
        let read: Self = json::from_slice(&bytes)
            .map_err(|source| RetentionError::Json { path: path.clone(), source })?;
        if read.version != VERSION {
            return Err(RetentionError::Version { path, found: read.version });
        }
        let mut end = None;
        for &[first, last] in &read.dropped {
            if first > last || end.is_some_and(|end| first <= end) {
                return Err(RetentionError::Order { path, first, last });
            }
            end = Some(last);
        }
        Ok(read)
    }

    /// Writes the list; durable when this returns.
    ///
    /// # Errors
    ///
    /// [`RetentionError::Io`], fatal.
    pub fn save(&self, place: &Place) -> Result<(), RetentionError> {
        let path = place.retention();
        write_whole(&*place.files, &path, &json::to_vec(self))
            .map_err(|source| RetentionError::Io { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_a_range_were_dropped_and_no_others() {
        let retention = Retention::new(vec![[3, 3], [7, 9]]);
        let dropped: Vec<u64> = (0..12).filter(|&round| retention.has_dropped(round)).collect();
        assert_eq!(dropped, [3, 7, 8, 9]);
        assert!(!Retention::new(vec![]).has_dropped(0));
    }
}
