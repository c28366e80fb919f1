//! Staged attacks: each is found by an audit, and shown to others where it can be.

use super::*;

/// What an audit finds, and the bundles that show it alone, by kind; both verifiers call them evidence.
fn caught(
    root: &Path,
    key: &VerifierKey,
    options: &AuditOptions<'_>,
) -> (Vec<Check>, Vec<&'static str>) {
    let trust = trust(key.clone());
    let report = audited(root, options, &trust);
    let ledger = Ledger::open(root).unwrap();
    let mut bundles = Vec::new();
    let mut kinds = Vec::new();
    for found in &report.evidence {
        let Ok(Some(bundle)) = show(&ledger, found, &Silent) else { continue };
        let verified = verify(&bundle[..], &trust);
        assert!(verified.evidence.is_some(), "{found}: {verified:#?}");
        kinds.push(verified.kind.unwrap());
        bundles.push((found.to_string(), bundle));
    }
    if let Some((good, _, evidence)) = agree(&bundles, key.clone()) {
        assert_eq!((good, evidence), (0, bundles.len()));
    }
    (with(&report.checks, Status::Failed), kinds)
}

fn forged(
    run: &Run,
    change: impl FnOnce(&mut RoundRecord, &mut Vec<Disposition>),
) -> (Vec<Check>, Vec<&'static str>) {
    let copy = copied(run);
    forge_record(&copy.root, change);
    caught(&copy.root, &rounds_key(run), &AuditOptions::default())
}

fn order(disposition: &mut Disposition) -> Option<&mut u64> {
    match &mut disposition.verdict {
        gradledger::types::record::Verdict::Accepted { order } => Some(order),
        _ => None,
    }
}

#[test]
fn swapped_miner_order_is_shown_by_the_round() {
    let (run, _) = sealed(8);
    let (found, shown) = forged(&run, |_, dispositions| {
        let accepted = dispositions.iter_mut().filter_map(order);
        accepted.for_each(|order| *order = if *order < 2 { 1 - *order } else { *order });
    });
    assert!(found.contains(&Check::Derivation), "{found:?}");
    assert!(shown.contains(&"round"), "{shown:?}");
}

#[test]
fn a_false_rejection_is_shown_by_the_round() {
    let (run, _) = sealed(8);
    let (found, shown) = forged(&run, |_, dispositions| {
        let first = dispositions.iter_mut().find(|d| order(&mut (*d).clone()).is_some()).unwrap();
        let refusal = Refusal::new(Code::WrongBase, None, "this base", "another base");
        first.verdict = gradledger::types::record::Verdict::Rejected(refusal);
    });
    assert!(found.contains(&Check::Derivation), "{found:?}");
    assert!(shown.contains(&"round"), "{shown:?}");
}

/// Each refusal that bytes of one tensor decide: a true one is proven, a false one is shown.
#[test]
fn a_false_refusal_by_intake_is_shown_by_the_bytes_that_decide() {
    let run = signed();
    let (key, honest) = (rounds_key(&run), entries(&run, true));
    let true_one = prove(&run.open(), &Target::Refusal(1), Vec::new(), &Silent).unwrap();
    let verified = verify(&true_one[..], &trust(key.clone()));
    assert_eq!(verdict(&verified.lines), Verdict::Passed, "{verified:#?}");
    let mut all = vec![("true".to_owned(), true_one.clone())];
    let mut random = Random(2);
    for _ in 0..150 {
        let (mut other, at) = (true_one.clone(), random.below(true_one.len() as u64) as usize);
        other[at] ^= 1 << random.below(8);
        all.push((format!("byte {at}"), other));
    }
    let codes = [
        Code::NonFinite,
        Code::Magnitude,
        Code::IndexOutOfRange,
        Code::DuplicateIndex,
        Code::CodeOutOfRange,
    ];
    for code in codes {
        // Miner 1 sent a good delta; the operator says another thing of it, and signs that.
        let copy = copied(&run);
        let mut forged = honest.clone();
        let Submission::Signed(mut signed) = json::from_slice(&forged[0]).unwrap() else {
            panic!()
        };
        signed.refused = Some(Refusal::new(code, Some("a.weight"), "better", "worse"));
        forged[0] = json::to_vec(&Submission::Signed(signed));
        forge(&copy.root, "submissions", &forged);
        let ledger = Ledger::open(&copy.root).unwrap();
        let bundle = prove(&ledger, &Target::Refusal(0), Vec::new(), &Silent).unwrap();
        let verified = verify(&bundle[..], &trust(key.clone()));
        assert!(verified.evidence.is_some(), "{code}: {verified:#?}");
        all.push((code.to_string(), bundle));
        // The record goes along with it, and the audit hands the same bundle out.
        let mut rounds = entries(&run, false);
        let RoundsEntry::Round(mut record) = json::from_slice(&rounds[1]).unwrap() else {
            panic!()
        };
        record.submissions.root_at_end = ledger.submissions_log().head().root;
        rounds[1] = json::to_vec(&RoundsEntry::Round(record));
        forge_both(&copy.root, &rounds, &forged);
        let (found, shown) = caught(&copy.root, &key, &AuditOptions::default());
        assert!(found.contains(&Check::Refusals), "{code}: {found:?}");
        assert!(shown.contains(&"refusal"), "{code}: {shown:?}");
    }
    if let Some((_, _, evidence)) = agree(&all, key) {
        assert_eq!(evidence, codes.len());
    }
}

