//! Layer 4, the fold: base bands and delta rows in, the next state's bytes and roots out.
//!
//! `ledger` hands in a base and a list of rounds; each band of the base is read once, each round is
//! applied and hashed in turn. Three stages work at the same time and hand bands on:
//!
//! - `load` reads a band and the miners' rows for it, in order, and asks the system for what comes
//!   next.
//! - `compute` checks, folds and hashes bands, several at once; `card` does so on a GPU.
//! - `write` puts them back in order, joins their digests and hands them out.
//!
//! Memory: bands are recycled and [`BANDS_BYTES_MAX`] bounds them all, whatever the model's size; three
//! of the largest there always are. Beside them each miner's streams keep a few pieces.
//!
//! Trust: base and delta bytes are checked against their roots piece by piece, rows as they are read,
//! the base before it is folded. Positions and codes are checked by the kernel.

mod card;
mod compute;
mod cut;
mod load;
pub mod piece;
mod write;

use std::{
    collections::BTreeMap,
    sync::mpsc::{channel, sync_channel},
    thread,
};

use gradledger_kernels::{
    Contribution, Findings, KernelError, Step, bytes as f32_bytes, cpu,
    cuda::{CudaError, Gpu},
    memory::Floats,
};
use rayon::ThreadPool;

use crate::{
    codec::layout::TensorLayout,
    merkle::pieces::{PiecePart, Pieces},
    store::{
        StoreError,
        artifacts::{StoredCheckpoint, StoredDelta, Unchecked},
    },
    types::{plan::Plan, progress::Progress},
};
use cut::Cut;

/// Bytes of all bands that are under way, unless three of the largest take more.
pub const BANDS_BYTES_MAX: u64 = 256 << 20;

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

impl RoundFold<'_> {
    /// Whether the round says that it left `tensor` unchanged.
    fn claims(&self, tensor: &TensorLayout) -> bool {
        self.skipped.is_some_and(|skipped| skipped.contains_key(&(tensor.position as u64)))
    }
}

/// What to fold.
pub struct FoldJob<'a> {
    /// The state to start from.
    pub base: &'a StoredCheckpoint,
    /// Which tensors, each with its place among those the rule takes (its place in the plan).
    pub tensors: Vec<(usize, &'a TensorLayout)>,
    /// The rounds, oldest first.
    pub rounds: Vec<RoundFold<'a>>,
    /// Where checks, arithmetic and hashing run.
    pub pool: &'a ThreadPool,
    /// What does the arithmetic.
    pub engine: Engine,
}

impl FoldJob<'_> {
    /// Deltas of all rounds.
    fn contributions(&self) -> u64 {
        self.rounds.iter().map(|round| round.deltas.len() as u64).sum()
    }

    fn cut<'t>(&self, tensor: &'t TensorLayout) -> Cut<'t> {
        Cut::new(tensor, self.contributions(), self.engine.band_bytes())
    }

    /// What the kernel refused in round `round` of the list, at a band.
    fn refused(&self, at: At, round: usize, source: KernelError) -> FoldError {
        let (_, tensor) = self.tensors[at.tensor];
        let first_block = at.first_unit * self.cut(tensor).unit_blocks;
        FoldError::Kernel { tensor: tensor.name.clone(), round, first_block, source }
    }

    /// How many bands are under way at most.
    fn bands(&self) -> u64 {
        let bytes = self.tensors.iter().map(|(_, tensor)| self.cut(tensor).band_bytes());
        let bytes = bytes.max().unwrap_or(1);
        match self.engine {
            Engine::Idle | Engine::Cpu(_) => {
                let most = 2 * self.pool.current_num_threads() as u64 + 6;
                (BANDS_BYTES_MAX / bytes).clamp(3, most)
            }
            // One is read and one written while each lane has one.
            Engine::Cuda { .. } => card::LANES as u64 + 2,
        }
    }
}

/// What does the arithmetic of a fold. All that do any give the same bits.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Engine {
    /// Nothing: what is read is checked and the state handed on as it was, without an outcome. A pass
    /// that folds is held against it.
    Idle,
    /// The processor, with this kernel.
    Cpu(cpu::Path),
    /// A card.
    Cuda {
        /// Which.
        gpu: &'static Gpu,
        /// Bytes of state and delta rows that it gets at once.
        band_bytes: u64,
    },
}

impl Engine {
    /// A card, with bands as large as its free memory and `host_bytes` of the host's allow.
    ///
    /// # Errors
    ///
    /// [`CudaError`] if the card has failed.
    pub fn on_card(gpu: &'static Gpu, host_bytes: Option<u64>) -> Result<Self, CudaError> {
        let band_bytes = card::band_bytes(gpu.free_bytes()?, host_bytes);
        Ok(Self::Cuda { gpu, band_bytes })
    }

    /// Bytes of state and delta rows that it likes to get at once.
    const fn band_bytes(self) -> u64 {
        match self {
            // About what a core's second cache holds, so that what was folded is hashed from there.
            Self::Idle | Self::Cpu(_) => 4 << 20,
            Self::Cuda { band_bytes, .. } => band_bytes,
        }
    }

