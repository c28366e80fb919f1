//! Damage to a sealed ledger: every flip and every missing file is named, or changes nothing.
//!
//! The ledger lies in memory: two rounds, a refused file, a frozen tensor, a skipped one.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use common::{
    Random,
    gradient::Gradient,
    memfs::MemFs,
    model::{Model, Tensor, rule, safetensors},
};
use gradledger::{
    codec::layout::DeltaGroup,
    ledger::{
        At, Ledger, LedgerError,
        fsck::fsck,
        import::{Gradients, Peers, import_templar},
        init::{InitOptions, init_in},
        replay::{ReplayOptions, replay},
        seal::{FoldOptions, seal},
        writer::LedgerWriter,
    },
    store::artifacts::StoredDelta,
    types::{
        digest::Digest, manifest::ManifestId, progress::Silent, rule::Dialect, submission::Content,
        tensor::Dtype,
    },
};
use tempfile::TempDir;

const FOLD: fn() -> FoldOptions = || FoldOptions { threads: 1, ..FoldOptions::default() };

/// A sealed ledger, and what it should say whatever happens to its files.
struct Sealed {
    dir: TempDir,
    disk: MemFs,
    /// All logical bytes of every state.
    states: Vec<Vec<u8>>,
}

const STATES: [At; 3] = [At::Genesis, At::Round(5), At::Round(8)];

fn model(rows: u64) -> Model {
    let mut random = Random(31);
    let tensors = vec![
        Tensor::random("a.weight", &[rows, 140], &mut random),
        Tensor::random("b.bias", &[10], &mut random),
        Tensor::new("c.step", Dtype::I64, &[2], vec![3; 16]),
    ];
    Model { tensors, rule: rule(Dialect::Templar, 8, 4, 4) }
}

/// All bytes of a stored delta.
fn delta(ledger: &Ledger, id: ManifestId) -> Result<Vec<u8>, LedgerError> {
    let (delta, mut all) = (StoredDelta::open(ledger.place(), id)?, Vec::new());
    for descriptor in delta.manifest().descriptors() {
        let group = DeltaGroup::ALL.into_iter().find(|g| g.name() == descriptor.group).unwrap();
        let mut bytes = vec![0; descriptor.bytes as usize];
        delta.open_artifact(group, &descriptor.name)?.read_exact(&mut bytes)?;
        all.extend(bytes);
    }
    Ok(all)
}

/// `rows` of 140 values: 160 of them take more than a piece.
fn sealed_of(rows: u64) -> Sealed {
    let (model, mut random) = (model(rows), Random(33));
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("ledger");
    fs::create_dir(&root).unwrap();
    let checkpoint = dir.path().join("model.safetensors");
    safetensors(&checkpoint, &model.tensors);
    let disk = MemFs::new();
    let options = InitOptions {
        frozen: true,
        ..InitOptions::new("test", "test.example/run", &checkpoint, model.rule.clone())
    };
    init_in(disk.handle(), &root, &options, &Silent).unwrap();
    for round in [5, 8] {
        let files = dir.path().join(format!("files-{round}"));
        fs::create_dir(&files).unwrap();
        let put = |uid: u16, bytes: &[u8]| {
            fs::write(files.join(common::model::file_name(round, uid)), bytes).unwrap();
        };
        for uid in [3, 4] {
            let mut delta = model.delta(&mut random);
            if round == 8 {
                // Its norm is infinite, so this tensor is skipped.
                delta.get_mut("b.bias").unwrap().lookup = vec![3e38; 4];
            }
            put(uid, &Gradient::of(&model, round, &delta).write());
        }
        put(9, b"cut");
        let mut writer = LedgerWriter::open_in(disk.handle(), &root, None).unwrap();
        let peers = Peers { listed: vec![3, 4, 9, 7], reserve: vec![] };
        let from = Gradients::Directory(&files);
        import_templar(&mut writer, round, &from, Some(peers), &Silent).unwrap();
        let report = seal(&mut writer, round, FOLD(), &Silent).unwrap();
        assert_eq!((report.accepted.len(), report.skipped.len()), (2, usize::from(round == 8)));
    }
    let mut sealed = Sealed { dir, disk, states: vec![] };
    sealed.states =
        STATES.map(|at| sealed.state(&sealed.open(&sealed.disk).unwrap(), at).unwrap()).into();
    fsck(&sealed.open(&sealed.disk).unwrap(), FOLD(), &Silent).unwrap();
    sealed
}

