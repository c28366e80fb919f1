//! What follows about a round from the logs alone, and the first thing in it that does not.

use std::collections::BTreeSet;

use crate::{
    codec::statement::StatementError,
    intake::dispose::{Expected, accepted, dispose},
    seal::{Disposed, dispositions_id},
    types::{
        digest::Digest,
        manifest::ManifestId,
        record::{ACCEPTED_MAX, DispositionsId, Genesis, LogEnd, RoundRecord, Skipped},
        rule::Rule,
        submission::{Content, Miner, Submission},
    },
};

use super::{Ledger, LedgerError, Sealed, key_chain::KeyTerm, submit::statement_of};

/// The first thing that does not follow: two values that should be one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum Disagreement {
    #[error("round {round} does not come after round {before}")]
    Order { round: u64, before: u64 },
    #[error("round {round}: its record names {found} as the record before, not {expected}")]
    Previous { round: u64, expected: Digest, found: Digest },
    #[error("round {round}: its base is {}, not {}, the state before it", .found.root, .expected.root)]
    Base { round: u64, expected: ManifestId, found: ManifestId },
    #[error("round {round}: {miner} is listed or in reserve twice")]
    Twice { round: u64, miner: Miner },
    #[error("round {round}: its rule or parameters are not the run's")]
    Rule { round: u64 },
    #[error("round {round}: its window of submissions is {start}..{end}, not from {expected} on")]
    Window { round: u64, expected: u64, start: u64, end: u64 },
    #[error(
        "key rotation {index}: the submissions log has root {expected} at size {size}, not {found}"
    )]
    RotationRoot { index: u64, size: u64, expected: Digest, found: Digest },
    #[error("round {round}: the submissions log has root {expected} at size {end}, not {found}")]
    WindowRoot { round: u64, end: u64, expected: Digest, found: Digest },
    #[error(
        "round {round}: the submissions give {} dispositions with root {}, the record says {} with {}",
        .expected.count, .expected.root, .found.count, .found.root
    )]
    Dispositions { round: u64, expected: DispositionsId, found: DispositionsId },
    #[error("round {round}: entry {entry} of the stored dispositions is not the derived one")]
    StoredDisposition { round: u64, entry: usize },
    #[error("round {round}: submission {index}: {source}")]
    Signature { round: u64, index: u64, source: StatementError },
    #[error("round {round}: {accepted} miners are accepted, more than {ACCEPTED_MAX}")]
    TooMany { round: u64, accepted: usize },
    #[error("round {round}: nobody was accepted, but the record changes the state")]
    Unfounded { round: u64 },
    #[error("round {round}: the delta of {miner} is not laid out as the model is")]
    Layout { round: u64, miner: String },
    #[error(
        "round {round}: the plan derived from the deltas has root {expected}, the record {found}{at}"
    )]
    Plan { round: u64, expected: Digest, found: Digest, at: String },
    #[error(
        "round {round}: tensor {tensor}, piece {piece}: replay gives {expected}, the ledger holds {found}"
    )]
    Piece { round: u64, tensor: String, piece: u64, expected: Digest, found: Digest },
    #[error(
        "round {round}: tensor {tensor}: replay gives root {expected}, the ledger holds {found}"
    )]
    Tensor { round: u64, tensor: String, expected: Digest, found: Digest },
    #[error("round {round}: the state after it is {}, replay gives {}", .found.root, .expected.root)]
    Next { round: u64, expected: ManifestId, found: ManifestId },
    #[error("round {round}: tensor {tensor}: the record leaves it unchanged for {}, replay finds {}",
        element(.found), element(.expected))]
    Skipped { round: u64, tensor: String, expected: Option<u64>, found: Option<u64> },
    #[error("round {round}: element {element} of {tensor} becomes NaN or infinite")]
    NonFinite { round: u64, tensor: String, element: u64 },
    #[error("round {round}: tensor {tensor} stands in the record's skipped ones out of order")]
    SkippedOrder { round: u64, tensor: u64 },
    #[error("round {round}: the record skips tensor {tensor}, which its rule does not fold")]
    SkippedUnknown { round: u64, tensor: u64 },
}

fn element(element: &Option<u64>) -> String {
    element.map_or_else(|| "no element".to_owned(), |e| format!("element {e}"))
}

/// A round whose record follows from the logs.
#[derive(Clone, Debug)]
pub struct CheckedRound {
    /// The record's parts, derived again.
    pub disposed: Disposed,
    /// The accepted deltas in ledger order, with whose they are.
    pub deltas: Vec<(String, ManifestId)>,
}

