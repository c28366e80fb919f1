//! The index: one contract for every backend; whatever becomes of its files, it is made anew from
//! the logs and equal; readers leave it alone.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
};

use common::{
    Random,
    ledger::{Fixture, ROUNDS, Step},
    model::{all_files, copy_all},
    signed::{SignedRun, bytes_below, document, hotkey, made_up, program},
};
use gradledger::{
    codec::statement::Statement,
    ledger::{Ledger, submit::statement_of, writer::LedgerWriter},
    store::{
        files::Disk,
        index::{Index, IndexDir, IndexError, Pair, sled::SledIndex},
    },
    types::{
        digest::Digest,
        progress::Progress,
        submission::{Miner, Submission},
    },
};

// One contract.

type Open = fn(&Path) -> Result<Box<dyn Index>, IndexError>;

/// What every backend does.
fn index_contract(open: Open) {
    let dir = tempfile::tempdir().unwrap();
    let pair = |key: &[u8], value: &[u8]| (key.to_vec(), value.to_vec());
    let mut index = open(dir.path()).unwrap();
    assert_eq!(index.get(b"a").unwrap(), None);
    assert_eq!(index.scan(b"", usize::MAX).unwrap(), []);
    index.apply(&[]).unwrap();
    // Keys in no order, a value twice in one batch: the later counts.
    let puts = [pair(b"b", b"2"), pair(b"a\xff", b""), pair(b"a", b"0"), pair(b"a", b"1")];
    index.apply(&puts).unwrap();
    let [a, a_ff, b] = [pair(b"a", b"1"), pair(b"a\xff", b""), pair(b"b", b"2")];
    assert_eq!(index.get(b"a").unwrap().unwrap(), b"1");
    assert_eq!(index.get(b"a\xff").unwrap().unwrap(), b"", "empty is not absent");
    assert_eq!(index.get(b"a\xfe").unwrap(), None);
    assert_eq!(index.scan(b"", usize::MAX).unwrap(), [a.clone(), a_ff.clone(), b.clone()]);
    assert_eq!(index.scan(b"a", usize::MAX).unwrap(), [a.clone(), a_ff.clone()]);
    let (a, a_ff) = ([a], [a_ff]);
    assert_eq!(index.scan(b"a", 1).unwrap(), a);
    assert_eq!(index.scan(b"a", 0).unwrap(), []);
    assert_eq!(index.scan(b"a\xff", 9).unwrap(), a_ff, "no key ends a prefix of 0xff");
    assert_eq!(index.scan(b"\xff", 9).unwrap(), []);
    index.apply(&[pair(b"a", &[7; 65_536])]).unwrap();
    index.close().unwrap();
    let index = open(dir.path()).unwrap();
    assert_eq!(index.get(b"a").unwrap().unwrap(), [7; 65_536]);
    assert_eq!(index.scan(b"b", 9).unwrap(), [b]);
    index.close().unwrap();
}

/// Random batches against a map, closed and opened between.
fn index_is_a_map(open: Open, seed: u64) {
    println!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let (mut random, mut map) = (Random(seed), BTreeMap::new());
    let bytes = |random: &mut Random, len: u64| -> Vec<u8> {
        (0..random.below(len)).map(|_| [0, 1, 254, 255][random.below(4) as usize]).collect()
    };
    for _ in 0..4 {
        let mut index = open(dir.path()).unwrap();
        for _ in 0..8 {
            let mut puts: Vec<Pair> = (0..random.below(400))
                .map(|_| (bytes(&mut random, 9), bytes(&mut random, 200)))
                .collect();
            puts.retain(|(key, _)| !key.is_empty());
            index.apply(&puts).unwrap();
            map.extend(puts);
            for _ in 0..50 {
                let key = bytes(&mut random, 9);
                assert_eq!(index.get(&key).unwrap(), map.get(&key).cloned(), "{key:?}");
                let under = map.range(key.clone()..).take_while(|(k, _)| k.starts_with(&key));
                let max = random.below(20) as usize;
                let under: Vec<Pair> =
                    under.take(max).map(|(k, v)| (k.clone(), v.clone())).collect();
                assert_eq!(index.scan(&key, max).unwrap(), under, "{key:?}");
            }
        }
        let all: Vec<Pair> = map.clone().into_iter().collect();
        assert_eq!(index.scan(&[], usize::MAX).unwrap(), all);
        index.close().unwrap();
    }
    assert!(map.len() > 1000);
}

fn sled(dir: &Path) -> Result<Box<dyn Index>, IndexError> {
    Ok(Box::new(SledIndex::open(dir)?))
}

