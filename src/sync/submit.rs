//! Handing a delta in over a network, the miner's side.
//!
//! The delta is admitted into a directory of the miner's first, by the same code that will admit it at
//! the server: so its hashes are there to be sent, and a delta that would be refused is not sent.

use std::{
    io,
    path::PathBuf,
    thread,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    codec::{
        epistula::{Envelope, uuid_of},
        layout::{DeltaGroup, Layout},
        parts::{DeltaShape, PART_BYTES_MAX},
        sr25519::SecretKey,
        statement::{Statement, StatementError},
    },
    ledger::submit::Receipt,
    store::{
        StoreError,
        artifacts::StoredDelta,
        files::read_whole,
        place::Place,
        remote::{Http, Question, RemoteError},
        segment::place as segment_place,
    },
    types::{
        digest::Digest,
        json,
        manifest::ManifestId,
        progress::Progress,
        submission::SignatureHex,
        upload::{Part, UploadRequest, UploadState},
    },
};

/// Largest hashes file that is sent: it is one part.
const HASHES_BYTES_MAX: u64 = PART_BYTES_MAX;

/// Failures in a row after which it is given up.
const FAILURES_MAX: u32 = 12;

/// Longest wait at once, in seconds, whatever a server asks for.
const WAIT_MAX_S: u64 = 60;

/// A delta as it is sent: its hashes file, and its bytes in manifest order.
pub struct Staged {
    place: Place,
    delta: ManifestId,
    stored: StoredDelta,
    shape: DeltaShape,
}

impl Staged {
    /// The delta `delta`, which was stored below `place`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it is not there.
    pub fn open(place: &Place, layout: &Layout, delta: ManifestId) -> Result<Self, StoreError> {
        let stored = StoredDelta::open(place, delta)?;
        let shape = DeltaShape::of(layout).expect("a layout's artifacts fit a manifest");
        Ok(Self { place: place.clone(), delta, stored, shape })
    }

    /// What it is.
    pub fn delta(&self) -> ManifestId {
        self.delta
    }

    /// The hashes file.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn hashes(&self) -> Result<Vec<u8>, StoreError> {
        let path = segment_place::hashes(&self.place.root, self.delta.root);
        let read = read_whole(&*self.place.files, &path, HASHES_BYTES_MAX);
        read.map_err(|source| StoreError::Io { path, source })
    }

    /// The bytes of a part, each piece checked. Whoever asks for it is not believed.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it does not lie in the delta or is larger than any part may be, or if what was
    /// stored is damaged.
    pub fn part(&self, part: Part) -> Result<Vec<u8>, StoreError> {
        let end = part.offset.checked_add(part.bytes).filter(|end| *end <= self.shape.bytes());
        let end = end.filter(|_| part.bytes <= PART_BYTES_MAX).ok_or_else(|| StoreError::Io {
            path: PathBuf::from(format!("part of {} bytes at {}", part.bytes, part.offset)),
            source: io::ErrorKind::InvalidInput.into(),
        })?;
        let mut bytes = vec![0; usize::try_from(part.bytes).expect("64 MiB at most")];
        let mut left = &mut bytes[..];
        for (artifact, descriptor) in self.shape.manifest().descriptors().iter().enumerate() {
            let start = self.shape.start_of(artifact);
            let (from, to) = (part.offset.max(start), end.min(start + descriptor.bytes));
            if from >= to {
                continue;
            }
            let group = DeltaGroup::ALL.into_iter().find(|g| g.name() == descriptor.group);
            let group = group.expect("a delta's artifacts are of its groups");
            let mut reader = self.stored.open_artifact(group, &descriptor.name)?;
            reader.seek_to(from - start)?;
            let length = usize::try_from(to - from).expect("a part's bytes");
            let (now, after) = left.split_at_mut(length);
            reader.read_exact(now)?;
            left = after;
        }
        Ok(bytes)
    }
}

/// Whose delta is handed in, for what.
pub struct Submitting<'s> {
    /// The hotkey's secret.
    pub secret: &'s SecretKey,
    /// The run's id.
    pub run: Digest,
    /// The round.
    pub round: u64,
    /// Root of the state that the delta was made from.
    pub base: Digest,
    /// How long to wait after the first failure; doubled with each that follows without progress.
    pub wait: Duration,
}

impl Submitting<'_> {
    /// What the hotkey signs for `delta`.
    pub fn statement(&self, delta: ManifestId) -> Statement {
        let Submitting { secret, run, round, base, .. } = *self;
        let (delta, delta_bytes) = (delta.root, delta.bytes);
        Statement { run, round, base, delta, delta_bytes, hotkey: secret.public().to_digest() }
    }
}

/// Why there is no receipt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum UploadError {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Statement(#[from] StatementError),
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
    #[error("the submission is refused: {code}: {detail}")]
    Refused { status: u16, code: String, detail: String },
    #[error("the server did not take the delta after {FAILURES_MAX} tries; the last: {last}")]
    GaveUp { last: String },
    #[error("the server's answer to {what} is none: {reason}")]
    Answer { what: &'static str, reason: String },
}

/// What a server says of what it does not do.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    code: String,
    detail: String,
}

/// Hands a staged delta in and gives the receipt, which is still to be verified.
///
/// What the server has already is not sent again; what may pass is waited for.
///
/// # Errors
///
/// [`UploadError`]; after most of them the same call goes on where this one ended.
pub fn submit(
    http: &Http,
    staged: &Staged,
    submitting: &Submitting<'_>,
    progress: &dyn Progress,
) -> Result<Receipt, UploadError> {
    let mut upload = Upload { http, staged, submitting, failures: 0, progress };
    loop {
        let done = upload.once();
        match &done {
            // It expired, or was damaged there: announced anew, the rest is sent.
            Err(UploadError::Refused { code, .. }) if is_lost(code) => upload.failed(code, None)?,
            _ => return done,
        }
    }
}

