//! Claims about a state: a tensor, or one piece of it.

use super::{Check, Judge, RECORD, same_artifact};
use crate::{
    audit::bundle::{PieceClaim, TensorClaim, TreeProof},
    merkle::{
        pieces::verify_piece,
        tree::{leaf_hash, verify_inclusion},
    },
    types::{
        manifest::{Descriptor, Manifest, ManifestId},
        record::RoundsEntry,
    },
};

impl Judge<'_> {
    /// The state that the claim is about.
    fn state(&mut self, round: Option<u64>) -> Option<ManifestId> {
        if let Some(round) = round {
            return Some(self.claimed_record(round)?.0.next);
        }
        match self.rounds_entry(RECORD)? {
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

    pub(super) fn piece(&mut self, claim: &PieceClaim) -> Option<()> {
        let descriptor = self.descriptor(claim.round, &claim.descriptor)?;
        let TreeProof { index, hashes } = &claim.piece;
        self.subject = format!("piece {index} of {}", self.subject);
        let bytes = self.bundle.member("piece");
        let verified = verify_piece(&descriptor.artifact(), *index, bytes, hashes);
        self.step(Check::Bytes, verified)
    }

    pub(super) fn tensor(&mut self, claim: &TensorClaim) -> Option<()> {
        let descriptor = self.descriptor(claim.round, &claim.descriptor)?;
        let found = self.bundle.tensor.as_ref().map(|pieces| pieces.artifact);
        self.step(Check::Bytes, same_artifact(descriptor.artifact(), found))
    }
}
