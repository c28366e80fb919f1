//! How a tensor is cut into blocks, the unit of top-k. See `schema/fold.md`.

use super::tensor::TensorSpec;

/// Fewest and most elements of a block; 12-bit indices set the upper end.
pub const BLOCK_ELEMENTS: std::ops::RangeInclusive<u64> = 2..=4096;

/// Longest run of `block_rows` whole rows in bytes: a fold holds a few of them in memory.
pub const BLOCK_ROW_BYTES_MAX: u64 = 128 << 20;

/// Why a rule cannot take a tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum Unblockable {
    #[error("it is {found}, not one of F32, F16 and BF16")]
    NotFloat { found: &'static str },
    #[error("it has no elements")]
    Empty,
    #[error("it has rank {rank}, not 1 or 2")]
    Rank { rank: usize },
    #[error("its blocks hold {elements} elements, not 2 to 4096")]
    Block { elements: u64 },
    #[error("a row of its blocks takes {bytes} bytes, more than {BLOCK_ROW_BYTES_MAX}")]
    Wide { bytes: u64 },
}

/// A tensor cut into equal blocks: per dimension the largest divisor not above the target.
///
/// Blocks are counted row-major over the grid, elements row-major within a block. A 1-D tensor is
/// one row, cut in blocks of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Rows of the tensor; 1 for a 1-D one.
    pub rows: u64,
    /// Columns of the tensor.
    pub columns: u64,
    /// Rows of a block.
    pub block_rows: u64,
    /// Columns of a block.
    pub block_columns: u64,
}

impl Grid {
    /// The grid of `spec` for a target of `chunk` elements a side.
    ///
    /// # Errors
    ///
    /// [`Unblockable`] names the first reason why the rule cannot take this tensor.
    ///
    /// # Source
    ///
    /// Templar 2.1.28, `ChunkingTransformer`: largest divisor of the dimension that is <= chunk.
    pub fn of(spec: &TensorSpec, chunk: u64) -> Result<Self, Unblockable> {
        if !spec.dtype().widens_to_f32() {
            return Err(Unblockable::NotFloat { found: spec.dtype().name() });
        }
        let (rows, columns) = match *spec.shape() {
            [columns] => (1, columns),
            [rows, columns] => (rows, columns),
            _ => return Err(Unblockable::Rank { rank: spec.shape().len() }),
        };
        if rows == 0 || columns == 0 {
            return Err(Unblockable::Empty);
        }
        let block_rows = largest_divisor(rows, chunk);
        let block_columns = largest_divisor(columns, chunk);
        let elements = block_rows * block_columns;
        if !BLOCK_ELEMENTS.contains(&elements) {
            return Err(Unblockable::Block { elements });
        }
        // A 1-D tensor is cut between any two blocks, so only rows of blocks can be too wide.
        let bytes = if rows == 1 { elements * 4 } else { block_rows * columns * 4 };
        if bytes > BLOCK_ROW_BYTES_MAX {
            return Err(Unblockable::Wide { bytes });
        }
        Ok(Self { rows, columns, block_rows, block_columns })
    }

    /// Elements of a block, 2 to 4,096.
    pub fn block_elements(&self) -> u64 {
        self.block_rows * self.block_columns
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        (self.rows / self.block_rows) * (self.columns / self.block_columns)
    }

    /// The fewest blocks whose elements lie together: a row of blocks, or one block of a 1-D tensor.
    pub fn unit_blocks(&self) -> u64 {
        if self.rows == 1 { 1 } else { self.columns / self.block_columns }
    }

    /// Entries kept of each block: the smaller of `top_k` and the block, rounded down to even.
    pub fn k(&self, top_k: u64) -> u64 {
        top_k.min(self.block_elements()) & !1
    }
}

/// The largest divisor of `n` that is at most `target` (both at least 1).
fn largest_divisor(n: u64, target: u64) -> u64 {
    (1..=target.min(n)).rev().find(|d| n.is_multiple_of(*d)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::tensor::Dtype;

    fn grid(shape: &[u64], chunk: u64) -> Result<Grid, Unblockable> {
        Grid::of(&TensorSpec::new("t", Dtype::F32, shape).unwrap(), chunk)
    }

    #[test]
    fn blocks_are_the_largest_divisors_not_above_the_target() {
        let g = grid(&[24, 16], 8).unwrap();
        assert_eq!((g.block_rows, g.block_columns, g.blocks()), (8, 8, 6));
        // 13 is prime: at a target of 8 only 1 divides it.
        let g = grid(&[13, 16], 8).unwrap();
        assert_eq!((g.block_rows, g.block_columns, g.blocks()), (1, 8, 26));
        let g = grid(&[5], 8).unwrap();
        assert_eq!((g.block_elements(), g.k(4), g.k(64)), (5, 4, 4));
    }

    #[test]
    fn what_the_rule_cannot_take_is_named() {
        assert!(matches!(grid(&[], 8), Err(Unblockable::Rank { rank: 0 })));
        assert!(matches!(grid(&[2, 2, 2], 8), Err(Unblockable::Rank { rank: 3 })));
        assert!(matches!(grid(&[4, 0], 8), Err(Unblockable::Empty)));
        assert!(matches!(grid(&[1], 8), Err(Unblockable::Block { elements: 1 })));
        assert!(matches!(grid(&[13, 17], 8), Err(Unblockable::Block { elements: 1 })));
        assert!(matches!(grid(&[64, 1 << 20], 64), Err(Unblockable::Wide { .. })));
        let spec = TensorSpec::new("t", Dtype::I64, &[64]).unwrap();
        assert!(matches!(Grid::of(&spec, 8), Err(Unblockable::NotFloat { found: "I64" })));
    }
}
