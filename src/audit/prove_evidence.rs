//! Proving what may accuse: heads, entries, records, receipts and refusals, cut out of a ledger.

use std::io::Write;

use super::{
    bundle::{Claim, HeadsClaim, MEMORY_BYTES_MAX, RecordsClaim, RefusalClaim, TreeProof, write},
    prove::{
        Members, ProveBundleError, genesis_members, jsonl, log_members, prove_round, read,
        record_members,
    },
    verify::refusal::decides,
};
use crate::{
    ledger::{Ledger, submit::Receipt},
    merkle::{
        manifest::manifest_leaves,
        proof::LogProof,
        tree::{MemoryNodes, inclusion_proof},
    },
    store::artifacts::StoredDelta,
    types::{digest::Digest, json, submission::Submission},
};

/// Writes the bundle of two signed heads of one log, with the consistency proof between them; none
/// is needed where they contradict each other.
///
/// # Errors
///
/// `ArchiveError`.
pub fn prove_heads<W: Write>(
    a: &[u8],
    b: &[u8],
    proof: Vec<Digest>,
    to: W,
) -> Result<W, ProveBundleError> {
    let claim = Claim::Heads(HeadsClaim { proof });
    let members = [("a.note", a.to_vec()), ("b.note", b.to_vec())];
    Ok(write(to, &claim, &members)?.finish()?)
}

pub(super) fn prove_records<W: Write>(
    ledger: &Ledger,
    round: u64,
    to: W,
) -> Result<W, ProveBundleError> {
    let (members, follows) = record_members(ledger, ledger.position(round)?)?;
    let claim = Claim::Records(RecordsClaim { round, follows });
    Ok(write(to, &claim, &members)?.finish()?)
}

pub(super) fn prove_receipt<W: Write>(
    ledger: &Ledger,
    receipt: &Receipt,
    to: W,
) -> Result<W, ProveBundleError> {
    let entry: Submission =
        json::from_slice(receipt.entry.as_bytes()).map_err(ProveBundleError::Receipt)?;
    prove_round(ledger, entry.round(), Some(receipt), to)
}

/// A receipt's entry, and its proof as C2SP tlog-proof has it.
pub(super) fn receipt_members(receipt: &Receipt, names: [&'static str; 2]) -> Members {
    let (hashes, note) = (receipt.proof.clone(), receipt.head.clone());
    let proof = LogProof { index: receipt.index, hashes, note };
    vec![(names[0], receipt.entry.clone().into_bytes()), (names[1], proof.to_text().into_bytes())]
}

/// Writes the bundle of a receipt's entry and of the one that the log holds in its place.
///
/// # Errors
///
/// [`ProveBundleError`] if the log does not reach so far.
pub fn prove_receipt_fork<W: Write>(
    ledger: &Ledger,
    receipt: &Receipt,
    to: W,
) -> Result<W, ProveBundleError> {
    let (log, index) = (ledger.submissions_log(), receipt.index);
    if index >= log.size() {
        return Err(ProveBundleError::NoSubmission { index, size: log.size() });
    }
    let mut members = receipt_members(receipt, ENTRIES[0]);
    members.extend(log_members(log, index, ENTRIES[1])?);
    Ok(write(to, &Claim::Entries, &members)?.finish()?)
}

/// Writes the bundle of what two rounds logs hold at `index`.
///
/// # Errors
///
/// [`ProveBundleError`] if one of them does not reach so far.
pub fn prove_entries<W: Write>(
    [a, b]: [&Ledger; 2],
    index: u64,
    to: W,
) -> Result<W, ProveBundleError> {
    let mut members = log_members(a.rounds_log(), index, ENTRIES[0])?;
    members.extend(log_members(b.rounds_log(), index, ENTRIES[1])?);
    Ok(write(to, &Claim::Entries, &members)?.finish()?)
}

const ENTRIES: [[&str; 2]; 2] = [["a.json", "a.tlog-proof"], ["b.json", "b.tlog-proof"]];

/// The bytes that decide about a refusal, which have to be those of one tensor.
pub(super) fn prove_refusal<W: Write>(
    ledger: &Ledger,
    index: u64,
    to: W,
) -> Result<W, ProveBundleError> {
    let none = || ProveBundleError::NoDelta { index };
    let mut members = genesis_members(ledger)?;
    let log = ledger.submissions_log();
    members.extend(log_members(log, index, ["submission.json", "submission.tlog-proof"])?);
    let submission = ledger.submissions(index..index + 1)?.pop();
    let Some((_, Submission::Signed(signed))) = submission else { return Err(none()) };
    let refusal = signed.refused.ok_or_else(none)?;
    let name = refusal.tensor.ok_or_else(none)?;
    let group = decides(refusal.code).ok_or_else(none)?;
    let model = ledger.checkpoint(ledger.genesis().model)?;
    members.push(("model.jsonl", jsonl(model.manifest().entries())));
    let delta = StoredDelta::open(ledger.place(), signed.delta)?;
    let position = delta.manifest().position(group.name(), &name).ok_or_else(none)?;
    let leaves = manifest_leaves(delta.manifest());
    let (at, size) = (position as u64, leaves.len() as u64);
    let hashes = inclusion_proof(at, size, &MemoryNodes::of(&leaves))?;
    members.push(("descriptor.json", json::to_vec(&delta.manifest().descriptors()[position])));
    let mut reader = delta.open_artifact(group, &name)?;
    let bytes = reader.len();
    if bytes > MEMORY_BYTES_MAX / 2 {
        return Err(ProveBundleError::Long { bytes });
    }
    members.push(("artifact", read(&mut reader, bytes)?));
    let descriptor = TreeProof { index: at, hashes };
    let claim = Claim::Refusal(RefusalClaim { index, descriptor });
    Ok(write(to, &claim, &members)?.finish()?)
}
