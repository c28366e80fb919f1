//! Bundles: a claim about a ledger, and what of the ledger it takes to judge it without the ledger.
//!
//! [`super::prove`] writes them, [`super::verify`] reads them. See `schema/bundle.md`.
//!
//! Trust: none; a bundle comes from whoever wants something believed. Members in memory are bounded,
//! a tensor is hashed as it streams by.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
};

use serde::{Deserialize, Serialize};

use super::archive::{ArchiveError, ArchiveReader, ArchiveWriter};
use crate::{
    merkle::pieces::{PieceHasher, Pieces},
    types::{
        digest::Digest,
        json::{self, JsonError},
    },
};

/// What `bundle.json` says it is.
pub const FORMAT: &str = "gradledger-bundle/1";

/// Most bytes of all members that are held in memory.
pub const MEMORY_BYTES_MAX: u64 = 256 << 20;

/// The member that streams by.
const TENSOR: &str = "tensor";

/// A bundle that does not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum BundleError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("{member}: {source}")]
    Json { member: String, source: JsonError },
    #[error("bundle.json is of {found:?}; this program reads {FORMAT}")]
    Format { found: String },
    #[error("the members are not those of the claim: {expected:?}, not {found:?}")]
    Member { expected: Option<&'static str>, found: Option<String> },
    #[error("the members take more than {MEMORY_BYTES_MAX} bytes")]
    Long,
    #[error("{member}: line {line} has no end or is none")]
    Line { member: &'static str, line: usize },
}

/// A leaf's place in a tree, and the way from there to the root, the sibling first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeProof {
    /// Of the leaf.
    pub index: u64,
    /// Of the inclusion proof.
    pub hashes: Vec<Digest>,
}

/// What a bundle claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Claim {
    /// These bytes are a piece of a state.
    Piece(PieceClaim),
    /// These bytes are a tensor of a state.
    Tensor(TensorClaim),
    /// This entry is in the submissions log, and this came of it.
    Submission(SubmissionClaim),
    /// This round disposes of just these submissions, in this way.
    Round(RoundClaim),
    /// These two heads are of one history.
    Heads(HeadsClaim),
    /// These two entries, which stand at one index of one log, are the same.
    Entries,
    /// This round's record continues the one before it.
    Records(RecordsClaim),
    /// As [`Claim::Round`]; and the round disposes of the entry that this receipt was given for.
    Receipt(RoundClaim),
    /// What a signed delta was refused for is there.
    Refusal(RefusalClaim),
    /// This piece of the state after a round follows from the base, the plan and the deltas.
    Fold(FoldClaim),
    /// Two bundles of one piece, from two ledgers that disagree about it.
    Dispute,
}

/// See [`Claim::Piece`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PieceClaim {
    /// The round after which the state stands; none for the genesis.
    pub round: Option<u64>,
    /// The descriptor in the state's manifest.
    pub descriptor: TreeProof,
    /// The piece in the tensor.
    pub piece: TreeProof,
}

/// See [`Claim::Tensor`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorClaim {
    /// The round after which the state stands; none for the genesis.
    pub round: Option<u64>,
    /// The descriptor in the state's manifest.
    pub descriptor: TreeProof,
}

/// See [`Claim::Submission`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubmissionClaim {
    /// Index in the submissions log.
    pub index: u64,
    /// What came of it; none while its round is open.
    pub disposed: Option<Disposed>,
}

/// What a round came to for one submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disposed {
    /// The round.
    pub round: u64,
    /// The submission in the tree of the record's `root_at_end`.
    pub window: TreeProof,
    /// Its disposition in the record's tree.
    pub disposition: TreeProof,
}

/// See [`Claim::Round`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundClaim {
    /// The round.
    pub round: u64,
    /// Whether a record stands before it.
    pub follows: bool,
    /// The right edge of the submissions log at the window's start, the largest subtree first.
    pub edge: Vec<Digest>,
    /// Whether the plan's bytes are with it.
    pub plan: bool,
}

/// See [`Claim::Heads`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadsClaim {
    /// The consistency proof between their sizes; none where they are the same.
    pub proof: Vec<Digest>,
}

/// See [`Claim::Records`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordsClaim {
    /// The round.
    pub round: u64,
    /// Whether a record stands before it.
    pub follows: bool,
}

