//! Retention: which states `gc` drops, what it refuses to, and replay, fsck, export and diff over
//! dropped states.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    num::NonZeroU64,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use common::{
    Random,
    gradient::Gradient,
    model::{Model, Run, Tensor, accepted, all_files, copy_all, fold_options},
};
use gradledger::{
    ledger::{
        At, LedgerError,
        fsck::{FsckReport, fsck},
        gc::{GcReport, gc},
        replay::{ReplayOptions, ReplayReport, replay},
        retention::Kept,
    },
    store::{StoreError, segment::place},
    types::{digest::Digest, progress::Silent, rule::Dialect, tensor::Dtype},
};
use serde_json::{Value, json};

const MINERS: [u16; 2] = [3, 8];

/// Imports and seals rounds; in those of `nobody` no file is good.
fn seal_rounds(run: &Run, model: &Model, rounds: &[u64], nobody: &[u64]) {
    for &round in rounds {
        let mut random = Random(round);
        for uid in MINERS {
            let file = Gradient::of(model, round, &model.delta(&mut random)).write();
            run.put(round, uid, if nobody.contains(&round) { b"cut" } else { &file });
        }
        run.import(round, &MINERS, &[]);
        let expected: &[u16] = if nobody.contains(&round) { &[] } else { &MINERS };
        assert_eq!(accepted(&run.seal(round)), expected);
    }
}

fn ledger_of(rounds: &[u64]) -> (Run, Model) {
    let model = Model::small(Dialect::Templar);
    let run = Run::new(&model);
    seal_rounds(&run, &model, rounds, &[]);
    (run, model)
}

fn every(k: u64) -> NonZeroU64 {
    NonZeroU64::new(k).unwrap()
}

fn collect(run: &Run, k: u64) -> GcReport {
    let report = gc(&mut run.writer(), every(k), &Silent).unwrap();
    let reasons: Vec<_> = report.obstacles.iter().map(|o| &o.reason).collect();
    assert!(reasons.is_empty(), "{reasons:#?}");
    report
}

fn checked(run: &Run) -> FsckReport {
    fsck(&run.open(), fold_options(), &Silent).unwrap()
}

fn replayed(
    run: &Run,
    first: u64,
    last: u64,
    tensor: Option<&str>,
) -> Result<ReplayReport, LedgerError> {
    let tensor = tensor.map(str::to_owned);
    let options = ReplayOptions { rounds: first..=last, tensor, fold: fold_options() };
    replay(&run.open(), &options, &Silent)
}

/// Every file of the ledger but the lock, with the digest of its bytes.
fn tree(run: &Run) -> BTreeMap<PathBuf, Digest> {
    let files = all_files(&run.path()).into_iter().filter(|path| !path.ends_with("lock"));
    files.map(|path| (path.clone(), Digest::of(&fs::read(&path).unwrap()))).collect()
}

fn bytes_below(dirs: &[PathBuf]) -> u64 {
    let files = dirs.iter().filter(|dir| dir.exists()).flat_map(|dir| all_files(dir));
    files.map(|path| path.metadata().unwrap().len()).sum()
}

/// The segments of the state after a round, or of the genesis.
fn segments(run: &Run, at: At) -> Vec<PathBuf> {
    let ledger = run.open();
    let state = ledger.checkpoint(ledger.state(at).unwrap()).unwrap();
    let descriptors = state.manifest().descriptors();
    descriptors.iter().map(|d| place::tensor(&run.path(), &d.artifact(), d.dtype)).collect()
}

fn whole(run: &Run, at: At) -> bool {
    segments(run, at).iter().all(|path| path.exists())
}

/// Rounds whose states are all there, of those given.
fn there(run: &Run, rounds: &[u64]) -> Vec<u64> {
    rounds.iter().copied().filter(|&round| whole(run, At::Round(round))).collect()
}

/// Delta directory and hashes of a round's first miner.
fn delta_of(run: &Run, round: u64) -> (PathBuf, PathBuf) {
    let ledger = run.open();
    let all = ledger.submissions(0..ledger.submissions_log().size()).unwrap();
    let (_, first) = all.iter().find(|(_, s)| s.round() == round).unwrap();
    let root = first.stored_delta().unwrap().root;
    (place::delta(&run.path(), root), place::hashes(&run.path(), root))
}

