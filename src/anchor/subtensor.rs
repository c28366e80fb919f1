//! A Bittensor chain as a place to anchor in, through one of its nodes.
//!
//! The call's indices and the transaction's extensions come from the metadata of the running runtime,
//! so that upgrades need no new build. What stands in the slot is read as raw storage and decoded by
//! the verifier's own code. `subxt` and `tokio` have their home here: outside calls block.

use std::time::Duration;

use gradledger_anchor::{
    commitment::{Commitment, Field, RESET_BONDS, storage_key},
    extrinsic::call_arguments,
    hash::{Hash32, Hex, blake2b_256},
    header::BlockId,
    receipt::{Finality, NodeWord, Proof, StateProof, SubtensorProof},
};
use subxt::{
    OnlineClient,
    config::{DefaultExtrinsicParamsBuilder, RpcConfigFor, SubstrateConfig},
    ext::codec::Encode as _,
    rpcs::{LegacyRpcMethods, RpcClient},
    tx::{Signer, TransactionStatus},
    utils::{AccountId32, H256, MultiSignature},
};
use tokio::{runtime::Runtime, time};

use super::{Chain, ChainError, SignedCall, View};
use crate::{
    import::wallet::Hotkey,
    types::{digest::Digest, progress::Progress, record::AnchorPlace},
};

/// Blocks that a transaction is valid for, some 13 minutes: a power of two.
const LIFE_BLOCKS: u32 = 64;

/// How long between two looks at the chain while it takes or finalizes a block.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// How often a connection is tried, each time after twice the wait.
const CONNECTS_MAX: u32 = 4;

/// How long finality is waited for; subtensor takes seconds.
const FINAL_AFTER_MAX: Duration = Duration::from_secs(600);

/// A node, and the hotkey that signs.
pub struct Subtensor {
    runtime: Runtime,
    node: Node,
    place: AnchorPlace,
    hotkey: Hotkey,
    unproven: bool,
}

/// The connection, apart from the runtime that drives it.
struct Node {
    client: OnlineClient<SubstrateConfig>,
    rpc: LegacyRpcMethods<RpcConfigFor<SubstrateConfig>>,
    key: Vec<u8>,
}

impl Subtensor {
    /// Connects to the node at `endpoint`: `wss://`, or `ws://` on this machine.
    ///
    /// With `unproven`, the word of a node that cannot prove its state is taken; receipts then say so.
    ///
    /// # Errors
    ///
    /// [`ChainError::Node`] after some tries with growing waits.
    pub fn connect(
        endpoint: &str,
        netuid: u16,
        hotkey: Hotkey,
        unproven: bool,
        progress: &dyn Progress,
    ) -> Result<Self, ChainError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(node_error)?;
        let key = storage_key(netuid, &Hash32(hotkey.public().0));
        let node = runtime.block_on(Node::connect(endpoint, key, progress))?;
        let chain_genesis = Digest(node.client.genesis_hash().0);
        let place = AnchorPlace { netuid, chain_genesis, hotkey: hotkey.public() };
        Ok(Self { runtime, node, place, hotkey, unproven })
    }

    /// The proof of the slot in the state after the block that set it, and after the one before.
    fn state_proofs(&self, block: BlockId) -> Result<(StateProof, Option<StateProof>), ChainError> {
        self.runtime.block_on(async {
            let state = self.node.state_proof(H256(block.hash.0)).await?;
            let before = match block.number.checked_sub(1) {
                Some(number) => {
                    Some(self.node.state_proof(self.node.hash_of(number).await?).await?)
                }
                None => None,
            };
            Ok((state, before))
        })
    }
}

impl Chain for Subtensor {
    fn place(&self) -> Option<AnchorPlace> {
        Some(self.place)
    }

    fn look(&mut self) -> Result<View, ChainError> {
        self.runtime.block_on(async {
            let newest = self.node.finalized().await?.number;
            Ok(View { newest, commitment: self.node.slot(None).await? })
        })
    }

    fn sign(&mut self, fields: &[Field]) -> Result<SignedCall, ChainError> {
        if fields.iter().any(|field| field.as_bytes() == [RESET_BONDS]) {
            return Err(ChainError::ResetBonds);
        }
        self.runtime.block_on(self.node.sign(self.place.netuid, fields, &self.hotkey))
    }

    fn send(
        &mut self,
        extrinsic: &[u8],
        dies: u32,
        progress: &dyn Progress,
    ) -> Result<(), ChainError> {
        progress.note("sent; waiting for a block");
        let netuid = self.place.netuid;
        self.runtime.block_on(self.node.send(extrinsic, dies, netuid))
    }

