//! 32-byte hashes, byte strings, and the hash functions of Substrate.
//!
//! In JSON and for people both are lower-case hex without `0x`.

use std::{fmt, str::FromStr};

use blake2::{Blake2b, Digest as _, digest::consts::U32};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use twox_hash::XxHash64;

/// A block's hash, a state root, a digest, or a public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash32(pub [u8; 32]);

/// Bytes of any length.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Hex(pub Vec<u8>);

/// Text that is not lower-case hex of the right length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HexError {
    /// An odd length, an upper-case digit or another character.
    #[error("not lower-case hex")]
    Digits,
    /// Hex of more or fewer than 32 bytes.
    #[error("64 hex digits are wanted, not {found}")]
    Length {
        /// Digits.
        found: usize,
    },
}

/// BLAKE2b with 32 bytes of output: what blocks, state nodes and extrinsics are known by.
pub fn blake2b_256(bytes: &[u8]) -> Hash32 {
    Hash32(Blake2b::<U32>::digest(bytes).into())
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Hash32 {
    Hash32(sha2::Sha256::digest(bytes).into())
}

/// XXH64 of seed 0, little-endian: Substrate's `twox_64`.
pub fn twox_64(bytes: &[u8]) -> [u8; 8] {
    XxHash64::oneshot(0, bytes).to_le_bytes()
}

/// XXH64 of the seeds 0 and 1, little-endian: Substrate's `twox_128`.
pub fn twox_128(bytes: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&twox_64(bytes));
    out[8..].copy_from_slice(&XxHash64::oneshot(1, bytes).to_le_bytes());
    out
}

fn decode(text: &str) -> Result<Vec<u8>, HexError> {
    base16ct::lower::decode_vec(text).map_err(|_| HexError::Digits)
}

impl FromStr for Hash32 {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        let length = |_| HexError::Length { found: text.len() };
        decode(text)?.try_into().map(Self).map_err(length)
    }
}

impl FromStr for Hex {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        decode(text).map(Self)
    }
}

impl AsRef<[u8]> for Hex {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Hash32 {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Display, Debug and serde through [`FromStr`]: the same for both types.
macro_rules! as_hex {
    ($type:ty) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&base16ct::lower::encode_string(&self.0))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&base16ct::lower::encode_string(&self.0))
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

as_hex!(Hash32);
as_hex!(Hex);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_has_one_spelling() {
        let text = "0a".repeat(32);
        assert_eq!(text.parse(), Ok(Hash32([10; 32])));
        assert_eq!(text.to_uppercase().parse::<Hash32>(), Err(HexError::Digits));
        assert_eq!("0a".parse::<Hash32>(), Err(HexError::Length { found: 2 }));
        assert_eq!("0".parse::<Hex>(), Err(HexError::Digits));
        assert_eq!("é0".parse::<Hex>(), Err(HexError::Digits));
        assert_eq!("".parse(), Ok(Hex::default()));
    }

    /// Two storage prefixes that every Substrate tool knows: `System` and `Account`.
    #[test]
    fn storage_prefixes_are_substrates() {
        assert_eq!(
            Hex(twox_128(b"System").to_vec()).to_string(),
            "26aa394eea5630e07c48ae0c9558cef7"
        );
        assert_eq!(
            Hex(twox_128(b"Account").to_vec()).to_string(),
            "b99d880ec681799c0cf30e8886371da9"
        );
    }

    /// The empty string's, as the BLAKE2 authors' reference gives it.
    #[test]
    fn blake2b_has_the_length_in_its_parameters() {
        let empty = "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8";
        assert_eq!(blake2b_256(b"").to_string(), empty);
    }
}
