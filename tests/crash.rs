//! Crashes: every command of a ledger on a disk that is cut, or fails, at each of its calls.
//!
//! `common/scenario.rs` says what must hold afterwards. The counts are printed. A hundred times as
//! many faults (each cut scattered 700 times, each call of each recovery cut):
//! `GRADLEDGER_CRASH_FULL=1 cargo test --release --test crash -- --nocapture`.

#![allow(clippy::unwrap_used)] // Helpers of tests, too.

mod common;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use common::{
    ledger::{Fact, Fixture, LedgerScenario, ROUNDS, Step},
    memfs::{Call, Fault, MemFs, Survival},
    scenario::{Door, Effort, Failed, Scenario, honest, run},
};
use gradledger::{
    ledger::import::Peers,
    store::{
        files::{Files, ReadFile, WriteFile, create_dir_durable, read_whole, write_whole},
        keys,
    },
    types::digest::Digest,
};

/// Runs a scenario; nothing may be wrong.
fn survives<S: Scenario>(scenario: &S) {
    survives_with(scenario, Effort::from_env());
}

fn survives_with<S: Scenario>(scenario: &S, effort: Effort) {
    let counts = run(scenario, &honest, effort);
    println!("crash: {counts}");
    let first: Vec<_> = counts.violations.iter().take(5).collect();
    assert!(first.is_empty(), "{} violations, the first: {first:#?}", counts.violations.len());
}

#[test]
fn init_survives() {
    let fixture = Fixture::new();
    survives(&LedgerScenario::new(&fixture, "init", &[], &[Step::Init]));
}

#[test]
fn init_with_files_beside_the_model_survives() {
    let fixture = Fixture::new().with_files();
    survives(&LedgerScenario::new(&fixture, "init with files", &[], &[Step::Init]));
}

#[test]
fn import_survives() {
    let fixture = Fixture::new();
    let import = Step::import(ROUNDS[0]);
    survives(&LedgerScenario::new(&fixture, "import", &[Step::Init], &[import]));
}

#[test]
fn seal_survives() {
    let fixture = Fixture::new();
    let before = [Step::Init, Step::import(ROUNDS[0])];
    survives(&LedgerScenario::new(&fixture, "seal", &before, &[Step::Seal(ROUNDS[0])]));
}

#[test]
fn a_second_round_survives() {
    let fixture = Fixture::new();
    let before = [Step::Init, Step::import(ROUNDS[0]), Step::Seal(ROUNDS[0])];
    let steps = [Step::import(ROUNDS[1]), Step::Seal(ROUNDS[1])];
    survives(&LedgerScenario::new(&fixture, "second round", &before, &steps));
}

/// The key is made; then one that an interrupted rotation left is taken up, so that every life
/// publishes the same heads, and no two lives one size with two roots.
#[test]
fn a_rotation_survives() {
    let fixture = Fixture::new();
    let before = [Step::Init, Step::import(ROUNDS[0])];
    let steps = [Step::Rotate, Step::Seal(ROUNDS[0])];
    survives(&LedgerScenario::new(&fixture, "rotation", &before, &[Step::Rotate]));
    let whole = LedgerScenario::new(&fixture, "rotation and seal", &before, &steps);
    let disk = whole.base.fork(None);
    keys::create(&disk, &fixture.root().join("keys/log-1.key")).unwrap();
    let (disk, known) = (disk.restart(Survival::Dropped), whole.known.clone());
    survives(&LedgerScenario::on(&fixture, "rotation and seal", disk, known, &steps));
}

/// Before and after a round, so that one life finds what another left on the chain.
#[test]
fn an_anchor_survives() {
    let fixture = Fixture::new();
    let before = [Step::Init, Step::import(ROUNDS[0])];
    let steps = [Step::Anchor, Step::Seal(ROUNDS[0]), Step::Anchor];
    survives(&LedgerScenario::new(&fixture, "anchor", &before, &steps));
}

/// Four statements of three miners, one of them twice: a second delta and a copied one among them.
/// All enter the log, in one commit; the deltas are stored before.
fn batch() -> Step {
    Step::Submit(1, vec![(1, 1), (2, 2), (1, 1), (1, 3), (3, 2)])
}

#[test]
fn submit_survives() {
    let fixture = Fixture::new();
    survives(&LedgerScenario::new(&fixture, "submit", &[Step::InitNative], &[batch()]));
}

