//! Gathering: what all miners sent for a few blocks, added up in a scratch that stays in the first cache.

use super::{Fault, prefetch};
use crate::band::{BLOCK_LEN_MAX, Band, Contribution};
use crate::codes::unpack_pair;

/// Sums and counts of a group of blocks, one block after the other.
///
/// All zero between two groups. They are longer than the group by a largest block, so that whatever 12 bits say lies
/// within: an index out of range spoils a sum, and the fold fails, but it reaches no other memory.
pub(super) struct Sums {
    pub(super) sum: Vec<f32>,
    /// Low byte: how many miners sent the element. High byte: 1 + the last of them, or 0.
    pub(super) sent: Vec<u16>,
}

impl Sums {
    /// For groups of up to `elements`.
    pub(super) fn new(elements: usize) -> Self {
        let length = elements + BLOCK_LEN_MAX;
        Self {
            sum: vec![0.0; length],
            sent: vec![0; length],
        }
    }

    /// Adds up what every miner sent for `blocks` blocks from `first` on, miners in order.
    pub(super) fn gather(
        &mut self,
        band: &Band,
        contributions: &[Contribution<'_>],
        first: usize,
        blocks: usize,
    ) -> Result<(), Fault> {
        let (index_bytes, code_bytes) = (band.index_bytes_per_block(), band.code_bytes_per_block());
        let mut clean = true;
        for (miner, sent) in contributions.iter().enumerate() {
            prefetch(
                sent.index,
                (first + blocks) * index_bytes,
                blocks * index_bytes,
            );
            prefetch(
                sent.code,
                (first + blocks) * code_bytes,
                blocks * code_bytes,
            );
            for block in 0..blocks {
                let at = block * band.block_len();
                let entries = Entries {
                    index: &sent.index[(first + block) * index_bytes..][..index_bytes],
                    code: &sent.code[(first + block) * code_bytes..][..code_bytes],
                    tag: miner as u16 + 1,
                    block_len: band.block_len() as u16,
                };
                let (sum, sent_by) = (room(&mut self.sum, at), room(&mut self.sent, at));
                clean &= match band.code_bits {
                    2 => entries.add::<2, 4>(levels(sent.levels), sum, sent_by),
                    4 => entries.add::<4, 16>(levels(sent.levels), sum, sent_by),
                    _ => entries.add::<8, 256>(levels(sent.levels), sum, sent_by),
                };
            }
        }
        if clean { Ok(()) } else { Err(Fault) }
    }
}

/// Room for any 12-bit index, from `at` on.
fn room<T>(data: &mut [T], at: usize) -> &mut [T; BLOCK_LEN_MAX] {
    data[at..]
        .first_chunk_mut()
        .expect("the scratch is longer than the group by a largest block")
}

fn levels<const BINS: usize>(levels: &[f32]) -> &[f32; BINS] {
    levels.first_chunk().expect("the lengths were checked")
}

/// One miner's entries of one block.
struct Entries<'a> {
    index: &'a [u8],
    code: &'a [u8],
    /// 1 + the miner.
    tag: u16,
    block_len: u16,
}

impl Entries<'_> {
    /// Adds each entry's level; says whether all indices were below the block's length and distinct.
    #[inline(always)]
    fn add<const BITS: usize, const BINS: usize>(
        &self,
        levels: &[f32; BINS],
        sum: &mut [f32; BLOCK_LEN_MAX],
        sent: &mut [u16; BLOCK_LEN_MAX],
    ) -> bool {
        let tag = self.tag << 8;
        let (mut highest, mut repeated) = (0u16, false);
        for (pair, &three) in self.index.as_chunks::<3>().0.iter().enumerate() {
            let codes = pair_of_codes::<BITS>(self.code, pair);
            for (index, code) in unpack_pair(three).into_iter().zip(codes) {
                highest = highest.max(index);
                // No effect but to show the compiler that it is within.
                let at = usize::from(index) & (BLOCK_LEN_MAX - 1);
                sum[at] += levels[code & (BINS - 1)];
                let by = sent[at];
                // Equal in the high byte: this miner was here before.
                repeated |= (by ^ tag) < 256;
                sent[at] = (by & 255).wrapping_add(tag | 1);
            }
        }
        highest < self.block_len && !repeated
    }
}

/// Codes `2 * pair` and `2 * pair + 1` of a block; above them there may be other bits.
#[inline(always)]
fn pair_of_codes<const BITS: usize>(code: &[u8], pair: usize) -> [usize; 2] {
    match BITS {
        2 => {
            let byte = code[pair / 2] >> (pair % 2 * 4);
            [byte.into(), (byte >> 2).into()]
        }
        4 => [code[pair].into(), (code[pair] >> 4).into()],
        _ => [code[2 * pair].into(), code[2 * pair + 1].into()],
    }
}
