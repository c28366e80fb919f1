//! Rounds that Templar's own code ran, folded here to the same bits.
//!
//! Takes every case below `templar/` in the golden folder: norms and factors of the plan, the
//! aggregated delta, parameters after each round, who was folded in which order, what was skipped;
//! from gradient files and from the aggregator, on every kernel and several thread counts.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use gradledger::{
    codec::{
        book::Book,
        layout::{DeltaGroup, Layout, TensorLayout},
    },
    import::checkpoint::Checkpoint,
    ledger::{
        At, Ledger,
        import::{Gradients, Peers, import_templar},
        init::{InitOptions, init},
        replay::{ReplayOptions, replay},
        seal::{FoldOptions, SealReport, seal},
        writer::LedgerWriter,
    },
    store::{artifacts::StoredDelta, segment},
    types::{
        bits::F32Bits,
        plan::Plan,
        progress::Silent,
        rule::{Dialect, Mean, Norm, SparseMeanSgd},
    },
};
use gradledger_kernels::{Band, Contribution, Divisor, cpu, levels::levels, reference};
use serde_json::Value;
use tempfile::TempDir;

/// Packed positions, packed codes, and what each code stands for.
type Rows = (Vec<u8>, Vec<u8>, Vec<f32>);

/// One case: its folder and `case.json`.
struct Case {
    dir: PathBuf,
    json: Value,
}

fn cases() -> Vec<Case> {
    let root = common::golden().join("templar");
    let mut cases: Vec<Case> = fs::read_dir(&root)
        .unwrap_or_else(|e| panic!("{}: {e}", root.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|dir| dir.join("case.json").is_file())
        .map(|dir| {
            let json = serde_json::from_slice(&fs::read(dir.join("case.json")).unwrap()).unwrap();
            Case { dir, json }
        })
        .collect();
    cases.sort_by(|a, b| a.dir.cmp(&b.dir));
    assert!(!cases.is_empty(), "no case below {}", root.display());
    cases
}

impl Case {
    fn name(&self) -> String {
        self.dir.file_name().unwrap().to_string_lossy().into_owned()
    }

    fn rule(&self) -> SparseMeanSgd {
        let hparams = &self.json["hparams"];
        let number = |key: &str| hparams[key].as_u64().unwrap();
        SparseMeanSgd {
            dialect: Dialect::Templar,
            chunk: number("target_chunk"),
            top_k: number("topk_compression"),
            bins: number("quantization_bins"),
            lr_f32: F32Bits(hparams["outer_learning_rate"].as_f64().unwrap() as f32),
            mean: Mean::Contributors,
            norm: Norm::TorchCpuF32,
        }
    }

    fn rounds(&self) -> &[Value] {
        self.json["rounds"].as_array().unwrap()
    }

    fn window_dir(&self, round: u64) -> PathBuf {
        self.dir.join(format!("w{round}"))
    }

    /// A fresh ledger on the case's first parameters.
    fn ledger(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = self.dir.join("params-initial.safetensors");
        let options =
            InitOptions::new(&self.name(), "golden.example/run", &checkpoint, self.rule());
        init(dir.path(), &options, &Silent).unwrap();
        dir
    }
}

fn uids(value: &Value) -> Vec<u16> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u16).collect()
}

fn seal_one(ledger: &Path, round: &Value, from: &Gradients<'_>, path: cpu::Path) -> SealReport {
    let number = round["window"].as_u64().unwrap();
    let mut writer = LedgerWriter::open(ledger, None).unwrap();
    let peers = match from {
        Gradients::Directory(_) | Gradients::Absent => {
            Some(Peers { listed: uids(&round["peers"]), reserve: uids(&round["reserve_peers"]) })
        }
        Gradients::Aggregator(_) => None,
    };
    import_templar(&mut writer, number, from, peers, &Silent).unwrap();
    seal(&mut writer, number, FoldOptions { threads: 2, path }, &Silent).unwrap()
}

/// `0x1.8p-3`, `inf`, `nan` as Python writes them.
fn hex_float(text: &str) -> f64 {
    let (sign, text) = text.strip_prefix('-').map_or((1.0, text), |rest| (-1.0, rest));
    match text {
        "inf" => return sign * f64::INFINITY,
        "nan" => return f64::NAN,
        _ => {}
    }
    let (digits, exponent) = text.strip_prefix("0x").unwrap().split_once('p').unwrap();
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mantissa = u64::from_str_radix(&format!("{whole}{fraction}"), 16).unwrap() as f64;
    sign * mantissa * 2f64.powi(exponent.parse::<i32>().unwrap() - 4 * fraction.len() as i32)
}

fn assert_same_number(expected: f64, found: f64, what: &str) {
    let same = expected.to_bits() == found.to_bits() || (expected.is_nan() && found.is_nan());
    assert!(same, "{what}: expected {expected:e}, found {found:e}");
}

