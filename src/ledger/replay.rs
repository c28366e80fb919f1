//! Replay: the fold done again from the logs and the deltas, compared with what was sealed.

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc};

use gradledger_kernels::cuda::Gpu;
use serde::Serialize;

use crate::{
    codec::layout::{Layout, TensorLayout},
    fold::{FoldJob, FoldOutput, RoundFold, TensorOutcome, fold},
    merkle::{manifest::manifest_id, pieces::Pieces},
    plan::{plan, planned_bytes},
    seal::plan_pieces,
    store::{
        StoreError,
        artifacts::{CheckpointWriter, StoredCheckpoint, StoredDelta},
        files::Reopening,
        place::Place,
        segment,
    },
    types::{
        digest::Digest,
        manifest::{Descriptor, Manifest, ManifestId},
        plan::Plan,
        progress::Progress,
        record::RoundRecord,
    },
};

use super::{
    Ledger, LedgerError,
    check::{CheckedRound, Disagreement, check_round, claims},
    retention::{Kept, StateName, base_name},
    seal::{FoldOptions, step},
    thread_pool,
};

/// Deltas and rounds that are folded in one pass, unless kept states lie further apart.
///
/// Each costs memory for its lists of tensors and pages, some 2.5 KB a tensor, and two pieces of
/// 64 KiB: 1.9 GB for 1,000 deltas of the 72B model. Their files are open only while they are read.
const AT_ONCE: usize = 200;

/// What to replay.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// Round numbers; those that the ledger has among them.
    pub rounds: RangeInclusive<u64>,
    /// One tensor alone: nothing else is read.
    pub tensor: Option<String>,
    /// How to fold.
    pub fold: FoldOptions,
}

/// What a replay gave.
#[derive(Debug, Serialize)]
pub struct ReplayReport {
    /// The kept state that the first round was folded from.
    pub from: StateName,
    /// Rounds before the first that were folded and compared too, since the states between were
    /// dropped.
    pub folded_before: usize,
    /// What folded: each of these came to the same bits.
    pub folded_on: Vec<FoldedOn>,
    /// The replayed rounds, oldest first.
    pub rounds: Vec<ReplayedRound>,
    /// The states that were read to fold from, each byte compared with its digest.
    #[serde(skip)]
    pub bases: Vec<ManifestId>,
}

/// What did the arithmetic of a replay, and what compiled it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum FoldedOn {
    /// The processor.
    Cpu {
        /// `cpu`.
        device: String,
        /// The kernel's instructions.
        path: &'static str,
    },
    /// A card.
    Cuda {
        /// As `cuda:0`.
        device: String,
        /// What the card calls itself.
        name: String,
        /// The newest CUDA that its driver knows.
        driver: String,
        /// Which NVRTC compiled the kernels.
        nvrtc: String,
        /// The machine they were compiled for.
        architecture: String,
        /// SHA-256 of their source, flags and architecture.
        kernels: Digest,
    },
}

impl FoldedOn {
    fn of(options: &FoldOptions) -> Self {
        match options.gpu.map(Gpu::description) {
            None => Self::Cpu { device: "cpu".to_owned(), path: options.path.name() },
            Some(card) => Self::Cuda {
                device: format!("cuda:{}", card.ordinal),
                name: card.name.clone(),
                driver: card.driver.clone(),
                nvrtc: card.nvrtc.clone(),
                architecture: card.architecture.clone(),
                kernels: Digest(card.source),
            },
        }
    }
}

/// One round, folded again to the same bits.
#[derive(Debug, Serialize)]
pub struct ReplayedRound {
    /// Its number.
    pub round: u64,
    /// The state after it, as sealed and as replayed.
    pub next: ManifestId,
    /// How many miners were folded.
    pub miners: usize,
    /// The tensors compared.
    pub tensors: usize,
}

