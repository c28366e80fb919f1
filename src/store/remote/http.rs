//! Questions to one server and their answers, each bounded in bytes and time.

use std::{
    io::Read,
    ops::Range,
    sync::{
        Once,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use reqwest::{
    Method, Proxy, StatusCode, Url,
    blocking::{Client, Response},
    header::{ACCEPT_ENCODING, ETAG, IF_MATCH, LOCATION, RANGE, RETRY_AFTER},
    redirect::Policy,
};
use serde::Deserialize;

use super::{
    error::RemoteError,
    range::{Wanted, header, said},
};

/// Where a server has a ledger's files.
const FILES: &str = "v1/files";

/// Largest page of a list of names: 1,000 names of 255 bytes, escaped.
const LISTING_BYTES_MAX: u64 = 2 << 20;

/// Most names of one directory that are taken: what 1,000 pages hold.
const NAMES_MAX: usize = 1_000_000;

/// Longest name in a directory.
const NAME_BYTES_MAX: usize = 255;

/// A body that arrives more slowly, once its time is up, is given up.
const BYTES_A_SECOND_MIN: u64 = 16 << 10;

/// Longest wait that a busy server is granted at once.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How often a server that says nothing is asked, at most.
const SILENT_ATTEMPTS: u32 = 4;

/// How a server is asked.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// A proxy; none is taken from the environment.
    pub proxy: Option<String>,
    /// How long a server may stay silent.
    pub silence_max: Duration,
    /// How often a question is asked, at most.
    pub attempts: u32,
    /// The wait before it is asked again, doubled each time.
    pub wait: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        let (silence_max, wait) = (Duration::from_secs(30), Duration::from_millis(250));
        Self { proxy: None, silence_max, attempts: 8, wait }
    }
}

/// What was asked and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Questions, repeated ones among them.
    pub requests: u64,
    /// Bytes of answers, without their headers.
    pub bytes: u64,
}

/// A part of a file.
pub(super) struct Found {
    pub(super) bytes: Vec<u8>,
    /// Length of the whole file.
    pub(super) whole: u64,
    pub(super) etag: Option<String>,
}

/// One server.
pub struct Http {
    pub(super) client: Client,
    /// As it was given.
    url: String,
    /// Where the files are, without a slash at the end.
    base: Url,
    options: HttpOptions,
    pub(super) requests: AtomicU64,
    bytes: AtomicU64,
}

/// A page of a directory's names.
#[derive(Deserialize)]
struct Page {
    names: Vec<String>,
    next: Option<String>,
}

impl Http {
    /// The server at `url`, which may have a path of its own.
    ///
    /// # Errors
    ///
    /// [`RemoteError::Url`], [`RemoteError::Proxy`], [`RemoteError::Client`].
    pub fn new(url: &str, options: &HttpOptions) -> Result<Self, RemoteError> {
        let mut base = parse(url)?;
        base.path_segments_mut().expect("http has paths").pop_if_empty().extend(FILES.split('/'));
        let client = client(&base, options)?;
        let (url, options) = (url.to_owned(), options.clone());
        let (requests, bytes) = Default::default();
        Ok(Self { client, url, base, options, requests, bytes })
    }

    /// The URL as it was given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL of the files, without a slash at the end.
    pub fn base(&self) -> &str {
        self.base.as_str()
    }

    /// What was asked and received so far.
    pub fn traffic(&self) -> Traffic {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic { requests: of(&self.requests), bytes: of(&self.bytes) }
    }

    fn address(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        if !path.is_empty() {
            url.path_segments_mut().expect("http has paths").extend(path.split('/'));
        }
        url
    }

    pub(super) fn url_of(&self, path: &str) -> String {
        self.address(path).into()
    }

    /// The first `bytes_max` bytes of a file, or all if it has fewer.
    pub(super) fn start(&self, path: &str, bytes_max: u64) -> Result<Found, RemoteError> {
        self.part(path, Wanted::First(bytes_max), None)
    }

    /// The last `bytes_max` bytes of a file, or all if it has fewer.
    pub(super) fn end(&self, path: &str, bytes_max: u64) -> Result<Found, RemoteError> {
        self.part(path, Wanted::Last(bytes_max), None)
    }

    /// Exactly these bytes of a file, which must still have this ETag. `range` is not empty.
    pub(super) fn range(
        &self,
        path: &str,
        range: Range<u64>,
        etag: Option<&str>,
    ) -> Result<Found, RemoteError> {
        self.part(path, Wanted::Exactly(range), etag)
    }

