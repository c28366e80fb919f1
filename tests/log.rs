//! Logs: a model beside random appends, a cut after every call, a flip of every byte.

#![allow(clippy::unwrap_used)] // Helpers of tests, too.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{
    Random,
    memfs::{Fault, MemFs, Survival},
};
use gradledger::{
    merkle::{
        head::TreeHead,
        note::SignedNote,
        tile::{bundles_of, tiles_of},
        tree::{verify_consistency, verify_inclusion},
    },
    store::{
        files::{Disk, Files},
        keys::{
            self, KeyError,
            heads::{GuardError, HeadGuard, HeadSigner},
        },
        log::{LogError, LogReader, LogWriter},
    },
    types::digest::Digest,
};

const DIR: &str = "/ledger/log/rounds";
const KEY: &str = "/ledger/keys/log.key";
const ORIGIN: &str = "ledger.example/test/rounds";

type Entry = Vec<u8>;

fn signer(files: &Arc<dyn Files>) -> Result<HeadSigner, GuardError> {
    let seed = keys::load(&**files, Path::new(KEY)).expect("the key is there");
    let guard = HeadGuard::open(files.clone(), Path::new(KEY))?;
    HeadSigner::new(&seed, ORIGIN, Arc::new(guard))
}

fn open(fs: &MemFs) -> Result<LogWriter, LogError> {
    let files = fs.handle();
    LogWriter::open(files.clone(), Path::new(DIR), signer(&files)?)
}

fn reader(fs: &MemFs) -> Result<LogReader, LogError> {
    LogReader::open(fs.handle(), Path::new(DIR))
}

/// A new key and an empty log.
fn init(fs: &MemFs) -> Result<LogWriter, LogError> {
    let files = fs.handle();
    let path = PathBuf::from(KEY);
    match keys::create(&*files, &path) {
        Ok(_) | Err(KeyError::Exists { .. }) => {}
        Err(KeyError::Io { path, source }) => return Err(LogError::Io { path, source }),
        Err(error) => panic!("{error}"),
    }
    LogWriter::create(files.clone(), Path::new(DIR), signer(&files)?)
}

fn entries(range: Range<u64>, what: &str) -> Vec<Entry> {
    range.map(|index| format!("{what} {index}").into_bytes()).collect()
}

fn hash(parts: &[&[u8]]) -> Digest {
    Digest::of(&parts.concat())
}

fn leaf(entry: &[u8]) -> Digest {
    hash(&[&[0], entry])
}

/// RFC 6962's own words, over leaf hashes.
fn plain_root(leaves: &[Digest]) -> Digest {
    match leaves {
        [] => hash(&[]),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            hash(&[&[1], plain_root(left).as_bytes(), plain_root(right).as_bytes()])
        }
    }
}

fn read_all(log: &LogReader) -> Vec<Entry> {
    log.entries(0..log.size()).unwrap().collect::<Result<_, _>>().unwrap()
}

fn verify(log: &LogReader) -> Result<(), LogError> {
    log.verify(&mut |_, _| {})
}

#[test]
fn a_log_is_what_was_appended_to_it() {
    let seed = 1;
    println!("seed {seed}");
    let mut random = Random(seed);
    let fs = MemFs::new();
    drop(init(&fs).unwrap());
    let mut model: Vec<Entry> = vec![];
    let mut readers: Vec<LogReader> = vec![reader(&fs).unwrap()];
    // Around the edges of bundles first, then anywhere.
    let mut sizes = vec![1, 253, 1, 1, 1, 254, 1, 1, 0, 2];
    sizes.extend((0..40).map(|_| random.below(120)));
    for size in sizes {
        let mut log = open(&fs).unwrap();
        let batch: Vec<Entry> = (0..size).map(|_| random_entry(&mut random)).collect();
        let start = model.len() as u64;
        assert_eq!(log.append(&batch).unwrap(), start..start + size);
        model.extend(batch);
        readers.push(reader(&fs).unwrap());
        assert_eq!(readers.last().unwrap().note(), log.head());
        assert_eq!(log.size(), model.len() as u64);
        readers.last().unwrap().verify_head(log.verifier()).unwrap();
    }
    let leaves: Vec<Digest> = model.iter().map(|entry| leaf(entry)).collect();
    let newest = readers.last().unwrap();
    verify(newest).unwrap();
    for old in &readers {
        let size = old.size();
        assert_eq!(old.head().root, plain_root(&leaves[..size as usize]));
        assert_eq!(newest.root_at(size).unwrap(), old.head().root);
        assert_eq!(read_all(old), model[..size as usize]);
        check_proofs(newest, old, &leaves, &mut random);
    }
}

