//! Is a head anchored once, whatever happens between, and does a receipt hold the log to it?
//!
//! The chain is `common/chain.rs`: real headers, tries and votes, in memory. Golden proofs of a real
//! runtime are in `anchor/tests/golden.rs`.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

#[path = "common/chain.rs"]
mod chain;
mod common;

use std::{fs, path::Path, process::Command, sync::Arc, time::Duration};

use chain::{Cut, HOTKEY, LIFE, NETUID, TestChain};
use common::model::{Model, Run, copy_all};
use gradledger::{
    anchor::{ChainError, file::FileChain},
    ledger::{
        Ledger, LedgerError,
        anchor::{
            AnchorOptions, AnchorReport, AnchorStepError, OpenChain, anchor, anchor_with_patience,
            check_hotkey, dry_run,
        },
        anchored::{
            AnchorError, AnchorTrust, Finality, PlaceBy, Relation, exclusive, judge, judge_all,
            sealed_between,
        },
        fsck::fsck,
        init::{InitOptions, init},
        witness::{JustifyReport, LiveSlot, compare, justify},
        writer::LedgerWriter,
    },
    store::{anchors, files::Disk},
    types::{digest::Digest, json, progress::Silent, record::AnchorPlace, rule::Dialect},
};
use gradledger_anchor::{
    commitment::Field,
    exclusive::Coverage,
    hash::{Hash32, Hex},
    receipt::{Proof, Receipt, ReceiptError},
};
use serde_json::Value;

/// A ledger of a small model, with `rounds` sealed rounds that a refused file was sent for.
fn ledger(rounds: u64) -> Run {
    let run = Run::new(&Model::small(Dialect::Templar));
    (1..=rounds).for_each(|round| seal(&run, round));
    run
}

fn seal(run: &Run, round: u64) {
    run.put(round, 7, b"no gradient");
    run.import(round, &[7], &[]);
    run.seal(round);
}

fn put(run: &Run, chain: &TestChain) -> Result<AnchorReport, LedgerError> {
    put_with(run, chain, AnchorOptions::default())
}

fn put_with(
    run: &Run,
    chain: &TestChain,
    options: AnchorOptions,
) -> Result<AnchorReport, LedgerError> {
    anchor(&mut run.writer(), &mut chain.clone(), options, &Silent)
}

fn trust(chain: &TestChain) -> AnchorTrust<'static> {
    AnchorTrust { place: Some(chain.anchor_place()), authorities: None }
}

/// The newest head's digest, as it stands on the chain.
fn value(run: &Run) -> Hash32 {
    Hash32(run.open().rounds_log().head().digest().0)
}

fn receipt(run: &Run, size: u64) -> Receipt {
    anchors::load(run.open().place(), size).unwrap().unwrap()
}

fn subtensor(receipt: &mut Receipt) -> &mut gradledger_anchor::receipt::SubtensorProof {
    let Proof::Subtensor(proof) = &mut receipt.proof else { panic!("a receipt of the chain") };
    proof
}

#[test]
fn a_head_is_anchored_once_and_the_log_tells_of_it() {
    let (run, chain) = (ledger(1), TestChain::new());
    let head = value(&run);
    let report = put(&run, &chain).unwrap();
    assert!(!report.already && !report.resumed);
    assert_eq!((report.anchor.size, report.anchor.relation), (2, Relation::InLog));
    assert_eq!(chain.commitments(), [head]);
    let ledger = run.open();
    let [entry] = ledger.anchors() else { panic!("one entry") };
    assert_eq!((entry.index, entry.record.size), (2, 2));
    assert_eq!(entry.record.value, Digest(head.0));
    assert_eq!(entry.record.block, report.anchor.shown_at);
    assert_eq!(entry.record.block.number, u64::from(chain.number()));
    // An entry about the anchor is nothing new.
    let again = put(&run, &chain).unwrap();
    assert!(again.already);
    assert_eq!(chain.commitments().len(), 1);
    fsck(&run.open(), common::model::fold_options(), &Silent).unwrap();
    // A sealed round is.
    seal(&run, 2);
    let head = value(&run);
    assert_eq!(put(&run, &chain).unwrap().anchor.size, 4);
    assert_eq!(chain.commitments()[1..], [head]);
    fsck(&run.open(), common::model::fold_options(), &Silent).unwrap();
}

