//! The anchor receipt: what proves that a tree head's digest was committed to on the chain.
//!
//! [`Receipt::verify`] checks, in this order: the chain, subnet and hotkey that are meant; the head's
//! digest in the state below a block's header; the extrinsic that set it; what stood there the block
//! before; the justification. `schema/anchor.md` has the format.
//!
//! Trust: nothing in it is believed. Without a justification under an authority set that the caller
//! brings, the block itself is the operator's word: compare its hash with a node's.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};

use crate::{
    commitment::{Commitment, CommitmentError, storage_key},
    exclusive::{Sighting, Slot},
    extrinsic::{self, ExtrinsicError},
    grandpa::{self, AuthoritySet, GrandpaError},
    hash::{Hash32, Hex, sha256},
    header::{BlockId, Header, HeaderError},
    trie::{self, TrieError},
};

/// Version of the receipts that are written and read.
pub const VERSION: u64 = 1;

/// Most headers between a commitment and its justification; subtensor justifies one block in 512.
pub const HEADERS_MAX: usize = 8192;

/// That a tree head was anchored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Version of this document: 1.
    pub version: u64,
    /// The head of the rounds log.
    pub head: Head,
    /// That its digest was committed to.
    pub proof: Proof,
}

/// A tree head: the state of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The log's name.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// RFC 6962 root over them.
    pub root: Hash32,
}

impl Head {
    /// The head's text: origin, size and root in base64, a line each.
    pub fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(self.root.0))
    }

    /// SHA-256 of [`Self::body`]: what is committed to.
    pub fn digest(&self) -> Hash32 {
        sha256(self.body().as_bytes())
    }
}

/// Where a digest was put, and what shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Proof {
    /// On a chain with subtensor's `Commitments` pallet.
    Subtensor(Box<SubtensorProof>),
    /// On such a chain by the word of a node that could not prove its state.
    Node(NodeWord),
    /// In a text file, a digest a line: for tests. It proves nothing to who does not keep the file.
    File(FileProof),
}

/// What a node said, to be asked of another node: it proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeWord {
    /// Hash of the chain's genesis block.
    pub genesis: Hash32,
    /// The subnet.
    pub netuid: u16,
    /// Who committed.
    pub hotkey: Hash32,
    /// The transaction, if it is known.
    pub extrinsic: Option<Hex>,
    /// The block that set it.
    pub block: BlockId,
}

/// A line of a text file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileProof {
    /// Lines before it.
    pub line: u32,
    /// What it says.
    pub digest: Hash32,
}

/// That a hotkey's commitment held a digest after a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubtensorProof {
    /// Hash of the chain's genesis block.
    pub genesis: Hash32,
    /// The subnet.
    pub netuid: u16,
    /// Who committed.
    pub hotkey: Hash32,
    /// The transaction, if it is known.
    pub extrinsic: Option<Hex>,
    /// The commitment after a block.
    pub state: StateProof,
    /// What stood there after the block before, if it is known.
    pub before: Option<StateProof>,
    /// How final the block is.
    pub finality: Finality,
}

/// A hotkey's slot in the state after one block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateProof {
    /// The block's header.
    pub header: Hex,
    /// Trie nodes from the header's state root to the slot, in any order.
    pub nodes: Vec<Hex>,
}

/// How final a block is said or shown to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finality {
    /// A node had it in its chain.
    Included,
    /// A node said that it is final.
    Finalized,
    /// Authorities signed for it, or for a block after it.
    Justified(Justified),
}

/// What shows that a block is final.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Justified {
    /// The headers after the block, each the next one's parent, the justified one last.
    pub headers: Vec<Hex>,
    /// The GRANDPA justification.
    pub justification: Hex,
}

/// What the caller knows to be meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Hash of the chain's genesis block.
    pub genesis: Hash32,
    /// The subnet.
    pub netuid: u16,
    /// Who anchors.
    pub hotkey: Hash32,
}

/// What a receipt proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchored {
    /// SHA-256 of the head's text.
    pub digest: Hash32,
    /// The block that set the commitment: the head existed before it.
    pub set_in: u32,
    /// The block whose state shows it, `set_in` or a later one.
    pub shown_at: BlockId,
    /// What stood there before `set_in`, if the receipt says so.
    pub before: Option<Sighting>,
    /// How final the block is.
    pub standing: Standing,
}

