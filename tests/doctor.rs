//! Does `doctor` find what is wrong, say what to mend, and leave everything as it was?

#![allow(clippy::unwrap_used)] // Clippy's own exception for tests leaves out their helpers.

mod common;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use common::{
    model::{Model, Run, all_files},
    signed::{bytes_below, program},
};
use gradledger::types::rule::Dialect;
use serde_json::Value;

fn run() -> Run {
    Run::new(&Model::small(Dialect::Templar))
}

fn doctor(ledger: &Path) -> Command {
    let mut command = program(&["doctor", "--json"]);
    command.arg(ledger).env_remove("GRADLEDGER_LOG_KEY_FILE");
    command
}

/// Exit code and document.
fn examined(command: &mut Command) -> (i32, Value) {
    let Output { status, stdout, .. } = command.output().unwrap();
    (status.code().unwrap(), serde_json::from_slice(&stdout).unwrap())
}

/// What was found of `name` in a part of the document.
fn found<'a>(document: &'a Value, part: &str, name: &str) -> &'a Value {
    let all = document[part].as_array().unwrap();
    all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name} in {document:#}"))
}

fn is(document: &Value, name: &str, status: &str, says: &str) {
    let one = found(document, "ledger", name);
    assert_eq!(one["status"], status, "{one:#}");
    assert!(one["found"].as_str().unwrap().contains(says), "{says:?} in {one:#}");
    assert_eq!(one["mend"].is_null(), status == "ok", "{one:#}");
}

#[test]
fn a_sound_ledger_passes_and_is_left_as_it_was() {
    let run = run();
    let before = bytes_below(&run.path());
    let (code, document) = examined(&mut doctor(&run.path()));
    assert_eq!(code, 0, "{document:#}");
    assert_eq!(bytes_below(&run.path()), before);
    is(&document, "config", "ok", "defaults");
    is(&document, "ledger", "ok", "\"test\"");
    is(&document, "log-key", "warning", "in the ledger");
    is(&document, "heads", "ok", "agrees with both logs");
    is(&document, "index", "ok", "none yet");
    is(&document, "retention", "ok", "1 states are kept");
    is(&document, "room", "ok", "room for");
    for name in ["disk", "memory", "open-files", "processor", "kernels", "gpu"] {
        assert_ne!(found(&document, "machine", name)["status"], "failure", "{document:#}");
    }
    let gpu = found(&document, "machine", "gpu")["found"].as_str().unwrap();
    assert!(gpu.contains("not used by this version"));
    // The same as text, and the machine alone.
    let text = program(&["doctor"]).arg(run.path()).output().unwrap().stdout;
    assert!(String::from_utf8(text).unwrap().contains("-> whoever copies the ledger"));
    let (code, document) = examined(program(&["doctor", "--json"]).current_dir(run.dir.path()));
    assert_eq!((code, &document["ledger"]), (0, &Value::Null));
}

#[test]
fn a_key_outside_the_ledger_is_as_it_should_be() {
    let run = run();
    let elsewhere = run.dir.path().join("log.key");
    for suffix in ["", ".heads"] {
        let name = format!("log.key{suffix}");
        fs::rename(run.path().join("keys").join(&name), run.dir.path().join(name)).unwrap();
    }
    let (code, document) = examined(doctor(&run.path()).arg("--log-key-file").arg(&elsewhere));
    assert_eq!(code, 0);
    is(&document, "log-key", "ok", "outside the ledger");
    // Without it only reading goes.
    let (code, document) = examined(&mut doctor(&run.path()));
    assert_eq!(code, 0);
    is(&document, "log-key", "warning", "no log key here");
}