fn sealed() -> Sealed {
    sealed_of(8)
}

impl Sealed {
    fn root(&self) -> PathBuf {
        self.dir.path().join("ledger")
    }

    fn open(&self, disk: &MemFs) -> Result<Ledger, LedgerError> {
        Ledger::open_in(disk.handle(), &self.root())
    }

    /// Files of the ledger below a directory, with their bytes.
    fn files(&self, below: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let dir = self.root().join(below);
        self.disk.files().into_iter().filter(|(path, _)| path.starts_with(&dir)).collect()
    }

    fn state(&self, ledger: &Ledger, at: At) -> Result<Vec<u8>, LedgerError> {
        let state = ledger.checkpoint(ledger.state(at)?)?;
        let mut all = Vec::new();
        for (position, descriptor) in state.manifest().descriptors().iter().enumerate() {
            let mut bytes = vec![0; descriptor.bytes as usize];
            state.tensor(position)?.read_exact(&mut bytes)?;
            all.extend(bytes);
        }
        Ok(all)
    }

    /// All that is read of the files below a directory: states, or deltas, or both.
    fn data(&self, ledger: &Ledger, below: &str) -> Result<Vec<u8>, LedgerError> {
        let mut all = Vec::new();
        if below != "segments/deltas" {
            for at in STATES {
                all.extend(self.state(ledger, at)?);
            }
        }
        if below != "segments/tensors" {
            for (_, submission) in ledger.submissions(0..ledger.submissions_log().size())? {
                if let Content::Delta(id) = submission.content() {
                    all.extend(delta(ledger, id)?);
                }
            }
        }
        Ok(all)
    }

    /// Imports the files of a round.
    fn import(&self, disk: &MemFs, round: u64) {
        let files = self.dir.path().join(format!("files-{round}"));
        let mut writer = LedgerWriter::open_in(disk.handle(), &self.root(), None).unwrap();
        let peers = Peers { listed: vec![3, 4, 9, 7], reserve: vec![] };
        let from = Gradients::Directory(&files);
        import_templar(&mut writer, round, &from, Some(peers), &Silent).unwrap();
    }

    /// The disk with round 9 imported and not sealed.
    fn with_open_round(&self) -> MemFs {
        let (model, mut random) = (model(8), Random(32));
        let files = self.dir.path().join("files-9");
        fs::create_dir(&files).unwrap();
        for uid in [3, 4] {
            let bytes = Gradient::of(&model, 9, &model.delta(&mut random)).write();
            fs::write(files.join(common::model::file_name(9, uid)), bytes).unwrap();
        }
        let disk = self.disk.fork(None);
        self.import(&disk, 9);
        disk
    }

    /// What `open` or `fsck` says of a changed ledger; nothing if they see no change.
    fn complaint(&self, disk: &MemFs) -> Option<LedgerError> {
        self.open(disk).and_then(|ledger| fsck(&ledger, FOLD(), &Silent)).err()
    }

