//! The vectors in `schema/vectors/`: what the pages say, as bytes that never change.
//!
//! A changed vector means a new format version. `tools/vectors.py` made them without this crate's
//! code (the statement's are read in `golden_wallet.rs`), except the Parquet files in `vectors/ledger/`: those the code wrote, and
//! `GRADLEDGER_WRITE_VECTORS=1` writes one that is missing, never one that is there.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use std::{
    fmt::Debug,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use gradledger::{
    codec::book::Book,
    intake::dispose::{Expected, dispose},
    ledger::{key_chain::KeyChain, submit::Receipt},
    merkle::{
        head::TreeHead,
        manifest::manifest_id,
        note::{LogKey, VerifierKey},
        pieces::Pieces,
        rotation::Rotation,
        tree::leaf_hash,
    },
    seal::{dispositions_id, plan_pieces},
    store::{
        files::Disk,
        hashes::{self, HashesError, HashesReader, HashesWriter},
        keys::{self, heads::HeadGuard},
        open_round::OpenRound,
        place::Place,
        quarantine,
        retention::Retention,
        segment::{
            LogicalBytes,
            delta::{self, DeltaSegments, DeltaWriter},
            dispositions, place, plan,
            tensor::{self, TensorSegment, TensorWriter},
        },
    },
    types::{
        bits::F32Bits,
        digest::Digest,
        json,
        manifest::{ArtifactId, Manifest, ManifestId},
        plan::{Plan, PlanRow},
        record::{
            Disposition, DispositionsId, Genesis, LogKeys, MinersPolicy, RoundRecord, RoundsEntry,
            Skipped, Verdict, Window,
        },
        refusal::{Code, Refusal},
        rule::{Dialect, Mean, Norm, Rule, SparseMeanSgd},
        submission::{Fetched, Miner, Outcome, SignatureHex, Signed, Submission},
        tensor::{Dtype, TensorSpec},
    },
};
use gradledger_kernels::{
    Band, Contribution, Divisor, Findings, Step, check,
    clip::{factors_f32, factors_f64},
    codes, cpu,
    levels::levels,
    norm::{TorchCpuNorm, histogram_f64},
    reference,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

fn place_of(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/vectors").join(name)
}

/// The cases of a file, of which there must be some: those to take, then those to refuse.
fn vectors(name: &str) -> (Vec<Value>, Vec<Value>) {
    let text = fs::read_to_string(place_of(name)).unwrap();
    let cases = text.lines().map(|line| serde_json::from_str::<Value>(line).expect(name));
    let (refused, taken): (Vec<_>, Vec<_>) = cases.partition(|case| !case["refused"].is_null());
    assert!(!taken.is_empty(), "{name} holds no case");
    (taken, refused)
}

fn field<T: DeserializeOwned>(case: &Value, name: &str) -> T {
    T::deserialize(&case[name]).unwrap_or_else(|error| panic!("{name} of {case}: {error}"))
}

fn text<'a>(case: &'a Value, name: &str) -> &'a str {
    case[name].as_str().unwrap_or_else(|| panic!("{name} of {case}"))
}

fn number(case: &Value, name: &str) -> usize {
    field(case, name)
}

fn hex(case: &Value, name: &str) -> Vec<u8> {
    from_hex(text(case, name))
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
    digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect()
}

fn float(text: &str) -> f32 {
    assert_eq!(text.len(), 8, "{text}");
    f32::from_bits(u32::from_str_radix(text, 16).unwrap())
}

fn double(text: &str) -> f64 {
    assert_eq!(text.len(), 16, "{text}");
    f64::from_bits(u64::from_str_radix(text, 16).unwrap())
}

fn floats(case: &Value, name: &str) -> Vec<f32> {
    field::<Vec<String>>(case, name).iter().map(|text| float(text)).collect()
}

fn bits(values: &[f32]) -> Vec<String> {
    values.iter().map(|value| format!("{:08x}", value.to_bits())).collect()
}

/// That `result` is the error that `case` names.
fn assert_refused<T: Debug, E: Debug>(case: &Value, result: Result<T, E>) {
    let error = format!("{:?}", result.expect_err(&case.to_string()));
    assert!(error.starts_with(text(case, "refused")), "{case}: {error}");
}

/// That an entry is spelled so, and reads back.
fn assert_record<T: Serialize + DeserializeOwned + PartialEq + Debug>(case: &Value) -> T {
    let entry = text(case, "entry").as_bytes();
    let record: T = json::from_slice(entry).unwrap_or_else(|error| panic!("{case}: {error}"));
    assert_eq!(json::to_vec(&record), entry, "{case}");
    assert_eq!(leaf_hash(entry), field::<Digest>(case, "leaf"), "{case}");
    record
}

