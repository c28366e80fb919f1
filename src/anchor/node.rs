//! A node of a Bittensor chain, as anyone may ask it: blocks, what stands in a slot, proofs of both.
//!
//! What stands in the slot is read as raw storage and decoded by the verifier's own code, and a header
//! counts only under its own hash. `subxt` and its runtime block here: the callers' code is not async.

use std::{future::Future, time::Duration};

use gradledger_anchor::{
    commitment::{Commitment, storage_key},
    hash::{Hash32, Hex, blake2b_256},
    header::BlockId,
    receipt::{HEADERS_MAX, Justified, StateProof},
};
use subxt::{
    config::{RpcConfigFor, SubstrateConfig},
    ext::codec::Encode as _,
    rpcs::{LegacyRpcMethods, RpcClient},
    utils::H256,
};
use tokio::{runtime::Runtime, time};

use super::{ChainError, View, Witness};
use crate::types::{progress::Progress, record::AnchorPlace};

/// How often a connection is tried, each time after twice the wait.
const CONNECTS_MAX: u32 = 4;

/// What GRANDPA's justifications are marked with in a block.
const GRANDPA_ENGINE: [u8; 4] = *b"FRNK";

/// Blocks between two lines of progress.
const BLOCKS_A_LINE: u32 = 64;

/// A connection, and the runtime that drives it.
pub struct Node {
    runtime: Runtime,
    client: RpcClient,
    pub(super) rpc: LegacyRpcMethods<RpcConfigFor<SubstrateConfig>>,
}

impl Node {
    /// Connects to the node at `endpoint`: `wss://`, or `ws://` on this machine.
    ///
    /// # Errors
    ///
    /// [`ChainError::Node`] after some tries with growing waits.
    pub fn connect(endpoint: &str, progress: &dyn Progress) -> Result<Self, ChainError> {
        let runtime = runtime()?;
        let client = runtime.block_on(connect(endpoint, progress))?;
        Ok(Self { rpc: LegacyRpcMethods::new(client.clone()), runtime, client })
    }

    /// The raw connection.
    pub(super) fn client(&self) -> RpcClient {
        self.client.clone()
    }

    /// Waits for what is asked of the node.
    pub(super) fn wait<T>(&self, answer: impl Future<Output = T>) -> T {
        self.runtime.block_on(answer)
    }

    /// What stands in the slot `key` after a block; after the newest if none is given.
    pub(super) async fn slot(
        &self,
        key: &[u8],
        at: Option<H256>,
    ) -> Result<Option<Commitment>, ChainError> {
        let value = self.rpc.state_get_storage(key, at).await.map_err(node_error)?;
        Ok(value.as_deref().map(Commitment::decode).transpose()?)
    }

    /// The newest final block.
    pub(super) async fn finalized(&self) -> Result<BlockId, ChainError> {
        let hash = self.rpc.chain_get_finalized_head().await.map_err(node_error)?;
        let header = self.rpc.chain_get_header(Some(hash)).await.map_err(node_error)?;
        let header = header.ok_or_else(|| node_error("the final block has no header"))?;
        let number = header.number.try_into().map_err(node_error)?;
        Ok(BlockId { number, hash: Hash32(hash.0) })
    }

    pub(super) async fn hash_of(&self, number: u32) -> Result<H256, ChainError> {
        let hash = self.rpc.chain_get_block_hash(Some(number.into())).await.map_err(node_error)?;
        hash.ok_or_else(|| node_error(format_args!("it has no block {number}")))
    }

    /// The slot `key` in the state after `block`, proven.
    pub(super) async fn state_proof(
        &self,
        key: &[u8],
        block: H256,
    ) -> Result<StateProof, ChainError> {
        let header = self.rpc.chain_get_header(Some(block)).await.map_err(node_error)?;
        let header = header.ok_or_else(|| node_error("it has no header of the block"))?.encode();
        check_hash(&header, block)?;
        let proof = self.rpc.state_get_read_proof([key], Some(block)).await;
        let proof = proof.map_err(|error| ChainError::NoProof { reason: error.to_string() })?;
        let nodes = proof.proof.into_iter().map(|node| Hex(node.0)).collect();
        Ok(StateProof { header: Hex(header), nodes })
    }

    /// The header of block `number`, and the justification that the node keeps beside it.
    async fn block(&self, number: u32) -> Result<(Hex, Option<Hex>), ChainError> {
        let hash = self.hash_of(number).await?;
        let details = self.rpc.chain_get_block(Some(hash)).await.map_err(node_error)?;
        let details = details
            .ok_or_else(|| node_error(format_args!("it lost block {number} of {hash:?}")))?;
        let header = details.block.header.encode();
        check_hash(&header, hash)?;
        let of_grandpa = |(engine, bytes)| (engine == GRANDPA_ENGINE).then_some(Hex(bytes));
        let justification = details.justifications.unwrap_or_default().into_iter();
        Ok((Hex(header), justification.filter_map(of_grandpa).next()))
    }

