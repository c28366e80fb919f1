//! sr25519, the signatures of Bittensor hotkeys: Schnorr over Ristretto255, as Substrate makes them.
//!
//! The one home of `schnorrkel`. The signing context is [`CONTEXT`]; a message is signed as it is.
//! Wallets that wrap a message in `<Bytes>...</Bytes>` before they sign have signed other bytes:
//! that signature is refused here, though some verifiers take it for the bare message too.
//!
//! Trust: nothing in a key or signature from outside is believed; each has one encoding, and any
//! other is an error. Secret keys are wiped from memory when dropped and never shown.

use std::fmt;

use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey, Signature};
use zeroize::Zeroizing;

use crate::types::digest::Digest;

/// What Substrate binds each signature to.
pub const CONTEXT: &[u8] = b"substrate";

/// Length of a public key in bytes.
pub const PUBLIC_BYTES: usize = 32;

/// Length of a secret key in bytes: scalar, then nonce.
pub const SECRET_BYTES: usize = 64;

/// Length of the seed from which most secret keys are made.
pub const SEED_BYTES: usize = 32;

/// Length of a signature in bytes.
pub const SIGNATURE_BYTES: usize = 64;

const _: () = assert!(PUBLIC_BYTES == schnorrkel::PUBLIC_KEY_LENGTH);
const _: () = assert!(SECRET_BYTES == schnorrkel::SECRET_KEY_LENGTH);
const _: () = assert!(SEED_BYTES == schnorrkel::MINI_SECRET_KEY_LENGTH);
const _: () = assert!(SIGNATURE_BYTES == schnorrkel::SIGNATURE_LENGTH);
// A hotkey stands as a digest in records.
const _: () = assert!(PUBLIC_BYTES == Digest::BYTES);

/// Bytes that are no sr25519 key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Of the 32-byte strings about one in sixteen is a point.
    #[error("{key} is not an sr25519 public key: no Ristretto point is written so")]
    NotAPoint {
        /// What was given.
        key: Digest,
    },
    /// Its secret is zero, known to all: anyone could sign for it.
    #[error("the all-zero public key is nobody's: anyone can sign for it")]
    Nobody,
    /// What stands there is not shown: it may be a key in another form.
    #[error(
        "the first 32 bytes of the secret key are not a reduced scalar; \
         is it in the Ed25519 form that polkadot-js exports?"
    )]
    NotAScalar,
}

/// A signature that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// Not an sr25519 signature: the marker bit is missing or the scalar is not reduced.
    #[error("these 64 bytes are not an sr25519 signature")]
    Malformed,
    /// Made by another key, over other bytes (such as wrapped ones), or in another context.
    #[error("the signature is not by {key} over these bytes")]
    Mismatch {
        /// Whose signature it should be.
        key: Digest,
    },
}

/// A public key that somebody can hold the secret of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(schnorrkel::PublicKey);

impl PublicKey {
    /// Reads a public key.
    ///
    /// # Errors
    ///
    /// [`KeyError`] if the bytes are not the canonical form of a point, or are all zero.
    pub fn from_bytes(bytes: [u8; PUBLIC_BYTES]) -> Result<Self, KeyError> {
        if bytes == [0; PUBLIC_BYTES] {
            return Err(KeyError::Nobody);
        }
        let not_a_point = |_| KeyError::NotAPoint { key: Digest(bytes) };
        schnorrkel::PublicKey::from_bytes(&bytes).map(Self).map_err(not_a_point)
    }

    /// The 32 bytes.
    pub fn to_bytes(self) -> [u8; PUBLIC_BYTES] {
        self.0.to_bytes()
    }

    /// As it stands in records.
    pub fn to_digest(self) -> Digest {
        Digest(self.to_bytes())
    }

    /// Whether `signature` is this key's over exactly the bytes of `message`.
    ///
    /// # Errors
    ///
    /// [`SignatureError`]; each valid signature has one encoding.
    pub fn verify(
        &self,
        message: &[u8],
        signature: &[u8; SIGNATURE_BYTES],
    ) -> Result<(), SignatureError> {
        let signature = Signature::from_bytes(signature).map_err(|_| SignatureError::Malformed)?;
        let mismatch = |_| SignatureError::Mismatch { key: self.to_digest() };
        self.0.verify_simple(CONTEXT, message, &signature).map_err(mismatch)
    }
}

impl TryFrom<Digest> for PublicKey {
    type Error = KeyError;

