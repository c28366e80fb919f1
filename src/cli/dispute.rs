//! `diff --dispute`: where two ledgers or reports first disagree, and the file that settles it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{
    audit::dispute::{
        Difference, DisputeError, Place, ReadReport, first_difference, first_finding,
        write_dispute, write_place,
    },
    ledger::Ledger,
    store::files::{Disk, read_whole, write_whole},
};

use super::{
    DiffArgs,
    exit::CliError,
    output::print,
    source::{ProxyArgs, open, url},
};

/// Longest report that is read.
const REPORT_BYTES_MAX: u64 = 64 << 20;

/// One side of a dispute.
enum Side {
    Ledger(Box<Ledger>),
    Report(ReadReport),
}

impl Side {
    fn open(path: &Path, proxy: &ProxyArgs) -> Result<Self, CliError> {
        if path.is_dir() || url(path).is_some() {
            return Ok(Self::Ledger(Box::new(open(path, proxy)?)));
        }
        let io = |source| CliError::Io { path: path.to_owned(), source };
        let bytes = read_whole(&Disk, path, REPORT_BYTES_MAX).map_err(io)?;
        let report = serde_json::from_slice(&bytes);
        report.map(Self::Report).map_err(|error: serde_json::Error| io(error.into()))
    }

    fn ledger(&self) -> Option<&Ledger> {
        match self {
            Self::Ledger(ledger) => Some(ledger),
            Self::Report(_) => None,
        }
    }

    fn report(&self) -> Option<&ReadReport> {
        match self {
            Self::Ledger(_) => None,
            Self::Report(report) => Some(report),
        }
    }
}

#[derive(Serialize)]
struct DisputeDocument {
    /// Of two ledgers.
    difference: Option<Difference>,
    /// Of reports.
    finding: Option<Place>,
    /// The file, if one was written.
    out: Option<PathBuf>,
}

pub fn dispute(args: &DiffArgs) -> Result<(), CliError> {
    let [a, b] = &args.dispute[..] else { return Err(CliError::DisputeSides) };
    let sides = [Side::open(a, &args.proxy)?, Side::open(b, &args.proxy)?];
    let document = match [sides[0].ledger(), sides[1].ledger()] {
        [Some(a), Some(b)] => ledgers([a, b], args)?,
        [a, b] => reports(&sides, a.or(b), args)?,
    };
    print(args.json, &document, || text(&document))?;
    let same = matches!(document.difference, None | Some(Difference::Nothing { .. }));
    if same && document.finding.is_none() { Ok(()) } else { Err(CliError::Disagree) }
}

fn ledgers(sides: [&Ledger; 2], args: &DiffArgs) -> Result<DisputeDocument, CliError> {
    let difference = first_difference(sides[0], sides[1])?;
    let mut document = DisputeDocument { difference: None, finding: None, out: None };
    if let Some(out) = &args.out
        && let Some(bytes) = write_dispute(sides, &difference, Vec::new())?
    {
        document.out = Some(keep(out, &bytes)?);
    }
    document.difference = Some(difference);
    Ok(document)
}

/// A report and another, or a ledger that knows of nothing wrong; `ledger` has the proofs.
fn reports(
    sides: &[Side; 2],
    ledger: Option<&Ledger>,
    args: &DiffArgs,
) -> Result<DisputeDocument, CliError> {
    let given = match (ledger, &args.ledger) {
        (None, Some(path)) => Some(open(path, &args.proxy)?),
        _ => None,
    };
    let ledger = ledger.or(given.as_ref());
    let runs = sides.iter().filter_map(Side::report).filter_map(|report| report.subject.as_ref());
    let mut ids: Vec<_> = runs.map(|subject| subject.run_id).collect();
    ids.extend(ledger.map(Ledger::run_id));
    if let Some(pair) = ids.windows(2).find(|pair| pair[0] != pair[1]) {
        return Err(DisputeError::Runs { a: pair[0], b: pair[1] }.into());
    }
    let finding = first_finding(sides[0].report(), sides[1].report());
    let out = match (&args.out, ledger, &finding) {
        (Some(out), Some(ledger), Some(place)) => {
            Some(keep(out, &write_place(ledger, place, Vec::new())?)?)
        }
        (Some(_), None, Some(_)) => return Err(CliError::DisputeLedger),
        _ => None,
    };
    Ok(DisputeDocument { difference: None, finding, out })
}

fn keep(path: &Path, bytes: &[u8]) -> Result<PathBuf, CliError> {
    let io = |source| CliError::Io { path: path.to_owned(), source };
    write_whole(&Disk, path, bytes).map_err(io)?;
    Ok(path.to_owned())
}

fn text(document: &DisputeDocument) -> String {
    let place = match (&document.difference, &document.finding) {
        (Some(Difference::Nothing { rounds }), _) => {
            format!("no difference in the {rounds} rounds that both have")
        }
        (Some(Difference::Entry { index, field, round }), _) => {
            let round =
                round.map_or_else(String::new, |round| format!(", the record of round {round}"));
            let field = field.map_or_else(String::new, |field| format!(": {field}"));
            format!("first difference: entry {index} of the rounds log{round}{field}")
        }
        (Some(Difference::Piece { round, tensor, piece, .. }), _) => {
            format!("first difference: piece {piece} of tensor {tensor} after round {round}")
        }
        (None, Some(place)) => {
            let round = place.round.map_or_else(String::new, |round| format!(", round {round}"));
            let tensor =
                place.tensor.as_ref().map_or_else(String::new, |t| format!(", tensor {t}"));
            let piece = place.piece.map_or_else(String::new, |piece| format!(", piece {piece}"));
            format!(
                "first finding that one report has alone: {}{round}{tensor}{piece}",
                place.check
            )
        }
        (None, None) => "both reports have the same findings".to_owned(),
    };
    let file =
        |out: &PathBuf| format!("{}: `gradledger verify` says who is wrong\n", out.display());
    format!("{}\n{}", place.escape_debug(), document.out.as_ref().map_or_else(String::new, file))
}
