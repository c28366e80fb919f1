//! bf16 and f16 to f32, exactly, and f32 to bf16, rounded.
//!
//! Only integer work and one exact multiplication, so that no processor's habits (quieting a NaN, flushing a denormal) show in
//! what is hashed. Slices are little-endian bytes, as files hold them.

/// The f32 with the value of a bf16. The upper half of its bits, NaN payloads included.
#[inline]
#[must_use]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The f32 with the value of an f16. Of a NaN the sign and the payload are kept, the payload in the upper bits; a signalling one
/// stays signalling (hardware, and the crate `half`, would quiet it).
#[inline]
#[must_use]
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let rest = u32::from(bits & 0x7fff) << 13;
    if rest < 0x7c00 << 13 {
        // Exponents are biased by 15 there, by 127 here. 2^112 is exact, also from a denormal.
        const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
        f32::from_bits((f32::from_bits(rest) * REBIAS).to_bits() | sign)
    } else {
        f32::from_bits(rest | 0x7f80_0000 | sign)
    }
}

/// The nearest bf16, ties to even; beyond the largest one infinity. A NaN keeps sign and upper payload and is quiet.
#[inline]
#[must_use]
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Widens `bytes`, two a value, into `out`.
///
/// # Panics
///
/// If `bytes` is not twice as long as `out`.
pub fn bf16_slice_to_f32(bytes: &[u8], out: &mut [f32]) {
    widen(bytes, out, bf16_to_f32);
}

/// Widens `bytes`, two a value, into `out`.
///
/// # Panics
///
/// If `bytes` is not twice as long as `out`.
pub fn f16_slice_to_f32(bytes: &[u8], out: &mut [f32]) {
    widen(bytes, out, f16_to_f32);
}

/// Rounds `values` into `bytes`, two a value.
///
/// # Panics
///
/// If `bytes` is not twice as long as `values`.
pub fn f32_slice_to_bf16(values: &[f32], bytes: &mut [u8]) {
    assert_eq!(bytes.len(), values.len() * 2, "two bytes a value");
    for (pair, &value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        *pair = f32_to_bf16(value).to_le_bytes();
    }
}

#[inline(always)]
fn widen(bytes: &[u8], out: &mut [f32], one: impl Fn(u16) -> f32) {
    assert_eq!(bytes.len(), out.len() * 2, "two bytes a value");
    for (value, pair) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = one(u16::from_le_bytes(*pair));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_widens_exactly() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            if theirs.is_nan() {
                let payload = u32::from(bits & 0x3ff) << 13;
                assert_eq!(
                    ours.to_bits(),
                    u32::from(bits & 0x8000) << 16 | 0x7f80_0000 | payload
                );
                assert!(ours.is_nan());
            } else {
                assert_eq!(ours.to_bits(), theirs.to_bits(), "{bits:04x}");
            }
        }
    }

    #[test]
    fn every_bf16_widens_exactly_and_comes_back() {
        for bits in 0..=u16::MAX {
            let wide = bf16_to_f32(bits);
            assert_eq!(wide.to_bits(), u32::from(bits) << 16);
            let back = f32_to_bf16(wide);
            assert_eq!(back, if wide.is_nan() { bits | 0x40 } else { bits });
        }
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        for upper in (0..=u16::MAX).step_by(7) {
            for lower in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(upper) << 16 | lower);
                let theirs = half::bf16::from_f32(value);
                let ours = f32_to_bf16(value);
                if value.is_nan() {
                    assert!(half::bf16::from_bits(ours).is_nan() && ours & 0x40 != 0);
                } else {
                    assert_eq!(ours, theirs.to_bits(), "{:08x}", value.to_bits());
                }
            }
        }
    }

    #[test]
    fn slices_do_as_their_values() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = vec![0.0; 1 << 16];
        f16_slice_to_f32(&bytes, &mut out);
        assert!(
            (0..=u16::MAX)
                .zip(&out)
                .all(|(bits, v)| v.to_bits() == f16_to_f32(bits).to_bits())
        );
        bf16_slice_to_f32(&bytes, &mut out);
        assert!(
            (0..=u16::MAX)
                .zip(&out)
                .all(|(bits, v)| v.to_bits() == bf16_to_f32(bits).to_bits())
        );
        let mut back = vec![0; 1 << 17];
        f32_slice_to_bf16(&out, &mut back);
        assert!(
            out.iter()
                .zip(back.as_chunks::<2>().0)
                .all(|(v, b)| f32_to_bf16(*v).to_le_bytes() == *b)
        );
    }
}
