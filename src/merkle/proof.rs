//! Inclusion proofs that travel alone: an index, the hashes, and the signed head they lead to.
//!
//! The text is that of C2SP tlog-proof, so that any tool for such logs reads it. See
//! `schema/bundle.md`.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use super::{
    head::{HeadError, TreeHead},
    note::{NOTE_BYTES_MAX, VerifierKey},
    policy::open_head,
    tree::{ProofError, leaf_hash, verify_inclusion},
};
use crate::types::digest::Digest;

/// The first line.
const VERSION: &str = "c2sp.org/tlog-proof@v1";

/// Most hashes of a proof in a tree of u64 size.
const HASHES_MAX: usize = 64;

/// A proof that an entry is in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogProof {
    /// Of the entry in its log.
    pub index: u64,
    /// The inclusion proof, the sibling first.
    pub hashes: Vec<Digest>,
    /// The signed head as it was published.
    pub note: String,
}

/// A text that is no such proof, or proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum LogProofError {
    #[error("line {line} of the log proof is not as C2SP tlog-proof has it")]
    Line { line: usize },
    #[error("the log proof has no blank line before its head")]
    Head,
    #[error("a log proof is UTF-8 of at most {NOTE_BYTES_MAX} bytes and {HASHES_MAX} hashes")]
    Long,
    #[error(transparent)]
    Note(#[from] HeadError),
    #[error(transparent)]
    Proof(#[from] ProofError),
}

impl LogProof {
    /// The text.
    pub fn to_text(&self) -> String {
        let mut text = format!("{VERSION}\nindex {}\n", self.index);
        for hash in &self.hashes {
            text += &BASE64.encode(hash.0);
            text.push('\n');
        }
        text + "\n" + &self.note
    }

    /// Reads the text. An `extra` line is passed over.
    ///
    /// # Errors
    ///
    /// [`LogProofError`] names the first line that another text than [`Self::to_text`]'s has.
    pub fn parse(bytes: &[u8]) -> Result<Self, LogProofError> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= NOTE_BYTES_MAX);
        let text = text.ok_or(LogProofError::Long)?;
        let (proof, note) = text.split_once("\n\n").ok_or(LogProofError::Head)?;
        let mut lines = (1..).zip(proof.split('\n')).peekable();
        let wrong = |line| LogProofError::Line { line };
        lines.next().filter(|(_, line)| *line == VERSION).ok_or(wrong(1))?;
        let extra = |line: &str| line.strip_prefix("extra ").map(|text| BASE64.decode(text));
        if let Some((line, decoded)) = lines.peek().and_then(|(n, l)| Some((*n, extra(l)?))) {
            decoded.map_err(|_| wrong(line))?;
            lines.next();
        }
        let (line, index) = lines.next().ok_or(wrong(2))?;
        let index = index
            .strip_prefix("index ")
            .and_then(|text| text.parse::<u64>().ok().filter(|index| index.to_string() == text));
        let index = index.ok_or(wrong(line))?;
        let mut hashes = Vec::new();
        for (line, text) in lines {
            let hash = BASE64.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
            hashes.push(Digest(hash.ok_or(wrong(line))?));
            if hashes.len() > HASHES_MAX {
                return Err(LogProofError::Long);
            }
        }
        Ok(Self { index, hashes, note: note.to_owned() })
    }

    /// The head, if `entry` is at the index of a log that one of these keys signed for.
    ///
    /// # Errors
    ///
    /// [`LogProofError::Note`] or [`LogProofError::Proof`].
    pub fn verify(&self, entry: &[u8], keys: &[VerifierKey]) -> Result<TreeHead, LogProofError> {
        let head = open_head(self.note.as_bytes(), keys)?;
        self.check(entry, &head)?;
        Ok(head)
    }

    /// Whether the hashes lead from `entry` to the root of `head`.
    ///
    /// # Errors
    ///
    /// [`ProofError`].
    pub fn check(&self, entry: &[u8], head: &TreeHead) -> Result<(), ProofError> {
        verify_inclusion(self.index, head.size, &leaf_hash(entry), &self.hashes, &head.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_reads_is_spelled_so(
            index: u64, hashes in prop::collection::vec(any::<[u8; 32]>(), 0..4), note: String,
        ) {
            let hashes = hashes.into_iter().map(Digest).collect();
            let proof = LogProof { index, hashes, note };
            prop_assert_eq!(LogProof::parse(proof.to_text().as_bytes()), Ok(proof));
        }

        #[test]
        fn no_text_panics(text in "(c2sp.org/tlog-proof@v1\n)?(extra |index [0-9]|AAAA|=|\n){0,9}") {
            let _ = LogProof::parse(text.as_bytes());
        }
    }
}
