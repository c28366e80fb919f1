//! Fetching ahead: what comes next is asked for while the arithmetic is busy, a little at a time.
//!
//! Twenty miners' streams and sixty-four rows of the state are more than the hardware's prefetcher
//! follows, and what is asked for all at once is waited for. It goes to the second cache: rows a
//! power of two apart would drive each other, and the sums, out of the first.

/// Bytes of a line of the caches.
pub(super) const LINE: usize = 64;

/// The part of the state that comes next: some rows, a stride apart.
///
/// Places, not references: of another thread's part at worst, and nothing is read.
pub(super) struct Ahead {
    /// Address of the next row.
    row: usize,
    rows_left: usize,
    row_bytes: usize,
    stride_bytes: usize,
    rows_a_step: usize,
}

/// What a single long row is cut into.
const PART_BYTES: usize = 256;

impl Ahead {
    /// `rows` rows of `row_bytes` from the address `start` on.
    pub(super) fn new(start: usize, rows: usize, row_bytes: usize, stride_bytes: usize) -> Self {
        let (rows_left, row_bytes, stride_bytes) = match rows {
            1 => (row_bytes.div_ceil(PART_BYTES), PART_BYTES, PART_BYTES),
            _ => (rows, row_bytes, stride_bytes),
        };
        Self { row: start, rows_left, row_bytes, stride_bytes, rows_a_step: 0 }
    }

    /// Spreads a part of what is left, `share` of `whole`, over the next so many steps.
    pub(super) fn spread(&mut self, (share, whole): (usize, usize), steps: usize) {
        self.rows_a_step = (self.rows_left * share / whole.max(1)).div_ceil(steps.max(1));
    }

    /// Asks for the next few rows.
    #[inline(always)]
    pub(super) fn step(&mut self) {
        for _ in 0..self.rows_a_step.min(self.rows_left) {
            fetch(self.row, self.row_bytes);
            self.row += self.stride_bytes;
            self.rows_left -= 1;
        }
    }
}

/// Asks for the lines of `bytes` bytes from an address on. They need not be anybody's.
#[inline(always)]
pub(super) fn fetch(address: usize, bytes: usize) {
    let end = address + bytes;
    let mut at = address;
    while at < end {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            // SAFETY: a prefetch reads nothing the program can see and never faults; the instruction
            // is in every x86-64.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(at)) };
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above, in every aarch64.
        unsafe {
            std::arch::asm!("prfm pldl2keep, [{}]", in(reg) at, options(nostack, readonly, preserves_flags));
        }
        at += LINE;
    }
}
