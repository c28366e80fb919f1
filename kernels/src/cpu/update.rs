//! Updating: one pass over a group's rows of the state, stepping what somebody sent and clearing the
//! cells on the way.
//!
//! Every element is stepped, by a delta of 0 where nobody sent one. Skipping vectors that nobody sent
//! would save work but not time: with a few miners that is a coin toss a vector, which no branch
//! predictor gets right.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod plain;

use super::{
    Path,
    ahead::{Ahead, LINE},
    cell::Cell,
    gather::Cells,
};
use crate::band::{Contribution, Divisor, Findings, Step};
use crate::{canonical, fma};

/// A group's elements in the state.
pub(super) struct Window<'a, 's> {
    /// The piece's part of each row.
    pub(super) rows: &'a mut [Row<'s>],
    /// Where in them the group begins.
    pub(super) column: usize,
    /// Columns of a block.
    pub(super) width: usize,
    /// Blocks of the group, side by side.
    pub(super) blocks: usize,
    /// The group's first element, row-major in the band.
    pub(super) origin: usize,
    /// Columns of the band.
    pub(super) stride: usize,
}

/// A part of a row of the state.
pub(super) struct Row<'s> {
    /// The state before the step, if it lies elsewhere; of the same length.
    pub(super) base: Option<&'s [f32]>,
    /// The state after the step.
    pub(super) next: &'s mut [f32],
}

/// How a pass steps.
#[derive(Clone, Copy)]
pub(super) struct Stepping {
    pub(super) step: Step,
    /// Whether [`quotients_are_small`].
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "vectors ask"))]
    pub(super) small: bool,
}

/// A run of elements that are neighbours in the state and in the cells. All have one length.
struct Run<'a> {
    /// As in [`Row`].
    base: Option<&'a [f32]>,
    next: &'a mut [f32],
    cells: &'a mut [Cell],
    /// The first element, row-major in the band.
    element: u64,
}

/// Whether a delta of 0 leaves an element as it is: `-lr * 0` is -0 then, and -0 added to any finite
/// number, to either zero as well, is that number.
fn zero_is_no_step(step: Step) -> bool {
    step.lr.is_sign_positive()
}

/// Counts whose reciprocals the vectors hold: below this.
const SMALL: usize = 32;

