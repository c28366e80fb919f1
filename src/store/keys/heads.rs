//! What a log key has signed: per log the newest (size, root), beside the key in `KEYFILE.heads`.
//!
//! Whoever holds two signed heads that contradict each other has proof of a fork, and a log does
//! not recover from that. So a pair is made durable here before its signature leaves the process,
//! and a head that goes back in size, or gives a signed size another root, is never signed. The
//! usual cause of an attempt is a ledger restored from a backup older than the key's record.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::LogSeed;
use crate::{
    merkle::{
        head::{HeadError, TreeHead},
        note::{self, LogKey, VerifierKey},
        rotation::Rotation,
    },
    store::files::{Files, read_whole, write_whole},
    types::{digest::Digest, json},
};

/// A record names two logs; this leaves room for many.
const HEADS_BYTES_MAX: u64 = 1 << 20;

/// What is kept of a signed head; its origin is the key in [`Heads`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SizeRoot {
    root: Digest,
    size: u64,
}

/// Newest pair per origin.
type Heads = BTreeMap<String, SizeRoot>;

/// Keeps one key from contradicting itself, over all logs that it signs.
pub struct HeadGuard {
    files: Arc<dyn Files>,
    path: PathBuf,
    /// None once a write failed: what the disk then holds is not known.
    heads: Mutex<Option<Heads>>,
}

/// A head that is not signed, or a record that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// A larger tree was signed before.
    #[error(
        "{path}: a head of {origin} with {signed} entries was signed before, so one with {asked} \
         is not: signing would fork the log. Was the ledger restored from an old backup? Bring \
         back the log as it was at {signed} entries"
    )]
    Older {
        /// The record.
        path: PathBuf,
        /// Which log.
        origin: String,
        /// Entries of the newest signed head.
        signed: u64,
        /// Entries of the head that was to be signed.
        asked: u64,
    },
    /// The same number of entries was signed with another root.
    #[error(
        "{path}: a head of {origin} with {size} entries was signed with root {signed}, so one with \
         root {asked} is not: signing would fork the log. Was the ledger restored from an old \
         backup and written to? Bring back the log whose root at {size} entries is {signed}"
    )]
    Fork {
        /// The record.
        path: PathBuf,
        /// Which log.
        origin: Box<str>,
        /// Entries of both heads.
        size: u64,
        /// The root that was signed.
        signed: Digest,
        /// The root that was to be signed.
        asked: Digest,
    },
    /// A key without its record could contradict what it signed.
    #[error(
        "{path}: the record of what the log key signed is missing; copy it from where the key came \
         from"
    )]
    Absent {
        /// The record.
        path: PathBuf,
    },
    /// The record says nothing about a log that is there: it is not the one of its key.
    #[error(
        "{path}: no head of {origin} is recorded here, though there is such a log; copy the record \
         from where the key came from"
    )]
    Unknown {
        /// The record.
        path: PathBuf,
        /// Which log.
        origin: String,
    },
    /// The record is damaged.
    #[error("{path}: {source}")]
    Malformed {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        source: json::JsonError,
    },
    /// An earlier pair could not be made durable.
    #[error("{path}: an earlier write failed, so nothing more is signed; open the ledger anew")]
    Broken {
        /// The record.
        path: PathBuf,
    },
    /// The origin cannot be the name of a key.
    #[error("{origin:?} cannot be a log's origin: {source}")]
    Name {
        /// The origin.
        origin: String,
        /// Why not.
        source: note::KeyError,
    },
    /// The origin cannot stand in a record.
    #[error("{origin:?} cannot be a log's origin: it is not in Unicode normalization form C")]
    Text {
        /// The origin.
        origin: String,
    },
    /// The head is not one of this log.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The record could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The record.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl HeadGuard {
    /// Writes the empty record of a new key; replaces one that has no key.
    pub(super) fn create(files: &dyn Files, key_path: &Path) -> io::Result<()> {
        write_whole(files, &path_beside(key_path), &json::to_vec(&Heads::new()))
    }

    /// Reads the record beside the key.
    ///
    /// # Errors
    ///
    /// [`GuardError::Absent`] or [`GuardError::Malformed`]: without the record, nothing is signed.
    pub fn open(files: Arc<dyn Files>, key_path: &Path) -> Result<Self, GuardError> {
        let path = path_beside(key_path);
        let bytes = read_record(&*files, &path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => GuardError::Absent { path: path.clone() },
            _ => GuardError::Io { path: path.clone(), source },
        })?;
        let heads = json::from_slice(&bytes)
            .map_err(|source| GuardError::Malformed { path: path.clone(), source })?;
        Ok(Self { files, path, heads: Mutex::new(Some(heads)) })
    }

    /// The newest head signed for the log `origin`, if any was.
    ///
    /// # Errors
    ///
    /// [`GuardError::Broken`].
    pub fn newest(&self, origin: &str) -> Result<Option<TreeHead>, GuardError> {
        let heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = heads.as_ref().ok_or_else(|| self.broken())?.get(origin);
        let head = |&SizeRoot { root, size }| TreeHead { origin: origin.to_owned(), size, root };
        Ok(newest.map(head))
    }

    /// As [`Self::newest`], of a log that is there: its first head was recorded before its files.
    ///
    /// A key that takes over a log from another key admits its head first.
    ///
    /// # Errors
    ///
    /// [`GuardError::Unknown`] if none was signed: this is not the record of the log's key.
    pub fn signed(&self, origin: &str) -> Result<TreeHead, GuardError> {
        let unknown = || GuardError::Unknown { path: self.path.clone(), origin: origin.to_owned() };
        self.newest(origin)?.ok_or_else(unknown)
    }

    /// Whether the head may be signed; changes nothing.
    ///
    /// # Errors
    ///
    /// [`GuardError::Older`] or [`GuardError::Fork`] if it contradicts what was signed.
    pub fn check(&self, head: &TreeHead) -> Result<(), GuardError> {
        let heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = heads.as_ref().ok_or_else(|| self.broken())?.get(&head.origin).copied();
        self.judge(newest, head)
    }

    /// Makes the head's size and root durable, so that it may be signed.
    ///
    /// # Errors
    ///
    /// [`GuardError::Older`] or [`GuardError::Fork`] if it contradicts what was signed; nothing is
    /// changed then. After [`GuardError::Io`] every call is refused.
    pub fn admit(&self, head: &TreeHead) -> Result<(), GuardError> {
        let mut guarded = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        let heads = guarded.as_mut().ok_or_else(|| self.broken())?;
        let pair = SizeRoot { root: head.root, size: head.size };
        let newest = heads.get(&head.origin).copied();
        self.judge(newest, head)?;
        if newest == Some(pair) {
            return Ok(());
        }
        heads.insert(head.origin.clone(), pair);
        let bytes = json::to_vec(heads);
        write_whole(&*self.files, &self.path, &bytes).map_err(|source| {
            *guarded = None;
            GuardError::Io { path: self.path.clone(), source }
        })
    }

    /// Refuses a head that contradicts the newest one.
    fn judge(&self, newest: Option<SizeRoot>, head: &TreeHead) -> Result<(), GuardError> {
        let (path, origin, size) = (self.path.clone(), head.origin.clone(), head.size);
        match newest {
            Some(signed) if signed.size > size => {
                Err(GuardError::Older { path, origin, signed: signed.size, asked: size })
            }
            Some(signed) if signed.size == size && signed.root != head.root => {
                let (signed, asked) = (signed.root, head.root);
                Err(GuardError::Fork { path, origin: origin.into(), size, signed, asked })
            }
            _ => Ok(()),
        }
    }

    /// The error of every call after a failed write.
    fn broken(&self) -> GuardError {
        GuardError::Broken { path: self.path.clone() }
    }

    /// Where the record lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Signs the heads of one log: the only way to a signature leads past the guard.
