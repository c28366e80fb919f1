//! Good inputs for every reader of `readers.rs`, from the golden data, the vectors and small ledgers.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use gradledger::{
    audit::prove::{Target, prove},
    import::{
        templar_writer::{GradientMetadata, GradientTensor, GradientWriter},
        zip::Archive,
    },
    ledger::At,
    merkle::{
        note::LogKey,
        tile::{encode_bundle, encode_tile},
        tree::{leaf_hash, root_of},
    },
    store::{
        files::Disk,
        segment::query::{self, Cell},
    },
    types::{progress::Silent, rule::Dialect},
};
use serde_json::Value;

use super::{
    common::{
        Random, golden,
        gradient::Gradient,
        model::{Model, Run},
    },
    readers::{self, joined},
};

/// Good inputs by reader.
pub type Seeds = BTreeMap<&'static str, Vec<Vec<u8>>>;

/// Of each reader some.
pub fn seeds() -> Seeds {
    let mut seeds = foreign();
    seeds.extend(stored());
    seeds.extend(of_logs());
    seeds.extend(proofs());
    seeds.extend(of_http());
    seeds
}

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/vectors")
}

fn file(path: PathBuf) -> Vec<u8> {
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The cases of a file of JSON lines.
fn lines(path: PathBuf) -> Vec<Value> {
    let text = String::from_utf8(file(path)).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn text<'a>(case: &'a Value, name: &str) -> &'a str {
    case[name].as_str().unwrap_or_else(|| panic!("{name} of {case}"))
}

fn hex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).expect("ASCII"));
    pairs.map(|two| u8::from_str_radix(two, 16).expect("hex")).collect()
}

/// A gradient file of two small tensors, from our own writer.
fn gradient() -> Vec<u8> {
    let mut writer = GradientWriter::new(Vec::new(), "temp_gradient-5-7-v2.1.28").expect("a name");
    for (name, blocks) in [("layers.0.wq.weight", 6), ("norm.weight", 2)] {
        let vals: Vec<u8> = (0..blocks * 4).map(|i| i % 4).collect();
        let idxs: Vec<u8> = (0..blocks * 6).collect();
        let vals_shape: &[u64] = if blocks == 6 { &[3, 2, 4] } else { &[2, 4] };
        let lookup = [-1.5, -0.5, 0.5, 1.5];
        let (idxs, vals, lookup) = (&idxs[..], &vals[..], &lookup[..]);
        let (shift, scale) = (0.25, 0.005);
        writer
            .tensor(&GradientTensor { name, idxs, vals, vals_shape, shift, scale, lookup })
            .expect("a tensor");
    }
    let sample_digest = "771da0e574d3668e558bef5193f6ed18";
    let metadata = GradientMetadata { window: 5, global_step: 3, sample_digest, sample_count: 16 };
    writer.finish(&metadata).expect("memory takes it")
}

fn pickle_of(gradient: &[u8]) -> Vec<u8> {
    let archive = Archive::open(std::sync::Arc::new(gradient.to_vec())).expect("an archive");
    let pickle = archive.find("temp_gradient-5-7-v2.1.28/data.pkl").expect("its pickle");
    archive.read(pickle).expect("a right CRC")
}

