//! Sixty-four elements at a time, in four vectors of sixteen.

use std::arch::x86_64::*;

use super::{Ahead, Cell, Cells, Few, Run, SMALL, Stepping, Window};
use crate::band::{Divisor, Findings, Step};

/// Elements of a vector.
const LANES: usize = 16;
/// Cells of a vector.
const HALF: usize = LANES / 2;
/// Vectors that are stepped together, with one question for all whether a lane needs more care.
const VECTORS: usize = 4;

/// As [`super::pass`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn pass(
    stepping: Stepping,
    cells: &mut Cells,
    window: Window<'_, '_>,
    ahead: &mut Ahead,
) -> Findings {
    let (mut findings, step) = (Findings::default(), stepping.step);
    let of = Constants::new(step);
    match (step.divisor, stepping.small) {
        (Divisor::Contributors, true) => {
            window.each_run(cells, ahead, |run| step_run::<BY_SMALL>(run, step, of, &mut findings));
        }
        (Divisor::Contributors, false) => {
            window.each_run(cells, ahead, |run| step_run::<BY_COUNT>(run, step, of, &mut findings));
        }
        (Divisor::All(_), _) => {
            window.each_run(cells, ahead, |run| step_run::<BY_ALL>(run, step, of, &mut findings));
        }
    }
    // What was streamed becomes visible to other threads like any other write.
    _mm_sfence();
    findings
}

/// Divide by a count whose reciprocal is at hand, by any count, by one number.
const BY_SMALL: u8 = 0;
const BY_COUNT: u8 = 1;
const BY_ALL: u8 = 2;

#[derive(Clone, Copy)]
struct Constants {
    minus_lr: __m512,
    all: __m512,
    /// Where in two vectors of cells the sums lie, and who is in them.
    even: __m512i,
    odd: __m512i,
    /// The numbers from 0 to 31, and their reciprocals.
    counts: [__m512; 2],
    reciprocals: [__m512; 2],
}

