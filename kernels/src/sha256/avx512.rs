//! Sixteen messages in the lanes of AVX-512.

use std::arch::x86_64::*;

use super::{BLOCK, ROUND, State, lanes::rounds};

/// How far ahead of the block at hand each message is fetched: sixteen streams are more than the
/// hardware's prefetcher follows.
const AHEAD_BYTES: usize = 8 * BLOCK;

/// Takes the blocks of sixteen messages of one length, whole blocks.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn compress(state: &mut State<16>, messages: [&[u8]; 16]) {
    let length = messages[0].len();
    let alike = messages.iter().all(|message| message.len() == length);
    assert!(alike && length.is_multiple_of(BLOCK), "whole blocks of one length");
    // SAFETY: sixteen words lie at each.
    let mut words = state.map(|word| unsafe { _mm512_loadu_si512(word.as_ptr().cast()) });
    for at in (0..length).step_by(BLOCK) {
        let mut w = [_mm512_setzero_si512(); 16];
        for (row, message) in w.iter_mut().zip(&messages) {
            // A prefetch beyond the end reads nothing.
            _mm_prefetch::<_MM_HINT_T0>(message.as_ptr().wrapping_add(at + AHEAD_BYTES).cast());
            // SAFETY: a block lies at `at`, a multiple of a block below the length.
            *row = unsafe { _mm512_loadu_si512(message.as_ptr().add(at).cast()) };
        }
        let mut w = transposed(w);
        rounds!(words, w);
    }
    for (word, vector) in state.iter_mut().zip(words) {
        // SAFETY: room for sixteen words.
        unsafe { _mm512_storeu_si512(word.as_mut_ptr().cast(), vector) };
    }
}

/// From a row a message, bytes big-endian, to a row a word of the schedule.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    let swap = _mm512_set4_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
    // A loop: what `map` calls would be compiled for any processor, and called.
    let mut r = rows;
    for row in &mut r {
        *row = _mm512_shuffle_epi8(*row, swap);
    }
    // Within each 128 bits of four rows: words 4q to 4q + 3 of row 4p + i become word 4q + i.
    let mut t = r;
    for p in [0, 4, 8, 12] {
        let low_01 = _mm512_unpacklo_epi32(r[p], r[p + 1]);
        let high_01 = _mm512_unpackhi_epi32(r[p], r[p + 1]);
        let low_23 = _mm512_unpacklo_epi32(r[p + 2], r[p + 3]);
        let high_23 = _mm512_unpackhi_epi32(r[p + 2], r[p + 3]);
        t[p] = _mm512_unpacklo_epi64(low_01, low_23);
        t[p + 1] = _mm512_unpackhi_epi64(low_01, low_23);
        t[p + 2] = _mm512_unpacklo_epi64(high_01, high_23);
        t[p + 3] = _mm512_unpackhi_epi64(high_01, high_23);
    }
    // Then the quarters themselves.
    let mut w = t;
    for i in 0..4 {
        let even_lower = _mm512_shuffle_i32x4::<0x88>(t[i], t[i + 4]);
        let odd_lower = _mm512_shuffle_i32x4::<0xdd>(t[i], t[i + 4]);
        let even_upper = _mm512_shuffle_i32x4::<0x88>(t[i + 8], t[i + 12]);
        let odd_upper = _mm512_shuffle_i32x4::<0xdd>(t[i + 8], t[i + 12]);
        w[i] = _mm512_shuffle_i32x4::<0x88>(even_lower, even_upper);
        w[i + 4] = _mm512_shuffle_i32x4::<0x88>(odd_lower, odd_upper);
        w[i + 8] = _mm512_shuffle_i32x4::<0xdd>(even_lower, even_upper);
        w[i + 12] = _mm512_shuffle_i32x4::<0xdd>(odd_lower, odd_upper);
    }
    w
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn round_constant(t: usize) -> __m512i {
    _mm512_set1_epi32(ROUND[t] as i32)
}

/// Truth tables of three inputs, the index of a row being `a << 2 | b << 1 | c`.
const XOR: i32 = 0x96;
const CHOOSE: i32 = 0xca;
const MAJORITY: i32 = 0xe8;

#[inline]
#[target_feature(enable = "avx512f")]
fn ch(e: __m512i, f: __m512i, g: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<CHOOSE>(e, f, g)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn maj(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<MAJORITY>(a, b, c)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn big_sigma0(a: __m512i) -> __m512i {
    let (x, y) = (_mm512_ror_epi32::<2>(a), _mm512_ror_epi32::<13>(a));
    _mm512_ternarylogic_epi32::<XOR>(x, y, _mm512_ror_epi32::<22>(a))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn big_sigma1(e: __m512i) -> __m512i {
    let (x, y) = (_mm512_ror_epi32::<6>(e), _mm512_ror_epi32::<11>(e));
    _mm512_ternarylogic_epi32::<XOR>(x, y, _mm512_ror_epi32::<25>(e))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn small_sigma0(w: __m512i) -> __m512i {
    let (x, y) = (_mm512_ror_epi32::<7>(w), _mm512_ror_epi32::<18>(w));
    _mm512_ternarylogic_epi32::<XOR>(x, y, _mm512_srli_epi32::<3>(w))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn small_sigma1(w: __m512i) -> __m512i {
    let (x, y) = (_mm512_ror_epi32::<17>(w), _mm512_ror_epi32::<19>(w));
    _mm512_ternarylogic_epi32::<XOR>(x, y, _mm512_srli_epi32::<10>(w))
}
