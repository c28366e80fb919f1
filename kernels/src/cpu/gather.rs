//! Gathering: what all miners sent for a few blocks, added up and divided in a scratch that stays in
//! the first cache.
//!
//! An element that nobody sent holds [`NOBODY`], -0: a sum that begins at +0 never is -0 (only -0
//! and -0 add up to it), and to add to -0 is to begin with the other number. So an addition need not
//! ask whether it is the first. Only further ones are counted, and they are few: they go into a
//! list, and what stands there is divided in the end. The divisor of all others is 1.

use super::{Fault, prefetch};
use crate::band::{BLOCK_LEN_MAX, Band, Contribution, Divisor};
use crate::canonical;
use crate::codes::unpack_pair;

/// The bits of an element that nobody sent.
pub(super) const NOBODY: u32 = 0x8000_0000;
/// The bits of an element whose mean is -0: a tiny negative sum, divided. A signalling NaN, which no
/// arithmetic gives.
const MINUS_ZERO: u32 = 0x7fa0_0000;

/// What was sent for a group of blocks, one block after the other.
///
/// Longer than the group by a largest block, so that whatever 12 bits say lies within: an index out
/// of range spoils a sum, and the fold fails, but it reaches no other memory.
pub(super) struct Sums {
    /// All [`NOBODY`] between two groups. After [`Sums::gather`] the sum or the mean of each element
    /// that somebody sent; [`value`] reads it.
    pub(super) sum: Aligned<f32>,
    /// 1 + the last miner that sent the element, or 0.
    last: Aligned<u8>,
    /// Elements that another miner had sent before, each time.
    again: Vec<u16>,
    /// How often an element stands in `again`. All 0 between two groups.
    times: Vec<u8>,
    /// What each code of each miner adds, [`Band::bins`] values a miner: never -0, and a NaN is the
    /// canonical one.
    levels: Vec<f32>,
}

/// What an element of [`Sums::sum`] other than [`NOBODY`] stands for.
#[inline(always)]
pub(super) fn value(sum: f32) -> f32 {
    if sum.to_bits() == MINUS_ZERO { -0.0 } else { sum }
}

impl Sums {
    /// For groups of up to `blocks` blocks.
    pub(super) fn new(band: &Band, contributions: &[Contribution<'_>], blocks: usize) -> Self {
        let length = blocks * band.block_len() + BLOCK_LEN_MAX;
        // -0 adds what +0 adds, to a sum that is not -0.
        let level = |&level: &f32| canonical(0.0 + level);
        Self {
            sum: Aligned::new(f32::from_bits(NOBODY), length),
            last: Aligned::new(0, length),
            // One more than there can be: an entry is written before it is known to count.
            again: vec![0; blocks * band.k * contributions.len() + 1],
            times: vec![0; length],
            levels: contributions.iter().flat_map(|sent| sent.levels.iter().map(level)).collect(),
        }
    }

    /// Adds up what every miner sent for `blocks` blocks from `first` on, miners in order, and
    /// divides by how many sent an element, if `divisor` says so. What follows is fetched meanwhile.
    pub(super) fn gather(
        &mut self,
        band: &Band,
        contributions: &[Contribution<'_>],
        divisor: Divisor,
        first: usize,
        blocks: usize,
    ) -> Result<(), Fault> {
        let (index_bytes, code_bytes) = (band.index_bytes_per_block(), band.code_bytes_per_block());
        let next = first + super::GROUPS_AHEAD * blocks;
        self.last[..blocks * band.block_len()].fill(0);
        let (mut clean, mut repeats) = (true, 0);
        let levels = self.levels.chunks_exact(band.bins());
        for (miner, (sent, levels)) in contributions.iter().zip(levels).enumerate() {
            prefetch(sent.index, next * index_bytes, blocks * index_bytes);
            prefetch(sent.code, next * code_bytes, blocks * code_bytes);
            for block in 0..blocks {
                let at = block * band.block_len();
                let entries = Entries {
                    index: &sent.index[(first + block) * index_bytes..][..index_bytes],
                    code: &sent.code[(first + block) * code_bytes..][..code_bytes],
                    tag: miner as u8 + 1,
                    block_len: band.block_len(),
                };
                let target = Target {
                    sum: room(&mut self.sum, at),
                    last: room(&mut self.last, at),
                    again: &mut self.again[repeats..][..band.k + 1],
                    at: at as u16,
                };
                let added = match band.code_bits {
                    2 => entries.add::<2, 4>(of_bins(levels), target),
                    4 => entries.add::<4, 16>(of_bins(levels), target),
                    _ => entries.add::<8, 256>(of_bins(levels), target),
                };
                clean &= added.clean;
                repeats += added.repeats;
            }
        }
        if divisor == Divisor::Contributors {
            self.divide(repeats);
        }
        if clean { Ok(()) } else { Err(Fault) }
    }

    /// Divides what several miners sent, the first `repeats` of `again`, by their number.
    fn divide(&mut self, repeats: usize) {
        let again = &self.again[..repeats];
        for &at in again {
            let times = &mut self.times[usize::from(at)];
            // Beyond 254 a miner repeats itself, and the fold fails.
            *times = times.wrapping_add(1);
        }
        for &at in again {
            let (sum, times) = (&mut self.sum[usize::from(at)], &mut self.times[usize::from(at)]);
            let mean = *sum / (f32::from(*times) + 1.0);
            let mean = if mean.to_bits() == NOBODY { MINUS_ZERO } else { mean.to_bits() };
            // An element that comes once more is divided already. A mask, since it is at random.
            let divided = u32::from(*times == 0).wrapping_neg();
            *sum = f32::from_bits(sum.to_bits() & divided | mean & !divided);
            *times = 0;
        }
    }
}

pub(super) struct Aligned<T> {
    all: Vec<T>,
    skip: usize,
}
impl<T: Copy> Aligned<T> {
    fn new(value: T, length: usize) -> Self {
        let all = vec![value; length + 64 / size_of::<T>()];
        let skip = all.as_ptr().align_offset(64);
        Self { all, skip }
    }
}
impl<T> std::ops::Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.all[self.skip..]
    }
}
impl<T> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.all[self.skip..]
    }
}
/// Room for any 12-bit index, from `at` on.
fn room<T>(data: &mut [T], at: usize) -> &mut [T; BLOCK_LEN_MAX] {
    data[at..].first_chunk_mut().expect("the scratch is longer than the group by a largest block")
}

