//! Epistula, version 2: how a hotkey signs an HTTP request, as Bittensor's miners do it.
//!
//! The signed text is `hex(sha256(body)).uuid.timestamp.signed-for-or-empty`. It covers neither
//! method nor path, so whoever uses it repeats both in the body. Headers in `schema/upload.md`.
//!
//! Trust: nothing in a header is believed before [`Envelope::verify`]. A request holds for
//! [`WINDOW_MS`] in both directions of its timestamp, and [`Seen`] takes none twice meanwhile.

use std::collections::{BTreeSet, VecDeque};

use super::{
    sr25519::{KeyError, PublicKey, SIGNATURE_BYTES, SecretKey, SignatureError},
    ss58::{self, Ss58Error},
};
use crate::types::{digest::Digest, json::INTEGER_MAX, submission::SignatureHex};

/// The version that is written and read.
pub const VERSION: &str = "2";

/// How far a timestamp may be from the receiver's clock, in milliseconds, either way.
pub const WINDOW_MS: u64 = 8_000;

/// Most requests that are remembered: a few thousand a second over the window of both directions.
const SEEN_MAX: usize = 1 << 16;

/// Names of the headers, in lower case.
mod name {
    pub const PREFIX: &str = "epistula-";
    pub const VERSION: &str = "epistula-version";
    pub const TIMESTAMP: &str = "epistula-timestamp";
    pub const UUID: &str = "epistula-uuid";
    pub const SIGNED_BY: &str = "epistula-signed-by";
    pub const SIGNED_FOR: &str = "epistula-signed-for";
    pub const SIGNATURE: &str = "epistula-request-signature";
}

/// A request that is not signed as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum EpistulaError {
    #[error("the request is not signed: {name} is missing")]
    Missing { name: &'static str },
    #[error("{name} stands twice")]
    Twice { name: &'static str },
    #[error("{name} is not {want}")]
    Malformed { name: &'static str, want: &'static str },
    #[error("{name}: {source}")]
    Address { name: &'static str, source: Ss58Error },
    #[error("the signing hotkey: {0}")]
    Key(#[from] KeyError),
    #[error("the request's signature: {0}")]
    Signature(#[from] SignatureError),
    #[error(
        "the request's timestamp is {timestamp_ms}, the clock here {now_ms}: more than {WINDOW_MS} ms \
         apart. Set the clock"
    )]
    Clock { timestamp_ms: u64, now_ms: u64 },
    #[error("a request with this uuid was received already")]
    Replayed,
    #[error("too many signed requests at once")]
    TooMany,
}

/// Who signed a request, when, and the signature; the signed body is apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Milliseconds since 1970.
    pub timestamp_ms: u64,
    /// Chosen at random for each request, 36 characters.
    pub uuid: String,
    /// The signing hotkey.
    pub signed_by: Digest,
    /// Whom the request is meant for, if it says so.
    pub signed_for: Option<Digest>,
    /// The hotkey's, over the text.
    pub signature: [u8; SIGNATURE_BYTES],
}

impl Envelope {
    /// Signs `body` with `secret`, under a `uuid` that nobody used before.
    ///
    /// # Panics
    ///
    /// If `uuid` is not [`is_uuid`].
    pub fn sign(secret: &SecretKey, body: &[u8], timestamp_ms: u64, uuid: &str) -> Self {
        assert!(is_uuid(uuid), "{uuid:?} is not a uuid");
        let signed_by = secret.public().to_digest();
        let signature = secret.sign(text(body, uuid, timestamp_ms, None).as_bytes());
        Self { timestamp_ms, uuid: uuid.to_owned(), signed_by, signed_for: None, signature }
    }

    /// The headers that carry it, names in lower case.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let signed_for = self.signed_for.map(|key| (name::SIGNED_FOR, ss58::encode(key)));
        [
            (name::VERSION, VERSION.to_owned()),
            (name::TIMESTAMP, self.timestamp_ms.to_string()),
            (name::UUID, self.uuid.clone()),
            (name::SIGNED_BY, ss58::encode(self.signed_by)),
            (name::SIGNATURE, format!("0x{:?}", SignatureHex(self.signature))),
        ]
        .into_iter()
        .chain(signed_for)
        .collect()
    }

    /// Reads it out of a request's headers; other headers are passed over.
    ///
    /// # Errors
    ///
    /// [`EpistulaError`] if one is missing, stands twice, or is spelled otherwise than [`Self::headers`]
    /// does.
    pub fn read<'h>(
        headers: impl IntoIterator<Item = (&'h str, &'h [u8])>,
    ) -> Result<Self, EpistulaError> {
        let headers = Headers::of(headers)?;
        if headers.need(name::VERSION)? != VERSION {
            return Err(malformed(name::VERSION, "2"));
        }
        let timestamp = headers.need(name::TIMESTAMP)?;
        let uuid = headers.need(name::UUID)?;
        let signature = headers.need(name::SIGNATURE)?;
        let signature: Option<SignatureHex> =
            signature.strip_prefix("0x").and_then(|hex| hex.parse().ok());
        let address = |name, text: &str| {
            ss58::decode(text).map_err(|source| EpistulaError::Address { name, source })
        };
        Ok(Self {
            timestamp_ms: milliseconds(timestamp)
                .ok_or_else(|| malformed(name::TIMESTAMP, "milliseconds since 1970"))?,
            uuid: Some(uuid)
                .filter(|uuid| is_uuid(uuid))
                .ok_or_else(|| malformed(name::UUID, "a uuid of 36 characters"))?
                .to_owned(),
            signed_by: address(name::SIGNED_BY, headers.need(name::SIGNED_BY)?)?,
            signed_for: headers
                .get(name::SIGNED_FOR)
                .filter(|text| !text.is_empty())
                .map(|text| address(name::SIGNED_FOR, text))
                .transpose()?,
            signature: signature
                .ok_or_else(|| malformed(name::SIGNATURE, "0x and 128 lower-case hex digits"))?
                .0,
        })
    }

    /// Whether the hotkey signed exactly this body.
    ///
    /// # Errors
    ///
    /// [`EpistulaError::Key`], [`EpistulaError::Signature`].
    pub fn verify(&self, body: &[u8]) -> Result<(), EpistulaError> {
        let text = text(body, &self.uuid, self.timestamp_ms, self.signed_for);
        let key = PublicKey::try_from(self.signed_by)?;
        Ok(key.verify(text.as_bytes(), &self.signature)?)
    }

    /// Whether the timestamp is within [`WINDOW_MS`] of `now_ms`.
    ///
    /// # Errors
    ///
    /// [`EpistulaError::Clock`].
    pub fn check_time(&self, now_ms: u64) -> Result<(), EpistulaError> {
        let timestamp_ms = self.timestamp_ms;
        if timestamp_ms.abs_diff(now_ms) > WINDOW_MS {
            return Err(EpistulaError::Clock { timestamp_ms, now_ms });
        }
        Ok(())
    }
}

