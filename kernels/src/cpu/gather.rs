//! Gathering: what all miners sent for a few blocks, added up in a scratch that stays in the first
//! cache.
//!
//! Nothing here branches on what was sent: indices are as good as random, and no predictor gets them
//! right.

use std::ops::{Deref, DerefMut, Range};

use super::{
    Fault,
    ahead::{Ahead, LINE, fetch},
    cell::{Adder, Cell},
};
use crate::band::{BLOCK_LEN_MAX, Band, Contribution};
use crate::codes::unpack_pair;

/// The cells of a group of blocks, one block after the other.
///
/// All zero between two groups. They are longer than the group by a largest block, so that whatever
/// 12 bits say lies within: an index out of range spoils a sum, and the fold fails, but it reaches
/// no other memory.
pub(super) struct Cells(Lines<Cell>);

impl Cells {
    /// For groups of up to `elements`.
    pub(super) fn new(elements: usize) -> Self {
        Self(Lines::new(elements + BLOCK_LEN_MAX))
    }

    /// `length` from the `at`th on.
    pub(super) fn run(&mut self, at: usize, length: usize) -> &mut [Cell] {
        &mut self.0[at..][..length]
    }

    /// Adds up what every miner sent for some blocks, miners in order. What follows is fetched
    /// meanwhile.
    pub(super) fn gather(
        &mut self,
        band: &Band,
        contributions: &[Contribution<'_>],
        Range { start: first, end: next }: Range<usize>,
        ahead: &mut Ahead,
    ) -> Result<(), Fault> {
        let (index_bytes, code_bytes) = (band.index_bytes_per_block(), band.code_bytes_per_block());
        let blocks = next - first;
        let mut clean = true;
        for (miner, sent) in contributions.iter().enumerate() {
            // Beyond the end there is no harm in it.
            fetch(sent.index.as_ptr().addr() + next * index_bytes, blocks * index_bytes);
            fetch(sent.code.as_ptr().addr() + next * code_bytes, blocks * code_bytes);
            for block in 0..blocks {
                let at = block * band.block_len();
                let entries = Entries {
                    index: &sent.index[(first + block) * index_bytes..][..index_bytes],
                    code: &sent.code[(first + block) * code_bytes..][..code_bytes],
                    miner,
                    block_len: band.block_len(),
                };
                // Room for any 12-bit index.
                let cells = self.0[at..].first_chunk_mut();
                let cells = cells.expect("they are longer than the group by a largest block");
                clean &= match band.code_bits {
                    2 => entries.add::<2, 4>(of_bins(sent.levels), cells),
                    4 => entries.add::<4, 16>(of_bins(sent.levels), cells),
                    _ => entries.add::<8, 256>(of_bins(sent.levels), cells),
                };
            }
            ahead.step();
        }
        if clean { Ok(()) } else { Err(Fault) }
    }
}

/// A scratch that begins with a line of the caches, so that no vector of a block lies in two.
struct Lines<T> {
    data: Vec<T>,
    start: usize,
}

impl<T: Copy + Default> Lines<T> {
    fn new(length: usize) -> Self {
        let data = vec![T::default(); length + LINE / size_of::<T>()];
        let start = data.as_ptr().align_offset(LINE);
        Self { data, start }
    }
}

impl<T> Deref for Lines<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.data[self.start..]
    }
}

impl<T> DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[self.start..]
    }
}

fn of_bins<const BINS: usize>(levels: &[f32]) -> &[f32; BINS] {
    levels.first_chunk().expect("the lengths were checked")
}

/// One miner's entries of one block.
struct Entries<'a> {
    index: &'a [u8],
    code: &'a [u8],
    miner: usize,
    block_len: usize,
}

impl Entries<'_> {
    /// Adds each entry's level; says whether all indices were below the block's length and
    /// distinct.
    // A function of its own, which leaves the loop all registers.
    #[inline(never)]
    fn add<const BITS: usize, const BINS: usize>(
        &self,
        levels: &[f32; BINS],
        cells: &mut [Cell; BLOCK_LEN_MAX],
    ) -> bool {
        let mut adder = Adder::new(self.miner);
        self.each::<BITS>(|index, code| adder.add(&mut cells[index], &levels[code & (BINS - 1)]));
        adder.distinct() && self.in_range::<BITS>()
    }

    fn in_range<const BITS: usize>(&self) -> bool {
        let mut highest = 0;
        if self.block_len < BLOCK_LEN_MAX {
            self.each::<BITS>(|index, _| highest = highest.max(index));
        }
        highest < self.block_len
    }

    /// Calls `visit` with each index, below [`BLOCK_LEN_MAX`], and its code, above which there may
    /// be other bits.
    #[inline(always)]
    fn each<const BITS: usize>(&self, mut visit: impl FnMut(usize, usize)) {
        // No effect but to show the compiler that it is below.
        let mut visit = |index: u64, code: u64| visit(index as usize & 0xfff, code as usize);
        // Eight entries at a time: twelve bytes of indices, a byte of codes for each of their bits.
        let (twelves, index_rest) = self.index.as_chunks::<12>();
        let (codes, code_rest) = self.code.split_at(twelves.len() * BITS);
        for (twelve, codes) in twelves.iter().zip(codes.chunks_exact(BITS)) {
            let codes = little_endian(codes);
            let fours = [little_endian(&twelve[..8]), little_endian(&twelve[4..]) >> 16];
            for entry in 0..8 {
                visit(fours[entry / 4] >> (entry % 4 * 12), codes >> (entry * BITS));
            }
        }
        for (pair, &three) in index_rest.as_chunks::<3>().0.iter().enumerate() {
            for (entry, index) in unpack_pair(three).into_iter().enumerate() {
                let bit = (2 * pair + entry) * BITS;
                visit(index.into(), u64::from(code_rest[bit / 8]) >> (bit % 8));
            }
        }
    }
}

/// Up to eight bytes as a number.
#[inline(always)]
fn little_endian(bytes: &[u8]) -> u64 {
    let mut eight = [0; 8];
    eight[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(eight)
}