#[test]
fn receipts_say_between_which_blocks_a_round_was_sealed_and_that_nothing_else_was_set() {
    let (run, chain) = (ledger(0), TestChain::new());
    let mut blocks = Vec::new();
    for round in 1..=3 {
        seal(&run, round);
        blocks.push(put(&run, &chain).unwrap().anchor.set_in);
        chain.blocks(3);
    }
    seal(&run, 4);
    let ledger = run.open();
    let view = judge_all(&ledger, trust(&chain)).unwrap();
    assert_eq!(view.receipts.len(), 3);
    assert!(view.without_receipt.is_empty());
    let between = |round| sealed_between(&ledger, &view, round).unwrap();
    assert_eq!((between(1).after, between(1).before), (None, Some(blocks[0])));
    for round in 2..=3 {
        let (earlier, later) = (blocks[round as usize - 2], blocks[round as usize - 1]);
        assert_eq!(between(round).after.unwrap().number, u64::from(earlier));
        assert_eq!(between(round).before, Some(later));
    }
    assert_eq!(between(4).after.unwrap().number, u64::from(blocks[2]));
    assert_eq!(between(4).before, None);
    let judged = |first, last| exclusive(&ledger, &view, first..=last).unwrap();
    assert_eq!(judged(blocks[0], blocks[2]), Coverage::Exclusive);
    let gap = Coverage::Gap { from: blocks[2] + 1, to: blocks[2] + 2 };
    assert_eq!(judged(blocks[0], blocks[2] + 2), gap);
}

#[test]
fn a_commitment_to_something_else_is_not_exclusive() {
    let (run, chain) = (ledger(1), TestChain::new());
    let first = put(&run, &chain).unwrap().anchor.set_in;
    // The hotkey commits to another history, and back, so that the ledger goes on.
    let own = chain.standing().unwrap().fields;
    let foreign = Hash32([9; 32]);
    chain.set(vec![Field::sha256(&foreign)]);
    seal(&run, 2);
    let refused = put(&run, &chain).unwrap_err();
    assert!(matches!(refused, LedgerError::AnchorStep(AnchorStepError::Foreign { .. })));
    chain.set(own);
    let last = put(&run, &chain).unwrap().anchor.set_in;
    let ledger = run.open();
    let view = judge_all(&ledger, trust(&chain)).unwrap();
    // The receipts alone leave the block of the foreign commitment open, and say so.
    let Coverage::Gap { from, to } = exclusive(&ledger, &view, first..=last).unwrap() else {
        panic!("a gap")
    };
    assert_eq!((from, to), (first + 1, first + 1));
}

#[test]
fn killed_between_submission_and_receipt_the_head_is_committed_to_once() {
    let (run, chain) = (ledger(1), TestChain::new());
    let head = value(&run);
    for cut in [Cut::After, Cut::Before] {
        let (run, chain) = (ledger(1), TestChain::new());
        chain.cut(cut);
        let lost = put(&run, &chain).unwrap_err();
        assert!(matches!(
            lost,
            LedgerError::AnchorStep(AnchorStepError::Chain(ChainError::Node { .. }))
        ));
        let intent = anchors::intent(run.open().place()).unwrap().unwrap();
        let report = put(&run, &chain).unwrap();
        assert!(report.resumed);
        assert_eq!(chain.commitments().len(), 1, "{cut:?}");
        assert_eq!(chain.sent(), [intent.extrinsic.0], "the same bytes, once");
        assert_eq!(anchors::intent(run.open().place()).unwrap(), None);
        assert!(put(&run, &chain).unwrap().already);
    }
    // Its time over, it can never be taken; another one is made.
    chain.cut(Cut::Before);
    put(&run, &chain).unwrap_err();
    let first = anchors::intent(run.open().place()).unwrap().unwrap();
    chain.blocks(LIFE + 1);
    let report = put(&run, &chain).unwrap();
    assert!(!report.resumed);
    assert_eq!(chain.commitments(), [head]);
    assert_ne!(chain.sent(), [first.extrinsic.0]);
}

