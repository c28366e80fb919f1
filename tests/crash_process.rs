//! Crashes of the real program on a real disk: kill -9, no space left, and a trace of its system
//! calls, which shows that the in-memory disk of `tests/crash.rs` sees every call that changes a
//! ledger.

#![allow(clippy::unwrap_used)] // Helpers of tests, too.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use common::{
    Random,
    ledger::{Fixture, ROUNDS, Step, holds},
    model::{all_files, copy_all},
    signed::{SignedRun, document},
};
use gradledger::{
    ledger::{At, Ledger, fsck::fsck, retention::Kept, seal::FoldOptions, submit::Receipt},
    store::files::{Disk, Files, ReadFile, WriteFile},
    types::progress::Silent,
};
use serde_json::Value;

/// The command line of a step.
fn arguments(fixture: &Fixture, step: &Step, ledger: &Path) -> Vec<String> {
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let uids = |uids: &[u16]| uids.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    let mut all: Vec<String> = vec![];
    let mut add = |words: &str| all.extend(words.split(' ').map(str::to_owned));
    match step {
        Step::Init => {
            add("init LEDGER --run crash --origin crash.invalid/ledger --rule templar --lr 0.4");
            add("--chunk 8 --top-k 4 --bins 4 --checkpoint CHECKPOINT");
        }
        Step::Import(round, peers) => {
            add(&format!("import templar LEDGER --round {round} --gradients GRADIENTS{round}"));
            add(&format!("--peers {}", uids(&peers.listed)));
            if !peers.reserve.is_empty() {
                add(&format!("--reserve {}", uids(&peers.reserve)));
            }
            add("--json");
        }
        Step::InitNative => {
            add("init LEDGER --run crash --origin crash.invalid/ledger --rule native --lr 0.4");
            add("--chunk 8 --top-k 4 --bins 4 --checkpoint CHECKPOINT --miners MINERS");
        }
        Step::Submit(round, sent) => {
            let [(miner, delta)] = sent[..] else { unreachable!("a command submits one") };
            add(&format!("submit LEDGER DELTA{delta} --round {round} --key KEY{miner} --json"));
        }
        Step::Seal(round) => add(&format!("seal LEDGER --round {round} --json")),
        Step::Anchor => add("anchor LEDGER --file CHAIN --json"),
        Step::Rotate => add("log rotate-key LEDGER --json"),
        Step::Gc(k) => add(&format!("gc LEDGER --keep-every {k} --json")),
        Step::Upload(..) | Step::Open | Step::Index => unreachable!("no command does nothing else"),
    }
    for word in &mut all {
        match fixture.place(word) {
            _ if word == "LEDGER" => *word = path(ledger),
            Some(named) => *word = path(&named),
            None => {}
        }
    }
    all
}

fn program(fixture: &Fixture, step: &Step, ledger: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
    command.args(arguments(fixture, step, ledger)).env("RAYON_NUM_THREADS", "1");
    command
}

fn succeeds(fixture: &Fixture, step: &Step, ledger: &Path) -> Output {
    let output = program(fixture, step, ledger).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{step:?}: {}: {said}", output.status);
    output
}

/// Opens as readers do, without the lock: the commands that run meanwhile take it.
fn in_order(ledger: &Path) -> Ledger {
    let ledger = Ledger::open(ledger).unwrap();
    fsck(&ledger, FoldOptions { threads: 1, ..FoldOptions::default() }, &Silent).unwrap();
    ledger
}

/// How many kills there are in all, half of them in each kind of run.
fn kills() -> u64 {
    std::env::var("GRADLEDGER_CRASH_KILLS").map_or(40, |n| n.parse().unwrap()) / 2
}

#[test]
fn a_kill_at_any_moment_of_import_seal_and_gc_loses_nothing() {
    let round = |round| [Step::import(round), Step::Seal(round)];
    let mut steps = [round(ROUNDS[0]), round(ROUNDS[1])].concat();
    steps.push(Step::Gc(5));
    kill_each(9, &Step::Init, &steps);
}

#[test]
fn a_kill_at_any_moment_of_submit_and_seal_loses_nothing() {
    let submit = |round, miner, delta| Step::Submit(round, vec![(miner, delta)]);
    let steps = [
        submit(1, 1, 1),
        submit(1, 2, 2),
        submit(1, 3, 2),
        Step::Seal(1),
        submit(2, 3, 4),
        submit(2, 1, 1),
        Step::Seal(2),
    ];
    kill_each(10, &Step::InitNative, &steps);
}