pub struct HeadSigner {
    key: LogKey,
    /// Keys that signed the log's heads before this one took over.
    past: Vec<VerifierKey>,
    guard: Arc<HeadGuard>,
}

impl HeadSigner {
    /// The signer of the log `origin`. Logs that share a key share its guard.
    ///
    /// # Errors
    ///
    /// [`GuardError::Name`] or [`GuardError::Text`] if no log can have this origin.
    pub fn new(seed: &LogSeed, origin: &str, guard: Arc<HeadGuard>) -> Result<Self, GuardError> {
        let origin = origin.to_owned();
        if !json::is_record_text(&origin) {
            return Err(GuardError::Text { origin });
        }
        match LogKey::from_seed(&origin, seed.as_bytes()) {
            Ok(key) => Ok(Self { key, past: Vec::new(), guard }),
            Err(source) => Err(GuardError::Name { origin, source }),
        }
    }

    /// The signer of a log whose published head may still be one that `past` signed.
    pub fn after(self, past: Vec<VerifierKey>) -> Self {
        Self { past, ..self }
    }

    /// The head in a published note, and whether this key signed it, not one before it.
    ///
    /// # Errors
    ///
    /// [`HeadError`] if none of them did.
    pub fn open(&self, note: &[u8]) -> Result<(TreeHead, bool), HeadError> {
        let ours = TreeHead::open(note, self.verifier()).map(|head| (head, true));
        let before = |_| Ok((TreeHead::open_by_any(note, &self.past)?, false));
        if self.past.is_empty() { ours } else { ours.or_else(before) }
    }