fn random_entry(random: &mut Random) -> Entry {
    let length_max = if random.below(50) == 0 { 65_535 } else { 40 };
    let length = 1 + random.below(length_max);
    (0..length).map(|_| random.next() as u8).collect()
}

/// A proof from the old head to the new one, and of a few entries in the old one.
fn check_proofs(newest: &LogReader, old: &LogReader, leaves: &[Digest], random: &mut Random) {
    let (size, root) = (old.size(), &old.head().root);
    if size == 0 {
        assert!(matches!(newest.consistency_proof(0, 1), Err(LogError::Sizes { .. })));
        return;
    }
    let proof = newest.consistency_proof(size, newest.size()).unwrap();
    verify_consistency(size, newest.size(), root, &newest.head().root, &proof).unwrap();
    for index in [0, size - 1, random.below(size)] {
        let hash = newest.leaf_hash(index).unwrap();
        assert_eq!(hash, leaves[index as usize]);
        let proof = old.inclusion_proof(index, size).unwrap();
        verify_inclusion(index, size, &hash, &proof, root).unwrap();
    }
}

#[test]
fn a_batch_may_cross_every_level_of_tiles() {
    let fs = MemFs::new();
    let mut log = init(&fs).unwrap();
    let model = entries(0..65_800, "e");
    let leaves: Vec<Digest> = model.iter().map(|entry| leaf(entry)).collect();
    for size in [65_535, 65_536, 65_537, 65_800] {
        log.append(&model[log.size() as usize..size]).unwrap();
        assert_eq!(log.root(), plain_root(&leaves[..size]), "{size}");
        let read = reader(&fs).unwrap();
        assert_eq!(read.entry(size as u64 - 1).unwrap(), model[size - 1]);
        let proof = read.inclusion_proof(256, size as u64).unwrap();
        verify_inclusion(256, size as u64, &leaves[256], &proof, &log.root()).unwrap();
        log = open(&fs).unwrap();
    }
    verify(&reader(&fs).unwrap()).unwrap();
    // Partial files do not pile up: one of each kind that is not full.
    let partial = |path: &&PathBuf| path.to_string_lossy().contains(".p/");
    assert_eq!(fs.files().keys().filter(partial).count(), 4);
}

#[test]
fn an_entry_has_1_to_65_535_bytes_and_a_refused_one_changes_nothing() {
    let fs = MemFs::new();
    let mut log = init(&fs).unwrap();
    let before = fs.files();
    for bytes in [0, 65_536] {
        let refused = log.append(&[vec![1], vec![0; bytes]]);
        assert!(matches!(refused, Err(LogError::EntryLength { at: 1, .. })));
        assert_eq!(fs.files(), before);
    }
    log.append(&[vec![1; 65_535]]).unwrap();
    assert_eq!(reader(&fs).unwrap().entry(0).unwrap(), vec![1; 65_535]);
}

#[test]
fn what_the_head_does_not_reach_is_refused() {
    let fs = MemFs::new();
    let mut log = init(&fs).unwrap();
    log.append(&entries(0..3, "e")).unwrap();
    let log = reader(&fs).unwrap();
    let beyond = |error| matches!(error, LogError::Beyond { size: 3, .. });
    for index in [3, 4, u64::MAX] {
        assert!(beyond(log.entry(index).unwrap_err()));
        assert!(beyond(log.leaf_hash(index).unwrap_err()));
        assert!(beyond(log.inclusion_proof(index, 3).unwrap_err()));
    }
    assert!(beyond(log.root_at(4).unwrap_err()));
    assert!(beyond(log.inclusion_proof(0, 4).unwrap_err()));
    assert!(beyond(log.consistency_proof(1, 4).unwrap_err()));
    assert!(matches!(log.consistency_proof(3, 2), Err(LogError::Sizes { size1: 3, size2: 2 })));
}

