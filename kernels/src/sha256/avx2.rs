//! Eight messages in the lanes of AVX2.

use std::arch::x86_64::*;

use super::{BLOCK, ROUND, State, lanes::rounds};

/// Takes the blocks of eight messages of one length, whole blocks.
#[target_feature(enable = "avx2")]
pub(super) fn compress(state: &mut State<8>, messages: [&[u8]; 8]) {
    let length = messages[0].len();
    let alike = messages.iter().all(|message| message.len() == length);
    assert!(alike && length.is_multiple_of(BLOCK), "whole blocks of one length");
    // SAFETY: eight words lie at each.
    let mut words = state.map(|word| unsafe { _mm256_loadu_si256(word.as_ptr().cast()) });
    for at in (0..length).step_by(BLOCK) {
        let (mut low, mut high) = ([_mm256_setzero_si256(); 8], [_mm256_setzero_si256(); 8]);
        for (lane, message) in messages.iter().enumerate() {
            // SAFETY: a block lies at `at`, a multiple of a block below the length.
            (low[lane], high[lane]) = unsafe {
                let block = message.as_ptr().add(at).cast::<__m256i>();
                (_mm256_loadu_si256(block), _mm256_loadu_si256(block.add(1)))
            };
        }
        let (low, high) = (transposed(low), transposed(high));
        let mut w: [__m256i; 16] =
            std::array::from_fn(|word| if word < 8 { low[word] } else { high[word - 8] });
        rounds!(words, w);
    }
    for (word, vector) in state.iter_mut().zip(words) {
        // SAFETY: room for eight words.
        unsafe { _mm256_storeu_si256(word.as_mut_ptr().cast(), vector) };
    }
}

/// From a row a message, bytes big-endian, to a row a word of the schedule.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(rows: [__m256i; 8]) -> [__m256i; 8] {
    let swap = _mm256_set_epi64x(
        0x0c0d_0e0f_0809_0a0b,
        0x0405_0607_0001_0203,
        0x0c0d_0e0f_0809_0a0b,
        0x0405_0607_0001_0203,
    );
    let mut t = rows;
    for row in &mut t {
        *row = _mm256_shuffle_epi8(*row, swap);
    }
    let r = t;
    for p in [0, 4] {
        let low_01 = _mm256_unpacklo_epi32(r[p], r[p + 1]);
        let high_01 = _mm256_unpackhi_epi32(r[p], r[p + 1]);
        let low_23 = _mm256_unpacklo_epi32(r[p + 2], r[p + 3]);
        let high_23 = _mm256_unpackhi_epi32(r[p + 2], r[p + 3]);
        t[p] = _mm256_unpacklo_epi64(low_01, low_23);
        t[p + 1] = _mm256_unpackhi_epi64(low_01, low_23);
        t[p + 2] = _mm256_unpacklo_epi64(high_01, high_23);
        t[p + 3] = _mm256_unpackhi_epi64(high_01, high_23);
    }
    let mut w = t;
    for i in 0..4 {
        w[i] = _mm256_permute2x128_si256::<0x20>(t[i], t[i + 4]);
        w[i + 4] = _mm256_permute2x128_si256::<0x31>(t[i], t[i + 4]);
    }
    w
}

#[inline]
#[target_feature(enable = "avx2")]
fn add(a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(a, b)
}

#[inline]
#[target_feature(enable = "avx2")]
fn round_constant(t: usize) -> __m256i {
    _mm256_set1_epi32(ROUND[t] as i32)
}

#[inline]
#[target_feature(enable = "avx2")]
fn xor3(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
    _mm256_xor_si256(_mm256_xor_si256(a, b), c)
}

/// `LEFT` is 32 - `RIGHT`.
#[inline]
#[target_feature(enable = "avx2")]
fn ror<const RIGHT: i32, const LEFT: i32>(a: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_srli_epi32::<RIGHT>(a), _mm256_slli_epi32::<LEFT>(a))
}

#[inline]
#[target_feature(enable = "avx2")]
fn ch(e: __m256i, f: __m256i, g: __m256i) -> __m256i {
    _mm256_xor_si256(g, _mm256_and_si256(e, _mm256_xor_si256(f, g)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn maj(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(c, _mm256_or_si256(a, b)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn big_sigma0(a: __m256i) -> __m256i {
    xor3(ror::<2, 30>(a), ror::<13, 19>(a), ror::<22, 10>(a))
}

#[inline]
#[target_feature(enable = "avx2")]
fn big_sigma1(e: __m256i) -> __m256i {
    xor3(ror::<6, 26>(e), ror::<11, 21>(e), ror::<25, 7>(e))
}

#[inline]
#[target_feature(enable = "avx2")]
fn small_sigma0(w: __m256i) -> __m256i {
    xor3(ror::<7, 25>(w), ror::<18, 14>(w), _mm256_srli_epi32::<3>(w))
}

#[inline]
#[target_feature(enable = "avx2")]
fn small_sigma1(w: __m256i) -> __m256i {
    xor3(ror::<17, 15>(w), ror::<19, 13>(w), _mm256_srli_epi32::<10>(w))
}
