//! Claims about a round: a submission and what came of it, all of them, the record itself, and what a
//! receipt promised.

use super::{Check, Judge, same_artifact};
use crate::{
    audit::bundle::{RecordsClaim, RoundClaim, SubmissionClaim, TreeProof},
    ledger::check::{
        Before, check_dispositions, check_record, check_statement, derive, window_bounds,
        window_root,
    },
    merkle::{
        pieces::Pieces,
        tree::{TreeBuilder, leaf_hash, root_of, verify_inclusion},
    },
    types::{
        digest::Digest,
        json,
        record::{Disposition, Genesis, RoundRecord},
        submission::Submission,
    },
};

/// A record and what it has to continue.
struct Records {
    genesis: Genesis,
    run: Digest,
    previous: Option<(RoundRecord, Digest)>,
    /// Indices in the rounds log of what stands before, and of the record.
    place: u64,
    record: RoundRecord,
    index: u64,
}

impl Records {
    fn before(&self) -> Before<'_> {
        Before {
            leaf: self.previous.as_ref().map_or(self.run, |(_, leaf)| *leaf),
            record: self.previous.as_ref().map(|(record, _)| record),
            genesis: &self.genesis,
        }
    }
}

impl<'a> Judge<'a> {
    pub(super) fn submission(&mut self, claim: &SubmissionClaim) -> Option<()> {
        let (_, run) = self.genesis()?;
        let names = ["submission.json", "submission.tlog-proof"];
        let (index, entry) = self.entry(Check::SubmissionsSignature, names)?;
        self.holds(Check::Inclusion, index == claim.index, "it is another index")?;
        let submission: Submission = self.step(Check::Inclusion, json::from_slice(&entry))?;
        let (miner, round) = (submission.miner(), submission.round());
        self.subject = format!("submission {index} of {miner} for round {round}");
        let record = match &claim.disposed {
            Some(disposed) => Some((disposed, self.claimed_record(disposed.round)?.0)),
            None => None,
        };
        match &submission {
            Submission::Signed(_) => {
                let verified = check_statement(run, round, index, &submission);
                self.step(Check::Statements, verified);
            }
            Submission::Fetched(_) => self.list.not_required(Check::Statements),
        }
        let Some((disposed, record)) = record else {
            self.list.not_required(Check::Windows);
            self.list.not_required(Check::Dispositions);
            self.subject += ", whose round is open";
            return Some(());
        };
        let window = record.submissions;
        let inside = (window.start..window.end).contains(&index) && disposed.window.index == index;
        self.holds(Check::Windows, inside, "the submission is not in the record's window")?;
        let (leaf, hashes) = (leaf_hash(&entry), &disposed.window.hashes);
        let root = window.root_at_end;
        self.step(Check::Windows, verify_inclusion(index, window.end, &leaf, hashes, &root))?;
        self.disposition(&record, index, &submission, &disposed.disposition)
    }

    /// The disposition of a submission of the record's window.
    fn disposition(
        &mut self,
        record: &RoundRecord,
        index: u64,
        submission: &Submission,
        proof: &TreeProof,
    ) -> Option<()> {
        let check = Check::Dispositions;
        let entry = self.bundle.member("disposition.json");
        let at = index - record.submissions.start;
        self.holds(check, proof.index == at, "it is the disposition at another place")?;
        let id = record.dispositions;
        let leaf = leaf_hash(entry);
        self.step(check, verify_inclusion(at, id.count, &leaf, &proof.hashes, &id.root))?;
        let disposition: Disposition = self.step(check, json::from_slice(entry))?;
        let same = disposition.index == Some(index) && disposition.miner == submission.miner();
        let text = "its disposition is that of another submission";
        self.agrees(check, same.then_some(()).ok_or(text))?;
        let verdict = serde_json::to_string(&disposition.verdict).unwrap_or_default();
        self.subject = format!("{}: {verdict}", self.subject);
        Some(())
    }

    /// The entries that say what a record is and what it has to continue.
    fn record_entries(&mut self, round: u64, follows: bool) -> Option<Records> {
        let (genesis, run) = self.genesis()?;
        let previous = match follows {
            true => Some(self.record(["previous.json", "previous.tlog-proof"])?),
            false => None,
        };
        let (record, index) = self.claimed_record(round)?;
        self.subject = format!("round {round}");
        let place = previous.as_ref().map_or(0, |(.., place)| *place);
        let previous = previous.map(|(record, leaf, _)| (record, leaf));
        Some(Records { genesis, run, previous, place, record, index })
    }

    /// A record continues the one before it: chain, base, rule, lists, window.
    fn continues(&mut self, records: &Records) -> Option<()> {
        let Records { place, record, index, .. } = records;
        let before = records.before();
        // Whoever made the bundle chose the record before; it is that one if this one names it, or if
        // nothing stands between the two.
        let named = record.previous == before.leaf || place + 1 == *index;
        let named = place < index && named;
        self.holds(Check::Records, named, "another record stands before it")?;
        self.agrees(Check::Records, check_record(record, &before));
        self.agrees(Check::Windows, window_bounds(record, before.window_start(), u64::MAX));
        Some(())
    }

