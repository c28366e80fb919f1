//! A miner's statement: the 162 bytes that a hotkey signs when it submits a delta.
//!
//! They name the run, the round, the state the delta was made from, the delta and who sends it, so
//! that a signature means nothing elsewhere. Never a bare digest: that could be a transaction of
//! the chain. Layout in `schema/statement.md`.

use super::sr25519::{KeyError, PublicKey, SIGNATURE_BYTES, SecretKey, SignatureError};
use crate::types::{digest::Digest, json::INTEGER_MAX};

/// What the bytes start with: what they are, and the version of their layout.
pub const TAG: &[u8; 18] = b"gradledger/delta/1";

/// Length of a statement in bytes.
pub const STATEMENT_BYTES: usize = 162;

/// Where each field starts; the tag stands before the first, each ends where the next starts.
mod at {
    pub const RUN: usize = super::TAG.len();
    pub const ROUND: usize = RUN + 32;
    pub const BASE: usize = ROUND + 8;
    pub const DELTA: usize = BASE + 32;
    pub const DELTA_BYTES: usize = DELTA + 32;
    pub const HOTKEY: usize = DELTA_BYTES + 8;
    pub const END: usize = HOTKEY + 32;
}

const _: () = assert!(at::END == STATEMENT_BYTES);
const _: () = assert!(Digest::BYTES == 32);

/// What a miner says of a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The run's id: the leaf hash of its genesis.
    pub run: Digest,
    /// The round the delta is for.
    pub round: u64,
    /// Root of the manifest of the state it was made from.
    pub base: Digest,
    /// Root of the delta's own manifest.
    pub delta: Digest,
    /// Length of the delta in bytes, as its manifest says.
    pub delta_bytes: u64,
    /// The miner's sr25519 public key.
    pub hotkey: Digest,
}

/// A statement that is not one, or that its hotkey did not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatementError {
    /// The length is fixed.
    #[error("a statement is {STATEMENT_BYTES} bytes, not {found}")]
    Length {
        /// How many there are.
        found: usize,
    },
    /// Another kind of message, or another version.
    #[error("a statement starts with `gradledger/delta/1`")]
    Tag,
    /// It could not stand in a record.
    #[error("{field} is {found}, beyond {INTEGER_MAX}")]
    Integer {
        /// Which field.
        field: &'static str,
        /// What it says.
        found: u64,
    },
    /// A miner signs for its own hotkey.
    #[error("the statement is of hotkey {hotkey}, the signing key is that of {signer}")]
    OtherKey {
        /// Whom the statement names.
        hotkey: Digest,
        /// Whose key it is.
        signer: Digest,
    },
    /// The hotkey is no public key.
    #[error("the hotkey: {0}")]
    Hotkey(#[from] KeyError),
    /// The signature does not hold.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

impl Statement {
    /// The bytes that are signed.
    pub fn to_bytes(&self) -> [u8; STATEMENT_BYTES] {
        let mut bytes = [0; STATEMENT_BYTES];
        bytes[..at::RUN].copy_from_slice(TAG);
        bytes[at::RUN..at::ROUND].copy_from_slice(self.run.as_bytes());
        bytes[at::ROUND..at::BASE].copy_from_slice(&self.round.to_le_bytes());
        bytes[at::BASE..at::DELTA].copy_from_slice(self.base.as_bytes());
        bytes[at::DELTA..at::DELTA_BYTES].copy_from_slice(self.delta.as_bytes());
        bytes[at::DELTA_BYTES..at::HOTKEY].copy_from_slice(&self.delta_bytes.to_le_bytes());
        bytes[at::HOTKEY..].copy_from_slice(self.hotkey.as_bytes());
        bytes
    }

    /// Reads the bytes that were signed.
    ///
    /// # Errors
    ///
    /// [`StatementError`] if the length, the tag or a number is not a statement's. Whether the
    /// hotkey is a key is for [`Statement::verify`] to say.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StatementError> {
        let bytes: &[u8; STATEMENT_BYTES] =
            bytes.try_into().map_err(|_| StatementError::Length { found: bytes.len() })?;
        if !bytes.starts_with(TAG) {
            return Err(StatementError::Tag);
        }
        let statement = Self {
            run: Digest(field(bytes, at::RUN)),
            round: u64::from_le_bytes(field(bytes, at::ROUND)),
            base: Digest(field(bytes, at::BASE)),
            delta: Digest(field(bytes, at::DELTA)),
            delta_bytes: u64::from_le_bytes(field(bytes, at::DELTA_BYTES)),
            hotkey: Digest(field(bytes, at::HOTKEY)),
        };
        statement.check()?;
        Ok(statement)
    }

    /// What a submission is known by: SHA-256 of the bytes. The signature is left out, since
    /// signatures are randomised and the same statement may carry many.
    pub fn id(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }

    /// Signs the bytes with the hotkey's secret.
    ///
    /// # Errors
    ///
    /// [`StatementError::OtherKey`] if `secret` is not the hotkey's, [`StatementError::Integer`]
    /// if no reader would take the statement.
    pub fn sign(&self, secret: &SecretKey) -> Result<[u8; SIGNATURE_BYTES], StatementError> {
        self.check()?;
        let signer = secret.public().to_digest();
        if signer != self.hotkey {
            return Err(StatementError::OtherKey { hotkey: self.hotkey, signer });
        }
        Ok(secret.sign(&self.to_bytes()))
    }

    /// Whether `signature` is the hotkey's over exactly these bytes.
    ///
    /// # Errors
    ///
    /// [`StatementError::Signature`] if not, also where a wallet wrapped the bytes before it
    /// signed; [`StatementError::Hotkey`] if the hotkey is no key.
    pub fn verify(&self, signature: &[u8; SIGNATURE_BYTES]) -> Result<(), StatementError> {
        self.check()?;
        Ok(PublicKey::try_from(self.hotkey)?.verify(&self.to_bytes(), signature)?)
    }

    /// Whether the numbers can stand in a record.
    fn check(&self) -> Result<(), StatementError> {
        for (field, found) in [("round", self.round), ("delta_bytes", self.delta_bytes)] {
            if found > INTEGER_MAX.unsigned_abs() {
                return Err(StatementError::Integer { field, found });
            }
        }
        Ok(())
    }
}

