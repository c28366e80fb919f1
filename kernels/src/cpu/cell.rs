//! What miners sent for one element so far, in eight bytes that are read and written at once.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A sum and who is in it; all zero where nobody sent.
///
/// Low half: the bits of the sum, f32. High half: how many miners sent the element in its low 16
/// bits, 1 + the last of them above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Cell(u64);

impl Cell {
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) fn new(sum: f32, sent: u32) -> Self {
        Self(u64::from(sum.to_bits()) | u64::from(sent) << 32)
    }

    #[inline(always)]
    pub(super) fn sum(self) -> f32 {
        f32::from_bits(self.0 as u32)
    }

    /// How many miners sent the element.
    #[inline(always)]
    pub(super) fn count(self) -> u32 {
        (self.0 >> 32) as u32 & 0xffff
    }
}

/// Adds what one miner sent, miners in order.
///
/// Four vector instructions on an element's eight bytes, of the set that every x86-64 has; with sum and
/// count apart an entry takes half as many again, and two loads and stores.
#[cfg(target_arch = "x86_64")]
pub(super) struct Adder {
    /// Of all cells as they were, the highest of each signed 16 bits: the top ones are the last miner.
    seen: __m128i,
    /// One more miner, and that it is this one.
    one: __m128i,
    this: __m128i,
    miner: i16,
}

#[cfg(target_arch = "x86_64")]
impl Adder {
    /// For the `miner`th, below [`MINERS_MAX`](crate::band::MINERS_MAX).
    #[inline(always)]
    pub(super) fn new(miner: usize) -> Self {
        let miner = miner as i16 + 1;
        // SAFETY: these instructions are in every x86-64.
        unsafe {
            Self {
                seen: _mm_setzero_si128(),
                one: _mm_setr_epi16(0, 0, 1, 0, 0, 0, 0, 0),
                // The lowest number leaves the other three as they are.
                this: _mm_setr_epi16(i16::MIN, i16::MIN, i16::MIN, miner, 0, 0, 0, 0),
                miner,
            }
        }
    }

    #[inline(always)]
    pub(super) fn add(&mut self, cell: &mut Cell, level: &f32) {
        let at = std::ptr::from_mut(cell).cast();
        // SAFETY: these instructions are in every x86-64; they read four bytes and eight, and write
        // eight.
        unsafe {
            let before = _mm_loadl_epi64(at);
            self.seen = _mm_max_epi16(self.seen, before);
            let summed = _mm_add_ss(_mm_castsi128_ps(before), _mm_load_ss(level));
            let counted = _mm_add_epi16(_mm_castps_si128(summed), self.one);
            _mm_storel_epi64(at, _mm_max_epi16(counted, self.this));
        }
    }

    /// Whether the miner sent no element twice.
    #[inline(always)]
    pub(super) fn distinct(&self) -> bool {
        // SAFETY: this instruction is in every x86-64.
        let last = unsafe { _mm_extract_epi16::<3>(self.seen) };
        last < i32::from(self.miner)
    }
}

/// Adds what one miner sent, miners in order.
#[cfg(not(target_arch = "x86_64"))]
pub(super) struct Adder {
    /// The last miner's number in its place in a cell's high half.
    this: u32,
    /// A sign, since of a comparison the compiler would make a branch: negative as long as the miner
    /// was in no cell.
    distinct: i32,
}

#[cfg(not(target_arch = "x86_64"))]
impl Adder {
    /// For the `miner`th, below [`MINERS_MAX`](crate::band::MINERS_MAX).
    #[inline(always)]
    pub(super) fn new(miner: usize) -> Self {
        Self { this: (miner as u32 + 1) << 16, distinct: -1 }
    }

    #[inline(always)]
    pub(super) fn add(&mut self, cell: &mut Cell, level: &f32) {
        let sum = cell.sum() + level;
        let sent = (cell.0 >> 32) as u32;
        self.distinct &= sent as i32 - self.this as i32;
        let sent = (sent & 0xffff) + (self.this | 1);
        cell.0 = u64::from(sum.to_bits()) | u64::from(sent) << 32;
    }

    /// Whether the miner sent no element twice.
    #[inline(always)]
    pub(super) fn distinct(&self) -> bool {
        self.distinct < 0
    }
}

#[cfg(test)]
mod tests {
    use super::{Adder, Cell};

    #[test]
    fn a_cell_holds_the_sum_and_who_is_in_it() {
        let mut cell = Cell::default();
        let mut sum = 0.0;
        for (count, miner) in (0..255).step_by(2).enumerate() {
            let mut adder = Adder::new(miner);
            let level = 0.1 + miner as f32;
            adder.add(&mut cell, &level);
            sum += level;
            assert!(adder.distinct());
            assert_eq!((cell.sum().to_bits(), cell.count()), (f32::to_bits(sum), count as u32 + 1));
            assert_eq!(cell.0 >> 48, miner as u64 + 1);
        }
    }

    #[test]
    fn the_same_element_twice_is_noticed_whatever_else_was_sent() {
        for level in [0.0, -1.0, f32::NAN, f32::INFINITY, f32::from_bits(u32::MAX)] {
            for miner in [0, 1, 127, 254] {
                let mut cells = [Cell::default(); 3];
                (0..miner).for_each(|earlier| Adder::new(earlier).add(&mut cells[1], &level));
                let mut adder = Adder::new(miner);
                cells.iter_mut().for_each(|cell| adder.add(cell, &level));
                assert!(adder.distinct());
                adder.add(&mut cells[2], &level);
                assert!(!adder.distinct());
                adder.add(&mut cells[1], &level);
                assert!(!adder.distinct());
            }
        }
    }
}