/// Whether every sum over its count is what [`small_quotient`] gives.
///
/// It is for counts below 32 and sums that are no multiple of something tiny: a sum of f32 is a
/// multiple of the last place of the smallest of them.
pub(super) fn quotients_are_small(divisor: Divisor, contributions: &[Contribution<'_>]) -> bool {
    let tame = |&level: &f32| level == 0.0 || level.abs() >= 2f32.powi(-90);
    divisor == Divisor::Contributors
        && contributions.len() < SMALL
        && contributions.iter().flat_map(|sent| sent.levels).all(tame)
}

/// `sum / count` by the rounded reciprocal, and what that leaves by it once more.
///
/// What is left is exact, since with a whole `count` it is a multiple of the quotient's last place.
/// The second product is off by less than 2^-22 of that place, and a quotient that is not halfway
/// between two f32 is further from there, by 1/64 of it at least. Halfway is none unless it is
/// denormal. The vectors do the same; where a sum is not finite, neither is this.
#[cfg(test)]
fn small_quotient(sum: f32, count: f32) -> f32 {
    let reciprocal = 1.0 / count;
    let near = sum * reciprocal;
    let left = near.mul_add(-count, sum);
    left.mul_add(reciprocal, near)
}

impl Window<'_, '_> {
    /// Calls `update` with each run. What follows is fetched meanwhile.
    #[inline(always)]
    fn each_run(self, cells: &mut Cells, ahead: &mut Ahead, mut update: impl FnMut(Run<'_>)) {
        let (height, columns) = (self.rows.len(), self.blocks * self.width);
        // In a single row the blocks follow each other in the cells too.
        let width = if height == 1 { columns } else { self.width };
        let block_len = height * width;
        for (r, row) in self.rows.iter_mut().enumerate() {
            ahead.step();
            let element = self.origin + r * self.stride;
            let runs = self.column..self.column + columns;
            for (run, column) in runs.step_by(width).enumerate() {
                let at = run * block_len + r * width;
                update(Run {
                    base: row.base.map(|base| &base[column..][..width]),
                    next: &mut row.next[column..][..width],
                    cells: cells.run(at, width),
                    element: (element + run * width) as u64,
                });
            }
        }
    }
}

/// Steps every element of the window that somebody sent, and clears the cells. `path` must be
/// available.
pub(super) fn pass(
    path: Path,
    stepping: Stepping,
    cells: &mut Cells,
    window: Window<'_, '_>,
    ahead: &mut Ahead,
) -> Findings {
    let step = stepping.step;
    if !zero_is_no_step(step) {
        let mut findings = Findings::default();
        window.each_run(cells, ahead, |run| run.step_from(0, step, fma::fma_f32, &mut findings));
        return findings;
    }
    match path {
        Path::Scalar => plain::pass(step, cells, window, ahead),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `cpu::fold` refuses a path that the processor cannot run.
        Path::Avx2 => unsafe { plain::pass_with_avx2(step, cells, window, ahead) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Path::Avx512 => unsafe { avx512::pass(stepping, cells, window, ahead) },
        #[cfg(not(target_arch = "x86_64"))]
        Path::Avx2 | Path::Avx512 => {
            unreachable!("cpu::fold refuses a path that the processor cannot run")
        }
    }
}

impl Run<'_> {
    /// Whether what is written will not be read soon and lies in whole lines of the caches.
    #[inline(always)]
    fn streams(&self) -> bool {
        self.base.is_some() && self.next.as_ptr().addr().is_multiple_of(LINE)
    }

    /// Where the state before the step and after it lie, from `at` on.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn states(&mut self, at: usize) -> (*const f32, *mut f32) {
        let next = self.next.as_mut_ptr().wrapping_add(at);
        (self.base.map_or(next.cast_const(), |base| base.as_ptr().wrapping_add(at)), next)
    }

    /// Of all three.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn length(&self) -> usize {
        let length = self.next.len();
        let alike = self.cells.len() == length && self.base.is_none_or(|base| base.len() == length);
        assert!(alike, "a run has one length");
        length
    }

    /// One by one, from the `from`th element on.
    #[inline(always)]
    fn step_from(
        self,
        from: usize,
        step: Step,
        fma: impl Fn(f32, f32, f32) -> f32,
        findings: &mut Findings,
    ) {
        if let Some(base) = self.base {
            self.next[from..].copy_from_slice(&base[from..]);
        }
        let elements = self.next[from..].iter_mut().zip(&mut self.cells[from..]);
        for (at, (value, cell)) in elements.enumerate() {
            if cell.count() == 0 {
                continue;
            }
            let delta = cell.sum() / step.divisor.of(cell.count());
            let next = fma(-step.lr, delta, *value);
            findings.note(self.element + (from + at) as u64, delta, next);
            (*value, *cell) = (canonical(next), Cell::default());
        }
    }
}

/// A few neighbours of which one is not finite after the step.
struct Few<const N: usize> {
    before: [f32; N],
    cells: [Cell; N],
}

impl<const N: usize> Few<N> {
    /// The state after the step, one by one.
    #[cold]
    #[inline(never)]
    fn step(mut self, element: u64, step: Step, findings: &mut Findings) -> [f32; N] {
        let mut next = self.before;
        let run = Run { base: None, next: &mut next, cells: &mut self.cells, element };
        run.step_from(0, step, fma::fma_f32, findings);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::small_quotient;

    /// Every count, and of every mantissa one in 61, at the ends of what is allowed and between.
    #[test]
    fn a_small_quotient_is_the_quotient() {
        for count in 1..32u8 {
            let count = f32::from(count);
            for exponent in [-113, -60, -1, 0, 1, 60, 127] {
                for mantissa in (0..1 << 23).step_by(61) {
                    let sum = f32::from_bits(((exponent + 127) as u32) << 23 | mantissa);
                    for sum in [sum, -sum] {
                        let (found, expected) = (small_quotient(sum, count), sum / count);
                        assert_eq!(found.to_bits(), expected.to_bits(), "{sum:e} / {count}");
                    }
                }
            }
            assert_eq!(small_quotient(0.0, count).to_bits(), 0);
            assert!(!small_quotient(f32::INFINITY, count).is_finite());
            assert!(!small_quotient(f32::NAN, count).is_finite());
        }
    }
}
