//! Signed submissions: receipts that prove, one index a statement, every refusal its own code.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path, process::Command};

use common::ledger::Fixture;
use gradledger::{
    codec::{layout::Layout, sr25519::SecretKey, statement::Statement},
    intake::{
        admit::Expected,
        native::{NativeAdmission, admit_segments},
    },
    ledger::{
        Ledger,
        check::check_round,
        fsck::fsck,
        init::{InitOptions, init},
        replay::{ReplayOptions, replay},
        rotate::rotate_key,
        seal::{FoldOptions, seal},
        submit::{Known, Receipt, SignedStatement, Submitter, submit_batch},
        writer::LedgerWriter,
    },
    merkle::note::VerifierKey,
    store::{
        files::Disk,
        segment::{delta::DeltaWriter, place},
    },
    types::{
        bits::F32Bits,
        digest::Digest,
        manifest::ManifestId,
        progress::Silent,
        record::{MinersPolicy, Verdict},
        refusal::{Code, Refusal},
        rule::{Dialect, Mean, Norm, SparseMeanSgd},
    },
};
use tempfile::TempDir;

/// Two tensors: 8 x 16 in four blocks of 32... and one of rank 1.
const TENSORS: [(&str, &[u64]); 2] = [("a.weight", &[8, 16]), ("b.bias", &[24])];

