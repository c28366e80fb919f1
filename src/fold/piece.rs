//! The fold of one piece: 64 KiB of the next state from the same 64 KiB of the base, and of each
//! delta no more than the rows of the blocks that the piece lies in.
//!
//! An audit of some pieces and the judge of a dispute use it. The arithmetic is the kernel's: the
//! blocks around the piece are folded over zeros and thrown away, since the fold is element-wise.

use gradledger_kernels::{
    Band, Contribution, Findings, KernelError, Step, bytes as f32_bytes, cpu,
};

use super::small;
use crate::{
    codec::layout::TensorLayout,
    types::{grid::Grid, manifest::PIECE_BYTES},
};

/// Elements of a whole piece.
const PIECE_ELEMENTS: u64 = PIECE_BYTES / 4;

/// Neighbouring blocks of one row of blocks that a piece lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first of them, row-major over the tensor.
    pub first_block: u64,
    /// How many.
    pub blocks: u64,
}

/// The blocks that piece `piece` of a tensor lies in; nothing where there is no such piece.
pub fn runs(grid: &Grid, piece: u64) -> Vec<Run> {
    let Some((first, end)) = elements(grid, piece) else { return Vec::new() };
    let (columns, height) = (grid.columns, grid.block_rows);
    let mut runs = Vec::new();
    for block_row in first / columns / height..=(end - 1) / columns / height {
        let from = first.max(block_row * height * columns);
        let to = end.min((block_row + 1) * height * columns);
        let (left, right) = (from % columns, (to - 1) % columns + 1);
        let mut run = |left: u64, right: u64| {
            let (start, stop) = (left / grid.block_columns, right.div_ceil(grid.block_columns));
            let first_block = block_row * (columns / grid.block_columns) + start;
            runs.push(Run { first_block, blocks: stop - start });
        };
        match (to - 1) / columns - from / columns {
            0 => run(left, right),
            // The end of one row and the start of the next, which may have no block in common.
            1 if right.div_ceil(grid.block_columns) <= left / grid.block_columns => {
                run(0, right);
                run(left, columns);
            }
            _ => run(0, columns),
        }
    }
    runs
}

/// The rows of blocks that piece `piece` of a tensor lies in, whole; of a tensor of one row its blocks.
///
/// More than [`runs`] gives, and one run of neighbours: what a dispute is fought over is told in two
/// lines, so that others can write it again.
pub fn whole_rows(grid: &Grid, piece: u64) -> Vec<Run> {
    let Some((first, end)) = elements(grid, piece) else { return Vec::new() };
    let blocks = grid.unit_blocks();
    let unit = blocks * grid.block_elements();
    let units = first / unit..=(end - 1) / unit;
    if grid.rows == 1 {
        let (start, stop) = (*units.start(), *units.end() + 1);
        return vec![Run { first_block: start, blocks: stop - start }];
    }
    units.map(|row| Run { first_block: row * blocks, blocks }).collect()
}

/// First element of a piece, and the one after its last.
fn elements(grid: &Grid, piece: u64) -> Option<(u64, u64)> {
    let all = grid.rows.checked_mul(grid.columns)?;
    let first = piece.checked_mul(PIECE_ELEMENTS).filter(|&first| first < all)?;
    Some((first, all.min(first + PIECE_ELEMENTS)))
}

/// One miner's rows of a run: positions and codes of its blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunRows {
    /// Packed positions.
    pub index: Vec<u8>,
    /// Packed codes.
    pub code: Vec<u8>,
}

