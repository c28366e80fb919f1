//! A chain for tests: real headers, state tries and GRANDPA votes, in memory.
//!
//! It keeps what a chain keeps (blocks, one slot a hotkey, nonces) across the lives of the processes
//! that talk to it, and can lose a connection before or after a transaction.

use std::sync::{Arc, Mutex};

use ed25519_dalek::{Signer as _, SigningKey};
use gradledger::{
    anchor::{Chain, ChainError, SignedCall, View, Witness},
    types::{digest::Digest, progress::Progress, record::AnchorPlace},
};
use gradledger_anchor::{
    commitment::{Commitment, Field, storage_key},
    extrinsic::call_arguments,
    grandpa::{Authority, AuthoritySet},
    hash::{Hash32, Hex, blake2b_256},
    header::{BlockId, Header},
    receipt::{Finality, Justified, Proof, StateProof, SubtensorProof},
};
use parity_scale_codec::{Compact, Decode as _, Encode as _};

pub const NETUID: u16 = 3;
pub const HOTKEY: Digest = Digest([0x6c; 32]);
const AUTHORITIES: u8 = 4;
const SET_ID: u64 = 3;

/// Blocks that a transaction is valid for.
pub const LIFE: u32 = 8;

/// What goes wrong with the next transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The connection is lost before the node has it.
    Before,
    /// The connection is lost after a block took it.
    After,
    /// A block refuses it.
    RateLimit,
}

#[derive(Clone)]
struct Block {
    header: Vec<u8>,
    nodes: Vec<Hex>,
    commitment: Option<Commitment>,
}

#[derive(Default)]
struct State {
    blocks: Vec<Block>,
    nonce: u32,
    commitments: Vec<Hash32>,
    cut: Option<Cut>,
    sent: Vec<Vec<u8>>,
    stale: bool,
    other_blocks: bool,
    signed: Option<usize>,
}

/// A node of the chain; clones talk to the same chain.
#[derive(Clone, Default)]
pub struct TestChain(Arc<Mutex<State>>);

/// The state trie with the hotkey's slot alone in it, and its root.
fn trie(commitment: Option<&Commitment>) -> (Hash32, Vec<Hex>) {
    let Some(commitment) = commitment else {
        return (blake2b_256(&[0]), vec![Hex(vec![0])]);
    };
    let mut value = commitment.deposit.encode();
    value.extend(commitment.block.encode());
    value.extend(commitment.encoded_fields());
    let key = storage_key(NETUID, &Hash32(HOTKEY.0));
    // A leaf of state version 1, whose value is a node of its own: 2 nibbles a byte of key.
    let mut leaf = vec![0x20 | 31, (2 * key.len() - 31) as u8];
    leaf.extend(key);
    leaf.extend(blake2b_256(&value).0);
    (blake2b_256(&leaf), vec![Hex(leaf), Hex(value)])
}

impl State {
    fn header(&self) -> Header {
        Header::decode(&self.blocks.last().unwrap().header).unwrap()
    }

    fn number(&self) -> u32 {
        self.header().id.number
    }

    fn push(&mut self, commitment: Option<Commitment>) {
        let parent = self.blocks.last().map(|block| Header::decode(&block.header).unwrap().id);
        let (root, nodes) = trie(commitment.as_ref());
        let mut header = parent.map_or([0; 32], |id| id.hash.0).to_vec();
        Compact(parent.map_or(0, |id| id.number + 1)).encode_to(&mut header);
        header.extend(root.0);
        header.extend([0; 32]);
        header.push(0);
        self.blocks.push(Block { header, nodes, commitment });
    }

    fn state(&self, number: usize) -> StateProof {
        let Block { header, nodes, .. } = &self.blocks[number];
        StateProof { header: Hex(header.clone()), nodes: nodes.clone() }
    }
}

impl TestChain {
    /// A chain with its genesis block and some more.
    pub fn new() -> Self {
        let mut state = State::default();
        (0..5).for_each(|_| state.push(None));
        Self(Arc::new(Mutex::new(state)))
    }