/// What a ledger said is in its submissions log.
#[derive(Clone)]
enum Acknowledged {
    /// An imported file: index and uid.
    Statement(u64, u64),
    /// A signed delta.
    Receipt(Box<Receipt>),
}

impl Acknowledged {
    fn all(report: &Value) -> Vec<Self> {
        if let Ok(receipt) = serde_json::from_value(report["receipt"].clone()) {
            return vec![Self::Receipt(Box::new(receipt))];
        }
        let number = |value: &Value| value.as_u64().unwrap();
        let file = |file: &Value| Self::Statement(number(&file["index"]), number(&file["uid"]));
        report["files"].as_array().unwrap().iter().map(file).collect()
    }

    fn check(&self, ledger: &Ledger) {
        match self {
            Self::Statement(index, uid) => {
                let found = ledger.submissions(*index..*index + 1).unwrap();
                assert_eq!(found[0].1.miner().uid().map(u64::from), Some(*uid), "{index}");
            }
            Self::Receipt(receipt) => assert!(holds(ledger, receipt).unwrap(), "{receipt:?}"),
        }
    }

    /// The same, whatever head it was proven under.
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Statement(a, b), Self::Statement(c, d)) => (a, b) == (c, d),
            (Self::Receipt(a), Self::Receipt(b)) => {
                (a.index, a.statement) == (b.index, b.statement)
            }
            _ => false,
        }
    }
}

/// Runs `steps` again and again, each killed at some moment and then repeated.
fn kill_each(seed: u64, init: &Step, steps: &[Step]) {
    println!("seed {seed}");
    let (kills, fixture, mut random) = (kills(), Fixture::new(), Random(seed));
    let work = tempfile::tempdir().unwrap();
    let (ready, ledger) = (work.path().join("ready"), work.path().join("ledger"));
    succeeds(&fixture, init, &ready);
    // How long each takes undisturbed, and what comes of it.
    copy_all(&ready, &ledger);
    let mut undisturbed = vec![];
    for step in steps {
        let start = Instant::now();
        let output = succeeds(&fixture, step, &ledger);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        undisturbed.push((start.elapsed(), report));
    }
    let (mut killed, mut done_before, mut at) = (0, 0, steps.len());
    let mut collected = 0;
    let mut acknowledged: Vec<Acknowledged> = vec![];
    while killed < kills {
        assert!(done_before < 10 * kills, "commands are done before they are killed");
        if at == steps.len() {
            fs::remove_dir_all(&ledger).unwrap();
            copy_all(&ready, &ledger);
            (at, acknowledged) = (0, vec![]);
        }
        let (step, (took, expected)) = (&steps[at], &undisturbed[at]);
        let mut child = program(&fixture, step, &ledger)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(took.mul_f64(random.below(1000) as f64 / 1200.0));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            done_before += 1
        } else {
            killed += 1
        }
        let opened = in_order(&ledger);
        // What was printed before the kill was acknowledged.
        let said: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        match step {
            Step::Seal(round) => {
                let sealed = opened.position(*round).is_ok();
                assert!(sealed || said.is_none(), "round {round} was acknowledged and is lost");
                if !sealed && random.below(2) == 0 {
                    continue;
                }
                // If it was sealed, be it that its head was not published yet, it is said again.
                succeeds(&fixture, step, &ledger);
                let opened = in_order(&ledger);
                let next = opened.state(At::Round(*round)).unwrap().root.to_hex();
                assert_eq!(Value::from(next), expected["next"]["root"]);
            }
            Step::Gc(_) => {
                if random.below(2) == 0 {
                    continue;
                }
                succeeds(&fixture, step, &ledger);
                let again = succeeds(&fixture, step, &ledger);
                let again: Value = serde_json::from_slice(&again.stdout).unwrap();
                assert_eq!(again["freed"]["bytes"], Value::from(0));
                let opened = in_order(&ledger);
                assert_eq!(opened.sealed().len(), 2);
                assert_eq!(Kept::load(&opened).unwrap().dropped(&opened), [[ROUNDS[0]; 2]]);
                collected += 1;
            }
            _ => {
                acknowledged.extend(said.iter().flat_map(Acknowledged::all));
                acknowledged.iter().for_each(|fact| fact.check(&opened));
                // Half of the time it is killed again before it is done.
                if random.below(2) == 0 {
                    continue;
                }
                let again: Value =
                    serde_json::from_slice(&succeeds(&fixture, step, &ledger).stdout).unwrap();
                let (again, expected) = (Acknowledged::all(&again), Acknowledged::all(expected));
                assert!(again.iter().zip(&expected).all(|(a, b)| a.same(b)));
                acknowledged.extend(again);
                let opened = in_order(&ledger);
                acknowledged.iter().for_each(|fact| fact.check(&opened));
            }
        }
        at += 1;
    }
    println!(
        "crash: {killed} kills, {done_before} commands that were done before theirs, {collected} \
         times all rounds and a gc"
    );
    assert!(killed > 0, "no command was killed");
}

