//! The logs' index: which entries a statement's id, a miner or a round leads to.
//!
//! Derived from the logs alone, and trusted for nothing: it records the sizes and the roots of the
//! logs that it reflects, goes on from there if the logs still have those roots, and is made anew if
//! not. Each hit is compared with the entry that it leads to. What is missing in it although its
//! roots agree (a fault of the backend) costs an answer that could have been given, never a wrong
//! one; so nothing that is acknowledged, refused as a duplicate, removed or signed rests on it.

use serde::{Deserialize, Serialize};

use crate::{
    codec::statement::Statement,
    merkle::{tile::TILE_WIDTH, tree::empty_root},
    store::{
        index::{
            IndexDir, IndexError, Pair, REFLECTS, miner_prefix, pointed, pointer, round_prefix,
            statement_prefix,
        },
        log::LogReader,
    },
    types::{
        digest::Digest,
        json,
        progress::Progress,
        submission::{Miner, Submission},
    },
};

use super::{
    Ledger, LedgerError, Sealed,
    submit::{is_statement, statement_of},
};

/// Most hits of one key that are looked up. The first is the one, but for faults of the backend.
const HITS_MAX: usize = 8;

/// A log as far as the index reflects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reflected {
    size: u64,
    root: Digest,
}

impl Reflected {
    fn nothing() -> Self {
        Self { size: 0, root: empty_root() }
    }

    /// `log` up to `size`.
    fn of(log: &LogReader, size: u64) -> Result<Self, LedgerError> {
        Ok(Self { size, root: log.root_at(size)? })
    }

    /// Whether `log` once was this.
    fn is_past_of(&self, log: &LogReader) -> Result<bool, LedgerError> {
        Ok(self.size <= log.size() && log.root_at(self.size)? == self.root)
    }
}

/// What the index says of itself, in canonical JSON. See `schema/index.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reflects {
    rounds: Reflected,
    submissions: Reflected,
}

/// The index of a ledger that is open for writing.
pub struct LedgerIndex {
    dir: IndexDir,
    reflects: Reflects,
}

impl LedgerIndex {
    /// Opens the ledger's index and brings it up to the ledger's logs; makes it anew where it is
    /// missing, damaged, ahead of the logs or another ledger's.
    ///
    /// Memory: a bundle of the log and the backend's cache. Call it under the writer lock.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Index`] if it cannot be had at all; others if the logs do not read.
    pub fn open(ledger: &Ledger, progress: &dyn Progress) -> Result<Self, LedgerError> {
        let root = ledger.place().index();
        let opened = Self::on(IndexDir::open(&root)?, ledger).and_then(|mut index| {
            index.catch_up(ledger, progress)?;
            Ok(index)
        });
        match opened {
            // One that fails once it is open is no better than one that is missing.
            Err(LedgerError::Index(_)) => {
                let mut index = Self::on(IndexDir::anew(&root)?, ledger)?;
                index.catch_up(ledger, progress)?;
                Ok(index)
            }
            opened => opened,
        }
    }

    /// The index in `dir` as far as it reflects this ledger's logs.
    fn on(mut dir: IndexDir, ledger: &Ledger) -> Result<Self, LedgerError> {
        let nothing =
            || Reflects { rounds: Reflected::nothing(), submissions: Reflected::nothing() };
        let Some(bytes) = dir.get(REFLECTS)? else {
            return Ok(Self { dir, reflects: nothing() });
        };
        if let Ok(reflects) = json::from_slice::<Reflects>(&bytes)
            && reflects.rounds.is_past_of(ledger.rounds_log())?
            && reflects.submissions.is_past_of(ledger.submissions_log())?
        {
            return Ok(Self { dir, reflects });
        }
        drop(dir);
        Ok(Self { dir: IndexDir::anew(&ledger.place().index())?, reflects: nothing() })
    }

    /// Takes up what was appended to the logs since. Nothing is read if nothing was.
    ///
    /// # Errors
    ///
    /// As [`LedgerIndex::open`].
    pub fn catch_up(
        &mut self,
        ledger: &Ledger,
        progress: &dyn Progress,
    ) -> Result<(), LedgerError> {
        let now = (ledger.rounds_log().size(), ledger.submissions_log().size());
        if (self.reflects.rounds.size, self.reflects.submissions.size) == now {
            return Ok(());
        }
        progress.begin("index", 0);
        // Rounds first: the genesis among them tells runs apart whose submissions are the same.
        self.take_rounds(ledger)?;
        while self.reflects.submissions.size < ledger.submissions_log().size() {
            self.take_submissions(ledger, progress)?;
        }
        progress.end();
        Ok(())
    }

