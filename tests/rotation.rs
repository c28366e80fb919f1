//! The log key changes hands: who signs what afterwards, and which hand-overs are none.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use common::{
    Random,
    gradient::Gradient,
    model::{Model, Run, copy_all, fold_options},
};
use gradledger::{
    ledger::{
        Ledger, LedgerError,
        fsck::fsck,
        key_chain::ChainError,
        rotate::{RotationReport, rotate_key},
        show::show,
        writer::LedgerWriter,
    },
    merkle::{head::TreeHead, note::LogKey, rotation::Rotation},
    store::{
        files::Disk,
        keys::{
            self, LogSeed,
            heads::{HeadGuard, HeadSigner},
        },
        log::LogWriter,
    },
    types::{
        digest::Digest,
        json,
        progress::Silent,
        record::{KeyRotation, LogEnd, LogKeys, RoundsEntry},
        rule::Dialect,
        submission::SignatureHex,
    },
};

const ORIGIN: &str = "test.example/run";

fn round(run: &Run, model: &Model, round: u64) {
    let mut random = Random(round);
    for uid in [3, 7] {
        let delta = model.delta(&mut random);
        run.put(round, uid, &Gradient::of(model, round, &delta).write());
    }
}

/// A run with one sealed round, and the files of two more.
fn sealed_run() -> (Model, Run) {
    let model = Model::small(Dialect::Native);
    let run = Run::new(&model);
    for number in 1..=3 {
        round(&run, &model, number);
    }
    run.import(1, &[3, 7], &[]);
    run.seal(1);
    (model, run)
}

fn rotate(run: &Run) -> RotationReport {
    rotate_key(&mut run.writer(), None).unwrap()
}

fn note(run: &Run, log: &str) -> String {
    fs::read_to_string(run.path().join("log").join(log).join("checkpoint")).unwrap()
}

