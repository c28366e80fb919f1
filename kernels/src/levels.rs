//! Levels: what a miner's codes stand for, after its shift and its clipping factor.

use crate::canonical;

/// For every code `(lookup[code] + shift) * factor`, in f32, rounded after each step. A NaN is the canonical one.
///
/// With factor 1 these are the values whose norm is taken.
#[must_use]
pub fn levels(lookup: &[f32], shift: f32, factor: f32) -> Vec<f32> {
    lookup
        .iter()
        .map(|&value| canonical((value + shift) * factor))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::levels;
    use crate::CANONICAL_NAN;

    #[test]
    fn each_step_is_rounded() {
        let lookup = [1.0f32, -0.0, 3.0];
        let (shift, factor) = (2f32.powi(-24), 0.1f32);
        // 1 + 2^-24 is a tie and rounds to 1 before it is multiplied.
        assert_eq!(
            levels(&lookup, shift, factor),
            [0.1, shift * 0.1, 3.0 * 0.1]
        );
    }

    #[test]
    fn any_nan_becomes_the_canonical_one() {
        let odd_nan = f32::from_bits(0xffc0_1234);
        for out in [
            levels(&[odd_nan], 0.0, 1.0),
            levels(&[1.0], odd_nan, 1.0),
            levels(&[f32::INFINITY], f32::NEG_INFINITY, 1.0),
            levels(&[f32::INFINITY], 0.0, 0.0),
        ] {
            assert_eq!(out[0].to_bits(), CANONICAL_NAN);
        }
    }
}