#[cfg(feature = "index-rocksdb")]
fn rocks(dir: &Path) -> Result<Box<dyn Index>, IndexError> {
    Ok(Box::new(gradledger::store::index::rocks::RocksIndex::open(dir)?))
}

/// Every backend, one contract: add a line here, not a test file.
#[test]
fn every_backend_keeps_the_contract() {
    index_contract(sled);
    index_is_a_map(sled, 5);
    #[cfg(feature = "index-rocksdb")]
    {
        index_contract(rocks);
        index_is_a_map(rocks, 5);
    }
}

// Whatever becomes of its files.

/// Counts the bytes of the logs that are read to bring an index up.
#[derive(Default)]
struct Read(AtomicU64);

impl Progress for Read {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
    fn end(&self) {}
    fn note(&self, _: &str) {}
}

/// Opens the index, brings it up, and compares every hit with what the logs say; gives its pairs,
/// and how many bytes of submissions were read for it.
fn brought_up(writer: &mut LedgerWriter) -> (Vec<Pair>, u64) {
    let read = Read::default();
    let (ledger, index) = writer.index(&read).unwrap();
    let submissions = ledger.submissions(0..ledger.submissions_log().size()).unwrap();
    let (mut by_statement, mut by_miner) = (BTreeMap::new(), BTreeMap::new());
    let (mut statements, mut signed_count) = (Vec::<Statement>::new(), 0);
    for (at, submission) in &submissions {
        by_miner.entry((submission.miner(), submission.round())).or_insert(*at);
        if let Submission::Signed(signed) = submission {
            let statement = statement_of(ledger.run_id(), signed);
            by_statement.entry(statement.id()).or_insert(*at);
            statements.push(statement);
            signed_count += 1;
        }
    }
    // Each lookup reads a bundle of the log: some are enough.
    let some = 1 + statements.len() / 30;
    for statement in statements.iter().step_by(some) {
        let found = index.statement(ledger, statement).unwrap();
        assert_eq!(found, by_statement.get(&statement.id()).copied());
        let other = Statement { delta_bytes: statement.delta_bytes + 1, ..*statement };
        assert_eq!(index.statement(ledger, &other).unwrap(), None);
    }
    for ((miner, round), at) in by_miner.iter().take(10) {
        assert_eq!(index.miner(ledger, *miner, *round).unwrap(), Some(*at));
    }
    assert_eq!(index.miner(ledger, Miner::Uid(9), 1).unwrap(), None);
    for sealed in ledger.sealed() {
        let (round, at) = (sealed.record.round, Some(sealed.index));
        assert_eq!(index.round(ledger, round).unwrap(), at);
        assert_eq!(index.round(ledger, round + 1000).unwrap(), None);
    }
    let pairs = index.pairs().unwrap();
    let all = submissions.len() + signed_count + ledger.sealed().len() + 1;
    assert_eq!(pairs.len(), all, "and nothing else is in it");
    (pairs, read.0.into_inner())
}

/// As [`brought_up`], opened and closed again.
fn reopened(run: &SignedRun) -> (Vec<Pair>, u64) {
    brought_up(&mut run.writer())
}

/// What an index made from nothing holds, and the bytes that are read for it.
fn from_scratch(run: &SignedRun) -> (Vec<Pair>, u64) {
    let dir = run.ledger().join("index");
    if dir.exists() {
        fs::remove_dir_all(dir).unwrap();
    }
    reopened(run)
}

#[test]
fn it_goes_on_from_where_it_was_closed() {
    let run = SignedRun::new();
    assert_eq!(reopened(&run).1, 0, "an empty log");
    run.append(0, 500);
    let (_, all) = reopened(&run);
    assert_eq!(reopened(&run).1, 0, "nothing new");
    run.seal(1);
    run.append(500, 1001);
    // Within one process, too.
    let mut writer = run.writer();
    let (pairs, new) = brought_up(&mut writer);
    writer.append_submissions(&[made_up(1001)]).unwrap();
    let (more, one) = brought_up(&mut writer);
    assert_eq!(more.len(), pairs.len() + 2);
    drop(writer);
    assert_eq!(from_scratch(&run), (more, all + new + one));
}

/// Damage to an index's directory, by what it is.
type Damage = (&'static str, fn(&Path));

/// Each file of the index, with other bytes.
fn rewrite(dir: &Path, change: impl Fn(&mut Vec<u8>, &mut Random)) {
    let mut random = Random(dir.as_os_str().len() as u64);
    for path in all_files(dir) {
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes, &mut random);
        fs::write(path, bytes).unwrap();
    }
}

