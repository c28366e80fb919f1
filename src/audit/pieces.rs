//! The sampled fold: single pieces of single rounds, each from one piece of the base and the rows of
//! the deltas that touch it.
//!
//! Cost: a piece of a matrix reads one piece of the base, and of each delta the one or two pieces with
//! the rows of its blocks; what digests and manifests take comes on top, once a tensor.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use gradledger_kernels::{Step, cpu, levels::levels};
use rayon::prelude::*;

use super::checks::{Check, Checklist, Finding};
use crate::{
    codec::{
        book::Book,
        layout::{DeltaGroup, Layout, TensorLayout},
    },
    fold::{
        FoldError,
        piece::{Run, RunRows, fold_piece, runs},
    },
    ledger::{
        Ledger, LedgerError,
        check::{CheckedRound, claims},
        replay::{derive_plan, open_deltas, stored_plan},
        seal::{FoldOptions, step},
    },
    merkle::pieces::piece_length,
    plan::PlanStepError,
    store::{
        StoreError,
        artifacts::{ArtifactReader, StoredCheckpoint, StoredDelta},
        files::Reopening,
        place::Place,
    },
    types::{
        digest::Digest,
        manifest::{PIECE_BYTES, piece_count},
        plan::Plan,
        progress::Progress,
        record::RoundRecord,
        rule::Dialect,
    },
};

/// The pieces that one round's fold makes, numbered over its tensors.
pub struct Population {
    /// Place in the layout, and number of pieces.
    tensors: Vec<(usize, u64)>,
}

impl Population {
    /// Of all tensors that the rule folds, or of `only`.
    pub fn new(layout: &Layout, only: Option<&str>) -> Self {
        let pieces = |t: &TensorLayout| piece_count(4 * t.grid.rows * t.grid.columns);
        let wanted = |t: &TensorLayout| only.is_none_or(|name| t.name == name);
        let all = layout.tensors.iter().enumerate();
        Self { tensors: all.filter(|(_, t)| wanted(t)).map(|(at, t)| (at, pieces(t))).collect() }
    }

    /// Pieces of a round.
    pub fn pieces(&self) -> u64 {
        self.tensors.iter().map(|(_, pieces)| pieces).sum()
    }

    /// The pieces with these numbers, by tensor.
    fn split(&self, numbers: &BTreeSet<u64>) -> Vec<(usize, Vec<u64>)> {
        let mut start = 0;
        let mut split = Vec::new();
        for &(tensor, pieces) in &self.tensors {
            let drawn: Vec<u64> =
                numbers.range(start..start + pieces).map(|number| number - start).collect();
            if !drawn.is_empty() {
                split.push((tensor, drawn));
            }
            start += pieces;
        }
        split
    }
}

/// One round of a sampled audit.
pub struct SampledRound<'a> {
    /// The ledger.
    pub ledger: &'a Ledger,
    /// The model as the rule sees it.
    pub layout: &'a Layout,
    /// The record.
    pub record: &'a RoundRecord,
    /// What follows from the logs.
    pub checked: &'a CheckedRound,
    /// How to fold.
    pub fold: FoldOptions,
}

/// A round's deltas, opened, and its plan.
struct Opened<'a> {
    round: &'a SampledRound<'a>,
    base: StoredCheckpoint,
    next: StoredCheckpoint,
    deltas: Vec<StoredDelta>,
    plan: Plan,
    claims: BTreeMap<u64, u64>,
    step: Step,
}