    /// Another chain: its genesis state is not empty.
    pub fn of_another_genesis() -> Self {
        let chain = Self::default();
        chain.lock().push(Some(Commitment { deposit: 1, block: 0, fields: Vec::new() }));
        chain
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn anchor_place(&self) -> AnchorPlace {
        let genesis = blake2b_256(&self.lock().blocks[0].header);
        AnchorPlace { netuid: NETUID, chain_genesis: Digest(genesis.0), hotkey: HOTKEY }
    }

    /// Lets time pass.
    pub fn blocks(&self, count: u32) {
        let mut state = self.lock();
        for _ in 0..count {
            let commitment = state.blocks.last().unwrap().commitment.clone();
            state.push(commitment);
        }
    }

    pub fn number(&self) -> u32 {
        self.lock().number()
    }

    /// Somebody with the hotkey commits to something, past the ledger.
    pub fn set(&self, fields: Vec<Field>) {
        let mut state = self.lock();
        let block = state.number() + 1;
        state.push(Some(Commitment { deposit: 0, block, fields }));
    }

    /// The next transaction goes wrong.
    pub fn cut(&self, cut: Cut) {
        self.lock().cut = Some(cut);
    }

    /// The node proves an old state from now on.
    pub fn serve_stale(&self) {
        self.lock().stale = true;
    }

    /// Every commitment that the ledger's transactions made.
    pub fn commitments(&self) -> Vec<Hash32> {
        self.lock().commitments.clone()
    }

    /// Every transaction that came, as often as it came.
    pub fn sent(&self) -> Vec<Vec<u8>> {
        self.lock().sent.clone()
    }

    pub fn standing(&self) -> Option<Commitment> {
        self.lock().blocks.last().unwrap().commitment.clone()
    }

    pub fn authorities(&self) -> AuthoritySet {
        let key = |n| SigningKey::from_bytes(&[n; 32]).verifying_key().to_bytes();
        let authority = |n| Authority { key: Hash32(key(n)), weight: 1 };
        AuthoritySet { set_id: SET_ID, authorities: (0..AUTHORITIES).map(authority).collect() }
    }

    /// What three of four authorities sign for the newest block, and the headers up to it.
    pub fn justify(&self, proof: &mut SubtensorProof) {
        let state = self.lock();
        let shown = Header::decode(&proof.state.header.0).unwrap().id.number as usize;
        let justified = state.justified(shown, state.number() as usize);
        proof.finality = Finality::Justified(justified);
    }

    /// From now on the node shows another block in the place of each.
    pub fn reorganise(&self) {
        self.lock().other_blocks = true;
    }

    /// Three of four authorities sign for the newest block.
    pub fn sign_newest(&self) {
        let mut state = self.lock();
        let newest = state.number() as usize;
        state.signed = Some(newest);
    }
}

impl State {
    /// The headers after block `from` up to `to`, and what three of four authorities sign for that.
    fn justified(&self, from: usize, to: usize) -> Justified {
        let headers = self.blocks[from + 1..=to].iter().map(|b| Hex(b.header.clone())).collect();
        let target = Header::decode(&self.blocks[to].header).unwrap().id;
        let block = [&target.hash.0[..], &target.number.to_le_bytes()].concat();
        let round = 9u64.to_le_bytes();
        let message = [&[1], &block[..], &round, &SET_ID.to_le_bytes()].concat();
        let mut bytes = [&round[..], &block].concat();
        bytes.push(3 << 2);
        for n in 0..3 {
            let key = SigningKey::from_bytes(&[n; 32]);
            bytes.extend(&block);
            bytes.extend(key.sign(&message).to_bytes());
            bytes.extend(key.verifying_key().to_bytes());
        }
        bytes.push(0);
        Justified { headers, justification: Hex(bytes) }
    }
}

impl Witness for TestChain {
    fn genesis(&mut self) -> Result<Hash32, ChainError> {
        Ok(Hash32(self.anchor_place().chain_genesis.0))
    }

    fn final_block(&mut self, number: u32) -> Result<Option<Hash32>, ChainError> {
        let state = self.lock();
        let hash = state.blocks.get(number as usize).map(|block| blake2b_256(&block.header));
        Ok(if state.other_blocks { hash.map(|_| Hash32([7; 32])) } else { hash })
    }

