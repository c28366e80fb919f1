//! Miners hand in deltas: the only room that writes. What an upload is and what is refused:
//! `schema/upload.md`.
//!
//! A create and a commit are signed by the hotkey, parts carry the token that the create was answered
//! with. Checks run cheapest first: rate of the address, headers, clock, whether the hotkey is listed,
//! signature, replay, rate of the hotkey; then [`UploadDesk`] decides.

mod problem;
mod table;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    Method, StatusCode,
    header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use tokio::{sync::Semaphore, time::timeout};

use super::{
    Node,
    body::RequestBody,
    endpoint::{Answer, Call, Response, json_answer},
    problem::Problem,
    quota::{Buckets, neighbourhood},
};
use crate::{
    codec::{
        epistula::{Envelope, Seen},
        parts::PART_BYTES_MAX,
    },
    ledger::{
        submit::check_listed,
        uploads::{Commit, UploadDesk, UploadError},
    },
    types::{digest::Digest, json::INTEGER_MAX, upload::UploadRequest},
};

pub use self::table::endpoints;

/// Largest body of a signed request.
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// Bytes of a body that are handed to the disk at once.
const BLOCK_BYTES: usize = 1 << 20;

/// Admissions at once: each reads, hashes, checks and writes a whole delta.
const ADMISSIONS_MAX: usize = 2;

/// How long a commit is waited for before its client is told to ask again.
const COMMIT_WAIT: Duration = Duration::from_secs(20);

/// How long an operator's order may take to arrive.
pub(super) const ORDER_WAIT: Duration = Duration::from_secs(5);

const SHA256: &str = "x-content-sha256";

/// Who comes to the desk, and how often.
pub struct Door {
    desk: Arc<UploadDesk>,
    seen: Mutex<Seen>,
    addresses: Buckets<IpAddr>,
    hotkeys: Buckets<Digest>,
    admissions: Arc<Semaphore>,
}

impl Door {
    /// The door to `desk`, with the limits that it was opened with.
    pub fn new(desk: Arc<UploadDesk>) -> Self {
        let choice = desk.choice();
        Self {
            seen: Mutex::default(),
            addresses: Buckets::new(choice.requests_per_minute_per_address),
            hotkeys: Buckets::new(choice.requests_per_minute_per_hotkey),
            admissions: Arc::new(Semaphore::new(ADMISSIONS_MAX)),
            desk,
        }
    }

    /// The desk.
    pub fn desk(&self) -> &Arc<UploadDesk> {
        &self.desk
    }

    fn check_hotkey_rate(&self, hotkey: Digest) -> Result<(), Problem> {
        let taken = self.hotkeys.take(hotkey, Instant::now());
        taken.map_err(|wait| too_many("of this hotkey", wait))
    }
}

/// Answers a call, and reads what is left of its body first: else a client that is still sending would
/// find the connection closed and not learn why.
async fn route(call: Call) -> Answer {
    let cut = || Problem::new(StatusCode::BAD_REQUEST, "cut", "the body ended early");
    let mut body = call.context.body.take().ok_or_else(cut)?;
    let answer = answer(&call, &mut body).await;
    if answer.is_err() {
        let mut left = PART_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
            let Some(less) = left.checked_sub(bytes) else { break };
            left = less;
        }
    }
    answer
}

/// Which of the endpoints a call is for.
async fn answer(call: &Call, body: &mut RequestBody) -> Answer {
    let Some(door) = call.node.uploads() else {
        let detail = "this server takes no uploads; `serve --uploads` does";
        return Err(Problem::new(StatusCode::FORBIDDEN, "uploads-off", detail));
    };
    let peer = neighbourhood(call.context.peer.ip());
    let taken = door.addresses.take(peer, Instant::now());
    taken.map_err(|wait| too_many("from this address", wait))?;
    let parts: Vec<&str> = call.context.parts.iter().map(String::as_str).collect();
    match (&call.method, &parts[2..]) {
        (&Method::POST, []) => create(call, &door, body).await,
        (&Method::POST, [_, "commit"]) => commit(call, &door, body).await,
        (&Method::PUT, [_, "hashes"]) => receive(call, &door, None, body).await,
        (&Method::PUT, [_, _]) => {
            let offset = call.query().number("offset", INTEGER_MAX.unsigned_abs())?;
            let missing = || Problem::bad_query("offset is needed, a number");
            receive(call, &door, Some(offset.ok_or_else(missing)?), body).await
        }
        (&Method::DELETE, _) => abandon(call, &door).await,
        _ => state(call, &door).await,
    }
}

