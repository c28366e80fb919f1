//! Changing the log key: both keys sign the hand-over, and its entry in the rounds log is the commit
//! point.
//!
//! Before it the old key signs and the new one has signed no head; after it the old key signs nothing
//! more. Killed between the entry and the two published heads, the next writer publishes them.

use std::path::Path;

use serde::Serialize;

use crate::{
    merkle::{head::TreeHead, note::VerifierKey, rotation::Rotation},
    store::{keys, keys::heads::HeadSigner, log::LogError},
    types::{
        record::{KeyRotation, LogEnd, LogKeys},
        submission::SignatureHex,
    },
};

use super::{
    LedgerError,
    writer::{LedgerWriter, LogSigners},
};

/// What a rotation came to.
#[derive(Clone, Debug, Serialize)]
pub struct RotationReport {
    /// Index of its entry in the rounds log.
    pub index: u64,
    /// The verifier keys from now on.
    pub log_keys: LogKeys,
    /// Whether the key given had taken over already, and nothing was to be done.
    pub already: bool,
}

/// Makes another key the log key: the one in `new_key_file`, which is made there if there is none, or
/// a new one in the ledger.
///
/// The old key's file stays; it signs nothing more.
///
/// # Errors
///
/// [`super::key_chain::ChainError::Reused`] if the key signed for this run before it was retired; what the disk gives.
pub fn rotate_key(
    writer: &mut LedgerWriter,
    new_key_file: Option<&Path>,
) -> Result<RotationReport, LedgerError> {
    let place = writer.ledger().place().clone();
    let inside = place.log_key(writer.ledger().keys().rotations() + 1);
    let path = new_key_file.unwrap_or(&inside);
    let (seed, guard) = keys::load_or_create(&place.files, path)?;
    let chain = writer.ledger().keys();
    let next = LogSigners::new(&seed, &writer.ledger().genesis().origin, &guard, chain)?;
    let newest = chain.newest();
    if next.log_keys() == newest.log_keys {
        let (index, log_keys) = (newest.index, newest.log_keys.clone());
        return Ok(RotationReport { index, log_keys, already: true });
    }
    let index = writer.ledger().rounds_log().size();
    let refused = |source| LedgerError::Rotation { index, source };
    chain.check_new(next.rounds.verifier()).map_err(refused)?;
    // From here on the new key contradicts nothing that the old one signed.
    for head in [writer.ledger().rounds_log().head(), writer.ledger().submissions_log().head()] {
        guard.admit(head).map_err(LogError::from)?;
    }
    let log_keys = next.log_keys();
    let entry = hand_over(writer, index, &next);
    writer.append_rotation(&entry, next)?;
    Ok(RotationReport { index, log_keys, already: false })
}

/// The entry, signed by both keys.
fn hand_over(writer: &LedgerWriter, index: u64, next: &LogSigners) -> KeyRotation {
    let ledger = writer.ledger();
    let TreeHead { size, root, .. } = *ledger.submissions_log().head();
    let key = |signer: &HeadSigner| *VerifierKey::key(signer.verifier());
    let rotation = Rotation {
        run: ledger.run_id(),
        index,
        submissions_size: size,
        submissions_root: root,
        old: key(writer.signer()),
        new: key(&next.rounds),
    };
    KeyRotation {
        log_keys: next.log_keys(),
        submissions: LogEnd { size, root },
        by_old: SignatureHex(writer.signer().sign_rotation(&rotation)),
        by_new: SignatureHex(next.rounds.sign_rotation(&rotation)),
    }
}
