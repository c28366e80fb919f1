//! Are a real runtime's state proofs, headers and justification taken, and every change refused?
//!
//! The folder is `GRADLEDGER_GOLDEN`, or the copies in `tests/golden`. Every set found there is taken.

#![allow(clippy::unwrap_used)] // Clippy's own exception for tests leaves out their helpers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use gradledger_anchor::{
    commitment::{Commitment, CommitmentError, Field, storage_key},
    extrinsic::{self, ExtrinsicError, call_arguments},
    grandpa::{self, Authority, AuthoritySet, GrandpaError},
    hash::{Hash32, Hex, blake2b_256},
    header::{BlockId, Header},
    receipt::{
        Anchored, Expected, Finality, Justified, ReceiptError, Standing, StateProof, SubtensorProof,
    },
    trie::{Proof, TrieError},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    anchored_at: u32,
    call: String,
    extrinsic: String,
    genesis_hash: String,
    hotkey: String,
    netuid: u16,
    round_root: String,
    headers: Vec<GoldenHeader>,
    cases: Vec<Case>,
    grandpa: Grandpa,
}

#[derive(Deserialize)]
struct GoldenHeader {
    hash: String,
    number: u32,
    scale: String,
}

#[derive(Deserialize)]
struct Case {
    label: String,
    block: u32,
    block_hash: String,
    header_scale: String,
    state_root: String,
    items: Vec<Item>,
    proof: Vec<String>,
}

#[derive(Deserialize)]
struct Item {
    key: String,
    value: Option<String>,
}

#[derive(Deserialize)]
struct Grandpa {
    authorities: Vec<(String, u64)>,
    justification: String,
    set_id: u64,
    target: u32,
}

/// Every `proof.json` at or below the golden `chain`.
fn sets() -> Vec<Golden> {
    fn find(folder: &Path, sets: &mut Vec<Golden>) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                find(&path, sets);
            } else if path.file_name().unwrap() == "proof.json" {
                sets.push(serde_json::from_slice(&fs::read(&path).unwrap()).unwrap());
            }
        }
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let golden = std::env::var_os("GRADLEDGER_GOLDEN").map_or(own, PathBuf::from);
    let mut sets = Vec::new();
    find(&golden.join("chain"), &mut sets);
    assert!(!sets.is_empty(), "no golden chain");
    sets
}

/// Of the golden set in the repository it is known how much there is to change.
fn check_count(changed: usize, known: usize) {
    if std::env::var_os("GRADLEDGER_GOLDEN").is_none() {
        assert_eq!(changed, known);
    }
}

fn hex(text: &str) -> Hex {
    text.strip_prefix("0x").unwrap_or(text).parse().unwrap()
}

fn hash(text: &str) -> Hash32 {
    Hash32(hex(text).0.try_into().unwrap())
}

impl Case {
    fn nodes(&self) -> Vec<Hex> {
        self.proof.iter().map(|node| hex(node)).collect()
    }

    fn state(&self) -> StateProof {
        StateProof { header: hex(&self.header_scale), nodes: self.nodes() }
    }

    fn block(&self) -> BlockId {
        BlockId { number: self.block, hash: hash(&self.block_hash) }
    }

    /// Whether the hotkey's commitment is all that the proof proves.
    fn is_commitment_alone(&self, golden: &Golden) -> bool {
        self.items.len() == 1
            && hex(&self.items[0].key).0 == storage_key(golden.netuid, &hash(&golden.hotkey))
    }
}

impl Golden {
    fn digest(&self) -> Hash32 {
        hash(&self.round_root)
    }

    fn expected(&self) -> Expected {
        Expected {
            genesis: hash(&self.genesis_hash),
            netuid: self.netuid,
            hotkey: hash(&self.hotkey),
        }
    }

    fn authorities(&self) -> AuthoritySet {
        let authority =
            |(key, weight): &(String, u64)| Authority { key: hash(key), weight: *weight };
        let authorities = self.grandpa.authorities.iter().map(authority).collect();
        AuthoritySet { set_id: self.grandpa.set_id, authorities }
    }

