//! A Bittensor chain as a place to anchor in, through one of its nodes.
//!
//! The call's indices and the transaction's extensions come from the metadata of the running runtime,
//! so that upgrades need no new build. What stands in the slot is read as raw storage and decoded by
//! the verifier's own code. `subxt` and `tokio` have their home here: outside calls block.

use std::{sync::Arc, time::Duration};

use gradledger_anchor::{
    commitment::{Commitment, Field, RESET_BONDS, storage_key},
    extrinsic::call_arguments,
    hash::{Hash32, Hex},
    header::BlockId,
    receipt::{Finality, NodeWord, Proof, StateProof, SubtensorProof},
};
use subxt::{
    OnlineClient,
    config::{DefaultExtrinsicParamsBuilder, SubstrateConfig},
    metadata::Metadata,
    tx::{Signer, TransactionStatus},
    utils::{AccountId32, H256, MultiSignature},
};
use tokio::time;

use super::{
    Chain, ChainError, SignedCall, View, Witness,
    node::{Node, node_error},
};
use crate::{
    import::wallet::Hotkey,
    types::{digest::Digest, progress::Progress, record::AnchorPlace},
};

/// Blocks that a transaction is valid for, some 13 minutes: a power of two.
const LIFE_BLOCKS: u32 = 64;

/// How long between two looks at the chain while it takes or finalizes a block.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// How long a block with the transaction is waited for: longer than it is valid. A node may fall silent.
const TAKEN_AFTER_MAX: Duration = Duration::from_secs(900);

/// How long finality is waited for; subtensor takes seconds.
const FINAL_AFTER_MAX: Duration = Duration::from_secs(600);