#[test]
fn a_run_is_anchored_where_its_genesis_says_and_nowhere_else() {
    let (model, chain) = (Model::small(Dialect::Templar), TestChain::new());
    let run = Run::new(&model);
    let named = chain.anchor_place();
    for (name, place) in [
        ("chain", AnchorPlace { chain_genesis: Digest([1; 32]), ..named }),
        ("subnet", AnchorPlace { netuid: NETUID + 1, ..named }),
        ("hotkey", AnchorPlace { hotkey: Digest([1; 32]), ..named }),
        ("", named),
    ] {
        let path = run.dir.path().join(format!("of-{name}"));
        let checkpoint = run.dir.path().join("checkpoint.safetensors");
        let options = InitOptions {
            anchor: Some(place),
            ..InitOptions::new("test", "test.example/run", &checkpoint, model.rule.clone())
        };
        init(&path, &options, &Silent).unwrap();
        let mut writer = LedgerWriter::open(&path, None).unwrap();
        // What a server knows before it asks a chain.
        let known = check_hotkey(writer.ledger(), NETUID, HOTKEY);
        assert_eq!(known.is_err(), ["subnet", "hotkey"].contains(&name), "{name}");
        let options = AnchorOptions::default();
        match anchor(&mut writer, &mut chain.clone(), options, &Silent) {
            Ok(_) => assert_eq!(name, ""),
            Err(LedgerError::AnchorStep(AnchorStepError::Place { what })) => assert_eq!(what, name),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(chain.sent().len(), 1);
}

#[test]
fn a_node_that_fails_on_the_way_is_reached_anew() {
    for (cut, resumed) in [(Cut::After, true), (Cut::Before, true), (Cut::RateLimit, false)] {
        let (run, chain) = (ledger(1), TestChain::new());
        chain.cut(cut);
        let (node, mut opened) = (chain.clone(), 0);
        let mut open: OpenChain = Box::new(move |_| {
            opened += 1;
            assert_eq!(opened, 1, "one failure, one more connection");
            Ok(Box::new(node.clone()))
        });
        let first = Box::new(chain.clone());
        let (options, wait) = (AnchorOptions::default(), Duration::ZERO);
        let done =
            anchor_with_patience(&mut run.writer(), first, &mut open, options, wait, &Silent);
        if resumed {
            assert!(done.unwrap().resumed);
            assert_eq!(chain.commitments().len(), 1, "{cut:?}");
        } else {
            // What the chain refuses is not asked again.
            assert!(done.is_err() && chain.commitments().is_empty());
        }
    }
}

#[test]
fn killed_before_the_entry_the_receipt_is_not_lost() {
    let (run, chain) = (ledger(1), TestChain::new());
    let before = run.dir.path().join("before");
    copy_all(&run.path(), &before);
    put(&run, &chain).unwrap();
    // The ledger as it was, with a receipt and an intent that no entry tells of, or with neither.
    for keep in [true, false] {
        let copy = run.dir.path().join(format!("copy-{keep}"));
        copy_all(&before, &copy);
        if keep {
            copy_all(&run.path().join("anchors"), &copy.join("anchors"));
        }
        let mut writer = LedgerWriter::open(&copy, None).unwrap();
        let mut node = chain.clone();
        let report = anchor(&mut writer, &mut node, AnchorOptions::default(), &Silent).unwrap();
        assert!(report.resumed);
        assert_eq!(writer.ledger().anchors().len(), 1);
        assert_eq!(chain.commitments().len(), 1);
    }
}

#[test]
fn a_refusal_ends_the_attempt_and_the_next_one_starts_anew() {
    let (run, chain) = (ledger(1), TestChain::new());
    chain.cut(Cut::RateLimit);
    let refused = put(&run, &chain).unwrap_err();
    assert!(matches!(
        refused,
        LedgerError::AnchorStep(AnchorStepError::Chain(ChainError::RateLimit { .. }))
    ));
    assert_eq!(anchors::intent(run.open().place()).unwrap(), None);
    put(&run, &chain).unwrap();
    assert_eq!(chain.commitments().len(), 1);
}

#[test]
fn what_is_not_ours_is_not_overwritten() {
    let (run, chain) = (ledger(1), TestChain::new());
    let bucket = Field::raw(b"a miner's bucket and its keys").unwrap();
    let keep = AnchorOptions { keep_foreign: true };
    chain.set(vec![bucket.clone()]);
    let refused = put(&run, &chain).unwrap_err();
    let LedgerError::AnchorStep(AnchorStepError::Foreign { can_keep: true, .. }) = refused else {
        panic!("{refused}")
    };
    assert!(chain.sent().is_empty());
    put_with(&run, &chain, keep).unwrap();
    let standing = chain.standing().unwrap().fields;
    assert_eq!(standing[0], bucket);
    assert!(standing[1].digest().is_some());
    // Once it was kept, it stays without being asked for again.
    seal(&run, 2);
    put(&run, &chain).unwrap();
    let standing = chain.standing().unwrap().fields;
    assert_eq!((&standing[0], standing.len()), (&bucket, 2));
    judge_all(&run.open(), trust(&chain)).unwrap();
    // Another digest could be a head of ours that was lost: it goes for nothing in the world.
    seal(&run, 3);
    chain.set(vec![Field::sha256(&Hash32([1; 32]))]);
    for options in [keep, AnchorOptions::default()] {
        let refused = put_with(&run, &chain, options).unwrap_err();
        let LedgerError::AnchorStep(AnchorStepError::Foreign { can_keep: false, .. }) = refused
        else {
            panic!("{refused}")
        };
    }
    chain.set(vec![Field::reset_bonds()]);
    let refused = put_with(&run, &chain, keep).unwrap_err();
    assert!(matches!(
        refused,
        LedgerError::AnchorStep(AnchorStepError::Chain(ChainError::ResetBonds))
    ));
}

#[test]
fn a_dry_run_prints_what_would_be_sent_and_sends_nothing() {
    let (run, mut chain) = (ledger(1), TestChain::new());
    let dry = dry_run(&run.open(), &mut chain, AnchorOptions::default()).unwrap();
    let call = [&[0x12, 0, 3, 0, 4, 0x83], &value(&run).0[..]].concat();
    assert_eq!(dry.signed.call, call);
    assert!(dry.signed.extrinsic.ends_with(&call));
    assert!(chain.sent().is_empty());
    assert_eq!(anchors::intent(run.open().place()).unwrap(), None);
}

#[test]
fn a_log_older_than_its_last_anchor_signs_nothing() {
    let (run, chain) = (ledger(1), TestChain::new());
    let backup = run.dir.path().join("backup");
    copy_all(&run.path(), &backup);
    seal(&run, 2);
    put(&run, &chain).unwrap();
    // The log and the key's record from the backup, the receipts as they are.
    for part in ["log", "keys"] {
        fs::remove_dir_all(run.path().join(part)).unwrap();
        copy_all(&backup.join(part), &run.path().join(part));
    }
    let refused = LedgerWriter::open(&run.path(), None).err().unwrap();
    let LedgerError::AnchorStep(AnchorStepError::Older { anchored: 3, size: 2 }) = refused else {
        panic!("{refused}")
    };
    // Without the receipts, the chain still knows.
    fs::remove_dir_all(run.path().join("anchors")).unwrap();
    let refused = put(&run, &chain).unwrap_err();
    assert!(matches!(
        refused,
        LedgerError::AnchorStep(AnchorStepError::Foreign { can_keep: false, .. })
    ));
}

#[test]
fn what_a_lying_node_proves_is_not_kept() {
    let (run, chain) = (ledger(1), TestChain::new());
    chain.serve_stale();
    let refused = put(&run, &chain).unwrap_err();
    let LedgerError::Anchor(AnchorError::Receipt { source: ReceiptError::Absent { .. }, .. }) =
        refused
    else {
        panic!("{refused}")
    };
    assert!(anchors::sizes(run.open().place()).unwrap().is_empty());
    assert!(run.open().anchors().is_empty());
}

/// A receipt of this chain, judged by who brings other things along.
#[test]
fn each_wrong_thing_is_named() {
    let (run, chain) = (ledger(1), TestChain::new());
    put(&run, &chain).unwrap();
    let (ledger, good) = (run.open(), receipt(&run, 2));
    let judge_in = |receipt: &Receipt, trust| judge(Some(&ledger), receipt, trust);
    let view = judge_in(&good, trust(&chain)).unwrap();
    assert_eq!((view.place_by, view.finality), (PlaceBy::Auditor, Finality::Finalized));
    let claimed = judge_in(&good, AnchorTrust::default()).unwrap();
    assert_eq!(claimed.place_by, PlaceBy::Receipt);
    let place = chain.anchor_place();
    let refused = |receipt: &Receipt, place| {
        let trust = AnchorTrust { place: Some(place), authorities: None };
        match judge_in(receipt, trust).unwrap_err() {
            LedgerError::Anchor(AnchorError::Receipt { source, .. }) => source,
            other => panic!("{other}"),
        }
    };
    let mut other = place;
    other.netuid += 1;
    assert!(matches!(refused(&good, other), ReceiptError::Netuid { .. }));
    let other = AnchorPlace { hotkey: Digest([1; 32]), ..place };
    assert!(matches!(refused(&good, other), ReceiptError::Hotkey { .. }));
    let other = AnchorPlace { chain_genesis: Digest([1; 32]), ..place };
    assert!(matches!(refused(&good, other), ReceiptError::Genesis { .. }));
    let mut stale = good.clone();
    stale.head.size = 1;
    assert!(matches!(refused(&stale, place), ReceiptError::Digest { .. }));
    let mut version = good.clone();
    version.version = 2;
    assert!(matches!(refused(&version, place), ReceiptError::Version { found: 2 }));
    let mut before = good.clone();
    subtensor(&mut before).before = Some(subtensor(&mut good.clone()).state.clone());
    assert!(matches!(refused(&before, place), ReceiptError::Before { .. }));
    let mut extrinsic = good.clone();
    subtensor(&mut extrinsic).extrinsic.as_mut().unwrap().0.pop();
    assert!(matches!(refused(&extrinsic, place), ReceiptError::Extrinsic(_)));
}

#[test]
fn a_justification_by_known_authorities_counts_and_by_others_does_not() {
    let (run, chain) = (ledger(1), TestChain::new());
    put(&run, &chain).unwrap();
    let ledger = run.open();
    let mut receipt = receipt(&run, 2);
    for blocks in [0, 1, 5] {
        chain.blocks(blocks);
        chain.justify(subtensor(&mut receipt));
        let known = chain.authorities();
        let judged = |authorities| {
            judge(Some(&ledger), &receipt, AnchorTrust { authorities, ..trust(&chain) })
        };
        assert_eq!(judged(None).unwrap().finality, Finality::Unchecked);
        assert_eq!(judged(Some(&known)).unwrap().finality, Finality::Justified);
        let mut others = known.clone();
        others.set_id += 1;
        let LedgerError::Anchor(error) = judged(Some(&others)).unwrap_err() else { panic!() };
        assert!(error.is_signature(), "{error}");
    }
}

#[test]
fn a_justification_that_comes_later_is_fetched_into_the_receipt() {
    let (run, chain) = (ledger(1), TestChain::new());
    put(&run, &chain).unwrap();
    let known = chain.authorities();
    let fetch = |authorities| justify(&mut run.writer(), &mut chain.clone(), authorities, &Silent);
    let first = |report: JustifyReport| (report.receipts[0].finality, report.receipts[0].changed);
    assert_eq!(first(fetch(Some(&known)).unwrap()), (Finality::Finalized, false));
    chain.blocks(3);
    chain.sign_newest();
    chain.blocks(2);
    // What others would have to sign is refused, and the receipt stays.
    let before = receipt(&run, 2);
    let mut others = known.clone();
    others.set_id += 1;
    let LedgerError::Anchor(error) = fetch(Some(&others)).unwrap_err() else { panic!() };
    assert!(error.is_signature(), "{error}");
    assert_eq!(receipt(&run, 2), before);
    assert_eq!(first(fetch(Some(&known)).unwrap()), (Finality::Justified, true));
    assert_eq!(first(fetch(Some(&known)).unwrap()), (Finality::Justified, false));
    let trust = AnchorTrust { authorities: Some(&known), ..trust(&chain) };
    assert_eq!(judge_all(&run.open(), trust).unwrap().receipts[0].finality, Finality::Justified);
    // A node of another chain is not asked for it.
    seal(&run, 2);
    put(&run, &chain).unwrap();
    let mut other = TestChain::of_another_genesis();
    let refused = justify(&mut run.writer(), &mut other, None, &Silent).unwrap_err();
    assert!(matches!(refused, LedgerError::AnchorStep(AnchorStepError::Place { what: "chain" })));
}

#[test]
fn receipts_are_compared_with_what_a_node_shows_now() {
    let (run, chain) = (ledger(1), TestChain::new());
    put(&run, &chain).unwrap();
    let ledger = run.open();
    let view = judge_all(&ledger, trust(&chain)).unwrap();
    let live = |of: Option<&Ledger>| compare(of, &view, &chain.anchor_place(), &mut chain.clone());
    let block = view.receipts[0].set_in;
    for of in [Some(&ledger), None] {
        let live = live(of).unwrap();
        assert_eq!((live.blocks, live.slot), (1, LiveSlot::Own { block, size: 2 }));
    }
    chain.set(vec![Field::sha256(&Hash32([9; 32]))]);
    let other = LiveSlot::Other { block: chain.number() };
    assert_eq!(live(Some(&ledger)).unwrap().slot, other);
    chain.reorganise();
    let LedgerError::Anchor(error) = live(Some(&ledger)).unwrap_err() else { panic!() };
    assert!(error.is_contradiction(), "{error}");
}

/// Another history under the same name, as an operator would have it who shows the chain one log and
/// the auditor another.
fn forked(run: &Run, rounds: u64) -> std::path::PathBuf {
    let fork = run.dir.path().join("fork");
    copy_all(&run.path(), &fork);
    let mut writer = LedgerWriter::open(&fork, None).unwrap();
    for round in 1..=rounds {
        run.put(round, 8, b"no gradient either");
        let files = run.files(round);
        let from = gradledger::ledger::import::Gradients::Directory(&files);
        let peers = gradledger::ledger::import::Peers { listed: vec![8], reserve: vec![] };
        gradledger::ledger::import::import_templar(&mut writer, round, &from, Some(peers), &Silent)
            .unwrap();
        gradledger::ledger::seal::seal(&mut writer, round, common::model::fold_options(), &Silent)
            .unwrap();
    }
    fork
}

#[test]
fn a_log_that_is_not_the_anchored_one_is_contradicted() {
    let (run, chain) = (ledger(0), TestChain::new());
    let fork = forked(&run, 2);
    seal(&run, 1);
    put(&run, &chain).unwrap();
    let receipt = receipt(&run, 2);
    let forked = Ledger::open(&fork).unwrap();
    let contradicted = judge(Some(&forked), &receipt, trust(&chain)).unwrap_err();
    let LedgerError::Anchor(error @ AnchorError::Root { size: 2, .. }) = contradicted else {
        panic!("{contradicted}")
    };
    assert!(error.is_contradiction());
    // The same on the command line: exit 22.
    fs::create_dir_all(fork.join("anchors")).unwrap();
    fs::copy(run.path().join("anchors/2.json"), fork.join("anchors/2.json")).unwrap();
    let (code, out, error) = gradledger(&["anchor", "verify", "--included"], &[&fork]);
    assert_eq!(code, Some(22), "{out}{error}");
    assert!(error.contains("contradiction"), "{error}");
    let (code, _, error) = gradledger(&["fsck"], &[&fork]);
    assert_eq!(code, Some(22), "{error}");
}

#[test]
fn an_anchored_head_that_the_log_does_not_reach_is_not_called_consistent() {
    let (run, chain) = (ledger(1), TestChain::new());
    let shorter = run.dir.path().join("shorter");
    copy_all(&run.path(), &shorter);
    seal(&run, 2);
    put(&run, &chain).unwrap();
    let ledger = Ledger::open(&shorter).unwrap();
    let view = judge(Some(&ledger), &receipt(&run, 3), trust(&chain)).unwrap();
    assert_eq!(view.relation, Relation::AheadOfLog);
    let receipt = run.path().join("anchors/3.json");
    let place = chain.anchor_place();
    let (genesis, hotkey) = (place.chain_genesis.to_string(), HOTKEY.to_string());
    let args = ["anchor", "verify", "--included", "--netuid", "3", "--genesis", &genesis];
    let args = [&args[..], &["--hotkey", &hotkey, "--ledger"]].concat();
    let (code, out, _) = gradledger(&args, &[&shorter, &receipt]);
    assert_eq!(code, Some(3), "{out}");
    let (code, out, error) = gradledger(&args, &[&run.path(), &receipt]);
    assert_eq!(code, Some(0), "{out}{error}");
}

fn gradledger(args: &[&str], paths: &[&Path]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
    let output = command.args(args).args(paths).env_remove("RUST_BACKTRACE").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_lists_what_was_and_was_not_checked() {
    let (run, chain) = (ledger(1), TestChain::new());
    put(&run, &chain).unwrap();
    let mut receipt = receipt(&run, 2);
    chain.blocks(4);
    chain.justify(subtensor(&mut receipt));
    anchors::save(run.open().place(), &receipt).unwrap();
    let place = chain.anchor_place();
    let (genesis, hotkey) = (place.chain_genesis.to_string(), HOTKEY.to_string());
    let netuid = NETUID.to_string();
    let known = [
        "anchor",
        "verify",
        "--json",
        "--netuid",
        &netuid,
        "--genesis",
        &genesis,
        "--hotkey",
        &hotkey,
    ];
    let authorities = run.dir.path().join("authorities.json");
    fs::write(&authorities, serde_json::to_vec(&chain.authorities()).unwrap()).unwrap();
    let signed = [&known[..], &["--authorities", authorities.to_str().unwrap()]].concat();
    let verify = |args: &[&str]| {
        let (code, out, error) = gradledger(args, &[&run.path()]);
        let document: Value = serde_json::from_str(&out).unwrap_or(Value::Null);
        let status = |name: &str| {
            let lines = document["checks"].as_array().cloned().unwrap_or_default();
            let line = lines.into_iter().find(|line| line["check"] == name);
            line.map_or(String::new(), |line| line["status"].as_str().unwrap().to_owned())
        };
        let all = ["place", "state", "block", "log"].map(status).join(" ");
        (code, all, document, error)
    };
    let (code, all, document, error) = verify(&signed);
    assert_eq!((code, all.as_str()), (Some(0), "passed passed passed passed"), "{error}");
    assert_eq!(document["exclusive"]["exclusive"], true);
    assert_eq!(document["rounds"][0]["before"], document["receipts"][0]["set_in"]);
    let (code, all, ..) = verify(&known);
    assert_eq!((code, all.as_str()), (Some(3), "passed passed not-done passed"));
    let (code, all, ..) = verify(&[&known[..], &["--included"]].concat());
    assert_eq!((code, all.as_str()), (Some(0), "passed passed not-required passed"));
    let (code, all, ..) = verify(&["anchor", "verify", "--json", "--included"]);
    assert_eq!((code, all.as_str()), (Some(3), "not-done passed not-required passed"));
    let mut others = chain.authorities();
    others.authorities.truncate(2);
    fs::write(&authorities, serde_json::to_vec(&others).unwrap()).unwrap();
    assert_eq!(verify(&signed).0, Some(21));
    let mut changed = receipt.clone();
    subtensor(&mut changed).state.nodes[0].0[40] ^= 1;
    anchors::save(run.open().place(), &changed).unwrap();
    assert_eq!(verify(&known).0, Some(20));
    fs::write(run.path().join("anchors/2.json"), "{}").unwrap();
    assert_eq!(verify(&known).0, Some(20));
    fs::remove_file(run.path().join("anchors/2.json")).unwrap();
    assert_eq!(verify(&known).0, Some(3));
}

#[test]
fn a_text_file_is_a_place_too() {
    let run = ledger(1);
    let path = run.dir.path().join("anchors.txt");
    let head = value(&run);
    let args = ["anchor", "--json", "--file", path.to_str().unwrap()];
    for already in [false, true] {
        let (code, out, error) = gradledger(&args, &[&run.path()]);
        assert_eq!(code, Some(0), "{error}");
        let document: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(document["already"], already);
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{head}\n"));
    }
    let mut chain = FileChain::new(Arc::new(Disk), path.clone());
    seal(&run, 2);
    anchor(&mut run.writer(), &mut chain, AnchorOptions::default(), &Silent).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    // A line that somebody else wrote is not ours to follow.
    seal(&run, 3);
    fs::write(&path, format!("{}\n", Hex(vec![7; 32]))).unwrap();
    let refused = anchor(&mut run.writer(), &mut chain, AnchorOptions::default(), &Silent);
    assert!(matches!(
        refused.unwrap_err(),
        LedgerError::AnchorStep(AnchorStepError::Foreign { .. })
    ));
    let (code, _, error) = gradledger(&["anchor"], &[&run.path()]);
    assert_eq!(code, Some(2), "{error}");
}

/// `schema/vectors/anchor.json`: a receipt with all that one can have. `GRADLEDGER_WRITE_VECTORS=1`
/// writes it if it is missing.
#[test]
fn the_vector_is_a_receipt_that_holds() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/vectors/anchor.json");
    let chain = TestChain::new();
    if std::env::var_os("GRADLEDGER_WRITE_VECTORS").is_some() && !path.exists() {
        let run = ledger(1);
        put(&run, &chain).unwrap();
        let mut receipt = receipt(&run, 2);
        chain.blocks(2);
        chain.justify(subtensor(&mut receipt));
        fs::write(&path, json::to_vec(&receipt)).unwrap();
    }
    let mut receipt: Receipt = json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let known = chain.authorities();
    let trust = AnchorTrust { authorities: Some(&known), ..trust(&chain) };
    let view = judge(None, &receipt, trust).unwrap();
    assert_eq!((view.size, view.set_in), (2, 5));
    assert_eq!((view.finality, view.relation), (Finality::Justified, Relation::NotCompared));
    assert_eq!(view.sightings.len(), 2);
    subtensor(&mut receipt).state.nodes.pop();
    assert!(judge(None, &receipt, trust).is_err());
}
