//! A card gives the bits of the reference and of sha2, and the same error, whatever the launch.
//!
//! `card_...` run on the machine's first card and are skipped, saying so, where there is none. Where there
//! is a C++ compiler they also run on an emulated one, in a process of their own: the same host code and
//! the same text of the kernels, on the processor, with threads in several orders.
//! `GRADLEDGER_CUDA_ROUNDS` makes more random cases, for a real card.

#![allow(clippy::unwrap_used)]

mod common;
mod emulator;

use std::process::Command;

use common::{Case, Random, random_band, random_k, same_bits};
use gradledger_kernels::{
    Band, Divisor, Findings, KernelError, Step,
    cuda::{self, CudaError, Gpu, Lane, Made, PIECE_BYTES, Round, Span, Threads},
    sha256::{Digest32, sha256},
    widen,
};

// ---- without a card ----

#[test]
fn an_emulated_device_passes_these_tests_in_any_order_of_threads() {
    let Some(libraries) = emulator::libraries(env!("CARGO_TARGET_TMPDIR")) else { return };
    for order in ["0", "-1", "7919"] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["card_", "--test-threads", "2", "--nocapture"])
            .env("LD_LIBRARY_PATH", libraries)
            .env("GRADLEDGER_EMULATOR_ORDER", order)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "order {order}, {}: {text}{errors}", output.status);
        assert!(!text.contains("SKIPPED") && text.contains(" passed"), "order {order}: {text}");
        assert!(!text.contains(" 0 passed"), "order {order}: {text}");
    }
}

/// What is read in the kernels' machine code is built with the flags that the program uses.
#[test]
fn the_check_of_the_machine_code_has_these_flags() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/sass.py");
    let script = std::fs::read_to_string(script).unwrap();
    assert!(script.contains(&format!("FLAGS = {:?}", cuda::FLAGS)), "{:?}", cuda::FLAGS);
}

/// Where NVRTC is installed (CI puts its Python package's folder in LD_LIBRARY_PATH), no card needed.
#[test]
fn nvrtc_compiles_the_kernels_once() {
    let cache = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("nvrtc-cache");
    let _ = std::fs::remove_dir_all(&cache);
    let first = match cuda::build_for("sm_90", Some(&cache)) {
        Err(CudaError::NoCompiler { architecture, cache: Some(_) }) if architecture == "sm_90" => {
            println!("SKIPPED: NVRTC is not installed, nothing was compiled");
            return;
        }
        made => made.unwrap(),
    };
    assert_eq!(first.architecture, "sm_90");
    let files =
        || std::fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let written = |path| std::fs::metadata(path).unwrap().modified().unwrap();
    let [file] = &files()[..] else { panic!("{:?}", files()) };
    let before = written(file);
    assert_eq!(cuda::build_for("sm_90", Some(&cache)).unwrap(), first);
    assert_eq!((files().len(), written(file)), (1, before), "it was compiled again");
    let refused = cuda::build_for("sm_1", Some(&cache));
    assert!(matches!(refused, Err(CudaError::Compile { .. })), "{refused:?}");
}

// ---- on a card ----

/// The first card, or nothing, which is said.
fn card() -> Option<Gpu> {
    match cuda::devices() {
        Ok(count) if count > 0 => {
            let cache = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-cache");
            let gpu = Gpu::open(0, Some(&cache)).unwrap();
            println!("on {:?}", gpu.description());
            Some(gpu)
        }
        none => {
            println!("SKIPPED: no card here: {none:?}");
            None
        }
    }
}

/// Several lanes with launches of every kind, among them such as are no multiple of a warp.
fn lanes(gpu: &Gpu) -> Vec<Lane<'_>> {
    [(256, 128, 256), (32, 32, 32), (1024, 1024, 1024), (250, 33, 7), (1, 1, 1)]
        .map(|(fold, hash, tree)| Lane::new(gpu, Threads { fold, hash, tree }).unwrap())
        .into()
}

/// As many as asked for, or a few on the processor.
fn cases(few: u64) -> u64 {
    std::env::var("GRADLEDGER_CUDA_ROUNDS").map_or(few, |n| n.parse().unwrap())
}