/// A node, and the hotkey that signs.
pub struct Subtensor {
    node: Node,
    client: OnlineClient<SubstrateConfig>,
    key: Vec<u8>,
    place: AnchorPlace,
    hotkey: Arc<Hotkey>,
    unproven: bool,
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
        hotkey: Arc<Hotkey>,
        unproven: bool,
        progress: &dyn Progress,
    ) -> Result<Self, ChainError> {
        let node = Node::connect(endpoint, progress)?;
        let client = OnlineClient::<SubstrateConfig>::from_rpc_client(node.client());
        let client = node.wait(client).map_err(node_error)?;
        let chain_genesis = Digest(client.genesis_hash().0);
        let place = AnchorPlace { netuid, chain_genesis, hotkey: hotkey.public() };
        let key = storage_key(netuid, &Hash32(hotkey.public().0));
        Ok(Self { node, client, key, place, hotkey, unproven })
    }

    /// The proof of the slot in the state after the block that set it, and after the one before.
    fn state_proofs(&self, block: BlockId) -> Result<(StateProof, Option<StateProof>), ChainError> {
        let Self { node, key, .. } = self;
        node.wait(async {
            let state = node.state_proof(key, H256(block.hash.0)).await?;
            let before = match block.number.checked_sub(1) {
                Some(number) => Some(node.state_proof(key, node.hash_of(number).await?).await?),
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
        let place = self.place;
        self.node.look(&place)
    }

    fn sign(&mut self, fields: &[Field]) -> Result<SignedCall, ChainError> {
        if fields.iter().any(|field| field.as_bytes() == [RESET_BONDS]) {
            return Err(ChainError::ResetBonds);
        }
        self.node.wait(self.signed(fields))
    }

    fn send(
        &mut self,
        extrinsic: &[u8],
        dies: u32,
        progress: &dyn Progress,
    ) -> Result<(), ChainError> {
        progress.note("sent; waiting for a block");
        let sent = async { time::timeout(TAKEN_AFTER_MAX, self.sent(extrinsic, dies)).await };
        self.node.wait(sent).unwrap_or_else(|_| {
            Err(node_error("it told of no block with the transaction in 15 minutes; run it again"))
        })
    }

    fn prove(
        &mut self,
        digest: &Hash32,
        extrinsic: Option<&[u8]>,
        progress: &dyn Progress,
    ) -> Result<Proof, ChainError> {
        progress.note("in a block; waiting until it is final");
        let block = self.node.wait(self.set_in(digest))?;
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

    fn witness(&mut self) -> Option<&mut dyn Witness> {
        Some(&mut self.node)
    }
}

impl Subtensor {
    async fn signed(&self, fields: &[Field]) -> Result<SignedCall, ChainError> {
        let block = self.client.at_current_block().await.map_err(node_error)?;
        let SetCommitment { index, fields_max } = SetCommitment::of(&block.metadata())
            .ok_or_else(|| node_error("its runtime has no call Commitments.set_commitment"))?;
        if let Some(max) = fields_max.filter(|max| fields.len() > *max as usize) {
            return Err(ChainError::Fields { fields: fields.len(), max });
        }
        let call = [&index[..], &call_arguments(self.place.netuid, fields)].concat();
        // Read back with the runtime's own types, so that a changed call is refused here.
        let payload = block.tx().from_call_data_bytes(&call).map_err(node_error)?;
        let params = DefaultExtrinsicParamsBuilder::new().mortal(LIFE_BLOCKS.into()).build();
        let signer = HotkeySigner(&self.hotkey);
        let signed =
            block.tx().create_signed(&payload, &signer, params).await.map_err(node_error)?;
        let number: u32 = block.block_number().try_into().map_err(node_error)?;
        Ok(SignedCall { call, extrinsic: signed.into_encoded(), dies: number + LIFE_BLOCKS })
    }

    /// Sends, and waits until a block has it. What the chain answers is named in [`refusal`].
    async fn sent(&self, extrinsic: &[u8], dies: u32) -> Result<(), ChainError> {
        let netuid = self.place.netuid;
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
            let slot = self.node.slot(&self.key, None).await?;
            let set = |slot: &Commitment| extrinsic.ends_with(&slot.encoded_fields());
            if slot.as_ref().is_some_and(set) {
                return Ok(());
            }
            if self.node.finalized().await?.number > dies {
                return Err(ChainError::Expired { dies });
            }
            time::sleep(LOOK_EVERY).await;
        }
    }

    /// The block that set `digest`, once it is final.
    async fn set_in(&self, digest: &Hash32) -> Result<BlockId, ChainError> {
        let look = async {
            loop {
                let newest = self.node.finalized().await?;
                let slot = self.node.slot(&self.key, Some(H256(newest.hash.0))).await?;
                if let Some(slot) = slot.filter(|slot| slot.digest().as_ref() == Ok(digest)) {
                    let hash = Hash32(self.node.hash_of(slot.block).await?.0);
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
}

/// The call as the running runtime has it.
#[derive(Debug, PartialEq, Eq)]
struct SetCommitment {
    /// What it starts with: pallet and call.
    index: [u8; 2],
    /// Most fields of a commitment, where the runtime tells.
    fields_max: Option<u32>,
}

impl SetCommitment {
    fn of(metadata: &Metadata) -> Option<Self> {
        let pallet = metadata.pallet_by_name("Commitments")?;
        let call = pallet.call_variant_by_name("set_commitment")?;
        let fields_max = pallet.constant_by_name("MaxFields");
        let fields_max = fields_max.and_then(|max| max.value().try_into().ok());
        Some(Self {
            index: [pallet.call_index(), call.index],
            fields_max: fields_max.map(u32::from_le_bytes),
        })
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{super::golden_file, *};

    /// The metadata of a real runtime.
    fn golden() -> Metadata {
        Metadata::decode_from(&golden_file("metadata-218.scale")[..]).unwrap()
    }

    #[test]
    fn the_golden_runtime_tells_of_its_call_and_takes_one_field() {
        let expected = SetCommitment { index: [0x12, 0], fields_max: Some(1) };
        assert_eq!(SetCommitment::of(&golden()), Some(expected));
    }

    #[test]
    fn what_the_golden_runtime_refuses_has_its_name() {
        let metadata = golden();
        let errors = metadata.pallet_by_name("Commitments").unwrap().error_variants().unwrap();
        let mut named = Vec::new();
        for error in errors {
            let text = format!("Pallet error: Commitments::{}", error.name);
            match refusal(text, 3) {
                ChainError::RateLimit { .. } => named.push("rate limit"),
                ChainError::NotRegistered { netuid: 3, .. } => named.push("not registered"),
                ChainError::Refused { reason } => assert!(reason.contains(&error.name)),
                other => panic!("{other}"),
            }
        }
        named.sort_unstable();
        assert_eq!(named, ["not registered", "rate limit"]);
        // Later runtimes have a limit of space in place of one of rate.
        let text = "Pallet error: Commitments::SpaceLimitExceeded".to_owned();
        assert!(matches!(refusal(text, 3), ChainError::SpaceLimit { .. }));
    }
}