/// Every tensor of a safetensors file: name, logical bytes.
fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let checkpoint = Checkpoint::open(path, None).unwrap();
    let read = |(index, spec): (usize, &gradledger::types::tensor::TensorSpec)| {
        let mut bytes = vec![0; spec.bytes() as usize];
        checkpoint.read(index, 0, &mut bytes).unwrap();
        (spec.name().to_owned(), bytes)
    };
    checkpoint.tensors().iter().enumerate().map(read).collect()
}

/// The state after `round` equals the parameters that Templar had.
fn assert_state(ledger: &Ledger, case: &Case, round: &Value) {
    let number = round["window"].as_u64().unwrap();
    let state = ledger.checkpoint(ledger.state(At::Round(number)).unwrap()).unwrap();
    let theirs = tensors(&case.window_dir(number).join("params-after.safetensors"));
    assert_eq!(theirs.len(), state.manifest().descriptors().len());
    for (name, expected) in theirs {
        let position = state.manifest().position("weights", &name).unwrap();
        let mut found = vec![0; expected.len()];
        state.tensor(position).unwrap().read_exact(&mut found).unwrap();
        assert_eq!(expected, found, "{}, round {number}, {name}", case.name());
        let digest = gradledger::types::digest::Digest::of(&found).to_hex();
        assert_eq!(round["params_after_sha256"][&name].as_str().unwrap(), digest);
    }
}

/// The stored plan of `round`, and the layout its rows follow.
fn plan_of(ledger: &Ledger, round: u64) -> (Layout, Plan) {
    let layout = ledger.layout().unwrap();
    let record = &ledger.sealed()[ledger.position(round).unwrap()].record;
    let bins = 1 << ledger.rule().code_bits();
    let (files, root) = (&*ledger.place().files, &ledger.place().root);
    let rows = record.plan.bytes as usize / Plan::row_bytes(bins);
    let miners = rows / layout.tensors.len();
    let tensors = layout.tensors.len();
    let plan = segment::plan::read(files, root, &record.plan, tensors, miners, bins).unwrap();
    (layout, plan)
}

fn assert_plan(ledger: &Ledger, case: &Case, round: &Value) {
    let number = round["window"].as_u64().unwrap();
    let (layout, plan) = plan_of(ledger, number);
    for (at, tensor) in layout.tensors.iter().enumerate() {
        let theirs = &round["norms"][&tensor.name];
        for (miner, row) in plan.tensor(at).iter().enumerate() {
            let what = format!("{}, round {number}, {}, miner {miner}", case.name(), tensor.name);
            let number = |key: &str| hex_float(theirs[key][miner].as_str().unwrap());
            assert_same_number(number("norm"), row.norm, &format!("norm of {what}"));
            assert_same_number(
                number("clip_factor"),
                f64::from(row.factor),
                &format!("factor of {what}"),
            );
            assert_eq!(row.counts.iter().sum::<u64>(), tensor.grid.blocks() * tensor.k, "{what}");
        }
    }
}

/// A round's accepted deltas, by uid, in ledger order.
fn deltas_of(ledger: &Ledger, round: u64) -> Vec<(String, StoredDelta)> {
    let position = ledger.position(round).unwrap();
    let checked = gradledger::ledger::check::check_round(ledger, position).unwrap();
    let open = |(miner, id): &(String, _)| {
        (miner.replace("uid ", ""), StoredDelta::open(ledger.place(), *id).unwrap())
    };
    checked.deltas.iter().map(open).collect()
}

/// One miner's whole rows of a tensor, and what its codes stand for at `factor`.
fn rows_of(tensor: &TensorLayout, delta: &StoredDelta, factor: f32) -> Rows {
    let whole = |group, bytes: u64| {
        let mut all = vec![0; (tensor.grid.blocks() * bytes) as usize];
        delta.open_artifact(group, &tensor.name).unwrap().read_exact(&mut all).unwrap();
        all
    };
    let book = Book::from_bytes(&delta.book(&tensor.name).unwrap());
    (
        whole(DeltaGroup::Index, tensor.index_bytes_per_block()),
        whole(DeltaGroup::Code, tensor.code_bytes_per_block()),
        levels(&book.lookup, book.shift, factor),
    )
}

/// What the reference aggregates of these rows over the whole tensor equals `expected`.
fn assert_aggregate(tensor: &TensorLayout, rows: &[Rows], expected: &[u8], what: &str) {
    let grid = tensor.grid;
    let band = Band {
        rows: grid.rows as usize,
        columns: grid.columns as usize,
        block_rows: grid.block_rows as usize,
        block_columns: grid.block_columns as usize,
        k: tensor.k as usize,
        code_bits: tensor.code_bits,
    };
    let contributions: Vec<_> =
        rows.iter().map(|(index, code, levels)| Contribution { index, code, levels }).collect();
    let found = reference::aggregate(&band, &contributions, Divisor::Contributors).unwrap();
    assert_eq!(expected.len(), 4 * found.len(), "{what}");
    for (element, (expected, found)) in expected.as_chunks::<4>().0.iter().zip(&found).enumerate() {
        let expected = f32::from_le_bytes(*expected);
        let same = expected.to_bits() == found.to_bits() || (expected.is_nan() && found.is_nan());
        assert!(same, "{what}[{element}]: {expected:e}, {found:e}");
    }
}