#[test]
fn what_would_fail_is_a_failure() {
    let run = run();
    let config = run.path().join("gradledger.toml");
    fs::write(&config, "[retention]\nkeep_evry = 3\n").unwrap();
    fs::set_permissions(run.path().join("keys/log.key"), fs::Permissions::from_mode(0o644))
        .unwrap();
    fs::write(run.path().join("open-round.json"), "{").unwrap();
    fs::write(run.path().join("retention.json"), "[]").unwrap();
    let (code, document) = examined(&mut doctor(&run.path()));
    assert_eq!((code, &document["status"]), (1, &Value::from("failure")));
    is(&document, "config", "failure", "keep_evry");
    is(&document, "log-key", "failure", "chmod 600");
    is(&document, "open-round", "failure", "open-round.json");
    is(&document, "retention", "failure", "retention.json");
    // The record of what the key signed is another ledger's.
    fs::set_permissions(run.path().join("keys/log.key"), fs::Permissions::from_mode(0o600))
        .unwrap();
    fs::write(run.path().join("keys/log.key.heads"), "{}").unwrap();
    is(&examined(&mut doctor(&run.path())).1, "heads", "failure", "no head of");
    fs::remove_file(run.path().join("keys/log.key.heads")).unwrap();
    is(&examined(&mut doctor(&run.path())).1, "log-key", "failure", "record");
}

#[test]
fn what_serve_would_take_is_compared_with_the_machine() {
    let run = run();
    let within = |files: u64, config: &str| {
        fs::write(run.path().join("gradledger.toml"), config).unwrap();
        let shell = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
        let doctor = doctor(&run.path());
        let mut command = Command::new("sh");
        command.args(["-c", &shell]).arg(doctor.get_program()).args(doctor.get_args());
        examined(command.env_remove("GRADLEDGER_LOG_KEY_FILE")).1
    };
    is(&within(2176, ""), "serve", "ok", "takes 1024 connections at once");
    // The default fits itself to the machine; a choice that cannot be kept is one to mend.
    is(&within(2174, ""), "serve", "ok", "takes 1023 connections at once, not 1024");
    is(&within(1128, "[serve]\nconnections_max = 500\n"), "serve", "ok", "takes 500");
    let document = within(1126, "[serve]\nconnections_max = 500\n");
    is(&document, "serve", "warning", "499 connections at once, not 500: 1126 files");
    let mend = found(&document, "ledger", "serve")["mend"].as_str().unwrap();
    assert!(mend.contains("ulimit -n 1128") && mend.contains("connections_max = 499"), "{mend}");
    // Whose miners are listed for each round sign nothing.
    let document = within(4096, "[serve.uploads]\nenabled = true\n");
    is(&document, "uploads", "failure", "takes no signed submissions");
}

#[test]
fn uploads_without_room_on_the_disk_are_foreseen() {
    let run = common::desk::Run::new(1, 64);
    for (reserve, status) in [(0u64, "ok"), (1 << 52, "warning")] {
        run.configure(&format!("enabled = true\ndisk_reserve_bytes = {reserve}"));
        let document = examined(&mut doctor(&run.ledger())).1;
        is(&document, "uploads", status, "are left alone");
    }
}

#[test]
fn a_place_without_a_ledger_or_without_a_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (code, document) = examined(&mut doctor(dir.path()));
    assert_eq!(code, 1);
    is(&document, "ledger", "failure", "is not a ledger");
    let (code, document) = examined(&mut doctor(&dir.path().join("absent")));
    assert_eq!(
        (code, &found(&document, "machine", "disk")["status"]),
        (1, &Value::from("failure"))
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn every_command_has_a_page_of_the_manual() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("man");
    assert!(program(&["man", "--out"]).arg(&out).status().unwrap().success());
    let names: BTreeSet<String> = all_files(&out)
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    for name in ["", "-seal", "-import-templar", "-log-rotate-key", "-doctor", "-man"] {
        assert!(names.contains(&format!("gradledger{name}.1")), "{name} in {names:?}");
    }
    let page = fs::read_to_string(out.join("gradledger-seal.1")).unwrap();
    assert!(page.contains(".TH gradledger-seal 1"), "{page}");
    assert!(page.contains("\\-\\-round"), "{page}");
}
