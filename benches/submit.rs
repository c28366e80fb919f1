//! How many receipts a second, and how long does one take? 64 clients at once, then one alone.
//!
//! `cargo bench --bench submit -- --dir DIR [--clients 64] [--each 32] [--runs 5]`. It prints a
//! Markdown table and writes a record below `benches/record/`.
//!
//! A native ledger on the disk that DIR is on; every client has a hotkey of its own, and every
//! statement a delta of its own. What is measured is from a signed statement to its receipt: the
//! signature verified, the entry appended and synced, the head signed and published, the inclusion
//! proven. The deltas are stored and synced before, and the miners sign before: the one is bound by
//! the delta's size, the other is done elsewhere. The command is measured with all of that.
//!
//! The floors, measured in the same run on the same disk:
//!
//! - syncs: as many files of 4 KiB written and synced, and directories synced, as one commit makes
//!   (counted), one after the other;
//! - sr25519: signatures verified, on all cores.

#![allow(clippy::unwrap_used)] // What is shared with tests unwraps.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tools/record.rs"]
mod record;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use clap::Parser;
use common::{
    Random, miner,
    model::{Tensor, rule, safetensors},
};
use gradledger::{
    ledger::{
        init::{InitOptions, init},
        submit::{SignedStatement, Submitter},
        writer::LedgerWriter,
    },
    store::files::{Disk, Files, ReadFile, WriteFile},
    types::{progress::Silent, record::MinersPolicy, rule::Dialect},
};

const GRADLEDGER: &str = env!("CARGO_BIN_EXE_gradledger");

/// The bars: receipts a second in total, and seconds of a lone one.
const RECEIPTS_MIN: f64 = 1000.0;
const LONE_SECONDS_MAX: f64 = 0.150;

const ROUND: u64 = 1;

/// Tensors of the deltas, with their blocks.
const TENSORS: [(&str, u64); 2] = [("bias", 2), ("weight", 4)];

/// How many receipts a second, and how long does one take?
#[derive(Parser)]
#[command(name = "submit")]
struct Args {
    /// Where ledgers are made.
    #[arg(long)]
    dir: PathBuf,
    /// Clients at once, at most 255.
    #[arg(long, default_value_t = 64)]
    clients: u8,
    /// Statements of each client.
    #[arg(long, default_value_t = 32)]
    each: usize,
    /// How often all of it is done.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Whatever went wrong.
type Failed = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    match run(&Args::parse()) {
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
fn run(args: &Args) -> Result<bool, Failed> {
    let mut runs = Vec::new();
    for number in 0..args.runs {
        let lab = Lab::new(args)?;
        let measured = lab.measure(args)?;
        eprintln!("run {number}: {measured:.1?}");
        runs.push(measured);
        fs::remove_dir_all(&lab.dir)?;
    }
    let middle = |value: &dyn Fn(&Measured) -> f64| percentile(runs.iter().map(value), 0.5);
    let receipts = middle(&|m| m.receipts_per_second);
    let lone = middle(&|m| m.lone[0]);
    let verified = middle(&|m| m.verified_per_second);
    let floor = middle(&|m| m.commit_floor_ms);
    let batch = middle(&|m| m.statements_per_commit);
    let by_syncs = batch / floor * 1000.0;
    let lines = [
        ("receipts", receipts, "1/s"),
        ("receipts/verified-on-all-cores", verified, "1/s"),
        ("receipts/by-syncs-alone", by_syncs, "1/s"),
        ("statements-per-commit", batch, "1"),
        ("busy/p50", middle(&|m| m.busy[0]), "ms"),
        ("busy/p99", middle(&|m| m.busy[1]), "ms"),
        ("lone/p50", lone, "ms"),
        ("lone/p90", middle(&|m| m.lone[1]), "ms"),
        ("lone/p99", middle(&|m| m.lone[2]), "ms"),
        ("lone/syncs-floor", floor, "ms"),
        ("command/p50", middle(&|m| m.command[0]), "ms"),
        ("command/p90", middle(&|m| m.command[1]), "ms"),
    ];
    println!("| what | median of {} runs | unit |\n|---|---:|---|", args.runs);
    for (what, value, unit) in lines {
        println!("| {what} | {value:.1} | {unit} |");
    }
    let (files, dirs) = (runs[0].file_syncs, runs[0].dir_syncs);
    println!(
        "\nA commit syncs {files:.1} files and {dirs:.1} directories. A lone receipt takes {:.1} \
         times its syncs; {} clients get {:.2} of what verifying alone allows, {:.2} of what \
         syncing alone does.",
        lone / floor,
        args.clients,
        receipts / verified,
        receipts / by_syncs
    );
    let prefix = format!("{}-clients", args.clients);
    let named = lines.map(|(what, value, unit)| (format!("{prefix}/{what}"), value, unit));
    record::write("submit", &named)?;
    Ok(receipts >= RECEIPTS_MIN && lone <= 1e3 * LONE_SECONDS_MAX)
}

/// What one run gave; times in milliseconds.
#[derive(Debug)]
struct Measured {
    receipts_per_second: f64,
    statements_per_commit: f64,
    /// One of many clients: p50, p99.
    busy: [f64; 2],
    /// p50, p90, p99.
    lone: [f64; 3],
    file_syncs: f64,
    dir_syncs: f64,
    commit_floor_ms: f64,
    verified_per_second: f64,
    /// p50, p90.
    command: [f64; 2],
}

/// The value that a part of all is not above.
fn percentile(values: impl Iterator<Item = f64>, part: f64) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * part).round() as usize]
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

