//! Disputes: where two ledgers, or two reports, first disagree, and a file that settles it.
//!
//! Two ledgers of one run share their records up to some round. In the first record that differs the
//! states are compared tensor by tensor, piece by piece, by their digests alone: nothing is folded.
//! The file holds what each side's signed record says went into that piece; [`super::verify`] folds it
//! again for each.

use std::{collections::BTreeSet, io::Write};

use serde::{Deserialize, Serialize};

use super::{
    bundle::{Claim, write},
    prove::{ProveBundleError, Target, prove},
    prove_evidence::prove_entries,
    prove_fold::prove_fold,
};
use crate::{
    codec::layout::Layout,
    ledger::{Ledger, LedgerError, check::claims},
    store::StoreError,
    types::{digest::Digest, manifest::PIECE_BYTES, progress::Silent, record::RoundRecord},
};

/// The first thing in which two ledgers differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "differs", rename_all = "kebab-case")]
pub enum Difference {
    /// Nothing: one of them is as long as the other, or its beginning.
    Nothing {
        /// Rounds that both have.
        rounds: u64,
    },
    /// Entries of the rounds logs at this index, but no piece that the rule folds.
    Entry {
        /// In both rounds logs.
        index: u64,
        /// The first field in which two rounds' records differ, if they are such.
        field: Option<&'static str>,
        /// The round, if both are the record of one.
        round: Option<u64>,
    },
    /// A piece of the state after a round.
    Piece {
        /// The round.
        round: u64,
        /// Position in the manifest.
        position: u64,
        /// Its name.
        tensor: String,
        /// Of the tensor.
        piece: u64,
    },
}

/// Ledgers that cannot be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum DisputeError {
    #[error("they are two runs: {a} and {b}; there is nothing to compare")]
    Runs { a: Digest, b: Digest },
    #[error(transparent)]
    Prove(#[from] ProveBundleError),
    #[error("the reports say nothing of a piece or a round that this ledger could show")]
    NoPlace,
}

impl From<LedgerError> for DisputeError {
    fn from(error: LedgerError) -> Self {
        Self::Prove(error.into())
    }
}

impl From<StoreError> for DisputeError {
    fn from(error: StoreError) -> Self {
        Self::Prove(error.into())
    }
}

/// Finds the first difference of two ledgers of one run.
///
/// # Errors
///
/// [`DisputeError::Runs`], or that a state's digests are not there.
pub fn first_difference(a: &Ledger, b: &Ledger) -> Result<Difference, DisputeError> {
    if a.run_id() != b.run_id() {
        return Err(DisputeError::Runs { a: a.run_id(), b: b.run_id() });
    }
    let pairs = || a.sealed().iter().zip(b.sealed());
    let Some((ours, theirs)) = pairs().find(|(ours, theirs)| ours.leaf != theirs.leaf) else {
        return Ok(Difference::Nothing { rounds: pairs().count() as u64 });
    };
    let same_round = ours.record.round == theirs.record.round;
    if same_round && let Some(piece) = first_piece([a, b], [&ours.record, &theirs.record])? {
        return Ok(piece);
    }
    let field = same_round.then(|| first_field(&ours.record, &theirs.record)).flatten();
    let round = same_round.then_some(ours.record.round);
    let mut index = 0;
    while a.rounds_log().leaf_hash(index).map_err(StoreError::from)?
        == b.rounds_log().leaf_hash(index).map_err(StoreError::from)?
    {
        index += 1;
    }
    Ok(Difference::Entry { index, field, round })
}

/// The first piece in which the states after two records of one round differ, of a tensor that the rule
/// folds; of one that a record leaves unchanged rather the piece of its witness.
fn first_piece(
    [a, b]: [&Ledger; 2],
    [ours, theirs]: [&RoundRecord; 2],
) -> Result<Option<Difference>, DisputeError> {
    if ours.next == theirs.next {
        return Ok(None);
    }
    let (x, y) = (a.checkpoint(ours.next)?, b.checkpoint(theirs.next)?);
    let layout = Layout::of(x.manifest(), a.rule()).map_err(LedgerError::from)?;
    for tensor in &layout.tensors {
        let position = tensor.position;
        let of = |state: &crate::store::artifacts::StoredCheckpoint| {
            state.manifest().descriptors().get(position).map(|d| d.artifact())
        };
        if of(&x) == of(&y) || of(&y).is_none() {
            continue;
        }
        let (p, q) = (x.digests(position)?, y.digests(position)?);
        let differs = |at: &usize| p.get(*at) != q.get(*at);
        let witness = [ours, theirs].into_iter().find_map(|record| {
            let element = *claims(&record.skipped).get(&(position as u64))?;
            usize::try_from(element / (PIECE_BYTES / 4)).ok()
        });
        let all = 0..p.len().min(q.len());
        let first = witness.filter(|at| all.contains(at)).into_iter().chain(all.clone());
        let Some(piece) = first.clone().find(differs) else { continue };
        return Ok(Some(Difference::Piece {
            round: ours.round,
            position: position as u64,
            tensor: tensor.name.clone(),
            piece: piece as u64,
        }));
    }
    Ok(None)
}

