//! Updating: one pass over a group's rows of the state, dividing and stepping, and clearing the sums on the way.

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
    /// Calls `update` with each run, and has the next group's fetched.
    #[inline(always)]
    fn each_run(self, sums: &mut Sums, mut update: impl FnMut(Run<'_>)) {
        let height = self.rows.len();
        let (runs, length) = if height == 1 {
            (1, self.blocks * self.width)
        } else {
            (self.blocks, self.width)
        };
        for (r, row) in self.rows.iter_mut().enumerate() {
            for run in 0..runs {
                let column = self.column + run * length;
                prefetch(row, column + self.blocks * self.width, length);
                let at = (run * height + r) * length;
                update(Run {
                    state: &mut row[column..][..length],
                    sum: &mut sums.sum[at..][..length],
                    sent: &mut sums.sent[at..][..length],
                    element: (self.origin + r * self.stride + run * length) as u64,
                });
            }
        }
    }
}

/// Steps every element of the window that somebody sent, and zeroes the sums. `path` must be available.
pub(super) fn pass(path: Path, step: Step, sums: &mut Sums, window: Window<'_, '_>) -> Findings {
    match path {
        Path::Scalar => {
            let mut findings = Findings::default();
            window.each_run(sums, |run| {
                run.step_from(0, step, fma::fma_f32, &mut findings)
            });
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
        window.each_run(sums, |run| run_avx2(run, step, &mut findings));
        findings
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn run_avx2(run: Run<'_>, step: Step, findings: &mut Findings) {
        let minus_lr = _mm256_set1_ps(-step.lr);
        let whole = run.state.as_chunks_mut::<8>().0.iter_mut();
        let sums = run
            .sum
            .as_chunks_mut::<8>()
            .0
            .iter_mut()
            .zip(run.sent.as_chunks_mut::<8>().0);
        let mut done = 0;
        for (state, (sum, sent)) in whole.zip(sums) {
            let element = run.element + done as u64;
            done += 8;
            // SAFETY: each array has 8 elements, of 4, 4 and 2 bytes; loads and stores need no alignment.
            let (by, total, value) = unsafe {
                (
                    _mm_loadu_si128(sent.as_ptr().cast()),
                    _mm256_loadu_ps(sum.as_ptr()),
                    _mm256_loadu_ps(state.as_ptr()),
                )
            };
            if _mm_testz_si128(by, by) != 0 {
                continue;
            }
            let count = _mm256_cvtepu16_epi32(_mm_and_si128(by, _mm_set1_epi16(255)));
            let touched = _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_setzero_si256()));
            let divisor = match step.divisor {
                Divisor::Contributors => _mm256_cvtepi32_ps(count),
                Divisor::All(_) => _mm256_set1_ps(step.divisor.of(0)),
            };
            let delta = _mm256_div_ps(total, divisor);
            let mut next = _mm256_fmadd_ps(minus_lr, delta, value);
            // Finite less finite is 0; anything else is NaN. A delta that is not finite leaves no finite next.
            let finite =
                _mm256_cmp_ps::<_CMP_EQ_OQ>(_mm256_sub_ps(next, next), _mm256_setzero_ps());
            if _mm256_movemask_ps(_mm256_andnot_ps(finite, touched)) != 0 {
                note(
                    &lanes_avx2(touched).map(|bits| bits != 0),
                    lanes_avx2(delta),
                    lanes_avx2(next),
                    element,
                    findings,
                );
                let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(next, next);
                next = _mm256_blendv_ps(next, _mm256_set1_ps(f32::from_bits(CANONICAL_NAN)), nan);
            }
            let next = _mm256_blendv_ps(value, next, touched);
            // SAFETY: as for the loads.
            unsafe {
                _mm256_storeu_ps(state.as_mut_ptr(), next);
                _mm256_storeu_ps(sum.as_mut_ptr(), _mm256_setzero_ps());
                _mm_storeu_si128(sent.as_mut_ptr().cast(), _mm_setzero_si128());
            }
        }
        // One instruction here, as this function is compiled for FMA.
        run.step_from(done, step, f32::mul_add, findings);
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn lanes_avx2(vector: __m256) -> [u32; 8] {
        let mut lanes = [0; 8];
        // SAFETY: the array has 32 bytes.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_castps_si256(vector)) };
        lanes
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn pass_avx512(step: Step, sums: &mut Sums, window: Window<'_, '_>) -> Findings {
        let mut findings = Findings::default();
        window.each_run(sums, |run| run_avx512(run, step, &mut findings));
        findings
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn run_avx512(run: Run<'_>, step: Step, findings: &mut Findings) {
        let minus_lr = _mm512_set1_ps(-step.lr);
        let length = run.state.len();
        assert!(
            run.sum.len() == length && run.sent.len() == length,
            "a run has one length"
        );
        for at in (0..length).step_by(16) {
            let within = if length - at >= 16 {
                !0
            } else {
                (1u16 << (length - at)) - 1
            };
            // SAFETY: `at` is below the length of all three, and lanes that are not are masked off: not read.
            let (by, sum, state) = unsafe {
                let by = _mm256_maskz_loadu_epi16(within, run.sent.as_ptr().add(at).cast());
                (
                    by,
                    run.sum.as_mut_ptr().add(at),
                    run.state.as_mut_ptr().add(at),
                )
            };
            let touched = _mm256_test_epi16_mask(by, by);
            if touched == 0 {
                continue;
            }
            // SAFETY: as above, `touched` being part of `within`.
            let (total, value) = unsafe {
                (
                    _mm512_maskz_loadu_ps(touched, sum),
                    _mm512_maskz_loadu_ps(touched, state),
                )
            };
            let divisor = match step.divisor {
                Divisor::Contributors => _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(
                    _mm256_and_si256(by, _mm256_set1_epi16(255)),
                )),
                Divisor::All(_) => _mm512_set1_ps(step.divisor.of(0)),
            };
            let delta = _mm512_div_ps(total, divisor);
            let mut next = _mm512_fmadd_ps(minus_lr, delta, value);
            // Quiet NaN, both infinities, signalling NaN. A delta that is not finite leaves no finite next.
            if _mm512_mask_fpclass_ps_mask::<0x99>(touched, next) != 0 {
                note(
                    &std::array::from_fn::<bool, 16, _>(|lane| touched >> lane & 1 != 0),
                    lanes_avx512(delta),
                    lanes_avx512(next),
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
                _mm256_mask_storeu_epi16(
                    run.sent.as_mut_ptr().add(at).cast(),
                    within,
                    _mm256_setzero_si256(),
                );
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn lanes_avx512(vector: __m512) -> [u32; 16] {
        let mut lanes = [0; 16];
        // SAFETY: the array has 64 bytes.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr().cast(), vector) };
        lanes
    }

    /// Takes note of the lanes that somebody sent.
    #[cold]
    fn note<const N: usize>(
        touched: &[bool; N],
        delta: [u32; N],
        next: [u32; N],
        element: u64,
        findings: &mut Findings,
    ) {
        for lane in (0..N).filter(|&lane| touched[lane]) {
            findings.note(
                element + lane as u64,
                f32::from_bits(delta[lane]),
                f32::from_bits(next[lane]),
            );
        }
    }
}