impl Constants {
    #[target_feature(enable = "avx512f")]
    fn new(step: Step) -> Self {
        const COUNTS: [f32; SMALL] = {
            let mut counts = [0.0; SMALL];
            let mut count = 0;
            while count < SMALL {
                counts[count] = count as f32;
                count += 1;
            }
            counts
        };
        const RECIPROCALS: [f32; SMALL] = {
            // Of 0, which nobody sent, anything finite will do: the sum is 0.
            let mut reciprocals = [1.0; SMALL];
            let mut count = 1;
            while count < SMALL {
                reciprocals[count] = 1.0 / COUNTS[count];
                count += 1;
            }
            reciprocals
        };
        // SAFETY: sixteen elements lie at each place.
        let two = |of: &[f32; SMALL]| unsafe {
            [_mm512_loadu_ps(of.as_ptr()), _mm512_loadu_ps(of[LANES..].as_ptr())]
        };
        Self {
            minus_lr: _mm512_set1_ps(-step.lr),
            all: _mm512_set1_ps(step.divisor.of(0)),
            even: _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
            odd: _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31),
            counts: two(&COUNTS),
            reciprocals: two(&RECIPROCALS),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn step_run<const BY: u8>(mut run: Run<'_>, step: Step, of: Constants, findings: &mut Findings) {
    let length = run.length();
    // Whole cache lines that will not be read soon go past the caches.
    let stream = run.base.is_some() && run.next.as_ptr().cast::<__m512>().is_aligned();
    let whole = length - length % (VECTORS * LANES);
    for at in (0..whole).step_by(VECTORS * LANES) {
        let all = [!0; VECTORS];
        if stream {
            vectors::<BY, true, VECTORS>(&mut run, at, all, step, of, findings);
        } else {
            vectors::<BY, false, VECTORS>(&mut run, at, all, step, of, findings);
        }
    }
    for at in (whole..length).step_by(LANES) {
        let within = if length - at >= LANES { !0 } else { (1 << (length - at)) - 1 };
        vectors::<BY, false, 1>(&mut run, at, [within], step, of, findings);
    }
}

/// Steps the lanes `within` of `N` vectors from `at` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn vectors<const BY: u8, const STREAM: bool, const N: usize>(
    run: &mut Run<'_>,
    at: usize,
    within: [__mmask16; N],
    step: Step,
    of: Constants,
    findings: &mut Findings,
) {
    let (base, next) = run.states(at);
    let cells = run.cells[at..].as_mut_ptr().cast::<i64>();
    let mut totals = [_mm512_setzero_ps(); N];
    let mut sent = [_mm512_setzero_si512(); N];
    let mut before = [_mm512_setzero_ps(); N];
    let mut after = [_mm512_setzero_ps(); N];
    let mut unusual = 0;
    for v in 0..N {
        let lane = v * LANES;
        // SAFETY: the lanes `within` are below the length of all three; others are masked off, which
        // reads nothing.
        unsafe {
            let [low, high] = halves(within[v]);
            let low = _mm512_maskz_loadu_epi64(low, cells.add(lane));
            let high = _mm512_maskz_loadu_epi64(high, cells.wrapping_add(lane + HALF));
            totals[v] = _mm512_castsi512_ps(_mm512_permutex2var_epi32(low, of.even, high));
            sent[v] = _mm512_permutex2var_epi32(low, of.odd, high);
            before[v] = _mm512_maskz_loadu_ps(within[v], base.add(lane));
        }
        let delta = quotient::<BY>(totals[v], sent[v], of);
        after[v] = _mm512_fmadd_ps(of.minus_lr, delta, before[v]);
        // Quiet NaN, both infinities, signalling NaN. A delta that is not finite leaves no finite
        // state.
        unusual |= _mm512_fpclass_ps_mask::<0x99>(after[v]);
    }
    if unusual != 0 {
        for v in 0..N {
            let element = run.element + (at + v * LANES) as u64;
            after[v] = carefully(before[v], totals[v], sent[v], element, step, findings);
        }
    }
    for v in 0..N {
        let lane = v * LANES;
        // SAFETY: as above; a stream writes a whole vector to an aligned place.
        unsafe {
            if STREAM {
                _mm512_stream_ps(next.add(lane), after[v]);
            } else {
                _mm512_mask_storeu_ps(next.add(lane), within[v], after[v]);
            }
            let [low, high] = halves(within[v]);
            _mm512_mask_storeu_epi64(cells.add(lane), low, _mm512_setzero_si512());
            _mm512_mask_storeu_epi64(cells.wrapping_add(lane + HALF), high, _mm512_setzero_si512());
        }
    }
}

/// The lanes of the lower and of the upper eight cells.
#[inline(always)]
fn halves(within: __mmask16) -> [__mmask8; 2] {
    [within as u8, (within >> HALF) as u8]
}

/// Sixteen elements of which one may not be finite after the step.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn carefully(
    before: __m512,
    total: __m512,
    sent: __m512i,
    element: u64,
    step: Step,
    findings: &mut Findings,
) -> __m512 {
    let (mut values, mut sums, mut by) = ([0.0; LANES], [0.0; LANES], [0; LANES]);
    // SAFETY: sixteen elements each.
    unsafe {
        _mm512_storeu_ps(values.as_mut_ptr(), before);
        _mm512_storeu_ps(sums.as_mut_ptr(), total);
        _mm512_storeu_si512(by.as_mut_ptr().cast(), sent);
    }
    let cells = std::array::from_fn(|lane| Cell::new(sums[lane], by[lane]));
    let after = Few { before: values, cells }.step(element, step, findings);
    // SAFETY: sixteen elements.
    unsafe { _mm512_loadu_ps(after.as_ptr()) }
}

/// Each sum over what it is divided by; 0 where nobody sent.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn quotient<const BY: u8>(sum: __m512, sent: __m512i, of: Constants) -> __m512 {
    match BY {
        BY_SMALL => {
            // `super::small_quotient`. Of an index into the two vectors five bits matter: the count's.
            let count = _mm512_permutex2var_ps(of.counts[0], sent, of.counts[1]);
            let reciprocal = _mm512_permutex2var_ps(of.reciprocals[0], sent, of.reciprocals[1]);
            let near = _mm512_mul_ps(sum, reciprocal);
            let left = _mm512_fnmadd_ps(near, count, sum);
            _mm512_fmadd_ps(left, reciprocal, near)
        }
        BY_COUNT => {
            let count = _mm512_and_si512(sent, _mm512_set1_epi32(0xffff));
            _mm512_div_ps(sum, _mm512_max_ps(_mm512_cvtepi32_ps(count), _mm512_set1_ps(1.0)))
        }
        _ => _mm512_div_ps(sum, of.all),
    }
}
