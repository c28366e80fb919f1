//! `prove`: a bundle cut out of a ledger.

use std::{
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;

use crate::{
    audit::prove::{Target, prove as write_bundle},
    ledger::At,
    types::progress::Progress,
};

use super::{
    audit::read_receipt,
    exit::CliError,
    output::{print, size},
    source::SourceArgs,
};

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["round", "submission", "receipt"]))]
pub struct ProveArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// This round; with --tensor, the state after it.
    #[arg(long, value_name = "W|genesis")]
    round: Option<At>,
    /// This tensor of the state.
    #[arg(long, value_name = "NAME", requires = "round")]
    tensor: Option<String>,
    /// This piece of the tensor alone: 64 KiB, from 0.
    #[arg(long, value_name = "N", requires = "tensor")]
    piece: Option<u64>,
    /// The submission at this index.
    #[arg(long, value_name = "INDEX", conflicts_with = "round")]
    submission: Option<u64>,
    /// What came of the entry that this receipt was given for.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["round", "submission"])]
    receipt: Option<PathBuf>,
    /// With --piece: also what goes into the piece, so that it can be folded again.
    #[arg(long, requires = "piece")]
    fold: bool,
    /// The bundle to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct ProveDocument {
    bundle: PathBuf,
    bytes: u64,
}

pub fn prove(args: &ProveArgs, progress: &dyn Progress) -> Result<(), CliError> {
    let ledger = args.source.open()?;
    let target = match (args.round, &args.tensor, args.piece, args.submission) {
        _ if args.receipt.is_some() => {
            let receipt = args.receipt.as_deref().map(read_receipt).transpose()?;
            Target::Receipt(Box::new(receipt.ok_or(CliError::GenesisRound)?))
        }
        (Some(At::Round(round)), Some(name), Some(piece), _) if args.fold => {
            Target::fold(&ledger, round, name, piece)?
        }
        (_, _, _, Some(index)) => Target::Submission(index),
        (Some(at), Some(name), Some(piece), _) => Target::Piece(at, name.clone(), piece),
        (Some(at), Some(name), None, _) => Target::Tensor(at, name.clone()),
        (Some(At::Round(round)), ..) => Target::Round(round),
        (Some(At::Genesis), ..) | (None, ..) => return Err(CliError::GenesisRound),
    };
    let io = |source| CliError::Io { path: args.out.clone(), source };
    let beside = beside(&args.out);
    let file = BufWriter::new(File::create(&beside).map_err(io)?);
    let written = write_bundle(&ledger, &target, file, progress);
    let file = match written {
        Ok(file) => file.into_inner().map_err(|error| io(error.into_error()))?,
        Err(error) => {
            // What went wrong matters more than what is left of it.
            let _ = fs::remove_file(&beside);
            return Err(error.into());
        }
    };
    file.sync_all().map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    fs::rename(&beside, &args.out).map_err(io)?;
    let document = ProveDocument { bundle: args.out.clone(), bytes };
    print(args.json, &document, || format!("{}  {}\n", document.bundle.display(), size(bytes)))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}
