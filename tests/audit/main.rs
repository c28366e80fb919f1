//! Audits and bundles: an honest ledger passes, every lie is found by the check that is named for it,
//! and two verifiers that share nothing agree on every bundle.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

#[path = "../common/chain.rs"]
#[allow(dead_code)] // Other tests use the rest.
mod chain;

mod anchors;
mod attacks;
mod bundles;
mod disputes;
mod honest;
mod lies;
mod life;
mod samples;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use common::{
    Random,
    gradient::Gradient,
    model::{Model, Run, Tensor, copy_all, rule},
};
use gradledger::{
    audit::{
        bundle::Bundle,
        checks::{Check, Line, Status, Verdict, verdict},
        dispute::{Difference, first_difference, write_dispute},
        evidence::show,
        prove::{Target, prove},
        prove_evidence::{prove_entries, prove_heads},
        report::{Evidence, Report},
        run::{AuditOptions, audit},
        trust::Trust,
        verify::verify,
    },
    codec::{sr25519::SecretKey, statement::Statement},
    fold::piece::runs,
    intake::{
        admit::Expected,
        native::{NativeAdmission, admit_segments},
    },
    ledger::{
        At, Ledger,
        check::check_round,
        gc::gc,
        init::{InitOptions, init},
        replay::stored_plan,
        rotate::rotate_key,
        submit::{Known, Receipt, SignedStatement, submit_batch},
    },
    merkle::{manifest::manifest_id, note::VerifierKey, pieces::Pieces, policy::Policy},
    seal::dispositions_id,
    store::{
        artifacts::CheckpointWriter,
        files::{Disk, Files, ReadFile, WriteFile},
        keys::{
            self,
            heads::{HeadGuard, HeadSigner},
        },
        log::LogWriter,
        quarantine,
        segment::{self, delta::DeltaWriter},
    },
    types::{
        digest::Digest,
        json,
        manifest::Manifest,
        progress::Silent,
        record::{Disposition, MinersPolicy, RoundRecord, RoundsEntry},
        refusal::{Code, Refusal},
        rule::{Dialect, Mean, SparseMeanSgd},
        submission::{Miner, Outcome, Signed, Submission},
        tensor::Dtype,
    },
};
use serde_json::Value;

/// Rounds 5 and 8 of a Templar run: a refused file, a reserve, an absent miner, a frozen tensor; in
/// round 8 a skipped tensor, too.
fn sealed(rows: u64) -> (Run, Model) {
    let mut random = Random(77);
    let tensors = vec![
        Tensor::random("a.weight", &[rows, 140], &mut random),
        Tensor::random("b.bias", &[10], &mut random),
        Tensor::new("c.step", Dtype::I64, &[2], vec![3; 16]),
    ];
    let model = Model { tensors, rule: rule(Dialect::Templar, 8, 4, 4) };
    let run = Run::frozen(&model, true).unwrap().0;
    for round in [5, 8] {
        open(&run, &model, round, &mut random);
        run.seal(round);
    }
    (run, model)
}

fn open(run: &Run, model: &Model, round: u64, random: &mut Random) {
    for uid in [3, 4, 12] {
        let mut delta = model.delta(random);
        if round == 8 {
            // Its norm is infinite, so this tensor is skipped.
            delta.get_mut("b.bias").unwrap().lookup = vec![3e38; 4];
        }
        run.put(round, uid, &Gradient::of(model, round, &delta).write());
    }
    run.put(round, 9, b"cut");
    run.import(round, &[3, 4, 9, 7], &[12]);
}

fn rounds_key(run: &Run) -> VerifierKey {
    run.open().genesis().log_keys.rounds.parse().unwrap()
}

fn trust(key: VerifierKey) -> Trust {
    Trust { policy: Some(Policy::of_logs(vec![key])), ..Trust::default() }
}

fn audited(root: &Path, options: &AuditOptions<'_>, trust: &Trust) -> Report {
    audit(Arc::new(Disk), root, options, trust, &Silent).unwrap()
}

fn with(lines: &[Line], status: Status) -> Vec<Check> {
    lines.iter().filter(|line| line.status == status).map(|line| line.check).collect()
}

/// Writes a log anew with these entries, signed by the ledger's own key.
fn forge(root: &Path, log: &str, entries: &[Vec<u8>]) {
    let key = root.join("keys/log.key");
    fs::write(root.join("keys/log.key.heads"), "{}").unwrap();
    fs::remove_dir_all(root.join("log").join(log)).unwrap();
    let seed = keys::load(&Disk, &key).unwrap();
    let guard = Arc::new(HeadGuard::open(Arc::new(Disk), &key).unwrap());
    let signer = HeadSigner::new(&seed, &format!("test.example/run/{log}"), guard).unwrap();
    let dir = root.join("log").join(log);
    LogWriter::create(Arc::new(Disk), &dir, signer).unwrap().append(entries).unwrap();
}