    fn justification(&self) -> Vec<u8> {
        hex(&self.grandpa.justification).0
    }

    fn alone(&self) -> &Case {
        self.cases.iter().find(|case| case.is_commitment_alone(self)).unwrap()
    }

    /// A proof of the digest, justified: the headers go from the commitment's block to the target.
    fn proof(&self) -> SubtensorProof {
        let case = self.alone();
        let between = |h: &&GoldenHeader| h.number > case.block && h.number <= self.grandpa.target;
        let headers = self.headers.iter().filter(between).map(|h| hex(&h.scale)).collect();
        let justification = Hex(self.justification());
        SubtensorProof {
            genesis: hash(&self.genesis_hash),
            netuid: self.netuid,
            hotkey: hash(&self.hotkey),
            extrinsic: Some(hex(&self.extrinsic)),
            state: case.state(),
            before: None,
            finality: Finality::Justified(Justified { headers, justification }),
        }
    }

    fn verify(&self, proof: &SubtensorProof) -> Result<Anchored, ReceiptError> {
        proof.verify(&self.digest(), &self.expected(), Some(&self.authorities()))
    }
}

#[test]
fn golden_every_case_reads_as_it_says() {
    let (mut values, mut absent) = (0, 0);
    for golden in sets() {
        for case in &golden.cases {
            let header = Header::decode(&hex(&case.header_scale).0).unwrap();
            assert_eq!(header.id, case.block(), "{}", case.label);
            assert_eq!(header.state_root, hash(&case.state_root));
            let nodes = case.nodes();
            let mut proof = Proof::new(header.state_root, &nodes).unwrap();
            for item in &case.items {
                let value = item.value.as_ref().map(|value| hex(value).0);
                let found = proof.get(&hex(&item.key).0).unwrap();
                assert_eq!(found, value.as_deref(), "{}: {}", case.label, item.key);
                *if value.is_some() { &mut values } else { &mut absent } += 1;
            }
            proof.finish().unwrap();
        }
    }
    println!("{values} values, {absent} absences");
    assert!(values > 0 && absent > 0);
}

#[test]
fn golden_headers_hash_and_name_their_parents() {
    for golden in sets() {
        let mut parent = Hash32([0; 32]);
        for (number, expected) in (0..).zip(&golden.headers) {
            let header = Header::decode(&hex(&expected.scale).0).unwrap();
            assert_eq!(header.id, BlockId { number, hash: hash(&expected.hash) });
            assert_eq!((header.id.number, header.parent), (expected.number, parent));
            parent = header.id.hash;
        }
        assert_eq!(hash(&golden.headers[0].hash), hash(&golden.genesis_hash));
    }
}

#[test]
fn golden_a_commitment_holds_its_digest_and_block() {
    for golden in sets() {
        let key = storage_key(golden.netuid, &hash(&golden.hotkey));
        let mut found = 0;
        for item in golden.cases.iter().flat_map(|case| &case.items) {
            if hex(&item.key).0 != key {
                continue;
            }
            let value = Commitment::decode(&hex(item.value.as_ref().unwrap()).0).unwrap();
            assert_eq!(value.digest(), Ok(golden.digest()));
            assert_eq!(value.block, golden.anchored_at);
            found += 1;
        }
        assert!(found > 0);
    }
}