/// What of a receipt's finality was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It proves nothing.
    Unproven,
    /// It claims none.
    Included,
    /// It claims that a node said so; nothing shows it.
    Finalized,
    /// It brings a justification, and the caller no authority set to check it with.
    Unchecked,
    /// The authority set signed for this block, which is the commitment's or comes after it.
    Justified(BlockId),
}

/// A receipt that does not prove what it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ReceiptError {
    #[error("the receipt's version is {found}; {VERSION} is read")]
    Version { found: u64 },
    #[error("the receipt is of the chain with genesis {found}, not {expected}")]
    Genesis { expected: Hash32, found: Hash32 },
    #[error("the receipt is of subnet {found}, not {expected}")]
    Netuid { expected: u16, found: u16 },
    #[error("the receipt is of the hotkey {found}, not {expected}")]
    Hotkey { expected: Hash32, found: Hash32 },
    #[error("the header: {0}")]
    Header(#[from] HeaderError),
    #[error("the state proof: {0}")]
    Trie(#[from] TrieError),
    #[error("the commitment: {0}")]
    Commitment(#[from] CommitmentError),
    #[error("{block} proves that the hotkey has no commitment in the subnet")]
    Absent { block: BlockId },
    #[error("the commitment is {found}; the head's digest is {expected}")]
    Digest { expected: Hash32, found: Hash32 },
    #[error(
        "the commitment says it was set in block {set_in}, after {shown_at}, whose state it is in"
    )]
    Future { set_in: u32, shown_at: BlockId },
    #[error("the extrinsic: {0}")]
    Extrinsic(#[from] ExtrinsicError),
    #[error("what stood before is shown in {found}, not in the block before {set_in}")]
    Before { set_in: u32, found: BlockId },
    #[error("{headers} headers lead to the justification; at most {HEADERS_MAX} are read")]
    Headers { headers: usize },
    #[error("{child} does not follow {parent}")]
    Parent { parent: BlockId, child: BlockId },
    #[error("the justification: {0}")]
    Grandpa(#[from] GrandpaError),
    #[error("the justification is for {found}; the headers lead to {expected}")]
    Target { expected: BlockId, found: BlockId },
    #[error("the file's line says {found}; the head's digest is {expected}")]
    Line { expected: Hash32, found: Hash32 },
}

impl Receipt {
    /// Checks the receipt against what the caller knows.
    ///
    /// Without `authorities` a justification is not checked, and [`Anchored::standing`] says so.
    ///
    /// # Errors
    ///
    /// [`ReceiptError`] names the first thing that does not hold.
    pub fn verify(
        &self,
        expected: &Expected,
        authorities: Option<&AuthoritySet>,
    ) -> Result<Anchored, ReceiptError> {
        if self.version != VERSION {
            return Err(ReceiptError::Version { found: self.version });
        }
        let digest = self.head.digest();
        match &self.proof {
            Proof::Subtensor(proof) => proof.verify(&digest, expected, authorities),
            Proof::Node(word) => word.verify(&digest, expected),
            Proof::File(proof) => proof.verify(&digest),
        }
    }
}

impl NodeWord {
    fn verify(&self, digest: &Hash32, expected: &Expected) -> Result<Anchored, ReceiptError> {
        expected.check(&self.genesis, self.netuid, &self.hotkey)?;
        let (digest, shown_at, standing) = (*digest, self.block, Standing::Unproven);
        Ok(Anchored { digest, set_in: shown_at.number, shown_at, before: None, standing })
    }
}

impl Expected {
    fn check(&self, genesis: &Hash32, netuid: u16, hotkey: &Hash32) -> Result<(), ReceiptError> {
        if *genesis != self.genesis {
            return Err(ReceiptError::Genesis { expected: self.genesis, found: *genesis });
        }
        if netuid != self.netuid {
            return Err(ReceiptError::Netuid { expected: self.netuid, found: netuid });
        }
        if *hotkey != self.hotkey {
            return Err(ReceiptError::Hotkey { expected: self.hotkey, found: *hotkey });
        }
        Ok(())
    }
}

impl FileProof {
    fn verify(&self, digest: &Hash32) -> Result<Anchored, ReceiptError> {
        if self.digest != *digest {
            return Err(ReceiptError::Line { expected: *digest, found: self.digest });
        }
        let shown_at = BlockId { number: self.line, hash: *digest };
        let (digest, set_in, standing) = (*digest, self.line, Standing::Included);
        Ok(Anchored { digest, set_in, shown_at, before: None, standing })
    }
}

impl SubtensorProof {
    /// Checks that `digest` was committed to; see [`Receipt::verify`].
    ///
    /// # Errors
    ///
    /// [`ReceiptError`] names the first thing that does not hold.
    pub fn verify(
        &self,
        digest: &Hash32,
        expected: &Expected,
        authorities: Option<&AuthoritySet>,
    ) -> Result<Anchored, ReceiptError> {
        expected.check(&self.genesis, self.netuid, &self.hotkey)?;
        let (header, commitment) = self.state.open(self.netuid, &self.hotkey)?;
        let shown_at = header.id;
        let commitment = commitment.ok_or(ReceiptError::Absent { block: shown_at })?;
        let found = commitment.digest()?;
        if found != *digest {
            return Err(ReceiptError::Digest { expected: *digest, found });
        }
        let set_in = commitment.block;
        if set_in > shown_at.number {
            return Err(ReceiptError::Future { set_in, shown_at });
        }
        if let Some(extrinsic) = &self.extrinsic {
            extrinsic::check(&extrinsic.0, &self.hotkey, self.netuid, &commitment.fields)?;
        }
        let before = self.open_before(&header, set_in)?;
        let standing = self.finality.check(shown_at, authorities)?;
        Ok(Anchored { digest: *digest, set_in, shown_at, before, standing })
    }

    fn open_before(&self, header: &Header, set_in: u32) -> Result<Option<Sighting>, ReceiptError> {
        let Some(before) = &self.before else { return Ok(None) };
        let (parent, commitment) = before.open(self.netuid, &self.hotkey)?;
        let (found, number) = (parent.id, header.id.number);
        if found.hash != header.parent
            || set_in != number
            || found.number.checked_add(1) != Some(number)
        {
            return Err(ReceiptError::Before { set_in, found });
        }
        Ok(Some(sighting(found.number, commitment.as_ref())))
    }
}

/// What a slot held after block `at`.
pub fn sighting(at: u32, commitment: Option<&Commitment>) -> Sighting {
    let slot = |c: &Commitment| Slot { block: c.block, digest: c.digest().ok() };
    Sighting { at, slot: commitment.map(slot) }
}

impl Anchored {
    /// What the receipt shows of the hotkey's slot, for [`crate::exclusive::coverage`].
    pub fn sightings(&self) -> Vec<Sighting> {
        if self.standing == Standing::Unproven {
            return Vec::new();
        }
        let slot = Slot { block: self.set_in, digest: Some(self.digest) };
        let shown = Sighting { at: self.shown_at.number, slot: Some(slot) };
        self.before.iter().cloned().chain([shown]).collect()
    }
}

impl StateProof {
    /// The block and what the hotkey's slot holds after it; none if it is proven to be empty.
    ///
    /// # Errors
    ///
    /// [`ReceiptError`] if header, nodes or value do not read.
    pub fn open(
        &self,
        netuid: u16,
        hotkey: &Hash32,
    ) -> Result<(Header, Option<Commitment>), ReceiptError> {
        let header = Header::decode(&self.header.0)?;
        let mut proof = trie::Proof::new(header.state_root, &self.nodes)?;
        let value = proof.get(&storage_key(netuid, hotkey))?;
        proof.finish()?;
        let commitment = value.map(Commitment::decode).transpose()?;
        Ok((header, commitment))
    }
}

impl Finality {
    fn check(
        &self,
        block: BlockId,
        authorities: Option<&AuthoritySet>,
    ) -> Result<Standing, ReceiptError> {
        let justified = match self {
            Self::Included => return Ok(Standing::Included),
            Self::Finalized => return Ok(Standing::Finalized),
            Self::Justified(justified) => justified,
        };
        let expected = justified.lead(block)?;
        let Some(authorities) = authorities else { return Ok(Standing::Unchecked) };
        let found = grandpa::verify(&justified.justification.0, authorities)?;
        if found != expected {
            return Err(ReceiptError::Target { expected, found });
        }
        Ok(Standing::Justified(found))
    }
}

impl Justified {
    /// The block that the headers lead to from `block`.
    fn lead(&self, block: BlockId) -> Result<BlockId, ReceiptError> {
        if self.headers.len() > HEADERS_MAX {
            return Err(ReceiptError::Headers { headers: self.headers.len() });
        }
        self.headers.iter().try_fold(block, |parent, bytes| {
            let child = Header::decode(&bytes.0)?;
            let follows = child.parent == parent.hash
                && parent.number.checked_add(1) == Some(child.id.number);
            if follows {
                Ok(child.id)
            } else {
                Err(ReceiptError::Parent { parent, child: child.id })
            }
        })
    }
}
