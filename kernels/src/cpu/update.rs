//! Updating: one pass over a group's rows of the state, dividing and stepping, and clearing the
//! sums on the way.
//!
//! The vector paths compute every lane and keep what belongs to an element that somebody sent.
//! Skipping vectors that nobody sent would save work but not time: with a few miners that is a coin
//! toss a vector, which no branch predictor gets right.

use super::gather::Sums;
use super::{Path, prefetch};
use crate::band::{Findings, Step};
use crate::{canonical, fma};

/// A group's elements in the state.
pub(super) struct Window<'a, 's> {
    /// The piece's part of each row.
    pub(super) rows: &'a mut [&'s mut [f32]],
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

/// A run of elements that are neighbours in the state and in the sums. The three have one length.
struct Run<'a> {
    state: &'a mut [f32],
    sum: &'a mut [f32],
    sent: &'a mut [u16],
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
            prefetch(row, self.column + columns, columns);
            let element = self.origin + r * self.stride;
            let runs = row[self.column..][..columns].chunks_exact_mut(width);
            for (run, state) in runs.enumerate() {
                let at = run * block_len + r * width;
                update(Run {
                    state,
                    sum: &mut sums.sum[at..][..width],
                    sent: &mut sums.sent[at..][..width],
                    element: (element + run * width) as u64,
                });
            }
        }
    }
}

/// Steps every element of the window that somebody sent, and zeroes the sums. `path` must be
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
        Path::Avx2 => unsafe { x86::pass_avx2(step, sums, window) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Path::Avx512 => unsafe { x86::pass_avx512(step, sums, window) },
        #[cfg(not(target_arch = "x86_64"))]
        Path::Avx2 | Path::Avx512 => {
            unreachable!("cpu::fold refuses a path that the processor cannot run")
        }
    }
}

