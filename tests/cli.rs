//! The command as a stranger runs it: exit codes, documents, streams, and hostile surroundings.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::{ffi::OsStringExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use common::{
    Random,
    gradient::Gradient,
    model::{Model, Run, Tensor, all_files, copy_all, file_name, safetensors},
};
use gradledger::{
    store::{lock::WriterLock, segment},
    types::{rule::Dialect, tensor::Dtype},
};
use serde_json::Value;
use tempfile::TempDir;

fn command<A: AsRef<OsStr>>(args: &[A]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
    command.args(args).env_remove("RUST_BACKTRACE").env_remove("GRADLEDGER_LOG_KEY_FILE");
    command
}

fn run<A: AsRef<OsStr>>(args: &[A]) -> Output {
    let output = command(args).output().unwrap();
    assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What it says on stderr when it ends with this code; stdout has nothing then.
fn fails(code: i32, args: &[&str]) -> String {
    let output = run(args);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
    assert!(!error.trim().is_empty(), "{args:?} says nothing");
    error
}

fn succeeds(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The one document that a command prints.
fn json(args: &[&str]) -> Value {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let document: Value = serde_json::from_str(&succeeds(&args)).unwrap();
    assert_eq!(document["schema_version"], 1, "{args:?}");
    document
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn assert_has(value: &Value, wanted: &[&str]) {
    for key in wanted {
        assert!(value.get(key).is_some(), "no {key:?} in {:?}", keys(value));
    }
}

fn is_digest(value: &Value) -> bool {
    value.as_str().is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// A directory with a checkpoint and the files of two rounds; uid 9's are refused, 7 has none.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        let mut model = Model::small(Dialect::Templar);
        model.tensors.push(Tensor::new("d.step", Dtype::I64, &[1], vec![1; 8]));
        safetensors(&place.at("model.safetensors"), &model.tensors);
        for round in [5, 8] {
            let files = place.at(&format!("w{round}"));
            fs::create_dir(&files).unwrap();
            for uid in [3, 4, 5] {
                let delta = model.delta(&mut Random(round * 100 + u64::from(uid)));
                let bytes = Gradient::of(&model, round, &delta).write();
                fs::write(files.join(file_name(round, uid)), bytes).unwrap();
            }
            fs::write(files.join(file_name(round, 9)), "cut").unwrap();
        }
        place
    }

    fn sealed() -> Self {
        let place = Self::new();
        place.init();
        for round in ["5", "8"] {
            place.import(round);
            succeeds(&["seal", &place.ledger(), "--round", round]);
        }
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    fn ledger(&self) -> String {
        self.text("ledger")
    }

    fn init_args(&self) -> Vec<String> {
        let (ledger, checkpoint) = (self.ledger(), self.text("model.safetensors"));
        let args =
            ["init", &ledger, "--run", "r", "--checkpoint", &checkpoint, "--rule", "templar"];
        let more = ["--lr", "0.4", "--chunk", "8", "--top-k", "4", "--bins", "4", "--frozen"];
        args.iter().chain(&more).map(|&arg| arg.to_owned()).collect()
    }

    fn init(&self) -> Value {
        let args = self.init_args();
        json(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn import(&self, round: &str) -> Value {
        let (ledger, files) = (self.ledger(), self.text(&format!("w{round}")));
        let args = ["import", "templar", &ledger, "--round", round, "--gradients", &files];
        json(&[&args[..], &["--peers", "3,4,9,7", "--reserve", "5,6"]].concat())
    }
}

// ---- documents ----

#[test]
fn every_document_has_the_promised_fields() {
    let place = Place::new();
    let ledger = place.ledger();
    let init = place.init();
    assert_has(&init, &["run", "run_id", "model", "log_keys", "frozen", "left_out"]);
    assert_eq!(init["frozen"], serde_json::json!(["d.step"]));

    let import = place.import("5");
    assert_eq!(import["round"], 5);
    let outcomes: Vec<(&Value, &Value)> = import["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| (&file["uid"], &file["outcome"]))
        .collect();
    let expected = serde_json::json!([3, "delta", 4, "delta", 9, "refused", 5, "delta"]);
    let expected: Vec<_> =
        expected.as_array().unwrap().chunks(2).map(|p| (p[0].clone(), p[1].clone())).collect();
    assert!(outcomes.iter().zip(&expected).all(|(a, b)| *a.0 == b.0 && *a.1 == b.1), "{import}");
    assert_eq!(import["absent"], serde_json::json!([7]));

    let seal = json(&["seal", &ledger, "--round", "5"]);
    assert_eq!(seal["round"], 5);
    assert!(is_digest(&seal["record"]) && is_digest(&seal["next"]["root"]));
    assert_has(&seal["next"], &["root", "count", "bytes"]);
    let accepted = seal["accepted"].as_array().unwrap();
    let order: Vec<_> = accepted.iter().map(|a| (a["uid"].as_u64(), a["order"].as_u64())).collect();
    assert_eq!(order, [(Some(3), Some(0)), (Some(4), Some(1)), (Some(5), Some(2))]);
    assert!(accepted.iter().all(|a| a["miner"].is_null() && a.get("miner").is_some()));
    let rejected = seal["rejected"].as_array().unwrap();
    let reasons: Vec<_> = rejected
        .iter()
        .map(|r| (r["uid"].as_u64().unwrap(), r["file"].as_str(), r["reason"].as_str().unwrap()))
        .collect();
    let nine = file_name(5, 9);
    assert_eq!(reasons, [(9, Some(nine.as_str()), "truncated"), (7, None, "absent")]);
    assert!(rejected.iter().all(|r| r.get("miner").is_some_and(Value::is_null)));
    assert_eq!(seal["skipped"], serde_json::json!([]));

    let show = json(&["show", &ledger]);
    assert_eq!((&show["run"], &show["rounds"]), (&Value::from("r"), &Value::from(1)));
    assert_has(&show["log_keys"], &["rounds", "submissions"]);
    assert_has(&show["head"], &["round", "root", "count", "bytes"]);
    assert_eq!(show["head"]["root"], seal["next"]["root"]);
    let round = json(&["show", &ledger, "--round", "5"]);
    assert_has(&round, &["index", "leaf", "record", "skipped", "dispositions"]);
    assert_eq!(round["leaf"], seal["record"]);

    let replay = json(&["replay", &ledger, "--round", "5"]);
    assert_eq!(replay["rounds"][0]["next"], seal["next"]);
    let log = json(&["log", &ledger]);
    assert_eq!(log["entries"][1]["leaf"], seal["record"]);
    assert_has(&log, &["log", "size", "root", "entries"]);
    let log = json(&["log", &ledger, "--submissions"]);
    assert_eq!((log["size"].as_u64(), &log["entries"][2]["entry"]["uid"]), (Some(4), &9.into()));
    let diff = json(&["diff", &ledger]);
    assert_has(&diff["tensors"][0], &["name", "elements", "changed", "max_abs", "rms"]);
    let fsck = json(&["fsck", &ledger]);
    assert_has(&fsck, &["log_entries", "checkpoints", "deltas", "quarantined", "rounds", "bytes"]);
    let export = json(&["export", &ledger, "--round", "5", "--out", &place.text("out")]);
    assert_eq!(export["files"][0]["name"], "model.safetensors");
    assert!(is_digest(&export["files"][0]["sha256"]));
    let bf16 = json(&[
        "export",
        &ledger,
        "--round",
        "genesis",
        "--out",
        &place.text("bf16"),
        "--dtype",
        "bf16",
    ]);
    assert_ne!(bf16["files"][0]["sha256"], export["files"][0]["sha256"]);
}

#[test]
fn talk_goes_to_stderr_and_quiet_silences_it() {
    let place = Place::sealed();
    let ledger = place.ledger();
    let output = run(&["replay", &ledger, "--round", "5..8"]);
    let lines = text(&output.stdout);
    assert_eq!(lines.lines().count(), 2);
    assert!(
        lines.lines().all(|line| line.starts_with("round ") && line.contains("equal")),
        "{lines}"
    );
    assert!(!output.stderr.is_empty());
    let quiet = run(&["--quiet", "replay", &ledger, "--round", "5..8"]);
    assert_eq!((quiet.stdout, text(&quiet.stderr)), (output.stdout, String::new()));
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(succeeds(&["completions", shell]).contains("gradledger"), "{shell}");
    }
}

// ---- exit codes ----

#[test]
fn a_wrong_argument_round_or_tensor_is_exit_2() {
    let place = Place::sealed();
    let ledger = place.ledger();
    for args in [
        &["replay", &ledger, "--round", "6"][..],
        &["replay", &ledger, "--round", "8..5"],
        &["replay", &ledger, "--round", "x"],
        &["replay", &ledger, "--round", "5", "--tensor", "none"],
        &["show", &ledger, "--round", "6"],
        &["export", &ledger, "--round", "6", "--out", "/nowhere/at/all"],
        &["diff", &ledger, "--from", "6"],
        &["seal", &ledger, "--round", "9"],
        &["seal", &ledger, "--round", "5"],
        &["frobnicate"],
        &["import", "templar", &ledger, "--round", "9", "--peers", "1"],
        &["import", "templar", &ledger, "--round", "9", "--gradients", "/nowhere"],
        &["import", "templar", &ledger, "--round", "8", "--gradients", "/tmp", "--peers", "1"],
        &["import", "templar", &ledger, "--round", "9", "--aggregator", "x", "--reserve", "1"],
    ] {
        fails(2, args);
    }
    let place = Place::new();
    let args = place.init_args();
    for (flag, value) in [("--bins", "5"), ("--chunk", "1"), ("--lr", "NaN"), ("--top-k", "1")] {
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        let at = args.iter().position(|arg| *arg == flag).unwrap();
        args[at + 1] = value;
        fails(2, &args);
        assert!(!place.at("ledger").exists(), "{flag} {value} left something");
    }
}

#[test]
fn no_ledger_is_exit_10_and_says_how_to_make_one() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("absent")] {
        let path = path.to_str().unwrap();
        for args in [
            &["show", path][..],
            &["log", path],
            &["fsck", path],
            &["diff", path],
            &["replay", path, "--round", "1"],
            &["export", path, "--round", "genesis", "--out", path],
            &["seal", path, "--round", "1"],
            &["import", "templar", path, "--round", "1", "--gradients", path, "--peers", "1"],
        ] {
            assert!(fails(10, args).contains("gradledger init"), "{args:?}");
        }
    }
    // Looking for a ledger leaves nothing behind.
    assert_eq!(all_files(dir.path()), Vec::<PathBuf>::new());
    assert!(!dir.path().join("absent").exists());
}

#[test]
fn a_second_writer_is_exit_11_and_readers_go_on() {
    let place = Place::sealed();
    let (ledger, files) = (place.ledger(), place.text("w8"));
    let lock = WriterLock::acquire(Path::new(&ledger)).unwrap();
    let import = ["import", "templar", &ledger, "--round", "9", "--gradients", &files];
    for args in [&["seal", &ledger, "--round", "9"][..], &[&import[..], &["--peers", "3"]].concat()]
    {
        assert!(fails(11, args).contains("another process"), "{args:?}");
    }
    reads(&ledger, &place.text("out"));
    drop(lock);
    assert!(!fails(2, &["seal", &ledger, "--round", "9"]).contains("another process"));
}

/// Every command that only reads.
fn reads(ledger: &str, out: &str) {
    for args in [
        &["show", ledger][..],
        &["show", ledger, "--round", "5"],
        &["log", ledger],
        &["log", ledger, "--submissions"],
        &["diff", ledger],
        &["replay", ledger, "--round", "5..8"],
        &["replay", ledger, "--round", "8", "--tensor", "c.odd"],
        &["fsck", ledger],
        &["export", ledger, "--round", "8", "--out", out],
    ] {
        succeeds(args);
    }
}

#[test]
fn reading_needs_no_right_to_write() {
    let place = Place::sealed();
    copy_all(&place.at("ledger"), &place.at("copy"));
    let before: Vec<_> =
        all_files(&place.at("copy")).iter().map(|p| fs::read(p).unwrap()).collect();
    let chmod = |mode: &str| {
        let done = Command::new("chmod").args(["-R", mode, &place.text("copy")]).status().unwrap();
        assert!(done.success());
    };
    chmod("a-w");
    reads(&place.text("copy"), &place.text("out"));
    let after: Vec<_> = all_files(&place.at("copy")).iter().map(|p| fs::read(p).unwrap()).collect();
    assert!(before == after, "a reading command wrote");
    chmod("u+w");
}

#[test]
fn damage_is_exit_20_and_named() {
    let place = Place::sealed();
    let ledger = place.ledger();
    let opened = gradledger::ledger::Ledger::open(&place.at("ledger")).unwrap();
    let state = opened.checkpoint(opened.genesis().model).unwrap();
    let d = &state.manifest().descriptors()[0];
    let path = segment::place::tensor(&place.at("ledger"), &d.artifact(), d.dtype);
    let mut bytes = fs::read(&path).unwrap();
    bytes[200] ^= 1;
    fs::write(&path, bytes).unwrap();
    for args in [&["fsck", &ledger][..], &["replay", &ledger, "--round", "5"]] {
        assert!(fails(20, args).contains("a.weight"), "{args:?}");
    }
    let out = place.text("out");
    assert!(
        fails(20, &["export", &ledger, "--round", "genesis", "--out", &out]).contains("a.weight")
    );
    assert!(!place.at("out/SHA256SUMS").exists());
}

#[test]
fn a_signature_that_does_not_verify_is_exit_21() {
    let place = Place::sealed();
    let head = place.at("ledger/log/rounds/checkpoint");
    let note = fs::read_to_string(&head).unwrap();
    // Within the last line's base64, behind name and key id.
    let at = note.trim_end().len() - 20;
    let other = if note.as_bytes()[at] == b'A' { "B" } else { "A" };
    fs::write(&head, format!("{}{other}{}", &note[..at], &note[at + 1..])).unwrap();
    assert!(fails(21, &["fsck", &place.ledger()]).contains("log/rounds/checkpoint"));
}

#[test]
fn init_where_a_ledger_is_fails_and_says_what_to_do() {
    let place = Place::sealed();
    let args = place.init_args();
    let error = fails(1, &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(error.contains("another directory"), "{error}");
}

#[test]
fn errors_end_with_what_to_do_next() {
    let place = Place::new();
    let ledger = place.ledger();
    let mut args = place.init_args();
    args.retain(|arg| arg != "--frozen");
    let error = fails(1, &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(error.contains("--frozen") && error.contains("d.step"), "{error}");
    place.init();
    let error = fails(2, &["seal", &ledger, "--round", "5"]);
    assert!(error.contains("gradledger import templar"), "{error}");
    place.import("5");
    let files = place.text("w8");
    let next =
        ["import", "templar", &ledger, "--round", "8", "--gradients", &files, "--peers", "3"];
    let error = fails(2, &next);
    assert!(error.contains("seal it"), "{error}");
    let error = fails(2, &["replay", &ledger, "--round", "5"]);
    assert!(error.contains("none yet"), "{error}");
    fs::create_dir(place.at("full")).unwrap();
    fs::write(place.at("full/x"), "x").unwrap();
    let error = fails(1, &["export", &ledger, "--round", "genesis", "--out", &place.text("full")]);
    assert!(error.contains("empty directory"), "{error}");
}

// ---- streams ----

/// Runs a command with its stdout, or its stderr, going to a reader that is gone.
fn into_closed_pipe(args: &[&str], closed_stderr: bool) -> Option<i32> {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = command(args);
    if closed_stderr {
        command.stdout(Stdio::null()).stderr(writer);
    } else {
        command.stdout(writer).stderr(Stdio::piped());
    }
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert!(!text(&output.stderr).contains("panicked"), "{args:?}: {}", text(&output.stderr));
    output.status.code()
}

#[test]
fn a_reader_who_has_seen_enough_is_no_failure() {
    let place = Place::sealed();
    let ledger = place.ledger();
    for args in [
        &["show", &ledger][..],
        &["show", &ledger, "--round", "5", "--json"],
        &["log", &ledger],
        &["diff", &ledger],
        &["fsck", &ledger],
        &["replay", &ledger, "--round", "5"],
        &["completions", "bash"],
        &["completions", "zsh"],
        &["--help"],
    ] {
        for closed_stderr in [false, true] {
            let code = into_closed_pipe(args, closed_stderr);
            assert_eq!(code, Some(0), "{args:?}, stderr {closed_stderr}");
        }
    }
    // A failure stays one, though nobody reads what it says.
    assert_eq!(into_closed_pipe(&["show", "/nowhere"], true), Some(10));
    assert_eq!(into_closed_pipe(&["replay", &ledger, "--round", "7"], true), Some(2));
    let demo = place.text("demo");
    assert_eq!(into_closed_pipe(&["demo", "--steps", "4", "--dir", &demo], true), Some(0));
}

// ---- hostile surroundings ----

fn import_args(place: &Place, peers: &str) -> Vec<OsString> {
    let (ledger, files) = (place.ledger(), place.text("w5"));
    ["import", "templar", &ledger, "--round", "5", "--gradients", &files, "--peers", peers]
        .map(OsString::from)
        .to_vec()
}

#[test]
fn hostile_names_of_strangers_files_are_harmless() {
    let place = Place::new();
    place.init();
    for name in [
        &b"gradient-5-77-v\x1b[2J\x1b]0;owned\x07.pt"[..],
        b"gradient-5-78-v\xff\xfe.pt",
        b"gradient-5-79-v\n.pt",
        b"gradient-5-999999999999999999999-v1.pt",
        b"gradient-5--1-v1.pt",
        b"\xff\xff",
        b"gradient-5-80-v\xe2\x80\xae.pt",
    ] {
        fs::write(place.at("w5").join(OsString::from_vec(name.to_vec())), "x").unwrap();
    }
    let output = run(&import_args(&place, "3,4"));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(shown.contains("gradient-5-77-v"), "{shown}");
    let control = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!shown.contains(control), "{shown:?}");
    assert!(
        shown.lines().all(|line| line.starts_with("round ")
            || line.starts_with("  uid ")
            || line.starts_with("left alone: ")),
        "{shown:?}"
    );
}

#[test]
fn a_listed_miners_file_with_a_hostile_name_is_named_and_nothing_happens() {
    for name in [&b"gradient-5-3-v\x1b[2J.pt"[..], b"gradient-5-3-v\xff\xfe.pt"] {
        let place = Place::new();
        place.init();
        fs::remove_file(place.at("w5").join(file_name(5, 3))).unwrap();
        fs::write(place.at("w5").join(OsString::from_vec(name.to_vec())), "x").unwrap();
        let output = run(&import_args(&place, "3,4"));
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("rename the file") && !error.contains('\x1b'), "{error:?}");
        assert_eq!(json(&["show", &place.ledger()])["submissions_log"]["size"], 0);
    }
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let place = Place::new();
    place.init();
    let name = place.at("w5").join(file_name(5, 3));
    fs::remove_file(&name).unwrap();
    fs::create_dir(&name).unwrap();
    let output = run(&import_args(&place, "3,4"));
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    fs::remove_dir(&name).unwrap();
    assert!(Command::new("mkfifo").arg(&name).status().unwrap().success());
    let output = run(&import_args(&place, "3,4"));
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

#[test]
fn the_log_key_is_the_owners_alone() {
    let place = Place::new();
    place.init();
    let mode = fs::metadata(place.at("ledger/keys/log.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_key_kept_elsewhere_is_used_and_not_copied() {
    let place = Place::new();
    let (ledger, key) = (place.ledger(), place.text("keys-elsewhere.key"));
    let mut args = place.init_args();
    args.extend(["--log-key-file".to_owned(), key.clone()]);
    succeeds(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(!place.at("ledger/keys/log.key").exists());
    let import = import_args(&place, "3,4");
    let without = run(&import);
    assert_eq!(without.status.code(), Some(1));
    assert!(text(&without.stderr).contains("log.key"), "{}", text(&without.stderr));
    let with = [&import[..], &["--log-key-file".into(), key.clone().into()]].concat();
    assert_eq!(run(&with).status.code(), Some(0));
    succeeds(&["seal", &ledger, "--round", "5", "--log-key-file", &key]);
    succeeds(&["fsck", &ledger]);
}

#[test]
fn peers_come_from_a_file_too() {
    let place = Place::new();
    place.init();
    let (ledger, files, peers) = (place.ledger(), place.text("w5"), place.text("peers.json"));
    fs::write(&peers, r#"{"peers": [3, 9], "reserve_peers": [5], "sync_window": 1}"#).unwrap();
    let args = ["import", "templar", &ledger, "--round", "5", "--gradients", &files];
    json(&[&args[..], &["--peers-file", &peers]].concat());
    let seal = json(&["seal", &ledger, "--round", "5"]);
    let uids: Vec<_> =
        seal["accepted"].as_array().unwrap().iter().map(|a| a["uid"].as_u64()).collect();
    assert_eq!(uids, [Some(3), Some(5)]);
    fs::write(&peers, r#"{"peers": [3, 3]}"#).unwrap();
    assert!(fails(2, &[&args[..], &["--peers-file", &peers]].concat()).contains("peers.json"));
}

/// Files that Templar's own code wrote, through the command, to the parameters that it computed.
#[test]
fn golden_templar_files_are_folded_to_the_same_bits() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/templar/small");
    let file = |name: &str| golden.join(name).to_str().unwrap().to_owned();
    let dir = tempfile::tempdir().unwrap();
    let below = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (ledger, first) = (below("ledger"), file("params-initial.safetensors"));
    let init = ["init", &ledger, "--run", "golden", "--checkpoint", &first, "--rule", "templar"];
    let rule = ["--lr", "0.4", "--chunk", "8", "--top-k", "4", "--bins", "4"];
    succeeds(&[&init[..], &rule].concat());
    for round in ["62834", "62835"] {
        let files = file(&format!("w{round}"));
        let import = ["import", "templar", &ledger, "--round", round, "--gradients", &files];
        succeeds(&[&import[..], &["--peers", "7,3,41,12", "--reserve", "200,55"]].concat());
        succeeds(&["seal", &ledger, "--round", round]);
        let out = below(round);
        succeeds(&["export", &ledger, "--round", round, "--out", &out]);
        let read = |path: &str| fs::read(path).unwrap();
        let (ours, theirs) = (
            read(&format!("{out}/model.safetensors")),
            read(&file(&format!("w{round}/params-after.safetensors"))),
        );
        let ours = safetensors::SafeTensors::deserialize(&ours).unwrap();
        let theirs = safetensors::SafeTensors::deserialize(&theirs).unwrap();
        assert_eq!(ours.len(), theirs.len());
        for (name, tensor) in theirs.tensors() {
            assert_eq!(ours.tensor(&name).unwrap().data(), tensor.data(), "round {round}: {name}");
        }
    }
    succeeds(&["replay", &ledger, "--round", "62834..62835"]);
}

/// The library's own runs and the command's make the same ledger.
#[test]
fn the_command_seals_what_the_library_seals() {
    let place = Place::sealed();
    let mut model = Model::small(Dialect::Templar);
    model.tensors.push(Tensor::new("d.step", Dtype::I64, &[1], vec![1; 8]));
    let (run, _) = Run::frozen(&model, true).unwrap();
    for round in [5, 8] {
        copy_all(&place.at(&format!("w{round}")), &run.files(round));
        run.import(round, &[3, 4, 9, 7], &[5, 6]);
        run.seal(round);
    }
    let head = json(&["show", &place.ledger()])["head"]["root"].clone();
    assert_eq!(head, run.open().newest().root.to_hex());
}
