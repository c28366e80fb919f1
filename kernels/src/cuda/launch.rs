//! What each CUDA kernel takes, and how many thread blocks it wants.
//!
//! No word of CUDA: the card and the tests' shim on the processor are given the same. Addresses are the
//! device's; the layouts are those at the top of `cuda/*.cu`.

use crate::band::{Band, Divisor, Step};

/// No element, no block; what `found` is set to before a fold.
pub const NONE: u64 = u64::MAX;

/// Bytes of a digest.
const DIGEST_BYTES: u64 = 32;

/// A kernel's one argument, and the number of thread blocks that cover its work.
#[derive(Clone, Copy, Debug)]
pub struct Launch<A> {
    /// Passed by value.
    pub arguments: A,
    /// Thread blocks; none if there is nothing to do.
    pub blocks: u32,
}

/// Where a round's rows for a band lie, and where what comes of them goes.
#[derive(Clone, Copy, Debug)]
pub struct FoldAddresses {
    /// The state, f32 `[rows, columns]`, 16-aligned.
    pub state: u64,
    /// Packed indices, miner after miner.
    pub index: u64,
    /// Packed codes, miner after miner.
    pub code: u64,
    /// What each code adds, f32 `[miners, bins]`.
    pub level: u64,
    /// Three u64, [`NONE`] at first: the lowest element with a delta, and with a value, that is not
    /// finite; the lowest block with a fault.
    pub found: u64,
}

/// `struct Fold` of `fold.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FoldArguments {
    state: u64,
    index: u64,
    code: u64,
    level: u64,
    found: u64,
    columns: u64,
    blocks: u32,
    across: u32,
    block_rows: u32,
    block_columns: u32,
    k: u32,
    code_bits: u32,
    miners: u32,
    divisor: f32,
    contributors: u32,
    rate: f32,
    store: u32,
    unused: u32,
}

/// Folds a band that is valid, as [`Band::validate`] says, of at most 255 miners. Without `store` it is
/// only looked for what is not finite.
///
/// # Panics
///
/// If the band has more blocks than a grid, 2^31 - 1, or if `state` is not aligned.
#[must_use]
pub fn fold(
    band: &Band,
    miners: usize,
    step: Step,
    store: bool,
    at: FoldAddresses,
) -> Launch<FoldArguments> {
    assert!(at.state.is_multiple_of(16), "four elements are read at once");
    let (divisor, contributors) = match step.divisor {
        Divisor::Contributors => (0.0, 1),
        Divisor::All(_) => (step.divisor.of(0), 0),
    };
    let arguments = FoldArguments {
        state: at.state,
        index: at.index,
        code: at.code,
        level: at.level,
        found: at.found,
        columns: band.columns as u64,
        blocks: in_a_grid(band.blocks() as u64),
        across: in_a_grid((band.columns / band.block_columns) as u64),
        block_rows: in_a_grid(band.block_rows as u64),
        block_columns: in_a_grid(band.block_columns as u64),
        k: in_a_grid(band.k as u64),
        code_bits: band.code_bits,
        miners: in_a_grid(miners as u64),
        divisor,
        contributors,
        rate: -step.lr,
        store: u32::from(store),
        unused: 0,
    };
    Launch { arguments, blocks: arguments.blocks }
}

/// `struct Pieces` of `sha256.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PiecesArguments {
    bytes: u64,
    length: u64,
    piece_bytes: u64,
    digests: u64,
}

/// Hashes each piece of `length` bytes at `bytes`, the last one maybe shorter, to 32 bytes at `digests`.
///
/// # Panics
///
/// If `bytes` or `piece_bytes` is no multiple of 4, or if there are more thread blocks than in a grid.
#[must_use]
pub fn hash_pieces(
    bytes: u64,
    length: u64,
    piece_bytes: u64,
    digests: u64,
    threads: u32,
) -> Launch<PiecesArguments> {
    assert!(bytes.is_multiple_of(4) && piece_bytes.is_multiple_of(4), "words are read whole");
    let arguments = PiecesArguments { bytes, length, piece_bytes, digests };
    Launch { arguments, blocks: covering(length.div_ceil(piece_bytes), threads) }
}

/// `struct Tree` of `sha256.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TreeArguments {
    digests: u64,
    starts: u64,
    nodes: u64,
    above: u64,
    roots: u64,
}

/// The RFC 6962 roots of `artifacts` lists of digests that lie one after the other at `digests`, list
/// `i` from digest `starts[i]` to `starts[i + 1]` (u64); none is empty.
///
/// `scratch` has room for twice all digests, `all` of them.
#[must_use]
pub fn tree(
    digests: u64,
    starts: u64,
    artifacts: u32,
    scratch: u64,
    all: u64,
    roots: u64,
) -> Launch<TreeArguments> {
    let above = scratch + all * DIGEST_BYTES;
    let arguments = TreeArguments { digests, starts, nodes: scratch, above, roots };
    Launch { arguments, blocks: artifacts }
}

/// `struct Rounding` of `bf16.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RoundingArguments {
    values: u64,
    out: u64,
    count: u64,
}

/// Rounds `count` f32 at `values` to bf16 at `out`.
///
/// # Panics
///
/// If there are more thread blocks than in a grid.
#[must_use]
pub fn to_bf16(values: u64, out: u64, count: u64, threads: u32) -> Launch<RoundingArguments> {
    let arguments = RoundingArguments { values, out, count };
    Launch { arguments, blocks: covering(count, threads) }
}

/// Thread blocks for one thread an item.
fn covering(items: u64, threads: u32) -> u32 {
    in_a_grid(items.div_ceil(u64::from(threads)))
}

fn in_a_grid(n: u64) -> u32 {
    assert!(n <= i32::MAX as u64, "a grid has at most 2^31 - 1 blocks");
    n as u32
}

// As the static assertions in the sources.
const _: () = assert!(size_of::<FoldArguments>() == 96);
const _: () = assert!(size_of::<PiecesArguments>() == 32);
const _: () = assert!(size_of::<TreeArguments>() == 40);
const _: () = assert!(size_of::<RoundingArguments>() == 24);