    fn prove(
        &mut self,
        digest: &Hash32,
        extrinsic: Option<&[u8]>,
        progress: &dyn Progress,
    ) -> Result<Proof, ChainError> {
        progress.note("in a block; waiting until it is final");
        let block = self.runtime.block_on(self.node.final_block(digest))?;
        progress.note(&format!("final: {block}"));
        let AnchorPlace { netuid, chain_genesis, hotkey } = self.place;
        let (genesis, hotkey) = (Hash32(chain_genesis.0), Hash32(hotkey.0));
        let extrinsic = extrinsic.map(|bytes| Hex(bytes.to_vec()));
        match self.state_proofs(block) {
            Ok((state, before)) => Ok(Proof::Subtensor(Box::new(SubtensorProof {
                genesis,
                netuid,
                hotkey,
                extrinsic,
                state,
                before,
                finality: Finality::Finalized,
            }))),
            Err(error) if self.unproven => {
                progress.note(&format!("not proven: {error}"));
                Ok(Proof::Node(NodeWord { genesis, netuid, hotkey, extrinsic, block }))
            }
            Err(error) => Err(error),
        }
    }
}

impl Node {
    async fn connect(
        endpoint: &str,
        key: Vec<u8>,
        progress: &dyn Progress,
    ) -> Result<Self, ChainError> {
        let mut wait = Duration::from_secs(1);
        for _ in 1..CONNECTS_MAX {
            match Self::connect_once(endpoint, &key).await {
                Ok(node) => return Ok(node),
                Err(error) => progress.note(&format!("{error}; again in {} s", wait.as_secs())),
            }
            time::sleep(wait).await;
            wait *= 2;
        }
        Self::connect_once(endpoint, &key).await
    }

    async fn connect_once(endpoint: &str, key: &[u8]) -> Result<Self, ChainError> {
        let rpc = RpcClient::from_url(endpoint).await.map_err(node_error)?;
        let client = OnlineClient::from_rpc_client(rpc.clone()).await.map_err(node_error)?;
        Ok(Self { client, rpc: LegacyRpcMethods::new(rpc), key: key.to_vec() })
    }

    /// What stands in the slot after a block; after the newest if none is given.
    async fn slot(&self, at: Option<H256>) -> Result<Option<Commitment>, ChainError> {
        let value = self.rpc.state_get_storage(&self.key, at).await.map_err(node_error)?;
        Ok(value.as_deref().map(Commitment::decode).transpose()?)
    }

    /// The newest final block.
    async fn finalized(&self) -> Result<BlockId, ChainError> {
        let hash = self.rpc.chain_get_finalized_head().await.map_err(node_error)?;
        let header = self.rpc.chain_get_header(Some(hash)).await.map_err(node_error)?;
        let header = header.ok_or_else(|| node_error("the final block has no header"))?;
        let number = header.number.try_into().map_err(node_error)?;
        Ok(BlockId { number, hash: Hash32(hash.0) })
    }

    async fn hash_of(&self, number: u32) -> Result<H256, ChainError> {
        let hash = self.rpc.chain_get_block_hash(Some(number.into())).await.map_err(node_error)?;
        hash.ok_or_else(|| node_error(format_args!("it has no block {number}")))
    }

    async fn sign(
        &self,
        netuid: u16,
        fields: &[Field],
        hotkey: &Hotkey,
    ) -> Result<SignedCall, ChainError> {
        let block = self.client.at_current_block().await.map_err(node_error)?;
        let metadata = block.metadata();
        let pallet = metadata.pallet_by_name("Commitments");
        let index = pallet.and_then(|pallet| {
            let call = pallet.call_variant_by_name("set_commitment")?;
            Some([pallet.call_index(), call.index])
        });
        let index = index
            .ok_or_else(|| node_error("its runtime has no call Commitments.set_commitment"))?;
        let call = [&index[..], &call_arguments(netuid, fields)].concat();
        // Read back with the runtime's own types, so that a changed call is refused here.
        let payload = block.tx().from_call_data_bytes(&call).map_err(node_error)?;
        let params = DefaultExtrinsicParamsBuilder::new().mortal(LIFE_BLOCKS.into()).build();
        let signer = HotkeySigner(hotkey);
        let signed =
            block.tx().create_signed(&payload, &signer, params).await.map_err(node_error)?;
        let number: u32 = block.block_number().try_into().map_err(node_error)?;
        Ok(SignedCall { call, extrinsic: signed.into_encoded(), dies: number + LIFE_BLOCKS })
    }

