//! Layer 5: a ledger as a whole, and the order of the steps that change or check it.
//!
//! Reading needs no lock and works while a writer runs: it uses the logs and the segments alone.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub mod anchor;
pub mod anchored;
pub mod check;
pub mod diff;
pub mod doctor;
pub mod fsck;
pub mod gc;
pub mod hub;
pub mod import;
pub mod index;
pub mod init;
pub mod key_chain;
pub mod last_head;
pub mod replay;
pub mod retention;
pub mod rotate;
pub mod seal;
pub mod show;
pub mod submit;
pub mod tables;
pub mod turns;
pub mod uploads;
pub mod witness;
pub mod writer;

use crate::{
    codec::{layout::Layout, statement::StatementError},
    export::ExportError,
    fold::FoldError,
    import::checkpoint::ImportError,
    intake::admit::AdmitError,
    merkle::note::KeyError,
    plan::PlanStepError,
    store::{
        StoreError,
        artifacts::StoredCheckpoint,
        files::{Disk, Files},
        hub::{self as given, GivenError},
        index::IndexError,
        lock::LockError,
        log::{LogError, LogReader},
        open_round::OpenRound,
        place::Place,
    },
    types::{
        digest::Digest,
        json,
        manifest::{ManifestError, ManifestId},
        record::{AnchorRecord, Genesis, MinersPolicy, RoundRecord, RoundsEntry},
        rule::{Rule, RuleError, SparseMeanSgd},
        submission::{Miner, Submission},
        tensor::TensorError,
    },
};

use self::key_chain::KeyChain;

