//! What follows about a round from the logs alone, and the first thing in it that does not.

use std::collections::BTreeSet;

use crate::{
    codec::statement::StatementError,
    intake::dispose::{Expected, accepted, dispose},
    seal::{Disposed, dispositions_id},
    types::{
        digest::Digest,
        manifest::ManifestId,
        record::{ACCEPTED_MAX, DispositionsId, LogEnd, Skipped},
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
    let Sealed { record, .. } = &ledger.sealed()[position];
    let round = record.round;
    let before = position.checked_sub(1).map(|at| &ledger.sealed()[at]);
    let (leaf, base, start) = match before {
        Some(s) => (s.leaf, s.record.next, s.record.submissions.end),
        None => (ledger.run_id(), ledger.genesis().model, 0),
    };
    if let Some(before) = before.map(|s| s.record.round).filter(|&before| before >= round) {
        return Err(Disagreement::Order { round, before }.into());
    }
    if record.previous != leaf {
        let (expected, found) = (leaf, record.previous);
        return Err(Disagreement::Previous { round, expected, found }.into());
    }
    if record.base != base {
        let (expected, found) = (base, record.base);
        return Err(Disagreement::Base { round, expected, found }.into());
    }
    if record.rule != ledger.genesis().rule {
        return Err(Disagreement::Rule { round }.into());
    }
    // Each once and ascending, or one round would have several records.
    if let Some(pair) = record.skipped.windows(2).find(|pair| pair[0].tensor >= pair[1].tensor) {
        return Err(Disagreement::SkippedOrder { round, tensor: pair[1].tensor }.into());
    }
    for list in [&record.listed, &record.reserve] {
        let mut seen = BTreeSet::new();
        if let Some(&miner) = list.iter().find(|miner| !seen.insert(**miner)) {
            return Err(Disagreement::Twice { round, miner }.into());
        }
    }
    let window = record.submissions;
    if window.start != start || window.end < start || window.end > ledger.submissions_log().size() {
        let (start, end) = (window.start, window.end);
        return Err(Disagreement::Window { round, expected: start, start, end }.into());
    }
    let expected = ledger.submissions_log().root_at(window.end)?;
    if window.root_at_end != expected {
        let (end, found) = (window.end, window.root_at_end);
        return Err(Disagreement::WindowRoot { round, end, expected, found }.into());
    }
    let submissions = ledger.submissions(window.start..window.end)?;
    for (index, submission) in &submissions {
        if let Submission::Signed(signed) = submission {
            statement_of(ledger.run_id(), signed)
                .verify(&signed.signature.0)
                .map_err(|source| Disagreement::Signature { round, index: *index, source })?;
        }
    }
    let checked = derive(ledger, record, submissions);
    let (expected, found) = (dispositions_id(&checked.disposed.dispositions), record.dispositions);
    if expected != found {
        return Err(Disagreement::Dispositions { round, expected, found }.into());
    }
    if checked.deltas.len() > ACCEPTED_MAX {
        return Err(Disagreement::TooMany { round, accepted: checked.deltas.len() }.into());
    }
    let unchanged = record.next == record.base && record.skipped.is_empty();
    if checked.deltas.is_empty() && !unchanged {
        return Err(Disagreement::Unfounded { round }.into());
    }
    Ok(checked)
}

/// What the record's own parts and the submissions give; nothing is compared.
pub(super) fn derive(
    ledger: &Ledger,
    record: &crate::types::record::RoundRecord,
    submissions: Vec<(u64, Submission)>,
) -> CheckedRound {
    let expected = Expected {
        round: record.round,
        base: record.base,
        listed: &record.listed,
        reserve: &record.reserve,
        dialect: ledger.rule().dialect,
    };
    let dispositions = dispose(expected, &submissions);
    let deltas = accepted_deltas(&dispositions, &submissions);
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