/// Kills `submit` while it makes the index anew, over and over; then an older copy of the index is put
/// in its place, or its files are scrambled, or it is left as the kill left it. The statement's
/// answer stays the same.
#[test]
fn a_kill_while_the_index_is_made_anew_changes_no_answer() {
    let kills = std::env::var("GRADLEDGER_CRASH_KILLS")
        .map_or(12, |n: String| n.parse::<u64>().unwrap().div_ceil(4));
    let seed = 10;
    println!("seed {seed}");
    let (run, mut random) = (SignedRun::new(), Random(seed));
    let first = document(&mut run.submit("delta.pt"));
    run.append_fetched(2000);
    run.seal(1);
    let (index, older) = (run.ledger().join("index"), run.path("older"));
    document(&mut run.submit("delta.pt"));
    copy_all(&index, &older);
    run.append_fetched(2000);
    // How long it takes from nothing.
    fs::remove_dir_all(&index).unwrap();
    let start = Instant::now();
    document(&mut run.submit("delta.pt"));
    let took = start.elapsed();
    let log = run.open().submissions_log().head().clone();
    let (mut killed, mut unmarked, mut turn) = (0, 0, 0);
    while killed < kills {
        assert!(turn < 10 * kills, "commands are done before they are killed");
        turn += 1;
        // Mostly from nothing, else from what the last turn left.
        if index.exists() && turn % 4 != 0 {
            fs::remove_dir_all(&index).unwrap();
        }
        let mut child = run.submit("delta.pt");
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(took.mul_f64(random.below(1000) as f64 / 1200.0));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            continue;
        }
        killed += 1;
        unmarked += u64::from(index.exists() && !index.join("closed").exists());
        match turn % 3 {
            0 => {}
            1 => {
                fs::remove_dir_all(&index).unwrap_or_default();
                copy_all(&older, &index);
            }
            _ if index.exists() => {
                for path in all_files(&index) {
                    let bytes: Vec<u8> = fs::read(&path).unwrap();
                    let other = bytes.iter().map(|byte| byte ^ (random.next() as u8));
                    fs::write(path, other.collect::<Vec<u8>>()).unwrap();
                }
            }
            _ => {}
        }
        if random.below(2) == 0 {
            continue;
        }
        let again = document(&mut run.submit("delta.pt"));
        assert_eq!(again["receipt"]["index"], first["receipt"]["index"]);
        assert_eq!(again["receipt"]["entry"], first["receipt"]["entry"]);
        assert_eq!(again["rejected"], Value::Null);
        assert_eq!(run.open().submissions_log().head(), &log, "nothing is appended");
    }
    println!("crash: {killed} kills, {unmarked} of them with the index open");
    assert!(unmarked > 0, "no kill came while the index was open");
}

/// A small file system of its own, unmounted at the end.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn no_space_left_loses_nothing_and_goes_on_when_there_is_some() {
    let fixture = Fixture::new();
    let work = tempfile::tempdir().unwrap();
    let small = work.path().join("small");
    fs::create_dir(&small).unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=3m,nr_inodes=4096", "tmpfs"]).arg(&small);
    if !mount.output().is_ok_and(|output| output.status.success()) {
        println!("skipped: mounting a small file system is not permitted here");
        return;
    }
    let _mount = Mount(small.clone());
    let (ledger, ballast) = (small.join("ledger"), small.join("ballast"));
    let (mut refused, mut done) = (0, 0);
    let imported = [Step::Init, Step::import(ROUNDS[0]), Step::Seal(ROUNDS[0])];
    let submitted = [Step::InitNative, Step::Submit(1, vec![(1, 1)]), Step::Seal(1)];
    for step in imported.iter().chain(&submitted) {
        if matches!(step, Step::InitNative) {
            fs::remove_dir_all(&ledger).unwrap();
        }
        // A little more room each time, until the step fits: the last time it is there.
        for pages in 0.. {
            fill(&ballast, pages);
            let output = program(&fixture, step, &ledger).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() {
                done += 1;
                break;
            }
            assert_eq!(output.status.code(), Some(1), "{step:?}: {said}");
            assert!(said.contains("No space left on device"), "{step:?}: {said}");
            if !matches!(step, Step::Init | Step::InitNative) {
                in_order(&ledger);
            }
            refused += 1;
        }
        fs::remove_file(&ballast).unwrap();
        in_order(&ledger);
    }
    println!("crash: {refused} commands without space, {done} done when there was some");
    assert!(refused > 10);
}

