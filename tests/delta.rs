//! A miner's deltas: the bits of `schema/encode.md` by another way, feedback that is applied once,
//! and both forms through the ledger.

#![allow(clippy::unwrap_used)] // Helpers of tests, too.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use common::{
    Random, golden,
    memfs::{Fault, MemFs, Survival},
    model::{Tensor, floats, rule, safetensors as put_safetensors, small},
    scenario::{Effort, Failed, Scenario, honest, run},
};
use gradledger::{
    delta::{BAND_BYTES, DeltaError, DeltaJob, DeltaReport, Format, Output, Weights, make},
    import::{checkpoint::Checkpoint, safetensors::metadata, source::FileSource},
    store::{
        files::{Disk, Files, read_whole},
        segment::{LogicalBytes, delta::DeltaSegments},
    },
    types::{
        digest::Digest,
        progress::Silent,
        rule::{Dialect, SparseMeanSgd},
        tensor::Dtype,
    },
};
use gradledger_kernels::{codes, widen};
use serde_json::Value;
use tempfile::TempDir;

// ---- the rule once more, straightforwardly ----

/// What one tensor's part of a delta is.
struct Expected {
    /// Per block, ascending.
    positions: Vec<Vec<usize>>,
    codes: Vec<Vec<u8>>,
    /// Lookup, then shift.
    book: Vec<f32>,
}

/// The mean of `values` and what follows from it, in runs of 65,536 values.
fn sum(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    let mut total = 0.0;
    for run in values.chunks(65_536) {
        let mut sum = 0.0;
        for value in run {
            sum += value;
        }
        total += sum;
    }
    total
}

/// Encodes `error` of one tensor and leaves there what is not sent.
fn reference(tensor: &Tensor, error: &mut [f32], rule: &SparseMeanSgd) -> Expected {
    let grid = tensor.grid(rule.chunk);
    let k = (rule.top_k.min(grid.block_len()) & !1) as usize;
    let mut positions = Vec::new();
    for block in 0..grid.blocks() {
        let at = |p: &usize| error[grid.element(block, *p as u64)].abs();
        let mut order: Vec<usize> = (0..grid.block_len() as usize).collect();
        order.sort_by(|a, b| at(b).partial_cmp(&at(a)).unwrap().then(a.cmp(b)));
        order.truncate(k);
        order.sort_unstable();
        positions.push(order);
    }
    let value = |block: usize, p: usize| error[grid.element(block as u64, p as u64)];
    let values: Vec<f32> = positions
        .iter()
        .enumerate()
        .flat_map(|(block, kept)| kept.iter().map(move |&p| value(block, p)))
        .collect();
    let (n, bins) = (values.len() as f64, rule.bins as f64);
    let shift = (sum(values.iter().map(|&v| f64::from(v))) / n) as f32;
    let centred: Vec<f32> = values.iter().map(|v| v - shift).collect();
    let squares = sum(centred.iter().map(|&c| f64::from(c) * f64::from(c)));
    let mut scale = (6.0 * (squares / (n - 1.0)).sqrt() / bins) as f32;
    let least = f32::from_bits(0x2b8c_bccd);
    if scale == 0.0 {
        scale = 1.0;
    } else if scale < least {
        scale = least;
    } else if scale > 1e4 {
        scale = 1e4;
    }
    let code = |c: &f32| {
        let level = c / scale + (rule.bins / 2) as f32;
        let floor = level.floor();
        let up = level - floor > 0.5 || (level - floor == 0.5 && floor % 2.0 != 0.0);
        (if up { floor + 1.0 } else { floor }).clamp(0.0, (rule.bins - 1) as f32) as u8
    };
    let all: Vec<u8> = centred.iter().map(code).collect();
    let mut book = Vec::new();
    for bin in (0..rule.bins).map(|bin| bin as u8) {
        // A run adds what it has of a code; runs without it add nothing.
        let of = |(run, codes): (&[f32], &[u8])| {
            run.iter()
                .zip(codes)
                .filter(|(_, c)| **c == bin)
                .fold(0.0, |s, (v, _)| s + f64::from(*v))
        };
        let total = centred.chunks(65_536).zip(all.chunks(65_536)).map(of).fold(0.0, |s, r| s + r);
        let count = all.iter().filter(|c| **c == bin).count();
        book.push(if count == 0 { 0.0 } else { (total / count as f64) as f32 });
    }
    book.push(shift);
    let codes: Vec<Vec<u8>> = all.chunks(k).map(<[u8]>::to_vec).collect();
    for (block, (kept, codes)) in positions.iter().zip(&codes).enumerate() {
        for (&p, &code) in kept.iter().zip(codes) {
            error[grid.element(block as u64, p as u64)] -= book[usize::from(code)] + shift;
        }
    }
    Expected { positions, codes, book }
}

// ---- a model, its files, and what was made of them ----

