//! Golden data of trees, proofs, tiles, notes, tree heads, pieces and canonical JSON.
//!
//! Every line of every known file is taken. A file that is absent is named and passed over, one
//! that is present and empty fails, so that other sets of the same formats can be tried.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;
#[path = "golden_merkle/oracles.rs"]
mod oracles;

use std::{
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use gradledger::{
    merkle::{
        fork::relation,
        head::TreeHead,
        note::{KeyKind, SignedNote, VerifierKey},
        pieces::{self, Pieces},
        policy::{Policy, Quorum},
        proof::LogProof,
        tile::{self, BundleId, TileId, TileNodes},
        tree::{self, MemoryNodes, Nodes, TreeBuilder},
    },
    types::{digest::Digest, json},
};
use serde_json::Value;

const OWN_AND_PUBLIC: [&str; 2] = ["own", "public"];

fn place(path: &str) -> PathBuf {
    common::golden().join("merkle").join(path)
}

/// The lines of a file, or nothing where it is absent.
fn cases(path: &str) -> Vec<Value> {
    let Ok(text) = fs::read_to_string(place(path)) else {
        println!("{path}: absent, passed over");
        return Vec::new();
    };
    let cases: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect(path)).collect();
    assert!(!cases.is_empty(), "{path} holds no case");
    println!("{path}: {} cases", cases.len());
    cases
}

fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap_or_else(|| panic!("{field} of {case}"))
}

fn number(case: &Value, field: &str) -> u64 {
    case[field].as_u64().unwrap_or_else(|| panic!("{field} of {case}"))
}

fn flag(case: &Value, field: &str) -> bool {
    case[field].as_bool().unwrap_or_else(|| panic!("{field} of {case}"))
}