#[test]
fn a_log_on_the_local_disk_reopens() {
    let dir = tempfile::tempdir().unwrap();
    let (log_dir, key) = (dir.path().join("log/rounds"), dir.path().join("keys/log.key"));
    let files: Arc<dyn Files> = Arc::new(Disk);
    let seed = keys::create(&*files, &key).unwrap();
    let signer = || {
        let guard = HeadGuard::open(files.clone(), &key).unwrap();
        HeadSigner::new(&seed, ORIGIN, Arc::new(guard)).unwrap()
    };
    LogWriter::create(files.clone(), &log_dir, signer()).unwrap();
    for batch in [254, 3, 256] {
        let mut log = LogWriter::open(files.clone(), &log_dir, signer()).unwrap();
        let batch = entries(log.size()..log.size() + batch, "e");
        log.append(&batch).unwrap();
    }
    let log = LogReader::open(files, &log_dir).unwrap();
    verify(&log).unwrap();
    assert_eq!(read_all(&log), entries(0..513, "e"));
}

/// What may never be contradicted: every head that left the process, over all lives of a log.
#[derive(Clone, Default)]
struct Signed(BTreeMap<u64, Digest>);

impl Signed {
    fn see(&mut self, note: &[u8]) {
        let note = SignedNote::parse(note).unwrap();
        let head = TreeHead::parse(note.text()).unwrap();
        let before = *self.0.entry(head.size).or_insert(head.root);
        assert_eq!(before, head.root, "two heads of {} entries", head.size);
    }

    /// Also, that the record beside the key knows of all that was signed.
    fn see_published(&mut self, fs: &MemFs) {
        if let Ok(log) = reader(fs) {
            self.see(log.note());
        }
        let guard = HeadGuard::open(fs.handle(), Path::new(KEY)).unwrap();
        let recorded = guard.signed(ORIGIN).unwrap();
        let newest = self.0.last_key_value().map(|(size, root)| (*size, *root));
        if let Some(newest) = newest.filter(|(size, _)| *size >= recorded.size) {
            assert_eq!(newest, (recorded.size, recorded.root), "signed and not recorded");
        }
    }
}

/// A log of 254 entries, so that the next batch fills a bundle and starts another.
fn almost_full() -> (MemFs, Vec<Entry>) {
    let fs = MemFs::new();
    let model = entries(0..254, "before");
    init(&fs).unwrap().append(&model).unwrap();
    (fs.restart(Survival::Dropped), model)
}

/// Appends both batches; says how many entries were acknowledged, and whether all went well.
fn append_two(fs: &MemFs, model: &mut Vec<Entry>, signed: &mut Signed) -> Result<(), LogError> {
    let mut log = open(fs)?;
    for (size, what) in [(3, "first"), (2, "second")] {
        let start = model.len() as u64;
        log.append(&entries(start..start + size, what))?;
        signed.see(log.head());
        model.extend(entries(start..start + size, what));
    }
    Ok(())
}

/// What the log holds must be what was acknowledged, or that and the batch that was cut, whole.
fn check_survivor(fs: &MemFs, acknowledged: &[Entry], all: &[Entry]) {
    let sizes = [254, 257, 259];
    let read = reader(fs).unwrap();
    verify(&read).unwrap();
    let found = read_all(&read);
    assert!(found.len() >= acknowledged.len() && sizes.contains(&found.len()));
    let next = sizes.into_iter().find(|size| *size > acknowledged.len()).unwrap_or(259);
    assert!(found.len() <= next);
    assert_eq!(found, all[..found.len()]);
}

/// Opens twice, appends something else than what was cut, and looks at all.
fn check_goes_on(fs: &MemFs, signed: &mut Signed) {
    let size = open(fs).unwrap().size();
    signed.see_published(fs);
    signed.see_published(&fs.restart(Survival::Dropped));
    check_only_needed(fs, size);
    let once = fs.files();
    let mut log = open(fs).unwrap();
    assert_eq!(fs.files(), once, "a second recovery changes something");
    log.append(&entries(0..2, "after the cut")).unwrap();
    signed.see(log.head());
    verify(&reader(fs).unwrap()).unwrap();
    let lost = fs.restart(Survival::Dropped);
    signed.see_published(&lost);
    assert_eq!(open(&lost).unwrap().size(), size + 2);
}

