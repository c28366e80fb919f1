//! The desk where miners hand in deltas over a network: announce, send, commit, receipt.
//!
//! The HTTP server asks it and puts its answers into words. What a request is signed with is checked
//! before; here is decided who may send what, and in which order an upload becomes a submission: all of
//! it is there, it is admitted as a directory would be, its statement is appended, and then it is
//! answered.
//!
//! Trust: a hotkey that the genesis lists can waste what [`UploadsChoice`] grants it, until its uploads
//! expire; anyone else nothing. What lies in the upload store is hashed again at commit.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    codec::{layout::Layout, parts::DeltaShape, statement::Statement},
    intake::{
        admit::Expected,
        native::{NativeAdmission, admit_upload},
    },
    store::{
        StoreError,
        config::UploadsChoice,
        hashes,
        place::Place,
        uploads::{ArrivalError, Arrived, Arriving, UploadDir, UploadRecord},
    },
    types::{
        digest::Digest,
        manifest::ManifestId,
        progress::Progress,
        refusal::{Code, Refusal},
        rule::SparseMeanSgd,
        upload::{Part, UPLOAD_VERSION, UploadRequest, UploadState},
    },
};

use super::{
    Ledger, LedgerError,
    seal::{FoldOptions, SealReport, seal},
    submit::{SignedStatement, Standing, SubmitHandle, open_round, standing},
};

/// Parts of one upload that may arrive at once.
const ARRIVING_MAX: usize = 8;

/// What a client waits before it asks again, in seconds: for a disk, for a seal, for a place.
const RETRY_SPACE_S: u64 = 60;
const RETRY_SEAL_S: u64 = 10;
const RETRY_SOON_S: u64 = 1;

/// Why a request about an upload is not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum UploadError {
    #[error("{0}")]
    Refused(Refusal),
    #[error("there is no upload {id}: it was never announced, has expired, or its round is over")]
    Unknown { id: Digest },
    #[error("the token is not the one that this upload was announced with")]
    Token,
    #[error(
        "the upload is of {expected}; the request is signed by {found}, or says something else"
    )]
    Other { expected: Digest, found: Digest },
    #[error("round {round} is being sealed: wait until it is, and make the delta for the next one")]
    Sealing { round: u64 },
    #[error("send the hashes first: parts are checked by them")]
    HashesFirst,
    #[error("no part starts at {offset}; the answer to GET lists those that are missing")]
    Offset { offset: u64 },
    #[error("the body has {found} bytes, the part {expected}")]
    Length { expected: u64, found: u64 },
    #[error("{missing} parts are missing, the first at {first}, or the hashes")]
    Incomplete { missing: usize, first: u64 },
    #[error("the upload is being committed")]
    Committing,
    #[error("it was committed already; commit again for the receipt")]
    Committed,
    #[error("{what}: at most {most} at once for a hotkey")]
    Quota { what: &'static str, most: u64, retry_s: u64 },
    #[error("too many parts of one upload arrive at once; {ARRIVING_MAX} may")]
    Arriving,
    #[error("the disk has {free} bytes left, and {needed} are needed: come back later")]
    Space { free: u64, needed: u64 },
    #[error("the disk is full: come back later")]
    Full,
    #[error("what was stored is damaged and was dropped: send it again ({0})")]
    Damaged(Refusal),
    #[error(transparent)]
    Arrival(ArrivalError),
    #[error(transparent)]
    Ledger(LedgerError),
}

impl UploadError {
    /// When to try again, in seconds, if waiting helps.
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::Sealing { .. } => Some(RETRY_SEAL_S),
            Self::Committing | Self::Arriving => Some(RETRY_SOON_S),
            Self::Quota { retry_s, .. } => Some(*retry_s),
            Self::Space { .. } | Self::Full => Some(RETRY_SPACE_S),
            _ => None,
        }
    }
}

impl From<ArrivalError> for UploadError {
    fn from(error: ArrivalError) -> Self {
        match error {
            error if error.is_full() => Self::Full,
            ArrivalError::Long { bytes } => Self::Length { expected: bytes, found: bytes + 1 },
            ArrivalError::Short { bytes, found } => Self::Length { expected: bytes, found },
            error => Self::Arrival(error),
        }
    }
}

impl From<LedgerError> for UploadError {
    fn from(error: LedgerError) -> Self {
        if error.is_full() { Self::Full } else { Self::Ledger(error) }
    }
}