fn too_many(whose: &str, wait_s: u64) -> Problem {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate", format!("too many requests {whose}"))
        .with(RETRY_AFTER, &wait_s.to_string())
}

/// A body of at most so many bytes.
async fn read_body(body: &mut RequestBody, bytes_max: usize) -> Result<Bytes, Problem> {
    match http_body_util::Limited::new(body, bytes_max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(too_long(bytes_max)),
        Err(_) => Err(Problem::new(StatusCode::BAD_REQUEST, "cut", "the body ended early")),
    }
}

fn too_long(bytes_max: usize) -> Problem {
    let detail = format!("at most {bytes_max} bytes are taken");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", detail)
}

/// The body of a request that a listed hotkey signed just now, for this method and path, once.
async fn signed(
    call: &Call,
    door: &Door,
    body: &mut RequestBody,
) -> Result<(UploadRequest, Digest), Problem> {
    let headers = call.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let envelope = Envelope::read(headers)?;
    let now_ms = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64);
    envelope.check_time(now_ms)?;
    let hotkey = envelope.signed_by;
    check_listed(&call.node.snapshot().ledger, hotkey).map_err(UploadError::Refused)?;
    let body = read_body(body, REQUEST_BYTES_MAX).await?;
    envelope.verify(&body)?;
    door.seen.lock().unwrap_or_else(PoisonError::into_inner).admit(&envelope, now_ms)?;
    door.check_hotkey_rate(hotkey)?;
    let request: UploadRequest = serde_json::from_slice(&body).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, "bad-body", format!("the body: {error}"))
    })?;
    let path = format!("/{}", call.context.parts.join("/"));
    if (request.method.as_str(), &request.path) != (call.method.as_str(), &path) {
        let detail = format!(
            "the signed body is for {} {}, the request is {} {path}",
            printable(&request.method),
            printable(&request.path),
            call.method
        );
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "wrong-path", detail));
    }
    Ok((request, hotkey))
}

fn printable(text: &str) -> String {
    text.chars().take(100).collect::<String>().escape_debug().to_string()
}

async fn create(call: &Call, door: &Arc<Door>, body: &mut RequestBody) -> Answer {
    let (request, hotkey) = signed(call, door, body).await?;
    if request.signature.is_some() {
        let detail = "a create carries no signature of the statement: that comes with the commit";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "bad-body", detail));
    }
    let (desk, token) = (door.desk.clone(), random_token()?);
    let created = call.node.blocking(move || Ok(desk.create(&request, hotkey, token)?));
    let state = created.await?;
    let new = state.token == Some(token);
    tracing::info!(id = %state.id, %hotkey, new, committed = state.committed, "an upload");
    let mut response = json_answer(&state)?;
    if new {
        *response.status_mut() = StatusCode::CREATED;
    }
    Ok(response)
}

fn random_token() -> Result<Digest, Problem> {
    let mut token = Digest::default();
    getrandom::fill(&mut token.0).map_err(Problem::internal)?;
    Ok(token)
}

async fn commit(call: &Call, door: &Arc<Door>, body: &mut RequestBody) -> Answer {
    let id = call.digest("id")?;
    let (request, hotkey) = signed(call, door, body).await?;
    let desk = door.desk.clone();
    let begun = call.node.blocking(move || Ok(desk.commit(id, &request, hotkey)));
    let pending = match begun.await? {
        Ok(Commit::Done(receipt)) => return Ok(receipt_answer(receipt)),
        Ok(Commit::Pending(pending)) => pending,
        Err(UploadError::Committing) => return Ok(again()),
        Err(error) => return Err(error.into()),
    };
    let (node, admissions) = (call.node.clone(), door.admissions.clone());
    // On its own: it goes on when the client goes away.
    let running = tokio::spawn(async move {
        let _place = admissions.acquire_owned().await.map_err(Problem::internal)?;
        let done = node.clone();
        let receipt = node.blocking(move || {
            let receipt = pending.run()?;
            // Whoever is answered also finds it in the log.
            if let Err(error) = done.look_now() {
                tracing::error!(%error, "the ledger does not read");
            }
            Ok(receipt)
        });
        let receipt = receipt.await?;
        tracing::info!(%id, %hotkey, "committed");
        Ok::<_, Problem>(receipt)
    });
    match timeout(COMMIT_WAIT, running).await {
        Ok(done) => Ok(receipt_answer(done.map_err(Problem::internal)??)),
        Err(_) => Ok(again()),
    }
}