    fn try_from(key: Digest) -> Result<Self, KeyError> {
        Self::from_bytes(key.0)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.to_digest(), f)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A secret key with its public key; wiped from memory when dropped.
// Boxed: each move of the bytes themselves would leave a copy behind.
pub struct SecretKey(Box<Keypair>);

impl SecretKey {
    /// Reads 64 bytes: the reduced scalar and the nonce, as Bittensor keyfiles hold them.
    ///
    /// # Errors
    ///
    /// [`KeyError`] if the scalar is not reduced or zero.
    pub fn from_bytes(bytes: &[u8; SECRET_BYTES]) -> Result<Self, KeyError> {
        let secret = schnorrkel::SecretKey::from_bytes(bytes).map_err(|_| KeyError::NotAScalar)?;
        let pair = Self(Box::new(secret.into()));
        PublicKey::from_bytes(pair.0.public.to_bytes())?;
        Ok(pair)
    }

    /// The key that Substrate makes of a seed (a "mini secret"): expanded as Ed25519 does.
    pub fn from_seed(seed: &[u8; SEED_BYTES]) -> Self {
        let mini = Zeroizing::new(
            MiniSecretKey::from_bytes(seed).expect("a mini secret is any 32 bytes; these are 32"),
        );
        Self(Box::new(mini.expand_to_keypair(ExpansionMode::Ed25519)))
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.public)
    }

    /// The 64 bytes that [`SecretKey::from_bytes`] reads.
    pub fn to_bytes(&self) -> Zeroizing<[u8; SECRET_BYTES]> {
        Zeroizing::new(self.0.secret.to_bytes())
    }

    /// Signs the bytes of `message`; randomised, so that no two signatures are the same.
    ///
    /// # Panics
    ///
    /// If the system has no random bytes to give.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign_simple(CONTEXT, message).to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(secret of {})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SecretKey {
        SecretKey::from_seed(&[7; SEED_BYTES])
    }

    #[test]
    fn a_signature_holds_for_its_bytes_and_key_alone() {
        let (key, other) = (key(), SecretKey::from_seed(&[8; SEED_BYTES]));
        for message in [&b""[..], b"m", &[0; 1000]] {
            let signature = key.sign(message);
            assert_eq!(key.public().verify(message, &signature), Ok(()));
            let longer = [message, b"\0"].concat();
            let mismatch =
                |key: &SecretKey| Err(SignatureError::Mismatch { key: key.public().to_digest() });
            assert_eq!(key.public().verify(&longer, &signature), mismatch(&key));
            assert_eq!(other.public().verify(message, &signature), mismatch(&other));
            assert_ne!(key.sign(message), signature);
        }
    }

    #[test]
    fn a_wrapped_signature_is_not_one_over_the_bare_message() {
        let (key, wrapped) = (key(), b"<Bytes>m</Bytes>");
        assert!(key.public().verify(b"m", &key.sign(wrapped)).is_err());
        assert!(key.public().verify(wrapped, &key.sign(b"m")).is_err());
        assert!(key.public().verify(wrapped, &key.sign(wrapped)).is_ok());
    }

    #[test]
    fn a_changed_bit_anywhere_is_refused() {
        let key = key();
        let signature = key.sign(b"m");
        for bit in 0..8 * SIGNATURE_BYTES {
            let mut changed = signature;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(key.public().verify(b"m", &changed).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_scalar_beyond_the_group_order_is_malformed() {
        // The order added to s: the equation would hold, but a signature has one encoding.
        let order = hex_bytes("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
        let key = key();
        let mut signature = key.sign(b"m");
        signature[63] &= 127;
        let mut carry = 0;
        for (byte, add) in signature[32..].iter_mut().zip(order) {
            carry += u16::from(*byte) + u16::from(add);
            *byte = carry.to_le_bytes()[0];
            carry >>= 8;
        }
        signature[63] |= 128;
        assert_eq!(key.public().verify(b"m", &signature), Err(SignatureError::Malformed));
        signature[63] &= 127;
        assert_eq!(key.public().verify(b"m", &signature), Err(SignatureError::Malformed));
    }

    fn hex_bytes(text: &str) -> [u8; 32] {
        text.parse::<Digest>().unwrap().0
    }

    #[test]
    fn malformed_keys_are_errors() {
        assert_eq!(PublicKey::from_bytes([0; 32]), Err(KeyError::Nobody));
        assert!(matches!(PublicKey::from_bytes([255; 32]), Err(KeyError::NotAPoint { .. })));
        assert!(matches!(SecretKey::from_bytes(&[0; 64]), Err(KeyError::Nobody)));
        assert!(matches!(SecretKey::from_bytes(&[255; 64]), Err(KeyError::NotAScalar)));
        let read = SecretKey::from_bytes(&key().to_bytes()).unwrap();
        assert_eq!(read.public(), key().public());
    }

    #[test]
    fn a_secret_key_is_not_shown() {
        let shown = format!("{:?}", key());
        assert_eq!(shown, format!("SecretKey(secret of {})", key().public()));
    }
}
