//! Judging anchors: what a receipt proves of the log, offline.
//!
//! A receipt shows that a head existed before a block. Here that head is compared with the log: the
//! log must have had that root at that size, or the operator showed the chain one history and the
//! reader another. From several receipts follow the blocks between which a round was sealed, and
//! whether the hotkey committed to anything that is not a head of this log.

use std::collections::BTreeMap;

use gradledger_anchor::{
    exclusive::{Coverage, Sighting, coverage},
    grandpa::AuthoritySet,
    hash::Hash32,
    header::BlockId,
    receipt::{Expected, Head, Proof, Receipt, ReceiptError, Standing},
};
use serde::Serialize;

use super::{Anchored, Ledger, LedgerError};
use crate::{
    merkle::{
        head::TreeHead,
        tree::{TreeBuilder, leaf_hash},
    },
    store::anchors,
    types::{
        digest::Digest,
        record::{AnchorPlace, AnchorRecord, ChainBlock},
    },
};

/// What an auditor brings along to judge anchors.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnchorTrust<'a> {
    /// Chain, subnet and hotkey; without them those of the genesis are meant.
    pub place: Option<AnchorPlace>,
    /// Who finalizes blocks; without them no block is shown to be final.
    pub authorities: Option<&'a AuthoritySet>,
}

/// Anchors that do not prove what they should, or contradict the log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum AnchorError {
    #[error("the receipt of the head with {size} entries: {source}")]
    Receipt { size: u64, source: ReceiptError },
    #[error("the receipt is of the log {found:?}, not {expected:?}")]
    Origin { expected: String, found: String },
    #[error(
        "contradiction: the head of {size} entries that stands on the chain since block {set_in} \
         has root {anchored}, and this log's has {log}"
    )]
    Root { size: u64, set_in: u32, anchored: Hash32, log: Digest },
    #[error(
        "contradiction: entry {index} says that {said} of {size} entries was anchored; the log's \
         head of that size gives {log}"
    )]
    Value { index: u64, size: u64, said: Digest, log: Digest },
    #[error("contradiction: entry {index} tells of a head of {size} entries, which came after it")]
    Order { index: u64, size: u64 },
    #[error(
        "contradiction: entry {index} says that the head of {size} entries is shown by {said}; its \
         receipt shows it at {shown}"
    )]
    Block { index: u64, size: u64, said: BlockId, shown: BlockId },
    #[error(
        "contradiction: the receipt of the head with {size} entries is of {said}; the node's final \
         block of that number is {found}. Ask another node: one of the two is not of this chain"
    )]
    Node { size: u64, said: BlockId, found: BlockId },
}

impl AnchorError {
    /// Whether the chain and the log tell different histories, rather than a receipt proving nothing.
    pub fn is_contradiction(&self) -> bool {
        matches!(
            self,
            Self::Root { .. }
                | Self::Value { .. }
                | Self::Order { .. }
                | Self::Block { .. }
                | Self::Node { .. }
        )
    }

    /// Whether a signature does not hold.
    pub fn is_signature(&self) -> bool {
        matches!(self, Self::Receipt { source: ReceiptError::Grandpa(_), .. })
    }
}

/// How a block is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finality {
    /// The receipt repeats what a node said of its state, and proves nothing.
    Unproven,
    /// The receipt says that a node had it.
    Included,
    /// The receipt says that a node called it final.
    Finalized,
    /// The receipt brings a justification, and the auditor no authority set.
    Unchecked,
    /// The authority set signed for it.
    Justified,
}

/// Who says which chain, subnet and hotkey are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlaceBy {
    /// The auditor.
    Auditor,
    /// The ledger's genesis.
    Genesis,
    /// The receipt itself, which proves nothing of it.
    Receipt,
}

/// How an anchored head stands to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// The log starts with it.
    InLog,
    /// It has more entries than the log that was served: something was held back, or is not here yet.
    AheadOfLog,
    /// No log was given.
    NotCompared,
}

