//! Entries of the rounds log: the genesis of a run and one record a round. See `schema/records.md`.

use serde::{Deserialize, Serialize};

use super::{
    digest::Digest,
    manifest::{ArtifactId, ManifestId},
    refusal::Refusal,
    rule::Rule,
    submission::{Miner, SignatureHex},
};

/// Longest entry of a log in bytes; C2SP tlog-tiles has a u16 for its length.
pub const ENTRY_BYTES_MAX: usize = 65_535;

/// Most accepted miners of a round: a fold counts contributors in a byte.
pub const ACCEPTED_MAX: usize = 255;

/// One entry of the rounds log.
///
/// Reserved kinds, refused until something writes them: `prune`, `correction`, `adopt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RoundsEntry {
    /// Entry 0.
    Genesis(Box<Genesis>),
    /// A sealed round.
    Round(Box<RoundRecord>),
    /// A head of this log was put on a chain.
    Anchor(AnchorRecord),
    /// Another key signs from here on.
    KeyRotation(Box<KeyRotation>),
}

/// What a run starts from. The run's id is the RFC 6962 leaf hash of this entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// Version of the records' format: 1.
    pub version: u64,
    /// The run's name.
    pub run: String,
    /// What the origins of both logs start with.
    pub origin: String,
    /// The first state.
    pub model: ManifestId,
    /// How rounds are folded.
    pub rule: Rule,
    /// Verifier keys (C2SP signed-note) of the two logs.
    pub log_keys: LogKeys,
    /// Who may submit.
    pub miners: MinersPolicy,
    /// Bittensor subnet the run is anchored in, if it is.
    pub netuid: Option<u16>,
    /// Hash of that chain's genesis block.
    pub chain_genesis: Option<Digest>,
    /// The hotkey that anchors.
    pub anchor_hotkey: Option<Digest>,
    /// Small files that belong to the model: its configuration, its tokenizer. Not written if none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileId>,
}

/// A file by its name, and the length and digest that pin its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileId {
    /// Without a directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Of all its bytes.
    pub sha256: Digest,
}

impl Genesis {
    /// Where the run is anchored, if it is.
    pub fn anchor_place(&self) -> Option<AnchorPlace> {
        let (netuid, chain_genesis) = (self.netuid?, self.chain_genesis?);
        Some(AnchorPlace { netuid, chain_genesis, hotkey: self.anchor_hotkey? })
    }
}

/// The verifier keys of the two logs. One Ed25519 key; a verifier key contains its log's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogKeys {
    /// Of `ORIGIN/rounds`.
    pub rounds: String,
    /// Of `ORIGIN/submissions`.
    pub submissions: String,
}

/// Another log key takes over: heads that hold this entry are signed by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRotation {
    /// The new verifier keys.
    pub log_keys: LogKeys,
    /// The submissions log at the hand-over: the last head of it that the old key signs.
    pub submissions: LogEnd,
    /// The old key's signature of the hand-over.
    pub by_old: SignatureHex,
    /// The new key's.
    pub by_new: SignatureHex,
}

/// A log at one of its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEnd {
    /// Number of entries.
    pub size: u64,
    /// RFC 6962 root over them.
    pub root: Digest,
}

/// Who may submit to a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MinersPolicy {
    /// The miners that the operator lists for each round.
    Listed,
    /// These hotkeys, in every round.
    Hotkeys(Vec<Digest>),
}

/// A sealed round: what went in, what came of each submission, what came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundRecord {
    /// Strictly increasing, not always by one.
    pub round: u64,
    /// Leaf hash of the round record before, or of the genesis.
    pub previous: Digest,
    /// The state it starts from: `next` of the record before.
    pub base: ManifestId,
    /// The state after the fold; `base` where nobody was accepted.
    pub next: ManifestId,
    /// The rule it was folded by.
    pub rule: Rule,
    /// The scalars of the fold.
    pub plan: ArtifactId,
    /// The submissions it disposes of; windows touch, without a gap.
    pub submissions: Window,
    /// What came of each of them.
    pub dispositions: DispositionsId,
    /// Who was expected.
    pub listed: Vec<Miner>,
    /// Who was to take the places of the missing, in that order.
    pub reserve: Vec<Miner>,
    /// Tensors left unchanged since their delta has a non-finite element.
    pub skipped: Vec<Skipped>,
    /// A block of the chain that was known before the round closed.
    pub block: Option<ChainBlock>,
}

/// A head of the rounds log that stands outside. Its receipt lies beside the log (`anchor.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorRecord {
    /// The block whose state shows it: this entry is younger.
    pub block: ChainBlock,
    /// Entries of the head.
    pub size: u64,
    /// SHA-256 of the head's text.
    pub value: Digest,
}

/// Where a run is anchored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnchorPlace {
    /// The subnet.
    pub netuid: u16,
    /// Hash of the chain's genesis block.
    pub chain_genesis: Digest,
    /// Who anchors.
    pub hotkey: Digest,
}

/// A run of the submissions log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// First index.
    pub start: u64,
    /// One after the last index: a size of the log.
    pub end: u64,
    /// The submissions log's root at size `end`.
    pub root_at_end: Digest,
}

/// RFC 6962 tree over the dispositions' canonical JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DispositionsId {
    /// The tree's root.
    pub root: Digest,
    /// Number of entries.
    pub count: u64,
}

/// A tensor left unchanged, and the element that shows why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skipped {
    /// Position of the tensor in the base manifest.
    pub tensor: u64,
    /// The lowest element (row-major) whose delta is NaN or infinite.
    pub element: u64,
}

/// A block of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainBlock {
    /// Its height.
    pub number: u64,
    /// Its hash.
    pub hash: Digest,
}

/// What came of a submission, or of a miner who sent none.
///
/// The dispositions of a round: one per submission index ascending, then one `absent` for each
/// listed miner without a submission, in the order of `listed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disposition {
    /// Index in the submissions log; null for `absent`.
    pub index: Option<u64>,
    /// Whose it is.
    pub miner: Miner,
    /// Accepted or not.
    pub verdict: Verdict,
}

/// Accepted or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Folded, as the `order`-th miner from 0.
    Accepted {
        /// Position in ledger order.
        order: u64,
    },
    /// Not folded.
    Rejected(Refusal),
    /// A listed miner sent nothing.
    Absent,
}