/// A model's tensors of every rank and dtype, cut in blocks of several forms.
fn shapes() -> Vec<(&'static str, Dtype, Vec<u64>)> {
    vec![
        ("a.weight", Dtype::F32, vec![16, 24]),
        ("b.bias", Dtype::F32, vec![40]),
        ("c.odd", Dtype::Bf16, vec![13, 6]),
        ("d.row", Dtype::F32, vec![1, 48]),
        ("e.half", Dtype::F16, vec![24, 16]),
        ("f.pair", Dtype::F32, vec![2]),
        ("g.wide", Dtype::F32, vec![8, 640]),
    ]
}

fn tensors(shapes: &[(&str, Dtype, Vec<u64>)], random: &mut Random, size: f32) -> Vec<Tensor> {
    let mut made = Vec::new();
    for (name, dtype, shape) in shapes {
        let count = shape.iter().product::<u64>();
        let values: Vec<f32> = (0..count).map(|_| small(random) * size).collect();
        let bytes = match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            // Any bits below the infinities do for an f16.
            Dtype::F16 => values
                .iter()
                .flat_map(|v| ((v.to_bits() >> 17) as u16 & 0xbbff).to_le_bytes())
                .collect(),
            _ => values.iter().flat_map(|v| widen::f32_to_bf16(*v).to_le_bytes()).collect(),
        };
        made.push(Tensor::new(name, *dtype, shape, bytes));
    }
    made
}

fn wide(tensor: &Tensor) -> Vec<f32> {
    let pair = |pair: &[u8; 2]| u16::from_le_bytes(*pair);
    let pairs = tensor.bytes.as_chunks::<2>().0.iter().map(pair);
    match tensor.dtype {
        Dtype::F32 => floats(&tensor.bytes),
        Dtype::F16 => pairs.map(widen::f16_to_f32).collect(),
        _ => pairs.map(widen::bf16_to_f32).collect(),
    }
}

/// A miner's directory.
struct Miner {
    dir: TempDir,
    rule: SparseMeanSgd,
    threads: usize,
    band_bytes: u64,
    files: Arc<dyn Files>,
}

impl Miner {
    fn new(rule: SparseMeanSgd) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, rule, threads: 2, band_bytes: BAND_BYTES, files: Arc::new(Disk) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn state(&self) -> PathBuf {
        self.path("state.safetensors")
    }

    fn put(&self, name: &str, tensors: &[Tensor]) -> PathBuf {
        let path = self.path(&format!("{name}.safetensors"));
        put_safetensors(&path, tensors);
        path
    }

    fn delta(&self, round: u64, base: &str, trained: &str) -> Result<DeltaReport, DeltaError> {
        self.delta_to(round, base, trained, Format::Native, &self.out(round))
    }

    fn out(&self, round: u64) -> PathBuf {
        self.path(&format!("delta-{round}"))
    }

    fn delta_to(
        &self,
        round: u64,
        base: &str,
        trained: &str,
        format: Format,
        out: &Path,
    ) -> Result<DeltaReport, DeltaError> {
        let open = |name: &str, what| {
            let path = self.path(&format!("{name}.safetensors"));
            Weights::Foreign(Box::new(Checkpoint::open(&path, None).unwrap()), what)
        };
        let (base, trained) = (open(base, "base"), open(trained, "trained checkpoint"));
        let (layout, state) = (base.layout(&self.rule)?, self.state());
        let job = DeltaJob {
            base: &base,
            trained: &trained,
            layout: &layout,
            rule: &self.rule,
            round,
            range: 6,
            decay: 0.95,
            state: Some(&state),
            output: Some(Output { path: out, format }),
            threads: self.threads,
            band_bytes: self.band_bytes,
        };
        make(&job, &self.files, &Silent)
    }

    /// The kept error of each tensor.
    fn kept(&self) -> BTreeMap<String, Vec<f32>> {
        let state = Checkpoint::open(&self.state(), None).unwrap();
        let read = |(at, spec): (usize, &gradledger::types::tensor::TensorSpec)| {
            let mut bytes = vec![0; spec.bytes() as usize];
            state.read(at, 0, &mut bytes).unwrap();
            (spec.name().to_owned(), floats(&bytes))
        };
        state.tensors().iter().enumerate().map(read).collect()
    }
}

