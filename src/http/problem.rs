//! What is answered when a request cannot be: `application/problem+json` (RFC 9457) with a code that
//! stays, and the request's id, by which the server's log tells more.

use std::io;

use hyper::{
    HeaderMap, StatusCode,
    header::{ALLOW, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
};
use serde::Serialize;

use super::endpoint::Response;
use crate::{
    ledger::LedgerError,
    store::{StoreError, log::LogError},
};

/// The content type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// After how many seconds a client that was one too many may come again.
const RETRY_AFTER_S: u64 = 1;

/// Linux' numbers for "too many open files", of the process and of the system.
const FILES_EXHAUSTED: [i32; 2] = [24, 23];

/// Why a request is not answered as it asks.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    code: &'a str,
    detail: &'a str,
    request_id: &'a str,
}

impl Problem {
    /// A problem of another kind than those below. Codes are listed in `schema/http.md`.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), headers: Vec::new() }
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    /// The path, or a value in it, is malformed.
    pub fn bad_path(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-path", detail)
    }

    /// The query, or a value in it, is malformed.
    pub fn bad_query(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-query", detail)
    }

    /// The path takes other methods only.
    pub fn method_not_allowed(allowed: &str) -> Self {
        let problem = Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            format!("it takes {allowed}"),
        );
        problem.with(ALLOW, allowed)
    }

    /// `If-Match` names another version.
    pub fn precondition_failed() -> Self {
        let detail = "it has another ETag than If-Match names";
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition-failed", detail)
    }

    /// The range starts at or after the end.
    pub fn range_not_satisfiable(bytes: u64) -> Self {
        let detail = format!("the range starts at or after the end; there are {bytes} bytes");
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "range-not-satisfiable", detail)
            .with(CONTENT_RANGE, &format!("bytes */{bytes}"))
    }

    /// Too much is asked of the server now.
    pub fn busy(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail)
            .with(RETRY_AFTER, &RETRY_AFTER_S.to_string())
    }

    /// Something of ours does not work; the log has the reason, the client is not told.
    pub fn internal(reason: impl std::fmt::Display) -> Self {
        tracing::error!(%reason, "a request failed");
        let detail = "the server's log says why, under this request's id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// The same with one more header. One that no header can hold is left out.
    pub fn with(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Body and headers, for the request `request_id`.
    pub(super) fn render(&self, request_id: &str) -> (Vec<u8>, HeaderMap) {
        let document = Document {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Problem"),
            status: self.status.as_u16(),
            code: self.code,
            detail: &self.detail,
            request_id,
        };
        let mut headers: HeaderMap = self.headers.iter().cloned().collect();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        (serde_json::to_vec(&document).expect("it has nothing but text and a number"), headers)
    }
}

/// The outermost layer gives it its body, since only that knows the request's id.
impl From<Problem> for Response {
    fn from(problem: Problem) -> Self {
        let mut response = Self::default();
        *response.status_mut() = problem.status;
        response.extensions_mut().insert(problem);
        response
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory => Self::not_found("there is no such file"),
            _ if error.raw_os_error().is_some_and(|n| FILES_EXHAUSTED.contains(&n)) => {
                tracing::warn!("out of open files; raise the limit (ulimit -n)");
                Self::busy("the server has no more files to open")
            }
            _ => Self::internal(error),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error.into_io() {
            Ok(io) => io.into(),
            Err(error) => Self::internal(error),
        }
    }
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Absent { .. } => Self::not_found("there is no such log"),
            LogError::Missing { path } => {
                tracing::error!(path = %path.display(), "a file of the log is missing");
                Self::not_found("this file of the log is lost")
            }
            error => StoreError::from(error).into(),
        }
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::NoRound { .. } | LedgerError::NoRounds => {
                Self::not_found(error.to_string())
            }
            LedgerError::Store(error) => error.into(),
            error => Self::internal(error),
        }
    }
}
