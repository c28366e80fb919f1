//! Canonical JSON (RFC 8785): the one spelling of a record, so that its hash means something.

use serde::{Serialize, de::DeserializeOwned};

/// Text that is not the canonical JSON of a record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// Not JSON, or not the expected fields.
    #[error("{0}")]
    Syntax(#[from] serde_json::Error),
    /// JSON, but spelled another way than RFC 8785 does.
    #[error("the JSON is not in canonical form (RFC 8785)")]
    NotCanonical,
}

/// The canonical JSON of a record.
pub fn to_vec<T: Serialize>(_value: &T) -> Vec<u8> {
    unreachable!("placeholder until the canonicaliser lands")
}

/// Reads a record.
///
/// # Errors
///
/// [`JsonError`].
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    Ok(serde_json::from_slice(bytes)?)
}