#[test]
fn a_second_batch_and_the_seal_survive() {
    let fixture = Fixture::new();
    let again = Step::Submit(1, vec![(2, 2), (3, 4)]);
    let before = [Step::InitNative, batch()];
    let steps = [again, Step::Seal(1), Step::Submit(2, vec![(3, 1)])];
    survives(&LedgerScenario::new(&fixture, "submit and seal", &before, &steps));
}

/// Announced, sent and committed; then another miner's beside it, the seal, and the next round's.
#[test]
fn an_upload_survives() {
    let fixture = Fixture::new();
    survives(&LedgerScenario::new(
        &fixture,
        "upload",
        &[Step::InitNative],
        &[Step::Upload(1, 1, 1)],
    ));
    let before = [Step::InitNative, Step::Upload(1, 1, 1)];
    let steps = [Step::Upload(1, 2, 2), Step::Seal(1), Step::Upload(2, 3, 1)];
    survives(&LedgerScenario::new(&fixture, "upload and seal", &before, &steps));
}

/// Three sealed rounds, a fourth state that a seal left whose record was not committed, and a delta
/// that no statement names.
fn to_collect(fixture: &Fixture) -> LedgerScenario<'_> {
    let sealed = |round| [Step::import(round), Step::Seal(round)];
    let [first @ .., last] = ROUNDS;
    let before: Vec<_> =
        [Step::Init].into_iter().chain(first.into_iter().flat_map(sealed)).collect();
    let whole = LedgerScenario::new(fixture, "gc", &before, &sealed(last));
    let disk = whole.disk();
    whole.act(disk.handle(), &mut vec![]).unwrap();
    let tree_state =
        |(call, path): &(Call, PathBuf)| *call == Call::Rename && path.ends_with("tree-state");
    let commit = disk.trace().iter().rposition(tree_state).unwrap();
    let disk = whole.base.fork(Some(Fault::CutAt(commit)));
    let mut known = whole.known.clone();
    whole.act(disk.handle(), &mut known).unwrap_err();
    let disk = disk.restart(Survival::Torn);
    let deltas = fixture.root().join("segments/deltas");
    for (path, bytes) in disk.files().into_iter().filter(|(path, _)| path.starts_with(&deltas)) {
        let other = deltas.join("5e").join("5e".repeat(32));
        create_dir_durable(&disk, &other).unwrap();
        write_whole(&disk, &other.join(path.file_name().unwrap()), &bytes).unwrap();
    }
    LedgerScenario::on(fixture, "gc", disk.restart(Survival::Dropped), known, &[Step::Gc(2)])
}

#[test]
fn gc_survives() {
    let fixture = Fixture::new();
    let scenario = to_collect(&fixture);
    // It drops a state, and removes what the seal left.
    let kept = |disk: &MemFs, dir: &str| {
        let dir = fixture.root().join(dir);
        disk.files().keys().filter(|path| path.starts_with(&dir)).count()
    };
    let (before, after) = (scenario.disk(), scenario.disk());
    scenario.act(after.handle(), &mut vec![]).unwrap();
    let gone = |dir: &str| kept(&before, dir) - kept(&after, dir);
    assert_eq!((gone("segments/tensors"), gone("hashes"), gone("segments/plans")), (4, 1, 1));
    assert_eq!(gone("segments/deltas"), 2);
    survives(&scenario);
}

/// A gc that was killed after its list was renamed into place and before that was durable; the next
/// one may not take the list for durable.
#[test]
fn gc_after_a_cut_gc_survives() {
    let fixture = Fixture::new();
    let whole = to_collect(&fixture);
    let disk = whole.disk();
    whole.act(disk.handle(), &mut vec![]).unwrap();
    let listed =
        |(call, path): &(Call, PathBuf)| *call == Call::Rename && path.ends_with("retention.json");
    let listed = disk.trace().iter().position(listed).unwrap();
    let middle = listed + (disk.calls() - listed) / 2;
    for (cut, survival) in [(listed + 1, Survival::Killed), (middle, Survival::Scattered(3))] {
        let disk = whole.base.fork(Some(Fault::CutAt(cut)));
        let known = whole.known.clone();
        whole.act(disk.handle(), &mut vec![]).unwrap_err();
        let name = "gc after a cut gc";
        let disk = disk.restart(survival);
        let again = LedgerScenario::on(&fixture, name, disk, known, &[Step::Gc(2)]);
        survives(&again.knowing(&whole));
    }
}

/// The logs are cut while the index, which no cut reaches, stays as some earlier life left it: of the
/// same logs, shorter or longer.
#[test]
fn the_index_survives() {
    let fixture = Fixture::new();
    let before = [Step::Init, Step::import(ROUNDS[0])];
    let steps = [Step::Index, Step::Seal(ROUNDS[0]), Step::Index];
    survives(&LedgerScenario::new(&fixture, "index rebuild", &before, &steps));
}