/// Why a step on a ledger did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum LedgerError {
    #[error(
        "{path} is not a ledger: it has no log of rounds. `gradledger init {path} ...` makes one"
    )]
    NoLedger { path: PathBuf },
    #[error(
        "{path} is missing: the signed head of a log that is there. If `gradledger init` was \
         interrupted, run it again; else the next command that writes to the ledger publishes it: \
         run the last one again"
    )]
    NoHead { path: PathBuf },
    #[error("{path} is a ledger already; give another directory")]
    Exists { path: PathBuf },
    #[error(transparent)]
    Locked(#[from] LockError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Admit(#[from] AdmitError),
    #[error(transparent)]
    Plan(#[from] PlanStepError),
    #[error(transparent)]
    Fold(#[from] FoldError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Note(#[from] KeyError),
    #[error(transparent)]
    Statement(#[from] StatementError),
    #[error(transparent)]
    Rule(#[from] RuleError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("entry {index} of the {log} log: {source}")]
    Entry { log: &'static str, index: u64, source: json::JsonError },
    #[error("entry {index} of the rounds log: {found}")]
    EntryKind { index: u64, found: &'static str },
    #[error("the genesis has version {found}; this program reads {}", init::GENESIS_VERSION)]
    GenesisVersion { found: u64 },
    #[error("the genesis: {0}")]
    GenesisFiles(GivenError),
    #[error("the genesis: {0}")]
    GenesisKeys(key_chain::ChainError),
    #[error("the key rotation at entry {index} of the rounds log: {source}")]
    Rotation { index: u64, source: key_chain::ChainError },
    #[error(
        "{path}: this is the key {found}{}; the log's key is {expected}: name its file with \
         --log-key-file", by_entry(.retired)
    )]
    OtherKey { path: PathBuf, expected: String, found: String, retired: Option<u64> },
    #[error(transparent)]
    LastHead(#[from] last_head::LastHeadError),
    #[error("the ledger has no round {round}; {}", held(.first, .last))]
    NoRound { round: u64, first: Option<u64>, last: Option<u64> },
    #[error("the ledger has no sealed round yet: `import` and `seal` make one")]
    NoRounds,
    #[error(
        "the state after round {round} was dropped by gc; kept are {before} before it and the state \
         after round {after}. `gradledger export --round {round}` folds it again"
    )]
    Dropped { round: u64, before: retention::StateName, after: u64 },
    #[error(
        "{state} is not whole, and no gc recorded that it was dropped: {source}. Bring the file back \
         from a copy; if `retention.json` was lost, run `gradledger gc` again with the --keep-every \
         of before"
    )]
    StateLost { state: retention::StateName, source: StoreError },
    #[error(
        "{state} is not in this copy, nor can it be folded from what is: it holds {}. `gradledger sync \
         URL... DIR` brings it the newest state, `--round` another, and `--keep` keeps several with \
         their deltas", .holds.map_or("no state yet".to_owned(), |holds| holds.to_string())
    )]
    NotHeld { state: retention::StateName, holds: Option<retention::StateName> },
    #[error(
        "{what} is not whole in this copy: {source}. Remove {boot} and run `gradledger sync` again: then it \
         hashes what is here, and fetches what is missing or damaged", boot = boot.display()
    )]
    CopyDamaged { what: String, boot: PathBuf, source: StoreError },
    #[error(
        "{path} is a copy: `sync` without --keep leaves one state in it, and there is nothing to gain",
        path = path.display()
    )]
    Copy { path: PathBuf },
    #[error("round {round} cannot follow round {last}: rounds only go up")]
    RoundOrder { round: u64, last: u64 },
    #[error(
        "round {round} is sealed already, with what was imported then: `gradledger show --round \
         {round}` shows it, `gradledger seal --round {round}` tells of the newest again"
    )]
    RoundSealed { round: u64 },
    #[error("round {open} is open with {submissions} submissions: seal it before round {round}")]
    RoundOpen { round: u64, open: u64, submissions: u64 },
    #[error("round {round} is not open: `gradledger import templar` it first")]
    RoundNotOpen { round: u64 },
    #[error("{0}")]
    Init(#[from] init::InitError),
    #[error("{0}")]
    Peers(#[from] import::PeersError),
    #[error("{0}")]
    Disagrees(#[from] Box<check::Disagreement>),
    #[error(
        "sealing round {round}: element {element} of {tensor} would become NaN or infinite; \
         nothing was sealed. The native rule does not store such a value. The round stays open: what \
         was submitted cannot be taken back, but a further submission may change the mean"
    )]
    NonFinite { round: u64, tensor: String, element: u64 },
    #[error("the ledger has no tensor {name:?} that its rule folds")]
    NoTensor { name: String },
    #[error("the record of round {round} would take {bytes} bytes, more than a log entry holds")]
    RecordBytes { round: u64, bytes: usize },
    #[error(transparent)]
    Anchor(#[from] anchored::AnchorError),
    #[error(transparent)]
    AnchorStep(#[from] anchor::AnchorStepError),
    #[error(
        "the {log} log has {now} entries now and had {before}: was an old backup put in its place? \
         If so, start anew from it"
    )]
    Shrunk { log: &'static str, before: u64, now: u64 },
    #[error("the thread that appends submissions has ended")]
    SubmitterGone,
    #[error("the submission was not appended: {reason}")]
    Submit { reason: String, full: bool },
    #[error("making {threads} threads: {source}")]
    Threads { threads: usize, source: rayon::ThreadPoolBuildError },
}

impl LedgerError {
    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Store(error) => error.is_full(),
            Self::Submit { full, .. } => *full,
            _ => false,
        }
    }
}

impl From<check::Disagreement> for LedgerError {
    fn from(found: check::Disagreement) -> Self {
        Self::Disagrees(Box::new(found))
    }
}

impl From<LogError> for LedgerError {
    fn from(error: LogError) -> Self {
        Self::Store(error.into())
    }
}

/// Whether a log was begun in `dir`, whatever became of its head.
fn committed(place: &Place, dir: &Path) -> Result<bool, StoreError> {
    let path = dir.join("tree-state");
    place.files.exists(&path).map_err(|source| StoreError::Io { path, source })
}

fn by_entry(index: &Option<u64>) -> String {
    index.map_or_else(String::new, |i| format!(", retired by entry {i} of the rounds log"))
}

fn held(first: &Option<u64>, last: &Option<u64>) -> String {
    match (first, last) {
        (Some(first), Some(last)) if first != last => format!("it holds {first} to {last}"),
        (Some(first), _) => format!("it holds {first} alone"),
        (None, _) => "it holds none yet".to_owned(),
    }
}

/// A state of the model: the genesis, or the one after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// What the run started from.
    Genesis,
    /// After this round.
    Round(u64),
}

impl std::str::FromStr for At {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "genesis" { Ok(Self::Genesis) } else { text.parse().map(Self::Round) }
    }
}

