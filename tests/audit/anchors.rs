//! Anchors in an audit: what they show, and what contradicts them.

use super::{
    chain::{HOTKEY, TestChain},
    *,
};
use gradledger::{
    audit::run::AnchorOptions as Judged,
    ledger::{
        anchor::{AnchorOptions, anchor},
        anchored::{AnchorTrust, Finality, Relation},
        writer::LedgerWriter,
    },
    store::anchors,
};
use gradledger_anchor::receipt::{Proof, Receipt as AnchorReceipt};

fn judged(run: &Run, root: &Path, anchors: Judged<'_>) -> Report {
    let options = AuditOptions { anchors, ..Default::default() };
    audited(root, &options, &trust(rounds_key(run)))
}

/// An audit that asks for anchors on this chain, and takes the operator's word for blocks.
fn asked(chain: &TestChain) -> Judged<'static> {
    let trust = AnchorTrust { place: Some(chain.anchor_place()), authorities: None };
    Judged { trust, required: true, included: true, blocks: None }
}

fn put(root: &Path, chain: &TestChain) {
    let mut writer = LedgerWriter::open(root, None).unwrap();
    anchor(&mut writer, &mut chain.clone(), AnchorOptions::default(), &Silent).unwrap();
}

fn status(report: &Report, check: Check) -> Status {
    report.checks.iter().find(|line| line.check == check).unwrap().status
}

/// A run of two rounds, anchored after each.
fn anchored() -> (Run, Model, TestChain) {
    let (run, model) = sealed(8);
    let chain = TestChain::new();
    put(&run.path(), &chain);
    open(&run, &model, 9, &mut Random(3));
    run.seal(9);
    put(&run.path(), &chain);
    (run, model, chain)
}

#[test]
fn an_audit_says_between_which_blocks_rounds_were_sealed_and_what_was_accounted_for() {
    let (run, _, chain) = anchored();
    let report = judged(&run, &run.path(), asked(&chain));
    assert_eq!(report.verdict, Verdict::Passed, "{:#?}", report.checks);
    let anchors = report.anchors.as_ref().unwrap();
    assert_eq!(anchors.receipts.len(), 2);
    assert!(anchors.receipts.iter().all(|receipt| receipt.relation == Relation::InLog));
    assert!(anchors.exclusive.as_ref().unwrap().exclusive, "{anchors:#?}");
    honest::within_its_schema(serde_json::to_value(&report).unwrap());
    let last = anchors.rounds.last().unwrap();
    assert_eq!(last.round, 9);
    assert_eq!(last.after.unwrap().number + 1, u64::from(last.before.unwrap()));
    // The signatures of authorities, brought along: for one receipt they are there, for one not.
    let authorities = chain.authorities();
    let trust = AnchorTrust { place: Some(chain.anchor_place()), authorities: Some(&authorities) };
    let strict = Judged { trust, required: true, included: false, blocks: None };
    let report = judged(&run, &run.path(), strict);
    assert_eq!(report.verdict, Verdict::Incomplete);
    assert_eq!(status(&report, Check::AnchorReceipts), Status::NotDone);
    let ledger = run.open();
    for size in anchors::sizes(ledger.place()).unwrap() {
        let mut receipt: AnchorReceipt = anchors::load(ledger.place(), size).unwrap().unwrap();
        let Proof::Subtensor(proof) = &mut receipt.proof else { panic!() };
        chain.justify(proof);
        let path = run.path().join(format!("anchors/{size}.json"));
        fs::write(path, json::to_vec(&receipt)).unwrap();
    }
    let report = judged(&run, &run.path(), strict);
    assert_eq!(report.verdict, Verdict::Passed, "{:#?}", report.checks);
    let receipts = &report.anchors.unwrap().receipts;
    assert!(receipts.iter().all(|receipt| receipt.finality == Finality::Justified));
    // A block range that no receipt covers is said to be open.
    let far = Judged { blocks: Some((0, 1_000)), ..asked(&chain) };
    assert!(!judged(&run, &run.path(), far).anchors.unwrap().exclusive.unwrap().exclusive);
}