#[test]
fn records_are_spelled_and_hashed_so() {
    let (taken, refused) = vectors("records.jsonl");
    let (mut entries, mut submissions) = (Vec::new(), Vec::new());
    for case in &taken {
        match text(case, "log") {
            "rounds" => entries.push(assert_record::<RoundsEntry>(case)),
            _ => submissions.push(assert_record::<Submission>(case)),
        }
    }
    assert_eq!((&entries[0], &entries[2]), (&genesis(), &round(&taken[0])));
    let outcomes = [Outcome::Delta(delta_id()), Outcome::Refused(refusal()), Outcome::Unread];
    let expected = outcomes.map(fetched).into_iter().chain([None, Some(refusal())].map(signed));
    assert!(submissions.into_iter().eq(expected));
    assert!(!refused.is_empty());
    for case in refused {
        let entry = text(&case, "entry").as_bytes();
        let is_refused = match text(&case, "log") {
            "rounds" => json::from_slice::<RoundsEntry>(entry).is_err(),
            _ => json::from_slice::<Submission>(entry).is_err(),
        };
        assert!(is_refused, "{case}");
    }
}

fn all(digit: u8) -> Digest {
    Digest([digit << 4 | digit; 32])
}

fn model(digit: u8) -> ManifestId {
    ManifestId { bytes: 24, count: 1, root: all(digit) }
}

fn rule() -> Rule {
    Rule::SparseMeanSgd(SparseMeanSgd {
        dialect: Dialect::Templar,
        chunk: 64,
        top_k: 64,
        bins: 4,
        lr_f32: F32Bits(0.4),
        mean: Mean::Contributors,
        norm: Norm::TorchCpuF32,
    })
}

/// The key whose seed is 0, 1, .. 31.
fn log_key(log: &str) -> LogKey {
    let seed: [u8; 32] = std::array::from_fn(|at| at as u8);
    LogKey::from_seed(&format!("ledger.example/run/{log}"), &seed).unwrap()
}

fn genesis() -> RoundsEntry {
    RoundsEntry::Genesis(Box::new(Genesis {
        version: 1,
        run: "vectors".to_owned(),
        origin: "ledger.example/run".to_owned(),
        model: model(0xa),
        rule: rule(),
        log_keys: LogKeys {
            rounds: log_key("rounds").vkey(),
            submissions: log_key("submissions").vkey(),
        },
        miners: MinersPolicy::Listed,
        netuid: None,
        chain_genesis: None,
        anchor_hotkey: None,
        files: vec![],
    }))
}

fn round(genesis: &Value) -> RoundsEntry {
    RoundsEntry::Round(Box::new(RoundRecord {
        round: 7,
        previous: field(genesis, "leaf"),
        base: model(0xa),
        next: model(0xb),
        rule: rule(),
        plan: ArtifactId { root: all(1), bytes: 48 },
        submissions: Window { start: 0, end: 2, root_at_end: all(2) },
        dispositions: DispositionsId { root: all(3), count: 3 },
        listed: vec![Miner::Uid(7), Miner::Hotkey(all(4))],
        reserve: vec![Miner::Uid(200)],
        skipped: vec![Skipped { tensor: 0, element: 5 }],
        block: None,
    }))
}

fn fetched(outcome: Outcome) -> Submission {
    Submission::Fetched(Fetched {
        round: 7,
        base: model(0xa),
        uid: 7,
        file: "gradient-7-7-v2.1.28.pt".to_owned(),
        source_bytes: 4096,
        source_sha256: all(6),
        outcome,
    })
}

fn delta_id() -> ManifestId {
    ManifestId { bytes: 68, count: 3, root: all(0xd) }
}

fn refusal() -> Refusal {
    Refusal::new(Code::CrcMismatch, Some("wq"), "crc 00000001", "crc 00000002")
}

fn signed(refused: Option<Refusal>) -> Submission {
    Submission::Signed(Signed {
        round: 7,
        base: all(0xa),
        delta: delta_id(),
        hotkey: all(4),
        signature: SignatureHex(std::array::from_fn(|at| if at < 32 { 0x77 } else { 0x88 })),
        refused,
    })
}

#[test]
fn a_manifest_is_the_tree_over_its_descriptors() {
    let read = |case: &Value| {
        let entries: Vec<String> = field(case, "entries");
        Manifest::from_entries(entries.iter().map(|entry| entry.as_bytes()))
    };
    let (taken, refused) = vectors("manifests.jsonl");
    for case in &taken {
        let manifest = read(case).unwrap();
        assert_eq!(manifest_id(&manifest), field(case, "id"), "{case}");
        let shuffled = manifest.descriptors().iter().rev().cloned().collect();
        let entries: Vec<_> = Manifest::new(shuffled).unwrap().entries().collect();
        let expected: Vec<String> = field(case, "entries");
        assert!(entries.iter().eq(expected.iter().map(|e| e.as_bytes())), "{case}");
    }
    assert!(!refused.is_empty());
    refused.iter().for_each(|case| assert_refused(case, read(case)));
}

