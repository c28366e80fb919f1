//! Memory does not grow with the model: `seal` and `replay` stream, whatever a checkpoint weighs.

#![allow(clippy::unwrap_used)] // Helpers of tests, too.

#[allow(dead_code)] // The bench makes other models.
#[path = "../tools/synthetic.rs"]
mod synthetic;
#[path = "../tools/watch.rs"]
mod watch;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use synthetic::{Synthetic, Tensor};
use watch::watched;

const MIB: u64 = 1 << 20;

/// The two models' peaks may differ by this much: what is not in use yet when the smaller one ends.
const DIFFERENCE_BYTES_MAX: u64 = 48 * MIB;

/// Two matrices of `model_bytes` together, each of several bands.
fn model(model_bytes: u64) -> Synthetic {
    let (columns, matrices) = (4096, 2);
    let shape = vec![model_bytes / (4 * columns * matrices), columns];
    let tensor = |at| Tensor { name: format!("w{at}"), shape: shape.clone() };
    Synthetic { seed: 7, round: 1, miners: 3, tensors: (0..matrices).map(tensor).collect() }
}

fn gradledger(step: &[&str], ledger: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
    command.arg("--quiet").args(step).arg(ledger).stdout(Stdio::null());
    command
}

/// The most anonymous memory of `seal`, and of `replay`, in bytes.
fn peaks(model_bytes: u64) -> [u64; 2] {
    let dir = tempfile::tempdir().unwrap();
    let (synthetic, ledger) = (model(model_bytes), dir.path().join("ledger"));
    assert_eq!(synthetic.model_bytes(), model_bytes);
    synthetic.write_model(dir.path()).unwrap();
    synthetic.write_gradients(dir.path()).unwrap();
    let uids: Vec<_> = synthetic.uids().map(|uid| uid.to_string()).collect();
    let done = |command: &mut Command| assert!(command.status().unwrap().success());
    done(
        gradledger(&["init"], &ledger)
            .args(["--run", "memory", "--rule", "templar", "--lr", "0.4"])
            .args(["--chunk", "64", "--top-k", "64", "--bins", "4", "--checkpoint"])
            .arg(synthetic.model_path(dir.path())),
    );
    done(
        gradledger(&["import", "templar"], &ledger)
            .args(["--round", "1", "--peers", &uids.join(","), "--gradients"])
            .arg(dir.path()),
    );
    ["seal", "replay"].map(|step| {
        let (status, peak) =
            watched(gradledger(&[step], &ledger).args(["--round", "1", "--threads", "2"])).unwrap();
        assert!(status.success(), "{step}");
        peak
    })
}

/// The most anonymous memory of a replay of the last of `rounds` rounds, all states between dropped.
fn span_peak(rounds: u64, miners: u16, tensors: u64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let of = |round| Synthetic {
        seed: 7,
        round,
        miners,
        tensors: (0..tensors)
            .map(|at| Tensor { name: format!("layers.{at}.weight"), shape: vec![64, 64] })
            .collect(),
    };
    let done = |command: &mut Command| assert!(command.status().unwrap().success());
    of(1).write_model(dir.path()).unwrap();
    done(
        gradledger(&["init"], &ledger)
            .args(["--run", "memory", "--rule", "templar", "--checkpoint"])
            .arg(of(1).model_path(dir.path())),
    );
    for round in 1..=rounds {
        let synthetic = of(round);
        synthetic.write_gradients(dir.path()).unwrap();
        let uids: Vec<_> = synthetic.uids().map(|uid| uid.to_string()).collect();
        let round = round.to_string();
        done(
            gradledger(&["import", "templar"], &ledger)
                .args(["--round", &round, "--peers", &uids.join(","), "--gradients"])
                .arg(dir.path()),
        );
        done(gradledger(&["seal"], &ledger).args(["--round", &round]));
    }
    done(gradledger(&["gc"], &ledger).args(["--keep-every", "1000"]));
    let last = rounds.to_string();
    let (status, peak) =
        watched(gradledger(&["replay"], &ledger).args(["--round", &last, "--threads", "2"]))
            .unwrap();
    assert!(status.success());
    peak
}

/// What a delta of a span takes: its lists of tensors and pages, and a piece each of two columns.
const DELTA_TENSOR_BYTES_MAX: u64 = 4 << 10;

#[test]
fn a_span_of_dropped_states_takes_some_kilobytes_a_tensor_and_delta() {
    if !Path::new("/proc/self/status").exists() {
        println!("skipped: without /proc nobody says how much memory a process takes");
        return;
    }
    let (miners, tensors) = (4, 80);
    let (short, long) = (span_peak(4, miners, tensors), span_peak(16, miners, tensors));
    let more = 12 * u64::from(miners) * tensors;
    println!(
        "replay of a span: {} KiB for 16 deltas, {} KiB for 64: {} bytes a tensor and delta",
        short >> 10,
        long >> 10,
        long.saturating_sub(short) / more
    );
    assert!(short > 0 && long < short + more * DELTA_TENSOR_BYTES_MAX);
}

#[test]
fn seal_and_replay_take_no_more_memory_for_a_larger_model() {
    if !Path::new("/proc/self/status").exists() {
        println!("skipped: without /proc nobody says how much memory a process takes");
        return;
    }
    let (small, large) = (peaks(64 * MIB), peaks(256 * MIB));
    for (step, (small, large)) in ["seal", "replay"].iter().zip(small.into_iter().zip(large)) {
        println!("{step}: {} MiB, then {} MiB", small / MIB, large / MIB);
        assert!(small > 0 && large > 0, "{step} was seen at work");
        assert!(large < small + DIFFERENCE_BYTES_MAX, "{step} took {small} bytes, then {large}");
    }
}