    /// Memory that it reads and writes best.
    fn floats(self, elements: usize) -> Result<Floats, FoldError> {
        match self {
            Self::Idle | Self::Cpu(_) => {
                Floats::new(elements).map_err(|source| FoldError::Memory { elements, source })
            }
            Self::Cuda { gpu, .. } => Ok(gpu.floats(elements)?),
        }
    }
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
    /// Whether [`FoldOutput::state`] is to be called. Else only what bands are hashed to is needed, and a
    /// card keeps their bytes.
    fn wants_state(&self) -> bool {
        true
    }

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
    /// The card cannot be used, or failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The system has no room for a band.
    #[error("no memory for {elements} values of a band: {source}")]
    Memory {
        /// Values of the band.
        elements: usize,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Folds a list of rounds onto a base.
///
/// For each tensor, band by band: `state` is read and checked once, then for each round the miners'
/// rows of the band are applied as `schema/fold.md` says, and the result is hashed.
///
/// # Errors
///
/// [`FoldError`], of several the one that comes first in the base; what went to `output` before is
/// incomplete then.
pub fn fold(
    job: &FoldJob<'_>,
    output: &mut dyn FoldOutput,
    progress: &dyn Progress,
) -> Result<(), FoldError> {
    thread::scope(|scope| {
        let (loaded_to, loaded) = sync_channel(1);
        let (folded_to, folded) = channel();
        let (spare_to, spare) = channel();
        for _ in 0..job.bands() {
            spare_to.send(Room::default()).expect("the other end is here");
        }
        let wanted = output.wants_state();
        scope.spawn(move || load::load(job, &spare, &loaded_to));
        scope.spawn(move || match job.engine {
            Engine::Idle => compute::compute(job, None, &loaded, &folded_to),
            Engine::Cpu(path) => compute::compute(job, Some(path), &loaded, &folded_to),
            Engine::Cuda { gpu, .. } => card::compute(job, gpu, wanted, loaded, &folded_to),
        });
        write::write(job, &folded, &spare_to, output, progress)
    })
}

// ---- what the stages hand on ----

/// A band's number, counted over all tensors, or what became of it.
type Numbered<T> = (u64, Result<T, FoldError>);

/// Memory for a band, used again for another when that one is done.
#[derive(Default)]
struct Room {
    /// The state, then rows.
    floats: Option<Floats>,
}

/// What a [`Room`] holds of a band.
struct Parts<'r> {
    state: &'r mut [f32],
    /// Round after round, miner after miner: indices, then codes.
    rows: &'r mut [u8],
}

impl Room {
    /// Room for a band of `units` units of `cut`.
    fn parts(
        &mut self,
        job: &FoldJob<'_>,
        cut: &Cut<'_>,
        units: u64,
    ) -> Result<Parts<'_>, FoldError> {
        let elements = small(units * cut.unit_elements);
        let rows = small(job.contributions()) * cut.row_bytes(units).total();
        let all = elements + rows.div_ceil(4);
        if self.floats.as_ref().is_none_or(|floats| floats.len() < all) {
            self.floats = None; // Not both at a time.
            self.floats = Some(job.engine.floats(all)?);
        }
        let floats = self.floats.as_mut().expect("it was made above");
        let (state, rest) = floats.split_at_mut(elements);
        Ok(Parts { state, rows: &mut f32_bytes::of_f32_mut(rest)[..rows] })
    }
}

/// Bytes of one miner's rows of a band.
#[derive(Clone, Copy)]
struct RowBytes {
    index: usize,
    code: usize,
}

impl RowBytes {
    const fn total(self) -> usize {
        self.index + self.code
    }
}

/// What each miner of each round sent for a band.
fn contributions<'a>(
    levels: &'a Levels,
    rows: &'a [u8],
    bytes: RowBytes,
) -> Vec<Vec<Contribution<'a>>> {
    let mut rows = rows.chunks_exact(bytes.total());
    let mut of_miner = |levels: &'a Vec<f32>| {
        let (index, code) = rows.next().expect("rows of every miner").split_at(bytes.index);
        Contribution { index, code, levels }
    };
    levels.iter().map(|round| round.iter().map(&mut of_miner).collect()).collect()
}

/// Per round, per miner: what each code adds in a tensor.
type Levels = Vec<Vec<Vec<f32>>>;

/// Which rows of blocks of which tensor.
#[derive(Clone, Copy)]
struct At {
    /// Place in [`FoldJob::tensors`].
    tensor: usize,
    first_unit: u64,
    units: u64,
    /// Whether the tensor ends with it.
    last: bool,
}

/// A band on its way from the reader to the arithmetic.
struct Loaded {
    at: At,
    /// State and rows.
    room: Room,
    /// The pieces of the state that are still to be compared with their digests.
    unchecked: Unchecked,
    levels: std::sync::Arc<Levels>,
}

/// A band on its way from the arithmetic to the writer.
struct Folded {
    at: At,
    /// The state after the last round; the rows mean nothing any more.
    room: Room,
    /// One a round.
    rounds: Vec<FoldedRound>,
}

/// What one round made of one band.
struct FoldedRound {
    pieces: PiecePart,
    /// Elements are counted over the tensor.
    findings: Findings,
}

/// Findings of a band, by the tensor's elements.
fn moved(found: Findings, first_element: u64) -> Findings {
    Findings {
        delta_non_finite: found.delta_non_finite.map(|element| element + first_element),
        next_non_finite: found.next_non_finite.map(|element| element + first_element),
    }
}

/// A size within a band, which fits in memory by construction.
fn small(n: u64) -> usize {
    usize::try_from(n).expect("a band fits in memory")
}