#[test]
fn positions_and_codes_are_packed_so() {
    let (taken, refused) = vectors("delta.jsonl");
    for case in &taken {
        if !matches!(text(case, "part"), "index" | "code") {
            continue;
        }
        let (k, mut packed) = (number(case, "k"), Vec::new());
        if text(case, "part") == "index" {
            let index = field::<Vec<Vec<u16>>>(case, "blocks").concat();
            codes::pack_index(&index, &mut packed).unwrap();
            let mut back = Vec::new();
            codes::unpack_index(&packed, &mut back);
            assert_eq!(back, index, "{case}");
            assert_eq!(index_check(case, &packed, 4096), Ok(()), "{case}");
        } else {
            let (width, code) =
                (field(case, "bits"), field::<Vec<Vec<u8>>>(case, "blocks").concat());
            codes::pack_codes(&code, k, width, &mut packed).unwrap();
            let mut back = Vec::new();
            codes::unpack_codes(&packed, k, width, &mut back);
            assert_eq!(back, code, "{case}");
            assert_eq!(codes::check_padding(&packed, k, width), Ok(()), "{case}");
        }
        assert_eq!(packed, hex(case, "hex"), "{case}");
    }
    for case in &refused {
        match text(case, "part") {
            "index" => {
                let block_len = number(case, "block");
                assert_refused(case, index_check(case, &hex(case, "hex"), block_len));
            }
            "code" => {
                let (k, width) = (number(case, "k"), field(case, "bits"));
                assert_refused(case, codes::check_padding(&hex(case, "hex"), k, width));
            }
            _ => {}
        }
    }
}

/// Whether the positions of these blocks are distinct and below the block's length.
fn index_check(
    case: &Value,
    packed: &[u8],
    block_len: usize,
) -> Result<(), gradledger_kernels::KernelError> {
    let k = number(case, "k");
    let blocks = packed.len() / (k / 2 * 3);
    let (rows, columns) = (1, blocks * block_len);
    let band = Band { rows, columns, block_rows: 1, block_columns: block_len, k, code_bits: 2 };
    check::indices(&band, &[Contribution { index: packed, code: &[], levels: &[] }])
}

#[test]
fn books_are_laid_out_and_added_up_so() {
    let (taken, refused) = vectors("delta.jsonl");
    let is_book = |case: &&Value| text(case, "part") == "book";
    for case in taken.iter().filter(is_book) {
        let bytes = hex(case, "hex");
        if let Some(dialect) = case.get("dialect") {
            let dialect = Dialect::deserialize(dialect).unwrap();
            assert_eq!(Book::from_bytes(&bytes).check(dialect), Ok(()), "{case}");
            continue;
        }
        let book = Book { lookup: floats(case, "lookup"), shift: float(text(case, "shift")) };
        assert_eq!(book.to_bytes(), bytes, "{case}");
        let read = Book::from_bytes(&bytes);
        assert_eq!((bits(&read.lookup), read.shift), (bits(&book.lookup), book.shift));
        let values = levels(&book.lookup, book.shift, 1.0);
        assert_eq!(bits(&values), field::<Vec<String>>(case, "values"), "{case}");
    }
    for case in refused.iter().filter(is_book) {
        assert_refused(case, Book::from_bytes(&hex(case, "hex")).check(field(case, "dialect")));
    }
}

fn plan_row(row: &Value) -> PlanRow {
    let (norm, factor) = (double(text(row, "norm")), float(text(row, "factor")));
    PlanRow { norm, factor, counts: field(row, "counts") }
}

#[test]
fn plans_are_laid_out_and_hashed_so() {
    let (taken, refused) = vectors("plan.jsonl");
    let read = |case: &Value| {
        let [tensors, miners, bins] = ["tensors", "miners", "bins"].map(|name| number(case, name));
        Plan::from_bytes(&hex(case, "hex"), tensors, miners, bins)
    };
    for case in &taken {
        let rows = field::<Vec<Value>>(case, "rows").iter().map(plan_row).collect();
        let plan = Plan { bins: number(case, "bins"), miners: number(case, "miners"), rows };
        assert_eq!(plan.to_bytes(), hex(case, "hex"), "{case}");
        assert_eq!(read(case).unwrap(), plan, "{case}");
        assert_eq!(plan_pieces(&plan).artifact, field(case, "artifact"), "{case}");
    }
    assert!(!refused.is_empty());
    refused.iter().for_each(|case| assert_refused(case, read(case)));
}

#[test]
fn a_plan_stores_one_nan() {
    let row = |norm, factor| PlanRow { norm, factor, counts: vec![] };
    let odd = row(-f64::NAN, f32::from_bits(0xffc0_0001));
    let plan = Plan { bins: 0, miners: 1, rows: vec![odd] };
    assert_eq!(plan.to_bytes(), from_hex("000000000000f87f0000c07f00000000"));
}