impl From<StoreError> for UploadError {
    fn from(error: StoreError) -> Self {
        LedgerError::from(error).into()
    }
}

/// One upload.
struct Upload {
    id: Digest,
    record: UploadRecord,
    dir: UploadDir,
    parts: Arc<[Part]>,
    state: Mutex<State>,
}

struct State {
    arrived: Arrived,
    touched: Instant,
    /// Parts under way.
    arriving: usize,
    committing: bool,
}

impl Upload {
    fn new(id: Digest, record: UploadRecord, dir: UploadDir, parts: Vec<Part>) -> Self {
        let state = State {
            arrived: Arrived::default(),
            touched: Instant::now(),
            arriving: 0,
            committing: false,
        };
        Self { id, record, dir, parts: parts.into(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is held")
    }

    fn statement(&self, run: Digest) -> Statement {
        let UploadRecord { round, base, delta, hotkey, .. } = self.record;
        Statement { run, round, base, delta: delta.root, delta_bytes: delta.bytes, hotkey }
    }

    fn missing(&self, state: &State) -> Vec<Part> {
        let there = |part: &&Part| !state.arrived.parts.contains(&part.offset);
        self.parts.iter().filter(there).copied().collect()
    }

    fn arrived_bytes(&self, state: &State) -> u64 {
        self.record.delta.bytes - self.missing(state).iter().map(|part| part.bytes).sum::<u64>()
    }
}

/// The desk.
pub struct UploadDesk {
    place: Place,
    run: Digest,
    layout: Layout,
    rule: SparseMeanSgd,
    shape: DeltaShape,
    hashes_bytes: u64,
    choice: UploadsChoice,
    submitter: SubmitHandle,
    uploads: Mutex<BTreeMap<Digest, Arc<Upload>>>,
    sealing: Mutex<Option<u64>>,
    /// For the names of files under way.
    numbers: AtomicU64,
}

impl UploadDesk {
    /// Opens the desk of a ledger whose writer is behind `submitter`; uploads of before go on.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if the model or the upload store does not read.
    pub fn open(
        ledger: &Ledger,
        submitter: SubmitHandle,
        choice: UploadsChoice,
    ) -> Result<Self, UploadError> {
        let layout = ledger.layout()?;
        let shape = DeltaShape::of(&layout).map_err(LedgerError::from)?;
        let desk = Self {
            place: ledger.place().clone(),
            run: ledger.run_id(),
            hashes_bytes: hashes::file_bytes(shape.manifest()),
            rule: ledger.rule().clone(),
            layout,
            shape,
            choice,
            submitter,
            uploads: Mutex::default(),
            sealing: Mutex::default(),
            numbers: AtomicU64::new(0),
        };
        for id in UploadDir::all(&desk.place)? {
            let dir = UploadDir::new(&desk.place, id);
            let Some((record, parts, arrived)) = dir.load(&desk.shape)? else {
                dir.remove()?;
                continue;
            };
            let upload = Upload::new(id, record, dir, parts);
            if upload.statement(desk.run).id() != id || !desk.fits(&upload.record.delta) {
                upload.dir.remove()?;
                continue;
            }
            upload.state().arrived = arrived;
            desk.uploads().insert(id, Arc::new(upload));
        }
        Ok(desk)
    }

    /// The limits.
    pub fn choice(&self) -> &UploadsChoice {
        &self.choice
    }

    fn uploads(&self) -> MutexGuard<'_, BTreeMap<Digest, Arc<Upload>>> {
        self.uploads.lock().expect("no panic while it is held")
    }

    fn fits(&self, delta: &ManifestId) -> bool {
        (delta.count, delta.bytes) == (self.shape.count(), self.shape.bytes())
    }

    fn find(&self, id: Digest) -> Result<Arc<Upload>, UploadError> {
        self.uploads().get(&id).cloned().ok_or(UploadError::Unknown { id })
    }

    /// Announces an upload; the same again gives the same token.
    ///
    /// `hotkey` signed the request. `token` is random, for an upload that is new.
    ///
    /// # Errors
    ///
    /// [`UploadError`] says what it would be refused for, or which limit it meets.
    pub fn create(
        &self,
        request: &UploadRequest,
        hotkey: Digest,
        token: Digest,
    ) -> Result<UploadState, UploadError> {
        self.check_may(hotkey)?;
        self.check_not_sealing()?;
        let statement = self.statement(request, hotkey)?;
        match self.submitter.with(move |writer| standing(writer, &statement))? {
            Standing::Refused(refusal) => return Err(UploadError::Refused(refusal)),
            Standing::Logged => return Ok(self.logged(statement.id())),
            Standing::Open => {}
        }
        if !self.fits(&request.delta) {
            let (count, bytes) = (self.shape.count(), self.shape.bytes());
            let want = format!("{count} artifacts of {bytes} bytes");
            let found = format!("{} of {}", request.delta.count, request.delta.bytes);
            return Err(UploadError::Refused(Refusal::new(Code::WrongShape, None, want, found)));
        }
        let id = statement.id();
        let mut uploads = self.uploads();
        if let Some(upload) = uploads.get(&id) {
            upload.state().touched = Instant::now();
            return Ok(self.state_of(upload, true));
        }
        self.check_quota(&uploads, hotkey)?;
        self.check_space(&uploads, 2 * request.delta.bytes)?;
        let part_bytes = self.choice.part_bytes;
        let (round, base, delta) = (request.round, request.base, request.delta);
        let record = UploadRecord::new(round, base, delta, hotkey, token, part_bytes);
        let dir = UploadDir::new(&self.place, id);
        dir.create(&record)?;
        let upload = Arc::new(Upload::new(id, record, dir, self.shape.parts(part_bytes)));
        let state = self.state_of(&upload, true);
        uploads.insert(id, upload);
        Ok(state)
    }

    /// What a request says, of this run and by this hotkey.
    fn statement(&self, request: &UploadRequest, hotkey: Digest) -> Result<Statement, UploadError> {
        if request.run != self.run {
            let want = format!("a request for run {}", self.run);
            let refusal = Refusal::new(Code::BadSignature, None, want, request.run.to_hex());
            return Err(UploadError::Refused(refusal));
        }
        let (delta, delta_bytes) = (request.delta.root, request.delta.bytes);
        let (run, round, base) = (request.run, request.round, request.base);
        Ok(Statement { run, round, base, delta, delta_bytes, hotkey })
    }

    fn check_may(&self, hotkey: Digest) -> Result<(), UploadError> {
        let may = self.choice.hotkeys.as_ref();
        if may.is_none_or(|keys| keys.iter().any(|key| key.0 == hotkey)) {
            return Ok(());
        }
        let want = "a hotkey that the operator lets upload";
        let refusal = Refusal::new(Code::NotListed, None, want, hotkey.to_hex());
        Err(UploadError::Refused(refusal))
    }

    fn check_not_sealing(&self) -> Result<(), UploadError> {
        match *self.sealing.lock().expect("no panic while it is held") {
            Some(round) => Err(UploadError::Sealing { round }),
            None => Ok(()),
        }
    }

    fn check_quota(
        &self,
        uploads: &BTreeMap<Digest, Arc<Upload>>,
        hotkey: Digest,
    ) -> Result<(), UploadError> {
        let (mut count, mut bytes, mut oldest) = (0, self.shape.bytes(), Duration::ZERO);
        for upload in uploads.values().filter(|upload| upload.record.hotkey == hotkey) {
            let state = upload.state();
            if state.arrived.receipt.is_none() {
                count += 1;
                bytes += upload.record.delta.bytes;
                oldest = oldest.max(state.touched.elapsed());
            }
        }
        let retry_s = self.choice.expire_s.saturating_sub(oldest.as_secs()).max(RETRY_SOON_S);
        if count >= self.choice.uploads_per_hotkey {
            let (what, most) = ("uploads", self.choice.uploads_per_hotkey as u64);
            return Err(UploadError::Quota { what, most, retry_s });
        }
        if bytes > self.choice.bytes_per_hotkey {
            let (what, most) = ("bytes of uploads", self.choice.bytes_per_hotkey);
            return Err(UploadError::Quota { what, most, retry_s });
        }
        Ok(())
    }

    /// Whether `more` bytes can be promised beside what was promised: each delta is there twice, until
    /// it is in its place.
    fn check_space(
        &self,
        uploads: &BTreeMap<Digest, Arc<Upload>>,
        more: u64,
    ) -> Result<(), UploadError> {
        let promised = uploads.values().map(|upload| {
            let state = upload.state();
            let under_way = state.arrived.receipt.is_none();
            let bytes = 2 * upload.record.delta.bytes - upload.arrived_bytes(&state);
            if under_way { bytes } else { 0 }
        });
        self.check_free(promised.sum::<u64>().saturating_add(more))
    }

    fn check_free(&self, bytes: u64) -> Result<(), UploadError> {
        let free = self
            .place
            .files
            .free_bytes(&self.place.root)
            .map_err(|source| StoreError::Io { path: self.place.root.clone(), source })?;
        let needed = bytes.saturating_add(self.choice.disk_reserve_bytes);
        if free < needed { Err(UploadError::Space { free, needed }) } else { Ok(()) }
    }

    /// The answer for a statement that is in the log.
    fn logged(&self, id: Digest) -> UploadState {
        UploadState {
            schema_version: UPLOAD_VERSION,
            id,
            token: None,
            committed: true,
            hashes_bytes: None,
            missing: Vec::new(),
            expires_in_s: 0,
        }
    }

    fn state_of(&self, upload: &Upload, with_token: bool) -> UploadState {
        let state = upload.state();
        if state.arrived.receipt.is_some() {
            return self.logged(upload.id);
        }
        let idle = state.touched.elapsed().as_secs();
        UploadState {
            token: with_token.then_some(upload.record.token),
            committed: false,
            hashes_bytes: (!state.arrived.hashes).then_some(self.hashes_bytes),
            missing: upload.missing(&state),
            expires_in_s: self.choice.expire_s.saturating_sub(idle),
            ..self.logged(upload.id)
        }
    }

    /// The upload that `token` was given for, and whose it is.
    fn by_token(&self, id: Digest, token: Digest) -> Result<Arc<Upload>, UploadError> {
        let upload = self.find(id)?;
        // A digest of it is compared: the time that takes says nothing about the token.
        if Digest::of(upload.record.token.as_bytes()) != Digest::of(token.as_bytes()) {
            return Err(UploadError::Token);
        }
        Ok(upload)
    }

    /// Whose upload this is, if `token` is its own.
    ///
    /// # Errors
    ///
    /// [`UploadError::Unknown`], [`UploadError::Token`].
    pub fn hotkey_of(&self, id: Digest, token: Digest) -> Result<Digest, UploadError> {
        Ok(self.by_token(id, token)?.record.hotkey)
    }

    /// How far an upload has come.
    ///
    /// # Errors
    ///
    /// [`UploadError::Unknown`], [`UploadError::Token`].
    pub fn state(&self, id: Digest, token: Digest) -> Result<UploadState, UploadError> {
        Ok(self.state_of(&*self.by_token(id, token)?, false))
    }

    /// Drops an upload that its miner gives up.
    ///
    /// # Errors
    ///
    /// [`UploadError`] if it is not there, another's, or being committed.
    pub fn abandon(&self, id: Digest, token: Digest) -> Result<(), UploadError> {
        let upload = self.by_token(id, token)?;
        let mut uploads = self.uploads();
        match *upload.state() {
            State { committing: true, .. } => return Err(UploadError::Committing),
            State { arriving: 1.., .. } => return Err(UploadError::Arriving),
            _ => {}
        }
        upload.dir.remove()?;
        uploads.remove(&id);
        Ok(())
    }

    /// Starts to take the hashes file, or the part at an offset; `bytes` is the body's length.
    ///
    /// # Errors
    ///
    /// [`UploadError`] says why it is not taken.
    pub fn receive(
        self: &Arc<Self>,
        id: Digest,
        token: Digest,
        offset: Option<u64>,
        bytes: u64,
    ) -> Result<Receiving, UploadError> {
        let upload = self.by_token(id, token)?;
        self.check_not_sealing()?;
        let part = match offset {
            None => Part { offset: 0, bytes: self.hashes_bytes },
            Some(offset) => *upload
                .parts
                .iter()
                .find(|part| part.offset == offset)
                .ok_or(UploadError::Offset { offset })?,
        };
        if part.bytes != bytes {
            return Err(UploadError::Length { expected: part.bytes, found: bytes });
        }
        self.check_free(bytes)?;
        {
            let mut state = upload.state();
            if state.arrived.receipt.is_some() {
                return Err(UploadError::Committed);
            }
            if state.committing {
                return Err(UploadError::Committing);
            }
            if offset.is_some() && !state.arrived.hashes {
                return Err(UploadError::HashesFirst);
            }
            if state.arriving >= ARRIVING_MAX {
                return Err(UploadError::Arriving);
            }
            state.arriving += 1;
            state.touched = Instant::now();
        }
        let mut receiving = Receiving { desk: self.clone(), upload, offset, arriving: None };
        let (dir, number) = (&receiving.upload.dir, self.numbers.fetch_add(1, Ordering::Relaxed));
        let arriving = match offset {
            None => dir.hashes(number, bytes),
            Some(_) => dir.part(number, &receiving.upload.record.delta, &self.shape, part),
        };
        receiving.arriving = Some(arriving?);
        Ok(receiving)
    }

    /// Takes the hotkey's word that the upload is whole; what is left to do takes as long as reading and
    /// writing the delta.
    ///
    /// `hotkey` signed the request, whose signature of the statement enters the log. The same again
    /// gives the same receipt.
    ///
    /// # Errors
    ///
    /// [`UploadError`] says what is missing, or why it is refused.
    pub fn commit(
        self: &Arc<Self>,
        id: Digest,
        request: &UploadRequest,
        hotkey: Digest,
    ) -> Result<Commit, UploadError> {
        let statement = self.statement(request, hotkey)?;
        let other = |upload: Arc<Upload>| upload.record.delta != request.delta;
        if statement.id() != id || self.find(id).is_ok_and(other) {
            return Err(UploadError::Other { expected: id, found: statement.id() });
        }
        let signature = request.signature.map_or([0; 64], |signature| signature.0);
        if let Err(error) = statement.verify(&signature) {
            let want = "the hotkey's signature of the statement";
            let refusal = Refusal::new(Code::BadSignature, None, want, error.to_string());
            return Err(UploadError::Refused(refusal));
        }
        self.check_not_sealing()?;
        let submission =
            SignedStatement { statement, signature, delta: request.delta, refused: None };
        match self.find(id).and_then(begin_commit) {
            Ok(Begun::Receipt(receipt)) => Ok(Commit::Done(receipt)),
            Ok(Begun::Now(committing)) => {
                Ok(Commit::Pending(Pending { desk: self.clone(), committing, submission }))
            }
            // Its bytes are gone, but what was logged stays: the answer may have been lost.
            Err(error @ (UploadError::Unknown { .. } | UploadError::Incomplete { .. })) => {
                let logged = self.submitter.with(move |writer| standing(writer, &statement))?;
                if logged != Standing::Logged {
                    return Err(error);
                }
                self.append(submission).map(Commit::Done)
            }
            Err(error) => Err(error),
        }
    }

    fn append(&self, submission: SignedStatement) -> Result<Vec<u8>, UploadError> {
        let receipt = self.submitter.submit(submission)?.map_err(UploadError::Refused)?;
        Ok(serde_json::to_vec(&receipt).expect("a receipt is texts and numbers"))
    }

    /// Checks and stores the delta; gives what is wrong with its values.
    fn admit(&self, upload: &Upload) -> Result<Option<Refusal>, UploadError> {
        self.check_free(upload.record.delta.bytes)?;
        let expected =
            Expected { layout: &self.layout, rule: &self.rule, round: upload.record.round };
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let open = |at| upload.dir.artifact(&self.shape, upload.parts.clone(), at);
        let (delta, scratch) = (upload.record.delta, format!("upload-{number}"));
        match admit_upload(open, delta, expected, &self.place, &scratch) {
            Ok(NativeAdmission::Stored { refused, .. }) => Ok(refused),
            Ok(NativeAdmission::Malformed(damage)) => {
                upload.dir.clear()?;
                upload.state().arrived = Arrived::default();
                Err(UploadError::Damaged(damage))
            }
            Err(error) => {
                // Room for others; the next writer would remove it, too.
                let _ = self.place.files.remove_dir_all(&self.place.tmp().join(scratch));
                Err(error.into())
            }
        }
    }

    /// Seals `round`, or the open one, while nothing is handed in for it.
    ///
    /// # Errors
    ///
    /// As [`seal()`].
    pub fn seal(
        &self,
        round: Option<u64>,
        options: FoldOptions,
        progress: Arc<dyn Progress + Send>,
    ) -> Result<SealReport, UploadError> {
        let open = self.submitter.with(|writer| open_round(writer.ledger()))?;
        let round = round.unwrap_or(open);
        *self.sealing.lock().expect("no panic while it is held") = Some(round);
        let sealed = self.submitter.with(move |writer| seal(writer, round, options, &*progress));
        *self.sealing.lock().expect("no panic while it is held") = None;
        let report = sealed?;
        self.sweep()?;
        Ok(report)
    }

    /// Drops what has expired and what is of no round that could still take it. Receipts stay for a
    /// round longer.
    ///
    /// # Errors
    ///
    /// [`UploadError`] if the store fails.
    pub fn sweep(&self) -> Result<(), UploadError> {
        let open = self.submitter.with(|writer| open_round(writer.ledger()))?;
        let mut uploads = self.uploads();
        let over: Vec<_> =
            uploads.values().filter(|upload| self.is_over(upload, open)).cloned().collect();
        for upload in over {
            upload.dir.remove()?;
            uploads.remove(&upload.id);
        }
        Ok(())
    }

    fn is_over(&self, upload: &Upload, open: u64) -> bool {
        let state = upload.state();
        if state.arriving > 0 || state.committing {
            return false;
        }
        match state.arrived.receipt {
            Some(_) => upload.record.round.saturating_add(1) < open,
            None => {
                upload.record.round < open
                    || state.touched.elapsed() > Duration::from_secs(self.choice.expire_s)
            }
        }
    }
}

/// What a commit comes to.
pub enum Commit {
    /// This receipt, as JSON.
    Done(Vec<u8>),
    /// A receipt once the delta is in its place.
    Pending(Pending),
}

/// A commit that is under way: no other of its upload is, until this is dropped.
pub struct Pending {
    desk: Arc<UploadDesk>,
    committing: Committing,
    submission: SignedStatement,
}

impl Pending {
    /// Admits the delta, appends its statement, and gives the receipt as JSON: all of it is durable then.
    ///
    /// # Errors
    ///
    /// [`UploadError`]: what was stored is damaged, the round is over by now, the disk fails.
    pub fn run(self) -> Result<Vec<u8>, UploadError> {
        let Self { desk, committing: Committing(ref upload), submission } = self;
        let refused = desk.admit(upload)?;
        let receipt = desk.append(SignedStatement { refused, ..submission })?;
        upload.dir.settle(&receipt)?;
        let receipts = Arrived { receipt: Some(receipt.clone()), ..Arrived::default() };
        upload.state().arrived = receipts;
        Ok(receipt)
    }
}

enum Begun {
    Receipt(Vec<u8>),
    Now(Committing),
}

/// Marks an upload as being committed, until dropped.
struct Committing(Arc<Upload>);

impl Drop for Committing {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.committing = false;
        state.touched = Instant::now();
    }
}

