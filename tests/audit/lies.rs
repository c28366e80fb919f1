//! The operator writes what it likes and signs it: the check that is named for each lie finds it.

use super::*;

#[test]
fn every_field_of_a_signed_record_is_held_to_what_it_says() {
    let (run, _) = sealed(8);
    let trust = trust(rounds_key(&run));
    let kept = tempfile::tempdir().unwrap();
    let heads = AuditOptions { heads: Some(kept.path()), ..Default::default() };
    assert_eq!(audited(&run.path(), &heads, &trust).verdict, Verdict::Passed);
    let honest = entries(&run, false);
    let record: Value = serde_json::from_slice(honest.last().unwrap()).unwrap();
    let (mut fields, mut shown) = (0, BTreeMap::new());
    for (path, changed) in changes(&record) {
        let expected = match path.split('.').next().unwrap() {
            "round" | "listed" | "reserve" | "dispositions" => Check::Derivation,
            "previous" | "base" | "rule" => Check::Records,
            "submissions" => Check::Windows,
            "plan" => Check::Plan,
            "next" | "skipped" => Check::Fold,
            other => panic!("no check is named for {other}"),
        };
        let copy = copied(&run);
        let forged = [&honest[..honest.len() - 1], &[canonical(&changed)]].concat();
        forge(&copy.root, "rounds", &forged);
        let report = audited(&copy.root, &heads, &trust);
        let failed = with(&report.checks, Status::Failed);
        assert!(failed.contains(&expected), "{path}: {failed:?}");
        assert!(failed.contains(&Check::Consistency), "{path}: {failed:?}");
        assert!(with(&report.checks, Status::Passed).contains(&Check::RoundsSignature), "{path}");
        let fork = report.evidence.iter().any(|e| matches!(e, Evidence::Fork { .. }));
        assert!(fork, "{path}");
        let ledger = Ledger::open(&copy.root).unwrap();
        let alone = report.evidence.iter().filter(|e| !matches!(e, Evidence::Fork { .. }));
        for found in alone {
            let Ok(Some(bundle)) = show(&ledger, found, &Silent) else { continue };
            let verified = verify(&bundle[..], &trust);
            assert!(verified.evidence.is_some(), "{path}: {verified:#?}");
            assert!(with(&verified.lines, Status::Passed).contains(&Check::RoundsSignature));
            let refuted = with(&verified.lines, Status::Failed);
            assert!(refuted.iter().all(|check| failed.contains(check)), "{path}: {refuted:?}");
            *shown.entry(verified.kind.unwrap()).or_insert(0) += 1;
        }
        fields += 1;
    }
    println!("{fields} fields; bundles that show the lie alone: {shown:?}");
    assert!(fields >= 30, "{fields} fields");
    for (kind, least) in [("records", 10), ("round", 5), ("fold", 1)] {
        assert!(shown.get(kind).is_some_and(|count| *count >= least), "{shown:?}");
    }
}

#[test]
fn every_field_of_the_genesis_is_held_by_the_record_after_it_and_by_the_kept_head() {
    let (run, _) = sealed(8);
    let trust = trust(rounds_key(&run));
    let honest = entries(&run, false);
    let genesis: Value = serde_json::from_slice(&honest[0]).unwrap();
    for (path, changed) in changes(&genesis) {
        let copy = copied(&run);
        forge(&copy.root, "rounds", &[&[canonical(&changed)], &honest[1..]].concat());
        let report = audited(&copy.root, &AuditOptions::default(), &trust);
        let failed = with(&report.checks, Status::Failed);
        assert!(failed.contains(&Check::Records), "{path}: {failed:?}");
    }
}

#[test]
fn an_unsigned_change_of_any_byte_of_a_head_is_a_wrong_signature_or_no_head() {
    let (run, _) = sealed(8);
    let trust = trust(rounds_key(&run));
    for (log, check) in
        [("rounds", Check::RoundsSignature), ("submissions", Check::SubmissionsSignature)]
    {
        let path = run.path().join("log").join(log).join("checkpoint");
        let honest = fs::read(&path).unwrap();
        let lines: Vec<&[u8]> = honest.split(|b| *b == b'\n').collect();
        // The size may not lie beyond the log, which would not open: another check of another test.
        let places = (0..lines[0].len()).chain(honest.len() - 40..honest.len() - 1);
        for at in places.step_by(5) {
            let mut other = honest.clone();
            other[at] ^= 1;
            fs::write(&path, &other).unwrap();
            match audit(Arc::new(Disk), &run.path(), &AuditOptions::default(), &trust, &Silent) {
                Ok(report) => {
                    let failed = with(&report.checks, Status::Failed);
                    assert!(
                        failed.contains(&check) || failed == [Check::Records],
                        "{at}: {failed:?}"
                    );
                }
                Err(error) => panic!("byte {at}: {error}"),
            }
        }
        fs::write(&path, &honest).unwrap();
    }
}

