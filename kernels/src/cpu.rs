//! The fold on the processor: the bits of [`reference`](mod@crate::reference), near the speed of a
//! copy.
//!
//! A band is cut into pieces of some block columns of one row of blocks, which rayon spreads over
//! threads. A piece goes through in groups of blocks that fit the first cache: `gather` adds up
//! what all miners sent for the group, `update` passes once over the group's rows of the state.
//! The next group's bytes are prefetched all the while, a little with each miner and each row.
//!
//! Every element is computed alone, so neither path nor threads nor the cut show in the result. A
//! fault is only noticed here; which one is reported, [`check`] decides.

mod ahead;
mod cell;
mod gather;
mod update;

use std::fmt;
use std::str::FromStr;

use rayon::prelude::*;

use crate::band::{BLOCK_LEN_MAX, Band, Contribution, Findings, Step};
use crate::{KernelError, check};
use ahead::Ahead;
use gather::Cells;
use update::{Row, Stepping, Window};

/// Which instructions the pass over the state uses. All paths give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Path {
    /// None in particular but, where there is one, the fused multiply-add: every processor.
    Scalar,
    /// x86-64 with AVX2 and FMA: the scalar path's code, compiled for 8 elements at a time.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL, 16 elements at a time.
    Avx512,
}

impl Path {
    /// The paths this processor can run, the fastest last.
    #[must_use]
    pub fn available() -> Vec<Self> {
        [Self::Scalar, Self::Avx2, Self::Avx512]
            .into_iter()
            .filter(|path| path.is_available())
            .collect()
    }

    /// The fastest path this processor can run.
    #[must_use]
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Scalar)
    }

    /// Whether this processor can run it. Asked of the processor once, then remembered.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// `scalar`, `avx2` or `avx512`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is none of [`Path::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a path: scalar, avx2 and avx512 are")]
pub struct UnknownPath;

impl FromStr for Path {
    type Err = UnknownPath;

    fn from_str(name: &str) -> Result<Self, UnknownPath> {
        let all = [Self::Scalar, Self::Avx2, Self::Avx512];
        all.into_iter().find(|path| path.name() == name).ok_or(UnknownPath)
    }
}

/// Folds one band into `state`, in place: [`reference::fold`](crate::reference::fold), fast, in the
/// current rayon pool.
///
/// # Shapes
///
/// - `contributions`: at most 255, in ledger order, each with every block of the band.
/// - `state`: f32 `[rows, columns]`, row-major.
///
/// Scratch memory: 64 KiB a thread, whatever the band's size, and 32 bytes a row.
///
/// # Errors
///
/// [`KernelError::PathUnavailable`], else the error of the reference. `state` is unspecified then.
pub fn fold(
    path: Path,
    band: &Band,
    contributions: &[Contribution<'_>],
    step: Step,
    state: &mut [f32],
) -> Result<Findings, KernelError> {
    fold_from(path, band, contributions, step, None, state)
}

/// As [`fold`], out of place: `base` is the state before the step, `next` is made the state after
/// it, both `[rows, columns]`.
///
/// Best where `next` begins at a multiple of 64 bytes and is not read soon: whole cache lines are
/// then written past the caches.
///
/// # Errors
///
/// As [`fold`]; `next` is unspecified then.
pub fn fold_into(
    path: Path,
    band: &Band,
    contributions: &[Contribution<'_>],
    step: Step,
    base: &[f32],
    next: &mut [f32],
) -> Result<Findings, KernelError> {
    fold_from(path, band, contributions, step, Some(base), next)
}

fn fold_from(
    path: Path,
    band: &Band,
    contributions: &[Contribution<'_>],
    step: Step,
    base: Option<&[f32]>,
    next: &mut [f32],
) -> Result<Findings, KernelError> {
    if !path.is_available() {
        return Err(KernelError::PathUnavailable { path });
    }
    check::lengths(band, contributions)?;
    check::state(band, base.unwrap_or(next))?;
    check::state(band, next)?;
    let state = base.unwrap_or(next).as_ptr().addr();
    let small = update::quotients_are_small(step.divisor, contributions);
    let stepping = Stepping { step, small };
    let job = Job { path, band: flat_where_possible(band), contributions, stepping, state };
    let folded = job
        .pieces(base, next)
        .into_par_iter()
        .map_init(|| job.cells(), |cells, piece| job.fold_piece(cells, piece))
        .try_reduce(Findings::default, |a, b| Ok(a.merged(b)));
    folded.or_else(|Fault| {
        check::indices(band, contributions)?;
        unreachable!("a fault was noticed that the check does not find")
    })
}

/// An index out of range or sent twice; where, [`check::indices`] finds out.
struct Fault;

/// Elements of the blocks that go through together. Their cells, eight bytes each, are to stay in the
/// first cache: two blocks of 64 x 64 do not.
const GROUP_ELEMENTS: usize = BLOCK_LEN_MAX;
/// Elements that are stepped in the time that an entry takes to gather.
const STEPPED_AN_ENTRY: usize = 5;
/// Elements that are worth a task of their own.
const PIECE_ELEMENTS_MIN: usize = 16 * GROUP_ELEMENTS;

struct Job<'a> {
    path: Path,
    band: Band,
    contributions: &'a [Contribution<'a>],
    stepping: Stepping,
    /// The address of the state before the step.
    state: usize,
}

/// Neighbouring blocks of one row of blocks.
struct Piece<'s> {
    first_block: usize,
    /// Their first element, row-major in the band.
    origin: usize,
    /// The first element of the piece after this one.
    after: usize,
    /// Their part of each row of the state.
    rows: Vec<Row<'s>>,
}

