//! What the kernels refuse: the rule that was broken, where, and both values.

use crate::cpu::Path;

/// Which of a miner's three slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Packed 12-bit indices, bytes.
    Index,
    /// Packed codes, bytes.
    Code,
    /// What each code stands for, f32 values.
    Levels,
}

/// An input that a kernel refuses.
///
/// `miner` is a position in the slice of contributions, `block` a block of the band, row-major, `entry` one
/// of the k entries of a block. All count from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A band is cut into whole blocks and its elements can be counted in a usize.
    #[error(
        "a band of {rows} x {columns} elements cannot be cut into whole blocks of {block_rows} x {block_columns}"
    )]
    Blocks {
        /// Rows of the band.
        rows: usize,
        /// Columns of the band.
        columns: usize,
        /// Rows of a block.
        block_rows: usize,
        /// Columns of a block.
        block_columns: usize,
    },
    /// A block has 2 to 4,096 elements, so that 12 bits number them.
    #[error("a block of {block_rows} x {block_columns} elements is outside 2..=4096")]
    BlockLength {
        /// Rows of a block.
        block_rows: usize,
        /// Columns of a block.
        block_columns: usize,
    },
    /// A miner sends an even number of entries a block, from 2 to the whole block.
    #[error("k is {k}: not an even number from 2 to the {block_len} elements of a block")]
    Kept {
        /// Entries a block.
        k: usize,
        /// Elements a block.
        block_len: usize,
    },
    /// A code has 2, 4 or 8 bits.
    #[error("codes of {code_bits} bits: not 2, 4 or 8")]
    CodeBits {
        /// Bits a code.
        code_bits: u32,
    },
    /// A round has at most 255 contributions.
    #[error("{miners} contributions: more than 255")]
    Miners {
        /// How many were given.
        miners: usize,
    },
    /// A miner's slice has the length that the band asks for.
    #[error("miner {miner}: {stream:?} has length {found}, not {expected}")]
    Length {
        /// Whose.
        miner: usize,
        /// Which slice.
        stream: Stream,
        /// Its length by the band, in bytes or values.
        expected: usize,
        /// Its length.
        found: usize,
    },
    /// The state has one value an element of the band.
    #[error("the state has {found} values, the band {expected} elements")]
    StateLength {
        /// Elements of the band.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// An index numbers an element of its block.
    #[error(
        "miner {miner}, block {block}, entry {entry}: index {index} in a block of {block_len} elements"
    )]
    IndexOutOfRange {
        /// Whose.
        miner: usize,
        /// Which block.
        block: u64,
        /// Which of its k entries.
        entry: usize,
        /// What it says.
        index: u16,
        /// Elements a block.
        block_len: usize,
    },
    /// An index stands once in a block, so that a miner adds to an element once.
    #[error("miner {miner}, block {block}: index {index} stands at {first} and again at {entry}")]
    Repeated {
        /// Whose.
        miner: usize,
        /// Which block.
        block: u64,
        /// What stands there twice.
        index: u16,
        /// The entry where it stood first.
        first: usize,
        /// The entry where it stands again.
        entry: usize,
    },
    /// A path runs only where the processor has its instructions.
    #[error("this processor cannot run the path {path}")]
    PathUnavailable {
        /// Which.
        path: Path,
    },
    /// A code is below the number of bins.
    #[error("code {code} at {position} does not fit {code_bits} bits")]
    CodeOutOfRange {
        /// Where in the slice.
        position: usize,
        /// What it says.
        code: u8,
        /// Bits a code.
        code_bits: u32,
    },
    /// An index fits 12 bits.
    #[error("index {index} at {position} does not fit 12 bits")]
    IndexTooWide {
        /// Where in the slice.
        position: usize,
        /// What it says.
        index: u16,
    },
    /// The bits after a block's last code are zero.
    #[error(
        "block {block}: the last byte of its codes is {byte:#04x}, padded with other bits than zero"
    )]
    Padding {
        /// Which block.
        block: u64,
        /// Its last byte.
        byte: u8,
    },
}
