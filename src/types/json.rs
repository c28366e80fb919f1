//! Canonical JSON (RFC 8785): the one spelling of a record, so that its hash means something.
//!
//! [`to_vec`] writes records, [`from_slice`] reads them back and takes no other spelling.
//! [`canonicalise`] is the plain canonicaliser for any I-JSON text. See `schema/json.md`.
//!
//! Trust: nothing in the text is believed. Nesting is bounded by `serde_json` (127 levels).

use serde::{
    Deserializer, Serialize,
    de::{DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use unicode_normalization::is_nfc;

/// Largest integer of a record, of either sign: every JSON reader holds it exactly.
pub const INTEGER_MAX: i64 = (1 << 53) - 1;

/// Text that is not the canonical JSON of a record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// Not JSON, nested too deeply, or not the expected fields.
    #[error("{0}")]
    Syntax(#[from] serde_json::Error),
    /// An object names a member once.
    #[error("the member {key:?} stands twice in one object")]
    Twice {
        /// Its name.
        key: String,
    },
    /// Integers end where some readers round.
    #[error("the integer {literal} is beyond {INTEGER_MAX}")]
    Integer {
        /// As it was written.
        literal: String,
    },
    /// Records hold integers only; floats stand as the hex of their bits.
    #[error("a record holds integers, not {literal}")]
    Fraction {
        /// As it was written.
        literal: String,
    },
    /// No f64 is that large.
    #[error("the number {literal} is beyond the largest f64")]
    Infinite {
        /// As it was written.
        literal: String,
    },
    /// Text of a record has one spelling and cannot write over a terminal.
    #[error("{text:?} holds a control character or is not in Unicode normalization form C")]
    Text {
        /// The member's name or the string.
        text: String,
    },
    /// JSON, but spelled another way than [`to_vec`] does.
    #[error("not the canonical form of the record: it differs at byte {at}")]
    NotCanonical {
        /// The first byte that differs.
        at: usize,
    },
}

/// The canonical JSON of a record.
///
/// # Panics
///
/// If the record breaks a rule of its reader: a float, an integer beyond [`INTEGER_MAX`], a text
/// that is not [`is_record_text`]. What comes from outside is checked where it comes in; written
/// unchecked, such a record could never be read again.
pub fn to_vec<T: Serialize>(value: &T) -> Vec<u8> {
    record_bytes(value).expect("a record holds what its reader takes; see json::is_record_text")
}

/// Reads a record from its canonical JSON.
///
/// # Errors
///
/// [`JsonError`]: unknown fields, members named twice, other numbers than integers up to
/// [`INTEGER_MAX`], other text than [`is_record_text`], and whatever else [`to_vec`] would not
/// write for the record.
pub fn from_slice<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    same_bytes(bytes, &canonical_form(bytes, Rules::Record)?)?;
    let record = serde_json::from_slice(bytes)?;
    // serde also reads a struct from a list, an absent `null`, a unit variant from an object.
    same_bytes(bytes, &record_bytes(&record)?)?;
    Ok(record)
}

/// The canonical form of any I-JSON text: strings as they are, numbers as ECMAScript prints them.
///
/// # Errors
///
/// [`JsonError`] if the text is not JSON, names a member twice, holds a lone surrogate, an integer
/// literal beyond [`INTEGER_MAX`] or a number beyond f64.
pub fn canonicalise(text: &[u8]) -> Result<Vec<u8>, JsonError> {
    canonical_form(text, Rules::Any)
}

/// Whether a record may hold `text`: NFC, and no control characters.
pub fn is_record_text(text: &str) -> bool {
    !text.chars().any(char::is_control) && is_nfc(text)
}

fn record_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>, JsonError> {
    canonical_form(&serde_json::to_vec(value)?, Rules::Record)
}

fn same_bytes(found: &[u8], canonical: &[u8]) -> Result<(), JsonError> {
    if found == canonical {
        return Ok(());
    }
    let shared = found.iter().zip(canonical).take_while(|(a, b)| a == b).count();
    Err(JsonError::NotCanonical { at: shared })
}

fn canonical_form(text: &[u8], rules: Rules) -> Result<Vec<u8>, JsonError> {
    let mut numbers = Numbers(text);
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Reader(&mut numbers).deserialize(&mut deserializer)?;
    deserializer.end()?;
    let mut out = Vec::with_capacity(text.len());
    value.write(&mut out, rules)?;
    Ok(out)
}

/// What a text may hold.
#[derive(Clone, Copy, PartialEq)]
enum Rules {
    /// Any I-JSON.
    Any,
    /// What [`from_slice`] takes.
    Record,
}

/// JSON as it was written: members in their order and maybe repeated, numbers as their literal.
enum Value<'a> {
    Null,
    Bool(bool),
    Number(&'a str),
    Text(String),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

impl Value<'_> {
    fn write(self, out: &mut Vec<u8>, rules: Rules) -> Result<(), JsonError> {
        match self {
            Self::Null => out.extend(b"null"),
            Self::Bool(true) => out.extend(b"true"),
            Self::Bool(false) => out.extend(b"false"),
            Self::Number(literal) => write_number(literal, out, rules)?,
            Self::Text(text) => write_text(&text, out, rules)?,
            Self::List(items) => {
                out.push(b'[');
                for (at, item) in items.into_iter().enumerate() {
                    write_comma(at, out);
                    item.write(out, rules)?;
                }
                out.push(b']');
            }
            Self::Map(members) => write_members(members, out, rules)?,
        }
        Ok(())
    }
}

fn write_members(
    mut members: Vec<(String, Value<'_>)>,
    out: &mut Vec<u8>,
    rules: Rules,
) -> Result<(), JsonError> {
    members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    if let Some(pair) = members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(JsonError::Twice { key: excerpt(&pair[0].0) });
    }
    out.push(b'{');
    for (at, (key, value)) in members.into_iter().enumerate() {
        write_comma(at, out);
        write_text(&key, out, rules)?;
        out.push(b':');
        value.write(out, rules)?;
    }
    out.push(b'}');
    Ok(())
}

fn write_comma(at: usize, out: &mut Vec<u8>) {
    if at > 0 {
        out.push(b',');
    }
}

fn write_text(text: &str, out: &mut Vec<u8>, rules: Rules) -> Result<(), JsonError> {
    if rules == Rules::Record && !is_record_text(text) {
        return Err(JsonError::Text { text: excerpt(text) });
    }
    // serde_json escapes as RFC 8785 does: what JSON demands, short forms, lower-case hex.
    serde_json::to_writer(out, text)?;
    Ok(())
}

fn write_number(literal: &str, out: &mut Vec<u8>, rules: Rules) -> Result<(), JsonError> {
    if !literal.contains(['.', 'e', 'E']) {
        let integer = literal
            .parse::<i64>()
            .ok()
            .filter(|n| (-INTEGER_MAX..=INTEGER_MAX).contains(n))
            .ok_or_else(|| JsonError::Integer { literal: excerpt(literal) })?;
        out.extend(integer.to_string().as_bytes());
        return Ok(());
    }
    if rules == Rules::Record {
        return Err(JsonError::Fraction { literal: excerpt(literal) });
    }
    let number = literal
        .parse::<f64>()
        .ok()
        .filter(|n| n.is_finite())
        .ok_or_else(|| JsonError::Infinite { literal: excerpt(literal) })?;
    out.extend(ryu_js::Buffer::new().format_finite(number).as_bytes());
    Ok(())
}

/// What of a text an error message shows.
fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

/// The number literals of a JSON text, in order; each step drops what was read.
///
/// serde_json reads the text; its numbers are taken from here, since it turns large integers into
/// floats and rounds some decimal literals to a neighbour of the nearest f64.
struct Numbers<'a>(&'a [u8]);