impl SampledRound<'_> {
    /// Folds the pieces with these numbers of `population` again; with `whole_plan` derives the plan
    /// from all of the deltas, else takes the stored one.
    pub fn check(
        &self,
        list: &mut Checklist,
        population: &Population,
        numbers: &BTreeSet<u64>,
        whole_plan: bool,
        progress: &dyn Progress,
    ) {
        let opened = match self.open(list, whole_plan, progress) {
            Ok(opened) => opened,
            Err(error) => return note(list, self.record.round, None, None, &error),
        };
        if let Err(text) = opened.frozen_is_kept() {
            list.found(Check::Fold, Finding::in_round(self.record.round, text));
        }
        for (tensor, pieces) in population.split(numbers) {
            opened.tensor(list, tensor, &pieces, progress);
        }
    }

    fn open(
        &self,
        list: &mut Checklist,
        whole_plan: bool,
        progress: &dyn Progress,
    ) -> Result<Opened<'_>, LedgerError> {
        let Self { ledger, layout, record, .. } = *self;
        // Each has a few files, and a process may not hold them all open.
        let files = Arc::new(Reopening(ledger.place().files.clone()));
        let place = Place::new(files, &ledger.place().root);
        let deltas = open_deltas(&place, layout, record.round, self.checked)?;
        let plan = if whole_plan {
            let plan = derive_plan(ledger, layout, record, &deltas, progress)?;
            list.checked(Check::Plan, 1);
            plan
        } else {
            let why = "norms need whole deltas: a sample reads them with --plan only";
            list.missing(Check::Plan, why);
            stored_plan(ledger, layout, record, deltas.len())?
        };
        let (base, next) = (ledger.checkpoint(record.base)?, ledger.checkpoint(record.next)?);
        list.checked(Check::Descriptor, 2);
        Ok(Opened {
            round: self,
            base,
            next,
            step: step(ledger.rule(), deltas.len()),
            claims: claims(&record.skipped),
            deltas,
            plan,
        })
    }
}

/// Of one tensor what its pieces have in common.
struct Tensor<'a> {
    layout: &'a TensorLayout,
    base: ArtifactReader,
    base_digests: Vec<Digest>,
    next_digests: Vec<Digest>,
    readers: Vec<[ArtifactReader; 2]>,
    levels: Vec<Vec<f32>>,
    /// The rows that were read last: neighbouring pieces share them.
    rows: (Vec<Run>, Vec<Vec<RunRows>>),
}

