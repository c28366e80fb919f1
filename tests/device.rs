//! `--device`: a card gives the processor's roots, and what it cannot give it says.
//!
//! The card is an emulated one (`kernels/tests/emulator`): the program's own host code and the kernels'
//! text, on the processor. Where there is no C++ compiler these tests are skipped, saying so.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "../kernels/tests/emulator/mod.rs"]
mod emulator;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use common::{
    Random,
    gradient::Gradient,
    model::{Model, Run, Tensor, copy_all},
};
use gradledger::types::rule::Dialect;
use serde_json::Value;

/// How a command ended.
struct Ended {
    code: Option<i32>,
    out: String,
    error: String,
}

impl Ended {
    fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, error) = (text(&output.stdout), text(&output.stderr));
        assert!(!error.contains("panicked"), "{error}");
        Self { code: output.status.code(), out, error }
    }

    fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.error);
        serde_json::from_str(&self.out).unwrap()
    }
}

/// The program on an emulated card of these properties, with a cache of kernels of its own.
fn on_card(cache: &Path, properties: &[(&str, &str)], args: &[&str]) -> Option<Ended> {
    let libraries = emulator::libraries(env!("CARGO_TARGET_TMPDIR"))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
    command.args(args).env("LD_LIBRARY_PATH", libraries).env("XDG_CACHE_HOME", cache);
    for (name, value) in properties {
        command.env(format!("GRADLEDGER_EMULATOR_{name}"), value);
    }
    Some(Ended::of(&mut command))
}

/// A matrix of many pieces, one whose rows of blocks are no whole pieces, a vector; three rounds, of which
/// the second leaves a tensor unchanged and the third is not sealed yet.
fn sealed() -> Run {
    let mut model = Model::small(Dialect::Templar);
    let mut random = Random(3);
    model.tensors.push(Tensor::random("d.large", &[1024, 88], &mut random));
    model.tensors.push(Tensor::random("e.long", &[50_000], &mut random));
    let run = Run::new(&model);
    for round in 1..=3 {
        for uid in [4, 9, 2] {
            let mut delta = model.delta(&mut random);
            if round == 2 && uid == 9 {
                delta.get_mut("b.bias").unwrap().lookup = vec![3e38; 4];
            }
            run.put(round, uid, &Gradient::of(&model, round, &delta).write());
        }
        run.import(round, &[4, 9, 2], &[]);
        if round < 3 {
            run.seal(round);
        }
    }
    run
}

fn path(run: &Run) -> String {
    run.path().to_str().unwrap().to_owned()
}

#[test]
fn a_replay_on_a_card_comes_to_the_sealed_roots_whatever_its_memory_and_order() {
    let run = sealed();
    let cache = tempfile::tempdir().unwrap();
    // Whole tensors at a time; and bands of some rows of blocks, whose ends are no ends of pieces.
    for properties in
        [[("BYTES", "1000000000"), ("ORDER", "0")], [("BYTES", "500000"), ("ORDER", "7919")]]
    {
        let args = ["replay", &path(&run), "--round", "1..2", "--device", "cpu,cuda:0", "--json"];
        let Some(ended) = on_card(cache.path(), &properties, &args) else { return };
        let report = ended.json();
        assert_eq!(report["rounds"].as_array().unwrap().len(), 2, "{report}");
        let on = report["folded_on"].as_array().unwrap();
        assert_eq!(
            (&on[0]["device"], &on[1]["device"]),
            (&"cpu".into(), &"cuda:0".into()),
            "{on:?}"
        );
        assert_eq!(on[1]["architecture"], "sm_90");
        assert_eq!(on[1]["kernels"].as_str().unwrap().len(), 64);
        assert_eq!(
            fs::read_dir(cache.path().join("gradledger")).unwrap().count(),
            1,
            "compiled once"
        );
    }
    let args =
        ["replay", &path(&run), "--round", "2", "--tensor", "d.large", "--device", "cpu,cuda:0"];
    let ended = on_card(cache.path(), &[], &args).unwrap();
    assert!(ended.out.starts_with("folded on cpu and on cuda:0\nround 2: equal"), "{}", ended.out);
}

#[test]
fn a_seal_on_a_card_appends_the_record_that_the_processor_would() {
    let run = sealed();
    let cache = tempfile::tempdir().unwrap();
    let copy = run.dir.path().join("copy");
    copy_all(&run.path(), &copy);
    let seal = |ledger: &str, device| {
        ["seal", ledger, "--round", "3", "--json", "--device", device].map(str::to_owned)
    };
    let of_card = seal(copy.to_str().unwrap(), "cuda:0");
    let of_card: Vec<_> = of_card.iter().map(String::as_str).collect();
    let Some(card) = on_card(cache.path(), &[("BYTES", "600000")], &of_card) else { return };
    let processor = seal(&path(&run), "cpu");
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
    let processor = Ended::of(command.args(processor));
    assert_eq!(card.json(), processor.json());
}