/// The `N` bytes from `start`.
fn field<const N: usize>(bytes: &[u8; STATEMENT_BYTES], start: usize) -> [u8; N] {
    bytes[start..start + N].try_into().expect("a slice of N bytes is N bytes long")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(hotkey: Digest) -> Statement {
        Statement {
            run: Digest::of(b"run"),
            round: 812,
            base: Digest::of(b"base"),
            delta: Digest::of(b"delta"),
            delta_bytes: 1 << 31,
            hotkey,
        }
    }

    #[test]
    fn only_the_hotkey_signs_its_statement() {
        let (own, other) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
        let statement = statement(own.public().to_digest());
        let signature = statement.sign(&own).unwrap();
        assert_eq!(statement.verify(&signature), Ok(()));
        assert!(matches!(statement.sign(&other), Err(StatementError::OtherKey { .. })));
        let by_other = other.sign(&statement.to_bytes());
        assert!(matches!(statement.verify(&by_other), Err(StatementError::Signature(_))));
        let wrapped = [&b"<Bytes>"[..], &statement.to_bytes(), b"</Bytes>"].concat();
        let wrapped = own.sign(&wrapped);
        assert!(matches!(statement.verify(&wrapped), Err(StatementError::Signature(_))));
    }

    #[test]
    fn a_changed_byte_makes_another_statement_or_none() {
        let key = SecretKey::from_seed(&[1; 32]);
        let statement = statement(key.public().to_digest());
        let (bytes, signature) = (statement.to_bytes(), statement.sign(&key).unwrap());
        for at in 0..STATEMENT_BYTES {
            let mut changed = bytes;
            changed[at] ^= 1;
            let Ok(read) = Statement::from_bytes(&changed) else { continue };
            assert!(at >= TAG.len(), "byte {at}");
            assert_eq!(read.to_bytes(), changed);
            assert_ne!(read.id(), statement.id());
            assert!(read.verify(&signature).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_number_that_no_record_holds_is_refused() {
        let key = SecretKey::from_seed(&[1; 32]);
        let good = statement(key.public().to_digest());
        let most = INTEGER_MAX.unsigned_abs();
        let largest = Statement { round: most, delta_bytes: most, ..good };
        assert_eq!(Statement::from_bytes(&largest.to_bytes()), Ok(largest));
        for bad in
            [Statement { round: most + 1, ..good }, Statement { delta_bytes: u64::MAX, ..good }]
        {
            let integer = |e: &StatementError| matches!(e, StatementError::Integer { .. });
            assert!(Statement::from_bytes(&bad.to_bytes()).is_err_and(|e| integer(&e)));
            assert!(bad.sign(&key).is_err_and(|e| integer(&e)));
            assert!(bad.verify(&key.sign(&bad.to_bytes())).is_err_and(|e| integer(&e)));
        }
    }

    #[test]
    fn a_hotkey_that_is_no_key_is_an_error() {
        for hotkey in [Digest([0; 32]), Digest([255; 32])] {
            let verdict = statement(hotkey).verify(&[255; SIGNATURE_BYTES]);
            assert!(matches!(verdict, Err(StatementError::Hotkey(_))));
        }
    }
}
