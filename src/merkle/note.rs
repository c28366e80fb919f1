//! Signed notes (C2SP signed-note): a text, and lines that say who signed it.
//!
//! `head` puts tree heads into them. [`LogKey`] signs, [`VerifierKey`] verifies; both know Ed25519
//! (type 1), and verifier keys also know the timestamped cosignatures of witnesses (type 4, C2SP
//! tlog-cosignature). See `schema/log.md`.
//!
//! Trust: a note is a stranger's until a key that came from elsewhere verifies it. Signatures are
//! checked strictly, so that two verifiers cannot differ: no key or commitment of small order, no
//! second spelling of a key, a scalar or a point.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::{Signature as Ed25519, Signer, SigningKey, VerifyingKey};

use crate::types::{digest::Digest, json::is_record_text};

/// Longest note in bytes.
pub const NOTE_BYTES_MAX: usize = 1 << 20;

/// Most signature lines of a note.
pub const SIGNATURES_MAX: usize = 100;

/// What a signature line starts with: an em dash and a space.
const LINE_START: &str = "\u{2014} ";

/// A key that cannot be used, or whose text contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum KeyError {
    #[error("{name:?} cannot name a key: names are NFC without spaces, control characters or plus")]
    Name { name: String },
    #[error(
        "a verifier key is NAME+ID+KEY, ID 8 lower-case hex digits and KEY base64, not {text:?}"
    )]
    Format { text: String },
    #[error("signature type {found} is not known; known are 1 (Ed25519) and 4 (cosignature/v1)")]
    Kind { found: u8 },
    #[error("an Ed25519 key has 32 bytes, not {found}")]
    Length { found: usize },
    #[error("{name}: the bytes are no Ed25519 key that is safe to trust")]
    Point { name: String },
    #[error("{name}: the text says key id {found:08x}; the key's is {expected:08x}")]
    Id { name: String, expected: u32, found: u32 },
}

/// What a key's signatures sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum KeyKind {
    /// The note's text.
    Ed25519 = 1,
    /// A time and the note's text, as a witness signs: `cosignature/v1`.
    Cosignature = 4,
}

impl KeyKind {
    fn of(byte: u8) -> Result<Self, KeyError> {
        match byte {
            1 => Ok(Self::Ed25519),
            4 => Ok(Self::Cosignature),
            found => Err(KeyError::Kind { found }),
        }
    }
}

/// A public key with the name it signs under; its text form is `NAME+ID+KEY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    kind: KeyKind,
    id: u32,
    key: VerifyingKey,
}

impl VerifierKey {
    /// The key with these 32 bytes.
    ///
    /// # Errors
    ///
    /// [`KeyError`] if the name cannot stand in a note, or the bytes are no point, one of small
    /// order, or not the one spelling of theirs.
    pub fn new(name: &str, kind: KeyKind, key: &[u8; 32]) -> Result<Self, KeyError> {
        check_name(name)?;
        let point = || KeyError::Point { name: name.to_owned() };
        let verifying = VerifyingKey::from_bytes(key).map_err(|_| point())?;
        if verifying.is_weak() || !is_reduced(key) {
            return Err(point());
        }
        Ok(Self { name: name.to_owned(), kind, id: key_id(name, kind, key), key: verifying })
    }

    /// The name it signs under; for a log its origin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its signatures sign.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The id its signature lines start with.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The 32 bytes of the key.
    pub fn key(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// Whether `signature` is this key's for `text`.
    pub fn verifies(&self, text: &str, signature: &[u8]) -> bool {
        match self.kind {
            KeyKind::Ed25519 => self.verifies_bytes(text.as_bytes(), signature),
            KeyKind::Cosignature => {
                let Some((time, signature)) = signature.split_first_chunk() else { return false };
                let time = u64::from_be_bytes(*time);
                let message = format!("cosignature/v1\ntime {time}\n{text}");
                time >> 63 == 0 && self.verifies_bytes(message.as_bytes(), signature)
            }
        }
    }

    /// Whether `signature` is this key's for these very bytes, which are no note's text.
    pub fn verifies_bytes(&self, message: &[u8], signature: &[u8]) -> bool {
        let strict = |signature| self.key.verify_strict(message, &signature).is_ok();
        Ed25519::from_slice(signature).is_ok_and(strict)
    }

    fn signed(&self, signature: &Signature) -> bool {
        self.id == signature.id && self.name == signature.name
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = BASE64.encode(typed(self.kind, self.key()));
        write!(f, "{}+{:08x}+{key}", self.name, self.id)
    }
}

impl FromStr for VerifierKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let format = || KeyError::Format { text: text.chars().take(80).collect() };
        let [name, id, key] = text.splitn(3, '+').collect::<Vec<_>>()[..] else {
            return Err(format());
        };
        let found = u32::from_str_radix(id, 16).map_err(|_| format())?;
        if id != format!("{found:08x}") {
            return Err(format());
        }
        let bytes = BASE64.decode(key).map_err(|_| format())?;
        let (kind, bytes) = bytes.split_first().ok_or_else(format)?;
        let bytes = bytes.try_into().map_err(|_| KeyError::Length { found: bytes.len() })?;
        let key = Self::new(name, KeyKind::of(*kind)?, bytes)?;
        if key.id != found {
            return Err(KeyError::Id { name: key.name, expected: key.id, found });
        }
        Ok(key)
    }
}

