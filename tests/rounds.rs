//! Rounds end to end: what is folded, against arithmetic written out here; what is refused, kept,
//! exported, replayed; and records that claim what is not so.

#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::{
    Random,
    gradient::{Gradient, Stored},
    memfs::{Fault, MemFs, Survival},
    model::{
        Delta, Model, Run, Sent, Tensor, accepted, all_files, copy_all, floats, fold_options,
        rejected, rule, safetensors,
    },
};
use gradledger::{
    export::{ExportDtype, FileSet, export},
    import::checkpoint::Checkpoint,
    ledger::{
        At, Ledger, LedgerError,
        check::{Disagreement, check_round},
        diff::diff,
        fsck::fsck,
        init::{InitError, InitOptions, init, init_in},
        replay::{ReplayOptions, ReplayReport, replay},
    },
    store::{artifacts::StoredCheckpoint, files::Disk, segment},
    types::{
        bits::F32Bits,
        digest::Digest,
        grid::Unblockable,
        progress::Silent,
        record::{RoundRecord, Skipped},
        rule::{Dialect, Mean, Norm},
        submission::Miner,
        tensor::Dtype,
    },
};

// ---- the fold, once more ----

/// A miner's norm of one tensor, as `schema/fold.md` has it, step by step.
fn norm_of(norm: Norm, sent: &Sent) -> f64 {
    let value = |code: usize| sent.lookup[code] + sent.shift;
    let codes = sent.codes.concat();
    match norm {
        Norm::HistogramF64 => {
            let mut sum = 0.0f64;
            for code in 0..sent.lookup.len() {
                let count = codes.iter().filter(|&&c| usize::from(c) == code).count();
                let v = f64::from(value(code));
                sum += count as f64 * (v * v);
            }
            sum.sqrt()
        }
        Norm::TorchCpuF32 => {
            let values: Vec<f32> = codes.iter().map(|&c| value(usize::from(c))).collect();
            let whole = values.len() / 8 * 8;
            let mut lanes = [0.0f32; 8];
            for (at, v) in values[..whole].iter().enumerate() {
                lanes[at % 8] += v * v;
            }
            let mut sum = 0.0f32;
            for lane in lanes {
                sum += lane;
            }
            let mut rest = &values[whole..];
            if rest.len() >= 4 {
                for v in &rest[..4] {
                    sum += v * v;
                }
                rest = &rest[4..];
            }
            for v in rest {
                sum = v.mul_add(*v, sum);
            }
            f64::from(sum.sqrt())
        }
    }
}

/// What each miner's values are multiplied with.
fn factors(norm: Norm, norms: &[f64]) -> Vec<f32> {
    let mut sorted = norms.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[(sorted.len() - 1) / 2];
    let factor = |norm_of_one: &f64| match norm {
        Norm::HistogramF64 => (median / (norm_of_one + 1e-8)).min(1.0) as f32,
        Norm::TorchCpuF32 => (median as f32 / (*norm_of_one as f32 + 1e-8f32)).min(1.0),
    };
    norms.iter().map(factor).collect()
}

