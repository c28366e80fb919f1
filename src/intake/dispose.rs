//! What comes of each submission of a round: accepted with a place in the fold, or rejected and why.
//!
//! A pure function of the submissions log and of who was expected: seal, replay, `fsck` and audit
//! all call it, and a record whose dispositions it does not give is refused.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{
    manifest::ManifestId,
    record::{Disposition, Verdict},
    refusal::{Code, Refusal},
    rule::Dialect,
    submission::{Content, Miner, Submission},
};

/// A round as far as its dispositions need it.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Its number.
    pub round: u64,
    /// The state it starts from.
    pub base: ManifestId,
    /// Whose deltas are expected.
    pub listed: &'a [Miner],
    /// Who takes the places of the missing, in this order.
    pub reserve: &'a [Miner],
    /// Whose customs order the miners.
    pub dialect: Dialect,
}

/// Disposes of every submission of a round's window.
///
/// `submissions` are the window's, with their indices, ascending. The answer has one disposition
/// for each, in that order, then one `absent` for each listed miner without any.
///
/// A listed miner's lowest valid index counts. As many reserves as listed miners are missing or
/// refused are taken once, in the order of the list, leaving out who is accepted; one of them that
/// fails is not replaced. Ledger order: Templar's is the accepted listed by uid, then the accepted
/// reserves by uid; the native one is all accepted by miner.
///
/// # Source
///
/// Templar 2.1.28, `Comms.gather_with_reserve`; `schema/records.md`.
pub fn dispose(expected: Expected<'_>, submissions: &[(u64, Submission)]) -> Vec<Disposition> {
    let mut valid = first_valid(expected, submissions);
    let listed_in = expected.listed.iter().filter(|m| valid.contains_key(m)).count();
    let missing = expected.listed.len() - listed_in;
    let accepted_listed = |m: &Miner| expected.listed.contains(m) && valid.contains_key(m);
    let taken: BTreeSet<Miner> =
        expected.reserve.iter().filter(|m| !accepted_listed(m)).take(missing).copied().collect();
    let unused = |m: &Miner| !expected.listed.contains(m) && !taken.contains(m);
    valid.retain(|m, _| !unused(m));
    let (order, senders) = (ledger_order(expected, &valid), senders(expected, submissions));

    let verdict = |index: &u64, submission: &Submission| {
        let miner = submission.miner();
        if valid.get(&miner) == Some(index) {
            return Verdict::Accepted { order: order[&miner] };
        }
        Verdict::Rejected(
            misplaced(expected, submission)
                .or_else(|| unused(&miner).then(|| reserve_unused(missing)))
                .or_else(|| refused(submission))
                .unwrap_or_else(|| {
                    repeated(expected, *index, submission, valid.get(&miner), &senders)
                }),
        )
    };
    let mut dispositions: Vec<Disposition> = submissions
        .iter()
        .map(|(index, submission)| Disposition {
            index: Some(*index),
            miner: submission.miner(),
            verdict: verdict(index, submission),
        })
        .collect();
    let came: BTreeSet<Miner> = submissions.iter().map(|(_, s)| s.miner()).collect();
    let absent = expected.listed.iter().filter(|miner| !came.contains(miner));
    dispositions.extend(absent.map(|&miner| Disposition {
        index: None,
        miner,
        verdict: Verdict::Absent,
    }));
    dispositions
}

/// The accepted submissions of `dispositions` as (order, index, miner), in ledger order.
pub fn accepted(dispositions: &[Disposition]) -> Vec<(u64, u64, Miner)> {
    let mut accepted: Vec<_> = dispositions
        .iter()
        .filter_map(|d| match (&d.verdict, d.index) {
            (Verdict::Accepted { order }, Some(index)) => Some((*order, index, d.miner)),
            _ => None,
        })
        .collect();
    accepted.sort_unstable();
    accepted
}

/// For each expected miner the lowest index of a valid submission.
fn first_valid(expected: Expected<'_>, submissions: &[(u64, Submission)]) -> BTreeMap<Miner, u64> {
    let mut valid = BTreeMap::new();
    let mut seen_deltas = BTreeMap::new();
    for (index, submission) in submissions {
        let Content::Delta(delta) = submission.content() else { continue };
        let miner = submission.miner();
        if misplaced(expected, submission).is_some() {
            continue;
        }
        let first = *seen_deltas.entry(delta).or_insert(miner);
        if expected.dialect == Dialect::Native && first != miner {
            continue;
        }
        valid.entry(miner).or_insert(*index);
    }
    valid
}

