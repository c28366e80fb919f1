//! Ranges of a file: how they are asked for, and whether an answer is of them.

use std::ops::Range;

use reqwest::{
    StatusCode,
    blocking::Response,
    header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap},
};

/// Which bytes of a file are asked for.
pub(super) enum Wanted {
    Exactly(Range<u64>),
    First(u64),
    Last(u64),
}

impl Wanted {
    /// As the request says it.
    pub(super) fn header(&self) -> String {
        match self {
            Self::Exactly(Range { start, end }) => format!("bytes={start}-{}", end - 1),
            Self::First(bytes) => format!("bytes=0-{}", bytes - 1),
            Self::Last(bytes) => format!("bytes=-{bytes}"),
        }
    }

    /// What that is of a file of so many bytes.
    fn of(&self, whole: u64) -> Range<u64> {
        match *self {
            Self::Exactly(Range { start, end }) => start..end,
            Self::First(bytes) => 0..bytes.min(whole),
            Self::Last(bytes) => whole.saturating_sub(bytes)..whole,
        }
    }

    /// The bytes that an answer has and the length of the file, if that is what was asked for.
    pub(super) fn answer(&self, answer: &Response) -> Option<(Range<u64>, u64)> {
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                answered(answer).filter(|(part, whole)| *part == self.of(*whole))
            }
            // A server may send all of a file that was asked for whole.
            StatusCode::OK => {
                let whole = length(answer.headers())?;
                (self.of(whole) == (0..whole)).then_some((0..whole, whole))
            }
            // A file without bytes has no range.
            StatusCode::RANGE_NOT_SATISFIABLE if !matches!(self, Self::Exactly(_)) => {
                let empty = header(answer.headers(), &CONTENT_RANGE) == "bytes */0";
                empty.then_some((0..0, 0))
            }
            _ => None,
        }
    }
}

/// A header's text; nothing where it is not there, twice, or no text.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &reqwest::header::HeaderName) -> &'a str {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (Some(value), None) => value.to_str().unwrap_or_default(),
        _ => "",
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    header(headers, &CONTENT_LENGTH).parse().ok()
}

/// The bytes that a partial answer says it has, and the length of the whole.
fn answered(answer: &Response) -> Option<(Range<u64>, u64)> {
    let text = header(answer.headers(), &CONTENT_RANGE).strip_prefix("bytes ")?;
    let (range, whole) = text.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let whole = whole.parse().ok()?;
    (first <= last && last < whole).then_some((first..last + 1, whole))
}

/// What an answer says that it has, for an error.
pub(super) fn said(answer: &Response) -> String {
    match header(answer.headers(), &CONTENT_RANGE) {
        "" => format!("status {}", answer.status().as_u16()),
        range => range.escape_debug().to_string(),
    }
}