    /// That every command that reads the changed ledger gives what it gave before.
    fn assert_same(&self, disk: &MemFs, what: &str) {
        let ledger = self.open(disk).unwrap();
        for (at, expected) in STATES.into_iter().zip(&self.states) {
            let found = self.state(&ledger, at).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(found == *expected, "{what}: a wrong bit was read");
        }
        for tensor in [None, Some("a.weight"), Some("b.bias")] {
            let tensor = tensor.map(str::to_owned);
            let options = ReplayOptions { rounds: 5..=8, tensor, fold: FOLD() };
            replay(&ledger, &options, &Silent).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }

    /// Flips a bit of the file at each of these places; gives how many flips nothing saw.
    fn flip(&self, path: &Path, places: &[(usize, u32)]) -> usize {
        let unseen = AtomicUsize::new(0);
        let some = |places: &[(usize, u32)]| {
            let disk = self.disk.fork(None);
            for &(at, bit) in places {
                disk.tamper(path, |bytes| bytes[at] ^= 1 << bit);
                let what = format!("{}, byte {at}, bit {bit}", path.display());
                match self.complaint(&disk) {
                    Some(error) => assert_names_something(&error.to_string(), &what),
                    None => {
                        self.assert_same(&disk, &what);
                        unseen.fetch_add(1, Ordering::Relaxed);
                    }
                }
                disk.tamper(path, |bytes| bytes[at] ^= 1 << bit);
            }
        };
        in_two(places, some);
        unseen.into_inner()
    }
}

/// An error that says where: a file, a tensor, a round, an entry, a delta.
fn assert_names_something(error: &str, what: &str) {
    let words = ["ledger/", "a.weight", "b.bias", "c.step", "round ", "entry ", "delta ", "origin"];
    assert!(words.iter().any(|word| error.contains(word)), "{what}: {error}");
}

/// Every byte, each with one bit that the seed picks.
fn every_byte(bytes: &[u8], random: &mut Random) -> Vec<(usize, u32)> {
    (0..bytes.len()).map(|at| (at, random.below(8) as u32)).collect()
}

fn assert_every_flip_is_seen(below: &str, seed: u64) {
    println!("seed {seed}");
    let (sealed, mut random) = (sealed(), Random(seed));
    let files = sealed.files(below);
    assert!(!files.is_empty(), "nothing below {below}");
    for (path, bytes) in files {
        let places = every_byte(&bytes, &mut random);
        let unseen = sealed.flip(&path, &places);
        println!("{}: {} flips", path.strip_prefix(sealed.root()).unwrap().display(), bytes.len());
        assert_eq!(unseen, 0, "{}", path.display());
    }
}

#[test]
fn every_flip_in_the_rounds_log_is_seen() {
    assert_every_flip_is_seen("log/rounds", 1);
}

#[test]
fn every_flip_in_the_submissions_log_is_seen() {
    assert_every_flip_is_seen("log/submissions", 2);
}

#[test]
fn every_flip_in_the_hashes_is_seen() {
    assert_every_flip_is_seen("hashes", 3);
}

#[test]
fn every_flip_in_quarantine_is_seen() {
    assert_every_flip_is_seen("quarantine", 4);
}

/// Bytes of a Parquet file's footer may mean nothing to us; what is read stays the same.
#[test]
fn a_flip_in_a_segment_is_seen_or_changes_nothing() {
    let seed = 5;
    println!("seed {seed}");
    let (sealed, mut random) = (sealed_of(160), Random(seed));
    for kind in ["tensors", "deltas", "plans", "dispositions"] {
        let files: Vec<_> = sealed.files(&format!("segments/{kind}")).into_iter().collect();
        assert!(!files.is_empty(), "no {kind}");
        let each = 300 / files.len() + 1;
        let mut unseen = 0;
        for (path, bytes) in &files {
            let place = |_| (random.below(bytes.len() as u64) as usize, random.below(8) as u32);
            unseen += sealed.flip(path, &(0..each).map(place).collect::<Vec<_>>());
        }
        println!("{kind}: {unseen} of {} flips mean nothing", each * files.len());
    }
}

/// The ends of segments: magic, footer length, and the footer itself.
#[test]
fn a_flip_in_a_segments_footer_is_seen_or_changes_nothing() {
    let seed = 6;
    println!("seed {seed}");
    let (sealed, mut random) = (sealed_of(160), Random(seed));
    for kind in ["tensors", "deltas", "plans", "dispositions"] {
        let (path, bytes) = sealed.files(&format!("segments/{kind}")).into_iter().next().unwrap();
        let places: Vec<_> = (bytes.len().saturating_sub(400)..bytes.len())
            .map(|at| (at, random.below(8) as u32))
            .collect();
        let unseen = sealed.flip(&path, &places);
        println!("{kind}: {unseen} of {} flips at the end mean nothing", places.len());
    }
}

/// Each flip is checked by what reads that kind of file: whoever exports, folds or audits reads so.
#[test]
fn nine_thousand_flips_in_data_are_seen_or_change_nothing() {
    let seed = 7;
    println!("seed {seed}");
    let (sealed, mut random) = (sealed_of(160), Random(seed));
    for (below, flips) in [("segments/tensors", 3500), ("segments/deltas", 3500), ("hashes", 2000)]
    {
        let files: Vec<_> = sealed.files(below).into_iter().collect();
        let expected = sealed.data(&sealed.open(&sealed.disk).unwrap(), below).unwrap();
        let places: Vec<_> = (0..flips)
            .map(|_| {
                let (path, bytes) = &files[random.below(files.len() as u64) as usize];
                (path, random.below(bytes.len() as u64) as usize, random.below(8) as u32)
            })
            .collect();
        let unseen = AtomicUsize::new(0);
        let some = |places: &[(&PathBuf, usize, u32)]| {
            let disk = sealed.disk.fork(None);
            let ledger = sealed.open(&disk).unwrap();
            for &(path, at, bit) in places {
                disk.tamper(path, |bytes| bytes[at] ^= 1 << bit);
                let what = format!("{}, byte {at}, bit {bit}", path.display());
                match sealed.data(&ledger, below) {
                    Err(error) => assert_names_something(&error.to_string(), &what),
                    Ok(found) => {
                        assert!(found == expected, "{what}: a wrong bit was read");
                        unseen.fetch_add(1, Ordering::Relaxed);
                    }
                }
                disk.tamper(path, |bytes| bytes[at] ^= 1 << bit);
            }
        };
        in_two(&places, some);
        println!("{below}: {} of {flips} flips mean nothing", unseen.into_inner());
    }
}

/// The tables that people query, whose hashed rows stand in one column: all others are compared.
#[test]
fn a_thousand_flips_in_tables_are_seen_or_change_nothing() {
    let seed = 8;
    println!("seed {seed}");
    let (sealed, mut random) = (sealed(), Random(seed));
    for kind in ["plans", "dispositions"] {
        let files: Vec<_> = sealed.files(&format!("segments/{kind}")).into_iter().collect();
        let mut unseen = 0;
        for (path, bytes) in &files {
            let place = |_| (random.below(bytes.len() as u64) as usize, random.below(8) as u32);
            unseen += sealed.flip(path, &(0..250).map(place).collect::<Vec<_>>());
        }
        println!("{kind}: {unseen} of {} flips mean nothing", 250 * files.len());
    }
}

/// Runs `some` on the halves of all, at the same time.
fn in_two<T: Sync>(all: &[T], some: impl Fn(&[T]) + Sync) {
    std::thread::scope(|scope| {
        for half in all.chunks(all.len().div_ceil(2).max(1)) {
            scope.spawn(|| some(half));
        }
    });
}

/// A value that a query reads, changed and nothing else.
#[test]
fn a_changed_query_column_is_named() {
    let sealed = sealed();
    let queried = [("plans", &b"a.weight"[..], "tensor"), ("dispositions", b"accepted", "verdict")];
    for (kind, value, column) in queried {
        for (path, bytes) in sealed.files(&format!("segments/{kind}")) {
            let at = bytes.windows(value.len()).position(|w| w == value).unwrap();
            let disk = sealed.disk.fork(None);
            disk.tamper(&path, |bytes| bytes[at] ^= 1);
            let error = sealed.complaint(&disk).expect("it is seen").to_string();
            assert!(error.contains(path.to_str().unwrap()) && error.contains(column), "{error}");
        }
    }
}

/// Whatever bit is changed before a seal: it refuses, or comes to the same record.
#[test]
fn a_flip_before_a_seal_folds_nothing_wrong() {
    let seed = 9;
    println!("seed {seed}");
    let (sealed, mut random) = (sealed_of(8), Random(seed));
    let open = sealed.with_open_round();
    let seal_on = |disk: &MemFs| -> Result<(Digest, ManifestId), LedgerError> {
        let mut writer = LedgerWriter::open_in(disk.handle(), &sealed.root(), None)?;
        let report = seal(&mut writer, 9, FOLD(), &Silent)?;
        Ok((report.record, report.next))
    };
    let expected = seal_on(&open.fork(None)).unwrap();
    let (mut flips, mut refused) = (0, 0);
    for (path, bytes) in open.files() {
        let small = path.ends_with("open-round.json") || path.ends_with("log.key.heads");
        let places = match bytes.len() as u64 {
            0 => continue,
            _ if path.ends_with("log.key") => continue,
            _ if small => every_byte(&bytes, &mut random),
            len => (0..12).map(|_| (random.below(len) as usize, random.below(8) as u32)).collect(),
        };
        for (at, bit) in places {
            let disk = open.fork(None);
            disk.tamper(&path, |bytes| bytes[at] ^= 1 << bit);
            let what = format!("{}, byte {at}, bit {bit}", path.display());
            match seal_on(&disk) {
                Ok(found) => assert_eq!(found, expected, "{what}: something wrong was folded"),
                Err(error) => {
                    assert_names_something(&error.to_string(), &what);
                    refused += 1;
                }
            }
            flips += 1;
        }
    }
    println!("{flips} flips before a seal, {refused} of them refused");
    assert!(refused > 300);
}

#[test]
fn the_same_import_again_repairs_a_damaged_delta() {
    let sealed = sealed();
    let open = sealed.with_open_round();
    let before = sealed.disk.files();
    let new = |path: &Path| !before.contains_key(path);
    let mut repaired = 0;
    for (path, bytes) in open.files() {
        let stored = path.starts_with(sealed.root().join("segments/deltas"))
            || path.starts_with(sealed.root().join("hashes"));
        if !stored || !new(&path) {
            continue;
        }
        let damages: [fn(&mut Vec<u8>); 3] =
            [|bytes| bytes[40] ^= 1, |bytes| bytes.truncate(9), Vec::clear];
        for damage in damages {
            let disk = open.fork(None);
            disk.tamper(&path, damage);
            assert!(sealed.complaint(&disk).is_some(), "{}", path.display());
            sealed.import(&disk, 9);
            assert_eq!(disk.files()[&path], bytes);
            assert!(sealed.complaint(&disk).is_none(), "{}", path.display());
            repaired += 1;
        }
    }
    assert!(repaired >= 9);
}

#[test]
fn a_missing_file_is_named() {
    let sealed = sealed();
    let mut tried = 0;
    for below in ["log", "hashes", "segments"] {
        for (path, _) in sealed.files(below) {
            let disk = sealed.disk.fork(None);
            disk.handle().remove(&path).unwrap();
            let error = sealed.complaint(&disk);
            let error = error.unwrap_or_else(|| panic!("nobody misses {}", path.display()));
            let name = path.to_str().unwrap();
            let (error, dir) = (error.to_string(), path.parent().unwrap().to_str().unwrap());
            assert!(error.contains(name) || error.contains(dir), "{name}: {error}");
            tried += 1;
        }
    }
    println!("{tried} files");
}

#[test]
fn a_cut_file_is_named() {
    let sealed = sealed();
    for below in ["log", "hashes", "segments"] {
        for (path, bytes) in sealed.files(below) {
            for keep in [0, bytes.len() / 2, bytes.len() - 1] {
                let disk = sealed.disk.fork(None);
                disk.tamper(&path, |bytes| bytes.truncate(keep));
                let what = format!("{} cut to {keep}", path.display());
                let error = sealed.complaint(&disk).unwrap_or_else(|| panic!("{what}: not seen"));
                assert_names_something(&error.to_string(), &what);
            }
        }
    }
}

#[test]
fn what_is_gone_from_quarantine_is_no_damage() {
    let sealed = sealed();
    let disk = sealed.disk.fork(None);
    for path in sealed.files("quarantine").into_keys() {
        disk.handle().remove(&path).unwrap();
    }
    let report = fsck(&sealed.open(&disk).unwrap(), FOLD(), &Silent).unwrap();
    assert_eq!(report.quarantined, 0);
}

/// One head signed by another key would be a fork that nobody could explain.
#[test]
fn a_writer_with_another_key_is_refused() {
    let sealed = sealed();
    let key = sealed.root().join("keys/log.key");
    let bytes = sealed.files("keys")[&key].clone();
    for at in 0..bytes.len() {
        let disk = sealed.disk.fork(None);
        disk.tamper(&key, |bytes| bytes[at] ^= 1);
        let before = disk.files();
        let opened = LedgerWriter::open_in(disk.handle(), &sealed.root(), None);
        assert!(opened.is_err(), "byte {at} of the key");
        let log = |files: BTreeMap<PathBuf, Vec<u8>>| -> BTreeMap<PathBuf, Vec<u8>> {
            files
                .into_iter()
                .filter(|(path, _)| path.starts_with(sealed.root().join("log")))
                .collect()
        };
        assert_eq!(log(before), log(disk.files()), "byte {at} of the key");
    }
}
