//! Heads that someone kept: a ledger that does not lead to them is an old copy, or a fork.
//!
//! What a key signed is recorded beside it, but a backup may bring that record back with the log. A
//! head kept elsewhere (by a miner in a receipt, by a monitor) tells all the same.

use std::path::PathBuf;

use crate::{
    merkle::{
        head::{HeadError, TreeHead},
        note::SignedNote,
    },
    types::digest::Digest,
};

use super::{Ledger, LedgerError};

/// A signed head of either log, and where it was read from.
#[derive(Clone, Debug)]
pub struct LastHead {
    /// The file, for messages.
    pub path: PathBuf,
    /// The signed note.
    pub note: Vec<u8>,
}

/// A head that the ledger does not lead to. Nothing is signed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum LastHeadError {
    #[error(
        "{path}: no head that a key of this ledger signed, so nothing is signed: {source}. If the \
         log key was changed after this ledger was copied, bring back the log as it was then"
    )]
    Unsigned { path: PathBuf, source: HeadError },
    #[error(
        "{path}: {origin} had {signed} entries and has {size} here, so nothing is signed: that would \
         fork the log. Was the ledger restored from an old backup? Bring back the log as it was at \
         {signed} entries"
    )]
    Older { path: PathBuf, origin: String, signed: u64, size: u64 },
    #[error(
        "{path}: {origin} had the root {signed} at {size} entries and has {found} here, so nothing \
         is signed: the log is forked already. Was the ledger restored from an old backup and \
         written to? Bring back the log whose root at {size} entries is {signed}"
    )]
    Forked { path: PathBuf, origin: String, size: u64, signed: Digest, found: Digest },
}

/// Whether the ledger's logs, as they are committed, lead to each of these heads.
pub(super) fn check(ledger: &Ledger, heads: &[LastHead]) -> Result<(), LedgerError> {
    heads.iter().try_for_each(|head| check_one(ledger, head))
}

fn check_one(ledger: &Ledger, LastHead { path, note }: &LastHead) -> Result<(), LedgerError> {
    let path = path.clone();
    let head = match open(ledger, note) {
        Ok(head) => head,
        Err(source) => return Err(LastHeadError::Unsigned { path, source }.into()),
    };
    let (rounds, submissions) = (ledger.rounds_log(), ledger.submissions_log());
    let log = if head.origin == rounds.head().origin { rounds } else { submissions };
    let TreeHead { origin, size: signed, root } = head;
    if signed > log.size() {
        return Err(LastHeadError::Older { path, origin, signed, size: log.size() }.into());
    }
    let found = log.root_at(signed)?;
    if found != root {
        let (size, signed) = (signed, root);
        return Err(LastHeadError::Forked { path, origin, size, signed, found }.into());
    }
    Ok(())
}

/// The head, if the key in force at its size signed it.
fn open(ledger: &Ledger, note: &[u8]) -> Result<TreeHead, HeadError> {
    let TreeHead { size, .. } = TreeHead::parse(SignedNote::parse(note)?.text())?;
    let mut keys = ledger.keys().of_submissions(size);
    keys.push(ledger.keys().of_rounds(size).clone());
    TreeHead::open_by_any(note, &keys)
}