/// The first calls after a cut: recovery, cut in turn.
#[test]
fn reopening_survives() {
    let fixture = Fixture::new();
    let import = [Step::import(ROUNDS[0])];
    let seal = [Step::Seal(ROUNDS[0])];
    let init = [Step::Init];
    let imported = [Step::Init, Step::import(ROUNDS[0])];
    for (name, before, steps) in
        [("reopen in an import", &init[..], &import[..]), ("reopen in a seal", &imported, &seal)]
    {
        let whole = LedgerScenario::new(&fixture, name, before, steps);
        let disk = whole.disk();
        whole.act(disk.handle(), &mut vec![]).unwrap();
        let commit = disk
            .trace()
            .iter()
            .rposition(|(call, path)| *call == Call::Rename && path.ends_with("tree-state"));
        // Committed and not yet durable, recorded or published; then the call before.
        let committed = commit.unwrap() + 1;
        for (cut, survival) in [
            (committed, Survival::Killed),
            (committed, Survival::Torn),
            (committed - 1, Survival::Scattered(1)),
        ] {
            let disk = whole.base.fork(Some(Fault::CutAt(cut)));
            let mut known = whole.known.clone();
            whole.act(disk.handle(), &mut known).unwrap_err();
            let again = LedgerScenario::on(&fixture, name, disk.restart(survival), known, steps);
            let effort = Effort::from_env();
            survives_with(&again, Effort { first: effort.first.min(30), ..effort });
        }
    }
}

#[test]
fn the_scenarios_do_what_they_are_for() {
    let fixture = Fixture::new();
    let steps = [Step::Init, Step::import(ROUNDS[0]), Step::Seal(ROUNDS[0])];
    let disk = MemFs::new();
    disk.create_dir_all(fixture.dir()).unwrap();
    let mut facts = vec![];
    for step in &steps {
        fixture.step(step, &fixture.root(), &disk.handle(), &mut facts).unwrap();
    }
    let statements: Vec<_> = facts
        .iter()
        .filter_map(|fact| match fact {
            Fact::Statement { index, uid, outcome } => Some((*index, *uid, *outcome)),
            _ => None,
        })
        .collect();
    assert_eq!(statements, [(0, 3, "refused"), (1, 7, "delta"), (2, 55, "unread")]);
    let states: Vec<_> = facts
        .iter()
        .filter_map(|fact| match fact {
            Fact::Model(id) | Fact::Sealed { next: id, .. } => Some(id.root),
            _ => None,
        })
        .collect();
    assert!(states.len() == 2 && states[0] != states[1], "a round that changes nothing");
    let files = disk.files();
    let kept = |dir: &str| files.keys().any(|path| path.starts_with(fixture.root().join(dir)));
    assert!(kept("quarantine") && kept("segments/deltas") && kept("segments/plans"));
}

/// What a door does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    /// Files are not synced.
    NoFileSync,
    /// Directories are not synced.
    NoDirSync,
    /// A file is synced after it was renamed.
    RenameFirst,
    /// Small files are written in their place, so that a cut leaves half of one.
    InPlace,
}

/// A door that lies.
struct Liar {
    inner: Arc<dyn Files>,
    lie: Lie,
    /// What is still to be synced.
    late: Late,
}

type Shared = Arc<Mutex<Box<dyn WriteFile>>>;
type Late = Arc<Mutex<Vec<Shared>>>;

struct LiarFile {
    file: Shared,
    lie: Lie,
    late: Late,
}

impl io::Write for LiarFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteFile for LiarFile {
    fn sync(&mut self) -> io::Result<()> {
        match self.lie {
            Lie::NoFileSync => Ok(()),
            Lie::RenameFirst => {
                self.late.lock().unwrap().push(self.file.clone());
                Ok(())
            }
            _ => self.file.lock().unwrap().sync(),
        }
    }
}

impl Liar {
    fn file(&self, file: Box<dyn WriteFile>) -> Box<dyn WriteFile> {
        let file = Arc::new(Mutex::new(file));
        Box::new(LiarFile { file, lie: self.lie, late: self.late.clone() })
    }

    fn sync_late(&self) -> io::Result<()> {
        let late = std::mem::take(&mut *self.late.lock().unwrap());
        late.into_iter().try_for_each(|file| file.lock().unwrap().sync())
    }