/// The first four bytes of `SHA-256(name || 0A || type || key)`.
fn key_id(name: &str, kind: KeyKind, key: &[u8; 32]) -> u32 {
    let digest = Digest::of(&[name.as_bytes(), b"\n", &typed(kind, key)].concat());
    let [a, b, c, d, ..] = digest.0;
    u32::from_be_bytes([a, b, c, d])
}

fn typed(kind: KeyKind, key: &[u8; 32]) -> Vec<u8> {
    [&[kind as u8], &key[..]].concat()
}

/// Whether the y of a compressed point is below p = 2^255 - 19. (A wrong sign of x = 0 belongs to
/// a point of small order.)
fn is_reduced(key: &[u8; 32]) -> bool {
    key[0] < 0xed || key[1..31].iter().any(|b| *b != 0xff) || key[31] & 0x7f != 0x7f
}

fn check_name(name: &str) -> Result<(), KeyError> {
    let bad = |c: char| c.is_whitespace() || c < ' ' || c == '+';
    if name.is_empty() || name.chars().any(bad) { Err(bad_name(name)) } else { Ok(()) }
}

fn bad_name(name: &str) -> KeyError {
    KeyError::Name { name: name.chars().take(80).collect() }
}

/// A secret Ed25519 key with the name it signs under. Its memory is wiped when it is dropped.
pub struct LogKey {
    secret: SigningKey,
    verifier: VerifierKey,
}

impl LogKey {
    /// The key made from a 32-byte seed, as RFC 8032 does.
    ///
    /// # Errors
    ///
    /// [`KeyError::Name`] if the name cannot stand in a note or in a record, as verifier keys do.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, KeyError> {
        if !is_record_text(name) {
            return Err(bad_name(name));
        }
        let secret = SigningKey::from_bytes(seed);
        let public = secret.verifying_key();
        let verifier = VerifierKey::new(name, KeyKind::Ed25519, public.as_bytes())?;
        Ok(Self { secret, verifier })
    }

    /// The name it signs under.
    pub fn name(&self) -> &str {
        self.verifier.name()
    }

    /// The key that verifies its signatures.
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// The text form of [`Self::verifier`].
    pub fn vkey(&self) -> String {
        self.verifier.to_string()
    }

    /// The note of `text` with this key's signature.
    ///
    /// # Errors
    ///
    /// [`NoteError`] if a note cannot hold the text.
    pub fn sign(&self, text: &str) -> Result<String, NoteError> {
        check_text(text)?;
        let signature = self.secret.sign(text.as_bytes()).to_bytes();
        let bytes = [&self.verifier.id.to_be_bytes(), &signature[..]].concat();
        let note = format!("{text}\n{LINE_START}{} {}\n", self.name(), BASE64.encode(bytes));
        check_length(note.len())?;
        Ok(note)
    }

    /// The Ed25519 signature of bytes that can be no note's text: they hold a zero byte.
    ///
    /// # Panics
    ///
    /// If they hold none: a signature of theirs could pass for one of a note.
    pub fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
        assert!(message.contains(&0), "a note's text could be these bytes");
        self.secret.sign(message).to_bytes()
    }
}

impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogKey({})", self.verifier)
    }
}

/// Bytes that are no note, or a note that no known key verifies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum NoteError {
    #[error("a note is at most {NOTE_BYTES_MAX} bytes, not {bytes}")]
    Long { bytes: usize },
    #[error("byte {at} of the note is not UTF-8")]
    NotUtf8 { at: usize },
    #[error("byte {at} of the note is the control character {byte:#04x}")]
    Control { at: usize, byte: u8 },
    #[error("the note's text does not end in a newline")]
    Newline,
    #[error("the note has no blank line followed by signature lines")]
    Unsigned,
    #[error("signature line {line} is not an em dash, a name and a base64 signature")]
    Line { line: usize },
    #[error("a note has at most {SIGNATURES_MAX} signatures, not {found}")]
    Signatures { found: usize },
    #[error("the signature by {name}+{id:08x} is wrong")]
    Wrong { name: String, id: u32 },
    #[error("none of the {signatures} signatures is by one of the {keys} known keys")]
    Unknown { signatures: usize, keys: usize },
}