fn first_field(a: &RoundRecord, b: &RoundRecord) -> Option<&'static str> {
    let fields = [
        ("previous", a.previous == b.previous),
        ("base", a.base == b.base),
        ("rule", a.rule == b.rule),
        ("submissions", a.submissions == b.submissions),
        ("listed", a.listed == b.listed),
        ("reserve", a.reserve == b.reserve),
        ("dispositions", a.dispositions == b.dispositions),
        ("plan", a.plan == b.plan),
        ("skipped", a.skipped == b.skipped),
        ("next", a.next == b.next),
        ("block", a.block == b.block),
    ];
    fields.into_iter().find(|(_, same)| !same).map(|(field, _)| field)
}

/// Writes the file about `difference`; nothing where there is none.
///
/// # Errors
///
/// [`ProveBundleError`] if a ledger lacks what it takes.
pub fn write_dispute<W: Write>(
    ledgers: [&Ledger; 2],
    difference: &Difference,
    to: W,
) -> Result<Option<W>, ProveBundleError> {
    match difference {
        Difference::Nothing { .. } => Ok(None),
        Difference::Entry { index, .. } => prove_entries(ledgers, *index, to).map(Some),
        Difference::Piece { round, position, piece, .. } => {
            let position = usize::try_from(*position).expect("a place in a manifest in memory");
            let side = |ledger| prove_fold(ledger, *round, position, *piece, Vec::new());
            let members = [("a.tar", side(ledgers[0])?), ("b.tar", side(ledgers[1])?)];
            Ok(Some(write(to, &Claim::Dispute, &members)?.finish()?))
        }
    }
}

/// An audit's report, as far as it says where something is wrong.
#[derive(Debug, Deserialize)]
pub struct ReadReport {
    /// Of which ledger.
    pub subject: Option<ReadSubject>,
    checks: Vec<ReadLine>,
}

/// See [`ReadReport::subject`].
#[derive(Debug, Deserialize)]
pub struct ReadSubject {
    /// Leaf hash of the genesis.
    pub run_id: Digest,
}

#[derive(Debug, Deserialize)]
struct ReadLine {
    check: String,
    findings: Vec<Place>,
}

/// Where something is wrong: rounds before tensors before pieces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Place {
    /// The round.
    pub round: Option<u64>,
    /// The tensor.
    pub tensor: Option<String>,
    /// The piece of the tensor.
    pub piece: Option<u64>,
    /// Index in the submissions log.
    pub index: Option<u64>,
    /// The check that failed.
    #[serde(default)]
    pub check: String,
}

impl ReadReport {
    fn places(&self) -> BTreeSet<Place> {
        let of = |line: &ReadLine| -> Vec<Place> {
            let check = || line.check.clone();
            line.findings.iter().map(|p| Place { check: check(), ..p.clone() }).collect()
        };
        self.checks.iter().flat_map(of).collect()
    }
}

/// The first finding that one of two reports has and the other has not; a ledger without a report
/// says that nothing is wrong.
pub fn first_finding(a: Option<&ReadReport>, b: Option<&ReadReport>) -> Option<Place> {
    let places = |report: Option<&ReadReport>| report.map(ReadReport::places).unwrap_or_default();
    let (a, b) = (places(a), places(b));
    let differs = a.symmetric_difference(&b);
    differs.min_by_key(|place| (place.round.is_none(), (*place).clone())).cloned()
}

/// Writes the file about `place` out of a ledger: the fold of its piece, or its round.
///
/// # Errors
///
/// [`DisputeError::NoPlace`] if it names neither; what the ledger lacks.
pub fn write_place<W: Write>(ledger: &Ledger, place: &Place, to: W) -> Result<W, DisputeError> {
    let round = place.round.ok_or(DisputeError::NoPlace)?;
    let target = match (&place.tensor, place.piece) {
        (Some(name), Some(piece)) => Target::fold(ledger, round, name, piece)?,
        _ => Target::Round(round),
    };
    Ok(prove(ledger, &target, to, &Silent)?)
}
