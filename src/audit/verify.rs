//! Verifying a bundle without the ledger, against keys from outside.
//!
//! Nothing in a bundle is believed before it leads to a signed head: the checks go from the heads
//! down, and stop where something that the next one rests on does not hold. `tools/verify.py` does
//! the same and shares no code with this.
//!
//! Two kinds of failure are told apart. A proof that leads nowhere says something about the bundle
//! alone, which anyone may have made up. What is proven to be signed and contradicts itself is
//! evidence against whoever signed it.

mod dispute;
mod fold;
mod fork;
pub mod refusal;
mod round;
mod state;

use std::io::Read;

use crate::{
    merkle::{head::TreeHead, proof::LogProof, tree::leaf_hash},
    types::{
        digest::Digest,
        json,
        manifest::ArtifactId,
        record::{Genesis, RoundRecord, RoundsEntry},
    },
};

use super::{
    bundle::{Bundle, Claim},
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
    /// What those who signed are shown to have contradicted, if they are.
    pub evidence: Option<String>,
}

/// Judges a bundle.
pub fn verify(from: impl Read, trust: &Trust) -> Verified {
    match Bundle::read(from) {
        Ok(bundle) if matches!(bundle.claim, Claim::Dispute) => dispute::dispute(&bundle, trust),
        Ok(bundle) => judge(&bundle, trust),
        Err(error) => {
            let mut list = Checklist::new(&[Check::Format], &trust.waived);
            list.found(Check::Format, Finding::new(error));
            let lines = list.lines();
            Verified { kind: None, subject: String::new(), lines, evidence: None }
        }
    }
}

/// Judges any claim but a dispute.
fn judge(bundle: &Bundle, trust: &Trust) -> Verified {
    let mut judge = Judge {
        list: Checklist::new(checks(&bundle.claim), &trust.waived),
        bundle,
        trust,
        subject: String::new(),
        heads: Vec::new(),
        first: None,
    };
    judge.list.checked(Check::Format, 1);
    // What stops the way down has been said in the list.
    let _ = match &bundle.claim {
        Claim::Piece(claim) => judge.piece(claim),
        Claim::Tensor(claim) => judge.tensor(claim),
        Claim::Submission(claim) => judge.submission(claim),
        Claim::Round(claim) => judge.round(claim),
        Claim::Heads(claim) => judge.two_heads(claim),
        Claim::Entries => judge.two_entries(),
        Claim::Records(claim) => judge.records(claim),
        Claim::Receipt(claim) => judge.receipt(claim),
        Claim::Refusal(claim) => judge.refusal(claim),
        Claim::Fold(claim) => judge.fold(claim),
        Claim::Dispute => None,
    };
    let evidence = judge.evidence();
    let (subject, lines) = (judge.subject, judge.list.lines());
    Verified { kind: Some(bundle.claim.kind()), subject, lines, evidence }
}

/// What is checked of a claim.
fn checks(claim: &Claim) -> &'static [Check] {
    use Check::{
        Acceptances, Bytes, Consistency, Derivation, Descriptor, Dispositions, Fold, Format,
        Inclusion, Plan, Records, Refusals, RoundsSignature, Statements, SubmissionsSignature,
        Windows, Witnesses,
    };
    match claim {
        Claim::Piece(_) | Claim::Tensor(_) => {
            &[Format, RoundsSignature, Witnesses, Inclusion, Descriptor, Bytes]
        }
        Claim::Heads(_) => &[Format, RoundsSignature, SubmissionsSignature, Witnesses, Consistency],
        Claim::Entries => {
            &[Format, RoundsSignature, SubmissionsSignature, Witnesses, Inclusion, Consistency]
        }
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
        Claim::Records(_) => &[Format, RoundsSignature, Witnesses, Inclusion, Records, Windows],
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
        // The plan is not what a receipt is about.
        Claim::Receipt(_) => &[
            Format,
            RoundsSignature,
            SubmissionsSignature,
            Witnesses,
            Inclusion,
            Records,
            Windows,
            Statements,
            Dispositions,
            Derivation,
        ],
        Claim::Refusal(_) => &[
            Format,
            RoundsSignature,
            SubmissionsSignature,
            Witnesses,
            Inclusion,
            Refusals,
            Descriptor,
            Bytes,
        ],
        Claim::Fold(_) | Claim::Dispute => &[
            Format,
            RoundsSignature,
            Witnesses,
            Inclusion,
            Records,
            Windows,
            Dispositions,
            Acceptances,
            Descriptor,
            Bytes,
            Plan,
            Fold,
        ],
    }
}

const RECORD: [&str; 2] = ["record.json", "record.tlog-proof"];

/// A bundle being judged. Steps give nothing where the next one has no ground to stand on.
struct Judge<'a> {
    list: Checklist,
    bundle: &'a Bundle,
    trust: &'a Trust,
    subject: String,
    /// Heads that were opened, by their notes: one is asked once.
    heads: Vec<(Check, String, Option<TreeHead>)>,
    /// The first thing that did not hold, and whether it is the signers' contradiction.
    first: Option<(bool, String)>,
}

impl Judge<'_> {
    /// Notes an outcome that says something about the bundle; goes on if it holds.
    fn step<T, E: ToString>(&mut self, check: Check, outcome: Result<T, E>) -> Option<T> {
        self.note(check, outcome, false)
    }

    /// Notes whether what is proven to be signed agrees with itself; goes on if it does.
    fn agrees<T, E: ToString>(&mut self, check: Check, outcome: Result<T, E>) -> Option<T> {
        self.note(check, outcome, true)
    }

    fn note<T, E: ToString>(
        &mut self,
        check: Check,
        outcome: Result<T, E>,
        signed: bool,
    ) -> Option<T> {
        match outcome {
            Ok(value) => {
                self.list.checked(check, 1);
                Some(value)
            }
            Err(error) => {
                let text = error.to_string();
                self.first.get_or_insert_with(|| (signed, text.clone()));
                self.list.found(check, Finding::new(text));
                None
            }
        }
    }

    /// As [`Self::step`] where a condition decides.
    fn holds(&mut self, check: Check, holds: bool, text: &str) -> Option<()> {
        self.step(check, if holds { Ok(()) } else { Err(text) })
    }

    /// What the signers are shown to have contradicted: nothing where a signature does not hold, or
    /// where a proof that it rests on led nowhere.
    fn evidence(&self) -> Option<String> {
        let signed = self.heads.iter().all(|(check, ..)| self.list.holds(*check))
            && !self.list.failed(Check::Witnesses);
        let contradicted = self.first.as_ref().filter(|(contradicted, _)| *contradicted);
        contradicted.filter(|_| signed && !self.heads.is_empty()).map(|(_, text)| text.clone())
    }

    /// The bytes of an entry that is in a log, and its index.
    fn entry(&mut self, signature: Check, names: [&str; 2]) -> Option<(u64, Vec<u8>)> {
        let proof = self.step(Check::Inclusion, LogProof::parse(self.bundle.member(names[1])))?;
        let head = self.head(signature, &proof)?;
        let entry = self.bundle.member(names[0]).to_vec();
        self.step(Check::Inclusion, proof.check(&entry, &head))?;
        Some((proof.index, entry))
    }

    /// The head that a proof leads to: one of each log.
    fn head(&mut self, signature: Check, proof: &LogProof) -> Option<TreeHead> {
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
        Some(head)
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
        let (record, _, index) = self.record(RECORD)?;
        self.holds(Check::Inclusion, record.round == round, "the record is another round's")?;
        Some((record, index))
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
