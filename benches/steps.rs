//! How far is each step from its floor? One layer of a 72B model, 20 miners, seed 7, the real binary.
//!
//! `cargo bench --bench steps -- --dir DIR [--fraction 0.1] [--runs 3]`. A full layer takes 15 GB
//! below DIR and some minutes, and 7 GB more for `delta`; the same DIR is used again. It prints a
//! Markdown table and writes a record below `benches/record/`. `--delta` measures `delta` alone.
//!
//! The floor of a step is the larger of two, measured in the same run on the same disk:
//!
//! - copy: the files it needs, read once by one thread, and as many bytes as it leaves, written and
//!   synced;
//! - sha2: as many bytes as it reads, leaves or folds (`replay` makes a state and hashes it, but
//!   leaves none), hashed in pieces on all cores, out of memory.
//!
//! Warm: its files were read before. Cold: the page cache was dropped before, which takes root.
//! What a step writes it also syncs, warm or cold.

#[path = "../tools/record.rs"]
mod record;
#[path = "../tools/synthetic.rs"]
mod synthetic;
#[path = "../tools/watch.rs"]
mod watch;

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use clap::Parser;
use gradledger_kernels::sha256::hash_pieces;
use serde::Serialize;
use synthetic::Synthetic;
use watch::watched;

const GRADLEDGER: &str = env!("CARGO_BIN_EXE_gradledger");

/// The bar of issue 2: times the floor, and bytes of anonymous memory.
const RATIO_MAX: f64 = 4.0;
const ANONYMOUS_BYTES_MAX: u64 = 1 << 30;

/// The memory that a control group gives, page cache included.
const GROUP_BYTES: u64 = 3 << 29;

const ROUND: u64 = 1;
const MIB: f64 = 1048576.0;

/// How far is each step from its floor?
#[derive(Parser)]
#[command(name = "steps")]
struct Args {
    /// Where data and ledgers are made; the data stays there for the next run.
    #[arg(long)]
    dir: PathBuf,
    /// Part of each matrix's rows.
    #[arg(long, default_value_t = 0.1)]
    fraction: f64,
    /// Gradient files.
    #[arg(long, default_value_t = 20)]
    miners: u16,
    /// How often each step runs warm, and cold; the table has the fastest.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// The miner's `delta` alone, which needs no ledger.
    #[arg(long)]
    delta: bool,
    /// JSON instead of Markdown.
    #[arg(long)]
    json: bool,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("a bar is missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, prints and records; says whether every bar is kept.
fn run(args: &Args) -> io::Result<bool> {
    let lab = Lab::new(args)?;
    let mut rows = Vec::new();
    for cache in [Cache::Warm, Cache::Cold] {
        if cache == Cache::Cold && !can_drop_caches() {
            eprintln!("cold: not possible here, the page cache cannot be dropped");
            continue;
        }
        let runs = (0..args.runs).map(|_| lab.sequence(cache)).collect::<io::Result<Vec<_>>>()?;
        rows.extend((0..lab.steps.len()).map(|at| Row::of(runs.iter().map(|run| &run[at]))));
    }
    let limited = lab.limited()?;
    lab.clear()?;
    record(args, &rows)?;
    if args.json {
        println!("{}", serde_json::json!({ "rows": rows, "group": limited }));
    } else {
        print_table(&rows, &limited);
    }
    let kept = |row: &Row| {
        row.anonymous_bytes <= ANONYMOUS_BYTES_MAX && (row.ratio <= RATIO_MAX || !row.step.barred())
    };
    Ok(rows.iter().all(kept) && limited.iter().all(|line| line.passed != Some(false)))
}

// ---- what is run ----

/// A step of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Step {
    Init,
    Import,
    Seal,
    Replay,
    Fsck,
    Delta,
}

impl Step {
    const ALL: [Self; 6] =
        [Self::Init, Self::Import, Self::Seal, Self::Replay, Self::Fsck, Self::Delta];

    fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Import => "import",
            Self::Seal => "seal",
            Self::Replay => "replay",
            Self::Fsck => "fsck",
            Self::Delta => "delta",
        }
    }

    /// What the floor's bytes are.
    fn floor_bytes(self) -> &'static str {
        match self {
            Self::Init => "checkpoint read, state written",
            Self::Import => "gradient files read, deltas written",
            Self::Seal => "state and deltas read, next state written",
            Self::Replay => "state and deltas read; next state hashed, not written",
            Self::Fsck => "both states and deltas read; next state folded and hashed again",
            Self::Delta => "both checkpoints read, delta and state of the error written",
        }
    }

    /// Whether issue 2 bounds its ratio.
    fn barred(self) -> bool {
        !matches!(self, Self::Init | Self::Delta)
    }
}

/// Whether a step finds its files in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Cache {
    Warm,
    Cold,
}