#[test]
fn a_copied_delta_that_is_accepted_is_shown_by_the_round() {
    let run = signed();
    let (found, shown) = forged(&run, |_, dispositions| {
        // Miner 3 sent what miner 1 had sent before.
        let copied = dispositions.iter_mut().find(|d| d.index == Some(2)).unwrap();
        copied.verdict = gradledger::types::record::Verdict::Accepted { order: 1 };
    });
    assert!(found.contains(&Check::Derivation), "{found:?}");
    assert!(shown.contains(&"round"), "{shown:?}");
}

#[test]
fn a_wrong_base_and_a_backdated_round_are_shown_by_the_records() {
    let (run, _) = sealed(8);
    let genesis = run.open().genesis().model;
    let (found, shown) = forged(&run, |record, _| record.base = genesis);
    assert!(found.contains(&Check::Records), "{found:?}");
    assert!(shown.contains(&"records"), "{shown:?}");
    let (found, shown) = forged(&run, |record, _| record.round = 4);
    assert!(found.contains(&Check::Records), "{found:?}");
    assert!(shown.contains(&"records"), "{shown:?}");
}

#[test]
fn a_window_that_overlaps_or_leaves_a_gap_is_shown_by_the_records() {
    let (run, _) = sealed(8);
    for shift in [-1i64, 1] {
        let (found, shown) = forged(&run, |record, _| {
            record.submissions.start = record.submissions.start.strict_add_signed(shift);
        });
        assert!(found.contains(&Check::Windows), "{found:?}");
        assert_eq!(shown, ["records"], "{shift}");
    }
}

#[test]
fn an_edited_plan_is_found_and_a_factor_that_no_norms_give_is_shown_by_the_fold() {
    let (run, _) = sealed(8);
    // Other counts: only whole deltas tell, so the finding stays the auditor's.
    let (found, _) = forged(&run, |record, _| record.plan.root = Digest([1; 32]));
    assert!(found.contains(&Check::Plan), "{found:?}");
    // A plan that halves a miner's factor, stored as the record says.
    let copy = copied(&run);
    let ledger = Ledger::open(&copy.root).unwrap();
    let position = ledger.sealed().len() - 1;
    let record = &ledger.sealed()[position].record;
    let layout = ledger.layout().unwrap();
    let miners = check_round(&ledger, position).unwrap().deltas.len();
    let mut plan = stored_plan(&ledger, &layout, record, miners).unwrap();
    plan.rows[0].factor /= 2.0;
    let id = Pieces::of(&plan.to_bytes()).artifact;
    let tmp = copy.root.join("forged.parquet");
    let names: Vec<&str> = layout.tensors.iter().map(|t| t.name.as_str()).collect();
    let who = vec![Miner::Uid(1); miners];
    segment::plan::write(&Disk, &tmp, &plan, &names, &who).unwrap();
    segment::plan::commit(&Disk, &copy.root, &tmp, &id).unwrap();
    let forged = forge_record(&copy.root, |record, _| record.plan = id);
    let (found, _) = caught(&copy.root, &rounds_key(&run), &AuditOptions::default());
    assert!(found.contains(&Check::Plan), "{found:?}");
    let bundle = prove(&forged, &Target::Fold(8, 0, 0), Vec::new(), &Silent).unwrap();
    let verified = verify(&bundle[..], &trust(rounds_key(&run)));
    assert!(verified.evidence.unwrap().contains("the norms give factor"));
    agree(&[("plan".to_owned(), bundle)], rounds_key(&run));
}

#[test]
fn an_edited_delta_and_withheld_bytes_are_found_and_accuse_nobody() {
    let (run, _) = sealed(8);
    let deltas = run.path().join("segments/deltas");
    let copy = copied(&run);
    let delta =
        common::model::all_files(&deltas).into_iter().find(|p| p.ends_with("k4-2bit.parquet"));
    let below = delta.unwrap().strip_prefix(run.path()).unwrap().to_owned();
    flip(&copy.root.join(below), 40);
    let (found, shown) = caught(&copy.root, &rounds_key(&run), &AuditOptions::default());
    assert!(found.contains(&Check::Acceptances), "{found:?}");
    assert!(shown.is_empty(), "a disk may have done it: {shown:?}");
    let copy = copied(&run);
    fs::remove_dir_all(copy.root.join("segments/deltas")).unwrap();
    let (found, shown) = caught(&copy.root, &rounds_key(&run), &AuditOptions::default());
    assert!(found.is_empty() && shown.is_empty(), "{found:?}, {shown:?}");
}