    /// Where a small file really goes.
    fn place(&self, path: &Path) -> PathBuf {
        let in_place = self.lie == Lie::InPlace && path.extension().is_some_and(|e| e == "new");
        if in_place { path.with_extension("") } else { path.to_owned() }
    }
}

impl Files for Liar {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        Ok(self.file(self.inner.create(&self.place(path))?))
    }

    fn create_secret(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        Ok(self.file(self.inner.create_secret(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        self.inner.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.place(from) != to {
            self.inner.rename(from, to)?;
        }
        self.sync_late()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir_all(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.sync_late()?;
        if self.lie == Lie::NoDirSync { Ok(()) } else { self.inner.sync_dir(path) }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.inner.list(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.inner.exists(path)
    }
}

/// Runs a scenario with a bug in it; it must be found.
fn is_caught<S: Scenario>(scenario: &S, door: Door<'_>, bug: &str, says: &str) {
    let counts = run(scenario, door, Effort { calls_max: 60, ..Effort::from_env() });
    let found = counts.violations.iter().find(|why| why.contains(says));
    println!("planted: {bug}: {counts}; such as: {}", found.unwrap_or(&String::new()));
    assert!(found.is_some(), "{bug} is not caught: {:#?}", counts.violations.first());
}

fn lies(lie: Lie) -> impl Fn(Arc<dyn Files>) -> Arc<dyn Files> {
    move |inner| Arc::new(Liar { inner, lie, late: Late::default() })
}

/// A short scenario with all kinds of files: one import, refused.
fn short_import(fixture: &Fixture) -> LedgerScenario<'_> {
    LedgerScenario::new(fixture, "import", &[Step::Init], &[Step::import(ROUNDS[0])])
}

#[test]
fn a_missing_file_sync_is_caught() {
    let fixture = Fixture::new();
    is_caught(&short_import(&fixture), &lies(Lie::NoFileSync), "no file sync", "");
}

#[test]
fn a_missing_directory_sync_is_caught() {
    let fixture = Fixture::new();
    is_caught(&short_import(&fixture), &lies(Lie::NoDirSync), "no directory sync", "");
}

#[test]
fn a_rename_before_the_sync_is_caught() {
    let fixture = Fixture::new();
    is_caught(&short_import(&fixture), &lies(Lie::RenameFirst), "rename before sync", "");
}

#[test]
fn a_head_written_in_its_place_is_caught() {
    let fixture = Fixture::new();
    is_caught(&short_import(&fixture), &lies(Lie::InPlace), "head in place", "checkpoint");
}

/// Acknowledges before anything is done.
struct Eager<'f>(LedgerScenario<'f>);

impl Scenario for Eager<'_> {
    type Fact = Fact;

    fn name(&self) -> &str {
        "acknowledge first"
    }

    fn disk(&self) -> MemFs {
        self.0.disk()
    }

    fn act(&self, files: Arc<dyn Files>, facts: &mut Vec<Fact>) -> Result<(), Failed> {
        let mut ahead = vec![];
        self.0.act(self.0.disk().handle(), &mut ahead)?;
        facts.extend(ahead);
        self.0.act(files, &mut vec![])
    }

    fn recover(&self, files: Arc<dyn Files>) -> Result<(), Failed> {
        self.0.recover(files)
    }

    fn check(&self, files: Arc<dyn Files>, facts: &[Fact]) -> Result<(), Failed> {
        self.0.check(files, facts)
    }
}

#[test]
fn an_acknowledgement_before_the_sync_is_caught() {
    let fixture = Fixture::new();
    is_caught(&Eager(short_import(&fixture)), &honest, "acknowledge before sync", "after recovery");
}

/// An operator who answers a crash by restoring a backup, the record of signed heads with it, and
/// then imports the files of others.
struct Restores<'f> {
    import: LedgerScenario<'f>,
    others: LedgerScenario<'f>,
}

impl Scenario for Restores<'_> {
    type Fact = Fact;

    fn name(&self) -> &str {
        "restore a backup"
    }

    fn disk(&self) -> MemFs {
        self.import.disk()
    }

    fn act(&self, files: Arc<dyn Files>, _: &mut Vec<Fact>) -> Result<(), Failed> {
        let restored = files.exists(&self.import.fixture.root().join("restored"))?;
        let scenario = if restored { &self.others } else { &self.import };
        scenario.act(files, &mut vec![])
    }

    fn recover(&self, files: Arc<dyn Files>) -> Result<(), Failed> {
        let root = self.import.fixture.root();
        write_whole(&*files, &root.join("restored"), b"")?;
        if files.exists(&root.join("log"))? {
            files.remove_dir_all(&root.join("log"))?;
        }
        for (path, bytes) in self.import.base.files() {
            if path.starts_with(root.join("log")) || path.ends_with("log.key.heads") {
                create_dir_durable(&*files, path.parent().unwrap())?;
                write_whole(&*files, &path, &bytes)?;
            }
        }
        self.import.recover(files)
    }

    fn check(&self, _: Arc<dyn Files>, _: &[Fact]) -> Result<(), Failed> {
        Ok(())
    }
}

