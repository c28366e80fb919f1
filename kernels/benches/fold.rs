//! Does a fold run near the speed of a copy, and with hashing near that of hashing alone? A matrix of
//! 4096 x 8192, its strips in turn, 4 and 20 miners, one thread, seed 7.
//!
//! `cargo bench -p gradledger-kernels`. The floors are measured on the same buffers. For ratios on a
//! machine that is not idle there is `gradledger bench`, which lets them take turns.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gradledger_kernels::{
    Divisor, Step, bytes::of_f32, cpu, floor, made_up::Round, memory::Floats, sha256,
};

const ROWS: usize = 4096;
const COLUMNS: usize = 8192;
/// Elements of a row of blocks.
const STRIP: usize = 64 * COLUMNS;
const STEP: Step = Step { lr: 0.4, divisor: Divisor::Contributors };
const PIECE_BYTES: usize = 1 << 16;

/// Both states and the round.
struct Lab {
    round: Round,
    base: Floats,
    next: Floats,
    strip: usize,
}

impl Lab {
    fn new() -> Self {
        let floats = || Floats::new(ROWS * COLUMNS).expect("there is memory for two states");
        let (mut base, mut next) = (floats(), floats());
        base.fill(1.0);
        next.fill(1.0);
        Self { round: Round::new(ROWS, COLUMNS, 20, 7), base, next, strip: 0 }
    }

    /// The next strip: its number, its elements before and after.
    fn turn(&mut self) -> (usize, &mut [f32], &mut [f32]) {
        self.strip = (self.strip + 1) % (ROWS / 64);
        let at = self.strip * STRIP;
        (self.strip, &mut self.base[at..][..STRIP], &mut self.next[at..][..STRIP])
    }

    fn fold_into(&mut self, path: cpu::Path, miners: usize) {
        let strip = (self.strip + 1) % (ROWS / 64);
        let at = strip * STRIP;
        let (base, next) = (&self.base[at..][..STRIP], &mut self.next[at..][..STRIP]);
        let sent = self.round.contributions(miners, strip, 1);
        cpu::fold_into(path, &self.round.strips(1), &sent, STEP, base, next).expect("clean rows");
        self.strip = strip;
    }

    fn fold(&mut self, path: cpu::Path, miners: usize) -> &[f32] {
        let strip = (self.strip + 1) % (ROWS / 64);
        let state = &mut self.base[strip * STRIP..][..STRIP];
        let sent = self.round.contributions(miners, strip, 1);
        cpu::fold(path, &self.round.strips(1), &sent, STEP, state).expect("clean rows");
        self.strip = strip;
        state
    }
}

fn hash(path: sha256::Path, state: &[f32]) {
    let mut digests = Vec::new();
    sha256::hash_pieces_on(path, of_f32(state), PIECE_BYTES, &mut digests);
}

fn fold(c: &mut Criterion) {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build_global();
    one.expect("nobody made one before");
    let mut lab = Lab::new();
    let mut group = c.benchmark_group("fold");
    group.throughput(Throughput::Elements(STRIP as u64));
    group.bench_function("floor/copy", |b| {
        b.iter(|| {
            let (_, base, next) = lab.turn();
            floor::copy(base, next);
        });
    });
    group.bench_function("floor/in-place", |b| b.iter(|| floor::in_place(lab.turn().1)));
    for miners in [4, 20] {
        for path in cpu::Path::available() {
            group.bench_function(format!("out-of-place/{path}/{miners}"), |b| {
                b.iter(|| lab.fold_into(path, miners));
            });
            group.bench_function(format!("in-place/{path}/{miners}"), |b| {
                b.iter(|| {
                    lab.fold(path, miners);
                });
            });
        }
        group.bench_function(format!("in-place-hashed/{miners}"), |b| {
            b.iter(|| hash(sha256::Path::best(), lab.fold(cpu::Path::best(), miners)));
        });
    }
    for path in sha256::Path::available() {
        group.bench_function(format!("hash/{path}"), |b| b.iter(|| hash(path, lab.turn().1)));
    }
    group.finish();
}

criterion_group!(benches, fold);
criterion_main!(benches);
