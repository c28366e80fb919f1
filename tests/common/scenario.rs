//! Crash scenarios: one command on a disk that is cut or fails at each call, and what must hold then.
//!
//! [`run`] does a [`Scenario`]'s command once undisturbed, then again and again with one fault each.
//! After a fault the next process must recover, find every acknowledged fact, change nothing on a
//! second recovery, and bring the command to the same end; and over all lives no log may publish two
//! roots for one size. `ledger.rs` has the store's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use gradledger::{
    store::files::{Files, ReadFile, WriteFile, read_whole},
    types::digest::Digest,
};

use super::{
    Random,
    memfs::{Call, Fault, MemFs, Survival},
};

/// Whatever went wrong, in words.
pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// One command, and how to tell whether a disk holds what it acknowledged.
pub trait Scenario {
    /// Something that was acknowledged and may not be lost.
    type Fact: Clone + fmt::Debug;

    fn name(&self) -> &str;

    /// The disk before the command.
    fn disk(&self) -> MemFs;

    /// Runs the command; what it acknowledges is added to `facts` the moment it is.
    ///
    /// On a disk where it was done already, it says so by succeeding.
    fn act(&self, files: Arc<dyn Files>, facts: &mut Vec<Self::Fact>) -> Result<(), Failed>;

    /// Opens for writing, as the next process does.
    fn recover(&self, files: Arc<dyn Files>) -> Result<(), Failed>;

    /// Whether all is in order and `facts` are there.
    fn check(&self, files: Arc<dyn Files>, facts: &[Self::Fact]) -> Result<(), Failed>;

    /// What an undisturbed run's facts say of any run.
    fn lasting(&self, facts: Vec<Self::Fact>) -> Vec<Self::Fact> {
        facts
    }

    /// Where the size and root of a head are recorded before it is published: a file a key.
    fn records(&self) -> Vec<PathBuf> {
        vec![]
    }

    /// Whether every run publishes the same heads: false if it makes a key.
    fn same_heads(&self) -> bool {
        true
    }
}

/// A door that may lie about what it did.
pub type Door<'a> = &'a dyn Fn(Arc<dyn Files>) -> Arc<dyn Files>;

/// An honest one.
pub fn honest(files: Arc<dyn Files>) -> Arc<dyn Files> {
    files
}

/// How much to run.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Calls of a scenario that get a fault; more are sampled evenly.
    pub calls_max: usize,
    /// Only these first calls of a scenario get one.
    pub first: usize,
    /// How often each cut is scattered, with other seeds.
    pub scatters: u64,
    /// How many of the calls of each recovery are cut too.
    pub recuts: usize,
}

impl Effort {
    /// Some seconds a scenario; with `GRADLEDGER_CRASH_FULL=1` a hundred times as many faults.
    pub fn from_env() -> Self {
        match std::env::var("GRADLEDGER_CRASH_FULL").as_deref() {
            Ok("1") => {
                Self { calls_max: usize::MAX, first: usize::MAX, scatters: 700, recuts: usize::MAX }
            }
            _ => Self { calls_max: 400, first: usize::MAX, scatters: 1, recuts: 1 },
        }
    }
}

/// What was run, and what was found.
#[derive(Debug, Default)]
pub struct Counts {
    pub scenario: String,
    /// Calls that change something in one run.
    pub calls: usize,
    /// Faults by their kind.
    pub faults: BTreeMap<&'static str, usize>,
    /// Distinct heads that were published.
    pub heads: usize,
    /// Distinct disks that were left after recovery: what came after that was done once for each.
    pub disks: usize,
    /// What should not have been.
    pub violations: Vec<String>,
}

impl Counts {
    fn count(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    /// All faults.
    pub fn total(&self) -> usize {
        self.faults.values().sum()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, calls, faults, heads, disks, violations } = self;
        write!(f, "{scenario}: {calls} calls, {} faults (", self.total())?;
        for (at, (kind, count)) in faults.iter().enumerate() {
            write!(f, "{}{count} {kind}", if at == 0 { "" } else { ", " })?;
        }
        write!(f, "), {disks} disks, {heads} heads, {} violations", violations.len())
    }
}

/// A published tree head: log, size, root.
type Head = (String, u64, String);

/// What a door's watcher saw.
#[derive(Default)]
struct Seen {
    heads: Vec<Head>,
    wrong: Vec<String>,
}

/// A door that notes every head the moment that it is published, and whether it was recorded.
struct Watch {
    inner: Arc<dyn Files>,
    disk: MemFs,
    records: Vec<PathBuf>,
    seen: Arc<Mutex<Seen>>,
}