    fn part(&self, path: &str, wanted: Wanted, etag: Option<&str>) -> Result<Found, RemoteError> {
        let url = self.address(path);
        let mut headers = vec![(RANGE, wanted.header())];
        headers.extend(etag.map(|etag| (IF_MATCH, etag.to_owned())));
        self.persist(|| {
            let (mut answer, since) = self.ask(Method::GET, &url, &headers)?;
            let Some((part, whole)) = wanted.answer(&answer) else {
                return Err(RemoteError::Range {
                    url: url.to_string(),
                    asked: wanted.header(),
                    answered: said(&answer),
                });
            };
            let etag = answer.headers().get(&ETAG).and_then(|etag| etag.to_str().ok());
            let etag = etag.filter(|etag| etag.starts_with('"')).map(str::to_owned);
            if whole == 0 {
                return Ok(Found { bytes: Vec::new(), whole, etag });
            }
            let bytes = self.body(&url, &mut answer, since, part.end - part.start, true)?;
            Ok(Found { bytes, whole, etag })
        })
    }

    /// Names in a directory, sorted.
    pub(super) fn list(&self, path: &str) -> Result<Vec<String>, RemoteError> {
        let mut names: Vec<String> = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut url = self.address(path);
            url.path_segments_mut().expect("http has paths").push("");
            if let Some(after) = &after {
                url.query_pairs_mut().append_pair("after", after);
            }
            let page = self.page(&url)?;
            let wrong =
                |reason: &str| RemoteError::Listing { url: url.to_string(), reason: reason.into() };
            if page.next.is_some() && page.names.is_empty() {
                return Err(wrong("a page without names that is not the last"));
            }
            for name in page.names {
                let plain = (1..=NAME_BYTES_MAX).contains(&name.len())
                    && !name.contains(['/', '\0'])
                    && !matches!(name.as_str(), "." | "..");
                if !plain || names.last().is_some_and(|last| *last >= name) {
                    return Err(wrong("names that are no names, or not in order"));
                }
                names.push(name);
            }
            if names.len() > NAMES_MAX {
                return Err(wrong("more than a million names"));
            }
            match page.next {
                None => return Ok(names),
                next => after = next,
            }
        }
    }

    fn page(&self, url: &Url) -> Result<Page, RemoteError> {
        self.persist(|| {
            let (mut answer, since) = self.ask(Method::GET, url, &[])?;
            if answer.status() != StatusCode::OK {
                return Err(refused(url, &answer));
            }
            let bytes = self.body(url, &mut answer, since, LISTING_BYTES_MAX, false)?;
            serde_json::from_slice(&bytes).map_err(|source| RemoteError::Listing {
                url: url.to_string(),
                reason: source.to_string(),
            })
        })
    }

    /// Whether there is such a file.
    pub(super) fn is_file(&self, path: &str) -> Result<bool, RemoteError> {
        self.is_there(&self.address(path))
    }

    /// Whether there is such a directory.
    pub(super) fn is_dir(&self, path: &str) -> Result<bool, RemoteError> {
        let mut url = self.address(path);
        url.path_segments_mut().expect("http has paths").push("");
        self.is_there(&url)
    }

    fn is_there(&self, url: &Url) -> Result<bool, RemoteError> {
        let asked = self.persist(|| match self.ask(Method::HEAD, url, &[])? {
            (answer, _) if answer.status() == StatusCode::OK => Ok(()),
            (answer, _) => Err(refused(url, &answer)),
        });
        match asked {
            Ok(()) => Ok(true),
            Err(RemoteError::Absent { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks once; whatever is neither success nor a matter of ranges is an error.
    fn ask(
        &self,
        method: Method,
        url: &Url,
        headers: &[(reqwest::header::HeaderName, String)],
    ) -> Result<(Response, Instant), RemoteError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let since = Instant::now();
        // What is hashed is sent as it is.
        let mut question =
            self.client.request(method, url.clone()).header(ACCEPT_ENCODING, "identity");
        for (name, value) in headers {
            question = question.header(name, value);
        }
        let answer = question.send().map_err(|source| unreachable(url, source))?;
        match answer.status() {
            status if status.is_success() => Ok((answer, since)),
            StatusCode::RANGE_NOT_SATISFIABLE => Ok((answer, since)),
            StatusCode::PRECONDITION_FAILED => Err(RemoteError::Changed { url: url.to_string() }),
            _ => Err(refused(url, &answer)),
        }
    }

    /// A body of exactly `bytes_max` bytes, or at most so many.
    fn body(
        &self,
        url: &Url,
        answer: &mut Response,
        since: Instant,
        bytes_max: u64,
        exact: bool,
    ) -> Result<Vec<u8>, RemoteError> {
        let url = || url.to_string();
        // No more is set aside than has arrived: lengths may lie.
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            let read = match answer.read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                // The connection broke, or was silent for too long.
                Err(_) => {
                    let found = bytes.len() as u64;
                    return Err(RemoteError::Cut { url: url(), expected: bytes_max, found });
                }
            };
            self.bytes.fetch_add(read as u64, Ordering::Relaxed);
            if read == 0 {
                break;
            }
            bytes.extend_from_slice(&buffer[..read]);
            let found = bytes.len() as u64;
            if found > bytes_max {
                return Err(RemoteError::TooLong { url: url(), bytes_max });
            }
            let granted = self.options.silence_max.as_secs() + found / BYTES_A_SECOND_MIN;
            let seconds = since.elapsed().as_secs();
            if seconds > granted {
                return Err(RemoteError::Slow { url: url(), found, seconds });
            }
        }
        let found = bytes.len() as u64;
        if exact && found < bytes_max {
            return Err(RemoteError::Cut { url: url(), expected: bytes_max, found });
        }
        Ok(bytes)
    }

    /// Asks again, after a wait, while the failure may pass.
    fn persist<T>(&self, ask: impl Fn() -> Result<T, RemoteError>) -> Result<T, RemoteError> {
        let mut wait = self.options.wait;
        let mut attempt = 1;
        loop {
            let error = match ask() {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(pause) = self.pause(&error, attempt, wait) else { return Err(error) };
            thread::sleep(pause);
            wait = (wait * 2).min(WAIT_MAX);
            attempt += 1;
        }
    }

    /// How long to wait before the next attempt, if there is to be one.
    fn pause(&self, error: &RemoteError, attempt: u32, wait: Duration) -> Option<Duration> {
        let (attempts, pause) = match error {
            RemoteError::Busy { seconds, .. } if *seconds <= WAIT_MAX.as_secs() => {
                (self.options.attempts, wait.max(Duration::from_secs(*seconds)))
            }
            // Nobody there, or nobody who says a word: that is known sooner.
            RemoteError::Unreachable { .. } => (self.options.attempts.min(SILENT_ATTEMPTS), wait),
            error if error.is_passing() => (self.options.attempts, wait),
            _ => return None,
        };
        (attempt < attempts).then_some(pause)
    }
}

pub(super) fn parse(url: &str) -> Result<Url, RemoteError> {
    let wrong = |reason| RemoteError::Url { url: url.to_owned(), reason };
    let parsed = Url::parse(url).map_err(|_| wrong("it cannot be read as one"))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(wrong("it is neither http nor https"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(RemoteError::Url {
            url: "...@...".to_owned(),
            reason: "no user and no password: this program sends none",
        });
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(wrong("it has a query or a fragment"));
    }
    Ok(parsed)
}

fn client(base: &Url, options: &HttpOptions) -> Result<Client, RemoteError> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // It fails if one is installed already, which does as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let mut builder = Client::builder()
        .user_agent(concat!("gradledger/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
        .no_proxy()
        .http1_only()
        .connect_timeout(options.silence_max.min(Duration::from_secs(10)))
        .timeout(options.silence_max);
    if base.scheme() == "http" {
        // Without TLS no certificates are needed, which a small system may lack.
        builder = builder.tls_certs_only([]);
    }
    if let Some(proxy) = &options.proxy {
        let wrong = |source| RemoteError::Proxy { proxy: proxy.clone(), source };
        builder = builder.proxy(Proxy::all(proxy).map_err(wrong)?);
    }
    builder.build().map_err(|source| RemoteError::Client { source })
}

pub(super) fn unreachable(url: &Url, source: reqwest::Error) -> RemoteError {
    RemoteError::Unreachable { url: url.to_string(), source: source.without_url() }
}

/// What an answer without success comes to.
fn refused(url: &Url, answer: &Response) -> RemoteError {
    let (url, status) = (url.to_string(), answer.status());
    let seconds = header(answer.headers(), &RETRY_AFTER).parse().ok();
    match (status, seconds) {
        (StatusCode::NOT_FOUND | StatusCode::GONE, _) => RemoteError::Absent { url },
        (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, Some(seconds)) => {
            RemoteError::Busy { url, seconds }
        }
        (status, _) if status.is_redirection() => {
            RemoteError::Redirect { url, to: header(answer.headers(), &LOCATION).to_owned() }
        }
        (status, _) => RemoteError::Refused { url, status: status.as_u16() },
    }
}
