//! Layer 4, the fold: base bands and delta rows in, the next state's bytes and roots out.
//!
//! `ledger` hands in a base and a list of rounds; each band of the base is read once, each round is
//! applied and hashed in turn. Reading, arithmetic and writing overlap in three threads that pass
//! bands on; the arithmetic itself runs on a rayon pool.
//!
//! Memory: about [`BAND_BUDGET_BYTES`] a band and five bands under way, whatever the model's size.
//!
//! Trust: base and delta bytes are checked against their roots piece by piece as they are read.
//! Positions and codes are checked by the kernel.

pub mod piece;

use std::{
    collections::BTreeMap,
    sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    thread,
};

use gradledger_kernels::{
    Band, Contribution, Findings, KernelError, Step, bytes as f32_bytes, cpu, levels::levels,
};
use rayon::{ThreadPool, prelude::*};

use crate::{
    codec::{
        book::Book,
        layout::{DeltaGroup, TensorLayout},
    },
    merkle::pieces::{PieceHasher, Pieces},
    store::{
        StoreError,
        artifacts::{ArtifactReader, StoredCheckpoint, StoredDelta},
    },
    types::{plan::Plan, progress::Progress},
};

/// Bytes of state and delta rows in one band, unless one row of blocks is larger.
pub const BAND_BUDGET_BYTES: u64 = 16 << 20;

/// One round to apply.
pub struct RoundFold<'a> {
    /// The accepted deltas in ledger order.
    pub deltas: &'a [StoredDelta],
    /// The round's scalars.
    pub plan: &'a Plan,
    /// Learning rate and divisor.
    pub step: Step,
    /// Tensors (by manifest position) that the round left unchanged: their delta is looked at, not
    /// applied. `None` where nobody knows yet.
    pub skipped: Option<&'a BTreeMap<u64, u64>>,
}

/// What to fold.
pub struct FoldJob<'a> {
    /// The state to start from.
    pub base: &'a StoredCheckpoint,
    /// Which tensors, each with its place among those the rule takes (its place in the plan).
    pub tensors: Vec<(usize, &'a TensorLayout)>,
    /// The rounds, oldest first.
    pub rounds: Vec<RoundFold<'a>>,
    /// Where the arithmetic runs.
    pub pool: &'a ThreadPool,
    /// Which kernel.
    pub path: cpu::Path,
}

/// What one round made of one tensor.
pub struct TensorOutcome {
    /// Root, length and piece digests of the tensor after the round.
    pub pieces: Pieces,
    /// The lowest elements whose delta, or whose new value, is not finite.
    pub findings: Findings,
}

/// Where the last state and each tensor's outcomes go; called in order, from one thread.
pub trait FoldOutput: Send {
    /// The next bytes of `tensor` after the last round.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be kept.
    fn state(&mut self, tensor: &TensorLayout, bytes: &[u8]) -> Result<(), StoreError>;

    /// `tensor` is done; one outcome a round.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it cannot be kept.
    fn done(
        &mut self,
        tensor: &TensorLayout,
        outcomes: Vec<TensorOutcome>,
    ) -> Result<(), StoreError>;
}

/// A fold that did not come to its end; its output is to be dropped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FoldError {
    /// Stored bytes are missing or wrong, or could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The delta's rows break the codec's rules.
    #[error("{tensor}, round {round} of the list, blocks from {first_block} on: {source}")]
    Kernel {
        /// The tensor.
        tensor: String,
        /// Position in the list of rounds.
        round: usize,
        /// The band's first block.
        first_block: u64,
        /// What the kernel refused.
        source: KernelError,
    },
}

/// Folds a list of rounds onto a base.
///
/// For each tensor, band by band: `state` is read and checked once, then for each round the miners'
/// rows of the band are applied as `schema/fold.md` says, and the result is hashed.
///
/// # Errors
///
/// [`FoldError`]; what went to `output` before is incomplete then.
pub fn fold(
    job: &FoldJob<'_>,
    output: &mut dyn FoldOutput,
    progress: &dyn Progress,
) -> Result<(), FoldError> {
    thread::scope(|scope| {
        let (loaded_to, loaded) = sync_channel(1);
        let (folded_to, folded) = sync_channel(1);
        let (spare_to, spare) = channel();
        scope.spawn(move || load(job, &loaded_to, &spare));
        scope.spawn(move || compute(job, &loaded, &folded_to));
        write(job, &folded, &spare_to, output, progress)
    })
}

/// Rows of blocks that are folded at once: some of a tensor's `units`.
///
/// A unit is the least that can be folded alone: a row of blocks, or one block of a 1-D tensor.
#[derive(Clone, Copy)]
struct Cut<'a> {
    tensor: &'a TensorLayout,
    unit_elements: u64,
    unit_blocks: u64,
    units_per_band: u64,
}

impl<'a> Cut<'a> {
    fn new(tensor: &'a TensorLayout, contributions: u64) -> Self {
        let grid = tensor.grid;
        let unit_blocks = grid.unit_blocks();
        let unit_elements = unit_blocks * grid.block_elements();
        let rows = tensor.index_bytes_per_block() + tensor.code_bytes_per_block();
        let unit_bytes = 4 * unit_elements + contributions * unit_blocks * rows;
        let units_per_band = (BAND_BUDGET_BYTES / unit_bytes).max(1);
        Self { tensor, unit_elements, unit_blocks, units_per_band }
    }

