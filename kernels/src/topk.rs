//! The k elements of a block that are largest in magnitude, with one answer for every block.
//!
//! Order: larger magnitude first, of equal ones the lower index; `-0` counts as 0. What is kept is
//! given in ascending index. The caller has checked that no element is NaN.

/// Groups a block is cut into, as a multiple of k: more groups give a sharper first cut.
const GROUPS_PER_KEPT: usize = 2;

/// Buffers that calls share, so that a block costs no allocation.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    maxima: Vec<u32>,
    order: Vec<u32>,
    candidates: Vec<u16>,
}

/// The magnitude of a finite f32 as an integer in the same order.
#[inline]
fn magnitude(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// Writes the indices of the `index.len()` largest elements of `block`, ascending.
///
/// # Shapes
///
/// - `block`: at most 65,536 elements.
/// - `index`: k, 1 to the block's length.
///
/// Time: one pass for the maxima of groups, one over the groups that can hold something.
///
/// # Panics
///
/// On other lengths.
pub fn select(block: &[f32], scratch: &mut Scratch, index: &mut [u16]) {
    let k = index.len();
    assert!(k > 0 && k <= block.len() && block.len() <= 1 << 16, "1 to a block's length");
    let group = (block.len() / (GROUPS_PER_KEPT * k)).max(1);
    let Scratch { maxima, order, candidates } = scratch;
    maxima.clear();
    maxima.extend(
        block.chunks(group).map(|g| g.iter().fold(0, |max, &v| u32::max(max, magnitude(v)))),
    );
    // At least k groups reach this, so at least k elements do.
    let floor = kth_largest(maxima.iter().copied(), k, order);
    candidates.clear();
    for ((first, group), &max) in (0..).step_by(group).zip(block.chunks(group)).zip(&*maxima) {
        if max >= floor {
            let reaches = |&(_, &v): &(usize, &f32)| magnitude(v) >= floor;
            candidates.extend(
                group.iter().enumerate().filter(reaches).map(|(at, _)| (first + at) as u16),
            );
        }
    }
    let of = |at: &u16| magnitude(block[usize::from(*at)]);
    let least = kth_largest(candidates.iter().map(of), k, order);
    let mut ties = k - candidates.iter().filter(|at| of(at) > least).count();
    let kept = candidates.iter().filter(|at| {
        let tie = of(at) == least && ties > 0;
        ties -= usize::from(tie);
        of(at) > least || tie
    });
    index.iter_mut().zip(kept).for_each(|(place, &at)| *place = at);
}

/// The k-th largest of `values`, of which there are at least k.
fn kth_largest(values: impl Iterator<Item = u32>, k: usize, order: &mut Vec<u32>) -> u32 {
    order.clear();
    order.extend(values);
    let at = order.len() - k;
    *order.select_nth_unstable(at).1
}

#[cfg(test)]
mod tests {
    use super::{Scratch, select};
    use proptest::prelude::*;

    fn selected(block: &[f32], k: usize) -> Vec<u16> {
        let mut index = vec![0; k];
        select(block, &mut Scratch::default(), &mut index);
        index
    }

    /// The rule, by sorting.
    fn sorted(block: &[f32], k: usize) -> Vec<u16> {
        let mut all: Vec<u16> = (0..block.len() as u16).collect();
        all.sort_by(|&a, &b| {
            let size = |at: u16| block[usize::from(at)].abs();
            size(b).total_cmp(&size(a)).then(a.cmp(&b))
        });
        all.truncate(k);
        all.sort_unstable();
        all
    }

    proptest! {
        #[test]
        fn what_is_kept_is_what_sorting_keeps(
            values in prop::collection::vec(prop_oneof![-4i8..4, any::<i8>()], 2..4097),
            share in 0.0f64..=1.0,
        ) {
            let block: Vec<f32> = values.iter().map(|&v| f32::from(v) * 1e-40).collect();
            let k = ((block.len() as f64 * share) as usize).max(1);
            prop_assert_eq!(selected(&block, k), sorted(&block, k));
        }

        #[test]
        fn few_of_many_distinct_values(seed: u32) {
            let block: Vec<f32> = (0..4096u32)
                .map(|at| (at.wrapping_mul(2_654_435_761) ^ seed) as i32 as f32)
                .collect();
            prop_assert_eq!(selected(&block, 64), sorted(&block, 64));
        }
    }

    #[test]
    fn of_equal_magnitudes_the_lower_index_is_kept() {
        assert_eq!(selected(&[1.0, -2.0, 2.0, -1.0, 2.0], 2), [1, 2]);
        assert_eq!(selected(&[0.0, -0.0, 0.0, -0.0], 2), [0, 1]);
        assert_eq!(selected(&[3.0; 4096], 64), (0..64).collect::<Vec<_>>());
        assert_eq!(selected(&[0.0, f32::from_bits(1)], 1), [1]);
    }

    #[test]
    fn a_whole_block_is_kept_in_order() {
        let block = [5.0, 0.0, -7.0, 0.5];
        assert_eq!(selected(&block, 4), [0, 1, 2, 3]);
    }
}
