//! Verifying a bundle without the ledger, against keys from outside.
//!
//! Nothing in a bundle is believed before it leads to a signed head: the checks go from the heads
//! down, and stop where something that the next one rests on does not hold. `tools/verify.py` does
//! the same and shares no code with this.

use std::io::Read;

use crate::{
    ledger::check::{
        Before, check_dispositions, check_record, check_statement, derive, window_bounds,
        window_root,
    },
    merkle::{
        fork::{Relation, relation},
        head::TreeHead,
        pieces::{Pieces, verify_piece},
        proof::LogProof,
        tree::{TreeBuilder, leaf_hash, root_of, verify_inclusion},
    },
    types::{
        digest::Digest,
        json,
        manifest::{ArtifactId, Descriptor, Manifest, ManifestId},
        record::{Disposition, Genesis, RoundRecord, RoundsEntry},
        submission::Submission,
    },
};

use super::{
    bundle::{
        Bundle, Claim, HeadsClaim, PieceClaim, RoundClaim, SubmissionClaim, TensorClaim, TreeProof,
    },
    checks::{Check, Checklist, Finding, Line},
    trust::Trust,
};

/// What a bundle claims, and what came of the checks.
#[derive(Debug)]
pub struct Verified {
    /// Kind of the claim; none where the bundle does not read.
    pub kind: Option<&'static str>,
    /// The claim in words.
    pub subject: String,
    /// One for each check.
    pub lines: Vec<Line>,
}

/// Judges a bundle.
pub fn verify(from: impl Read, trust: &Trust) -> Verified {
    let bundle = match Bundle::read(from) {
        Ok(bundle) => bundle,
        Err(error) => {
            let mut list = Checklist::new(&[Check::Format], &trust.waived);
            list.found(Check::Format, Finding::new(error));
            return Verified { kind: None, subject: String::new(), lines: list.lines() };
        }
    };
    let mut judge = Judge {
        list: Checklist::new(checks(&bundle.claim), &trust.waived),
        bundle: &bundle,
        trust,
        subject: String::new(),
        heads: Vec::new(),
    };
    judge.list.checked(Check::Format, 1);
    // What stops the way down has been said in the list.
    let _ = match &bundle.claim {
        Claim::Piece(claim) => judge.piece(claim),
        Claim::Tensor(claim) => judge.tensor(claim),
        Claim::Submission(claim) => judge.submission(claim),
        Claim::Round(claim) => judge.round(claim),
        Claim::Heads(claim) => judge.two_heads(claim),
    };
    let (subject, lines) = (judge.subject, judge.list.lines());
    Verified { kind: Some(bundle.claim.kind()), subject, lines }
}

/// What is checked of a claim.
fn checks(claim: &Claim) -> &'static [Check] {
    use Check::{
        Bytes, Consistency, Derivation, Descriptor, Dispositions, Format, Inclusion, Plan, Records,
        RoundsSignature, Statements, SubmissionsSignature, Windows, Witnesses,
    };
    match claim {
        Claim::Piece(_) | Claim::Tensor(_) => {
            &[Format, RoundsSignature, Witnesses, Inclusion, Descriptor, Bytes]
        }
        Claim::Heads(_) => &[Format, RoundsSignature, SubmissionsSignature, Witnesses, Consistency],
        Claim::Submission(_) => &[
            Format,
            RoundsSignature,
            SubmissionsSignature,
            Witnesses,
            Inclusion,
            Windows,
            Statements,
            Dispositions,
        ],
        Claim::Round(_) => &[
            Format,
            RoundsSignature,
            Witnesses,
            Inclusion,
            Records,
            Windows,
            Statements,
            Dispositions,
            Derivation,
            Plan,
        ],
    }
}

/// A bundle being judged. Steps give nothing where the next one has no ground to stand on.
struct Judge<'a> {
    list: Checklist,
    bundle: &'a Bundle,
    trust: &'a Trust,
    subject: String,
    /// Heads that were opened, by their notes: one is asked once.
    heads: Vec<(Check, String, Option<TreeHead>)>,
}