/// Each accepted miner's place in the fold.
fn ledger_order(expected: Expected<'_>, valid: &BTreeMap<Miner, u64>) -> BTreeMap<Miner, u64> {
    let mut miners: Vec<Miner> = valid.keys().copied().collect();
    if expected.dialect == Dialect::Templar {
        miners.sort_by_key(|miner| (!expected.listed.contains(miner), *miner));
    }
    miners.into_iter().zip(0..).collect()
}

/// Another round, another base, or nobody who was expected.
fn misplaced(expected: Expected<'_>, submission: &Submission) -> Option<Refusal> {
    let miner = submission.miner();
    if submission.round() != expected.round {
        let (want, found) = (expected.round.to_string(), submission.round().to_string());
        return Some(Refusal::new(Code::WrongRound, None, want, found));
    }
    if !submission.is_from(expected.base) {
        let (want, found) = (expected.base.root.to_hex(), submission.base().to_hex());
        return Some(Refusal::new(Code::WrongBase, None, want, found));
    }
    if !expected.listed.contains(&miner) && !expected.reserve.contains(&miner) {
        let want = "a listed or reserve miner";
        return Some(Refusal::new(Code::NotListed, None, want, miner.to_string()));
    }
    None
}

/// What intake found wrong with it.
fn refused(submission: &Submission) -> Option<Refusal> {
    match submission.content() {
        Content::Refused(refusal) => Some(refusal.clone()),
        Content::Unread => {
            let (want, found) = ("a file that was read", "one left unread as an unused reserve's");
            Some(Refusal::new(Code::ReserveUnused, None, want, found))
        }
        Content::Delta(_) => None,
    }
}

fn reserve_unused(missing: usize) -> Refusal {
    let expected = format!("one of the {missing} reserves whose places were needed");
    Refusal::new(Code::ReserveUnused, None, expected, "a reserve after them")
}

/// Who sent a delta first, and the first other miner who sent it: more is never asked.
type Senders = BTreeMap<ManifestId, Vec<(u64, Miner)>>;

fn senders(expected: Expected<'_>, submissions: &[(u64, Submission)]) -> Senders {
    let mut senders = Senders::new();
    for (index, submission) in submissions {
        if let Content::Delta(delta) = submission.content()
            && misplaced(expected, submission).is_none()
        {
            let (first, miner) = (senders.entry(delta).or_default(), submission.miner());
            if first.len() < 2 && first.iter().all(|(_, other)| *other != miner) {
                first.push((*index, miner));
            }
        }
    }
    senders
}

