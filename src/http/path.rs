//! Request paths and queries: split and percent-decoded once, never twice.

use super::problem::Problem;

/// The parts of a request path between its slashes, decoded. A trailing slash leaves an empty last part.
///
/// # Errors
///
/// [`Problem`] (400) if an escape is not two hex digits or what it gives is not UTF-8.
pub fn split(path: &str) -> Result<Vec<String>, Problem> {
    path.strip_prefix('/').unwrap_or(path).split('/').map(decode).collect()
}

/// One part, decoded.
fn decode(part: &str) -> Result<String, Problem> {
    let bytes = unescape(part.as_bytes(), false)
        .ok_or_else(|| Problem::bad_path("a percent sign takes two hex digits"))?;
    String::from_utf8(bytes).map_err(|_| Problem::bad_path("the path is not UTF-8"))
}

/// Bytes with their `%XX` decoded, once; and plus signs as spaces, where a query has them so.
fn unescape(bytes: &[u8], plus: bool) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        out.push(match byte {
            b'%' => {
                let (digits, after) = rest.split_first_chunk::<2>()?;
                rest = after;
                hex(digits[0])? << 4 | hex(digits[1])?
            }
            b'+' if plus => b' ',
            byte => byte,
        });
    }
    Some(out)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// Whether a part can be a file's name: `.`, `..`, nothing, separators and control characters cannot.
pub fn is_name(part: &str) -> bool {
    !matches!(part, "" | "." | "..")
        && !part.contains(|c: char| c == '/' || c == '\\' || c.is_control())
}

/// A request's query: names and values, decoded. What no endpoint asks for is passed over.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads what stands behind the question mark.
    ///
    /// # Errors
    ///
    /// [`Problem`] (400) if an escape or its encoding is wrong.
    pub fn parse(text: Option<&str>) -> Result<Self, Problem> {
        let one = |text: &str| {
            let bytes = unescape(text.as_bytes(), true)
                .ok_or_else(|| Problem::bad_query("a percent sign takes two hex digits"))?;
            String::from_utf8(bytes).map_err(|_| Problem::bad_query("the query is not UTF-8"))
        };
        let pairs = text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((one(name)?, one(value)?))
        };
        pairs.map(pair).collect::<Result<_, _>>().map(Self)
    }

    /// The value of `name`, if it is given.
    ///
    /// # Errors
    ///
    /// [`Problem`] (400) if it is given twice.
    pub fn get(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self.0.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err(Problem::bad_query(format!("{name} is given twice"))),
        }
    }

    /// All values of `name`, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs().filter(move |(n, _)| *n == name).map(|(_, value)| value)
    }

    /// All names and values, in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of `name` as what it has to be, such as `a number`.
    ///
    /// # Errors
    ///
    /// [`Problem`] (400) if it is something else.
    pub fn parsed<T: std::str::FromStr>(
        &self,
        name: &str,
        what: &str,
    ) -> Result<Option<T>, Problem> {
        let parse = |value: &str| {
            value.parse().map_err(|_| Problem::bad_query(format!("{name} is not {what}")))
        };
        self.get(name)?.map(parse).transpose()
    }

    /// The value of `name` as a number in decimal digits, at most `max`.
    ///
    /// # Errors
    ///
    /// [`Problem`] (400) if it is something else.
    pub fn number(&self, name: &str, max: u64) -> Result<Option<u64>, Problem> {
        let Some(text) = self.get(name)? else { return Ok(None) };
        match number(text).filter(|&value| value <= max) {
            Some(value) => Ok(Some(value)),
            None => Err(Problem::bad_query(format!("{name} is not a number up to {max}"))),
        }
    }
}

/// A number written in decimal digits alone.
pub fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_decoded_once() {
        assert_eq!(split("/a/b%2Fc/%252e/").unwrap(), ["a", "b/c", "%2e", ""]);
        assert_eq!(split("/").unwrap(), [""]);
        for bad in ["/%", "/%2", "/%zz", "/%+1", "/%ff"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_do_not_lead_elsewhere() {
        for bad in ["", ".", "..", "a/b", "a\\b", "a\0", "a\n"] {
            assert!(!is_name(bad), "{bad:?}");
        }
        assert!(is_name("...") && is_name("hundred=7") && is_name("é"));
    }

    #[test]
    fn a_query_gives_each_name_once() {
        let query = Query::parse(Some("a=1&b=x+y%26&&c")).unwrap();
        assert_eq!(query.get("b").unwrap(), Some("x y&"));
        assert_eq!((query.get("c").unwrap(), query.get("d").unwrap()), (Some(""), None));
        assert_eq!(query.number("a", 1).unwrap(), Some(1));
        assert!(query.number("a", 0).is_err() && query.number("b", 9).is_err());
        assert!(Query::parse(Some("a=1&a=2")).unwrap().get("a").is_err());
        assert!(["+1", "-0", "", " 1", "18446744073709551616"].iter().all(|t| number(t).is_none()));
    }
}