/// What one receipt proves.
#[derive(Clone, Debug, Serialize)]
pub struct AnchorView {
    /// Entries of the head.
    pub size: u64,
    /// Its root.
    pub root: Digest,
    /// SHA-256 of its text.
    pub value: Digest,
    /// Who says which chain, subnet and hotkey are meant.
    pub place_by: PlaceBy,
    /// The block that set it.
    pub set_in: u32,
    /// The block whose state shows it.
    pub shown_at: ChainBlock,
    /// How that block is known.
    pub finality: Finality,
    /// Whether the log holds the head.
    pub relation: Relation,
    /// What it shows of the hotkey's slot.
    #[serde(skip)]
    pub sightings: Vec<Sighting>,
}

/// All anchors of a ledger.
#[derive(Clone, Debug, Serialize)]
pub struct AnchorsView {
    /// One a receipt, by size.
    pub receipts: Vec<AnchorView>,
    /// Heads that the log says were anchored and whose receipts are missing.
    pub without_receipt: Vec<u64>,
}

/// The blocks between which a round was sealed, as far as receipts show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SealedBetween {
    /// The round.
    pub round: u64,
    /// Its record came after this block, whose hash stands before it in the log.
    pub after: Option<ChainBlock>,
    /// Its record stood in the log before this block.
    pub before: Option<u32>,
}

/// Judges one receipt, against `ledger`'s log if there is one.
///
/// # Errors
///
/// [`AnchorError`] if it proves nothing, or contradicts the log; what the log gives.
pub fn judge(
    ledger: Option<&Ledger>,
    receipt: &Receipt,
    trust: AnchorTrust<'_>,
) -> Result<AnchorView, LedgerError> {
    let Head { origin, size, root } = &receipt.head;
    let of_genesis = || ledger.and_then(|ledger| ledger.genesis().anchor_place());
    let (place_by, expected) = match (trust.place, of_genesis()) {
        (Some(place), _) => (PlaceBy::Auditor, expected(&place)),
        (None, Some(place)) => (PlaceBy::Genesis, expected(&place)),
        (None, None) => (PlaceBy::Receipt, claimed(&receipt.proof)),
    };
    let proven = receipt.verify(&expected, trust.authorities);
    let proven = proven.map_err(|source| AnchorError::Receipt { size: *size, source })?;
    let relation = match ledger {
        Some(ledger) => compare(ledger, origin, *size, root, proven.set_in)?,
        None => Relation::NotCompared,
    };
    Ok(AnchorView {
        size: *size,
        root: digest(root),
        value: digest(&proven.digest),
        place_by,
        set_in: proven.set_in,
        shown_at: block(proven.shown_at),
        finality: match proven.standing {
            Standing::Unproven => Finality::Unproven,
            Standing::Included => Finality::Included,
            Standing::Finalized => Finality::Finalized,
            Standing::Unchecked => Finality::Unchecked,
            Standing::Justified(_) => Finality::Justified,
        },
        relation,
        sightings: proven.sightings(),
    })
}

/// Whether the log had this root at this size.
fn compare(
    ledger: &Ledger,
    origin: &str,
    size: u64,
    root: &Hash32,
    set_in: u32,
) -> Result<Relation, LedgerError> {
    let log = ledger.rounds_log();
    let expected = &log.head().origin;
    if origin != expected {
        let (expected, found) = (expected.clone(), origin.to_owned());
        return Err(AnchorError::Origin { expected, found }.into());
    }
    if size > log.size() {
        return Ok(Relation::AheadOfLog);
    }
    let ours = log.root_at(size)?;
    if ours != digest(root) {
        return Err(AnchorError::Root { size, set_in, anchored: *root, log: ours }.into());
    }
    Ok(Relation::InLog)
}

