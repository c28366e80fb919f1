//! The server, a real one on loopback, by what clients see of it: which bytes, which refusals, which
//! limits, and that nothing of an open round is among them.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use common::{
    Random,
    ledger::{Fixture, ROUNDS, Step},
    served::{Served, connect, head, limits, read_reply},
    signed::made_up,
};
use gradledger::{
    http::Limits,
    ledger::{
        Ledger, LedgerError,
        check::{Disagreement, check_round},
        seal::{FoldOptions, seal},
        submit::Receipt,
        writer::LedgerWriter,
    },
    merkle::{note::VerifierKey, pieces::artifact_root},
    store::{artifacts::StoredDelta, files::Disk},
    types::{digest::Digest, progress::Silent, submission::Submission},
};

/// Takes these steps on the real disk.
fn steps(fixture: &Fixture, steps: &[Step]) {
    let files: Arc<dyn gradledger::store::files::Files> = Arc::new(Disk);
    for step in steps {
        fixture.step(step, &fixture.root(), &files, &mut Vec::new()).unwrap();
    }
}

/// A native run with a sealed round and one that is open.
fn native() -> Fixture {
    let fixture = Fixture::new();
    steps(
        &fixture,
        &[
            Step::InitNative,
            Step::Submit(1, vec![(1, 1), (2, 2)]),
            Step::Seal(1),
            Step::Submit(2, vec![(1, 3), (2, 1)]),
        ],
    );
    fixture
}

/// An imported run with three sealed rounds.
fn imported() -> Fixture {
    let fixture = Fixture::new();
    let mut all = vec![Step::Init];
    for round in &ROUNDS[..3] {
        all.extend([Step::import(*round), Step::Seal(*round)]);
    }
    all.push(Step::Anchor);
    steps(&fixture, &all);
    fixture
}