/// Nothing is left in the log's directory but what a log of this size consists of.
fn check_only_needed(fs: &MemFs, size: u64) {
    let tiles = tiles_of(size).map(|id| id.to_string());
    let bundles = bundles_of(size).map(|id| id.to_string());
    let small = ["tree-state", "checkpoint"].map(str::to_owned);
    let needed = tiles.chain(bundles).chain(small).map(|path| Path::new(DIR).join(path));
    let needed: BTreeSet<PathBuf> = needed.collect();
    let found = fs.files().into_keys().filter(|path| path.starts_with(DIR));
    assert_eq!(found.collect::<BTreeSet<_>>(), needed);
}

#[test]
fn a_batch_survives_a_cut_after_any_call_whole_or_not_at_all() {
    let (base, before) = almost_full();
    let whole = base.fork(None);
    let mut all = before.clone();
    append_two(&whole, &mut all, &mut Signed::default()).unwrap();
    for cut in 0..whole.calls() {
        for survival in Survival::ALL {
            println!("cut at {cut}, {survival:?}");
            let fs = base.fork(Some(Fault::CutAt(cut)));
            let (mut acknowledged, mut signed) = (before.clone(), Signed::default());
            assert!(
                append_two(&fs, &mut acknowledged, &mut signed).is_err() || cut + 4 > whole.calls()
            );
            let fs = fs.restart(survival);
            signed.see_published(&fs);
            check_survivor(&fs, &acknowledged, &all);
            // Where the next process sees what is not durable, its own cut is the harder one.
            if survival == Survival::Killed {
                check_cut_recovery(&fs, &acknowledged, &all, &signed);
            }
            drop(open(&fs).unwrap());
            check_survivor(&fs, &acknowledged, &all);
            check_goes_on(&fs, &mut signed);
        }
    }
}

/// Cuts the recovery as well, after each of its calls.
fn check_cut_recovery(fs: &MemFs, acknowledged: &[Entry], all: &[Entry], signed: &Signed) {
    let whole = fs.fork(None);
    drop(open(&whole).unwrap());
    for cut in 0..whole.calls() {
        let fs = fs.fork(Some(Fault::CutAt(cut)));
        assert!(open(&fs).is_err());
        for survival in [Survival::Killed, Survival::Dropped] {
            let (fs, mut signed) = (fs.restart(survival), signed.clone());
            signed.see_published(&fs);
            drop(open(&fs).unwrap());
            check_survivor(&fs, acknowledged, all);
            check_goes_on(&fs, &mut signed);
        }
    }
}

#[test]
fn a_call_that_fails_stops_the_writer_and_a_new_one_goes_on() {
    let (base, before) = almost_full();
    let whole = base.fork(None);
    let mut all = before.clone();
    append_two(&whole, &mut all, &mut Signed::default()).unwrap();
    for fail in 0..whole.calls() {
        let fs = base.fork(Some(Fault::FailAt(fail)));
        let (mut acknowledged, mut signed) = (before.clone(), Signed::default());
        // Opening fails, or a batch, or nothing that matters.
        if let Ok(mut log) = open(&fs) {
            let mut failed = false;
            for (size, what) in [(3, "first"), (2, "second")] {
                let start = acknowledged.len() as u64;
                let batch = entries(start..start + size, what);
                match log.append(&batch) {
                    Ok(_) => {
                        assert!(!failed, "the writer went on");
                        acknowledged.extend(batch);
                    }
                    Err(error) => {
                        assert_eq!(failed, matches!(error, LogError::Broken { .. }), "{error}");
                        failed = true;
                    }
                }
            }
        }
        check_survivor(&fs, &acknowledged, &all);
        drop(open(&fs).unwrap());
        check_survivor(&fs, &acknowledged, &all);
        check_goes_on(&fs, &mut signed);
    }
}

