//! How fast each kernel is, and how fast its floor, on one machine and the same memory.
//!
//! Clocks drift and machines are shared, so floors and kernels take turns, a strip of 2 MiB at a time,
//! several times over; of each strip the fastest counts. A rate is in elements of the state a second.

use std::{fmt, io, time::Instant};

use rayon::prelude::*;

use crate::{Divisor, Step, bytes::of_f32, cpu, floor, made_up::Round, memory::Floats, sha256};

/// Columns of the made-up matrix.
pub const COLUMNS: usize = 8192;
/// Elements of a strip: a row of blocks.
pub const STRIP: usize = 64 * COLUMNS;
/// The most miners whose deltas are folded.
pub const MINERS_MAX: usize = 20;

pub(crate) const STEP: Step = Step { lr: 0.4, divisor: Divisor::Contributors };
const PIECE_BYTES: usize = 1 << 16;

/// A thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// The floor out of place.
    Copy,
    /// The floor in place.
    InPlace,
    /// Hashing in pieces; of the scalar path this is the floor that other paths are held against.
    Hash(sha256::Path),
    /// The fold of so many miners' deltas, out of place.
    FoldInto(cpu::Path, usize),
    /// The same in place.
    Fold(cpu::Path, usize),
    /// The same on the best path, then hashing on the best path.
    FoldHashed(usize),
}

impl Kernel {
    /// Everything that this processor can run.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Copy, Self::InPlace];
        all.extend(sha256::Path::available().into_iter().map(Self::Hash));
        for miners in [4, MINERS_MAX] {
            for path in cpu::Path::available() {
                all.extend([Self::FoldInto(path, miners), Self::Fold(path, miners)]);
            }
            all.push(Self::FoldHashed(miners));
        }
        all
    }

    /// The floors, and the best path of the rest.
    #[must_use]
    pub fn best() -> Vec<Self> {
        let best = cpu::Path::best();
        let wanted = |kernel: &Self| match kernel {
            Self::FoldInto(path, _) | Self::Fold(path, _) => *path == best,
            _ => true,
        };
        Self::all().into_iter().filter(wanted).collect()
    }

    /// What it is held against, unless it is a floor.
    #[must_use]
    pub fn floor(self) -> Option<Self> {
        match self {
            Self::Copy | Self::InPlace | Self::Hash(sha256::Path::Scalar) => None,
            Self::Hash(_) => Some(Self::Hash(sha256::Path::Scalar)),
            Self::FoldInto(..) => Some(Self::Copy),
            Self::Fold(..) => Some(Self::InPlace),
            Self::FoldHashed(_) => Some(Self::Hash(sha256::Path::best())),
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy => f.write_str("copy"),
            Self::InPlace => f.write_str("in-place"),
            Self::Hash(path) => write!(f, "hash/{path}"),
            Self::FoldInto(path, miners) => write!(f, "out-of-place/{path}/{miners}"),
            Self::Fold(path, miners) => write!(f, "in-place/{path}/{miners}"),
            Self::FoldHashed(miners) => write!(f, "in-place-hashed/{miners}"),
        }
    }
}

/// Two states of so many strips, and a round for them, seed 7.
pub struct Lab {
    round: Round,
    base: Floats,
    next: Floats,
}

/// What all threads of a pool reach together.
#[derive(Clone, Copy, Debug)]
pub struct Together {
    /// Hashing on the best path.
    pub hash: f64,
    /// The fold of [`MINERS_MAX`] deltas in place, then hashing.
    pub fold_hashed: f64,
}

impl Lab {
    /// Memory: twice the strips, and a seventh of them for the round.
    ///
    /// # Errors
    ///
    /// The operating system's, if there is no memory.
    pub fn new(strips: usize) -> io::Result<Self> {
        let (mut base, mut next) = (Floats::new(strips * STRIP)?, Floats::new(strips * STRIP)?);
        base.fill(1.0);
        next.fill(1.0);
        Ok(Self { round: Round::new(64 * strips, COLUMNS, MINERS_MAX, 7), base, next })
    }

    /// The round, of as many rows of blocks as there are strips.
    #[must_use]
    pub fn into_round(self) -> Round {
        self.round
    }

