//! Tree heads: which root a log had at which size, signed by the log.
//!
//! The bytes are those of C2SP tlog-checkpoint, which calls a tree head a checkpoint. See
//! `schema/log.md`.
//!
//! Trust: [`TreeHead::open`] believes a head once the log's key has signed it, and takes the log's
//! origin from that key alone.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use super::{
    note::{LogKey, NoteError, SignedNote, VerifierKey},
    tree::empty_root,
};
use crate::types::digest::Digest;

/// The state of a log: its size and the root over its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeHead {
    /// The log's name.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// RFC 6962 root over them.
    pub root: Digest,
}

/// A tree head that cannot be read, believed or signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum HeadError {
    #[error("a tree head has at least 3 lines, each ending in a newline, none of them empty")]
    Lines,
    #[error("the size {found:?} is not a decimal number below 2^64 without leading zeros")]
    Size { found: String },
    #[error("the root {found:?} is not 32 bytes in base64")]
    Root { found: String },
    #[error("size 0 has the root {expected}, not {found}")]
    Empty { expected: Digest, found: Digest },
    #[error("the head is of {found:?}, the key of {expected:?}")]
    Origin { expected: String, found: String },
    #[error("the tree head's note: {0}")]
    Note(#[from] NoteError),
}

impl TreeHead {
    /// The bytes that are signed: origin, size and root in base64, a line each.
    pub fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(self.root.0))
    }

    /// SHA-256 of [`Self::body`]: what an anchor puts on a chain.
    pub fn digest(&self) -> Digest {
        Digest::of(self.body().as_bytes())
    }

    /// Reads a note's text. Extension lines after the third are passed over.
    ///
    /// # Errors
    ///
    /// [`HeadError`] if the text has another form. A size of 0 may have any root here, as in C2SP;
    /// [`Self::check`] refuses it.
    pub fn parse(text: &str) -> Result<Self, HeadError> {
        let lines: Vec<&str> =
            text.strip_suffix('\n').ok_or(HeadError::Lines)?.split('\n').collect();
        let [origin, size, root, ..] = lines[..] else { return Err(HeadError::Lines) };
        if lines.iter().any(|line| line.is_empty()) {
            return Err(HeadError::Lines);
        }
        Ok(Self { origin: origin.to_owned(), size: read_size(size)?, root: read_root(root)? })
    }

    /// Whether a tree can have this root as far as the size alone tells.
    ///
    /// # Errors
    ///
    /// [`HeadError::Empty`] if the size is 0 and the root another than `SHA-256("")`.
    pub fn check(&self) -> Result<(), HeadError> {
        if self.size == 0 && self.root != empty_root() {
            return Err(HeadError::Empty { expected: empty_root(), found: self.root });
        }
        Ok(())
    }

    /// The note of this head, signed by the log's key.
    ///
    /// # Errors
    ///
    /// [`HeadError`] if the key is of another log, or [`Self::check`] refuses the head.
    pub fn sign(&self, key: &LogKey) -> Result<String, HeadError> {
        self.check_origin(key.name())?;
        self.check()?;
        Ok(key.sign(&self.body())?)
    }

    /// The head in a note, if the log's key signed it. Signatures of others are passed over.
    ///
    /// # Errors
    ///
    /// [`HeadError`] if the note cannot be read or verified, is of another origin than the key's
    /// name, or [`Self::check`] refuses the head.
    pub fn open(note: &[u8], key: &VerifierKey) -> Result<Self, HeadError> {
        Self::open_by_any(note, std::slice::from_ref(key))
    }

    /// As [`Self::open`], if one of the log's keys signed it: a log whose key changed has several.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_by_any(note: &[u8], keys: &[VerifierKey]) -> Result<Self, HeadError> {
        let note = SignedNote::parse(note)?;
        let signers = note.verify(keys)?;
        let head = Self::parse(note.text())?;
        signers.iter().try_for_each(|name| head.check_origin(name))?;
        head.check()?;
        Ok(head)
    }

    fn check_origin(&self, name: &str) -> Result<(), HeadError> {
        if self.origin == name {
            return Ok(());
        }
        Err(HeadError::Origin { expected: name.to_owned(), found: self.origin.clone() })
    }
}

fn read_size(text: &str) -> Result<u64, HeadError> {
    let size = text.parse::<u64>().ok().filter(|size| size.to_string() == text);
    size.ok_or_else(|| HeadError::Size { found: text.chars().take(80).collect() })
}

fn read_root(text: &str) -> Result<Digest, HeadError> {
    let bytes = BASE64.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    let found = || text.chars().take(80).collect();
    bytes.map(Digest).ok_or_else(|| HeadError::Root { found: found() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> LogKey {
        LogKey::from_seed("ledger.example/rounds", &[7; 32]).unwrap()
    }

    fn head() -> TreeHead {
        TreeHead { origin: key().name().to_owned(), size: 9, root: Digest::of(b"root") }
    }

    #[test]
    fn a_signed_head_opens() {
        let note = head().sign(&key()).unwrap();
        assert_eq!(TreeHead::open(note.as_bytes(), key().verifier()), Ok(head()));
        assert_eq!(head().digest(), Digest::of(head().body().as_bytes()));
    }

    #[test]
    fn a_head_of_another_log_is_neither_signed_nor_opened() {
        let other = TreeHead { origin: "ledger.example/submissions".to_owned(), ..head() };
        assert!(matches!(other.sign(&key()), Err(HeadError::Origin { .. })));
        let note = key().sign(&other.body()).unwrap();
        let opened = TreeHead::open(note.as_bytes(), key().verifier());
        assert!(matches!(opened, Err(HeadError::Origin { .. })));
    }

    #[test]
    fn an_empty_log_has_one_root() {
        let wrong = TreeHead { size: 0, ..head() };
        assert!(matches!(wrong.sign(&key()), Err(HeadError::Empty { .. })));
        let note = key().sign(&wrong.body()).unwrap();
        let opened = TreeHead::open(note.as_bytes(), key().verifier());
        assert!(matches!(opened, Err(HeadError::Empty { .. })));
        assert!(TreeHead { root: empty_root(), ..wrong }.sign(&key()).is_ok());
    }

    proptest! {
        /// What we take of changed bodies, tlog_tiles takes too and reads the same.
        #[test]
        fn bodies_are_those_of_the_tlog_tiles_crate(at: usize, byte: u8, how in 0..3u8) {
            let mut body = head().body().into_bytes();
            let at = at % body.len();
            match how {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ => body.truncate(at),
            }
            let text = std::str::from_utf8(&body).unwrap_or("");
            if let Ok(ours) = TreeHead::parse(text) {
                let theirs = tlog_tiles::Checkpoint::from_bytes(&body).unwrap();
                prop_assert_eq!(theirs.origin(), &ours.origin);
                prop_assert_eq!(theirs.size(), ours.size);
                prop_assert_eq!(theirs.hash().0, ours.root.0);
            }
        }

        #[test]
        fn no_text_panics(text: String, lines in "(.{0,8}\n){0,6}") {
            let _ = TreeHead::parse(&text);
            let _ = TreeHead::parse(&lines);
        }
    }
}
