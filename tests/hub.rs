//! A ledger as model repositories: what Hub clients ask, answered by a real server with the bytes that
//! `export` writes.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use gradledger::{
    export::{ExportDtype, SHARD_BYTES_MAX, export},
    http::hub::Worker,
    ledger::{
        At, Ledger, LedgerError,
        fsck::fsck,
        hub::{Hashed, file_set, revision},
        init::{InitOptions, init},
    },
    store::{StoreError, files::Disk},
    types::{digest::Digest, progress::Silent, rule::Dialect},
};
use serde_json::{Value, json};

mod common;

use common::{
    Random,
    model::{Model, Run, fold_options, safetensors},
    served::{Reply, Served, limits},
};

const CONFIG: &[u8] = b"{\"model_type\": \"llama\", \"torch_dtype\": \"bfloat16\"}\n";
const TOKENIZER: &[u8] = b"{\"version\": \"1.0\"}";

/// A run with a configuration and a tokenizer, in rounds that change the state, or not.
struct Fixture {
    run: Run,
    model: Model,
}

impl Fixture {
    fn new() -> Self {
        let model = Model::small(Dialect::Templar);
        let run = Run { dir: tempfile::tempdir().unwrap() };
        let served = Self { run, model };
        served.init(&[("config.json", CONFIG), ("tokenizer.json", TOKENIZER)]).unwrap();
        served
    }

    fn init(&self, files: &[(&str, &[u8])]) -> Result<(), LedgerError> {
        let dir = self.run.dir.path();
        let checkpoint = dir.join("checkpoint.safetensors");
        safetensors(&checkpoint, &self.model.tensors);
        let put = |(name, bytes): &(&str, &[u8])| {
            fs::write(dir.join(name), bytes).unwrap();
            dir.join(name)
        };
        let files: Vec<PathBuf> = files.iter().map(put).collect();
        let options = InitOptions {
            files: &files,
            ..InitOptions::new("test", "test.example/run", &checkpoint, self.model.rule.clone())
        };
        init(&self.run.path(), &options, &Silent).map(drop)
    }

    /// Seals a round to which two miners send something.
    fn seal(&self, round: u64) {
        let mut random = Random(round);
        for uid in [3, 9] {
            let delta = self.model.delta(&mut random);
            self.run.put(
                round,
                uid,
                &common::gradient::Gradient::of(&self.model, round, &delta).write(),
            );
        }
        self.run.import(round, &[3, 9], &[]);
        self.run.seal(round);
    }

    fn serve(&self) -> Server {
        Server::start(&self.run.path())
    }

    /// What `export` writes, by name.
    fn exported(&self, at: At, dtype: ExportDtype) -> BTreeMap<String, Vec<u8>> {
        let (ledger, out) = (self.run.open(), tempfile::tempdir().unwrap());
        let checkpoint = ledger.checkpoint(ledger.state(at).unwrap()).unwrap();
        let set = file_set(&ledger, &checkpoint, dtype, SHARD_BYTES_MAX).unwrap();
        export(&checkpoint, &set, &Disk, out.path(), &Silent).unwrap();
        let read = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        };
        fs::read_dir(out.path()).unwrap().map(read).collect()
    }
}

/// A server whose states are being hashed.
struct Server {
    served: Served,
    _worker: Worker,
}

impl std::ops::Deref for Server {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.served
    }
}

impl Server {
    fn start(ledger: &Path) -> Self {
        let served = Served::start(ledger, limits());
        let worker = Worker::start(&served.node).unwrap();
        Self { served, _worker: worker }
    }

