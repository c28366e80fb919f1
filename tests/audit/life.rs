//! What changes in a ledger's life: keys, dropped states, signed runs, directories that may only be read.

use super::*;

#[test]
fn who_trusts_the_first_key_trusts_those_after_it_and_not_the_other_way() {
    let (run, model) = sealed(8);
    let first = rounds_key(&run);
    let kept = tempfile::tempdir().unwrap();
    let options = AuditOptions { heads: Some(kept.path()), ..Default::default() };
    assert_eq!(audited(&run.path(), &options, &trust(first.clone())).verdict, Verdict::Passed);
    rotate_key(&mut run.writer(), None).unwrap();
    let mut random = Random(4);
    open(&run, &model, 9, &mut random);
    run.seal(9);
    let ledger = run.open();
    let newest = ledger.keys().of_rounds(ledger.rounds_log().size()).clone();
    assert_ne!(first, newest);
    let report = audited(&run.path(), &options, &trust(first.clone()));
    assert_eq!(report.verdict, Verdict::Passed, "{:#?}", report.checks);
    assert!(with(&report.checks, Status::Passed).contains(&Check::Consistency));
    let report = audited(&run.path(), &options, &trust(newest.clone()));
    assert_eq!(report.verdict, Verdict::Passed, "{:#?}", report.checks);
    // A bundle has no rotations with it: the key that signed its head judges it.
    for target in [Target::Round(9), Target::Submission(9)] {
        let bytes = prove(&ledger, &target, Vec::new(), &Silent).unwrap();
        let by = |key: &VerifierKey| verdict(&verify(&bytes[..], &trust(key.clone())).lines);
        assert_eq!((by(&newest), by(&first)), (Verdict::Passed, Verdict::BadSignature));
    }
}

#[test]
fn dropped_states_are_folded_again_from_the_last_kept_one() {
    let (run, model) = sealed(8);
    let mut random = Random(4);
    for round in [9, 10] {
        open(&run, &model, round, &mut random);
        run.seal(round);
    }
    gc(&mut run.writer(), 50.try_into().unwrap(), &Silent).unwrap();
    let trust = trust(rounds_key(&run));
    let report = audited(&run.path(), &AuditOptions::default(), &trust);
    assert_eq!(report.verdict, Verdict::Passed, "{:#?}", report.checks);
    let one = AuditOptions { rounds: Some(9..=9), ..Default::default() };
    assert_eq!(audited(&run.path(), &one, &trust).verdict, Verdict::Passed);
    // A sample folds single pieces and needs their bases; it says which rounds it could not look at.
    let sample = AuditOptions { sample: Some((99, vec![1])), plan: true, ..Default::default() };
    let report = audited(&run.path(), &sample, &trust);
    assert_eq!(with(&report.checks, Status::Failed), []);
    assert!(with(&report.checks, Status::NotDone).contains(&Check::Fold));
}