/// The checks that fail after `change` to a copy.
fn found_after(run: &Run, change: impl Fn(&Path)) -> Vec<Check> {
    let copy = copied(run);
    change(&copy.root);
    let report = audited(&copy.root, &AuditOptions::default(), &trust(rounds_key(run)));
    with(&report.checks, Status::Failed)
}

/// Flips bytes of a file in turn: `expected` alone finds them, if anything changed at all.
fn flips_are_found_by(
    run: &Run,
    path: &Path,
    places: impl Iterator<Item = usize>,
    expected: Check,
) {
    let below = path.strip_prefix(run.path()).unwrap();
    let mut times = 0;
    for at in places {
        let found = found_after(run, |root| flip(&root.join(below), at));
        assert!(found.is_empty() || found.contains(&expected), "byte {at}: {found:?}");
        times += usize::from(!found.is_empty());
    }
    println!("{}: {times} flips found by {}", below.display(), expected.as_str());
    assert!(times > 5, "{times}");
}

fn first_file(below: &Path, ends: &str) -> PathBuf {
    let files = common::model::all_files(below);
    files.into_iter().find(|path| path.to_str().unwrap().ends_with(ends)).unwrap()
}

#[test]
fn stored_bytes_that_were_edited_are_found_and_withheld_ones_are_not_done() {
    let (run, _) = sealed(8);
    let segments = run.path().join("segments");
    let delta = first_file(&segments.join("deltas"), "2bit.parquet");
    flips_are_found_by(&run, &delta, (20..120).step_by(9), Check::Acceptances);
    let table = first_file(&segments.join("dispositions"), ".parquet");
    let bytes = fs::read(&table).unwrap().len();
    flips_are_found_by(&run, &table, (20..bytes).step_by(bytes / 40), Check::Dispositions);
    let plan = first_file(&segments.join("plans"), ".parquet");
    let rows = fs::read(&plan).unwrap().len();
    flips_are_found_by(&run, &plan, (20..rows).step_by(rows / 40), Check::Plan);
    let withheld = |root: &Path| fs::remove_dir_all(root.join("segments/deltas")).unwrap();
    assert_eq!(found_after(&run, withheld), []);
    let hashes_alone = |root: &Path| {
        fs::remove_dir_all(root.join("segments")).unwrap();
        fs::remove_dir_all(root.join("quarantine")).unwrap();
    };
    let copy = copied(&run);
    hashes_alone(&copy.root);
    let report = audited(&copy.root, &AuditOptions::default(), &trust(rounds_key(&run)));
    let undone =
        [Check::Dispositions, Check::Acceptances, Check::Refusals, Check::Plan, Check::Fold];
    assert_eq!(with(&report.checks, Status::NotDone), undone);
    assert_eq!(report.verdict, Verdict::Incomplete);
    // Who does not require them is told so, and nothing else.
    let waived = Trust { waived: undone.into(), ..trust(rounds_key(&run)) };
    assert_eq!(audited(&copy.root, &AuditOptions::default(), &waived).verdict, Verdict::Passed);
}

#[test]
fn a_descriptor_that_was_edited_is_no_manifest_of_the_state() {
    let (run, _) = sealed(8);
    let root = run.open().newest().root.to_hex();
    let path = run.path().join("hashes").join(&root[..2]).join(&root);
    let bytes = fs::read(&path).unwrap();
    let start = bytes.windows(9).position(|w| w == b"{\"bytes\":").unwrap();
    flips_are_found_by(&run, &path, (start..bytes.len() - 40).step_by(29), Check::Descriptor);
}

