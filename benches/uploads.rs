//! Can many miners send half a gigabyte each at once, each other bytes, and is the round sealed, while
//! the server stays below 512 MiB?
//!
//! `TMPDIR=DIR cargo bench --bench uploads -- [--miners 20] [--side 24064]`. It prints a Markdown table
//! and writes a record below `benches/record/`. Linux alone: `/proc` is asked.
//!
//! A native ledger of one large tensor with `side` rows and columns; a delta takes 7/8 of a byte for each
//! of its elements, so 507 MB for 24,064. Each miner stages a delta of its own in DIR, then all of them
//! announce, send and commit at once over loopback, to the real program, which then seals: all deltas are
//! read again, compared with their digests, and folded. 20 miners take 27 GB of DIR.
//!
//! The floor, in the same run on the same disk: as many bytes written in files of a part's size, each
//! synced, twice, since a delta is written as it arrives and once more in its place.

#![allow(clippy::unwrap_used)] // What is shared with tests unwraps.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tools/record.rs"]
mod record;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use common::{
    desk::{Desk, Miner, Run},
    miner,
};
use gradledger::{
    ledger::submit::Receipt,
    merkle::note::VerifierKey,
    store::{files::Disk, place::Place},
    sync::submit::Staged,
};

/// The bar: the server's resident memory, all of its life.
const PEAK_BYTES_MAX: u64 = 512 << 20;

const PART_BYTES: usize = 16 << 20;

/// Bytes of the floor's sample.
const SAMPLE_BYTES: u64 = 1 << 30;

const GIB: f64 = (1u64 << 30) as f64;

#[derive(Parser)]
#[command(name = "uploads")]
struct Args {
    /// Miners at once, at most 255.
    #[arg(long, default_value_t = 20)]
    miners: u8,
    /// Rows and columns of the model's tensor: a multiple of 512.
    #[arg(long, default_value_t = 24_064)]
    side: u64,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    if measure(&Args::parse()) {
        return ExitCode::SUCCESS;
    }
    eprintln!("a bar is missed");
    ExitCode::FAILURE
}

/// Where a miner has its delta.
fn staged_in(run: &Run, number: u8) -> PathBuf {
    run.path(&format!("staged-{number}"))
}

/// Stages a delta of its own for each miner, on the disk.
fn stage(run: &Run, number: u8) -> Staged {
    let dir = run.delta(number.into());
    let root = staged_in(run, number);
    fs::create_dir(&root).unwrap();
    let staged = miner::stage_in(&Place::new(Arc::new(Disk), &root), &run.open(), 1, &dir);
    fs::remove_dir_all(dir).unwrap();
    staged
}

/// From announcing to the receipt, all miners at once; what was sent is not kept.
fn send(run: &Run, desk: &Desk, staged: Vec<Staged>) -> Vec<Receipt> {
    let of = |(number, staged)| Miner::with(run, &desk.url, number, Arc::new(staged));
    let miners: Vec<Miner> = (1..).zip(staged).map(of).collect();
    let sending: Vec<_> = miners
        .into_iter()
        .map(|miner| {
            let root = staged_in(run, miner.number);
            thread::spawn(move || {
                miner.send_all();
                fs::remove_dir_all(root).unwrap();
                miner.commit()
            })
        })
        .collect();
    sending.into_iter().map(|miner| miner.join().unwrap()).collect()
}

/// Seconds of writing so many bytes twice in synced files.
fn floor(dir: &Path, bytes: u64) -> Duration {
    let (part, begun) = (vec![0x5a; PART_BYTES], Instant::now());
    let count = SAMPLE_BYTES / PART_BYTES as u64;
    for number in 0..count {
        let mut file = fs::File::create(dir.join(format!("floor-{number}"))).unwrap();
        file.write_all(&part).unwrap();
        file.sync_all().unwrap();
    }
    let took = begun.elapsed().mul_f64(2.0 * bytes as f64 / SAMPLE_BYTES as f64);
    (0..count).for_each(|number| fs::remove_file(dir.join(format!("floor-{number}"))).unwrap());
    took
}

fn measure(args: &Args) -> bool {
    let run = Run::new(args.miners, args.side);
    fs::remove_file(run.path("base.safetensors")).unwrap();
    run.configure(&format!(
        "part_bytes = {PART_BYTES}\ndisk_reserve_bytes = 0\nrequests_per_minute_per_address = 60000"
    ));
    eprintln!("staging {} deltas", args.miners);
    let staged: Vec<Staged> = (1..=args.miners).map(|number| stage(&run, number)).collect();
    let delta_bytes = staged[0].delta().bytes;
    let all_bytes = delta_bytes * u64::from(args.miners);
    let floor = floor(&run.path(""), all_bytes);

    let desk = run.serve("");
    let (before, begun) = (desk.peak_bytes(), Instant::now());
    let receipts = send(&run, &desk, staged);
    let (sent, sending) = (desk.peak_bytes(), begun.elapsed());
    eprintln!("sent in {sending:.1?}, at the peak {} MiB; sealing", sent >> 20);
    let begun = Instant::now();
    let report = run.document("seal LEDGER --round 1 --json", "");
    let (sealed, sealing) = (desk.peak_bytes(), begun.elapsed());

    let key: VerifierKey = run.open().genesis().log_keys.submissions.parse().unwrap();
    let mut indices: Vec<u64> = receipts.iter().map(|receipt| receipt.index).collect();
    indices.sort_unstable();
    assert!(indices.into_iter().eq(0..u64::from(args.miners)), "each has a place of its own");
    receipts.iter().for_each(|receipt| drop(receipt.verify(&key).unwrap()));
    assert_eq!(report["accepted"].as_array().unwrap().len(), usize::from(args.miners));
    assert!(desk.end());

    let (mib, per_gib) = (|bytes: u64| bytes as f64 / (1 << 20) as f64, all_bytes as f64 / GIB);
    let ratio = sending.as_secs_f64() / floor.as_secs_f64();
    println!(
        "| {} miners, {:.0} MB each | s/GiB | server's memory, MiB |\n|---|---:|---:|\n\
         | the same bytes written twice and synced | {:.2} | |\n\
         | sent and logged | {:.2} ({ratio:.1} times that) | {:.0} (before: {:.0}) |\n\
         | sealed | {:.2} | {:.0} |",
        args.miners,
        delta_bytes as f64 / 1e6,
        floor.as_secs_f64() / per_gib,
        sending.as_secs_f64() / per_gib,
        mib(sent),
        mib(before),
        sealing.as_secs_f64() / per_gib,
        mib(sealed),
    );
    let name = format!("{}-miners-{:.0}-mb", args.miners, delta_bytes as f64 / 1e6);
    let values = [
        ("written-twice/wall", floor.as_secs_f64() / per_gib, "s/GiB"),
        ("sent/wall", sending.as_secs_f64() / per_gib, "s/GiB"),
        ("sent/of-written-twice", ratio, "ratio"),
        ("sent/resident", mib(sent), "MiB"),
        ("sealed/wall", sealing.as_secs_f64() / per_gib, "s/GiB"),
        ("sealed/resident", mib(sealed), "MiB"),
    ];
    let values: Vec<_> =
        values.map(|(what, value, unit)| (format!("{name}/{what}"), value, unit)).into();
    record::write("uploads", &values).unwrap();
    sealed < PEAK_BYTES_MAX
}