fn random_step(random: &mut Random) -> Step {
    let divisor = match random.chance(3) {
        true => Divisor::All(random.within(0, 300) as u32),
        false => Divisor::Contributors,
    };
    Step { lr: if random.chance(4) { random.float(true) } else { 0.4 }, divisor }
}

/// A band, where it lies in its tensor, and rounds to fold onto it one after the other.
struct Rounds {
    span: Span,
    cases: Vec<Case>,
    apply: Vec<bool>,
}

impl Rounds {
    fn random(random: &mut Random, band: Band, miners_max: usize, special: bool) -> Self {
        let mut cases: Vec<Case> = Vec::new();
        for _ in 0..random.within(1, 4) {
            let miners = random.within(0, miners_max);
            cases.push(Case::random(random, band, miners, special));
            cases.last_mut().unwrap().step = random_step(random);
        }
        let apply = cases.iter().map(|_| !random.chance(4)).collect();
        let offset = random.one_of(&[0, 0, 4, 36, 64, 65_532, 65_536, 3 * 65_536 + 8]);
        Self { span: Span { offset, last: random.chance(2) }, cases, apply }
    }

    fn rounds(&self) -> Vec<Round<'_>> {
        let round = |at: usize| {
            let case = &self.cases[at];
            Round { contributions: case.contributions(), step: case.step, apply: self.apply[at] }
        };
        (0..self.cases.len()).map(round).collect()
    }

    /// What the reference and sha2 make of it.
    fn expected(&self) -> Result<(Vec<Made>, Vec<f32>), KernelError> {
        let mut state = self.cases[0].state.clone();
        let mut made = Vec::new();
        for (case, apply) in self.cases.iter().zip(&self.apply) {
            let mut next = state.clone();
            let sent = case.contributions();
            let findings =
                gradledger_kernels::reference::fold(&case.band, &sent, case.step, &mut next)?;
            if *apply {
                state = next;
            }
            made.push(hashed(self.span, gradledger_kernels::bytes::of_f32(&state), findings));
        }
        Ok((made, state))
    }

    /// Runs it on each lane, whose memory and output hold nonsense before.
    fn agree(&self, lanes: &mut [Lane<'_>], label: &str) -> Result<(), KernelError> {
        let expected = self.expected();
        let band = self.cases[0].band;
        for (number, lane) in lanes.iter_mut().enumerate() {
            let label = format!("{label}, lane {number}, {band:?}, {:?}", self.span);
            lane.poison(0x5a).unwrap();
            let mut state = self.cases[0].state.clone();
            let made = match lane.fold(&band, self.span, &self.rounds(), &mut state, true) {
                Err(CudaError::Kernel { source, .. }) => Err(source),
                made => Ok(made.unwrap()),
            };
            let Ok((expected, next)) = &expected else {
                assert_eq!(made.err(), expected.as_ref().err().cloned(), "{label}");
                continue;
            };
            assert_eq!(made.as_ref(), Ok(expected), "{label}");
            same_bits(&state, next, &label);
        }
        expected.map(drop)
    }
}

/// What stands in a band's bytes.
fn hashed(span: Span, bytes: &[u8], findings: Findings) -> Made {
    let head = (span.offset.next_multiple_of(PIECE_BYTES) - span.offset) as usize;
    let (head, rest) = bytes.split_at(head.min(bytes.len()));
    let whole = rest.len() - if span.last { 0 } else { rest.len() % PIECE_BYTES as usize };
    let (pieces, tail) = rest.split_at(whole);
    let digests: Vec<_> = pieces.chunks(PIECE_BYTES as usize).map(sha256).collect();
    let root = (span == Span { offset: 0, last: true }).then(|| root(&digests));
    Made { findings, head: head.to_vec(), digests, tail: tail.to_vec(), root }
}

/// RFC 6962, section 2.1, to the letter.
fn root(entries: &[Digest32]) -> Digest32 {
    match entries {
        [] => sha256(&[]),
        [entry] => sha256(&[&[0], &entry[..]].concat()),
        _ => {
            let split = entries.len().next_power_of_two() / 2;
            let (left, right) = entries.split_at(split);
            sha256(&[&[1], &root(left)[..], &root(right)].concat())
        }
    }
}