#[test]
fn anchors_that_nobody_asks_for_are_not_required_and_those_asked_for_have_to_be_there() {
    let (run, _, chain) = anchored();
    let report = judged(&run, &run.path(), Judged::default());
    assert_eq!(report.verdict, Verdict::Passed);
    assert_eq!(status(&report, Check::AnchoredHeads), Status::NotRequired);
    let (bare, _) = sealed(8);
    let report = judged(&bare, &bare.path(), asked(&chain));
    assert_eq!(report.verdict, Verdict::Incomplete);
    fs::remove_dir_all(run.path().join("anchors")).unwrap();
    let report = judged(&run, &run.path(), asked(&chain));
    assert_eq!(status(&report, Check::AnchorReceipts), Status::NotDone);
    assert_eq!(report.anchors.unwrap().without_receipt.len(), 2);
}

#[test]
fn a_log_that_is_not_the_anchored_one_is_a_contradiction_asked_for_or_not() {
    let (run, model, chain) = anchored();
    let fork = Run { dir: tempfile::tempdir().unwrap() };
    copy_all(&run.path(), &fork.path());
    // The chain was shown one last record; the reader is shown another.
    let mut rounds = entries(&run, false);
    let at = rounds.len() - 2;
    let RoundsEntry::Round(mut record) = json::from_slice(&rounds[at]).unwrap() else { panic!() };
    record.block = Some(gradledger::types::record::ChainBlock { number: 1, hash: Digest::of(b"") });
    rounds[at] = json::to_vec(&RoundsEntry::Round(record));
    forge(&fork.path(), "rounds", &rounds);
    for options in [asked(&chain), Judged::default()] {
        let report = judged(&run, &fork.path(), options);
        assert_eq!(report.verdict, Verdict::Contradiction, "{:#?}", report.checks);
        assert_eq!(with(&report.checks, Status::Failed), [Check::AnchoredHeads]);
    }
    let args = ["audit", fork.path().to_str().unwrap(), "--log-key"].map(str::to_owned);
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
    let output = command.args(args).arg(rounds_key(&run).to_string()).output().unwrap();
    assert_eq!(output.status.code(), Some(22), "{}", String::from_utf8_lossy(&output.stdout));
    drop(model);
}

#[test]
fn a_log_that_ends_before_an_anchored_head_is_not_called_consistent() {
    let (run, model) = sealed(8);
    let (chain, older) = (TestChain::new(), copied(&run));
    open(&run, &model, 9, &mut Random(3));
    run.seal(9);
    put(&run.path(), &chain);
    fs::create_dir_all(older.root.join("anchors")).unwrap();
    fs::copy(run.path().join("anchors/4.json"), older.root.join("anchors/4.json")).unwrap();
    let report = judged(&run, &older.root, asked(&chain));
    assert_eq!(report.verdict, Verdict::Incomplete, "{:#?}", report.checks);
    assert_eq!(status(&report, Check::AnchoredHeads), Status::NotDone);
    assert_eq!(report.anchors.unwrap().receipts[0].relation, Relation::AheadOfLog);
}

#[test]
fn a_receipt_that_proves_nothing_is_damage_and_no_contradiction() {
    let (run, _, chain) = anchored();
    let mut receipt: AnchorReceipt = anchors::load(run.open().place(), 3).unwrap().unwrap();
    let Proof::Subtensor(proof) = &mut receipt.proof else { panic!() };
    proof.state.nodes[0].0[40] ^= 1;
    fs::write(run.path().join("anchors/3.json"), json::to_vec(&receipt)).unwrap();
    let report = judged(&run, &run.path(), asked(&chain));
    assert_eq!(report.verdict, Verdict::Mismatch);
    assert_eq!(with(&report.checks, Status::Failed), [Check::AnchorReceipts]);
    let key = rounds_key(&run).to_string();
    let genesis = chain.anchor_place().chain_genesis.to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
    let output = command
        .args(["audit", "--included", "--netuid", "3", "--genesis", &genesis])
        .args(["--hotkey", &HOTKEY.to_string(), "--log-key", &key])
        .arg(run.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(20), "{}", String::from_utf8_lossy(&output.stdout));
}
