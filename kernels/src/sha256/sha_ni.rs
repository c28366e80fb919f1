//! Two messages with the SHA instructions, taking turns: each waits for its own result, not for the
//! other's.

use std::arch::x86_64::*;

use super::{BLOCK, ROUND, State};

/// Takes the blocks of two messages of one length, whole blocks.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
pub(super) fn compress(state: &mut State<2>, messages: [&[u8]; 2]) {
    let length = messages[0].len();
    assert!(messages[1].len() == length && length.is_multiple_of(BLOCK), "blocks of one length");
    let mut words = [Words::load(state, 0), Words::load(state, 1)];
    for at in (0..length).step_by(BLOCK) {
        let before = words;
        // SAFETY: a block lies at `at`, a multiple of a block below the length of both.
        let [first, second] = unsafe {
            [
                &*messages[0].as_ptr().add(at).cast::<[u8; BLOCK]>(),
                &*messages[1].as_ptr().add(at).cast::<[u8; BLOCK]>(),
            ]
        };
        let mut w = [schedule(first), schedule(second)];
        // Written out, since vectors in an array stay in registers only where it is indexed by
        // constants.
        macro_rules! four_rounds {
            ($lane:literal, $q:literal, $t:expr) => {
                words[$lane] = words[$lane].four_rounds(w[$lane][$q], $t + 4 * $q);
            };
            ($lane:literal, $q:literal, $t:expr, and schedule) => {
                four_rounds!($lane, $q, $t);
                w[$lane][$q] = next_words(&w[$lane], $q);
            };
        }
        for t in (0..48).step_by(16) {
            four_rounds!(0, 0, t, and schedule);
            four_rounds!(1, 0, t, and schedule);
            four_rounds!(0, 1, t, and schedule);
            four_rounds!(1, 1, t, and schedule);
            four_rounds!(0, 2, t, and schedule);
            four_rounds!(1, 2, t, and schedule);
            four_rounds!(0, 3, t, and schedule);
            four_rounds!(1, 3, t, and schedule);
        }
        four_rounds!(0, 0, 48);
        four_rounds!(1, 0, 48);
        four_rounds!(0, 1, 48);
        four_rounds!(1, 1, 48);
        four_rounds!(0, 2, 48);
        four_rounds!(1, 2, 48);
        four_rounds!(0, 3, 48);
        four_rounds!(1, 3, 48);
        for lane in 0..2 {
            words[lane].abef = _mm_add_epi32(words[lane].abef, before[lane].abef);
            words[lane].cdgh = _mm_add_epi32(words[lane].cdgh, before[lane].cdgh);
        }
    }
    for (lane, words) in words.into_iter().enumerate() {
        words.store(state, lane);
    }
}

/// A chaining value as the instructions take it, the first letter in the highest word.
#[derive(Clone, Copy)]
struct Words {
    abef: __m128i,
    cdgh: __m128i,
}

impl Words {
    #[inline]
    #[target_feature(enable = "sse2")]
    fn load(state: &State<2>, lane: usize) -> Self {
        let [a, b, c, d, e, f, g, h] = state.map(|word| word[lane] as i32);
        Self { abef: _mm_set_epi32(a, b, e, f), cdgh: _mm_set_epi32(c, d, g, h) }
    }

    #[inline]
    #[target_feature(enable = "sse4.1")]
    fn store(self, state: &mut State<2>, lane: usize) {
        let Self { abef, cdgh } = self;
        state[0][lane] = _mm_extract_epi32::<3>(abef) as u32;
        state[1][lane] = _mm_extract_epi32::<2>(abef) as u32;
        state[2][lane] = _mm_extract_epi32::<3>(cdgh) as u32;
        state[3][lane] = _mm_extract_epi32::<2>(cdgh) as u32;
        state[4][lane] = _mm_extract_epi32::<1>(abef) as u32;
        state[5][lane] = _mm_extract_epi32::<0>(abef) as u32;
        state[6][lane] = _mm_extract_epi32::<1>(cdgh) as u32;
        state[7][lane] = _mm_extract_epi32::<0>(cdgh) as u32;
    }

    /// Rounds `t` to `t + 3`, whose words of the schedule are `w`.
    #[inline]
    #[target_feature(enable = "sha,sse2")]
    fn four_rounds(self, w: __m128i, t: usize) -> Self {
        // SAFETY: a vector may hold any four words.
        let k = unsafe { _mm_loadu_si128(ROUND[t..][..4].as_ptr().cast()) };
        let wk = _mm_add_epi32(w, k);
        // Two rounds make of the first half the second, so the two change places twice.
        let cdgh = _mm_sha256rnds2_epu32(self.cdgh, self.abef, wk);
        let abef = _mm_sha256rnds2_epu32(self.abef, cdgh, _mm_shuffle_epi32::<0x0e>(wk));
        Self { abef, cdgh }
    }
}

/// The first sixteen words, four a vector.
#[inline]
#[target_feature(enable = "ssse3")]
fn schedule(block: &[u8; BLOCK]) -> [__m128i; 4] {
    let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let mut w = [_mm_setzero_si128(); 4];
    for (words, bytes) in w.iter_mut().zip(block.as_chunks::<16>().0) {
        // SAFETY: sixteen bytes lie there.
        *words = _mm_shuffle_epi8(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }, swap);
    }
    w
}

/// The four words that come sixteen after those of `w[q]`.
#[inline]
#[target_feature(enable = "sha,ssse3")]
fn next_words(w: &[__m128i; 4], q: usize) -> __m128i {
    let [now, four_on, eight_on, twelve_on] =
        [w[q], w[(q + 1) % 4], w[(q + 2) % 4], w[(q + 3) % 4]];
    let nine_on = _mm_alignr_epi8::<4>(twelve_on, eight_on);
    let partial = _mm_add_epi32(_mm_sha256msg1_epu32(now, four_on), nine_on);
    _mm_sha256msg2_epu32(partial, twelve_on)
}