#[test]
fn rounds_go_on_across_two_rotations() {
    let (_, run) = sealed_run();
    let first = run.open().genesis().log_keys.clone();
    let old_note = note(&run, "rounds");
    let report = rotate(&run);
    assert_eq!((report.index, report.already), (2, false));
    run.import(2, &[3, 7], &[]);
    let again = rotate(&run);
    assert_eq!(again.index, 3);
    run.seal(2);
    run.import(3, &[3, 7], &[]);
    run.seal(3);
    let ledger = run.open();
    fsck(&ledger, fold_options(), &Silent).unwrap();
    // Records follow records, whatever stands between them; positions are those of the log.
    let sealed = ledger.sealed();
    assert_eq!(sealed.iter().map(|s| s.index).collect::<Vec<_>>(), [1, 4, 5]);
    assert_eq!(sealed[1].record.previous, sealed[0].leaf);
    let view = show(&ledger).unwrap();
    assert_eq!(view.log_keys, again.log_keys);
    let retired: Vec<_> = view.retired_keys.iter().map(|k| (&k.log_keys, k.until)).collect();
    assert_eq!(retired, [(&first, 2), (&report.log_keys, 3)]);
    // Each head by the key of its time, and no other.
    let newest = note(&run, "rounds");
    let opens = |note: &str, keys: &LogKeys| {
        TreeHead::open(note.as_bytes(), &keys.rounds.parse().unwrap()).is_ok()
    };
    assert!(opens(&old_note, &first) && !opens(&old_note, &report.log_keys));
    assert!(opens(&newest, &again.log_keys) && !opens(&newest, &first));
    let head = TreeHead::open(
        note(&run, "submissions").as_bytes(),
        &again.log_keys.submissions.parse().unwrap(),
    );
    assert_eq!(head.unwrap().size, 6);
    for name in ["log.key", "log-1.key", "log-2.key"] {
        let mode = fs::metadata(run.path().join("keys").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_retired_key_signs_nothing_more() {
    let (_, run) = sealed_run();
    let before = run.dir.path().join("before");
    copy_all(&run.path(), &before);
    rotate(&run);
    let old = run.path().join("keys/log.key");
    let refused = LedgerWriter::open(&run.path(), Some(&old)).map(drop);
    assert!(matches!(refused, Err(LedgerError::OtherKey { retired: Some(2), .. })), "{refused:?}");
    // Nor does it come back as a new one.
    let back = rotate_key(&mut run.writer(), Some(&old));
    assert!(
        matches!(back, Err(LedgerError::Rotation { source: ChainError::Reused { .. }, .. })),
        "{back:?}"
    );
    assert_eq!(run.open().rounds_log().size(), 3);
    // A head that it signs all the same, of the new size: readers refuse it.
    let seed = keys::load(&Disk, &old).unwrap();
    let key = LogKey::from_seed(&format!("{ORIGIN}/rounds"), seed.as_bytes()).unwrap();
    let forged = run.open().rounds_log().head().sign(&key).unwrap();
    let published = run.path().join("log/rounds/checkpoint");
    let good = fs::read(&published).unwrap();
    fs::write(&published, forged).unwrap();
    let opened = Ledger::open(&run.path());
    assert!(matches!(opened, Err(LedgerError::Store(_))), "{opened:?}");
    fs::write(&published, good).unwrap();
    // The ledger as it was before, with the record of the new key: older than what that has signed.
    run.import(2, &[3, 7], &[]);
    for log in ["rounds", "submissions"] {
        let dir = run.path().join("log").join(log);
        fs::remove_dir_all(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        copy_all(&before.join("log").join(log), &dir);
    }
    let opened = LedgerWriter::open(&run.path(), None).map(drop);
    let older = |error: &LedgerError| error.to_string().contains("signing would fork the log");
    assert!(opened.as_ref().is_err_and(older), "{opened:?}");
}

#[test]
fn a_submissions_head_of_the_old_key_ends_where_the_new_one_begins() {
    let (_, run) = sealed_run();
    let old = note(&run, "submissions");
    rotate(&run);
    let published = run.path().join("log/submissions/checkpoint");
    // Between the two publications readers find the old one, and the next writer replaces it.
    fs::write(&published, &old).unwrap();
    fsck(&run.open(), fold_options(), &Silent).unwrap();
    drop(run.writer());
    assert_ne!(note(&run, "submissions"), old);
    // With more entries it is none.
    run.import(2, &[3, 7], &[]);
    let seed = keys::load(&Disk, &run.path().join("keys/log.key")).unwrap();
    let key = LogKey::from_seed(&format!("{ORIGIN}/submissions"), seed.as_bytes()).unwrap();
    let forged = run.open().submissions_log().head().sign(&key).unwrap();
    fs::write(&published, forged).unwrap();
    assert!(Ledger::open(&run.path()).is_err());
}

#[test]
fn a_half_made_key_is_taken_up_and_keys_outside_are_named() {
    let (_, run) = sealed_run();
    // What a rotation leaves that was killed before its entry.
    keys::create(&Disk, &run.path().join("keys/log-1.key")).unwrap();
    let made = fs::read(run.path().join("keys/log-1.key")).unwrap();
    rotate(&run);
    assert_eq!(fs::read(run.path().join("keys/log-1.key")).unwrap(), made);
    let outside = run.dir.path().join("outside/next.key");
    let report = rotate_key(&mut run.writer(), Some(&outside)).unwrap();
    assert!(!report.already);
    // Now the key lies elsewhere, which has to be said.
    assert!(LedgerWriter::open(&run.path(), None).is_err());
    let mut writer = LedgerWriter::open(&run.path(), Some(&outside)).unwrap();
    let again = rotate_key(&mut writer, Some(&outside)).unwrap();
    assert!(again.already && again.index == report.index && again.log_keys == report.log_keys);
    assert_eq!(writer.ledger().rounds_log().size(), 4);
    fsck(writer.ledger(), fold_options(), &Silent).unwrap();
}

/// What a forger changes of a hand-over before both keys sign it, and of the entry after.
type Change = (&'static str, fn(&mut Rotation), fn(&mut KeyRotation));

#[test]
fn a_forged_rotation_is_refused() {
    let changes: [Change; 9] = [
        ("nothing", |_| (), |_| ()),
        ("another index", |r| r.index += 1, |_| ()),
        ("another run", |r| r.run = Digest([7; 32]), |_| ()),
        ("swapped keys", |r| std::mem::swap(&mut r.old, &mut r.new), |_| ()),
        ("the old signature", |_| (), |e| e.by_old.0[5] ^= 1),
        ("the new signature", |_| (), |e| e.by_new.0[5] ^= 1),
        ("swapped signatures", |_| (), |e| std::mem::swap(&mut e.by_old, &mut e.by_new)),
        ("another size", |_| (), |e| e.submissions.size += 1),
        ("another root", |_| (), |e| e.submissions.root = Digest([7; 32])),
    ];
    let (_, run) = sealed_run();
    let new = LogSeed::from_bytes([9; 32]);
    for (what, before, after) in changes {
        let copy = run.dir.path().join("copy");
        copy_all(&run.path(), &copy);
        append_rotation(&copy, &new, before, after);
        let opened = Ledger::open(&copy);
        if what == "nothing" {
            fsck(&opened.unwrap(), fold_options(), &Silent).unwrap();
        } else {
            let wrong = matches!(
                opened,
                Err(LedgerError::Rotation { index: 2, source: ChainError::Signature { .. } })
            );
            assert!(wrong, "{what}: {opened:?}");
        }
        fs::remove_dir_all(&copy).unwrap();
    }
}

/// A hand-over to `new`, appended with what is wrong in it.
fn append_rotation(
    root: &Path,
    new: &LogSeed,
    before: fn(&mut Rotation),
    after: fn(&mut KeyRotation),
) {
    let ledger = Ledger::open(root).unwrap();
    let old = keys::load(&Disk, &root.join("keys/log.key")).unwrap();
    let guard = HeadGuard::open(Arc::new(Disk), &root.join("keys/log.key")).unwrap();
    let guard = Arc::new(guard);
    let signer = |seed: &LogSeed, log: &str| {
        HeadSigner::new(seed, &format!("{ORIGIN}/{log}"), guard.clone()).unwrap()
    };
    let head = ledger.submissions_log().head();
    let (size, root_at) = (head.size, head.root);
    let mut rotation = Rotation {
        run: ledger.run_id(),
        index: ledger.rounds_log().size(),
        submissions_size: size,
        submissions_root: root_at,
        old: *signer(&old, "rounds").verifier().key(),
        new: *signer(new, "rounds").verifier().key(),
    };
    before(&mut rotation);
    let mut entry = KeyRotation {
        log_keys: LogKeys {
            rounds: signer(new, "rounds").verifier().to_string(),
            submissions: signer(new, "submissions").verifier().to_string(),
        },
        submissions: LogEnd { size, root: root_at },
        by_old: SignatureHex(signer(&old, "rounds").sign_rotation(&rotation)),
        by_new: SignatureHex(signer(new, "rounds").sign_rotation(&rotation)),
    };
    after(&mut entry);
    let bytes = json::to_vec(&RoundsEntry::KeyRotation(Box::new(entry)));
    let dir = root.join("log/rounds");
    let mut log = LogWriter::open(Arc::new(Disk), &dir, signer(&old, "rounds")).unwrap();
    log.append_rotation(&bytes, signer(new, "rounds")).unwrap();
}

#[test]
fn a_lost_head_is_published_by_the_next_writer() {
    let (_, run) = sealed_run();
    for log in ["rounds", "submissions"] {
        let head = note(&run, log);
        fs::remove_file(run.path().join("log").join(log).join("checkpoint")).unwrap();
        let error = Ledger::open(&run.path()).unwrap_err();
        assert!(matches!(error, LedgerError::NoHead { .. }), "{error}");
        assert!(error.to_string().contains("run the last one again"), "{error}");
        // The last command, run again, says what it said.
        assert!(run.seal(1).already);
        assert_eq!(note(&run, log), head);
    }
}

#[test]
fn a_new_key_that_signed_another_log_of_this_name_is_refused() {
    let (_, run) = sealed_run();
    let path = run.dir.path().join("used.key");
    keys::create(&Disk, &path).unwrap();
    let guard = HeadGuard::open(Arc::new(Disk), &path).unwrap();
    let head = TreeHead { origin: format!("{ORIGIN}/rounds"), size: 2, root: Digest([1; 32]) };
    guard.admit(&head).unwrap();
    let rotated = rotate_key(&mut run.writer(), Some(&path));
    let fork = |error: &LedgerError| error.to_string().contains("signing would fork the log");
    assert!(rotated.as_ref().is_err_and(fork), "{rotated:?}");
    assert_eq!(run.open().rounds_log().size(), 2);
}

// ---- the program ----

fn program(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
    command.args(args).env_remove("GRADLEDGER_LOG_KEY_FILE").output().unwrap()
}

#[track_caller]
fn ends(code: i32, says: &str, args: &[&str]) {
    let output = program(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
    assert!(error.contains(says), "{args:?}: {error}");
}

fn keep(run: &Run, log: &str, name: &str) -> PathBuf {
    let path = run.dir.path().join(name);
    fs::write(&path, note(run, log)).unwrap();
    path
}

#[test]
fn a_ledger_that_does_not_lead_to_a_kept_head_signs_nothing() {
    let (_, run) = sealed_run();
    let copy = run.dir.path().join("copy");
    copy_all(&run.path(), &copy);
    let (ledger, old) = (run.path(), keep(&run, "rounds", "old.note"));
    run.import(2, &[3, 7], &[]);
    run.seal(2);
    let (rounds, submissions) =
        (keep(&run, "rounds", "rounds.note"), keep(&run, "submissions", "submissions.note"));
    let [ledger, copy_at, old, rounds, submissions] =
        [&ledger, &copy, &old, &rounds, &submissions].map(|path| path.to_str().unwrap());
    let seal = |ledger, round, note| {
        ["seal", ledger, "--round", round, "--last-head", note].map(str::to_owned)
    };
    let check = |code, says, args: [String; 6]| {
        ends(code, says, &args.iter().map(String::as_str).collect::<Vec<_>>());
    };
    for note in [old, rounds, submissions] {
        check(0, "was sealed already", seal(ledger, "2", note));
    }
    // The backup brought the record of the key along, so nothing but the note tells.
    check(0, "was sealed already", seal(copy_at, "1", old));
    check(20, "restored from an old backup", seal(copy_at, "1", rounds));
    check(20, "restored from an old backup", seal(copy_at, "1", submissions));
    // Written to, it is a fork.
    let files = run.files(3);
    let import = ["import", "templar", copy_at, "--round", "3", "--peers", "3,7", "--gradients"];
    let import: Vec<&str> = import.into_iter().chain([files.to_str().unwrap()]).collect();
    ends(0, "", &import);
    ends(0, "", &["seal", copy_at, "--round", "3"]);
    let size = Ledger::open(&copy).unwrap().rounds_log().size();
    check(20, "the log is forked already", seal(copy_at, "3", rounds));
    let rotate = ["log", "rotate-key", copy_at, "--last-head", rounds];
    ends(20, "the log is forked already", &rotate);
    assert_eq!(Ledger::open(&copy).unwrap().rounds_log().size(), size);
    // A note of another log, a damaged one, one that is none.
    let (_, other) = sealed_run();
    let strange = run.dir.path().join("strange.note");
    fs::write(&strange, note(&other, "rounds")).unwrap();
    check(21, "nothing is signed", seal(ledger, "2", strange.to_str().unwrap()));
    fs::write(&strange, note(&run, "rounds").replacen("\n3\n", "\n2\n", 1)).unwrap();
    check(21, "is wrong", seal(ledger, "2", strange.to_str().unwrap()));
    fs::write(&strange, "no note").unwrap();
    check(21, "nothing is signed", seal(ledger, "2", strange.to_str().unwrap()));
    check(1, "absent.note", seal(ledger, "2", "absent.note"));
}

#[test]
fn the_program_changes_the_key() {
    let (_, run) = sealed_run();
    let (path, outside) = (run.path(), run.dir.path().join("next.key"));
    let (ledger, outside) = (path.to_str().unwrap(), outside.to_str().unwrap());
    ends(0, "", &["log", ledger]);
    ends(0, "", &["log", "rotate-key", ledger]);
    let first = run.path().join("keys/log-1.key");
    let first = first.to_str().unwrap();
    ends(2, "--new-log-key-file", &["log", "rotate-key", ledger, "--log-key-file", first]);
    let rotate = ["log", "rotate-key", ledger, "--new-log-key-file", outside];
    ends(0, "", &[&rotate[..], &["--log-key-file", first]].concat());
    ends(0, "already", &[&rotate[..], &["--log-key-file", outside]].concat());
    ends(21, "retired by entry 3", &["seal", ledger, "--round", "1", "--log-key-file", first]);
    ends(1, "--log-key-file", &["seal", ledger, "--round", "1"]);
    let shown = program(&["show", ledger, "--json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["retired_keys"][1]["until"], 3);
    let listed = program(&["log", ledger]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.matches("key rotation").count(), 2, "{listed}");
    ends(2, "", &["log"]);
}

#[test]
fn a_command_that_was_done_says_so_or_what_to_do() {
    let (_, run) = sealed_run();
    let path = run.path();
    let ledger = path.to_str().unwrap();
    let first = run.seal(1);
    assert!(first.already);
    let error = run.try_import(1, &[3, 7], &[]).unwrap_err();
    assert!(matches!(error, LedgerError::RoundSealed { round: 1 }), "{error}");
    // A damaged list of who is expected: readers do not mind, writers say what to do.
    run.import(2, &[3, 7], &[]);
    let open = run.path().join("open-round.json");
    fs::write(&open, "{").unwrap();
    ends(0, "", &["show", ledger]);
    ends(20, "import the same files with --peers again", &["seal", ledger, "--round", "2"]);
    fs::remove_file(&open).unwrap();
    run.import(2, &[3, 7], &[]);
    run.seal(2);
    // A round in which nobody sent anything.
    let import = ["import", "templar", ledger, "--round", "4", "--peers", "3,7"];
    ends(2, "--gradients", &import);
    ends(0, "", &[&import[..], &["--all-absent"]].concat());
    let report = run.seal(4);
    assert!(report.accepted.is_empty() && report.rejected.len() == 2);
    assert_eq!(report.next, run.open().sealed()[1].record.next);
    fsck(&run.open(), fold_options(), &Silent).unwrap();
    // What a seal says again is what it said.
    let mut again = run.seal(4);
    assert!(again.already);
    again.already = false;
    assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&report).unwrap());
}
