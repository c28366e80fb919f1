//! The hand-over from one log key to the next: the bytes that both keys sign. See `schema/keys.md`.
//!
//! Trust: the old key's signature says who comes after it, the new key's that it is held by whoever
//! says so. They hold for one place of one run's rounds log, so no log can take another's.

use super::note::{LogKey, VerifierKey};
use crate::types::digest::Digest;

/// What the bytes start with. Its zero byte cannot stand in a note, so that neither signature can be
/// taken for one of a tree head.
const TAG: &[u8; 26] = b"gradledger/key-rotation/1\0";

/// Length of the signed bytes.
pub const ROTATION_BYTES: usize = 170;

/// What two log keys sign when one takes over from the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The run's id.
    pub run: Digest,
    /// Index of the entry in the rounds log: the old key signs no head that holds it.
    pub index: u64,
    /// Entries of the submissions log: the old key signs no head with more.
    pub submissions_size: u64,
    /// The submissions log's root at that size.
    pub submissions_root: Digest,
    /// The Ed25519 public key until now.
    pub old: [u8; 32],
    /// The one from now on.
    pub new: [u8; 32],
}

impl Rotation {
    /// `tag 26 | run 32 | index u64 | size u64 | root 32 | old 32 | new 32`, little-endian.
    pub fn bytes(&self) -> [u8; ROTATION_BYTES] {
        let parts: [&[u8]; 7] = [
            TAG,
            &self.run.0,
            &self.index.to_le_bytes(),
            &self.submissions_size.to_le_bytes(),
            &self.submissions_root.0,
            &self.old,
            &self.new,
        ];
        parts.concat().try_into().expect("the parts' lengths add up")
    }

    /// A key's signature of the hand-over.
    pub fn sign(&self, key: &LogKey) -> [u8; 64] {
        key.sign_bytes(&self.bytes())
    }

    /// Whether `signature` is the key's.
    pub fn verifies(&self, key: &VerifierKey, signature: &[u8; 64]) -> bool {
        key.verifies_bytes(&self.bytes(), signature)
    }
}
