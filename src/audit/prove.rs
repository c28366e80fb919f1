//! Proving: a bundle cut out of a ledger, for someone who has a key and no ledger.
//!
//! Cost: a piece takes the proofs of three trees, some kilobytes at any size of the model; what is
//! read for it is one piece, its tensor's digests and the state's manifest.

use std::io::Write;

use crate::{
    ledger::{At, Ledger, LedgerError, check, submit::Receipt},
    merkle::{
        manifest::manifest_leaves,
        pieces::{piece_length, piece_proof},
        proof::LogProof,
        tree::{MemoryNodes, NoNode, ProveError, inclusion_proof, leaf_hash, root_of},
    },
    store::{
        StoreError,
        artifacts::{ArtifactReader, StoredCheckpoint},
        log::LogReader,
        segment::{self, LogicalBytes},
    },
    types::{
        digest::Digest,
        json::{self, JsonError},
        manifest::{PIECE_BYTES, group},
        progress::Progress,
    },
};

use super::{
    archive::ArchiveError,
    bundle::{
        Claim, Disposed, PieceClaim, RoundClaim, SubmissionClaim, TensorClaim, TreeProof, write,
    },
    prove_evidence::{prove_receipt, prove_records, prove_refusal, receipt_members},
    prove_fold::prove_fold,
};

/// Bytes of a tensor that are written at once.
const CHUNK_BYTES: u64 = 8 << 20;

/// A bundle that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ProveBundleError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("the state has no tensor {name:?}")]
    NoTensor { name: String },
    #[error("{name:?} has no piece {piece}; it has {pieces}")]
    NoPiece { name: String, piece: u64, pieces: u64 },
    #[error("the submissions log has no entry {index}; it has {size}")]
    NoSubmission { index: u64, size: u64 },
    #[error(transparent)]
    Tree(#[from] ProveError<NoNode>),
    #[error("the rule does not fold tensor {position} of the manifest, or it has no piece {piece}")]
    NotFolded { position: usize, piece: u64 },
    #[error("submission {index} is no delta of this model")]
    NoDelta { index: u64 },
    #[error("the plan of round {round} is not stored")]
    NoPlan { round: u64 },
    #[error("a stored disposition: {0}")]
    Disposition(JsonError),
    #[error("the receipt: {0}")]
    Receipt(JsonError),
    #[error("the bytes that decide are {bytes}, more than a bundle holds in memory")]
    Long { bytes: u64 },
}

impl From<StoreError> for ProveBundleError {
    fn from(error: StoreError) -> Self {
        Self::Ledger(error.into())
    }
}

/// What to prove.
#[derive(Clone, Debug)]
pub enum Target {
    /// One piece of a tensor of a state.
    Piece(At, String, u64),
    /// A tensor of a state.
    Tensor(At, String),
    /// A submission, by its index.
    Submission(u64),
    /// A round.
    Round(u64),
    /// That the record of a round continues the one before.
    Records(u64),
    /// What came of the entry that a receipt was given for.
    Receipt(Box<Receipt>),
    /// The bytes that decide about the refusal of a signed submission.
    Refusal(u64),
    /// The fold of a round: position of the tensor in the manifest, and the piece.
    Fold(u64, usize, u64),
}

impl Target {
    /// The fold of a piece of the tensor called `name`.
    ///
    /// # Errors
    ///
    /// [`ProveBundleError::NoTensor`], or that the state's manifest does not read.
    pub fn fold(
        ledger: &Ledger,
        round: u64,
        name: &str,
        piece: u64,
    ) -> Result<Self, ProveBundleError> {
        let state = ledger.checkpoint(ledger.state(At::Round(round))?)?;
        let position = state.manifest().position(group::WEIGHTS, name);
        let missing = || ProveBundleError::NoTensor { name: name.to_owned() };
        Ok(Self::Fold(round, position.ok_or_else(missing)?, piece))
    }
}

