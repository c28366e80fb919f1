//! Audits and bundles: an honest ledger passes, every lie is found by the check that is named for it,
//! and two verifiers that share nothing agree on every bundle.

#![allow(clippy::unwrap_used)]

mod common;

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
        prove::{Target, prove, prove_heads},
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
        At,
        gc::gc,
        init::{InitOptions, init},
        rotate::rotate_key,
        submit::{Known, SignedStatement, submit_batch},
    },
    merkle::{manifest::manifest_id, note::VerifierKey, pieces::Pieces, policy::Policy},
    store::{
        artifacts::CheckpointWriter,
        files::{Disk, Files, ReadFile, WriteFile},
        keys::{
            self,
            heads::{HeadGuard, HeadSigner},
        },
        log::LogWriter,
        quarantine,
        segment::delta::DeltaWriter,
    },
    types::{
        digest::Digest,
        json,
        manifest::Manifest,
        progress::Silent,
        record::{MinersPolicy, RoundsEntry},
        refusal::{Code, Refusal},
        rule::Dialect,
        submission::{Outcome, Signed, Submission},
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

// ---- an honest ledger ----

#[test]
fn an_honest_ledger_passes_with_a_key_from_outside_and_never_without() {
    let (run, _) = sealed(8);
    let report = audited(&run.path(), &AuditOptions::default(), &trust(rounds_key(&run)));
    assert_eq!(report.verdict, Verdict::Passed, "{:#?}", report.checks);
    let unasked = with(&report.checks, Status::NotRequired);
    assert_eq!(unasked, [Check::Witnesses, Check::Consistency]);
    let refusals = report.checks.iter().find(|line| line.check == Check::Refusals).unwrap();
    assert_eq!(refusals.checked, 2, "the cut file of each round was admitted again");

    let report = audited(&run.path(), &AuditOptions::default(), &Trust::default());
    assert_eq!(report.verdict, Verdict::Incomplete);
    let signatures = [Check::RoundsSignature, Check::SubmissionsSignature, Check::Witnesses];
    assert_eq!(with(&report.checks, Status::NotDone), signatures);

    let other = VerifierKey::new("test.example/run/rounds", rounds_key(&run).kind(), &{
        let mut key = [0; 32];
        key.copy_from_slice(
            &hex::decode("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
                .unwrap(),
        );
        key
    });
    let report = audited(&run.path(), &AuditOptions::default(), &trust(other.unwrap()));
    assert_eq!(report.verdict, Verdict::BadSignature);
}

#[test]
fn the_same_inputs_give_the_same_report_within_its_schema() {
    let (run, _) = sealed(8);
    let trust = trust(rounds_key(&run));
    let options = AuditOptions { sample: Some((2, vec![7])), plan: true, ..Default::default() };
    let one = serde_json::to_value(audited(&run.path(), &options, &trust)).unwrap();
    assert_eq!(one, serde_json::to_value(audited(&run.path(), &options, &trust)).unwrap());
    let schema = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/schema/report.schema.json"));
    let schema: Value = serde_json::from_slice(&schema.unwrap()).unwrap();
    let mut document = one;
    document["schema_version"] = 1.into();
    document["run"] = serde_json::json!({
        "started": 1, "seconds": 0.5, "version": "0.1.0", "host": "h", "threads": 0
    });
    conforms(&document, &schema, &schema, "report");
}

/// As much of JSON Schema as the report's schema uses; any other keyword fails.
fn conforms(value: &Value, schema: &Value, root: &Value, at: &str) {
    for (keyword, rule) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$schema" | "$id" | "title" | "description" | "$defs" => {}
            "$ref" => {
                let name = rule.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                conforms(value, &root["$defs"][name], root, at);
            }
            "type" => {
                let is = |name: &str| match name {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "integer" => value.is_u64(),
                    "number" => value.is_number(),
                    "boolean" => value.is_boolean(),
                    "null" => value.is_null(),
                    other => panic!("type {other}"),
                };
                let names: Vec<&str> = match rule {
                    Value::Array(names) => names.iter().map(|n| n.as_str().unwrap()).collect(),
                    name => vec![name.as_str().unwrap()],
                };
                assert!(names.into_iter().any(is), "{at}: {value} is no {rule}");
            }
            "const" => assert_eq!(value, rule, "{at}"),
            "enum" => assert!(rule.as_array().unwrap().contains(value), "{at}: {value}"),
            "pattern" => {
                let digits =
                    value.as_str().is_none_or(|t| t.bytes().all(|b| b.is_ascii_hexdigit()));
                assert!(digits && rule.as_str().unwrap().contains("[0-9a-f]"), "{at}: {value}");
            }
            "required" => {
                for name in rule.as_array().unwrap().iter().filter(|_| value.is_object()) {
                    assert!(value.get(name.as_str().unwrap()).is_some(), "{at} lacks {name}");
                }
            }
            "additionalProperties" => assert_eq!(rule, false),
            "properties" => {
                for (name, member) in value.as_object().into_iter().flatten() {
                    let known = rule.get(name).unwrap_or_else(|| panic!("{at} has {name}"));
                    conforms(member, known, root, &format!("{at}.{name}"));
                }
            }
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    conforms(item, rule, root, &format!("{at}[]"));
                }
            }
            other => panic!("{other} is not used"),
        }
    }
}

// ---- lies: the operator writes what it likes and signs it ----

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