    fn units(&self) -> u64 {
        self.tensor.grid.blocks() / self.unit_blocks
    }

    /// (first unit, number of units) of each band.
    fn bands(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (units, step) = (self.units(), self.units_per_band);
        (0..units.div_ceil(step)).map(move |band| (band * step, step.min(units - band * step)))
    }

    /// The kernel's view of `units` units.
    fn band(&self, units: u64) -> Band {
        let grid = self.tensor.grid;
        let (rows, columns) = if grid.rows == 1 {
            (1, units * grid.block_columns)
        } else {
            (units * grid.block_rows, grid.columns)
        };
        Band {
            rows: small(rows),
            columns: small(columns),
            block_rows: small(grid.block_rows),
            block_columns: small(grid.block_columns),
            k: small(self.tensor.k),
            code_bits: self.tensor.code_bits,
        }
    }
}

/// A size within a band, which fits in memory by construction.
fn small(n: u64) -> usize {
    usize::try_from(n).expect("a band fits in memory")
}

/// One miner's rows of a band.
struct Rows {
    index: Vec<u8>,
    code: Vec<u8>,
}

/// A band on its way from the reader to the arithmetic.
struct Loaded {
    /// Place in [`FoldJob::tensors`].
    tensor: usize,
    first_unit: u64,
    units: u64,
    state: Vec<f32>,
    /// Per round, per miner.
    rows: Vec<Vec<Rows>>,
    /// Per round, per miner: what each code adds. Only with a tensor's first band.
    levels: Option<Vec<Vec<Vec<f32>>>>,
    last: bool,
}

/// A band on its way from the arithmetic to the writer.
struct Folded {
    tensor: usize,
    state: Vec<f32>,
    /// With a tensor's last band.
    outcomes: Option<Vec<TensorOutcome>>,
}

// ---- reader ----

fn load(job: &FoldJob<'_>, to: &SyncSender<Result<Loaded, FoldError>>, spare: &Receiver<Vec<f32>>) {
    for at in 0..job.tensors.len() {
        if let Err(error) = load_tensor(job, at, to, spare) {
            // The writer reports it; if the writer is gone, there is nobody to tell.
            let _ = to.send(Err(error));
            return;
        }
    }
}

fn load_tensor(
    job: &FoldJob<'_>,
    at: usize,
    to: &SyncSender<Result<Loaded, FoldError>>,
    spare: &Receiver<Vec<f32>>,
) -> Result<(), FoldError> {
    let (planned, tensor) = job.tensors[at];
    let cut = Cut::new(tensor, job.rounds.iter().map(|r| r.deltas.len() as u64).sum());
    let mut base = job.base.tensor(tensor.position)?;
    let mut streams = job
        .rounds
        .iter()
        .map(|round| round.deltas.iter().map(|delta| Streams::open(delta, tensor)).collect())
        .collect::<Result<Vec<Vec<_>>, StoreError>>()?;
    let mut levels = Some(levels_of(job, planned, tensor)?);
    for (first_unit, units) in cut.bands() {
        let mut state = spare.try_recv().unwrap_or_default();
        state.resize(small(units * cut.unit_elements), 0.0);
        let blocks = units * cut.unit_blocks;
        let rows = job.pool.install(|| -> Result<_, StoreError> {
            base.read_exact(f32_bytes::of_f32_mut(&mut state))?;
            let read = |streams: &mut Vec<Streams>| {
                streams.par_iter_mut().map(|s| s.rows(tensor, blocks)).collect::<Result<_, _>>()
            };
            streams.iter_mut().map(read).collect::<Result<Vec<Vec<Rows>>, _>>()
        })?;
        let last = first_unit + units == cut.units();
        let levels = levels.take();
        let band = Loaded { tensor: at, first_unit, units, state, rows, levels, last };
        if to.send(Ok(band)).is_err() {
            return Ok(()); // A later stage failed and has said so.
        }
    }
    Ok(())
}

/// One miner's two streams of one tensor.
struct Streams {
    index: ArtifactReader,
    code: ArtifactReader,
}

impl Streams {
    fn open(delta: &StoredDelta, tensor: &TensorLayout) -> Result<Self, StoreError> {
        Ok(Self {
            index: delta.open_artifact(DeltaGroup::Index, &tensor.name)?,
            code: delta.open_artifact(DeltaGroup::Code, &tensor.name)?,
        })
    }

    fn rows(&mut self, tensor: &TensorLayout, blocks: u64) -> Result<Rows, StoreError> {
        let mut rows = Rows {
            index: vec![0; small(blocks * tensor.index_bytes_per_block())],
            code: vec![0; small(blocks * tensor.code_bytes_per_block())],
        };
        self.index.read_exact(&mut rows.index)?;
        self.code.read_exact(&mut rows.code)?;
        Ok(rows)
    }
}

