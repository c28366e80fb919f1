//! A ledger's states as revisions of a model repository: the files of each, with their digests.
//!
//! The digests of 291 GB cannot be taken while a client waits, so they are taken once, file by file,
//! and kept (`store/hub.rs`). A revision is what has all of them. See `schema/hub.md`.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    export::{self, ExportDtype, FileReader, FileSet, SHARD_BYTES_MAX, SUMS, VirtualFile},
    store::{StoreError, artifacts::StoredCheckpoint, hub},
    types::{digest::Digest, json, manifest::ManifestId, record::FileId},
};

use super::{At, Ledger, LedgerError, retention::Kept};

/// Largest file of a revision: what the Hub itself takes.
pub const FILE_BYTES_MAX: u64 = 50_000_000_000;

/// Hex digits of a revision's id.
pub const COMMIT_DIGITS: usize = 40;

/// A state whose files all have a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Of the list of files: the same files are the same revision.
    pub commit: String,
    /// The state.
    pub state: ManifestId,
    /// What its floats are exported as.
    pub dtype: ExportDtype,
    /// The files by name, `SHA256SUMS` among them.
    pub files: Vec<FileId>,
}

impl Revision {
    /// The revision of `state` whose other files are `files`.
    fn new(state: ManifestId, dtype: ExportDtype, mut files: Vec<FileId>) -> Self {
        let sums = sums_of(&files);
        let (bytes, sha256) = (sums.len() as u64, Digest::of(&sums));
        files.push(FileId { name: SUMS.to_owned(), bytes, sha256 });
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let commit = commit(dtype, &files);
        Self { commit, state, dtype, files }
    }

    /// The file called `name`.
    pub fn file(&self, name: &str) -> Option<&FileId> {
        let at = self.files.binary_search_by(|file| file.name.as_str().cmp(name)).ok()?;
        Some(&self.files[at])
    }
}

/// The id of a revision: 160 bits of the digest over what can be downloaded under it.
fn commit(dtype: ExportDtype, files: &[FileId]) -> String {
    #[derive(Serialize)]
    struct Listed<'a> {
        dtype: &'static str,
        files: &'a [FileId],
    }
    let digest = Digest::of(&json::to_vec(&Listed { dtype: dtype.name(), files }));
    digest.to_hex()[..COMMIT_DIGITS].to_owned()
}

fn sums_of(files: &[FileId]) -> Vec<u8> {
    let named: Vec<_> = files.iter().map(|file| (file.name.clone(), file.sha256)).collect();
    export::sums(&named)
}

/// The files that the state `checkpoint` of `ledger` is exported as, those given at `init` among them.
///
/// # Errors
///
/// [`LedgerError::Store`] if a given file is missing or another, or two files would have one name.
pub fn file_set(
    ledger: &Ledger,
    checkpoint: &StoredCheckpoint,
    dtype: ExportDtype,
    shard_bytes_max: u64,
) -> Result<FileSet, LedgerError> {
    let set = FileSet::of(checkpoint.manifest(), dtype, shard_bytes_max)?;
    Ok(set.with(given_files(ledger)?)?)
}

/// The files that were given at `init`, compared with the genesis and held in memory.
///
/// # Errors
///
/// [`StoreError::Given`] if one is another, [`StoreError::Io`] if it is missing.
pub fn given_files(ledger: &Ledger) -> Result<Vec<Arc<VirtualFile>>, StoreError> {
    let read = |file: &FileId| {
        let bytes = hub::read_given(ledger.place(), file)?;
        Ok(Arc::new(VirtualFile::small(&file.name, bytes)))
    };
    ledger.genesis().files.iter().map(read).collect()
}

/// The files of `revision`, to read from.
pub struct OpenRevision {
    /// The state.
    pub checkpoint: StoredCheckpoint,
    files: Vec<Arc<VirtualFile>>,
}

impl OpenRevision {
    /// Opens the state of `revision`; no tensor yet. `given` are [`given_files`].
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if its manifest is missing.
    pub fn open(
        ledger: &Ledger,
        revision: &Revision,
        given: &[Arc<VirtualFile>],
    ) -> Result<Self, LedgerError> {
        let checkpoint = ledger.checkpoint(revision.state)?;
        let set = FileSet::of(checkpoint.manifest(), revision.dtype, SHARD_BYTES_MAX)?;
        let set = set.with(given.to_vec())?;
        let mut files = set.files().to_vec();
        let listed = |file: &Arc<VirtualFile>| revision.file(file.name()).cloned();
        let written: Vec<FileId> = files.iter().filter_map(listed).collect();
        files.push(Arc::new(VirtualFile::small(SUMS, sums_of(&written))));
        Ok(Self { checkpoint, files })
    }

