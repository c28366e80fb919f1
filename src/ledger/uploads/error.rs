//! Why a request about an upload is not done.

use super::receive::ARRIVING_MAX;
use crate::{
    ledger::LedgerError,
    store::{StoreError, uploads::ArrivalError},
    types::{digest::Digest, refusal::Refusal},
};

/// What a client waits before it asks again, in seconds: for a disk, for a seal, for a place.
const RETRY_SPACE_S: u64 = 60;
const RETRY_SEAL_S: u64 = 10;
pub(super) const RETRY_SOON_S: u64 = 1;

/// Why a request about an upload is not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum UploadError {
    #[error("{0}")]
    Refused(Refusal),
    #[error("there is no upload {id}: it was never announced, has expired, or its round is over")]
    Unknown { id: Digest },
    #[error("the token is not the one that this upload was announced with")]
    Token,
    #[error(
        "the upload is of {expected}; the request is signed by {found}, or says something else"
    )]
    Other { expected: Digest, found: Digest },
    #[error("round {round} is being sealed: wait until it is, and make the delta for the next one")]
    Sealing { round: u64 },
    #[error("send the hashes first: parts are checked by them")]
    HashesFirst,
    #[error("no part starts at {offset}; the answer to GET lists those that are missing")]
    Offset { offset: u64 },
    #[error("the body has {found} bytes, the part {expected}")]
    Length { expected: u64, found: u64 },
    #[error("{missing} parts are missing, the first at {first}, or the hashes")]
    Incomplete { missing: usize, first: u64 },
    #[error("the upload is being committed")]
    Committing,
    #[error("it was committed already; commit again for the receipt")]
    Committed,
    #[error("{what}: at most {most} at once for a hotkey")]
    Quota { what: &'static str, most: u64, retry_s: u64 },
    #[error("too many parts of one upload arrive at once; {ARRIVING_MAX} may")]
    Arriving,
    #[error("the disk has {free} bytes left, and {needed} are needed: come back later")]
    Space { free: u64, needed: u64 },
    #[error("the disk is full: come back later")]
    Full,
    #[error("what was stored is damaged and was dropped: send it again ({0})")]
    Damaged(Refusal),
    #[error(transparent)]
    Arrival(ArrivalError),
    #[error(transparent)]
    Ledger(LedgerError),
}

impl UploadError {
    /// When to try again, in seconds, if waiting helps.
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::Sealing { .. } => Some(RETRY_SEAL_S),
            Self::Committing | Self::Arriving => Some(RETRY_SOON_S),
            Self::Quota { retry_s, .. } => Some(*retry_s),
            Self::Space { .. } | Self::Full => Some(RETRY_SPACE_S),
            _ => None,
        }
    }
}

impl From<ArrivalError> for UploadError {
    fn from(error: ArrivalError) -> Self {
        match error {
            error if error.is_full() => Self::Full,
            ArrivalError::Long { bytes } => Self::Length { expected: bytes, found: bytes + 1 },
            ArrivalError::Short { bytes, found } => Self::Length { expected: bytes, found },
            error => Self::Arrival(error),
        }
    }
}

impl From<LedgerError> for UploadError {
    fn from(error: LedgerError) -> Self {
        if error.is_full() { Self::Full } else { Self::Ledger(error) }
    }
}

impl From<StoreError> for UploadError {
    fn from(error: StoreError) -> Self {
        LedgerError::from(error).into()
    }
}
