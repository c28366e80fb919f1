//! Whether a hotkey committed to nothing else in a range of blocks.
//!
//! The chain keeps one value per hotkey, with the block in which it was set. So a value seen in block
//! `b` that was set in block `s` shows that nothing else was set from `s` to `b`; and if each receipt
//! also brings the value of the block before its own, receipts alone cover everything from the first
//! to the last. What was set and is not the ledger's could be the head of a fork.

use std::ops::RangeInclusive;

use crate::hash::Hash32;

/// What stood in a hotkey's slot after a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The block.
    pub at: u32,
    /// What was there; none if the slot was empty.
    pub slot: Option<Slot>,
}

/// A commitment that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The block that set it.
    pub block: u32,
    /// Its one digest; none if it has another form, and so is not an anchor.
    pub digest: Option<Hash32>,
}

/// What is known of a range of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Every commitment of the range was seen, and is known.
    Exclusive,
    /// The hotkey set something that is not known.
    Foreign {
        /// What, and where.
        slot: Slot,
    },
    /// Nothing shows what happened in these blocks.
    Gap {
        /// The first.
        from: u32,
        /// The last.
        to: u32,
    },
}

/// Judges `range` by what was seen; `known` tells a digest of the ledger from others.
///
/// A foreign commitment is reported before a gap. An empty slot says nothing about other blocks: a
/// commitment can be removed.
pub fn coverage(
    range: RangeInclusive<u32>,
    sightings: &[Sighting],
    mut known: impl FnMut(&Hash32) -> bool,
) -> Coverage {
    let mut slots = sightings.iter().filter_map(|seen| seen.slot);
    let foreign =
        |slot: &Slot| range.contains(&slot.block) && !slot.digest.as_ref().is_some_and(&mut known);
    if let Some(slot) = slots.find(foreign) {
        return Coverage::Foreign { slot };
    }
    let mut spans: Vec<(u32, u32)> =
        sightings.iter().map(|seen| (seen.slot.map_or(seen.at, |s| s.block), seen.at)).collect();
    spans.sort_unstable();
    // u64, so that one past the last block of all can be named.
    let (mut next, end) = (u64::from(*range.start()), u64::from(*range.end()));
    for (from, to) in spans {
        if u64::from(from) > next {
            break;
        }
        next = next.max(u64::from(to) + 1);
    }
    if next > end {
        return Coverage::Exclusive;
    }
    let later = sightings.iter().map(|seen| seen.slot.map_or(seen.at, |s| s.block));
    let to =
        later.filter(|from| u64::from(*from) > next).min().map_or(*range.end(), |from| from - 1);
    Coverage::Gap { from: next as u32, to: to.min(*range.end()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(at: u32, block: u32, digest: u8) -> Sighting {
        Sighting { at, slot: Some(Slot { block, digest: Some(Hash32([digest; 32])) }) }
    }

    fn judge(range: RangeInclusive<u32>, sightings: &[Sighting]) -> Coverage {
        coverage(range, sightings, |digest| digest.0[0] < 100)
    }

    #[test]
    fn values_and_what_stood_before_them_leave_no_gap() {
        let chain = [seen(20, 20, 2), seen(10, 10, 1), seen(19, 10, 1), seen(35, 30, 3)];
        assert_eq!(judge(10..=20, &chain), Coverage::Exclusive);
        assert_eq!(judge(12..=15, &chain), Coverage::Exclusive);
        assert_eq!(judge(10..=21, &chain), Coverage::Gap { from: 21, to: 21 });
        assert_eq!(judge(10..=40, &chain), Coverage::Gap { from: 21, to: 29 });
        assert_eq!(judge(30..=40, &chain), Coverage::Gap { from: 36, to: 40 });
        assert_eq!(judge(5..=20, &chain), Coverage::Gap { from: 5, to: 9 });
        assert_eq!(judge(1..=2, &[]), Coverage::Gap { from: 1, to: 2 });
    }

    #[test]
    fn what_is_not_the_ledgers_is_named_before_a_gap() {
        let other = seen(25, 21, 200);
        let slot = other.slot.unwrap();
        let chain = [seen(10, 10, 1), other.clone()];
        assert_eq!(judge(10..=25, &chain), Coverage::Foreign { slot });
        // What was there before the range began is nobody's business.
        assert_eq!(judge(22..=25, &chain), Coverage::Exclusive);
        let formless = Slot { digest: None, ..slot };
        let chain = [Sighting { slot: Some(formless), ..other }];
        assert_eq!(judge(21..=25, &chain), Coverage::Foreign { slot: formless });
    }

    #[test]
    fn an_empty_slot_shows_its_own_block_alone() {
        let empty = Sighting { at: 9, slot: None };
        assert_eq!(judge(9..=9, std::slice::from_ref(&empty)), Coverage::Exclusive);
        assert_eq!(judge(8..=9, &[empty]), Coverage::Gap { from: 8, to: 8 });
        let last = u32::MAX;
        assert_eq!(judge(last..=last, &[seen(last, 5, 1)]), Coverage::Exclusive);
    }
}