/// The data, and where the ledger is made.
struct Lab {
    synthetic: Synthetic,
    data: PathBuf,
    ledger: PathBuf,
    /// Where a miner's delta and its state go.
    miner: PathBuf,
    scratch: PathBuf,
    steps: &'static [Step],
}

/// One step's cost and its floor's.
#[derive(Clone, Debug)]
struct Measured {
    step: Step,
    cache: Cache,
    cost: Cost,
    copy_seconds: f64,
    hash_seconds: f64,
}

impl Lab {
    /// Makes the data, unless an earlier run did.
    fn new(args: &Args) -> io::Result<Self> {
        let synthetic = Synthetic {
            seed: 7,
            round: ROUND,
            miners: args.miners,
            tensors: synthetic::layer(args.fraction),
        };
        let only = if args.delta { "-delta" } else { "" };
        let data = args.dir.join(format!("layer-{}-{}{only}", args.fraction, args.miners));
        if !data.exists() {
            let making = data.with_extension("making");
            let _ = fs::remove_dir_all(&making);
            fs::create_dir_all(&making)?;
            synthetic.write_model(&making)?;
            if !args.delta {
                synthetic.write_gradients(&making)?;
            }
            fs::rename(&making, &data)?;
        }
        let [ledger, miner, scratch] = ["ledger", "miner", "floor"].map(|name| args.dir.join(name));
        let steps: &[Step] = if args.delta { &[Step::Delta] } else { &Step::ALL };
        let lab = Self { synthetic, data, ledger, miner, scratch, steps };
        lab.make_trained(args.fraction)?;
        sync_all();
        Ok(lab)
    }

    /// What training made of the checkpoint: as many other numbers, so that every one has changed.
    fn make_trained(&self, fraction: f64) -> io::Result<()> {
        let dir = self.data.join("trained");
        if dir.exists() {
            return Ok(());
        }
        let making = self.data.join("trained.making");
        let _ = fs::remove_dir_all(&making);
        fs::create_dir_all(&making)?;
        let tensors = synthetic::layer(fraction);
        Synthetic { seed: 8, round: ROUND, miners: 0, tensors }.write_model(&making)?;
        fs::rename(&making, &dir)
    }

    fn trained(&self) -> PathBuf {
        self.synthetic.model_path(&self.data.join("trained"))
    }

