//! Bundles prove their claims, and two verifiers that share nothing agree on every one.

use super::*;

fn bundles(run: &Run) -> Vec<(String, Vec<u8>)> {
    let ledger = run.open();
    let name = || "a.weight".to_owned();
    let mut targets = vec![
        Target::Piece(At::Round(8), name(), 1),
        Target::Piece(At::Genesis, name(), 2),
        Target::Tensor(At::Round(5), name()),
        Target::Tensor(At::Genesis, "c.step".to_owned()),
        Target::Round(5),
        Target::Round(8),
        Target::Records(5),
        Target::Records(8),
        Target::Fold(5, 0, 1),
        Target::Fold(8, 0, 2),
        Target::Fold(8, 1, 0),
    ];
    targets.extend((0..ledger.submissions_log().size()).map(Target::Submission));
    let write = |target| {
        let bytes = prove(&ledger, &target, Vec::new(), &Silent).unwrap();
        assert_eq!(bytes, prove(&ledger, &target, Vec::new(), &Silent).unwrap());
        (format!("{target:?}"), bytes)
    };
    targets.into_iter().map(write).collect()
}

#[test]
fn a_bundle_proves_its_claim_and_a_piece_takes_a_few_kilobytes_beside_it() {
    let (run, _) = sealed(320);
    let trust = trust(rounds_key(&run));
    for (target, bytes) in bundles(&run) {
        let verified = verify(&bytes[..], &trust);
        assert_eq!(verdict(&verified.lines), Verdict::Passed, "{target}: {verified:#?}");
        let unsigned = verify(&bytes[..], &Trust::default());
        assert_eq!(verdict(&unsigned.lines), Verdict::Incomplete, "{target}");
        if target.starts_with("Piece") {
            let piece = Bundle::read(&bytes[..]).unwrap().member("piece").len();
            println!("{target}: {} bytes beside the piece", bytes.len() - piece);
            assert!(bytes.len() - piece < 8 << 10);
        }
    }
}

#[test]
fn two_verifiers_agree_on_every_good_and_every_bad_bundle() {
    let (run, _) = sealed(320);
    let key = rounds_key(&run);
    let mut random = Random(41);
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    for (target, bytes) in bundles(&run) {
        // Any byte anywhere; then bytes of members under headers that fit; then fields of JSON.
        for _ in 0..40 {
            let (mut other, at) = (bytes.clone(), random.below(bytes.len() as u64) as usize);
            other[at] ^= 1 << random.below(8);
            all.push((format!("{target}: byte {at}"), other));
        }
        let members = (bytes.len() / 512).min(12);
        let changed: &[usize] = if target.starts_with("Fold") { &[0, 1, 2, 3] } else { &[0] };
        for member in 0..members {
            for seed in changed {
                let other = respelled(&bytes, |members| {
                    let Some((_, body)) = members.get_mut(&member) else { return };
                    let at = random_at(body.len(), member + 100 * seed);
                    if let Some(byte) = body.get_mut(at) {
                        *byte ^= 1;
                    }
                });
                all.push((format!("{target}: member {member}"), other));
            }
            let dropped = respelled(&bytes, |members| drop(members.remove(&member)));
            all.push((format!("{target}: without member {member}"), dropped));
        }
        let claim = respelled(&bytes, |_| {});
        assert_eq!(claim, bytes);
        let document: Value = {
            let bundle = respelled_json(&bytes);
            serde_json::from_slice(&bundle).unwrap()
        };
        for (path, changed) in changes(&document) {
            let other =
                respelled(&bytes, |members| members.get_mut(&0).unwrap().1 = canonical(&changed));
            all.push((format!("{target}: claim {path}"), other));
        }
        all.push((target, bytes));
    }
    // Records that lie, signed: their bundles are refuted.
    let honest = entries(&run, false);
    let record: Value = serde_json::from_slice(honest.last().unwrap()).unwrap();
    for (path, changed) in changes(&record) {
        let copy = copied(&run);
        let forged = [&honest[..honest.len() - 1], &[canonical(&changed)]].concat();
        forge(&copy.root, "rounds", &forged);
        let ledger = Ledger::open(&copy.root).unwrap();
        for target in [
            Target::Round(8),
            Target::Submission(5),
            Target::Piece(At::Round(8), "b.bias".into(), 0),
            Target::Records(8),
            Target::Fold(8, 0, 0),
            Target::Fold(8, 1, 0),
        ] {
            if let Ok(bytes) = prove(&ledger, &target, Vec::new(), &Silent) {
                all.push((format!("lie {path}: {target:?}"), bytes));
            }
        }
    }
    all.extend(pairs_of_heads(&run));
    let Some((good, bad, evidence)) = agree(&all, key) else { return };
    println!("{good} good bundles, {bad} bad ones, {evidence} of them evidence");
    assert!(
        good >= 18 && bad > 900 && evidence > 20,
        "{good} good, {bad} bad, {evidence} evidence"
    );
}

