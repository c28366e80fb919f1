//! Crashes: every command of a ledger on a disk that is cut, or fails, at each of its calls.
//!
//! `common/scenario.rs` says what must hold afterwards. The counts are printed; all of a scenario's
//! calls with a hundred scatterings of each cut: `GRADLEDGER_CRASH_FULL=1 cargo test --release --test
//! crash -- --nocapture`.

#![allow(clippy::unwrap_used)] // Helpers of tests, too.

mod common;

use common::scenario::{Effort, Fixture, LedgerScenario, ROUNDS, Scenario, Step, honest, run};

/// Runs a scenario; nothing may be wrong.
fn survives<S: Scenario>(scenario: &S) {
    let counts = run(scenario, &honest, Effort::from_env());
    println!("crash: {counts}");
    let first: Vec<_> = counts.violations.iter().take(5).collect();
    assert!(first.is_empty(), "{} violations, the first: {first:#?}", counts.violations.len());
}

#[test]
fn init_survives() {
    let fixture = Fixture::new();
    survives(&LedgerScenario::new(&fixture, "init", &[], &[Step::Init]));
}

#[test]
fn import_survives() {
    let fixture = Fixture::new();
    let import = Step::import(ROUNDS[0]);
    survives(&LedgerScenario::new(&fixture, "import", &[Step::Init], &[import]));
}

#[test]
fn seal_survives() {
    let fixture = Fixture::new();
    let before = [Step::Init, Step::import(ROUNDS[0])];
    survives(&LedgerScenario::new(&fixture, "seal", &before, &[Step::Seal(ROUNDS[0])]));
}

#[test]
fn a_second_round_survives() {
    let fixture = Fixture::new();
    let before = [Step::Init, Step::import(ROUNDS[0]), Step::Seal(ROUNDS[0])];
    let steps = [Step::import(ROUNDS[1]), Step::Seal(ROUNDS[1])];
    survives(&LedgerScenario::new(&fixture, "second round", &before, &steps));
}