/// Judges every receipt of a ledger, and every entry that tells of an anchor.
///
/// # Errors
///
/// As [`judge`]; [`AnchorError::Value`], [`AnchorError::Order`] or [`AnchorError::Block`] if an entry
/// says another thing than its receipt or the log.
pub fn judge_all(ledger: &Ledger, trust: AnchorTrust<'_>) -> Result<AnchorsView, LedgerError> {
    check_entries(ledger)?;
    let mut receipts = Vec::new();
    for size in anchors::sizes(ledger.place())? {
        if let Some(receipt) = anchors::load(ledger.place(), size)? {
            receipts.push(judge(Some(ledger), &receipt, trust)?);
        }
    }
    let without_receipt = check_blocks(ledger, &receipts)?;
    Ok(AnchorsView { receipts, without_receipt })
}

/// Checks that each entry about an anchor names the block that its receipt shows it at; gives the heads
/// whose receipts are missing.
///
/// # Errors
///
/// [`AnchorError::Block`].
pub fn check_blocks(ledger: &Ledger, receipts: &[AnchorView]) -> Result<Vec<u64>, AnchorError> {
    let mut without_receipt = Vec::new();
    for Anchored { index, record } in ledger.anchors() {
        let AnchorRecord { size, block: said, .. } = *record;
        match receipts.iter().find(|receipt| receipt.size == size) {
            None => without_receipt.push(size),
            Some(view) if view.shown_at != said => {
                let (said, shown) = (block_id(said), block_id(view.shown_at));
                return Err(AnchorError::Block { index: *index, size, said, shown });
            }
            Some(_) => {}
        }
    }
    Ok(without_receipt)
}

/// Checks what the log says of its own heads.
///
/// # Errors
///
/// [`AnchorError::Value`] or [`AnchorError::Order`].
pub fn check_entries(ledger: &Ledger) -> Result<(), LedgerError> {
    for Anchored { index, record } in ledger.anchors() {
        let (index, size, said) = (*index, record.size, record.value);
        if size > index {
            return Err(AnchorError::Order { index, size }.into());
        }
        let log = head_at(ledger, size)?.digest();
        if log != said {
            return Err(AnchorError::Value { index, size, said, log }.into());
        }
    }
    Ok(())
}

/// The blocks between which `round` was sealed.
///
/// Its record stood in the log before the first block that set a head that holds it; it came after
/// the last block that an earlier entry names and a receipt proves.
///
/// # Errors
///
/// [`LedgerError::NoRound`].
pub fn sealed_between(
    ledger: &Ledger,
    view: &AnchorsView,
    round: u64,
) -> Result<SealedBetween, LedgerError> {
    let index = ledger.sealed()[ledger.position(round)?].index;
    let proofs: Vec<_> =
        view.receipts.iter().filter(|r| r.finality != Finality::Unproven).collect();
    let holds = |anchor: &&&AnchorView| anchor.relation == Relation::InLog && anchor.size > index;
    let before = proofs.iter().filter(holds).map(|anchor| anchor.set_in).min();
    let proven = |block: &ChainBlock| proofs.iter().any(|r| r.shown_at == *block);
    let earlier = ledger.anchors().iter().filter(|anchor| anchor.index < index);
    let blocks = earlier.map(|anchor| anchor.record.block).filter(proven);
    Ok(SealedBetween { round, after: blocks.max_by_key(|block| block.number), before })
}

/// Whether the receipts show that the hotkey committed to nothing but heads of this log in a range of
/// blocks.
///
/// # Errors
///
/// [`LedgerError`] if the log does not read.
pub fn exclusive(
    ledger: &Ledger,
    view: &AnchorsView,
    range: std::ops::RangeInclusive<u32>,
) -> Result<Coverage, LedgerError> {
    let own = own_heads(ledger)?;
    let sightings: Vec<_> = view.receipts.iter().flat_map(|r| r.sightings.clone()).collect();
    Ok(coverage(range, &sightings, |found| own.contains_key(found)))
}

/// Whether everything that the hotkey committed to in some blocks is a head of this log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExclusiveView {
    /// The first block.
    pub first: u32,
    /// The last one.
    pub last: u32,
    /// Whether receipts show it.
    pub exclusive: bool,
    /// If not, why.
    pub text: String,
}