    /// The rate of each kernel in the current pool, which is to have one thread. `done` is called after
    /// each turn of all of them.
    pub fn rates(&mut self, kernels: &[Kernel], turns: usize, done: &dyn Fn()) -> Vec<f64> {
        let elements = self.base.len();
        let mut fastest = vec![vec![f64::INFINITY; elements / STRIP]; kernels.len()];
        for _ in 0..turns {
            for (kernel, fastest) in kernels.iter().zip(&mut fastest) {
                let strips = self.base.chunks_mut(STRIP).zip(self.next.chunks_mut(STRIP));
                for (strip, (base, next)) in strips.enumerate() {
                    let seconds = seconds(|| run(*kernel, &self.round, strip, base, next));
                    fastest[strip] = fastest[strip].min(seconds);
                }
            }
            done();
        }
        fastest.iter().map(|of| elements as f64 / of.iter().sum::<f64>()).collect()
    }

    /// What the threads of the current pool reach together, each with a strip of its own at a time.
    pub fn together(&mut self, turns: usize) -> Together {
        let strips = rayon::current_num_threads();
        let (mut of_hash, mut of_both, mut elements) = (0.0, 0.0, 0);
        let round = &self.round;
        for (at, state) in self.base.chunks_mut(strips * STRIP).enumerate() {
            let (mut hash_fastest, mut both_fastest) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..turns {
                let hashing =
                    || state.par_chunks(STRIP).for_each(|state| hash(sha256::Path::best(), state));
                hash_fastest = hash_fastest.min(seconds(hashing));
                both_fastest = both_fastest.min(seconds(|| {
                    state.par_chunks_mut(STRIP).enumerate().for_each(|(strip, state)| {
                        fold_hashed(round, MINERS_MAX, at * strips + strip, state);
                    });
                }));
            }
            of_hash += hash_fastest;
            of_both += both_fastest;
            elements += state.len();
        }
        Together { hash: elements as f64 / of_hash, fold_hashed: elements as f64 / of_both }
    }
}

fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

/// Runs a kernel on one strip: its number, the state before, the state after.
fn run(kernel: Kernel, round: &Round, strip: usize, base: &mut [f32], next: &mut [f32]) {
    match kernel {
        Kernel::Copy => floor::copy(base, next),
        Kernel::InPlace => floor::in_place(base),
        Kernel::Hash(path) => hash(path, base),
        Kernel::FoldInto(path, miners) => {
            let sent = round.contributions(miners, strip, 1);
            let folded = cpu::fold_into(path, &round.strips(1), &sent, STEP, base, next);
            folded.expect("the rows are clean");
        }
        Kernel::Fold(path, miners) => fold(round, path, miners, strip, base),
        Kernel::FoldHashed(miners) => fold_hashed(round, miners, strip, base),
    }
}

fn fold(round: &Round, path: cpu::Path, miners: usize, strip: usize, state: &mut [f32]) {
    let sent = round.contributions(miners, strip, 1);
    cpu::fold(path, &round.strips(1), &sent, STEP, state).expect("the rows are clean");
}

fn fold_hashed(round: &Round, miners: usize, strip: usize, state: &mut [f32]) {
    fold(round, cpu::Path::best(), miners, strip, state);
    hash(sha256::Path::best(), state);
}

fn hash(path: sha256::Path, state: &[f32]) {
    let mut digests = Vec::new();
    sha256::hash_pieces_on(path, of_f32(state), PIECE_BYTES, &mut digests);
}

#[cfg(test)]
mod tests {
    use super::{Kernel, Lab};

    #[test]
    fn every_kernel_runs_and_has_a_floor_that_runs() {
        let kernels = Kernel::all();
        let mut lab = Lab::new(2).expect("there is memory");
        let rates = lab.rates(&kernels, 1, &|| {});
        assert!(rates.iter().all(|&rate| rate > 0.0 && rate.is_finite()), "{rates:?}");
        for floor in kernels.iter().filter_map(|kernel| kernel.floor()) {
            assert!(floor.floor().is_none() || floor == Kernel::Hash(crate::sha256::Path::best()));
            assert!(kernels.contains(&floor));
        }
        let together = lab.together(1);
        assert!(together.hash > 0.0 && together.fold_hashed > 0.0);
    }
}
