//! `bench`: what this machine can do, and how near to it each stage comes.
//!
//! `memory` measures the kernels beside their floors, `disk` the disk and whole passes over it, `lab` makes
//! the run that they need, `estimate` says what a round of a 72B model would take; `card` measures a GPU. Floors and stages take
//! turns in one run, and the fastest of the turns counts, so that a machine that is shared or whose clock
//! drifts still gives ratios.

mod card;
mod disk;
mod estimate;
mod lab;
mod memory;

use std::{fmt::Write as _, fs, num::NonZeroUsize, path::PathBuf, thread};

use clap::Args;
use gradledger_kernels::{cpu, sha256};
use serde::Serialize;

use self::{
    disk::{DiskRates, Pass},
    estimate::Estimate,
    lab::Lab,
    memory::Kernels,
};
use super::{FoldArgs, device::Device, exit::CliError, output::print};
use crate::{ledger::thread_pool, types::progress::Progress};

/// Largest state that is made on the disk.
const GIB_MAX: f64 = 1024.0;

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Where a state and its deltas are put for as long as it takes; give a directory on the disk that a
    /// ledger would be on.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Size of the state in GiB; five times as much room is needed.
    #[arg(long, value_name = "N", default_value_t = 0.25, value_parser = gib)]
    gib: f64,
    /// How often each pass over the disk is timed; the fastest counts. Otherwise up to 5 times, within
    /// about 15 seconds.
    #[arg(long, value_name = "N")]
    turns: Option<NonZeroUsize>,
    #[command(flatten)]
    fold: FoldArgs,
    /// A card such as cuda:0 instead: its rates beside what it can copy, no disk.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

fn gib(text: &str) -> Result<f64, String> {
    let gib: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if gib > 0.0 && gib <= GIB_MAX {
        return Ok(gib);
    }
    Err(format!("it is above 0 and at most {GIB_MAX}"))
}

#[derive(Serialize)]
struct Report {
    processor: String,
    threads: usize,
    fold_path: &'static str,
    hash_path: &'static str,
    kernels: Kernels,
    /// Bytes of the state on the disk.
    state_bytes: u64,
    /// How often each pass was timed.
    turns: usize,
    disk: DiskRates,
    passes: Vec<Pass>,
    estimates: Vec<Estimate>,
}

pub(super) fn bench(args: &BenchArgs, progress: &dyn Progress) -> Result<(), CliError> {
    if let Device::Cuda(ordinal) = args.device {
        return card::bench(ordinal, args.gib, args.json);
    }
    let pool = thread_pool(args.fold.threads)?;
    let (kernels, round) = memory::measure(args.gib, &pool, progress)?;
    let lab = Lab::make(&args.dir, args.gib, &round, &pool, progress)?;
    let (turns, disk, passes) = disk::measure(&lab, args.turns, progress)?;
    let report = Report {
        processor: processor(),
        threads: pool.current_num_threads(),
        fold_path: cpu::Path::best().name(),
        hash_path: sha256::Path::best().name(),
        estimates: estimate::all(&disk, &passes),
        kernels,
        state_bytes: lab.state_bytes(),
        turns,
        disk,
        passes,
    };
    print(args.json, &report, || text(&report))
}

/// The processor's name, where the system tells it.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", name.map_or("unknown", |(_, name)| name))
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "{}; folds by {}, hashes by {}\n\nOne thread, in memory{:>17}M parameters/s   of its floor\n",
        report.processor, report.fold_path, report.hash_path, ""
    );
    let ratio = |ratio: &Option<f64>, floor: &Option<String>| match (ratio, floor) {
        (Some(ratio), Some(floor)) => format!("{:>8.1} % of {floor}", 100.0 * ratio),
        _ => String::new(),
    };
    for line in &report.kernels.one_thread {
        let (rate, of) = (line.parameters_per_s / 1e6, ratio(&line.ratio, &line.floor));
        let _ = writeln!(text, "  {:<36} {rate:>14.0}   {of}", line.name);
    }
    let _ = writeln!(text, "\n{} threads, in memory", report.threads);
    for line in &report.kernels.all_threads {
        let (rate, of) = (line.parameters_per_s / 1e6, ratio(&line.ratio, &line.floor));
        let _ = writeln!(text, "  {:<36} {rate:>14.0}   {of}", line.name);
    }
    let _ = writeln!(
        text,
        "\nDisk, a state of {} and 20 deltas{:>15}MB/s",
        super::output::size(report.state_bytes),
        ""
    );
    for (name, rate) in report.disk.lines() {
        let _ = writeln!(text, "  {name:<36} {:>14.0}", rate / 1e6);
    }
    let _ = writeln!(text, "\nPasses, {} threads{:>28}seconds   times", report.threads, "");
    for pass in &report.passes {
        let over = match (pass.ratio, &pass.over) {
            (Some(ratio), Some(over)) => format!("{ratio:>7.2} {over}"),
            _ => String::new(),
        };
        let _ = writeln!(text, "  {:<36} {:>14.2}   {over}", pass.name, pass.seconds);
    }
    text.push_str("\nFor 72.7 B parameters and 20 miners a round, from the above\n");
    for estimate in &report.estimates {
        let _ = writeln!(
            text,
            "  {:<36} {:>14}   bound by the {} (processor {}, disk {})",
            estimate.what,
            time(estimate.seconds),
            estimate.bound_by,
            time(estimate.processor_seconds),
            time(estimate.disk_seconds)
        );
    }
    text
}

/// A time for people.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6000.0 => format!("{:.1} min", s / 60.0),
        s if s < 360_000.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.0} days", s / 86400.0),
    }
}
