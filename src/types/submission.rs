//! Entries of the submissions log: a statement that a miner signed, or a file fetched for one. See
//! `schema/records.md`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{digest::Digest, manifest::ManifestId, refusal::Refusal};

/// Who a delta is from: a hotkey, or a Templar uid where a file was fetched.
///
/// In JSON a uid is a number and a hotkey 64 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Miner {
    /// The miner's slot in Templar's subnet.
    Uid(u16),
    /// An sr25519 public key.
    Hotkey(Digest),
}

impl Miner {
    /// The uid, if that is how the miner is known.
    pub fn uid(&self) -> Option<u16> {
        match self {
            Self::Uid(uid) => Some(*uid),
            Self::Hotkey(_) => None,
        }
    }

    /// The hotkey, if that is how the miner is known.
    pub fn hotkey(&self) -> Option<Digest> {
        match self {
            Self::Uid(_) => None,
            Self::Hotkey(key) => Some(*key),
        }
    }
}

impl fmt::Display for Miner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid {uid}"),
            Self::Hotkey(key) => write!(f, "{key}"),
        }
    }
}

impl Serialize for Miner {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Uid(uid) => serializer.serialize_u16(*uid),
            Self::Hotkey(key) => key.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Miner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Uid(u16),
            Hotkey(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Uid(uid) => Ok(Self::Uid(uid)),
            Form::Hotkey(text) => text.parse().map(Self::Hotkey).map_err(D::Error::custom),
        }
    }
}

/// One entry of the submissions log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Submission {
    /// A file that the operator fetched for a miner who signs nothing.
    Fetched(Fetched),
    /// A delta that a miner signed for.
    Signed(Signed),
}

/// A miner's signed statement, as it was received.
///
/// The signature is over the 162 bytes of `schema/statement.md`. Only statements whose signature
/// holds enter the log; whether the delta counts is for the round's dispositions to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    /// The round the delta is for.
    pub round: u64,
    /// Root of the manifest of the state it was made from.
    pub base: Digest,
    /// The delta.
    pub delta: ManifestId,
    /// The miner's sr25519 public key.
    pub hotkey: Digest,
    /// The hotkey's signature.
    pub signature: SignatureHex,
    /// What intake found wrong in the delta, whose bytes are kept all the same.
    pub refused: Option<Refusal>,
}

/// A 64-byte signature, 128 lower-case hex digits in JSON.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SignatureHex(pub [u8; 64]);

impl fmt::Debug for SignatureHex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for SignatureHex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{self:?}"))
    }
}

impl<'de> Deserialize<'de> for SignatureHex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Text that is not 128 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a signature is 128 lower-case hex digits")]
pub struct NotASignature;

impl FromStr for SignatureHex {
    type Err = NotASignature;

    fn from_str(text: &str) -> Result<Self, NotASignature> {
        // Two digests' worth of digits, read by the one reader of hex that there is.
        let half = |range: std::ops::Range<usize>| {
            text.get(range).and_then(|half| half.parse::<Digest>().ok())
        };
        match (text.len(), half(0..64), half(64..128)) {
            (128, Some(first), Some(second)) => {
                let mut bytes = [0; 64];
                bytes[..32].copy_from_slice(first.as_bytes());
                bytes[32..].copy_from_slice(second.as_bytes());
                Ok(Self(bytes))
            }
            _ => Err(NotASignature),
        }
    }
}

/// What a submission brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// A delta that intake found good.
    Delta(ManifestId),
    /// Something that intake refuses.
    Refused(&'a Refusal),
    /// A file that was not read.
    Unread,
}

/// A foreign file, as the operator read it.
///
/// It holds what intake found, so that dispositions follow from the log alone; an auditor who has
/// the file (its SHA-256 stands here) can find the same again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fetched {
    /// The round it was fetched for.
    pub round: u64,
    /// The state it was made from, as far as the operator knows.
    pub base: ManifestId,
    /// Whose file it is.
    pub uid: u16,
    /// The file's base name.
    pub file: String,
    /// The file's length in bytes.
    pub source_bytes: u64,
    /// SHA-256 of the file.
    pub source_sha256: Digest,
    /// What intake made of it.
    pub outcome: Outcome,
}

/// What intake made of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It holds this delta.
    Delta(ManifestId),
    /// It is refused.
    Refused(Refusal),
    /// It is a reserve's whose place was not needed, and was not read beyond its hash.
    Unread,
}

impl Submission {
    /// Whose it is.
    pub fn miner(&self) -> Miner {
        match self {
            Self::Fetched(fetched) => Miner::Uid(fetched.uid),
            Self::Signed(signed) => Miner::Hotkey(signed.hotkey),
        }
    }

    /// The round it was made for.
    pub fn round(&self) -> u64 {
        match self {
            Self::Fetched(fetched) => fetched.round,
            Self::Signed(signed) => signed.round,
        }
    }

    /// Root of the manifest of the state it was made from.
    pub fn base(&self) -> Digest {
        match self {
            Self::Fetched(fetched) => fetched.base.root,
            Self::Signed(signed) => signed.base,
        }
    }

    /// Whether it was made from the state `id`. A signed statement names the state by root alone.
    pub fn is_from(&self, id: ManifestId) -> bool {
        match self {
            Self::Fetched(fetched) => fetched.base == id,
            Self::Signed(signed) => signed.base == id.root,
        }
    }

    /// What it brings.
    pub fn content(&self) -> Content<'_> {
        match self {
            Self::Fetched(fetched) => match &fetched.outcome {
                Outcome::Delta(id) => Content::Delta(*id),
                Outcome::Refused(refusal) => Content::Refused(refusal),
                Outcome::Unread => Content::Unread,
            },
            Self::Signed(signed) => match &signed.refused {
                Some(refusal) => Content::Refused(refusal),
                None => Content::Delta(signed.delta),
            },
        }
    }

    /// The delta that is stored for it. A signed one is kept whether it counts or not: it is what its
    /// miner answers for.
    pub fn stored_delta(&self) -> Option<ManifestId> {
        match self {
            Self::Signed(signed) => Some(signed.delta),
            Self::Fetched(Fetched { outcome: Outcome::Delta(id), .. }) => Some(*id),
            Self::Fetched(_) => None,
        }
    }

    /// The name of the file it came in, if it did.
    pub fn file(&self) -> Option<&str> {
        match self {
            Self::Fetched(fetched) => Some(&fetched.file),
            Self::Signed(_) => None,
        }
    }
}
