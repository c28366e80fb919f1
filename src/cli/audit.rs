//! `audit`: every claim of a ledger checked with trust from outside.

use std::{
    path::{Path, PathBuf},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use clap::Args;

use crate::{
    audit::{
        evidence::show,
        report::{Evidence, Report, RunView},
        run::{AnchorOptions, AuditOptions, audit as audit_ledger},
        sample::PIECES_MAX,
    },
    ledger::{Ledger, anchored::AnchorTrust, submit::Receipt},
    store::{
        files::{Disk, create_dir_durable, read_whole, write_whole},
        place::Place,
    },
    types::progress::Progress,
};

use super::{
    DeviceArgs, FoldArgs, RoundRange,
    anchor_verify::{AnchorTrustArgs, anchors_text},
    exit::CliError,
    output::{document, print},
    source::SourceArgs,
    verify::{TrustArgs, ended, lines_text},
};

/// Longest receipt that is read.
const RECEIPT_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
pub struct AuditArgs {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    trust: TrustArgs,
    /// These rounds [default: all].
    #[arg(long, value_name = "A[..B]")]
    rounds: Option<RoundRange>,
    /// This tensor alone.
    #[arg(long, value_name = "NAME")]
    tensor: Option<String>,
    /// So many pieces of 64 KiB drawn at random, not all.
    #[arg(long, value_name = "N", requires = "seed", value_parser = clap::value_parser!(u64).range(..=PIECES_MAX))]
    sample: Option<u64>,
    /// What the pieces are drawn from: choose it after the ledger was published.
    #[arg(long, value_name = "HEX", requires = "sample", value_parser = seed)]
    seed: Option<Seed>,
    /// A sample, too, derives plans: that reads whole deltas.
    #[arg(long, requires = "sample")]
    plan: bool,
    /// Where you keep the newest head of each log; what is audited has to continue them.
    #[arg(long, value_name = "DIR", env = "GRADLEDGER_HEADS")]
    heads: Option<PathBuf>,
    /// A receipt that you hold: its entry has to be in the log, and its round to dispose of it. May be
    /// given several times.
    #[arg(long, value_name = "FILE")]
    receipt: Vec<PathBuf>,
    /// Where to put evidence: bundles that show others what the log's key signed and contradicts itself.
    #[arg(long, value_name = "DIR")]
    evidence: Option<PathBuf>,
    /// Anchors are required, and have to prove what they say; implied by --authorities and --included.
    #[arg(long)]
    anchors: bool,
    #[command(flatten)]
    anchor: AnchorTrustArgs,
    /// Also writes the report to this file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    fold: FoldArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

/// Bytes in hex.
#[derive(Debug, Clone)]
pub struct Seed(Vec<u8>);

fn seed(text: &str) -> Result<Seed, String> {
    let wrong = || format!("{text:?} is not 1 to 32 bytes in hex digits");
    let pair = |at: usize| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    let plain = text.bytes().all(|b| b.is_ascii_hexdigit());
    if !plain || text.is_empty() || !text.len().is_multiple_of(2) || text.len() > 64 {
        return Err(wrong());
    }
    (0..text.len()).step_by(2).map(pair).collect::<Option<_>>().map(Seed).ok_or_else(wrong)
}

pub fn audit(args: &AuditArgs, progress: &dyn Progress) -> Result<(), CliError> {
    let (trust, place) = (args.trust.read()?, args.source.place()?);
    let authorities = args.anchor.authorities()?;
    let sample = args.sample.zip(args.seed.clone()).map(|(count, Seed(seed))| (count, seed));
    let options = AuditOptions {
        rounds: args.rounds.map(|range| range.first..=range.last),
        tensor: args.tensor.clone(),
        sample,
        plan: args.plan,
        heads: args.heads.as_deref(),
        receipts: args.receipt.iter().map(|path| read_receipt(path)).collect::<Result<_, _>>()?,
        anchors: AnchorOptions {
            trust: AnchorTrust { place: args.anchor.place(), authorities: authorities.as_ref() },
            required: args.anchors || authorities.is_some() || args.anchor.included(),
            included: args.anchor.included(),
            blocks: args.anchor.blocks(),
        },
        fold: args.device.device.options(&args.fold)?,
    };
    let (started, clock) = (SystemTime::now(), Instant::now());
    let mut report = audit_ledger(place.files.clone(), &place.root, &options, &trust, progress)?;
    report.run = Some(RunView {
        started: started.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        seconds: clock.elapsed().as_secs_f64(),
        version: env!("CARGO_PKG_VERSION"),
        host: std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map_or_else(|_| String::new(), |name| name.trim().to_owned()),
        threads: args.fold.threads,
        device: args.device.device.to_string(),
    });
    if let Some(path) = &args.report {
        let io = |source| CliError::Io { path: path.clone(), source };
        write_whole(&Disk, path, document(&report)?.as_bytes()).map_err(io)?;
    }
    if let Some(dir) = &args.evidence {
        keep_evidence(&place, dir, &report.evidence, progress)?;
    }
    print(args.json, &report, || text(&report))?;
    ended(report.verdict)
}

/// Reads a receipt.
pub fn read_receipt(path: &Path) -> Result<Receipt, CliError> {
    let io = |source| CliError::Io { path: path.to_owned(), source };
    let bytes = read_whole(&Disk, path, RECEIPT_BYTES_MAX).map_err(io)?;
    let wrong = |source: serde_json::Error| io(source.into());
    serde_json::from_slice(&bytes).map_err(wrong)
}

/// Writes a bundle for each piece of evidence.
fn keep_evidence(
    place: &Place,
    dir: &Path,
    evidence: &[Evidence],
    progress: &dyn Progress,
) -> Result<(), CliError> {
    let io = |source| CliError::Io { path: dir.to_owned(), source };
    if evidence.is_empty() {
        return Ok(());
    }
    let ledger = Ledger::open_in(place.files.clone(), &place.root)?;
    for found in evidence {
        match show(&ledger, found, progress) {
            Ok(Some(bytes)) => {
                let path = dir.join(found.file_name());
                create_dir_durable(&Disk, dir).map_err(io)?;
                write_whole(&Disk, &path, &bytes).map_err(io)?;
                progress.note(&format!("evidence: {}", path.display()));
            }
            Ok(None) => progress.note(&format!("{found}: found, but no bundle shows it alone")),
            Err(error) => progress.note(&format!("{found}: no evidence: {error}")),
        }
    }
    Ok(())
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    if let Some(subject) = &report.subject {
        text += &format!("run {} {}\n", subject.run, subject.run_id);
    }
    if let Some(sample) = &report.scope.sample {
        text += &format!("{} of {} pieces, seed {}\n", sample.pieces, sample.of, sample.seed);
        for missed in &sample.missed {
            let percent = missed.wrong_per_million as f64 / 10_000.0;
            text += &format!("  {percent} % wrong: missed with {}\n", missed.probability);
        }
    }
    text += &lines_text(&report.checks);
    if let Some(anchors) = &report.anchors {
        text += &anchors_text(&anchors.receipts, anchors.exclusive.as_ref(), &anchors.rounds);
    }
    text
}
