//! Eight elements at a time.

use std::arch::x86_64::*;

use super::{Ahead, Few, Run, Sums, Window};
use crate::band::{Divisor, Findings, Step};

/// As [`super::pass`].
#[target_feature(enable = "avx2,fma")]
pub(super) fn pass(
    step: Step,
    sums: &mut Sums,
    window: Window<'_, '_>,
    ahead: &mut Ahead,
) -> Findings {
    let mut findings = Findings::default();
    match step.divisor {
        Divisor::Contributors => {
            window.each_run(sums, ahead, |run| step_run::<true>(run, step, &mut findings));
        }
        Divisor::All(_) => {
            window.each_run(sums, ahead, |run| step_run::<false>(run, step, &mut findings));
        }
    }
    // What was streamed becomes visible to other threads like any other write.
    _mm_sfence();
    findings
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn step_run<const BY_COUNT: bool>(mut run: Run<'_>, step: Step, findings: &mut Findings) {
    let minus_lr = _mm256_set1_ps(-step.lr);
    let all = _mm256_set1_ps(step.divisor.of(0));
    let length = run.length();
    let whole = length - length % 8;
    // Whole vectors that will not be read soon go past the caches.
    let stream = run.base.is_some() && run.next.as_ptr().cast::<__m256>().is_aligned();
    for at in (0..whole).step_by(8) {
        let (base, next) = run.states(at);
        let (sum, by) = (run.sum[at..].as_mut_ptr(), run.sent[at..].as_mut_ptr().cast());
        // SAFETY: 8 elements from `at` on are within all four; these need no alignment.
        let (total, sent, before) =
            unsafe { (_mm256_loadu_ps(sum), _mm_loadu_si128(by), _mm256_loadu_ps(base)) };
        let count = _mm256_cvtepu16_epi32(_mm_and_si128(sent, _mm_set1_epi16(255)));
        let untouched = _mm256_castsi256_ps(_mm256_cmpeq_epi32(count, _mm256_setzero_si256()));
        let delta = _mm256_div_ps(total, if BY_COUNT { _mm256_cvtepi32_ps(count) } else { all });
        let stepped = _mm256_fmadd_ps(minus_lr, delta, before);
        let mut after = _mm256_blendv_ps(stepped, before, untouched);
        // Finite less itself is 0, anything else NaN. A delta that is not finite leaves no finite
        // state.
        let less = _mm256_sub_ps(stepped, stepped);
        let infinite = _mm256_cmp_ps::<_CMP_UNORD_Q>(less, less);
        if _mm256_movemask_ps(_mm256_andnot_ps(untouched, infinite)) != 0 {
            let mut few = Few { before: lanes(before), sum: lanes(total), sent: [0; 8] };
            // SAFETY: eight u16.
            unsafe { _mm_storeu_si128(few.sent.as_mut_ptr().cast(), sent) };
            let few = few.step(run.element + at as u64, step, findings);
            // SAFETY: eight elements.
            after = unsafe { _mm256_loadu_ps(few.as_ptr()) };
        }
        // SAFETY: as above; a stream writes to an aligned place.
        unsafe {
            if stream {
                _mm256_stream_ps(next, after);
            } else {
                _mm256_storeu_ps(next, after);
            }
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
fn lanes(vector: __m256) -> [f32; 8] {
    let mut lanes = [0.0; 8];
    // SAFETY: the array has 8 elements.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), vector) };
    lanes
}