fn base64(text: &str) -> Vec<u8> {
    BASE64.decode(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A digest in base64; nothing where it has another length.
fn digest(value: &Value) -> Option<Digest> {
    base64(value.as_str()?).try_into().ok().map(Digest)
}

/// A list of digests, `null` being the empty one.
fn digests(value: &Value) -> Option<Vec<Digest>> {
    value.as_array().map_or(Some(Vec::new()), |list| list.iter().map(digest).collect())
}

/// The leaf hashes of the tree that `own/` is about, a prefix and the decimal index each; none
/// where `roots.jsonl`, which says so, is absent.
fn own_leaves() -> Vec<Digest> {
    let Ok(roots) = fs::read_to_string(place("own/roots.jsonl")) else { return Vec::new() };
    let roots: Vec<Value> = roots.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let prefix = roots.first().and_then(|first| text(first, "leaf").split('\'').nth(1)).unwrap();
    let leaf = |i| tree::leaf_hash(format!("{prefix}{i}").as_bytes());
    (0..largest(&roots, "size")).map(leaf).collect()
}

fn largest(cases: &[Value], field: &str) -> u64 {
    cases.iter().filter_map(|case| case[field].as_u64()).max().unwrap_or(0)
}

#[test]
fn golden_roots() {
    let cases = cases("own/roots.jsonl");
    let leaves = own_leaves();
    let mut grown = TreeBuilder::new();
    let mut roots = vec![grown.root()];
    for leaf in &leaves {
        grown.push(*leaf);
        roots.push(grown.root());
    }
    for case in &cases {
        assert_eq!(roots[number(case, "size") as usize], digest(&case["root"]).unwrap(), "{case}");
    }
}

#[test]
fn golden_eight_leaves() {
    let Ok(text) = fs::read_to_string(place("public/rfc6962_eight_leaves.json")) else {
        return println!("public/rfc6962_eight_leaves.json: absent, passed over");
    };
    let case: Value = serde_json::from_str(&text).unwrap();
    let list = |field: &str| case[field].as_array().filter(|list| !list.is_empty()).unwrap();
    let hex = |value: &Value| hex::decode(value.as_str().unwrap()).unwrap();
    let leaves: Vec<_> =
        list("leaf_inputs_hex").iter().map(|leaf| tree::leaf_hash(&hex(leaf))).collect();
    for (size, root) in list("roots_hex_by_size").iter().enumerate() {
        assert_eq!(tree::root_of(&leaves[..size]).0[..], hex(root), "size {size}");
    }
    for check in list("hasher") {
        let desc = check[0].as_str().unwrap();
        let words: Vec<_> = desc.split(' ').collect();
        let found = match words[..] {
            ["empty", "tree"] => tree::empty_root(),
            ["leaf", "of", "empty", "string"] => tree::leaf_hash(b""),
            ["leaf", "of", "ASCII", text] => tree::leaf_hash(text.as_bytes()),
            // Not digests, so not what `node_hash` takes.
            ["node", "of", "ASCII", left, "and", right, ..] => {
                Digest::of(format!("\u{1}{left}{right}").as_bytes())
            }
            _ => panic!("{desc} is not known"),
        };
        assert_eq!(found.0[..], hex(&check[1]), "{desc}");
    }
}

#[test]
fn golden_inclusion_proofs() {
    for folder in OWN_AND_PUBLIC {
        let cases = cases(&format!("{folder}/inclusion.jsonl"));
        for case in &cases {
            assert_eq!(verifies_inclusion(case).is_none(), flag(case, "wantErr"), "{case}");
        }
        if folder == "own" {
            let nodes = MemoryNodes::of(&own_leaves());
            let made = cases.iter().filter(|case| makes_inclusion(&nodes, case).is_some()).count();
            println!("own/inclusion.jsonl: {made} made");
        }
    }
}

/// Makes a right proof of the tree of `own/`; nothing for other cases.
fn makes_inclusion(nodes: &MemoryNodes, case: &Value) -> Option<()> {
    let (index, size) = (case["leafIdx"].as_u64()?, case["treeSize"].as_u64()?);
    let same_tree = tree::root_at(size, nodes).ok() == digest(&case["root"]);
    (same_tree && !flag(case, "wantErr")).then_some(())?;
    let made = tree::inclusion_proof(index, size, nodes).unwrap();
    assert_eq!(Some(made), digests(&case["proof"]), "{case}");
    Some(())
}

fn verifies_inclusion(case: &Value) -> Option<()> {
    let (index, size) = (case["leafIdx"].as_u64()?, case["treeSize"].as_u64()?);
    let (leaf, root) = (digest(&case["leafHash"])?, digest(&case["root"])?);
    tree::verify_inclusion(index, size, &leaf, &digests(&case["proof"])?, &root).ok()
}

#[test]
fn golden_consistency_proofs() {
    for folder in OWN_AND_PUBLIC {
        let cases = cases(&format!("{folder}/consistency.jsonl"));
        for case in &cases {
            // Roots of another length than a digest's are equal here, and wrong all the same.
            let digests_only = ["root1", "root2"].iter().all(|f| digest(&case[*f]).is_some());
            let refused = flag(case, "wantErr") || !digests_only;
            assert_eq!(verifies_consistency(case).is_none(), refused, "{case}");
        }
        if folder == "own" {
            let nodes = MemoryNodes::of(&own_leaves());
            let made = cases.iter().filter(|case| makes_consistency(&nodes, case).is_some());
            println!("own/consistency.jsonl: {} made", made.count());
        }
    }
}

/// Makes a right proof of the tree of `own/`; nothing for other cases.
fn makes_consistency(nodes: &MemoryNodes, case: &Value) -> Option<()> {
    let (size1, size2) = (case["size1"].as_u64()?, case["size2"].as_u64()?);
    let same_tree = tree::root_at(size2, nodes).ok() == digest(&case["root2"]);
    (same_tree && !flag(case, "wantErr")).then_some(())?;
    let made = tree::consistency_proof(size1, size2, nodes).unwrap();
    assert_eq!(Some(made), digests(&case["proof"]), "{case}");
    Some(())
}

fn verifies_consistency(case: &Value) -> Option<()> {
    let (size1, size2) = (case["size1"].as_u64()?, case["size2"].as_u64()?);
    let (root1, root2) = (digest(&case["root1"])?, digest(&case["root2"])?);
    tree::verify_consistency(size1, size2, &root1, &root2, &digests(&case["proof"])?).ok()
}

#[test]
fn golden_tiles() {
    let cases = cases("own/tiles.jsonl");
    let leaves = own_leaves();
    if (leaves.len() as u64) < largest(&cases, "size") {
        return println!("own/tiles.jsonl: passed over, own/roots.jsonl has no such tree");
    }
    let nodes = MemoryNodes::of(&leaves);
    for case in &cases {
        let id: TileId = text(case, "path").parse().unwrap();
        assert!(tile::tiles_of(number(case, "size")).any(|of_tree| of_tree == id), "{case}");
        let bytes = tile_bytes(&nodes, id);
        assert_eq!(bytes.len() as u64, number(case, "bytes"), "{case}");
        assert_eq!(Digest::of(&bytes).to_hex(), text(case, "sha256"), "{case}");
    }
}

fn tile_bytes(nodes: &MemoryNodes, id: TileId) -> Vec<u8> {
    let first = id.index() * u64::from(tile::TILE_WIDTH);
    let level = id.level() * tile::TILE_HEIGHT;
    let hash = |index| nodes.node(level, index).unwrap();
    tile::encode_tile(&(first..first + u64::from(id.width())).map(hash).collect::<Vec<_>>())
}

#[test]
fn golden_tile_paths() {
    for case in cases("own/tile_paths.jsonl") {
        let path = text(&case, "path");
        let (tile, entries) = (format!("tile/0/{path}"), format!("tile/entries/{path}"));
        let (id, bundle) = (tile.parse::<TileId>(), entries.parse::<BundleId>());
        if case["bad"] == true {
            assert!(id.is_err() && bundle.is_err() && path.parse::<TileId>().is_err(), "{case}");
            continue;
        }
        let (id, bundle) = (id.unwrap(), bundle.unwrap());
        let index = number(&case, "index");
        assert_eq!((id.level(), id.index(), bundle.index()), (0, index, index), "{case}");
        assert_eq!((id.to_string(), bundle.to_string()), (tile, entries));
    }
}

#[test]
fn golden_vkeys() {
    for case in cases("own/vkeys.jsonl") {
        let vkey = text(&case, "vkey");
        let key = vkey.parse::<VerifierKey>();
        assert_eq!(key.is_ok(), flag(&case, "ok"), "{case}: {key:?}");
        let Ok(key) = key else { continue };
        assert_eq!(key.name(), text(&case, "name"));
        assert_eq!(format!("{:08x}", key.id()), text(&case, "id"));
        assert_eq!(key.kind() as u64, number(&case, "type"));
        assert_eq!(hex::encode(key.key()), text(&case, "pub"));
        assert_eq!(key.to_string(), vkey);
    }
}

#[test]
fn golden_own_notes() {
    for case in cases("own/notes.jsonl") {
        let vkeys = case["vkeys"].as_array().unwrap();
        let keys: Vec<VerifierKey> =
            vkeys.iter().filter_map(|key| key.as_str()?.parse().ok()).collect();
        let opened = SignedNote::parse(&base64(text(&case, "note")))
            .and_then(|note| Ok((note.verify(&keys)?, note)));
        assert_eq!(opened.is_ok(), flag(&case, "ok"), "{case}: {opened:?}");
        let Ok((verified, note)) = opened else { continue };
        assert_eq!(Value::from(verified), case["verified"], "{case}");
        assert_eq!(note.text().as_bytes(), base64(text(&case, "text")), "{case}");
    }
}

#[test]
fn golden_public_notes() {
    for case in cases("public/notes.jsonl") {
        let key: VerifierKey = text(&case, "vkey").parse().unwrap();
        let name = key.name().to_owned();
        let opened =
            SignedNote::parse(text(&case, "note").as_bytes()).and_then(|note| note.verify(&[key]));
        assert_eq!(opened == Ok(vec![name]), flag(&case, "ok"), "{case}: {opened:?}");
    }
}

#[test]
fn golden_tree_head_bodies() {
    for case in cases("own/checkpoint_bodies.jsonl") {
        let body = text(&case, "body");
        let head = TreeHead::parse(body);
        assert_eq!(head.is_ok(), flag(&case, "ok"), "{case}: {head:?}");
        let Ok(head) = head else { continue };
        assert_eq!(head.check().is_err(), case["then"].is_string(), "{case}");
        let (first_three, _) = body.match_indices('\n').nth(2).unwrap();
        assert_eq!(head.body(), body[..=first_three], "{case}");
    }
}

#[test]
fn golden_pieces() {
    let cases = cases("own/pieces.jsonl");
    let Some((head, cases)) = cases.split_first() else { return };
    assert_eq!(number(head, "piece"), 65_536);
    assert!(!cases.is_empty(), "own/pieces.jsonl holds no case");
    let data = xorshift(text(head, "seed"), largest(cases, "bytes") as usize);
    for case in cases {
        let bytes = &data[..number(case, "bytes") as usize];
        assert_eq!(Digest::of(bytes).to_hex(), text(case, "sha256"), "{case}");
        let Pieces { artifact, digests } = Pieces::of(bytes);
        assert_eq!(
            (artifact.bytes, digests.len() as u64),
            (bytes.len() as u64, number(case, "pieces"))
        );
        assert_eq!(artifact.root.to_hex(), text(case, "root"), "{case}");
        let last = digests.last().map(|digest| digest.to_hex());
        assert_eq!(last.as_deref(), case["last_piece"].as_str(), "{case}");
        let Some(index) = (digests.len() as u64).checked_sub(1) else { continue };
        let proof = pieces::piece_proof(&digests, index).unwrap();
        let hex: Vec<_> = proof.iter().map(|hash| hash.to_hex()).collect();
        assert_eq!(Value::from(hex), case["proof_of_last"], "{case}");
        let piece = bytes.chunks(65_536).next_back().unwrap();
        assert_eq!(pieces::verify_piece(&artifact, index, piece, &proof), Ok(()), "{case}");
    }
}

/// The data that the first line of `pieces.jsonl` describes.
fn xorshift(seed: &str, length: usize) -> Vec<u8> {
    let start = *Digest::of(seed.as_bytes()).0.first_chunk().unwrap();
    let mut x = 88_172_645_463_325_252 ^ u64::from_le_bytes(start);
    let mut data = Vec::with_capacity(length + 8);
    while data.len() < length {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        data.extend(x.to_le_bytes());
    }
    data.truncate(length);
    data
}

#[test]
fn golden_canonical_json() {
    for case in cases("own/canonical_json.jsonl") {
        let found = json::canonicalise(text(&case, "in").as_bytes());
        if case["bad"] == true {
            assert!(found.is_err(), "{case}");
            continue;
        }
        let found = found.unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(found, base64(text(&case, "canonical")), "{case}");
        assert_eq!(Digest::of(&found).to_hex(), text(&case, "sha256"), "{case}");
        assert_eq!(json::canonicalise(&found).unwrap(), found, "{case}");
    }
}

/// A strict verifier takes a mixed-order key or commitment if the equation holds without the
/// cofactor, and nothing of small order, of a second spelling, or with a residue of small order.
#[test]
fn golden_ed25519_edge_cases() {
    const REFUSED: [&str; 5] =
        ["low_order_A", "low_order_R", "low_order_residue", "non_canonical_A", "non_canonical_R"];
    let mut accepted = 0;
    for case in cases("public/ed25519_edge.jsonl") {
        let key: [u8; 32] = hex::decode(text(&case, "key")).unwrap().try_into().unwrap();
        let flags: Vec<_> =
            case["flags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let key = VerifierKey::new("edge", KeyKind::Ed25519, &key);
        if flags.contains(&"low_order_A") || flags.contains(&"non_canonical_A") {
            assert!(key.is_err(), "{case}");
        }
        let signature = hex::decode(text(&case, "sig")).unwrap();
        let verified = key.is_ok_and(|key| key.verifies(text(&case, "msg"), &signature));
        assert_eq!(verified, !flags.iter().any(|flag| REFUSED.contains(flag)), "{case}");
        assert!(!verified || flag(&case, "openssl3_accepts"), "{case}");
        accepted += usize::from(verified);
    }
    println!("public/ed25519_edge.jsonl: {accepted} verify");
}

/// Reads a tile or bundle of a log, or the start of the full one that took its place.
fn read(log: &Path, path: String, full: String) -> Result<Vec<u8>, std::io::Error> {
    fs::read(log.join(path)).or_else(|_| fs::read(log.join(full)))
}

fn root_from_tiles(log: &Path, size: u64) -> Digest {
    let read_tile = |id: TileId| {
        let mut bytes = read(log, id.to_string(), id.full().to_string())?;
        bytes.truncate(usize::from(id.width()) * Digest::BYTES);
        Ok::<_, std::io::Error>(bytes)
    };
    tree::root_at(size, &TileNodes::new(size, read_tile)).unwrap()
}

fn root_from_entries(log: &Path, size: u64) -> Digest {
    let mut grown = TreeBuilder::new();
    for id in tile::bundles_of(size) {
        let bytes = fs::read(log.join(id.to_string())).unwrap();
        for entry in tile::decode_bundle(id, &bytes).unwrap() {
            grown.push(tree::leaf_hash(entry));
        }
    }
    grown.root()
}

/// The files below a folder, as paths from it; nothing where it is absent.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn golden_tessera_log() {
    let vkey = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx";
    let key: VerifierKey = vkey.parse().unwrap();
    let log = place("public/tessera-log");
    let files = files(&log);
    if files.is_empty() {
        return println!("public/tessera-log: absent, passed over");
    }
    let mut heads = 0;
    for file in &files {
        if let Some(size) = file.strip_prefix("checkpoint") {
            let head = TreeHead::open(&fs::read(log.join(file)).unwrap(), &key).unwrap();
            assert!(size.is_empty() || size == format!(".{}", head.size), "{file}");
            assert_eq!(root_from_tiles(&log, head.size), head.root, "{file}");
            assert_eq!(root_from_entries(&log, head.size), head.root, "{file}");
            heads += 1;
        } else if file.starts_with("tile/entries/") {
            let id: BundleId = file.parse().unwrap();
            let bytes = fs::read(log.join(file)).unwrap();
            let entries = tile::decode_bundle(id, &bytes).unwrap();
            let leaves: Vec<_> = entries.iter().map(|entry| tree::leaf_hash(entry)).collect();
            let tile = TileId::new(0, id.index(), id.width()).unwrap().to_string();
            assert_eq!(tile::encode_tile(&leaves), fs::read(log.join(tile)).unwrap(), "{file}");
            assert_eq!(tile::encode_bundle(entries).unwrap(), bytes, "{file}");
        } else {
            let id: TileId = file.parse().unwrap();
            tile::decode_tile(id, &fs::read(log.join(file)).unwrap()).unwrap();
        }
    }
    assert!(heads > 0, "public/tessera-log has no tree head");
    println!("public/tessera-log: {} files, {heads} tree heads", files.len());
}

#[test]
fn golden_sunlight_mirror() {
    let log = place("public/sunlight-mirror");
    let Ok(bytes) = fs::read(log.join("checkpoint")) else {
        return println!("public/sunlight-mirror: absent, passed over");
    };
    let keys: Vec<VerifierKey> =
        cases("public/notes.jsonl").iter().filter_map(|c| text(c, "vkey").parse().ok()).collect();
    let note = SignedNote::parse(&bytes).unwrap();
    // A mirror signs here, not the log, so this is no head that `open` takes.
    assert_eq!(note.verify(&keys).is_ok(), !keys.is_empty());
    let head = TreeHead::parse(note.text()).unwrap();
    for id in tile::tiles_of(head.size) {
        tile::decode_tile(id, &fs::read(log.join(id.to_string())).unwrap()).unwrap();
    }
    assert_eq!(root_from_tiles(&log, head.size), head.root);
    println!("public/sunlight-mirror: a tree of {} leaves", head.size);
}

#[test]
fn golden_policies() {
    for case in cases("own/policies.jsonl") {
        let policy = Policy::parse(text(&case, "policy").as_bytes());
        assert_eq!(policy.is_ok(), flag(&case, "ok"), "{case}: {policy:?}");
    }
}

#[test]
fn golden_log_proofs() {
    for case in cases("own/tlog_proofs.jsonl") {
        let policy = Policy::parse(text(&case, "policy").as_bytes()).unwrap();
        let entry = text(&case, "entry").as_bytes();
        let holds = LogProof::parse(text(&case, "proof").as_bytes()).is_ok_and(|proof| {
            let enough = |quorum| !matches!(quorum, Quorum::Missed(_));
            proof.verify(entry, policy.logs()).is_ok()
                && policy.witnessed(proof.note.as_bytes()).is_ok_and(enough)
        });
        assert_eq!(holds, flag(&case, "ok"), "{case}");
    }
}

#[test]
fn golden_equivocation() {
    for case in cases("own/equivocation.jsonl") {
        let [a, b] = ["a", "b"].map(|note| text(&case, note).as_bytes());
        let keys = [text(&case, "vkey").parse().unwrap()];
        let found = relation(a, b, &keys, &digests(&case["proof"]).unwrap());
        assert_eq!(found.as_str(), text(&case, "verdict"), "{case}");
    }
}