/// One signature line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    name: String,
    id: u32,
    bytes: Vec<u8>,
}

impl Signature {
    /// The name of the key it claims.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id of the key it claims.
    pub fn id(&self) -> u32 {
        self.id
    }

    fn read(line: &str) -> Option<Self> {
        let (name, text) = line.strip_prefix(LINE_START)?.split_once(' ')?;
        check_name(name).ok()?;
        let bytes = BASE64.decode(text).ok()?;
        let (id, bytes) = bytes.split_first_chunk().filter(|(_, bytes)| !bytes.is_empty())?;
        let id = u32::from_be_bytes(*id);
        Some(Self { name: name.to_owned(), id, bytes: bytes.to_owned() })
    }
}

/// A note as it was read; nothing is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedNote {
    text: String,
    signatures: Vec<Signature>,
}

impl SignedNote {
    /// Reads a note.
    ///
    /// # Errors
    ///
    /// [`NoteError`] names the first rule of the format that it breaks.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        check_length(bytes.len())?;
        let note = std::str::from_utf8(bytes)
            .map_err(|error| NoteError::NotUtf8 { at: error.valid_up_to() })?;
        check_controls(note)?;
        let blank = note.rfind("\n\n").ok_or(NoteError::Unsigned)?;
        let (text, lines) = (&note[..=blank], &note[blank + 2..]);
        if lines.is_empty() {
            return Err(NoteError::Unsigned);
        }
        let lines = lines.strip_suffix('\n').ok_or(NoteError::Newline)?;
        let found = lines.split('\n').count();
        if found > SIGNATURES_MAX {
            return Err(NoteError::Signatures { found });
        }
        let read = |(line, text)| Signature::read(text).ok_or(NoteError::Line { line });
        let signatures = lines.split('\n').enumerate().map(read).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), signatures })
    }

    /// What is signed, with its last newline.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signature lines, in order.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// The names of the `keys` that signed, in the order of their lines, each key once.
    ///
    /// Signatures by other keys are passed over.
    ///
    /// # Errors
    ///
    /// [`NoteError::Wrong`] if a line names one of the keys but does not verify, however many others
    /// do; [`NoteError::Unknown`] if no line names one of them.
    pub fn verify(&self, keys: &[VerifierKey]) -> Result<Vec<String>, NoteError> {
        let mut verified: Vec<&VerifierKey> = Vec::new();
        for signature in &self.signatures {
            for key in keys.iter().filter(|key| key.signed(signature)) {
                if !key.verifies(&self.text, &signature.bytes) {
                    return Err(NoteError::Wrong { name: key.name.clone(), id: key.id });
                }
                if !verified.contains(&key) {
                    verified.push(key);
                }
            }
        }
        if verified.is_empty() {
            let (signatures, keys) = (self.signatures.len(), keys.len());
            return Err(NoteError::Unknown { signatures, keys });
        }
        Ok(verified.into_iter().map(|key| key.name.clone()).collect())
    }
}

fn check_length(bytes: usize) -> Result<(), NoteError> {
    if bytes > NOTE_BYTES_MAX { Err(NoteError::Long { bytes }) } else { Ok(()) }
}

fn check_controls(text: &str) -> Result<(), NoteError> {
    match text.bytes().enumerate().find(|(_, byte)| *byte < 0x20 && *byte != b'\n') {
        Some((at, byte)) => Err(NoteError::Control { at, byte }),
        None => Ok(()),
    }
}

