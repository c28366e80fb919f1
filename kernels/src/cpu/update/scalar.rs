//! Plain code, for every processor; the compiler makes of it what vectors there are.

use super::{Ahead, Few, Run, Sums, Window};
use crate::band::{Divisor, Findings, Step};
use crate::fma;

/// Elements that are stepped at once.
const CHUNK: usize = 16;

/// As [`super::pass`].
pub(super) fn pass(step: Step, sums: &mut Sums, window: Window<'_, '_>, ahead: &mut Ahead) -> Findings {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") {
        // SAFETY: it was asked for just now.
        return unsafe { pass_with_fma(step, sums, window, ahead) };
    }
    pass_with(step, sums, window, ahead, fma::fma_f32)
}

/// The same code, where a fused multiply-add is one instruction. Of the vectors' instructions it may
/// use AVX, which come with it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "fma")]
fn pass_with_fma(step: Step, sums: &mut Sums, window: Window<'_, '_>, ahead: &mut Ahead) -> Findings {
    pass_with(step, sums, window, ahead, f32::mul_add)
}

#[inline(always)]
fn pass_with(
    step: Step,
    sums: &mut Sums,
    window: Window<'_, '_>,
    ahead: &mut Ahead,
    fma: impl Fn(f32, f32, f32) -> f32 + Copy,
) -> Findings {
    let mut findings = Findings::default();
    match step.divisor {
        Divisor::Contributors => {
            window.each_run(sums, ahead, |run| step_run::<true>(run, step, fma, &mut findings));
        }
        Divisor::All(_) => {
            window.each_run(sums, ahead, |run| step_run::<false>(run, step, fma, &mut findings));
        }
    }
    findings
}

/// Every element is computed and kept where somebody sent it: who sent what is as good as random.
#[inline(always)]
fn step_run<const BY_COUNT: bool>(
    run: Run<'_>,
    step: Step,
    fma: impl Fn(f32, f32, f32) -> f32,
    findings: &mut Findings,
) {
    let Run { base, next, sum, sent, element } = run;
    let (chunks, rest) = next.as_chunks_mut::<CHUNK>();
    let whole = chunks.len() * CHUNK;
    let sums = sum.as_chunks_mut::<CHUNK>().0.iter_mut().zip(sent.as_chunks_mut::<CHUNK>().0);
    for (chunk, (next, (sum, sent))) in chunks.iter_mut().zip(sums).enumerate() {
        let before = match base {
            Some(base) => *base[chunk * CHUNK..].first_chunk().expect("of one length"),
            None => *next,
        };
        let mut unusual = false;
        for at in 0..CHUNK {
            let count = if BY_COUNT { sent[at] & 255 } else { 0 };
            let stepped = fma(-step.lr, sum[at] / step.divisor.of(count.into()), before[at]);
            next[at] = if sent[at] == 0 { before[at] } else { stepped };
            unusual |= sent[at] != 0 && !stepped.is_finite();
        }
        if unusual {
            let few = Few { before, sum: *sum, sent: *sent };
            *next = few.step(element + (chunk * CHUNK) as u64, step, findings);
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
