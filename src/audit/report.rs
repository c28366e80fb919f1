//! What an audit says: of which ledger, how much of it, trusting whom, and what came of each check.
//!
//! The same inputs give the same report, but for the block `run`. See `schema/report.md`.

use serde::Serialize;

use super::{
    anchors::AnchorsReport,
    checks::{Line, Verdict, verdict},
};
use crate::{ledger::submit::Receipt, merkle::head::TreeHead, types::digest::Digest};

/// What a report says it is.
pub const FORMAT: &str = "gradledger-report/1";

/// What an audit came to.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: &'static str,
    /// Of which ledger; none where not even its genesis reads.
    pub subject: Option<Subject>,
    /// How much of it.
    pub scope: Scope,
    /// Trusting whom.
    pub trust: TrustView,
    /// All checks together.
    pub verdict: Verdict,
    /// Each of them.
    pub checks: Vec<Line>,
    /// What anchors show, where there are any.
    pub anchors: Option<AnchorsReport>,
    /// What can be shown to others: not part of the document.
    #[serde(skip)]
    pub evidence: Vec<Evidence>,
    /// When and where: the one block in which two reports of the same inputs differ.
    pub run: Option<RunView>,
}

/// What was found that the operator's own signature contradicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Two heads of one log and one size.
    Fork {
        /// The log's name.
        origin: String,
        /// The head that was kept, as a signed note.
        kept: Vec<u8>,
        /// The head as it is published now.
        published: Vec<u8>,
    },
    /// The bundle of this round is refuted by its own entries.
    Round(u64),
    /// The record of this round does not continue the one before.
    Records(u64),
    /// The record of its round leaves out the entry that this receipt was given for.
    Receipt(Receipt),
    /// The log holds another entry in the place of the one that this receipt was given for.
    ReceiptFork(Receipt),
    /// The signed submission at this index was refused for a fault that it does not have.
    Refusal(u64),
    /// A piece of the state after a round does not follow.
    Fold {
        /// The round.
        round: u64,
        /// The tensor's name.
        tensor: String,
        /// The piece of it.
        piece: u64,
    },
}

/// The ledger as its heads have it.
#[derive(Clone, Debug, Serialize)]
pub struct Subject {
    /// Name of the run.
    pub run: String,
    /// Leaf hash of the genesis.
    pub run_id: Digest,
    /// Head of the rounds log.
    pub rounds: HeadView,
    /// Head of the submissions log.
    pub submissions: HeadView,
}

/// A tree head.
#[derive(Clone, Debug, Serialize)]
pub struct HeadView {
    /// The log's name.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// Root over them.
    pub root: Digest,
}

impl From<&TreeHead> for HeadView {
    fn from(head: &TreeHead) -> Self {
        Self { origin: head.origin.clone(), size: head.size, root: head.root }
    }
}

/// What was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Scope {
    /// The first and the last round; none where the ledger has none.
    pub rounds: Option<(u64, u64)>,
    /// How many they are.
    pub count: u64,
    /// This tensor alone.
    pub tensor: Option<String>,
    /// Some pieces, not all.
    pub sample: Option<SampleView>,
}

/// Which pieces were drawn, and what that is worth.
#[derive(Clone, Debug, Serialize)]
pub struct SampleView {
    /// How many were drawn.
    pub pieces: u64,
    /// From how many.
    pub of: u64,
    /// From this seed, hex.
    pub seed: String,
    /// How likely a wrong share would have been missed.
    pub missed: Vec<Missed>,
}

/// If this share of the pieces were wrong, none of them would have been drawn with this probability.
#[derive(Clone, Debug, Serialize)]
pub struct Missed {
    /// Wrong pieces in a million, rounded up to whole pieces.
    pub wrong_per_million: u64,
    /// Six digits after the point.
    pub probability: String,
}

/// Who was trusted.
#[derive(Clone, Debug, Serialize)]
pub struct TrustView {
    /// Verifier keys of logs, from outside.
    pub log_keys: Vec<String>,
    /// Whether witnesses had to sign.
    pub witnesses: bool,
    /// Checks that were not required.
    pub waived: Vec<&'static str>,
}

/// When and where an audit ran.
#[derive(Clone, Debug, Serialize)]
pub struct RunView {
    /// Seconds since 1970 at its start.
    pub started: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Version of this program.
    pub version: &'static str,
    /// Name of the machine.
    pub host: String,
    /// Threads of the arithmetic; 0 means one a core.
    pub threads: usize,
    /// What folded the rounds that were replayed: `cpu`, or a card such as `cuda:0`.
    pub device: String,
}

impl Report {
    /// The report of these checks.
    pub fn new(
        subject: Option<Subject>,
        scope: Scope,
        trust: TrustView,
        checks: Vec<Line>,
    ) -> Self {
        let verdict = verdict(&checks);
        Self {
            format: FORMAT,
            subject,
            scope,
            trust,
            verdict,
            checks,
            anchors: None,
            evidence: Vec::new(),
            run: None,
        }
    }
}