/// A record with its place in the rounds log.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Index in the rounds log.
    pub index: u64,
    /// RFC 6962 leaf hash of the entry.
    pub leaf: Digest,
    /// What it says.
    pub record: RoundRecord,
}

/// A ledger open for reading, as of the tree heads that were published when it was opened.
///
/// A clone is cheap: what grows with the run is shared.
#[derive(Clone)]
pub struct Ledger {
    place: Place,
    genesis: Genesis,
    run_id: Digest,
    keys: KeyChain,
    rounds: LogReader,
    submissions: LogReader,
    sealed: Arc<Vec<Sealed>>,
    anchors: Arc<Vec<Anchored>>,
}

/// An anchor with its place in the rounds log.
#[derive(Clone, Copy, Debug)]
pub struct Anchored {
    /// Index in the rounds log.
    pub index: u64,
    /// What it says.
    pub record: AnchorRecord,
}

impl Ledger {
    /// Opens the ledger in `root` on the local disk.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NoLedger`] if there is none; others if what is there does not read.
    pub fn open(root: &Path) -> Result<Self, LedgerError> {
        Self::open_in(Arc::new(Disk), root)
    }

    /// As [`Ledger::open`], through another door to the disk.
    ///
    /// # Errors
    ///
    /// As [`Ledger::open`].
    pub fn open_in(files: Arc<dyn Files>, root: &Path) -> Result<Self, LedgerError> {
        let place = Place::new(files, root);
        let no_ledger = || LedgerError::NoLedger { path: root.to_owned() };
        let open = |dir: &Path| match LogReader::open(place.files.clone(), dir) {
            // A damaged ledger is one all the same, and `init` no way to mend it.
            Err(LogError::Absent { path }) if committed(&place, dir)? => {
                Err(LedgerError::NoHead { path })
            }
            Err(LogError::Absent { .. }) => Err(no_ledger()),
            opened => Ok(opened?),
        };
        loop {
            let rounds = open(&place.rounds_log())?;
            let submissions = open(&place.submissions_log())?;
            let ledger = Self::read(place.clone(), rounds, submissions)?;
            let Err(error) = ledger.verify_heads() else { return Ok(ledger) };
            // The key may have changed after the one log was read and before the other.
            if open(&place.rounds_log())?.size() == ledger.rounds.size() {
                return Err(error.into());
            }
        }
    }

    /// This ledger as its logs are now, if a new head was published of either.
    ///
    /// New submissions alone cost reading two heads; a sealed round, reading the rounds log again.
    ///
    /// # Errors
    ///
    /// As [`Ledger::open`]; [`LedgerError::Shrunk`] if a log has fewer entries than before.
    pub fn follow(&self) -> Result<Option<Self>, LedgerError> {
        let open = |dir: &Path| LogReader::open(self.place.files.clone(), dir);
        let rounds = open(&self.place.rounds_log())?;
        if rounds.note() != self.rounds.note() {
            let now = Self::open_in(self.place.files.clone(), &self.place.root)?;
            return self.check_grown(&now).map(|()| Some(now));
        }
        let submissions = open(&self.place.submissions_log())?;
        if submissions.note() == self.submissions.note() {
            return Ok(None);
        }
        let now = Self { submissions, ..self.clone() };
        self.check_grown(&now)?;
        now.verify_heads()?;
        Ok(Some(now))
    }

    fn check_grown(&self, now: &Self) -> Result<(), LedgerError> {
        let logs = [("rounds", &self.rounds, &now.rounds)];
        let logs = logs.into_iter().chain([("submissions", &self.submissions, &now.submissions)]);
        for (log, before, now) in logs {
            let (before, now) = (before.size(), now.size());
            if now < before {
                return Err(LedgerError::Shrunk { log, before, now });
            }
        }
        Ok(())
    }

    /// The ledger as its logs are committed, whatever is published of them: for a writer, which has
    /// to know whose turn it is to sign.
    pub(crate) fn open_committed(place: &Place) -> Result<Self, LedgerError> {
        let open = |dir: &Path| LogReader::open_committed(place.files.clone(), dir);
        Self::read(place.clone(), open(&place.rounds_log())?, open(&place.submissions_log())?)
    }

