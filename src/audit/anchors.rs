//! Anchors in an audit: what receipts prove, and whether the log is the one that was anchored.
//!
//! A receipt that lies beside the log and proves nothing is damage. A log that tells another history
//! than the chain is a contradiction: its operator showed the chain one thing and the reader another.

use serde::Serialize;

use super::{
    checks::{Check, Checklist, Finding},
    run::AnchorOptions,
};
use crate::{
    ledger::{
        Ledger, LedgerError,
        anchored::{
            AnchorView, AnchorsView, ExclusiveView, Finality, PlaceBy, Relation, SealedBetween,
            check_blocks, check_entries, exclusive_view, judge, sealed_between,
        },
    },
    store::anchors,
};

/// What a report says of anchors.
#[derive(Clone, Debug, Serialize)]
pub struct AnchorsReport {
    /// One a receipt that holds, by size.
    pub receipts: Vec<AnchorView>,
    /// Heads that the log says were anchored and whose receipts are missing.
    pub without_receipt: Vec<u64>,
    /// Whether every commitment of the hotkey was accounted for.
    pub exclusive: Option<ExclusiveView>,
    /// Between which blocks each round was sealed.
    pub rounds: Vec<SealedBetween>,
}

/// Judges the anchors of a ledger; nothing where it has none and none are asked for.
///
/// # Errors
///
/// [`LedgerError`] if the log or the directory of receipts cannot be read.
pub fn check_anchors(
    list: &mut Checklist,
    ledger: &Ledger,
    options: &AnchorOptions<'_>,
) -> Result<Option<AnchorsReport>, LedgerError> {
    let sizes = anchors::sizes(ledger.place())?;
    let none = sizes.is_empty() && ledger.anchors().is_empty();
    if none {
        for check in [Check::AnchorReceipts, Check::AnchoredHeads] {
            match options.required {
                true => list.missing(check, "the ledger has no anchors"),
                false => list.not_required(check),
            }
        }
        return Ok(None);
    }
    contradiction(list, check_entries(ledger))?;
    let mut receipts = Vec::new();
    for size in sizes {
        match anchors::load(ledger.place(), size) {
            Ok(None) => {}
            Ok(Some(receipt)) => match judge(Some(ledger), &receipt, options.trust) {
                Ok(view) => receipts.push(view),
                Err(error) => contradiction(list, Err(error))?,
            },
            Err(error) if error.is_mismatch() => {
                list.found(Check::AnchorReceipts, Finding::new(error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let without_receipt = match check_blocks(ledger, &receipts) {
        Ok(without) => without,
        Err(error) => {
            contradiction(list, Err(error.into()))?;
            Vec::new()
        }
    };
    let view = AnchorsView { receipts, without_receipt };
    proven(list, &view, options);
    let rounds = ledger.sealed().iter().map(|sealed| sealed.record.round);
    let rounds = rounds.map(|round| sealed_between(ledger, &view, round));
    Ok(Some(AnchorsReport {
        exclusive: exclusive_view(ledger, &view, options.blocks)?,
        rounds: rounds.collect::<Result<_, _>>()?,
        receipts: view.receipts,
        without_receipt: view.without_receipt,
    }))
}

/// Files what speaks against the anchors: a contradiction, or a receipt that proves nothing.
fn contradiction(list: &mut Checklist, found: Result<(), LedgerError>) -> Result<(), LedgerError> {
    match found {
        Err(LedgerError::Anchor(error)) => {
            let check = match error.is_contradiction() {
                true => Check::AnchoredHeads,
                false => Check::AnchorReceipts,
            };
            list.found(check, Finding::new(error));
            Ok(())
        }
        other => other,
    }
}

/// What was shown, and what is the operator's word alone.
fn proven(list: &mut Checklist, view: &AnchorsView, options: &AnchorOptions<'_>) {
    list.checked(Check::AnchorReceipts, 0);
    list.checked(Check::AnchoredHeads, 0);
    let mut missing = |check, size: u64, why: &str| {
        list.missing(check, format!("the head of {size} entries: {why}"));
    };
    for receipt in &view.receipts {
        let size = receipt.size;
        if receipt.relation == Relation::AheadOfLog {
            missing(Check::AnchoredHeads, size, "the log that was served ends before it");
        }
        if receipt.place_by == PlaceBy::Receipt {
            let why = "nobody said which chain, subnet and hotkey are meant";
            missing(Check::AnchorReceipts, size, why);
        }
        if receipt.finality == Finality::Unproven {
            missing(Check::AnchorReceipts, size, "a node's word, without a proof of its state");
        }
        if receipt.finality != Finality::Justified && !options.included {
            missing(Check::AnchorReceipts, size, "no known authorities signed for its block");
        }
    }
    for size in &view.without_receipt {
        missing(
            Check::AnchorReceipts,
            *size,
            "the log tells of its anchor; the receipt is missing",
        );
    }
    list.checked(Check::AnchorReceipts, view.receipts.len() as u64);
    let in_log = view.receipts.iter().filter(|receipt| receipt.relation == Relation::InLog);
    list.checked(Check::AnchoredHeads, in_log.count() as u64);
    if !options.required {
        list.not_required(Check::AnchorReceipts);
        list.not_required(Check::AnchoredHeads);
    }
}