/// What a record has to follow.
#[derive(Clone, Copy, Debug)]
pub struct Before<'a> {
    /// Leaf hash of the record before, or of the genesis.
    pub leaf: Digest,
    /// The record before.
    pub record: Option<&'a RoundRecord>,
    /// What the run started from.
    pub genesis: &'a Genesis,
}

impl<'a> Before<'a> {
    /// What the record at `position` has to follow.
    pub fn of(ledger: &'a Ledger, position: usize) -> Self {
        let before = position.checked_sub(1).map(|at| &ledger.sealed()[at]);
        Self {
            leaf: before.map_or(ledger.run_id(), |sealed| sealed.leaf),
            record: before.map(|sealed| &sealed.record),
            genesis: ledger.genesis(),
        }
    }

    /// The first submission that no record before disposes of.
    pub fn window_start(&self) -> u64 {
        self.record.map_or(0, |record| record.submissions.end)
    }
}

/// Checks that each rotation of the log key names the submissions log as it was.
///
/// # Errors
///
/// [`LedgerError::Disagrees`] with the first that does not.
pub fn check_rotations(ledger: &Ledger) -> Result<(), LedgerError> {
    for KeyTerm { index, submissions: LogEnd { size, root }, .. } in &ledger.keys().terms()[1..] {
        let (index, size, found) = (*index, *size, *root);
        let expected = ledger.submissions_log().root_at(size)?;
        if expected != found {
            return Err(Disagreement::RotationRoot { index, size, expected, found }.into());
        }
    }
    Ok(())
}

/// Checks the record at `position` against the records before it and the submissions log.
///
/// Chain, base, rule, order of what was skipped, window, the submissions' root, and every disposition derived again. The fold
/// itself is for [`super::replay`].
///
/// # Errors
///
/// [`LedgerError::Disagrees`] with the first thing that does not follow.
pub fn check_round(ledger: &Ledger, position: usize) -> Result<CheckedRound, LedgerError> {
    let (checked, submissions) = derive_round(ledger, position)?;
    let round = ledger.sealed()[position].record.round;
    for (index, submission) in &submissions {
        check_statement(ledger.run_id(), round, *index, submission)?;
    }
    Ok(checked)
}

/// As [`check_round`], without the signatures of the miners' statements, each of which costs as much as
/// all else of a submission together: for whoever shows a round. Gives its submissions, too.
///
/// # Errors
///
/// As [`check_round`].
pub fn derive_round(
    ledger: &Ledger,
    position: usize,
) -> Result<(CheckedRound, Vec<(u64, Submission)>), LedgerError> {
    let Sealed { record, .. } = &ledger.sealed()[position];
    let before = Before::of(ledger, position);
    check_record(record, &before)?;
    let submissions = check_window(ledger, record, &before)?;
    let checked = derive(record, &submissions);
    check_dispositions(record, &checked)?;
    Ok((checked, submissions))
}

/// Checks what a record says of the one before it, and its lists.
///
/// # Errors
///
/// The first thing that does not follow.
pub fn check_record(record: &RoundRecord, before: &Before<'_>) -> Result<(), Disagreement> {
    let round = record.round;
    if let Some(before) = before.record.map(|r| r.round).filter(|&before| before >= round) {
        return Err(Disagreement::Order { round, before });
    }
    if record.previous != before.leaf {
        let (expected, found) = (before.leaf, record.previous);
        return Err(Disagreement::Previous { round, expected, found });
    }
    let base = before.record.map_or(before.genesis.model, |before| before.next);
    if record.base != base {
        return Err(Disagreement::Base { round, expected: base, found: record.base });
    }
    if record.rule != before.genesis.rule {
        return Err(Disagreement::Rule { round });
    }
    // Each once and ascending, or one round would have several records.
    if let Some(pair) = record.skipped.windows(2).find(|pair| pair[0].tensor >= pair[1].tensor) {
        return Err(Disagreement::SkippedOrder { round, tensor: pair[1].tensor });
    }
    for list in [&record.listed, &record.reserve] {
        let mut seen = BTreeSet::new();
        if let Some(&miner) = list.iter().find(|miner| !seen.insert(**miner)) {
            return Err(Disagreement::Twice { round, miner });
        }
    }
    Ok(())
}

