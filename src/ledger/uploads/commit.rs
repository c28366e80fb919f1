//! From an upload that is whole to a submission with its receipt.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{UploadDesk, error::UploadError, upload::Upload};
use crate::{
    intake::{
        admit::Expected,
        native::{NativeAdmission, admit_upload},
    },
    ledger::submit::{SignedStatement, Standing, standing},
    store::uploads::Arrived,
    types::{
        digest::Digest,
        refusal::{Code, Refusal},
        upload::UploadRequest,
    },
};

impl UploadDesk {
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
            Ok(Begun::Now(committing)) => Ok(Commit::Pending(Box::new(Pending {
                desk: self.clone(),
                committing,
                submission,
            }))),
            // Its bytes are gone, but what was logged stays: the answer may have been lost.
            Err(error @ (UploadError::Unknown { .. } | UploadError::Incomplete { .. })) => {
                match self.submitter.with(move |writer| standing(writer, &statement))? {
                    Standing::Logged => self.append(submission).map(Commit::Done),
                    Standing::Refused(refusal) => Err(UploadError::Refused(refusal)),
                    Standing::Open => Err(error),
                }
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
}

/// What a commit comes to.
pub enum Commit {
    /// This receipt, as JSON.
    Done(Vec<u8>),
    /// A receipt once the delta is in its place.
    Pending(Box<Pending>),
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

/// Marks an upload as being committed, until dropped.
struct Committing(Arc<Upload>);