    pub(super) fn records(&mut self, claim: &RecordsClaim) -> Option<()> {
        let records = self.record_entries(claim.round, claim.follows)?;
        self.continues(&records)
    }

    pub(super) fn round(&mut self, claim: &RoundClaim) -> Option<()> {
        let records = self.record_entries(claim.round, claim.follows)?;
        self.contents(claim, &records, None)
    }

    /// The round disposes of the entry that the receipt was given for.
    pub(super) fn receipt(&mut self, claim: &RoundClaim) -> Option<()> {
        let records = self.record_entries(claim.round, claim.follows)?;
        let names = ["receipt.json", "receipt.tlog-proof"];
        let (index, entry) = self.entry(Check::SubmissionsSignature, names)?;
        let submission: Submission = self.step(Check::Inclusion, json::from_slice(&entry))?;
        let same = submission.round() == claim.round;
        self.holds(Check::Inclusion, same, "the receipt is for another round")?;
        self.subject = format!("the receipt of entry {index}, in round {}", claim.round);
        self.contents(claim, &records, Some((index, &entry)))
    }

    /// A round's submissions, which should hold this one, and what came of them.
    fn contents(
        &mut self,
        claim: &RoundClaim,
        records: &Records,
        receipt: Option<(u64, &[u8])>,
    ) -> Option<()> {
        self.continues(records)?;
        let Records { run, record, .. } = records;
        let submissions = self.window(claim, record, &records.before(), receipt)?;
        for (index, submission) in &submissions {
            let verified = check_statement(*run, record.round, *index, submission);
            self.agrees(Check::Statements, verified);
        }
        if !submissions.iter().any(|(_, s)| matches!(s, Submission::Signed(_))) {
            self.list.not_required(Check::Statements);
        }
        let plan = claim.plan.then(|| Pieces::of(self.bundle.member("plan")).artifact);
        match plan {
            Some(plan) => {
                self.step(Check::Plan, same_artifact(record.plan, Some(plan)));
            }
            None if receipt.is_some() => {}
            None => self.list.missing(Check::Plan, "the bundle was made without the plan"),
        }
        self.dispositions(record, &submissions)
    }

    /// The window's submissions, which give the roots at its start and at its end.
    fn window(
        &mut self,
        claim: &RoundClaim,
        record: &RoundRecord,
        before: &Before<'_>,
        receipt: Option<(u64, &[u8])>,
    ) -> Option<Vec<(u64, Submission)>> {
        let check = Check::Windows;
        let window = record.submissions;
        let mut tree = self.step(check, TreeBuilder::restore(window.start, claim.edge.clone()))?;
        let root_before = before.record.map(|before| before.submissions.root_at_end);
        let continues = root_before.is_none_or(|root| root == tree.root());
        self.holds(check, continues, "the window does not continue the tree before it");
        let lines = self.step(check, self.bundle.lines("submissions.jsonl"))?;
        let count = window.end.checked_sub(window.start);
        let all = count == Some(lines.len() as u64);
        self.holds(check, all, "there are not as many submissions as the window has")?;
        lines.iter().for_each(|line| tree.push(leaf_hash(line)));
        self.step(check, window_root(record, tree.root()))?;
        let read = |(index, line): (u64, &&[u8])| Ok((index, json::from_slice(line)?));
        let left_out = receipt.filter(|(index, entry)| {
            let at = index.checked_sub(window.start).and_then(|at| usize::try_from(at).ok());
            at.and_then(|at| lines.get(at)) != Some(entry)
        });
        let kept = left_out.map_or(Ok(()), |(index, _)| {
            Err(format!("the record leaves out entry {index}, for which a receipt was given"))
        });
        let submissions: Result<Vec<_>, json::JsonError> =
            (window.start..).zip(&lines).map(read).collect();
        self.agrees(check, kept);
        self.agrees(check, submissions)
    }

    fn dispositions(
        &mut self,
        record: &RoundRecord,
        submissions: &[(u64, Submission)],
    ) -> Option<()> {
        self.disposition_lines(record)?;
        self.agrees(Check::Derivation, check_dispositions(record, &derive(record, submissions)))
    }

    /// The dispositions that give the record's root.
    pub(super) fn disposition_lines(&mut self, record: &RoundRecord) -> Option<Vec<&'a [u8]>> {
        let check = Check::Dispositions;
        let lines = self.step(check, self.bundle.lines("dispositions.jsonl"))?;
        let leaves: Vec<Digest> = lines.iter().map(|line| leaf_hash(line)).collect();
        let id = record.dispositions;
        let same = (root_of(&leaves), leaves.len() as u64) == (id.root, id.count);
        self.holds(check, same, "the dispositions are not those of the record");
        Some(lines)
    }
}