#[test]
fn golden_the_call_and_the_extrinsic_are_laid_out_as_said() {
    for golden in sets() {
        let fields = [Field::sha256(&golden.digest())];
        let arguments = call_arguments(golden.netuid, &fields);
        assert_eq!(hex(&golden.call).0, [&[0x12, 0x00], &arguments[..]].concat());
        let plain = [&golden.netuid.to_le_bytes()[..], &[0x04, 0x83], &golden.digest().0].concat();
        assert_eq!(arguments, plain);
        let bytes = hex(&golden.extrinsic).0;
        let check =
            |bytes: &[u8], key: &str, netuid| extrinsic::check(bytes, &hash(key), netuid, &fields);
        let Golden { hotkey, netuid, .. } = &golden;
        assert_eq!(check(&bytes, hotkey, *netuid), Ok(()));
        let other = check(&bytes, &golden.round_root, *netuid);
        assert!(matches!(other, Err(ExtrinsicError::Signer { .. })));
        let other = check(&bytes, hotkey, netuid + 1);
        assert!(matches!(other, Err(ExtrinsicError::Call { .. })));
        let other = [Field::sha256(&hash(hotkey))];
        let other = extrinsic::check(&bytes, &hash(hotkey), *netuid, &other);
        assert!(matches!(other, Err(ExtrinsicError::Call { .. })));
        for end in 0..bytes.len() {
            assert!(check(&bytes[..end], hotkey, *netuid).is_err());
        }
        // The length, the version, the address and the kind of signature.
        for at in [0, 1, 2, 3, 35] {
            let mut changed = bytes.clone();
            changed[at] ^= 2;
            assert!(check(&changed, hotkey, *netuid).is_err(), "byte {at}");
        }
    }
}

#[test]
fn golden_a_changed_bit_of_any_node_on_the_path_is_refused() {
    let mut bytes = 0;
    for golden in sets() {
        let proof = golden.proof();
        assert_eq!(golden.verify(&proof).unwrap().set_in, golden.anchored_at);
        for node in 0..proof.state.nodes.len() {
            for at in 0..proof.state.nodes[node].0.len() {
                for bit in 0..8 {
                    let mut changed = proof.clone();
                    changed.state.nodes[node].0[at] ^= 1 << bit;
                    let refused = golden.verify(&changed);
                    let missing = matches!(
                        refused,
                        Err(ReceiptError::Trie(
                            TrieError::Missing { .. } | TrieError::Twice { .. }
                        ))
                    );
                    assert!(missing, "node {node}, byte {at}, bit {bit}: {refused:?}");
                }
                bytes += 1;
            }
            let mut without = proof.clone();
            without.state.nodes.remove(node);
            let refused = golden.verify(&without);
            assert!(matches!(refused, Err(ReceiptError::Trie(TrieError::Missing { .. }))));
        }
    }
    check_count(bytes, 778);
}

#[test]
fn golden_a_changed_bit_of_the_justification_is_refused() {
    let mut bytes = 0;
    for golden in sets() {
        let (justification, set) = (golden.justification(), golden.authorities());
        let target = grandpa::verify(&justification, &set).unwrap();
        let header = golden.headers.iter().find(|h| h.number == golden.grandpa.target).unwrap();
        let expected = BlockId { number: header.number, hash: hash(&header.hash) };
        assert_eq!(target, expected);
        for at in 0..justification.len() {
            for bit in 0..8 {
                let mut changed = justification.clone();
                changed[at] ^= 1 << bit;
                let refused = grandpa::verify(&changed, &set);
                assert!(refused.is_err(), "byte {at}, bit {bit}: {refused:?}");
            }
            assert!(grandpa::verify(&justification[..at], &set).is_err(), "cut at {at}");
            bytes += 1;
        }
        let longer = [&justification[..], &[0]].concat();
        assert_eq!(grandpa::verify(&longer, &set), Err(GrandpaError::Long { bytes: 1 }));
    }
    check_count(bytes, 594);
}