    async fn justified(
        &self,
        block: BlockId,
        progress: &dyn Progress,
    ) -> Result<Option<Justified>, ChainError> {
        let newest = self.finalized().await?.number;
        let mut headers = Vec::new();
        for number in block.number..=newest {
            let (header, justification) = self.block(number).await?;
            if number > block.number {
                headers.push(header);
            }
            if let Some(justification) = justification {
                return Ok(Some(Justified { headers, justification }));
            }
            if headers.len() == HEADERS_MAX {
                break;
            }
            if number % BLOCKS_A_LINE == 0 {
                progress.note(&format!("no justification up to block {number} of {newest}"));
            }
        }
        Ok(None)
    }
}

impl Witness for Node {
    fn genesis(&mut self) -> Result<Hash32, ChainError> {
        Ok(Hash32(self.wait(self.hash_of(0))?.0))
    }

    fn final_block(&mut self, number: u32) -> Result<Option<Hash32>, ChainError> {
        self.wait(async {
            if self.finalized().await?.number < number {
                return Ok(None);
            }
            Ok(Some(Hash32(self.hash_of(number).await?.0)))
        })
    }

    fn look(&mut self, place: &AnchorPlace) -> Result<View, ChainError> {
        let key = storage_key(place.netuid, &Hash32(place.hotkey.0));
        self.wait(async {
            let newest = self.finalized().await?.number;
            Ok(View { newest, commitment: self.slot(&key, None).await? })
        })
    }

    fn justify(
        &mut self,
        block: BlockId,
        progress: &dyn Progress,
    ) -> Result<Option<Justified>, ChainError> {
        self.wait(self.justified(block, progress))
    }
}

fn runtime() -> Result<Runtime, ChainError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(node_error)
}

async fn connect(endpoint: &str, progress: &dyn Progress) -> Result<RpcClient, ChainError> {
    let mut wait = Duration::from_secs(1);
    for _ in 1..CONNECTS_MAX {
        match RpcClient::from_url(endpoint).await {
            Ok(client) => return Ok(client),
            Err(error) => progress.note(&format!("{error}; again in {} s", wait.as_secs())),
        }
        time::sleep(wait).await;
        wait *= 2;
    }
    RpcClient::from_url(endpoint).await.map_err(node_error)
}

fn check_hash(header: &[u8], expected: H256) -> Result<(), ChainError> {
    if blake2b_256(header).0 == expected.0 {
        return Ok(());
    }
    Err(ChainError::NoProof { reason: format!("its header of {expected:?} has another hash") })
}