    fn take_rounds(&mut self, ledger: &Ledger) -> Result<(), LedgerError> {
        let log = ledger.rounds_log();
        let new = |sealed: &&Sealed| sealed.index >= self.reflects.rounds.size;
        let pair = |sealed: &Sealed| pointer(round_prefix(sealed.record.round), sealed.index);
        let puts = ledger.sealed().iter().filter(new).map(pair).collect();
        let rounds = Reflected::of(log, log.size())?;
        self.put(puts, Reflects { rounds, ..self.reflects })
    }

    /// One batch of submissions: those of one bundle, so that each is read once and a batch, whose
    /// every page sled keeps until it is put, stays small.
    fn take_submissions(
        &mut self,
        ledger: &Ledger,
        progress: &dyn Progress,
    ) -> Result<(), LedgerError> {
        let log = ledger.submissions_log();
        let start = self.reflects.submissions.size;
        let width = u64::from(TILE_WIDTH);
        let end = log.size().min((start / width + 1) * width);
        let mut puts = Vec::new();
        for (index, entry) in (start..).zip(log.entries(start..end)?) {
            let bytes = entry?;
            progress.advance(bytes.len() as u64);
            let submission = read(index, &bytes)?;
            puts.push(pointer(miner_prefix(&submission.miner(), submission.round()), index));
            if let Submission::Signed(signed) = submission {
                let id = statement_of(ledger.run_id(), &signed).id();
                puts.push(pointer(statement_prefix(&id), index));
            }
        }
        let submissions = Reflected::of(log, end)?;
        self.put(puts, Reflects { submissions, ..self.reflects })
    }

    /// Puts what was read together with how far that is.
    fn put(&mut self, mut puts: Vec<Pair>, reflects: Reflects) -> Result<(), LedgerError> {
        puts.push((REFLECTS.to_vec(), json::to_vec(&reflects)));
        self.dir.apply(&puts)?;
        self.reflects = reflects;
        Ok(())
    }

    /// The lowest index at which `statement` stands in the submissions log.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Index`]; others if the log does not read.
    pub fn statement(
        &mut self,
        ledger: &Ledger,
        statement: &Statement,
    ) -> Result<Option<u64>, LedgerError> {
        let is_it = |submission: &Submission| is_statement(ledger, submission, statement);
        self.first(ledger, &statement_prefix(&statement.id()), is_it)
    }

    /// The lowest index of a submission of `miner` for `round`, whether it counts or not.
    ///
    /// # Errors
    ///
    /// As [`LedgerIndex::statement`].
    pub fn miner(
        &mut self,
        ledger: &Ledger,
        miner: Miner,
        round: u64,
    ) -> Result<Option<u64>, LedgerError> {
        let is_it =
            |submission: &Submission| (submission.miner(), submission.round()) == (miner, round);
        self.first(ledger, &miner_prefix(&miner, round), is_it)
    }

    /// The index of the record of `round` in the rounds log.
    ///
    /// # Errors
    ///
    /// As [`LedgerIndex::statement`].
    pub fn round(&mut self, ledger: &Ledger, round: u64) -> Result<Option<u64>, LedgerError> {
        let hits = self.dir.scan(&round_prefix(round), HITS_MAX)?;
        let is_it = |index: &u64| {
            let at = ledger.sealed().binary_search_by_key(index, |sealed| sealed.index);
            at.is_ok_and(|at| ledger.sealed()[at].record.round == round)
        };
        Ok(hits.iter().filter_map(|(key, _)| pointed(key)).find(is_it))
    }

    /// The first entry of the submissions log under `prefix` that is what it should be.
    fn first(
        &mut self,
        ledger: &Ledger,
        prefix: &[u8],
        is_it: impl Fn(&Submission) -> bool,
    ) -> Result<Option<u64>, LedgerError> {
        let log = ledger.submissions_log();
        for (key, _) in self.dir.scan(prefix, HITS_MAX)? {
            let Some(index) = pointed(&key).filter(|&index| index < log.size()) else { continue };
            if is_it(&read(index, &log.entry(index)?)?) {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// All pairs, by key: what two indexes of one ledger are compared by.
    ///
    /// # Errors
    ///
    /// [`IndexError`].
    pub fn pairs(&mut self) -> Result<Vec<Pair>, IndexError> {
        self.dir.scan(&[], usize::MAX)
    }
}

fn read(index: u64, bytes: &[u8]) -> Result<Submission, LedgerError> {
    let log = "submissions";
    json::from_slice(bytes).map_err(|source| LedgerError::Entry { log, index, source })
}