fn entries(run: &Run, submissions: bool) -> Vec<Vec<u8>> {
    let ledger = run.open();
    let log = if submissions { ledger.submissions_log() } else { ledger.rounds_log() };
    log.entries(0..log.size()).unwrap().map(Result::unwrap).collect()
}

/// A ledger whose directory is a copy.
struct Copied {
    _dir: tempfile::TempDir,
    root: PathBuf,
}

fn copied(run: &Run) -> Copied {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("ledger");
    copy_all(&run.path(), &root);
    Copied { _dir: dir, root }
}

/// Every value of `value` changed in turn, with the path to it.
fn changes(value: &Value) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    let child = |all: &mut Vec<_>, key: &str, inner: &Value, put: &dyn Fn(Value) -> Value| {
        for (path, changed) in changes(inner) {
            all.push((format!("{key}.{path}"), put(changed)));
        }
    };
    match value {
        Value::Object(members) => {
            for (key, inner) in members.iter().filter(|(key, _)| *key != "kind" && *key != "id") {
                child(&mut all, key, inner, &|changed| {
                    let mut members = members.clone();
                    members[key] = changed;
                    members.into()
                });
            }
        }
        Value::Array(items) => {
            for (at, inner) in items.iter().enumerate() {
                child(&mut all, &at.to_string(), inner, &|changed| {
                    let mut items = items.clone();
                    items[at] = changed;
                    items.into()
                });
            }
            if let Some((_, rest)) = items.split_last() {
                all.push(("shorter".to_owned(), rest.into()));
            }
        }
        Value::Number(number) => all.push((String::new(), (number.as_u64().unwrap() + 1).into())),
        Value::String(text) => {
            let other = match text.as_str() {
                "templar" => "native".to_owned(),
                "contributors" => "all".to_owned(),
                "torch-cpu-f32" => "histogram-f64".to_owned(),
                hex => {
                    let first = if hex.starts_with('0') { "1" } else { "0" };
                    format!("{first}{}", &hex[1..])
                }
            };
            all.push((String::new(), other.into()));
        }
        Value::Null | Value::Bool(_) => {}
    }
    all
}

fn canonical(value: &Value) -> Vec<u8> {
    json::canonicalise(value.to_string().as_bytes()).unwrap()
}