    /// Removes what steps made.
    fn clear(&self) -> io::Result<()> {
        for dir in [&self.ledger, &self.miner] {
            match fs::remove_dir_all(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// All steps of a new ledger.
    fn sequence(&self, cache: Cache) -> io::Result<Vec<Measured>> {
        self.clear()?;
        let model = self.synthetic.model_bytes();
        let mut before_seal = Vec::new();
        let mut all = Vec::new();
        for &step in self.steps {
            let stored = self.stored()?;
            let reads = match step {
                Step::Init => vec![self.synthetic.model_path(&self.data)],
                Step::Import => self.gradients(),
                Step::Seal => {
                    before_seal.clone_from(&stored);
                    stored.clone()
                }
                Step::Replay => before_seal.clone(),
                Step::Fsck => stored.clone(),
                Step::Delta => {
                    fs::create_dir_all(&self.miner)?;
                    vec![self.synthetic.model_path(&self.data), self.trained()]
                }
            };
            let bytes_before = total_bytes(&stored)?;
            prepare(cache, &reads)?;
            let cost = measure(&mut self.command(step))?;
            let written = total_bytes(&self.stored()?)? - bytes_before;
            let folded = if matches!(step, Step::Replay | Step::Fsck) { model } else { 0 };
            let hashed = total_bytes(&reads)? + written + folded;
            prepare(cache, &reads)?;
            let copy_seconds = copy_seconds(&reads, written, &self.scratch)?;
            let hash_seconds = hash_seconds(hashed);
            eprintln!(
                "{cache:?} {:6} {:7.2} s; copy {copy_seconds:.2} s, sha2 {hash_seconds:.2} s",
                step.name(),
                cost.wall_seconds
            );
            all.push(Measured { step, cache, cost, copy_seconds, hash_seconds });
        }
        Ok(all)
    }

    /// All steps once more, each within a control group of [`GROUP_BYTES`].
    fn limited(&self) -> io::Result<Vec<Limited>> {
        let Some(group) = Group::make() else {
            eprintln!("memory control group: not possible here");
            let unknown = |&step: &Step| Limited { step, passed: None };
            return Ok(self.steps.iter().map(unknown).collect());
        };
        self.clear()?;
        fs::create_dir_all(&self.miner)?;
        let run = |step: Step| {
            let status = group.confined(&self.command(step)).stdout(Stdio::null()).status()?;
            Ok(Limited { step, passed: Some(status.success()) })
        };
        self.steps.iter().map(|&step| run(step)).collect()
    }

    /// The ledger's files but its logs, which take some kilobytes and are rewritten; and the miner's.
    fn stored(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = files_below(&self.ledger.join("segments"))?;
        files.extend(files_below(&self.ledger.join("hashes"))?);
        files.extend(files_below(&self.miner)?);
        Ok(files)
    }

    fn gradients(&self) -> Vec<PathBuf> {
        self.synthetic.uids().map(|uid| self.synthetic.gradient_path(&self.data, uid)).collect()
    }

    fn command(&self, step: Step) -> Command {
        let mut command = Command::new(GRADLEDGER);
        command.arg("--quiet").arg(step.name());
        if step == Step::Import {
            command.arg("templar");
        }
        if step != Step::Delta {
            command.arg(&self.ledger);
        }
        match step {
            Step::Init => {
                command.args(["--run", "bench", "--rule", "templar", "--lr", "0.4"]);
                command.args(["--chunk", "64", "--top-k", "64", "--bins", "4", "--checkpoint"]);
                command.arg(self.synthetic.model_path(&self.data));
            }
            Step::Import => {
                let uids: Vec<_> = self.synthetic.uids().map(|uid| uid.to_string()).collect();
                command.args(["--peers", &uids.join(","), "--gradients"]).arg(&self.data);
            }
            Step::Delta => {
                command.arg(self.synthetic.model_path(&self.data)).arg(self.trained());
                command.arg("--out").arg(self.miner.join("delta"));
                command.arg("--state").arg(self.miner.join("state.safetensors"));
            }
            Step::Seal | Step::Replay | Step::Fsck => {}
        }
        if !matches!(step, Step::Init | Step::Fsck) {
            command.args(["--round", &ROUND.to_string()]);
        }
        command
    }
}

// ---- what a step costs ----

/// What a process cost.
#[derive(Clone, Debug)]
struct Cost {
    wall_seconds: f64,
    cpu_seconds: f64,
    anonymous_bytes: u64,
}

/// Runs a process to its end.
fn measure(command: &mut Command) -> io::Result<Cost> {
    let (start, cpu_before) = (Instant::now(), cpu_seconds_of_children()?);
    let (status, anonymous_bytes) = watched(command)?;
    let wall_seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        return Err(io::Error::other(format!("{command:?}: {status}")));
    }
    let cpu_seconds = cpu_seconds_of_children()? - cpu_before;
    Ok(Cost { wall_seconds, cpu_seconds, anonymous_bytes })
}

/// User and system time of all children that were waited for.
fn cpu_seconds_of_children() -> io::Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // After the name, which may hold spaces: the 14th and the 15th field.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(13).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0) // USER_HZ is 100 on every Linux that Rust runs on.
}

// ---- the floor ----

/// Reads the files and writes as many bytes as asked for, synced.
fn copy_seconds(reads: &[PathBuf], write_bytes: u64, scratch: &Path) -> io::Result<f64> {
    let mut buffer = vec![0; 8 << 20];
    let start = Instant::now();
    for path in reads {
        read_through(path, &mut buffer)?;
    }
    if write_bytes > 0 {
        let mut file = File::create(scratch)?;
        let mut left = write_bytes;
        while left > 0 {
            let now = left.min(buffer.len() as u64);
            file.write_all(&buffer[..now as usize])?;
            left -= now;
        }
        file.sync_all()?;
    }
    let seconds = start.elapsed().as_secs_f64();
    if write_bytes > 0 {
        fs::remove_file(scratch)?;
    }
    Ok(seconds)
}

fn read_through(path: &Path, buffer: &mut [u8]) -> io::Result<()> {
    let mut file = File::open(path)?;
    while file.read(buffer)? > 0 {}
    Ok(())
}

/// Hashes as many bytes in pieces of 64 KiB.
fn hash_seconds(bytes: u64) -> f64 {
    let buffer = vec![1; 32 << 20];
    let mut digests = Vec::new();
    let start = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let now = left.min(buffer.len() as u64);
        digests.clear();
        hash_pieces(&buffer[..now as usize], 1 << 16, &mut digests);
        left -= now;
    }
    start.elapsed().as_secs_f64()
}

// ---- files and caches ----

/// Every file below `dir`; none if there is no such directory.
fn files_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

fn total_bytes(files: &[PathBuf]) -> io::Result<u64> {
    files.iter().map(|path| Ok(fs::metadata(path)?.len())).sum()
}

/// Brings the files into the page cache, or everything out of it.
fn prepare(cache: Cache, files: &[PathBuf]) -> io::Result<()> {
    match cache {
        Cache::Warm => {
            let mut buffer = vec![0; 8 << 20];
            files.iter().try_for_each(|path| read_through(path, &mut buffer))
        }
        Cache::Cold => {
            sync_all();
            fs::write(DROP_CACHES, "1")
        }
    }
}