/// Folds the rounds again and compares every root.
///
/// The base is read once, each delta once for its plan and once for its fold, and the state after
/// each round is hashed and compared piece by piece. If the base was dropped, the rounds from the
/// last kept state before it on are folded and compared as well.
///
/// Memory: bands of the state (see [`crate::fold`]), and what a pass needs for each delta. A pass
/// covers about 200 deltas, or as many as lie between two kept states.
///
/// # Errors
///
/// [`LedgerError::Disagrees`] with the first round, tensor and piece that differs; others if the
/// ledger lacks what a replay needs.
pub fn replay(
    ledger: &Ledger,
    options: &ReplayOptions,
    progress: &dyn Progress,
) -> Result<ReplayReport, LedgerError> {
    let (kept, wanted) = (Kept::load(ledger)?, positions(ledger, &options.rounds)?);
    let start = kept.require_start(ledger, wanted.start)?;
    let (from, folded_before) = (base_name(ledger, start), wanted.start - start);
    if folded_before > 0 {
        progress.note(&format!(
            "the state before round {} was dropped: starting from {from}, {folded_before} more \
             rounds to fold",
            options.rounds.start()
        ));
    }
    let (mut rounds, mut bases) = (Vec::new(), Vec::new());
    for pass in passes(ledger, &kept, start..wanted.end)? {
        bases.push(ledger.sealed()[pass[0].0].record.base);
        rounds.extend(replay_pass(ledger, pass, options, None, progress)?);
    }
    rounds.drain(..folded_before);
    Ok(ReplayReport {
        from,
        folded_before,
        folded_on: vec![FoldedOn::of(&options.fold)],
        rounds,
        bases,
    })
}

/// Folds the state after `round` again, from the last kept one before it, into `scratch`.
///
/// All rounds on the way are compared, so the bits are those that were sealed. In `scratch` it takes
/// the room of a whole state; the caller removes it. `scratch` may be the ledger's own place: then it
/// shares what does not change.
///
/// # Errors
///
/// As [`replay`].
pub fn rebuild(
    ledger: &Ledger,
    round: u64,
    scratch: &Place,
    fold: FoldOptions,
    progress: &dyn Progress,
) -> Result<StoredCheckpoint, LedgerError> {
    let (kept, position) = (Kept::load(ledger)?, ledger.position(round)?);
    let span = kept.require_start(ledger, position)?..position + 1;
    let options = ReplayOptions { rounds: round..=round, tensor: None, fold };
    let base = ledger.checkpoint(ledger.sealed()[span.start].record.base)?;
    let mut rebuilt = Rebuilt::new(base, scratch, scratch.root == ledger.place().root)?;
    // No state within it is kept, so it is one pass.
    for pass in passes(ledger, &kept, span)? {
        replay_pass(ledger, pass, &options, Some(&mut rebuilt), progress)?;
    }
    Ok(StoredCheckpoint::open(scratch, rebuilt.finish()?)?)
}

/// A state that is stored as it is folded.
struct Rebuilt {
    base: StoredCheckpoint,
    writer: CheckpointWriter,
    /// The first position of the manifest that is not written yet.
    next: usize,
    /// Where the base lies: what does not change is there already.
    shared: bool,
}

impl Rebuilt {
    fn new(base: StoredCheckpoint, scratch: &Place, shared: bool) -> Result<Self, LedgerError> {
        let tmp = scratch.tmp();
        scratch
            .files
            .create_dir_all(&tmp)
            .map_err(|source| StoreError::Io { path: tmp, source })?;
        Ok(Self { base, writer: CheckpointWriter::create(scratch)?, next: 0, shared })
    }

    /// Copies or shares the tensors up to `position`, which the rule does not fold.
    fn copy_until(&mut self, position: usize) -> Result<(), StoreError> {
        for position in self.next..position {
            match self.shared {
                true => self.writer.unchanged(&self.base, position)?,
                false => self.writer.copy(&self.base, position)?,
            }
        }
        self.next = self.next.max(position);
        Ok(())
    }

    fn state(&mut self, tensor: &TensorLayout, bytes: &[u8]) -> Result<(), StoreError> {
        self.copy_until(tensor.position)?;
        self.writer.write(&self.base.manifest().descriptors()[tensor.position], bytes)
    }

    fn done(&mut self, pieces: Pieces) -> Result<(), StoreError> {
        self.next += 1;
        self.writer.commit(pieces)
    }

    fn finish(mut self) -> Result<ManifestId, StoreError> {
        self.copy_until(self.base.manifest().descriptors().len())?;
        self.writer.finish()
    }
}

/// Places of the rounds in `wanted`; its ends must be rounds of the ledger.
fn positions(
    ledger: &Ledger,
    wanted: &RangeInclusive<u64>,
) -> Result<std::ops::Range<usize>, LedgerError> {
    Ok(ledger.position(*wanted.start())?..ledger.position(*wanted.end())? + 1)
}

/// Rounds that are folded in one pass over a base.
type Pass = Vec<(usize, CheckedRound)>;