#[test]
fn golden_another_set_id_or_too_little_weight_does_not_justify() {
    for golden in sets() {
        let (justification, set) = (golden.justification(), golden.authorities());
        let verify = |set: &AuthoritySet| grandpa::verify(&justification, set);
        for set_id in [set.set_id + 1, set.set_id - 1, 0] {
            let refused = verify(&AuthoritySet { set_id, ..set.clone() });
            assert!(matches!(refused, Err(GrandpaError::Signature { .. })), "{refused:?}");
        }
        // Three of four signed. One more that is silent makes it three of five, and the weight of
        // the silent one decides: three of 4.5 would be two thirds exactly.
        let silent = |weight: u64, scale: u64| {
            let mut set = set.clone();
            set.authorities.iter_mut().for_each(|a| a.weight *= scale);
            set.authorities.push(Authority { key: Hash32([7; 32]), weight });
            verify(&set)
        };
        assert_eq!(silent(1, 1), Err(GrandpaError::Weight { signed: 3, total: 5 }));
        assert_eq!(silent(1, 2), Err(GrandpaError::Weight { signed: 6, total: 9 }));
        assert!(silent(1, 3).is_ok());
        assert!(silent(u64::MAX, 1 << 61).is_err());
        for gone in 0..set.authorities.len() {
            let mut fewer = set.clone();
            let key = fewer.authorities.remove(gone).key;
            match verify(&fewer) {
                Err(GrandpaError::Unknown { key: unknown }) => assert_eq!(unknown, key),
                other => assert!(other.is_ok(), "the silent one's: {other:?}"),
            }
        }
        let mut unsound = [set.clone(), set.clone(), set.clone()];
        unsound[0].authorities.clear();
        unsound[1].authorities.push(set.authorities[0]);
        unsound[2].authorities[0].weight = 0;
        for set in unsound {
            assert_eq!(verify(&set), Err(GrandpaError::Set));
        }
    }
}

#[test]
fn golden_a_justified_receipt_says_when() {
    for golden in sets() {
        let proof = golden.proof();
        let anchored = golden.verify(&proof).unwrap();
        assert_eq!(anchored.digest, golden.digest());
        assert_eq!(anchored.shown_at, golden.alone().block());
        let Standing::Justified(target) = anchored.standing else { panic!("{anchored:?}") };
        assert_eq!(target.number, golden.grandpa.target);
        let unchecked = proof.verify(&golden.digest(), &golden.expected(), None).unwrap();
        assert_eq!(unchecked.standing, Standing::Unchecked);
        for (finality, standing) in
            [(Finality::Included, Standing::Included), (Finality::Finalized, Standing::Finalized)]
        {
            let claimed = SubtensorProof { finality, ..proof.clone() };
            assert_eq!(golden.verify(&claimed).unwrap().standing, standing);
        }
    }
}

#[test]
fn golden_each_wrong_place_is_named() {
    for golden in sets() {
        let (proof, digest, set) = (golden.proof(), golden.digest(), golden.authorities());
        let verify = |expected: Expected| proof.verify(&digest, &expected, Some(&set)).unwrap_err();
        let (other, expected) = (Hash32([9; 32]), golden.expected());
        let genesis = verify(Expected { genesis: other, ..expected });
        assert!(matches!(genesis, ReceiptError::Genesis { .. }));
        let netuid = verify(Expected { netuid: 4, ..expected });
        assert_eq!(netuid, ReceiptError::Netuid { expected: 4, found: golden.netuid });
        let hotkey = verify(Expected { hotkey: other, ..expected });
        assert!(matches!(hotkey, ReceiptError::Hotkey { .. }));
        let stale = proof.verify(&other, &expected, None).unwrap_err();
        assert_eq!(stale, ReceiptError::Digest { expected: other, found: digest });
        // The receipt may lie about its place; the state does not.
        let lie = SubtensorProof { hotkey: other, extrinsic: None, ..proof.clone() };
        let refused = lie.verify(&digest, &Expected { hotkey: other, ..expected }, None);
        assert!(matches!(refused, Err(ReceiptError::Trie(_))), "{refused:?}");
        let lie = SubtensorProof { netuid: 5, extrinsic: None, ..proof.clone() };
        let refused = lie.verify(&digest, &Expected { netuid: 5, ..expected }, None);
        assert!(
            matches!(refused, Err(ReceiptError::Absent { .. } | ReceiptError::Trie(_))),
            "{refused:?}"
        );
    }
}