/// Checks that a record's window touches the one before and ends at the log's root; gives its
/// submissions.
///
/// # Errors
///
/// [`LedgerError::Disagrees`], or that an entry does not read.
pub fn check_window(
    ledger: &Ledger,
    record: &RoundRecord,
    before: &Before<'_>,
) -> Result<Vec<(u64, Submission)>, LedgerError> {
    let (log, window) = (ledger.submissions_log(), record.submissions);
    window_bounds(record, before.window_start(), log.size())?;
    let root = log.root_at(window.end)?;
    window_root(record, root)?;
    ledger.submissions(window.start..window.end)
}

/// Checks where a record's window starts and that it ends within the log.
///
/// # Errors
///
/// [`Disagreement::Window`].
pub fn window_bounds(
    record: &RoundRecord,
    expected: u64,
    log_size: u64,
) -> Result<(), Disagreement> {
    let (round, start, end) = (record.round, record.submissions.start, record.submissions.end);
    if start != expected || end < start || end > log_size {
        return Err(Disagreement::Window { round, expected, start, end });
    }
    Ok(())
}

/// Compares the root that the submissions log had at the window's end.
///
/// # Errors
///
/// [`Disagreement::WindowRoot`].
pub fn window_root(record: &RoundRecord, expected: Digest) -> Result<(), Disagreement> {
    let (round, end, found) =
        (record.round, record.submissions.end, record.submissions.root_at_end);
    if found != expected {
        return Err(Disagreement::WindowRoot { round, end, expected, found });
    }
    Ok(())
}

/// Checks the signature of a miner's statement; a fetched file has none.
///
/// # Errors
///
/// [`Disagreement::Signature`].
pub fn check_statement(
    run: Digest,
    round: u64,
    index: u64,
    submission: &Submission,
) -> Result<(), Disagreement> {
    let Submission::Signed(signed) = submission else { return Ok(()) };
    let verified = statement_of(run, signed).verify(&signed.signature.0);
    verified.map_err(|source| Disagreement::Signature { round, index, source })
}

/// Compares the derived dispositions with the record's, and what must hold without any accepted.
///
/// # Errors
///
/// The first thing that does not follow.
pub fn check_dispositions(
    record: &RoundRecord,
    checked: &CheckedRound,
) -> Result<(), Disagreement> {
    let round = record.round;
    let (expected, found) = (dispositions_id(&checked.disposed.dispositions), record.dispositions);
    if expected != found {
        return Err(Disagreement::Dispositions { round, expected, found });
    }
    if checked.deltas.len() > ACCEPTED_MAX {
        return Err(Disagreement::TooMany { round, accepted: checked.deltas.len() });
    }
    let unchanged = record.next == record.base && record.skipped.is_empty();
    if checked.deltas.is_empty() && !unchanged {
        return Err(Disagreement::Unfounded { round });
    }
    Ok(())
}

/// Derives a round's dispositions from its submissions.
pub fn derive(record: &RoundRecord, submissions: &[(u64, Submission)]) -> CheckedRound {
    let Rule::SparseMeanSgd(rule) = &record.rule;
    let expected = Expected {
        round: record.round,
        base: record.base,
        listed: &record.listed,
        reserve: &record.reserve,
        dialect: rule.dialect,
    };
    let dispositions = dispose(expected, submissions);
    let deltas = accepted_deltas(&dispositions, submissions);
    let disposed = Disposed {
        round: record.round,
        previous: record.previous,
        base: record.base,
        rule: record.rule.clone(),
        window: record.submissions,
        listed: record.listed.clone(),
        reserve: record.reserve.clone(),
        dispositions,
    };
    CheckedRound { disposed, deltas }
}

/// The accepted deltas in ledger order, with whose they are.
pub fn accepted_deltas(
    dispositions: &[crate::types::record::Disposition],
    submissions: &[(u64, Submission)],
) -> Vec<(String, ManifestId)> {
    let delta = |index: u64| {
        let (_, submission) = submissions.iter().find(|(at, _)| *at == index)?;
        match submission.content() {
            Content::Delta(delta) => Some(delta),
            _ => None,
        }
    };
    accepted(dispositions)
        .into_iter()
        .map(|(_, index, miner)| {
            (miner.to_string(), delta(index).expect("only submissions with a delta are accepted"))
        })
        .collect()
}

/// The claims of a record about tensors it left unchanged, by manifest position.
pub fn claims(skipped: &[Skipped]) -> std::collections::BTreeMap<u64, u64> {
    skipped.iter().map(|s| (s.tensor, s.element)).collect()
}
