//! `a * b + c` in f32 with one rounding, the same on every machine, without libm.
//!
//! `f32::mul_add` is one instruction where the target has it, and a call into libm where it does not; x86-64 as Rust targets it
//! by default does not. So code on a hashed path calls [`fma_f32`], and only functions compiled for the feature use the
//! instruction.

/// `a * b + c`, rounded once to nearest even. Which NaN comes out is not specified.
#[inline]
#[must_use]
pub fn fma_f32(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        a.mul_add(b, c)
    } else {
        fma_f32_in_f64(a, b, c)
    }
}

/// As [`fma_f32`], whatever the target has: in f64, with the sum rounded to odd.
///
/// The product of two f32 is exact in f64. Rounding the sum to nearest there and again to f32 could round twice in the same
/// direction. Rounded to odd (an inexact sum takes the neighbour whose last bit is set), the 53 bits still tell on which
/// side of a tie of the 24 bits the exact sum lies.
///
/// # Source
///
/// S. Boldo and G. Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008.
#[inline]
#[must_use]
pub fn fma_f32_in_f64(a: f32, b: f32, c: f32) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let c = f64::from(c);
    let sum = product + c;
    if !sum.is_finite() {
        return sum as f32;
    }
    // Knuth's two-sum: `error` is exactly what the rounding of `sum` lost.
    let c_in_sum = sum - product;
    let error = (product - (sum - c_in_sum)) + (c - c_in_sum);
    let bits = sum.to_bits();
    if error == 0.0 || bits & 1 == 1 {
        return sum as f32;
    }
    let away_from_zero = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if away_from_zero { bits + 1 } else { bits - 1 }) as f32
}

#[cfg(test)]
mod tests {
    use super::fma_f32_in_f64;

    /// libm's fmaf is exact too, so it judges on any target.
    fn same(a: f32, b: f32, c: f32) {
        let (ours, theirs) = (fma_f32_in_f64(a, b, c), a.mul_add(b, c));
        let equal = ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan());
        assert!(equal, "{a:e} {b:e} {c:e}: {ours:e}, not {theirs:e}");
    }

    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn every_triple_of_special_values_agrees() {
        let mut special = vec![
            0.0f32,
            1.0,
            0.5,
            1.5,
            3.0,
            f32::MIN_POSITIVE,
            f32::MAX,
            f32::INFINITY,
        ];
        special.extend(
            [
                1u32,
                2,
                3,
                0x007f_ffff,
                0x0080_0001,
                0x3f80_0001,
                0x3f7f_ffff,
            ]
            .map(f32::from_bits),
        );
        special.extend(
            [
                0x7f7f_fffe,
                0x4b80_0000,
                0x4b80_0001,
                0x2000_0000,
                0x7fc0_0000,
            ]
            .map(f32::from_bits),
        );
        special.extend(special.clone().iter().map(|v| -v));
        for &a in &special {
            for &b in &special {
                for &c in &special {
                    same(a, b, c);
                }
            }
        }
    }

    #[test]
    fn random_bits_agree() {
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        for _ in 0..1_000_000 {
            let (ab, c) = (random(&mut seed), random(&mut seed));
            same(
                f32::from_bits(ab as u32),
                f32::from_bits((ab >> 32) as u32),
                f32::from_bits(c as u32),
            );
        }
    }

    /// `a * b` is half a last place of `c`, less so little that f64 rounds it to the tie.
    #[test]
    fn a_sum_just_beside_a_tie_is_not_rounded_twice() {
        let mut seed = 0x2545_f491_4f6c_dd1d;
        let mut twice = 0;
        for _ in 0..200_000 {
            let bits = random(&mut seed);
            let tiny = (bits % 512) as f32 * f32::EPSILON;
            let (a, b) = ((1.0 + tiny) * 2f32.powi(-12), (1.0 - tiny) * 2f32.powi(-12));
            let c = f32::from_bits(0x3f80_0000 | (bits >> 20) as u32 & 0x7f_ffff);
            for (sign_a, sign_c) in [(1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)] {
                for scale in [1.0, 2f32.powi(-50), 2f32.powi(40)] {
                    let (a, b, c) = (sign_a * a * scale, b * scale, sign_c * c * scale * scale);
                    same(a, b, c);
                    let through_f64 = (f64::from(a) * f64::from(b) + f64::from(c)) as f32;
                    twice += u32::from(through_f64.to_bits() != a.mul_add(b, c).to_bits());
                }
            }
        }
        assert!(
            twice > 100_000,
            "only {twice} inputs tell one rounding from two"
        );
    }

    #[test]
    fn denormal_results_are_rounded_once() {
        let mut seed = 0xda94_2042_e4dd_58b5;
        for _ in 0..500_000 {
            let bits = random(&mut seed);
            let a = f32::from_bits(0x1f00_0000 | bits as u32 & 0x81ff_ffff);
            let b = f32::from_bits(0x1f00_0000 | (bits >> 32) as u32 & 0x81ff_ffff);
            same(a, b, f32::from_bits(random(&mut seed) as u32 & 0x80ff_ffff));
        }
    }
}
