//! Floors: the least that a fold can take, to be measured beside it on the same buffers.
//!
//! A fold out of place reads a state and writes one, which is a copy; in place it reads and writes
//! one. How fast that goes depends on the machine, its load and the size of its pages, so a floor
//! means something only in the same process, on the same memory.

/// `next = base`, past the caches where the processor can: what a fold out of place cannot beat.
///
/// # Panics
///
/// If the lengths differ.
pub fn copy(base: &[f32], next: &mut [f32]) {
    assert_eq!(base.len(), next.len(), "a copy is as long as what is copied");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && next.as_ptr().addr().is_multiple_of(64) {
        // SAFETY: it was asked for just now.
        return unsafe { copy_past_caches(base, next) };
    }
    next.copy_from_slice(base);
}

/// As [`copy`]; `next` begins with a line of the caches.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn copy_past_caches(base: &[f32], next: &mut [f32]) {
    use std::arch::x86_64::{_mm_sfence, _mm512_loadu_ps, _mm512_stream_ps};
    assert!(next.as_ptr().addr().is_multiple_of(64), "what streams begins with a line");
    let (from, from_rest) = base.as_chunks::<64>();
    let (to, to_rest) = next.as_chunks_mut::<64>();
    for (from, to) in from.iter().zip(to) {
        for at in [0, 16, 32, 48] {
            // SAFETY: sixteen elements lie at each, and 64 are whole lines.
            unsafe {
                let values = _mm512_loadu_ps(from[at..].as_ptr());
                _mm512_stream_ps(to[at..].as_mut_ptr(), values);
            }
        }
    }
    to_rest.copy_from_slice(from_rest);
    _mm_sfence();
}

/// Reads and writes every value: what a fold in place cannot beat by much. The signs change.
pub fn in_place(state: &mut [f32]) {
    state.iter_mut().for_each(|value| *value = -*value);
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_copy_is_one_at_any_length_and_alignment() {
        let base: Vec<f32> = (0..300).map(|at| at as f32).collect();
        for start in 0..17 {
            for end in [start, start + 63, start + 64, start + 200] {
                let mut next = vec![-1.0; 300];
                super::copy(&base[start..end], &mut next[start..end]);
                assert_eq!(next[start..end], base[start..end]);
                assert!(next[..start].iter().chain(&next[end..]).all(|&value| value == -1.0));
            }
        }
    }
}