#[test]
fn a_card_that_is_full_or_lost_ends_in_a_message_and_nothing_half_written() {
    let run = sealed();
    let cache = tempfile::tempdir().unwrap();
    let ledger = path(&run);
    let seal = ["seal", &ledger, "--round", "3", "--device", "cuda:0"];
    for (property, says) in [
        ([("BYTES", "2000")], "no room for"),
        ([("FAILS", "1")], "cuda:0 failed"),
        ([("FAILS", "4")], "nothing of it was kept"),
    ] {
        let Some(ended) = on_card(cache.path(), &property, &seal) else { return };
        assert_eq!((ended.code, &*ended.out), (Some(1), ""), "{}", ended.error);
        assert!(ended.error.contains(says), "{property:?}: {}", ended.error);
        assert_eq!(run.open().sealed().len(), 2);
    }
    let fsck = Ended::of(Command::new(env!("CARGO_BIN_EXE_gradledger")).args(["fsck", &ledger]));
    assert_eq!(fsck.code, Some(0), "{}", fsck.error);
    assert_eq!(on_card(cache.path(), &[], &seal).unwrap().code, Some(0));
    assert_eq!(run.open().sealed().len(), 3);
}

#[test]
fn a_changed_byte_of_the_base_is_named_on_a_card_as_on_the_processor() {
    let run = sealed();
    let cache = tempfile::tempdir().unwrap();
    // The largest tensor, of every state.
    let files = common::model::all_files(&run.path().join("segments"));
    let length = |file: &PathBuf| fs::metadata(file).unwrap().len();
    let largest = files.iter().map(length).max().unwrap();
    for file in files.iter().filter(|file| length(file) == largest) {
        let mut bytes = fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(file, bytes).unwrap();
    }
    let ledger = path(&run);
    let replay = |device| ["-q", "replay", &ledger, "--round", "1..2", "--device", device];
    let Some(card) = on_card(cache.path(), &[], &replay("cuda:0")) else { return };
    let processor = Ended::of(Command::new(env!("CARGO_BIN_EXE_gradledger")).args(replay("cpu")));
    assert_eq!(processor.code, Some(20), "{}", processor.error);
    assert_eq!((card.code, &card.error), (processor.code, &processor.error));
}

#[test]
fn an_audit_on_a_card_comes_to_the_same_verdict() {
    let run = sealed();
    let cache = tempfile::tempdir().unwrap();
    let ledger = path(&run);
    let report = |device: &str| run.dir.path().join(format!("report-{}", device.replace(':', "-")));
    let audit = |device: &str| {
        let report = report(device).to_str().unwrap().to_owned();
        let args = ["audit", &ledger, "--device", device, "--report", &report];
        on_card(cache.path(), &[("BYTES", "600000")], &args)
    };
    let (Some(card), Some(processor)) = (audit("cuda:0"), audit("cpu")) else { return };
    // No key was given, so signatures are not checked.
    assert_eq!((card.code, processor.code), (Some(3), Some(3)), "{}", card.error);
    let read =
        |device| -> Value { serde_json::from_slice(&fs::read(report(device)).unwrap()).unwrap() };
    let (card, processor) = (read("cuda:0"), read("cpu"));
    assert_eq!(card["checks"], processor["checks"]);
    assert_eq!(
        (&card["run"]["device"], &processor["run"]["device"]),
        (&"cuda:0".into(), &"cpu".into())
    );
}

#[test]
fn a_bench_of_a_card_gives_rates_beside_its_copies() {
    let cache = tempfile::tempdir().unwrap();
    let args = ["bench", "--device", "cuda:0", "--gib", "0.002", "--json"];
    let Some(ended) = on_card(cache.path(), &[], &args) else { return };
    let report = ended.json();
    let rates = report["rates"].as_array().unwrap();
    assert_eq!(rates.len(), 7, "{report}");
    assert!(rates.iter().all(|rate| rate["bytes_per_s"].as_f64().unwrap() > 0.0), "{report}");
}

#[test]
fn a_device_that_is_not_there_is_a_clear_error() {
    let run = sealed();
    let (ledger, cache) = (path(&run), tempfile::tempdir().unwrap());
    let replay = |device| ["replay", &ledger, "--round", "1", "--device", device];
    for (properties, device) in [(&[("DEVICES", "0")], "cuda:0"), (&[("DEVICES", "1")], "cuda:3")] {
        if let Some(ended) = on_card(cache.path(), properties, &replay(device)) {
            assert_eq!((ended.code, &*ended.out), (Some(1), ""));
            assert!(ended.error.contains(&format!("there is no {device}")), "{}", ended.error);
        }
    }
    let program = || Command::new(env!("CARGO_BIN_EXE_gradledger"));
    for device in ["gpu", "cuda", "cuda:x", "cpu,gpu"] {
        assert_eq!(Ended::of(program().args(replay(device))).code, Some(2), "{device}");
    }
    if gradledger_kernels::cuda::devices().is_ok_and(|count| count > 0) {
        println!("SKIPPED: this machine has a card");
        return;
    }
    for args in [
        &replay("cuda:0")[..],
        &["seal", &ledger, "--round", "3", "--device", "cuda:0"],
        &["audit", &ledger, "--device", "cuda:0"],
        &["bench", "--device", "cuda:0"],
    ] {
        let ended = Ended::of(program().args(args));
        assert_eq!((ended.code, &*ended.out), (Some(1), ""), "{args:?}: {}", ended.error);
        assert!(
            ended.error.contains("CUDA driver") || ended.error.contains("there is no cuda:0"),
            "{}",
            ended.error
        );
    }
}
