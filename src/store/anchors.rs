//! Anchor receipts, a file for each anchored head, and the anchoring that is under way. See
//! `schema/anchor.md`.
//!
//! Trust: receipts are trusted for nothing, each is verified before it is used; losing one costs
//! asking a node for the proof again, as long as the node keeps that block's state. The intent is
//! what keeps a killed process from committing twice to one head.

use std::{io, path::PathBuf};

use gradledger_anchor::{
    hash::Hex,
    receipt::{Head, Receipt},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    StoreError,
    files::{create_dir_durable, read_whole, write_whole},
    place::Place,
};
use crate::types::json;

/// Largest receipt that is read: some thousand headers.
pub const RECEIPT_BYTES_MAX: u64 = 16 << 20;

/// A transaction that is about to be sent or was: written before it leaves the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// What it commits to.
    pub head: Head,
    /// The signed transaction: sent again as it is, it cannot count twice.
    pub extrinsic: Hex,
    /// The last block that can take it.
    pub dies: u32,
}

/// The sizes of the anchored heads whose receipts are there, ascending.
///
/// # Errors
///
/// [`StoreError::Io`].
pub fn sizes(place: &Place) -> Result<Vec<u64>, StoreError> {
    let dir = place.anchors();
    let at = |source| StoreError::Io { path: dir.clone(), source };
    if !place.files.exists(&dir).map_err(at)? {
        return Ok(Vec::new());
    }
    // Other names are other things: the intent, a half-written receipt.
    let size = |name: PathBuf| name.to_str()?.strip_suffix(".json")?.parse::<u64>().ok();
    let mut sizes: Vec<_> =
        place.files.list(&dir).map_err(at)?.into_iter().filter_map(size).collect();
    sizes.sort_unstable();
    Ok(sizes)
}

/// The receipt of the head with `size` entries, if it is there.
///
/// # Errors
///
/// [`StoreError`] if it cannot be read or is not canonical.
pub fn load(place: &Place, size: u64) -> Result<Option<Receipt>, StoreError> {
    read(place, place.anchor(size), RECEIPT_BYTES_MAX)
}

/// Writes a receipt, or replaces it by one that proves more; durable when this returns.
///
/// # Errors
///
/// [`StoreError::Io`].
pub fn save(place: &Place, receipt: &Receipt) -> Result<(), StoreError> {
    write(place, place.anchor(receipt.head.size), &json::to_vec(receipt))
}

/// The anchoring under way, if there is one.
///
/// # Errors
///
/// [`StoreError`] if the file cannot be read or is not canonical.
pub fn intent(place: &Place) -> Result<Option<Intent>, StoreError> {
    read(place, place.anchor_intent(), RECEIPT_BYTES_MAX)
}

/// Notes an anchoring before anything is sent; durable when this returns.
///
/// # Errors
///
/// [`StoreError::Io`].
pub fn begin(place: &Place, intent: &Intent) -> Result<(), StoreError> {
    write(place, place.anchor_intent(), &json::to_vec(intent))
}

/// The anchoring under way has come to its end, or cannot any more.
///
/// # Errors
///
/// [`StoreError::Io`].
pub fn end(place: &Place) -> Result<(), StoreError> {
    let path = place.anchor_intent();
    let removed = place.files.remove(&path).and_then(|()| place.files.sync_dir(&place.anchors()));
    removed.map_err(|source| StoreError::Io { path, source })
}

fn read<T: Serialize + DeserializeOwned>(
    place: &Place,
    path: PathBuf,
    bytes_max: u64,
) -> Result<Option<T>, StoreError> {
    match read_whole(&*place.files, &path, bytes_max) {
        Ok(bytes) => {
            json::from_slice(&bytes).map(Some).map_err(|source| StoreError::Json { path, source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Io { path, source }),
    }
}

fn write(place: &Place, path: PathBuf, bytes: &[u8]) -> Result<(), StoreError> {
    let made = create_dir_durable(&*place.files, &place.anchors());
    made.and_then(|()| write_whole(&*place.files, &path, bytes))
        .map_err(|source| StoreError::Io { path, source })
}
