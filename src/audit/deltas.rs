//! What intake said, said again: accepted deltas keep its rules, refused uploads break the one named.
//!
//! Uploads are admitted again from the ledger's segments and its quarantine; what the admission would
//! store goes nowhere.

use std::{io, path::Path, sync::Arc};

use super::checks::{Check, Checklist, Finding};
use crate::{
    codec::layout::Layout,
    import::source::Source,
    intake::{
        admit::{Admission, AdmitError, Expected},
        native::{NativeAdmission, admit_segments_in},
    },
    ledger::{
        Ledger,
        import::{admit_gradient, admit_part},
    },
    store::{
        StoreError,
        artifacts::StoredDelta,
        files::{Files, Nowhere, ReadFile},
        place::Place,
        quarantine, segment,
    },
    types::{
        manifest::ManifestId,
        refusal::Refusal,
        submission::{Content, Fetched, Submission},
    },
};

/// A refusal as it is compared: the code and the tensor. The texts are for people.
fn same(a: &Refusal, b: &Refusal) -> bool {
    (a.code, &a.tensor) == (b.code, &b.tensor)
}

/// A kept upload, wherever the ledger lies.
struct Kept {
    file: Arc<dyn ReadFile>,
    bytes: u64,
}

impl Kept {
    fn open(files: &dyn Files, path: &Path) -> io::Result<Self> {
        let file = files.open(path)?;
        Ok(Self { bytes: file.len()?, file })
    }
}

impl Source for Kept {
    fn len(&self) -> u64 {
        self.bytes
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

/// Admits the uploads of a round's window again.
pub struct Intake<'a> {
    ledger: &'a Ledger,
    layout: &'a Layout,
    nowhere: Place,
}

impl<'a> Intake<'a> {
    /// Of this ledger and its model.
    pub fn new(ledger: &'a Ledger, layout: &'a Layout) -> Self {
        Self { ledger, layout, nowhere: Place::new(Arc::new(Nowhere), Path::new("nowhere")) }
    }

    /// Checks what intake said of one submission.
    pub fn check(&self, list: &mut Checklist, index: u64, submission: &Submission) {
        match (submission.content(), submission) {
            (Content::Delta(id), _) => self.delta(list, index, submission, id, None),
            (Content::Refused(refusal), Submission::Signed(signed)) => {
                self.delta(list, index, submission, signed.delta, Some(refusal));
            }
            (Content::Refused(refusal), Submission::Fetched(fetched)) => {
                self.quarantined(list, index, fetched, refusal);
            }
            (Content::Unread, _) => {}
        }
    }

    fn expected(&self, round: u64) -> Expected<'_> {
        Expected { layout: self.layout, rule: self.ledger.rule(), round }
    }

    /// A delta whose bytes are in the ledger, accepted by intake or refused for `refusal`.
    fn delta(
        &self,
        list: &mut Checklist,
        index: u64,
        submission: &Submission,
        id: ManifestId,
        refusal: Option<&Refusal>,
    ) {
        let check = if refusal.is_some() { Check::Refusals } else { Check::Acceptances };
        let round = submission.round();
        let place = self.ledger.place();
        if let Err(error) = StoredDelta::open(place, id) {
            return unread(list, check, round, index, &error);
        }
        let dir = segment::place::delta(&place.root, id.root);
        let expected = self.expected(round);
        let admitted = admit_segments_in(&*place.files, &dir, expected, &self.nowhere, "delta");
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(error) => return unread(list, check, round, index, &error),
        };
        list.checked(check, 1);
        let text = match (admitted, refusal) {
            (NativeAdmission::Malformed(fault), _) => {
                format!("its segments are no delta of this model: {fault}")
            }
            (NativeAdmission::Stored { delta, .. }, _) if delta != id => {
                format!("its bytes are delta {}, not {}", delta.root, id.root)
            }
            (NativeAdmission::Stored { refused: None, .. }, None) => return,
            (NativeAdmission::Stored { refused: Some(found), .. }, None) => {
                format!("accepted, though intake refuses it: {found}")
            }
            (NativeAdmission::Stored { refused: Some(found), .. }, Some(said))
                if same(&found, said) =>
            {
                return;
            }
            (NativeAdmission::Stored { refused, .. }, Some(said)) => false_refusal(said, refused),
        };
        found(list, check, round, index, text);
    }

    /// A file that was refused and is kept as it was received.
    fn quarantined(&self, list: &mut Checklist, index: u64, fetched: &Fetched, said: &Refusal) {
        let check = Check::Refusals;
        let place = self.ledger.place();
        let (round, sha256) = (fetched.round, fetched.source_sha256);
        match quarantine::verify(&*place.files, &place.root, round, sha256) {
            Ok(true) => {}
            Ok(false) => {
                return list.missing(check, "refused files that are no longer in quarantine");
            }
            Err(error) => return unread(list, check, round, index, &error.into()),
        }
        let path = quarantine::path_of(&place.root, round, sha256);
        let admitted = Kept::open(&*place.files, &path)
            .map_err(AdmitError::Read)
            .and_then(|source| self.admit(&(Arc::new(source) as Arc<dyn Source>), fetched, said));
        match admitted {
            Ok(None) => list.checked(check, 1),
            Ok(Some(text)) => {
                list.checked(check, 1);
                found(list, check, round, index, text);
            }
            Err(AdmitError::Store(error)) => unread(list, check, round, index, &error),
            Err(error) => list.missing(check, error),
        }
    }

    /// What speaks against the refusal of a kept file.
    fn admit(
        &self,
        source: &Arc<dyn Source>,
        fetched: &Fetched,
        said: &Refusal,
    ) -> Result<Option<String>, AdmitError> {
        let expected = self.expected(fetched.round);
        let refused = |admission| match admission {
            Admission::Refused(refusal) => Some(refusal),
            Admission::Delta(_) => None,
        };
        let alone = refused(admit_gradient(source, expected, &self.nowhere, "file")?);
        if alone.as_ref().is_some_and(|found| same(found, said)) {
            return Ok(None);
        }
        // The log does not say whether a file held one miner's delta or that of many.
        let part = admit_part(source, fetched.uid, expected, &self.nowhere, "file")?;
        let found = part.map_or(alone, refused);
        if found.as_ref().is_some_and(|found| same(found, said)) {
            return Ok(None);
        }
        Ok(Some(false_refusal(said, found)))
    }
}

fn false_refusal(said: &Refusal, found: Option<Refusal>) -> String {
    let found = found.map_or_else(|| "nothing wrong".to_owned(), |found| found.to_string());
    format!("refused as {said}; intake finds {found}")
}

fn found(list: &mut Checklist, check: Check, round: u64, index: u64, text: String) {
    list.found(check, Finding { index: Some(index), ..Finding::in_round(round, text) });
}

/// Bytes that contradict their digests are a finding; bytes that are not there are not.
fn unread(list: &mut Checklist, check: Check, round: u64, index: u64, error: &StoreError) {
    if error.is_mismatch() {
        found(list, check, round, index, error.to_string());
    } else {
        list.missing(check, format!("round {round}, submission {index}: {error}"));
    }
}