/// The three lines of a tree head.
fn parse_head(bytes: &[u8]) -> Option<Head> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.lines();
    Some((lines.next()?.to_owned(), lines.next()?.parse().ok()?, lines.next()?.to_owned()))
}

impl Watch {
    fn published(&self, head: Head) {
        let mut seen = self.seen.lock().expect("no panic while it is held");
        // By whichever key it is signed.
        let whys: Result<Vec<String>, ()> = self
            .records
            .iter()
            .map(|record| self.recorded(record, &head).err().ok_or(()))
            .collect();
        if let Some(why) = whys.ok().and_then(|whys| whys.into_iter().next()) {
            seen.wrong.push(format!("{head:?} was published and {why}"));
        }
        seen.heads.push(head);
    }

    /// Whether the durable record holds this head or a later one.
    fn recorded(&self, record: &Path, (log, size, _): &Head) -> Result<(), String> {
        let bytes = self.disk.durable(record).ok_or("there is no durable record")?;
        let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
        match json[log]["size"].as_u64() {
            Some(recorded) if recorded >= *size => Ok(()),
            recorded => Err(format!("{recorded:?} entries were durably recorded")),
        }
    }
}

impl Files for Watch {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.inner.create(path)
    }

    fn create_secret(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.inner.create_secret(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        self.inner.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)?;
        if to.file_name().is_some_and(|name| name == "checkpoint") {
            let bytes = read_whole(&*self.inner, to, 1 << 20)?;
            let head = parse_head(&bytes).ok_or(io::ErrorKind::InvalidData)?;
            self.published(head);
        }
        Ok(())
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
        self.inner.sync_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.inner.list(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.inner.exists(path)
    }
}

/// Roots by log and size.
type Roots = BTreeMap<(String, u64), String>;

fn add_heads(roots: &mut Roots, heads: &[Head]) -> Result<(), String> {
    for (log, size, root) in heads {
        let first = roots.entry((log.clone(), *size)).or_insert_with(|| root.clone());
        if first != root {
            return Err(format!("{log} with {size} entries was signed as {first} and as {root}"));
        }
    }
    Ok(())
}

/// A scenario being run.
struct Run<'a, S: Scenario> {
    scenario: &'a S,
    door: Door<'a>,
    base: MemFs,
    /// The facts of the undisturbed run.
    expected: Vec<S::Fact>,
    roots: Roots,
    /// Disks after recovery, with what had been acknowledged, that were looked at already.
    settled: BTreeSet<(Digest, String)>,
    /// The same of disks at the end.
    ends: BTreeSet<(Digest, String)>,
}

/// What happens to one run.
#[derive(Clone, Copy, Debug)]
struct Accident {
    fault: Fault,
    survival: Survival,
    /// The recovery is cut, too.
    again: Option<(usize, Survival)>,
}

impl<S: Scenario> Run<'_, S> {
    fn open(&self, disk: &MemFs, seen: &Arc<Mutex<Seen>>) -> Arc<dyn Files> {
        let (inner, records) = ((self.door)(disk.handle()), self.scenario.records());
        Arc::new(Watch { inner, disk: disk.clone(), records, seen: seen.clone() })
    }

    /// One life: the command with a fault, then all that must hold.
    fn life(&mut self, accident: Accident) -> Result<(), String> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let outcome = self.after(accident, &seen);
        let seen = std::mem::take(&mut *seen.lock().expect("no panic while it is held"));
        let roots = if self.scenario.same_heads() { &mut self.roots } else { &mut Roots::new() };
        let forks = add_heads(roots, &seen.heads);
        let wrong = outcome.err().into_iter().chain(seen.wrong).chain(forks.err());
        let wrong: Vec<String> = wrong.collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }

    fn after(&mut self, accident: Accident, seen: &Arc<Mutex<Seen>>) -> Result<(), String> {
        let Accident { fault, survival, again } = accident;
        let said = |what: &str| {
            let what = what.to_owned();
            move |error: Failed| format!("{what}: {error}")
        };
        let disk = self.base.fork(Some(fault));
        let mut facts = Vec::new();
        let outcome = self.scenario.act(self.open(&disk, seen), &mut facts);
        match fault {
            Fault::ShortAt(_) | Fault::InterruptAt(_) => outcome.map_err(said("not survived"))?,
            // What fails after the acknowledgement may go unsaid.
            _ => drop(outcome),
        }
        let mut disk = disk.restart(survival);
        if let Some((cut, survival)) = again {
            disk = disk.fork(Some(Fault::CutAt(cut)));
            drop(self.scenario.recover(self.open(&disk, seen)));
            disk = disk.restart(survival);
        }
        let files = self.open(&disk, seen);
        self.scenario.recover(files.clone()).map_err(said("recovery"))?;
        if !self.settled.insert((disk.fingerprint(), format!("{facts:?}"))) {
            return Ok(());
        }
        self.scenario.check(files.clone(), &facts).map_err(said("after recovery"))?;
        let once = disk.files();
        self.scenario.recover(files.clone()).map_err(said("second recovery"))?;
        same_files(&once, &disk.files()).map_err(|e| format!("a second recovery changes {e}"))?;
        self.scenario.act(files, &mut facts).map_err(said("the command repeated"))?;
        facts.extend(self.expected.iter().cloned());
        // All of it was acknowledged, so all of it must be durable.
        let disk = disk.restart(Survival::Dropped);
        if !self.ends.insert((disk.fingerprint(), format!("{facts:?}"))) {
            return Ok(());
        }
        let files = self.open(&disk, seen);
        self.scenario.recover(files.clone()).map_err(said("recovery at the end"))?;
        self.scenario.check(files, &facts).map_err(said("at the end"))
    }
}