#[test]
fn an_omitted_submission_is_shown_by_its_receipt() {
    let (run, receipts) = signed_with_receipts();
    let (key, copy) = (rounds_key(&run), copied(&run));
    let options = AuditOptions { receipts: receipts.clone(), ..Default::default() };
    let (found, shown) = caught(&run.path(), &key, &options);
    assert!(found.is_empty() && shown.is_empty(), "{found:?}");
    let report = audited(&run.path(), &options, &trust(key.clone()));
    assert!(with(&report.checks, Status::Passed).contains(&Check::Receipts));
    // The record ends before the last entry, as if it had come later.
    let root_at = |size| run.open().submissions_log().root_at(size).unwrap();
    forge_record(&copy.root, |record, dispositions| {
        record.submissions.end = 2;
        record.submissions.root_at_end = root_at(2);
        dispositions.remove(2);
        let refusal = gradledger::types::record::Verdict::Absent;
        let miner = Miner::Hotkey(SecretKey::from_seed(&[3; 32]).public().to_digest());
        dispositions.push(Disposition { index: None, miner, verdict: refusal });
    });
    let (found, shown) = caught(&copy.root, &key, &options);
    assert_eq!(found, [Check::Receipts]);
    assert_eq!(shown, ["receipt"]);
    // The miner's own command, from any copy of the log.
    let ledger = Ledger::open(&copy.root).unwrap();
    let target = Target::Receipt(Box::new(receipts[2].clone()));
    let bundle = prove(&ledger, &target, Vec::new(), &Silent).unwrap();
    let said = verify(&bundle[..], &trust(key.clone())).evidence.unwrap();
    assert!(said.contains("leaves out entry 2"), "{said}");
    // A receipt that was kept proves that, too.
    let target = Target::Receipt(Box::new(receipts[1].clone()));
    let bundle = prove(&run.open(), &target, Vec::new(), &Silent).unwrap();
    let verified = verify(&bundle[..], &trust(key.clone()));
    assert_eq!(verdict(&verified.lines), Verdict::Passed, "{verified:#?}");
    let mut all = vec![("kept".to_owned(), bundle.clone())];
    let mut random = Random(12);
    for _ in 0..200 {
        let (mut other, at) = (bundle.clone(), random.below(bundle.len() as u64) as usize);
        other[at] ^= 1 << random.below(8);
        all.push((format!("byte {at}"), other));
    }
    agree(&all, key);
}

#[test]
fn another_entry_in_the_place_of_a_receipts_is_a_fork() {
    let (run, receipts) = signed_with_receipts();
    let (key, copy) = (rounds_key(&run), copied(&run));
    let mut submissions = entries(&run, true);
    submissions.swap(0, 2);
    forge(&copy.root, "submissions", &submissions);
    let options = AuditOptions { receipts, ..Default::default() };
    let (found, shown) = caught(&copy.root, &key, &options);
    assert!(found.contains(&Check::Receipts), "{found:?}");
    assert_eq!(shown, ["entries", "entries"]);
}

#[test]
fn a_restored_backup_is_found_by_receipts_and_heads_and_accuses_nobody_alone() {
    let (run, receipts) = signed_with_receipts();
    let copy = copied(&run);
    forge(&copy.root, "submissions", &entries(&run, true)[..1]);
    forge(&copy.root, "rounds", &entries(&run, false)[..1]);
    let kept = tempfile::tempdir().unwrap();
    let heads = AuditOptions { heads: Some(kept.path()), ..Default::default() };
    assert!(caught(&run.path(), &rounds_key(&run), &heads).0.is_empty());
    let options = AuditOptions { receipts, ..heads };
    let (found, shown) = caught(&copy.root, &rounds_key(&run), &options);
    assert_eq!(found, [Check::Consistency, Check::Receipts]);
    assert!(shown.is_empty(), "{shown:?}");
}

/// Whoever makes a bundle up proves nothing about those who signed.
#[test]
fn a_bundle_that_was_tampered_with_is_no_evidence() {
    let (run, _) = sealed(8);
    let (ledger, trust) = (run.open(), trust(rounds_key(&run)));
    let mut failed = 0;
    for target in [Target::Round(8), Target::Records(8), Target::Fold(8, 0, 0)] {
        let bytes = prove(&ledger, &target, Vec::new(), &Silent).unwrap();
        for member in 0..10 {
            for seed in 0..20 {
                let other = respelled(&bytes, |members| {
                    let Some((_, body)) = members.get_mut(&member) else { return };
                    let at = random_at(body.len(), seed);
                    body[at] ^= 1;
                });
                let verified = verify(&other[..], &trust);
                failed += usize::from(verdict(&verified.lines) != Verdict::Passed);
                assert_eq!(verified.evidence, None, "{target:?}, member {member}: {verified:#?}");
            }
        }
    }
    assert!(failed > 300, "{failed}");
    // Another record in the place of the one before: its number is in the claim's reach, not its chain.
    let before = prove(&ledger, &Target::Records(5), Vec::new(), &Silent).unwrap();
    let genesis_as_previous = respelled(&before, |_| {});
    assert_eq!(verify(&genesis_as_previous[..], &trust).evidence, None);
}