#[test]
fn every_field_of_a_signed_record_is_held_to_what_it_says() {
    let (run, _) = sealed(8);
    let trust = trust(rounds_key(&run));
    let kept = tempfile::tempdir().unwrap();
    let heads = AuditOptions { heads: Some(kept.path()), ..Default::default() };
    assert_eq!(audited(&run.path(), &heads, &trust).verdict, Verdict::Passed);
    let honest = entries(&run, false);
    let record: Value = serde_json::from_slice(honest.last().unwrap()).unwrap();
    let (mut fields, mut evidence) = (0, 0);
    for (path, changed) in changes(&record) {
        let expected = match path.split('.').next().unwrap() {
            "round" | "listed" | "reserve" | "dispositions" => Check::Derivation,
            "previous" | "base" | "rule" => Check::Records,
            "submissions" => Check::Windows,
            "plan" => Check::Plan,
            "next" | "skipped" => Check::Fold,
            other => panic!("no check is named for {other}"),
        };
        let copy = copied(&run);
        let forged = [&honest[..honest.len() - 1], &[canonical(&changed)]].concat();
        forge(&copy.root, "rounds", &forged);
        let report = audited(&copy.root, &heads, &trust);
        let failed = with(&report.checks, Status::Failed);
        assert!(failed.contains(&expected), "{path}: {failed:?}");
        assert!(failed.contains(&Check::Consistency), "{path}: {failed:?}");
        assert!(with(&report.checks, Status::Passed).contains(&Check::RoundsSignature), "{path}");
        let from_the_log = [Check::Records, Check::Windows, Check::Derivation];
        let fork = report.evidence.iter().any(|e| matches!(e, Evidence::Fork { .. }));
        assert!(fork, "{path}");
        let shown = report.evidence.iter().any(|e| matches!(e, Evidence::Round(_)));
        assert_eq!(shown, failed.iter().any(|check| from_the_log.contains(check)), "{path}");
        let ledger = gradledger::ledger::Ledger::open(&copy.root).unwrap();
        let round = ledger.sealed().last().unwrap().record.round;
        if let (true, Ok(bundle)) =
            (shown, prove(&ledger, &Target::Round(round), Vec::new(), &Silent))
        {
            let lines = verify(&bundle[..], &trust).lines;
            let refuted = with(&lines, Status::Failed);
            assert!(
                refuted.iter().any(|check| from_the_log.contains(check)),
                "{path}: {refuted:?}"
            );
            assert!(with(&lines, Status::Passed).contains(&Check::RoundsSignature), "{path}");
            evidence += 1;
        }
        fields += 1;
    }
    println!("{fields} fields, {evidence} of them with a bundle that shows the lie alone");
    assert!(fields >= 30 && evidence >= 15, "{fields} fields, {evidence} bundles");
}

#[test]
fn every_field_of_the_genesis_is_held_by_the_record_after_it_and_by_the_kept_head() {
    let (run, _) = sealed(8);
    let trust = trust(rounds_key(&run));
    let honest = entries(&run, false);
    let genesis: Value = serde_json::from_slice(&honest[0]).unwrap();
    for (path, changed) in changes(&genesis) {
        let copy = copied(&run);
        forge(&copy.root, "rounds", &[&[canonical(&changed)], &honest[1..]].concat());
        let report = audited(&copy.root, &AuditOptions::default(), &trust);
        let failed = with(&report.checks, Status::Failed);
        assert!(failed.contains(&Check::Records), "{path}: {failed:?}");
    }
}

#[test]
fn an_unsigned_change_of_any_byte_of_a_head_is_a_wrong_signature_or_no_head() {
    let (run, _) = sealed(8);
    let trust = trust(rounds_key(&run));
    for (log, check) in
        [("rounds", Check::RoundsSignature), ("submissions", Check::SubmissionsSignature)]
    {
        let path = run.path().join("log").join(log).join("checkpoint");
        let honest = fs::read(&path).unwrap();
        let lines: Vec<&[u8]> = honest.split(|b| *b == b'\n').collect();
        // The size may not lie beyond the log, which would not open: another check of another test.
        let places = (0..lines[0].len()).chain(honest.len() - 40..honest.len() - 1);
        for at in places.step_by(5) {
            let mut other = honest.clone();
            other[at] ^= 1;
            fs::write(&path, &other).unwrap();
            match audit(Arc::new(Disk), &run.path(), &AuditOptions::default(), &trust, &Silent) {
                Ok(report) => {
                    let failed = with(&report.checks, Status::Failed);
                    assert!(
                        failed.contains(&check) || failed == [Check::Records],
                        "{at}: {failed:?}"
                    );
                }
                Err(error) => panic!("byte {at}: {error}"),
            }
        }
        fs::write(&path, &honest).unwrap();
    }
}

/// The checks that fail after `change` to a copy.
fn found_after(run: &Run, change: impl Fn(&Path)) -> Vec<Check> {
    let copy = copied(run);
    change(&copy.root);
    let report = audited(&copy.root, &AuditOptions::default(), &trust(rounds_key(run)));
    with(&report.checks, Status::Failed)
}

/// Flips bytes of a file in turn: `expected` alone finds them, if anything changed at all.
fn flips_are_found_by(
    run: &Run,
    path: &Path,
    places: impl Iterator<Item = usize>,
    expected: Check,
) {
    let below = path.strip_prefix(run.path()).unwrap();
    let mut times = 0;
    for at in places {
        let found = found_after(run, |root| flip(&root.join(below), at));
        assert!(found.is_empty() || found.contains(&expected), "byte {at}: {found:?}");
        times += usize::from(!found.is_empty());
    }
    println!("{}: {times} flips found by {}", below.display(), expected.as_str());
    assert!(times > 5, "{times}");
}

