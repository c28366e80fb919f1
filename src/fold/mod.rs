//! Layer 4, the fold: base bands and delta rows in, the next state's bytes and roots out.
//!
//! `ledger` hands in a base and a list of rounds; each band of the base is read once, each round is
//! applied and hashed in turn. Three stages work at the same time and hand bands on:
//!
//! - `load` reads a band and the miners' rows for it, in order, and asks the system for what comes
//!   next.
//! - `compute` checks, folds and hashes bands, several at once: here an engine takes its place.
//! - `write` puts them back in order, joins their digests and hands them out.
//!
//! Memory: bands are recycled and [`BANDS_BYTES_MAX`] bounds them all, whatever the model's size; three
//! of the largest there always are. Beside them each miner's streams keep a few pieces.
//!
//! Trust: base and delta bytes are checked against their roots piece by piece, rows as they are read,
//! the base before it is folded. Positions and codes are checked by the kernel.

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

use gradledger_kernels::{Findings, KernelError, Step, cpu, memory::Floats};
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

    /// How many bands are under way at most.
    fn bands(&self) -> u64 {
        let bytes = self.tensors.iter().map(|(_, tensor)| self.cut(tensor).band_bytes());
        let most = self.engine.bands(self.pool.current_num_threads() as u64);
        (BANDS_BYTES_MAX / bytes.max().unwrap_or(1)).clamp(3, most.max(3))
    }
}

/// What does the arithmetic of a fold. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// The processor, with this kernel.
    Cpu(cpu::Path),
}

impl Engine {
    /// Bytes of state and delta rows that it likes to get at once.
    const fn band_bytes(self) -> u64 {
        match self {
            // About what a core's second cache holds, so that what was folded is hashed from there.
            Self::Cpu(_) => 4 << 20,
        }
    }

    /// Bands that keep it and the stages beside it busy on so many threads.
    const fn bands(self, threads: u64) -> u64 {
        match self {
            Self::Cpu(_) => 2 * threads + 6,
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
        scope.spawn(move || load::load(job, &spare, &loaded_to));
        scope.spawn(move || compute::compute(job, &loaded, &folded_to));
        write::write(job, &folded, &spare_to, output, progress)
    })
}

// ---- what the stages hand on ----

/// A band's number, counted over all tensors, or what became of it.
type Numbered<T> = (u64, Result<T, FoldError>);

/// One miner's rows of a band.
#[derive(Default)]
struct Rows {
    index: Vec<u8>,
    code: Vec<u8>,
}

/// Memory for a band, used again for another when that one is done.
#[derive(Default)]
struct Room {
    /// At least as long as the band's state, which comes first.
    floats: Option<Floats>,
    /// Per round, per miner.
    rows: Vec<Vec<Rows>>,
}

impl Room {
    /// Room for the `elements` values of a band.
    fn state(&mut self, elements: usize) -> Result<&mut [f32], FoldError> {
        if self.floats.as_ref().is_none_or(|floats| floats.len() < elements) {
            self.floats = None; // Not both at a time.
            let floats = Floats::new(elements);
            self.floats = Some(floats.map_err(|source| FoldError::Memory { elements, source })?);
        }
        Ok(&mut self.floats.as_mut().expect("it was made above")[..elements])
    }
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

/// A size within a band, which fits in memory by construction.
fn small(n: u64) -> usize {
    usize::try_from(n).expect("a band fits in memory")
}