/// Every file below `dir`, as paths from there.
fn files_below(dir: &Path) -> BTreeSet<String> {
    fn walk(dir: &Path, root: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(dir, dir, &mut found);
    found
}

/// Every file below a served directory, by its listings.
fn listed_below(served: &Served, dir: &str, found: &mut BTreeSet<String>) {
    for name in served.json(&format!("/v1/files/{dir}"))["names"].as_array().unwrap() {
        let path = format!("{dir}{}", name.as_str().unwrap());
        if served.get(&format!("/v1/files/{path}/"), &[]).status == 200 {
            listed_below(served, &format!("{path}/"), found);
        } else {
            found.insert(path);
        }
    }
}

/// A file of this many random bytes that is public: tables may hold any.
fn large_file(fixture: &Fixture, bytes: usize) -> Vec<u8> {
    let mut random = Random(7);
    let content: Vec<u8> =
        (0..bytes.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
    let content = content[..bytes].to_vec();
    let dir = fixture.root().join("tables/large");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("new"), &content).unwrap();
    fs::rename(dir.join("new"), dir.join("blob.parquet")).unwrap();
    content
}

const LARGE: &str = "/v1/files/tables/large/blob.parquet";

/// The roots of the deltas that an open round's submissions bring and no sealed round's.
fn open_deltas(ledger: &Ledger) -> Vec<Digest> {
    let of = |range| -> Vec<Digest> {
        let submissions = ledger.submissions(range).unwrap().into_iter();
        let root = |(_, submission)| match submission {
            Submission::Signed(signed) => signed.delta.root,
            other => panic!("{other:?}"),
        };
        submissions.map(root).collect()
    };
    let sealed = of(0..ledger.window_start());
    let open = of(ledger.window_start()..ledger.submissions_log().size());
    open.into_iter().filter(|root| !sealed.contains(root)).collect()
}

// ---- what is served ----

#[test]
fn public_files_are_served_as_they_lie_and_others_are_not() {
    for fixture in [native(), imported()] {
        let served = Served::start(&fixture.root(), limits());
        let ledger = Ledger::open(&fixture.root()).unwrap();
        let open: Vec<String> = open_deltas_of(&ledger);
        let mut expected = BTreeSet::new();
        for path in files_below(&fixture.root()) {
            let reply = served.get(&format!("/v1/files/{path}"), &[]);
            let private = ["keys/", "tmp/", "index/", "lock", "gradledger.toml", "anchors/intent"];
            let private = private.iter().any(|start| path.starts_with(start))
                || open.iter().any(|root| path.contains(root));
            if private {
                assert_eq!((reply.status, reply.code()), (404, "not-found".into()), "{path}");
            } else {
                assert_eq!(reply.status, 200, "{path}");
                assert!(reply.body == fs::read(fixture.root().join(&path)).unwrap(), "{path}");
                expected.insert(path);
            }
        }
        let mut listed = BTreeSet::new();
        listed_below(&served, "", &mut listed);
        assert_eq!(listed, expected);
        for kind in ["log/rounds/checkpoint", "segments/tensors/", "segments/deltas/", "hashes/"] {
            assert!(expected.iter().any(|path| path.starts_with(kind)), "{kind}");
        }
    }
}

fn open_deltas_of(ledger: &Ledger) -> Vec<String> {
    let signed =
        matches!(ledger.genesis().miners, gradledger::types::record::MinersPolicy::Hotkeys(_));
    let roots = if signed { open_deltas(ledger) } else { vec![] };
    roots.iter().map(|root| root.to_hex()).collect()
}

#[test]
fn deltas_of_an_open_round_are_withheld_until_its_seal() {
    let fixture = native();
    let served = Served::start(&fixture.root(), limits());
    let ledger = Ledger::open(&fixture.root()).unwrap();
    let open = open_deltas(&ledger);
    assert_eq!(open.len(), 1, "the other one was sent before");
    let root = open[0].to_hex();
    let shelf = &root[..2];
    let paths = [
        format!("/v1/files/hashes/{shelf}/{root}"),
        format!("/v1/files/segments/deltas/{shelf}/{root}/"),
        format!("/v1/files/segments/deltas/{shelf}/{root}/books.parquet"),
        format!("/v1/manifests/{root}"),
    ];
    let statuses = || paths.clone().map(|path| served.get(&path, &[]).status);
    assert_eq!(statuses(), [404; 4]);
    let artifact = {
        let id = ledger.submissions(2..3).unwrap()[0].1.clone();
        let Submission::Signed(signed) = id else { panic!() };
        let delta = StoredDelta::open(ledger.place(), signed.delta).unwrap();
        delta.manifest().descriptors()[0].root
    };
    let by_root = format!("/v1/artifacts/{artifact}?manifest={root}");
    assert_eq!(served.get(&by_root, &[]).status, 404);
    // The statement itself is public: it is in the log.
    assert_eq!(served.json("/v1/submissions/2")["submission"]["delta"]["root"], root.as_str());
    steps(&fixture, &[Step::Seal(2)]);
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(statuses(), [200; 4]);
    assert_eq!(served.get(&by_root, &[]).status, 200);
}

#[test]
fn tensors_that_a_failed_seal_left_are_withheld() {
    let fixture = native();
    let root = Digest::of(b"a mean of open deltas").to_hex();
    let shelf = fixture.root().join("segments/tensors").join(&root[..2]);
    fs::create_dir_all(&shelf).unwrap();
    fs::write(shelf.join(format!("{root}-4.f32.parquet")), b"1234").unwrap();
    let served = Served::start(&fixture.root(), limits());
    let path = format!("/v1/files/segments/tensors/{}/{root}-4.f32.parquet", &root[..2]);
    assert_eq!(served.get(&path, &[]).status, 404);
    assert_eq!(served.get(&format!("/v1/artifacts/{root}"), &[]).status, 404);
    let names = served.json(&format!("/v1/files/segments/tensors/{}/", &root[..2]));
    assert!(!names.to_string().contains(&root));
}

#[test]
fn paths_do_not_lead_out() {
    let fixture = native();
    let served = Served::start(&fixture.root(), limits());
    let key = fs::read_to_string(fixture.root().join("keys/log.key")).unwrap();
    for path in [
        "keys/log.key",
        "log/../keys/log.key",
        "log/%2e%2e/keys/log.key",
        "log/..%2fkeys/log.key",
        "log/%252e%252e/keys/log.key",
        "log/..\\keys\\log.key",
        "log/..%5ckeys%5clog.key",
        "tables/../keys/log.key",
        "tables/%2e%2e/keys/log.key",
        "tables/..%2fkeys%2flog.key",
        "tables/./../keys/log.key",
        "tables//../keys/log.key",
        "/keys/log.key",
        "//etc/passwd",
        "%2fetc%2fpasswd",
        "tables/%00",
        "log/rounds/checkpoint%00.json",
        "./log/rounds/checkpoint",
        "log//rounds/checkpoint",
        "log/rounds/checkpoint.new",
        "log/rounds/tile/0/000/",
        "Keys/log.key",
        "hashes/../keys/log.key",
    ] {
        let reply = served.get(&format!("/v1/files/{path}"), &[]);
        assert_eq!((reply.status, reply.code()), (404, "not-found".to_owned()), "{path}");
        assert!(!reply.text().contains(&key), "{path}");
    }
    for path in ["tables/%zz", "tables/%f", "tables/%ff"] {
        let reply = served.get(&format!("/v1/files/{path}"), &[]);
        assert_eq!((reply.status, reply.code()), (400, "bad-path".to_owned()), "{path}");
    }
}

// ---- ranges and conditions ----

#[test]
fn ranges_are_answered_as_the_schema_says() {
    let fixture = native();
    let n = 2 << 20 | 77;
    let content = large_file(&fixture, n);
    let served = Served::start(&fixture.root(), limits());
    for (range, from, to) in [
        ("0-0".to_owned(), 0, 1),
        ("5-".to_owned(), 5, n),
        (format!("{}-{}", n - 1, n - 1), n - 1, n),
        (format!("5-{}", n + 9), 5, n),
        ("-9".to_owned(), n - 9, n),
        (format!("-{}", n + 9), 0, n),
        (format!("-{}", u128::MAX), 0, n),
        ("65535-1048577".to_owned(), 65_535, 1_048_578),
    ] {
        let reply = served.get(LARGE, &[&format!("range: bytes={range}")]);
        assert_eq!(reply.status, 206, "{range}");
        let stated = format!("bytes {from}-{}/{n}", to - 1);
        assert_eq!(reply.header("content-range"), Some(stated.as_str()), "{range}");
        assert!(reply.body == content[from..to], "{range}");
        assert_eq!(reply.header("content-encoding"), None);
    }
    for range in [format!("{n}-"), format!("{}-{}", n + 1, n + 2), "-0".to_owned()] {
        let reply = served.get(LARGE, &[&format!("range: bytes={range}")]);
        assert_eq!((reply.status, reply.code()), (416, "range-not-satisfiable".into()), "{range}");
        assert_eq!(reply.header("content-range"), Some(format!("bytes */{n}").as_str()), "{range}");
    }
    for whole in ["bytes=0-1,5-6", "bytes=7-3", "lines=0-1", "bytes=x"] {
        let headers = [&format!("range: {whole}") as &str, "accept-encoding: gzip, br, zstd"];
        let reply = served.get(LARGE, &headers);
        assert_eq!((reply.status, reply.header("content-range")), (200, None), "{whole}");
        assert!(reply.body == content, "{whole}");
        assert_eq!(reply.header("content-encoding"), None);
    }
}

#[test]
fn etags_name_these_very_bytes() {
    let fixture = native();
    let content = large_file(&fixture, 1 << 20);
    let served = Served::start(&fixture.root(), limits());
    let first = served.get(LARGE, &[]);
    let etag = first.header("etag").unwrap().to_owned();
    assert!(first.body == content && etag.starts_with('"') && etag.ends_with('"'));
    let status = |line: &str| served.get(LARGE, &[line, "range: bytes=0-3"]).status;
    assert_eq!(status(&format!("if-none-match: {etag}")), 304);
    assert_eq!(status(&format!("if-match: {etag}")), 206);
    assert_eq!(status(&format!("if-range: {etag}")), 206);
    assert_eq!(status("if-match: \"other\""), 412);
    assert_eq!(status("if-range: \"other\""), 200);
    let not_modified = served.get(LARGE, &[&format!("if-none-match: {etag}")]);
    assert_eq!((not_modified.header("etag"), not_modified.body.len()), (Some(&*etag), 0));
    large_file(&fixture, 1 << 20);
    let replaced = served.get(LARGE, &[]);
    assert_ne!(replaced.header("etag"), Some(&*etag), "another file has its name");
    let small = "/v1/files/log/rounds/tree-state";
    let small = served.get(small, &[]);
    let sha256 = format!("\"{}\"", Digest::of(&small.body));
    assert_eq!(small.header("etag"), Some(&*sha256));
}

#[test]
fn head_says_what_get_says() {
    let fixture = imported();
    large_file(&fixture, 1 << 20);
    let served = Served::start(&fixture.root(), limits());
    let root = Ledger::open(&fixture.root()).unwrap().newest().root;
    for (path, headers) in [
        (LARGE, vec![]),
        (LARGE, vec!["range: bytes=3-9"]),
        (LARGE, vec!["range: bytes=-0"]),
        (LARGE, vec!["if-match: \"x\""]),
        ("/v1/files/tables/", vec![]),
        ("/v1/files/none", vec![]),
        ("/v1/rounds?limit=1", vec![]),
        ("/v1/ledger", vec![]),
        ("/log/rounds/checkpoint", vec![]),
        ("/log/rounds/tile/0/000.p/2", vec![]),
        ("/openapi.json", vec![]),
        ("/nothing", vec![]),
        (&format!("/v1/manifests/{root}"), vec![]),
    ] {
        let mut get = served.get(path, &headers);
        let mut head = served.send("HEAD", path, &headers);
        assert_eq!(head.body.len(), 0);
        for reply in [&mut get, &mut head] {
            reply.headers.remove("date");
            reply.headers.remove("x-request-id");
        }
        assert_eq!((get.status, get.headers), (head.status, head.headers), "{path} {headers:?}");
    }
}

// ---- documents ----

#[test]
fn rounds_come_in_pages_that_link_to_the_next() {
    let fixture = imported();
    let served = Served::start(&fixture.root(), limits());
    let (mut path, mut rounds) = (Some("/v1/rounds?limit=2".to_owned()), Vec::new());
    let mut pages = 0;
    while let Some(at) = path {
        let reply = served.get(&at, &[]);
        let page: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        let items = page["items"].as_array().unwrap();
        rounds.extend(items.iter().map(|round| round["round"].as_u64().unwrap()));
        let link = reply.header("link");
        assert_eq!(link.is_some(), !page["next"].is_null());
        path = link.map(|link| {
            let (target, rest) = link.strip_prefix('<').unwrap().split_once('>').unwrap();
            assert_eq!(rest, "; rel=\"next\"");
            target.to_owned()
        });
        pages += 1;
    }
    assert_eq!((rounds, pages), (ROUNDS[..3].to_vec(), 2));
    for bad in ["limit=0", "limit=1001", "limit=x", "after=-1", "limit=1&limit=2", "after=%zz"] {
        let reply = served.get(&format!("/v1/rounds?{bad}"), &[]);
        assert_eq!((reply.status, reply.code()), (400, "bad-query".to_owned()), "{bad}");
    }
    let past = served.json("/v1/rounds?after=9007199254740991");
    assert_eq!((past["items"].as_array().unwrap().len(), past["next"].is_null()), (0, true));
}

#[test]
fn documents_say_what_the_ledger_says() {
    let fixture = imported();
    let served = Served::start(&fixture.root(), limits());
    let ledger = Ledger::open(&fixture.root()).unwrap();
    let view = served.json("/v1/ledger");
    assert_eq!(view["run_id"], ledger.run_id().to_hex());
    assert_eq!(view["head"]["root"], ledger.newest().root.to_hex());
    let round = ROUNDS[0];
    let one = served.json(&format!("/v1/rounds/{round}"));
    assert_eq!(one["record"], serde_json::to_value(&ledger.sealed()[0].record).unwrap());
    let rows = served.json(&format!("/v1/rounds/{round}/contributions"));
    let rows = rows["contributions"].as_array().unwrap();
    assert_eq!(rows.len() as u64, ledger.sealed()[0].record.dispositions.count);
    assert_eq!(rows.iter().filter(|row| row["disposition"] == "accepted").count(), 1);
    let plan = served.get(&format!("/v1/rounds/{round}/plan"), &[]);
    assert_eq!(plan.body.len() as u64, ledger.sealed()[0].record.plan.bytes);
    assert_eq!(artifact_root(&[Digest::of(&plan.body)]), ledger.sealed()[0].record.plan.root);
    assert_eq!(served.get("/v1/rounds/999", &[]).code(), "not-found");
    assert_eq!(served.get("/v1/rounds/x", &[]).code(), "bad-path");
    let anchors = served.json("/v1/anchors");
    let size = anchors["anchors"][0]["size"].as_u64().unwrap();
    let receipt = served.json(&format!("/v1/anchors/{size}"));
    assert_eq!(receipt["head"]["size"], size);
    let miners = served.json("/v1/miners");
    assert_eq!(miners["miners"][0]["miner"], 3);
    let of = served.json("/v1/miners/7/submissions?limit=2");
    assert_eq!(of["items"].as_array().unwrap().len(), 2);
    assert!(of["items"].as_array().unwrap().iter().all(|item| item["miner"] == 7));
    assert_eq!(served.get("/v1/miners/9/submissions", &[]).code(), "not-found");
    assert_eq!(served.get("/v1/miners/-/submissions", &[]).code(), "bad-path");
}

/// Else whoever asks for a large round again and again keeps a core busy. The operator's word is the
/// signed head; `audit` and `fsck` are who check every signature.
#[test]
fn a_round_is_shown_without_checking_the_signature_of_each_submission() {
    let fixture = native();
    let mut writer = LedgerWriter::open(&fixture.root(), None).unwrap();
    let before = writer.ledger().submissions_log().size();
    writer.append_submissions(&(1..5).map(made_up).collect::<Vec<_>>()).unwrap();
    seal(&mut writer, 2, FoldOptions::default(), &Silent).unwrap();
    drop(writer);
    let ledger = Ledger::open(&fixture.root()).unwrap();
    let wrong = check_round(&ledger, 1).unwrap_err();
    let LedgerError::Disagrees(wrong) = wrong else { panic!("{wrong}") };
    assert!(matches!(*wrong, Disagreement::Signature { index, .. } if index == before), "{wrong}");
    let served = Served::start(&fixture.root(), limits());
    let round = served.json("/v1/rounds/2");
    let window = ledger.sealed()[1].record.submissions;
    let shown: Vec<u64> = round["dispositions"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|disposition| disposition["index"].as_u64())
        .collect();
    let all = shown.iter().copied().collect::<BTreeSet<_>>();
    assert_eq!(all, (window.start..window.end).collect(), "each of them once: {shown:?}");
}

#[test]
fn every_artifact_is_found_by_its_root() {
    let fixture = native();
    let served = Served::start(&fixture.root(), limits());
    let ledger = Ledger::open(&fixture.root()).unwrap();
    let delta = served.json("/v1/submissions/0")["submission"]["delta"]["root"].clone();
    let manifests = [ledger.newest().root.to_hex(), delta.as_str().unwrap().to_owned()];
    let mut found = 0;
    for (manifest, by_itself) in manifests.iter().zip([true, false]) {
        let page = served.json(&format!("/v1/manifests/{manifest}?limit=1000"));
        for descriptor in page["items"].as_array().unwrap() {
            let root = descriptor["root"].as_str().unwrap();
            let path = format!("/v1/artifacts/{root}?bytes={}", descriptor["bytes"]);
            assert_eq!(served.get(&path, &[]).status == 200, by_itself, "{descriptor}");
            let reply = served.get(&format!("{path}&manifest={manifest}"), &[]);
            assert_eq!(reply.header("etag"), Some(format!("\"{root}\"").as_str()));
            let pieces: Vec<Digest> = reply.body.chunks(65_536).map(Digest::of).collect();
            assert_eq!(artifact_root(&pieces).to_hex(), root);
            let other =
                served.get(&format!("/v1/artifacts/{root}?bytes=1&manifest={manifest}"), &[]);
            assert_eq!((other.status, other.code()), (409, "other-length".to_owned()));
            found += 1;
        }
    }
    assert_eq!(found, 2 + 6);
}

#[test]
fn receipts_of_every_statement_hold() {
    let fixture = native();
    let served = Served::start(&fixture.root(), limits());
    let ledger = Ledger::open(&fixture.root()).unwrap();
    let key: VerifierKey = ledger.keys().newest().log_keys.submissions.parse().unwrap();
    for (index, submission) in ledger.submissions(0..4).unwrap() {
        let Submission::Signed(signed) = submission else { panic!() };
        let id = gradledger::ledger::submit::statement_of(ledger.run_id(), &signed).id();
        let receipt = served.json(&format!("/v1/receipts/{id}"));
        let receipt: Receipt = serde_json::from_value(receipt).unwrap();
        assert_eq!(receipt.index, index);
        assert_eq!(receipt.verify(&key).unwrap(), signed);
    }
    let none = Digest::of(b"none");
    assert_eq!(served.get(&format!("/v1/receipts/{none}"), &[]).code(), "not-found");
}

#[test]
fn what_is_appended_is_served_without_a_restart() {
    let fixture = imported();
    let served = Served::start(&fixture.root(), limits());
    assert_eq!(served.json("/v1/ledger")["rounds"], 3);
    steps(&fixture, &[Step::import(ROUNDS[3])]);
    std::thread::sleep(Duration::from_millis(150));
    let open = served.json("/v1/ledger");
    assert_eq!((&open["rounds"], &open["open_submissions"]), (&3.into(), &2.into()));
    steps(&fixture, &[Step::Seal(ROUNDS[3])]);
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(served.json("/v1/ledger")["rounds"], 4);
    assert_eq!(served.json("/readyz")["status"], "ok");
}

// ---- the logs, by code that is not ours ----

mod oracle {
    use super::*;
    use tlog_tiles::{Checkpoint, Error, Tile, TileHashReader, TileReader};

    /// Reads tiles of a served log.
    pub struct Tiles<'a> {
        pub served: &'a Served,
        pub log: &'a str,
    }

    impl TileReader for Tiles<'_> {
        fn height(&self) -> u8 {
            8
        }

        fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, Error> {
            let read = |tile: &Tile| {
                // Its paths have the height in them, C2SP's do not.
                let path = tile.path().replace("tile/8/", "tile/");
                let reply = self.served.get(&format!("/log/{}/{path}", self.log), &[]);
                assert_eq!(reply.status, 200, "{path}");
                let full = tile.width() == 256;
                let cache = reply.header("cache-control").unwrap();
                assert_eq!(cache.contains("immutable"), full, "{path}");
                reply.body
            };
            Ok(tiles.iter().map(read).collect())
        }

        fn save_tiles(&self, _: &[Tile], _: &[Vec<u8>]) {}
    }

    /// Checks the head's signature, and every entry's place in its tree; gives the entries.
    pub fn check(served: &Served, log: &str, key: &str) -> Vec<Vec<u8>> {
        let reply = served.get(&format!("/log/{log}/checkpoint"), &[]);
        assert_eq!(reply.header("cache-control"), Some("no-store, no-transform"));
        let note = signed_note::Note::from_bytes(&reply.body).unwrap();
        let verifier = signed_note::StandardVerifier::new(key).unwrap();
        let keys = signed_note::VerifierList::new(vec![Box::new(verifier)]);
        let (by, _) = note.verify(&keys).unwrap();
        assert_eq!(by.len(), 1);
        let head = Checkpoint::from_bytes(note.text()).unwrap();
        let tiles = Tiles { served, log };
        let reader = TileHashReader::new(head.size(), *head.hash(), &tiles);
        let mut entries = Vec::new();
        for start in (0..head.size()).step_by(256) {
            let width = (head.size() - start).min(256);
            let partial = if width < 256 { format!(".p/{width}") } else { String::new() };
            let path = format!("/log/{log}/tile/entries/{:03}{partial}", start / 256);
            let bundle = served.get(&path, &[]);
            assert_eq!(bundle.status, 200, "{path}");
            let mut rest = &bundle.body[..];
            while let Some((length, after)) = rest.split_first_chunk::<2>() {
                let (entry, after) = after.split_at(u16::from_be_bytes(*length).into());
                let index = entries.len() as u64;
                let proof = tlog_tiles::prove_record(head.size(), index, &reader).unwrap();
                let leaf = tlog_tiles::record_hash(entry);
                tlog_tiles::check_record(&proof, head.size(), *head.hash(), index, leaf).unwrap();
                entries.push(entry.to_vec());
                rest = after;
            }
        }
        assert_eq!(entries.len() as u64, head.size());
        entries
    }
}