    fn look(&mut self, _: &AnchorPlace) -> Result<View, ChainError> {
        Chain::look(self)
    }

    fn justify(
        &mut self,
        block: BlockId,
        _: &dyn Progress,
    ) -> Result<Option<Justified>, ChainError> {
        let (state, from) = (self.lock(), block.number as usize);
        let signed = state.signed.filter(|signed| *signed >= from);
        Ok(signed.map(|signed| state.justified(from, signed)))
    }
}

impl Chain for TestChain {
    fn place(&self) -> Option<AnchorPlace> {
        Some(self.anchor_place())
    }

    fn witness(&mut self) -> Option<&mut dyn Witness> {
        Some(self)
    }

    fn look(&mut self) -> Result<View, ChainError> {
        let state = self.lock();
        let commitment = state.blocks.last().unwrap().commitment.clone();
        Ok(View { newest: state.number(), commitment })
    }

    fn sign(&mut self, fields: &[Field]) -> Result<SignedCall, ChainError> {
        if fields.len() > 3 {
            return Err(ChainError::Fields { fields: fields.len(), max: 3 });
        }
        let state = self.lock();
        let dies = state.number() + LIFE;
        let call = [&[0x12, 0], &call_arguments(NETUID, fields)[..]].concat();
        let mut body = [&[0x84, 0], &HOTKEY.0[..], &[1], &[0xee; 64]].concat();
        // What extensions add here: the last block that takes it, and the nonce.
        body.extend(dies.to_le_bytes());
        body.extend(state.nonce.to_le_bytes());
        body.extend(&call);
        let mut extrinsic = Compact(body.len() as u32).encode();
        extrinsic.extend(body);
        Ok(SignedCall { call, extrinsic, dies })
    }

    fn send(&mut self, extrinsic: &[u8], _: u32, _: &dyn Progress) -> Result<(), ChainError> {
        let mut state = self.lock();
        let lost = || ChainError::Node { reason: "the connection is lost".to_owned() };
        let cut = state.cut.take();
        if cut == Some(Cut::Before) {
            return Err(lost());
        }
        state.sent.push(extrinsic.to_vec());
        let mut body = extrinsic;
        Compact::<u32>::decode(&mut body).unwrap();
        let word = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap());
        let (dies, nonce) = (word(99), word(103));
        if nonce != state.nonce {
            return Err(ChainError::Refused { reason: "the nonce is stale".to_owned() });
        }
        if state.number() >= dies {
            return Err(ChainError::Expired { dies });
        }
        state.nonce += 1;
        if cut == Some(Cut::RateLimit) {
            return Err(ChainError::RateLimit { reason: "a test".to_owned() });
        }
        // The fields as the call has them: read back through a stored value.
        let block = state.number() + 1;
        let value = [&[0; 8], &block.to_le_bytes()[..], &body[107 + 4..]].concat();
        let commitment = Commitment::decode(&value).unwrap();
        let digest = commitment.digest().unwrap();
        state.commitments.push(digest);
        state.push(Some(commitment));
        if cut == Some(Cut::After) { Err(lost()) } else { Ok(()) }
    }

    fn prove(
        &mut self,
        _: &Hash32,
        extrinsic: Option<&[u8]>,
        _: &dyn Progress,
    ) -> Result<Proof, ChainError> {
        let place = self.anchor_place();
        let state = self.lock();
        let newest = if state.stale { state.number() - 1 } else { state.number() } as usize;
        let set_in = state.blocks[newest].commitment.as_ref().map(|c| c.block as usize);
        let at = set_in.unwrap_or(newest);
        Ok(Proof::Subtensor(Box::new(SubtensorProof {
            genesis: Hash32(place.chain_genesis.0),
            netuid: place.netuid,
            hotkey: Hash32(place.hotkey.0),
            extrinsic: extrinsic.map(|bytes| Hex(bytes.to_vec())),
            state: state.state(at),
            before: Some(state.state(at - 1)),
            finality: Finality::Finalized,
        })))
    }
}
