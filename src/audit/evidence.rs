//! Evidence: what an audit found, as a bundle that shows it to whoever knows the log's key.
//!
//! Nothing is handed out that `verify` does not call evidence: what cannot be shown alone stays a
//! finding of the report.

use std::fmt;

use super::{
    prove::{ProveBundleError, Target, prove},
    prove_evidence::{prove_heads, prove_receipt_fork},
    report::Evidence,
    trust::Trust,
    verify::verify,
};
use crate::{
    ledger::Ledger,
    merkle::policy::Policy,
    types::{digest::Digest, progress::Progress},
};

/// The bundle that shows what was found; nothing where none shows it alone.
///
/// # Errors
///
/// [`ProveBundleError`] if the ledger lacks what the bundle needs.
pub fn show(
    ledger: &Ledger,
    found: &Evidence,
    progress: &dyn Progress,
) -> Result<Option<Vec<u8>>, ProveBundleError> {
    let target = match found {
        Evidence::Fork { kept, published, .. } => {
            return prove_heads(kept, published, Vec::new(), Vec::new()).map(Some);
        }
        Evidence::ReceiptFork(receipt) => {
            return prove_receipt_fork(ledger, receipt, Vec::new()).map(Some);
        }
        Evidence::Receipt(receipt) => Target::Receipt(Box::new(receipt.clone())),
        Evidence::Round(round) => Target::Round(*round),
        Evidence::Records(round) => Target::Records(*round),
        Evidence::Refusal(index) => Target::Refusal(*index),
        Evidence::Fold { round, tensor, piece } => Target::fold(ledger, *round, tensor, *piece)?,
    };
    let bundle = prove(ledger, &target, Vec::new(), progress)?;
    // Judged as someone would who knows the key that signs now.
    let key = ledger.keys().of_rounds(ledger.rounds_log().size()).clone();
    let trust = Trust { policy: Some(Policy::of_logs(vec![key])), ..Trust::default() };
    Ok(verify(&bundle[..], &trust).evidence.map(|_| bundle))
}

impl Evidence {
    /// What its file is called.
    pub fn file_name(&self) -> String {
        match self {
            Self::Fork { origin, .. } => format!("fork-{}.tar", Digest::of(origin.as_bytes())),
            Self::Round(round) => format!("round-{round}.tar"),
            Self::Records(round) => format!("records-{round}.tar"),
            Self::Refusal(index) => format!("refusal-{index}.tar"),
            Self::Receipt(receipt) => format!("receipt-{}.tar", receipt.statement),
            Self::ReceiptFork(receipt) => format!("entries-{}.tar", receipt.statement),
            Self::Fold { round, tensor, piece } => {
                format!("fold-{round}-{}-{piece}.tar", Digest::of(tensor.as_bytes()))
            }
        }
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fork { origin, .. } => write!(f, "two heads of {origin}"),
            Self::Round(round) => write!(f, "round {round}"),
            Self::Records(round) => write!(f, "the record of round {round}"),
            Self::Refusal(index) => write!(f, "the refusal of submission {index}"),
            Self::Receipt(receipt) | Self::ReceiptFork(receipt) => {
                write!(f, "the receipt of entry {}", receipt.index)
            }
            Self::Fold { round, tensor, piece } => {
                write!(f, "piece {piece} of {tensor} after round {round}")
            }
        }
    }
}
