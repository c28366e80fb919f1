//! Layer 6, audits: every claim of a ledger checked with trust from outside.
//!
//! [`prove`] cuts a bundle out of a ledger, [`verify`] judges one without it, [`run`] judges a
//! whole ledger. All three speak in [`checks`]: each passed, failed, not done or not required.
//!
//! Trust: keys come from the auditor. What a ledger says of its own key proves nothing.

pub mod anchors;
pub mod archive;
pub mod bundle;
pub mod checks;
pub mod deltas;
pub mod dispute;
pub mod evidence;
pub mod fold_rows;
pub mod heads;
pub mod pieces;
pub mod prove;
pub mod prove_evidence;
pub mod prove_fold;
pub mod receipts;
pub mod report;
pub mod run;
pub mod sample;
pub mod trust;
pub mod verify;
