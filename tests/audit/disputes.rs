//! Two ledgers that disagree: the first round, tensor and piece is found, and that piece folded again says
//! who is wrong.

use super::*;

fn dispute(a: &Ledger, b: &Ledger) -> (Difference, Option<Vec<u8>>) {
    let difference = first_difference(a, b).unwrap();
    let bundle = write_dispute([a, b], &difference, Vec::new()).unwrap();
    (difference, bundle)
}

fn piece(difference: &Difference) -> (u64, &str, u64) {
    let Difference::Piece { round, tensor, piece, .. } = difference else {
        panic!("{difference:?}")
    };
    (*round, tensor, *piece)
}

#[test]
fn the_side_whose_piece_does_not_follow_is_named_by_both_verifiers() {
    let (run, _) = sealed(320);
    let (key, honest) = (rounds_key(&run), copied(&run));
    with_a_wrong_piece(&run, 2);
    let (right, wrong) = (Ledger::open(&honest.root).unwrap(), run.open());
    let (difference, bundle) = dispute(&right, &wrong);
    assert_eq!(piece(&difference), (8, "a.weight", 2));
    let (_, other_way) = dispute(&wrong, &right);
    let bundles = [bundle.unwrap(), other_way.unwrap()];
    for (bundle, outcome) in bundles.iter().zip(["a follows, b is wrong", "a is wrong, b follows"])
    {
        let verified = verify(&bundle[..], &trust(key.clone()));
        assert!(verified.subject.ends_with(outcome), "{verified:#?}");
        assert_eq!(with(&verified.lines, Status::Failed), [Check::Fold], "{verified:#?}");
        assert!(verified.evidence.unwrap().contains("the fold gives piece"));
        // Without a key from outside nobody is accused.
        let unsigned = verify(&bundle[..], &Trust::default());
        assert_eq!(unsigned.evidence, None);
        println!("a dispute of 3 miners takes {} bytes", bundle.len());
    }
    let all: Vec<_> = bundles.iter().map(|bundle| (String::new(), bundle.clone())).collect();
    agree(&all, key.clone());
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.tar"), &bundles[0]).unwrap();
    if let Some(theirs) = second_verifier(dir.path(), &["a.tar".into()], &key.to_string()) {
        assert_eq!(theirs[0].wrong, ["b"]);
    }
}

#[test]
fn two_sides_that_both_follow_differ_in_what_they_fold() {
    let (run, model) = sealed(320);
    let key = rounds_key(&run);
    let other = Run { dir: tempfile::tempdir().unwrap() };
    copy_all(&run.path(), &other.path());
    for (run, seed) in [(&run, 1), (&other, 2)] {
        open(run, &model, 9, &mut Random(seed));
        run.seal(9);
    }
    let (difference, bundle) = dispute(&run.open(), &other.open());
    assert_eq!(piece(&difference), (9, "a.weight", 0));
    let bundle = bundle.unwrap();
    let verified = verify(&bundle[..], &trust(key.clone()));
    assert_eq!(verdict(&verified.lines), Verdict::Passed, "{verified:#?}");
    assert_eq!(verified.evidence, None);
    let said = "a follows, b follows; they fold different things, the first of them: the deltas";
    assert!(verified.subject.ends_with(said), "{}", verified.subject);
    // Whoever signed both records for one round is shown by another file to have forked the log.
    let entries = prove_entries([&run.open(), &other.open()], 3, Vec::new()).unwrap();
    let shown = verify(&entries[..], &trust(key.clone()));
    assert!(shown.evidence.unwrap().starts_with("fork"));
    let mut all = vec![("both follow".to_owned(), bundle.clone()), ("fork".to_owned(), entries)];
    all.extend(mutated(&bundle, 60));
    agree(&all, key);
}