/// A valid delta that is not its miner's first, or that another miner sent before.
fn repeated(
    expected: Expected<'_>,
    index: u64,
    submission: &Submission,
    counted: Option<&u64>,
    senders: &Senders,
) -> Refusal {
    let Content::Delta(delta) = submission.content() else {
        unreachable!("what intake refused is disposed of before")
    };
    let another = |(at, miner): &&(u64, Miner)| *at < index && *miner != submission.miner();
    let copied = senders.get(&delta).and_then(|first| first.iter().find(another));
    match (copied, counted) {
        (Some((index, other)), _) if expected.dialect == Dialect::Native => Refusal::new(
            Code::DuplicateDelta,
            None,
            "a delta of the miner's own",
            format!("the delta of {other} at index {index}"),
        ),
        (_, Some(first)) => {
            let expected = format!("one submission, the one at index {first}");
            Refusal::new(Code::DuplicateSubmission, None, expected, "a later one")
        }
        (_, None) => unreachable!("a valid delta that is nobody's copy is its miner's first"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{
        digest::Digest,
        submission::{Fetched, Outcome},
    };

    const BASE: ManifestId = ManifestId { root: Digest([7; 32]), count: 1, bytes: 4 };

    fn delta(of: u8) -> Outcome {
        Outcome::Delta(ManifestId { root: Digest([of; 32]), count: 3, bytes: 99 })
    }

    fn refusal() -> Outcome {
        Outcome::Refused(Refusal::new(Code::NonFinite, None, "finite", "NaN"))
    }

    fn sent(uid: u16, outcome: Outcome) -> Submission {
        Submission::Fetched(Fetched {
            round: 5,
            base: BASE,
            uid,
            file: format!("gradient-5-{uid}.pt"),
            source_bytes: 1,
            source_sha256: Digest::default(),
            outcome,
        })
    }

    /// Codes by position (`+N` for accepted at order N), then the absent ones.
    fn verdicts(
        dialect: Dialect,
        listed: &[u16],
        reserve: &[u16],
        submissions: &[Submission],
    ) -> Vec<String> {
        let miners = |uids: &[u16]| uids.iter().map(|&uid| Miner::Uid(uid)).collect::<Vec<_>>();
        let (listed, reserve) = (miners(listed), miners(reserve));
        let expected =
            Expected { round: 5, base: BASE, listed: &listed, reserve: &reserve, dialect };
        let indexed: Vec<_> = (10..).zip(submissions.iter().cloned()).collect();
        dispose(expected, &indexed)
            .into_iter()
            .map(|d| match d.verdict {
                Verdict::Accepted { order } => format!("+{order}"),
                Verdict::Rejected(refusal) => refusal.code.to_string(),
                Verdict::Absent => format!("absent {}", d.miner),
            })
            .collect()
    }

    #[test]
    fn listed_miners_fold_by_uid_and_reserves_after_them() {
        // As golden case small_reserve: 9 has no file, 4 takes its place.
        let files = [sent(30, delta(1)), sent(5, delta(2)), sent(4, delta(3)), sent(2, delta(4))];
        assert_eq!(
            verdicts(Dialect::Templar, &[30, 9, 5], &[4, 2], &files),
            ["+1", "+0", "+2", "reserve-unused", "absent uid 9"]
        );
        assert_eq!(
            verdicts(Dialect::Native, &[30, 9, 5], &[4, 2], &files),
            ["+2", "+1", "+0", "reserve-unused", "absent uid 9"]
        );
    }

    #[test]
    fn a_reserve_that_fails_is_not_replaced() {
        let files = [sent(5, delta(1)), sent(4, refusal()), sent(2, delta(2))];
        assert_eq!(
            verdicts(Dialect::Templar, &[5, 9], &[4, 2], &files),
            ["+0", "non-finite", "reserve-unused", "absent uid 9"]
        );
    }

    #[test]
    fn two_missing_take_the_first_two_reserves_and_sort_them() {
        let files = [sent(8, delta(1)), sent(6, delta(2)), sent(1, delta(3)), sent(7, refusal())];
        assert_eq!(
            verdicts(Dialect::Templar, &[7, 9], &[8, 6, 1], &files),
            ["+1", "+0", "reserve-unused", "non-finite", "absent uid 9"]
        );
    }

    #[test]
    fn the_lowest_valid_index_of_a_miner_counts() {
        let files = [sent(5, refusal()), sent(5, delta(1)), sent(5, delta(2))];
        assert_eq!(
            verdicts(Dialect::Templar, &[5], &[], &files),
            ["non-finite", "+0", "duplicate-submission"]
        );
    }

    #[test]
    fn the_same_delta_twice_is_a_copy_for_the_native_rule_only() {
        let files = [sent(5, delta(1)), sent(3, delta(1))];
        assert_eq!(verdicts(Dialect::Templar, &[5, 3], &[], &files), ["+1", "+0"]);
        assert_eq!(verdicts(Dialect::Native, &[5, 3], &[], &files), ["+0", "duplicate-delta"]);
    }

    #[test]
    fn strangers_other_rounds_and_other_bases_are_named() {
        let fetched = |change: fn(&mut Fetched)| {
            let Submission::Fetched(mut fetched) = sent(5, delta(1)) else { unreachable!() };
            change(&mut fetched);
            Submission::Fetched(fetched)
        };
        let other_round = fetched(|f| f.round = 4);
        let other_base = fetched(|f| f.base.root = Digest([8; 32]));
        assert_eq!(
            verdicts(Dialect::Templar, &[5], &[], &[other_round, other_base, sent(6, delta(2))]),
            ["wrong-round", "wrong-base", "not-listed"]
        );
    }
}
