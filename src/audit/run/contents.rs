//! What rounds are made of: descriptors, deltas, plans and folds, all of them or a sample.

use std::{collections::BTreeSet, ops::RangeInclusive};

use super::{Audit, Followed, Window};
use crate::{
    audit::{
        checks::Check,
        deltas::Intake,
        pieces::{Population, SampledRound, note},
        report::{SampleView, Scope},
        sample::{draw, shares},
    },
    codec::layout::Layout,
    ledger::{
        LedgerError,
        replay::{ReplayOptions, replay, stored_plan},
    },
};

impl Audit<'_> {
    /// Deltas, refusals, plan and fold.
    pub(super) fn contents(
        &mut self,
        positions: &std::ops::Range<usize>,
        rounds: &[(usize, Followed)],
    ) -> Result<Scope, LedgerError> {
        let round = |position: usize| self.ledger.sealed()[position].record.round;
        let last = positions.end.checked_sub(1).filter(|last| *last >= positions.start);
        let mut scope = Scope {
            rounds: last.map(|last| (round(positions.start), round(last))),
            count: positions.len() as u64,
            tensor: self.options.tensor.clone(),
            sample: None,
        };
        if self.options.sample.is_none() {
            self.states(positions);
        }
        let Some(layout) = self.layout() else {
            let all =
                [Check::Acceptances, Check::Refusals, Check::Descriptor, Check::Plan, Check::Fold];
            for check in all {
                self.list.missing(check, "no state's manifest can be read");
            }
            return Ok(scope);
        };
        if let Some(name) = &self.options.tensor
            && layout.find(name).is_none()
        {
            return Err(LedgerError::NoTensor { name: name.clone() });
        }
        match &self.options.sample {
            None => {
                self.intake(&layout, rounds);
                self.replay(positions);
                self.stored_plans(&layout, rounds);
            }
            Some((count, seed)) => {
                scope.sample = Some(self.sample(&layout, rounds, *count, seed));
            }
        }
        Ok(scope)
    }

    /// The model as the rule sees it: names and shapes never change in a run, so any state will do.
    fn layout(&self) -> Option<Layout> {
        let ledger = self.ledger;
        let states = ledger.sealed().iter().map(|sealed| sealed.record.next);
        [ledger.genesis().model].into_iter().chain(states).find_map(|state| {
            let checkpoint = ledger.checkpoint(state).ok()?;
            Layout::of(checkpoint.manifest(), ledger.rule()).ok()
        })
    }

    /// Descriptors and piece digests of each state give its root.
    fn states(&mut self, positions: &std::ops::Range<usize>) {
        let ledger = self.ledger;
        let ids = ledger.sealed()[positions.clone()]
            .iter()
            .map(|s| (Some(s.record.round), s.record.next));
        let all: Vec<_> = [(None, ledger.genesis().model)].into_iter().chain(ids).collect();
        for (round, id) in all {
            let read = ledger.checkpoint(id).and_then(|state| {
                let tensors = 0..state.manifest().descriptors().len();
                tensors.into_iter().try_for_each(|position| state.digests(position).map(drop))
            });
            match read {
                Ok(()) => self.list.checked(Check::Descriptor, 1),
                Err(error) => self.stored(Check::Descriptor, round, &error),
            }
        }
    }

    /// Stored plans, where they are there, are those of the records. Nothing rests on them here; a
    /// replay of one tensor and a sample do.
    fn stored_plans(&mut self, layout: &Layout, rounds: &[(usize, Followed)]) {
        for (position, followed) in rounds {
            let Some(Window { checked, follows: true, .. }) = followed else { continue };
            let record = &self.ledger.sealed()[*position].record;
            match stored_plan(self.ledger, layout, record, checked.deltas.len()) {
                Err(LedgerError::Store(error)) if !error.is_mismatch() => {}
                outcome => {
                    self.say(Check::Plan, record.round, outcome.map(drop));
                }
            }
        }
    }

    fn intake(&mut self, layout: &Layout, rounds: &[(usize, Followed)]) {
        let intake = Intake::new(self.ledger, layout);
        // Nothing submitted is nothing wrong.
        self.list.all_checked(&[Check::Acceptances, Check::Refusals], 0);
        for (position, followed) in rounds {
            let Some(Window { submissions, .. }) = followed else {
                let round = self.ledger.sealed()[*position].record.round;
                for check in [Check::Acceptances, Check::Refusals] {
                    self.list.missing(check, format!("the window of round {round} does not read"));
                }
                continue;
            };
            for (index, submission) in submissions {
                intake.check(self.list, *index, submission);
            }
        }
    }

    /// All rounds in one go; where that fails, each alone, so that every one is named.
    fn replay(&mut self, positions: &std::ops::Range<usize>) {
        let numbers: Vec<u64> =
            self.ledger.sealed()[positions.clone()].iter().map(|s| s.record.round).collect();
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
            self.list.all_checked(&[Check::Plan, Check::Fold], 0);
            return;
        };
        if self.fold(*first..=*last).is_ok() {
            let count = numbers.len() as u64;
            self.list.all_checked(&[Check::Plan, Check::Fold], count);
            return;
        }
        for round in numbers {
            match self.fold(round..=round) {
                Ok(()) => self.list.all_checked(&[Check::Plan, Check::Fold], 1),
                Err(error) => {
                    note(self.list, round, None, None, &error);
                    // The plan comes before the fold; what did not come to its end was not done.
                    for check in [Check::Plan, Check::Fold] {
                        let why = format!("round {round} could not be folded to its end");
                        self.list.missing(check, why);
                    }
                }
            }
        }
    }

    fn fold(&self, rounds: RangeInclusive<u64>) -> Result<(), LedgerError> {
        let (tensor, fold) = (self.options.tensor.clone(), self.options.fold);
        let options = ReplayOptions { rounds, tensor, fold };
        replay(self.ledger, &options, self.progress).map(drop)
    }

    fn sample(
        &mut self,
        layout: &Layout,
        rounds: &[(usize, Followed)],
        count: u64,
        seed: &[u8],
    ) -> SampleView {
        let population = Population::new(layout, self.options.tensor.as_deref());
        let (each, of) = (population.pieces(), population.pieces() * rounds.len() as u64);
        let drawn = draw(seed, count, of);
        let count = drawn.len() as u64;
        for check in [Check::Acceptances, Check::Refusals] {
            self.list.missing(check, "a sample does not read whole uploads");
        }
        if rounds.is_empty() {
            self.list.all_checked(&[Check::Plan, Check::Fold], 0);
        }
        self.progress.begin("audit", count * crate::types::manifest::PIECE_BYTES);
        for (at, (position, followed)) in rounds.iter().enumerate() {
            let start = at as u64 * each;
            let numbers: BTreeSet<u64> =
                drawn.range(start..start + each).map(|number| number - start).collect();
            if numbers.is_empty() && !self.options.plan {
                self.list.missing(Check::Plan, "norms need whole deltas: --plan reads them");
                continue;
            }
            let record = &self.ledger.sealed()[*position].record;
            let Some(Window { checked, follows: true, .. }) = followed else {
                for check in [Check::Plan, Check::Fold] {
                    let why = format!("round {} does not follow from the log", record.round);
                    self.list.missing(check, why);
                }
                continue;
            };
            let (ledger, fold) = (self.ledger, self.options.fold);
            let round = SampledRound { ledger, layout, record, checked, fold };
            let plan = self.options.plan;
            round.check(self.list, &population, &numbers, plan, self.progress);
        }
        self.progress.end();
        let seed = seed.iter().map(|byte| format!("{byte:02x}")).collect();
        SampleView { pieces: count, of, seed, missed: shares(count, of) }
    }
}