impl Opened<'_> {
    /// The tensors that the rule does not fold are those of the base; all have their names.
    fn frozen_is_kept(&self) -> Result<(), String> {
        let (base, next) = (self.base.manifest(), self.next.manifest());
        if base.descriptors().len() != next.descriptors().len() {
            return Err("the next state has other tensors".to_owned());
        }
        let folded: BTreeSet<usize> =
            self.round.layout.tensors.iter().map(|tensor| tensor.position).collect();
        for (at, (a, b)) in base.descriptors().iter().zip(next.descriptors()).enumerate() {
            let root = if folded.contains(&at) { b.root } else { a.root };
            if (crate::types::manifest::Descriptor { root, ..a.clone() }) != *b {
                return Err(format!("tensor {} is not the one of the base", a.name));
            }
        }
        Ok(())
    }

    fn tensor(
        &self,
        list: &mut Checklist,
        planned: usize,
        pieces: &[u64],
        progress: &dyn Progress,
    ) {
        let layout = &self.round.layout.tensors[planned];
        let round = self.round.record.round;
        let claim = self.claims.get(&(layout.position as u64)).copied();
        let mut tensor = match self.open_tensor(planned, layout) {
            Ok(tensor) => tensor,
            Err(error) => return note(list, round, Some(&layout.name), None, &error),
        };
        if let Some(element) = claim {
            let outcome = self.witness(&mut tensor, element);
            conclude(list, round, layout, element / (PIECE_BYTES / 4), outcome);
        }
        for &piece in pieces {
            let outcome = self.piece(&mut tensor, piece, claim.is_some());
            conclude(list, round, layout, piece, outcome);
            progress.advance(PIECE_BYTES);
        }
    }

    fn open_tensor<'a>(
        &self,
        planned: usize,
        layout: &'a TensorLayout,
    ) -> Result<Tensor<'a>, LedgerError> {
        let rows = self.plan.tensor(planned);
        let level = |(delta, row): (&StoredDelta, &crate::types::plan::PlanRow)| {
            let book = Book::from_bytes(&delta.book(&layout.name)?);
            Ok::<_, StoreError>(levels(&book.lookup, book.shift, row.factor))
        };
        let reader = |delta: &StoredDelta| {
            let open = |group| delta.open_artifact(group, &layout.name);
            Ok::<_, StoreError>([open(DeltaGroup::Index)?, open(DeltaGroup::Code)?])
        };
        Ok(Tensor {
            layout,
            base: self.base.tensor(layout.position)?,
            base_digests: self.base.digests(layout.position)?,
            next_digests: self.next.digests(layout.position)?,
            readers: self.deltas.iter().map(reader).collect::<Result<_, _>>()?,
            levels: self.deltas.iter().zip(rows).map(level).collect::<Result<_, _>>()?,
            rows: (Vec::new(), Vec::new()),
        })
    }

    /// What speaks against one piece of the next state.
    fn piece(
        &self,
        tensor: &mut Tensor<'_>,
        piece: u64,
        claimed: bool,
    ) -> Result<Option<String>, LedgerError> {
        let at = usize::try_from(piece).expect("its digest is in memory");
        let expected = if claimed || self.deltas.is_empty() {
            tensor.base_digests[at]
        } else {
            let bytes = 4 * tensor.layout.grid.rows * tensor.layout.grid.columns;
            let length = piece_length(bytes, piece).expect("drawn from the tensor's pieces");
            let mut state = vec![0; usize::try_from(length).expect("at most 64 KiB")];
            tensor.base.seek_to(piece * PIECE_BYTES)?;
            tensor.base.read_exact(&mut state)?;
            let found = self.fold(tensor, piece, &mut state)?;
            if let Some(element) = found.delta_non_finite {
                return Ok(Some(format!(
                    "the delta of element {element} is not finite, and the record does not say so"
                )));
            }
            let native = self.round.ledger.rule().dialect == Dialect::Native;
            if let Some(element) = found.next_non_finite.filter(|_| native) {
                return Ok(Some(format!("element {element} becomes NaN or infinite")));
            }
            Digest::of(&state)
        };
        let found = tensor.next_digests[at];
        let text = || format!("the fold gives {expected}, the ledger holds {found}");
        Ok((expected != found).then(text))
    }

    /// What speaks against a tensor that the record leaves unchanged: its witness must not be finite,
    /// nor a lower element of the blocks around it.
    fn witness(
        &self,
        tensor: &mut Tensor<'_>,
        element: u64,
    ) -> Result<Option<String>, LedgerError> {
        let piece = element / (PIECE_BYTES / 4);
        let bytes = 4 * tensor.layout.grid.rows * tensor.layout.grid.columns;
        let Some(length) = piece_length(bytes, piece) else {
            return Ok(Some(format!("the witness {element} is no element of the tensor")));
        };
        let mut state = vec![0; usize::try_from(length).expect("at most 64 KiB")];
        let found = self.fold(tensor, piece, &mut state)?.delta_non_finite;
        let text = || format!("left unchanged for element {element}, the fold finds {found:?}");
        Ok((found != Some(element)).then(text))
    }

    fn fold(
        &self,
        tensor: &mut Tensor<'_>,
        piece: u64,
        state: &mut [u8],
    ) -> Result<gradledger_kernels::Findings, LedgerError> {
        let wanted = runs(&tensor.layout.grid, piece);
        if tensor.rows.0 != wanted {
            tensor.rows.1 = wanted
                .iter()
                .map(|run| read_rows(tensor.layout, &mut tensor.readers, *run))
                .collect::<Result<_, _>>()?;
            tensor.rows.0 = wanted;
        }
        let how: (Step, cpu::Path) = (self.step, self.round.fold.path);
        let rows = (&tensor.rows.0[..], &tensor.rows.1[..]);
        let folded = fold_piece(tensor.layout, piece, state, rows, &tensor.levels, how);
        folded.map_err(|source| {
            let first_block = tensor.rows.0.first().map_or(0, |run| run.first_block);
            let tensor = tensor.layout.name.clone();
            FoldError::Kernel { tensor, round: 0, first_block, source }.into()
        })
    }
}

