//! Why a sync did not come to its end.

use std::{io, path::PathBuf};

use crate::{
    ledger::{LedgerError, retention::StateName},
    store::{StoreError, remote::RemoteError},
};

/// Why a sync did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum SyncError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path} is neither a copy that `sync` made nor empty: give a new directory",
        path = path.display()
    )]
    NotACopy { path: PathBuf },
    #[error(transparent)]
    Url(#[from] RemoteError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("no mirror is left that {wanted}:\n  {}", .reasons.join("\n  "))]
    NoMirror { wanted: String, reasons: Vec<String>, worst: Fault },
    #[error("no mirror has {what}")]
    Nowhere { what: String },
    #[error("no mirror keeps a state from which {state} could be made")]
    NoWay { state: StateName },
    #[error("storing {what}: {source}")]
    Store { what: String, source: StoreError },
}

impl From<StoreError> for SyncError {
    fn from(error: StoreError) -> Self {
        Self::Ledger(error.into())
    }
}

/// What is wrong with a mirror, or not with it at all; the worse the later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Our own disk.
    Ours,
    /// It does not have what it was asked for.
    Absent,
    /// It did not answer, or not as asked.
    Unanswered,
    /// It serves no ledger.
    NoLedger,
    /// What it sent is not what its digest, or the copy's log, asks for.
    Lie,
    /// Its head is not signed by whom the user trusts.
    Untrusted,
}

impl Fault {
    /// What an error says about the mirror that was read.
    pub(super) fn of(error: &StoreError) -> Self {
        match error {
            error if error.is_not_found() => Self::Absent,
            error if error.is_unanswered() => Self::Unanswered,
            error if error.is_mismatch() || error.is_too_large() => Self::Lie,
            _ => Self::Ours,
        }
    }

    /// As [`Fault::of`], of a ledger that was opened there.
    pub(super) fn of_ledger(error: &LedgerError) -> Self {
        match error {
            LedgerError::Store(error) => Self::of(error),
            LedgerError::NoLedger { .. } => Self::NoLedger,
            _ => Self::Lie,
        }
    }
}