// ---- what is run ----

/// How many statements are submitted alone, and by the command.
const LONE: usize = 100;
const COMMANDS: usize = 20;

/// A new ledger, and what its miners will send.
struct Lab {
    dir: PathBuf,
    files: Arc<Counted>,
    /// Of the clients, one after the other.
    busy: Vec<SignedStatement>,
    lone: Vec<SignedStatement>,
}

impl Lab {
    /// Makes a ledger and stores the deltas of all statements.
    fn new(args: &Args) -> Result<Self, Failed> {
        let dir = args.dir.join(format!("submit-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        let checkpoint = dir.join("model.safetensors");
        let mut random = Random(7);
        safetensors(
            &checkpoint,
            &[
                Tensor::random("bias", &[16], &mut random),
                Tensor::random("weight", &[16, 16], &mut random),
            ],
        );
        let options = InitOptions {
            miners: MinersPolicy::Hotkeys((1..=args.clients).map(miner::public).collect()),
            ..InitOptions::new(
                "bench",
                "bench.invalid/run",
                &checkpoint,
                rule(Dialect::Native, 8, 4, 4),
            )
        };
        let ledger = init(&dir.join("ledger"), &options, &Silent)?.ledger;
        let signatures = miner::Signatures::default();
        let mut seed = 0;
        let mut statement = |number: u8| -> Result<SignedStatement, Failed> {
            seed += 1;
            let delta = dir.join("delta");
            miner::write_delta(&delta, seed, &TENSORS);
            let signed = miner::hand_in(&ledger, ROUND, number, &delta, &signatures)?;
            fs::remove_dir_all(&delta)?;
            Ok(signed)
        };
        let clients = (1..=args.clients).flat_map(|number| vec![number; args.each]);
        let busy = clients.map(&mut statement).collect::<Result<_, _>>()?;
        let lone = (0..LONE).map(|_| statement(1)).collect::<Result<_, _>>()?;
        let _ = Command::new("sync").status();
        Ok(Self { dir, files: Arc::default(), busy, lone })
    }

    fn measure(&self, args: &Args) -> Result<Measured, Failed> {
        let root = self.dir.join("ledger");
        let submitter = Submitter::start(LedgerWriter::open_in(self.files.clone(), &root, None)?);
        let lone = self.alone(&submitter)?;
        let (file_syncs, dir_syncs) = (self.files.files_per(LONE), self.files.dirs_per(LONE));
        self.files.forget();
        let start = Instant::now();
        let busy = self.at_once(&submitter, args.each)?;
        let receipts_per_second = self.busy.len() as f64 / start.elapsed().as_secs_f64();
        // Each commit renames the tree's state, the record and the head.
        let commits = self.files.renames.load(Ordering::Relaxed) as f64 / 3.0;
        submitter.finish();
        let of = |values: &[f64], part| percentile(values.iter().copied(), part);
        let command = self.commands(&root)?;
        Ok(Measured {
            receipts_per_second,
            statements_per_commit: self.busy.len() as f64 / commits,
            busy: [of(&busy, 0.5), of(&busy, 0.99)],
            lone: [of(&lone, 0.5), of(&lone, 0.9), of(&lone, 0.99)],
            file_syncs,
            dir_syncs,
            commit_floor_ms: commit_floor(&self.dir, file_syncs, dir_syncs)?,
            verified_per_second: self.verified_per_second(),
            command: [of(&command, 0.5), of(&command, 0.9)],
        })
    }

    /// One client, one statement after the other.
    fn alone(&self, submitter: &Submitter) -> Result<Vec<f64>, Failed> {
        self.files.forget();
        let handle = submitter.handle();
        let one = |statement: &SignedStatement| {
            let (statement, start) = (statement.clone(), Instant::now());
            handle.submit(statement)?.map_err(|refusal| refusal.to_string())?;
            Ok(milliseconds(start))
        };
        self.lone.iter().map(one).collect()
    }

    /// All clients at once, each with one statement after the other.
    fn at_once(&self, submitter: &Submitter, each: usize) -> Result<Vec<f64>, Failed> {
        let client = |statements: &[SignedStatement]| {
            let handle = submitter.handle();
            let one = |statement: &SignedStatement| {
                let start = Instant::now();
                handle.submit(statement.clone())?.map_err(|refusal| refusal.to_string())?;
                Ok(milliseconds(start))
            };
            statements.iter().map(one).collect::<Result<Vec<_>, Failed>>()
        };
        let answers = thread::scope(|scope| {
            let clients: Vec<_> =
                self.busy.chunks(each).map(|own| scope.spawn(move || client(own))).collect();
            clients.into_iter().map(|c| c.join().expect("no panic")).collect::<Result<Vec<_>, _>>()
        })?;
        Ok(answers.concat())
    }

    /// The whole command: a process, its key file, a delta read and stored, a receipt printed.
    fn commands(&self, root: &Path) -> Result<Vec<f64>, Failed> {
        let (key, delta) = (self.dir.join("hotkey"), self.dir.join("delta"));
        miner::write_key(&key, 1);
        let one = |seed: usize| {
            miner::write_delta(&delta, (1 << 32) + seed as u64, &TENSORS);
            let mut command = Command::new(GRADLEDGER);
            command.arg("submit").arg(root).arg(&delta).arg("--key").arg(&key);
            command.args(["--round", &ROUND.to_string(), "--json"]).stdout(Stdio::null());
            let start = Instant::now();
            let status = command.status()?;
            let took = milliseconds(start);
            fs::remove_dir_all(&delta)?;
            if status.success() { Ok(took) } else { Err(format!("{command:?}: {status}").into()) }
        };
        (0..COMMANDS).map(one).collect()
    }

    /// Signatures verified a second, on all cores.
    fn verified_per_second(&self) -> f64 {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let start = Instant::now();
        thread::scope(|scope| {
            for part in self.busy.chunks(self.busy.len().div_ceil(cores)) {
                scope.spawn(|| {
                    let holds = |s: &SignedStatement| s.statement.verify(&s.signature).is_ok();
                    assert!(part.iter().all(holds), "the miners signed them");
                });
            }
        });
        self.busy.len() as f64 / start.elapsed().as_secs_f64()
    }
}

/// Milliseconds that the syncs of a commit take, at their median.
fn commit_floor(dir: &Path, files: f64, dirs: f64) -> io::Result<f64> {
    let dir = dir.join("floor");
    fs::create_dir(&dir)?;
    let (mut of_files, mut of_dirs) = (vec![], vec![]);
    for number in 0..100 {
        let start = Instant::now();
        let mut file = Disk.create(&dir.join(number.to_string()))?;
        io::Write::write_all(&mut file, &[7; 4096])?;
        file.sync()?;
        of_files.push(milliseconds(start));
        let start = Instant::now();
        Disk.sync_dir(&dir)?;
        of_dirs.push(milliseconds(start));
    }
    let middle = |values: Vec<f64>| percentile(values.into_iter(), 0.5);
    Ok(files * middle(of_files) + dirs * middle(of_dirs))
}

// ---- counting ----

/// The local disk, and how often it was told to sync.
#[derive(Default)]
struct Counted {
    files: Arc<AtomicU64>,
    dirs: AtomicU64,
    renames: AtomicU64,
}

impl Counted {
    fn forget(&self) {
        for count in [&*self.files, &self.dirs, &self.renames] {
            count.store(0, Ordering::Relaxed);
        }
    }

    fn files_per(&self, commits: usize) -> f64 {
        self.files.load(Ordering::Relaxed) as f64 / commits as f64
    }

    fn dirs_per(&self, commits: usize) -> f64 {
        self.dirs.load(Ordering::Relaxed) as f64 / commits as f64
    }
}

struct CountedFile {
    file: Box<dyn WriteFile>,
    syncs: Arc<AtomicU64>,
}

impl io::Write for CountedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl WriteFile for CountedFile {
    fn sync(&mut self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync()
    }
}

impl Files for Counted {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        Ok(Box::new(CountedFile { file: Disk.create(path)?, syncs: self.files.clone() }))
    }

    fn create_secret(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        Disk.create_secret(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        Disk.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.renames.fetch_add(1, Ordering::Relaxed);
        Disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        Disk.remove_dir_all(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        Disk.create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.dirs.fetch_add(1, Ordering::Relaxed);
        Disk.sync_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        Disk.list(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Disk.exists(path)
    }
}
