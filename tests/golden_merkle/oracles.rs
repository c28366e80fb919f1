//! The same golden data through crates of other people: what they take and refuse is what is written.

use signed_note::{Note, StandardVerifier, VerifierList};
use tlog_tiles::{Checkpoint, Hash, check_record, check_tree, record_hash};

use super::{base64, cases, flag, text};
use serde_json::Value;

/// The tree head in a note that `vkey` signed.
fn opened(note: &str, vkey: &str) -> Option<(Checkpoint, String)> {
    let note = Note::from_bytes(note.as_bytes()).ok()?;
    let verifier = StandardVerifier::new(vkey).ok()?;
    note.verify(&VerifierList::new(vec![Box::new(verifier)])).ok()?;
    let head = Checkpoint::from_bytes(note.text()).ok()?;
    let origin = head.origin().to_owned();
    Some((head, origin))
}

fn hashes(list: &Value) -> Vec<Hash> {
    let hash = |text: &Value| Hash(base64(text.as_str().unwrap()).try_into().unwrap());
    list.as_array().into_iter().flatten().map(hash).collect()
}

#[test]
fn golden_equivocation_by_other_crates() {
    for case in cases("own/equivocation.jsonl") {
        let [a, b] = ["a", "b"].map(|name| text(&case, name));
        let origin = |note: &str| note.split('\n').next().unwrap().to_owned();
        let both = opened(a, text(&case, "vkey")).zip(opened(b, text(&case, "vkey")));
        let found = match both {
            _ if origin(a) != origin(b) => "unrelated",
            None => "invalid",
            Some(((a, _), (b, _))) => {
                let (old, new) = if a.size() <= b.size() { (a, b) } else { (b, a) };
                let proof = hashes(&case["proof"]);
                let (from, to) = (old.size(), new.size());
                match (from == to, old.hash() == new.hash()) {
                    (true, true) => "same",
                    (true, false) => "fork",
                    _ if check_tree(&proof, to, *new.hash(), from, *old.hash()).is_ok() => {
                        "consistent"
                    }
                    _ => "not proven",
                }
            }
        };
        assert_eq!(found, text(&case, "verdict"), "{case}");
    }
}

/// The log's part of the proofs: witnesses sign in a form of their own, which no crate here verifies.
#[test]
fn golden_log_proofs_by_other_crates() {
    let mut refused = 0;
    for case in cases("own/tlog_proofs.jsonl") {
        let holds = inclusion_holds(&case).is_some();
        let of_witnesses = text(&case, "desc").contains("witness");
        assert!(holds || !flag(&case, "ok"), "{case}");
        assert!(!holds || flag(&case, "ok") || of_witnesses, "{case}");
        refused += usize::from(!holds);
    }
    println!("own/tlog_proofs.jsonl: {refused} refused without looking at witnesses");
}

fn inclusion_holds(case: &Value) -> Option<()> {
    let (proof, note) = text(case, "proof").split_once("\n\n")?;
    let mut lines = proof.split('\n').filter(|line| !line.starts_with("extra "));
    (lines.next()? == "c2sp.org/tlog-proof@v1").then_some(())?;
    let index = lines.next()?.strip_prefix("index ")?;
    let number: u64 = index.parse().ok().filter(|n: &u64| n.to_string() == index)?;
    let hashes: Vec<_> = lines.map(|line| Hash(base64(line).try_into().unwrap())).collect();
    let keys = text(case, "policy").lines().filter_map(|line| line.trim().strip_prefix("log "));
    let (head, _) = keys.filter_map(|key| opened(note, key.split(' ').next()?)).next()?;
    let leaf = record_hash(text(case, "entry").as_bytes());
    check_record(&hashes, head.size(), *head.hash(), number, leaf).ok()
}
