//! Which states of a ledger are kept: by the policy, and by its own record of what was dropped.
//!
//! The genesis and the newest state are always kept, and whatever a kept state shares with a dropped
//! one. A dropped state is folded again from the last kept one before it. A copy that `sync` made keeps
//! what it was brought, and nothing else need be there.

use std::{collections::BTreeSet, fmt, num::NonZeroU64};

use serde::Serialize;

use crate::{
    store::{StoreError, retention::Retention},
    types::{digest::Digest, manifest::ManifestId},
};

use super::{At, Ledger, LedgerError};

/// A state, as reports name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StateName {
    /// The round it is after; null for the genesis.
    pub round: Option<u64>,
    /// Root of its manifest.
    pub root: Digest,
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.round {
            Some(round) => write!(f, "the state after round {round}"),
            None => f.write_str("the genesis"),
        }
    }
}

/// The states of a ledger that are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    roots: BTreeSet<Digest>,
    of_copy: bool,
    /// Per sealed round, whether the state after it is kept.
    after: Vec<bool>,
    /// Per sealed round, the last round at or before it whose base is kept.
    starts: Vec<Option<usize>>,
}

impl Kept {
    /// What is kept by the ledger's own record. It is not looked whether it is there.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Store`] if the record cannot be read.
    pub fn load(ledger: &Ledger) -> Result<Self, LedgerError> {
        let retention = Retention::load(ledger.place()).map_err(StoreError::from)?;
        if let Retention::Held(roots) = retention {
            return Ok(Self::of(ledger, roots, true));
        }
        let keeps = |position: usize| {
            let record = &ledger.sealed()[position].record;
            retention.keeps(Some(record.round), record.next.root)
        };
        Ok(Self::of_ledger(ledger, keeps))
    }

    /// What is still kept if of these only every `keep_every`-th state is, counted from the genesis.
    pub fn thinned(&self, ledger: &Ledger, keep_every: NonZeroU64) -> Self {
        Self::of_ledger(ledger, |position| {
            self.after[position] && (position as u64 + 1).is_multiple_of(keep_every.get())
        })
    }

    fn of_ledger(ledger: &Ledger, keeps: impl Fn(usize) -> bool) -> Self {
        let sealed = ledger.sealed();
        let kept = (0..sealed.len()).filter(|&position| keeps(position));
        let ends = [ledger.genesis().model.root, ledger.newest().root];
        let roots = kept.map(|position| sealed[position].record.next.root).chain(ends).collect();
        Self::of(ledger, roots, false)
    }

    fn of(ledger: &Ledger, roots: BTreeSet<Digest>, of_copy: bool) -> Self {
        let sealed = ledger.sealed();
        // Rounds that came to the same state are one state: it is kept if one of them keeps it.
        let after = sealed.iter().map(|s| roots.contains(&s.record.next.root)).collect();
        let mut start = (!of_copy).then_some(0);
        let starts = (0..sealed.len())
            .map(|position| {
                if roots.contains(&sealed[position].record.base.root) {
                    start = Some(position);
                }
                start
            })
            .collect();
        Self { roots, of_copy, after, starts }
    }

    /// Whether these are the states of a copy, which has no others and need not have them.
    pub fn is_of_copy(&self) -> bool {
        self.of_copy
    }

    /// One of the states that are kept, the newest if it is.
    pub fn any(&self, ledger: &Ledger) -> Option<ManifestId> {
        let states = ledger.sealed().iter().rev().map(|sealed| sealed.record.next);
        states.chain([ledger.genesis().model]).find(|id| self.has(*id))
    }

    /// Whether the state `id` is kept.
    pub fn has(&self, id: ManifestId) -> bool {
        self.roots.contains(&id.root)
    }

    /// Whether the state after the round at `position` is kept.
    pub fn has_after(&self, position: usize) -> bool {
        self.after[position]
    }

    /// Number of distinct states that are kept, in a ledger the genesis among them.
    pub fn count(&self) -> usize {
        self.roots.len()
    }

    /// Where a replay of the round at `position` starts: the last round at or before it whose base
    /// is kept. None in a copy that holds no such state.
    pub fn start(&self, position: usize) -> Option<usize> {
        self.starts[position]
    }

    /// As [`Kept::start`], for a replay that has to be done.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NotHeld`] in a copy that holds no such state.
    pub fn require_start(&self, ledger: &Ledger, position: usize) -> Result<usize, LedgerError> {
        self.start(position)
            .ok_or_else(|| self.not_held(ledger, ledger.sealed()[position].record.next))
    }

    /// That a copy has not what is asked for.
    pub fn not_held(&self, ledger: &Ledger, id: ManifestId) -> LedgerError {
        let state = name(ledger, id);
        LedgerError::NotHeld { state, holds: self.any(ledger).map(|id| name(ledger, id)) }
    }

    /// First and last round of each run of rounds whose states are not kept.
    pub fn dropped(&self, ledger: &Ledger) -> Vec<[u64; 2]> {
        let positions = (0..self.after.len()).filter(|&position| !self.after[position]);
        runs(positions)
            .map(|[first, last]| [first, last].map(|at| ledger.sealed()[at].record.round))
            .collect()
    }

    /// The state at `at`, or what there is in its place if it was dropped.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Dropped`]; [`LedgerError::NotHeld`]; [`LedgerError::NoRound`].
    pub fn require(&self, ledger: &Ledger, at: At) -> Result<ManifestId, LedgerError> {
        let id = ledger.state(at)?;
        if self.of_copy && !self.has(id) {
            return Err(self.not_held(ledger, id));
        }
        let At::Round(round) = at else { return Ok(id) };
        if self.has(id) {
            return Ok(id);
        }
        let position = ledger.position(round)?;
        let after = (position..self.after.len()).find(|&at| self.after[at]);
        let after = after.expect("the newest state is kept");
        Err(LedgerError::Dropped {
            round,
            before: base_name(ledger, self.require_start(ledger, position)?),
            after: ledger.sealed()[after].record.round,
        })
    }
}

/// The state `id`, as the one after the first round that came to it.
pub fn name(ledger: &Ledger, id: ManifestId) -> StateName {
    let first = ledger.sealed().iter().find(|sealed| sealed.record.next == id);
    let round = first.filter(|_| ledger.genesis().model != id).map(|sealed| sealed.record.round);
    StateName { round, root: id.root }
}

/// The state that the round at `position` starts from.
pub fn base_name(ledger: &Ledger, position: usize) -> StateName {
    let round = position.checked_sub(1).map(|before| ledger.sealed()[before].record.round);
    StateName { round, root: ledger.sealed()[position].record.base.root }
}

/// First and last of each run of consecutive numbers; `numbers` ascend.
pub fn runs(numbers: impl Iterator<Item = usize>) -> impl Iterator<Item = [usize; 2]> {
    let mut numbers = numbers.peekable();
    std::iter::from_fn(move || {
        let first = numbers.next()?;
        let mut last = first;
        while let Some(next) = numbers.next_if_eq(&(last + 1)) {
            last = next;
        }
        Some([first, last])
    })
}

#[cfg(test)]
mod tests {
    use super::runs;

    #[test]
    fn runs_are_of_consecutive_numbers() {
        let found: Vec<_> = runs([0, 1, 2, 5, 7, 8].into_iter()).collect();
        assert_eq!(found, [[0, 2], [5, 5], [7, 8]]);
        assert_eq!(runs([].into_iter()).next(), None);
    }
}