#[test]
fn card_agrees_on_random_bands() {
    let Some(gpu) = card() else { return };
    let mut lanes = lanes(&gpu);
    for seed in 0..cases(40) {
        let mut random = Random::new(seed);
        let band = random_band(&mut random, 5_000);
        let most = (100_000 / (band.blocks() * band.k)).clamp(1, 255);
        let miners_max = if random.chance(4) { most } else { most.min(12) };
        let special = random.chance(2);
        let rounds = Rounds::random(&mut random, band, miners_max, special);
        rounds.agree(&mut lanes, &format!("seed {seed}")).unwrap();
    }
}

#[test]
fn card_agrees_on_any_number_of_miners() {
    let Some(gpu) = card() else { return };
    let mut lanes = lanes(&gpu);
    for miners in (0..=255).step_by(5) {
        let mut random = Random::new(miners as u64);
        let band =
            Band { rows: 8, columns: 32, block_rows: 8, block_columns: 16, k: 40, code_bits: 4 };
        let cases = vec![Case::random(&mut random, band, miners, miners % 3 == 0)];
        let span = Span { offset: 0, last: true };
        let rounds = Rounds { span, cases, apply: vec![true] };
        rounds.agree(&mut lanes, &format!("{miners} miners")).unwrap();
    }
}

/// All entries of a block, more than are unpacked at a time; every width of code.
#[test]
fn card_agrees_on_full_blocks_and_every_shape() {
    let Some(gpu) = card() else { return };
    let mut lanes = lanes(&gpu);
    let mut random = Random::new(77);
    let mut shapes =
        vec![(64, 64), (4096, 1), (1, 4096), (2048, 2), (2, 2048), (63, 65), (1, 2), (2, 1)];
    shapes.extend((1..=64).step_by(7).flat_map(|w| [(1, 2 * w), (3, w), (w, 64), (2 * w, 1)]));
    for (at, (block_rows, block_columns)) in shapes.into_iter().enumerate() {
        let block_len: usize = block_rows * block_columns;
        for full in [true, false] {
            let k = if full { block_len / 2 * 2 } else { random_k(&mut random, block_len) };
            let band = Band {
                rows: 2 * block_rows,
                columns: 3 * block_columns,
                block_rows,
                block_columns,
                k,
                code_bits: [2, 4, 8][at % 3],
            };
            let rounds = Rounds::random(&mut random, band, 3, true);
            rounds.agree(&mut lanes, &format!("block {block_rows} x {block_columns}")).unwrap();
        }
    }
}

#[test]
fn card_names_the_fault_that_the_reference_names() {
    let Some(gpu) = card() else { return };
    let mut lanes = lanes(&gpu);
    let mut refused = 0u64;
    for seed in 0..cases(60) {
        let mut random = Random::new(1000 + seed);
        let band = random_band(&mut random, 2_000);
        let mut rounds = Rounds::random(&mut random, band, 6, true);
        for _ in 0..random.within(0, 3) {
            let case = random.within(0, rounds.cases.len() - 1);
            let miners = rounds.cases[case].sent.len();
            if miners > 0 {
                let sent = &mut rounds.cases[case].sent[random.within(0, miners - 1)];
                let at = random.within(0, sent.index.len() - 1);
                sent.index[at] = random.bits() as u8;
            }
        }
        refused += u64::from(rounds.agree(&mut lanes, &format!("seed {seed}")).is_err());
    }
    assert!(6 * refused > cases(60), "{refused} of the cases have a fault");
}

#[test]
fn card_makes_the_digests_and_roots_of_every_number_of_pieces() {
    let Some(gpu) = card() else { return };
    let mut lanes = lanes(&gpu);
    lanes.pop(); // A thread alone is slow at this.
    for columns in [0, 2, 16_382, 16_384, 16_386, 3 * 16_384, 5 * 16_384 + 16, 9 * 16_384 - 2] {
        let mut random = Random::new(columns as u64);
        let band = Band { rows: 1, columns, block_rows: 1, block_columns: 2, k: 2, code_bits: 8 };
        for (offset, last) in [(0, true), (0, false), (4, true), (131_072, false), (65_528, false)]
        {
            // Nobody sent anything: the states are hashed.
            let cases = (0..2).map(|_| Case::random(&mut random, band, 0, true)).collect();
            let rounds = Rounds { span: Span { offset, last }, cases, apply: vec![true, false] };
            rounds.agree(&mut lanes, &format!("{columns} elements")).unwrap();
        }
    }
}

