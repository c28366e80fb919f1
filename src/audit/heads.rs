//! Heads that an auditor keeps: the newest of each log, which the next one has to continue.
//!
//! One file a log in a directory of the auditor's, named by the SHA-256 of the log's origin. A server
//! that shows two auditors two logs is found when they compare these files: two heads of one size
//! with other roots need no further proof.

use std::path::{Path, PathBuf};

use super::checks::{Check, Checklist, Finding};
use crate::{
    merkle::{
        fork::{Relation, relation},
        note::{NOTE_BYTES_MAX, VerifierKey},
        policy::open_head,
    },
    store::{
        StoreError,
        files::{Files, create_dir_durable, read_whole, write_whole},
        log::{LogError, LogReader},
    },
    types::digest::Digest,
};

/// The heads of a directory.
pub struct KeptHeads<'a> {
    files: &'a dyn Files,
    dir: &'a Path,
}

impl<'a> KeptHeads<'a> {
    /// The heads in `dir`.
    pub fn new(files: &'a dyn Files, dir: &'a Path) -> Self {
        Self { files, dir }
    }

    fn path(&self, origin: &str) -> PathBuf {
        self.dir.join(format!("{}.note", Digest::of(origin.as_bytes())))
    }

    /// The kept head of a log.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn load(&self, origin: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(origin);
        let io = |source| StoreError::Io { path: path.clone(), source };
        if !self.files.exists(&path).map_err(io)? {
            return Ok(None);
        }
        read_whole(self.files, &path, NOTE_BYTES_MAX as u64).map(Some).map_err(io)
    }

    /// Keeps a head in place of the one before.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn keep(&self, origin: &str, note: &[u8]) -> Result<(), StoreError> {
        let path = self.path(origin);
        let kept = create_dir_durable(self.files, self.dir)
            .and_then(|()| write_whole(self.files, &path, note));
        kept.map_err(|source| StoreError::Io { path, source })
    }
}

/// Whether `log` continues the head in `kept`, which one of `keys` must have signed; says whether
/// the two heads by themselves are evidence of a fork.
pub fn check_continues(
    list: &mut Checklist,
    log: &LogReader,
    kept: &[u8],
    keys: &[VerifierKey],
) -> bool {
    let check = Check::Consistency;
    let old = match open_head(kept, keys) {
        Ok(head) if head.origin == log.head().origin => head,
        Ok(_) => return false,
        Err(error) => {
            list.missing(check, format!("the head that was kept: {error}"));
            return false;
        }
    };
    let new = log.head();
    if old.size > new.size {
        let text = format!(
            "{}: the log has {} entries; a head was signed for {} (a restored backup, or a fork)",
            new.origin, new.size, old.size
        );
        list.found(check, Finding::new(text));
        return false;
    }
    let proof = match old.size {
        0 => Ok(Vec::new()),
        size => log.consistency_proof(size, new.size),
    };
    let relation = match proof {
        Ok(proof) => relation(kept, log.note(), keys, &proof),
        Err(LogError::Io { .. }) => {
            list.missing(check, "the log's tiles cannot be read");
            return false;
        }
        Err(_) => Relation::NotProven,
    };
    match relation {
        Relation::Same | Relation::Consistent => list.checked(check, 1),
        // The log's own signature is another check's affair.
        Relation::Invalid | Relation::Unrelated => {
            list.missing(check, format!("{}: its head is not signed", new.origin));
        }
        Relation::Fork | Relation::NotProven => {
            let text = format!(
                "{}: the log of size {} does not continue the head of size {} ({})",
                new.origin,
                new.size,
                old.size,
                relation.as_str()
            );
            list.found(check, Finding::new(text));
        }
    }
    relation == Relation::Fork
}