fn foreign() -> Seeds {
    let small = golden().join("templar/small/w62834");
    let in_small = |name: &str| file(small.join(name));
    let dcp = |folder: PathBuf| {
        let parts =
            [".metadata", "__0_0.distcp", "__1_0.distcp"].map(|name| file(folder.join(name)));
        joined(&parts.each_ref().map(Vec::as_slice))
    };
    let shard = |name: &str| {
        let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}}}"#);
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), b"abc"].concat()
    };
    let index = br#"{"weight_map":{"a":"a.safetensors","b":"b.safetensors"}}"#;
    let twins = golden().join("siblings/dcp/two_ranks/dcp");
    let wallet = |name: &str| file(golden().join("wallet").join(name));
    let metadata = file(twins.join(".metadata"));
    BTreeMap::from([
        ("gradient", vec![gradient(), in_small("gradient-62834-3-v2.1.28.pt")]),
        ("pickle", vec![pickle_of(&gradient()), metadata]),
        ("aggregator", vec![in_small("aggregator-62834-v2.1.28.pt")]),
        ("peers", vec![br#"{"peers":[7,3],"reserve_peers":[9],"x":{"y":[1.5e3]}}"#.to_vec()]),
        ("dcp", vec![dcp(twins)]),
        ("shards", vec![joined(&[&index[..], &shard("a"), &shard("b")])]),
        ("safetensors", vec![in_small("delta.safetensors"), shard("a")]),
        ("keyfile", vec![wallet("hk_mnemonic"), wallet("hk_uri")]),
    ])
}

/// The one file below a folder of the vectors' ledger.
fn segment(kind: &str) -> Vec<u8> {
    let found = super::common::model::all_files(&vectors().join("ledger/segments").join(kind));
    let [path] = &found[..] else { panic!("{found:?}") };
    file(path.clone())
}

fn delta() -> Vec<u8> {
    let mut paths = super::common::model::all_files(&vectors().join("ledger/segments/deltas"));
    paths.sort();
    let parts: Vec<Vec<u8>> = paths.into_iter().map(file).collect();
    joined(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn table() -> Vec<u8> {
    let row = |round: u64| {
        let miner = Cell::maybe((round != 2).then(|| format!("miner {round}")), Cell::Text);
        vec![Cell::Int(round), miner, Cell::Float64(0.5), Cell::Ints((0..round).collect())]
    };
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("table");
    query::write(&Disk, &path, &readers::TABLE, &(0..5).map(row).collect::<Vec<_>>())
        .expect("a table");
    file(path)
}

const SERVE: &str = "[serve]\nlisten = \"127.0.0.1:8080\"\nmetrics = \"off\"\nconnections_max = 64\n\
                     [serve.uploads]\nhotkeys = []\npart_bytes = 65536\n";

fn stored() -> Seeds {
    let hashes = &lines(vectors().join("hashes.jsonl"))[0];
    let id = hashes["id"].to_string();
    let vector = |name: &str| vec![file(vectors().join(name))];
    let config = |text: &str| text.as_bytes().to_vec();
    BTreeMap::from([
        ("tensor", vec![segment("tensors")]),
        ("delta", vec![delta()]),
        ("plan", vec![segment("plans")]),
        ("dispositions", vec![segment("dispositions")]),
        ("table", vec![table()]),
        ("hashes", vec![joined(&[id.as_bytes(), &hex(text(hashes, "hex"))])]),
        ("config", vec![config("[retention]\nkeep_every = 100\n"), config(SERVE)]),
        ("open_round", vector("open-round.json")),
        ("retention", vector("retention.json")),
        ("log_key", vector("keys/log.key")),
        ("heads_record", vector("keys/log.key.heads")),
    ])
}

/// A log of these entries as [`readers`] takes it.
fn log(entries: &[&[u8]]) -> Vec<u8> {
    let leaves: Vec<_> = entries.iter().map(|entry| leaf_hash(entry)).collect();
    let (size, root) = (entries.len(), root_of(&leaves));
    let state = format!(
        r#"{{"format":"gradledger-tree-state/1","origin":"o.example/log","root":"{root}","size":{size}}}"#
    );
    // Nobody's signature: whether it holds is not what reading a log asks.
    let (root, signature) = (BASE64.encode(root.0), BASE64.encode([7; 68]));
    let note = format!("o.example/log\n{size}\n{root}\n\n\u{2014} o.example/log {signature}\n");
    let bundle = encode_bundle(entries).expect("short entries");
    joined(&[note.as_bytes(), state.as_bytes(), &encode_tile(&leaves), &bundle])
}

fn of_logs() -> Seeds {
    let own = golden().join("merkle/own");
    let ok = |name: &str| lines(own.join(name)).into_iter();
    let records = lines(vectors().join("records.jsonl")).into_iter();
    let records = records.filter(|case| case["refused"].is_null());
    let canonical = |case: Value| BASE64.decode(text(&case, "canonical")).expect("base64");
    let canonical =
        ok("canonical_json.jsonl").filter(|case| case["canonical"].is_string()).map(canonical);
    let public = golden().join("merkle/public/tessera-log");
    let tile = |path: &str| joined(&[path.as_bytes(), &file(public.join(path))]);
    let signed = &lines(vectors().join("statement.jsonl"))[0];
    let signed = [hex(text(signed, "bytes")), hex(text(signed, "signature"))].concat();
    BTreeMap::from([
        ("record", records.map(|case| text(&case, "entry").as_bytes().to_vec()).collect()),
        ("json", canonical.collect()),
        ("statement", vec![signed]),
        ("tile", vec![tile("tile/0/000.p/7"), tile("tile/entries/000.p/7")]),
        ("log", vec![log(&[b"one", b"", b"three"]), log(&[])]),
    ])
}

/// The bundles of a small run, each behind the key that judges it.
fn bundles() -> Vec<Vec<u8>> {
    let (mut random, model) = (Random(5), Model::small(Dialect::Templar));
    let run = Run::new(&model);
    let delta = model.delta(&mut random);
    run.put(1, 7, &Gradient::of(&model, 1, &delta).write());
    run.import(1, &[7], &[]);
    run.seal(1);
    let ledger = run.open();
    let key = ledger.genesis().log_keys.rounds.clone();
    let targets = [
        Target::Piece(At::Round(1), "b.bias".to_owned(), 0),
        Target::Tensor(At::Round(1), "b.bias".to_owned()),
        Target::Submission(0),
        Target::Round(1),
        Target::Records(1),
        Target::Fold(1, 0, 0),
    ];
    let bundle = |target| prove(&ledger, target, Vec::new(), &Silent).expect("a bundle");
    targets.iter().map(|target| joined(&[key.as_bytes(), &bundle(target)])).collect()
}

/// What a miner and a server say to each other.
fn of_http() -> Seeds {
    let digest = "5a".repeat(32);
    let ask = format!(
        r#"{{"method":"POST","path":"/v1/uploads","run":"{digest}","round":3,"base":"{digest}","delta":{{"root":"{digest}","count":6,"bytes":100}},"signature":null}}"#
    );
    let state = format!(
        r#"{{"schema_version":1,"id":"{digest}","token":null,"committed":false,"hashes_bytes":900,"missing":[{{"offset":0,"bytes":100}}],"expires_in_s":3600}}"#
    );
    BTreeMap::from([
        ("request", vec![b"/v1/rounds/7/a%20b?limit=12&after=x+y%2f".to_vec()]),
        ("upload", vec![ask.into_bytes(), state.into_bytes()]),
    ])
}

fn proofs() -> Seeds {
    let own = golden().join("merkle/own");
    let note = &lines(own.join("notes.jsonl"))[0];
    let key = note["vkeys"][0].as_str().expect("a key");
    let bytes = BASE64.decode(text(note, "note")).expect("base64");
    let note = joined(&[key.as_bytes(), &bytes]);
    let proof = &lines(own.join("tlog_proofs.jsonl"))[0];
    let policy = text(&lines(own.join("policies.jsonl"))[0], "policy").to_owned();
    let submissions =
        LogKey::from_seed("ledger.example/run/submissions", &std::array::from_fn(|i| i as u8));
    let receipt = file(vectors().join("receipt.json"));
    let anchor = file(vectors().join("anchor.json"));
    BTreeMap::from([
        ("note", vec![note.clone()]),
        ("head", vec![note]),
        ("log_proof", vec![joined(&[key.as_bytes(), text(proof, "proof").as_bytes()])]),
        ("policy", vec![joined(&[policy.as_bytes(), &bytes])]),
        ("receipt", vec![joined(&[submissions.expect("a key").vkey().as_bytes(), &receipt])]),
        ("bundle", bundles()),
        ("anchor", vec![joined(&[&anchor, &justification()])]),
    ])
}

/// That of the golden chain.
fn justification() -> Vec<u8> {
    let proof: Value =
        serde_json::from_slice(&file(golden().join("chain/proof.json"))).expect("JSON");
    hex(text(&proof["grandpa"], "justification").trim_start_matches("0x"))
}