fn first_file(below: &Path, ends: &str) -> PathBuf {
    let files = common::model::all_files(below);
    files.into_iter().find(|path| path.to_str().unwrap().ends_with(ends)).unwrap()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn stored_bytes_that_were_edited_are_found_and_withheld_ones_are_not_done() {
    let (run, _) = sealed(8);
    let segments = run.path().join("segments");
    let delta = first_file(&segments.join("deltas"), "2bit.parquet");
    flips_are_found_by(&run, &delta, (20..120).step_by(9), Check::Acceptances);
    let table = first_file(&segments.join("dispositions"), ".parquet");
    let bytes = fs::read(&table).unwrap().len();
    flips_are_found_by(&run, &table, (20..bytes).step_by(bytes / 40), Check::Dispositions);
    let plan = first_file(&segments.join("plans"), ".parquet");
    let rows = fs::read(&plan).unwrap().len();
    flips_are_found_by(&run, &plan, (20..rows).step_by(rows / 40), Check::Plan);
    let withheld = |root: &Path| fs::remove_dir_all(root.join("segments/deltas")).unwrap();
    assert_eq!(found_after(&run, withheld), []);
    let hashes_alone = |root: &Path| {
        fs::remove_dir_all(root.join("segments")).unwrap();
        fs::remove_dir_all(root.join("quarantine")).unwrap();
    };
    let copy = copied(&run);
    hashes_alone(&copy.root);
    let report = audited(&copy.root, &AuditOptions::default(), &trust(rounds_key(&run)));
    let undone =
        [Check::Dispositions, Check::Acceptances, Check::Refusals, Check::Plan, Check::Fold];
    assert_eq!(with(&report.checks, Status::NotDone), undone);
    assert_eq!(report.verdict, Verdict::Incomplete);
    // Who does not require them is told so, and nothing else.
    let waived = Trust { waived: undone.into(), ..trust(rounds_key(&run)) };
    assert_eq!(audited(&copy.root, &AuditOptions::default(), &waived).verdict, Verdict::Passed);
}

#[test]
fn a_descriptor_that_was_edited_is_no_manifest_of_the_state() {
    let (run, _) = sealed(8);
    let root = run.open().newest().root.to_hex();
    let path = run.path().join("hashes").join(&root[..2]).join(&root);
    let bytes = fs::read(&path).unwrap();
    let start = bytes.windows(9).position(|w| w == b"{\"bytes\":").unwrap();
    flips_are_found_by(&run, &path, (start..bytes.len() - 40).step_by(29), Check::Descriptor);
}

#[test]
fn a_false_refusal_and_a_backdated_round_are_found() {
    let (run, model) = sealed(8);
    let mut random = Random(5);
    open(&run, &model, 9, &mut random);
    // The operator calls a good file of uid 4 not finite, keeps it in quarantine, and seals.
    let mut forged = entries(&run, true);
    let at = forged.len() - 4 + 1;
    let mut submission: Submission = json::from_slice(&forged[at]).unwrap();
    let Submission::Fetched(fetched) = &mut submission else { panic!() };
    assert_eq!((fetched.uid, fetched.round), (4, 9));
    fetched.outcome =
        Outcome::Refused(Refusal::new(Code::NonFinite, Some("a.weight"), "finite", "NaN"));
    let file = run.files(9).join(&fetched.file);
    let (sha256, name) = (fetched.source_sha256, fetched.file.clone());
    let mut source = fs::File::open(file).unwrap();
    quarantine::keep(&Disk, &run.path(), 9, &mut source, sha256, &name).unwrap();
    forged[at] = json::to_vec(&submission);
    let rounds = entries(&run, false);
    forge(&run.path(), "submissions", &forged);
    // Forging forgot what was signed of the other log; so does this.
    forge_both(&run, &rounds, &forged);
    run.seal(9);
    let report = audited(&run.path(), &AuditOptions::default(), &trust(rounds_key(&run)));
    assert_eq!(with(&report.checks, Status::Failed), [Check::Refusals], "{:#?}", report.checks);
    let line = report.checks.iter().find(|line| line.check == Check::Refusals).unwrap();
    assert_eq!((line.found, line.findings[0].index), (1, Some(at as u64)));

    let mut rounds = entries(&run, false);
    let RoundsEntry::Round(mut record) = json::from_slice(rounds.last().unwrap()).unwrap() else {
        panic!()
    };
    record.round = 7;
    *rounds.last_mut().unwrap() = json::to_vec(&RoundsEntry::Round(record));
    forge(&run.path(), "rounds", &rounds);
    let report = audited(&run.path(), &AuditOptions::default(), &trust(rounds_key(&run)));
    assert!(with(&report.checks, Status::Failed).contains(&Check::Records));
}

/// Both logs anew, under one record of what was signed.
fn forge_both(run: &Run, rounds: &[Vec<u8>], submissions: &[Vec<u8>]) {
    let (root, key) = (run.path(), run.path().join("keys/log.key"));
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

#[test]
fn a_restored_backup_and_a_fork_do_not_continue_the_kept_head() {
    let (run, model) = sealed(8);
    let backup = copied(&run);
    let mut random = Random(9);
    open(&run, &model, 9, &mut random);
    run.seal(9);
    let kept = tempfile::tempdir().unwrap();
    let options = AuditOptions { heads: Some(kept.path()), ..Default::default() };
    let trust = trust(rounds_key(&run));
    assert_eq!(audited(&run.path(), &options, &trust).verdict, Verdict::Passed);
    let again = audited(&run.path(), &options, &trust);
    assert!(with(&again.checks, Status::Passed).contains(&Check::Consistency));
    let stale = audited(&backup.root, &options, &trust);
    assert_eq!(with(&stale.checks, Status::Failed), [Check::Consistency]);
    // The backup goes on, with other words of the same length.
    let mut rounds = entries(&run, false);
    let RoundsEntry::Round(mut record) = json::from_slice(rounds.last().unwrap()).unwrap() else {
        panic!()
    };
    record.block = Some(gradledger::types::record::ChainBlock { number: 1, hash: Digest::of(b"") });
    *rounds.last_mut().unwrap() = json::to_vec(&RoundsEntry::Round(record));
    let fork = copied(&run);
    forge(&fork.root, "rounds", &rounds);
    let forked = audited(&fork.root, &options, &trust);
    assert_eq!(with(&forked.checks, Status::Failed), [Check::Consistency]);
    let text = &forked.checks.iter().find(|l| l.check == Check::Consistency).unwrap().findings[0];
    assert!(text.text.ends_with("(fork)"), "{}", text.text);
    let [Evidence::Fork { kept: old, published, .. }] = &forked.evidence[..] else { panic!() };
    let bundle = prove_heads(old, published, Vec::new(), Vec::new()).unwrap();
    let shown = verify(&bundle[..], &trust);
    assert_eq!(with(&shown.lines, Status::Failed), [Check::Consistency]);
    assert!(with(&shown.lines, Status::Passed).contains(&Check::RoundsSignature));
    // To who does not know the key it shows nothing.
    assert_eq!(verdict(&verify(&bundle[..], &Trust::default()).lines), Verdict::Incomplete);
    assert!(stale.evidence.is_empty(), "one head alone is evidence of nothing");
    // What failed is not kept.
    assert_eq!(audited(&run.path(), &options, &trust).verdict, Verdict::Passed);
}

// ---- what changes in a ledger's life ----

#[test]
fn who_trusts_the_first_key_trusts_those_after_it_and_not_the_other_way() {
    let (run, model) = sealed(8);
    let first = rounds_key(&run);
    let kept = tempfile::tempdir().unwrap();
    let options = AuditOptions { heads: Some(kept.path()), ..Default::default() };
    assert_eq!(audited(&run.path(), &options, &trust(first.clone())).verdict, Verdict::Passed);
    rotate_key(&mut run.writer(), None).unwrap();
    let mut random = Random(4);
    open(&run, &model, 9, &mut random);
    run.seal(9);
    let ledger = run.open();
    let newest = ledger.keys().of_rounds(ledger.rounds_log().size()).clone();
    assert_ne!(first, newest);
    let report = audited(&run.path(), &options, &trust(first.clone()));
    assert_eq!(report.verdict, Verdict::Passed, "{:#?}", report.checks);
    assert!(with(&report.checks, Status::Passed).contains(&Check::Consistency));
    let report = audited(&run.path(), &options, &trust(newest.clone()));
    assert_eq!(report.verdict, Verdict::Passed, "{:#?}", report.checks);
    // A bundle has no rotations with it: the key that signed its head judges it.
    for target in [Target::Round(9), Target::Submission(9)] {
        let bytes = prove(&ledger, &target, Vec::new(), &Silent).unwrap();
        let by = |key: &VerifierKey| verdict(&verify(&bytes[..], &trust(key.clone())).lines);
        assert_eq!((by(&newest), by(&first)), (Verdict::Passed, Verdict::BadSignature));
    }
}

#[test]
fn dropped_states_are_folded_again_from_the_last_kept_one() {
    let (run, model) = sealed(8);
    let mut random = Random(4);
    for round in [9, 10] {
        open(&run, &model, round, &mut random);
        run.seal(round);
    }
    gc(&mut run.writer(), 50.try_into().unwrap(), &Silent).unwrap();
    let trust = trust(rounds_key(&run));
    let report = audited(&run.path(), &AuditOptions::default(), &trust);
    assert_eq!(report.verdict, Verdict::Passed, "{:#?}", report.checks);
    let one = AuditOptions { rounds: Some(9..=9), ..Default::default() };
    assert_eq!(audited(&run.path(), &one, &trust).verdict, Verdict::Passed);
    // A sample folds single pieces and needs their bases; it says which rounds it could not look at.
    let sample = AuditOptions { sample: Some((99, vec![1])), plan: true, ..Default::default() };
    let report = audited(&run.path(), &sample, &trust);
    assert_eq!(with(&report.checks, Status::Failed), []);
    assert!(with(&report.checks, Status::NotDone).contains(&Check::Fold));
}

/// A native run with three miners: a good delta, a refused one, and a copy of the first.
fn signed() -> Run {
    let miner = |number: u8| SecretKey::from_seed(&[number; 32]);
    let mut random = Random(21);
    let model = Model::small(Dialect::Native);
    let run = Run { dir: tempfile::tempdir().unwrap() };
    let checkpoint = run.dir.path().join("checkpoint.safetensors");
    common::model::safetensors(&checkpoint, &model.tensors);
    let options = InitOptions {
        run: "test".to_owned(),
        origin: "test.example/run".to_owned(),
        checkpoint: &checkpoint,
        select: None,
        rule: model.rule.clone(),
        frozen: false,
        key_file: None,
        miners: MinersPolicy::Hotkeys((1..=3).map(|n| miner(n).public().to_digest()).collect()),
        anchor: None,
        files: &[],
    };
    init(&run.path(), &options, &Silent).unwrap();
    let mut writer = run.writer();
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
        submit_batch(&mut writer, &mut Known::default(), &[submission]).unwrap().remove(0).unwrap();
    }
    drop(writer);
    run.seal(1);
    run
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

#[test]
fn a_signed_run_is_held_to_its_signatures_refusals_and_copies() {
    let run = signed();
    let trust = trust(rounds_key(&run));
    let report = audited(&run.path(), &AuditOptions::default(), &trust);
    assert_eq!(report.verdict, Verdict::Passed, "{:#?}", report.checks);
    let line = |check| report.checks.iter().find(|line| line.check == check).unwrap().checked;
    assert_eq!((line(Check::Statements), line(Check::Refusals)), (3, 1));
    let ledger = run.open();
    let mut paths = Vec::new();
    for (at, target) in
        [Target::Submission(0), Target::Submission(2), Target::Round(1)].iter().enumerate()
    {
        let bytes = prove(&ledger, target, Vec::new(), &Silent).unwrap();
        let verified = verify(&bytes[..], &trust);
        assert_eq!(verdict(&verified.lines), Verdict::Passed, "{verified:#?}");
        assert!(with(&verified.lines, Status::Passed).contains(&Check::Statements));
        let path = run.dir.path().join(format!("{at}.tar"));
        fs::write(&path, bytes).unwrap();
        paths.push(path);
    }
    let key = rounds_key(&run).to_string();
    if let Some(theirs) = second_verifier(run.dir.path(), &paths, &key) {
        assert!(theirs.iter().all(|(exit, _)| *exit == 0), "{theirs:?}");
    }
    // The operator puts another hotkey under a statement, calls a good delta refused, and lets a
    // copied one count, each time under its own signature.
    let honest = entries(&run, true);
    let forged = |at: usize, change: &dyn Fn(&mut Signed)| {
        let copy = copied(&run);
        let mut forged = honest.clone();
        let Submission::Signed(mut signed) = json::from_slice(&forged[at]).unwrap() else {
            panic!()
        };
        change(&mut signed);
        forged[at] = json::to_vec(&Submission::Signed(signed));
        forge(&copy.root, "submissions", &forged);
        let root = gradledger::ledger::Ledger::open(&copy.root).unwrap();
        let mut rounds = entries(&run, false);
        let RoundsEntry::Round(mut record) = json::from_slice(&rounds[1]).unwrap() else {
            panic!()
        };
        record.submissions.root_at_end = root.submissions_log().head().root;
        rounds[1] = json::to_vec(&RoundsEntry::Round(record));
        forge(&copy.root, "rounds", &rounds);
        with(&audited(&copy.root, &AuditOptions::default(), &trust).checks, Status::Failed)
    };
    let other = forged(0, &|signed| signed.hotkey = Digest([7; 32]));
    assert!(other.contains(&Check::Statements), "{other:?}");
    let refused = forged(0, &|signed| {
        signed.refused = Some(Refusal::new(Code::Magnitude, Some("a.weight"), "less", "more"));
    });
    assert!(refused.contains(&Check::Refusals) && refused.contains(&Check::Derivation));
    let accepted = forged(1, &|signed| signed.refused = None);
    assert!(accepted.contains(&Check::Acceptances), "{accepted:?}");
}

#[test]
fn the_command_audits_a_directory_that_may_only_be_read() {
    let (run, _) = sealed(8);
    let (root, key) = (run.path(), rounds_key(&run).to_string());
    let modes = |file: u32, dir: u32| {
        for path in common::model::all_files(&root) {
            if !path.starts_with(root.join("keys")) {
                fs::set_permissions(&path, fs::Permissions::from_mode(file)).unwrap();
            }
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(dir)).unwrap();
    };
    modes(0o444, 0o555);
    let report = run.dir.path().join("report.json");
    let gradledger = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
        let output = command.args(args).env_remove("GRADLEDGER_POLICY").output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (ledger, file) = (root.to_str().unwrap(), report.to_str().unwrap());
    let (code, text) = gradledger(&["audit", ledger, "--log-key", &key, "--report", file]);
    assert_eq!(code, 0, "{text}");
    let document: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!((&document["verdict"], &document["schema_version"]), (&"passed".into(), &1.into()));
    assert_eq!(gradledger(&["audit", ledger]).0, 3);
    let bundle = run.dir.path().join("piece.tar");
    let out = bundle.to_str().unwrap();
    let what = ["--round", "8", "--tensor", "a.weight", "--piece", "0"];
    assert_eq!(gradledger(&[&["prove", ledger, "--out", out], &what[..]].concat()).0, 0);
    assert_eq!(gradledger(&["verify", out, "--log-key", &key]).0, 0);
    assert_eq!(gradledger(&["verify", out]).0, 3);
    let without = ["--without", "rounds-signature", "--without", "witnesses"];
    assert_eq!(gradledger(&[&["verify", out], &without[..]].concat()).0, 0);
    flip(&bundle, fs::read(&bundle).unwrap().len() - 2_000);
    assert_eq!(gradledger(&["verify", out, "--log-key", &key]).0, 20);
    let policy = run.dir.path().join("policy");
    fs::write(&policy, format!("log {key}\n")).unwrap();
    assert_eq!(gradledger(&["verify", out, "--policy", policy.to_str().unwrap()]).0, 2);
    assert_eq!(gradledger(&["prove", ledger, "--round", "8", "--tensor", "z", "--out", out]).0, 2);
    modes(0o644, 0o755);
}

// ---- samples ----

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

#[test]
fn a_sample_of_all_pieces_finds_what_the_whole_audit_finds() {
    let (run, _) = sealed(320);
    let trust = trust(rounds_key(&run));
    let sample = |count: u64, plan: bool| AuditOptions {
        sample: Some((count, b"seed".to_vec())),
        plan,
        ..Default::default()
    };
    let honest = audited(&run.path(), &sample(99, true), &trust);
    let undone = with(&honest.checks, Status::NotDone);
    assert_eq!(undone, [Check::Acceptances, Check::Refusals], "{:#?}", honest.checks);
    let view = honest.scope.sample.unwrap();
    // Three pieces of a.weight and one of b.bias, in two rounds; the skipped tensor's witness besides.
    assert_eq!((view.pieces, view.of), (8, 8));
    assert_eq!(view.missed[4].probability, "0.000000");
    let without = audited(&run.path(), &sample(99, false), &trust);
    assert!(with(&without.checks, Status::NotDone).contains(&Check::Plan));
    assert_eq!(without.verdict, Verdict::Incomplete);

    with_a_wrong_piece(&run, 2);
    for options in [sample(99, true), AuditOptions::default()] {
        let report = audited(&run.path(), &options, &trust);
        assert_eq!(with(&report.checks, Status::Failed), [Check::Fold], "{:#?}", report.checks);
        let line = report.checks.iter().find(|line| line.check == Check::Fold).unwrap();
        assert_eq!(line.found, 1);
        let text = format!("{:?}", line.findings[0]);
        assert!(text.contains("a.weight") && text.contains('2'), "{text}");
    }
    let mut found = 0;
    for seed in 0..20u8 {
        let options = AuditOptions { sample: Some((4, vec![seed])), ..Default::default() };
        found += u32::from(audited(&run.path(), &options, &trust).verdict == Verdict::Mismatch);
    }
    // One wrong piece of 8, half of them drawn.
    assert!((3..=17).contains(&found), "{found} of 20 samples found it");
}

/// The disk, counting the bytes that are read below `segments/` and below `hashes/`.
#[derive(Default)]
struct Counting {
    tensors: Arc<AtomicU64>,
    deltas: Arc<AtomicU64>,
    others: Arc<AtomicU64>,
}

struct CountingFile(Arc<dyn ReadFile>, Arc<AtomicU64>);

impl ReadFile for CountingFile {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.1.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.0.read_exact_at(buffer, offset)
    }
}

impl Files for Counting {
    fn create(&self, path: &Path) -> std::io::Result<Box<dyn WriteFile>> {
        panic!("an audit writes {}", path.display())
    }
    fn create_secret(&self, path: &Path) -> std::io::Result<Box<dyn WriteFile>> {
        self.create(path)
    }
    fn open(&self, path: &Path) -> std::io::Result<Arc<dyn ReadFile>> {
        let text = path.to_str().unwrap();
        let counter = match () {
            () if text.contains("/segments/tensors/") => &self.tensors,
            () if text.contains("/segments/deltas/") => &self.deltas,
            () => &self.others,
        };
        Ok(Arc::new(CountingFile(Disk.open(path)?, counter.clone())))
    }
    fn rename(&self, _: &Path, to: &Path) -> std::io::Result<()> {
        panic!("an audit renames {}", to.display())
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        panic!("an audit removes {}", path.display())
    }
    fn remove_dir_all(&self, path: &Path) -> std::io::Result<()> {
        self.remove(path)
    }
    fn create_dir_all(&self, path: &Path) -> std::io::Result<()> {
        panic!("an audit makes {}", path.display())
    }
    fn sync_dir(&self, path: &Path) -> std::io::Result<()> {
        panic!("an audit syncs {}", path.display())
    }
    fn list(&self, path: &Path) -> std::io::Result<Vec<PathBuf>> {
        Disk.list(path)
    }
    fn exists(&self, path: &Path) -> std::io::Result<bool> {
        Disk.exists(path)
    }
}

#[test]
fn a_sample_reads_hardly_more_than_the_pieces_it_must_touch() {
    let mut random = Random(3);
    let shape = [4096, 1024];
    let tensors = vec![Tensor::random("w", &shape, &mut random)];
    let model = Model { tensors, rule: rule(Dialect::Templar, 64, 64, 4) };
    let run = Run::new(&model);
    for uid in [1, 2, 3] {
        let delta = model.delta(&mut random);
        run.put(1, uid, &Gradient::of(&model, 1, &delta).write());
    }
    run.import(1, &[1, 2, 3], &[]);
    run.seal(1);
    let ledger = run.open();
    let layout = ledger.layout().unwrap();
    let tensor = &layout.tensors[0];
    for count in [1, 8, 40] {
        let files = Counting::default();
        let (tensors, deltas, others) =
            (files.tensors.clone(), files.deltas.clone(), files.others.clone());
        let options = AuditOptions { sample: Some((count, vec![1])), ..Default::default() };
        let trust = trust(rounds_key(&run));
        let report = audit(Arc::new(files), &run.path(), &options, &trust, &Silent).unwrap();
        assert_eq!(with(&report.checks, Status::Failed), []);
        let drawn = gradledger::audit::sample::draw(&[1], count, 256);
        let mut touched = std::collections::BTreeSet::new();
        let mut base = 0;
        for piece in drawn {
            base += 65_536;
            for run in runs(&tensor.grid, piece) {
                for (column, width) in
                    [(0, tensor.index_bytes_per_block()), (1, tensor.code_bytes_per_block())]
                {
                    let bytes = tensor.grid.blocks() * width;
                    let (from, to) =
                        (run.first_block * width, (run.first_block + run.blocks) * width);
                    for piece in from / 65_536..=(to - 1) / 65_536 {
                        touched.insert((column, piece, (bytes - piece * 65_536).min(65_536)));
                    }
                }
            }
        }
        let rows: u64 = touched.iter().map(|(_, _, bytes)| bytes).sum();
        let must = base + 3 * rows;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let read = load(&tensors) + load(&deltas);
        println!(
            "{count} pieces: must touch {must}, read {read} of segments ({:.3}), {} of logs and hashes",
            read as f64 / must as f64,
            load(&others)
        );
        assert!(read as f64 <= 1.1 * must as f64, "{read} of {must}");
    }
}

// ---- bundles, and the second verifier ----

fn bundles(run: &Run) -> Vec<(String, Vec<u8>)> {
    let ledger = run.open();
    let name = || "a.weight".to_owned();
    let mut targets = vec![
        Target::Piece(At::Round(8), name(), 1),
        Target::Piece(At::Genesis, name(), 2),
        Target::Tensor(At::Round(5), name()),
        Target::Tensor(At::Genesis, "c.step".to_owned()),
        Target::Round(5),
        Target::Round(8),
    ];
    targets.extend((0..ledger.submissions_log().size()).map(Target::Submission));
    let write = |target| {
        let bytes = prove(&ledger, &target, Vec::new(), &Silent).unwrap();
        assert_eq!(bytes, prove(&ledger, &target, Vec::new(), &Silent).unwrap());
        (format!("{target:?}"), bytes)
    };
    targets.into_iter().map(write).collect()
}

#[test]
fn a_bundle_proves_its_claim_and_a_piece_takes_a_few_kilobytes_beside_it() {
    let (run, _) = sealed(320);
    let trust = trust(rounds_key(&run));
    for (target, bytes) in bundles(&run) {
        let verified = verify(&bytes[..], &trust);
        assert_eq!(verdict(&verified.lines), Verdict::Passed, "{target}: {verified:#?}");
        let unsigned = verify(&bytes[..], &Trust::default());
        assert_eq!(verdict(&unsigned.lines), Verdict::Incomplete, "{target}");
        if target.starts_with("Piece") {
            let piece = Bundle::read(&bytes[..]).unwrap().member("piece").len();
            println!("{target}: {} bytes beside the piece", bytes.len() - piece);
            assert!(bytes.len() - piece < 8 << 10);
        }
    }
}

/// What `tools/verify.py` says of each bundle: exit code and the check that failed; nothing where
/// Python or its Ed25519 package is not to be had.
fn second_verifier(
    dir: &Path,
    bundles: &[PathBuf],
    key: &str,
) -> Option<Vec<(i64, Option<String>)>> {
    let python = std::env::var_os("GRADLEDGER_PYTHON").unwrap_or_else(|| "python3".into());
    let has = Command::new(&python).args(["-c", "import cryptography"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        println!("skipped: no Python with the cryptography package");
        assert!(
            std::env::var_os("GRADLEDGER_PYTHON").is_none(),
            "the Python that was named lacks it"
        );
        return None;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/verify.py");
    let output = Command::new(python)
        .arg(script)
        .args(["--without", "statements", "--without", "derivation"])
        .args(["--log-key", key])
        .args(bundles)
        .current_dir(dir)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let verdicts: Vec<_> = text
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            (line["exit"].as_i64().unwrap(), line["failed"].as_str().map(str::to_owned))
        })
        .collect();
    assert_eq!(verdicts.len(), bundles.len(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(verdicts)
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

#[test]
fn two_verifiers_agree_on_every_good_and_every_bad_bundle() {
    let (run, _) = sealed(320);
    let key = rounds_key(&run);
    let mut random = Random(41);
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    for (target, bytes) in bundles(&run) {
        // Any byte anywhere; then bytes of members under headers that fit; then fields of JSON.
        for _ in 0..40 {
            let (mut other, at) = (bytes.clone(), random.below(bytes.len() as u64) as usize);
            other[at] ^= 1 << random.below(8);
            all.push((format!("{target}: byte {at}"), other));
        }
        let members = (bytes.len() / 512).min(12);
        for member in 0..members {
            let other = respelled(&bytes, |members| {
                let Some((_, body)) = members.get_mut(&member) else { return };
                let at = random_at(body.len(), member);
                if let Some(byte) = body.get_mut(at) {
                    *byte ^= 1;
                }
            });
            all.push((format!("{target}: member {member}"), other));
            let dropped = respelled(&bytes, |members| drop(members.remove(&member)));
            all.push((format!("{target}: without member {member}"), dropped));
        }
        let claim = respelled(&bytes, |_| {});
        assert_eq!(claim, bytes);
        let document: Value = {
            let bundle = respelled_json(&bytes);
            serde_json::from_slice(&bundle).unwrap()
        };
        for (path, changed) in changes(&document) {
            let other =
                respelled(&bytes, |members| members.get_mut(&0).unwrap().1 = canonical(&changed));
            all.push((format!("{target}: claim {path}"), other));
        }
        all.push((target, bytes));
    }
    // Records that lie, signed: their bundles are refuted.
    let honest = entries(&run, false);
    let record: Value = serde_json::from_slice(honest.last().unwrap()).unwrap();
    for (path, changed) in changes(&record) {
        let copy = copied(&run);
        let forged = [&honest[..honest.len() - 1], &[canonical(&changed)]].concat();
        forge(&copy.root, "rounds", &forged);
        let ledger = gradledger::ledger::Ledger::open(&copy.root).unwrap();
        for target in [
            Target::Round(8),
            Target::Submission(5),
            Target::Piece(At::Round(8), "b.bias".into(), 0),
        ] {
            if let Ok(bytes) = prove(&ledger, &target, Vec::new(), &Silent) {
                all.push((format!("lie {path}: {target:?}"), bytes));
            }
        }
    }
    all.extend(pairs_of_heads(&run));
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..all.len()).map(|at| PathBuf::from(format!("{at}.tar"))).collect();
    for (path, (_, bytes)) in paths.iter().zip(&all) {
        fs::write(dir.path().join(path), bytes).unwrap();
    }
    let Some(theirs) = second_verifier(dir.path(), &paths, &key.to_string()) else { return };
    let trust = Trust { waived: [Check::Statements, Check::Derivation].into(), ..trust(key) };
    let (mut good, mut bad) = (0, 0);
    for ((name, bytes), (exit, failed)) in all.iter().zip(theirs) {
        let verified = verify(&bytes[..], &trust);
        let ours = match verdict(&verified.lines) {
            Verdict::Passed => 0,
            Verdict::Incomplete => 3,
            Verdict::Mismatch => 20,
            Verdict::BadSignature => 21,
        };
        let found: Vec<&str> =
            with(&verified.lines, Status::Failed).into_iter().map(Check::as_str).collect();
        if found == ["derivation"] {
            assert_eq!(exit, 0, "{name}: the second verifier does not derive");
            bad += 1;
            continue;
        }
        assert_eq!((i64::from(ours), name), (exit, name), "ours {found:?}, theirs {failed:?}");
        let failed_by_us = |check: &String| found.contains(&check.as_str());
        assert!(failed.as_ref().is_none_or(failed_by_us), "{name}: {found:?}, {failed:?}");
        if ours == 0 { good += 1 } else { bad += 1 }
    }
    println!("{good} good bundles, {bad} bad ones");
    assert!(good >= 14 && bad > 700, "{good} good, {bad} bad");
}

/// Heads that are the same, grown, forked, not proven, of two logs, and signed by nobody known.
fn pairs_of_heads(run: &Run) -> Vec<(String, Vec<u8>)> {
    let entries = entries(run, false);
    let head = |entries: &[Vec<u8>]| {
        let copy = copied(run);
        forge(&copy.root, "rounds", entries);
        fs::read(copy.root.join("log/rounds/checkpoint")).unwrap()
    };
    let (old, new) = (head(&entries[..2]), head(&entries));
    let mut other = entries.clone();
    other[2].reverse();
    let fork = head(&other);
    let submissions = fs::read(run.path().join("log/submissions/checkpoint")).unwrap();
    let proof = run.open().rounds_log().consistency_proof(2, 3).unwrap();
    let wrong = vec![Digest::of(b""); proof.len()];
    let mut broken = new.clone();
    let end = broken.len() - 9;
    broken[end] = if broken[end] == b'A' { b'B' } else { b'A' };
    let pair = |name: &str, a: &[u8], b: &[u8], proof: &[Digest]| {
        (format!("heads: {name}"), prove_heads(a, b, proof.to_vec(), Vec::new()).unwrap())
    };
    vec![
        pair("same", &new, &new, &[]),
        pair("grown", &old, &new, &proof),
        pair("grown, other order", &new, &old, &proof),
        pair("grown, no proof", &old, &new, &[]),
        pair("grown, wrong proof", &old, &new, &wrong),
        pair("fork", &new, &fork, &[]),
        pair("fork between sizes", &old, &fork, &wrong),
        pair("broken", &new, &broken, &[]),
        pair("two logs", &new, &submissions, &[]),
        pair("of a log without a known key", &submissions, &submissions, &[]),
    ]
}

fn random_at(length: usize, seed: usize) -> usize {
    if length == 0 { 0 } else { Random(seed as u64).below(length as u64) as usize }
}

fn respelled_json(bytes: &[u8]) -> Vec<u8> {
    let mut reader = gradledger::audit::archive::ArchiveReader::new(bytes);
    let (_, length) = reader.next_member().unwrap().unwrap();
    let mut body = Vec::new();
    reader.body(length, |run| body.extend_from_slice(run)).unwrap();
    body
}

#[test]
fn no_bytes_make_the_reader_of_bundles_panic() {
    let (run, _) = sealed(320);
    let trust = trust(rounds_key(&run));
    let (_, bytes) = bundles(&run).swap_remove(4);
    let mut random = Random(8);
    for _ in 0..4_000 {
        let mut other = bytes.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(other.len() as u64) as usize;
            other[at] = random.next() as u8;
        }
        other.truncate(random.below(2 * other.len() as u64) as usize);
        verify(&other[..], &trust);
    }
}
