//! Which states were dropped, so that what is missing by choice is told from what was lost. See
//! `schema/retention.md`.
//!
//! Written by `gc` before it removes the first file, and by `sync` for a copy, which names what it holds
//! instead. Trusted for nothing more: a state that is said to be dropped is folded again from an older
//! one and compared with its root all the same. Losing it costs running `gc`, or `sync`, again.

use std::{collections::BTreeSet, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    files::{read_whole, write_whole},
    place::Place,
};
use crate::types::{digest::Digest, json};

/// Versions of the file that are written and read: of a ledger, and of a copy.
const VERSION: u64 = 1;
const VERSION_OF_COPY: u64 = 2;

/// Largest file that is read: half a million ranges, or 250 thousand states.
const BYTES_MAX: u64 = 16 << 20;

/// A list of states that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum RetentionError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {source}; {MEND}", path = path.display())]
    Json { path: PathBuf, source: json::JsonError },
    #[error(
        "{path}: version {found}; this program reads {VERSION} and {VERSION_OF_COPY}",
        path = path.display()
    )]
    Version { path: PathBuf, found: u64 },
    #[error(
        "{path}: the range {first}..{last} is empty or does not come after the one before; {MEND}",
        path = path.display()
    )]
    Order { path: PathBuf, first: u64, last: u64 },
    #[error("{path}: {root} does not come after the root before; {MEND}", path = path.display())]
    HeldOrder { path: PathBuf, root: Digest },
    #[error("{path}: its list is not that of its version; {MEND}", path = path.display())]
    List { path: PathBuf },
}

const MEND: &str = "remove the file and run `gradledger gc` again, in a copy `gradledger sync`, which \
                    writes it anew";

/// Which states there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retention {
    /// A ledger: all but the states after these rounds, of each run of them the first and the last,
    /// ascending.
    Dropped(Vec<[u64; 2]>),
    /// A copy: the states with these roots, and no others.
    Held(BTreeSet<Digest>),
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dropped: Option<Vec<[u64; 2]>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<Vec<Digest>>,
}

impl Retention {
    /// Whether this tells of a copy.
    pub fn is_of_copy(&self) -> bool {
        matches!(self, Self::Held(_))
    }

    /// Whether the state `root`, after `round` or the genesis, is one that should be there.
    pub fn keeps(&self, round: Option<u64>, root: Digest) -> bool {
        match self {
            Self::Dropped(runs) => !round.is_some_and(|round| is_in(runs, round)),
            Self::Held(roots) => roots.contains(&root),
        }
    }

    /// What is kept; all if there is no file.
    ///
    /// # Errors
    ///
    /// [`RetentionError`] if the file cannot be read or is not one of ours.
    pub fn load(place: &Place) -> Result<Self, RetentionError> {
        let path = place.retention();
        let bytes = match read_whole(&*place.files, &path, BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::Dropped(vec![]));
            }
            Err(source) => return Err(RetentionError::Io { path, source }),
            Ok(bytes) => bytes,
        };
        let read: Stored = json::from_slice(&bytes)
            .map_err(|source| RetentionError::Json { path: path.clone(), source })?;
        match read {
            Stored { version: VERSION, dropped: Some(runs), held: None } => of_runs(path, runs),
            Stored { version: VERSION_OF_COPY, dropped: None, held: Some(roots) } => {
                of_roots(path, roots)
            }
            Stored { version: VERSION | VERSION_OF_COPY, .. } => Err(RetentionError::List { path }),
            Stored { version: found, .. } => Err(RetentionError::Version { path, found }),
        }
    }

    /// Writes the list; durable when this returns.
    ///
    /// # Errors
    ///
    /// [`RetentionError::Io`], fatal.
    pub fn save(&self, place: &Place) -> Result<(), RetentionError> {
        let path = place.retention();
        let stored = match self.clone() {
            Self::Dropped(runs) => Stored { version: VERSION, dropped: Some(runs), held: None },
            Self::Held(roots) => {
                let held = Some(roots.into_iter().collect());
                Stored { version: VERSION_OF_COPY, dropped: None, held }
            }
        };
        write_whole(&*place.files, &path, &json::to_vec(&stored))
            .map_err(|source| RetentionError::Io { path, source })
    }
}

fn is_in(runs: &[[u64; 2]], round: u64) -> bool {
    let before = runs.partition_point(|[first, _]| *first <= round);
    before.checked_sub(1).is_some_and(|at| round <= runs[at][1])
}

fn of_runs(path: PathBuf, runs: Vec<[u64; 2]>) -> Result<Retention, RetentionError> {
    let mut end = None;
    for &[first, last] in &runs {
        if first > last || end.is_some_and(|end| first <= end) {
            return Err(RetentionError::Order { path, first, last });
        }
        end = Some(last);
    }
    Ok(Retention::Dropped(runs))
}

fn of_roots(path: PathBuf, roots: Vec<Digest>) -> Result<Retention, RetentionError> {
    if let Some(pair) = roots.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(RetentionError::HeldOrder { path, root: pair[1] });
    }
    Ok(Retention::Held(roots.into_iter().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_a_range_were_dropped_and_no_others() {
        let retention = Retention::Dropped(vec![[3, 3], [7, 9]]);
        let root = Digest::default();
        let dropped: Vec<u64> =
            (0..12).filter(|&round| !retention.keeps(Some(round), root)).collect();
        assert_eq!(dropped, [3, 7, 8, 9]);
        assert!(retention.keeps(None, root));
        assert!(Retention::Dropped(vec![]).keeps(Some(0), root));
    }

    #[test]
    fn a_copy_has_what_it_names_alone() {
        let (one, other) = (Digest([1; 32]), Digest([2; 32]));
        let retention = Retention::Held([one].into());
        assert!(retention.keeps(Some(3), one) && retention.keeps(None, one));
        assert!(!retention.keeps(Some(3), other) && !retention.keeps(None, other));
    }
}