/// Fills the file system but for so many pages.
fn fill(ballast: &Path, pages: usize) {
    use io::Write;
    let _ = fs::remove_file(ballast);
    let mut file = fs::File::create(ballast).unwrap();
    let page = [0; 4096];
    while file.write_all(&page).is_ok() {}
    let bytes = file.metadata().unwrap().len();
    file.set_len(bytes.saturating_sub(pages as u64 * 4096)).unwrap();
}

/// Calls that change something, each with its path below the ledger.
type Calls = BTreeMap<String, usize>;

/// The local disk, and what was asked of it.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<(Calls, BTreeMap<PathBuf, usize>)>>);

impl Recorder {
    fn note(&self, call: &str, path: &Path) {
        *self.0.lock().unwrap().0.entry(format!("{call} {}", path.display())).or_default() += 1;
    }

    fn file(&self, path: &Path, file: Box<dyn WriteFile>) -> Box<dyn WriteFile> {
        self.note("create", path);
        Box::new(Recorded { file, path: path.to_owned(), recorder: self.clone() })
    }
}

struct Recorded {
    file: Box<dyn WriteFile>,
    path: PathBuf,
    recorder: Recorder,
}

impl io::Write for Recorded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        let mut seen = self.recorder.0.lock().unwrap();
        *seen.1.entry(self.path.clone()).or_default() += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl WriteFile for Recorded {
    fn sync(&mut self) -> io::Result<()> {
        self.recorder.note("sync", &self.path);
        self.file.sync()
    }
}