/// Whether `text` is written as a uuid: 36 characters, hex digits and four hyphens.
pub fn is_uuid(text: &str) -> bool {
    let hyphen = |at: usize| matches!(at, 8 | 13 | 18 | 23);
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match hyphen(at) {
            true => byte == b'-',
            false => byte.is_ascii_hexdigit(),
        })
}

/// A uuid (version 4) of 16 random bytes.
pub fn uuid_of(random: [u8; 16]) -> String {
    let mut bytes = [0; Digest::BYTES];
    bytes[..16].copy_from_slice(&random);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = Digest(bytes).to_hex();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32]].join("-")
}

fn text(body: &[u8], uuid: &str, timestamp_ms: u64, signed_for: Option<Digest>) -> String {
    let signed_for = signed_for.map(ss58::encode).unwrap_or_default();
    format!("{}.{uuid}.{timestamp_ms}.{signed_for}", Digest::of(body))
}

/// Decimal digits without leading zeros.
fn milliseconds(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number <= INTEGER_MAX.unsigned_abs() && number.to_string() == text).then_some(number)
}

fn malformed(name: &'static str, want: &'static str) -> EpistulaError {
    EpistulaError::Malformed { name, want }
}

/// The headers that count, each once.
struct Headers<'h>(Vec<(&'static str, &'h str)>);

impl<'h> Headers<'h> {
    const NAMES: [&'static str; 6] = [
        name::VERSION,
        name::TIMESTAMP,
        name::UUID,
        name::SIGNED_BY,
        name::SIGNED_FOR,
        name::SIGNATURE,
    ];

