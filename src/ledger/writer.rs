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
            self, LogSeed,
            heads::{GuardError, HeadGuard, HeadSigner},
        },
        lock::WriterLock,
        log::{LogError, LogWriter},
        place::Place,
    },
    types::{
        json,
        progress::Progress,
        record::{AnchorRecord, ENTRY_BYTES_MAX, KeyRotation, LogKeys, RoundRecord, RoundsEntry},
        submission::Submission,
    },
};

use super::{
    Ledger, LedgerError,
    index::LedgerIndex,
    key_chain::KeyChain,
    last_head::{self, LastHead},
};

/// A ledger open for writing.
pub struct LedgerWriter {
    ledger: Ledger,
    rounds: LogWriter,
    submissions: LogWriter,
    index: Option<LedgerIndex>,
    /// Where the log key lies, if not in the ledger.
    key_file: Option<PathBuf>,
    // Let go of last: the index is closed by then.
    _lock: WriterLock,
}

impl LedgerWriter {
    /// Opens the ledger in `root` for writing; half-made files are removed.
    ///
    /// `key_file` is where the log key lies if not in the ledger.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Locked`] if another process writes, [`LedgerError::OtherKey`] if the key is not
    /// the one that signs now; others as [`Ledger::open`].
    pub fn open(root: &Path, key_file: Option<&Path>) -> Result<Self, LedgerError> {
        Self::open_in(Arc::new(Disk), root, key_file)
    }

    /// As [`LedgerWriter::open`], if the logs lead to these heads, which someone kept.
    ///
    /// # Errors
    ///
    /// [`LedgerError::LastHead`] if they do not: nothing is signed then. Others as
    /// [`LedgerWriter::open`].
    pub fn open_after(
        root: &Path,
        key_file: Option<&Path>,
        last_heads: &[LastHead],
    ) -> Result<Self, LedgerError> {
        Self::open_with(Arc::new(Disk), root, key_file, last_heads)
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
        Self::open_with(files, root, key_file, &[])
    }

    fn open_with(
        files: Arc<dyn Files>,
        root: &Path,
        key_file: Option<&Path>,
        last_heads: &[LastHead],
    ) -> Result<Self, LedgerError> {
        let place = Place::new(files.clone(), root);
        // A directory without a ledger gets no lock file either.
        if !super::committed(&place, &place.rounds_log())? {
            return Err(LedgerError::NoLedger { path: root.to_owned() });
        }
        let lock = WriterLock::acquire(root)?;
        // What is committed says whose turn it is to sign, be it published or not.
        let committed = Ledger::open_committed(&place)?;
        last_head::check(&committed, last_heads)?;
        let (rounds, submissions) = open_logs(&committed, key_file)?;
        empty_tmp(&place)?;
        // Recovery may have published a head, so the ledger is read again.
        let ledger = Ledger::open_in(files, root)?;
        let key_file = key_file.map(Path::to_owned);
        Ok(Self { ledger, rounds, submissions, index: None, key_file, _lock: lock })
    }

