//! What `demo` claims, and that what it says to try works. One run of few steps for all of it.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    sync::LazyLock,
};

use serde_json::Value;
use tempfile::TempDir;

/// The state after the last round of four steps each, on every machine.
const LAST_STATE: &str = "81fb8c8a0016b52709235d167f02ef5f0b05c13d0d173c76cff4d1861f6d7be7";

struct Demo {
    dir: TempDir,
    story: String,
    report: Value,
}

static DEMO: LazyLock<Demo> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let output = demo(&dir.path().join("a demo"), &["--steps", "4", "--json"]);
    let story = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{story}");
    Demo { dir, story, report: serde_json::from_slice(&output.stdout).unwrap() }
});

fn demo(dir: &std::path::Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
    command.arg("demo").arg("--dir").arg(dir).args(more).output().unwrap()
}

fn array<'a>(report: &'a Value, name: &str) -> &'a Vec<Value> {
    report[name].as_array().unwrap()
}

#[test]
fn the_loss_falls_by_a_third_and_more() {
    let report = &DEMO.report;
    let loss = |name: &str| report[name].as_f64().unwrap();
    let (first, last) = (loss("loss_first"), loss("loss_last"));
    assert!((first - 128_f64.ln()).abs() < 0.1, "it knows nothing: {first}");
    assert!(last < 0.66 * first, "{first} -> {last}");
    let rounds = array(report, "rounds");
    assert_eq!(rounds.len(), 12);
    assert_eq!(rounds[11]["loss"], report["loss_last"]);
}

/// No seed, no library and no order of threads makes a difference.
#[test]
fn every_machine_trains_the_same_bits() {
    assert_eq!(array(&DEMO.report, "rounds")[11]["state"], LAST_STATE);
}

#[test]
fn each_trick_is_refused_with_its_code() {
    let text = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    let found: Vec<(u64, String, String, bool)> = array(&DEMO.report, "refusals")
        .iter()
        .map(|line| {
            let (round, in_log) = (line["round"].as_u64().unwrap(), line["in_log"] == true);
            (round, text(line, "miner"), text(line, "code"), in_log)
        })
        .collect();
    let line = |round, miner: &str, code: &str, in_log| (round, miner.into(), code.into(), in_log);
    let expected = [
        line(2, "mallory", "non-finite", true),
        line(3, "mallory", "duplicate-index", true),
        line(4, "mallory", "code-out-of-range", true),
        line(5, "mallory", "truncated", false),
        line(6, "mallory", "bad-signature", false),
        line(7, "mallory", "duplicate-delta", true),
        line(8, "dia", "duplicate-submission", true),
        line(9, "mallory", "wrong-base", true),
    ];
    assert_eq!(found, expected);
    for line in expected {
        assert!(DEMO.story.contains(&line.2), "the story tells of {}", line.2);
    }
}

#[test]
fn what_is_refused_contributes_nothing_and_a_copy_shows() {
    let report = &DEMO.report;
    for round in array(report, "rounds") {
        let lines = array(round, "contributions");
        let number = round["round"].as_u64().unwrap();
        let of_mallory = lines.iter().filter(|line| line["miner"] == "mallory").count();
        assert_eq!(of_mallory, usize::from(number == 10), "round {number}");
        assert_eq!(lines.len() - of_mallory, 5, "the honest count in every round");
        let shares: f64 = lines.iter().map(|line| line["share"].as_f64().unwrap()).sum();
        assert!((shares - 1.0).abs() < 1e-9, "{shares}");
    }
    let copies = array(report, "copies");
    assert_eq!(copies.len(), 1);
    let mut miners = array(&copies[0], "miners").clone();
    miners.sort_by_key(ToString::to_string);
    assert_eq!((miners[0].as_str(), miners[1].as_str()), (Some("cho"), Some("mallory")));
    assert_eq!((&copies[0]["round"], &copies[0]["share_common"]), (&10.into(), &1.0.into()));
}

#[test]
fn a_flipped_bit_is_named_with_its_tensor_and_piece() {
    let tampering = &DEMO.report["tampering"];
    assert_eq!((&tampering["tensor"], &tampering["piece"]), (&"out.weight".into(), &1.into()));
    assert_eq!(tampering["found_in"], "tensor out.weight");
    assert_eq!(tampering["found_piece"], tampering["piece"]);
}

#[test]
fn a_receipt_is_proven_by_signatures_inclusion_and_dispositions() {
    let proof = &DEMO.report["proof"];
    assert_eq!((&proof["miner"], &proof["round"]), (&"cho".into(), &7.into()));
    let passed: Vec<&str> = array(proof, "passed").iter().map(|c| c.as_str().unwrap()).collect();
    for check in ["submissions-signature", "inclusion", "statements", "dispositions"] {
        assert!(passed.contains(&check), "{check} of {passed:?}");
    }
    assert_eq!(DEMO.report["replayed"], 12);
}

#[test]
fn what_it_says_to_try_works_when_pasted() {
    let commands = array(&DEMO.report, "commands");
    assert_eq!(commands.len(), 5);
    for command in commands {
        let command = command.as_str().unwrap();
        let shell = Command::new("sh").args(["-c", command]).output().unwrap();
        let code = if command.contains("tampered") { 20 } else { 0 };
        let said = String::from_utf8_lossy(&shell.stderr);
        assert_eq!(shell.status.code(), Some(code), "{command}: {said}");
    }
}

#[test]
fn it_leaves_a_picture_names_and_views() {
    let dir = DEMO.dir.path().join("a demo");
    let svg = fs::read_to_string(dir.join("demo.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    for word in ["mallory", "duplicate-", "contributions"] {
        assert!(svg.contains(word), "{word}");
    }
    let names = fs::read_to_string(dir.join("miners.csv")).unwrap();
    assert_eq!(names.lines().count(), 7);
    let views = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("gradledger.sql");
    assert_eq!(fs::read(dir.join("gradledger.sql")).unwrap(), fs::read(views).unwrap());
}

#[test]
fn it_writes_over_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("mine"), "kept").unwrap();
    let output = demo(dir.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("empty directory"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