#[test]
fn norms_and_factors_have_these_bits() {
    let (taken, _) = vectors("norms.jsonl");
    for case in &taken {
        let torch = text(case, "norm") == "torch-cpu-f32";
        if case.get("factors").is_some() {
            let norms: Vec<String> = field(case, "norms");
            let factors = match torch {
                true => factors_f32(&norms.iter().map(|n| float(n)).collect::<Vec<_>>()),
                false => factors_f64(&norms.iter().map(|n| double(n)).collect::<Vec<_>>()),
            };
            assert_eq!(bits(&factors), field::<Vec<String>>(case, "factors"), "{case}");
        } else if torch {
            let mut norm = TorchCpuNorm::new();
            norm.push(&floats(case, "values"));
            assert_same_float(case, norm.finish());
        } else {
            let norm = histogram_f64(&field::<Vec<u64>>(case, "counts"), &floats(case, "values"));
            let expected = double(text(case, "is"));
            let same = norm.to_bits() == expected.to_bits() || norm.is_nan() && expected.is_nan();
            assert!(same, "{case}: {norm}");
        }
    }
}

/// A norm in memory may be any NaN; what is stored is the canonical one, see `Plan`.
fn assert_same_float(case: &Value, found: f32) {
    let expected = float(text(case, "is"));
    let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
    assert!(same, "{case}: {:08x}", found.to_bits());
}

#[test]
fn every_path_folds_to_these_bits() {
    let (taken, _) = vectors("fold.jsonl");
    for case in &taken {
        let [rows, columns, block_rows, block_columns, k] =
            ["rows", "columns", "block_rows", "block_columns", "k"].map(|name| number(case, name));
        let code_bits = field(case, "bits");
        let band = Band { rows, columns, block_rows, block_columns, k, code_bits };
        let miners: Vec<Value> = field(case, "miners");
        let packed: Vec<_> = miners.iter().map(|miner| packed_miner(miner, k, code_bits)).collect();
        let contributions: Vec<_> = packed
            .iter()
            .map(|(index, code, levels)| Contribution { index, code, levels })
            .collect();
        let divisor = match field(case, "mean") {
            Mean::Contributors => Divisor::Contributors,
            Mean::All => Divisor::All(miners.len() as u32),
        };
        let step = Step { lr: field::<F32Bits>(case, "lr_f32").0, divisor };
        let findings = Findings {
            delta_non_finite: field(case, "delta_non_finite"),
            next_non_finite: field(case, "next_non_finite"),
        };
        let next: Vec<String> = field(case, "next");
        let mut state = floats(case, "base");
        let found = reference::fold(&band, &contributions, step, &mut state);
        assert_eq!((bits(&state), found), (next.clone(), Ok(findings)), "{case}");
        for path in cpu::Path::available() {
            let mut state = floats(case, "base");
            let found = cpu::fold(path, &band, &contributions, step, &mut state);
            assert_eq!((bits(&state), found), (next.clone(), Ok(findings)), "{path:?}: {case}");
        }
    }
}

/// What a miner sent: packed positions, packed codes, and what each code adds.
fn packed_miner(miner: &Value, k: usize, code_bits: u32) -> (Vec<u8>, Vec<u8>, Vec<f32>) {
    let (mut index, mut code) = (Vec::new(), Vec::new());
    codes::pack_index(&field::<Vec<Vec<u16>>>(miner, "index").concat(), &mut index).unwrap();
    let plain = field::<Vec<Vec<u8>>>(miner, "code").concat();
    codes::pack_codes(&plain, k, code_bits, &mut code).unwrap();
    let (shift, factor) = (float(text(miner, "shift")), float(text(miner, "factor")));
    (index, code, levels(&floats(miner, "lookup"), shift, factor))
}

#[test]
fn dispositions_follow_so_and_are_hashed_so() {
    let (taken, _) = vectors("dispositions.jsonl");
    for case in &taken {
        let (listed, reserve): (Vec<Miner>, Vec<Miner>) =
            (field(case, "listed"), field(case, "reserve"));
        let expected = Expected {
            round: field(case, "round"),
            base: field(case, "base"),
            listed: &listed,
            reserve: &reserve,
            dialect: field(case, "dialect"),
        };
        let first: u64 = field(case, "first_index");
        let submissions: Vec<_> =
            (first..).zip(field::<Vec<Submission>>(case, "submissions")).collect();
        let derived = dispose(expected, &submissions);
        assert_eq!(derived, field::<Vec<Disposition>>(case, "dispositions"), "{case}");
        assert_eq!(dispositions_id(&derived), field(case, "id"), "{case}");
    }
}