    /// Waits until a revision is listed in both repositories.
    fn wait_for(&self, rev: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        for (id, _) in REPOSITORIES {
            while self.get(&format!("/api/models/{id}/revision/{rev}"), &[]).status != 200 {
                assert!(Instant::now() < end, "{id} {rev} is not listed");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

fn header<'a>(reply: &'a Reply, name: &str) -> &'a str {
    reply.header(name).unwrap_or_default()
}

fn documents(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap()
}

const REPOSITORIES: [(&str, ExportDtype); 2] =
    [("gradledger/test", ExportDtype::Bf16), ("gradledger/test-f32", ExportDtype::F32)];

#[test]
fn every_file_of_a_revision_is_the_one_that_export_writes() {
    let served = Fixture::new();
    served.seal(5);
    let server = served.serve();
    server.wait_for("round-5");
    server.wait_for("genesis");
    for (id, dtype) in REPOSITORIES {
        for (rev, at) in
            [("main", At::Round(5)), ("round-5", At::Round(5)), ("genesis", At::Genesis)]
        {
            let exported = served.exported(at, dtype);
            let info = server.json(&format!("/api/models/{id}/revision/{rev}"));
            let commit = info["sha"].as_str().unwrap();
            assert!(
                commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()),
                "{commit}"
            );
            let names: Vec<&str> = info["siblings"]
                .as_array()
                .unwrap()
                .iter()
                .map(|s| s["rfilename"].as_str().unwrap())
                .collect();
            assert_eq!(names, exported.keys().collect::<Vec<_>>());
            assert!(names.contains(&"config.json") && names.contains(&"SHA256SUMS"));
            let tree = server.json(&format!("/api/models/{id}/tree/{commit}?recursive=true"));
            for entry in tree.as_array().unwrap() {
                let name = entry["path"].as_str().unwrap();
                let bytes = &exported[name];
                let sha256 = Digest::of(bytes).to_hex();
                assert_eq!(entry["size"], json!(bytes.len()));
                assert_eq!(entry["lfs"]["oid"], json!(sha256));
                let path = format!("/{id}/resolve/{rev}/{name}");
                let found = server.get(&path, &[]);
                assert_eq!((found.status, &found.body), (200, bytes), "{path}");
                let head = server.send("HEAD", &path, &[]);
                for answer in [&found, &head] {
                    assert_eq!(header(answer, "x-repo-commit"), commit);
                    assert_eq!(header(answer, "etag"), format!("\"{sha256}\""));
                    assert_eq!(header(answer, "x-linked-etag"), format!("\"{sha256}\""));
                    assert_eq!(header(answer, "x-linked-size"), bytes.len().to_string());
                    assert_eq!(header(answer, "content-length"), bytes.len().to_string());
                    assert!(!answer.headers.contains_key("x-xet-hash"));
                }
                assert!(head.body.is_empty());
                let (from, to) = (bytes.len() / 3, bytes.len() / 2);
                let range = format!("bytes={from}-{}", to - 1);
                let part = server.get(&path, &[&format!("range: {range}")]);
                assert_eq!(
                    (part.status, &part.body[..]),
                    (206, &bytes[from..to]),
                    "{path} {range}"
                );
            }
        }
    }
}

#[test]
fn what_is_missing_is_told_by_its_code() {
    let served = Fixture::new();
    let server = served.serve();
    server.wait_for("main");
    let commit = server.json("/api/models/gradledger/test")["sha"].clone();
    let commit = commit.as_str().unwrap();
    for (path, code) in [
        ("/api/models/gradledger/other", "RepoNotFound"),
        ("/api/models/other/test/tree/main", "RepoNotFound"),
        ("/api/models/test", "RepoNotFound"),
        ("/other/test/resolve/main/config.json", "RepoNotFound"),
        ("/gradledger/test/resolve/v1/config.json", "RevisionNotFound"),
        ("/gradledger/test/resolve/round-5/config.json", "RevisionNotFound"),
        ("/api/models/gradledger/test/revision/refs%2Fpr%2F1", "RevisionNotFound"),
        ("/gradledger/test/resolve/main/adapter_config.json", "EntryNotFound"),
        ("/gradledger/test/resolve/main/a/b.json", "EntryNotFound"),
        ("/gradledger/test/resolve/main/..%2F..%2Fkeys%2Flog.key", "EntryNotFound"),
        ("/api/models/gradledger/test/tree/main/folder", "EntryNotFound"),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = server.send(method, path, &[]);
            assert_eq!((answer.status, header(&answer, "x-error-code")), (404, code), "{path}");
            assert!(!header(&answer, "x-error-message").is_empty());
            // Clients keep in mind that this very revision lacks it.
            let expected = if code == "EntryNotFound" { commit } else { "" };
            assert_eq!(header(&answer, "x-repo-commit"), expected, "{path}");
        }
    }
    for path in ["/api/whoami-v2", "/api/datasets/a/b", "/api/models", "/api/agent-harnesses"] {
        assert_eq!(server.get(path, &[]).status, 404, "{path}");
    }
}

