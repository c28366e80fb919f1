//! From the values that a miner keeps of a tensor to a book and a code for each.
//!
//! Elementwise steps in f32; sums in f64 over runs of [`RUN`] values, each run front to back, the
//! runs added in order: so no bit depends on the number of threads. See `schema/encode.md`.
//!
//! Source: Templar 2.1.28, `TopKCompressor`, whose sums are f32 in an order of torch's choosing.

use rayon::prelude::*;

/// Values that are summed front to back before the sum joins those of the runs before.
pub const RUN: usize = 1 << 16;

/// The least scale: the first f32 that is not below 1e-12, where Templar's gather starts to refuse.
pub const SCALE_MIN: f32 = f32::from_bits(0x2b8c_bccd);

/// The largest scale: 1e4.
pub const SCALE_MAX: f32 = 1e4;

/// The scale of values that are all equal, whatever they are.
pub const SCALE_OF_EQUALS: f32 = 1.0;

/// A book, and the code of each value.
#[derive(Clone, Debug)]
pub struct Quantised {
    /// Added to every lookup value: the mean.
    pub shift: f32,
    /// The width of a code's interval, [`SCALE_MIN`] to [`SCALE_MAX`]. Decoding does not need it.
    pub scale: f32,
    /// What each code stands for, less the shift; 0 for a code that does not occur.
    pub lookup: Vec<f32>,
    /// A code a value.
    pub codes: Vec<u8>,
    /// How often each code occurs.
    pub counts: Vec<u64>,
}

/// Quantises `values` to `bins` levels that span `range` standard deviations.
///
/// In f64 unless said otherwise, with `n` values:
///
/// 1. `shift = f32(sum(v) / n)`
/// 2. `c = v - shift`, in f32
/// 3. `scale = f32(range * sqrt(sum(c * c) / (n - 1)) / bins)`, then between [`SCALE_MIN`] and
///    [`SCALE_MAX`]; [`SCALE_OF_EQUALS`] if it is 0 or not a number
/// 4. `code = clamp(round_ties_even(c / scale + bins / 2), 0, bins - 1)`, in f32
/// 5. `lookup[code] = f32(sum of c with this code / their number)`
///
/// Values whose differences overflow f32 give a book with entries that are not finite, which every
/// reader refuses: callers check the book.
///
/// # Panics
///
/// With less than two values, or `bins` outside 2 to 256.
#[must_use]
pub fn quantise(values: &[f32], bins: usize, range: u32) -> Quantised {
    assert!(values.len() >= 2, "a block keeps at least two");
    assert!((2..=256).contains(&bins), "a code is a byte");
    let n = values.len() as f64;
    let shift = (sum(values, f64::from) / n) as f32;
    let square = |v: f32| f64::from(v - shift) * f64::from(v - shift);
    let deviation = (sum(values, square) / (n - 1.0)).sqrt();
    let scale = in_range((f64::from(range) * deviation / bins as f64) as f32);
    let mut codes = vec![0; values.len()];
    let runs: Vec<Tally> = values
        .par_chunks(RUN)
        .zip(codes.par_chunks_mut(RUN))
        .map(|(values, codes)| Tally::of(values, codes, shift, scale, bins))
        .collect();
    let mut whole = Tally::new(bins);
    runs.iter().for_each(|run| whole.add(run));
    let mean = |(&sum, &count): (&f64, &u64)| {
        if count == 0 { 0.0 } else { (sum / count as f64) as f32 }
    };
    let lookup = whole.sums.iter().zip(&whole.counts).map(mean).collect();
    Quantised { shift, scale, lookup, codes, counts: whole.counts }
}

fn in_range(scale: f32) -> f32 {
    if scale > 0.0 { scale.clamp(SCALE_MIN, SCALE_MAX) } else { SCALE_OF_EQUALS }
}

/// The sum of `of` over `values`, run by run.
pub fn sum(values: &[f32], of: impl Fn(f32) -> f64 + Sync) -> f64 {
    let run = |run: &[f32]| run.iter().fold(0.0, |sum, &value| sum + of(value));
    let runs: Vec<f64> = values.par_chunks(RUN).map(run).collect();
    runs.iter().fold(0.0, |sum, run| sum + run)
}