    fn read(place: Place, rounds: LogReader, submissions: LogReader) -> Result<Self, LedgerError> {
        let mut start = None;
        let (mut sealed, mut anchors) = (Vec::new(), Vec::new());
        for (index, entry) in (0..).zip(rounds.entries(0..rounds.size())?) {
            let bytes = entry?;
            let entry = json::from_slice(&bytes).map_err(|source| LedgerError::Entry {
                log: "rounds",
                index,
                source,
            })?;
            let leaf = crate::merkle::tree::leaf_hash(&bytes);
            start = Some(match (entry, start) {
                (RoundsEntry::Genesis(genesis), None) => {
                    check_genesis(&genesis)?;
                    let keys = KeyChain::of_genesis(&genesis.origin, &genesis.log_keys)
                        .map_err(LedgerError::GenesisKeys)?;
                    (*genesis, leaf, keys)
                }
                (RoundsEntry::Round(record), Some(start)) => {
                    sealed.push(Sealed { index, leaf, record: *record });
                    start
                }
                (RoundsEntry::Anchor(record), Some(start)) => {
                    anchors.push(Anchored { index, record });
                    start
                }
                (RoundsEntry::KeyRotation(rotation), Some((genesis, run, mut keys))) => {
                    keys.rotate(run, index, &rotation)
                        .map_err(|source| LedgerError::Rotation { index, source })?;
                    (genesis, run, keys)
                }
                (RoundsEntry::Genesis(_), Some(_)) => {
                    return Err(LedgerError::EntryKind { index, found: "a second genesis" });
                }
                (_, None) => {
                    let found = "another entry before the genesis";
                    return Err(LedgerError::EntryKind { index, found });
                }
            });
        }
        let no_ledger = || LedgerError::NoLedger { path: place.root.clone() };
        let (genesis, run_id, keys) = start.ok_or_else(no_ledger)?;
        let (sealed, anchors) = (Arc::new(sealed), Arc::new(anchors));
        Ok(Self { place, genesis, run_id, keys, rounds, submissions, sealed, anchors })
    }

    /// That the published heads are signed by the keys in force at their sizes.
    ///
    /// The keys are those of the ledger itself, so this finds damage, and a head that a retired key
    /// signed; not a forger of the whole, for which keys from outside are needed.
    fn verify_heads(&self) -> Result<(), LogError> {
        self.rounds.verify_head(self.keys.of_rounds(self.rounds.size()))?;
        self.submissions.verify_head_by(&self.keys.of_submissions(self.submissions.size()))
    }

    /// Where it lies.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What the run started from.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// Leaf hash of the genesis entry.
    pub fn run_id(&self) -> Digest {
        self.run_id
    }

    /// The log keys of the run.
    pub fn keys(&self) -> &KeyChain {
        &self.keys
    }

    /// The rounds log.
    pub fn rounds_log(&self) -> &LogReader {
        &self.rounds
    }

    /// The submissions log.
    pub fn submissions_log(&self) -> &LogReader {
        &self.submissions
    }

    /// The sealed rounds, oldest first.
    pub fn sealed(&self) -> &[Sealed] {
        &self.sealed
    }

    /// The sealed rounds that no anchored head holds, oldest first.
    pub fn unanchored(&self) -> &[Sealed] {
        let anchored = self.anchors.iter().map(|anchor| anchor.record.size).max().unwrap_or(0);
        &self.sealed[self.sealed.partition_point(|sealed| sealed.index < anchored)..]
    }

    /// The anchors that the log tells of, oldest first.
    pub fn anchors(&self) -> &[Anchored] {
        &self.anchors
    }

    /// Where round `round` stands among the sealed ones.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NoRound`].
    pub fn position(&self, round: u64) -> Result<usize, LedgerError> {
        self.sealed.iter().position(|s| s.record.round == round).ok_or_else(|| {
            let of = |sealed: Option<&Sealed>| sealed.map(|s| s.record.round);
            LedgerError::NoRound {
                round,
                first: of(self.sealed.first()),
                last: of(self.sealed.last()),
            }
        })
    }