fn receipt_answer(receipt: Vec<u8>) -> Response {
    let mut response = Response::new(receipt.into());
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// It is under way: the same again will be answered with the receipt.
fn again() -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The token that a request carries.
fn token(call: &Call) -> Result<Digest, Problem> {
    let mut all = call.headers.get_all(AUTHORIZATION).iter();
    let token = match (all.next(), all.next()) {
        (Some(value), None) => {
            value.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")?.parse().ok())
        }
        _ => None,
    };
    token.ok_or_else(|| {
        let detail = "Authorization: Bearer and the token that the create was answered with";
        Problem::new(StatusCode::UNAUTHORIZED, "no-token", detail)
    })
}

async fn state(call: &Call, door: &Arc<Door>) -> Answer {
    let (id, token) = (call.digest("id")?, token(call)?);
    json_answer(&door.desk.state(id, token)?)
}

async fn abandon(call: &Call, door: &Arc<Door>) -> Answer {
    let (id, token, desk) = (call.digest("id")?, token(call)?, door.desk.clone());
    call.node.blocking(move || Ok(desk.abandon(id, token)?)).await?;
    Ok(no_content())
}

fn no_content() -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// Takes the hashes file, or the part at `offset`, block by block.
async fn receive(
    call: &Call,
    door: &Arc<Door>,
    offset: Option<u64>,
    body: &mut RequestBody,
) -> Answer {
    let (id, token) = (call.digest("id")?, token(call)?);
    door.check_hotkey_rate(door.desk.hotkey_of(id, token)?)?;
    let text = |name: &str| call.headers.get(name).and_then(|value| value.to_str().ok());
    let bytes: u64 = text(CONTENT_LENGTH.as_str())
        .and_then(super::path::number)
        .ok_or_else(|| Problem::new(StatusCode::LENGTH_REQUIRED, "no-length", "Content-Length"))?;
    if bytes > PART_BYTES_MAX {
        return Err(too_long(PART_BYTES_MAX as usize));
    }
    let sha256: Digest = text(SHA256).and_then(|hex| hex.parse().ok()).ok_or_else(|| {
        let detail = format!("{SHA256} is needed: 64 lower-case hex digits");
        Problem::new(StatusCode::BAD_REQUEST, "no-sha256", detail)
    })?;
    let desk = door.desk.clone();
    let begin = call.node.blocking(move || Ok(desk.receive(id, token, offset, bytes)?));
    let mut receiving = begin.await?;
    let cut = || Problem::new(StatusCode::BAD_REQUEST, "cut", "the body ended early");
    let mut block = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| cut())?.into_data() else { continue };
        block.extend_from_slice(&data);
        if block.len() >= BLOCK_BYTES {
            let write = move || {
                receiving.write(&block)?;
                block.clear();
                Ok((receiving, block))
            };
            (receiving, block) = call.node.blocking(write).await?;
        }
    }
    let finish = move || {
        receiving.write(&block)?;
        Ok(receiving.finish(sha256)?)
    };
    call.node.blocking(finish).await?;
    Ok(no_content())
}

/// Drops what has expired, again and again.
pub async fn sweep(node: Arc<Node>, door: Arc<Door>) {
    let mut every = tokio::time::interval(Duration::from_secs(30));
    loop {
        every.tick().await;
        let desk = door.desk.clone();
        // What failed was said; the next time may be better.
        let _ = node.blocking(move || Ok(desk.sweep()?)).await;
    }
}
