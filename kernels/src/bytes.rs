//! f32 values as their logical bytes: little-endian, row-major, no padding, no copy.

#[cfg(target_endian = "big")]
compile_error!("logical bytes are little-endian and are viewed in place");

/// The bytes of `values`, four a value.
#[inline]
#[must_use]
pub fn of_f32(values: &[f32]) -> &[u8] {
    // SAFETY: the pointer and the length describe exactly the memory of `values`, borrowed for as long; any f32 is four
    // initialised bytes, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The bytes of `values`, to be written.
#[inline]
#[must_use]
pub fn of_f32_mut(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: as in `of_f32`, borrowed mutably; any four bytes are an f32.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_are_little_endian() {
        let mut values = [1.0f32, -0.0];
        assert_eq!(super::of_f32(&values), [0, 0, 0x80, 0x3f, 0, 0, 0, 0x80]);
        super::of_f32_mut(&mut values)[7] = 0;
        assert_eq!(values[1].to_bits(), 0);
        assert!(super::of_f32(&[]).is_empty());
    }
}