/// The nodes of a proof that the way to one key needs.
fn pruned(root: Hash32, nodes: &[Hex], key: &[u8]) -> Vec<Hex> {
    let mut kept = nodes.to_vec();
    loop {
        let mut proof = Proof::new(root, &kept).unwrap();
        proof.get(key).unwrap();
        match proof.finish() {
            Err(TrieError::Unused { hash }) => kept.retain(|node| blake2b_256(&node.0) != hash),
            done => {
                done.unwrap();
                return kept;
            }
        }
    }
}

#[test]
fn golden_a_proven_absence_is_named() {
    let mut absences = 0;
    for golden in sets() {
        for case in &golden.cases {
            for item in case.items.iter().filter(|item| item.value.is_none()) {
                let key = hex(&item.key).0;
                // Netuid behind two hashed names of 16 bytes; the last 32 bytes are the hotkey.
                let netuid = u16::from_le_bytes([key[32], key[33]]);
                let hotkey = Hash32(key[42..].try_into().unwrap());
                assert_eq!(storage_key(netuid, &hotkey), key);
                let mut state = case.state();
                state.nodes = pruned(hash(&case.state_root), &state.nodes, &key);
                let extrinsic = None;
                let proof = SubtensorProof { netuid, hotkey, state, extrinsic, ..golden.proof() };
                let expected = Expected { netuid, hotkey, ..golden.expected() };
                let refused = proof.verify(&golden.digest(), &expected, None).unwrap_err();
                assert_eq!(refused, ReceiptError::Absent { block: case.block() });
                absences += 1;
            }
        }
    }
    assert!(absences > 0);
}

#[test]
fn golden_headers_that_do_not_lead_to_the_justification_are_refused() {
    for golden in sets() {
        let proof = golden.proof();
        let Finality::Justified(justified) = &proof.finality else { unreachable!() };
        let with = |headers: Vec<Hex>| {
            let justified = Justified { headers, ..justified.clone() };
            golden.verify(&SubtensorProof {
                finality: Finality::Justified(justified),
                ..proof.clone()
            })
        };
        let headers = &justified.headers;
        assert!(with(headers.clone()).is_ok());
        let short = with(headers[..headers.len() - 1].to_vec());
        assert!(matches!(short, Err(ReceiptError::Target { .. })));
        for gap in 0..headers.len() - 1 {
            let mut fewer = headers.clone();
            fewer.remove(gap);
            assert!(matches!(with(fewer), Err(ReceiptError::Parent { .. })));
        }
        let many = vec![headers[0].clone(); 8193];
        assert_eq!(with(many), Err(ReceiptError::Headers { headers: 8193 }));
        // The commitment as a later block has it: other headers lead there.
        let later = golden.cases.iter().find(|case| case.block > golden.anchored_at).unwrap();
        let key = storage_key(golden.netuid, &hash(&golden.hotkey));
        let nodes = pruned(hash(&later.state_root), &later.nodes(), &key);
        let state = StateProof { header: hex(&later.header_scale), nodes };
        let moved = SubtensorProof { state: state.clone(), ..proof.clone() };
        assert!(matches!(golden.verify(&moved), Err(ReceiptError::Parent { .. })));
        let after = |h: &&GoldenHeader| h.number > later.block && h.number <= golden.grandpa.target;
        let headers = golden.headers.iter().filter(after).map(|h| hex(&h.scale)).collect();
        let finality = Finality::Justified(Justified { headers, ..justified.clone() });
        let moved = SubtensorProof { state, finality, ..proof.clone() };
        let anchored = golden.verify(&moved).unwrap();
        assert_eq!((anchored.set_in, anchored.shown_at), (golden.anchored_at, later.block()));
    }
}

#[test]
fn golden_a_value_without_one_digest_is_not_an_anchor() {
    for golden in sets() {
        let item = &golden.alone().items[0];
        let mut value = hex(item.value.as_ref().unwrap()).0;
        // BLAKE2 instead of SHA-256.
        value[13] = 130;
        let digest = Commitment::decode(&value).unwrap().digest();
        assert_eq!(digest, Err(CommitmentError::Digests { found: 0 }));
    }
}