#[test]
fn a_hashes_file_has_these_bytes() {
    let (taken, _) = vectors("hashes.jsonl");
    for case in &taken {
        let dir = tempfile::tempdir().unwrap();
        let entries: Vec<String> = field(case, "entries");
        let manifest = Manifest::from_entries(entries.iter().map(|e| e.as_bytes())).unwrap();
        let id: ManifestId = field(case, "id");
        let digests = |name: &str| field::<Vec<Digest>>(&case["digests"], name);
        let tmp = dir.path().join("tmp");
        let mut writer = HashesWriter::create(&Disk, &tmp).unwrap();
        for name in field::<Vec<String>>(case, "order") {
            writer.artifact("weights", &name, &digests(&name)).unwrap();
        }
        writer.finish(&manifest).unwrap();
        let path = hashes::commit(&Disk, dir.path(), &tmp, id.root).unwrap();
        assert_eq!(fs::read(&path).unwrap(), hex(case, "hex"), "{case}");
        let reader = HashesReader::open(&Disk, dir.path(), &id).unwrap();
        assert_eq!(reader.manifest(), &manifest, "{case}");
        for (at, descriptor) in manifest.descriptors().iter().enumerate() {
            assert_eq!(reader.digests(at).unwrap(), digests(&descriptor.name), "{case}");
        }
    }
}

#[test]
fn a_hashes_file_that_is_not_one_is_refused() {
    let case = &vectors("hashes.jsonl").0[0];
    let (good, id) = (hex(case, "hex"), field::<ManifestId>(case, "id"));
    let dir = tempfile::tempdir().unwrap();
    let path = place::hashes(dir.path(), id.root);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let end = good.len();
    let opened = |change: &dyn Fn(&mut Vec<u8>), id: &ManifestId| {
        let mut bytes = good.clone();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        HashesReader::open(&Disk, dir.path(), id)
    };
    let refused = |change: &dyn Fn(&mut Vec<u8>)| opened(change, &id).err().unwrap();
    assert!(matches!(refused(&|b| b.clear()), HashesError::Magic { .. }));
    assert!(matches!(refused(&|b| b[end - 1] = b'2'), HashesError::Magic { .. }));
    assert!(matches!(refused(&|b| b[end - 40] += 1), HashesError::Layout { .. }));
    assert!(matches!(refused(&|b| b[end - 24] += 1), HashesError::Layout { .. }));
    assert!(matches!(refused(&|b| b.insert(0, 0)), HashesError::Layout { .. }));
    assert!(matches!(refused(&|b| b[end - 32] -= 1), HashesError::Cut { .. }));
    assert!(matches!(refused(&|b| b[end - 32] += 1), HashesError::Cut { .. }));
    // A space in the first descriptor's JSON.
    assert!(matches!(refused(&|b| b[3 * 32 + 13] = b' '), HashesError::Manifest { .. }));
    let other = ManifestId { bytes: id.bytes + 1, ..id };
    assert!(matches!(opened(&|_| (), &other), Err(HashesError::OtherManifest { .. })));
    // Damaged digests of one artifact do not hide the others'.
    let reader = opened(&|b| b[0] ^= 1, &id).unwrap();
    assert!(matches!(reader.digests(1), Err(HashesError::Root { .. })));
    assert_eq!(reader.digests(0).unwrap().len(), 2);
    let reader = opened(&|b| b[3 * 32] = 2, &id).unwrap();
    assert!(matches!(reader.digests(0), Err(HashesError::Start { start: 2, digests: 3, .. })));
}

/// The key's seed is 0, 1, .. 31; it signed 3 entries of one log and none of the other.
#[test]
fn a_key_and_what_it_signed_are_spelled_so() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("log.key");
    fs::copy(place_of("keys/log.key"), &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let seed = keys::load(&Disk, &key).unwrap();
    assert!(seed.as_bytes().iter().copied().eq(0..32));
    let record = dir.path().join("log.key.heads");
    let spelled = fs::read(place_of("keys/log.key.heads")).unwrap();
    fs::write(&record, &spelled).unwrap();
    let guard = HeadGuard::open(Arc::new(Disk), &key).unwrap();
    let signed = tree_head();
    assert_eq!(guard.newest(&signed.origin).unwrap(), Some(signed.clone()));
    let other = "ledger.example/run/submissions".to_owned();
    let empty = TreeHead { origin: other.clone(), size: 0, root: Digest::of(b"") };
    assert_eq!(guard.newest(&other).unwrap(), Some(empty));
    // Written anew, it is spelled the same but for what changed.
    guard.admit(&TreeHead { size: 4, ..signed }).unwrap();
    let spelled = String::from_utf8(spelled).unwrap().replace("\"size\":3", "\"size\":4");
    assert_eq!(fs::read_to_string(&record).unwrap(), spelled);
    fs::write(&record, spelled + "\n").unwrap();
    assert!(HeadGuard::open(Arc::new(Disk), &key).is_err());
}

fn tree_head() -> TreeHead {
    let origin = "ledger.example/run/rounds".to_owned();
    TreeHead { origin, size: 3, root: Digest::of(b"vectors") }
}

