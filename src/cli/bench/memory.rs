//! The kernels beside their floors, in memory.

use std::path::Path;

use gradledger_kernels::{
    made_up::Round,
    rates::{Kernel, Lab, MINERS_MAX, STRIP},
};
use rayon::ThreadPool;
use serde::Serialize;

use crate::{cli::exit::CliError, ledger::thread_pool, types::progress::Progress};

/// Strips of each of the two states: 128 MiB, which no cache keeps from one kernel to the next.
const STRIPS_MAX: usize = 64;

/// How often each kernel runs; the fastest counts.
const TURNS: usize = 5;

/// What the kernels reach.
#[derive(Serialize)]
pub struct Kernels {
    pub one_thread: Vec<Line>,
    pub all_threads: Vec<Line>,
}

/// One kernel.
#[derive(Serialize)]
pub struct Line {
    pub name: String,
    pub parameters_per_s: f64,
    /// What it is held against.
    pub floor: Option<String>,
    /// Its rate over the floor's.
    pub ratio: Option<f64>,
}

/// Measures, and gives the round that was folded.
pub fn measure(
    gib: f64,
    pool: &ThreadPool,
    progress: &dyn Progress,
) -> Result<(Kernels, Round), CliError> {
    let wanted = gib * (1 << 30) as f64 / (4 * STRIP) as f64;
    let strips = (wanted as usize).clamp(2, STRIPS_MAX);
    let memory = |source| CliError::Io { path: Path::new("memory").to_owned(), source };
    let mut lab = Lab::new(strips).map_err(memory)?;
    let (kernels, one) = (Kernel::best(), thread_pool(1)?);
    let turn_bytes = (kernels.len() * strips * STRIP * 4) as u64;
    progress.begin("kernels", turn_bytes * TURNS as u64);
    let rates = one.install(|| lab.rates(&kernels, TURNS, &|| progress.advance(turn_bytes)));
    let together = pool.install(|| lab.together(TURNS));
    progress.end();
    let rate = |of: Kernel| Some(rates[kernels.iter().position(|&kernel| kernel == of)?]);
    let line = |(kernel, &parameters_per_s): (&Kernel, &f64)| Line {
        name: kernel.to_string(),
        parameters_per_s,
        floor: kernel.floor().map(|floor| floor.to_string()),
        ratio: kernel.floor().and_then(rate).map(|floor| parameters_per_s / floor),
    };
    let one_thread = kernels.iter().zip(&rates).map(line).collect();
    let all_threads = vec![
        Line { name: "hash".to_owned(), parameters_per_s: together.hash, floor: None, ratio: None },
        Line {
            name: format!("in-place-hashed/{MINERS_MAX}"),
            parameters_per_s: together.fold_hashed,
            floor: Some("hash".to_owned()),
            ratio: Some(together.fold_hashed / together.hash),
        },
    ];
    Ok((Kernels { one_thread, all_threads }, lab.into_round()))
}