fn all(bytes: &dyn LogicalBytes) -> Vec<u8> {
    let mut all = vec![0; bytes.len() as usize];
    bytes.read_at(0, &mut all).unwrap();
    all
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn native(top_k: u64, bins: u64) -> SparseMeanSgd {
    rule(Dialect::Native, 8, top_k, bins)
}

fn same(dir: &Path, tensor: &Tensor, expected: &Expected, rule: &SparseMeanSgd) {
    let segments = DeltaSegments::open(&Disk, dir).unwrap();
    let (name, k) = (&tensor.name, expected.positions[0].len());
    let mut index = Vec::new();
    codes::unpack_index(&all(&*segments.index(name).unwrap()), &mut index);
    let positions: Vec<u16> = expected.positions.iter().flatten().map(|p| *p as u16).collect();
    assert_eq!(index, positions, "{name}");
    let mut found = Vec::new();
    codes::unpack_codes(&all(&*segments.code(name).unwrap()), k, rule.code_bits(), &mut found);
    assert_eq!(found, expected.codes.concat(), "{name}");
    let book = floats(&all(&*segments.book(name).unwrap()));
    assert_eq!(bits(&book), bits(&expected.book), "{name}");
}

#[test]
fn rounds_of_feedback_equal_a_straightforward_reference() {
    for (top_k, bins) in [(4, 4), (8, 16), (2, 256), (64, 4)] {
        let miner = Miner::new(native(top_k, bins));
        let shapes = shapes();
        let mut random = Random(top_k * 1000 + bins);
        let mut kept: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for round in [3, 4, 9] {
            let base = tensors(&shapes, &mut random, 1.0);
            let trained = tensors(&shapes, &mut random, 0.5);
            miner.put("base", &base);
            miner.put("trained", &trained);
            let report = miner.delta(round, "base", "trained").unwrap();
            assert!(!report.already_made);
            for (base, trained) in base.iter().zip(&trained) {
                let (before, after) = (wide(base), wide(trained));
                let error =
                    kept.entry(base.name.clone()).or_insert_with(|| vec![0.0; before.len()]);
                for (at, error) in error.iter_mut().enumerate() {
                    let gradient = before[at] - after[at];
                    let decayed = 0.95f32 * *error;
                    *error = decayed + gradient;
                }
                let norm = sum(error.iter().map(|&e| f64::from(e).powi(2))).sqrt();
                let expected = reference(base, error, &miner.rule);
                same(&miner.out(round), base, &expected, &miner.rule);
                let reported = report.tensors.iter().find(|t| t.name == base.name).unwrap();
                assert!((reported.norm_error - norm).abs() <= 1e-9 * norm);
                let lost = sum(error.iter().map(|&e| f64::from(e).powi(2)));
                let share = 1.0 - lost / (norm * norm);
                assert!((reported.energy_kept - share).abs() < 1e-5, "{reported:?} {share}");
            }
            for (name, found) in miner.kept() {
                assert_eq!(bits(&found), bits(&kept[&name]), "round {round}, {name}");
            }
        }
    }
}

#[test]
fn threads_and_bands_change_no_bit() {
    let mut first = None;
    for (threads, band_bytes) in
        [(1, BAND_BYTES), (2, 1), (3, 700), (4, 4096), (5, 1 << 14), (6, 1), (7, 9000), (8, 1)]
    {
        let miner = Miner { threads, band_bytes, ..Miner::new(native(6, 16)) };
        let mut random = Random(1);
        for round in [1, 2] {
            miner.put("base", &tensors(&shapes(), &mut random, 1.0));
            miner.put("trained", &tensors(&shapes(), &mut random, 1.0));
            miner.delta(round, "base", "trained").unwrap();
        }
        let mut bytes = fs::read(miner.state()).unwrap();
        for file in common::model::all_files(&miner.out(2)) {
            bytes.extend(fs::read(file).unwrap());
        }
        let digest = Digest::of(&bytes);
        assert_eq!(*first.get_or_insert(digest), digest, "{threads} threads, {band_bytes} bytes");
    }
}

#[test]
fn zeros_equals_and_whole_blocks_are_encoded() {
    let shape = [("w", Dtype::F32, vec![16, 16])];
    let of = |values: &[f32]| vec![Tensor::f32("w", &shape[0].2, values)];
    let ramp: Vec<f32> = (0..256).map(|at| at as f32 - 100.0).collect();
    for (case, gradient) in [
        ("zero", vec![0.0; 256]),
        ("minus zero", vec![-0.0; 256]),
        ("equal", vec![0.375; 256]),
        ("denormal", vec![f32::from_bits(3); 256]),
        ("ramp", ramp),
    ] {
        for (top_k, bins) in [(4, 4), (64, 16), (64, 256)] {
            let miner = Miner::new(native(top_k, bins));
            miner.put("base", &of(&gradient));
            miner.put("trained", &of(&[0.0; 256]));
            let report = miner.delta(1, "base", "trained").unwrap();
            // Minus zero less zero is minus zero; it is added to a kept +0.
            let mut error: Vec<f32> = gradient.iter().map(|g| 0.95 * 0.0 + (g - 0.0)).collect();
            let expected = reference(&of(&gradient)[0], &mut error, &miner.rule);
            same(&miner.out(1), &of(&gradient)[0], &expected, &miner.rule);
            assert_eq!(bits(&miner.kept()["w"]), bits(&error), "{case}");
            if matches!(case, "zero" | "minus zero") {
                assert_eq!(report.tensors[0].energy_kept, 1.0);
            }
            if matches!(case, "equal" | "denormal") && top_k == 64 {
                assert!(error.iter().all(|e| *e == 0.0), "equal values are sent as they are");
            }
            if case == "equal" && top_k == 4 {
                assert_eq!(expected.positions[0], [0, 1, 2, 3], "the lower index of equal ones");
            }
        }
    }
}

// ---- what is refused ----

/// A miner with one round's files.
fn started() -> Miner {
    let miner = Miner::new(native(4, 4));
    let mut random = Random(5);
    miner.put("base", &tensors(&shapes(), &mut random, 1.0));
    miner.put("trained", &tensors(&shapes(), &mut random, 1.0));
    miner.put("other", &tensors(&shapes(), &mut random, 1.0));
    miner
}

#[test]
fn a_round_is_kept_once() {
    let miner = started();
    let first = miner.delta(5, "base", "trained").unwrap();
    let state = fs::read(miner.state()).unwrap();
    let again = miner.delta(5, "base", "trained").unwrap();
    assert!(again.already_made && again.tensors.is_empty());
    assert_eq!((again.delta, again.made), (first.delta, first.made));
    let other = miner.delta(5, "base", "other").unwrap_err();
    assert!(matches!(
        other,
        DeltaError::Other { round: 5, what: "another trained checkpoint", .. }
    ));
    assert!(other.to_string().contains("put back a copy of the state"), "{other}");
    let other = miner.delta(5, "other", "trained").unwrap_err();
    assert!(matches!(other, DeltaError::Other { what: "another base", .. }));
    let behind = miner.delta(4, "base", "trained").unwrap_err();
    assert!(matches!(behind, DeltaError::Behind { round: 4, state: 5, .. }));
    let elsewhere = miner.path("elsewhere");
    let gone = miner.delta_to(5, "base", "trained", Format::Native, &elsewhere).unwrap_err();
    assert!(matches!(gone, DeltaError::Gone { round: 5, .. }));
    assert_eq!(fs::read(miner.state()).unwrap(), state, "nothing of this changed the state");
}

#[test]
fn another_delta_at_its_place_is_left_alone() {
    let miner = started();
    miner.delta(5, "base", "trained").unwrap();
    let before = fs::read(miner.out(5).join("books.parquet")).unwrap();
    fs::remove_file(miner.state()).unwrap();
    let taken = miner.delta_to(5, "base", "other", Format::Native, &miner.out(5)).unwrap_err();
    assert!(matches!(taken, DeltaError::Occupied { .. }), "{taken}");
    assert!(!miner.state().exists(), "its error was not kept");
    assert_eq!(fs::read(miner.out(5).join("books.parquet")).unwrap(), before);
    assert!(!miner.path("delta-5.new").exists(), "and nothing lies about");
    // The very delta at its place is what a killed run leaves.
    miner.delta(5, "base", "trained").unwrap();
    assert!(miner.state().exists());
    // A directory with something else in it, and one that was made for the delta.
    fs::create_dir(miner.out(6)).unwrap();
    fs::write(miner.out(6).join("mine"), b"mine").unwrap();
    let taken = miner.delta(6, "base", "other").unwrap_err();
    assert!(matches!(taken, DeltaError::Occupied { .. }), "{taken}");
    fs::remove_file(miner.out(6).join("mine")).unwrap();
    miner.delta(6, "base", "other").unwrap();
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let miner = started();
    let mut random = Random(6);
    let mut spoiled = tensors(&shapes(), &mut random, 1.0);
    spoiled[4].bytes[2 * 37..][..2].copy_from_slice(&0x7c00u16.to_le_bytes());
    miner.put("infinite", &spoiled);
    let error = miner.delta(1, "base", "infinite").unwrap_err();
    let named =
        matches!(&error, DeltaError::NonFinite { tensor, element: 37 } if tensor == "e.half");
    assert!(named, "{error}");
    let mut large = tensors(&shapes(), &mut random, 1.0);
    large[0] = Tensor::f32("a.weight", &[16, 24], &[-2.0f32.powi(60); 384]);
    miner.put("large", &large);
    let error = miner.delta(1, "base", "large").unwrap_err();
    assert!(matches!(&error, DeltaError::Book { tensor, .. } if tensor == "a.weight"), "{error}");
    miner.put("short", &tensors(&shapes()[1..], &mut random, 1.0));
    let error = miner.delta(1, "base", "short").unwrap_err();
    assert!(matches!(&error, DeltaError::Missing { name, .. } if name == "a.weight"), "{error}");
    let mut turned = shapes();
    turned[0].2 = vec![24, 16];
    miner.put("turned", &tensors(&turned, &mut random, 1.0));
    let error = miner.delta(1, "base", "turned").unwrap_err();
    assert!(matches!(&error, DeltaError::Shape { name, .. } if name == "a.weight"), "{error}");
    assert!(!miner.state().exists() && !miner.out(1).exists(), "nothing was made");
}

#[test]
fn a_state_of_something_else_is_refused() {
    let miner = started();
    miner.delta(1, "base", "trained").unwrap();
    let good = fs::read(miner.state()).unwrap();
    let text = String::from_utf8_lossy(&good[..4096]).into_owned();
    for (from, to) in [
        ("\"gradledger_feedback\":\"1\"", "\"gradledger_feedback\":\"2\""),
        ("\"round\":\"1\"", "\"round\":\"x\""),
        ("\"range\":\"6\"", "\"rangE\":\"6\""),
        ("\"b.bias\"", "\"b.bios\""),
        ("\"shape\":[16,24]", "\"shape\":[24,16]"),
    ] {
        let at = text.find(from).unwrap_or_else(|| panic!("{from} stands in {text}"));
        let mut bad = good.clone();
        bad[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(miner.state(), &bad).unwrap();
        let error = miner.delta(2, "base", "trained").unwrap_err();
        assert!(matches!(error, DeltaError::State { .. }), "{to}: {error}");
    }
    for cut in [0, 7, 100, good.len() - 1] {
        fs::write(miner.state(), &good[..cut]).unwrap();
        let error = miner.delta(2, "base", "trained").unwrap_err();
        assert!(matches!(error, DeltaError::StateFile { .. }), "{cut}: {error}");
    }
    put_safetensors(&miner.state(), &tensors(&shapes(), &mut Random(1), 1.0));
    assert!(matches!(miner.delta(2, "base", "trained"), Err(DeltaError::State { .. })));
}

// ---- golden ----

/// What Templar decoded from its own miners' files, encoded again: where no two magnitudes are equal
/// the same positions are chosen, and they decode to nearly the same values.
#[test]
fn golden_dense_deltas_keep_their_positions() {
    let (mut encoded, mut tied, mut same_codes, mut codes_seen) = (0, 0, 0u64, 0u64);
    for case in fs::read_dir(golden().join("templar")).unwrap().map(|e| e.unwrap().path()) {
        let Ok(json) = fs::read(case.join("case.json")) else { continue };
        let json: Value = serde_json::from_slice(&json).unwrap();
        let number = |key: &str| json["hparams"][key].as_u64().unwrap();
        let rule = rule(
            Dialect::Templar,
            number("target_chunk"),
            number("topk_compression"),
            number("quantization_bins"),
        );
        for round in json["rounds"].as_array().unwrap() {
            let dir = case.join(format!("w{}", round["window"]));
            let read = |name: &str| Checkpoint::open(&dir.join(name), None);
            let (Ok(dense), Ok(unpacked)) =
                (read("dense.safetensors"), read("unpacked.safetensors"))
            else {
                continue;
            };
            let bytes = |of: &Checkpoint, name: &str| {
                let at = of.tensors().iter().position(|t| t.name() == name)?;
                let mut bytes = vec![0; of.tensors()[at].bytes() as usize];
                of.read(at, 0, &mut bytes).unwrap();
                Some(bytes)
            };
            for spec in dense.tensors() {
                let values = floats(&bytes(&dense, spec.name()).unwrap());
                let tensor = Tensor::f32("w", spec.shape(), &values);
                let grid = tensor.grid(rule.chunk);
                let k = (rule.top_k.min(grid.block_len()) & !1) as usize;
                let (miner, zero) = (Miner::new(rule.clone()), vec![0.0; values.len()]);
                miner.put("base", std::slice::from_ref(&tensor));
                miner.put("trained", &[Tensor::f32("w", spec.shape(), &zero)]);
                match miner.delta(1, "base", "trained") {
                    // One case has miners whose values overflow.
                    Err(DeltaError::Book { .. } | DeltaError::NonFinite { .. }) => {
                        assert!(values.iter().any(|v| v.abs() > 1e38 || !v.is_finite()));
                        continue;
                    }
                    made => made.unwrap(),
                };
                let segments = DeltaSegments::open(&Disk, &miner.out(1)).unwrap();
                let (mut index, mut code) = (Vec::new(), Vec::new());
                codes::unpack_index(&all(&*segments.index("w").unwrap()), &mut index);
                let packed = all(&*segments.code("w").unwrap());
                codes::unpack_codes(&packed, k, rule.code_bits(), &mut code);
                let theirs = bytes(&unpacked, &format!("{}/idx", spec.name())).unwrap();
                let theirs: Vec<u16> =
                    theirs.as_chunks::<2>().0.iter().map(|p| u16::from_le_bytes(*p)).collect();
                let their_codes = bytes(&unpacked, &format!("{}/codes", spec.name())).unwrap();
                let blocks = index.chunks(k).zip(code.chunks(k));
                let their_blocks = theirs.chunks(k).zip(their_codes.chunks(k));
                for ((block, ours), theirs) in (0..).zip(blocks).zip(their_blocks) {
                    let value = |p: u16| values[grid.element(block, p.into())];
                    // What decodes to zero cannot be told from what was not sent.
                    if theirs.0.iter().any(|&p| value(p) == 0.0) {
                        tied += 1;
                        continue;
                    }
                    let sorted = |(index, code): (&[u16], &[u8])| {
                        let mut both: Vec<(u16, u8)> =
                            index.iter().copied().zip(code.iter().copied()).collect();
                        both.sort_unstable();
                        both
                    };
                    let (ours, theirs) = (sorted(ours), sorted(theirs));
                    let places = |of: &[(u16, u8)]| of.iter().map(|e| e.0).collect::<Vec<_>>();
                    assert_eq!(places(&ours), places(&theirs), "{} block {block}", spec.name());
                    same_codes +=
                        ours.iter().zip(&theirs).filter(|(a, b)| a.1 == b.1).count() as u64;
                    codes_seen += k as u64;
                    encoded += 1;
                }
            }
        }
    }
    println!(
        "{encoded} blocks, {tied} left out for a zero; {same_codes} of {codes_seen} codes as Templar's"
    );
    assert!(encoded > 500, "{encoded} blocks were compared");
    // Values that were quantised spread a little less, so those near an edge may move by a code.
    assert!(same_codes * 100 >= codes_seen * 95, "{same_codes} of {codes_seen}");
}

// ---- through the ledger ----

fn gradledger(args: &[&dyn AsRef<std::ffi::OsStr>]) -> (Option<i32>, Value, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
    command.args(args.iter().map(|a| a.as_ref()));
    let output = command.output().unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code(), json, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn done(args: &[&dyn AsRef<std::ffi::OsStr>]) -> Value {
    let (code, json, stderr) = gradledger(args);
    assert_eq!(code, Some(0), "{stderr}");
    json
}

/// `base - lr * decoded` of a delta alone in its round.
fn folded(base: &[f32], kept: &[f32], error: &[f32], lr: f32) -> Vec<f32> {
    let step = |((base, kept), error): ((&f32, &f32), &f32)| base - lr * (error - kept);
    base.iter().zip(kept).zip(error).map(step).collect()
}

#[test]
fn a_delta_of_the_ledgers_state_is_submitted_and_sealed() {
    let miner = started();
    let wallet = golden().join("wallet/hk_mnemonic");
    if !wallet.exists() {
        println!("no golden wallets: skipped");
        return;
    }
    let keyfile: Value = serde_json::from_slice(&fs::read(&wallet).unwrap()).unwrap();
    let (ledger, hotkeys) = (miner.path("ledger"), miner.path("hotkeys"));
    fs::write(&hotkeys, keyfile["ss58Address"].as_str().unwrap()).unwrap();
    let base = miner.path("base.safetensors");
    done(&[
        &"init",
        &ledger,
        &"--run",
        &"delta",
        &"--checkpoint",
        &base,
        &"--rule",
        &"native",
        &"--chunk",
        &"8",
        &"--top-k",
        &"8",
        &"--bins",
        &"16",
        &"--miners",
        &hotkeys,
    ]);
    let mut checkpoint = base;
    for round in ["1", "2", "3"] {
        let (out, trained) = (miner.path(&format!("d{round}")), miner.path("trained.safetensors"));
        let state = miner.state();
        let make: [&dyn AsRef<std::ffi::OsStr>; 8] =
            [&"delta", &ledger, &trained, &"--out", &out, &"--state", &state, &"--json"];
        let report = done(&make);
        assert_eq!(report["round"].to_string(), round);
        assert_eq!((&report["already_made"], &report["dry_run"]), (&false.into(), &false.into()));
        let again = done(&make);
        assert_eq!((&again["already_made"], &again["delta"]), (&true.into(), &report["delta"]));
        // The same from the exported state: the identity is the values', not the form's.
        let dry = done(&[
            &"delta",
            &checkpoint,
            &trained,
            &"--dry-run",
            &"--json",
            &"--round",
            &round,
            &"--chunk",
            &"8",
            &"--top-k",
            &"8",
            &"--bins",
            &"16",
        ]);
        assert_eq!((&dry["base"], &dry["trained"]), (&report["base"], &report["trained"]));
        let submitted =
            done(&[&"submit", &ledger, &out, &"--round", &round, &"--key", &wallet, &"--json"]);
        assert_eq!(submitted["rejected"], Value::Null);
        assert_eq!(submitted["delta"], report["delta"], "the ledger stored what was reported");
        let sealed = done(&[&"seal", &ledger, &"--round", &round, &"--json"]);
        assert_eq!(sealed["accepted"].as_array().unwrap().len(), 1);
        let export = miner.path(&format!("export-{round}"));
        done(&[&"export", &ledger, &"--round", &round, &"--out", &export]);
        checkpoint = export.join("model.safetensors");
    }
    let (code, _, stderr) = gradledger(&[
        &"delta",
        &ledger,
        &miner.path("trained.safetensors"),
        &"--dry-run",
        &"--bins",
        &"4",
    ]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--bins 4 is not the ledger's, which is 16"), "{stderr}");
}

#[test]
fn the_sealed_state_is_the_base_less_what_the_feedback_let_go() {
    let miner = Miner::new(rule(Dialect::Templar, 8, 8, 16));
    let (base, trained) = {
        let shape = [("w", Dtype::F32, vec![16, 24])];
        let mut random = Random(3);
        (tensors(&shape, &mut random, 1.0), tensors(&shape, &mut random, 1.0))
    };
    let (base_path, trained_path) = (miner.put("base", &base), miner.put("trained", &trained));
    let (ledger, files) = (miner.path("ledger"), miner.path("files"));
    fs::create_dir(&files).unwrap();
    let out = files.join("gradient-1-7-v2.1.28.pt");
    done(&[
        &"init",
        &ledger,
        &"--run",
        &"delta",
        &"--checkpoint",
        &base_path,
        &"--rule",
        &"templar",
        &"--chunk",
        &"8",
        &"--top-k",
        &"8",
        &"--bins",
        &"16",
        &"--lr",
        &"0.5",
    ]);
    let report = done(&[
        &"delta",
        &ledger,
        &trained_path,
        &"--out",
        &out,
        &"--state",
        &miner.state(),
        &"--format",
        &"templar",
        &"--json",
    ]);
    done(&[
        &"import",
        &"templar",
        &ledger,
        &"--round",
        &"1",
        &"--gradients",
        &files,
        &"--peers",
        &"7",
    ]);
    let sealed = done(&[&"seal", &ledger, &"--round", &"1", &"--json"]);
    assert_eq!(sealed["accepted"][0]["uid"], 7, "{sealed}");
    // The native form of the same round is the same delta.
    fs::remove_file(miner.state()).unwrap();
    let native = miner.delta(1, "base", "trained").unwrap();
    assert_eq!(serde_json::to_value(native.delta).unwrap(), report["delta"]);
    let export = miner.path("export");
    done(&[&"export", &ledger, &"--round", &"1", &"--out", &export]);
    let next = Checkpoint::open(&export, None).unwrap();
    let mut bytes = vec![0; next.tensors()[0].bytes() as usize];
    next.read(0, 0, &mut bytes).unwrap();
    let (before, after) = (wide(&base[0]), wide(&trained[0]));
    let error: Vec<f32> = before.iter().zip(&after).map(|(b, t)| b - t).collect();
    let expected = folded(&before, &miner.kept()["w"], &error, 0.5);
    for (found, expected) in floats(&bytes).iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
}

#[test]
fn a_dry_run_writes_nothing_and_says_all() {
    let miner = started();
    let before = common::model::all_files(miner.dir.path());
    let (base, trained) = (miner.path("base.safetensors"), miner.path("trained.safetensors"));
    let json = done(&[
        &"delta",
        &base,
        &trained,
        &"--dry-run",
        &"--round",
        &"3",
        &"--chunk",
        &"8",
        &"--top-k",
        &"8",
        &"--bins",
        &"4",
        &"--json",
        &"--state",
        &miner.state(),
    ]);
    assert_eq!(common::model::all_files(miner.dir.path()), before);
    let of = |name: &str| {
        let tensors = json["tensors"].as_array().unwrap();
        tensors.iter().find(|t| t["name"] == name).unwrap().clone()
    };
    let a = of("a.weight");
    // Six blocks of 8: positions 12 bytes, codes 2; a book of 20 bytes.
    assert_eq!((&a["sent"], &a["bytes"]), (&48.into(), &(6 * 14 + 20).into()));
    let counts: u64 = a["codes"].as_array().unwrap().iter().map(|c| c.as_u64().unwrap()).sum();
    assert_eq!(counts, 48);
    let share = json["total"]["energy_kept"].as_f64().unwrap();
    assert!(share > 0.2 && share < 1.0, "{share}");
    assert_eq!(json["total"]["name"], "total");
    let (code, _, stderr) = gradledger(&[&"delta", &base, &trained, &"--dry-run"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("--round"), "{stderr}");
}

// ---- crashes ----

/// The second round of a miner whose inputs are on a disk that does not fail.
struct Feedback {
    miner: Miner,
    format: Format,
    disk: MemFs,
    old: Vec<u8>,
    new: Vec<u8>,
    delta: BTreeMap<PathBuf, Vec<u8>>,
}

const HOME: &str = "/miner";

impl Feedback {
    fn new(format: Format) -> Self {
        let mut miner = started();
        let disk = MemFs::new();
        miner.files = disk.handle();
        let mut made =
            Self { miner, format, disk, old: vec![], new: vec![], delta: BTreeMap::new() };
        made.round(1, "base", "other", made.disk.handle()).unwrap();
        made.disk = made.disk.restart(Survival::Dropped);
        made.old = read_whole(&made.disk, Path::new("/miner/state"), 1 << 20).unwrap();
        let whole = made.disk.fork(None);
        made.round(2, "base", "trained", whole.handle()).unwrap();
        made.new = read_whole(&whole, Path::new("/miner/state"), 1 << 20).unwrap();
        made.delta = delta_files(&whole);
        assert!(made.old != made.new && !made.delta.is_empty());
        made
    }

    fn round(
        &self,
        round: u64,
        base: &str,
        trained: &str,
        files: Arc<dyn Files>,
    ) -> Result<DeltaReport, DeltaError> {
        let open = |name: &str| {
            let path = self.miner.path(&format!("{name}.safetensors"));
            Weights::Foreign(Box::new(Checkpoint::open(&path, None).unwrap()), "input")
        };
        let (base, trained) = (open(base), open(trained));
        let layout = base.layout(&self.miner.rule)?;
        let out = PathBuf::from(format!("{HOME}/delta-{round}"));
        let job = DeltaJob {
            base: &base,
            trained: &trained,
            layout: &layout,
            rule: &self.miner.rule,
            round,
            range: 6,
            decay: 0.95,
            state: Some(Path::new("/miner/state")),
            output: Some(Output { path: &out, format: self.format }),
            threads: 1,
            band_bytes: BAND_BYTES,
        };
        make(&job, &files, &Silent)
    }
}

/// The published delta of round 2.
fn delta_files(disk: &MemFs) -> BTreeMap<PathBuf, Vec<u8>> {
    let ours = |path: &PathBuf| path.starts_with("/miner/delta-2");
    disk.files().into_iter().filter(|(path, _)| ours(path)).collect()
}

impl Scenario for Feedback {
    /// That the round was made.
    type Fact = &'static str;

    fn name(&self) -> &str {
        match self.format {
            Format::Native => "delta",
            Format::Templar => "delta, Templar's form",
        }
    }

    fn disk(&self) -> MemFs {
        self.disk.fork(None)
    }

    fn act(&self, files: Arc<dyn Files>, facts: &mut Vec<&'static str>) -> Result<(), Failed> {
        self.round(2, "base", "trained", files)?;
        facts.push("made");
        Ok(())
    }

    fn recover(&self, _: Arc<dyn Files>) -> Result<(), Failed> {
        Ok(())
    }

    fn check(&self, files: Arc<dyn Files>, facts: &[&'static str]) -> Result<(), Failed> {
        let state = read_whole(&*files, Path::new("/miner/state"), 1 << 20)?;
        if state != self.old && state != self.new {
            return Err("the state is neither the old one nor the new one".into());
        }
        if !facts.is_empty() && state != self.new {
            return Err("the feedback of an acknowledged round is lost".into());
        }
        if state == self.new {
            // The state says so: then the delta is there, whole.
            for (path, bytes) in &self.delta {
                if read_whole(&*files, path, 1 << 20)? != *bytes {
                    return Err(format!("{} is another one", path.display()).into());
                }
            }
        }
        Ok(())
    }
}

#[test]
fn feedback_is_applied_once_whatever_fails() {
    for format in [Format::Native, Format::Templar] {
        let scenario = Feedback::new(format);
        let counts = run(&scenario, &honest, Effort::from_env());
        println!("crash: {counts}");
        let first: Vec<_> = counts.violations.iter().take(5).collect();
        assert!(first.is_empty(), "{} violations, the first: {first:#?}", counts.violations.len());
        assert!(counts.calls > 20, "{counts}");
    }
}

/// A cut between the delta's publication and the state's: the same delta, the error kept once.
#[test]
fn a_kill_between_delta_and_state_gives_the_same_delta() {
    let scenario = Feedback::new(Format::Native);
    let whole = scenario.disk();
    scenario.round(2, "base", "trained", whole.handle()).unwrap();
    let trace = whole.trace();
    let publish = trace.iter().position(|(_, path)| path.ends_with("state.new")).unwrap();
    let cut = scenario.disk.fork(Some(Fault::CutAt(publish)));
    assert!(scenario.round(2, "base", "trained", cut.handle()).is_err());
    let next = cut.restart(Survival::Dropped);
    assert_eq!(delta_files(&next), scenario.delta, "the delta was durable before the state");
    assert_eq!(read_whole(&next, Path::new("/miner/state"), 1 << 20).unwrap(), scenario.old);
    let report = scenario.round(2, "base", "trained", next.handle()).unwrap();
    assert!(!report.already_made);
    assert_eq!(delta_files(&next), scenario.delta);
    assert_eq!(read_whole(&next, Path::new("/miner/state"), 1 << 20).unwrap(), scenario.new);
}

#[test]
fn a_state_says_what_it_stands_after() {
    let miner = started();
    let report = miner.delta(7, "base", "trained").unwrap();
    let texts = metadata(&FileSource::open(&miner.state()).unwrap()).unwrap();
    assert_eq!(texts["round"], "7");
    assert_eq!(texts["delta"], report.delta.root.to_hex());
    assert_eq!(texts["decay_f32"], "3f733333");
    let bytes = fs::read(miner.state()).unwrap();
    let other = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(other.len(), shapes().len(), "the library's own reader takes it");
}