#[test]
fn lists_come_in_pages_that_lead_to_each_other() {
    let served = Fixture::new();
    for round in [5, 6, 8] {
        served.seal(round);
    }
    let server = served.serve();
    for rev in ["round-8", "round-6", "round-5", "genesis"] {
        server.wait_for(rev);
    }
    for (path, key, all) in [
        ("/api/models/gradledger/test/tree/main?recursive=true&expand=false", "path", 4),
        ("/api/models/gradledger/test/commits/main?expand[]=formatted", "title", 4),
        ("/api/models/gradledger/test/commits/round-6?", "title", 3),
    ] {
        let whole = server.json(path);
        assert_eq!(whole.as_array().unwrap().len(), all, "{path}");
        let (mut next, mut found) = (format!("{path}&limit=1"), Vec::new());
        loop {
            let page = server.get(&next, &[]);
            let entries = documents(&page);
            assert_eq!(entries.len(), 1, "{next}");
            found.extend(entries);
            let link = header(&page, "link").to_owned();
            if link.is_empty() {
                break;
            }
            // What the client called the server.
            let rest = link.strip_prefix("<http://test").expect("a whole address");
            next = rest.strip_suffix(">; rel=\"next\"").unwrap().to_owned();
        }
        assert_eq!(Value::from(found.clone()), whole);
        assert!(found.iter().all(|entry| entry[key].is_string()));
    }
}

#[test]
fn revisions_go_by_names_and_by_what_they_hold() {
    let served = Fixture::new();
    served.seal(5);
    // Nobody is accepted, so the state stays, and with it the files.
    served.run.put(6, 3, b"cut");
    served.run.import(6, &[3], &[]);
    served.run.seal(6);
    let server = served.serve();
    server.wait_for("round-6");
    server.wait_for("genesis");
    let mut commits = Vec::new();
    for (id, _) in REPOSITORIES {
        let refs = server.json(&format!("/api/models/{id}/refs"));
        let targets: BTreeMap<String, String> = refs["tags"]
            .as_array()
            .unwrap()
            .iter()
            .chain(refs["branches"].as_array().unwrap())
            .map(|r| {
                (
                    r["name"].as_str().unwrap().to_owned(),
                    r["targetCommit"].as_str().unwrap().to_owned(),
                )
            })
            .collect();
        let names: Vec<&str> = targets.keys().map(String::as_str).collect();
        assert_eq!(names, ["genesis", "main", "round-5", "round-6"]);
        assert_eq!(targets["round-5"], targets["round-6"]);
        assert_eq!(targets["main"], targets["round-6"]);
        assert_ne!(targets["main"], targets["genesis"]);
        let history = server.json(&format!("/api/models/{id}/commits/HEAD"));
        assert_eq!(history.as_array().unwrap().len(), 2);
        commits.push(targets["main"].clone());
    }
    assert_ne!(commits[0], commits[1], "bf16 and f32");
    let path = format!("/gradledger/test/resolve/{}/config.json", commits[0]);
    let by_commit = server.get(&path, &[]);
    assert_eq!(by_commit.body, CONFIG);
    assert!(header(&by_commit, "cache-control").contains("immutable"));
    let by_name = server.get("/gradledger/test/resolve/main/config.json", &[]);
    assert!(!header(&by_name, "cache-control").contains("immutable"));
}

