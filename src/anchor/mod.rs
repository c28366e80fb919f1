//! Layer 4, anchoring: a digest is put where many see it and nobody can take it back.
//!
//! [`Chain`] is a place that keeps one value for us: a Bittensor chain (`subtensor`, with the feature
//! `chain`), or a text file ([`mod@file`]). `ledger/anchor.rs` has the order of its calls. [`Witness`] is
//! a chain as anyone may ask it (`node`). Verifying what comes of it is the package
//! `gradledger-anchor`, which needs no chain.
//!
//! Trust: a chain's node may lie; what it answers is verified as a stranger would before it is kept.

pub mod file;
#[cfg(feature = "chain")]
pub mod node;
#[cfg(feature = "chain")]
pub mod subtensor;

use gradledger_anchor::{
    commitment::{Commitment, CommitmentError, Field, RESET_BONDS},
    hash::Hash32,
    header::BlockId,
    receipt::{Justified, Proof, ReceiptError},
};

use crate::types::{progress::Progress, record::AnchorPlace};

/// Why a place did not take or show a value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ChainError {
    #[error(
        "the chain takes one commitment per hotkey in some time; wait and try again ({reason})"
    )]
    RateLimit { reason: String },
    #[error(
        "the hotkey's commitments fill their space for this epoch; try again in the next ({reason})"
    )]
    SpaceLimit { reason: String },
    #[error(
        "the runtime takes {max} fields in a commitment, not {fields}; what stands there cannot be kept"
    )]
    Fields { fields: usize, max: u32 },
    #[error(
        "the hotkey is not registered in subnet {netuid}, so it cannot commit there ({reason})"
    )]
    NotRegistered { netuid: u16, reason: String },
    #[error("the transaction is no longer valid: block {dies} was the last that could take it")]
    Expired { dies: u32 },
    #[error("a bonds reset flag is never sent")]
    ResetBonds,
    #[error("the chain refused the transaction: {reason}")]
    Refused { reason: String },
    #[error("the node cannot prove its state: {reason}")]
    NoProof { reason: String },
    #[error("the node: {reason}")]
    Node { reason: String },
    #[error("what stands there does not read: {0}")]
    Commitment(#[from] CommitmentError),
    #[error("the node's proof does not hold: {0}")]
    Proof(#[from] ReceiptError),
    #[error("{path}: {source}")]
    Io { path: std::path::PathBuf, source: std::io::Error },
}

/// What a place shows now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The newest final block.
    pub newest: u32,
    /// What stands there for us after the newest block, final or not.
    pub commitment: Option<Commitment>,
}

impl View {
    /// The one digest that stands there.
    pub fn digest(&self) -> Option<Hash32> {
        self.commitment.as_ref()?.digest().ok()
    }
}

/// A transaction, signed and not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCall {
    /// The call's bytes, which stand in the extrinsic's end.
    pub call: Vec<u8>,
    /// What is sent.
    pub extrinsic: Vec<u8>,
    /// The last block that can take it.
    pub dies: u32,
}

/// A place that keeps one value for us, and proves it.
pub trait Chain {
    /// Chain, subnet and hotkey; none where there is no such thing.
    fn place(&self) -> Option<AnchorPlace>;

    /// What stands there now.
    ///
    /// # Errors
    ///
    /// [`ChainError::Node`], [`ChainError::Commitment`].
    fn look(&mut self) -> Result<View, ChainError>;

    /// Signs a transaction that sets `fields`, valid for some blocks. Nothing is sent.
    ///
    /// # Errors
    ///
    /// [`ChainError::Fields`], [`ChainError::ResetBonds`], [`ChainError::Node`].
    fn sign(&mut self, fields: &[Field]) -> Result<SignedCall, ChainError>;

    /// Sends a signed transaction and waits until a block has taken or refused it.
    ///
    /// The same bytes sent again count once: a chain takes a nonce once.
    ///
    /// # Errors
    ///
    /// [`ChainError`] names why it was refused; nothing was set then.
    fn send(
        &mut self,
        extrinsic: &[u8],
        dies: u32,
        progress: &dyn Progress,
    ) -> Result<(), ChainError>;

    /// What proves that `digest` stands there, once the block is final.
    ///
    /// # Errors
    ///
    /// [`ChainError::NoProof`] if the node gives none.
    fn prove(
        &mut self,
        digest: &Hash32,
        extrinsic: Option<&[u8]>,
        progress: &dyn Progress,
    ) -> Result<Proof, ChainError>;

    /// The same chain as anyone may ask it, if authorities sign for its blocks.
    fn witness(&mut self) -> Option<&mut dyn Witness> {
        None
    }
}

/// A chain as any of its nodes shows it: nothing is signed, nothing is sent.
pub trait Witness {
    /// Hash of the genesis block.
    ///
    /// # Errors
    ///
    /// [`ChainError::Node`].
    fn genesis(&mut self) -> Result<Hash32, ChainError>;

    /// Hash of the final block with this number; none while that block is not final.
    ///
    /// # Errors
    ///
    /// [`ChainError::Node`].
    fn final_block(&mut self, number: u32) -> Result<Option<Hash32>, ChainError>;

    /// What stands in a hotkey's slot now.
    ///
    /// # Errors
    ///
    /// [`ChainError::Node`], [`ChainError::Commitment`].
    fn look(&mut self, place: &AnchorPlace) -> Result<View, ChainError>;

    /// What shows that `block` is final: the first justification from it on and the headers up to it.
    /// None while there is none among the final blocks that a receipt may go through.
    ///
    /// # Errors
    ///
    /// [`ChainError::Node`]; [`ChainError::NoProof`] if a header is not its hash's.
    fn justify(
        &mut self,
        block: BlockId,
        progress: &dyn Progress,
    ) -> Result<Option<Justified>, ChainError>;
}

/// The fields of a commitment to `digest`, behind those that are kept.
///
/// # Errors
///
/// [`ChainError::ResetBonds`] if one of those kept is the flag that resets a miner's bonds.
pub fn fields(kept: &[Field], digest: &Hash32) -> Result<Vec<Field>, ChainError> {
    if kept.iter().any(|field| field.as_bytes() == [RESET_BONDS]) {
        return Err(ChainError::ResetBonds);
    }
    // A digest of ours that stands behind them goes; two would be ambiguous.
    let others = kept.iter().filter(|field| field.digest().is_none()).cloned();
    Ok(others.chain([Field::sha256(digest)]).collect())
}

/// A file of the golden chain.
#[cfg(all(test, feature = "chain"))]
#[allow(clippy::unwrap_used)]
fn golden_file(name: &str) -> Vec<u8> {
    let own = || std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let folder = std::env::var_os("GRADLEDGER_GOLDEN").map_or_else(own, Into::into);
    std::fs::read(folder.join("chain").join(name)).unwrap()
}
