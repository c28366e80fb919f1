//! Clipping to the median: the factor that each miner's values of a tensor are multiplied with.
//!
//! The lower median over the miners; `factor = min(median / (norm + 1e-8), 1)`. One NaN norm makes the median NaN, and a NaN
//! factor stays NaN (torch's clamp does so; Rust's `min` would drop it), written as [`CANONICAL_NAN`].
//!
//! Source: Templar v2.1.28, `tplr/neurons.py`, `outer_step` with `clip_norm: median`; native runs do the same in f64.

use crate::{CANONICAL_NAN, canonical};

const _: () = assert!(1e-8f32.to_bits() == 0x322b_cc77);
const _: () = assert!(1e-8f64.to_bits() == 0x3e45_798e_e230_8c3a);

/// The lower median, or NaN if any norm is NaN. `None` for no norms.
macro_rules! lower_median {
    ($norms:expr, $float:ty) => {{
        let mut sorted = $norms.to_vec();
        sorted.sort_unstable_by(<$float>::total_cmp);
        if sorted.iter().any(|norm| norm.is_nan()) {
            Some(<$float>::NAN)
        } else {
            sorted.get(sorted.len().saturating_sub(1) / 2).copied()
        }
    }};
}

/// One factor a miner, all steps in f32 (Templar).
#[must_use]
pub fn factors_f32(norms: &[f32]) -> Vec<f32> {
    let Some(median) = lower_median!(norms, f32) else {
        return Vec::new();
    };
    norms
        .iter()
        .map(|norm| {
            let ratio = median / (norm + 1e-8);
            // Not `ratio.min(1.0)`: that turns NaN into 1.
            if ratio > 1.0 { 1.0 } else { canonical(ratio) }
        })
        .collect()
}

/// One factor a miner, all steps in f64, rounded once to f32 (native).
#[must_use]
pub fn factors_f64(norms: &[f64]) -> Vec<f32> {
    let Some(median) = lower_median!(norms, f64) else {
        return Vec::new();
    };
    norms
        .iter()
        .map(|norm| {
            let ratio = median / (norm + 1e-8);
            if ratio.is_nan() {
                f32::from_bits(CANONICAL_NAN)
            } else if ratio > 1.0 {
                1.0
            } else {
                ratio as f32
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{factors_f32, factors_f64};
    use crate::CANONICAL_NAN;

    const INF: f32 = f32::INFINITY;

    #[test]
    fn the_median_of_an_even_count_is_the_lower_one() {
        let by_hand = |norm: f32| 2.0f32 / (norm + 1e-8);
        assert_eq!(
            factors_f32(&[3.0, 1.0, 8.0, 2.0]),
            [by_hand(3.0), 1.0, by_hand(8.0), by_hand(2.0)]
        );
        assert_eq!(factors_f64(&[4.0, 2.0]), [0.5, 1.0]);
        assert_eq!(factors_f64(&[2.0]), [1.0]);
    }

    #[test]
    fn no_miners_no_factors() {
        assert!(factors_f32(&[]).is_empty() && factors_f64(&[]).is_empty());
    }

    #[test]
    fn one_nan_norm_makes_every_factor_nan() {
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001)] {
            for factor in factors_f32(&[1.0, nan, 2.0])
                .into_iter()
                .chain(factors_f64(&[1.0, nan.into(), 2.0]))
            {
                assert_eq!(factor.to_bits(), CANONICAL_NAN);
            }
        }
    }

    #[test]
    fn infinity_over_infinity_stays_nan_and_over_a_number_is_one() {
        let factors = factors_f32(&[INF, 1.0, INF]);
        assert_eq!(
            factors.iter().map(|f| f.to_bits()).collect::<Vec<_>>(),
            [CANONICAL_NAN, 0x3f80_0000, CANONICAL_NAN]
        );
        let factors = factors_f64(&[f64::INFINITY, 1.0, f64::INFINITY]);
        assert_eq!(
            factors.iter().map(|f| f.to_bits()).collect::<Vec<_>>(),
            [CANONICAL_NAN, 0x3f80_0000, CANONICAL_NAN]
        );
    }

    #[test]
    fn an_infinite_norm_under_a_finite_median_gives_zero() {
        assert_eq!(factors_f32(&[1.0, INF, 2.0])[1].to_bits(), 0);
        assert_eq!(factors_f64(&[1.0, f64::INFINITY, 2.0])[1].to_bits(), 0);
    }

    #[test]
    fn all_zero_norms_give_zero() {
        assert_eq!(factors_f32(&[0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(factors_f64(&[0.0, 0.0]), [0.0, 0.0]);
    }
}