/// Cuts the rounds into passes of about [`AT_ONCE`]; each starts from a kept state.
fn passes(
    ledger: &Ledger,
    kept: &Kept,
    positions: std::ops::Range<usize>,
) -> Result<Vec<Pass>, LedgerError> {
    let mut spans: Vec<Pass> = Vec::new();
    for position in positions {
        if spans.is_empty() || kept.start(position) == Some(position) {
            spans.push(Vec::new());
        }
        let span = spans.last_mut().expect("it was pushed");
        let checked = check_round(ledger, position)?;
        if kept.is_of_copy() && !has_deltas(ledger, &checked)? {
            return Err(kept.not_held(ledger, ledger.sealed()[position].record.next));
        }
        span.push((position, checked));
    }
    let size =
        |pass: &Pass| pass.iter().map(|(_, checked)| 1 + checked.deltas.len()).sum::<usize>();
    let mut passes: Vec<Pass> = Vec::new();
    for span in spans {
        match passes.last_mut() {
            Some(pass) if size(pass) + size(&span) <= AT_ONCE => pass.extend(span),
            _ => passes.push(span),
        }
    }
    Ok(passes)
}

/// Whether the deltas of a round are here, as far as their names say.
///
/// # Errors
///
/// [`LedgerError::Store`] if the directory cannot be read.
pub fn has_deltas(ledger: &Ledger, checked: &CheckedRound) -> Result<bool, LedgerError> {
    let Place { files, root } = ledger.place();
    for (_, id) in &checked.deltas {
        let path = segment::place::delta(root, id.root);
        if !files.exists(&path).map_err(|source| StoreError::Io { path, source })? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A round's deltas and scalars, opened and derived again.
struct Opened<'a> {
    record: &'a RoundRecord,
    deltas: Vec<StoredDelta>,
    plan: Plan,
    claims: BTreeMap<u64, u64>,
}

fn replay_pass(
    ledger: &Ledger,
    pass: Vec<(usize, CheckedRound)>,
    options: &ReplayOptions,
    rebuilt: Option<&mut Rebuilt>,
    progress: &dyn Progress,
) -> Result<Vec<ReplayedRound>, LedgerError> {
    let first = &ledger.sealed()[pass[0].0].record;
    // However many deltas there are, few files are open at once.
    let files = Arc::new(Reopening(ledger.place().files.clone()));
    let place = Place::new(files, &ledger.place().root);
    let base = ledger.checkpoint(first.base)?;
    let layout = Layout::of(base.manifest(), ledger.rule())?;
    let pool = thread_pool(options.fold.threads)?;
    let tensors = wanted_tensors(&layout, options.tensor.as_deref())?;
    let mut opened = Vec::new();
    for (position, checked) in &pass {
        let record = &ledger.sealed()[*position].record;
        let deltas = open_deltas(&place, &layout, record.round, checked)?;
        progress.begin(&format!("plan {}", record.round), planned_bytes(&layout, &deltas));
        let plan = pool.install(|| match &options.tensor {
            None => derive_plan(ledger, &layout, record, &deltas, progress),
            Some(_) => one_tensor_plan(ledger, &layout, record, &deltas, &tensors, progress),
        })?;
        progress.end();
        let claims = claims(&record.skipped);
        let folds = |t: &u64| layout.tensors.iter().any(|tensor| tensor.position as u64 == *t);
        if let Some(&tensor) = claims.keys().find(|t| !folds(t)) {
            return Err(Disagreement::SkippedUnknown { round: record.round, tensor }.into());
        }
        opened.push(Opened { record, deltas, plan, claims });
    }
    let rounds = opened
        .iter()
        .map(|o| RoundFold {
            deltas: &o.deltas,
            plan: &o.plan,
            step: step(ledger.rule(), o.deltas.len()),
            skipped: Some(&o.claims),
        })
        .collect();
    let mut compare = Compare::new(ledger, &place, &base, &opened, rebuilt)?;
    progress.begin("replay", tensors.iter().map(|(_, t)| t.grid.rows * t.grid.columns * 4).sum());
    let job = FoldJob {
        base: &base,
        tensors: tensors.clone(),
        rounds,
        pool: &pool,
        engine: options.fold.engine()?,
    };
    fold(&job, &mut compare, progress)?;
    progress.end();
    compare.verdict(options.tensor.is_none())?;
    let replayed = |o: &Opened<'_>| ReplayedRound {
        round: o.record.round,
        next: o.record.next,
        miners: o.deltas.len(),
        tensors: tensors.len(),
    };
    Ok(opened.iter().map(replayed).collect())
}