#[test]
fn a_log_that_was_cut_while_it_was_made_is_absent_or_empty() {
    let whole = MemFs::new();
    drop(init(&whole).unwrap());
    for cut in 0..whole.calls() {
        for survival in Survival::ALL {
            let fs = MemFs::new().fork(Some(Fault::CutAt(cut)));
            assert!(init(&fs).is_err());
            let fs = fs.restart(survival);
            let mut log = match init(&fs) {
                Err(LogError::Exists { .. }) => open(&fs).unwrap(),
                made => made.unwrap(),
            };
            assert_eq!(log.size(), 0);
            log.append(&entries(0..1, "e")).unwrap();
            drop(log);
            let fs = fs.restart(Survival::Dropped);
            assert_eq!(open(&fs).unwrap().size(), 1, "cut at {cut}, {survival:?}");
        }
    }
}

#[test]
fn a_restored_backup_is_not_signed() {
    let (base, _) = almost_full();
    let fs = base.fork(None);
    append_two(&fs, &mut vec![], &mut Signed::default()).unwrap();
    // The log goes back; the key and its record stay.
    fs.remove_dir_all(Path::new(DIR)).unwrap();
    for (path, bytes) in base.files().into_iter().filter(|(path, _)| path.starts_with(DIR)) {
        fs.put(&path, bytes);
    }
    verify(&reader(&fs).unwrap()).unwrap();
    let refused = open(&fs).err().unwrap();
    let older = LogError::Guard(GuardError::Older {
        path: PathBuf::from(format!("{KEY}.heads")),
        origin: ORIGIN.to_owned(),
        signed: 259,
        asked: 254,
    });
    assert_eq!(refused.to_string(), older.to_string());
    // Nor if the record went too, and knows nothing of the log.
    fs.tamper(&PathBuf::from(format!("{KEY}.heads")), |bytes| *bytes = b"{}".to_vec());
    assert!(matches!(open(&fs), Err(LogError::Guard(GuardError::Unknown { .. }))));
}

#[test]
fn a_flip_of_any_byte_is_named() {
    let fs = MemFs::new();
    init(&fs).unwrap().append(&entries(0..258, "")).unwrap();
    let verifier = open(&fs).unwrap().verifier().clone();
    let check = || {
        let log = reader(&fs)?;
        log.verify_head(&verifier)?;
        verify(&log)
    };
    check().unwrap();
    let mut flips = 0;
    for (path, bytes) in fs.files().into_iter().filter(|(path, _)| path.starts_with(DIR)) {
        for at in 0..bytes.len() {
            fs.tamper(&path, |bytes| bytes[at] ^= 1 << (at % 8));
            let error = check().expect_err("a flip goes unseen").to_string();
            assert!(error.contains(path.to_str().unwrap()), "{path:?} at {at}: {error}");
            fs.tamper(&path, |bytes| bytes[at] ^= 1 << (at % 8));
            flips += 1;
        }
    }
    assert!(flips > 8192);
    check().unwrap();
}

#[test]
fn a_flip_beside_the_key_stops_the_writer() {
    let (fs, _) = almost_full();
    let heads = PathBuf::from(format!("{KEY}.heads"));
    for at in 0..fs.files()[&heads].len() {
        fs.tamper(&heads, |bytes| bytes[at] ^= 1);
        assert!(open(&fs).is_err(), "{at}");
        fs.tamper(&heads, |bytes| bytes[at] ^= 1);
    }
    open(&fs).unwrap();
}