impl Job<'_> {
    /// Blocks that go through together.
    fn group(&self) -> usize {
        (GROUP_ELEMENTS / self.band.block_len()).max(1)
    }

    fn cells(&self) -> Cells {
        Cells::new(self.group() * self.band.block_len())
    }

    /// Cuts the state: by rows of blocks, and these by columns if they are too few for the threads.
    fn pieces<'s>(&self, base: Option<&'s [f32]>, next: &'s mut [f32]) -> Vec<Piece<'s>> {
        let Band { columns, block_rows, block_columns, .. } = self.band;
        if next.is_empty() {
            return Vec::new();
        }
        let (strip_elements, across) = (block_rows * columns, columns / block_columns);
        let wanted = match rayon::current_num_threads() {
            1 => 1,
            // More pieces than threads, so that none waits long for the last.
            threads => (threads * 4).div_ceil(next.len() / strip_elements),
        };
        let blocks_min = PIECE_ELEMENTS_MIN.div_ceil(self.band.block_len());
        let blocks = across.div_ceil(wanted).max(blocks_min).next_multiple_of(self.group());
        let width = blocks * block_columns;
        let mut pieces = Vec::new();
        for (strip, elements) in next.chunks_mut(strip_elements).enumerate() {
            let cut = pieces.len();
            pieces.extend((0..across).step_by(blocks).map(|column| Piece {
                first_block: strip * across + column,
                origin: strip * strip_elements + column * block_columns,
                after: if column + blocks < across {
                    strip * strip_elements + (column + blocks) * block_columns
                } else {
                    (strip + 1) * strip_elements
                },
                rows: Vec::with_capacity(block_rows),
            }));
            for (r, row) in elements.chunks_mut(columns).enumerate() {
                let start = strip * strip_elements + r * columns;
                let mut from = base.map(|base| base[start..][..columns].chunks(width));
                for (piece, next) in pieces[cut..].iter_mut().zip(row.chunks_mut(width)) {
                    let base = from.as_mut().and_then(Iterator::next);
                    piece.rows.push(Row { base, next });
                }
            }
        }
        pieces
    }

    fn fold_piece(&self, cells: &mut Cells, mut piece: Piece<'_>) -> Result<Findings, Fault> {
        let width = self.band.block_columns;
        let columns = piece.rows[0].next.len();
        let mut findings = Findings::default();
        let group = self.group();
        for column in (0..columns).step_by(group * width) {
            let blocks = group.min((columns - column) / width);
            let end = column + blocks * width;
            let next = if end < columns { piece.origin + end } else { piece.after };
            let mut ahead = self.ahead(next, blocks);
            let (miners, elements) = (self.contributions.len(), blocks * self.band.block_len());
            let entries = miners * blocks * self.band.k;
            // By the time that each takes.
            ahead.spread((entries, entries + elements / STEPPED_AN_ENTRY), miners);
            let first = piece.first_block + column / width;
            cells.gather(&self.band, self.contributions, first..first + blocks, &mut ahead)?;
            ahead.spread((1, 1), piece.rows.len());
            let window = Window {
                rows: &mut piece.rows,
                column,
                width,
                blocks,
                origin: piece.origin + column,
                stride: self.band.columns,
            };
            findings =
                findings.merged(update::pass(self.path, self.stepping, cells, window, &mut ahead));
        }
        Ok(findings)
    }

    /// The group of blocks from element `origin` on, to be fetched while another is gathered.
    fn ahead(&self, origin: usize, blocks: usize) -> Ahead {
        let Band { rows, columns, block_rows, block_columns, .. } = self.band;
        let rows = block_rows.min((rows * columns - origin).div_ceil(columns));
        let row_bytes = 4 * blocks * block_columns;
        Ahead::new(self.state + 4 * origin, rows, row_bytes, 4 * columns)
    }
}

/// The same elements in the same blocks, as one row, where every block is a run of the state.
fn flat_where_possible(band: &Band) -> Band {
    if band.block_rows == 1 || band.columns == band.block_columns {
        Band {
            rows: 1,
            columns: band.elements(),
            block_rows: 1,
            block_columns: band.block_len(),
            ..*band
        }
    } else {
        *band
    }
}