#[test]
fn paths_are_looked_up_by_form_or_json() {
    let served = Fixture::new();
    let server = served.serve();
    server.wait_for("main");
    let path = "/api/models/gradledger/test/paths-info/main";
    let form = "content-type: application/x-www-form-urlencoded";
    let json_type = "content-type: application/json; charset=utf-8";
    let names = |answer: &Reply| -> Vec<String> {
        documents(answer).iter().map(|e| e["path"].as_str().unwrap().to_owned()).collect()
    };
    for (kind, body, expected) in [
        (
            form,
            "paths=config.json&paths=none&paths=SHA256SUMS&expand=False",
            vec!["SHA256SUMS", "config.json"],
        ),
        (form, "expand=true", vec![]),
        (
            json_type,
            r#"{"paths": ["config.json", "config.json"], "expand": false}"#,
            vec!["config.json"],
        ),
        (json_type, r#"{"paths": "model.safetensors"}"#, vec!["model.safetensors"]),
    ] {
        let answer = server.post(path, &[kind], body.as_bytes());
        assert_eq!(names(&answer), expected, "{body}");
    }
    let bad =
        [(json_type, "{\"paths\": 3}"), (json_type, "["), (form, "paths=%f"), (form, "paths=%ff")];
    for (kind, body) in bad {
        assert_eq!(server.post(path, &[kind], body.as_bytes()).status, 400, "{body}");
    }
    let long = vec![b'a'; (1 << 20) + 1];
    assert_eq!(server.post(path, &[form], &long).status, 413);
    assert_eq!(server.get(path, &[]).status, 405);
}

#[test]
fn a_new_round_is_listed_while_the_server_runs_and_a_dropped_one_no_more() {
    let served = Fixture::new();
    served.seal(5);
    let server = served.serve();
    server.wait_for("round-5");
    served.seal(6);
    server.wait_for("round-6");
    let sums = || fs::read_dir(served.run.path().join("hub/sums")).unwrap().count();
    server.wait_for("genesis");
    assert_eq!(sums(), 6, "three states in two dtypes");
    let keep = 2.try_into().unwrap();
    let mut writer = served.run.writer();
    gradledger::ledger::gc::gc(&mut writer, keep, &Silent).unwrap();
    drop(writer);
    let end = Instant::now() + Duration::from_secs(30);
    while server.get("/gradledger/test/resolve/round-5/config.json", &[]).status == 200
        || sums() != 4
    {
        assert!(Instant::now() < end, "a dropped state is still listed");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(server.get("/gradledger/test/resolve/round-6/config.json", &[]).status, 200);
}

fn hashed(ledger: &Ledger, stop: &dyn Fn() -> bool) -> Hashed {
    let id = ledger.genesis().model;
    revision(ledger, id, ExportDtype::F32, stop, &mut |error| panic!("{error}")).unwrap()
}

fn whole(ledger: &Ledger) -> gradledger::ledger::hub::Revision {
    match hashed(ledger, &|| false) {
        Hashed::Whole(revision) => revision,
        other => panic!("{other:?}"),
    }
}

/// Whatever becomes of the file with the digests, they come out the same.
#[test]
fn a_torn_or_foreign_list_of_digests_is_made_again() {
    let served = Fixture::new();
    let ledger = served.run.open();
    assert!(matches!(hashed(&ledger, &|| true), Hashed::Stopped));
    let first = whole(&ledger);
    let dir = served.run.path().join("hub/sums");
    let path = fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    let good = fs::read(&path).unwrap();
    for end in 0..good.len() {
        fs::write(&path, &good[..end]).unwrap();
        assert_eq!(whole(&ledger), first, "torn at {end}");
        assert_eq!(fs::read(&path).unwrap(), good);
    }
    let text = String::from_utf8(good.clone()).unwrap();
    for (from, to) in
        [("\"bytes\":", "\"bytes\":1"), ("model.", "other."), ("\"version\":1", "\"version\":2")]
    {
        fs::write(&path, text.replace(from, to)).unwrap();
        assert_eq!(whole(&ledger), first, "{from} as {to}");
    }
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(whole(&ledger), first);
}

#[test]
fn given_files_are_those_of_the_genesis_or_none() {
    let served = Fixture::new();
    let ledger = served.run.open();
    let names: Vec<&str> = ledger.genesis().files.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["config.json", "tokenizer.json"]);
    fsck(&ledger, fold_options(), &Silent).unwrap();
    let path = ledger.place().given_file(Digest::of(CONFIG));
    fs::write(&path, [CONFIG, b" "].concat()).unwrap();
    let checkpoint = ledger.checkpoint(ledger.newest()).unwrap();
    let error = file_set(&ledger, &checkpoint, ExportDtype::F32, SHARD_BYTES_MAX).unwrap_err();
    assert!(matches!(error, LedgerError::Store(StoreError::Given { .. })), "{error}");
    let error = fsck(&ledger, fold_options(), &Silent).unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
    fs::remove_file(&path).unwrap();
    assert!(fsck(&ledger, fold_options(), &Silent).is_err());
    fs::write(&path, CONFIG).unwrap();
    fsck(&ledger, fold_options(), &Silent).unwrap();
}

#[test]
fn files_that_cannot_stand_beside_a_model_are_refused_at_init() {
    for (files, expected) in [
        (vec![("model.safetensors", b"x".as_slice())], "cannot be the name"),
        (vec![("SHA256SUMS", b"x")], "cannot be the name"),
        (vec![("ü.json", b"x")], "cannot be the name"),
    ] {
        let served = Fixture {
            run: Run { dir: tempfile::tempdir().unwrap() },
            model: Model::small(Dialect::Native),
        };
        let error = served.init(&files).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!served.run.path().join("log").exists());
        served.init(&[]).unwrap();
        assert!(served.run.open().genesis().files.is_empty());
    }
}