    /// The state at `at`.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NoRound`].
    pub fn state(&self, at: At) -> Result<ManifestId, LedgerError> {
        match at {
            At::Genesis => Ok(self.genesis.model),
            At::Round(round) => Ok(self.sealed[self.position(round)?].record.next),
        }
    }

    /// The newest state.
    pub fn newest(&self) -> ManifestId {
        self.sealed.last().map_or(self.genesis.model, |s| s.record.next)
    }

    /// Leaf hash that the next record follows.
    pub fn newest_leaf(&self) -> Digest {
        self.sealed.last().map_or(self.run_id, |s| s.leaf)
    }

    /// The first submission that no record disposes of yet.
    pub fn window_start(&self) -> u64 {
        self.sealed.last().map_or(0, |s| s.record.submissions.end)
    }

    /// The stored state `id`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if its manifest is missing or not `id`'s.
    pub fn checkpoint(&self, id: ManifestId) -> Result<StoredCheckpoint, StoreError> {
        StoredCheckpoint::open(&self.place, id)
    }

    /// Takes up what was appended to the submissions log.
    fn refresh_submissions(&mut self) -> Result<(), LedgerError> {
        self.submissions =
            LogReader::open(self.place.files.clone(), &self.place.submissions_log())?;
        Ok(())
    }

    /// Who is expected in `round`, and who takes the places of the missing.
    ///
    /// # Errors
    ///
    /// [`LedgerError::RoundNotOpen`] if nobody has said so for this round.
    pub fn expected_miners(&self, round: u64) -> Result<(Vec<Miner>, Vec<Miner>), LedgerError> {
        if let MinersPolicy::Hotkeys(keys) = &self.genesis.miners {
            return Ok((keys.iter().copied().map(Miner::Hotkey).collect(), Vec::new()));
        }
        let open = OpenRound::load(&self.place)?.filter(|open| open.round == round);
        open.map(|open| (open.listed, open.reserve)).ok_or(LedgerError::RoundNotOpen { round })
    }

    /// The fold rule's parameters.
    pub fn rule(&self) -> &SparseMeanSgd {
        let Rule::SparseMeanSgd(rule) = &self.genesis.rule;
        rule
    }

    /// The model as the rule sees it.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the manifests of the states that are kept are missing.
    pub fn layout(&self) -> Result<Layout, LedgerError> {
        Ok(Layout::of(self.some_state()?.manifest(), self.rule())?)
    }

    /// The newest state, in a copy one that it holds: names and shapes never change in a run, so any of
    /// its manifests will do for them.
    fn some_state(&self) -> Result<StoredCheckpoint, LedgerError> {
        match self.checkpoint(self.newest()) {
            Err(error) if error.is_not_found() => {
                let kept = retention::Kept::load(self)?;
                let held = kept.any(self).filter(|_| kept.is_of_copy());
                Ok(self.checkpoint(held.ok_or(error)?)?)
            }
            found => Ok(found?),
        }
    }

    /// Submissions `range` with their indices.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if one does not read.
    pub fn submissions(
        &self,
        range: std::ops::Range<u64>,
    ) -> Result<Vec<(u64, Submission)>, LedgerError> {
        let read = |(index, entry): (u64, Result<Vec<u8>, LogError>)| {
            let bytes = entry?;
            let submission = json::from_slice(&bytes).map_err(|source| LedgerError::Entry {
                log: "submissions",
                index,
                source,
            })?;
            Ok((index, submission))
        };
        (range.start..).zip(self.submissions.entries(range)?).map(read).collect()
    }
}

/// Whether this version folds such a run.
fn check_genesis(genesis: &Genesis) -> Result<(), LedgerError> {
    if genesis.version != init::GENESIS_VERSION {
        return Err(LedgerError::GenesisVersion { found: genesis.version });
    }
    let Rule::SparseMeanSgd(rule) = &genesis.rule;
    rule.check()?;
    given::check_given(&genesis.files).map_err(LedgerError::GenesisFiles)?;
    Ok(())
}

/// A pool of `threads` threads; 0 means one a core.
///
/// # Errors
///
/// [`LedgerError::Threads`] if the system refuses.
pub fn thread_pool(threads: usize) -> Result<rayon::ThreadPool, LedgerError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|n| format!("fold-{n}"))
        .build()
        .map_err(|source| LedgerError::Threads { threads, source })
}