    /// This key's signature of a hand-over from it or to it.
    pub fn sign_rotation(&self, rotation: &Rotation) -> [u8; 64] {
        rotation.sign(&self.key)
    }

    /// The log's name.
    pub fn origin(&self) -> &str {
        self.key.name()
    }

    /// The key that verifies the heads.
    pub fn verifier(&self) -> &VerifierKey {
        self.key.verifier()
    }

    /// What was signed so far.
    pub fn guard(&self) -> &HeadGuard {
        &self.guard
    }

    /// The signed note of a head, whose size and root are durable when this returns.
    ///
    /// # Errors
    ///
    /// As [`HeadGuard::admit`]; [`GuardError::Head`] if the head is of another log or no tree's.
    pub fn sign(&self, head: &TreeHead) -> Result<String, GuardError> {
        // Signed before it is admitted, so that nothing is recorded that cannot be signed; the note
        // leaves this function after.
        let note = head.sign(&self.key)?;
        self.guard.admit(head)?;
        Ok(note)
    }
}

/// The record's place: the key's, with `.heads` after it.
fn path_beside(key_path: &Path) -> PathBuf {
    let mut path = key_path.as_os_str().to_owned();
    path.push(".heads");
    PathBuf::from(path)
}

/// Reads the record's bytes.
fn read_record(files: &dyn Files, path: &Path) -> io::Result<Vec<u8>> {
    let bytes = read_whole(files, path, HEADS_BYTES_MAX)?;
    // A process that died between rename and sync leaves a record that is seen but not durable;
    // what is signed from here on must not outlive it.
    files.sync_dir(super::parent(path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::{files::Disk, keys};

    fn head(origin: &str, size: u64, root: u8) -> TreeHead {
        TreeHead { origin: origin.to_owned(), size, root: Digest([root; 32]) }
    }

    fn guard() -> (tempfile::TempDir, HeadGuard, impl Fn() -> Result<HeadGuard, GuardError>) {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("log.key");
        keys::create(&Disk, &key).unwrap();
        let open = move || HeadGuard::open(Arc::new(Disk), &key);
        let guard = open().unwrap();
        (dir, guard, open)
    }

    #[test]
    fn a_head_may_be_signed_again_but_not_contradicted() {
        let (_dir, guard, reopen) = guard();
        let signed = head("a.example/rounds", 5, 1);
        guard.admit(&signed).unwrap();
        for guard in [guard, reopen().unwrap()] {
            guard.admit(&signed).unwrap();
            let fork = guard.admit(&head("a.example/rounds", 5, 2));
            assert!(matches!(fork, Err(GuardError::Fork { size: 5, .. })));
            let older = guard.admit(&head("a.example/rounds", 4, 1));
            assert!(matches!(older, Err(GuardError::Older { signed: 5, asked: 4, .. })));
            // A refusal changes nothing, and logs do not know of each other.
            guard.admit(&head("a.example/submissions", 4, 1)).unwrap();
            assert_eq!(guard.newest("a.example/rounds").unwrap(), Some(signed.clone()));
        }
    }

    #[test]
    fn a_key_without_its_record_signs_nothing() {
        let (_dir, guard, reopen) = guard();
        fs::write(guard.path(), "{\"a\":{\"root\":\"\",\"size\":1}}").unwrap();
        assert!(matches!(reopen(), Err(GuardError::Malformed { .. })));
        fs::remove_file(guard.path()).unwrap();
        assert!(matches!(reopen(), Err(GuardError::Absent { .. })));
    }

    #[test]
    fn a_signed_head_opens_with_the_logs_key_and_a_refused_one_is_not_recorded() {
        let (_dir, guard, _) = guard();
        let seed = LogSeed::from_bytes([7; 32]);
        let signer = HeadSigner::new(&seed, "a.example/rounds", Arc::new(guard)).unwrap();
        let signed = head("a.example/rounds", 5, 1);
        let note = signer.sign(&signed).unwrap();
        assert_eq!(TreeHead::open(note.as_bytes(), signer.verifier()), Ok(signed));
        let other = head("a.example/submissions", 9, 1);
        assert!(matches!(signer.sign(&other), Err(GuardError::Head(_))));
        assert_eq!(signer.guard().newest("a.example/submissions").unwrap(), None);
        for origin in ["", "a b", "a+b", "e\u{301}"] {
            assert!(HeadSigner::new(&seed, origin, signer.guard.clone()).is_err(), "{origin:?}");
        }
    }
}