#[test]
fn two_roots_at_one_size_are_caught() {
    let fixture = Fixture::new();
    let import = short_import(&fixture);
    let peers = Peers { listed: vec![12, 55], reserve: vec![] };
    let others = [Step::Import(ROUNDS[0], peers)];
    let base = import.base.clone();
    let others = LedgerScenario::on(&fixture, "others", base, import.known.clone(), &others);
    let scenario = Restores { import, others };
    is_caught(&scenario, &honest, "two roots at one size", "was signed as");
}

/// A log in miniature: an entry a file, a head with size and digest. What the real one would do wrong
/// is planted here where the real one cannot be made to.
struct Toy {
    torn_head_accepted: bool,
}

const TOY: &str = "/toy";
const TOY_ENTRIES: u64 = 3;

impl Toy {
    fn entry(at: u64) -> PathBuf {
        Path::new(TOY).join(format!("entry-{at}"))
    }

    fn root(size: u64) -> Digest {
        Digest::of(&size.to_le_bytes())
    }

    fn size(&self, files: &dyn Files) -> Result<u64, Failed> {
        let path = Path::new(TOY).join("checkpoint");
        let text = match read_whole(files, &path, 4096) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            read => String::from_utf8(read?)?,
        };
        let mut lines = text.lines();
        let size: u64 = lines.nth(1).and_then(|size| size.parse().ok()).unwrap_or(0);
        let whole = lines.next() == Some(&Self::root(size).to_string());
        if whole || self.torn_head_accepted { Ok(size) } else { Err("the head is torn".into()) }
    }

    fn append(&self, files: &dyn Files, at: u64) -> Result<(), Failed> {
        write_whole(files, &Self::entry(at), format!("entry {at}").as_bytes())?;
        let head = format!("toy\n{}\n{}\n", at + 1, Self::root(at + 1));
        let path = Path::new(TOY).join("checkpoint");
        if self.torn_head_accepted {
            let mut file = files.create(&path)?;
            io::Write::write_all(&mut file, head.as_bytes())?;
            file.sync()?;
            files.sync_dir(Path::new(TOY))?;
        } else {
            write_whole(files, &path, head.as_bytes())?;
        }
        Ok(())
    }
}

impl Scenario for Toy {
    type Fact = u64;

    fn name(&self) -> &str {
        "toy"
    }

    fn disk(&self) -> MemFs {
        let disk = MemFs::new();
        disk.create_dir_all(Path::new(TOY)).unwrap();
        disk.restart(Survival::Torn)
    }

    fn act(&self, files: Arc<dyn Files>, facts: &mut Vec<u64>) -> Result<(), Failed> {
        for at in self.size(&*files)?..TOY_ENTRIES {
            self.append(&*files, at)?;
            facts.push(at);
        }
        Ok(())
    }

    fn recover(&self, files: Arc<dyn Files>) -> Result<(), Failed> {
        // What a killed process renamed is seen, and may not be durable.
        files.sync_dir(Path::new(TOY))?;
        let size = self.size(&*files)?;
        for name in files.list(Path::new(TOY))? {
            let path = Path::new(TOY).join(&name);
            let known =
                (0..size).any(|at| path == Self::entry(at)) || name == Path::new("checkpoint");
            if !known {
                files.remove(&path)?;
            }
        }
        Ok(())
    }

    fn check(&self, files: Arc<dyn Files>, facts: &[u64]) -> Result<(), Failed> {
        let size = self.size(&*files)?;
        for at in 0..size {
            read_whole(&*files, &Self::entry(at), 4096)?;
        }
        match facts.iter().find(|at| **at >= size) {
            Some(at) => Err(format!("entry {at} is lost: the log has {size}").into()),
            None => Ok(()),
        }
    }
}

#[test]
fn a_torn_head_that_is_accepted_is_caught() {
    survives(&Toy { torn_head_accepted: false });
    is_caught(&Toy { torn_head_accepted: true }, &honest, "torn head accepted", "is lost");
}