/// Any bits of a bundle flipped; then of its members, under headers that fit.
fn mutated(bundle: &[u8], count: usize) -> Vec<(String, Vec<u8>)> {
    let mut random = Random(6);
    let mut all = Vec::new();
    for _ in 0..count {
        let (mut other, at) = (bundle.to_vec(), random.below(bundle.len() as u64) as usize);
        other[at] ^= 1 << random.below(8);
        all.push((format!("byte {at}"), other));
    }
    for side in [1, 2] {
        for member in 0..8 {
            for seed in 0..4 {
                let other = respelled(bundle, |members| {
                    let (_, inner) = members.get_mut(&side).unwrap();
                    *inner = respelled(inner, |members| {
                        let Some((_, body)) = members.get_mut(&member) else { return };
                        let at = random_at(body.len(), seed);
                        body[at] ^= 1;
                    });
                });
                all.push((format!("side {side}, member {member}, seed {seed}"), other));
            }
        }
    }
    all
}

#[test]
fn ledgers_that_agree_and_those_of_two_runs_have_no_dispute() {
    let (run, model) = sealed(8);
    let older = copied(&run);
    open(&run, &model, 9, &mut Random(4));
    run.seal(9);
    let older = Ledger::open(&older.root).unwrap();
    let (difference, bundle) = dispute(&run.open(), &older);
    assert_eq!((difference, bundle), (Difference::Nothing { rounds: 2 }, None));
    let (stranger, _) = sealed(16);
    assert!(first_difference(&stranger.open(), &older).is_err());
}

/// The bytes of a dispute, beside those of the deltas that it is about.
#[test]
fn a_dispute_takes_some_pieces_of_each_delta() {
    let mut random = Random(3);
    let tensors = vec![Tensor::random("w", &[4096, 1024], &mut random)];
    let model = Model { tensors, rule: rule(Dialect::Templar, 64, 64, 4) };
    let run = Run::new(&model);
    for uid in [1, 2, 3] {
        let delta = model.delta(&mut random);
        run.put(1, uid, &Gradient::of(&model, 1, &delta).write());
    }
    run.import(1, &[1, 2, 3], &[]);
    run.seal(1);
    let bundle = prove(&run.open(), &Target::Fold(1, 0, 7), Vec::new(), &Silent).unwrap();
    let verified = verify(&bundle[..], &trust(rounds_key(&run)));
    assert_eq!(verdict(&verified.lines), Verdict::Passed, "{verified:#?}");
    // The piece, and of each miner a book, one piece of codes (16 KiB) and one of positions.
    let pieces = Bundle::read(&bundle[..]).unwrap().member("pieces").len();
    let (plan, book, codes, positions) = (3 * 48, 20, 16_384, 65_536);
    assert_eq!(pieces, 65_536 + plan + 3 * (book + codes + positions));
    println!("{} bytes, {} of them beside the pieces", bundle.len(), bundle.len() - pieces);
    assert!(bundle.len() - pieces < 20 << 10);
    agree(&[(String::new(), bundle)], rounds_key(&run));
}