/// See [`Claim::Refusal`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusalClaim {
    /// Index in the submissions log.
    pub index: u64,
    /// The descriptor of the bytes that decide, in the delta's manifest.
    pub descriptor: TreeProof,
}

/// See [`Claim::Fold`]. What has to be proven follows from the members: see [`super::fold_rows`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoldClaim {
    /// The round.
    pub round: u64,
    /// Position of the tensor in both manifests.
    pub tensor: u64,
    /// Proof that the tensor's descriptor is in the next state's manifest.
    pub next: Vec<Digest>,
    /// SHA-256 of the piece in the next state.
    pub digest: Digest,
    /// That digest in the tensor's tree.
    pub piece: TreeProof,
    /// Of each accepted delta, in ledger order.
    pub deltas: Vec<DeltaProofs>,
    /// One for each piece in the member `pieces`.
    pub pieces: Vec<Vec<Digest>>,
}

/// Where a delta stands in the log, and its artifacts of one tensor in its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaProofs {
    /// Its submission in the tree of the record's `root_at_end`.
    pub submission: Vec<Digest>,
    /// The book's descriptor.
    pub book: TreeProof,
    /// The codes'.
    pub code: TreeProof,
    /// The positions'.
    pub index: TreeProof,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    claim: Claim,
}

impl Claim {
    /// What its kind is called.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Piece(_) => "piece",
            Self::Tensor(_) => "tensor",
            Self::Submission(_) => "submission",
            Self::Round(_) => "round",
            Self::Heads(_) => "heads",
            Self::Entries => "entries",
            Self::Records(_) => "records",
            Self::Receipt(_) => "receipt",
            Self::Refusal(_) => "refusal",
            Self::Fold(_) => "fold",
            Self::Dispute => "dispute",
        }
    }

    /// The members that follow `bundle.json`, in order.
    pub fn members(&self) -> Vec<&'static str> {
        let record = ["record.json", "record.tlog-proof"];
        let genesis = ["genesis.json", "genesis.tlog-proof"];
        match self {
            Self::Piece(_) => [&record[..], &["descriptor.json", "piece"]].concat(),
            Self::Tensor(_) => [&record[..], &["descriptor.json", TENSOR]].concat(),
            Self::Submission(claim) => {
                let submission = ["submission.json", "submission.tlog-proof"];
                let open = [&genesis[..], &submission].concat();
                match claim.disposed {
                    None => open,
                    Some(_) => [&open[..], &record, &["disposition.json"]].concat(),
                }
            }
            Self::Records(claim) => records(claim.follows),
            Self::Round(claim) => [records(claim.follows), lines(claim.plan)].concat(),
            Self::Receipt(claim) => {
                let receipt = ["receipt.json", "receipt.tlog-proof"];
                [records(claim.follows), receipt.into(), lines(claim.plan)].concat()
            }
            Self::Refusal(_) => {
                let submission = ["submission.json", "submission.tlog-proof"];
                let rest = ["model.jsonl", "descriptor.json", "artifact"];
                [&genesis[..], &submission, &rest].concat()
            }
            Self::Heads(_) => vec!["a.note", "b.note"],
            Self::Entries => vec!["a.json", "a.tlog-proof", "b.json", "b.tlog-proof"],
            Self::Fold(_) => {
                let rest =
                    ["base.jsonl", "next.json", "dispositions.jsonl", "deltas.jsonl", "pieces"];
                [&record[..], &rest].concat()
            }
            Self::Dispute => vec!["a.tar", "b.tar"],
        }
    }
}

/// The records of a round and of the one before it.
fn records(follows: bool) -> Vec<&'static str> {
    let previous: &[_] = if follows { &["previous.json", "previous.tlog-proof"] } else { &[] };
    let record = ["record.json", "record.tlog-proof"];
    [&["genesis.json", "genesis.tlog-proof"], previous, &record].concat()
}

/// A round's submissions and what came of them.
fn lines(plan: bool) -> Vec<&'static str> {
    let plan: &[_] = if plan { &["plan"] } else { &[] };
    [&["submissions.jsonl", "dispositions.jsonl"], plan].concat()
}

/// A bundle whose members are there; nothing of it is believed yet.
#[derive(Debug)]
pub struct Bundle {
    /// What it claims.
    pub claim: Claim,
    members: BTreeMap<String, Vec<u8>>,
    /// Of the member that streamed by.
    pub tensor: Option<Pieces>,
}

