//! A band: the run of blocks that a fold works on, what miners sent for it, and how to step.

use crate::KernelError;

/// The largest block, in elements: what 12 bits can number.
pub const BLOCK_LEN_MAX: usize = 4096;
/// The most contributions of a round: what a count of eight bits holds.
pub const MINERS_MAX: usize = 255;

/// A run of whole blocks of one tensor: `rows` x `columns`, row-major, cut in blocks of
/// `block_rows` x `block_columns`, each block with `k` entries a miner, each entry a 12-bit index
/// and a code of `code_bits` bits.
///
/// A 1-D tensor has `rows` 1 and `block_rows` 1. Blocks are counted row-major; an index counts the
/// elements of its block row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    /// Rows, a multiple of `block_rows`.
    pub rows: usize,
    /// Columns, a multiple of `block_columns`.
    pub columns: usize,
    /// Rows of a block.
    pub block_rows: usize,
    /// Columns of a block.
    pub block_columns: usize,
    /// Entries a block, even.
    pub k: usize,
    /// Bits a code: 2, 4 or 8.
    pub code_bits: u32,
}

impl Band {
    /// Elements of the band.
    #[must_use]
    pub const fn elements(&self) -> usize {
        self.rows * self.columns
    }

    /// Elements of a block.
    #[must_use]
    pub const fn block_len(&self) -> usize {
        self.block_rows * self.block_columns
    }

    /// Blocks of the band.
    #[must_use]
    pub const fn blocks(&self) -> usize {
        (self.rows / self.block_rows) * (self.columns / self.block_columns)
    }

    /// Bytes of a miner's indices a block: two indices in three bytes.
    #[must_use]
    pub const fn index_bytes_per_block(&self) -> usize {
        self.k * 3 / 2
    }

    /// Bytes of a miner's codes a block, the last one padded.
    #[must_use]
    pub const fn code_bytes_per_block(&self) -> usize {
        (self.k * self.code_bits as usize).div_ceil(8)
    }

    /// How many codes there are, and so the length of [`Contribution::levels`].
    #[must_use]
    pub const fn bins(&self) -> usize {
        1 << self.code_bits
    }

    /// Element of the band, row-major, that index `index` of block `block` names.
    ///
    /// `index` must be below [`Band::block_len`] for the answer to mean anything.
    #[must_use]
    pub const fn element(&self, block: usize, index: usize) -> usize {
        let across = self.columns / self.block_columns;
        let row = block / across * self.block_rows + index / self.block_columns;
        let column = block % across * self.block_columns + index % self.block_columns;
        row * self.columns + column
    }

    /// Whether the numbers make a band. The methods above mean something only where they do.
    ///
    /// # Errors
    ///
    /// [`KernelError::BlockLength`], [`KernelError::Blocks`], [`KernelError::Kept`] or
    /// [`KernelError::CodeBits`], the first that applies. A band without elements is one.
    pub fn validate(&self) -> Result<(), KernelError> {
        let Self { rows, columns, block_rows, block_columns, k, code_bits } = *self;
        let block_len = block_rows.saturating_mul(block_columns);
        if !(2..=BLOCK_LEN_MAX).contains(&block_len) {
            return Err(KernelError::BlockLength { block_rows, block_columns });
        }
        let whole = rows.is_multiple_of(block_rows) && columns.is_multiple_of(block_columns);
        // A miner sends at most two bytes an element, so with the elements its bytes can be counted
        // too.
        let countable = rows.checked_mul(columns).is_some_and(|n| n <= isize::MAX as usize / 4);
        if !whole || !countable {
            return Err(KernelError::Blocks { rows, columns, block_rows, block_columns });
        }
        if !(2..=block_len).contains(&k) || k % 2 != 0 {
            return Err(KernelError::Kept { k, block_len });
        }
        if !matches!(code_bits, 2 | 4 | 8) {
            return Err(KernelError::CodeBits { code_bits });
        }
        Ok(())
    }
}

/// What one miner sent for a band.
#[derive(Clone, Copy, Debug)]
pub struct Contribution<'a> {
    /// Packed indices, [`Band::index_bytes_per_block`] a block: two in three bytes, `b0 = a & 255`,
    /// `b1 = a >> 8 | (b & 15) << 4`, `b2 = b >> 4`.
    pub index: &'a [u8],
    /// Packed codes, [`Band::code_bytes_per_block`] a block, least significant bits first. Padding
    /// is not read.
    pub code: &'a [u8],
    /// What each code adds, [`Band::bins`] values: `(lookup[code] + shift) * factor`, see
    /// [`levels`](crate::levels::levels). Any bits will do, NaN and infinities too.
    pub levels: &'a [f32],
}

/// What the sum of an element is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divisor {
    /// The number of miners that sent this element.
    Contributors,
    /// This number, whoever sent it.
    All(u32),
}

impl Divisor {
    /// As f32, for an element that `count` miners sent.
    #[inline]
    #[must_use]
    pub fn of(self, count: u32) -> f32 {
        match self {
            Self::Contributors => count as f32,
            Self::All(miners) => miners as f32,
        }
    }
}

/// The outer step: `p = fma(-lr, delta, p)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Learning rate.
    pub lr: f32,
    /// What makes a sum a mean.
    pub divisor: Divisor,
}

/// What a fold met, elements counted row-major within the band; only elements that somebody sent
/// count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The lowest element whose aggregated delta is NaN or infinite.
    pub delta_non_finite: Option<u64>,
    /// The lowest element whose updated value is NaN or infinite.
    pub next_non_finite: Option<u64>,
}

impl Findings {
    /// Takes note of one element that somebody sent.
    #[inline]
    pub(crate) fn note(&mut self, element: u64, delta: f32, next: f32) {
        if !delta.is_finite() {
            self.delta_non_finite = lowest(self.delta_non_finite, Some(element));
        }
        if !next.is_finite() {
            self.next_non_finite = lowest(self.next_non_finite, Some(element));
        }
    }

    /// What both met.
    #[must_use]
    pub fn merged(self, other: Self) -> Self {
        Self {
            delta_non_finite: lowest(self.delta_non_finite, other.delta_non_finite),
            next_non_finite: lowest(self.next_non_finite, other.next_non_finite),
        }
    }
}

fn lowest(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    // Not the order of Option, in which None comes first.
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
