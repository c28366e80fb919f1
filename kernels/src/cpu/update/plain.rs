//! Plain code, compiled for every processor and again for what many have; of vectors the compiler makes
//! what there are.

use super::{Ahead, Cell, Cells, Few, Run, Window};
use crate::band::{Divisor, Findings, Step};
use crate::fma;

/// Elements that are stepped at once.
const CHUNK: usize = 32;

/// As [`super::pass`].
pub(super) fn pass(
    step: Step,
    cells: &mut Cells,
    window: Window<'_, '_>,
    ahead: &mut Ahead,
) -> Findings {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") {
        // SAFETY: it was asked for just now.
        return unsafe { pass_with_fma(step, cells, window, ahead) };
    }
    pass_with(step, cells, window, ahead, (fma::fma_f32, |to, values| *to = values))
}

/// The same code, compiled for more instructions, of which a fused multiply-add is one.
#[cfg(target_arch = "x86_64")]
macro_rules! pass_compiled_for {
    ($features:literal, $name:ident) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name(
            step: Step,
            cells: &mut Cells,
            window: Window<'_, '_>,
            ahead: &mut Ahead,
        ) -> Findings {
            // Closures of this very function: any other is compiled for less.
            let fma = |a: f32, b, c| a.mul_add(b, c);
            let write = |to: &mut _, values| write_past_caches(to, values);
            let findings = pass_with(step, cells, window, ahead, (fma, write));
            // What was streamed becomes visible to other threads like any other write.
            std::arch::x86_64::_mm_sfence();
            findings
        }
    };
}

// With FMA comes AVX, which has no vectors of whole numbers as long as those of f32.
#[cfg(target_arch = "x86_64")]
pass_compiled_for!("fma", pass_with_fma);
#[cfg(target_arch = "x86_64")]
pass_compiled_for!("avx2,fma", pass_with_avx2);

#[inline(always)]
fn pass_with(
    step: Step,
    cells: &mut Cells,
    window: Window<'_, '_>,
    ahead: &mut Ahead,
    by: (impl Fn(f32, f32, f32) -> f32 + Copy, impl Fn(&mut [f32; CHUNK], [f32; CHUNK]) + Copy),
) -> Findings {
    let mut findings = Findings::default();
    let by_count = step.divisor == Divisor::Contributors;
    window.each_run(cells, ahead, |run| match (by_count, run.base.is_some()) {
        (true, true) => step_run::<true, true>(run, step, by, &mut findings),
        (true, false) => step_run::<true, false>(run, step, by, &mut findings),
        (false, true) => step_run::<false, true>(run, step, by, &mut findings),
        (false, false) => step_run::<false, false>(run, step, by, &mut findings),
    });
    findings
}

/// Every element is stepped: who sent what is as good as random.
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
    let Run { base, next, cells, element } = run;
    let (chunks, rest) = next.as_chunks_mut::<CHUNK>();
    let whole = chunks.len() * CHUNK;
    // Not an option to look into each time: the compiler would read both places.
    let before = base.unwrap_or(&[]).as_chunks::<CHUNK>().0;
    let chunks = chunks.iter_mut().zip(cells.as_chunks_mut::<CHUNK>().0);
    for (chunk, (next, cells)) in chunks.enumerate() {
        let before = if OUT { before[chunk] } else { *next };
        let mut after = before;
        // Apart first: else the compiler makes no vectors.
        let (mut sums, mut counts) = ([0.0; CHUNK], [0; CHUNK]);
        for at in 0..CHUNK {
            (sums[at], counts[at]) = (cells[at].sum(), cells[at].count());
        }
        let mut unusual = 0;
        for at in 0..CHUNK {
            // A signed number is the one that vectors convert.
            let count = (counts[at] as i32 as f32).max(1.0);
            let count = if BY_COUNT { count } else { all };
            after[at] = fma(-step.lr, sums[at] / count, before[at]);
            // Finite less itself is 0, anything else NaN.
            unusual |= (after[at] - after[at]).to_bits();
        }
        if unusual != 0 {
            let few = Few { before, cells: *cells };
            *next = few.step(element + (chunk * CHUNK) as u64, step, findings);
        } else if stream {
            stream_to(next, after);
        } else {
            *next = after;
        }
        *cells = [Cell::default(); CHUNK];
    }
    let run = Run {
        base: base.map(|base| &base[whole..]),
        next: rest,
        cells: &mut cells[whole..],
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