pub(super) fn node_error(reason: impl ToString) -> ChainError {
    ChainError::Node { reason: reason.to_string() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gradledger_anchor::{
        grandpa::{Authority, AuthoritySet},
        receipt::{Expected, Finality, Head, Proof, Receipt, Standing, SubtensorProof},
    };
    use serde_json::{Value, json, value::RawValue};
    use subxt::{
        config::substrate::SubstrateHeader,
        ext::codec::Decode as _,
        rpcs::client::{RawRpcFuture, RawRpcSubscription, RpcClientT},
    };

    use super::{super::golden_file, *};
    use crate::types::{digest::Digest, progress::Silent};

    fn golden() -> Value {
        serde_json::from_slice(&golden_file("proof.json")).unwrap()
    }

    fn hex(value: &Value) -> Hex {
        value.as_str().unwrap()[2..].parse().unwrap()
    }

    fn hash(value: &Value) -> Hash32 {
        Hash32(hex(value).0.try_into().unwrap())
    }

    /// Answers as a node would that had run the golden chain: each answer is golden data.
    struct Replay(Value);

    impl Replay {
        fn header(&self, hash: &Value) -> Value {
            let headers = self.0["headers"].as_array().unwrap();
            let found = headers.iter().find(|header| header["hash"] == *hash).unwrap();
            let scale = hex(&found["scale"]).0;
            serde_json::to_value(SubstrateHeader::<H256>::decode(&mut &scale[..]).unwrap()).unwrap()
        }

        fn answer(&self, method: &str, params: &Value) -> Value {
            let headers = self.0["headers"].as_array().unwrap();
            let grandpa = &self.0["grandpa"];
            match method {
                "chain_getFinalizedHead" => headers.last().unwrap()["hash"].clone(),
                "chain_getBlockHash" => {
                    let number = &params[0];
                    headers.iter().find(|h| h["number"] == *number).unwrap()["hash"].clone()
                }
                "chain_getHeader" => self.header(&params[0]),
                "chain_getBlock" => {
                    let header = self.header(&params[0]);
                    let target = format!("{:#x}", grandpa["target"].as_u64().unwrap());
                    let bytes = hex(&grandpa["justification"]).0;
                    let justified = header["number"] == target;
                    let justifications = justified.then(|| json!([[b"FRNK", bytes]]));
                    json!({
                        "block": {"header": header, "extrinsics": []},
                        "justifications": justifications,
                    })
                }
                "state_getStorage" => self.case()["items"][0]["value"].clone(),
                "state_getReadProof" => json!({"at": params[1], "proof": self.case()["proof"]}),
                _ => panic!("{method} is not asked"),
            }
        }

        fn case(&self) -> &Value {
            &self.0["cases"][0]
        }
    }

    impl RpcClientT for Replay {
        fn request_raw<'a>(
            &'a self,
            method: &'a str,
            params: Option<Box<RawValue>>,
        ) -> RawRpcFuture<'a, Box<RawValue>> {
            let params = params.map_or(Value::Null, |p| serde_json::from_str(p.get()).unwrap());
            let answer = serde_json::value::to_raw_value(&self.answer(method, &params)).unwrap();
            Box::pin(async { Ok(answer) })
        }

        fn subscribe_raw<'a>(
            &'a self,
            _: &'a str,
            _: Option<Box<RawValue>>,
            _: &'a str,
        ) -> RawRpcFuture<'a, RawRpcSubscription> {
            panic!("nothing is subscribed to")
        }
    }

    fn node() -> Node {
        let client = RpcClient::new(Replay(golden()));
        let rpc = LegacyRpcMethods::new(client.clone());
        Node { runtime: runtime().unwrap(), client, rpc }
    }

    /// A receipt made of what the node answers: proven by state, then justified by the block that
    /// comes four later.
    #[test]
    fn a_golden_node_gives_a_receipt_and_its_justification() {
        let (golden, mut node) = (golden(), node());
        let netuid = golden["netuid"].as_u64().unwrap() as u16;
        let place = AnchorPlace {
            netuid,
            chain_genesis: Digest(hash(&golden["genesis_hash"]).0),
            hotkey: Digest(hash(&golden["hotkey"]).0),
        };
        assert_eq!(node.genesis().unwrap(), hash(&golden["headers"][0]["hash"]));
        let set_in = golden["anchored_at"].as_u64().unwrap() as u32;
        let view = node.look(&place).unwrap();
        assert_eq!(view.commitment.as_ref().unwrap().block, set_in);
        assert_eq!(view.digest().unwrap(), hash(&golden["round_root"]));

        let hash_of = node.final_block(set_in).unwrap().unwrap();
        assert_eq!(node.final_block(view.newest + 1).unwrap(), None);
        let key = storage_key(netuid, &Hash32(place.hotkey.0));
        let state = node.wait(node.state_proof(&key, H256(hash_of.0))).unwrap();
        let block = BlockId { number: set_in, hash: hash_of };
        let justified = node.justify(block, &Silent).unwrap().unwrap();
        let target = golden["grandpa"]["target"].as_u64().unwrap() as u32;
        assert_eq!(justified.headers.len() as u32, target - set_in);

        let authority =
            |pair: &Value| Authority { key: hash(&pair[0]), weight: pair[1].as_u64().unwrap() };
        let authorities = golden["grandpa"]["authorities"].as_array().unwrap();
        let set = AuthoritySet {
            set_id: golden["grandpa"]["set_id"].as_u64().unwrap(),
            authorities: authorities.iter().map(authority).collect(),
        };
        let (genesis, hotkey) = (hash(&golden["genesis_hash"]), Hash32(place.hotkey.0));
        let proof = SubtensorProof {
            genesis,
            netuid,
            hotkey,
            extrinsic: None,
            state,
            before: None,
            finality: Finality::Justified(justified),
        };
        // The golden commitment is to bytes that no head has, so the digest alone does not hold.
        let expected = Expected { genesis, netuid, hotkey };
        let anchored = proof.verify(&hash(&golden["round_root"]), &expected, Some(&set)).unwrap();
        assert!(matches!(anchored.standing, Standing::Justified(block) if block.number == target));
        let head = Head { origin: "o".to_owned(), size: 1, root: Hash32([0; 32]) };
        let receipt = Receipt { version: 1, head, proof: Proof::Subtensor(Box::new(proof)) };
        assert!(receipt.verify(&expected, Some(&set)).is_err());
    }
}