    fn of(all: impl IntoIterator<Item = (&'h str, &'h [u8])>) -> Result<Self, EpistulaError> {
        let mut found: Vec<(&'static str, &'h str)> = Vec::new();
        for (key, value) in all {
            if key.len() < name::PREFIX.len() {
                continue;
            }
            let ours = Self::NAMES.into_iter().find(|name| name.eq_ignore_ascii_case(key));
            let Some(name) = ours else { continue };
            if found.iter().any(|(known, _)| *known == name) {
                return Err(EpistulaError::Twice { name });
            }
            let value = std::str::from_utf8(value).map_err(|_| malformed(name, "ASCII"))?;
            found.push((name, value));
        }
        Ok(Self(found))
    }

    fn get(&self, name: &str) -> Option<&'h str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    fn need(&self, name: &'static str) -> Result<&'h str, EpistulaError> {
        self.get(name).ok_or(EpistulaError::Missing { name })
    }
}

/// The requests of the last seconds, so that none is taken twice.
///
/// Memory: at most `SEEN_MAX` of them; more at once are refused, never forgotten. Only requests
/// whose signature held are to be handed in.
#[derive(Debug, Default)]
pub struct Seen {
    /// Oldest first: when each may be forgotten.
    ages: VecDeque<(u64, Digest)>,
    known: BTreeSet<Digest>,
}