#[test]
fn the_command_writes_a_dispute_of_ledgers_or_reports_that_verify_settles() {
    let (run, _) = sealed(320);
    let (key, honest) = (rounds_key(&run).to_string(), copied(&run));
    with_a_wrong_piece(&run, 1);
    let dir = run.dir.path();
    let gradledger = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
        let output = command.args(args).current_dir(dir).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (good, bad) = (honest.root.to_str().unwrap(), run.path());
    let bad = bad.to_str().unwrap();
    let (code, text) = gradledger(&["diff", "--dispute", good, bad, "--out", "dispute.tar"]);
    assert_eq!(code, 20);
    assert!(text.contains("piece 1 of tensor a.weight after round 8"), "{text}");
    let (code, text) = gradledger(&["verify", "dispute.tar", "--log-key", &key]);
    assert_eq!(code, 20);
    assert!(text.contains("a follows, b is wrong") && text.contains("EVIDENCE"), "{text}");
    assert_eq!(gradledger(&["diff", "--dispute", good, good]).0, 0);
    for (ledger, report, code) in [(good, "good.json", 0), (bad, "bad.json", 20)] {
        let args = ["audit", ledger, "--log-key", &key, "--report", report, "--evidence", "found"];
        assert_eq!(gradledger(&args).0, code);
    }
    assert_eq!(gradledger(&["diff", "--dispute", "good.json", "good.json"]).0, 0);
    let (code, text) = gradledger(&["diff", "--dispute", "good.json", "bad.json"]);
    assert_eq!(code, 20);
    assert!(text.contains("fold, round 8, tensor a.weight, piece 1"), "{text}");
    let reports = ["diff", bad, "--dispute", "good.json", "bad.json", "--out", "fold.tar"];
    assert_eq!(gradledger(&reports).0, 20);
    assert_eq!(gradledger(&["diff", "--dispute", bad, "bad.json", "--out", "same.tar"]).0, 20);
    let read = |name: &str| fs::read(dir.join(name)).unwrap();
    assert_eq!(read("fold.tar"), read("same.tar"));
    let found = common::model::all_files(&dir.join("found"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(fs::read(&found[0]).unwrap(), read("fold.tar"));
    let (code, text) = gradledger(&["verify", "fold.tar", "--log-key", &key]);
    assert!(code == 20 && text.contains("EVIDENCE"), "{text}");
}

/// Book sizes, means, norms, ranks, rounds of nobody: whatever a rule folds, both verifiers fold it.
#[test]
fn both_verifiers_fold_what_any_rule_folds() {
    let mut all = Vec::new();
    for (bins, mean, seed) in
        [(4, Mean::Contributors, 1), (16, Mean::All, 2), (256, Mean::Contributors, 3)]
    {
        let mut random = Random(seed);
        let tensors = vec![
            Tensor::random("a", &[300, 200], &mut random),
            Tensor::random("b", &[33_000], &mut random),
            Tensor::random("c", &[7, 26], &mut random),
            Tensor::new("d.frozen", Dtype::I64, &[2], vec![0; 16]),
        ];
        let rule = SparseMeanSgd { bins, mean, ..rule(Dialect::Templar, 16, 10, bins) };
        let model = Model { tensors, rule };
        let run = Run::frozen(&model, true).unwrap().0;
        for uid in 1..=5 {
            let delta = model.delta(&mut random);
            run.put(1, uid, &Gradient::of(&model, 1, &delta).write());
        }
        run.import(1, &[1, 2, 3, 4, 5], &[]);
        run.seal(1);
        // To the second round nobody sends anything that counts.
        run.put(2, 1, b"cut");
        run.import(2, &[1, 2], &[]);
        run.seal(2);
        for target in [(0, 0), (0, 3), (1, 0), (1, 2), (2, 0)] {
            for round in [1, 2] {
                let target = Target::Fold(round, target.0, target.1);
                let bundle = prove(&run.open(), &target, Vec::new(), &Silent).unwrap();
                let verified = verify(&bundle[..], &trust(rounds_key(&run)));
                assert_eq!(verdict(&verified.lines), Verdict::Passed, "{target:?}: {verified:#?}");
                all.push((format!("{bins} bins, {target:?}"), bundle));
            }
        }
        let frozen = prove(&run.open(), &Target::Fold(1, 3, 0), Vec::new(), &Silent);
        assert!(frozen.is_err());
        agree(&std::mem::take(&mut all), rounds_key(&run));
    }
    // The native rule: one that is folded, one refused, one a copy.
    let run = signed();
    for tensor in 0..3 {
        let target = Target::Fold(1, tensor, 0);
        all.push((
            format!("{target:?}"),
            prove(&run.open(), &target, Vec::new(), &Silent).unwrap(),
        ));
    }
    if let Some((good, ..)) = agree(&all, rounds_key(&run)) {
        assert_eq!(good, 3);
    }
}