/// Members of a bundle, in order.
pub(super) type Members = Vec<(&'static str, Vec<u8>)>;

/// Writes the bundle of `target` to `to`.
///
/// # Errors
///
/// [`ProveBundleError`] if the ledger lacks what the bundle needs.
pub fn prove<W: Write>(
    ledger: &Ledger,
    target: &Target,
    to: W,
    progress: &dyn Progress,
) -> Result<W, ProveBundleError> {
    match target {
        Target::Piece(at, name, piece) => prove_piece(ledger, *at, name, *piece, to),
        Target::Tensor(at, name) => prove_tensor(ledger, *at, name, to, progress),
        Target::Submission(index) => prove_submission(ledger, *index, to),
        Target::Round(round) => prove_round(ledger, *round, None, to),
        Target::Records(round) => prove_records(ledger, *round, to),
        Target::Receipt(receipt) => prove_receipt(ledger, receipt, to),
        Target::Refusal(index) => prove_refusal(ledger, *index, to),
        Target::Fold(round, tensor, piece) => prove_fold(ledger, *round, *tensor, *piece, to),
    }
}

/// An entry and its proof under the published head.
pub fn log_members(
    log: &LogReader,
    index: u64,
    names: [&'static str; 2],
) -> Result<Members, ProveBundleError> {
    let hashes = log.inclusion_proof(index, log.size()).map_err(StoreError::from)?;
    let note = String::from_utf8_lossy(log.note()).into_owned();
    let proof = LogProof { index, hashes, note };
    let entry = log.entry(index).map_err(StoreError::from)?;
    Ok(vec![(names[0], entry), (names[1], proof.to_text().into_bytes())])
}

pub(super) const RECORD: [&str; 2] = ["record.json", "record.tlog-proof"];

fn round_number(at: At) -> Option<u64> {
    match at {
        At::Genesis => None,
        At::Round(round) => Some(round),
    }
}

/// Index in the rounds log of the entry that names the state.
fn entry_of(ledger: &Ledger, at: At) -> Result<u64, LedgerError> {
    match at {
        At::Genesis => Ok(0),
        At::Round(round) => Ok(ledger.sealed()[ledger.position(round)?].index),
    }
}

/// A tensor of a state, its descriptor's proof, and the members up to it.
struct Described {
    checkpoint: StoredCheckpoint,
    position: usize,
    proof: TreeProof,
    members: Members,
}

fn describe(ledger: &Ledger, at: At, name: &str) -> Result<Described, ProveBundleError> {
    let checkpoint = ledger.checkpoint(ledger.state(at)?)?;
    let manifest = checkpoint.manifest();
    let position = manifest.descriptors().iter().position(|d| d.name == name);
    let position = position.ok_or_else(|| ProveBundleError::NoTensor { name: name.to_owned() })?;
    let leaves = manifest_leaves(manifest);
    let (index, size) = (position as u64, leaves.len() as u64);
    let hashes = inclusion_proof(index, size, &MemoryNodes::of(&leaves))?;
    let mut members = log_members(ledger.rounds_log(), entry_of(ledger, at)?, RECORD)?;
    members.push(("descriptor.json", json::to_vec(&manifest.descriptors()[position])));
    let proof = TreeProof { index, hashes };
    Ok(Described { checkpoint, position, proof, members })
}

fn prove_piece<W: Write>(
    ledger: &Ledger,
    at: At,
    name: &str,
    piece: u64,
    to: W,
) -> Result<W, ProveBundleError> {
    let mut described = describe(ledger, at, name)?;
    let (checkpoint, position) = (&described.checkpoint, described.position);
    let bytes = checkpoint.manifest().descriptors()[position].bytes;
    let length = piece_length(bytes, piece).ok_or_else(|| {
        let pieces = bytes.div_ceil(PIECE_BYTES);
        ProveBundleError::NoPiece { name: name.to_owned(), piece, pieces }
    })?;
    let mut reader = checkpoint.tensor(position)?;
    reader.seek_to(piece * PIECE_BYTES)?;
    let bytes = read(&mut reader, length)?;
    let hashes = piece_proof(&checkpoint.digests(position)?, piece)?;
    described.members.push(("piece", bytes));
    let claim = Claim::Piece(PieceClaim {
        round: round_number(at),
        descriptor: described.proof,
        piece: TreeProof { index: piece, hashes },
    });
    Ok(write(to, &claim, &described.members)?.finish()?)
}

pub(super) fn read(reader: &mut ArtifactReader, bytes: u64) -> Result<Vec<u8>, StoreError> {
    let mut buffer = vec![0; usize::try_from(bytes).expect("some megabytes at most")];
    reader.read_exact(&mut buffer)?;
    Ok(buffer)
}

fn prove_tensor<W: Write>(
    ledger: &Ledger,
    at: At,
    name: &str,
    to: W,
    progress: &dyn Progress,
) -> Result<W, ProveBundleError> {
    let Described { checkpoint, position, proof, members } = describe(ledger, at, name)?;
    let claim = Claim::Tensor(TensorClaim { round: round_number(at), descriptor: proof });
    let bytes = checkpoint.manifest().descriptors()[position].bytes;
    let mut reader = checkpoint.tensor(position)?;
    let mut archive = write(to, &claim, &members)?;
    progress.begin("prove", bytes);
    archive.stream("tensor", bytes, |to| {
        let mut left = bytes;
        while left > 0 {
            let now = left.min(CHUNK_BYTES);
            to.write_all(&read(&mut reader, now)?).map_err(ArchiveError::from)?;
            progress.advance(now);
            left -= now;
        }
        Ok::<_, ProveBundleError>(())
    })?;
    progress.end();
    Ok(archive.finish()?)
}

pub(super) fn genesis_members(ledger: &Ledger) -> Result<Members, ProveBundleError> {
    log_members(ledger.rounds_log(), 0, ["genesis.json", "genesis.tlog-proof"])
}

fn prove_submission<W: Write>(ledger: &Ledger, index: u64, to: W) -> Result<W, ProveBundleError> {
    let log = ledger.submissions_log();
    if index >= log.size() {
        return Err(ProveBundleError::NoSubmission { index, size: log.size() });
    }
    let mut members = genesis_members(ledger)?;
    members.extend(log_members(log, index, ["submission.json", "submission.tlog-proof"])?);
    let position = ledger.sealed().partition_point(|s| s.record.submissions.end <= index);
    let disposed = match ledger.sealed().get(position) {
        None => None,
        Some(sealed) => {
            let window = sealed.record.submissions;
            let hashes = log.inclusion_proof(index, window.end).map_err(StoreError::from)?;
            let entries = dispositions(ledger, position)?;
            let leaves: Vec<Digest> = entries.iter().map(|entry| leaf_hash(entry)).collect();
            let at = index - window.start;
            let proof = inclusion_proof(at, leaves.len() as u64, &MemoryNodes::of(&leaves))?;
            members.extend(log_members(ledger.rounds_log(), sealed.index, RECORD)?);
            let entry = entries[usize::try_from(at).expect("the entries are in memory")].clone();
            members.push(("disposition.json", entry));
            Some(Disposed {
                round: sealed.record.round,
                window: TreeProof { index, hashes },
                disposition: TreeProof { index: at, hashes: proof },
            })
        }
    };
    let claim = Claim::Submission(SubmissionClaim { index, disposed });
    Ok(write(to, &claim, &members)?.finish()?)
}

/// The genesis, the record of a round, and the one before it, if there is one.
pub(super) fn record_members(
    ledger: &Ledger,
    position: usize,
) -> Result<(Members, bool), ProveBundleError> {
    let mut members = genesis_members(ledger)?;
    let before = position.checked_sub(1).map(|at| &ledger.sealed()[at]);
    if let Some(before) = before {
        let names = ["previous.json", "previous.tlog-proof"];
        members.extend(log_members(ledger.rounds_log(), before.index, names)?);
    }
    members.extend(log_members(ledger.rounds_log(), ledger.sealed()[position].index, RECORD)?);
    Ok((members, before.is_some()))
}

pub(super) fn prove_round<W: Write>(
    ledger: &Ledger,
    round: u64,
    receipt: Option<&Receipt>,
    to: W,
) -> Result<W, ProveBundleError> {
    let position = ledger.position(round)?;
    let sealed = &ledger.sealed()[position];
    let (window, log) = (sealed.record.submissions, ledger.submissions_log());
    let (mut members, follows) = record_members(ledger, position)?;
    if let Some(receipt) = receipt {
        members.extend(receipt_members(receipt, ["receipt.json", "receipt.tlog-proof"]));
    }
    let entries = log.entries(window.start..window.end).map_err(StoreError::from)?;
    let entries = entries.collect::<Result<Vec<_>, _>>().map_err(StoreError::from)?;
    members.push(("submissions.jsonl", jsonl(entries)));
    members.push(("dispositions.jsonl", jsonl(dispositions(ledger, position)?)));
    let plan = stored_plan(ledger, sealed).filter(|_| receipt.is_none());
    let has_plan = plan.is_some();
    members.extend(plan.map(|bytes| ("plan", bytes)));
    let edge = log.edge_at(window.start).map_err(StoreError::from)?;
    let claim = RoundClaim { round, follows, edge, plan: has_plan };
    let claim = if receipt.is_some() { Claim::Receipt(claim) } else { Claim::Round(claim) };
    Ok(write(to, &claim, &members)?.finish()?)
}

/// A line for each.
pub(super) fn jsonl(lines: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    lines.into_iter().flat_map(|line| [line, b"\n".to_vec()].concat()).collect()
}

/// The entries that give the record's root: as stored, else derived again. Those of a record that
/// lies are stored alone, and its bundle shows the lie.
pub(super) fn dispositions(ledger: &Ledger, position: usize) -> Result<Vec<Vec<u8>>, LedgerError> {
    let id = &ledger.sealed()[position].record.dispositions;
    let (files, root) = (&*ledger.place().files, &ledger.place().root);
    let stored = segment::dispositions::read_entries(files, root, id).unwrap_or_default();
    let leaves: Vec<Digest> = stored.iter().map(|entry| leaf_hash(entry)).collect();
    if root_of(&leaves) == id.root {
        return Ok(stored.iter().map(|entry| entry.to_vec()).collect());
    }
    let derived = check::check_round(ledger, position)?.disposed.dispositions;
    Ok(derived.iter().map(json::to_vec).collect())
}

/// The plan's bytes, where they are stored.
pub(super) fn stored_plan(ledger: &Ledger, sealed: &crate::ledger::Sealed) -> Option<Vec<u8>> {
    let (files, root) = (&*ledger.place().files, &ledger.place().root);
    let bins = 1 << ledger.rule().code_bits();
    let stored = segment::plan::open(files, root, &sealed.record.plan, bins).ok()?;
    let mut bytes = vec![0; usize::try_from(stored.len()).ok()?];
    stored.read_at(0, &mut bytes).ok()?;
    Some(bytes)
}