#[test]
fn a_tree_head_is_signed_so() {
    let note = fs::read_to_string(place_of("tree-head.note")).unwrap();
    let key = log_key("rounds");
    assert_eq!(tree_head().sign(&key).unwrap(), note);
    let vkey: VerifierKey = key.vkey().parse().unwrap();
    assert_eq!(TreeHead::open(note.as_bytes(), &vkey).unwrap(), tree_head());
    let other = note.replacen("\n3\n", "\n4\n", 1);
    assert!(TreeHead::open(other.as_bytes(), &vkey).is_err());
}

#[test]
fn a_receipt_proves_a_submission_and_no_other() {
    let text = fs::read_to_string(place_of("receipt.json")).unwrap();
    let receipt: Receipt = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string_pretty(&receipt).unwrap(), text);
    let (key, other) = (log_key("submissions"), log_key("rounds"));
    let signed = receipt.verify(key.verifier()).unwrap();
    assert_eq!((signed.round, signed.refused), (812, None));
    let refused = |name: &str, changed: Receipt| {
        let error = format!("{:?}", changed.verify(key.verifier()).unwrap_err());
        assert!(error.starts_with(name), "{name}: {error}");
    };
    let with = |change: &dyn Fn(&mut Receipt)| {
        let mut changed = receipt.clone();
        change(&mut changed);
        changed
    };
    assert!(receipt.verify(other.verifier()).is_err());
    refused("Head", with(&|r| r.head = r.head.replacen("\n3\n", "\n4\n", 1)));
    refused("Inclusion", with(&|r| r.index = 0));
    refused("Inclusion", with(&|r| r.proof.truncate(1)));
    refused("Inclusion", with(&|r| r.entry = r.entry.replace("812", "813")));
    refused("Signature", with(&|r| r.run_id = all(0)));
    refused("Statement", with(&|r| r.statement = all(0)));
    let other_field = text.replacen('{', "{\"x\":1,", 1);
    assert!(serde_json::from_str::<Receipt>(&other_field).is_err());
}

#[test]
fn a_hand_over_of_the_log_key_is_signed_so() {
    let (taken, refused) = vectors("rotations.jsonl");
    let follow = |case: &Value| {
        let entry = json::from_slice::<RoundsEntry>(text(case, "entry").as_bytes()).unwrap();
        let RoundsEntry::KeyRotation(rotation) = entry else { panic!("{case}") };
        let mut chain =
            KeyChain::of_genesis("ledger.example/run", &field(case, "log_keys")).unwrap();
        let (run, index) = (field(case, "run"), field(case, "index"));
        (chain.rotate(run, index, &rotation).map(|()| chain), *rotation)
    };
    for case in &taken {
        assert_record::<RoundsEntry>(case);
        let (chain, entry) = follow(case);
        let chain = chain.unwrap();
        let seed: [u8; 32] = std::array::from_fn(|at| at as u8 + 32);
        let new = LogKey::from_seed("ledger.example/run/rounds", &seed).unwrap();
        assert_eq!(chain.newest().log_keys.rounds, new.vkey());
        let rotation = Rotation {
            run: field(case, "run"),
            index: field(case, "index"),
            submissions_size: entry.submissions.size,
            submissions_root: entry.submissions.root,
            old: *log_key("rounds").verifier().key(),
            new: *new.verifier().key(),
        };
        assert_eq!(rotation.bytes().to_vec(), hex(case, "signed"));
        let by = [rotation.sign(&log_key("rounds")), rotation.sign(&new)];
        assert_eq!(by, [entry.by_old.0, entry.by_new.0]);
    }
    assert!(!refused.is_empty());
    for case in refused {
        assert_refused(&case, follow(&case).0);
    }
}