#[test]
fn both_logs_hold_for_an_independent_reader() {
    let fixture = native();
    let served = Served::start(&fixture.root(), limits());
    let ledger = Ledger::open(&fixture.root()).unwrap();
    let keys = &ledger.keys().newest().log_keys;
    let rounds = oracle::check(&served, "rounds", &keys.rounds);
    assert_eq!(Digest::of(&[b"\0", &rounds[0][..]].concat()), ledger.run_id());
    assert_eq!(oracle::check(&served, "submissions", &keys.submissions).len(), 4);
    // A width that was written once and gave way to a wider one, and one that is not there yet.
    assert_eq!(served.get("/log/submissions/tile/0/000.p/2", &[]).body.len(), 64);
    assert_eq!(served.get("/log/submissions/tile/0/000.p/5", &[]).status, 404);
    assert_eq!(served.get("/log/submissions/tile/0/000", &[]).status, 404);
    for foreign in
        ["tile/0/0", "tile/0/000.p/0", "tile/0/000.p/02", "tile/0/x000/000", "tree-state"]
    {
        assert_eq!(served.get(&format!("/log/rounds/{foreign}"), &[]).status, 404, "{foreign}");
    }
    let proof = served.json("/v1/proofs/submissions/1?size=3");
    let digests = |value: &serde_json::Value| -> Vec<tlog_tiles::Hash> {
        let digest = |v: &serde_json::Value| v.as_str().unwrap().parse::<Digest>().unwrap().0;
        value.as_array().unwrap().iter().map(|v| tlog_tiles::Hash(digest(v))).collect()
    };
    let one = |value: &serde_json::Value| digests(&serde_json::json!([value]))[0];
    let path = digests(&proof["proof"]);
    tlog_tiles::check_record(&path, 3, one(&proof["root"]), 1, one(&proof["leaf"])).unwrap();
    let grown = served.json("/v1/consistency/submissions?from=1&to=4");
    let path = digests(&grown["proof"]);
    let (from, to) = (one(&grown["from_root"]), one(&grown["to_root"]));
    tlog_tiles::check_tree(&path, 4, to, 1, from).unwrap();
}