/// Both logs anew, under one record of what was signed.
fn forge_both(root: &Path, rounds: &[Vec<u8>], submissions: &[Vec<u8>]) {
    let key = root.join("keys/log.key");
    fs::write(root.join("keys/log.key.heads"), "{}").unwrap();
    let seed = keys::load(&Disk, &key).unwrap();
    let guard = Arc::new(HeadGuard::open(Arc::new(Disk), &key).unwrap());
    for (log, entries) in [("rounds", rounds), ("submissions", submissions)] {
        let dir = root.join("log").join(log);
        fs::remove_dir_all(&dir).unwrap();
        let origin = format!("test.example/run/{log}");
        let signer = HeadSigner::new(&seed, &origin, guard.clone()).unwrap();
        LogWriter::create(Arc::new(Disk), &dir, signer).unwrap().append(entries).unwrap();
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// A native run with three miners: a good delta, a refused one, and a copy of the first.
fn signed() -> Run {
    signed_with_receipts().0
}

/// As [`signed`], with the receipts that the miners were given.
fn signed_with_receipts() -> (Run, Vec<Receipt>) {
    let miner = |number: u8| SecretKey::from_seed(&[number; 32]);
    let mut random = Random(21);
    let model = Model::small(Dialect::Native);
    let run = Run { dir: tempfile::tempdir().unwrap() };
    let checkpoint = run.dir.path().join("checkpoint.safetensors");
    common::model::safetensors(&checkpoint, &model.tensors);
    let options = InitOptions {
        miners: MinersPolicy::Hotkeys((1..=3).map(|n| miner(n).public().to_digest()).collect()),
        ..InitOptions::new("test", "test.example/run", &checkpoint, model.rule.clone())
    };
    init(&run.path(), &options, &Silent).unwrap();
    let (mut writer, mut receipts) = (run.writer(), Vec::new());
    for (number, sent) in [(1, 1), (2, 2), (3, 1)] {
        let dir = run.dir.path().join(format!("delta-{sent}"));
        if !dir.exists() {
            write_delta(&run, &dir, sent == 2, &mut random);
        }
        let ledger = writer.ledger();
        let layout = ledger.layout().unwrap();
        let expected = Expected { layout: &layout, rule: ledger.rule(), round: 1 };
        let NativeAdmission::Stored { delta, refused } =
            admit_segments(&dir, expected, ledger.place(), "test").unwrap()
        else {
            panic!("malformed")
        };
        assert_eq!(refused.is_some(), sent == 2);
        let statement = Statement {
            run: ledger.run_id(),
            round: 1,
            base: ledger.newest().root,
            delta: delta.root,
            delta_bytes: delta.bytes,
            hotkey: miner(number).public().to_digest(),
        };
        let signature = statement.sign(&miner(number)).unwrap();
        let submission = SignedStatement { statement, signature, delta, refused };
        let answers = submit_batch(&mut writer, &mut Known::default(), &[submission]);
        receipts.push(answers.unwrap().remove(0).unwrap());
    }
    drop(writer);
    run.seal(1);
    (run, receipts)
}

/// Delta segments; with `huge`, a book that the native rule refuses.
fn write_delta(run: &Run, dir: &Path, huge: bool, random: &mut Random) {
    let mut writer = DeltaWriter::create(&Disk, dir, 4).unwrap();
    for tensor in &run.open().layout().unwrap().tensors {
        let (mut index, mut code) = (Vec::new(), Vec::new());
        for _ in 0..tensor.grid.blocks() {
            let places: Vec<u16> = (0..tensor.k as u16).collect();
            gradledger_kernels::codes::pack_index(&places, &mut index).unwrap();
            code.push(random.next() as u8 & (u8::MAX >> (8 - 2 * tensor.k.min(4))));
        }
        let shift = if huge { 1e30f32 } else { 0.125 };
        let book: Vec<u8> =
            [0.5f32, -1.0, 0.25, 2.0, shift].iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut rows = writer.tensor(&tensor.name, tensor.k, tensor.grid.blocks()).unwrap();
        rows.write_index(&index).unwrap();
        rows.write_code(&code).unwrap();
        rows.finish().unwrap();
        writer.book(&tensor.name, &book).unwrap();
    }
    writer.finish().unwrap();
}

/// A ledger whose newest state has one wrong byte, in piece `piece` of `a.weight`, and a record that
/// says it is right.
fn with_a_wrong_piece(run: &Run, piece: usize) {
    let ledger = run.open();
    let checkpoint = ledger.checkpoint(ledger.newest()).unwrap();
    let mut writer = CheckpointWriter::create(ledger.place()).unwrap();
    let mut descriptors = Vec::new();
    for (position, descriptor) in checkpoint.manifest().descriptors().iter().enumerate() {
        let mut bytes = vec![0; descriptor.bytes as usize];
        checkpoint.tensor(position).unwrap().read_exact(&mut bytes).unwrap();
        if descriptor.name == "a.weight" {
            bytes[piece * 65_536 + 9] ^= 1;
        }
        let pieces = Pieces::of(&bytes);
        let mut described = descriptor.clone();
        described.root = pieces.artifact.root;
        writer.write(descriptor, &bytes).unwrap();
        writer.commit(pieces).unwrap();
        descriptors.push(described);
    }
    let next = writer.finish().unwrap();
    assert_eq!(next, manifest_id(&Manifest::new(descriptors).unwrap()));
    let mut rounds = entries(run, false);
    let RoundsEntry::Round(mut record) = json::from_slice(rounds.last().unwrap()).unwrap() else {
        panic!()
    };
    record.next = next;
    *rounds.last_mut().unwrap() = json::to_vec(&RoundsEntry::Round(record));
    forge(&run.path(), "rounds", &rounds);
}

/// What `tools/verify.py` says of a bundle.
#[derive(Debug)]
struct Theirs {
    exit: i64,
    /// The first check that failed.
    failed: Option<String>,
    evidence: bool,
    /// Of a dispute, who is wrong.
    wrong: Vec<String>,
}

/// A Python with the Ed25519 package.
fn python() -> Option<std::ffi::OsString> {
    let named = std::env::var_os("GRADLEDGER_PYTHON");
    let python = named.clone().unwrap_or_else(|| "python3".into());
    let has = Command::new(&python).args(["-c", "import cryptography"]).output();
    if has.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    println!("skipped: no Python with the cryptography package");
    assert!(named.is_none(), "the Python that was named lacks it");
    None
}

/// What `tools/verify.py` says of each bundle; nothing where Python or its Ed25519 package is not to be
/// had.
fn second_verifier(dir: &Path, bundles: &[PathBuf], key: &str) -> Option<Vec<Theirs>> {
    let python = python()?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/verify.py");
    let output = Command::new(python)
        .arg(script)
        .args(["--without", "statements"])
        .args(["--log-key", key])
        .args(bundles)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(dir)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let verdicts: Vec<_> = text
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let wrong = line["wrong"].as_array().unwrap().iter();
            Theirs {
                exit: line["exit"].as_i64().unwrap(),
                failed: line["failed"].as_str().map(str::to_owned),
                evidence: line["evidence"].as_bool().unwrap(),
                wrong: wrong.map(|side| side.as_str().unwrap().to_owned()).collect(),
            }
        })
        .collect();
    assert_eq!(verdicts.len(), bundles.len(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(verdicts)
}

/// Holds what both verifiers say of each bundle against each other; how many are good, bad, and
/// evidence.
fn agree(all: &[(String, Vec<u8>)], key: VerifierKey) -> Option<(usize, usize, usize)> {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..all.len()).map(|at| PathBuf::from(format!("{at}.tar"))).collect();
    for (path, (_, bytes)) in paths.iter().zip(all) {
        fs::write(dir.path().join(path), bytes).unwrap();
    }
    let theirs = second_verifier(dir.path(), &paths, &key.to_string())?;
    let trust = Trust { waived: [Check::Statements].into(), ..trust(key) };
    let (mut good, mut bad, mut evidence) = (0, 0, 0);
    for ((name, bytes), theirs) in all.iter().zip(theirs) {
        let verified = verify(&bytes[..], &trust);
        let ours = match verdict(&verified.lines) {
            Verdict::Passed => 0,
            Verdict::Incomplete => 3,
            Verdict::Mismatch => 20,
            Verdict::BadSignature => 21,
            Verdict::Contradiction => 22,
        };
        let found: Vec<&str> =
            with(&verified.lines, Status::Failed).into_iter().map(Check::as_str).collect();
        assert_eq!((ours, name), (theirs.exit, name), "ours {verified:#?}, theirs {theirs:?}");
        let failed_by_us = |check: &String| found.contains(&check.as_str());
        assert!(theirs.failed.as_ref().is_none_or(failed_by_us), "{name}: {found:?}, {theirs:?}");
        let shown = verified.evidence.is_some();
        assert_eq!(shown, theirs.evidence, "{name}: {verified:#?}, {theirs:?}");
        if ours == 0 {
            good += 1
        } else {
            bad += 1
        }
        evidence += usize::from(shown);
    }
    Some((good, bad, evidence))
}

/// Forges the last record and what it disposes of, as an operator would who wants it believed.
fn forge_record(
    root: &Path,
    change: impl FnOnce(&mut RoundRecord, &mut Vec<Disposition>),
) -> Ledger {
    let ledger = Ledger::open(root).unwrap();
    let position = ledger.sealed().len() - 1;
    let mut record = ledger.sealed()[position].record.clone();
    let mut dispositions = check_round(&ledger, position).unwrap().disposed.dispositions;
    change(&mut record, &mut dispositions);
    record.dispositions = dispositions_id(&dispositions);
    let tmp = root.join("forged.parquet");
    segment::dispositions::write(&Disk, &tmp, &dispositions).unwrap();
    segment::dispositions::commit(&Disk, root, &tmp, &record.dispositions).unwrap();
    let log = ledger.rounds_log();
    let mut entries: Vec<_> = log.entries(0..log.size()).unwrap().map(Result::unwrap).collect();
    *entries.last_mut().unwrap() = json::to_vec(&RoundsEntry::Round(Box::new(record)));
    forge(root, "rounds", &entries);
    Ledger::open(root).unwrap()
}

/// A bundle with other members, well spelled.
fn respelled(bytes: &[u8], change: impl Fn(&mut BTreeMap<usize, (String, Vec<u8>)>)) -> Vec<u8> {
    let mut reader = gradledger::audit::archive::ArchiveReader::new(bytes);
    let mut members = BTreeMap::new();
    while let Some((name, length)) = reader.next_member().unwrap() {
        let mut body = Vec::new();
        reader.body(length, |run| body.extend_from_slice(run)).unwrap();
        members.insert(members.len(), (name, body));
    }
    change(&mut members);
    let mut writer = gradledger::audit::archive::ArchiveWriter::new(Vec::new());
    for (name, body) in members.values() {
        writer.member(name, body).unwrap();
    }
    writer.finish().unwrap()
}

fn random_at(length: usize, seed: usize) -> usize {
    if length == 0 { 0 } else { Random(seed as u64).below(length as u64) as usize }
}
