//! GRANDPA justifications: more than two thirds of an authority set's weight signed for a block.
//!
//! A justification is SCALE of round, target, precommits, and the headers between the target and the
//! later blocks that some precommits name. Subtensor hands them out with `chain_getBlock`, about one
//! block in 512. The source is the Polkadot specification (GRANDPA) and `sc-consensus-grandpa`; the
//! bytes are in `schema/anchor.md`.
//!
//! Trust: the authority set is the caller's: whoever chooses it chooses the chain. Signatures are
//! checked strictly. Work is bounded by two precommits an authority.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::{Signature, VerifyingKey};
use parity_scale_codec::{Compact, Decode, Error as ScaleError};
use serde::{Deserialize, Serialize};

use crate::{
    hash::Hash32,
    header::{BlockId, Header, HeaderError},
};

/// The authorities that finalize blocks while `set_id` stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthoritySet {
    /// How often the set changed since the genesis; it stands in what is signed.
    pub set_id: u64,
    /// Each once.
    pub authorities: Vec<Authority>,
}

/// One that votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authority {
    /// Its Ed25519 public key.
    pub key: Hash32,
    /// How much its vote counts.
    pub weight: u64,
}

/// A justification that does not justify.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum GrandpaError {
    #[error("the authority set is empty, names a key twice, or gives a weight of 0")]
    Set,
    #[error("not a justification: {0}")]
    Scale(#[from] ScaleError),
    #[error("the justification goes on for {bytes} bytes after its end")]
    Long { bytes: usize },
    #[error("{found} precommits by {authorities} authorities: at most two each are read")]
    Precommits { found: u32, authorities: usize },
    #[error("a header of the justification: {0}")]
    Header(#[from] HeaderError),
    #[error("the justification brings the header of {0} twice")]
    Twice(BlockId),
    #[error("a precommit is by {key}, who is not in the authority set")]
    Unknown { key: Hash32 },
    #[error(
        "a precommit's signature by {key} is wrong for round {round} and authority set {set_id}"
    )]
    Signature { key: Hash32, round: u64, set_id: u64 },
    #[error("a precommit is for {precommit}, which the headers do not lead to from {target}")]
    Ancestry { precommit: BlockId, target: BlockId },
    #[error("the justification brings the header of {0}, which leads nowhere")]
    Unused(BlockId),
    #[error("weight {signed} of {total} signed; more than two thirds must")]
    Weight { signed: u128, total: u128 },
}

/// A vote for a block and all before it.
struct Precommit {
    block: BlockId,
    signature: [u8; 64],
    key: Hash32,
}

struct Justification {
    round: u64,
    target: BlockId,
    precommits: Vec<Precommit>,
    /// Headers after the target, by hash.
    ancestry: BTreeMap<Hash32, Header>,
}

/// The block that `justification` shows to be final under `set`.
///
/// # Errors
///
/// [`GrandpaError`] names the first rule that does not hold.
pub fn verify(justification: &[u8], set: &AuthoritySet) -> Result<BlockId, GrandpaError> {
    let weights = weights(set)?;
    let justification = decode(justification, weights.len())?;
    let (mut voted, mut used) = (BTreeSet::new(), BTreeSet::new());
    for precommit in &justification.precommits {
        let key = precommit.key;
        if !weights.contains_key(&key) {
            return Err(GrandpaError::Unknown { key });
        }
        check_signature(precommit, justification.round, set.set_id)?;
        check_ancestry(precommit, &justification, &mut used)?;
        // One that voted twice counts once, as on the chain.
        voted.insert(key);
    }
    let mut headers = justification.ancestry.values();
    if let Some(unused) = headers.find(|header| !used.contains(&header.id.hash)) {
        return Err(GrandpaError::Unused(unused.id));
    }
    let sum = |weights: &mut dyn Iterator<Item = u64>| weights.map(u128::from).sum::<u128>();
    let signed = sum(&mut voted.iter().map(|key| weights[key]));
    let total = sum(&mut weights.values().copied());
    if signed * 3 <= total * 2 {
        return Err(GrandpaError::Weight { signed, total });
    }
    Ok(justification.target)
}

fn weights(set: &AuthoritySet) -> Result<BTreeMap<Hash32, u64>, GrandpaError> {
    let weights: BTreeMap<_, _> = set.authorities.iter().map(|a| (a.key, a.weight)).collect();
    let sound = !weights.is_empty()
        && weights.len() == set.authorities.len()
        && weights.values().all(|weight| *weight > 0);
    if sound { Ok(weights) } else { Err(GrandpaError::Set) }
}

fn decode(bytes: &[u8], authorities: usize) -> Result<Justification, GrandpaError> {
    let input = &mut &bytes[..];
    let round = u64::decode(input)?;
    let target = decode_block(input)?;
    let Compact(found) = Compact::<u32>::decode(input)?;
    if found as usize > authorities.saturating_mul(2) {
        return Err(GrandpaError::Precommits { found, authorities });
    }
    let mut precommits = Vec::new();
    for _ in 0..found {
        let block = decode_block(input)?;
        let signature = Decode::decode(input)?;
        let key = Hash32(Decode::decode(input)?);
        precommits.push(Precommit { block, signature, key });
    }
    let Compact(headers) = Compact::<u32>::decode(input)?;
    let mut ancestry = BTreeMap::new();
    for _ in 0..headers {
        let header = Header::take(input)?;
        if ancestry.insert(header.id.hash, header).is_some() {
            return Err(GrandpaError::Twice(header.id));
        }
    }
    if !input.is_empty() {
        return Err(GrandpaError::Long { bytes: input.len() });
    }
    Ok(Justification { round, target, precommits, ancestry })
}

fn decode_block(input: &mut &[u8]) -> Result<BlockId, ScaleError> {
    let hash = Hash32(Decode::decode(input)?);
    Ok(BlockId { number: u32::decode(input)?, hash })
}

/// What an authority signs: SCALE of (Message::Precommit, round, set id).
fn check_signature(precommit: &Precommit, round: u64, set_id: u64) -> Result<(), GrandpaError> {
    let Precommit { block, signature, key } = precommit;
    let mut message = vec![1];
    message.extend(block.hash.0);
    message.extend(block.number.to_le_bytes());
    message.extend(round.to_le_bytes());
    message.extend(set_id.to_le_bytes());
    let signature = Signature::from_bytes(signature);
    let verified =
        VerifyingKey::from_bytes(&key.0).and_then(|key| key.verify_strict(&message, &signature));
    verified.map_err(|_| GrandpaError::Signature { key: *key, round, set_id })
}

/// Walks from the precommit's block back to the target; notes the headers that it took.
fn check_ancestry(
    precommit: &Precommit,
    justification: &Justification,
    used: &mut BTreeSet<Hash32>,
) -> Result<(), GrandpaError> {
    let Justification { target, ancestry, .. } = justification;
    let astray = || GrandpaError::Ancestry { precommit: precommit.block, target: *target };
    let mut block = precommit.block;
    // Numbers fall by one a step, so the walk ends.
    while block != *target {
        let header = ancestry.get(&block.hash).filter(|header| header.id == block);
        let header = header.filter(|_| block.number > target.number).ok_or_else(astray)?;
        used.insert(block.hash);
        block = BlockId { number: block.number - 1, hash: header.parent };
    }
    Ok(())
}
