//! What a ledger holds, as documents for people and programs.

use serde::Serialize;

use crate::types::{
    digest::Digest,
    manifest::ManifestId,
    record::{AnchorRecord, LogKeys, RoundRecord, Skipped},
    refusal::Refusal,
    rule::Rule,
    submission::Miner,
};

use super::{Ledger, LedgerError, check::derive_round, key_chain::KeyTerm, retention::Kept};

/// A ledger at a glance.
#[derive(Debug, Serialize)]
pub struct LedgerView {
    /// The run's name.
    pub run: String,
    /// What the logs' origins start with.
    pub origin: String,
    /// Leaf hash of the genesis entry.
    pub run_id: Digest,
    /// The verifier keys of both logs: those that sign now.
    pub log_keys: LogKeys,
    /// The keys before them, oldest first.
    pub retired_keys: Vec<RetiredKey>,
    /// How rounds are folded.
    pub rule: Rule,
    /// Number of sealed rounds.
    pub rounds: usize,
    /// The first state.
    pub genesis: ManifestId,
    /// The newest state.
    pub head: HeadView,
    /// Which states are kept.
    pub states: StatesView,
    /// Size and root of the rounds log.
    pub rounds_log: LogView,
    /// Size and root of the submissions log.
    pub submissions_log: LogView,
    /// Submissions that no record disposes of yet.
    pub open_submissions: u64,
    /// The last anchor that the rounds log tells of; null if there is none.
    pub anchor: Option<AnchorRecord>,
    /// Sealed rounds that no anchored head holds.
    pub unanchored_rounds: usize,
}

/// A log key that another took over from.
#[derive(Debug, Serialize)]
pub struct RetiredKey {
    /// Its verifier keys.
    pub log_keys: LogKeys,
    /// Index of the rotation in the rounds log: it signed no head of that log with more entries.
    pub until: u64,
    /// It signed no head of the submissions log with more entries than this.
    pub until_submissions: u64,
}

/// The newest state; round null before the first seal.
#[derive(Debug, Serialize)]
pub struct HeadView {
    /// The round it is after.
    pub round: Option<u64>,
    /// Root of its manifest.
    pub root: Digest,
    /// Number of tensors.
    pub count: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// Which states are kept; the genesis always is, but in a copy.
#[derive(Debug, Serialize)]
pub struct StatesView {
    /// Number of states that are kept, in a ledger the genesis among them.
    pub kept: usize,
    /// First and last round of each run of rounds after which the state was dropped.
    pub dropped: Vec<[u64; 2]>,
}

/// A log's newest published head.
#[derive(Debug, Serialize)]
pub struct LogView {
    /// Entries.
    pub size: u64,
    /// RFC 6962 root.
    pub root: Digest,
}

/// One round, its record and what came of each submission.
#[derive(Debug, Serialize)]
pub struct RoundView {
    /// Index of the record in the rounds log.
    pub index: u64,
    /// Leaf hash of the record.
    pub leaf: Digest,
    /// Whether the state after it is kept; else a replay makes it again.
    pub kept: bool,
    /// The record.
    pub record: RoundRecord,
    /// Tensors left unchanged, by name.
    pub skipped: Vec<String>,
    /// One per submission and absent miner.
    pub dispositions: Vec<DispositionView>,
}

/// What came of a submission.
#[derive(Debug, Serialize)]
pub struct DispositionView {
    /// Index in the submissions log; null for an absent miner.
    pub index: Option<u64>,
    /// Whose it is.
    pub miner: Miner,
    /// Place in the fold, if it was accepted.
    pub order: Option<u64>,
    /// Why not, if it was rejected.
    pub refusal: Option<Refusal>,
    /// The file it came in.
    pub file: Option<String>,
}

/// A ledger at a glance.
///
/// # Errors
///
/// [`LedgerError::Store`] if the list of dropped states does not read.
pub fn show(ledger: &Ledger) -> Result<LedgerView, LedgerError> {
    let kept = Kept::load(ledger)?;
    let (genesis, newest) = (ledger.genesis(), ledger.newest());
    let view =
        |log: &crate::store::log::LogReader| LogView { size: log.size(), root: log.head().root };
    Ok(LedgerView {
        run: genesis.run.clone(),
        origin: genesis.origin.clone(),
        run_id: ledger.run_id(),
        log_keys: ledger.keys().newest().log_keys.clone(),
        retired_keys: ledger.keys().terms().windows(2).map(retired_key).collect(),
        rule: genesis.rule.clone(),
        rounds: ledger.sealed().len(),
        genesis: genesis.model,
        head: HeadView {
            round: ledger.sealed().last().map(|s| s.record.round),
            root: newest.root,
            count: newest.count,
            bytes: newest.bytes,
        },
        states: StatesView { kept: kept.count(), dropped: kept.dropped(ledger) },
        rounds_log: view(ledger.rounds_log()),
        submissions_log: view(ledger.submissions_log()),
        open_submissions: ledger.submissions_log().size().saturating_sub(ledger.window_start()),
        anchor: ledger.anchors().last().map(|anchored| anchored.record),
        unanchored_rounds: ledger.unanchored().len(),
    })
}

fn retired_key(pair: &[KeyTerm]) -> RetiredKey {
    let (term, after) = (&pair[0], &pair[1]);
    let (until, until_submissions) = (after.index, after.submissions.size);
    RetiredKey { log_keys: term.log_keys.clone(), until, until_submissions }
}

/// One sealed round, derived from the logs. Signatures of the miners' statements are not checked: a
/// server answers with this, and no request may cost as many as a round has submissions.
///
/// # Errors
///
/// [`LedgerError::NoRound`], or [`LedgerError::Disagrees`] if its record does not follow from the
/// logs.
pub fn show_round(ledger: &Ledger, round: u64) -> Result<RoundView, LedgerError> {
    let position = ledger.position(round)?;
    let sealed = &ledger.sealed()[position];
    let (checked, submissions) = derive_round(ledger, position)?;
    let file = |at: Option<u64>| {
        // The window has no gaps.
        let at = at?.checked_sub(sealed.record.submissions.start)?;
        submissions.get(usize::try_from(at).ok()?)?.1.file().map(str::to_owned)
    };
    let view = |d: crate::types::record::Disposition| {
        use crate::types::record::Verdict;
        let (order, refusal) = match d.verdict {
            Verdict::Accepted { order } => (Some(order), None),
            Verdict::Rejected(refusal) => (None, Some(refusal)),
            Verdict::Absent => (None, None),
        };
        DispositionView { index: d.index, miner: d.miner, order, refusal, file: file(d.index) }
    };
    let skipped = match &sealed.record.skipped[..] {
        [] => Vec::new(),
        skipped => {
            let state = ledger.some_state()?;
            let descriptors = state.manifest().descriptors();
            let at = |s: &Skipped| descriptors.get(usize::try_from(s.tensor).ok()?);
            skipped.iter().filter_map(|s| Some(at(s)?.name.clone())).collect()
        }
    };
    Ok(RoundView {
        index: sealed.index,
        leaf: sealed.leaf,
        kept: Kept::load(ledger)?.has(sealed.record.next),
        record: sealed.record.clone(),
        skipped,
        dispositions: checked.disposed.dispositions.into_iter().map(view).collect(),
    })
}