fn wanted_tensors<'a>(
    layout: &'a Layout,
    only: Option<&str>,
) -> Result<Vec<(usize, &'a TensorLayout)>, LedgerError> {
    let all = layout.tensors.iter().enumerate();
    let wanted: Vec<_> = all.filter(|(_, t)| only.is_none_or(|name| t.name == name)).collect();
    match only {
        Some(name) if wanted.is_empty() => Err(LedgerError::NoTensor { name: name.to_owned() }),
        _ => Ok(wanted),
    }
}

/// The stored deltas of a checked round in ledger order, laid out as the model is.
///
/// # Errors
///
/// [`Disagreement::Layout`], or that one is not stored.
pub fn open_deltas(
    place: &Place,
    layout: &Layout,
    round: u64,
    checked: &CheckedRound,
) -> Result<Vec<StoredDelta>, LedgerError> {
    let open = |(miner, id): &(String, ManifestId)| {
        let delta = StoredDelta::open(place, *id)?;
        if !layout.is_delta(delta.manifest()) {
            return Err(Disagreement::Layout { round, miner: miner.clone() }.into());
        }
        Ok(delta)
    };
    checked.deltas.iter().map(open).collect()
}

/// The whole plan, derived from the deltas and compared with the record's root.
///
/// # Errors
///
/// [`Disagreement::Plan`], or what reading the deltas gives.
pub fn derive_plan(
    ledger: &Ledger,
    layout: &Layout,
    record: &RoundRecord,
    deltas: &[StoredDelta],
    progress: &dyn Progress,
) -> Result<Plan, LedgerError> {
    let plan = plan(layout, ledger.rule(), deltas, progress)?;
    let expected = plan_pieces(&plan).artifact;
    if expected != record.plan {
        let at = first_row_that_differs(ledger, layout, record, &plan);
        let (round, expected, found) = (record.round, expected.root, record.plan.root);
        return Err(Disagreement::Plan { round, expected, found, at }.into());
    }
    Ok(plan)
}

/// Where the stored plan, if it is there and is the record's, differs from the derived one.
fn first_row_that_differs(
    ledger: &Ledger,
    layout: &Layout,
    record: &RoundRecord,
    derived: &Plan,
) -> String {
    let Ok(stored) = stored_plan(ledger, layout, record, derived.miners) else {
        return String::new();
    };
    let row = stored.rows.iter().zip(&derived.rows).position(|(a, b)| a != b);
    let text = |row: usize| {
        let (tensor, miner) = (row / derived.miners, row % derived.miners);
        format!("; first at {}, miner {miner} in ledger order", layout.tensors[tensor].name)
    };
    row.map_or_else(String::new, text)
}

/// The plan as it is stored, compared with the record's root.
///
/// # Errors
///
/// [`Disagreement::Plan`], or that it is not stored.
pub fn stored_plan(
    ledger: &Ledger,
    layout: &Layout,
    record: &RoundRecord,
    miners: usize,
) -> Result<Plan, LedgerError> {
    let bins = 1 << ledger.rule().code_bits();
    let (files, root) = (&*ledger.place().files, &ledger.place().root);
    let tensors = layout.tensors.len();
    let stored = segment::plan::read(files, root, &record.plan, tensors, miners, bins)
        .map_err(StoreError::from)?;
    let found = plan_pieces(&stored).artifact;
    if found != record.plan {
        let (round, expected, found) = (record.round, record.plan.root, found.root);
        return Err(Disagreement::Plan { round, expected, found, at: String::new() }.into());
    }
    Ok(stored)
}

/// The sealed plan with the rows of the wanted tensor derived again and compared.
fn one_tensor_plan(
    ledger: &Ledger,
    layout: &Layout,
    record: &RoundRecord,
    deltas: &[StoredDelta],
    tensors: &[(usize, &TensorLayout)],
    progress: &dyn Progress,
) -> Result<Plan, LedgerError> {
    let stored = stored_plan(ledger, layout, record, deltas.len())?;
    for &(planned, tensor) in tensors {
        let alone = Layout { tensors: vec![tensor.clone()], frozen: Vec::new() };
        let derived = plan(&alone, ledger.rule(), deltas, progress)?;
        if derived.rows != stored.tensor(planned) {
            let (round, found) = (record.round, record.plan.root);
            let expected = plan_pieces(&derived).artifact.root;
            let at = format!("; the rows of {} differ", tensor.name);
            return Err(Disagreement::Plan { round, expected, found, at }.into());
        }
    }
    Ok(stored)
}