impl Run<'_> {
    /// Of all three.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn length(&self) -> usize {
        let length = self.state.len();
        assert!(self.sum.len() == length && self.sent.len() == length, "a run has one length");
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
        let sums = self.sum[from..].iter_mut().zip(&mut self.sent[from..]);
        for (at, (value, (sum, sent))) in self.state[from..].iter_mut().zip(sums).enumerate() {
            if *sent == 0 {
                continue;
            }
            let delta = *sum / step.divisor.of(u32::from(*sent & 255));
            let next = fma(-step.lr, delta, *value);
            findings.note(self.element + (from + at) as u64, delta, next);
            (*value, *sum, *sent) = (canonical(next), 0.0, 0);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Run, Sums, Window};
    use crate::CANONICAL_NAN;
    use crate::band::{Divisor, Findings, Step};

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn pass_avx2(step: Step, sums: &mut Sums, window: Window<'_, '_>) -> Findings {
        let mut findings = Findings::default();
        match step.divisor {
            Divisor::Contributors => {
                window.each_run(sums, |run| run_avx2::<true>(run, step, &mut findings));
            }
            Divisor::All(_) => {
                window.each_run(sums, |run| run_avx2::<false>(run, step, &mut findings));
            }
        }
        findings
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn run_avx2<const BY_COUNT: bool>(run: Run<'_>, step: Step, findings: &mut Findings) {
        let minus_lr = _mm256_set1_ps(-step.lr);
        let all = _mm256_set1_ps(step.divisor.of(0));
        let length = run.length();
        let whole = length - length % 8;
        for at in (0..whole).step_by(8) {
            // SAFETY: 8 elements from `at` on are within all three; loads and stores here need no
            // alignment.
            let (by, sum, state) = unsafe {
                (
                    run.sent.as_mut_ptr().add(at).cast(),
                    run.sum.as_mut_ptr().add(at),
                    run.state.as_mut_ptr().add(at),
                )
            };
            // SAFETY: as above.
            let sent = unsafe { _mm_loadu_si128(by) };
            // SAFETY: as above.
            let (total, value) = unsafe { (_mm256_loadu_ps(sum), _mm256_loadu_ps(state)) };
            let count = _mm256_cvtepu16_epi32(_mm_and_si128(sent, _mm_set1_epi16(255)));
            let touched = _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_setzero_si256()));
            let divisor = if BY_COUNT { _mm256_cvtepi32_ps(count) } else { all };
            let delta = _mm256_div_ps(total, divisor);
            let mut next = _mm256_fmadd_ps(minus_lr, delta, value);
            // Finite less itself is 0, anything else NaN. A delta that is not finite leaves no
            // finite next.
            let finite =
                _mm256_cmp_ps::<_CMP_EQ_OQ>(_mm256_sub_ps(next, next), _mm256_setzero_ps());
            if _mm256_movemask_ps(_mm256_andnot_ps(finite, touched)) != 0 {
                let lanes = _mm256_movemask_ps(touched) as u16;
                note(
                    lanes,
                    &lanes_avx2(delta),
                    &lanes_avx2(next),
                    run.element + at as u64,
                    findings,
                );
                let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(next, next);
                next = _mm256_blendv_ps(next, _mm256_set1_ps(f32::from_bits(CANONICAL_NAN)), nan);
            }
            // SAFETY: as above.
            unsafe {
                _mm256_storeu_ps(state, _mm256_blendv_ps(value, next, touched));
                _mm256_storeu_ps(sum, _mm256_setzero_ps());
                _mm_storeu_si128(by, _mm_setzero_si128());
            }
        }
        run.step_from(whole, step, |a, b, c| fma_instruction(a, b, c), findings);
    }

    /// Not `f32::mul_add`: that is this instruction only if it happens to be inlined here.
    #[inline]
    #[target_feature(enable = "fma")]
    fn fma_instruction(a: f32, b: f32, c: f32) -> f32 {
        _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn lanes_avx2(vector: __m256) -> [f32; 8] {
        let mut lanes = [0.0; 8];
        // SAFETY: the array has 8 elements.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), vector) };
        lanes
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn pass_avx512(step: Step, sums: &mut Sums, window: Window<'_, '_>) -> Findings {
        let mut findings = Findings::default();
        match step.divisor {
            Divisor::Contributors => {
                window.each_run(sums, |run| run_avx512::<true>(run, step, &mut findings));
            }
            Divisor::All(_) => {
                window.each_run(sums, |run| run_avx512::<false>(run, step, &mut findings));
            }
        }
        findings
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn run_avx512<const BY_COUNT: bool>(run: Run<'_>, step: Step, findings: &mut Findings) {
        let minus_lr = _mm512_set1_ps(-step.lr);
        let all = _mm512_set1_ps(step.divisor.of(0));
        let length = run.length();
        for at in (0..length).step_by(16) {
            let within = if length - at >= 16 { !0 } else { (1u16 << (length - at)) - 1 };
            // SAFETY: `at` is below the length of all three.
            let (by, sum, state) = unsafe {
                (
                    run.sent.as_mut_ptr().add(at).cast(),
                    run.sum.as_mut_ptr().add(at),
                    run.state.as_mut_ptr().add(at),
                )
            };
            // SAFETY: lanes beyond the length are masked off: not read.
            let sent = unsafe { _mm256_maskz_loadu_epi16(within, by) };
            let touched = _mm256_test_epi16_mask(sent, sent);
            // SAFETY: as above, `touched` being part of `within`.
            let (total, value) = unsafe {
                (_mm512_maskz_loadu_ps(touched, sum), _mm512_maskz_loadu_ps(touched, state))
            };
            let divisor = if BY_COUNT {
                let count = _mm256_and_si256(sent, _mm256_set1_epi16(255));
                _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(count))
            } else {
                all
            };
            let delta = _mm512_div_ps(total, divisor);
            let mut next = _mm512_fmadd_ps(minus_lr, delta, value);
            // Quiet NaN, both infinities, signalling NaN. A delta that is not finite leaves no
            // finite next.
            if _mm512_mask_fpclass_ps_mask::<0x99>(touched, next) != 0 {
                note(
                    touched,
                    &lanes_avx512(delta),
                    &lanes_avx512(next),
                    run.element + at as u64,
                    findings,
                );
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(next, next);
                next = _mm512_mask_mov_ps(next, nan, _mm512_set1_ps(f32::from_bits(CANONICAL_NAN)));
            }
            // SAFETY: as above: lanes that are masked off are not written.
            unsafe {
                _mm512_mask_storeu_ps(state, touched, next);
                _mm512_mask_storeu_ps(sum, within, _mm512_setzero_ps());
                _mm256_mask_storeu_epi16(by, within, _mm256_setzero_si256());
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn lanes_avx512(vector: __m512) -> [f32; 16] {
        let mut lanes = [0.0; 16];
        // SAFETY: the array has 16 elements.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), vector) };
        lanes
    }

    /// Takes note of the lanes whose bit is set in `touched`.
    #[cold]
    #[inline(never)]
    fn note(touched: u16, delta: &[f32], next: &[f32], element: u64, findings: &mut Findings) {
        for lane in (0..delta.len()).filter(|lane| touched >> lane & 1 != 0) {
            findings.note(element + lane as u64, delta[lane], next[lane]);
        }
    }
}
