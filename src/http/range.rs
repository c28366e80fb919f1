//! Which bytes of a representation a request asks for: `Range` and the conditions about its ETag.
//!
//! RFC 9110, sections 13 and 14, with the choices of `schema/http.md`. HEAD is judged like GET.

use std::ops::Range;

use hyper::{
    HeaderMap,
    header::{HeaderName, IF_MATCH, IF_NONE_MATCH, IF_RANGE, RANGE},
};

/// What to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All bytes: 200.
    Whole,
    /// These bytes: 206. Never empty.
    Part(Range<u64>),
    /// The client has it: 304.
    NotModified,
    /// The client means another version: 412.
    PreconditionFailed,
    /// No byte of the range is there: 416.
    Unsatisfiable,
}

/// What `headers` ask of `bytes` bytes with this ETag, which stands without quotes and is strong.
pub fn wanted(headers: &HeaderMap, etag: &str, bytes: u64) -> Wanted {
    if headers.contains_key(IF_MATCH) && !names(headers, IF_MATCH, etag, false) {
        return Wanted::PreconditionFailed;
    }
    if names(headers, IF_NONE_MATCH, etag, true) {
        return Wanted::NotModified;
    }
    // A date never equals an ETag: there are no dates here, so what is meant is not known.
    if headers.contains_key(IF_RANGE) && !is_exactly(headers, IF_RANGE, etag) {
        return Wanted::Whole;
    }
    match only(headers, RANGE) {
        Some(range) => wanted_range(range, bytes),
        None => Wanted::Whole,
    }
}

/// The value of a header that is there once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// Whether a list of entity tags names this one. `*` names every one.
fn names(headers: &HeaderMap, name: HeaderName, etag: &str, weak: bool) -> bool {
    let names = |tag: &str| {
        let tag = tag.trim();
        let tag = tag.strip_prefix("W/").filter(|_| weak).unwrap_or(tag);
        tag == "*" || unquoted(tag) == Some(etag)
    };
    // No ETag of ours holds a comma, so whoever sends one in quotes means another.
    headers.get_all(name).iter().any(|value| value.to_str().is_ok_and(|v| v.split(',').any(names)))
}

fn is_exactly(headers: &HeaderMap, name: HeaderName, etag: &str) -> bool {
    only(headers, name).is_some_and(|value| unquoted(value.trim()) == Some(etag))
}

fn unquoted(tag: &str) -> Option<&str> {
    tag.strip_prefix('"')?.strip_suffix('"')
}

/// Bytes of a `Range` header: one range is taken, several are answered with the whole, and what is
/// malformed or of another unit is passed over.
fn wanted_range(header: &str, bytes: u64) -> Wanted {
    let Some((unit, set)) = header.split_once('=') else { return Wanted::Whole };
    let mut specs = set.split(',').map(str::trim).filter(|spec| !spec.is_empty());
    match (unit.trim().eq_ignore_ascii_case("bytes"), specs.next(), specs.next()) {
        (true, Some(spec), None) => one_range(spec, bytes).unwrap_or(Wanted::Whole),
        _ => Wanted::Whole,
    }
}

/// None if it is malformed.
fn one_range(spec: &str, bytes: u64) -> Option<Wanted> {
    let (first, last) = spec.split_once('-')?;
    let range = if first.is_empty() {
        let suffix = saturating(last)?;
        match (suffix, bytes) {
            (0, _) => return Some(Wanted::Unsatisfiable),
            // Nothing is all there is.
            (_, 0) => return Some(Wanted::Whole),
            _ => bytes.saturating_sub(suffix)..bytes,
        }
    } else {
        let first = saturating(first)?;
        let last = if last.is_empty() { u64::MAX } else { saturating(last)? };
        if last < first {
            return None;
        }
        first..last.saturating_add(1).min(bytes)
    };
    Some(if range.is_empty() { Wanted::Unsatisfiable } else { Wanted::Part(range) })
}

/// A number in digits; one that is larger than any file is as good as any other such.
fn saturating(digits: &str) -> Option<u64> {
    let all = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    all.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(HeaderName, &str)], bytes: u64) -> Wanted {
        let headers = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
        wanted(&headers.collect(), "e", bytes)
    }

    #[test]
    fn ranges_are_taken_as_clients_mean_them() {
        use Wanted::{Part, Unsatisfiable, Whole};
        let huge = "99999999999999999999999";
        for (range, bytes, expected) in [
            ("bytes=0-0", 10, Part(0..1)),
            ("bytes=3-", 10, Part(3..10)),
            ("bytes=3-5", 10, Part(3..6)),
            ("bytes=3-99", 10, Part(3..10)),
            (&format!("bytes=3-{huge}"), 10, Part(3..10)),
            ("bytes=-4", 10, Part(6..10)),
            ("bytes=-40", 10, Part(0..10)),
            (&format!("bytes=-{huge}"), 10, Part(0..10)),
            ("BYTES = 3-5 ,", 10, Part(3..6)),
            ("bytes=10-", 10, Unsatisfiable),
            ("bytes=10-20", 10, Unsatisfiable),
            (&format!("bytes={huge}-"), 10, Unsatisfiable),
            ("bytes=-0", 10, Unsatisfiable),
            ("bytes=0-", 0, Unsatisfiable),
            ("bytes=-1", 0, Whole),
            ("bytes=5-3", 10, Whole),
            ("bytes=0-1,3-4", 10, Whole),
            ("bytes=", 10, Whole),
            ("bytes=-", 10, Whole),
            ("bytes=+1-2", 10, Whole),
            ("bytes=1-2-3", 10, Whole),
            ("lines=1-2", 10, Whole),
            ("bytes", 10, Whole),
        ] {
            assert_eq!(of(&[(RANGE, range)], bytes), expected, "{range} of {bytes}");
        }
        let last = u64::MAX - 1;
        assert_eq!(of(&[(RANGE, "bytes=-1")], u64::MAX), Part(last..u64::MAX));
    }

    #[test]
    fn conditions_come_before_the_range() {
        let range = (RANGE, "bytes=1-2");
        let part = Wanted::Part(1..3);
        for (name, value, expected) in [
            (IF_MATCH, "\"e\"", part.clone()),
            (IF_MATCH, "*", part.clone()),
            (IF_MATCH, "\"x\", \"e\"", part.clone()),
            (IF_MATCH, "W/\"e\"", Wanted::PreconditionFailed),
            (IF_MATCH, "\"x\"", Wanted::PreconditionFailed),
            (IF_NONE_MATCH, "\"e\"", Wanted::NotModified),
            (IF_NONE_MATCH, "W/\"e\"", Wanted::NotModified),
            (IF_NONE_MATCH, "*", Wanted::NotModified),
            (IF_NONE_MATCH, "\"x\"", part.clone()),
            (IF_RANGE, "\"e\"", part.clone()),
            (IF_RANGE, "W/\"e\"", Wanted::Whole),
            (IF_RANGE, "\"x\"", Wanted::Whole),
            (IF_RANGE, "Sat, 28 Nov 2026 12:00:00 GMT", Wanted::Whole),
        ] {
            assert_eq!(of(&[(name.clone(), value), range.clone()], 10), expected, "{name} {value}");
        }
        let both = [(IF_MATCH, "\"x\""), (IF_NONE_MATCH, "\"e\"")];
        assert_eq!(of(&both, 10), Wanted::PreconditionFailed);
        assert_eq!(of(&[range.clone(), range], 10), Wanted::Whole, "two Range headers");
    }
}