    /// Reads the logs again as the next process would, under the same lock: after an append failed.
    ///
    /// # Errors
    ///
    /// As [`LedgerWriter::open`]; then it may be tried again.
    pub fn reopen(&mut self) -> Result<(), LedgerError> {
        let committed = Ledger::open_committed(self.ledger.place())?;
        (self.rounds, self.submissions) = open_logs(&committed, self.key_file.as_deref())?;
        self.index = None;
        self.reload()
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

    /// Appends a rotation's entry, its commit point; from then on `next` signs.
    pub(super) fn append_rotation(
        &mut self,
        entry: &KeyRotation,
        next: LogSigners,
    ) -> Result<(), LedgerError> {
        let bytes = json::to_vec(&RoundsEntry::KeyRotation(Box::new(entry.clone())));
        self.rounds.append_rotation(&bytes, next.rounds)?;
        self.submissions.hand_over(next.submissions)?;
        self.reload()
    }

    /// What signs the heads of the rounds log.
    pub(super) fn signer(&self) -> &HeadSigner {
        self.rounds.signer()
    }

    /// The ledger and its index, brought up to the logs; it is opened the first time it is asked for.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Index`] if it cannot be had: the logs hold all of it. Others if they do not
    /// read.
    pub fn index(
        &mut self,
        progress: &dyn Progress,
    ) -> Result<(&Ledger, &mut LedgerIndex), LedgerError> {
        let opened = self
            .index
            .take()
            .and_then(|mut index| index.catch_up(&self.ledger, progress).is_ok().then_some(index));
        let index = match opened {
            Some(index) => index,
            None => LedgerIndex::open(&self.ledger, progress)?,
        };
        Ok((&self.ledger, self.index.insert(index)))
    }

    fn reload(&mut self) -> Result<(), LedgerError> {
        let place = self.ledger.place();
        self.ledger = Ledger::open_in(place.files.clone(), &place.root)?;
        Ok(())
    }
}

/// The writers of both logs, with the signers whose turn it is.
fn open_logs(
    committed: &Ledger,
    key_file: Option<&Path>,
) -> Result<(LogWriter, LogWriter), LedgerError> {
    super::anchor::refuse_older(committed)?;
    let LogSigners { rounds, submissions } = signers(committed, key_file)?;
    let place = committed.place();
    let open = |dir: PathBuf, signer| LogWriter::open(place.files.clone(), &dir, signer);
    Ok((open(place.rounds_log(), rounds)?, open(place.submissions_log(), submissions)?))
}

/// One log key as the signer of both logs.
pub(super) struct LogSigners {
    pub(super) rounds: HeadSigner,
    pub(super) submissions: HeadSigner,
}

impl LogSigners {
    /// The signers of the logs of `origin`, whose published heads may be of a key of the chain.
    pub(super) fn new(
        seed: &LogSeed,
        origin: &str,
        guard: &Arc<HeadGuard>,
        chain: &KeyChain,
    ) -> Result<Self, StoreError> {
        let signer = |log: &str, rounds: bool| {
            let signer = HeadSigner::new(seed, &format!("{origin}/{log}"), guard.clone())?;
            Ok::<_, StoreError>(signer.after(chain.retired(rounds)))
        };
        Ok(Self { rounds: signer("rounds", true)?, submissions: signer("submissions", false)? })
    }

    /// The verifier keys.
    pub(super) fn log_keys(&self) -> LogKeys {
        LogKeys {
            rounds: self.rounds.verifier().to_string(),
            submissions: self.submissions.verifier().to_string(),
        }
    }
}

/// The signers whose turn it is.
pub(super) fn signers(ledger: &Ledger, key_file: Option<&Path>) -> Result<LogSigners, LedgerError> {
    let (place, chain) = (ledger.place(), ledger.keys());
    let path = key_file.map_or_else(|| place.log_key(chain.rotations()), Path::to_owned);
    let seed = keys::load(&*place.files, &path).map_err(StoreError::from)?;
    let guard = HeadGuard::open(place.files.clone(), &path).map_err(StoreError::from)?;
    let signers = LogSigners::new(&seed, &ledger.genesis().origin, &Arc::new(guard), chain)?;
    let (expected, found) = (chain.newest().log_keys.rounds.clone(), signers.log_keys().rounds);
    if expected == found {
        check_later(ledger)?;
        return Ok(signers);
    }
    let retired = chain.terms().iter().position(|term| term.log_keys.rounds == found);
    let retired = retired.map(|at| chain.terms()[at + 1].index);
    Err(LedgerError::OtherKey { path, expected, found, retired })
}

/// That no later key in the ledger signed more than there is: a backup may bring back the log of before
/// its rotation, and the record of the key of then.
fn check_later(ledger: &Ledger) -> Result<(), LedgerError> {
    let place = ledger.place();
    for rotations in ledger.keys().rotations() + 1.. {
        let guard = match HeadGuard::open(place.files.clone(), &place.log_key(rotations)) {
            Err(GuardError::Absent { .. }) => break,
            opened => opened.map_err(LogError::from)?,
        };
        for log in [ledger.rounds_log(), ledger.submissions_log()] {
            guard.check(log.head()).map_err(LogError::from)?;
        }
    }
    Ok(())
}

/// Removes what a killed process left half made.
pub(super) fn empty_tmp(place: &Place) -> Result<(), StoreError> {
    let tmp = place.tmp();
    let at = |source| StoreError::Io { path: tmp.clone(), source };
    if place.files.exists(&tmp).map_err(at)? {
        place.files.remove_dir_all(&tmp).map_err(at)?;
    }
    place.files.create_dir_all(&tmp).map_err(at)
}