fn scramble(bytes: &mut Vec<u8>, random: &mut Random) {
    bytes.iter_mut().for_each(|byte| *byte = random.next() as u8);
    bytes.push(0);
}

const DAMAGES: [Damage; 14] = [
    ("missing", |dir| fs::remove_dir_all(dir).unwrap()),
    ("an empty directory", |dir| {
        fs::remove_dir_all(dir).unwrap();
        fs::create_dir(dir).unwrap();
    }),
    ("a file in its place", |dir| {
        fs::remove_dir_all(dir).unwrap();
        fs::write(dir, "an index").unwrap();
    }),
    ("a pipe in its place", |dir| {
        fs::remove_dir_all(dir).unwrap();
        assert!(Command::new("mkfifo").arg(dir).status().unwrap().success());
    }),
    ("without its mark", |dir| fs::remove_file(dir.join("closed")).unwrap()),
    ("with its mark alone", |dir| {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                fs::remove_dir_all(entry.path()).unwrap();
            }
        }
    }),
    ("every file empty", |dir| rewrite(dir, |bytes, _| bytes.clear())),
    ("every file cut in half", |dir| rewrite(dir, |bytes, _| bytes.truncate(bytes.len() / 2))),
    ("every file of random bytes", |dir| rewrite(dir, scramble)),
    ("every file but the mark of random bytes", |dir| {
        let mark = fs::read(dir.join("closed")).unwrap();
        rewrite(dir, scramble);
        fs::write(dir.join("closed"), mark).unwrap();
    }),
    ("one bit of each file changed", |dir| {
        rewrite(dir, |bytes, random| {
            let at = random.below(bytes.len().max(1) as u64) as usize;
            bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 4);
        })
    }),
    ("a file that is not its own beside the others", |dir| {
        let within = fs::read_dir(dir).unwrap().map(Result::unwrap);
        let backend = within.map(|e| e.path()).find(|path| path.is_dir()).unwrap();
        fs::write(backend.join("stranger"), "SQLite format 3\0").unwrap();
    }),
    ("files of another program", |dir| {
        fs::remove_dir_all(dir).unwrap();
        for name in ["sled/db", "sled/conf", "rocksdb/CURRENT", "closed/deep/file"] {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "SQLite format 3\0".repeat(1000)).unwrap();
        }
    }),
    ("a mark of files outside", |dir| {
        let line = "gradledger-index/1 sled\n0 00 ../../keys/log.key\n";
        fs::write(dir.join("closed"), line).unwrap();
    }),
];

#[test]
fn whatever_is_found_in_its_place_it_is_made_anew_and_equal() {
    let run = SignedRun::new();
    run.append(0, 700);
    let dir = run.ledger().join("index");
    let (pairs, all) = from_scratch(&run);
    let logs = bytes_below(&run.ledger().join("log"));
    for (what, damage) in DAMAGES {
        damage(&dir);
        assert_eq!(reopened(&run), (pairs.clone(), all), "{what}");
        assert_eq!(reopened(&run), (pairs.clone(), 0), "{what}, once more");
    }
    assert_eq!(bytes_below(&run.ledger().join("log")), logs, "the logs are only read");
}

#[test]
fn a_link_in_its_place_is_removed_and_not_what_it_leads_to() {
    let run = SignedRun::new();
    run.append(0, 50);
    let elsewhere = run.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("theirs"), "kept").unwrap();
    symlink(&elsewhere, run.ledger().join("index")).unwrap();
    reopened(&run);
    assert_eq!(all_files(&elsewhere), [elsewhere.join("theirs")]);
    assert_eq!(reopened(&run).1, 0);
}

#[test]
fn older_newer_and_others_copies_end_equal() {
    let (run, other) = (SignedRun::new(), SignedRun::new());
    let dir = run.ledger().join("index");
    let (older, newer, backup) = (run.path("older"), run.path("newer"), run.path("backup"));
    run.append(0, 300);
    let (_, first) = reopened(&run);
    copy_all(&dir, &older);
    copy_all(&run.ledger().join("log"), &backup);
    copy_all(&run.ledger().join("keys"), &run.path("keys"));
    run.append(300, 900);
    let (_, rest) = reopened(&run);
    copy_all(&dir, &newer);
    let put_back = |from: &Path, to: &Path| {
        if to.exists() {
            fs::remove_dir_all(to).unwrap();
        }
        copy_all(from, to);
    };
    let (pairs, all) = from_scratch(&run);
    assert_eq!(all, first + rest);
    put_back(&older, &dir);
    assert_eq!(reopened(&run), (pairs.clone(), rest), "an older copy is brought up");
    // The logs of a backup, and an index that is ahead of them.
    put_back(&backup, &run.ledger().join("log"));
    put_back(&run.path("keys"), &run.ledger().join("keys"));
    put_back(&newer, &dir);
    let (short, read) = reopened(&run);
    assert_eq!((read, short.len() < pairs.len()), (first, true), "one that is ahead is made anew");
    // They go on in another way than before.
    run.append(1000, 1600);
    put_back(&newer, &dir);
    let (pairs, read) = reopened(&run);
    assert!(read > first, "one of another history is made anew");
    assert_eq!(from_scratch(&run), (pairs, read));
    // Another run with the same submissions.
    other.append(0, 300);
    let (others, all) = reopened(&other);
    put_back(&older, &other.ledger().join("index"));
    assert_eq!(reopened(&other), (others, all), "one of another run is made anew");
}

