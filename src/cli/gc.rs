//! The command `gc`: its choices, and what it says.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    ledger::{
        Ledger, LedgerError,
        gc::{self as steps, GcReport, KEEP_EVERY},
    },
    store::{StoreError, config::Config, lock::WriterLock},
    types::progress::Progress,
};

use super::{
    GcArgs,
    commands::open_writer,
    exit::CliError,
    output::{print, size},
};

#[derive(Serialize)]
struct GcDocument {
    dry_run: bool,
    #[serde(flatten)]
    report: GcReport,
}

pub fn gc(args: &GcArgs, progress: &dyn Progress) -> Result<(), CliError> {
    let ledger = Ledger::open(&args.ledger)?;
    let config = Config::load(ledger.place()).map_err(StoreError::from);
    let chosen = config.map_err(LedgerError::from)?.retention.keep_every;
    let keep_every = args.keep_every.or(chosen).unwrap_or(KEEP_EVERY);
    let report = if args.dry_run {
        // While another process writes, what is under way would look like what is left over.
        let _lock = WriterLock::acquire(&args.ledger).map_err(LedgerError::from)?;
        let ledger = Ledger::open(&args.ledger)?;
        steps::plan(&ledger, keep_every)?.into_report()
    } else {
        let mut writer = open_writer(&args.ledger, &args.writer)?;
        steps::gc(&mut writer, keep_every, progress)?
    };
    let document = GcDocument { dry_run: args.dry_run, report };
    print(args.json, &document, || text(&document))?;
    match document.report.obstacles.len() {
        0 => Ok(()),
        obstacles => Err(CliError::GcRefused(obstacles)),
    }
}

fn text(GcDocument { dry_run, report }: &GcDocument) -> String {
    let mut text = String::new();
    for obstacle in &report.obstacles {
        let _ = writeln!(text, "not in order: {}", obstacle.reason);
    }
    if !report.obstacles.is_empty() {
        return text;
    }
    let would = if *dry_run { "would be " } else { "" };
    if !report.dropped.is_empty() {
        let _ = writeln!(text, "{would}dropped: states after rounds {}", ranges(&report.dropped));
    }
    for run in &report.replays {
        let rounds = ranges(&[[run.first, run.last]]);
        let _ = writeln!(text, "replay of rounds {rounds} starts from {}", run.from);
    }
    let freed = &report.freed;
    let _ = writeln!(
        text,
        "{would}freed: {} ({} bytes): {} tensors, {} deltas that no submission names, {} other files\n\
         {} states are kept: the genesis, the newest, every {}",
        size(freed.bytes),
        freed.bytes,
        freed.tensors,
        freed.deltas,
        freed.others,
        report.kept,
        ordinal(report.keep_every.get())
    );
    text
}

/// `2nd`, `50th`.
fn ordinal(n: u64) -> String {
    let suffix = match (n % 10, n % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{n}{suffix}")
}

/// `1, 3 to 7`.
pub fn ranges(ranges: &[[u64; 2]]) -> String {
    let one = |[first, last]: &[u64; 2]| {
        if first == last { first.to_string() } else { format!("{first} to {last}") }
    };
    ranges.iter().map(one).collect::<Vec<_>>().join(", ")
}
