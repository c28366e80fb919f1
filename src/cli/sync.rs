//! `sync`: a copy of a ledger that servers serve, brought to a state.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::{
    audit::{
        checks::{Check, Checklist},
        trust::Trust,
    },
    ledger::{At, Ledger},
    sync::{CONNECTIONS, SyncOptions, SyncReport, sync as bring},
    types::progress::Progress,
};

use super::{
    FoldArgs,
    exit::CliError,
    output::{print, size},
    source::ProxyArgs,
    verify::TrustArgs,
};

/// Brings a copy of a ledger to its newest or a given state.
///
/// It takes the newest checkpoint that the servers keep or the deltas that are missing, whichever is fewer
/// bytes, compares every piece with its digest as it arrives, folds here, and ends at the root that the
/// signed log names. A run that was killed goes on where it was. Several URLs are read at once; one that
/// lies is left and named.
#[derive(Debug, Args)]
pub struct SyncArgs {
    /// Servers of one ledger.
    #[arg(required = true, value_name = "URL")]
    urls: Vec<String>,
    /// The copy: a new directory, or one that an earlier sync made. `show`, `log`, `export` and `delta`
    /// read it as they do a ledger.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// To the state after this round, or `genesis` [default: the newest].
    #[arg(long, value_name = "W|genesis")]
    round: Option<At>,
    /// Keeps earlier states and the deltas, too, so that rounds can be replayed from the copy.
    #[arg(long)]
    keep: bool,
    /// Connections to each server.
    #[arg(long, value_name = "N", default_value_t = CONNECTIONS, value_parser = connections)]
    connections: usize,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    proxy: ProxyArgs,
    #[command(flatten)]
    fold: FoldArgs,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

fn connections(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=64).contains(number));
    number.ok_or_else(|| format!("{text:?} is not a number from 1 to 64"))
}

#[derive(Serialize)]
struct SyncDocument {
    #[serde(flatten)]
    report: SyncReport,
    /// Against what signatures were checked.
    signatures: &'static str,
}

pub fn sync(args: &SyncArgs, progress: &dyn Progress) -> Result<(), CliError> {
    let trust = args.trust.read()?;
    let trusts = |ledger: &Ledger| signed(&trust, ledger);
    let options = SyncOptions {
        at: args.round,
        keep: args.keep,
        connections: args.connections,
        http: args.proxy.http(),
        fold: (&args.fold).into(),
        trusts: &trusts,
    };
    let report = bring(&args.urls, &args.dir, &options, progress)?;
    let signatures = match trust.policy {
        Some(_) => "the keys given",
        None => {
            progress.note(
                "signatures were checked against the ledger's own key only: --log-key KEY or --policy \
                 FILE says whom to believe",
            );
            "the ledger's own key only"
        }
    };
    let document = SyncDocument { report, signatures };
    print(args.json, &document, || text(&document.report))
}

/// Why the heads of a ledger are not those of a log that is trusted, if a policy was given.
fn signed(trust: &Trust, ledger: &Ledger) -> Result<(), String> {
    if trust.policy.is_none() {
        return Ok(());
    }
    let checks = [Check::RoundsSignature, Check::SubmissionsSignature, Check::Witnesses];
    let mut list = Checklist::new(&checks, &trust.waived);
    let chain = Some(ledger.keys());
    trust.head(&mut list, Check::RoundsSignature, ledger.rounds_log().note(), chain);
    trust.head(&mut list, Check::SubmissionsSignature, ledger.submissions_log().note(), chain);
    let lines = list.lines();
    let findings = lines.iter().flat_map(|line| &line.findings);
    match findings.map(|finding| finding.text.clone()).next() {
        Some(why) => Err(format!("its head is not signed as asked for: {why}")),
        None => Ok(()),
    }
}

fn text(report: &SyncReport) -> String {
    let mut text = format!("{}\n", report.state);
    if let Some(taken) = &report.taken {
        text += &format!("by {taken}, {} rounds folded here\n", report.folded);
    }
    let (network, verified) = (size(report.network_bytes), size(report.verified_bytes));
    text += &format!("{network} received, {verified} verified");
    if report.resumed_bytes > 0 {
        text += &format!(", {} were here", size(report.resumed_bytes));
    }
    text += "\n";
    for mirror in &report.mirrors {
        if let Some(why) = &mirror.dropped {
            let what = if mirror.lied { "lied" } else { "was left" };
            text += &format!("{} {what}: {}\n", mirror.url, why.escape_debug());
        }
    }
    text
}
