//! What a miner and a server tell each other about an upload, as JSON. See `schema/upload.md`.

use serde::{Deserialize, Serialize};

use super::{digest::Digest, manifest::ManifestId, submission::SignatureHex};

/// Version of the answers that are written and read.
pub const UPLOAD_VERSION: u64 = 1;

/// The body of a create or a commit, which the hotkey signs.
///
/// The signature of a request covers its body alone, so method and path stand in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadRequest {
    /// The request's method.
    pub method: String,
    /// The request's path.
    pub path: String,
    /// The run's id.
    pub run: Digest,
    /// The round the delta is for.
    pub round: u64,
    /// Root of the manifest of the state it was made from.
    pub base: Digest,
    /// The delta.
    pub delta: ManifestId,
    /// In a commit, the hotkey's signature of the statement, which enters the log.
    pub signature: Option<SignatureHex>,
}

/// A run of a delta's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Part {
    /// Where it starts in the delta's bytes.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
}

/// How far an upload has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadState {
    /// Version of this document: 1.
    pub schema_version: u64,
    /// The upload: SHA-256 of the statement's 162 bytes.
    pub id: Digest,
    /// What the parts' requests carry. In the answer to a create, if there is something to send.
    pub token: Option<Digest>,
    /// Whether the statement is in the log, and a commit gives its receipt.
    pub committed: bool,
    /// Length of the hashes file, if it is still to be sent.
    pub hashes_bytes: Option<u64>,
    /// The parts that are still to be sent.
    pub missing: Vec<Part>,
    /// When the upload is dropped if nothing more comes, in seconds.
    pub expires_in_s: u64,
}
