//! The small files that were given at `init`: a configuration, a tokenizer. The genesis names them with
//! their digests, so a copy exports and serves what the original does.

use std::sync::atomic::Ordering;

use super::{error::SyncError, hold::Copy, mirror::Mirrors};
use crate::{store::hub, types::progress::Progress};

/// Fetches those that are not here, or are here with other bytes; gives how many bytes were verified.
///
/// # Errors
///
/// [`SyncError::Nowhere`] if no mirror has one. The copy is at its state all the same.
pub(super) fn fetch(
    copy: &Copy<'_>,
    mirrors: &Mirrors,
    progress: &dyn Progress,
) -> Result<u64, SyncError> {
    let mut verified_bytes = 0;
    for file in &copy.ledger.genesis().files {
        if hub::read_given(copy.place, file).is_ok() {
            continue;
        }
        let wanted = format!("{}, which was given at init", file.name);
        let bytes = mirrors.ask(&wanted, progress, |mirror| {
            let bytes = hub::read_given(&mirror.place, file)?;
            mirror.verified_bytes.fetch_add(file.bytes, Ordering::Relaxed);
            Ok(bytes)
        })?;
        hub::put_given(copy.place, &bytes)?;
        verified_bytes += file.bytes;
    }
    Ok(verified_bytes)
}