/// A tensor after a round with these deltas, in ledger order.
fn folded(model: &Model, tensor: &Tensor, base: &[f32], deltas: &[&Delta]) -> Vec<f32> {
    let grid = tensor.grid(model.rule.chunk);
    let sent: Vec<&Sent> = deltas.iter().map(|delta| &delta[&tensor.name]).collect();
    let norms: Vec<f64> = sent.iter().map(|sent| norm_of(model.rule.norm, sent)).collect();
    let (mut sum, mut count) = (vec![0.0f32; base.len()], vec![0u32; base.len()]);
    for (sent, factor) in sent.iter().zip(factors(model.rule.norm, &norms)) {
        for (block, (index, codes)) in sent.index.iter().zip(&sent.codes).enumerate() {
            for (index, code) in index.iter().zip(codes) {
                let element = grid.element(block as u64, u64::from(*index));
                let v = sent.lookup[usize::from(*code)] + sent.shift;
                sum[element] += v * factor;
                count[element] += 1;
            }
        }
    }
    let mut next = base.to_vec();
    for element in (0..next.len()).filter(|&e| count[e] > 0) {
        let divisor = match model.rule.mean {
            Mean::Contributors => count[element] as f32,
            Mean::All => deltas.len() as f32,
        };
        let delta = sum[element] / divisor;
        next[element] = (-model.rule.lr_f32.0).mul_add(delta, next[element]);
    }
    next
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Imports and seals a round of these miners, whose files are made from `deltas`.
fn round_of(run: &Run, model: &Model, round: u64, deltas: &BTreeMap<u16, Delta>) -> Vec<u16> {
    for (uid, delta) in deltas {
        run.put(round, *uid, &Gradient::of(model, round, delta).write());
    }
    let uids: Vec<u16> = deltas.keys().rev().copied().collect();
    run.import(round, &uids, &[]);
    accepted(&run.seal(round))
}

fn random_deltas(model: &Model, uids: &[u16], seed: u64) -> BTreeMap<u16, Delta> {
    let mut random = Random(seed);
    uids.iter().map(|&uid| (uid, model.delta(&mut random))).collect()
}

fn assert_rounds_fold_by_the_page(model: &Model, seed: u64) {
    let run = Run::new(model);
    let mut state: BTreeMap<String, Vec<f32>> =
        model.folded().iter().map(|t| (t.name.clone(), t.values())).collect();
    for round in [5, 9] {
        let deltas = random_deltas(model, &[2, 700, 31, 8], seed + round);
        assert_eq!(round_of(&run, model, round, &deltas), [2, 8, 31, 700]);
        let in_order: Vec<&Delta> = deltas.values().collect();
        for tensor in model.folded() {
            let next = folded(model, tensor, &state[&tensor.name], &in_order);
            let stored = floats(&run.stored(At::Round(round), &tensor.name));
            let what = format!("{:?}, seed {seed}, round {round}, {}", model.rule, tensor.name);
            assert_eq!(bits(&next), bits(&stored), "{what}");
            state.insert(tensor.name.clone(), next);
        }
    }
    fsck(&run.open(), fold_options(), &Silent).unwrap();
}

/// Tensors of one and two dimensions, of prime sizes, and smaller than a block.
fn shapes(seed: u64) -> Vec<Tensor> {
    let mut random = Random(seed);
    let shapes: [&[u64]; 7] = [&[16, 24], &[7], &[22], &[13, 6], &[3, 5], &[31, 7], &[2]];
    (0..)
        .zip(shapes)
        .map(|(at, shape): (u32, _)| Tensor::random(&format!("t{at}"), shape, &mut random))
        .collect()
}

#[test]
fn rounds_fold_by_the_page_under_every_norm_and_mean() {
    let seed = 70;
    for dialect in [Dialect::Native, Dialect::Templar] {
        for norm in [Norm::HistogramF64, Norm::TorchCpuF32] {
            for mean in [Mean::Contributors, Mean::All] {
                let mut rule = rule(dialect, 8, 4, 4);
                (rule.norm, rule.mean) = (norm, mean);
                assert_rounds_fold_by_the_page(&Model { tensors: shapes(seed), rule }, seed);
            }
        }
    }
}

#[test]
fn rounds_fold_by_the_page_with_books_of_16_and_256() {
    for (bins, top_k) in [(16, 6), (256, 16), (16, 4096), (4, 6)] {
        let model = Model { tensors: shapes(9), rule: rule(Dialect::Native, 8, top_k, bins) };
        assert_rounds_fold_by_the_page(&model, 9);
    }
}

#[test]
fn rounds_fold_by_the_page_at_other_learning_rates_and_block_sizes() {
    for (lr, chunk) in [(1.0, 5), (1e-3, 64), (0.7, 2)] {
        let mut rule = rule(Dialect::Native, chunk, 2, 4);
        rule.lr_f32 = F32Bits(lr);
        let mut random = Random(3);
        let tensors = vec![
            Tensor::random("w", &[20, 30], &mut random),
            Tensor::random("x", &[64, 64], &mut random),
        ];
        assert_rounds_fold_by_the_page(&Model { tensors, rule }, 3);
    }
}

/// More than one piece of 64 KiB, more than one band of blocks.
#[test]
fn a_tensor_of_many_pieces_folds_by_the_page() {
    let mut random = Random(4);
    let tensors = vec![
        Tensor::random("long", &[100_003 * 2], &mut random),
        Tensor::random("wide", &[192, 640], &mut random),
        // Bands that end within a piece, and bands that end with one.
        Tensor::random("odd", &[1300, 1001], &mut random),
        Tensor::random("even", &[1536, 1024], &mut random),
    ];
    let model = Model { tensors, rule: rule(Dialect::Native, 64, 64, 4) };
    assert_rounds_fold_by_the_page(&model, 4);
}

// ---- rounds and their order ----

#[test]
fn a_round_where_nobody_is_accepted_changes_nothing() {
    let model = Model::small(Dialect::Templar);
    let run = Run::new(&model);
    for uid in [3, 9] {
        run.put(6, uid, b"cut");
    }
    run.import(6, &[3, 9], &[4]);
    let report = run.seal(6);
    assert!(report.accepted.is_empty());
    assert_eq!(report.next, run.open().genesis().model);
    assert_eq!(replayed(&run, 6, 6, None).unwrap().rounds[0].miners, 0);
    replayed(&run, 6, 6, Some("b.bias")).unwrap();
    fsck(&run.open(), fold_options(), &Silent).unwrap();
    // And the run goes on.
    round_of(&run, &model, 7, &random_deltas(&model, &[3, 9], 1));
    assert_ne!(run.open().newest(), report.next);
    fsck(&run.open(), fold_options(), &Silent).unwrap();
}

#[test]
fn rounds_only_go_up() {
    let model = Model::small(Dialect::Native);
    let run = Run::new(&model);
    round_of(&run, &model, 6, &random_deltas(&model, &[3], 1));
    for round in [6, 5, 0] {
        run.put(
            round,
            3,
            &Gradient::of(&model, round, &random_deltas(&model, &[3], 2)[&3]).write(),
        );
        let imported = run.try_import(round, &[3], &[]);
        let sealed = run.try_seal(round);
        if round == 6 {
            assert!(matches!(imported, Err(LedgerError::RoundSealed { round: 6 })));
            assert!(sealed.unwrap().already);
            continue;
        }
        assert!(
            matches!(imported, Err(LedgerError::RoundOrder { round: r, last: 6 }) if r == round)
        );
        assert!(matches!(sealed, Err(LedgerError::RoundOrder { round: r, last: 6 }) if r == round));
    }
    round_of(&run, &model, 60, &random_deltas(&model, &[3], 3));
}

#[test]
fn a_round_that_was_not_imported_is_not_sealed() {
    let run = Run::new(&Model::small(Dialect::Native));
    assert!(matches!(run.try_seal(6), Err(LedgerError::RoundNotOpen { round: 6 })));
}

#[test]
fn only_one_round_is_open() {
    let model = Model::small(Dialect::Native);
    let run = Run::new(&model);
    for round in [6, 7] {
        let delta = &random_deltas(&model, &[3], round)[&3];
        run.put(round, 3, &Gradient::of(&model, round, delta).write());
    }
    run.import(6, &[3], &[]);
    for lost in [false, true] {
        if lost {
            // Nothing rests on this file: the submissions say which round is open.
            fs::remove_file(run.path().join("open-round.json")).unwrap();
        }
        let refused = run.try_import(7, &[3], &[]);
        assert!(
            matches!(refused, Err(LedgerError::RoundOpen { round: 7, open: 6, submissions: 1 })),
            "lost {lost}"
        );
    }
    run.import(6, &[3], &[]);
    assert_eq!(accepted(&run.seal(6)), [3]);
    run.import(7, &[3], &[]);
    assert_eq!(accepted(&run.seal(7)), [3]);
}

#[test]
fn importing_again_appends_nothing_twice() {
    let model = Model::small(Dialect::Templar);
    let run = Run::new(&model);
    for (uid, delta) in random_deltas(&model, &[3, 7, 9, 5, 4], 1) {
        run.put(6, uid, &Gradient::of(&model, 6, &delta).write());
    }
    run.put(6, 9, b"cut");
    // As if it had been interrupted after the first file.
    run.import(6, &[3], &[]);
    let whole = run.import(6, &[3, 7, 9], &[5, 4]);
    assert_eq!(run.open().submissions_log().size(), 5);
    let again = run.import(6, &[3, 7, 9], &[5, 4]);
    assert_eq!(run.open().submissions_log().size(), 5);
    let lines = |report: &gradledger::ledger::import::ImportReport| -> Vec<(u16, u64, &str)> {
        report.files.iter().map(|f| (f.uid, f.index, f.outcome)).collect()
    };
    assert_eq!(lines(&whole), lines(&again));
    assert_eq!(accepted(&run.seal(6)), [3, 7, 5]);
}

#[test]
fn without_any_file_of_a_peer_a_round_does_not_open() {
    let run = Run::new(&Model::small(Dialect::Native));
    run.put(6, 99, b"a stranger's");
    let error = run.try_import(6, &[3], &[]).unwrap_err();
    assert!(error.to_string().contains("gradient-6-UID-v"), "{error}");
    assert!(matches!(run.try_seal(6), Err(LedgerError::RoundNotOpen { .. })));
}

// ---- init ----

#[test]
fn an_interrupted_init_can_be_run_again() {
    let model = Model::small(Dialect::Native);
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("model.safetensors");
    safetensors(&checkpoint, &model.tensors);
    let options = InitOptions::new("test", "test.example/run", &checkpoint, model.rule.clone());
    let ledger = dir.path().join("ledger");
    fs::create_dir(&ledger).unwrap(); // For the lock, which lies on the disk.
    let whole = MemFs::new();
    init_in(whole.handle(), &ledger, &options, &Silent).unwrap();
    let model = Ledger::open_in(whole.handle(), &ledger).unwrap().genesis().model;
    println!("{} cuts", whole.calls());
    for cut in 0..whole.calls() {
        let disk = MemFs::new().fork(Some(Fault::CutAt(cut)));
        assert!(init_in(disk.handle(), &ledger, &options, &Silent).is_err(), "cut {cut}");
        for survival in Survival::ALL {
            let disk = disk.restart(survival);
            let what = format!("cut {cut}, {survival:?}");
            match Ledger::open_in(disk.handle(), &ledger) {
                Ok(ledger) => assert_eq!(ledger.genesis().model, model, "{what}"),
                Err(_) => {
                    let again = init_in(disk.handle(), &ledger, &options, &Silent);
                    again.unwrap_or_else(|error| panic!("{what}: {error}"));
                }
            }
            let opened = Ledger::open_in(disk.handle(), &ledger)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!((opened.rounds_log().size(), opened.genesis().model), (1, model), "{what}");
            fsck(&opened, fold_options(), &Silent).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
}

#[test]
fn init_does_not_touch_a_ledger_that_is_there() {
    let model = Model::small(Dialect::Native);
    let run = Run::new(&model);
    let (head, checkpoint) =
        (run.path().join("log/rounds/checkpoint"), run.dir.path().join("checkpoint.safetensors"));
    let again = || run.init(&checkpoint, rule(Dialect::Templar, 8, 4, 4), false);
    assert!(matches!(again(), Err(LedgerError::Exists { .. })));
    let bytes = fs::read(&head).unwrap();
    fs::remove_file(&head).unwrap();
    assert!(again().is_err());
    fs::write(&head, bytes).unwrap();
    assert_eq!(run.open().rounds_log().size(), 1);
    fsck(&run.open(), fold_options(), &Silent).unwrap();
}

#[test]
fn init_leaves_a_directory_of_other_things_alone() {
    let model = Model::small(Dialect::Native);
    for name in ["tmp", "photos"] {
        let run = Run { dir: tempfile::tempdir().unwrap() };
        let checkpoint = run.dir.path().join("checkpoint.safetensors");
        safetensors(&checkpoint, &model.tensors);
        let mine = run.path().join(name).join("mine.txt");
        fs::create_dir_all(mine.parent().unwrap()).unwrap();
        fs::write(&mine, "years of work").unwrap();
        let error = run.init(&checkpoint, model.rule.clone(), false).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(fs::read(&mine).unwrap(), b"years of work");
        assert_eq!(all_files(&run.path()), [mine]);
    }
}

#[test]
fn a_tensor_that_the_rule_cannot_take_is_refused_without_frozen() {
    for (tensor, expected) in [
        (Tensor::new("step", Dtype::I64, &[3], vec![1; 24]), "it is I64"),
        (Tensor::f32("temperature", &[], &[0.5]), "rank 0"),
        (Tensor::f32("conv", &[2, 2, 2], &[0.5; 8]), "rank 3"),
        (Tensor::f32("one", &[1], &[0.5]), "blocks hold 1 elements"),
        (Tensor::f32("prime", &[17], &[0.5; 17]), "blocks hold 1 elements"),
        (Tensor::f32("none", &[0, 4], &[]), "no elements"),
    ] {
        let mut model = Model::small(Dialect::Native);
        let name = tensor.name.clone();
        model.tensors.push(tensor);
        let Err(error) = Run::frozen(&model, false) else { panic!("{name} was taken") };
        let LedgerError::Init(InitError::Unblockable { count: 1, name: found, .. }) = &error else {
            panic!("{error}")
        };
        assert_eq!(*found, name);
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains("--frozen"), "{error}");
    }
}

fn frozen_model() -> Model {
    let mut model = Model::small(Dialect::Native);
    let bf16 = (0..24u16).flat_map(|v| (0x3f80 + v).to_le_bytes()).collect();
    model.tensors.extend([
        Tensor::new("a.step", Dtype::I64, &[3], (0..24).collect()),
        Tensor::new("b.scale", Dtype::F32, &[], 0.1f32.to_le_bytes().to_vec()),
        Tensor::f32("c.conv", &[2, 3, 4], &[0.1; 24]),
        Tensor::new("d.conv", Dtype::Bf16, &[2, 3, 4], bf16),
        Tensor::new("e.mask", Dtype::Bool, &[5], vec![1, 0, 1, 0, 1]),
        Tensor::new("f.none", Dtype::F32, &[0, 4], vec![]),
    ]);
    model
}

#[test]
fn frozen_tensors_keep_their_dtype_and_bytes() {
    let model = frozen_model();
    let (run, report) = Run::frozen(&model, true).unwrap();
    let names: Vec<&str> = report.frozen.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a.step", "b.scale", "c.conv", "d.conv", "e.mask", "f.none"]);
    assert_eq!(report.frozen[0].1, Unblockable::NotFloat { found: "I64" });
    let deltas = random_deltas(&model, &[1, 2], 5);
    round_of(&run, &model, 5, &deltas);
    let in_order: Vec<&Delta> = deltas.values().collect();
    for tensor in &model.tensors {
        let stored = run.stored(At::Round(5), &tensor.name);
        match model.folded().iter().any(|folded| folded.name == tensor.name) {
            true => {
                let next = folded(&model, tensor, &tensor.values(), &in_order);
                assert_eq!(bits(&floats(&stored)), bits(&next), "{}", tensor.name);
            }
            false => assert_eq!(stored, tensor.bytes, "{}", tensor.name),
        }
    }
    fsck(&run.open(), fold_options(), &Silent).unwrap();
    let out = run.dir.path().join("out");
    exported(&run, At::Round(5), ExportDtype::F32, u64::MAX, &out);
    let file = Checkpoint::open(&out, None).unwrap();
    for tensor in &model.tensors {
        let index = file.tensors().iter().position(|t| t.name() == tensor.name).unwrap();
        let spec = &file.tensors()[index];
        assert_eq!((spec.dtype(), spec.shape()), (tensor.dtype, &tensor.shape[..]));
        assert_eq!(read_all(&file, index), run.stored(At::Round(5), &tensor.name));
    }
    let error = replayed(&run, 5, 5, Some("d.conv")).unwrap_err();
    assert!(matches!(error, LedgerError::NoTensor { .. }), "{error}");
}

fn read_all(file: &Checkpoint, index: usize) -> Vec<u8> {
    let mut bytes = vec![0; file.tensors()[index].bytes() as usize];
    file.read(index, 0, &mut bytes).unwrap();
    bytes
}

fn exported(run: &Run, at: At, dtype: ExportDtype, shard: u64, out: &Path) -> Vec<String> {
    let ledger = run.open();
    let state = ledger.checkpoint(ledger.state(at).unwrap()).unwrap();
    let set = FileSet::of(state.manifest(), dtype, shard).unwrap();
    let written = export(&state, &set, &Disk, out, &Silent).unwrap();
    written.into_iter().map(|(name, _)| name).collect()
}

/// The f32 that an f16 is, from its fields.
fn f16_value(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

#[test]
fn every_bf16_and_f16_is_widened_exactly() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let tensors = vec![
        Tensor::new("bf16", Dtype::Bf16, &[256, 256], all.clone()),
        Tensor::new("f16", Dtype::F16, &[65536], all),
    ];
    let run = Run::new(&Model { tensors, rule: rule(Dialect::Native, 8, 4, 4) });
    let bf16 = floats(&run.stored(At::Genesis, "bf16"));
    for (bits, value) in (0..=u16::MAX).zip(bf16) {
        assert_eq!(value.to_bits(), u32::from(bits) << 16, "bf16 {bits:04x}");
    }
    let f16 = floats(&run.stored(At::Genesis, "f16"));
    for (bits, value) in (0..=u16::MAX).zip(f16) {
        let expected = f16_value(bits);
        let same = f64::from(value) == expected || (value.is_nan() && expected.is_nan());
        assert!(same && value.is_sign_negative() == (bits >> 15 == 1), "f16 {bits:04x}: {value}");
    }
}

#[test]
fn an_export_as_bf16_rounds_to_nearest_even() {
    let mut random = Random(8);
    let mut values: Vec<f32> = (0..8192).map(|_| f32::from_bits(random.next() as u32)).collect();
    // Ties above even and odd, both neighbours of a tie, the largest, denormals, zeros.
    let exact = [
        0x3f80_8000,
        0x3f81_8000,
        0x3f80_7fff,
        0x3f80_8001,
        0x7f7f_ffff,
        0xff7f_ffff,
        0x0000_8000,
        0x0001_8000,
        0x0000_0001,
        0x8000_0000,
        0x0000_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7f7f_7fff,
        0x7f80_0001,
        0xffff_ffff,
    ];
    values[..exact.len()].copy_from_slice(&exact.map(f32::from_bits));
    let tensors = vec![Tensor::f32("w", &[8192], &values)];
    let run = Run::new(&Model { tensors, rule: rule(Dialect::Native, 8, 4, 4) });
    let out = run.dir.path().join("out");
    exported(&run, At::Genesis, ExportDtype::Bf16, u64::MAX, &out);
    let file = Checkpoint::open(&out, None).unwrap();
    assert_eq!(file.tensors()[0].dtype(), Dtype::Bf16);
    let found = read_all(&file, 0);
    for (value, found) in values.iter().zip(found.as_chunks::<2>().0) {
        let (bits, found) = (value.to_bits(), u16::from_le_bytes(*found));
        if value.is_nan() {
            assert!(f32::from_bits(u32::from(found) << 16).is_nan(), "{bits:08x}");
            continue;
        }
        let (down, rest) = (bits >> 16, bits & 0xffff);
        let up = rest > 0x8000 || (rest == 0x8000 && !down.is_multiple_of(2));
        assert_eq!(u32::from(found), down + u32::from(up), "{bits:08x}");
    }
}

#[test]
fn a_distributed_checkpoint_is_taken_below_its_prefix() {
    let small = common::golden().join("templar/small");
    let folder = small.join("checkpoint/checkpoints/2.1.28/62835");
    let run = Run { dir: tempfile::tempdir().unwrap() };
    let report = run.init(&folder, rule(Dialect::Templar, 8, 4, 4), false).unwrap();
    let after = Checkpoint::open(&small.join("w62835/params-after.safetensors"), None).unwrap();
    assert_eq!(report.ledger.genesis().model.count, after.tensors().len() as u64);
    for (index, spec) in after.tensors().iter().enumerate() {
        assert_eq!(
            run.stored(At::Genesis, spec.name()),
            read_all(&after, index),
            "{}",
            spec.name()
        );
    }
    // The same state as from the plain file.
    let plain = Run { dir: tempfile::tempdir().unwrap() };
    let file = small.join("w62835/params-after.safetensors");
    let other = plain.init(&file, rule(Dialect::Templar, 8, 4, 4), false).unwrap();
    assert_eq!(other.ledger.genesis().model, report.ledger.genesis().model);
}

#[test]
fn what_a_distributed_checkpoint_holds_besides_the_model_is_listed() {
    let case = common::golden().join("siblings/dcp/two_ranks");
    let run = Run { dir: tempfile::tempdir().unwrap() };
    let report = run.init(&case.join("dcp"), rule(Dialect::Templar, 8, 4, 4), false).unwrap();
    let progress = ["outer_step", "step", "total_tokens"].map(|n| format!("training_progress.{n}"));
    assert_eq!(report.left_out, progress);
    // bf16 there as here, so both are widened.
    let plain = Run { dir: tempfile::tempdir().unwrap() };
    let file = case.join("model.safetensors");
    let other = plain.init(&file, rule(Dialect::Templar, 8, 4, 4), false).unwrap();
    assert_eq!(other.ledger.genesis().model, report.ledger.genesis().model);
}

#[test]
fn shards_come_back_as_the_state_they_were_cut_from() {
    let model = frozen_model();
    let (run, _) = Run::frozen(&model, true).unwrap();
    for shard in [1, 600, 1600, u64::MAX] {
        let out = run.dir.path().join(format!("out-{shard}"));
        let names = exported(&run, At::Genesis, ExportDtype::F32, shard, &out);
        let mut there: Vec<String> =
            names.iter().cloned().chain(["SHA256SUMS".to_owned()]).collect();
        there.sort();
        let found = all_files(&out);
        let found: Vec<_> =
            found.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(found, there);
        let shards = names.iter().filter(|n| n.starts_with("model-")).count();
        assert!(if shard == u64::MAX { shards == 0 } else { shards > 1 }, "{names:?}");
        for line in fs::read_to_string(out.join("SHA256SUMS")).unwrap().lines() {
            let (sum, name) = line.split_once("  ").unwrap();
            let mut hash = gradledger_kernels::sha256::Sha256::new();
            hash.update(&fs::read(out.join(name)).unwrap());
            assert_eq!(Digest(hash.finish()).to_hex(), sum, "{name}");
        }
        let again = Run { dir: tempfile::tempdir().unwrap() };
        let report = again.init(&out, model.rule.clone(), true).unwrap();
        assert_eq!(report.ledger.genesis().model, run.open().genesis().model);
    }
}

#[test]
fn an_export_goes_to_an_empty_directory_only() {
    let run = Run::new(&Model::small(Dialect::Native));
    let ledger = run.open();
    let state = ledger.checkpoint(ledger.newest()).unwrap();
    let set = FileSet::of(state.manifest(), ExportDtype::F32, u64::MAX).unwrap();
    let again = export(&state, &set, &Disk, &run.path(), &Silent);
    assert!(again.unwrap_err().to_string().contains("not empty"));
}

// ---- values that are not plain numbers ----

/// A model of one tensor, of which one delta touches only the given elements (an even number).
fn one_tensor(dialect: Dialect, values: &[f32], touched: &[u16], lookup: f32) -> (Model, Delta) {
    let tensors = vec![Tensor::f32("w", &[1, values.len() as u64], values)];
    let model = Model { tensors, rule: rule(dialect, 8, touched.len() as u64, 4) };
    let sent = Sent {
        index: vec![touched.to_vec()],
        codes: vec![vec![1; touched.len()]],
        lookup: vec![0.0, lookup, 0.0, 0.0],
        shift: 0.0,
    };
    (model, [("w".to_owned(), sent)].into())
}

const ODD: [u32; 8] = [
    0x8000_0000,
    0x7fa0_0001,
    0xffc1_2345,
    0x0000_0001,
    0x7f80_0000,
    0x0000_0000,
    0x8000_0001,
    0xff80_0000,
];

#[test]
fn elements_that_nobody_sent_keep_their_bits() {
    for dialect in [Dialect::Native, Dialect::Templar] {
        let values = ODD.map(f32::from_bits);
        let (model, delta) = one_tensor(dialect, &values, &[3, 6], 1.0);
        let run = Run::new(&model);
        assert_eq!(run.stored(At::Genesis, "w"), model.tensors[0].bytes);
        round_of(&run, &model, 5, &[(1, delta)].into());
        let next = bits(&floats(&run.stored(At::Round(5), "w")));
        for element in [0, 1, 2, 4, 5, 7] {
            assert_eq!(next[element], ODD[element], "element {element}");
        }
        assert_eq!([next[3], next[6]], [(-0.4f32).to_bits(); 2]);
        fsck(&run.open(), fold_options(), &Silent).unwrap();
    }
}

#[test]
fn zeros_keep_the_sign_that_one_rounding_gives() {
    // +0 and -0 minus 0.4 * 0: the sum starts from +0, so the step adds -0.
    let values = [0.0, -0.0];
    let (model, delta) = one_tensor(Dialect::Native, &values, &[0, 1], -0.0);
    let run = Run::new(&model);
    round_of(&run, &model, 5, &[(1, delta)].into());
    assert_eq!(bits(&floats(&run.stored(At::Round(5), "w"))), [0, 0x8000_0000]);
}

#[test]
fn a_touched_nan_fails_a_native_seal_and_stays_in_templars() {
    let values = ODD.map(f32::from_bits);
    let (model, delta) = one_tensor(Dialect::Native, &values, &[2, 1], 1.0);
    let run = Run::new(&model);
    run.put(5, 1, &Gradient::of(&model, 5, &delta).write());
    run.import(5, &[1], &[]);
    let error = run.try_seal(5).unwrap_err();
    assert!(matches!(error, LedgerError::NonFinite { round: 5, element: 1, .. }), "{error}");
    assert_eq!(run.open().sealed().len(), 0);
    fsck(&run.open(), fold_options(), &Silent).unwrap();

    let (model, delta) = one_tensor(Dialect::Templar, &values, &[2, 1], 1.0);
    let run = Run::new(&model);
    round_of(&run, &model, 5, &[(1, delta)].into());
    let next = bits(&floats(&run.stored(At::Round(5), "w")));
    assert_eq!([next[1], next[2]], [0x7fc0_0000; 2]);
    fsck(&run.open(), fold_options(), &Silent).unwrap();
}

#[test]
fn a_value_that_would_overflow_fails_a_native_seal() {
    let values = [1.0, f32::MIN, 2.0, 3.0];
    let (mut model, delta) = one_tensor(Dialect::Native, &values, &[2, 1], 1e18);
    model.rule.lr_f32 = F32Bits(1e20);
    let run = Run::new(&model);
    run.put(5, 1, &Gradient::of(&model, 5, &delta).write());
    run.import(5, &[1], &[]);
    let error = run.try_seal(5).unwrap_err();
    assert!(matches!(error, LedgerError::NonFinite { element: 1, .. }), "{error}");
    assert!(error.to_string().contains("element 1 of w"), "{error}");
}

/// In `b.bias` and `c.odd` an infinite norm makes every value that is sent a NaN.
fn skipping() -> (Model, BTreeMap<u16, Delta>) {
    let model = Model::small(Dialect::Templar);
    let mut deltas = random_deltas(&model, &[4], 6);
    for name in ["b.bias", "c.odd"] {
        deltas.get_mut(&4).unwrap().get_mut(name).unwrap().lookup = vec![3e38; 4];
    }
    (model, deltas)
}

#[test]
fn a_tensor_whose_delta_is_not_finite_is_skipped_with_its_lowest_element() {
    let (model, deltas) = skipping();
    let run = Run::new(&model);
    round_of(&run, &model, 5, &deltas);
    let ledger = run.open();
    let lowest = |name: &str| {
        let grid = model.tensor(name).grid(model.rule.chunk);
        let blocks = (0..).zip(&deltas[&4][name].index);
        let elements = blocks.flat_map(|(b, i)| i.iter().map(move |&i| grid.element(b, i.into())));
        elements.min().unwrap() as u64
    };
    let expected = [
        Skipped { tensor: 1, element: lowest("b.bias") },
        Skipped { tensor: 2, element: lowest("c.odd") },
    ];
    assert_eq!(ledger.sealed()[0].record.skipped, expected);
    for name in ["b.bias", "c.odd"] {
        assert_eq!(run.stored(At::Round(5), name), model.tensor(name).bytes);
    }
    assert_ne!(run.stored(At::Round(5), "a.weight"), model.tensor("a.weight").bytes);
    for tensor in ["a.weight", "b.bias", "c.odd"] {
        replayed(&run, 5, 5, Some(tensor)).unwrap();
    }
    fsck(&ledger, fold_options(), &Silent).unwrap();
    let diffs = diff(&ledger, At::Genesis, At::Round(5), &Silent).unwrap();
    let changed: Vec<bool> = diffs.iter().map(|d| d.changed > 0).collect();
    assert_eq!(changed, [true, false, false]);
}

// ---- replay ----

fn replayed(
    run: &Run,
    first: u64,
    last: u64,
    tensor: Option<&str>,
) -> Result<ReplayReport, LedgerError> {
    let tensor = tensor.map(str::to_owned);
    replay(
        &run.open(),
        &ReplayOptions { rounds: first..=last, tensor, fold: fold_options() },
        &Silent,
    )
}

fn three_rounds(model: &Model) -> Run {
    let run = Run::new(model);
    for round in [5, 6, 9] {
        round_of(&run, model, round, &random_deltas(model, &[3, 4], round));
    }
    run
}

#[test]
fn a_replay_of_a_range_checks_each_of_its_rounds() {
    let run = three_rounds(&Model::small(Dialect::Native));
    let ledger = run.open();
    for (first, last, rounds) in
        [(5, 5, 0..1), (5, 9, 0..3), (6, 9, 1..3), (9, 9, 2..3), (5, 6, 0..2)]
    {
        let report = replayed(&run, first, last, None).unwrap();
        let expected: Vec<_> =
            ledger.sealed()[rounds].iter().map(|s| (s.record.round, s.record.next)).collect();
        let found: Vec<_> = report.rounds.iter().map(|r| (r.round, r.next)).collect();
        assert_eq!(found, expected);
    }
    for (first, last) in [(5, 7), (1, 5), (7, 8)] {
        assert!(matches!(replayed(&run, first, last, None), Err(LedgerError::NoRound { .. })));
    }
}

#[test]
fn a_range_is_replayed_from_its_base_and_deltas_alone() {
    let run = three_rounds(&Model::small(Dialect::Native));
    // All states but the first are gone.
    let ledger = run.open();
    let genesis = ledger.checkpoint(ledger.genesis().model).unwrap();
    let keep: Vec<_> = genesis
        .manifest()
        .descriptors()
        .iter()
        .map(|d| segment::place::tensor(&run.path(), &d.artifact(), d.dtype))
        .collect();
    for path in all_files(&run.path().join("segments/tensors")) {
        if !keep.contains(&path) {
            fs::remove_file(path).unwrap();
        }
    }
    replayed(&run, 5, 9, None).unwrap();
    assert!(replayed(&run, 6, 9, None).is_err());
}

#[test]
fn a_replay_of_one_tensor_reads_no_other() {
    let run = three_rounds(&Model::small(Dialect::Native));
    let ledger = run.open();
    for sealed in ledger.sealed() {
        for id in [sealed.record.base, sealed.record.next] {
            for d in ledger.checkpoint(id).unwrap().manifest().descriptors() {
                if d.name != "c.odd" {
                    let path = segment::place::tensor(&run.path(), &d.artifact(), d.dtype);
                    let _ = fs::remove_file(path);
                }
            }
        }
    }
    let report = replayed(&run, 5, 9, Some("c.odd")).unwrap();
    assert!(report.rounds.iter().all(|round| round.tensors == 1));
    let error = replayed(&run, 5, 9, Some("a.weight")).unwrap_err();
    assert!(error.to_string().contains("a.weight"), "{error}");
    let error = replayed(&run, 5, 9, Some("z")).unwrap_err();
    assert!(matches!(error, LedgerError::NoTensor { .. }), "{error}");
}

// ---- records that claim what is not so ----

/// A round of `model` that was imported, and the honest record of its seal.
fn imported(model: &Model, deltas: &BTreeMap<u16, Delta>) -> (Run, RoundRecord) {
    let run = Run::new(model);
    for (uid, delta) in deltas {
        run.put(5, *uid, &Gradient::of(model, 5, delta).write());
    }
    let uids: Vec<u16> = deltas.keys().copied().collect();
    run.import(5, &uids, &[]);
    // Sealed in a copy: its segments come over, its log does not.
    let copy = Run { dir: tempfile::tempdir().unwrap() };
    copy_all(&run.path(), &copy.path());
    copy.seal(5);
    for store in ["segments", "hashes"] {
        copy_all(&copy.path().join(store), &run.path().join(store));
    }
    let record = copy.open().sealed()[0].record.clone();
    (run, record)
}

/// What fsck and replay say of a ledger whose writer appended this record; seal too, if it does not
/// follow from the logs.
fn forged(model: &Model, edit: impl FnOnce(&mut RoundRecord)) -> Disagreement {
    let deltas = match model.rule.dialect {
        Dialect::Templar => skipping().1,
        Dialect::Native => random_deltas(model, &[3, 4], 1),
    };
    let (run, mut record) = imported(model, &deltas);
    edit(&mut record);
    run.writer().append_round(&record).unwrap();
    let found = fsck(&run.open(), fold_options(), &Silent).unwrap_err();
    let LedgerError::Disagrees(found) = found else { panic!("{found}") };
    let whole = replayed(&run, 5, 5, None).unwrap_err();
    assert_eq!(whole.to_string(), found.to_string());
    if check_round(&run.open(), 0).is_err() {
        assert_eq!(run.try_seal(6).unwrap_err().to_string(), found.to_string());
    }
    *found
}

#[test]
fn the_honest_record_would_pass() {
    let model = Model::small(Dialect::Templar);
    let (run, record) = imported(&model, &skipping().1);
    run.writer().append_round(&record).unwrap();
    fsck(&run.open(), fold_options(), &Silent).unwrap();
}

#[test]
fn a_false_witness_is_found() {
    let found = forged(&Model::small(Dialect::Templar), |r| r.skipped[0].element += 1);
    let Disagreement::Skipped { tensor, expected, found, .. } = found else { panic!("{found}") };
    assert_eq!((tensor.as_str(), expected.map(|e| e + 1)), ("b.bias", found));
}

#[test]
fn a_false_skip_is_found() {
    let model = Model::small(Dialect::Native);
    // Everything is left unchanged, which also gives a next state that is stored.
    let found = forged(&model, |r| {
        r.skipped = (0..3).map(|tensor| Skipped { tensor, element: 0 }).collect();
        r.next = r.base;
    });
    let Disagreement::Skipped { tensor, expected, found, .. } = found else { panic!("{found}") };
    assert_eq!((tensor.as_str(), expected, found), ("a.weight", None, Some(0)));
}

#[test]
fn a_skip_that_is_not_claimed_is_found() {
    let found = forged(&Model::small(Dialect::Templar), |r| r.skipped.truncate(1));
    let Disagreement::Skipped { tensor, expected, found, .. } = found else { panic!("{found}") };
    assert_eq!((tensor.as_str(), expected.is_some(), found), ("c.odd", true, None));
}

#[test]
fn a_skip_of_a_tensor_that_is_not_there_is_found() {
    let found = forged(&Model::small(Dialect::Templar), |r| {
        r.skipped.push(Skipped { tensor: 3, element: 0 });
    });
    assert!(matches!(found, Disagreement::SkippedUnknown { tensor: 3, .. }), "{found}");
}

#[test]
fn a_tensor_claimed_to_be_skipped_twice_is_found() {
    let model = Model::small(Dialect::Templar);
    let found = forged(&model, |r| r.skipped.push(r.skipped[1]));
    assert!(matches!(found, Disagreement::SkippedOrder { tensor: 2, .. }), "{found}");
    let found = forged(&model, |r| r.skipped.reverse());
    assert!(matches!(found, Disagreement::SkippedOrder { tensor: 1, .. }), "{found}");
}

#[test]
fn another_next_state_is_found_and_its_first_piece_named() {
    // The state of another round, which is stored: the base.
    let found = forged(&Model::small(Dialect::Native), |r| r.next = r.base);
    let Disagreement::Piece { tensor, piece, .. } = found else { panic!("{found}") };
    assert_eq!((tensor.as_str(), piece), ("a.weight", 0));
    // One that nobody has.
    let (run, mut record) = imported(
        &Model::small(Dialect::Native),
        &BTreeMap::from_iter(random_deltas(&Model::small(Dialect::Native), &[3], 1)),
    );
    record.next.root = Digest([7; 32]);
    run.writer().append_round(&record).unwrap();
    let error = replayed(&run, 5, 5, None).unwrap_err();
    let LedgerError::Disagrees(found) = &error else { panic!("{error}") };
    assert!(matches!(**found, Disagreement::Next { .. }), "{error}");
}

#[test]
fn every_other_claim_of_a_record_is_checked() {
    let model = Model::small(Dialect::Native);
    type Edit = fn(&mut RoundRecord);
    type Is = fn(&Disagreement) -> bool;
    let edits: [(Edit, Is); 10] = [
        (|r| r.plan.root = Digest([9; 32]), |d| matches!(d, Disagreement::Plan { .. })),
        (|r| r.plan.bytes += 1, |d| matches!(d, Disagreement::Plan { .. })),
        (|r| r.previous = Digest([9; 32]), |d| matches!(d, Disagreement::Previous { .. })),
        (|r| r.base.bytes += 4, |d| matches!(d, Disagreement::Base { .. })),
        (
            |r| {
                let gradledger::types::rule::Rule::SparseMeanSgd(rule) = &mut r.rule else {
                    return;
                };
                rule.lr_f32 = F32Bits(0.5);
            },
            |d| matches!(d, Disagreement::Rule { .. }),
        ),
        (|r| r.submissions.start = 1, |d| matches!(d, Disagreement::Window { .. })),
        (|r| r.submissions.end = 1, |d| matches!(d, Disagreement::WindowRoot { .. })),
        (|r| r.submissions.end = 3, |d| matches!(d, Disagreement::Window { .. })),
        (
            |r| r.dispositions.root = Digest([9; 32]),
            |d| matches!(d, Disagreement::Dispositions { .. }),
        ),
        (
            |r| r.listed.retain(|m| *m != Miner::Uid(4)),
            |d| matches!(d, Disagreement::Dispositions { .. }),
        ),
    ];
    for (at, (edit, expected)) in edits.into_iter().enumerate() {
        let found = forged(&model, edit);
        assert!(expected(&found), "edit {at}: {found}");
    }
}

#[test]
fn no_round_is_sealed_on_a_window_with_a_gap() {
    let model = Model::small(Dialect::Native);
    let edits: [fn(&mut RoundRecord); 3] =
        [|r| r.submissions.start = 1, |r| r.submissions.end = 1, |r| r.dispositions.count -= 1];
    for edit in edits {
        let (run, mut record) = imported(&model, &random_deltas(&model, &[3, 4], 1));
        edit(&mut record);
        run.writer().append_round(&record).unwrap();
        let rounds = run.open().sealed().len();
        let error = run.try_seal(6).unwrap_err();
        assert!(matches!(error, LedgerError::Disagrees(_)), "{error}");
        assert_eq!(run.open().sealed().len(), rounds);
    }
}

#[test]
fn a_delta_that_is_swapped_in_the_store_is_found() {
    let model = Model::small(Dialect::Native);
    let run = three_rounds(&model);
    let ledger = run.open();
    let submissions = ledger.submissions(0..2).unwrap();
    let dirs: Vec<_> = submissions
        .iter()
        .map(|(_, s)| {
            let gradledger::types::submission::Submission::Fetched(f) = s else { panic!() };
            let gradledger::types::submission::Outcome::Delta(id) = f.outcome else { panic!() };
            segment::place::delta(&run.path(), id.root)
        })
        .collect();
    fs::remove_dir_all(&dirs[0]).unwrap();
    copy_all(&dirs[1], &dirs[0]);
    let error = replayed(&run, 5, 5, None).unwrap_err();
    assert!(error.to_string().contains("in delta"), "{error}");
    // A state that another one's segments stand in for is found as well.
    let state: StoredCheckpoint = ledger.checkpoint(ledger.newest()).unwrap();
    let d = &state.manifest().descriptors()[0];
    let base = ledger.checkpoint(ledger.genesis().model).unwrap();
    let b = &base.manifest().descriptors()[0];
    let path = |d: &gradledger::types::manifest::Descriptor| {
        segment::place::tensor(&run.path(), &d.artifact(), d.dtype)
    };
    fs::copy(path(b), path(d)).unwrap();
    let out = run.dir.path().join("out");
    let set = FileSet::of(state.manifest(), ExportDtype::F32, u64::MAX).unwrap();
    let error = export(&state, &set, &Disk, &out, &Silent).unwrap_err();
    assert!(error.to_string().contains("a.weight"), "{error}");
    assert!(!out.join("SHA256SUMS").exists());
}

#[test]
fn a_reserve_and_a_refusal_in_one_round_replay() {
    let model = Model::small(Dialect::Templar);
    let run = Run::new(&model);
    let deltas = random_deltas(&model, &[30, 9, 5, 4, 2], 8);
    for (uid, delta) in &deltas {
        let mut gradient = Gradient::of(&model, 5, delta);
        if *uid == 9 {
            *gradient.tensor("b.biasvals").unwrap() = Stored::bytes(&[1], vec![0]);
        }
        run.put(5, *uid, &gradient.write());
    }
    run.import(5, &[30, 9, 5], &[4, 2]);
    let report = run.seal(5);
    assert_eq!(accepted(&report), [5, 30, 4]);
    let expected = [(9, "wrong-shape".to_owned()), (2, "reserve-unused".to_owned())];
    assert_eq!(rejected(&report), expected);
    // The reserve comes last, whatever its uid.
    let in_order = [&deltas[&5], &deltas[&30], &deltas[&4]];
    for tensor in &model.tensors {
        let next = folded(&model, tensor, &tensor.values(), &in_order);
        assert_eq!(bits(&next), bits(&floats(&run.stored(At::Round(5), &tensor.name))));
    }
    replayed(&run, 5, 5, None).unwrap();
}

#[test]
fn init_takes_tensors_below_a_prefix() {
    let mut model = Model::small(Dialect::Native);
    let plain = Run::new(&model).open().genesis().model;
    for tensor in &mut model.tensors {
        tensor.name = format!("net.{}", tensor.name);
    }
    model.tensors.push(Tensor::new("optimizer.step", Dtype::I64, &[1], vec![0; 8]));
    let run = Run { dir: tempfile::tempdir().unwrap() };
    let checkpoint = run.dir.path().join("checkpoint.safetensors");
    safetensors(&checkpoint, &model.tensors);
    let options = InitOptions {
        select: Some("net"),
        ..InitOptions::new("test", "test.example/run", &checkpoint, model.rule.clone())
    };
    let report = init(&run.path(), &options, &Silent).unwrap();
    assert_eq!(report.left_out, ["optimizer.step"]);
    assert_eq!(report.ledger.genesis().model, plain);
}