#[test]
fn an_open_round_is_spelled_so() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(Arc::new(Disk), dir.path());
    assert_eq!(OpenRound::load(&place).unwrap(), None);
    let spelled = fs::read(place_of("open-round.json")).unwrap();
    let open = OpenRound {
        round: 62840,
        listed: [7, 3, 41].map(Miner::Uid).to_vec(),
        reserve: vec![Miner::Uid(200), Miner::Hotkey(all(4))],
    };
    open.save(&place).unwrap();
    assert_eq!(fs::read(dir.path().join("open-round.json")).unwrap(), spelled);
    assert_eq!(OpenRound::load(&place).unwrap(), Some(open));
    let text = String::from_utf8(spelled).unwrap();
    let of_version_1 = r#"{"listed":[],"reserve":[],"round":1}"#;
    let (other_peer, more) = (text.replace("41]", "42]"), text.replacen('{', r#"{"a":1,"#, 1));
    for other in ["", "{}", of_version_1, &other_peer, &more, "{ }"] {
        fs::write(dir.path().join("open-round.json"), other).unwrap();
        assert!(OpenRound::load(&place).is_err(), "{other:?}");
    }
    fs::write(dir.path().join("open-round.json"), vec![b' '; (1 << 20) + 1]).unwrap();
    assert!(OpenRound::load(&place).is_err());
}

#[test]
fn dropped_states_are_spelled_so() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(Arc::new(Disk), dir.path());
    assert_eq!(Retention::load(&place).unwrap(), Retention::Dropped(vec![]));
    let held = [all(4), all(1)].into();
    for (retention, vector) in [
        (Retention::Dropped(vec![[1, 49], [51, 51]]), "retention.json"),
        (Retention::Held(held), "retention-of-copy.json"),
    ] {
        retention.save(&place).unwrap();
        let spelled = fs::read(place_of(vector)).unwrap();
        assert_eq!(fs::read(dir.path().join("retention.json")).unwrap(), spelled);
        assert_eq!(Retention::load(&place).unwrap(), retention);
    }
    let (one, other) = (all(1), all(4));
    for refused in [
        format!(r#"{{"held":["{other}","{one}"],"version":2}}"#),
        format!(r#"{{"held":["{one}","{one}"],"version":2}}"#),
        format!(r#"{{"held":["{one}"],"version":1}}"#),
        r#"{"dropped":[],"version":2}"#.to_owned(),
        r#"{"dropped":[],"held":[],"version":2}"#.to_owned(),
        r#"{"version":2}"#.to_owned(),
        r#"{"held":[],"version":3}"#.to_owned(),
    ] {
        fs::write(dir.path().join("retention.json"), &refused).unwrap();
        assert!(Retention::load(&place).is_err(), "{refused}");
    }
}

#[test]
fn what_is_stored_lies_here() {
    let ledger = Path::new("l");
    let (taken, _) = vectors("places.jsonl");
    for case in &taken {
        let root: Digest = field(case, "root");
        let artifact = || ArtifactId { root, bytes: field(case, "bytes") };
        let path = match text(case, "kind") {
            "tensor" => place::tensor(ledger, &artifact(), field(case, "dtype")),
            "delta" => place::delta(ledger, root),
            "plan" => place::plan(ledger, &artifact()),
            "dispositions" => {
                place::dispositions(ledger, &DispositionsId { root, count: field(case, "count") })
            }
            "hashes" => place::hashes(ledger, root),
            "quarantine" => quarantine::path_of(ledger, field(case, "round"), root),
            other => panic!("{other}"),
        };
        assert_eq!(path, ledger.join(text(case, "path")), "{case}");
    }
}

/// Writes a segment below `ledger` if it is missing and the environment asks for it.
fn written_once(path: &Path, write: impl FnOnce(&Path, &Path)) {
    let wanted = std::env::var_os("GRADLEDGER_WRITE_VECTORS").is_some_and(|value| value == "1");
    if !path.exists() && wanted {
        let dir = tempfile::tempdir_in(place_of("ledger")).unwrap();
        write(&place_of("ledger"), &dir.path().join("new"));
    }
}

const VALUES: [f32; 6] = [1.0, -0.0, 0.4, f32::MIN_POSITIVE / 2.0, f32::INFINITY, -3e38];

#[test]
fn a_tensor_segment_written_by_version_1_reads() {
    let bytes: Vec<u8> = VALUES.iter().flat_map(|value| value.to_le_bytes()).collect();
    let (ledger, artifact) = (place_of("ledger"), Pieces::of(&bytes).artifact);
    written_once(&place::tensor(&ledger, &artifact, Dtype::F32), |ledger, new| {
        let spec = TensorSpec::new("wq", Dtype::F32, &[2, 3]).unwrap();
        let mut writer = TensorWriter::create(&Disk, new, &spec).unwrap();
        writer.write(&bytes).unwrap();
        writer.finish().unwrap();
        tensor::commit(&Disk, ledger, new, &artifact, Dtype::F32).unwrap();
    });
    let segment = TensorSegment::open(&Disk, &ledger, &artifact, Dtype::F32).unwrap();
    assert_eq!(all_bytes(&segment), bytes);
}

/// All bytes of an artifact.
fn all_bytes(source: &dyn LogicalBytes) -> Vec<u8> {
    let mut bytes = vec![0; source.len() as usize];
    source.read_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn delta_segments_written_by_version_1_read() {
    // Two tensors of one row layout, one of another: positions, codes and book of each.
    let parts: [(&str, u64, &str, &str, &str); 3] = [
        ("bias", 2, "000010", "0b", "0000803f000000400000404000008040cdcccc3d"),
        (
            "wk",
            4,
            "01200003400005600007800009a0000bc000",
            "e41b1b",
            "0000803f000000000000008000008040cdcc4c3e",
        ),
        (
            "wq",
            4,
            "0010000230000450000670000890000ab000",
            "ff0055",
            "000080bf000000bf0000003f0000803f0ad7233c",
        ),
    ];
    let root = Digest::of(b"schema/vectors: the delta of this test, under no manifest");
    let dir = place::delta(&place_of("ledger"), root);
    written_once(&dir, |ledger, new| {
        let mut writer = DeltaWriter::create(&Disk, new, 4).unwrap();
        for (name, k, index, code, book) in parts {
            let (index, code) = (from_hex(index), from_hex(code));
            let blocks = index.len() as u64 / (k / 2 * 3);
            let mut rows = writer.tensor(name, k, blocks).unwrap();
            rows.write_index(&index).unwrap();
            rows.write_code(&code).unwrap();
            rows.finish().unwrap();
            writer.book(name, &from_hex(book)).unwrap();
        }
        writer.finish().unwrap();
        delta::commit(&Disk, ledger, new, root).unwrap();
    });
    let segments = DeltaSegments::open(&Disk, &dir).unwrap();
    assert!(segments.tensors().eq(parts.map(|(name, ..)| name)));
    for (name, k, index, code, book) in parts {
        assert_eq!(segments.layout(name).unwrap().k, k);
        assert_eq!(all_bytes(&*segments.index(name).unwrap()), from_hex(index), "{name}");
        assert_eq!(all_bytes(&*segments.code(name).unwrap()), from_hex(code), "{name}");
        assert_eq!(all_bytes(&*segments.book(name).unwrap()), from_hex(book), "{name}");
    }
}

#[test]
fn a_plan_segment_written_by_version_1_reads() {
    let case = vectors("plan.jsonl").0.into_iter().find(|case| case["what"] == "a NaN").unwrap();
    let artifact: ArtifactId = field(&case, "artifact");
    let rows: Vec<PlanRow> = field::<Vec<Value>>(&case, "rows").iter().map(plan_row).collect();
    let expected = Plan { bins: 4, miners: 2, rows };
    let ledger = place_of("ledger");
    written_once(&place::plan(&ledger, &artifact), |ledger, new| {
        let miners = [Miner::Uid(7), Miner::Hotkey(all(4))];
        plan::write(&Disk, new, &expected, &["wq"], &miners).unwrap();
        plan::commit(&Disk, ledger, new, &artifact).unwrap();
    });
    assert_eq!(plan::read(&Disk, &ledger, &artifact, 1, 2, 4).unwrap(), expected);
}

#[test]
fn a_dispositions_segment_written_by_version_1_reads() {
    let refusal = Refusal::new(Code::WrongTopK, Some("wq"), "64", "32");
    let rows = [
        (Some(4), Verdict::Accepted { order: 0 }),
        (Some(5), Verdict::Rejected(refusal)),
        (None, Verdict::Absent),
    ];
    let miners = [Miner::Uid(7), Miner::Hotkey(all(4)), Miner::Uid(9)];
    let rows = rows.into_iter().zip(miners);
    let rows: Vec<_> =
        rows.map(|((index, verdict), miner)| Disposition { index, miner, verdict }).collect();
    let (ledger, id) = (place_of("ledger"), dispositions_id(&rows));
    written_once(&place::dispositions(&ledger, &id), |ledger, new| {
        dispositions::write(&Disk, new, &rows).unwrap();
        dispositions::commit(&Disk, ledger, new, &id).unwrap();
    });
    let entries = dispositions::read_entries(&Disk, &ledger, &id).unwrap();
    assert!(entries.iter().eq(rows.iter().map(json::to_vec).collect::<Vec<_>>().iter()));
}

/// Text between backticks on a page.
fn quoted(page: &str) -> impl Iterator<Item = &str> {
    page.split('`').skip(1).step_by(2)
}

/// Name and text of each page.
fn pages() -> Vec<(String, String)> {
    let dir = fs::read_dir(place_of("..")).unwrap().map(|entry| entry.unwrap().path());
    let pages: Vec<_> = dir.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    assert!(!pages.is_empty());
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    pages.into_iter().map(read).collect()
}

#[test]
fn pages_name_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (page, text) in pages() {
        assert!(text.starts_with("# "), "{page} has no title");
        for path in quoted(&text) {
            let from_root = ["src/", "tests/", "kernels/", "tools/"];
            let is_page = path.ends_with(".md") && !path.contains('/');
            let exists = if from_root.iter().any(|start| path.starts_with(start)) {
                root.join(path).exists()
            } else if path.starts_with("vectors/") || is_page {
                root.join("schema").join(path).exists()
            } else {
                continue;
            };
            assert!(exists, "{page} names {path}, which does not exist");
        }
    }
}

#[test]
fn every_vector_is_named_by_a_page() {
    let pages = pages();
    for entry in fs::read_dir(place_of("")).unwrap() {
        let name = format!("vectors/{}", entry.unwrap().file_name().to_str().unwrap());
        let named = |(_, text): &(String, String)| {
            quoted(text).any(|path| path == name || path.starts_with(&format!("{name}/")))
        };
        assert!(pages.iter().any(named), "no page names {name}");
    }
}
