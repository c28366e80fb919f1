//! Updating: one pass over a group's rows of the state, stepping what somebody sent and clearing the
//! sums on the way.
//!
//! The vector paths compute every lane and keep what belongs to an element that somebody sent.
//! Skipping vectors that nobody sent would save work but not time: with a few miners that is a coin
//! toss a vector, which no branch predictor gets right.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use super::gather::{NOBODY, Sums, value};
use super::{Path, prefetch};
use crate::band::{Divisor, Findings, Step};
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

/// A run of elements that are neighbours in the state and in the sums. All have one length.
struct Run<'a> {
    /// As in [`Row`].
    base: Option<&'a [f32]>,
    next: &'a mut [f32],
    sum: &'a mut [f32],
    /// The first element, row-major in the band.
    element: u64,
}

impl Window<'_, '_> {
    /// Calls `update` with each run, and has the next group's elements fetched.
    #[inline(always)]
    fn each_run(self, sums: &mut Sums, mut update: impl FnMut(Run<'_>)) {
        let (height, columns) = (self.rows.len(), self.blocks * self.width);
        // In a single row the blocks follow each other in the sums too.
        let width = if height == 1 { columns } else { self.width };
        let block_len = height * width;
        for (r, row) in self.rows.iter_mut().enumerate() {
            let next = self.column + super::GROUPS_AHEAD * columns;
            prefetch(row.base.unwrap_or(row.next), next, columns);
            let element = self.origin + r * self.stride;
            for (run, column) in (self.column..self.column + columns).step_by(width).enumerate() {
                update(Run {
                    base: row.base.map(|base| &base[column..][..width]),
                    next: &mut row.next[column..][..width],
                    sum: &mut sums.sum[run * block_len + r * width..][..width],
                    element: (element + run * width) as u64,
                });
            }
        }
    }
}

/// Steps every element of the window that somebody sent, and clears the sums. `path` must be
/// available.
pub(super) fn pass(path: Path, step: Step, sums: &mut Sums, window: Window<'_, '_>) -> Findings {
    match path {
        Path::Scalar => {
            let mut findings = Findings::default();
            window.each_run(sums, |run| run.step_from(0, step, fma::fma_f32, &mut findings));
            findings
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `cpu::fold` refuses a path that the processor cannot run.
        Path::Avx2 => unsafe { avx2::pass(step, sums, window) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Path::Avx512 => unsafe { avx512::pass(step, sums, window) },
        #[cfg(not(target_arch = "x86_64"))]
        Path::Avx2 | Path::Avx512 => {
            unreachable!("cpu::fold refuses a path that the processor cannot run")
        }
    }
}

/// The aggregated delta: a mean is one already.
fn delta(sum: f32, divisor: Divisor) -> f32 {
    match divisor {
        Divisor::Contributors => value(sum),
        Divisor::All(_) => sum / divisor.of(0),
    }
}

impl Run<'_> {
    /// The state before the step and after it, and the sums, at `at`: the first of `N` elements
    /// that are there.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn pointers(&mut self, at: usize) -> (*const f32, *mut f32, *mut f32) {
        let next = self.next.as_mut_ptr().wrapping_add(at);
        let base = self.base.map_or(next.cast_const(), |base| base.as_ptr().wrapping_add(at));
        (base, next, self.sum.as_mut_ptr().wrapping_add(at))
    }

    /// Of all three.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn length(&self) -> usize {
        let length = self.next.len();
        let alike = self.sum.len() == length && self.base.is_none_or(|base| base.len() == length);
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
        let element = self.element + from as u64;
        for (at, (value, sum)) in
            self.next[from..].iter_mut().zip(&mut self.sum[from..]).enumerate()
        {
            if sum.to_bits() == NOBODY {
                continue;
            }
            let delta = delta(*sum, step.divisor);
            let next = fma(-step.lr, delta, *value);
            findings.note(element + at as u64, delta, next);
            (*value, *sum) = (canonical(next), f32::from_bits(NOBODY));
        }
    }
}

/// A few neighbours of which one is not finite after the step.
#[cfg(target_arch = "x86_64")]
struct Few<const N: usize> {
    before: [f32; N],
    sum: [f32; N],
}

#[cfg(target_arch = "x86_64")]
impl<const N: usize> Few<N> {
    /// The state after the step, one by one.
    #[cold]
    #[inline(never)]
    fn step(mut self, element: u64, step: Step, findings: &mut Findings) -> [f32; N] {
        let mut next = self.before;
        let run = Run { base: None, next: &mut next, sum: &mut self.sum, element };
        run.step_from(0, step, fma::fma_f32, findings);
        next
    }
}