    /// Sends, and waits until a block has it. What the chain answers is named in [`refusal`].
    async fn send(&self, extrinsic: &[u8], dies: u32, netuid: u16) -> Result<(), ChainError> {
        let block = self.client.at_current_block().await.map_err(node_error)?;
        let transaction = block.tx().from_bytes(extrinsic.to_vec());
        let mut watched = match transaction.submit_and_watch().await {
            Ok(watched) => watched,
            Err(error) => {
                let text = chain_of(&error);
                // The bytes were sent before: they are in a block, in the pool, or too late.
                if ["outdated", "stale", "already imported", "temporarily banned"]
                    .iter()
                    .any(|known| text.to_lowercase().contains(known))
                {
                    return self.wait_for(extrinsic, dies).await;
                }
                return Err(refusal(text, netuid));
            }
        };
        while let Some(status) = watched.next().await {
            match status.map_err(node_error)? {
                TransactionStatus::InBestBlock(taken)
                | TransactionStatus::InFinalizedBlock(taken) => {
                    let success = taken.wait_for_success().await;
                    return success.map(drop).map_err(|error| refusal(chain_of(&error), netuid));
                }
                TransactionStatus::Error { message }
                | TransactionStatus::Invalid { message }
                | TransactionStatus::Dropped { message } => return Err(refusal(message, netuid)),
                _ => {}
            }
        }
        Err(node_error("it stopped telling of the transaction"))
    }

    /// Looks until the slot holds what `extrinsic` sets, or no block can take it any more.
    async fn wait_for(&self, extrinsic: &[u8], dies: u32) -> Result<(), ChainError> {
        loop {
            let slot = self.slot(None).await?;
            let set = |slot: &Commitment| extrinsic.ends_with(&slot.encoded_fields());
            if slot.as_ref().is_some_and(set) {
                return Ok(());
            }
            if self.finalized().await?.number > dies {
                return Err(ChainError::Expired { dies });
            }
            time::sleep(LOOK_EVERY).await;
        }
    }

    /// The block that set `digest`, once it is final.
    async fn final_block(&self, digest: &Hash32) -> Result<BlockId, ChainError> {
        let look = async {
            loop {
                let newest = self.finalized().await?;
                let slot = self.slot(Some(H256(newest.hash.0))).await?;
                if let Some(slot) = slot.filter(|slot| slot.digest().as_ref() == Ok(digest)) {
                    let hash = Hash32(self.hash_of(slot.block).await?.0);
                    return Ok(BlockId { number: slot.block, hash });
                }
                time::sleep(LOOK_EVERY).await;
            }
        };
        match time::timeout(FINAL_AFTER_MAX, look).await {
            Ok(block) => block,
            Err(_) => Err(node_error("the block did not become final; run it again later")),
        }
    }

    async fn state_proof(&self, block: H256) -> Result<StateProof, ChainError> {
        let header = self.rpc.chain_get_header(Some(block)).await.map_err(node_error)?;
        let header = header.ok_or_else(|| node_error("it has no header of the block"))?.encode();
        if blake2b_256(&header).0 != block.0 {
            let reason = format!("its header of {block:?} has another hash");
            return Err(ChainError::NoProof { reason });
        }
        let proof = self.rpc.state_get_read_proof([&self.key[..]], Some(block)).await;
        let proof = proof.map_err(|error| ChainError::NoProof { reason: error.to_string() })?;
        let nodes = proof.proof.into_iter().map(|node| Hex(node.0)).collect();
        Ok(StateProof { header: Hex(header), nodes })
    }
}

/// A hotkey as subxt wants it.
struct HotkeySigner<'a>(&'a Hotkey);

impl Signer<SubstrateConfig> for HotkeySigner<'_> {
    fn account_id(&self) -> AccountId32 {
        AccountId32(self.0.public().0)
    }

    fn sign(&self, payload: &[u8]) -> MultiSignature {
        MultiSignature::Sr25519(self.0.secret().sign(payload))
    }
}

fn node_error(reason: impl ToString) -> ChainError {
    ChainError::Node { reason: reason.to_string() }
}

/// An error with its causes, where subxt puts the runtime's own words.
fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// The chain's answer by its name in the pallet, or as it is.
fn refusal(reason: String, netuid: u16) -> ChainError {
    let says = |name: &str| reason.contains(name);
    if says("CommitmentSetRateLimitExceeded") || says("RateLimit") {
        ChainError::RateLimit { reason }
    } else if says("SpaceLimitExceeded") {
        ChainError::SpaceLimit { reason }
    } else if says("AccountNotAllowedCommit") {
        ChainError::NotRegistered { netuid, reason }
    } else {
        ChainError::Refused { reason }
    }
}