/// Per round and miner: the clipped value of each code.
fn levels_of(
    job: &FoldJob<'_>,
    planned: usize,
    tensor: &TensorLayout,
) -> Result<Vec<Vec<Vec<f32>>>, StoreError> {
    let of_round = |round: &RoundFold<'_>| {
        let rows = round.plan.tensor(planned);
        let of_miner = |(delta, row): (&StoredDelta, &crate::types::plan::PlanRow)| {
            let book = Book::from_bytes(&delta.book(&tensor.name)?);
            Ok(levels(&book.lookup, book.shift, row.factor))
        };
        round.deltas.iter().zip(rows).map(of_miner).collect()
    };
    job.rounds.iter().map(of_round).collect()
}

// ---- arithmetic ----

fn compute(
    job: &FoldJob<'_>,
    from: &Receiver<Result<Loaded, FoldError>>,
    to: &SyncSender<Result<Folded, FoldError>>,
) {
    let mut folding = None;
    for loaded in from {
        let folded =
            loaded.and_then(|loaded| job.pool.install(|| compute_band(job, &mut folding, loaded)));
        let failed = folded.is_err();
        if to.send(folded).is_err() || failed {
            return;
        }
    }
}

/// The tensor under way: what each round has found and hashed so far.
struct Folding {
    levels: Vec<Vec<Vec<f32>>>,
    rounds: Vec<(PieceHasher, Findings)>,
}

fn compute_band(
    job: &FoldJob<'_>,
    folding: &mut Option<Folding>,
    loaded: Loaded,
) -> Result<Folded, FoldError> {
    let Loaded { tensor: at, first_unit, units, mut state, rows, levels, last } = loaded;
    let (_, tensor) = job.tensors[at];
    if let Some(levels) = levels {
        let rounds = job.rounds.iter().map(|_| (PieceHasher::new(), Findings::default())).collect();
        *folding = Some(Folding { levels, rounds });
    }
    let under_way = folding.as_mut().expect("a tensor's first band brings its levels");
    let cut = Cut::new(tensor, 0);
    let (band, first_block) = (cut.band(units), first_unit * cut.unit_blocks);
    for (number, round) in job.rounds.iter().enumerate() {
        let (hasher, findings) = &mut under_way.rounds[number];
        let contributions: Vec<_> = rows[number]
            .iter()
            .zip(&under_way.levels[number])
            .map(|(rows, levels)| Contribution { index: &rows.index, code: &rows.code, levels })
            .collect();
        let claimed = round.skipped.is_some_and(|s| s.contains_key(&(tensor.position as u64)));
        let step = Applied { path: job.path, band, step: round.step, claimed };
        let found = step.apply(&contributions, &mut state, findings).map_err(|source| {
            FoldError::Kernel { tensor: tensor.name.clone(), round: number, first_block, source }
        })?;
        let offset = first_unit * cut.unit_elements;
        let moved = Findings {
            delta_non_finite: found.delta_non_finite.map(|e| e + offset),
            next_non_finite: found.next_non_finite.map(|e| e + offset),
        };
        // Bands come in order, so what was found first is the lowest.
        *findings = findings.merged(moved);
        hasher.update(f32_bytes::of_f32(&state));
    }
    let outcomes = last.then(|| {
        let rounds = folding.take().into_iter().flat_map(|folding| folding.rounds);
        rounds
            .map(|(hasher, findings)| TensorOutcome { pieces: hasher.finish(), findings })
            .collect()
    });
    Ok(Folded { tensor: at, state, outcomes })
}

/// One round's step on one band.
struct Applied {
    path: cpu::Path,
    band: Band,
    step: Step,
    /// The round says that it left this tensor unchanged.
    claimed: bool,
}

impl Applied {
    fn apply(
        &self,
        contributions: &[Contribution<'_>],
        state: &mut [f32],
        so_far: &Findings,
    ) -> Result<Findings, KernelError> {
        if contributions.is_empty() || so_far.delta_non_finite.is_some() {
            // Nothing to add, or the tensor is to be left unchanged and the witness is known.
            return Ok(Findings::default());
        }
        if self.claimed {
            let mut scratch = state.to_vec();
            let found = cpu::fold(self.path, &self.band, contributions, self.step, &mut scratch)?;
            return Ok(Findings { next_non_finite: None, ..found });
        }
        cpu::fold(self.path, &self.band, contributions, self.step, state)
    }
}

// ---- writer ----

fn write(
    job: &FoldJob<'_>,
    from: &Receiver<Result<Folded, FoldError>>,
    spare: &Sender<Vec<f32>>,
    output: &mut dyn FoldOutput,
    progress: &dyn Progress,
) -> Result<(), FoldError> {
    for folded in from {
        let Folded { tensor, state, outcomes } = folded?;
        let (_, tensor) = job.tensors[tensor];
        let bytes = f32_bytes::of_f32(&state);
        output.state(tensor, bytes)?;
        progress.advance(bytes.len() as u64);
        // The reader may be done already: then nobody wants the buffer back.
        let _ = spare.send(state);
        if let Some(outcomes) = outcomes {
            output.done(tensor, outcomes)?;
        }
    }
    Ok(())
}