    /// A reader of the file called `name`.
    pub fn reader(&self, name: &str) -> Option<FileReader> {
        let file = self.files.iter().find(|file| file.name() == name)?;
        Some(FileReader::new(self.checkpoint.clone(), file.clone()))
    }
}

/// What a [`revision`] comes to.
#[derive(Debug)]
pub enum Hashed {
    /// All files have their digest.
    Whole(Revision),
    /// It was stopped, with what is done so far kept.
    Stopped,
    /// A file would be larger than [`FILE_BYTES_MAX`]: such a state is no revision.
    TooLarge(String),
}

/// The revision that the state `id` is in `dtype`, its files hashed where that was not done yet.
///
/// Each digest is kept as it is known, so a killed one goes on with the file it was at. `stop` is asked
/// every 8 MiB. A digest that cannot be kept (a read-only disk) counts all the same; `unkept` is told.
///
/// # Errors
///
/// [`LedgerError`] if the state is not there, or has a piece that is not its digest's.
pub fn revision(
    ledger: &Ledger,
    id: ManifestId,
    dtype: ExportDtype,
    stop: &dyn Fn() -> bool,
    unkept: &mut dyn FnMut(StoreError),
) -> Result<Hashed, LedgerError> {
    let checkpoint = ledger.checkpoint(id)?;
    let set = FileSet::of(checkpoint.manifest(), dtype, SHARD_BYTES_MAX)?;
    if let Some(file) = set.files().iter().find(|file| file.bytes() > FILE_BYTES_MAX) {
        return Ok(Hashed::TooLarge(file.name().to_owned()));
    }
    let mut known = known(ledger, id, dtype, &set);
    for file in &set.files()[known.len()..] {
        let reader = FileReader::new(checkpoint.clone(), file.clone());
        let Some(sha256) = hash(reader, stop)? else { return Ok(Hashed::Stopped) };
        known.push(FileId { name: file.name().to_owned(), bytes: file.bytes(), sha256 });
        if let Err(error) = hub::save_sums(ledger.place(), id.root, dtype.name(), &known) {
            unkept(error);
        }
    }
    known.extend(ledger.genesis().files.iter().cloned());
    Ok(Hashed::Whole(Revision::new(id, dtype, known)))
}

/// The digests that are kept of the first files of `set`.
fn known(ledger: &Ledger, id: ManifestId, dtype: ExportDtype, set: &FileSet) -> Vec<FileId> {
    let mut kept = hub::load_sums(ledger.place(), id.root, dtype.name());
    let same = |(kept, file): &(&FileId, &Arc<VirtualFile>)| {
        kept.name == file.name() && kept.bytes == file.bytes()
    };
    let count = kept.iter().zip(set.files()).take_while(same).count();
    // More than there are files: it is of another layout.
    kept.truncate(if kept.len() > set.files().len() { 0 } else { count });
    kept
}

/// The digest of a file, or none if it was stopped.
fn hash(mut reader: FileReader, stop: &dyn Fn() -> bool) -> Result<Option<Digest>, StoreError> {
    enum End {
        Stopped,
        Failed(StoreError),
    }
    impl From<StoreError> for End {
        fn from(error: StoreError) -> Self {
            Self::Failed(error)
        }
    }
    let each = &mut |_: &[u8]| if stop() { Err(End::Stopped) } else { Ok(()) };
    match export::digest(&mut reader, each) {
        Ok(digest) => Ok(Some(digest)),
        Err(End::Stopped) => Ok(None),
        Err(End::Failed(error)) => Err(error),
    }
}

/// The states that can be revisions, oldest first: those that are kept, each with its name.
pub fn states(ledger: &Ledger, kept: &Kept) -> Vec<(At, ManifestId)> {
    let rounds = ledger.sealed().iter().map(|s| (At::Round(s.record.round), s.record.next));
    let genesis = [(At::Genesis, ledger.genesis().model)];
    genesis.into_iter().chain(rounds).filter(|(_, id)| kept.has(*id)).collect()
}