impl Files for Recorder {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        Ok(self.file(path, Disk.create(path)?))
    }

    fn create_secret(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        Ok(self.file(path, Disk.create_secret(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        Disk.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)?;
        self.note(&format!("rename {} to", from.display()), to);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)?;
        self.note("remove", path);
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut below = vec![path.to_owned()];
        while let Some(path) = below.pop() {
            if path.is_dir() {
                below.extend(fs::read_dir(&path)?.map(|entry| entry.unwrap().path()));
            }
            self.note("remove", &path);
        }
        Disk.remove_dir_all(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        for path in path.ancestors().filter(|path| !path.exists()) {
            self.note("mkdir", path);
        }
        Disk.create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.note("sync", path);
        Disk.sync_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        Disk.list(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Disk.exists(path)
    }
}

/// System calls that change files, or could.
const TRACED: &str = "?openat,?openat2,?open,?creat,?rename,?renameat,?renameat2,\
    ?unlink,?unlinkat,?rmdir,?mkdir,?mkdirat,?mknod,?mknodat,\
    ?link,?linkat,?symlink,?symlinkat,?write,?pwrite64,?writev,\
    ?pwritev,?pwritev2,?fsync,?fdatasync,?sync_file_range,?syncfs,?sync,\
    ?ftruncate,?truncate,?fallocate,?copy_file_range,?sendfile,?splice,?chmod,\
    ?fchmod,?fchmodat,?fchmodat2,?chown,?fchown,?fchownat,?utimensat,\
    ?setxattr,?fsetxattr,?ioctl,?io_uring_setup,?mmap";

#[test]
fn every_system_call_that_changes_a_ledger_goes_through_files() {
    if !Command::new("strace").args(["-f", "true"]).output().is_ok_and(|o| o.status.success()) {
        println!("skipped: strace is not here, or not permitted");
        return;
    }
    let submit = |miner, delta| Step::Submit(1, vec![(miner, delta)]);
    calls_are_seen(&[
        Step::Init,
        Step::import(ROUNDS[0]),
        Step::Seal(ROUNDS[0]),
        Step::import(ROUNDS[1]),
        Step::Seal(ROUNDS[1]),
        Step::Gc(5),
    ]);
    calls_are_seen(&[Step::InitNative, submit(1, 1), submit(2, 1), submit(1, 1), Step::Seal(1)]);
}

/// Traces the program's calls in `steps`, and compares them with what the trait saw of them.
fn calls_are_seen(steps: &[Step]) {
    let fixture = Fixture::new();
    let recorder = Recorder::default();
    let files: Arc<dyn Files> = Arc::new(recorder.clone());
    for step in steps {
        fixture.step(step, &fixture.root(), &files, &mut vec![]).unwrap();
    }
    let (calls, bytes) = std::mem::take(&mut *recorder.0.lock().unwrap());
    let root = fixture.root();
    let root = root.to_str().unwrap();
    let expected: Calls = calls.into_iter().filter(|(call, _)| call.contains(root)).collect();
    fs::remove_dir_all(root).unwrap();
    fs::create_dir(root).unwrap();

    // A file a thread, so that no line is cut by another thread's.
    let traces = fixture.dir().join("traces");
    let (mut found, mut written) = (Calls::new(), BTreeMap::<PathBuf, usize>::new());
    for step in steps {
        fs::create_dir(&traces).unwrap();
        let output = Command::new("strace")
            .args(["-ff", "-y", "-s", "0", "-e", &format!("trace={TRACED}"), "-o"])
            .arg(traces.join("of"))
            .arg(env!("CARGO_BIN_EXE_gradledger"))
            .args(arguments(&fixture, step, &fixture.root()))
            .env("RAYON_NUM_THREADS", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for trace in fs::read_dir(&traces).unwrap() {
            for line in fs::read_to_string(trace.unwrap().path()).unwrap().lines() {
                read_line(line, root, &mut found, &mut written);
            }
        }
        fs::remove_dir_all(&traces).unwrap();
    }
    // The lock file is the one that is opened without the trait; it holds nothing.
    let lock = format!("open for writing {root}/lock");
    assert_eq!(found.remove(&lock), Some(steps.len()));
    let names: BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
    let differ: Vec<_> = names
        .into_iter()
        .filter(|call| found.get(*call) != expected.get(*call))
        .map(|call| format!("{call}: traced {:?}, seen {:?}", found.get(call), expected.get(call)))
        .collect();
    assert!(differ.is_empty(), "{differ:#?}");
    assert_eq!(written, bytes, "bytes written, by path");
    let (total, bytes): (usize, usize) = (found.values().sum(), written.values().sum());
    println!("crash: {total} traced calls and {bytes} bytes written are those that were seen");
    assert!(total > 200);
}

/// Adds what one line of a trace changed below `root`.
fn read_line(line: &str, root: &str, calls: &mut Calls, written: &mut BTreeMap<PathBuf, usize>) {
    if !line.contains(root) {
        return;
    }
    let (name, rest) = line.split_once('(').unwrap();
    let (arguments, result) = rest.rsplit_once(" = ").unwrap();
    let arguments = arguments.trim_end().strip_suffix(')').unwrap();
    let result = result.trim();
    // What failed changed nothing.
    if result.starts_with('-') {
        return;
    }
    let paths = paths(arguments);
    let mut note = |call: String| *calls.entry(call).or_default() += 1;
    match name {
        "openat" | "open" => {
            let writes = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_TMPFILE"];
            if !writes.iter().any(|flag| arguments.contains(flag)) {
                return;
            }
            let creates = arguments.contains("O_TRUNC") || arguments.contains("O_EXCL");
            note(format!("{} {}", if creates { "create" } else { "open for writing" }, paths[0]));
        }
        "rename" | "renameat" | "renameat2" => note(format!("rename {} to {}", paths[0], paths[1])),
        "unlink" | "unlinkat" | "rmdir" => note(format!("remove {}", paths[0])),
        "mkdir" | "mkdirat" => note(format!("mkdir {}", paths[0])),
        "fsync" => note(format!("sync {}", paths[0])),
        "write" => {
            let bytes: usize = result.parse().unwrap();
            *written.entry(PathBuf::from(&paths[0])).or_default() += bytes;
        }
        // Reading maps nothing shared.
        "mmap" if !arguments.contains("MAP_SHARED") || !arguments.contains("PROT_WRITE") => {}
        // Terminals are asked for; files are not.
        "ioctl" if result != "0" => {}
        other => note(format!("{other} {arguments}")),
    }
}

/// The paths in a call's arguments, absolute: `"/path"`, `5</dir>, "name"` or `5</path>`.
fn paths(arguments: &str) -> Vec<String> {
    let mut paths: Vec<String> = vec![];
    let mut dir = None;
    for argument in arguments.split(", ") {
        if let Some(name) = argument.strip_prefix('"').and_then(|a| a.strip_suffix('"')) {
            let dir: Option<String> = dir.take();
            let relative = !name.starts_with('/');
            paths.push(match dir {
                Some(dir) if relative => format!("{dir}/{name}"),
                _ => name.to_owned(),
            });
        } else if let Some((_, path)) = argument.split_once('<')
            && let Some(path) = path.strip_suffix('>')
        {
            paths.extend(dir.replace(path.to_owned()));
        }
    }
    paths.extend(dir);
    paths
}