/// The aggregated delta, from the stored deltas by the reference, equals Templar's.
fn assert_delta(ledger: &Ledger, case: &Case, round: &Value) {
    let number = round["window"].as_u64().unwrap();
    let deltas = deltas_of(ledger, number);
    let (layout, plan) = plan_of(ledger, number);
    for (name, expected) in tensors(&case.window_dir(number).join("delta.safetensors")) {
        let at = layout.tensors.iter().position(|t| t.name == name).unwrap();
        let rows: Vec<_> = deltas
            .iter()
            .zip(plan.tensor(at))
            .map(|((_, delta), row)| rows_of(&layout.tensors[at], delta, row.factor))
            .collect();
        let what = format!("{}, round {number}, {name}", case.name());
        assert_aggregate(&layout.tensors[at], &rows, &expected, &what);
    }
}

/// Each miner's own dense tensor, without clipping, equals Templar's. Large ones may be left out.
fn assert_dense(ledger: &Ledger, case: &Case, round: &Value) {
    let number = round["window"].as_u64().unwrap();
    let file = case.window_dir(number).join("dense.safetensors");
    if !file.is_file() {
        println!("{}, round {number}: no dense tensors", case.name());
        return;
    }
    let deltas = deltas_of(ledger, number);
    let layout = ledger.layout().unwrap();
    let mut compared = 0;
    for (key, expected) in tensors(&file) {
        let (uid, name) = key.split_once('/').unwrap();
        let Some((_, delta)) = deltas.iter().find(|(of, _)| of == uid) else { continue };
        let tensor = layout.find(name).unwrap();
        let what = format!("{}, round {number}, {key}", case.name());
        assert_aggregate(tensor, &[rows_of(tensor, delta, 1.0)], &expected, &what);
        compared += 1;
    }
    assert!(compared > 0, "{} names no accepted miner", file.display());
}

#[test]
fn golden_rounds_fold_to_templars_bits() {
    for case in cases() {
        for path in cpu::Path::available() {
            let ledger = case.ledger();
            for round in case.rounds() {
                let number = round["window"].as_u64().unwrap();
                let dir = case.window_dir(number);
                let report = seal_one(ledger.path(), round, &Gradients::Directory(&dir), path);
                let order: Vec<u16> = report.accepted.iter().map(|a| a.uid.unwrap()).collect();
                assert_eq!(order, uids(&round["gather_uids_in_order"]), "{}", case.name());
                let skipped: Vec<Value> = report.skipped.into_iter().map(Value::from).collect();
                assert_eq!(Value::from(skipped), round["skipped_params"], "{}", case.name());
                let opened = Ledger::open(ledger.path()).unwrap();
                assert_state(&opened, &case, round);
                assert_plan(&opened, &case, round);
                assert_delta(&opened, &case, round);
                assert_dense(&opened, &case, round);
            }
            println!("{}: {} rounds on {path:?}", case.name(), case.rounds().len());
        }
    }
}

#[test]
fn golden_aggregators_fold_to_the_same_state() {
    for case in cases() {
        let ledger = case.ledger();
        for round in case.rounds() {
            let number = round["window"].as_u64().unwrap();
            let dir = case.window_dir(number);
            let Some(file) = aggregator(&dir) else {
                println!("{}, round {number}: no aggregator file", case.name());
                continue;
            };
            seal_one(ledger.path(), round, &Gradients::Aggregator(&file), cpu::Path::best());
            assert_state(&Ledger::open(ledger.path()).unwrap(), &case, round);
        }
    }
}

fn aggregator(dir: &Path) -> Option<PathBuf> {
    let named =
        |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("aggregator-");
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).find(named)
}

#[test]
fn golden_rounds_replay_to_the_same_roots() {
    for case in cases() {
        let ledger = case.ledger();
        for round in case.rounds() {
            let dir = case.window_dir(round["window"].as_u64().unwrap());
            seal_one(ledger.path(), round, &Gradients::Directory(&dir), cpu::Path::best());
        }
        let opened = Ledger::open(ledger.path()).unwrap();
        let of = |at: Option<&Value>| at.unwrap()["window"].as_u64().unwrap();
        let (first, last) = (of(case.rounds().first()), of(case.rounds().last()));
        for path in cpu::Path::available() {
            for threads in [1, 3] {
                let fold = FoldOptions { threads, path };
                let options = ReplayOptions { rounds: first..=last, tensor: None, fold };
                let report = replay(&opened, &options, &Silent).unwrap();
                assert_eq!(report.rounds.len(), case.rounds().len());
            }
        }
        for tensor in opened.layout().unwrap().tensors {
            let fold = FoldOptions::default();
            let options = ReplayOptions { rounds: last..=last, tensor: Some(tensor.name), fold };
            replay(&opened, &options, &Silent).unwrap();
        }
    }
}