impl Judge<'_> {
    /// Notes an outcome; goes on if it holds.
    fn step<T, E: ToString>(&mut self, check: Check, outcome: Result<T, E>) -> Option<T> {
        match outcome {
            Ok(value) => {
                self.list.checked(check, 1);
                Some(value)
            }
            Err(error) => {
                self.list.found(check, Finding::new(error));
                None
            }
        }
    }

    /// Likewise where a condition decides.
    fn holds(&mut self, check: Check, holds: bool, text: &str) -> Option<()> {
        self.step(check, if holds { Ok(()) } else { Err(text) })
    }

    /// The bytes of an entry that is in a log, and its index.
    fn entry(&mut self, signature: Check, names: [&str; 2]) -> Option<(u64, Vec<u8>)> {
        let proof = self.step(Check::Inclusion, LogProof::parse(self.bundle.member(names[1])))?;
        let known = self.heads.iter().find(|(check, ..)| *check == signature).cloned();
        let head = match known {
            Some((_, note, head)) => {
                self.holds(Check::Inclusion, note == proof.note, "two heads of one log")?;
                head
            }
            None => {
                let note = proof.note.clone();
                let head = self.trust.head(&mut self.list, signature, note.as_bytes(), None);
                self.heads.push((signature, note, head.clone()));
                head
            }
        }?;
        let name = if signature == Check::RoundsSignature { "/rounds" } else { "/submissions" };
        let named = head.origin.ends_with(name);
        self.holds(Check::Inclusion, named, "the head is of a log of another kind")?;
        let entry = self.bundle.member(names[0]).to_vec();
        self.step(Check::Inclusion, proof.check(&entry, &head))?;
        Some((proof.index, entry))
    }

    fn rounds_entry(&mut self, names: [&str; 2]) -> Option<(u64, RoundsEntry, Digest)> {
        let (index, entry) = self.entry(Check::RoundsSignature, names)?;
        let read = self.step(Check::Inclusion, json::from_slice(&entry))?;
        Some((index, read, leaf_hash(&entry)))
    }

    fn genesis(&mut self) -> Option<(Genesis, Digest)> {
        match self.rounds_entry(["genesis.json", "genesis.tlog-proof"])? {
            (0, RoundsEntry::Genesis(genesis), leaf) => Some((*genesis, leaf)),
            _ => {
                self.holds(Check::Inclusion, false, "genesis.json is not the genesis at entry 0")?;
                None
            }
        }
    }

    fn record(&mut self, member: [&str; 2]) -> Option<(RoundRecord, Digest, u64)> {
        match self.rounds_entry(member)? {
            (index, RoundsEntry::Round(record), leaf) => Some((*record, leaf, index)),
            _ => {
                self.holds(Check::Inclusion, false, "the entry is no round's record")?;
                None
            }
        }
    }

    /// The record of the claimed round.
    fn claimed_record(&mut self, round: u64) -> Option<(RoundRecord, u64)> {
        let (record, _, index) = self.record(["record.json", "record.tlog-proof"])?;
        self.holds(Check::Inclusion, record.round == round, "the record is another round's")?;
        Some((record, index))
    }

    /// The state that the claim is about.
    fn state(&mut self, round: Option<u64>) -> Option<ManifestId> {
        if let Some(round) = round {
            return Some(self.claimed_record(round)?.0.next);
        }
        match self.rounds_entry(["record.json", "record.tlog-proof"])? {
            (0, RoundsEntry::Genesis(genesis), _) => Some(genesis.model),
            _ => {
                self.holds(Check::Inclusion, false, "record.json is not the genesis at entry 0")?;
                None
            }
        }
    }

    /// The descriptor of the claimed tensor, which is in the state's manifest.
    fn descriptor(&mut self, round: Option<u64>, proof: &TreeProof) -> Option<Descriptor> {
        let state = self.state(round)?;
        let check = Check::Descriptor;
        let leaf = leaf_hash(self.bundle.member("descriptor.json"));
        let included =
            verify_inclusion(proof.index, state.count, &leaf, &proof.hashes, &state.root);
        self.step(check, included)?;
        // A manifest of one: its reader knows what a descriptor may be.
        let read = Manifest::from_entries([self.bundle.member("descriptor.json")]);
        let descriptor = self.step(check, read)?.descriptors()[0].clone();
        let at = round.map_or_else(|| "the genesis".to_owned(), |round| format!("round {round}"));
        self.subject = format!("tensor {} of the state after {at}", descriptor.name);
        Some(descriptor)
    }

    fn piece(&mut self, claim: &PieceClaim) -> Option<()> {
        let descriptor = self.descriptor(claim.round, &claim.descriptor)?;
        let TreeProof { index, hashes } = &claim.piece;
        self.subject = format!("piece {index} of {}", self.subject);
        let bytes = self.bundle.member("piece");
        let verified = verify_piece(&descriptor.artifact(), *index, bytes, hashes);
        self.step(Check::Bytes, verified)
    }

    fn tensor(&mut self, claim: &TensorClaim) -> Option<()> {
        let descriptor = self.descriptor(claim.round, &claim.descriptor)?;
        let found = self.bundle.tensor.as_ref().map(|pieces| pieces.artifact);
        self.step(Check::Bytes, same_artifact(descriptor.artifact(), found))
    }

    fn submission(&mut self, claim: &SubmissionClaim) -> Option<()> {
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
        self.holds(check, same, "it is the disposition of another submission")?;
        let verdict = serde_json::to_string(&disposition.verdict).unwrap_or_default();
        self.subject = format!("{}: {verdict}", self.subject);
        Some(())
    }

    fn round(&mut self, claim: &RoundClaim) -> Option<()> {
        let (genesis, run) = self.genesis()?;
        let previous = match claim.follows {
            true => Some(self.record(["previous.json", "previous.tlog-proof"])?),
            false => None,
        };
        let (record, index) = self.claimed_record(claim.round)?;
        self.subject = format!("round {}", record.round);
        let order = previous.as_ref().is_none_or(|(.., before)| *before < index);
        self.holds(Check::Records, order, "the record before comes after it in the log")?;
        let before = Before {
            leaf: previous.as_ref().map_or(run, |(_, leaf, _)| *leaf),
            record: previous.as_ref().map(|(record, ..)| record),
            genesis: &genesis,
        };
        self.step(Check::Records, check_record(&record, &before));
        let submissions = self.window(claim, &record, &before)?;
        for (index, submission) in &submissions {
            let verified = check_statement(run, record.round, *index, submission);
            self.step(Check::Statements, verified);
        }
        if !submissions.iter().any(|(_, s)| matches!(s, Submission::Signed(_))) {
            self.list.not_required(Check::Statements);
        }
        let plan = claim.plan.then(|| Pieces::of(self.bundle.member("plan")).artifact);
        match plan {
            Some(plan) => {
                self.step(Check::Plan, same_artifact(record.plan, Some(plan)));
            }
            None => self.list.missing(Check::Plan, "the bundle was made without the plan"),
        }
        self.dispositions(&record, &submissions)
    }

    /// The window's submissions, which give the roots at its start and at its end.
    fn window(
        &mut self,
        claim: &RoundClaim,
        record: &RoundRecord,
        before: &Before<'_>,
    ) -> Option<Vec<(u64, Submission)>> {
        let check = Check::Windows;
        let window = record.submissions;
        self.step(check, window_bounds(record, before.window_start(), u64::MAX));
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
        let submissions: Result<Vec<_>, json::JsonError> =
            (window.start..).zip(&lines).map(read).collect();
        self.step(check, submissions)
    }

    /// Two heads of one log. That they contradict each other is a lie of whoever signed both; that the
    /// proof does not show their consistency is none, since another proof may exist.
    fn two_heads(&mut self, claim: &HeadsClaim) -> Option<()> {
        let [a, b] = ["a.note", "b.note"].map(|name| self.bundle.member(name));
        let line = |note: &[u8]| note.split(|byte| *byte == b'\n').next().map(<[u8]>::to_vec);
        let origin = line(a).filter(|origin| line(b).as_ref() == Some(origin));
        self.holds(Check::Format, origin.is_some(), "heads of two logs")?;
        let of_rounds = origin.is_some_and(|origin| origin.ends_with(b"/rounds"));
        let (check, other) = match of_rounds {
            true => (Check::RoundsSignature, Check::SubmissionsSignature),
            false => (Check::SubmissionsSignature, Check::RoundsSignature),
        };
        self.list.not_required(other);
        let (old, new) = (
            self.trust.head(&mut self.list, check, a, None)?,
            self.trust.head(&mut self.list, check, b, None)?,
        );
        self.subject = format!("{}: heads of size {} and {}", old.origin, old.size, new.size);
        if !self.list.holds(check) {
            self.list.missing(Check::Consistency, "nobody is known to have signed both heads");
            return None;
        }
        let keys = self.trust.keys(&old, None);
        match relation(a, b, &keys, &claim.proof) {
            Relation::Same | Relation::Consistent => self.list.checked(Check::Consistency, 1),
            Relation::Fork => {
                let (size, one, two) = (old.size, old.root, new.root);
                let text = format!("fork: both {one} and {two} were signed for size {size}");
                self.list.found(Check::Consistency, Finding::new(text));
            }
            Relation::NotProven | Relation::Unrelated | Relation::Invalid => {
                self.list.missing(Check::Consistency, "not proven; that is no proof of a fork");
            }
        }
        Some(())
    }

    fn dispositions(
        &mut self,
        record: &RoundRecord,
        submissions: &[(u64, Submission)],
    ) -> Option<()> {
        let check = Check::Dispositions;
        let lines = self.step(check, self.bundle.lines("dispositions.jsonl"))?;
        let leaves: Vec<Digest> = lines.iter().map(|line| leaf_hash(line)).collect();
        let id = record.dispositions;
        let same = (root_of(&leaves), leaves.len() as u64) == (id.root, id.count);
        self.holds(check, same, "the dispositions are not those of the record");
        self.step(Check::Derivation, check_dispositions(record, &derive(record, submissions)))
    }
}

fn same_artifact(expected: ArtifactId, found: Option<ArtifactId>) -> Result<(), String> {
    match found {
        Some(found) if found == expected => Ok(()),
        Some(ArtifactId { root, bytes }) => Err(format!(
            "{bytes} bytes with root {root}, not {} with {}",
            expected.bytes, expected.root
        )),
        None => Err("its bytes are not there".to_owned()),
    }
}