/// Heads that are the same, grown, forked, not proven, of two logs, and signed by nobody known.
fn pairs_of_heads(run: &Run) -> Vec<(String, Vec<u8>)> {
    let entries = entries(run, false);
    let head = |entries: &[Vec<u8>]| {
        let copy = copied(run);
        forge(&copy.root, "rounds", entries);
        fs::read(copy.root.join("log/rounds/checkpoint")).unwrap()
    };
    let (old, new) = (head(&entries[..2]), head(&entries));
    let mut other = entries.clone();
    other[2].reverse();
    let fork = head(&other);
    let submissions = fs::read(run.path().join("log/submissions/checkpoint")).unwrap();
    let proof = run.open().rounds_log().consistency_proof(2, 3).unwrap();
    let wrong = vec![Digest::of(b""); proof.len()];
    let mut broken = new.clone();
    let end = broken.len() - 9;
    broken[end] = if broken[end] == b'A' { b'B' } else { b'A' };
    let pair = |name: &str, a: &[u8], b: &[u8], proof: &[Digest]| {
        (format!("heads: {name}"), prove_heads(a, b, proof.to_vec(), Vec::new()).unwrap())
    };
    vec![
        pair("same", &new, &new, &[]),
        pair("grown", &old, &new, &proof),
        pair("grown, other order", &new, &old, &proof),
        pair("grown, no proof", &old, &new, &[]),
        pair("grown, wrong proof", &old, &new, &wrong),
        pair("fork", &new, &fork, &[]),
        pair("fork between sizes", &old, &fork, &wrong),
        pair("broken", &new, &broken, &[]),
        pair("two logs", &new, &submissions, &[]),
        pair("of a log without a known key", &submissions, &submissions, &[]),
    ]
}

fn respelled_json(bytes: &[u8]) -> Vec<u8> {
    let mut reader = gradledger::audit::archive::ArchiveReader::new(bytes);
    let (_, length) = reader.next_member().unwrap().unwrap();
    let mut body = Vec::new();
    reader.body(length, |run| body.extend_from_slice(run)).unwrap();
    body
}

#[test]
fn no_bytes_make_the_reader_of_bundles_panic() {
    let (run, _) = sealed(320);
    let trust = trust(rounds_key(&run));
    let mut random = Random(8);
    for (target, bytes) in bundles(&run) {
        let times = if target.starts_with("Round") { 1_000 } else { 100 };
        for _ in 0..times {
            let mut other = bytes.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(other.len() as u64) as usize;
                other[at] = random.next() as u8;
            }
            other.truncate(random.below(2 * other.len() as u64) as usize);
            verify(&other[..], &trust);
        }
        // Past the hashes, nothing but the claim's numbers may be made up.
        let document: Value = serde_json::from_slice(&respelled_json(&bytes)).unwrap();
        for (_, changed) in changes(&document).into_iter().take(60) {
            let other =
                respelled(&bytes, |members| members.get_mut(&0).unwrap().1 = canonical(&changed));
            verify(&other[..], &Trust::default());
        }
    }
}

/// Golden heads in bundles of ours: both verifiers say of them what is written.
#[test]
fn golden_equivocation_in_bundles() {
    let path = common::golden().join("merkle/own/equivocation.jsonl");
    let Ok(text) = fs::read_to_string(path) else { return println!("absent, passed over") };
    let mut by_key: BTreeMap<String, Vec<(String, Vec<u8>)>> = BTreeMap::new();
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let text = |field: &str| case[field].as_str().unwrap();
        let hash = |hash: &Value| {
            let bytes = base64(hash.as_str().unwrap());
            Digest(bytes.try_into().unwrap())
        };
        let proof = case["proof"].as_array().into_iter().flatten().map(hash).collect();
        let (a, b) = (text("a").as_bytes(), text("b").as_bytes());
        let bundle = prove_heads(a, b, proof, Vec::new()).unwrap();
        let key: VerifierKey = text("vkey").parse().unwrap();
        let verified = verify(&bundle[..], &trust(key));
        let expected = match text("verdict") {
            "same" | "consistent" => Verdict::Passed,
            "fork" | "unrelated" => Verdict::Mismatch,
            "invalid" => Verdict::BadSignature,
            "not proven" => Verdict::Incomplete,
            other => panic!("{other}"),
        };
        assert_eq!(verdict(&verified.lines), expected, "{case}: {verified:#?}");
        assert_eq!(verified.evidence.is_some(), text("verdict") == "fork", "{case}");
        by_key.entry(text("vkey").to_owned()).or_default().push((text("desc").to_owned(), bundle));
    }
    assert!(!by_key.is_empty());
    for (key, all) in by_key {
        agree(&all, key.parse().unwrap());
    }
}

fn base64(text: &str) -> Vec<u8> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.decode(text).unwrap()
}

/// The second verifier's reader of policies takes and refuses what is written, too.
#[test]
fn golden_policies_by_the_second_verifier() {
    let path = common::golden().join("merkle/own/policies.jsonl");
    if !path.exists() {
        return println!("{} is absent, passed over", path.display());
    }
    let Some(python) = python() else { return };
    const SCRIPT: &str = "
import json, sys
from verify import Policy
for line in open(sys.argv[1]):
    case = json.loads(line)
    try: found = bool(Policy(case['policy']))
    except Exception: found = False
    assert found == case['ok'], case
print('ok')
";
    let output = Command::new(python)
        .args(["-c", SCRIPT])
        .arg(path)
        .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/tools"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"ok\n", "{}", String::from_utf8_lossy(&output.stderr));
}