#[test]
fn a_signed_run_is_held_to_its_signatures_refusals_and_copies() {
    let run = signed();
    let trust = trust(rounds_key(&run));
    let report = audited(&run.path(), &AuditOptions::default(), &trust);
    assert_eq!(report.verdict, Verdict::Passed, "{:#?}", report.checks);
    let line = |check| report.checks.iter().find(|line| line.check == check).unwrap().checked;
    assert_eq!((line(Check::Statements), line(Check::Refusals)), (3, 1));
    let ledger = run.open();
    let mut paths = Vec::new();
    for (at, target) in
        [Target::Submission(0), Target::Submission(2), Target::Round(1)].iter().enumerate()
    {
        let bytes = prove(&ledger, target, Vec::new(), &Silent).unwrap();
        let verified = verify(&bytes[..], &trust);
        assert_eq!(verdict(&verified.lines), Verdict::Passed, "{verified:#?}");
        assert!(with(&verified.lines, Status::Passed).contains(&Check::Statements));
        let path = run.dir.path().join(format!("{at}.tar"));
        fs::write(&path, bytes).unwrap();
        paths.push(path);
    }
    let key = rounds_key(&run).to_string();
    if let Some(theirs) = second_verifier(run.dir.path(), &paths, &key) {
        assert!(theirs.iter().all(|theirs| theirs.exit == 0), "{theirs:?}");
    }
    // The operator puts another hotkey under a statement, calls a good delta refused, and lets a
    // copied one count, each time under its own signature.
    let honest = entries(&run, true);
    let forged = |at: usize, change: &dyn Fn(&mut Signed)| {
        let copy = copied(&run);
        let mut forged = honest.clone();
        let Submission::Signed(mut signed) = json::from_slice(&forged[at]).unwrap() else {
            panic!()
        };
        change(&mut signed);
        forged[at] = json::to_vec(&Submission::Signed(signed));
        forge(&copy.root, "submissions", &forged);
        let root = Ledger::open(&copy.root).unwrap();
        let mut rounds = entries(&run, false);
        let RoundsEntry::Round(mut record) = json::from_slice(&rounds[1]).unwrap() else {
            panic!()
        };
        record.submissions.root_at_end = root.submissions_log().head().root;
        rounds[1] = json::to_vec(&RoundsEntry::Round(record));
        forge(&copy.root, "rounds", &rounds);
        with(&audited(&copy.root, &AuditOptions::default(), &trust).checks, Status::Failed)
    };
    let other = forged(0, &|signed| signed.hotkey = Digest([7; 32]));
    assert!(other.contains(&Check::Statements), "{other:?}");
    let refused = forged(0, &|signed| {
        signed.refused = Some(Refusal::new(Code::Magnitude, Some("a.weight"), "less", "more"));
    });
    assert!(refused.contains(&Check::Refusals) && refused.contains(&Check::Derivation));
    let accepted = forged(1, &|signed| signed.refused = None);
    assert!(accepted.contains(&Check::Acceptances), "{accepted:?}");
}

#[test]
fn the_command_audits_a_directory_that_may_only_be_read() {
    let (run, _) = sealed(8);
    let (root, key) = (run.path(), rounds_key(&run).to_string());
    let modes = |file: u32, dir: u32| {
        for path in common::model::all_files(&root) {
            if !path.starts_with(root.join("keys")) {
                fs::set_permissions(&path, fs::Permissions::from_mode(file)).unwrap();
            }
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(dir)).unwrap();
    };
    modes(0o444, 0o555);
    let report = run.dir.path().join("report.json");
    let gradledger = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
        let output = command.args(args).env_remove("GRADLEDGER_POLICY").output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (ledger, file) = (root.to_str().unwrap(), report.to_str().unwrap());
    let (code, text) = gradledger(&["audit", ledger, "--log-key", &key, "--report", file]);
    assert_eq!(code, 0, "{text}");
    let document: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!((&document["verdict"], &document["schema_version"]), (&"passed".into(), &1.into()));
    assert_eq!(gradledger(&["audit", ledger]).0, 3);
    let bundle = run.dir.path().join("piece.tar");
    let out = bundle.to_str().unwrap();
    let what = ["--round", "8", "--tensor", "a.weight", "--piece", "0"];
    assert_eq!(gradledger(&[&["prove", ledger, "--out", out], &what[..]].concat()).0, 0);
    assert_eq!(gradledger(&["verify", out, "--log-key", &key]).0, 0);
    assert_eq!(gradledger(&["verify", out]).0, 3);
    let without = ["--without", "rounds-signature", "--without", "witnesses"];
    assert_eq!(gradledger(&[&["verify", out], &without[..]].concat()).0, 0);
    flip(&bundle, fs::read(&bundle).unwrap().len() - 2_000);
    assert_eq!(gradledger(&["verify", out, "--log-key", &key]).0, 20);
    let policy = run.dir.path().join("policy");
    fs::write(&policy, format!("log {key}\n")).unwrap();
    assert_eq!(gradledger(&["verify", out, "--policy", policy.to_str().unwrap()]).0, 2);
    assert_eq!(gradledger(&["prove", ledger, "--round", "8", "--tensor", "z", "--out", out]).0, 2);
    modes(0o644, 0o755);
}