#[test]
fn what_a_power_cut_leaves_of_it_is_made_anew() {
    let run = SignedRun::new();
    let dir = run.ledger().join("index");
    reopened(&run);
    let mut cuts = 0;
    for step in 0..6 {
        // The mark's removal is not durable either.
        let mark = fs::read(dir.join("closed")).unwrap();
        let mut writer = run.writer();
        brought_up(&mut writer);
        let appended: Vec<Submission> = (step * 100..step * 100 + 100).map(made_up).collect();
        writer.append_submissions(&appended).unwrap();
        let (pairs, _) = brought_up(&mut writer);
        // Taken while it is open and written to.
        let cut = run.path(&format!("cut-{step}"));
        copy_all(&dir, &cut);
        drop(writer);
        for with_mark in [false, true] {
            fs::remove_dir_all(&dir).unwrap();
            copy_all(&cut, &dir);
            if with_mark {
                fs::write(dir.join("closed"), &mark).unwrap();
            }
            assert_eq!(reopened(&run).0, pairs, "step {step}, with its mark: {with_mark}");
            cuts += 1;
        }
    }
    println!("index: {cuts} cuts");
}

/// A backend that is handed rubbish all the same, under a mark that fits, must not bring the process
/// down: it is empty, gives what it can, or says that it failed.
#[test]
fn rubbish_under_a_mark_that_fits_does_not_bring_the_process_down() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("index");
    let (mut anew, mut kept, mut failed) = (0, 0, 0);
    for seed in 0..60 {
        let mut index = IndexDir::anew(&root).unwrap();
        let pairs = (0..2000_u64).map(|i| (i.to_be_bytes().to_vec(), vec![1; 40]));
        index.apply(&pairs.collect::<Vec<Pair>>()).unwrap();
        drop(index);
        let (files, mut random) = (all_files(&root), Random(seed));
        let path = &files[random.below(files.len() as u64) as usize];
        let mut bytes = fs::read(path).unwrap();
        // None the first time: that the mark fits.
        for _ in 0..seed.min(3) {
            let at = random.below(bytes.len() as u64 + 1) as usize;
            bytes.iter_mut().skip(at).take(16).for_each(|byte| *byte = random.next() as u8);
        }
        fs::write(path, bytes).unwrap();
        common::signed::mark(&root);
        let mut index = IndexDir::open(&root).unwrap();
        match index.scan(&[], usize::MAX) {
            Ok(pairs) if pairs.is_empty() => anew += 1,
            Ok(_) => kept += 1,
            Err(_) => {
                failed += 1;
                assert!(matches!(index.get(b"a"), Err(IndexError::Closed)));
            }
        }
        assert!(seed > 0 || kept == 1, "the mark does not fit");
    }
    println!("index: of rubbish {anew} opened empty, {kept} with something, {failed} failed");
}

// Readers.

