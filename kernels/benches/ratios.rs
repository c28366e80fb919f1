//! What part of its floor does each kernel reach? A matrix of 4096 x 8192, 4 and 20 miners, one thread
//! and two, seed 7.
//!
//! `cargo bench -p gradledger-kernels --bench ratios`. Clocks drift and machines are shared, so floors
//! and kernels take turns on the same buffers, a strip of 2 MiB at a time, nine times over; of each
//! strip the fastest counts. It prints a table and writes a record below `benches/record/`.

#[path = "../../tools/record.rs"]
mod record;

use std::time::Instant;

use gradledger_kernels::{
    Divisor, Step, bytes::of_f32, cpu, floor, made_up::Round, memory::Floats, sha256,
};
use rayon::prelude::*;

const ROWS: usize = 4096;
const COLUMNS: usize = 8192;
/// Elements of a row of blocks.
const STRIP: usize = 64 * COLUMNS;
const STRIPS: usize = ROWS / 64;
const TURNS: usize = 9;
const STEP: Step = Step { lr: 0.4, divisor: Divisor::Contributors };
const PIECE_BYTES: usize = 1 << 16;

/// A thing to measure on one strip: its number, the state before, the state after.
type Run<'r> = Box<dyn Fn(usize, &mut [f32], &mut [f32]) + Sync + 'r>;

fn main() -> std::io::Result<()> {
    let round = Round::new(ROWS, COLUMNS, 20, 7);
    let (mut base, mut next) = (Floats::new(ROWS * COLUMNS)?, Floats::new(ROWS * COLUMNS)?);
    base.fill(1.0);
    next.fill(1.0);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let runs = runs(&round);
    let rates = one.install(|| rates(&runs, &mut base, &mut next));
    let two = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("two threads");
    let hashed = two.install(|| of_both_cores(&round, &mut base));
    let rate = |name: &str| rates[runs.iter().position(|(n, _)| n == name).expect("it is run")];
    let mut values = Vec::new();
    for (name, rate) in runs.iter().map(|(name, _)| name).zip(&rates) {
        values.push((format!("rate/{name}"), rate / 1e6, "M parameters/s"));
    }
    for (what, floor) in ratios() {
        values.push((format!("ratio/{what}/{floor}"), rate(&what) / rate(floor), "1"));
    }
    values.push(("ratio/two-threads-hashed/20/hash-of-both-cores".to_owned(), hashed, "1"));
    values.iter().for_each(|(what, value, unit)| println!("{value:10.3} {unit:15} {what}"));
    record::write("kernels", &values)
}

/// Each kernel with the floor that it is held against.
fn ratios() -> Vec<(String, &'static str)> {
    let mut ratios = Vec::new();
    for path in cpu::Path::available() {
        for miners in [4, 20] {
            ratios.push((format!("out-of-place/{path}/{miners}"), "copy"));
            ratios.push((format!("in-place/{path}/{miners}"), "in-place"));
        }
    }
    let best = sha256::Path::best();
    let hash = if best == sha256::Path::Avx512 { "hash/avx512" } else { "hash/scalar" };
    ratios.extend([4, 20].map(|miners| (format!("in-place-hashed/{miners}"), hash)));
    let paths = sha256::Path::available().into_iter().skip(1);
    ratios.extend(paths.map(|path| (format!("hash/{path}"), "hash/scalar")));
    ratios
}

fn runs(round: &Round) -> Vec<(String, Run<'_>)> {
    let mut runs: Vec<(String, Run<'_>)> = vec![
        ("copy".to_owned(), Box::new(|_, base, next| floor::copy(base, next))),
        ("in-place".to_owned(), Box::new(|_, state, _| floor::in_place(state))),
    ];
    for path in sha256::Path::available() {
        runs.push((format!("hash/{path}"), Box::new(move |_, state, _| hash(path, state))));
    }
    for miners in [4, 20] {
        for path in cpu::Path::available() {
            let out: Run<'_> = Box::new(move |strip, base, next| {
                let sent = round.contributions(miners, strip, 1);
                let band = round.strips(1);
                cpu::fold_into(path, &band, &sent, STEP, base, next).expect("clean rows");
            });
            runs.push((format!("out-of-place/{path}/{miners}"), out));
            let fold: Run<'_> = Box::new(move |strip, state, _| {
                fold(round, path, miners, strip, state);
            });
            runs.push((format!("in-place/{path}/{miners}"), fold));
        }
        let hashed: Run<'_> = Box::new(move |strip, state, _| {
            fold(round, cpu::Path::best(), miners, strip, state);
            hash(sha256::Path::best(), state);
        });
        runs.push((format!("in-place-hashed/{miners}"), hashed));
    }
    runs
}

fn fold(round: &Round, path: cpu::Path, miners: usize, strip: usize, state: &mut [f32]) {
    let sent = round.contributions(miners, strip, 1);
    cpu::fold(path, &round.strips(1), &sent, STEP, state).expect("clean rows");
}

fn hash(path: sha256::Path, state: &[f32]) {
    let mut digests = Vec::new();
    sha256::hash_pieces_on(path, of_f32(state), PIECE_BYTES, &mut digests);
}

/// Elements a second of each run, from the fastest of each strip's turns.
fn rates(runs: &[(String, Run<'_>)], base: &mut [f32], next: &mut [f32]) -> Vec<f64> {
    let mut fastest = vec![vec![f64::INFINITY; STRIPS]; runs.len()];
    for _ in 0..TURNS {
        for ((_, run), fastest) in runs.iter().zip(&mut fastest) {
            let strips = base.chunks_mut(STRIP).zip(next.chunks_mut(STRIP));
            for (strip, (base, next)) in strips.enumerate() {
                let start = Instant::now();
                run(strip, base, next);
                fastest[strip] = fastest[strip].min(start.elapsed().as_secs_f64());
            }
        }
    }
    fastest.iter().map(|of| (STRIPS * STRIP) as f64 / of.iter().sum::<f64>()).collect()
}

/// Fold and hash over hash alone, both on as many threads as the pool has: each takes every other
/// strip of two.
fn of_both_cores(round: &Round, state: &mut [f32]) -> f64 {
    let (mut alone, mut both) = (0.0, 0.0);
    for (pair, state) in state.chunks_mut(2 * STRIP).enumerate() {
        let (mut of_alone, mut of_both) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..TURNS {
            let start = Instant::now();
            let strips = state.par_chunks_mut(STRIP);
            strips.for_each(|state| hash(sha256::Path::best(), state));
            of_alone = of_alone.min(start.elapsed().as_secs_f64());
            let start = Instant::now();
            state.par_chunks_mut(STRIP).enumerate().for_each(|(strip, state)| {
                fold(round, cpu::Path::best(), 20, 2 * pair + strip, state);
                hash(sha256::Path::best(), state);
            });
            of_both = of_both.min(start.elapsed().as_secs_f64());
        }
        alone += of_alone;
        both += of_both;
    }
    alone / both
}