/// Each miner's rows of a run.
fn read_rows(
    tensor: &TensorLayout,
    readers: &mut [[ArtifactReader; 2]],
    run: Run,
) -> Result<Vec<RunRows>, StoreError> {
    let read = |reader: &mut ArtifactReader, block_bytes: u64| {
        let mut rows = vec![0; usize::try_from(run.blocks * block_bytes).expect("rows of a run")];
        reader.seek_to(run.first_block * block_bytes)?;
        reader.read_exact(&mut rows)?;
        Ok::<_, StoreError>(rows)
    };
    readers
        .par_iter_mut()
        .map(|[index, code]| {
            Ok(RunRows {
                index: read(index, tensor.index_bytes_per_block())?,
                code: read(code, tensor.code_bytes_per_block())?,
            })
        })
        .collect()
}

fn conclude(
    list: &mut Checklist,
    round: u64,
    tensor: &TensorLayout,
    piece: u64,
    outcome: Result<Option<String>, LedgerError>,
) {
    match outcome {
        Ok(None) => list.checked(Check::Fold, 1),
        Ok(Some(text)) => {
            list.checked(Check::Fold, 1);
            let (tensor, piece) = (Some(tensor.name.clone()), Some(piece));
            list.found(Check::Fold, Finding { tensor, piece, ..Finding::in_round(round, text) });
        }
        Err(error) => note(list, round, Some(&tensor.name), Some(piece), &error),
    }
}

/// Files an error of the fold under its check.
pub fn note(
    list: &mut Checklist,
    round: u64,
    tensor: Option<&str>,
    piece: Option<u64>,
    error: &LedgerError,
) {
    let (check, mismatch) = filed(error);
    if mismatch {
        let (named, numbered) = place(error);
        let (tensor, piece) = (tensor.map(str::to_owned).or(named), piece.or(numbered));
        list.found(check, Finding { tensor, piece, ..Finding::in_round(round, error) });
    } else {
        list.missing(check, format!("round {round}: {error}"));
    }
}

/// Tensor and piece that a disagreement is about.
fn place(error: &LedgerError) -> (Option<String>, Option<u64>) {
    use crate::ledger::check::Disagreement;
    let LedgerError::Disagrees(found) = error else { return (None, None) };
    let of_element = |element: u64| element / (PIECE_BYTES / 4);
    match &**found {
        Disagreement::Piece { tensor, piece, .. } => (Some(tensor.clone()), Some(*piece)),
        Disagreement::Tensor { tensor, .. } => (Some(tensor.clone()), None),
        Disagreement::NonFinite { tensor, element, .. } => {
            (Some(tensor.clone()), Some(of_element(*element)))
        }
        // The witness that is claimed, or the element that should have been.
        Disagreement::Skipped { tensor, expected, found, .. } => {
            (Some(tensor.clone()), found.or(*expected).map(of_element))
        }
        _ => (None, None),
    }
}

/// Under which check an error of a plan or a fold falls, and whether it contradicts the ledger rather
/// than saying that something is not there.
pub fn filed(error: &LedgerError) -> (Check, bool) {
    use crate::ledger::check::Disagreement;
    match error {
        LedgerError::Disagrees(found) => match **found {
            Disagreement::Plan { .. } => (Check::Plan, true),
            Disagreement::Layout { .. } => (Check::Acceptances, true),
            _ => (Check::Fold, true),
        },
        LedgerError::Plan(PlanStepError::Store(error)) => (Check::Plan, error.is_mismatch()),
        LedgerError::Plan(_) | LedgerError::Fold(FoldError::Kernel { .. }) => {
            (Check::Acceptances, true)
        }
        LedgerError::Fold(FoldError::Store(error)) | LedgerError::Store(error) => {
            (Check::Fold, error.is_mismatch())
        }
        _ => (Check::Fold, false),
    }
}