fn command(run: &Run, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
    command
        .arg(arguments[0])
        .arg(run.path())
        .args(&arguments[1..])
        .env_remove("GRADLEDGER_KEEP_EVERY");
    command
}

fn program(run: &Run, arguments: &[&str]) -> Output {
    command(run, arguments).output().unwrap()
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

// ---- what is kept ----

/// Counted are sealed rounds, whatever their numbers.
#[test]
fn the_genesis_the_newest_and_every_third_state_are_kept() {
    let rounds = [10, 12, 13, 20, 21, 22, 30];
    let (run, _) = ledger_of(&rounds);
    let report = collect(&run, 3);
    assert_eq!(report.dropped, [[10, 12], [20, 21]]);
    assert_eq!(report.kept, 4);
    assert_eq!(there(&run, &rounds), [13, 22, 30]);
    assert!(whole(&run, At::Genesis));
    let replays: Vec<_> = report.replays.iter().map(|r| (r.first, r.last, r.from.round)).collect();
    assert_eq!(replays, [(12, 13, None), (21, 22, Some(13))]);
    let found = checked(&run);
    assert_eq!((found.checkpoints, found.dropped, found.rounds), (4, 4, 7));
    // Deltas, plans, dispositions and hashes are all there.
    assert_eq!(found.deltas, 14);
    let retention = fs::read_to_string(run.path().join("retention.json")).unwrap();
    assert_eq!(retention, r#"{"dropped":[[10,12],[20,21]],"version":1}"#);
}

#[test]
fn nothing_is_dropped_before_the_kth_round_but_what_is_between() {
    let (run, model) = ledger_of(&[1]);
    assert_eq!(collect(&run, 50).dropped, [] as [[u64; 2]; 0]);
    assert!(!run.path().join("retention.json").exists());
    seal_rounds(&run, &model, &[2, 3], &[]);
    assert_eq!(collect(&run, 1).dropped, [] as [[u64; 2]; 0]);
    assert_eq!(collect(&run, 50).dropped, [[1, 2]]);
    // What was the newest then is not now.
    seal_rounds(&run, &model, &[4], &[]);
    assert_eq!(collect(&run, 50).dropped, [[3, 3]]);
    let retention = fs::read_to_string(run.path().join("retention.json")).unwrap();
    assert_eq!(retention, r#"{"dropped":[[1,3]],"version":1}"#);
    checked(&run);
}

#[test]
fn tensors_that_a_kept_state_shares_stay() {
    let mut model = Model::small(Dialect::Templar);
    model.tensors.push(Tensor::new("step", Dtype::I64, &[3], vec![1; 24]));
    let (run, _) = Run::frozen(&model, true).unwrap();
    // Nobody is accepted in rounds 2 and 5: their states are those of rounds 1 and 4.
    seal_rounds(&run, &model, &[1, 2, 3, 4, 5, 6], &[2, 5]);
    let report = collect(&run, 2);
    // 1 is 2's state, 4 is kept and 5's, 3 goes.
    assert_eq!(report.dropped, [[3, 3]]);
    assert_eq!(there(&run, &[1, 2, 3, 4, 5, 6]), [1, 2, 4, 5, 6]);
    let shared = |path: &PathBuf| segments(&run, At::Genesis).contains(path);
    let gone: Vec<_> =
        segments(&run, At::Round(3)).into_iter().filter(|path| !path.exists()).collect();
    assert_eq!((gone.len(), gone.iter().any(shared)), (3, false), "the frozen one stays");
    checked(&run);
    // With what it was shared with dropped as well, it goes: 1 and 2 together, 4 and 5.
    let report = collect(&run, 100);
    assert_eq!(report.dropped, [[1, 2], [4, 5]]);
    assert_eq!(there(&run, &[1, 2, 3, 4, 5, 6]), [6]);
    checked(&run);
}

#[test]
fn another_number_later_drops_more_and_brings_nothing_back() {
    let rounds = [1, 2, 3, 4, 5, 6, 7];
    let (run, _) = ledger_of(&rounds);
    collect(&run, 2);
    assert_eq!(there(&run, &rounds), [2, 4, 6, 7]);
    let report = collect(&run, 3);
    assert_eq!(report.dropped, [[2, 2], [4, 4]]);
    assert_eq!(there(&run, &rounds), [6, 7]);
    let replays: Vec<_> = report.replays.iter().map(|r| (r.first, r.last, r.from.round)).collect();
    assert_eq!(replays, [(3, 6, None)]);
    checked(&run);
    assert_eq!(collect(&run, 2).dropped, [] as [[u64; 2]; 0]);
    assert_eq!(replayed(&run, 6, 6, None).unwrap().folded_before, 5);
}

#[test]
fn a_second_gc_changes_nothing() {
    let (run, _) = ledger_of(&[1, 2, 3, 4]);
    collect(&run, 2);
    let once = tree(&run);
    let modified = |path: &str| run.path().join(path).metadata().unwrap().modified().unwrap();
    let written = modified("retention.json");
    let again = collect(&run, 2);
    assert_eq!((again.freed.bytes, again.dropped.len(), again.replays.len()), (0, 0, 0));
    assert_eq!(tree(&run), once);
    assert_eq!(modified("retention.json"), written);
}

#[test]
fn rounds_go_on_after_a_gc() {
    let (run, model) = ledger_of(&[1, 2, 3]);
    let other = Run { dir: tempfile::tempdir().unwrap() };
    copy_all(&run.path(), &other.path());
    collect(&run, 50);
    for run in [&run, &other] {
        // In an open round, too.
        for uid in MINERS {
            let file = Gradient::of(&model, 4, &model.delta(&mut Random(uid.into()))).write();
            run.put(4, uid, &file);
        }
        run.import(4, &MINERS, &[]);
        if run.path() != other.path() {
            collect(run, 50);
        }
        run.seal(4);
    }
    assert_eq!(run.open().newest(), other.open().newest());
    checked(&run);
}

// ---- dry run, and what is left over ----

/// Things that a killed process leaves: nothing in the logs names them.
fn leave_over(run: &Run) -> Vec<PathBuf> {
    let root = "5e".repeat(32);
    let at = |path: &str| run.path().join(path.replace("ROOT", &format!("5e/{root}")));
    let paths = [
        at("segments/tensors/ROOT-8.f32.parquet"),
        at("segments/deltas/ROOT/books.parquet"),
        at("segments/deltas/ROOT/k4-2bit.parquet"),
        at("segments/plans/ROOT-8.parquet"),
        at("segments/dispositions/ROOT-2.parquet"),
        at("hashes/ROOT"),
    ];
    for path in &paths {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "half").unwrap();
    }
    paths.to_vec()
}

#[test]
fn what_no_log_names_is_removed_and_what_is_not_ours_stays() {
    let (run, _) = ledger_of(&[1, 2]);
    let mut ours = tree(&run);
    ours.retain(|path, _| !path.starts_with(run.path().join("tmp")));
    let left = leave_over(&run);
    fs::create_dir_all(run.path().join("tmp/half")).unwrap();
    let stay = [
        run.path().join("segments/tensors/notes.txt"),
        run.path().join("segments/tensors/5e/notes.txt"),
        run.path().join("segments/tensors/5e").join("5e".repeat(31)),
        run.path().join("quarantine/1/x.new"),
    ];
    for path in &stay {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "mine").unwrap();
    }
    let report = collect(&run, 1);
    let freed = report.freed;
    assert_eq!((freed.bytes, freed.tensors, freed.deltas, freed.others), (6 * 4, 1, 1, 3));
    assert!(left.iter().all(|path| !path.exists()));
    assert!(!left[1].parent().unwrap().exists());
    assert!(stay.iter().all(|path| path.exists()));
    assert_eq!(fs::read_dir(run.path().join("tmp")).unwrap().count(), 0);
    let mut after = tree(&run);
    after.retain(|path, _| !stay.contains(path));
    assert_eq!(after, ours);
    checked(&run);
}

#[test]
fn a_dry_run_says_what_the_run_then_does() {
    let (run, model) = ledger_of(&[1, 2, 3, 4, 5]);
    leave_over(&run);
    // An open round's deltas are named by their statements.
    run.put(6, 3, &Gradient::of(&model, 6, &model.delta(&mut Random(6))).write());
    run.import(6, &[3], &[]);
    let stored = ["segments", "hashes"].map(|dir| run.path().join(dir));
    let (before, bytes) = (tree(&run), bytes_below(&stored));
    let dry = program(&run, &["gc", "--keep-every", "2", "--dry-run", "--json"]);
    assert!(dry.status.success(), "{}", said(&dry));
    assert_eq!(tree(&run), before);
    let real = program(&run, &["gc", "--keep-every", "2", "--json"]);
    assert!(real.status.success(), "{}", said(&real));
    let (mut dry, real) = (document(&dry), document(&real));
    assert_eq!((&dry["dry_run"], &real["dry_run"]), (&json!(true), &json!(false)));
    dry["dry_run"] = json!(false);
    assert_eq!(dry, real);
    assert_eq!(real["dropped"], json!([[1, 1], [3, 3]]));
    let freed = real["freed"]["bytes"].as_u64().unwrap();
    assert_eq!(freed, bytes - bytes_below(&stored));
    assert!(freed > 0);
    // In words, too.
    let text = program(&run, &["gc", "--keep-every", "100", "--dry-run"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("would be dropped: states after rounds 2, 4"), "{text}");
    assert!(text.contains("replay of rounds 3 to 5 starts from the genesis"), "{text}");
    run.seal(6);
    checked(&run);
}

// ---- refusals ----

/// A gc of every 2nd of 5 rounds that must not happen; what it says.
fn refused(run: &Run) -> (String, Value) {
    let before = tree(run);
    let output = program(run, &["gc", "--keep-every", "2", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("nothing was dropped"), "{}", said(&output));
    assert_eq!(tree(run), before);
    let text = program(run, &["gc", "--keep-every", "2", "--dry-run"]);
    assert_eq!(text.status.code(), Some(1));
    let document = document(&output);
    (String::from_utf8(text.stdout).unwrap(), document["obstacles"].clone())
}

fn halve(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn gc_refuses_while_the_newest_state_is_not_whole() {
    let (run, _) = ledger_of(&[1, 2, 3, 4, 5]);
    let path = &segments(&run, At::Round(5))[1];
    let bytes = fs::read(path).unwrap();
    let damages: [&dyn Fn(); 3] = [
        &|| fs::remove_file(path).unwrap(),
        &|| halve(path),
        // A whole segment, of another tensor.
        &|| assert!(fs::copy(&segments(&run, At::Round(5))[0], path).unwrap() > 0),
    ];
    for damage in damages {
        damage();
        let (text, obstacles) = refused(&run);
        assert!(text.contains("the state after round 5 is not whole: tensor b.bias"), "{text}");
        assert_eq!(obstacles[0]["round"], json!(5));
        fs::write(path, &bytes).unwrap();
    }
    collect(&run, 2);
}

#[test]
fn gc_refuses_to_drop_what_could_not_be_folded_again() {
    let (run, _) = ledger_of(&[1, 2, 3, 4, 5]);
    // State 3 is folded from 2 by round 3; state 1 from the genesis by round 1.
    let (dir, hashes) = delta_of(&run, 3);
    let rows = dir.join("k4-2bit.parquet");
    let base = segments(&run, At::Round(2)).remove(0);
    let genesis = segments(&run, At::Genesis).remove(0);
    for (path, round, says) in [
        (rows.clone(), json!(3), "round 3: the delta of uid 3 is not whole"),
        (dir.join("books.parquet"), json!(3), "round 3: the delta of uid 3 is not whole"),
        (hashes, json!(3), "round 3: the delta of uid 3 is not whole"),
        (base, json!(2), "the state after round 2 is not whole"),
        (genesis, json!(null), "the genesis is not whole"),
    ] {
        let bytes = fs::read(&path).unwrap();
        let damages: [&dyn Fn(); 2] = [&|| fs::remove_file(&path).unwrap(), &|| halve(&path)];
        for damage in damages {
            damage();
            let (text, obstacles) = refused(&run);
            assert!(text.contains(says), "{text}");
            assert_eq!(obstacles[0]["round"], round, "{obstacles}");
            fs::write(&path, &bytes).unwrap();
        }
    }
    // A round that no dropped state needs may lack what it likes: 2 and 4 are kept.
    fs::remove_file(delta_of(&run, 4).0.join("books.parquet")).unwrap();
    collect(&run, 2);
    assert_eq!(there(&run, &[1, 2, 3, 4, 5]), [2, 4, 5]);
}

#[test]
fn a_locked_ledger_is_not_touched() {
    let (run, _) = ledger_of(&[1, 2]);
    let _writer = run.writer();
    for arguments in [&["gc"][..], &["gc", "--dry-run"]] {
        assert_eq!(program(&run, arguments).status.code(), Some(11));
    }
    drop(_writer);
    assert!(program(&run, &["gc"]).status.success());
    let nowhere = Run { dir: tempfile::tempdir().unwrap() };
    assert_eq!(program(&nowhere, &["gc", "--dry-run"]).status.code(), Some(10));
    assert!(!nowhere.path().exists());
}

// ---- over dropped states ----

#[test]
fn a_replay_over_dropped_states_gives_what_it_gave_before() {
    let rounds = [1, 2, 3, 4, 5, 6, 7];
    let (run, _) = ledger_of(&rounds);
    let ranges: Vec<(u64, u64)> =
        rounds.iter().flat_map(|&a| (a..=7).map(move |b| (a, b))).collect();
    let of = |tensor: Option<&str>| -> Vec<Value> {
        let one = |&(a, b): &(u64, u64)| json!(replayed(&run, a, b, tensor).unwrap().rounds);
        ranges.iter().map(one).collect()
    };
    let before = (of(None), of(Some("c.odd")));
    collect(&run, 3);
    assert_eq!((of(None), of(Some("c.odd"))), before);
    for (round, from, more) in [(1, None, 0), (3, None, 2), (4, Some(3), 0), (6, Some(3), 2)] {
        let report = replayed(&run, round, 7, None).unwrap();
        assert_eq!((report.from.round, report.folded_before), (from, more), "round {round}");
    }
    let output = program(&run, &["replay", "--round", "6", "--json"]);
    assert!(output.status.success());
    let why = "the state before round 6 was dropped: starting from the state after round 3, 2 more";
    assert!(said(&output).contains(why), "{}", said(&output));
    let document = document(&output);
    assert_eq!(document["from"]["round"], json!(3));
    assert_eq!(document["rounds"][0]["round"], json!(6));
}

#[test]
fn a_wrong_delta_on_the_way_is_named() {
    let (run, _) = ledger_of(&[1, 2, 3, 4, 5]);
    collect(&run, 50);
    let (dir, _) = delta_of(&run, 2);
    let rows = dir.join("k4-2bit.parquet");
    let mut bytes = fs::read(&rows).unwrap();
    bytes[40] ^= 1;
    fs::write(&rows, bytes).unwrap();
    replayed(&run, 1, 1, None).unwrap();
    for round in 2..=5 {
        let error = replayed(&run, round, round, None).unwrap_err().to_string();
        assert!(error.contains(dir.file_name().unwrap().to_str().unwrap()), "{error}");
        assert!(error.contains("piece 0"), "{error}");
    }
    assert!(fsck(&run.open(), fold_options(), &Silent).is_err());
}

/// A dropped state's own hashes still say where a replay differs.
#[test]
fn hashes_of_dropped_states_are_kept_and_checked() {
    let (run, _) = ledger_of(&[1, 2, 3]);
    collect(&run, 50);
    let root = run.open().state(At::Round(1)).unwrap().root;
    let path = place::hashes(&run.path(), root);
    let mut bytes = fs::read(&path).unwrap();
    bytes[0] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = fsck(&run.open(), fold_options(), &Silent).unwrap_err();
    assert!(matches!(error, LedgerError::Store(StoreError::Hashes(_))), "{error}");
}

#[test]
fn fsck_tells_a_lost_state_from_a_dropped_one() {
    let (run, _) = ledger_of(&[1, 2, 3, 4, 5]);
    collect(&run, 2);
    checked(&run);
    let lost = |run: &Run| {
        let error = fsck(&run.open(), fold_options(), &Silent).unwrap_err();
        match error {
            LedgerError::StateLost { state, .. } => state.round,
            other => panic!("{other}"),
        }
    };
    for at in [At::Genesis, At::Round(2), At::Round(5)] {
        let path = segments(&run, at).remove(2);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let round = if let At::Round(round) = at { Some(round) } else { None };
        assert_eq!(lost(&run), round);
        fs::write(&path, &bytes).unwrap();
    }
    // The record is trusted for nothing but this: it cannot hide the newest state.
    let record = run.path().join("retention.json");
    let bytes = fs::read(&record).unwrap();
    fs::write(&record, r#"{"dropped":[[1,5]],"version":1}"#).unwrap();
    let path = segments(&run, At::Round(5)).remove(0);
    let segment = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(lost(&run), Some(5));
    fs::write(&path, segment).unwrap();
    assert_eq!(checked(&run).dropped, 4);
    // Lost, it is found missing; the next gc writes it anew.
    fs::remove_file(&record).unwrap();
    assert!(matches!(lost(&run), Some(1 | 3)));
    let output = program(&run, &["fsck"]);
    assert!(said(&output).contains("run `gradledger gc` again"), "{}", said(&output));
    collect(&run, 2);
    assert_eq!(fs::read(&record).unwrap(), bytes);
    checked(&run);
}

#[test]
fn a_record_that_does_not_read_is_named() {
    let (run, _) = ledger_of(&[1, 2, 3]);
    collect(&run, 50);
    let record = run.path().join("retention.json");
    for text in [
        "",
        "{}",
        r#"{"dropped":[[1,2]],"version":2}"#,
        r#"{"dropped":[[2,1]],"version":1}"#,
        r#"{"dropped":[[1,2],[2,3]],"version":1}"#,
        r#"{"dropped":[[1,2]],"version":1,"x":0}"#,
        r#"{ "dropped":[[1,2]],"version":1}"#,
    ] {
        fs::write(&record, text).unwrap();
        for arguments in [&["replay", "--round", "2"][..], &["fsck"], &["gc"], &["show"]] {
            let output = program(&run, arguments);
            assert!(!output.status.success(), "{text} {arguments:?}");
            assert!(said(&output).contains("retention.json"), "{}", said(&output));
        }
    }
}

/// A cut between the record and the last removal: what is recorded may still be there.
#[test]
fn a_state_that_is_recorded_as_dropped_and_still_there_is_no_error() {
    let (run, _) = ledger_of(&[1, 2, 3]);
    fs::write(run.path().join("retention.json"), r#"{"dropped":[[1,2]],"version":1}"#).unwrap();
    fs::remove_file(&segments(&run, At::Round(1))[0]).unwrap();
    assert_eq!(checked(&run).dropped, 2);
    // The next gc finishes, whatever it is to keep now.
    let report = collect(&run, 2);
    assert_eq!((report.dropped.len(), report.freed.tensors), (0, 5));
    assert_eq!(there(&run, &[1, 2, 3]), [3]);
    checked(&run);
}

#[test]
fn export_folds_a_dropped_state_again() {
    let mut model = Model::small(Dialect::Templar);
    model.tensors.push(Tensor::new("a.step", Dtype::I64, &[3], (0..24).collect()));
    model.tensors.push(Tensor::new("z.none", Dtype::F32, &[0, 4], vec![]));
    let (run, _) = Run::frozen(&model, true).unwrap();
    seal_rounds(&run, &model, &[1, 2, 3, 4, 5], &[]);
    let out = |name: &str| run.dir.path().join(name).to_str().unwrap().to_owned();
    let export = |round: &str, to: &str| program(&run, &["export", "--round", round, "--out", to]);
    let sums = |round: &str, to: &str| {
        let output = export(round, to);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(fs::read_dir(to).unwrap().count(), 2);
        assert!(!Path::new(&format!("{to}.rebuilt")).exists());
        output.stdout
    };
    let all = ["1", "2", "3", "4", "5"];
    let before = all.map(|round| sums(round, &out(&format!("before-{round}"))));
    collect(&run, 3);
    assert_eq!(all.map(|round| sums(round, &out(&format!("after-{round}")))), before);
    assert!(said(&export("2", &out("after-2"))).contains("is not empty"));
    // What is in the way is left alone; a wrong delta leaves nothing behind.
    let to = out("again");
    fs::create_dir(format!("{to}.rebuilt")).unwrap();
    assert!(said(&export("2", &to)).contains("is in the way"));
    fs::remove_dir(format!("{to}.rebuilt")).unwrap();
    let (dir, _) = delta_of(&run, 1);
    let rows = dir.join("k4-2bit.parquet");
    let mut bytes = fs::read(&rows).unwrap();
    bytes[40] ^= 1;
    fs::write(&rows, bytes).unwrap();
    assert_eq!(export("2", &to).status.code(), Some(20));
    assert!(!Path::new(&to).exists() && !Path::new(&format!("{to}.rebuilt")).exists());
}

#[test]
fn diff_and_show_say_that_a_state_was_dropped() {
    let (run, _) = ledger_of(&[1, 2, 3, 4, 5]);
    collect(&run, 2);
    let output = program(&run, &["diff", "--to", "3"]);
    assert_eq!(output.status.code(), Some(2));
    let error = said(&output);
    assert!(error.contains("the state after round 3 was dropped"), "{error}");
    assert!(error.contains("the state after round 2"), "{error}");
    assert!(error.contains("the state after round 4"), "{error}");
    assert!(program(&run, &["diff", "--from", "4"]).status.success());
    let shown = document(&program(&run, &["show", "--json"]));
    assert_eq!(shown["states"], json!({"kept": 4, "dropped": [[1, 1], [3, 3]]}));
    let text = String::from_utf8(program(&run, &["show"]).stdout).unwrap();
    assert!(text.contains("4 kept; dropped after rounds 1, 3"), "{text}");
    for (round, kept) in [("2", true), ("3", false)] {
        let shown = document(&program(&run, &["show", "--round", round, "--json"]));
        assert_eq!(shown["kept"], json!(kept));
    }
    assert!(Kept::load(&run.open()).unwrap().require(&run.open(), At::Genesis).is_ok());
}

// ---- choices ----

#[test]
fn the_flag_comes_before_the_environment_and_that_before_the_file() {
    let (run, _) = ledger_of(&[1, 2, 3]);
    let kept = |flag: Option<&str>, environment: Option<&str>| {
        let flags = flag.map(|k| ["--keep-every", k]);
        let mut arguments = vec!["gc", "--dry-run", "--json"];
        arguments.extend(flags.iter().flatten());
        let mut command = command(&run, &arguments);
        environment.map(|k| command.env("GRADLEDGER_KEEP_EVERY", k));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        document(&output)["keep_every"].clone()
    };
    assert_eq!(kept(None, None), json!(50));
    let config = run.path().join("gradledger.toml");
    fs::write(&config, "# ours\n[retention]\nkeep_every = 7\n").unwrap();
    assert_eq!(kept(None, None), json!(7));
    assert_eq!(kept(None, Some("9")), json!(9));
    assert_eq!(kept(Some("11"), Some("9")), json!(11));
    for (text, line) in [
        ("[retention]\nkeep_evry = 7\n", "line 2"),
        ("\n\n[retentoin]\n", "line 3"),
        ("[retention]\nkeep_every = 0\n", "line 2"),
        ("[retention]\n\nkeep_every = -1\n", "line 3"),
        ("[retention]\nkeep_every = \n", "line 2"),
    ] {
        fs::write(&config, text).unwrap();
        let output = program(&run, &["gc", "--dry-run"]);
        assert_eq!(output.status.code(), Some(2), "{text}");
        let error = said(&output);
        assert!(error.contains("gradledger.toml") && error.contains(line), "{error}");
    }
    fs::remove_file(&config).unwrap();
    assert_eq!(program(&run, &["gc", "--keep-every", "0"]).status.code(), Some(2));
}

/// Most of a span's files are closed at any time: 150 deltas of three files under a limit of 40.
#[test]
fn a_long_span_is_replayed_with_few_files_open() {
    let rounds: Vec<u64> = (1..=75).collect();
    let (run, _) = ledger_of(&rounds);
    collect(&run, 1000);
    assert_eq!(there(&run, &rounds), [75]);
    let line = "ulimit -n 40 && exec \"$0\" replay \"$1\" --round 75 --threads 2 --json";
    let output = Command::new("sh")
        .args(["-c", line, env!("CARGO_BIN_EXE_gradledger")])
        .arg(run.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(document(&output)["folded_before"], json!(74));
}