/// Folds piece `piece` in place; `rows` are per run, which are those of [`runs`] or
/// [`whole_rows`], per miner in ledger order.
///
/// `levels` are per miner what each code adds. The findings number the tensor's elements, those of
/// the delta also around the piece, within its blocks.
///
/// # Errors
///
/// [`KernelError`] if rows break the codec's rules.
///
/// # Panics
///
/// If `state` is not of the piece's length, or there is no such piece.
pub fn fold_piece(
    tensor: &TensorLayout,
    piece: u64,
    state: &mut [u8],
    (runs, rows): (&[Run], &[Vec<RunRows>]),
    levels: &[Vec<f32>],
    (step, path): (Step, cpu::Path),
) -> Result<Findings, KernelError> {
    let grid = &tensor.grid;
    let (first, end) = elements(grid, piece).expect("the caller knows the tensor's pieces");
    assert_eq!(state.len() as u64, 4 * (end - first), "the state is one piece");
    let mut findings = Findings::default();
    if levels.is_empty() {
        return Ok(findings);
    }
    for (run, rows) in runs.iter().zip(rows) {
        let window = Window::new(grid, *run, first, end);
        let mut around = vec![0f32; small(grid.block_rows * window.columns)];
        window.each(|here, there, count| {
            let bytes = &state[4 * here..4 * (here + count)];
            f32_bytes::of_f32_mut(&mut around[there..there + count]).copy_from_slice(bytes);
        });
        let band = Band {
            rows: small(grid.block_rows),
            columns: small(window.columns),
            block_rows: small(grid.block_rows),
            block_columns: small(grid.block_columns),
            k: small(tensor.k),
            code_bits: tensor.code_bits,
        };
        let contributions: Vec<_> = rows
            .iter()
            .zip(levels)
            .map(|(rows, levels)| Contribution { index: &rows.index, code: &rows.code, levels })
            .collect();
        let found = cpu::fold(path, &band, &contributions, step, &mut around)?;
        window.each(|here, there, count| {
            let bytes = f32_bytes::of_f32(&around[there..there + count]);
            state[4 * here..4 * (here + count)].copy_from_slice(bytes);
        });
        let moved = |at: Option<u64>| at.map(|at| window.element(grid, at));
        findings = findings.merged(Findings {
            delta_non_finite: moved(found.delta_non_finite),
            // Around the piece the base is not the real one.
            next_non_finite: moved(found.next_non_finite).filter(|at| (first..end).contains(at)),
        });
    }
    Ok(findings)
}

/// Where a run's rectangle and a piece overlap.
struct Window {
    /// First row and column of the rectangle, and its width.
    row: u64,
    column: u64,
    columns: u64,
    rows: u64,
    tensor_columns: u64,
    first: u64,
    end: u64,
}

impl Window {
    fn new(grid: &Grid, run: Run, first: u64, end: u64) -> Self {
        let across = grid.columns / grid.block_columns;
        Self {
            row: run.first_block / across * grid.block_rows,
            column: run.first_block % across * grid.block_columns,
            columns: run.blocks * grid.block_columns,
            rows: grid.block_rows,
            tensor_columns: grid.columns,
            first,
            end,
        }
    }

    /// The overlap row by row: place in the piece, place in the rectangle, number of elements.
    fn each(&self, mut take: impl FnMut(usize, usize, usize)) {
        for row in 0..self.rows {
            let start = (self.row + row) * self.tensor_columns + self.column;
            let (from, to) = (start.max(self.first), (start + self.columns).min(self.end));
            if from < to {
                let there = row * self.columns + (from - start);
                take(small(from - self.first), small(there), small(to - from));
            }
        }
    }

    /// The tensor's element that is element `at` of the rectangle.
    fn element(&self, grid: &Grid, at: u64) -> u64 {
        let (row, column) = (at / self.columns, at % self.columns);
        (self.row + row) * grid.columns + self.column + column
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(rows: u64, columns: u64, block_rows: u64, block_columns: u64) -> Grid {
        Grid { rows, columns, block_rows, block_columns }
    }

    fn run(first_block: u64, blocks: u64) -> Run {
        Run { first_block, blocks }
    }

    #[test]
    fn a_piece_lies_in_these_blocks() {
        // Two rows of 8192: one row of blocks, all of it.
        assert_eq!(runs(&grid(128, 8192, 64, 64), 0), [run(0, 128)]);
        assert_eq!(runs(&grid(128, 8192, 64, 64), 32), [run(128, 128)]);
        assert_eq!(runs(&grid(128, 8192, 64, 64), 64), []);
        // 256 rows of 64: four rows of blocks.
        let four: Vec<_> = (0..4).map(|row| run(row, 1)).collect();
        assert_eq!(runs(&grid(512, 64, 64, 64), 0), four);
        // Part of a row, and the end of one with the start of the next.
        assert_eq!(runs(&grid(64, 28_672, 64, 64), 0), [run(0, 256)]);
        assert_eq!(runs(&grid(64, 28_672, 64, 64), 1), [run(0, 64), run(256, 192)]);
        // A 1-D tensor, its last piece short.
        assert_eq!(runs(&grid(1, 20_000, 1, 50), 1), [run(327, 73)]);
        // Whole rows of blocks; of one row, its blocks.
        assert_eq!(whole_rows(&grid(128, 28_672, 64, 64), 1), [run(0, 448)]);
        assert_eq!(whole_rows(&grid(512, 64, 64, 64), 0), four);
        assert_eq!(whole_rows(&grid(1, 20_000, 1, 50), 1), [run(327, 73)]);
    }
}