/// Says of `blocks`, or of those from the first receipt to the last, whether receipts show all that the
/// hotkey committed to; nothing where there are none.
///
/// # Errors
///
/// [`LedgerError`] if the log does not read.
pub fn exclusive_view(
    ledger: &Ledger,
    view: &AnchorsView,
    blocks: Option<(u32, u32)>,
) -> Result<Option<ExclusiveView>, LedgerError> {
    let first = view.receipts.iter().map(|r| r.set_in).min();
    let last = view.receipts.iter().filter_map(|r| r.shown_at.number.try_into().ok()).max();
    let Some((first, last)) = blocks.or(first.zip(last)) else { return Ok(None) };
    let coverage = exclusive(ledger, view, first..=last)?;
    let text = match coverage {
        Coverage::Exclusive => "every commitment of the hotkey is a head of this log".to_owned(),
        Coverage::Gap { from, to } => {
            format!("no receipt shows what stood there in blocks {from} to {to}")
        }
        Coverage::Foreign { slot } => {
            let what = slot.digest.map_or("something else".to_owned(), |digest| digest.to_string());
            format!("block {} set {what}, which is no head of this log", slot.block)
        }
    };
    let exclusive = coverage == Coverage::Exclusive;
    Ok(Some(ExclusiveView { first, last, exclusive, text }))
}

/// The digest of every head that the log ever had, with its size.
///
/// # Errors
///
/// [`LedgerError`] if the log does not read.
pub fn own_heads(ledger: &Ledger) -> Result<BTreeMap<Hash32, u64>, LedgerError> {
    let log = ledger.rounds_log();
    let mut tree = TreeBuilder::new();
    let mut heads = BTreeMap::new();
    for entry in log.entries(0..log.size())? {
        tree.push(leaf_hash(&entry?));
        let head =
            TreeHead { origin: log.head().origin.clone(), size: tree.size(), root: tree.root() };
        heads.insert(hash(head.digest()), tree.size());
    }
    Ok(heads)
}

/// The head that the rounds log had at `size`.
pub(super) fn head_at(ledger: &Ledger, size: u64) -> Result<TreeHead, LedgerError> {
    let log = ledger.rounds_log();
    Ok(TreeHead { origin: log.head().origin.clone(), size, root: log.root_at(size)? })
}

/// A head as receipts spell it.
pub(super) fn receipt_head(head: &TreeHead) -> Head {
    Head { origin: head.origin.clone(), size: head.size, root: hash(head.root) }
}

/// A place as receipts spell it.
pub fn expected(place: &AnchorPlace) -> Expected {
    Expected {
        genesis: hash(place.chain_genesis),
        netuid: place.netuid,
        hotkey: hash(place.hotkey),
    }
}

/// Where a receipt says that it is from.
fn claimed(proof: &Proof) -> Expected {
    match proof {
        Proof::Subtensor(proof) => {
            Expected { genesis: proof.genesis, netuid: proof.netuid, hotkey: proof.hotkey }
        }
        Proof::Node(word) => {
            Expected { genesis: word.genesis, netuid: word.netuid, hotkey: word.hotkey }
        }
        _ => expected(&AnchorPlace::default()),
    }
}

/// The same 32 bytes as the verifier's type.
pub fn hash(digest: Digest) -> Hash32 {
    Hash32(digest.0)
}

/// The same 32 bytes as the ledger's type.
pub fn digest(hash: &Hash32) -> Digest {
    Digest(hash.0)
}

fn block(id: BlockId) -> ChainBlock {
    ChainBlock { number: id.number.into(), hash: digest(&id.hash) }
}

pub(super) fn block_id(block: ChainBlock) -> BlockId {
    // Blocks of this chain are numbered by u32; what is larger is shown as the largest.
    BlockId { number: block.number.try_into().unwrap_or(u32::MAX), hash: hash(block.hash) }
}