fn begin_commit(upload: Arc<Upload>) -> Result<Begun, UploadError> {
    let mut state = upload.state();
    if let Some(receipt) = &state.arrived.receipt {
        return Ok(Begun::Receipt(receipt.clone()));
    }
    if state.committing {
        return Err(UploadError::Committing);
    }
    let missing = upload.missing(&state);
    if !state.arrived.hashes || !missing.is_empty() {
        let first = missing.first().map_or(0, |part| part.offset);
        return Err(UploadError::Incomplete { missing: missing.len(), first });
    }
    state.committing = true;
    drop(state);
    Ok(Begun::Now(Committing(upload)))
}

/// The hashes file or a part on its way in.
pub struct Receiving {
    desk: Arc<UploadDesk>,
    upload: Arc<Upload>,
    /// Which part; none for the hashes.
    offset: Option<u64>,
    arriving: Option<Arriving>,
}

impl Receiving {
    /// Takes the next bytes.
    ///
    /// # Errors
    ///
    /// [`UploadError`]: too many, a piece that is not the delta's, a full disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), UploadError> {
        Ok(self.arriving.as_mut().expect("it is there until it is finished").write(bytes)?)
    }

    /// All has come: when this returns it is durable.
    ///
    /// # Errors
    ///
    /// [`UploadError`] if the bytes do not have this SHA-256, or the disk fails.
    pub fn finish(mut self, sha256: Digest) -> Result<(), UploadError> {
        let arriving = self.arriving.take().expect("it is there until it is finished");
        match self.offset {
            Some(_) => arriving.finish(sha256)?,
            None => {
                arriving.finish_hashes(sha256, &self.upload.record.delta, &self.desk.shape)?;
            }
        }
        let mut state = self.upload.state();
        match self.offset {
            Some(offset) => drop(state.arrived.parts.insert(offset)),
            None => state.arrived.hashes = true,
        }
        Ok(())
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let mut state = self.upload.state();
        state.arriving -= 1;
        state.touched = Instant::now();
    }
}
