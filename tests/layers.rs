//! Imports go down the layers only, and each outside crate has one home. This file holds the list.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The rooms of `src/`, by layer. Rooms of one layer do not import each other.
const LAYERS: [(u8, &[&str]); 8] = [
    (1, &["types"]),
    (2, &["codec", "merkle"]),
    (3, &["store", "import"]),
    (4, &["anchor", "delta", "intake", "plan", "fold", "seal", "export"]),
    (5, &["ledger"]),
    (6, &["audit", "sync"]),
    (7, &["http"]),
    (8, &["cli"]),
];

/// Where each outside crate may be used: paths below `src/` that start so.
const HOMES: &[(&str, &[&str])] = &[
    ("rustix", &["store/files.rs", "store/machine.rs"]),
    ("subxt", &["anchor/node.rs", "anchor/subtensor.rs"]),
    ("tokio", &["anchor/node.rs", "anchor/subtensor.rs", "http/", "cli/serve.rs"]),
    ("warp", &["http/"]),
    ("hyper", &["http/"]),
    ("hyper_util", &["http/"]),
    ("http_body_util", &["http/"]),
    ("prometheus_client", &["http/metrics.rs"]),
    ("tracing", &["http/", "ledger/submit.rs", "cli/serve.rs"]),
    ("tracing_subscriber", &["cli/serve.rs"]),
    (
        "gradledger_anchor",
        &["anchor/", "store/anchors.rs", "ledger/anchor", "ledger/witness.rs", "cli/anchor"],
    ),
    ("reqwest", &["store/remote/"]),
    ("rustls", &["store/remote/http.rs"]),
    ("parquet", &["store/segment/"]),
    ("bytes", &["store/segment/", "http/"]),
    ("ed25519_dalek", &["merkle/note.rs"]),
    ("base64", &["merkle/", "store/keys/"]),
    ("getrandom", &["store/keys/", "http/uploads.rs", "sync/submit.rs"]),
    ("hex", &["types/digest.rs", "merkle/note.rs", "import/wallet/keyfile.rs"]),
    ("schnorrkel", &["codec/sr25519.rs"]),
    ("argon2", &["import/wallet/encrypted.rs"]),
    ("crypto_secretbox", &["import/wallet/encrypted.rs"]),
    ("bs58", &["codec/ss58.rs"]),
    ("blake2", &["codec/ss58.rs"]),
    ("ryu_js", &["types/json.rs"]),
    ("unicode_normalization", &["types/"]),
    ("crc32fast", &["import/"]),
    ("tar", &["audit/archive.rs"]),
    ("toml", &["store/config.rs"]),
    ("clap", &["cli/"]),
    ("clap_complete", &["cli/"]),
    ("indicatif", &["cli/progress.rs"]),
    ("plotters", &["cli/demo/plot.rs"]),
    ("clap_mangen", &["cli/"]),
    ("sled", &["store/index/sled.rs"]),
    ("rocksdb", &["store/index/rocks.rs"]),
    (
        "rayon",
        &[
            "audit/pieces.rs",
            "cli/bench/",
            "cli/demo/",
            "delta/",
            "fold/",
            "plan.rs",
            "ledger/",
            "store/segment/",
            "merkle/pieces.rs",
        ],
    ),
];

fn sources(below: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Path below `src/` and text without comments, for every file but `lib.rs` and `main.rs`.
fn files() -> Vec<(String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&src, &mut found);
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        let code = |line: &&str| !line.trim_start().starts_with("//");
        let text: String = fs::read_to_string(path)
            .unwrap()
            .lines()
            .filter(code)
            .fold(String::new(), |t, l| t + l + "\n");
        (name, text)
    };
    found.into_iter().map(read).filter(|(n, _)| n != "lib.rs" && n != "main.rs").collect()
}

fn room(name: &str) -> &str {
    name.split('/').next().unwrap().trim_end_matches(".rs")
}

fn layer_of(room: &str) -> u8 {
    let layer = LAYERS.iter().find(|(_, rooms)| rooms.contains(&room));
    layer.unwrap_or_else(|| panic!("src/{room} has no layer: add it to LAYERS")).0
}

/// Rooms that `text` names after `crate::`, nested imports among them.
fn imported(text: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    let word =
        |t: &str| t.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            rooms.push(word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, true);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && depth == 0 && c.is_alphabetic() => {
                    rooms.push(word(&group[at..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    rooms
}

#[test]
fn imports_go_down_the_layers_only() {
    let mut wrong = Vec::new();
    for (name, text) in files() {
        let from = room(&name).to_owned();
        for to in imported(&text) {
            if to != from && layer_of(&to) >= layer_of(&from) {
                wrong.push(format!("src/{name} imports {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "not down the layers: {wrong:#?}");
}

#[test]
fn nested_imports_are_seen() {
    let text = "use crate::{\n    codec::{a, b},\n    store::c,\n};\nlet x = crate::plan::y();";
    assert_eq!(imported(text), ["codec", "store", "plan"]);
}

#[test]
fn each_outside_crate_has_one_home() {
    let mut wrong = Vec::new();
    let mut used = BTreeMap::new();
    for (name, text) in files() {
        for (outside, homes) in HOMES {
            let uses = |line: &str| {
                let line = line.trim_start();
                let call = format!("{outside}::");
                let at = line.find(&call);
                let whole = at.is_some_and(|at| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                });
                whole || line.starts_with(&format!("use {outside}"))
            };
            if !text.lines().any(uses) {
                continue;
            }
            used.insert(outside, ());
            if !homes.iter().any(|home| name.starts_with(home)) {
                wrong.push(format!("src/{name} uses {outside}; its home is {homes:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "away from home: {wrong:#?}");
    for (outside, _) in HOMES {
        assert!(used.contains_key(outside), "nothing uses {outside}: take it off the list");
    }
}

/// An auditor can build the verifier of anchors alone, and read what it stands on.
#[test]
fn the_verifier_of_anchors_stands_on_few_crates() {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "-e", "normal", "--prefix", "none"])
        .args(["-p", "gradledger-anchor", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let crates: std::collections::BTreeSet<_> =
        tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    assert!((2..80).contains(&crates.len()), "{} crates: {crates:#?}", crates.len());
    assert!(!tree.contains("subxt"), "{tree}");
}

#[test]
fn unsafe_lives_in_the_kernels_alone() {
    for (name, text) in files() {
        assert!(!text.contains("unsafe "), "src/{name} has unsafe code");
    }
}

/// The kernels' package has a list of its own: NVIDIA's libraries are called from one room.
#[test]
fn cudarc_lives_in_the_room_of_the_card() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/src");
    let mut found = Vec::new();
    sources(&kernels, &mut found);
    let uses = |path: &PathBuf| fs::read_to_string(path).unwrap().contains("use cudarc");
    let users: Vec<_> = found.into_iter().filter(uses).collect();
    let home =
        |path: &PathBuf| path.strip_prefix(&kernels).unwrap().to_str().unwrap().starts_with("cuda");
    assert!(!users.is_empty() && users.iter().all(home), "{users:#?}");
}