const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

fn can_drop_caches() -> bool {
    fs::OpenOptions::new().write(true).open(DROP_CACHES).is_ok()
}

/// So that what others wrote is not in the way of what is measured.
fn sync_all() {
    let _ = Command::new("sync").status();
}

// ---- the control group ----

/// A memory control group, removed in the end.
struct Group(PathBuf);

impl Group {
    /// One of version 1 or 2, where that can be made.
    fn make() -> Option<Self> {
        let name = format!("gradledger-steps-{}", std::process::id());
        let places =
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        places.into_iter().find_map(|(root, limit)| {
            let path = Path::new(root).join(&name);
            if !Path::new(root).join("cgroup.procs").exists() {
                return None;
            }
            fs::create_dir(&path).ok()?;
            let group = Self(path);
            fs::write(group.0.join(limit), GROUP_BYTES.to_string()).ok()?;
            Some(group)
        })
    }

    /// The same command, confined.
    fn confined(&self, command: &Command) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]);
        shell.arg(self.0.join("cgroup.procs")).arg(command.get_program()).args(command.get_args());
        shell
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Whether a step came through in the control group; nothing where there is none.
#[derive(Clone, Copy, Debug, Serialize)]
struct Limited {
    step: Step,
    passed: Option<bool>,
}

// ---- results ----

/// The runs of one step with one state of the cache.
#[derive(Debug, Serialize)]
struct Row {
    step: Step,
    cache: Cache,
    /// Fastest of the runs.
    wall_seconds: f64,
    cpu_seconds: f64,
    /// Most of all runs.
    anonymous_bytes: u64,
    /// The floor, were it the copy.
    copy_seconds: f64,
    /// The floor, were it the hashing.
    hash_seconds: f64,
    /// The fastest run by the larger of the two, each at its fastest.
    ratio: f64,
    /// For the record.
    median_wall_seconds: f64,
    median_floor_seconds: f64,
}

impl Row {
    fn of<'m>(runs: impl Iterator<Item = &'m Measured> + Clone) -> Self {
        let sorted = |value: fn(&Measured) -> f64| {
            let mut values: Vec<_> = runs.clone().map(value).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let walls = sorted(|m| m.cost.wall_seconds);
        let cpus = sorted(|m| m.cost.cpu_seconds);
        let (copies, hashes) = (sorted(|m| m.copy_seconds), sorted(|m| m.hash_seconds));
        let (middle, floor) = (walls.len() / 2, copies[0].max(hashes[0]));
        let first = runs.clone().next().expect("every step runs at least once");
        Self {
            step: first.step,
            cache: first.cache,
            wall_seconds: walls[0],
            cpu_seconds: cpus[0],
            anonymous_bytes: runs.map(|m| m.cost.anonymous_bytes).max().unwrap_or(0),
            copy_seconds: copies[0],
            hash_seconds: hashes[0],
            ratio: walls[0] / floor,
            median_wall_seconds: walls[middle],
            median_floor_seconds: copies[middle].max(hashes[middle]),
        }
    }
}

fn print_table(rows: &[Row], limited: &[Limited]) {
    println!(
        "| step | cache | wall s | CPU s | anonymous MiB | copy s | sha2 s | ratio | floor's bytes |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---|");
    for row in rows {
        println!(
            "| {} | {:?} | {:.2} | {:.2} | {:.0} | {:.2} | {:.2} | {:.1} | {} |",
            row.step.name(),
            row.cache,
            row.wall_seconds,
            row.cpu_seconds,
            row.anonymous_bytes as f64 / MIB,
            row.copy_seconds,
            row.hash_seconds,
            row.ratio,
            row.step.floor_bytes()
        );
    }
    println!("\nWithin a control group of 1.5 GiB, page cache included:");
    for line in limited {
        let outcome = match line.passed {
            Some(true) => "passes",
            Some(false) => "FAILS",
            None => "not possible here",
        };
        println!("- {}: {outcome}", line.step.name());
    }
}

/// Writes the medians to `benches/record/`.
fn record(args: &Args, rows: &[Row]) -> io::Result<()> {
    let (fraction, miners) = (args.fraction, args.miners);
    let mut lines = Vec::new();
    for row in rows {
        let cache = format!("{:?}", row.cache).to_lowercase();
        let bench = format!("{fraction}-layer/{miners}-miners/{cache}/{}", row.step.name());
        let values = [
            ("wall", row.median_wall_seconds, "s"),
            ("cpu", row.cpu_seconds, "s"),
            ("floor", row.median_floor_seconds, "s"),
            ("anonymous", row.anonymous_bytes as f64 / MIB, "MiB"),
        ];
        lines.extend(values.map(|(what, value, unit)| (format!("{bench}/{what}"), value, unit)));
    }
    record::write("steps", &lines)
}
