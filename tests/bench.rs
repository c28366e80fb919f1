//! `gradledger bench` through its command line, on a state so small that its numbers mean nothing.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, process::Command};

use serde_json::Value;

fn bench(dir: &Path, gib: &str, more: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
    command.args(["bench", "--threads", "2", &format!("--gib={gib}"), "--dir"]).arg(dir).args(more);
    command.output().unwrap()
}

/// The number at a path of keys.
fn number(value: &Value, keys: &str) -> f64 {
    keys.split('.').fold(value, |value, key| &value[key]).as_f64().unwrap_or(f64::NAN)
}

#[test]
fn every_stage_is_measured_beside_its_floor() {
    let dir = tempfile::tempdir().unwrap();
    let output = bench(dir.path(), "0.004", &["--json", "--turns", "7"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schema_version"], 1);
    assert_eq!(number(&report, "state_bytes"), f64::from(2 << 21));
    assert_eq!(number(&report, "threads"), 2.0);
    assert_eq!(number(&report, "turns"), 7.0);
    for rate in ["read_cold_bytes_per_s", "read_warm_bytes_per_s", "write_bytes_per_s"] {
        assert!(number(&report["disk"], rate) > 0.0, "{rate}");
    }
    // Twenty miners send 112 bytes for each block of 16 KiB.
    let deltas = number(&report, "disk.delta_bytes_per_state_byte");
    assert!((deltas - 20.0 * 112.0 / 16384.0).abs() < 1e-9, "{deltas}");
    // A ratio is of two numbers of the same report.
    let lines = report["kernels"]["one_thread"].as_array().unwrap();
    let rate = |name: &Value| {
        let line = lines.iter().find(|line| line["name"] == *name).unwrap();
        number(line, "parameters_per_s")
    };
    let mut held = 0;
    for line in lines.iter().filter(|line| !line["floor"].is_null()) {
        let expected = rate(&line["name"]) / rate(&line["floor"]);
        assert!((number(line, "ratio") / expected - 1.0).abs() < 1e-9, "{line}");
        held += 1;
    }
    assert!(held >= 6, "{held} kernels beside a floor");
    assert_eq!(report["passes"].as_array().unwrap().len(), 8);
    for estimate in report["estimates"].as_array().unwrap() {
        let (processor, disk) =
            (number(estimate, "processor_seconds"), number(estimate, "disk_seconds"));
        assert!(processor > 0.0 && disk > 0.0);
        assert_eq!(number(estimate, "seconds"), processor.max(disk));
        let bound = if processor > disk { "processor" } else { "disk" };
        assert_eq!(estimate["bound_by"], bound);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "what it made is gone");
}

#[test]
fn a_size_that_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(bench(dir.path(), "0.004", &["--turns", "0"]).status.code(), Some(2));
    for gib in ["0", "-1", "nan", "2000", "much"] {
        let output = bench(dir.path(), gib, &[]);
        assert_eq!(output.status.code(), Some(2), "--gib {gib}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--gib"), "--gib {gib}");
    }
}
