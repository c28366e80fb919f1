//! Receipts that an auditor keeps: what was promised for them is in the log, and disposed of.

use super::{
    checks::{Check, Checklist, Finding},
    report::Evidence,
    trust::Trust,
};
use crate::{
    ledger::{Ledger, submit::Receipt},
    merkle::{head::TreeHead, note::SignedNote, tree::leaf_hash},
    types::digest::Digest,
};

/// Checks each receipt against the ledger; gives what can be shown to others.
pub fn check_receipts(
    list: &mut Checklist,
    ledger: &Ledger,
    receipts: &[Receipt],
    trust: &Trust,
) -> Vec<Evidence> {
    let mut evidence = Vec::new();
    for receipt in receipts {
        match judge(ledger, receipt, trust) {
            Outcome::Kept => list.checked(Check::Receipts, 1),
            Outcome::NotDone(why) => list.missing(Check::Receipts, why),
            Outcome::Broken(text, found) => {
                list.checked(Check::Receipts, 1);
                let index = Some(receipt.index);
                list.found(Check::Receipts, Finding { index, ..Finding::new(text) });
                evidence.extend(found);
            }
        }
    }
    evidence
}

enum Outcome {
    Kept,
    NotDone(String),
    Broken(String, Option<Evidence>),
}

fn judge(ledger: &Ledger, receipt: &Receipt, trust: &Trust) -> Outcome {
    let note = SignedNote::parse(receipt.head.as_bytes()).ok();
    let head = note.and_then(|note| TreeHead::parse(note.text()).ok());
    let keys = head.map_or_else(Vec::new, |head| trust.keys(&head, Some(ledger.keys())));
    let Some(signed) = keys.iter().find_map(|key| receipt.verify(key).ok()) else {
        let index = receipt.index;
        return Outcome::NotDone(format!("the receipt of entry {index} is signed by no known key"));
    };
    let (log, index) = (ledger.submissions_log(), receipt.index);
    let expected: Digest = leaf_hash(receipt.entry.as_bytes());
    if index >= log.size() {
        let text = format!(
            "the log has {} entries and a receipt was given for entry {index} (a restored backup, or \
             a fork)",
            log.size()
        );
        return Outcome::Broken(text, None);
    }
    match log.leaf_hash(index) {
        Err(error) => return Outcome::NotDone(error.to_string()),
        Ok(found) if found != expected => {
            let text =
                format!("entry {index} is another than the one that a receipt was given for");
            return Outcome::Broken(text, Some(Evidence::ReceiptFork(receipt.clone())));
        }
        Ok(_) => {}
    }
    match ledger.position(signed.round) {
        Err(_) => Outcome::Kept, // Its round is open.
        Ok(position) => {
            let window = ledger.sealed()[position].record.submissions;
            if (window.start..window.end).contains(&index) {
                return Outcome::Kept;
            }
            let text = format!(
                "round {} disposes of entries {}..{}, not of entry {index}, for which a receipt was \
                 given",
                signed.round, window.start, window.end
            );
            Outcome::Broken(text, Some(Evidence::Receipt(receipt.clone())))
        }
    }
}
