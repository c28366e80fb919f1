//! `delta`: a base and a trained checkpoint in, a delta out, and the error that was kept.

use std::{fmt::Write as _, path::Path, sync::Arc};

use serde::Serialize;

use crate::{
    delta::{self, BAND_BYTES, DeltaJob, DeltaReport, Format, Output, TensorReport, Weights},
    import::checkpoint::Checkpoint,
    ledger::{Ledger, LedgerError, submit::open_round},
    store::{
        files::{Disk, Files},
        lock::WriterLock,
    },
    types::{
        bits::F32Bits,
        progress::Progress,
        rule::{Dialect, Mean, Norm, SparseMeanSgd},
    },
};

use super::{
    DeltaArgs, FormatName,
    exit::CliError,
    output::{print, size},
};

#[derive(Serialize)]
struct DeltaDocument {
    dry_run: bool,
    #[serde(flatten)]
    report: DeltaReport,
    frozen: Vec<String>,
    left_out: Vec<String>,
}

/// Where training started: a ledger's newest state, or a checkpoint.
struct Base {
    weights: Weights,
    rule: SparseMeanSgd,
    round: u64,
}

pub fn delta(args: &DeltaArgs, progress: &dyn Progress) -> Result<(), CliError> {
    let base = base(args)?;
    let trained = Checkpoint::open(&args.trained, args.select.as_deref())?;
    let trained = Weights::Foreign(Box::new(trained), "trained checkpoint");
    let layout = base.weights.layout(&base.rule)?;
    let format = Format::from(args.format);
    let path = args.out.as_deref().filter(|_| !args.dry_run);
    // Two runs at once would write over each other's state.
    let _lock = match (&args.state, path) {
        (Some(state), Some(_)) => Some(WriterLock::beside(state).map_err(LedgerError::from)?),
        _ => None,
    };
    let job = DeltaJob {
        base: &base.weights,
        trained: &trained,
        layout: &layout,
        rule: &base.rule,
        round: base.round,
        range: args.range,
        decay: args.decay,
        state: args.state.as_deref(),
        output: path.map(|path| Output { path, format }),
        threads: args.fold.threads,
        band_bytes: BAND_BYTES,
    };
    let files: Arc<dyn Files> = Arc::new(Disk);
    let report = delta::make(&job, &files, progress)?;
    let document = DeltaDocument {
        dry_run: args.dry_run,
        report,
        frozen: layout.frozen.iter().map(|tensor| tensor.name.clone()).collect(),
        left_out: trained.left_out(&layout),
    };
    for name in document.left_out.iter().filter(|name| !document.frozen.contains(name)) {
        progress.note(&format!("left out {name}"));
    }
    print(args.json, &document, || text(&document.report, path))
}

fn base(args: &DeltaArgs) -> Result<Base, CliError> {
    if args.base.join("log/rounds").exists() {
        return ledger_base(args);
    }
    let checkpoint = Checkpoint::open(&args.base, args.select.as_deref())?;
    let round = args.round.ok_or(CliError::NoRound)?;
    let dialect = match args.format {
        FormatName::Native => Dialect::Native,
        FormatName::Templar => Dialect::Templar,
    };
    let rule = SparseMeanSgd {
        dialect,
        chunk: args.chunk.unwrap_or(64),
        top_k: args.top_k.unwrap_or(64),
        bins: args.bins.unwrap_or(4),
        // A delta does not depend on how it will be folded.
        lr_f32: F32Bits(1.0),
        mean: Mean::Contributors,
        norm: Norm::HistogramF64,
    };
    Ok(Base { weights: Weights::Foreign(Box::new(checkpoint), "base"), rule, round })
}

/// The ledger says what to start from, how to cut it, and for which round.
fn ledger_base(args: &DeltaArgs) -> Result<Base, CliError> {
    let ledger = Ledger::open(&args.base)?;
    let (rule, open) = (ledger.rule().clone(), open_round(&ledger)?);
    let given = [
        ("--round", args.round, open),
        ("--chunk", args.chunk, rule.chunk),
        ("--top-k", args.top_k, rule.top_k),
        ("--bins", args.bins, rule.bins),
    ];
    for (option, given, ours) in given {
        if let Some(given) = given.filter(|&given| given != ours) {
            return Err(CliError::NotTheLedgers { option, given, ours });
        }
    }
    let stored = ledger.checkpoint(ledger.newest()).map_err(LedgerError::from)?;
    Ok(Base { weights: Weights::Stored(Box::new(stored)), rule, round: open })
}

fn text(report: &DeltaReport, out: Option<&Path>) -> String {
    let (round, root) = (report.made.round, report.delta.root);
    if report.already_made {
        return format!(
            "the delta of round {round} was already made; nothing was changed\n{root}\n"
        );
    }
    let mut text = format!(
        "{:>10} {:>9} {:>11} {:>11} {:>11} {:>8}  {}\n",
        "sent", "bytes", "|gradient|", "|error|", "|sent|", "energy", "tensor"
    );
    for tensor in report.tensors.iter().chain(&report.total) {
        let TensorReport { name, sent, bytes, norm_gradient, norm_error, norm_sent, .. } = tensor;
        let energy = 100.0 * tensor.energy_kept;
        let bytes = size(*bytes);
        let _ = writeln!(
            text,
            "{sent:>10} {bytes:>9} {norm_gradient:>11.4e} {norm_error:>11.4e} {norm_sent:>11.4e} \
             {energy:>7.2}%  {name}"
        );
    }
    let _ = match out {
        Some(out) => writeln!(text, "delta of round {round} in {}\n{root}", out.display()),
        None => writeln!(text, "dry run of round {round}: nothing was written\n{root}"),
    };
    text
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Native => Self::Native,
            FormatName::Templar => Self::Templar,
        }
    }
}