#[test]
fn a_false_refusal_and_a_backdated_round_are_found() {
    let (run, model) = sealed(8);
    let mut random = Random(5);
    open(&run, &model, 9, &mut random);
    // The operator calls a good file of uid 4 not finite, keeps it in quarantine, and seals.
    let mut forged = entries(&run, true);
    let at = forged.len() - 4 + 1;
    let mut submission: Submission = json::from_slice(&forged[at]).unwrap();
    let Submission::Fetched(fetched) = &mut submission else { panic!() };
    assert_eq!((fetched.uid, fetched.round), (4, 9));
    fetched.outcome =
        Outcome::Refused(Refusal::new(Code::NonFinite, Some("a.weight"), "finite", "NaN"));
    let file = run.files(9).join(&fetched.file);
    let (sha256, name) = (fetched.source_sha256, fetched.file.clone());
    let mut source = fs::File::open(file).unwrap();
    quarantine::keep(&Disk, &run.path(), 9, &mut source, sha256, &name).unwrap();
    forged[at] = json::to_vec(&submission);
    let rounds = entries(&run, false);
    forge(&run.path(), "submissions", &forged);
    // Forging forgot what was signed of the other log; so does this.
    forge_both(&run.path(), &rounds, &forged);
    run.seal(9);
    let report = audited(&run.path(), &AuditOptions::default(), &trust(rounds_key(&run)));
    assert_eq!(with(&report.checks, Status::Failed), [Check::Refusals], "{:#?}", report.checks);
    let line = report.checks.iter().find(|line| line.check == Check::Refusals).unwrap();
    assert_eq!((line.found, line.findings[0].index), (1, Some(at as u64)));

    let mut rounds = entries(&run, false);
    let RoundsEntry::Round(mut record) = json::from_slice(rounds.last().unwrap()).unwrap() else {
        panic!()
    };
    record.round = 7;
    *rounds.last_mut().unwrap() = json::to_vec(&RoundsEntry::Round(record));
    forge(&run.path(), "rounds", &rounds);
    let report = audited(&run.path(), &AuditOptions::default(), &trust(rounds_key(&run)));
    assert!(with(&report.checks, Status::Failed).contains(&Check::Records));
}

#[test]
fn a_restored_backup_and_a_fork_do_not_continue_the_kept_head() {
    let (run, model) = sealed(8);
    let backup = copied(&run);
    let mut random = Random(9);
    open(&run, &model, 9, &mut random);
    run.seal(9);
    let kept = tempfile::tempdir().unwrap();
    let options = AuditOptions { heads: Some(kept.path()), ..Default::default() };
    let trust = trust(rounds_key(&run));
    assert_eq!(audited(&run.path(), &options, &trust).verdict, Verdict::Passed);
    let again = audited(&run.path(), &options, &trust);
    assert!(with(&again.checks, Status::Passed).contains(&Check::Consistency));
    let stale = audited(&backup.root, &options, &trust);
    assert_eq!(with(&stale.checks, Status::Failed), [Check::Consistency]);
    // The backup goes on, with other words of the same length.
    let mut rounds = entries(&run, false);
    let RoundsEntry::Round(mut record) = json::from_slice(rounds.last().unwrap()).unwrap() else {
        panic!()
    };
    record.block = Some(gradledger::types::record::ChainBlock { number: 1, hash: Digest::of(b"") });
    *rounds.last_mut().unwrap() = json::to_vec(&RoundsEntry::Round(record));
    let fork = copied(&run);
    forge(&fork.root, "rounds", &rounds);
    let forked = audited(&fork.root, &options, &trust);
    assert_eq!(with(&forked.checks, Status::Failed), [Check::Consistency]);
    let text = &forked.checks.iter().find(|l| l.check == Check::Consistency).unwrap().findings[0];
    assert!(text.text.ends_with("(fork)"), "{}", text.text);
    let [Evidence::Fork { kept: old, published, .. }] = &forked.evidence[..] else { panic!() };
    let bundle = prove_heads(old, published, Vec::new(), Vec::new()).unwrap();
    let shown = verify(&bundle[..], &trust);
    assert_eq!(with(&shown.lines, Status::Failed), [Check::Consistency]);
    assert!(with(&shown.lines, Status::Passed).contains(&Check::RoundsSignature));
    // To who does not know the key it shows nothing.
    assert_eq!(verdict(&verify(&bundle[..], &Trust::default()).lines), Verdict::Incomplete);
    assert!(stale.evidence.is_empty(), "one head alone is evidence of nothing");
    // What failed is not kept.
    assert_eq!(audited(&run.path(), &options, &trust).verdict, Verdict::Passed);
}
