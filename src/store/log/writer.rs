//! Appending: a batch is one commit.

use std::{ops::Range, path::Path, sync::Arc};

use super::{LogError, dir::LogDir, grown::Grown, tiler::Tiler};
use crate::{
    merkle::{head::TreeHead, note::VerifierKey, tree::empty_root},
    store::{
        files::{Files, create_dir_durable},
        keys::heads::HeadSigner,
    },
    types::{digest::Digest, record::ENTRY_BYTES_MAX},
};

/// The one writer of a log. Open it under the ledger's writer lock.
///
/// Memory: the last bundle's bytes, at most 16 MiB, and a few tiles.
pub struct LogWriter {
    dir: LogDir,
    signer: HeadSigner,
    grown: Grown,
    /// The published head: its note and its size.
    note: Vec<u8>,
    published: u64,
    broken: bool,
}

impl LogWriter {
    /// Makes a log without entries in `dir`, and publishes its signed head.
    ///
    /// # Errors
    ///
    /// [`LogError::Exists`] if one is there; [`LogError::Guard`] if the key signed one of this
    /// origin before that was not empty. What a crash leaves behind is no log or an empty one.
    pub fn create(files: Arc<dyn Files>, dir: &Path, signer: HeadSigner) -> Result<Self, LogError> {
        let dir = LogDir { files, path: dir.to_owned() };
        let path = dir.state_path();
        let io_error = |path: &Path| {
            let path = path.to_owned();
            |source| LogError::Io { path, source }
        };
        if dir.files.exists(&path).map_err(io_error(&path))? {
            return Err(LogError::Exists { path });
        }
        create_dir_durable(&*dir.files, &dir.path).map_err(io_error(&dir.path))?;
        let head = TreeHead { origin: signer.origin().to_owned(), size: 0, root: empty_root() };
        // Asked before anything is written: a key that signed entries cannot start anew.
        signer.guard().admit(&head)?;
        let mut log = Self::at(dir, signer, Tiler::default(), vec![]);
        log.commit_state()?;
        log.publish()?;
        Ok(log)
    }

    /// A writer that has published nothing yet.
    pub(super) fn at(dir: LogDir, signer: HeadSigner, tiler: Tiler, tail: Vec<u8>) -> Self {
        let grown = Grown::new(dir.clone(), tiler, tail);
        Self { dir, signer, grown, note: vec![], published: 0, broken: false }
    }

    /// Appends one entry as [`Self::append`] does; heads that hold it are signed by `signer`.
    ///
    /// # Errors
    ///
    /// As [`Self::append`]. The old key signs nothing more, whatever came of it.
    pub fn append_rotation(&mut self, entry: &[u8], signer: HeadSigner) -> Result<u64, LogError> {
        check_lengths(&[entry])?;
        self.signer = signer;
        Ok(self.append(&[entry])?.start)
    }

    /// Publishes the head anew, signed by `signer`, which takes over.
    ///
    /// # Errors
    ///
    /// [`LogError`]; the writer refuses to go on then.
    pub fn hand_over(&mut self, signer: HeadSigner) -> Result<(), LogError> {
        if self.broken {
            return Err(LogError::Broken { path: self.dir.path.clone() });
        }
        self.broken = true;
        self.signer = signer;
        self.publish()?;
        self.broken = false;
        Ok(())
    }

    /// Appends a batch of entries, each of 1 to 65,535 bytes, and gives their indices.
    ///
    /// When this returns, they are durable and the head that contains them is published. After a
    /// crash all of the batch is there or none of it.
    ///
    /// # Errors
    ///
    /// [`LogError::EntryLength`] changes nothing. After any other error the batch may be there or
    /// not, and the writer refuses to go on: what the disk holds is read by opening the log anew.
    pub fn append<E: AsRef<[u8]>>(&mut self, entries: &[E]) -> Result<Range<u64>, LogError> {
        check_lengths(entries)?;
        if self.broken {
            return Err(LogError::Broken { path: self.dir.path.clone() });
        }
        let start = self.size();
        if entries.is_empty() {
            return Ok(start..start);
        }
        self.broken = true;
        self.grown.write_bundles(entries)?;
        self.grown.sync_dirs()?;
        self.grown.write_tiles(entries)?;
        self.grown.write_partials(start)?;
        self.grown.sync_dirs()?;
        self.commit_state()?;
        let before = self.published;
        self.publish()?;
        self.broken = false;
        self.grown.remove_partials_of(before);
        Ok(start..self.size())
    }

    /// The commit point.
    fn commit_state(&self) -> Result<(), LogError> {
        self.grown.commit_state(self.signer.origin())
    }

    /// Signs the committed tree, its size and root being recorded first, and publishes the head.
    pub(super) fn publish(&mut self) -> Result<(), LogError> {
        let note = self.signer.sign(&self.tree_head())?;
        self.dir.write_head(note.as_bytes())?;
        self.note = note.into_bytes();
        self.published = self.size();
        Ok(())
    }

    /// Takes over the head of the committed tree that is published already.
    pub(super) fn keep_published(&mut self, note: Vec<u8>) -> Result<(), LogError> {
        self.signer.guard().admit(&self.tree_head())?;
        self.note = note;
        self.published = self.size();
        Ok(())
    }

    fn tree_head(&self) -> TreeHead {
        let origin = self.signer.origin().to_owned();
        TreeHead { origin, size: self.size(), root: self.root() }
    }

    /// Number of entries.
    pub fn size(&self) -> u64 {
        self.grown.tiler.size()
    }

    /// Root over them.
    pub fn root(&self) -> Digest {
        self.grown.tiler.root()
    }

    /// The published head: a signed note.
    pub fn head(&self) -> &[u8] {
        &self.note
    }

    /// The log's name.
    pub fn origin(&self) -> &str {
        self.signer.origin()
    }

    /// What signs its heads.
    pub fn signer(&self) -> &HeadSigner {
        &self.signer
    }

    /// The key that verifies its heads.
    pub fn verifier(&self) -> &VerifierKey {
        self.signer.verifier()
    }
}

fn check_lengths<E: AsRef<[u8]>>(entries: &[E]) -> Result<(), LogError> {
    for (at, entry) in entries.iter().enumerate() {
        let bytes = entry.as_ref().len();
        if !(1..=ENTRY_BYTES_MAX).contains(&bytes) {
            return Err(LogError::EntryLength { at, bytes, bytes_max: ENTRY_BYTES_MAX });
        }
    }
    Ok(())
}