/// Compares what a fold gives with what was sealed.
struct Compare<'a> {
    ledger: &'a Ledger,
    rounds: Vec<Comparison<'a>>,
    /// Where the state after the last round goes, if it is wanted.
    rebuilt: Option<&'a mut Rebuilt>,
}

/// One round under comparison.
struct Comparison<'a> {
    record: &'a RoundRecord,
    /// The sealed state after the round, if its hashes are there.
    sealed: Option<StoredCheckpoint>,
    /// The state after the round as replayed, by manifest position.
    replayed: Vec<Descriptor>,
    claims: &'a BTreeMap<u64, u64>,
    first: Option<Disagreement>,
}

impl<'a> Compare<'a> {
    fn new(
        ledger: &'a Ledger,
        place: &Place,
        base: &StoredCheckpoint,
        opened: &'a [Opened<'a>],
        rebuilt: Option<&'a mut Rebuilt>,
    ) -> Result<Self, StoreError> {
        let replayed = base.manifest().descriptors().to_vec();
        let comparison = |o: &'a Opened<'a>| Comparison {
            record: o.record,
            // Without its hashes a difference is still found, by the root; only its place is not.
            sealed: StoredCheckpoint::open(place, o.record.next).ok(),
            replayed: replayed.clone(),
            claims: &o.claims,
            first: None,
        };
        Ok(Self { ledger, rounds: opened.iter().map(comparison).collect(), rebuilt })
    }

    /// The first disagreement, oldest round first; with `whole`, the manifests as well.
    fn verdict(self, whole: bool) -> Result<(), LedgerError> {
        for mut round in self.rounds {
            if let Some(first) = round.first.take() {
                return Err(first.into());
            }
            if whole {
                let expected = manifest_id(&Manifest::new(round.replayed)?);
                let (number, found) = (round.record.round, round.record.next);
                if expected != found {
                    return Err(Disagreement::Next { round: number, expected, found }.into());
                }
            }
        }
        Ok(())
    }
}

impl FoldOutput for Compare<'_> {
    fn wants_state(&self) -> bool {
        self.rebuilt.is_some()
    }

    fn state(&mut self, tensor: &TensorLayout, bytes: &[u8]) -> Result<(), StoreError> {
        match &mut self.rebuilt {
            Some(rebuilt) => rebuilt.state(tensor, bytes),
            None => Ok(()),
        }
    }

    fn done(
        &mut self,
        tensor: &TensorLayout,
        outcomes: Vec<TensorOutcome>,
    ) -> Result<(), StoreError> {
        let native = self.ledger.rule().dialect == crate::types::rule::Dialect::Native;
        let mut last = None;
        for (round, outcome) in self.rounds.iter_mut().zip(outcomes) {
            round.replayed[tensor.position].root = outcome.pieces.artifact.root;
            if round.first.is_none() {
                round.first = round.disagreement(tensor, &outcome, native);
            }
            last = Some(outcome.pieces);
        }
        match (&mut self.rebuilt, last) {
            (Some(rebuilt), Some(pieces)) => rebuilt.done(pieces),
            _ => Ok(()),
        }
    }
}

impl Comparison<'_> {
    fn disagreement(
        &self,
        tensor: &TensorLayout,
        outcome: &TensorOutcome,
        native: bool,
    ) -> Option<Disagreement> {
        let (round, name) = (self.record.round, || tensor.name.clone());
        let claimed = self.claims.get(&(tensor.position as u64)).copied();
        let (expected, found) = (outcome.findings.delta_non_finite, claimed);
        if expected != found {
            return Some(Disagreement::Skipped { round, tensor: name(), expected, found });
        }
        let not_finite = expected.or(outcome.findings.next_non_finite);
        if let Some(element) = not_finite.filter(|_| native) {
            return Some(Disagreement::NonFinite { round, tensor: name(), element });
        }
        let sealed = self.sealed.as_ref()?;
        let found = sealed.manifest().descriptors().get(tensor.position)?.root;
        let expected = outcome.pieces.artifact.root;
        if expected == found {
            return None;
        }
        let differs = sealed.digests(tensor.position).ok().and_then(|digests| {
            let pairs = outcome.pieces.digests.iter().zip(&digests);
            let piece = pairs.clone().position(|(a, b)| a != b)?;
            Some((piece as u64, outcome.pieces.digests[piece], digests[piece]))
        });
        Some(match differs {
            Some((piece, expected, found)) => {
                Disagreement::Piece { round, tensor: name(), piece, expected, found }
            }
            None => Disagreement::Tensor { round, tensor: name(), expected, found },
        })
    }
}
