//! Claims about a refusal: what intake refused in a signed delta is there.

use std::collections::BTreeSet;

use gradledger_kernels::codes;

use super::{Check, Judge, same_artifact};
use crate::{
    audit::bundle::RefusalClaim,
    codec::{
        book::{Book, MAGNITUDE},
        layout::{DeltaGroup, Layout, TensorLayout},
    },
    merkle::{
        manifest::manifest_id,
        pieces::Pieces,
        tree::{leaf_hash, verify_inclusion},
    },
    types::{
        json,
        manifest::{ArtifactType, Descriptor, Manifest},
        record::Genesis,
        refusal::{Code, Refusal},
        rule::Rule,
        submission::{Signed, Submission},
    },
};

/// The artifact of a tensor whose bytes alone decide a refusal.
pub fn decides(code: Code) -> Option<DeltaGroup> {
    match code {
        Code::NonFinite | Code::Magnitude => Some(DeltaGroup::Book),
        Code::IndexOutOfRange | Code::DuplicateIndex => Some(DeltaGroup::Index),
        Code::CodeOutOfRange => Some(DeltaGroup::Code),
        _ => None,
    }
}

impl Judge<'_> {
    /// A signed delta was refused for a fault that its bytes have.
    pub(super) fn refusal(&mut self, claim: &RefusalClaim) -> Option<()> {
        let (genesis, _) = self.genesis()?;
        let names = ["submission.json", "submission.tlog-proof"];
        let (index, entry) = self.entry(Check::SubmissionsSignature, names)?;
        let submission: Submission = self.step(Check::Inclusion, json::from_slice(&entry))?;
        self.holds(Check::Inclusion, index == claim.index, "it is another index")?;
        let found = named(&submission).ok_or("no bytes of one tensor decide this refusal");
        let (signed, refusal, name, group) = self.step(Check::Refusals, found)?;
        let (code, miner) = (refusal.code, signed.hotkey);
        self.subject = format!("submission {index} of {miner}, refused for {code} in {name}");
        let tensor = self.model_tensor(&genesis, name)?;
        let line = self.bundle.member("descriptor.json");
        let (leaf, delta, proof) = (leaf_hash(line), signed.delta, &claim.descriptor);
        let included =
            verify_inclusion(proof.index, delta.count, &leaf, &proof.hashes, &delta.root);
        self.step(Check::Descriptor, included)?;
        let descriptor: Descriptor = self.step(Check::Descriptor, json::from_slice(line))?;
        let spec = self.step(Check::Descriptor, tensor.artifact(group))?;
        let expected = Descriptor::new(ArtifactType::Delta, group.name(), &spec, descriptor.root);
        self.holds(Check::Descriptor, descriptor == expected, "it is another artifact's")?;
        let bytes = self.bundle.member("artifact");
        let artifact = Pieces::of(bytes).artifact;
        self.step(Check::Bytes, same_artifact(descriptor.artifact(), Some(artifact)))?;
        let text = format!("refused for {code} in {name}, where there is nothing of the kind");
        let there = has_fault(&tensor, code, bytes);
        self.agrees(Check::Refusals, there.then_some(()).ok_or(text))
    }

    /// The tensor of the model that the run started from: names and shapes never change.
    fn model_tensor(&mut self, genesis: &Genesis, name: &str) -> Option<TensorLayout> {
        let Rule::SparseMeanSgd(rule) = &genesis.rule;
        let check = Check::Descriptor;
        self.step(check, rule.check())?;
        let lines = self.step(check, self.bundle.lines("model.jsonl"))?;
        let manifest = self.step(check, Manifest::from_entries(lines))?;
        let same = manifest_id(&manifest) == genesis.model;
        self.holds(check, same, "these descriptors are not the model's")?;
        let layout = self.step(check, Layout::of(&manifest, rule))?;
        self.step(check, layout.find(name).cloned().ok_or("the rule folds no such tensor"))
    }
}

/// Statement, refusal, its tensor and what decides about it, where bytes of one tensor do.
fn named(submission: &Submission) -> Option<(&Signed, &Refusal, &str, DeltaGroup)> {
    let Submission::Signed(signed) = submission else { return None };
    let refusal = signed.refused.as_ref()?;
    Some((signed, refusal, refusal.tensor.as_deref()?, decides(refusal.code)?))
}

/// Whether there is a fault of this kind anywhere in a tensor's artifact.
fn has_fault(tensor: &TensorLayout, code: Code, bytes: &[u8]) -> bool {
    let small = |number: u64| usize::try_from(number).expect("of a block of 4,096 elements");
    let book = || Book::from_bytes(bytes);
    let blocks = || bytes.chunks(small(tensor.index_bytes_per_block()).max(1));
    match code {
        Code::NonFinite => {
            let Book { lookup, shift } = book();
            lookup.iter().chain([&shift]).any(|value| !value.is_finite())
        }
        Code::Magnitude => {
            let Book { lookup, shift } = book();
            let below = |value: &f32| (value + shift).abs() < MAGNITUDE;
            !lookup.iter().all(below)
        }
        Code::IndexOutOfRange => {
            let beyond = |at: u16| u64::from(at) >= tensor.grid.block_elements();
            blocks().any(|block| codes::indices(block).any(beyond))
        }
        Code::DuplicateIndex => blocks().any(|block| {
            let mut seen = BTreeSet::new();
            !codes::indices(block).all(|at| seen.insert(at))
        }),
        _ => codes::check_padding(bytes, small(tensor.k), tensor.code_bits).is_err(),
    }
}
