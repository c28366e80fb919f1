//! How a tensor is cut in bands: whole rows of blocks, where possible whole pieces as well.

use gradledger_kernels::{Band, sha256::TASK_PIECES};

use super::{RowBytes, small};
use crate::{codec::layout::TensorLayout, types::manifest::PIECE_BYTES};

/// Rows of blocks that are folded at once: some of a tensor's `units`.
///
/// A unit is the least that can be folded alone: a row of blocks, or one block of a 1-D tensor.
#[derive(Clone, Copy)]
pub(super) struct Cut<'a> {
    tensor: &'a TensorLayout,
    pub(super) unit_elements: u64,
    pub(super) unit_blocks: u64,
    /// State and rows.
    unit_bytes: u64,
    units_per_band: u64,
}

impl<'a> Cut<'a> {
    /// Bands of about `band_bytes` of state and rows of so many contributions, or one unit if that is
    /// larger.
    pub(super) fn new(tensor: &'a TensorLayout, contributions: u64, band_bytes: u64) -> Self {
        let grid = tensor.grid;
        let unit_blocks = grid.unit_blocks();
        let unit_elements = unit_blocks * grid.block_elements();
        let rows = tensor.index_bytes_per_block() + tensor.code_bytes_per_block();
        let unit_bytes = 4 * unit_elements + contributions * unit_blocks * rows;
        let fitting = (band_bytes / unit_bytes).max(1);
        // As many pieces as are hashed at once, else whole pieces, else what there is.
        let whole = [PIECE_BYTES * TASK_PIECES as u64, PIECE_BYTES]
            .map(|of| units_between(4 * unit_elements, of))
            .into_iter()
            .find(|&units| units <= fitting);
        let units_per_band = whole.map_or(fitting, |units| fitting / units * units);
        Self { tensor, unit_elements, unit_blocks, unit_bytes, units_per_band }
    }

    fn units(&self) -> u64 {
        self.tensor.grid.blocks() / self.unit_blocks
    }

    /// Bytes of state and rows of a band.
    pub(super) fn band_bytes(&self) -> u64 {
        self.units_per_band.min(self.units()) * self.unit_bytes
    }

    /// Bytes of a miner's rows of `units` units.
    pub(super) fn row_bytes(&self, units: u64) -> RowBytes {
        let blocks = units * self.unit_blocks;
        RowBytes {
            index: small(blocks * self.tensor.index_bytes_per_block()),
            code: small(blocks * self.tensor.code_bytes_per_block()),
        }
    }

    /// First unit and number of units of each band, and whether it is the last.
    pub(super) fn bands(&self) -> impl Iterator<Item = (u64, u64, bool)> + use<> {
        let (all, step) = (self.units(), self.units_per_band);
        (0..all.div_ceil(step)).map(move |band| {
            let first = band * step;
            let units = step.min(all - first);
            (first, units, first + units == all)
        })
    }

    /// The kernel's view of `units` units.
    pub(super) fn band(&self, units: u64) -> Band {
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

/// After how many units of `unit_bytes` a multiple of `bytes`, a power of two, ends with a unit.
fn units_between(unit_bytes: u64, bytes: u64) -> u64 {
    (bytes >> unit_bytes.trailing_zeros().min(63)).max(1)
}

#[cfg(test)]
mod tests {
    use super::units_between;

    #[test]
    fn units_end_with_a_piece_after_so_many() {
        assert_eq!(units_between(1 << 21, 1 << 20), 1);
        assert_eq!(units_between(1 << 18, 1 << 20), 4);
        assert_eq!(units_between(3 << 15, 1 << 16), 2);
        assert_eq!(units_between(3 * 4, 1 << 16), 1 << 14);
    }
}
