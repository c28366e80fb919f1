//! Plain code, for every processor; the compiler makes of it what vectors there are.

use super::{Ahead, Few, Run, Sums, Window};
use crate::band::{Divisor, Findings, Step};
use crate::fma;

/// Elements that are stepped at once.
const CHUNK: usize = 16;

/// As [`super::pass`].
pub(super) fn pass(
    step: Step,
    sums: &mut Sums,
    window: Window<'_, '_>,
    ahead: &mut Ahead,
) -> Findings {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") {
        // SAFETY: it was asked for just now.
        return unsafe { pass_with_fma(step, sums, window, ahead) };
    }
    pass_with(step, sums, window, ahead, (fma::fma_f32, |to, values| *to = values))
}

/// The same code, where a fused multiply-add is one instruction. Of the vectors' instructions it may
/// use AVX, which come with it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "fma")]
fn pass_with_fma(
    step: Step,
    sums: &mut Sums,
    window: Window<'_, '_>,
    ahead: &mut Ahead,
) -> Findings {
    // Closures, not names of functions, which might be called as they are compiled elsewhere.
    let by = (|a: f32, b, c| a.mul_add(b, c), |to: &mut _, values| write_past_caches(to, values));
    let findings = pass_with(step, sums, window, ahead, by);
    // What was streamed becomes visible to other threads like any other write.
    std::arch::x86_64::_mm_sfence();
    findings
}

#[inline(always)]
fn pass_with(
    step: Step,
    sums: &mut Sums,
    window: Window<'_, '_>,
    ahead: &mut Ahead,
    by: (impl Fn(f32, f32, f32) -> f32 + Copy, impl Fn(&mut [f32; CHUNK], [f32; CHUNK]) + Copy),
) -> Findings {
    let mut findings = Findings::default();
    let by_count = step.divisor == Divisor::Contributors;
    window.each_run(sums, ahead, |run| match (by_count, run.base.is_some()) {
        (true, true) => step_run::<true, true>(run, step, by, &mut findings),
        (true, false) => step_run::<true, false>(run, step, by, &mut findings),
        (false, true) => step_run::<false, true>(run, step, by, &mut findings),
        (false, false) => step_run::<false, false>(run, step, by, &mut findings),
    });
    findings
}

/// Every element is computed and kept where somebody sent it: who sent what is as good as random.
#[inline(always)]
#[allow(clippy::eq_op)] // Less itself: the cheapest question whether a value is finite.
fn step_run<const BY_COUNT: bool, const OUT: bool>(
    run: Run<'_>,
    step: Step,
    (fma, stream_to): (impl Fn(f32, f32, f32) -> f32, impl Fn(&mut [f32; CHUNK], [f32; CHUNK])),
    findings: &mut Findings,
) {
    let stream = run.streams();
    let all = step.divisor.of(0);
    let Run { base, next, sum, sent, element } = run;
    let (chunks, rest) = next.as_chunks_mut::<CHUNK>();
    let whole = chunks.len() * CHUNK;
    // Not an option to look into each time: the compiler would read both places.
    let before = base.unwrap_or(&[]).as_chunks::<CHUNK>().0;
    let sums = sum.as_chunks_mut::<CHUNK>().0.iter_mut().zip(sent.as_chunks_mut::<CHUNK>().0);
    for (chunk, (next, (sum, sent))) in chunks.iter_mut().zip(sums).enumerate() {
        let before = if OUT { before[chunk] } else { *next };
        let mut after = before;
        let mut unusual = 0;
        for at in 0..CHUNK {
            // A signed number is the one that vectors convert.
            let count = i32::from(sent[at] & 255 | u16::from(sent[at] == 0)) as f32;
            let count = if BY_COUNT { count } else { all };
            let stepped = fma(-step.lr, sum[at] / count, before[at]);
            after[at] = if sent[at] == 0 { before[at] } else { stepped };
            // Finite less itself is 0, anything else NaN; what nobody sent is stepped in vain.
            unusual |= (stepped - stepped).to_bits();
        }
        if unusual != 0 {
            let few = Few { before, sum: *sum, sent: *sent };
            after = few.step(element + (chunk * CHUNK) as u64, step, findings);
        }
        if stream {
            stream_to(next, after);
        } else {
            *next = after;
        }
        (*sum, *sent) = ([0.0; CHUNK], [0; CHUNK]);
    }
    let run = Run {
        base: base.map(|base| &base[whole..]),
        next: rest,
        sum: &mut sum[whole..],
        sent: &mut sent[whole..],
        element: element + whole as u64,
    };
    run.step_from(0, step, fma, findings);
}

/// As `*to = values`, past the caches; `to` begins with a line of the caches.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx")]
fn write_past_caches(to: &mut [f32; CHUNK], values: [f32; CHUNK]) {
    use std::arch::x86_64::{_mm256_loadu_ps, _mm256_stream_ps};
    assert!(to.as_ptr().addr().is_multiple_of(64), "what streams begins with a line");
    for (to, values) in to.as_chunks_mut::<8>().0.iter_mut().zip(values.as_chunks::<8>().0) {
        // SAFETY: eight f32 each, and the place is aligned.
        unsafe { _mm256_stream_ps(to.as_mut_ptr(), _mm256_loadu_ps(values.as_ptr())) };
    }
}