// ---- what every answer has ----

#[test]
fn methods_and_paths_that_are_not_there_are_problems() {
    let fixture = native();
    let served = Served::start(&fixture.root(), limits());
    let post = served.send("POST", "/v1/ledger", &["content-length: 0"]);
    assert_eq!((post.status, post.code()), (405, "method-not-allowed".to_owned()));
    assert_eq!(post.header("allow"), Some("GET, HEAD, OPTIONS"));
    assert_eq!(served.get("/", &[]).code(), "not-found");
    let options = served.send("OPTIONS", "/v1/rounds", &["origin: https://elsewhere.invalid"]);
    assert_eq!(options.status, 204);
    assert_eq!(options.header("access-control-allow-origin"), Some("*"));
    assert!(options.header("access-control-allow-headers").unwrap().contains("range"));
    let get = served.get("/v1/ledger", &[]);
    assert_eq!(get.header("access-control-allow-origin"), Some("*"));
    assert!(get.header("access-control-expose-headers").unwrap().contains("content-range"));
    let ids: BTreeSet<_> = (0..9)
        .map(|_| served.get("/healthz", &[]).header("x-request-id").unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 9);
}

#[test]
fn the_document_lists_every_route() {
    let fixture = native();
    let served = Served::start(&fixture.root(), limits());
    let document = served.json("/openapi.json");
    assert_eq!(document["openapi"], "3.1.0");
    let paths: BTreeSet<&str> =
        document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    for endpoint in gradledger::http::routes::table() {
        let path = endpoint.template.replace("*}", "}");
        let method = endpoint.method.as_str().to_lowercase();
        let operation = &document["paths"][&path][&method];
        let answers = operation["responses"].as_object().expect("its answers");
        // A repository has an owner: a name alone only says that there is none, as the Hub does.
        let success = if path == "/api/models/{name}" { '4' } else { '2' };
        assert!(answers.keys().any(|status| status.starts_with(success)), "{method} {path}");
        assert!(paths.contains(path.as_str()));
    }
}

