//! Writes one layer of a 72B model and a round of Templar gradient files for it, from a seed.
//!
//! `cargo run --release --example layer -- DIR`: `base.safetensors` (f32, 3.4 GB) and 20 files
//! `gradient-ROUND-UID-v2.1.28.pt` (33 MB each), which `gradledger init` and `gradledger import
//! templar` take with `--chunk 64 --top-k 64 --bins 4`.

mod synthetic;

use std::{fs, io, path::PathBuf, process::ExitCode};

use clap::Parser;
use synthetic::Synthetic;

/// Writes one layer of a 72B model and a round of gradient files for it, from a seed.
#[derive(Parser)]
#[command(name = "layer")]
struct Args {
    /// A new or an empty directory.
    dir: PathBuf,
    /// Everything follows from it.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Gradient files; their uids count from 1.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=255))]
    miners: u16,
    /// Part of each matrix's rows, in whole blocks.
    #[arg(long, default_value_t = 1.0)]
    fraction: f64,
    /// The round in the gradient files and their names.
    #[arg(long, default_value_t = 1)]
    round: u32,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match write(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", args.dir.display());
            ExitCode::FAILURE
        }
    }
}

fn write(args: &Args) -> io::Result<()> {
    if !(args.fraction > 0.0 && args.fraction <= 1.0) {
        return Err(io::Error::other("--fraction is above 0 and at most 1"));
    }
    fs::create_dir_all(&args.dir)?;
    if fs::read_dir(&args.dir)?.next().is_some() {
        return Err(io::Error::other("the directory is not empty; give a new one"));
    }
    let synthetic = Synthetic {
        seed: args.seed,
        round: args.round.into(),
        miners: args.miners,
        tensors: synthetic::layer(args.fraction),
    };
    synthetic.write_model(&args.dir)?;
    eprintln!("base.safetensors: {} bytes of weights", synthetic.model_bytes());
    synthetic.write_gradients(&args.dir)?;
    eprintln!("{} gradient files of round {}", args.miners, args.round);
    Ok(())
}