fn is_lost(code: &str) -> bool {
    matches!(code, "unknown-upload" | "wrong-token" | "damaged" | "incomplete" | "hashes-first")
}

struct Upload<'u> {
    http: &'u Http,
    staged: &'u Staged,
    submitting: &'u Submitting<'u>,
    /// Since something last went well.
    failures: u32,
    progress: &'u dyn Progress,
}

impl Upload<'_> {
    fn once(&mut self) -> Result<Receipt, UploadError> {
        let answer = self.signed("/v1/uploads", None)?;
        let state: UploadState = read("the announcement", &answer)?;
        if !state.committed {
            self.send_missing(&state)?;
        }
        let statement = self.submitting.statement(self.staged.delta());
        let signature = SignatureHex(statement.sign(self.submitting.secret)?);
        let path = format!("/v1/uploads/{}/commit", statement.id());
        let answer = self.signed(&path, Some(signature))?;
        read("the commit", &answer)
    }

    fn send_missing(&mut self, state: &UploadState) -> Result<(), UploadError> {
        let token = state.token.unwrap_or_default();
        let left: u64 = state.missing.iter().map(|part| part.bytes).sum();
        self.progress.begin("upload", self.staged.delta().bytes);
        self.progress.advance(self.staged.delta().bytes.saturating_sub(left));
        let path = |what: &str| format!("/v1/uploads/{}/{what}", state.id);
        if state.hashes_bytes.is_some() {
            self.put(&path("hashes"), None, token, &self.staged.hashes()?)?;
        }
        for part in &state.missing {
            let query = format!("offset={}", part.offset);
            self.put(&path("parts"), Some(&query), token, &self.staged.part(*part)?)?;
            self.progress.advance(part.bytes);
        }
        self.progress.end();
        Ok(())
    }

    /// A request that the hotkey signs, anew for each try.
    fn signed(
        &mut self,
        path: &str,
        signature: Option<SignatureHex>,
    ) -> Result<Vec<u8>, UploadError> {
        let Submitting { secret, run, round, base, .. } = *self.submitting;
        let (method, path_text) = ("POST".to_owned(), path.to_owned());
        let delta = self.staged.delta();
        let request = UploadRequest { method, path: path_text, run, round, base, delta, signature };
        let body = json::to_vec(&request);
        loop {
            let mut random = [0; 16];
            getrandom::fill(&mut random).map_err(UploadError::Random)?;
            let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64);
            let envelope = Envelope::sign(secret, &body, now, &uuid_of(random));
            let json = ("content-type", "application/json".to_owned());
            let headers: Vec<_> = envelope.headers().into_iter().chain([json]).collect();
            let (headers, body) = (&headers[..], &body[..]);
            let sent = Question { method: "POST", path, query: None, headers, body };
            if let Some(answer) = self.ask(&sent)? {
                return Ok(answer);
            }
        }
    }

    fn put(
        &mut self,
        path: &str,
        query: Option<&str>,
        token: Digest,
        body: &[u8],
    ) -> Result<(), UploadError> {
        let headers = [
            ("authorization", format!("Bearer {token}")),
            ("content-type", "application/octet-stream".to_owned()),
            ("x-content-sha256", Digest::of(body).to_hex()),
        ];
        let question = Question { method: "PUT", path, query, headers: &headers, body };
        while self.ask(&question)?.is_none() {}
        Ok(())
    }

    /// The answer; nothing if it is to be asked again, for which was waited.
    fn ask(&mut self, question: &Question<'_>) -> Result<Option<Vec<u8>>, UploadError> {
        let sent = match self.http.send(question) {
            Err(error) if error.is_passing() => {
                self.failed(&error.to_string(), None)?;
                return Ok(None);
            }
            sent => sent?,
        };
        match sent.status {
            202 => {
                thread::sleep(Duration::from_secs(sent.retry_after_s.unwrap_or(1).min(WAIT_MAX_S)))
            }
            200..=299 => {
                self.failures = 0;
                return Ok(Some(sent.body));
            }
            status => {
                let Problem { code, detail } =
                    serde_json::from_slice(&sent.body).unwrap_or_default();
                if sent.retry_after_s.is_none() && status < 500 {
                    return Err(UploadError::Refused {
                        status,
                        code: printable(&code),
                        detail: printable(&detail),
                    });
                }
                let why = format!("{status} {}: {}", printable(&code), printable(&detail));
                self.failed(&why, sent.retry_after_s)?;
            }
        }
        Ok(None)
    }

    /// Waits after a failure, as long as the server says or longer each time.
    fn failed(&mut self, why: &str, retry_after_s: Option<u64>) -> Result<(), UploadError> {
        self.failures += 1;
        if self.failures >= FAILURES_MAX {
            return Err(UploadError::GaveUp { last: why.to_owned() });
        }
        let doubled = self.submitting.wait.saturating_mul(1 << (self.failures - 1).min(16));
        let asked = Duration::from_secs(retry_after_s.unwrap_or(0));
        let wait = doubled.max(asked).min(Duration::from_secs(WAIT_MAX_S));
        self.progress.note(&format!("{why}; again in {} s", wait.as_secs_f32().ceil()));
        thread::sleep(wait);
        Ok(())
    }
}

fn read<T: DeserializeOwned>(what: &'static str, answer: &[u8]) -> Result<T, UploadError> {
    serde_json::from_slice(answer)
        .map_err(|error| UploadError::Answer { what, reason: error.to_string() })
}

/// Text of a server, fit to print.
fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(400).map(clean).collect()
}
