//! Which pieces a sampled audit looks at, and how likely it misses what is wrong.

use std::collections::BTreeSet;

use crate::types::digest::Digest;

use super::report::Missed;

/// Most pieces of a sample: they are held in memory.
pub const PIECES_MAX: u64 = 1 << 24;

/// Wrong pieces in a million that a report speaks of.
const SHARES: [u64; 5] = [10, 100, 1_000, 10_000, 100_000];

/// `count` different numbers below `of`, or all where there are no more.
///
/// The seed and a counter are hashed; the first 8 bytes, big-endian, are a draw. A draw beyond the
/// largest multiple of `of` is passed over, so that all numbers are equally likely.
pub fn draw(seed: &[u8], count: u64, of: u64) -> BTreeSet<u64> {
    if count >= of {
        return (0..of).collect();
    }
    let end = u64::MAX - (u64::MAX % of + 1) % of;
    let mut drawn = BTreeSet::new();
    for counter in 0u64.. {
        if drawn.len() as u64 == count {
            break;
        }
        let bytes = [b"gradledger-sample/1\n", seed, &counter.to_be_bytes()].concat();
        let Digest(hash) = Digest::of(&bytes);
        let number = u64::from_be_bytes(hash[..8].try_into().expect("eight bytes"));
        if number <= end {
            drawn.insert(number % of);
        }
    }
    drawn
}

/// The probability that none of `wrong` pieces is among `count` drawn from `of`.
///
/// Hypergeometric: the product of `(of - wrong - i) / (of - i)` for i below count.
pub fn missed(wrong: u64, count: u64, of: u64) -> f64 {
    let mut probability = 1.0;
    for i in 0..count.min(of) {
        if wrong + i >= of {
            return 0.0;
        }
        probability *= (of - wrong - i) as f64 / (of - i) as f64;
    }
    probability
}

/// What a report says of a sample.
pub fn shares(count: u64, of: u64) -> Vec<Missed> {
    let share = |wrong_per_million: u64| {
        let wrong = u128::from(of) * u128::from(wrong_per_million);
        let wrong = u64::try_from(wrong.div_ceil(1_000_000)).expect("no more than of").max(1);
        let probability = format!("{:.6}", missed(wrong, count, of));
        Missed { wrong_per_million, probability }
    };
    if of == 0 { Vec::new() } else { SHARES.map(share).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_pieces_and_each_once() {
        let drawn = draw(b"seed", 50, 1000);
        assert_eq!(drawn.len(), 50);
        assert_eq!(drawn, draw(b"seed", 50, 1000));
        assert_ne!(drawn, draw(b"other", 50, 1000));
        assert!(draw(b"seed", 60, 1000).is_superset(&drawn));
        assert!(drawn.last().is_some_and(|last| *last < 1000));
        assert_eq!(draw(b"seed", 9, 9).len(), 9);
        assert_eq!(draw(b"seed", 9, 0).len(), 0);
    }

    #[test]
    fn all_numbers_are_equally_likely() {
        let mut counts = [0; 7];
        for seed in 0u32..2_000 {
            draw(&seed.to_be_bytes(), 2, 7).iter().for_each(|at| counts[*at as usize] += 1);
        }
        // 4,000 draws over 7: 571 each; five standard deviations are 110.
        assert!(counts.iter().all(|count| (461..=681).contains(count)), "{counts:?}");
    }

    #[test]
    fn one_wrong_piece_is_missed_as_often_as_it_is_not_drawn() {
        assert!((missed(1, 25, 100) - 0.75).abs() < 1e-12);
        assert!((missed(2, 50, 100) - 50.0 * 49.0 / (100.0 * 99.0)).abs() < 1e-12);
        assert_eq!(missed(1, 100, 100).to_bits(), 0f64.to_bits());
        assert_eq!(missed(60, 50, 100).to_bits(), 0f64.to_bits());
    }
}