impl<'a> Iterator for Numbers<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            let (&first, rest) = self.0.split_first()?;
            match first {
                b'"' => self.0 = after_string(rest),
                b'-' | b'0'..=b'9' => {
                    let part = |b: &u8| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                    let end = self.0.iter().position(|b| !part(b)).unwrap_or(self.0.len());
                    let (literal, rest) = self.0.split_at(end);
                    self.0 = rest;
                    return std::str::from_utf8(literal).ok();
                }
                _ => self.0 = rest,
            }
        }
    }
}

/// What follows the string whose opening quote is already read.
fn after_string(mut text: &[u8]) -> &[u8] {
    loop {
        text = match text {
            [] => return text,
            [b'"', rest @ ..] => return rest,
            [b'\\', _, rest @ ..] | [_, rest @ ..] => rest,
        };
    }
}

/// Reads one [`Value`], taking each number's literal from the text.
struct Reader<'r, 'a>(&'r mut Numbers<'a>);

impl<'a> Reader<'_, 'a> {
    fn number<E: serde::de::Error>(self) -> Result<Value<'a>, E> {
        self.0.next().map(Value::Number).ok_or_else(|| E::custom("a number without a literal"))
    }
}

impl<'de, 'a> DeserializeSeed<'de> for Reader<'_, 'a> {
    type Value = Value<'a>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value<'a>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, 'a> Visitor<'de> for Reader<'_, 'a> {
    type Value = Value<'a>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value<'a>, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value<'a>, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Value<'a>, E> {
        self.number()
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Value<'a>, E> {
        self.number()
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Value<'a>, E> {
        self.number()
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'a>, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value<'a>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(Reader(&mut *self.0))? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value<'a>, A::Error> {
        let mut members = Vec::new();
        while let Some(key) = access.next_key::<String>()? {
            members.push((key, access.next_value_seed(Reader(&mut *self.0))?));
        }
        Ok(Value::Map(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{
        record::{Disposition, RoundsEntry},
        submission::Submission,
    };
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Record {
        name: String,
        count: u64,
        parent: Option<u64>,
    }

    fn read(text: &str) -> Result<Record, JsonError> {
        from_slice(text.as_bytes())
    }

    fn canonical(text: &str) -> String {
        String::from_utf8(canonicalise(text.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn a_record_reads_back_from_its_one_spelling() {
        let record = Record { name: "wq".to_owned(), count: 9_007_199_254_740_991, parent: None };
        let bytes = to_vec(&record);
        assert_eq!(bytes, br#"{"count":9007199254740991,"name":"wq","parent":null}"#);
        assert_eq!(from_slice::<Record>(&bytes).unwrap(), record);
    }

    /// Enums with a tag inside, boxes, options, bit patterns: what records are made of.
    #[test]
    fn every_kind_of_entry_reads_back() {
        let hex = "00".repeat(32);
        let id = format!(r#"{{"bytes":8,"count":1,"root":"{hex}"}}"#);
        let rule = r#"{"bins":4,"chunk":64,"dialect":"templar","id":"sparse-mean-sgd/1","lr_f32":"3ecccccd","mean":"contributors","norm":"torch-cpu-f32","top_k":64}"#;
        let genesis = format!(
            r#"{{"anchor_hotkey":null,"chain_genesis":"{hex}","kind":"genesis","log_keys":{{"rounds":"r","submissions":"s"}},"miners":"listed","model":{id},"netuid":3,"origin":"o","rule":{rule},"run":"r","version":1}}"#
        );
        let round = format!(
            r#"{{"base":{id},"block":{{"hash":"{hex}","number":7}},"dispositions":{{"count":2,"root":"{hex}"}},"kind":"round","listed":[7,"{hex}"],"next":{id},"plan":{{"bytes":16,"root":"{hex}"}},"previous":"{hex}","reserve":[],"round":1,"rule":{rule},"skipped":[{{"element":5,"tensor":0}}],"submissions":{{"end":1,"root_at_end":"{hex}","start":0}}}}"#
        );
        for entry in [genesis, round] {
            let read: RoundsEntry = from_slice(entry.as_bytes()).unwrap();
            assert_eq!(to_vec(&read), entry.as_bytes());
            let other = entry.replacen('{', r#"{"a":1,"#, 1);
            assert!(matches!(
                from_slice::<RoundsEntry>(other.as_bytes()),
                Err(JsonError::Syntax(_))
            ));
        }
        let refusal = r#"{"code":"late","expected":"","found":"","tensor":null}"#;
        for outcome in [
            format!(r#"{{"delta":{id}}}"#),
            format!(r#"{{"refused":{refusal}}}"#),
            r#""unread""#.to_owned(),
        ] {
            let fetched = format!(
                r#"{{"base":{id},"file":"f","kind":"fetched","outcome":{outcome},"round":1,"source_bytes":9,"source_sha256":"{hex}","uid":7}}"#
            );
            assert_eq!(
                to_vec(&from_slice::<Submission>(fetched.as_bytes()).unwrap()),
                fetched.as_bytes()
            );
        }
        for verdict in [r#""absent""#, r#"{"accepted":{"order":0}}"#] {
            let entry = format!(r#"{{"index":null,"miner":7,"verdict":{verdict}}}"#);
            assert_eq!(
                to_vec(&from_slice::<Disposition>(entry.as_bytes()).unwrap()),
                entry.as_bytes()
            );
        }
    }

    #[test]
    fn other_spellings_of_a_record_are_refused() {
        for other in [
            r#"{"count":1,"name":"wq"}"#,
            r#"{"name":"wq","count":1,"parent":null}"#,
            r#"{"count":1, "name":"wq","parent":null}"#,
            r#"{"count":1,"name":"w\u0071","parent":null}"#,
            r#"["wq",1,null]"#,
            r#"{"count":-0,"name":"wq","parent":null}"#,
            "{\"count\":1,\"name\":\"wq\",\"parent\":null}\n",
        ] {
            assert!(matches!(read(other), Err(JsonError::NotCanonical { .. })), "{other}");
        }
    }

    #[test]
    fn a_unit_variant_is_not_read_from_an_object() {
        #[derive(Debug, Serialize, Deserialize)]
        enum Verdict {
            Absent,
        }
        assert!(from_slice::<Verdict>(br#""Absent""#).is_ok());
        let other = from_slice::<Verdict>(br#"{"Absent":null}"#);
        assert!(matches!(other, Err(JsonError::NotCanonical { at: 0 })));
    }

    #[test]
    fn what_a_record_cannot_hold_is_named() {
        assert!(matches!(read(r#"{"count":1,"count":1}"#), Err(JsonError::Twice { .. })));
        assert!(matches!(read(r#"{"count":1.0}"#), Err(JsonError::Fraction { .. })));
        assert!(matches!(read(r#"{"count":9007199254740992}"#), Err(JsonError::Integer { .. })));
        assert!(matches!(read(r#"{"count":1e2}"#), Err(JsonError::Fraction { .. })));
        assert!(matches!(read("{\"name\":\"e\u{301}\"}"), Err(JsonError::Text { .. })));
        assert!(matches!(read("{\"e\u{301}\":1}"), Err(JsonError::Text { .. })));
        assert!(matches!(read(r#"{"name":"\u001b[2J"}"#), Err(JsonError::Text { .. })));
        assert!(matches!(read("{\"name\":\"\u{7f}\"}"), Err(JsonError::Text { .. })));
        let unknown = r#"{"count":1,"extra":2,"name":"wq","parent":null}"#;
        assert!(matches!(read(unknown), Err(JsonError::Syntax(_))));
    }

    #[test]
    fn what_is_not_json_is_refused() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        let surrogates = [r#""\ud800""#, r#""\udc00""#, r#"{"\ud800":1}"#, r#""\ud800\u0041""#];
        let broken =
            ["", " ", "01", "[1,]", "{\"a\":1,}", "NaN", "1e400", "[1] 2", "'a'", "1.", "-"];
        for bad in broken.into_iter().chain(surrogates).chain([deep.as_str()]) {
            assert!(canonicalise(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(canonicalise(b"\"\xff\"").is_err());
        assert!(canonicalise(b"\"\x01\"").is_err());
    }

    #[test]
    fn numbers_are_printed_as_ecmascript_does() {
        for (literal, printed) in [
            ("1.0", "1"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("1E30", "1e+30"),
            ("4.50", "4.5"),
            ("2e-3", "0.002"),
            ("0.000000000000000000000000001", "1e-27"),
            ("333333333.33333329", "333333333.3333333"),
            ("1e21", "1e+21"),
            ("9007199254740993.0", "9007199254740992"),
            ("5e-324", "5e-324"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
        ] {
            assert_eq!(canonical(literal), printed, "{literal}");
        }
        for literal in ["9007199254740992", "-9007199254740992", "18446744073709551616"] {
            let refused = canonicalise(literal.as_bytes());
            assert!(matches!(refused, Err(JsonError::Integer { .. })), "{literal}");
        }
    }

    #[test]
    fn numbers_within_strings_are_text() {
        let text = r#"{"1":"2\"3","4\\":[5,"6",-7.5],"e1":true}"#;
        assert_eq!(canonical(text), text);
    }

    #[test]
    fn members_stand_in_the_order_of_utf_16() {
        // U+1F600 is d83d de00 in UTF-16, before U+FB33; in UTF-8 it comes after.
        assert_eq!(
            canonical("{\"\u{fb33}\":1,\"\u{1f600}\":2}"),
            "{\"\u{1f600}\":2,\"\u{fb33}\":1}"
        );
    }
}