#[test]
fn card_refuses_lengths_as_the_reference_does() {
    let Some(gpu) = card() else { return };
    let mut random = Random::new(5);
    let band = random_band(&mut random, 1000);
    let mut case = Case::random(&mut random, band, 2, false);
    case.sent[1].code.pop();
    let expected = case.reference().0;
    let round = Round { contributions: case.contributions(), step: case.step, apply: true };
    let span = Span { offset: 0, last: true };
    let mut state = case.state.clone();
    let refused = lanes(&gpu)[0].fold(&band, span, &[round], &mut state, true);
    assert!(
        matches!(&refused, Err(CudaError::Kernel { round: 0, source }) if Err(source.clone()) == expected)
    );
    let refused = lanes(&gpu)[0].fold(&band, span, &[], &mut state[1..], true);
    assert!(matches!(
        refused,
        Err(CudaError::Kernel { source: KernelError::StateLength { .. }, .. })
    ));
}

#[test]
fn card_leaves_a_state_that_is_not_wanted() {
    let Some(gpu) = card() else { return };
    let mut random = Random::new(6);
    let band = random_band(&mut random, 10_000);
    let rounds = Rounds::random(&mut random, band, 5, false);
    let (expected, _) = rounds.expected().unwrap();
    let mut state = rounds.cases[0].state.clone();
    let made =
        lanes(&gpu)[0].fold(&band, rounds.span, &rounds.rounds(), &mut state, false).unwrap();
    assert_eq!(made, expected);
    same_bits(&state, &rounds.cases[0].state, "not wanted");
}

#[test]
fn card_rounds_to_bf16_as_the_processor_does() {
    let Some(gpu) = card() else { return };
    let mut lanes = lanes(&gpu);
    let lower = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
    let values: Vec<f32> = (0..=0xffff)
        .flat_map(|upper: u32| lower.map(|low| f32::from_bits(upper << 16 | low)))
        .collect();
    let expected: Vec<u16> = values.iter().map(|&value| widen::f32_to_bf16(value)).collect();
    for lane in &mut lanes {
        assert!(lane.to_bf16(&values).unwrap() == expected);
        assert!(lane.to_bf16(&[]).unwrap().is_empty());
    }
}

/// Lanes in threads of their own, each with other work, in locked memory.
#[test]
fn card_lanes_do_not_disturb_each_other() {
    let Some(gpu) = card() else { return };
    std::thread::scope(|scope| {
        for (number, mut lane) in lanes(&gpu).into_iter().enumerate() {
            let gpu = &gpu;
            scope.spawn(move || {
                for seed in 0..cases(6) {
                    let mut random = Random::new(seed * 10 + number as u64);
                    let band = random_band(&mut random, 5_000);
                    let rounds = Rounds::random(&mut random, band, 5, true);
                    let (expected, next) = rounds.expected().unwrap();
                    let mut state = gpu.floats(next.len()).unwrap();
                    state.copy_from_slice(&rounds.cases[0].state);
                    let span = rounds.span;
                    let made = lane.fold(&band, span, &rounds.rounds(), &mut state, true).unwrap();
                    assert_eq!(made, expected, "seed {seed}, lane {number}");
                    same_bits(&state, &next, &format!("seed {seed}, lane {number}"));
                }
            });
        }
    });
}

#[test]
fn card_that_is_not_there_is_said_so() {
    match cuda::devices() {
        Ok(count) => {
            let missing = Gpu::open(count, None);
            assert!(
                matches!(missing, Err(CudaError::NoDevice { ordinal, .. }) if ordinal == count)
            );
        }
        Err(error) => {
            assert!(matches!(error, CudaError::NoDriver | CudaError::Driver { .. }));
            assert!(Gpu::open(0, None).is_err());
        }
    }
}
