//! Norms: the length of what a miner sent for one tensor, by two recipes that are fixed to the bit.

use crate::fma;

/// `sqrt(sum over codes ascending of count * value^2)` in f64, each step rounded (native).
///
/// It depends on how often each code occurs, not on the order of the values. A code that does not occur adds nothing, unless
/// its value is NaN or infinite: then 0 times it is NaN.
///
/// # Panics
///
/// If the slices differ in length.
#[must_use]
pub fn histogram_f64(counts: &[u64], values: &[f32]) -> f64 {
    assert_eq!(counts.len(), values.len(), "one count a value");
    let mut sum = 0.0f64;
    for (&count, &value) in counts.iter().zip(values) {
        let value = f64::from(value);
        // The square is exact: 48 bits at most.
        sum += count as f64 * (value * value);
    }
    sum.sqrt()
}

/// The norm as torch's CPU kernel takes it, over values in file order, however they are cut into pushes (Templar).
///
/// Eight f32 lanes over whole groups of eight, lane j adding `round(v * v)` of elements j, j + 8, ...; then the lanes in order. Of
/// the 0 to 7 values left, the first four, if there are four, one by one with the product rounded before the addition, the
/// last one to three one by one with a fused multiply-add; then the f32 square root.
///
/// # Source
///
/// torch 2.15.0, `linalg.vector_norm` on CPU, its AVX2 and AVX-512 builds alike, observed; Templar runs it over the dequantised values.
#[derive(Clone, Debug, Default)]
pub struct TorchCpuNorm {
    lanes: [f32; 8],
    /// The values after the last whole group, `left` of them.
    rest: [f32; 8],
    left: usize,
}

impl TorchCpuNorm {
    /// The norm of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next values.
    pub fn push(&mut self, mut values: &[f32]) {
        if self.left > 0 {
            let taken = values.len().min(8 - self.left);
            let (head, tail) = values.split_at(taken);
            self.rest[self.left..][..taken].copy_from_slice(head);
            self.left += taken;
            values = tail;
            if self.left < 8 {
                return;
            }
            add_squares(&mut self.lanes, &self.rest);
            self.left = 0;
        }
        let (groups, rest) = values.as_chunks::<8>();
        // A copy of its own lets the lanes stay in registers.
        let mut lanes = self.lanes;
        for group in groups {
            add_squares(&mut lanes, group);
        }
        self.lanes = lanes;
        self.rest[..rest.len()].copy_from_slice(rest);
        self.left = rest.len();
    }

    /// The norm of all that was pushed. 0 for nothing.
    #[must_use]
    pub fn finish(self) -> f32 {
        let mut sum = self.lanes.iter().fold(0.0f32, |sum, lane| sum + lane);
        let mut rest = &self.rest[..self.left];
        if let Some((four, last)) = rest.split_first_chunk::<4>() {
            for value in four {
                sum += value * value;
            }
            rest = last;
        }
        for &value in rest {
            sum = fma::fma_f32(value, value, sum);
        }
        sum.sqrt()
    }
}

#[inline(always)]
fn add_squares(lanes: &mut [f32; 8], group: &[f32; 8]) {
    for (lane, value) in lanes.iter_mut().zip(group) {
        *lane += value * value;
    }
}

#[cfg(test)]
mod tests {
    use super::{TorchCpuNorm, histogram_f64};
    use proptest::prelude::*;

    /// The recipe once more, over the whole slice.
    fn whole(values: &[f32]) -> f32 {
        let groups = values.len() / 8;
        let mut lanes = [0.0f32; 8];
        for (at, value) in values[..groups * 8].iter().enumerate() {
            lanes[at % 8] += value * value;
        }
        let mut sum = 0.0;
        lanes.iter().for_each(|lane| sum += lane);
        let tail = &values[groups * 8..];
        for (at, value) in tail.iter().enumerate() {
            let plain = tail.len() >= 4 && at < 4;
            sum = if plain {
                sum + value * value
            } else {
                value.mul_add(*value, sum)
            };
        }
        sum.sqrt()
    }

    proptest! {
        #[test]
        fn a_norm_does_not_depend_on_how_pushes_are_cut(
            values in prop::collection::vec(-1e3f32..1e3, 0..200),
            cuts in prop::collection::vec(0usize..20, 0..40),
        ) {
            let mut norm = TorchCpuNorm::new();
            let mut rest = values.as_slice();
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                norm.push(now);
                rest = later;
            }
            norm.push(rest);
            prop_assert_eq!(norm.finish().to_bits(), whole(&values).to_bits());
        }
    }

    #[test]
    fn the_norm_of_nothing_is_zero() {
        assert_eq!(TorchCpuNorm::new().finish().to_bits(), 0);
        assert_eq!(histogram_f64(&[], &[]).to_bits(), 0);
    }

    #[test]
    fn infinities_and_nan_reach_the_norm() {
        for at in 0..13 {
            let mut values = [1.0f32; 13];
            values[at] = f32::NEG_INFINITY;
            let mut norm = TorchCpuNorm::new();
            norm.push(&values);
            assert_eq!(norm.finish(), f32::INFINITY);
            values[at] = f32::NAN;
            let mut norm = TorchCpuNorm::new();
            norm.push(&values);
            assert!(norm.finish().is_nan());
        }
    }

    #[test]
    fn a_histogram_counts_each_code() {
        assert_eq!(histogram_f64(&[4, 0, 9], &[1.0, 5.0, -2.0]), 40f64.sqrt());
        assert!(histogram_f64(&[1, 0], &[1.0, f32::INFINITY]).is_nan());
    }
}