fn check_text(text: &str) -> Result<(), NoteError> {
    check_controls(text)?;
    if text.ends_with('\n') { Ok(()) } else { Err(NoteError::Newline) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use signed_note::{Note, StandardVerifier, VerifierList};

    fn key() -> LogKey {
        LogKey::from_seed("ledger.example/rounds", &[7; 32]).unwrap()
    }

    #[test]
    fn a_note_reads_back_and_names_its_signer() {
        let note = key().sign("first\n\nsecond\n").unwrap();
        let read = SignedNote::parse(note.as_bytes()).unwrap();
        assert_eq!(read.text(), "first\n\nsecond\n");
        let known = [key().vkey().parse().unwrap()];
        assert_eq!(read.verify(&known), Ok(vec!["ledger.example/rounds".to_owned()]));
        let unknown = NoteError::Unknown { signatures: 1, keys: 0 };
        assert_eq!(read.verify(&[]), Err(unknown));
    }

    #[test]
    fn a_repeated_signature_counts_once_and_a_wrong_repeat_is_wrong() {
        let note = key().sign("text\n").unwrap();
        let line = note.lines().last().unwrap();
        let other = key().sign("other\n").unwrap();
        let known = [key().verifier().clone()];
        let verify = |note: String| SignedNote::parse(note.as_bytes()).unwrap().verify(&known);
        assert_eq!(verify(format!("{note}{line}\n")).unwrap().len(), 1);
        let wrong = verify(format!("{note}{}\n", other.lines().last().unwrap()));
        assert!(matches!(wrong, Err(NoteError::Wrong { .. })));
    }

    #[test]
    fn limits_hold_at_their_edge() {
        let note = key().sign("text\n").unwrap();
        let line = format!("{}\n", note.lines().last().unwrap());
        let parse = |lines| SignedNote::parse(format!("text\n\n{}", line.repeat(lines)).as_bytes());
        assert!(parse(100).is_ok());
        assert_eq!(parse(101), Err(NoteError::Signatures { found: 101 }));
        let room = NOTE_BYTES_MAX - (note.len() - "text\n".len());
        assert!(key().sign(&("x".repeat(room - 1) + "\n")).is_ok());
        assert!(matches!(key().sign(&("x".repeat(room) + "\n")), Err(NoteError::Long { .. })));
    }

    #[test]
    fn a_text_that_no_note_can_hold_is_not_signed() {
        assert_eq!(key().sign("no newline"), Err(NoteError::Newline));
        assert_eq!(key().sign(""), Err(NoteError::Newline));
        assert_eq!(key().sign("a\tb\n"), Err(NoteError::Control { at: 1, byte: 9 }));
        for name in ["", "a b", "a+b", "a\u{a0}b", "a\n", "a\u{1b}", "a\u{7f}", "e\u{301}"] {
            assert!(matches!(LogKey::from_seed(name, &[7; 32]), Err(KeyError::Name { .. })));
        }
    }

    #[test]
    fn a_verifier_key_has_one_spelling() {
        let text = key().vkey();
        assert_eq!(text.parse::<VerifierKey>().unwrap().to_string(), text);
        let [name, id, base64] = text.splitn(3, '+').collect::<Vec<_>>()[..] else { panic!() };
        let upper = format!("{name}+{}+{base64}", id.to_uppercase());
        for bad in
            [upper, format!("{name}+0{id}+{base64}"), format!("{text}\n"), format!(" {text}")]
        {
            assert!(bad.parse::<VerifierKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_of_small_order_and_second_spellings_are_refused() {
        let mut one = [0; 32];
        one[0] = 1;
        let mut unreduced = [0xff; 32];
        unreduced[31] = 0x7f;
        for first in 0xed..=0xff {
            unreduced[0] = first;
            assert!(VerifierKey::new("x", KeyKind::Ed25519, &unreduced).is_err());
        }
        for weak in [[0; 32], one] {
            let refused = VerifierKey::new("x", KeyKind::Cosignature, &weak);
            assert_eq!(refused, Err(KeyError::Point { name: "x".to_owned() }));
        }
    }

    #[test]
    fn a_secret_key_is_not_shown() {
        let secret = hex::encode([7; 32]);
        let shown = format!("{:?}", key());
        assert!(!shown.contains(&secret) && !shown.contains("[7, 7"), "{shown}");
    }

    proptest! {
        #[test]
        fn notes_are_those_of_the_signed_note_crate(text in "[ -~é\n]{0,60}", seed: [u8; 32]) {
            let key = LogKey::from_seed("ledger.example/rounds", &seed).unwrap();
            let note = key.sign(&format!("{text}\n")).unwrap();
            let theirs = Note::from_bytes(note.as_bytes()).unwrap();
            let verifier = StandardVerifier::new(&key.vkey()).unwrap();
            let (verified, _) = theirs.verify(&VerifierList::new(vec![Box::new(verifier)])).unwrap();
            prop_assert_eq!(verified.len(), 1);
            let ours = SignedNote::parse(note.as_bytes()).unwrap();
            prop_assert_eq!(theirs.text(), ours.text().as_bytes());
        }

        /// Cuts, inserts and flips: no panic, the crate agrees on what parses, none verifies.
        #[test]
        fn a_changed_note_is_refused(at: usize, byte: u8, how in 0..3u8) {
            let mut note = key().sign("a text\n\nof lines\n").unwrap().into_bytes();
            let at = at % note.len();
            match how {
                0 => note[at] ^= byte | 1,
                1 => note.insert(at, byte),
                _ => note.truncate(at),
            }
            let ours = SignedNote::parse(&note);
            prop_assert_eq!(ours.is_ok(), Note::from_bytes(&note).is_ok());
            if let Ok(read) = ours {
                prop_assert!(read.verify(&[key().verifier().clone()]).is_err());
            }
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, text: String) {
            let _ = SignedNote::parse(&bytes);
            let _ = text.parse::<VerifierKey>();
        }
    }
}