#[test]
fn metrics_are_told_on_an_address_of_their_own() {
    let fixture = native();
    let served = Served::start(&fixture.root(), limits());
    served.get("/v1/ledger", &[]);
    assert_eq!(served.get("/metrics", &[]).status, 404);
    let mut stream = connect(served.metrics);
    write!(stream, "{}", head("GET", "/metrics", &[], true)).unwrap();
    let reply = read_reply(&mut stream, "GET").unwrap();
    assert!(reply.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = reply.text();
    let counted = "gradledger_http_requests_total{method=\"GET\",status=\"200\"} 1\n";
    assert!(text.contains(counted) && text.contains("gradledger_rounds 1\n"), "{text}");
    assert!(text.ends_with("# EOF\n"));
}

// ---- limits ----

/// Reads until the other side closes; how long that took.
fn until_closed(stream: &mut std::net::TcpStream) -> (Vec<u8>, Duration) {
    let (begun, mut all) = (Instant::now(), Vec::new());
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut all);
    (all, begun.elapsed())
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    let fixture = native();
    let served = Served::start(&fixture.root(), limits());
    let many: Vec<String> = (0..200).map(|n| format!("x-{n}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(served.get("/healthz", &many).status, 431);
    let mut stream = served.connect();
    let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: test\r\nx: ");
    for _ in 0..64 {
        // It is closed before all of it is read.
        if stream.write_all(&[b'y'; 4096]).is_err() {
            break;
        }
    }
    let (answer, _) = until_closed(&mut stream);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let long = format!("/{}", "a".repeat(30_000));
    assert_eq!(served.get(&long, &[]).status, 404);
}

#[test]
fn a_head_that_takes_too_long_is_cut_off() {
    let fixture = native();
    let limits = Limits { head_timeout: Duration::from_secs(1), ..limits() };
    let served = Served::start(&fixture.root(), limits);
    let mut slow = served.connect();
    slow.write_all(b"GET /healthz HT").unwrap();
    let mut idle = served.connect();
    let mut kept = served.connect();
    write!(kept, "{}", head("GET", "/healthz", &[], false)).unwrap();
    assert_eq!(read_reply(&mut kept, "GET").unwrap().status, 200);
    for stream in [&mut slow, &mut idle, &mut kept] {
        let (_, took) = until_closed(stream);
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}

#[test]
fn a_reader_that_stalls_is_cut_off_and_a_slow_one_is_not() {
    let fixture = native();
    let bytes = 64 << 20;
    large_file(&fixture, 1 << 20);
    let file = fixture.root().join("tables/large/blob.parquet");
    fs::OpenOptions::new().write(true).open(file).unwrap().set_len(bytes).unwrap();
    let limits = Limits { stall_timeout: Duration::from_secs(2), ..limits() };
    let served = Served::start(&fixture.root(), limits);
    let mut stalled = served.connect();
    write!(stalled, "{}", head("GET", LARGE, &[], true)).unwrap();
    let mut slow = served.connect();
    write!(slow, "{}", head("GET", LARGE, &[], true)).unwrap();
    // 2 MiB in each quarter of a second.
    let (begun, mut read, mut buffer) = (Instant::now(), 0, vec![0; 2 << 20]);
    while begun.elapsed() < Duration::from_secs(6) {
        slow.read_exact(&mut buffer).unwrap();
        read += buffer.len() as u64;
        std::thread::sleep(Duration::from_millis(250));
    }
    let (rest, _) = until_closed(&mut slow);
    assert!(read + rest.len() as u64 > bytes, "the slow one got {read} and {}", rest.len());
    let (got, _) = until_closed(&mut stalled);
    assert!((got.len() as u64) < bytes, "the stalled one got {}", got.len());
}

#[test]
fn one_connection_too_many_is_told_to_come_again() {
    let fixture = native();
    for limits in [
        Limits { connections_max: 2, ..limits() },
        Limits { connections_per_address_max: 2, ..limits() },
    ] {
        let served = Served::start(&fixture.root(), limits);
        let held: Vec<_> = (0..2)
            .map(|_| {
                let mut stream = served.connect();
                write!(stream, "{}", head("GET", "/healthz", &[], false)).unwrap();
                assert_eq!(read_reply(&mut stream, "GET").unwrap().status, 200);
                stream
            })
            .collect();
        let reply = served.get("/healthz", &[]);
        assert_eq!((reply.status, reply.header("retry-after")), (429, Some("1")));
        drop(held);
        let begun = Instant::now();
        while served.get("/healthz", &[]).status != 200 {
            assert!(begun.elapsed() < Duration::from_secs(10), "the places stay taken");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn open_answers_end_before_the_server_does() {
    let fixture = native();
    let content = large_file(&fixture, 24 << 20);
    let mut served = Served::start(
        &fixture.root(),
        Limits { drain_timeout: Duration::from_secs(60), ..limits() },
    );
    let mut idle = served.connect();
    write!(idle, "{}", head("GET", "/healthz", &[], false)).unwrap();
    assert_eq!(read_reply(&mut idle, "GET").unwrap().status, 200);
    let mut reading = served.connect();
    write!(reading, "{}", head("GET", LARGE, &[], false)).unwrap();
    let mut first = [0; 1024];
    reading.read_exact(&mut first).unwrap();
    served.stop();
    // Who is idle is sent away at once, who comes is not let in.
    assert!(until_closed(&mut idle).1 < Duration::from_secs(10));
    assert!(std::net::TcpStream::connect(served.address).is_err());
    let (rest, _) = until_closed(&mut reading);
    let all = [&first[..], &rest].concat();
    assert!(all.ends_with(&content), "{} bytes", all.len());
    served.join();
}

#[test]
fn a_drain_does_not_wait_for_ever() {
    let fixture = native();
    large_file(&fixture, 24 << 20);
    let limits = Limits { drain_timeout: Duration::from_secs(1), ..limits() };
    let mut served = Served::start(&fixture.root(), limits);
    let mut stalled = served.connect();
    write!(stalled, "{}", head("GET", LARGE, &[], true)).unwrap();
    stalled.read_exact(&mut [0; 64]).unwrap();
    let begun = Instant::now();
    served.stop();
    served.join();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

// ---- whatever is asked ----

/// Pieces that fuzzed requests are made of.
const WORDS: [&str; 24] = [
    "v1",
    "files",
    "log",
    "rounds",
    "submissions",
    "tile",
    "entries",
    "000.p",
    "0",
    "1",
    "255",
    "99999999999999999999",
    "..",
    "%2e%2e",
    "%",
    "%00",
    "tables",
    "large",
    "blob.parquet",
    "",
    "manifests",
    "artifacts",
    "miners",
    "receipts",
];

const HEADERS: [&str; 6] =
    ["range", "if-range", "if-match", "if-none-match", "accept-encoding", "x-forwarded-for"];

fn word(random: &mut Random) -> String {
    match random.below(8) {
        0 => Digest::of(&random.next().to_le_bytes()).to_hex(),
        1 => (0..random.below(12)).map(|_| char::from(b'!' + random.below(94) as u8)).collect(),
        2 => random.next().to_string(),
        _ => WORDS[random.below(WORDS.len() as u64) as usize].to_owned(),
    }
}

fn value(random: &mut Random) -> String {
    let number = |random: &mut Random| match random.below(4) {
        0 => String::new(),
        1 => random.next().to_string(),
        2 => "9".repeat(random.below(40) as usize),
        _ => random.below(400_000).to_string(),
    };
    match random.below(4) {
        0 => format!("bytes={}-{}", number(random), number(random)),
        1 => format!("bytes={}-{},{}", number(random), number(random), number(random)),
        2 => format!("\"{}\"", word(random)),
        _ => (0..random.below(20)).map(|_| char::from(b' ' + random.below(95) as u8)).collect(),
    }
}

#[test]
fn no_request_is_answered_with_a_failure() {
    let fixture = imported();
    large_file(&fixture, 300_000);
    let served = Served::start(&fixture.root(), limits());
    let seed = 0x6e0;
    println!("seed {seed}");
    let mut random = Random(seed);
    let real = [
        "/v1/ledger",
        "/v1/rounds",
        LARGE,
        "/log/rounds/checkpoint",
        "/v1/anchors",
        "/v1/rounds/101",
    ];
    for n in 0..3000 {
        let mut path = match random.below(3) {
            0 => real[random.below(real.len() as u64) as usize].to_owned(),
            _ => (0..1 + random.below(7)).map(|_| format!("/{}", word(&mut random))).collect(),
        };
        if random.below(3) == 0 {
            let names = ["after", "limit", "bytes", "manifest", "size", "from", "to"];
            let name = names[random.below(7) as usize];
            path = format!("{path}?{name}={}", word(&mut random));
        }
        path.retain(|c| c != ' ' && c != '#');
        let headers: Vec<String> = (0..random.below(3))
            .map(|_| format!("{}: {}", HEADERS[random.below(6) as usize], value(&mut random)))
            .collect();
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let method = ["GET", "HEAD", "GET", "OPTIONS", "DELETE"][random.below(5) as usize];
        let reply = served.send(method, &path, &headers);
        assert!(reply.status < 500, "request {n}: {method} {path} {headers:?}: {reply:?}");
    }
}

#[test]
fn a_server_that_may_open_few_files_says_how_many_connections_it_takes() {
    let fixture = native();
    let shell =
        "ulimit -n 300 && exec \"$0\" serve \"$1\" --json --listen 127.0.0.1:0 --metrics off";
    let mut child = std::process::Command::new("sh")
        .args(["-c", shell])
        .arg(program())
        .arg(fixture.root())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    let said = "at most 86 connections at once, not 1024: 300 files may be open here, and `ulimit -n 2176`";
    assert!(log.contains(said), "{log}");
}

/// Where a test's own program lies.
fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_gradledger"))
}

#[test]
fn the_command_says_where_it_listens_and_ends_in_order() {
    let fixture = native();
    let config = "[serve]\nlisten = \"127.0.0.1:0\"\nmetrics = \"127.0.0.1:0\"\n";
    fs::write(fixture.root().join("gradledger.toml"), config).unwrap();
    let mut child = std::process::Command::new(program())
        .args(["serve", "--json", "--log-format", "json", "--metrics", "off"])
        .arg(fixture.root())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut document = String::new();
    while serde_json::from_str::<serde_json::Value>(&document).is_err() {
        assert!(std::io::BufRead::read_line(&mut stdout, &mut document).unwrap() > 0, "{document}");
    }
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!((&document["schema_version"], document["metrics"].is_null()), (&1.into(), true));
    let address: std::net::SocketAddr = document["listen"].as_str().unwrap().parse().unwrap();
    assert!(address.ip().is_loopback());
    let mut stream = connect(address);
    write!(stream, "{}", head("GET", "/v1/ledger", &[], true)).unwrap();
    let reply = read_reply(&mut stream, "GET").unwrap();
    assert_eq!(reply.status, 200);
    let kill = format!("kill -TERM {}", child.id());
    assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    let id = reply.header("x-request-id").unwrap();
    let line = log.lines().find(|line| line.contains("answered")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["span"]["id"], id);
    assert_eq!(
        (&line["fields"]["status"], &line["span"]["path"]),
        (&200.into(), &"/v1/ledger".into())
    );
}