fn miner(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

fn key(number: u8) -> Digest {
    miner(number).public().to_digest()
}

/// A native run whose genesis lists the miners 1 to `miners`.
struct Run {
    dir: TempDir,
}

impl Run {
    fn new(miners: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.safetensors");
        write_safetensors(&base);
        let rule = SparseMeanSgd {
            dialect: Dialect::Native,
            chunk: 8,
            top_k: 4,
            bins: 4,
            lr_f32: F32Bits(0.5),
            mean: Mean::Contributors,
            norm: Norm::HistogramF64,
        };
        let options = InitOptions {
            miners: MinersPolicy::Hotkeys((1..=miners).map(key).collect()),
            ..InitOptions::new("signed", "signed.example/run", &base, rule)
        };
        init(&dir.path().join("ledger"), &options, &Silent).unwrap();
        Self { dir }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("ledger")
    }

    fn writer(&self) -> LedgerWriter {
        LedgerWriter::open(&self.path(), None).unwrap()
    }

    /// Delta segments whose values depend on `seed`; `spoil` may change a tensor's index bytes.
    fn delta(&self, seed: u64, spoil: impl Fn(&mut Vec<u8>, &mut Vec<u8>)) -> std::path::PathBuf {
        let dir = self.dir.path().join(format!("delta-{seed}"));
        if dir.exists() {
            fs::remove_dir_all(&dir).unwrap();
        }
        let ledger = Ledger::open(&self.path()).unwrap();
        let mut random = common::Random(seed);
        let mut writer = DeltaWriter::create(&Disk, &dir, 4).unwrap();
        for tensor in &ledger.layout().unwrap().tensors {
            let (mut index, mut code, mut book) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..tensor.grid.blocks() {
                let mut places: Vec<u16> = (0..tensor.grid.block_elements() as u16).collect();
                for at in 0..tensor.k as usize {
                    let other = at + random.below((places.len() - at) as u64) as usize;
                    places.swap(at, other);
                }
                gradledger_kernels::codes::pack_index(&places[..tensor.k as usize], &mut index)
                    .unwrap();
                code.push(random.next() as u8);
            }
            for value in 0..5 {
                book.extend(
                    ((random.below(1000) as f32 - 500.0) / 300.0 + value as f32).to_le_bytes(),
                );
            }
            spoil(&mut index, &mut book);
            let mut rows = writer.tensor(&tensor.name, tensor.k, tensor.grid.blocks()).unwrap();
            rows.write_index(&index).unwrap();
            rows.write_code(&code).unwrap();
            rows.finish().unwrap();
            writer.book(&tensor.name, &book).unwrap();
        }
        writer.finish().unwrap();
        dir
    }
}

fn write_safetensors(path: &Path) {
    let tensor = |(name, shape): &(&str, &[u64])| {
        let elements: u64 = shape.iter().product();
        let bytes: Vec<u8> = (0..elements).flat_map(|i| (i as f32 / 7.0).to_le_bytes()).collect();
        let shape = shape.iter().map(|&n| n as usize).collect();
        (name.to_string(), shape, bytes)
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = TENSORS.iter().map(tensor).collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let dtype = safetensors::Dtype::F32;
        (name, safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn store(writer: &LedgerWriter, dir: &Path, round: u64) -> (ManifestId, Option<Refusal>) {
    let ledger = writer.ledger();
    let layout: Layout = ledger.layout().unwrap();
    let expected = Expected { layout: &layout, rule: ledger.rule(), round };
    match admit_segments(dir, expected, ledger.place(), "test").unwrap() {
        NativeAdmission::Stored { delta, refused } => (delta, refused),
        NativeAdmission::Malformed(refusal) => panic!("{refusal}"),
    }
}

fn signed(
    writer: &LedgerWriter,
    miner: &SecretKey,
    round: u64,
    (delta, refused): (ManifestId, Option<Refusal>),
) -> SignedStatement {
    let statement = Statement {
        run: writer.ledger().run_id(),
        round,
        base: writer.ledger().newest().root,
        delta: delta.root,
        delta_bytes: delta.bytes,
        hotkey: miner.public().to_digest(),
    };
    let signature = statement.sign(miner).unwrap();
    SignedStatement { statement, signature, delta, refused }
}

fn answer(writer: &mut LedgerWriter, submission: SignedStatement) -> Result<Receipt, Refusal> {
    submit_batch(writer, &mut Known::default(), &[submission]).unwrap().remove(0)
}

fn submissions_key(ledger: &Ledger) -> VerifierKey {
    ledger.genesis().log_keys.submissions.parse().unwrap()
}

#[test]
fn a_signed_round_is_submitted_sealed_and_replayed() {
    let run = Run::new(3);
    let mut writer = run.writer();
    let mut receipts = Vec::new();
    for number in 1..=3 {
        let delta = run.delta(u64::from(number), |_, _| {});
        let stored = store(&writer, &delta, 1);
        let submission = signed(&writer, &miner(number), 1, stored);
        receipts.push(answer(&mut writer, submission).unwrap());
    }
    let vkey = submissions_key(writer.ledger());
    for (index, receipt) in receipts.iter().enumerate() {
        assert_eq!(receipt.index, index as u64);
        receipt.verify(&vkey).unwrap();
    }
    let report = seal(&mut writer, 1, FoldOptions::default(), &Silent).unwrap();
    let mut order: Vec<Digest> = (1..=3).map(key).collect();
    order.sort();
    let folded: Vec<Digest> = report.accepted.iter().map(|a| a.miner.unwrap()).collect();
    assert_eq!(folded, order, "ledger order is by hotkey bytes");
    assert_ne!(report.next, writer.ledger().genesis().model);
    // The receipts of a sealed round still hold, and the next round goes on from its state.
    receipts.iter().for_each(|receipt| drop(receipt.verify(&vkey).unwrap()));
    let delta = run.delta(9, |_, _| {});
    let stored = store(&writer, &delta, 2);
    let submission = signed(&writer, &miner(2), 2, stored);
    assert_eq!(answer(&mut writer, submission).unwrap().index, 3);
    let report = seal(&mut writer, 2, FoldOptions::default(), &Silent).unwrap();
    assert_eq!((report.accepted.len(), report.rejected.len()), (1, 2));
    let ledger = Ledger::open(&run.path()).unwrap();
    let options = ReplayOptions { rounds: 1..=2, tensor: None, fold: FoldOptions::default() };
    replay(&ledger, &options, &Silent).unwrap();
    fsck(&ledger, FoldOptions::default(), &Silent).unwrap();
}

#[test]
fn receipts_hold_with_the_key_of_their_time() {
    let run = Run::new(2);
    let mut writer = run.writer();
    let submit = |writer: &mut LedgerWriter, number: u8| {
        let stored = store(writer, &run.delta(u64::from(number), |_, _| {}), 1);
        let submission = signed(writer, &miner(number), 1, stored);
        answer(writer, submission).unwrap()
    };
    let first = submit(&mut writer, 1);
    let before = submissions_key(writer.ledger());
    let after = rotate_key(&mut writer, None).unwrap().log_keys.submissions.parse().unwrap();
    let second = submit(&mut writer, 2);
    assert_eq!((first.index, second.index), (0, 1));
    first.verify(&before).unwrap();
    second.verify(&after).unwrap();
    assert!(first.verify(&after).is_err() && second.verify(&before).is_err());
    seal(&mut writer, 1, FoldOptions::default(), &Silent).unwrap();
    // A window and a receipt of after another rotation, of a writer that opened anew.
    rotate_key(&mut writer, None).unwrap();
    drop(writer);
    fsck(run.writer().ledger(), FoldOptions::default(), &Silent).unwrap();
    first.verify(&before).unwrap();
}

#[test]
fn the_same_statement_again_has_the_same_index() {
    let run = Run::new(2);
    let mut writer = run.writer();
    let stored = store(&writer, &run.delta(1, |_, _| {}), 1);
    let once = signed(&writer, &miner(1), 1, stored.clone());
    // Signatures are randomised: another one is over the same statement all the same.
    let again = signed(&writer, &miner(1), 1, stored);
    assert_ne!(once.signature, again.signature);
    let first = answer(&mut writer, once).unwrap();
    let second = answer(&mut writer, again).unwrap();
    assert_eq!((first.index, first.statement), (second.index, second.statement));
    assert_eq!(writer.ledger().submissions_log().size(), 1);
    second.verify(&submissions_key(writer.ledger())).unwrap();
}

#[test]
fn what_does_not_enter_the_log_is_answered_with_its_code() {
    let run = Run::new(2);
    let mut writer = run.writer();
    let stored = store(&writer, &run.delta(1, |_, _| {}), 1);
    let good = signed(&writer, &miner(1), 1, stored.clone());
    let mut forged = good.clone();
    forged.signature[5] ^= 1;
    let mut wrapped = good.clone();
    let bytes = [&b"<Bytes>"[..], &good.statement.to_bytes(), b"</Bytes>"].concat();
    wrapped.signature = miner(1).sign(&bytes);
    let mut other_run = good.clone();
    other_run.statement.run = Digest([1; 32]);
    other_run.signature = other_run.statement.sign(&miner(1)).unwrap();
    let stranger = signed(&writer, &miner(9), 1, stored.clone());
    let early = signed(&writer, &miner(1), 2, stored.clone());
    let late = signed(&writer, &miner(1), 0, stored);
    for (submission, code) in [
        (forged, Code::BadSignature),
        (wrapped, Code::BadSignature),
        (other_run, Code::BadSignature),
        (stranger, Code::NotListed),
        (early, Code::WrongRound),
        (late, Code::Late),
    ] {
        assert_eq!(answer(&mut writer, submission).unwrap_err().code, code);
    }
    assert_eq!(writer.ledger().submissions_log().size(), 0);
    seal(&mut writer, 1, FoldOptions::default(), &Silent).unwrap();
    assert_eq!(answer(&mut writer, good).unwrap_err().code, Code::Late);
}

#[test]
fn what_enters_the_log_and_does_not_count_is_disposed_of_with_its_code() {
    let run = Run::new(4);
    let mut writer = run.writer();
    let first = store(&writer, &run.delta(1, |_, _| {}), 1);
    let second = store(&writer, &run.delta(2, |_, _| {}), 1);
    let twice = store(&writer, &run.delta(3, |index, _| index.copy_within(0..1, 1)), 1);
    let nan =
        store(&writer, &run.delta(4, |_, book| book[..4].copy_from_slice(&[0, 0, 0xc0, 0x7f])), 1);
    assert_eq!(nan.1.as_ref().unwrap().code, Code::NonFinite);
    let mut wrong_base = signed(&writer, &miner(4), 1, second.clone());
    wrong_base.statement.base = Digest([3; 32]);
    wrong_base.signature = wrong_base.statement.sign(&miner(4)).unwrap();
    let submissions = [
        signed(&writer, &miner(1), 1, first.clone()),
        signed(&writer, &miner(2), 1, first),
        signed(&writer, &miner(1), 1, second),
        signed(&writer, &miner(3), 1, nan),
        wrong_base,
        signed(&writer, &miner(4), 1, twice.clone()),
    ];
    let receipts = submit_batch(&mut writer, &mut Known::default(), &submissions).unwrap();
    assert!(receipts.iter().all(Result::is_ok), "each has its receipt");
    seal(&mut writer, 1, FoldOptions::default(), &Silent).unwrap();
    let checked = check_round(writer.ledger(), 0).unwrap();
    let verdicts: Vec<String> = checked
        .disposed
        .dispositions
        .iter()
        .map(|d| match &d.verdict {
            Verdict::Accepted { order } => format!("+{order}"),
            Verdict::Rejected(refusal) => refusal.code.to_string(),
            Verdict::Absent => "absent".into(),
        })
        .collect();
    let last = twice.1.map_or("+1".to_owned(), |refusal| refusal.code.to_string());
    assert_eq!(
        verdicts,
        ["+0", "duplicate-delta", "duplicate-submission", "non-finite", "wrong-base", &last]
    );
    fsck(writer.ledger(), FoldOptions::default(), &Silent).unwrap();
}

#[test]
fn a_receipt_with_a_changed_byte_proves_nothing() {
    let run = Run::new(2);
    let mut writer = run.writer();
    let stored = store(&writer, &run.delta(1, |_, _| {}), 1);
    let submission = signed(&writer, &miner(1), 1, stored.clone());
    answer(&mut writer, submission).unwrap();
    let submission = signed(&writer, &miner(2), 1, stored);
    let receipt = answer(&mut writer, submission).unwrap();
    let vkey = submissions_key(writer.ledger());
    receipt.verify(&vkey).unwrap();
    let changes: [fn(&mut Receipt); 6] = [
        |r| r.index = 0,
        |r| r.proof[0].0[0] ^= 1,
        |r| r.statement.0[0] ^= 1,
        |r| r.run_id.0[0] ^= 1,
        |r| r.entry = r.entry.replace("\"round\":1", "\"round\":2"),
        |r| r.head = r.head.replacen('\n', "x\n", 1),
    ];
    for change in changes {
        let mut changed = receipt.clone();
        change(&mut changed);
        assert!(changed.verify(&vkey).is_err(), "{changed:?}");
    }
    let rounds_key = writer.ledger().genesis().log_keys.rounds.parse().unwrap();
    assert!(receipt.verify(&rounds_key).is_err(), "each log has a key of its own name");
}

#[test]
fn many_clients_at_once_each_get_their_own_receipt() {
    const CLIENTS: u8 = 64;
    let run = Run::new(CLIENTS);
    let writer = run.writer();
    let stored: Vec<_> =
        (1..=CLIENTS).map(|n| store(&writer, &run.delta(u64::from(n), |_, _| {}), 1)).collect();
    let submissions: Vec<_> = (1..=CLIENTS)
        .zip(stored)
        .map(|(n, stored)| signed(&writer, &miner(n), 1, stored))
        .collect();
    let vkey = submissions_key(writer.ledger());
    let submitter = Submitter::start(writer);
    let receipts: Vec<Receipt> = std::thread::scope(|scope| {
        let clients: Vec<_> = submissions
            .iter()
            .map(|submission| {
                let handle = submitter.handle();
                scope.spawn(move || handle.submit(submission.clone()).unwrap().unwrap())
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let writer = submitter.finish();
    let mut indices: Vec<u64> = receipts.iter().map(|r| r.index).collect();
    indices.sort_unstable();
    assert_eq!(indices, (0..u64::from(CLIENTS)).collect::<Vec<_>>());
    for (receipt, submission) in receipts.iter().zip(&submissions) {
        let entry = receipt.verify(&vkey).unwrap();
        assert_eq!(entry.hotkey, submission.statement.hotkey);
    }
    assert_eq!(writer.ledger().submissions_log().size(), u64::from(CLIENTS));
}

#[test]
fn the_command_submits_with_a_wallets_hotkey() {
    let wallets = common::golden().join("wallet");
    if !wallets.is_dir() {
        println!("no golden wallets: skipped");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (base, ledger) = (dir.path().join("base.safetensors"), dir.path().join("ledger"));
    write_safetensors(&base);
    let vectors: serde_json::Value =
        serde_json::from_slice(&fs::read(wallets.join("vectors.json")).unwrap()).unwrap();
    let text = vectors.to_string();
    let keyfile: serde_json::Value =
        serde_json::from_slice(&fs::read(wallets.join("hk_mnemonic")).unwrap()).unwrap();
    let address = keyfile["ss58Address"].as_str().unwrap();
    assert!(text.contains(address));
    let miners = dir.path().join("miners");
    fs::write(&miners, format!("# the only one\n{address}\n")).unwrap();
    let gradledger =
        |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_gradledger")).args(args).output().unwrap();
    let path = |p: &Path| p.to_str().unwrap().to_owned();
    let output = gradledger(&[
        "init",
        &path(&ledger),
        "--run",
        "wallet",
        "--checkpoint",
        &path(&base),
        "--rule",
        "native",
        "--chunk",
        "8",
        "--top-k",
        "4",
        "--miners",
        &path(&miners),
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run = Run { dir };
    let delta = run.delta(1, |_, _| {});
    let key = path(&wallets.join("hk_mnemonic"));
    let receipt = path(&run.dir.path().join("receipt.json"));
    let submit =
        ["submit", &path(&ledger), &path(&delta), "--key", &key, "--json", "--receipt", &receipt];
    let output = gradledger(&[&submit[..], &["--round", "1"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&document["address"], &document["rejected"]),
        (&address.into(), &serde_json::Value::Null)
    );
    let kept: Receipt = serde_json::from_slice(&fs::read(&receipt).unwrap()).unwrap();
    kept.verify(&submissions_key(&Ledger::open(&ledger).unwrap())).unwrap();
    let output = gradledger(&[&submit[..], &["--round", "7"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("wrong-round"));
    let output = gradledger(&["seal", &path(&ledger), "--round", "1", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A ledger in `fixture`'s directory, and the command on it: exit code, stdout as JSON, stderr.
fn command(fixture: &Fixture, args: &str) -> (Option<i32>, serde_json::Value, String) {
    let word = |word: &str| fixture.place(word).map_or(word.into(), |p| p.to_str().unwrap().into());
    let words: Vec<String> = args.split(' ').map(word).collect();
    let output = Command::new(env!("CARGO_BIN_EXE_gradledger"))
        .args(words)
        .env_remove("GRADLEDGER_PASSWORD")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), said)
}

fn native(fixture: &Fixture) {
    let init = "init LEDGER --run signed --rule native --lr 0.4 --chunk 8 --top-k 4 --bins 4 \
                --checkpoint CHECKPOINT --miners MINERS";
    let (code, _, said) = command(fixture, init);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn the_command_answers_each_refusal_with_its_code() {
    let fixture = Fixture::new();
    native(&fixture);
    let size = || Ledger::open(&fixture.root()).unwrap().submissions_log().size();
    // What is no statement of this round by a listed miner is answered, and not in the log.
    common::miner::write_key(&fixture.key(9), 9);
    for (key, round, code) in [(9, 1, "not-listed"), (1, 2, "wrong-round"), (1, 0, "late")] {
        let args = format!("submit LEDGER DELTA1 --round {round} --key KEY{key} --json");
        let (exit, _, said) = command(&fixture, &args);
        assert!(exit == Some(1) && said.contains(code), "{code}: {exit:?}: {said}");
    }
    assert_eq!(size(), 0);
    // The rest is in the log, has its receipt, and is told what will come of it.
    let vkey = submissions_key(&Ledger::open(&fixture.root()).unwrap());
    let expected = [
        (1, 1, 0, None),
        (2, 2, 1, None),
        (3, 1, 2, Some("duplicate-delta")),
        (1, 3, 3, Some("duplicate-submission")),
        (1, 1, 0, None),
        (3, 1, 2, Some("duplicate-delta")),
    ];
    for (key, delta, index, code) in expected {
        let args = format!("submit LEDGER DELTA{delta} --round 1 --key KEY{key} --json");
        let (exit, document, said) = command(&fixture, &args);
        assert_eq!(exit, Some(0), "{said}");
        assert_eq!(document["rejected"]["code"].as_str(), code, "{document}");
        let receipt: Receipt = serde_json::from_value(document["receipt"].clone()).unwrap();
        assert_eq!(receipt.index, index);
        assert_eq!(receipt.verify(&vkey).unwrap().hotkey, key_of(key));
    }
    assert_eq!(size(), 4);
    let (exit, document, said) = command(&fixture, "seal LEDGER --round 1 --json");
    assert_eq!(exit, Some(0), "{said}");
    let reasons: Vec<_> = document["rejected"].as_array().unwrap().iter().collect();
    let reasons: Vec<_> = reasons.iter().map(|r| r["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["duplicate-delta", "duplicate-submission"]);
    // The round is closed now: to what is in the log the answer is the same.
    let (exit, _, said) = command(&fixture, "submit LEDGER DELTA4 --round 1 --key KEY2 --json");
    assert!(exit == Some(1) && said.contains("late"), "{said}");
    let (_, document, _) = command(&fixture, "submit LEDGER DELTA1 --round 1 --key KEY1 --json");
    assert_eq!(document["receipt"]["index"], 0);
}

fn key_of(number: u8) -> Digest {
    common::miner::public(number)
}

#[test]
fn the_command_names_a_hotkey_that_it_cannot_use() {
    let fixture = Fixture::new();
    native(&fixture);
    let old: [(&[u8], &str); 3] = [
        (b"$ANSIBLE_VAULT;1.2;AES256;x\n0000", "encrypted the old way"),
        (b"gAAAAABl0000", "encrypted the old way"),
        (b"[1, 2]", "not a Bittensor key file"),
    ];
    for (bytes, says) in old {
        fs::write(fixture.key(5), bytes).unwrap();
        let args = "submit LEDGER DELTA1 --round 1 --key KEY5 --json";
        let (exit, _, said) = command(&fixture, args);
        assert!(exit == Some(4) && said.contains(says), "{exit:?}: {said}");
    }
    // Encrypted, and nobody there to ask.
    let wallets = common::golden().join("wallet");
    if wallets.is_dir() {
        fs::copy(wallets.join("hk_encrypted"), fixture.key(5)).unwrap();
        let args = "submit LEDGER DELTA1 --round 1 --key KEY5 --json";
        let (exit, _, said) = command(&fixture, args);
        assert!(exit == Some(4) && said.contains("GRADLEDGER_PASSWORD"), "{exit:?}: {said}");
        // The password is right, which is found in the file; the hotkey is not listed.
        let vectors = fs::read(wallets.join("vectors.json")).unwrap();
        let vectors: serde_json::Value = serde_json::from_slice(&vectors).unwrap();
        let password = find_password(&vectors).expect("the vectors hold the password");
        let file = fixture.dir().join("password");
        fs::write(&file, format!("{password}\n")).unwrap();
        let args = format!("{args} --password-file {}", file.display());
        let (exit, _, said) = command(&fixture, &args);
        assert!(exit == Some(1) && said.contains("not-listed"), "{exit:?}: {said}");
        fs::write(&file, format!("{password}x\n")).unwrap();
        let (exit, _, said) = command(&fixture, &args);
        assert!(exit == Some(4) && said.contains("password is wrong"), "{exit:?}: {said}");
    }
}

/// The value of the first `password`, wherever it stands.
fn find_password(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::Object(members) => members
            .get("password")
            .and_then(|password| Some(password.as_str()?.to_owned()))
            .or_else(|| members.values().find_map(find_password)),
        serde_json::Value::Array(values) => values.iter().find_map(find_password),
        _ => None,
    }
}

#[test]
fn the_same_submission_again_repairs_a_damaged_delta() {
    let run = Run::new(2);
    let mut writer = run.writer();
    let dir = run.delta(1, |_, _| {});
    let stored = store(&writer, &dir, 1);
    let submission = signed(&writer, &miner(1), 1, stored.clone());
    let first = answer(&mut writer, submission).unwrap();
    let kept = place::delta(&run.path(), stored.0.root);
    for entry in fs::read_dir(&kept).unwrap() {
        let path = entry.unwrap().path();
        let good = fs::read(&path).unwrap();
        for bytes in [&good[..good.len() / 2], &[]] {
            fs::write(&path, bytes).unwrap();
            assert!(fsck(writer.ledger(), FoldOptions::default(), &Silent).is_err());
            let again = signed(&writer, &miner(1), 1, store(&writer, &dir, 1));
            assert_eq!(answer(&mut writer, again).unwrap().index, first.index);
            assert_eq!(fs::read(&path).unwrap(), good);
            fsck(writer.ledger(), FoldOptions::default(), &Silent).unwrap();
        }
    }
}
