//! Why a submission is not folded: a code for programs, expected and found for people. See
//! `schema/records.md`.

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

/// The rejection codes. Stored: a code is never renamed or reused.
///
/// Declared in the order in which faults are reported: of several, the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Code {
    /// The file ends early, or is not the archive it should be.
    Truncated,
    /// An entry's bytes do not have the CRC-32 its archive states.
    CrcMismatch,
    /// The pickle names something outside the few globals that occur, or is not well formed.
    UnsafePickle,
    /// A tensor of the model, or a part of one, is not there.
    MissingTensor,
    /// A tensor that the model does not have.
    UnknownTensor,
    /// The dtype, the number of blocks or the length is another.
    WrongShape,
    /// Another number of entries per block.
    WrongTopK,
    /// A position outside its block.
    IndexOutOfRange,
    /// A position twice in one block.
    DuplicateIndex,
    /// A code that the book does not have, or non-zero padding.
    CodeOutOfRange,
    /// A book entry that is NaN or infinite.
    NonFinite,
    /// A value of 2^60 or more.
    Magnitude,
    /// A quantisation scale outside 1e-12 .. 1e4.
    WrongScale,
    /// Made for another round.
    WrongRound,
    /// Made from another base.
    WrongBase,
    /// The signature does not verify.
    BadSignature,
    /// Not the first valid submission of its miner.
    DuplicateSubmission,
    /// The same delta as another miner's.
    DuplicateDelta,
    /// A reserve whose place was not needed.
    ReserveUnused,
    /// After the round had closed.
    Late,
    /// Of a miner who was not expected.
    NotListed,
    /// Nothing came.
    Absent,
}

impl Code {
    /// The stored spelling, such as `crc-mismatch`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::CrcMismatch => "crc-mismatch",
            Self::UnsafePickle => "unsafe-pickle",
            Self::MissingTensor => "missing-tensor",
            Self::UnknownTensor => "unknown-tensor",
            Self::WrongShape => "wrong-shape",
            Self::WrongTopK => "wrong-top-k",
            Self::IndexOutOfRange => "index-out-of-range",
            Self::DuplicateIndex => "duplicate-index",
            Self::CodeOutOfRange => "code-out-of-range",
            Self::NonFinite => "non-finite",
            Self::Magnitude => "magnitude",
            Self::WrongScale => "wrong-scale",
            Self::WrongRound => "wrong-round",
            Self::WrongBase => "wrong-base",
            Self::BadSignature => "bad-signature",
            Self::DuplicateSubmission => "duplicate-submission",
            Self::DuplicateDelta => "duplicate-delta",
            Self::ReserveUnused => "reserve-unused",
            Self::Late => "late",
            Self::NotListed => "not-listed",
            Self::Absent => "absent",
        }
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Longest text of a refusal's field, in characters.
const TEXT_CHARS_MAX: usize = 200;

/// A submission's fault: the rule that it broke, where, and both values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The rule that was broken.
    pub code: Code,
    /// The tensor concerned, if one is.
    pub tensor: Option<String>,
    /// What the rule asks for.
    pub expected: String,
    /// What was there.
    pub found: String,
}

impl Refusal {
    /// A refusal; the texts may quote hostile input and are made fit to store and to print.
    pub fn new(
        code: Code,
        tensor: Option<&str>,
        expected: impl AsRef<str>,
        found: impl AsRef<str>,
    ) -> Self {
        Self {
            code,
            tensor: tensor.map(printable),
            expected: printable(expected.as_ref()),
            found: printable(found.as_ref()),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.code)?;
        if let Some(tensor) = &self.tensor {
            write!(f, "{tensor}: ")?;
        }
        write!(f, "expected {}, found {}", self.expected, self.found)
    }
}

/// `text` without control characters, in NFC, cut to a length a record can hold.
fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(TEXT_CHARS_MAX).map(clean).nfc().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_made_fit_to_store() {
        let refusal =
            Refusal::new(Code::MissingTensor, Some("a\u{1b}[2J"), "e\u{301}", "x".repeat(999));
        assert_eq!(refusal.tensor.as_deref(), Some("a\u{fffd}[2J"));
        assert_eq!(refusal.expected, "\u{e9}");
        assert_eq!(refusal.found.len(), TEXT_CHARS_MAX);
    }

    #[test]
    fn the_stored_spelling_is_the_printed_one() {
        for code in [Code::Truncated, Code::WrongTopK, Code::ReserveUnused, Code::Absent] {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}