#[test]
fn readers_leave_it_alone_and_go_on_while_a_writer_has_it() {
    let fixture = Fixture::new();
    let ledger = fixture.root();
    for step in
        [Step::Init, Step::import(ROUNDS[0]), Step::Seal(ROUNDS[0]), Step::import(ROUNDS[1])]
    {
        let files: std::sync::Arc<dyn gradledger::store::files::Files> = std::sync::Arc::new(Disk);
        fixture.step(&step, &ledger, &files, &mut vec![]).unwrap();
    }
    let (index, path) = (ledger.join("index"), ledger.to_str().unwrap());
    let round = ROUNDS[0].to_string();
    let read = || {
        for arguments in [
            &["show", path][..],
            &["show", path, "--round", &round],
            &["log", path],
            &["log", path, "--miner", "7"],
            &["diff", path],
            &["replay", path, "--round", &round],
            &["fsck", path],
        ] {
            document(program(arguments).arg("--json"));
        }
        let out = tempfile::tempdir().unwrap();
        let export = ["export", path, "--round", &round, "--json", "--out"];
        document(program(&export).arg(out.path().join("weights")));
    };
    read();
    assert!(!index.exists(), "readers do not make one");
    // A pipe blocks whoever opens it.
    assert!(Command::new("mkfifo").arg(&index).status().unwrap().success());
    read();
    fs::remove_file(&index).unwrap();
    fs::create_dir(&index).unwrap();
    fs::write(index.join("closed"), "rubbish").unwrap();
    let rubbish = bytes_below(&index);
    read();
    assert_eq!(bytes_below(&index), rubbish);
    // A writer with the index open.
    let mut writer = LedgerWriter::open(&ledger, None).unwrap();
    let (pairs, _) = brought_up(&mut writer);
    let held = all_files(&index);
    read();
    let second = ["seal", path, "--round", &ROUNDS[1].to_string()];
    assert_eq!(program(&second).output().unwrap().status.code(), Some(11));
    assert_eq!(all_files(&index), held, "a second writer does not get that far");
    assert_eq!(brought_up(&mut writer), (pairs, 0));
}

// What a user sees of it.

#[test]
fn an_answer_that_was_lost_is_given_again_after_the_seal() {
    let run = SignedRun::new();
    let index = run.ledger().join("index");
    let first = document(&mut run.submit("delta.pt"));
    assert!(!index.exists(), "an open round needs none");
    run.append_fetched(40);
    run.seal(1);
    let size = run.open().submissions_log().size();
    let answers = |what: &str| {
        let again = document(&mut run.submit("delta.pt"));
        for field in ["index", "statement", "entry"] {
            assert_eq!(again["receipt"][field], first["receipt"][field], "{what}: {field}");
        }
        assert_eq!(again["rejected"], serde_json::Value::Null, "{what}");
        // Another delta of this hotkey comes too late, whatever the index says.
        let other = run.submit("other.pt").output().unwrap();
        assert_eq!(other.status.code(), Some(1), "{what}");
        assert!(String::from_utf8_lossy(&other.stderr).contains("late"), "{what}");
        assert_eq!(run.open().submissions_log().size(), size, "{what}");
    };
    answers("no index yet");
    for (what, damage) in DAMAGES {
        damage(&index);
        answers(what);
    }
    // No index can be had at all: the log is read instead. A directory that is mounted on cannot be
    // removed, by root either.
    let mounted = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs"];
    let index = index.to_str().unwrap();
    if !Command::new(mounted[0])
        .args(&mounted[1..])
        .arg(index)
        .output()
        .is_ok_and(|o| o.status.success())
    {
        println!("skipped: mounting is not permitted here");
        return;
    }
    let answered = catch_unwind(AssertUnwindSafe(|| answers("a place that cannot be written to")));
    assert!(Command::new("umount").arg(index).status().unwrap().success());
    answered.unwrap();
}

#[test]
fn log_finds_a_statement_and_a_miner_without_it() {
    let run = SignedRun::new();
    let first = document(&mut run.submit("delta.pt"));
    run.append(0, 100);
    let path = run.ledger();
    let log = |arguments: &[&str]| {
        let found = document(program(&["log", "--json"]).arg(&path).args(arguments));
        assert_eq!(found["log"], "submissions");
        let index = |entry: &serde_json::Value| entry["index"].as_u64().unwrap();
        found["entries"].as_array().unwrap().iter().map(index).collect::<Vec<_>>()
    };
    let statement = first["receipt"]["statement"].as_str().unwrap();
    assert_eq!(log(&["--statement", statement]), [0]);
    assert_eq!(log(&["--statement", &Digest::of(b"none").to_hex()]), [0_u64; 0]);
    assert_eq!(log(&["--miner", first["address"].as_str().unwrap()]), [0]);
    assert_eq!(log(&["--miner", &hotkey(1).to_hex()]), [0]);
    let of = |miner: Miner| -> Vec<u64> {
        let made_up = (1..).zip((0..100).map(made_up));
        made_up.filter(|(_, s)| s.miner() == miner).map(|(index, _)| index).collect()
    };
    assert_eq!(log(&["--miner", &hotkey(2).to_hex()]), of(Miner::Hotkey(hotkey(2))));
    assert_eq!(log(&["--miner", "7"]), of(Miner::Uid(7)));
    let both = ["--miner", &hotkey(2).to_hex(), "--statement", statement];
    assert_eq!(log(&both), [0_u64; 0]);
    let wrong = program(&["log", "--miner", "nobody"]).arg(&path).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(!run.ledger().join("index").exists());
    drop(Ledger::open(&path).unwrap());
}