fn of_bins<const BINS: usize>(levels: &[f32]) -> &[f32; BINS] {
    levels.first_chunk().expect("the lengths were checked")
}

/// One miner's entries of one block.
struct Entries<'a> {
    index: &'a [u8],
    code: &'a [u8],
    /// 1 + the miner.
    tag: u8,
    block_len: usize,
}

/// Where they go.
struct Target<'a> {
    sum: &'a mut [f32; BLOCK_LEN_MAX],
    last: &'a mut [u8; BLOCK_LEN_MAX],
    /// Room for one more than there are entries.
    again: &'a mut [u16],
    /// Where in the group the block begins.
    at: u16,
}

struct Added {
    /// How many stand in [`Target::again`].
    repeats: usize,
    /// Whether all indices were below the block's length and distinct.
    clean: bool,
}

impl Entries<'_> {
    /// Adds each entry's level.
    #[inline(always)]
    fn add<const BITS: usize, const BINS: usize>(
        &self,
        levels: &[f32; BINS],
        target: Target<'_>,
    ) -> Added {
        let Target { sum, last, again, at } = target;
        // Negative once an index was out of range, and as long as none was a repeat: signs, since a
        // comparison tends to become a branch, and these are taken at random.
        let (mut in_range, mut distinct) = (0isize, -1isize);
        let (highest, tag) = (self.block_len as isize - 1, isize::from(self.tag));
        let mut repeats = 0;
        let mut add = |index: usize, code: usize| {
            in_range |= highest - index as isize;
            // No effect but to show the compiler that it is within.
            let index = index & (BLOCK_LEN_MAX - 1);
            let before = sum[index];
            again[repeats] = at + index as u16;
            repeats += usize::from(before.to_bits() != NOBODY);
            sum[index] = before + levels[code & (BINS - 1)];
            // Miners come in order: not below means that this one was here before.
            distinct &= isize::from(last[index]) - tag;
            last[index] = self.tag;
        };
        // Eight entries at a time: twelve bytes of indices, a byte of codes for each of their bits.
        let (twelves, index_rest) = self.index.as_chunks::<12>();
        let (codes, code_rest) = self.code.split_at(twelves.len() * BITS);
        for (twelve, codes) in twelves.iter().zip(codes.chunks_exact(BITS)) {
            let codes = little_endian(codes);
            let four = [little_endian(&twelve[..6]), little_endian(&twelve[6..])];
            for entry in 0..8 {
                let index = four[entry / 4] >> (entry % 4 * 12);
                add(index as usize & 0xfff, (codes >> (entry * BITS)) as usize);
            }
        }
        for (pair, &three) in index_rest.as_chunks::<3>().0.iter().enumerate() {
            for (entry, index) in unpack_pair(three).into_iter().enumerate() {
                let bit = (2 * pair + entry) * BITS;
                add(index.into(), usize::from(code_rest[bit / 8]) >> (bit % 8));
            }
        }
        Added { repeats, clean: in_range >= 0 && distinct < 0 }
    }
}

/// Up to eight bytes as a number.
#[inline(always)]
fn little_endian(bytes: &[u8]) -> u64 {
    let mut eight = [0; 8];
    eight[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(eight)
}