#[test]
fn files_that_are_cut_missing_or_foreign_are_named() {
    let (base, _) = almost_full();
    for (path, bytes) in base.files().into_iter().filter(|(path, _)| path.starts_with(DIR)) {
        let fs = base.fork(None);
        fs.tamper(&path, |bytes| bytes.truncate(bytes.len() - 1));
        let error = reader(&fs).and_then(|log| verify(&log)).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        fs.tamper(&path, |cut| *cut = [bytes, vec![0; 1 << 20]].concat());
        let error = reader(&fs).and_then(|log| verify(&log)).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        fs.remove(&path).unwrap();
        let error = reader(&fs).and_then(|log| verify(&log)).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
    for foreign in ["tile/0/note.txt", "tile/0/0", "tile/entries/000.p/256", "tile/readme"] {
        let fs = base.fork(None);
        let path = Path::new(DIR).join(foreign);
        fs.put(&path, vec![]);
        let named = reader(&fs).and_then(|log| verify(&log));
        assert!(matches!(named, Err(LogError::Foreign { path: found }) if found == path));
    }
}

#[test]
fn a_wider_file_that_was_never_committed_does_not_stand_in_for_a_lost_one() {
    let (base, _) = almost_full();
    for (lost, wider) in
        [("tile/0/000.p/254", "tile/0/000.p/255"), ("tile/entries/000.p/254", "tile/entries/000")]
    {
        let fs = base.fork(None);
        let [lost, wider] = [lost, wider].map(|path| Path::new(DIR).join(path));
        fs.put(&wider, fs.files()[&lost].clone());
        fs.remove(&lost).unwrap();
        assert!(matches!(open(&fs), Err(LogError::Missing { path }) if path == lost));
    }
}

#[test]
fn a_replaced_partial_file_that_differs_is_named() {
    let (fs, _) = almost_full();
    let narrow = Path::new(DIR).join("tile/0/000.p/2");
    fs.put(&narrow, vec![7; 64]);
    let named = verify(&reader(&fs).unwrap());
    assert!(matches!(named, Err(LogError::Partial { path, at: 0, .. }) if path == narrow));
    // It is not read by anybody, so the writer removes it.
    drop(open(&fs).unwrap());
    verify(&reader(&fs).unwrap()).unwrap();
}

#[test]
fn a_reader_keeps_reading_while_a_writer_appends() {
    let fs = MemFs::new();
    let mut log = init(&fs).unwrap();
    log.append(&entries(0..100, "e")).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for at in 100..700 {
                log.append(&entries(at..at + 1, "e")).unwrap();
            }
        });
        let mut reads = 0;
        while !writer.is_finished() || reads == 0 {
            let log = reader(&fs).unwrap();
            assert_eq!(read_all(&log), entries(0..log.size(), "e"));
            assert_eq!(log.root_at(log.size()).unwrap(), log.head().root);
            verify(&log).unwrap();
            reads += 1;
        }
        writer.join().unwrap();
    });
}

/// The files of a golden log, by their paths in it.
fn golden_files(dir: &Path, below: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for name in Disk.list(&dir.join(below)).unwrap() {
        let path = below.join(name);
        match std::fs::read(dir.join(&path)) {
            Ok(bytes) => drop(files.insert(path, bytes)),
            Err(_) => golden_files(dir, &path, files),
        }
    }
}

/// Tessera's log, read at every size that it published; and its files, written by us.
#[test]
fn golden_log_of_tessera_is_read_and_written() {
    let vkey = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx";
    let key = vkey.parse().unwrap();
    let mut theirs = BTreeMap::new();
    let dir = common::golden().join("merkle/public/tessera-log");
    golden_files(&dir, Path::new(""), &mut theirs);
    let open = |size: u64| {
        let fs = MemFs::new();
        for (path, bytes) in &theirs {
            fs.put(&Path::new(DIR).join(path), bytes.clone());
        }
        let head = theirs[Path::new(&format!("checkpoint.{size}"))].clone();
        fs.put(&Path::new(DIR).join("checkpoint"), head);
        reader(&fs).unwrap()
    };
    let newest = open(15);
    let all = read_all(&newest);
    for size in 0..=15 {
        let log = open(size);
        log.verify_head(&key).unwrap();
        assert_eq!(log.size(), size);
        assert_eq!(read_all(&log), all[..size as usize]);
        assert_eq!(newest.root_at(size).unwrap(), log.head().root);
    }
    let fs = MemFs::new();
    let mut log = init(&fs).unwrap();
    for (size, entry) in (1..).zip(&all) {
        log.append(&[entry]).unwrap();
        for path in [format!("tile/0/000.p/{size}"), format!("tile/entries/000.p/{size}")] {
            assert_eq!(fs.files()[&Path::new(DIR).join(&path)], theirs[Path::new(&path)]);
        }
    }
}
