//! How long does a receipt take to verify? The golden one, then with as many headers and authorities
//! as on the live chain: 512 headers to the justification, 24 authorities of which 17 signed.
//!
//! `cargo bench -p gradledger-anchor --bench verify`. The bar is 10 ms. The floor is what cannot be
//! avoided: one strict Ed25519 verification a precommit.

use std::{hint::black_box, time::Instant};

use ed25519_dalek::{Signer, SigningKey};
use gradledger_anchor::{
    grandpa::{Authority, AuthoritySet},
    hash::{Hash32, Hex, blake2b_256},
    header::Header,
    receipt::{Expected, Finality, Justified, StateProof, SubtensorProof},
};
use parity_scale_codec::{Compact, Encode as _};
use serde_json::Value;

const HEADERS: u32 = 512;
const AUTHORITIES: u8 = 24;
const SIGNED: u8 = 17;
const RUNS: u32 = 200;

fn hex(value: &Value) -> Hex {
    value.as_str().and_then(|text| text[2..].parse().ok()).expect("golden hex")
}

fn hash(value: &Value) -> Hash32 {
    Hash32(hex(value).0.try_into().expect("32 bytes"))
}

/// Headers that follow `parent`, as long as real ones.
fn headers(mut parent: Header) -> Vec<Hex> {
    let mut bytes = Vec::new();
    for _ in 0..HEADERS {
        let mut header = parent.id.hash.0.to_vec();
        Compact(parent.id.number + 1).encode_to(&mut header);
        header.extend([7; 64]);
        // One digest item, a seal of 200 bytes.
        header.extend([4, 5, b'a', b'u', b'r', b'a']);
        vec![9u8; 200].encode_to(&mut header);
        parent = Header::decode(&header).expect("a header");
        bytes.push(Hex(header));
    }
    bytes
}

fn justify(target: &Hex) -> (Hex, AuthoritySet) {
    let keys: Vec<_> = (0..AUTHORITIES).map(|n| SigningKey::from_bytes(&[n; 32])).collect();
    let target = Header::decode(&target.0).expect("a header").id;
    let block = [&target.hash.0[..], &target.number.to_le_bytes()].concat();
    let (round, set_id) = (77u64, 5u64);
    let message = [&[1], &block[..], &round.to_le_bytes(), &set_id.to_le_bytes()].concat();
    let mut bytes = [&round.to_le_bytes()[..], &block].concat();
    Compact(u32::from(SIGNED)).encode_to(&mut bytes);
    for key in &keys[..usize::from(SIGNED)] {
        bytes.extend(&block);
        bytes.extend(key.sign(&message).to_bytes());
        bytes.extend(key.verifying_key().to_bytes());
    }
    bytes.push(0);
    let authority =
        |key: &SigningKey| Authority { key: Hash32(key.verifying_key().to_bytes()), weight: 1 };
    (Hex(bytes), AuthoritySet { set_id, authorities: keys.iter().map(authority).collect() })
}

/// Prints the median of [`RUNS`] runs in milliseconds.
fn time(name: &str, mut run: impl FnMut()) {
    let mut times: Vec<_> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("{name:<44} {:>8.3} ms", times[times.len() / 2].as_secs_f64() * 1e3);
}

fn main() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/chain/proof.json");
    let golden = std::fs::read(golden).expect("the golden file");
    let golden: Value = serde_json::from_slice(&golden).expect("JSON");
    let case = &golden["cases"][0];
    let nodes = case["proof"].as_array().expect("nodes").iter().map(hex).collect();
    let expected = Expected {
        genesis: hash(&golden["genesis_hash"]),
        netuid: golden["netuid"].as_u64().expect("a netuid") as u16,
        hotkey: hash(&golden["hotkey"]),
    };
    let digest = hash(&golden["round_root"]);
    let included = SubtensorProof {
        genesis: expected.genesis,
        netuid: expected.netuid,
        hotkey: expected.hotkey,
        extrinsic: Some(hex(&golden["extrinsic"])),
        state: StateProof { header: hex(&case["header_scale"]), nodes },
        before: None,
        finality: Finality::Included,
    };
    time("golden, included", || {
        black_box(included.verify(&digest, &expected, None).expect("it holds"));
    });
    let headers = headers(Header::decode(&included.state.header.0).expect("a header"));
    let (justification, set) = justify(&headers[headers.len() - 1]);
    let finality = Finality::Justified(Justified { headers, justification });
    let justified = SubtensorProof { finality, ..included };
    let json = serde_json::to_vec(&justified).expect("JSON");
    let name = format!("justified, {HEADERS} headers, {SIGNED} signatures");
    time(&name, || {
        black_box(justified.verify(&digest, &expected, Some(&set)).expect("it holds"));
    });
    time(&format!("the same from JSON, {} KiB", json.len() / 1024), || {
        let read: SubtensorProof = serde_json::from_slice(&json).expect("it reads");
        black_box(read.verify(&digest, &expected, Some(&set)).expect("it holds"));
    });
    let key = SigningKey::from_bytes(&[1; 32]);
    let message = blake2b_256(b"message").0;
    let signature = key.sign(&message);
    time(&format!("floor: {SIGNED} signatures"), || {
        for _ in 0..SIGNED {
            key.verifying_key().verify_strict(black_box(&message), &signature).expect("it holds");
        }
    });
}