/// Per code: the sum of the values less the shift, and their number.
struct Tally {
    sums: Vec<f64>,
    counts: Vec<u64>,
}

impl Tally {
    fn new(bins: usize) -> Self {
        Self { sums: vec![0.0; bins], counts: vec![0; bins] }
    }

    fn of(values: &[f32], codes: &mut [u8], shift: f32, scale: f32, bins: usize) -> Self {
        let mut tally = Self::new(bins);
        let (offset, top) = ((bins / 2) as f32, (bins - 1) as f32);
        for (&value, place) in values.iter().zip(codes) {
            let centred = value - shift;
            let level = (centred / scale + offset).round_ties_even().clamp(0.0, top);
            let code = level as usize; // Of a NaN, 0; its book is refused.
            tally.sums[code] += f64::from(centred);
            tally.counts[code] += 1;
            *place = code as u8;
        }
        tally
    }

    fn add(&mut self, run: &Self) {
        self.sums.iter_mut().zip(&run.sums).for_each(|(sum, more)| *sum += more);
        self.counts.iter_mut().zip(&run.counts).for_each(|(count, more)| *count += more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    fn bits(q: &Quantised) -> (u32, u32, Vec<u32>, Vec<u8>, Vec<u64>) {
        let lookup = q.lookup.iter().map(|v| v.to_bits()).collect();
        (q.shift.to_bits(), q.scale.to_bits(), lookup, q.codes.clone(), q.counts.clone())
    }

    #[test]
    fn threads_change_no_bit() {
        let values: Vec<f32> = (0..3 * RUN as u32 + 5)
            .map(|at| (at.wrapping_mul(2_654_435_761) as i32 as f32) * 1e-12)
            .collect();
        for bins in [4, 16, 256] {
            let one = pool(1).install(|| bits(&quantise(&values, bins, 6)));
            for threads in 2..=8 {
                assert_eq!(pool(threads).install(|| bits(&quantise(&values, bins, 6))), one);
            }
        }
    }

    #[test]
    fn equal_values_take_the_middle_code_and_decode_to_themselves() {
        for value in [0.0, -0.0, 1.5, -1e-38, 1e30, f32::from_bits(1)] {
            let q = quantise(&[value; 10], 4, 6);
            assert_eq!(
                (q.scale, &q.codes[..], &q.counts[..]),
                (1.0, &[2; 10][..], &[0, 0, 10, 0][..])
            );
            assert_eq!(q.lookup[2] + q.shift, value);
        }
    }

    #[test]
    fn a_scale_stays_within_what_templar_takes() {
        let tiny = quantise(&[1e-20, -1e-20, 3e-20, 0.0], 4, 6);
        assert_eq!(tiny.scale, SCALE_MIN);
        assert!(f64::from(SCALE_MIN) >= 1e-12);
        assert!(f64::from(f32::from_bits(SCALE_MIN.to_bits() - 1)) < 1e-12);
        let huge = quantise(&[1e9, -1e9, 3e9, 0.0], 4, 6);
        assert_eq!(huge.scale, SCALE_MAX);
        assert_eq!(huge.codes, [3, 0, 3, 0]);
    }

    #[test]
    fn a_small_example_by_hand() {
        // Mean 1; centred -3, -1, 1, 3; std sqrt(20 / 3); scale 6 / 4 of it = 3.873.
        let q = quantise(&[-2.0, 0.0, 2.0, 4.0], 4, 6);
        assert_eq!(q.shift, 1.0);
        assert_eq!(q.scale, (6.0 * (20.0f64 / 3.0).sqrt() / 4.0) as f32);
        assert_eq!(q.codes, [1, 2, 2, 3]);
        assert_eq!(q.lookup, [0.0, -3.0, 0.0, 3.0]);
    }

    #[test]
    fn a_code_between_two_is_the_even_one() {
        // Scale 1 by hand: 2 + 0.5 rounds to 2, 2 + 1.5 to 4 (clamped to 3), 2 - 0.5 to 2.
        let mut codes = [0; 3];
        Tally::of(&[0.5, 1.5, -0.5], &mut codes, 0.0, 1.0, 4);
        assert_eq!(codes, [2, 3, 2]);
    }
}