/// The first file that is not in both.
fn same_files(
    a: &BTreeMap<PathBuf, Vec<u8>>,
    b: &BTreeMap<PathBuf, Vec<u8>>,
) -> Result<(), String> {
    let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    match names.into_iter().find(|name| a.get(*name) != b.get(*name)) {
        Some(name) => Err(name.display().to_string()),
        None => Ok(()),
    }
}

/// Runs a scenario with a fault at every call, through `door`.
pub fn run<S: Scenario>(scenario: &S, door: Door<'_>, effort: Effort) -> Counts {
    let mut counts = Counts { scenario: scenario.name().to_owned(), ..Counts::default() };
    let base = scenario.disk();
    let whole = base.fork(None);
    let mut facts = Vec::new();
    if let Err(error) = scenario.act(door(whole.handle()), &mut facts) {
        counts.violations.push(format!("undisturbed: {error}"));
        return counts;
    }
    let trace = whole.trace();
    counts.calls = trace.len();
    let recovering = whole.restart(Survival::Dropped);
    let recovered = scenario.recover(door(recovering.handle()));
    if let Err(error) = recovered {
        counts.violations.push(format!("undisturbed, then dropped: {error}"));
    }
    let expected = scenario.lasting(facts);
    let (roots, settled, ends) = Default::default();
    let mut run = Run { scenario, door, base, expected, roots, settled, ends };
    let mut suffer = |kind: &'static str, accident: Accident| {
        counts.count(kind);
        if let Err(why) = run.life(accident) {
            let at = match accident.fault {
                Fault::CutAt(at) | Fault::FailAt(at) | Fault::NoSpaceAt(at) => at,
                Fault::ShortAt(at) | Fault::InterruptAt(at) => at,
            };
            let call = trace.get(at).map_or_else(
                || "the end".to_owned(),
                |(call, path)| format!("{call:?} {}", path.display()),
            );
            counts.violations.push(format!("{accident:?}, {call}: {why}"));
        }
    };
    let step = trace.len().div_ceil(effort.calls_max).max(1);
    // One more than there are: all was acknowledged, then the power is cut.
    for at in (0..=trace.len().min(effort.first)).step_by(step) {
        let mut random = Random(at as u64);
        let cut = |survival| Accident { fault: Fault::CutAt(at), survival, again: None };
        for survival in Survival::all(random.next()) {
            suffer(survival.name(), cut(survival));
        }
        for _ in 1..effort.scatters {
            suffer("scattered", cut(Survival::Scattered(random.next())));
        }
        for again in 0..effort.recuts.min(RECOVERY_CALLS) {
            // One at random, or all.
            let call = if effort.recuts == 1 {
                random.below(RECOVERY_CALLS as u64) as usize
            } else {
                again
            };
            let ways = Survival::all(random.next());
            let way = |random: &mut Random| ways[random.below(4) as usize];
            let survival = way(&mut random);
            let again = Some((call, way(&mut random)));
            suffer("cut again", Accident { again, ..cut(survival) });
        }
        let Some((call, _)) = trace.get(at) else { continue };
        let fail = |fault| Accident {
            fault,
            survival: if at % 2 == 0 { Survival::Killed } else { Survival::Dropped },
            again: None,
        };
        suffer("I/O error", fail(Fault::FailAt(at)));
        if matches!(call, Call::Create | Call::Write | Call::CreateDirAll) {
            suffer("no space", fail(Fault::NoSpaceAt(at)));
        }
        if *call == Call::Write {
            suffer("short write", fail(Fault::ShortAt(at)));
            suffer("interrupted", fail(Fault::InterruptAt(at)));
        }
    }
    (counts.heads, counts.disks) = (run.roots.len(), run.settled.len());
    counts
}

/// About as many calls as a recovery makes.
const RECOVERY_CALLS: usize = 24;