impl Bundle {
    /// Reads a bundle.
    ///
    /// # Errors
    ///
    /// [`BundleError`] if it is not spelled as [`fn@write`] does.
    pub fn read(from: impl Read) -> Result<Self, BundleError> {
        let mut archive = ArchiveReader::new(from);
        let mut room = MEMORY_BYTES_MAX;
        let first = next(&mut archive, Some("bundle.json"))?;
        let document = memory(&mut archive, first, &mut room)?;
        let document: Document = read_json("bundle.json", &document)?;
        if document.format != FORMAT {
            return Err(BundleError::Format { found: document.format });
        }
        let claim = document.claim;
        let (mut members, mut tensor) = (BTreeMap::new(), None);
        for member in claim.members() {
            let bytes = next(&mut archive, Some(member))?;
            if member == TENSOR {
                let mut hasher = PieceHasher::new();
                archive.body(bytes, |run| hasher.update(run))?;
                tensor = Some(hasher.finish());
            } else {
                members.insert(member.to_owned(), memory(&mut archive, bytes, &mut room)?);
            }
        }
        next(&mut archive, None)?;
        Ok(Self { claim, members, tensor })
    }

    /// A member of the claim.
    ///
    /// # Panics
    ///
    /// If the claim has no such member.
    pub fn member(&self, name: &str) -> &[u8] {
        self.members.get(name).expect("the members were read by the claim's list")
    }

    /// A member that is one canonical JSON value.
    ///
    /// # Errors
    ///
    /// [`BundleError::Json`].
    pub fn json<T>(&self, name: &str) -> Result<T, BundleError>
    where
        T: Serialize + serde::de::DeserializeOwned,
    {
        read_json(name, self.member(name))
    }

    /// A member of lines, without their ends.
    ///
    /// # Errors
    ///
    /// [`BundleError::Line`] if the last one has no end.
    pub fn lines(&self, name: &'static str) -> Result<Vec<&[u8]>, BundleError> {
        let bytes = self.member(name);
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        let lines: Vec<&[u8]> = bytes
            .strip_suffix(b"\n")
            .map(|text| text.split(|byte| *byte == b'\n').collect())
            .unwrap_or_default();
        let wrong = lines.iter().position(|line| line.is_empty());
        match wrong.or(lines.is_empty().then_some(0)) {
            Some(line) => Err(BundleError::Line { member: name, line }),
            None => Ok(lines),
        }
    }
}

fn read_json<T>(member: &str, bytes: &[u8]) -> Result<T, BundleError>
where
    T: Serialize + serde::de::DeserializeOwned,
{
    json::from_slice(bytes)
        .map_err(|source| BundleError::Json { member: member.to_owned(), source })
}

/// The length of the next member, which should be `expected`.
fn next<R: Read>(
    archive: &mut ArchiveReader<R>,
    expected: Option<&'static str>,
) -> Result<u64, BundleError> {
    let found = archive.next_member()?;
    if found.as_ref().map(|(name, _)| name.as_str()) != expected {
        return Err(BundleError::Member { expected, found: found.map(|(name, _)| name) });
    }
    Ok(found.map_or(0, |(_, bytes)| bytes))
}

fn memory<R: Read>(
    archive: &mut ArchiveReader<R>,
    bytes: u64,
    room: &mut u64,
) -> Result<Vec<u8>, BundleError> {
    *room = room.checked_sub(bytes).ok_or(BundleError::Long)?;
    let mut member = Vec::new();
    archive.body(bytes, |run| member.extend_from_slice(run))?;
    Ok(member)
}

/// Starts a bundle: `bundle.json` and the members in memory, which are the claim's first ones.
///
/// # Errors
///
/// [`ArchiveError`].
///
/// # Panics
///
/// If a member is not the claim's at its place.
pub fn write<W: Write>(
    to: W,
    claim: &Claim,
    members: &[(&'static str, Vec<u8>)],
) -> Result<ArchiveWriter<W>, ArchiveError> {
    let document = Document { format: FORMAT.to_owned(), claim: claim.clone() };
    let mut archive = ArchiveWriter::new(to);
    archive.member("bundle.json", &json::to_vec(&document))?;
    for ((name, bytes), expected) in members.iter().zip(claim.members()) {
        assert_eq!(*name, expected, "members come in the claim's order");
        archive.member(name, bytes)?;
    }
    Ok(archive)
}
