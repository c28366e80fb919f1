//! A ledger open for writing: one process at a time, both logs, the key that signs their heads.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    store::{
        StoreError,
        files::{Disk, Files},
        keys::{
            self,
            heads::{HeadGuard, HeadSigner},
        },
        lock::WriterLock,
        log::LogWriter,
    },
    types::{
        json,
        record::{AnchorRecord, ENTRY_BYTES_MAX, RoundRecord, RoundsEntry},
        submission::Submission,
    },
};

use super::{Ledger, LedgerError};

/// A ledger open for writing.
pub struct LedgerWriter {
    ledger: Ledger,
    rounds: LogWriter,
    submissions: LogWriter,
    _lock: WriterLock,
}

impl LedgerWriter {
    /// Opens the ledger in `root` for writing; half-made files are removed.
    ///
    /// `key_file` is where the log key lies if not in the ledger.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Locked`] if another process writes; others as [`Ledger::open`].
    pub fn open(root: &Path, key_file: Option<&Path>) -> Result<Self, LedgerError> {
        Self::open_in(Arc::new(Disk), root, key_file)
    }

    /// As [`LedgerWriter::open`], through another door to the disk.
    ///
    /// # Errors
    ///
    /// As [`LedgerWriter::open`].
    pub fn open_in(
        files: Arc<dyn Files>,
        root: &Path,
        key_file: Option<&Path>,
    ) -> Result<Self, LedgerError> {
        // A directory without a ledger gets no lock file either.
        let ledger = Ledger::open_in(files.clone(), root)?;
        let lock = WriterLock::acquire(root)?;
        super::anchor::refuse_older(&ledger)?;
        let genesis = ledger.genesis;
        let place = crate::store::place::Place::new(files.clone(), root);
        let key_path = key_file.map_or_else(|| place.log_key(), Path::to_owned);
        let seed = keys::load(&*files, &key_path).map_err(StoreError::from)?;
        let guard = HeadGuard::open(files.clone(), &key_path).map_err(StoreError::from)?;
        let guard = Arc::new(guard);
        let open = |dir: PathBuf, name: &str| -> Result<LogWriter, LedgerError> {
            let origin = format!("{}/{name}", genesis.origin);
            let signer =
                HeadSigner::new(&seed, &origin, guard.clone()).map_err(StoreError::from)?;
            Ok(LogWriter::open(files.clone(), &dir, signer)?)
        };
        let rounds = open(place.rounds_log(), "rounds")?;
        let submissions = open(place.submissions_log(), "submissions")?;
        empty_tmp(&place)?;
        // Recovery may have published a head, so the ledger is read again.
        let ledger = Ledger::open_in(files, root)?;
        Ok(Self { ledger, rounds, submissions, _lock: lock })
    }

    /// The ledger as it stands.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Appends submissions in one commit and gives the index of the first.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then none of them is in the log.
    pub fn append_submissions(&mut self, entries: &[Submission]) -> Result<u64, LedgerError> {
        let bytes: Vec<_> = entries.iter().map(json::to_vec).collect();
        let range = self.submissions.append(&bytes)?;
        self.ledger.refresh_submissions()?;
        Ok(range.start)
    }

    /// Appends a round's record: the commit point of a seal.
    ///
    /// # Errors
    ///
    /// [`LedgerError::RecordBytes`] if it is too long for an entry; [`StoreError`].
    pub fn append_round(&mut self, record: &RoundRecord) -> Result<(), LedgerError> {
        let bytes = json::to_vec(&RoundsEntry::Round(Box::new(record.clone())));
        if bytes.len() > ENTRY_BYTES_MAX {
            let (round, bytes) = (record.round, bytes.len());
            return Err(LedgerError::RecordBytes { round, bytes });
        }
        self.rounds.append(&[bytes])?;
        self.reload()
    }

    /// Appends what is known of an anchored head.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then it is not in the log.
    pub fn append_anchor(&mut self, record: AnchorRecord) -> Result<(), LedgerError> {
        self.rounds.append(&[json::to_vec(&RoundsEntry::Anchor(record))])?;
        self.reload()
    }

    fn reload(&mut self) -> Result<(), LedgerError> {
        let place = self.ledger.place();
        self.ledger = Ledger::open_in(place.files.clone(), &place.root)?;
        Ok(())
    }
}

/// Removes what a killed process left half made.
pub(super) fn empty_tmp(place: &crate::store::place::Place) -> Result<(), StoreError> {
    let tmp = place.tmp();
    let at = |source| StoreError::Io { path: tmp.clone(), source };
    if place.files.exists(&tmp).map_err(at)? {
        place.files.remove_dir_all(&tmp).map_err(at)?;
    }
    place.files.create_dir_all(&tmp).map_err(at)
}
