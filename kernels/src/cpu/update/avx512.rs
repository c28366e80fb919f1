//! Sixteen elements at a time.

use std::arch::x86_64::*;

use super::{Few, Run, Sums, Window};
use crate::band::{Divisor, Findings, Step};

/// As [`super::pass`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn pass(step: Step, sums: &mut Sums, window: Window<'_, '_>) -> Findings {
    let mut findings = Findings::default();
    match step.divisor {
        Divisor::Contributors => {
            window.each_run(sums, |run| step_run::<true>(run, step, &mut findings));
        }
        Divisor::All(_) => {
            window.each_run(sums, |run| step_run::<false>(run, step, &mut findings));
        }
    }
    // What was streamed becomes visible to other threads like any other write.
    _mm_sfence();
    findings
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn step_run<const BY_COUNT: bool>(mut run: Run<'_>, step: Step, findings: &mut Findings) {
    let minus_lr = _mm512_set1_ps(-step.lr);
    let all = _mm512_set1_ps(step.divisor.of(0));
    let length = run.length();
    // Whole cache lines that will not be read soon go past the caches.
    let stream = run.base.is_some() && run.next.as_ptr().cast::<__m512>().is_aligned();
    for at in (0..length).step_by(16) {
        let within = if length - at >= 16 { !0 } else { (1u16 << (length - at)) - 1 };
        let (base, next) = run.states(at);
        let (sum, by) = (run.sum[at..].as_mut_ptr(), run.sent[at..].as_mut_ptr().cast());
        // SAFETY: `at` is below the length of all four; lanes beyond it are masked off, which reads
        // and writes nothing.
        let (total, sent, before) = unsafe {
            (
                _mm512_maskz_loadu_ps(within, sum),
                _mm256_maskz_loadu_epi16(within, by),
                _mm512_maskz_loadu_ps(within, base),
            )
        };
        let touched = _mm256_test_epi16_mask(sent, sent);
        let divisor = if BY_COUNT {
            let count = _mm256_and_si256(sent, _mm256_set1_epi16(255));
            _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(count))
        } else {
            all
        };
        let delta = _mm512_div_ps(total, divisor);
        let mut after = _mm512_mask3_fmadd_ps(minus_lr, delta, before, touched);
        // Quiet NaN, both infinities, signalling NaN. A delta that is not finite leaves no finite
        // state.
        if _mm512_mask_fpclass_ps_mask::<0x99>(touched, after) != 0 {
            let mut few = Few { before: lanes(before), sum: lanes(total), sent: [0; 16] };
            // SAFETY: sixteen u16.
            unsafe { _mm256_storeu_si256(few.sent.as_mut_ptr().cast(), sent) };
            let few = few.step(run.element + at as u64, step, findings);
            // SAFETY: sixteen elements.
            after = unsafe { _mm512_loadu_ps(few.as_ptr()) };
        }
        // SAFETY: as above; a stream writes a whole vector to an aligned place.
        unsafe {
            if stream && within == !0 {
                _mm512_stream_ps(next, after);
            } else {
                _mm512_mask_storeu_ps(next, within, after);
            }
            _mm512_mask_storeu_ps(sum, within, _mm512_setzero_ps());
            _mm256_mask_storeu_epi16(by, within, _mm256_setzero_si256());
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn lanes(vector: __m512) -> [f32; 16] {
    let mut lanes = [0.0; 16];
    // SAFETY: the array has 16 elements.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), vector) };
    lanes
}