impl Seen {
    /// Takes a request whose signature and time were checked.
    ///
    /// # Errors
    ///
    /// [`EpistulaError::Replayed`] if its hotkey used the uuid before, [`EpistulaError::TooMany`] if
    /// no more can be remembered.
    pub fn admit(&mut self, envelope: &Envelope, now_ms: u64) -> Result<(), EpistulaError> {
        while self.ages.front().is_some_and(|(until, _)| *until < now_ms) {
            if let Some((_, id)) = self.ages.pop_front() {
                self.known.remove(&id);
            }
        }
        let uuid = envelope.uuid.to_ascii_lowercase();
        let id = Digest::of(&[envelope.signed_by.as_bytes(), uuid.as_bytes()].concat());
        if self.known.contains(&id) {
            return Err(EpistulaError::Replayed);
        }
        if self.known.len() >= SEEN_MAX {
            return Err(EpistulaError::TooMany);
        }
        // A timestamp of the far end of the window holds for twice its width.
        self.ages.push_back((now_ms + 2 * WINDOW_MS, id));
        self.known.insert(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0b5ffd9e-7a40-4b5e-8d3c-1f1d0e6f3a55";
    const NOW: u64 = 1_700_000_000_000;

    fn key() -> SecretKey {
        SecretKey::from_seed(&[7; 32])
    }

    fn read(headers: &[(&'static str, String)]) -> Result<Envelope, EpistulaError> {
        Envelope::read(headers.iter().map(|(name, value)| (*name, value.as_bytes())))
    }

    #[test]
    fn the_signed_text_is_spelled_so() {
        let envelope = Envelope::sign(&key(), b"{}", NOW, UUID);
        let text = format!(
            "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a.{UUID}.1700000000000."
        );
        assert_eq!(key().public().verify(text.as_bytes(), &envelope.signature), Ok(()));
        let meant = key().public().to_digest();
        let text = format!("{text}{}", ss58::encode(meant));
        let signature = key().sign(text.as_bytes());
        let meant = Envelope { signed_for: Some(meant), signature, ..envelope };
        assert_eq!(meant.verify(b"{}"), Ok(()));
        assert_eq!(read(&meant.headers()), Ok(meant.clone()));
        assert!(Envelope { signed_for: None, ..meant }.verify(b"{}").is_err());
    }

    #[test]
    fn headers_read_back_in_any_case_and_each_is_needed_once() {
        let envelope = Envelope::sign(&key(), b"body", NOW, UUID);
        let headers = envelope.headers();
        assert_eq!(read(&headers), Ok(envelope.clone()));
        let upper: Vec<_> = headers.iter().map(|(n, v)| (n.to_uppercase(), v.clone())).collect();
        let upper = upper.iter().map(|(n, v)| (n.as_str(), v.as_bytes()));
        assert_eq!(Envelope::read(upper), Ok(envelope));
        for at in 0..headers.len() {
            let mut without = headers.clone();
            let (name, value) = without.remove(at);
            assert_eq!(read(&without), Err(EpistulaError::Missing { name }));
            let mut twice = headers.clone();
            twice.push((name, value));
            assert_eq!(read(&twice), Err(EpistulaError::Twice { name }));
        }
    }

    #[test]
    fn another_spelling_is_refused() {
        let headers = Envelope::sign(&key(), b"", NOW, UUID).headers();
        let bad = [
            ["1", "2 ", "", "02"],
            ["01700000000000", "+1700000000000", "-1", "99999999999999999"],
            ["", &UUID[1..], "0b5ffd9e-7a40-4b5e-8d3c-1f1d0e6f3a5g", &UUID.replace('-', "_")],
            ["", "5", "0x00", "15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5"],
            ["", "0x", &headers[4].1[2..], &headers[4].1.to_uppercase()],
        ];
        for (at, values) in bad.iter().enumerate() {
            for value in values {
                let mut changed = headers.clone();
                changed[at].1 = (*value).to_owned();
                assert!(read(&changed).is_err(), "{}: {value:?}", headers[at].0);
            }
        }
        let name = headers[0].0;
        let other = [(name, &b"\xff"[..])];
        assert_eq!(Envelope::read(other), Err(malformed(name, "ASCII")));
    }

    #[test]
    fn a_signature_holds_for_its_body_uuid_and_time_alone() {
        let envelope = Envelope::sign(&key(), b"body", NOW, UUID);
        assert_eq!(envelope.verify(b"body"), Ok(()));
        assert!(envelope.verify(b"bodY").is_err());
        let later = Envelope { timestamp_ms: NOW + 1, ..envelope.clone() };
        assert!(later.verify(b"body").is_err());
        let other = Envelope { uuid: uuid_of([1; 16]), ..envelope.clone() };
        assert!(other.verify(b"body").is_err());
        let stranger = SecretKey::from_seed(&[8; 32]).public().to_digest();
        assert!(Envelope { signed_by: stranger, ..envelope }.verify(b"body").is_err());
    }

    #[test]
    fn the_window_is_eight_seconds_either_way() {
        let envelope = Envelope::sign(&key(), b"", NOW, UUID);
        for (now_ms, good) in [(NOW, true), (NOW - 8000, true), (NOW + 8000, true)]
            .into_iter()
            .chain([(NOW - 8001, false), (NOW + 8001, false), (0, false), (u64::MAX, false)])
        {
            assert_eq!(envelope.check_time(now_ms).is_ok(), good, "{now_ms}");
        }
    }

    #[test]
    fn a_request_is_taken_once_while_its_time_holds() {
        let mut seen = Seen::default();
        let envelope = Envelope::sign(&key(), b"", NOW + WINDOW_MS, UUID);
        assert_eq!(seen.admit(&envelope, NOW), Ok(()));
        let upper = Envelope { uuid: UUID.to_uppercase(), ..envelope.clone() };
        for now_ms in [NOW, NOW + 2 * WINDOW_MS] {
            assert!(envelope.check_time(now_ms).is_ok());
            assert_eq!(seen.admit(&envelope, now_ms), Err(EpistulaError::Replayed));
            assert_eq!(seen.admit(&upper, now_ms), Err(EpistulaError::Replayed));
        }
        let other = Envelope { signed_by: Digest([1; 32]), ..envelope.clone() };
        assert_eq!(seen.admit(&other, NOW), Ok(()), "another hotkey's");
        // Forgotten once no clock of the window takes it any more.
        let after = NOW + 2 * WINDOW_MS + 1;
        assert!(envelope.check_time(after).is_err());
        assert_eq!(seen.admit(&envelope, after), Ok(()));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut seen = Seen::default();
        let mut envelope = Envelope::sign(&key(), b"", NOW, UUID);
        for n in 0..SEEN_MAX as u128 {
            envelope.uuid = uuid_of(n.to_le_bytes());
            assert_eq!(seen.admit(&envelope, NOW), Ok(()));
        }
        envelope.uuid = UUID.to_owned();
        let full = seen.admit(&envelope, NOW);
        assert!(seen.known.len() <= SEEN_MAX && seen.ages.len() == seen.known.len());
        assert_eq!(full, Err(EpistulaError::TooMany));
        assert_eq!(seen.admit(&envelope, NOW + 3 * WINDOW_MS), Ok(()));
        assert_eq!(seen.known.len(), 1);
    }

    #[test]
    fn a_made_uuid_is_one() {
        assert_eq!(uuid_of([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert!(is_uuid(&uuid_of([0; 16])) && !is_uuid(""));
    }
}
