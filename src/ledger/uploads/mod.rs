//! The desk where miners hand in deltas over a network: announce, send, commit, receipt.
//!
//! The HTTP server asks it and puts its answers into words. What a request is signed with is checked
//! before; here is decided who may send what, and in which order an upload becomes a submission: all of
//! it is there, it is admitted as a directory would be, its statement is appended, and then it is
//! answered.
//!
//! Trust: a hotkey that the genesis lists can waste what [`UploadsChoice`] grants it, until its uploads
//! expire; anyone else nothing. What lies in the upload store is hashed again at commit.

mod commit;
mod error;
mod limits;
mod receive;
mod upload;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicU64},
    time::{Duration, Instant},
};

use crate::{
    codec::{layout::Layout, parts::DeltaShape, statement::Statement},
    store::{
        config::UploadsChoice,
        hashes,
        place::Place,
        uploads::{UploadDir, UploadRecord},
    },
    types::{
        digest::Digest,
        manifest::ManifestId,
        progress::Progress,
        refusal::{Code, Refusal},
        rule::SparseMeanSgd,
        upload::{UPLOAD_VERSION, UploadRequest, UploadState},
    },
};

use self::upload::{State, Upload};
pub use self::{
    commit::{Commit, Pending},
    error::UploadError,
    receive::Receiving,
};
use super::{
    Ledger, LedgerError,
    seal::{FoldOptions, SealReport, seal},
    submit::{Standing, SubmitHandle, open_round, standing},
};

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
