//! Pages of a long list: `limit` items after the cursor `after`, and a `Link` to the next page.

use hyper::header::{HeaderValue, LINK};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    endpoint::{Answer, Call, Endpoint, json_answer},
    problem::Problem,
};

/// Items of a page unless the client wants fewer or more.
const LIMIT: u64 = 100;

/// Most items of a page.
const LIMIT_MAX: u64 = 1000;

/// Largest cursor: every integer up to it is exact in JSON.
pub const CURSOR_MAX: u64 = (1 << 53) - 1;

/// Which page a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The cursor; none for the first page.
    pub after: Option<u64>,
    /// Most items.
    pub limit: usize,
}

/// A page of items, each of which has a cursor.
#[derive(Debug, Serialize)]
pub struct Page<T> {
    /// In ascending order of their cursors.
    pub items: Vec<T>,
    /// The cursor of the last item, if there are more.
    pub next: Option<u64>,
}

impl Wish {
    /// What the query asks for.
    ///
    /// # Errors
    ///
    /// [`Problem`] (400).
    pub fn of(call: &Call) -> Result<Self, Problem> {
        let limit = call.query().number("limit", LIMIT_MAX)?.unwrap_or(LIMIT);
        if limit == 0 {
            return Err(Problem::bad_query("limit is 0; a page has at least one item"));
        }
        let after = call.query().number("after", CURSOR_MAX)?;
        Ok(Self { after, limit: limit as usize })
    }

    /// The first cursor that may be on the page, if they are numbers from 0.
    pub fn start(self) -> u64 {
        self.after.map_or(0, |after| after + 1)
    }

    /// The page of `items`, which come after the cursor.
    pub fn page<T>(self, mut items: impl Iterator<Item = (u64, T)>) -> Page<T> {
        let mut page = Page { items: Vec::new(), next: None };
        let mut last = None;
        for (cursor, item) in items.by_ref().take(self.limit) {
            last = Some(cursor);
            page.items.push(item);
        }
        page.next = last.filter(|_| items.next().is_some());
        page
    }
}

/// The page as an answer to `call`.
///
/// # Errors
///
/// As [`json_answer`].
pub fn page_answer<T: Serialize>(call: &Call, page: &Page<T>, limit: usize) -> Answer {
    let mut response = json_answer(page)?;
    if let Some(next) = page.next {
        let link = format!("<{}?after={next}&limit={limit}>; rel=\"next\"", call.context.path);
        response.headers_mut().extend(HeaderValue::from_str(&link).ok().map(|link| (LINK, link)));
    }
    Ok(response)
}

impl Endpoint {
    /// It answers with pages of items of this schema.
    pub fn pages(self, what: &'static str, item: Value) -> Self {
        let schema = json!({
            "type": "object",
            "required": ["items", "next"],
            "properties": {
                "items": {"type": "array", "items": item, "maxItems": LIMIT_MAX},
                "next": {"type": ["integer", "null"], "minimum": 0}
            }
        });
        let limit =
            json!({"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT});
        self.query("after", json!({"type": "integer", "minimum": 0, "maximum": CURSOR_MAX}))
            .query("limit", limit)
            .json(what, schema)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_whether_there_are_more() {
        let of = |count: u64, limit| Wish { after: None, limit }.page((0..count).map(|n| (n, n)));
        assert_eq!((of(3, 2).items, of(3, 2).next), (vec![0, 1], Some(1)));
        assert_eq!((of(2, 2).items, of(2, 2).next), (vec![0, 1], None));
        assert_eq!((of(0, 2).items, of(0, 2).next), (vec![], None));
    }
}
