//! Questions that carry something: one try each, and the answer whatever its status.

use std::{io::Read as _, sync::atomic::Ordering, time::Duration};

use reqwest::header::RETRY_AFTER;

use super::{
    error::RemoteError,
    http::{Http, parse, unreachable},
    range::header,
};

/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// How long a server may take for an answer, beside what the body takes at [`BYTES_A_SECOND_MIN`].
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// A connection that is slower than this is given up.
const BYTES_A_SECOND_MIN: u64 = 16 << 10;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Question<'q> {
    /// Such as `POST`.
    pub method: &'q str,
    /// The path at the server, from `/` on.
    pub path: &'q str,
    /// What stands behind the question mark, if anything.
    pub query: Option<&'q str>,
    /// Its headers.
    pub headers: &'q [(&'q str, String)],
    /// Its body.
    pub body: &'q [u8],
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The status.
    pub status: u16,
    /// When to come back, if the server says so.
    pub retry_after_s: Option<u64>,
    /// The body.
    pub body: Vec<u8>,
}

impl Http {
    /// Sends a question once.
    ///
    /// # Errors
    ///
    /// [`RemoteError`] if there was no answer, or one of more than 4 MiB.
    pub fn send(&self, question: &Question<'_>) -> Result<Sent, RemoteError> {
        let mut url = parse(self.url())?;
        url.path_segments_mut()
            .expect("http has paths")
            .pop_if_empty()
            .extend(question.path.split('/').skip(1));
        url.set_query(question.query);
        let wrong = |reason| RemoteError::Url { url: url.to_string(), reason };
        let method = question.method.parse().map_err(|_| wrong("no such method"))?;
        let at_pace = Duration::from_secs(question.body.len() as u64 / BYTES_A_SECOND_MIN);
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut request = self
            .client
            .request(method, url.clone())
            .timeout(ANSWER_WAIT + at_pace)
            .body(question.body.to_vec());
        for (name, value) in question.headers {
            request = request.header(*name, value);
        }
        let answer = request.send().map_err(|source| unreachable(&url, source))?;
        let status = answer.status().as_u16();
        let retry_after_s = header(answer.headers(), &RETRY_AFTER).parse().ok();
        let mut body = Vec::new();
        let read = answer.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut body);
        let (found, url) = (body.len() as u64, url.to_string());
        if read.is_err() {
            return Err(RemoteError::Cut { url, expected: ANSWER_BYTES_MAX, found });
        }
        if found > ANSWER_BYTES_MAX {
            return Err(RemoteError::TooLong { url, bytes_max: ANSWER_BYTES_MAX });
        }
        Ok(Sent { status, retry_after_s, body })
    }
}
