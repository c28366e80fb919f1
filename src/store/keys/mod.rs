//! The ledger's log key: the Ed25519 seed with which it signs its tree heads.
//!
//! One text line, `gradledger-log-key/1 ` and the base64 of 32 bytes, readable by its owner only.
//! Beside it lies what was signed with it (see [`heads`]), so that the key refuses to contradict
//! itself wherever it is moved to. See `schema/keys.md`.
//!
//! Trust: whoever reads this file can fork the log. Losing it ends the log under its name.

pub mod heads;

use std::{
    fmt,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use zeroize::Zeroizing;

use self::heads::HeadGuard;
use super::{
    StoreError,
    files::{Files, create_dir_durable},
};

/// What a key file starts with: its format and version.
const TAG: &str = "gradledger-log-key/1 ";

/// Length of a seed in bytes.
const SEED_BYTES: usize = 32;

/// Length of a key file: the tag, 44 characters of base64, a newline.
const FILE_BYTES: usize = TAG.len() + SEED_BYTES.div_ceil(3) * 4 + 1;

/// The 32 secret bytes from which the log key is made; wiped from memory when dropped.
#[derive(Clone)]
pub struct LogSeed(Zeroizing<[u8; SEED_BYTES]>);

impl LogSeed {
    /// A seed that is already known, such as one of a test.
    pub fn from_bytes(bytes: [u8; SEED_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; SEED_BYTES] {
        &self.0
    }
}

impl fmt::Debug for LogSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogSeed(secret)")
    }
}

/// A key file that cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// There is a key already: replacing it would end the log.
    #[error("{path}: there is a log key here already; it is never replaced")]
    Exists {
        /// The key file.
        path: PathBuf,
    },
    /// No such file.
    #[error("{path}: there is no log key here; name its place with --log-key-file")]
    Absent {
        /// The key file.
        path: PathBuf,
    },
    /// Others than the owner can read or write the file.
    #[error(
        "{path}: others than its owner can read this log key or change it; run `chmod 600` on it, \
         and think about who may have copied it"
    )]
    NotSecret {
        /// The key file.
        path: PathBuf,
    },
    /// The file is not one line of tag and base64. What it holds is not shown: it may be a key.
    #[error(
        "{path}: not a log key: expected one line, `{TAG}` and the base64 of {SEED_BYTES} bytes"
    )]
    Malformed {
        /// The key file.
        path: PathBuf,
    },
    /// The system has no randomness to give.
    #[error("no random bytes from the system: {source}")]
    Random {
        /// What the system said.
        source: getrandom::Error,
    },
    /// The file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or its directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Makes a new random key and the empty record of what it signed; durable when this returns.
///
/// The directory is made if need be. Call under the writer lock.
///
/// # Errors
///
/// [`KeyError::Exists`] if there is a key at `path`; nothing is changed then.
pub fn create(files: &dyn Files, path: &Path) -> Result<LogSeed, KeyError> {
    let io_error = |source| KeyError::Io { path: path.to_owned(), source };
    if files.exists(path).map_err(io_error)? {
        return Err(KeyError::Exists { path: path.to_owned() });
    }
    let mut seed = LogSeed::from_bytes([0; SEED_BYTES]);
    getrandom::fill(&mut *seed.0).map_err(|source| KeyError::Random { source })?;
    create_dir_durable(files, parent(path)).map_err(io_error)?;
    // The record first: a key without one is refused, a record without a key harms nobody.
    HeadGuard::create(files, path).map_err(io_error)?;
    write_secret(files, path, &seed).map_err(io_error)?;
    Ok(seed)
}

/// Reads the key at `path`.
///
/// # Errors
///
/// [`KeyError::NotSecret`] if group or others have any right to the file, even if it is a good key.
pub fn load(files: &dyn Files, path: &Path) -> Result<LogSeed, KeyError> {
    let io_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => KeyError::Absent { path: path.to_owned() },
        _ => KeyError::Io { path: path.to_owned(), source },
    };
    let file = files.open(path).map_err(io_error)?;
    if !file.is_secret().map_err(io_error)? {
        return Err(KeyError::NotSecret { path: path.to_owned() });
    }
    let malformed = || KeyError::Malformed { path: path.to_owned() };
    if file.len().map_err(io_error)? != FILE_BYTES as u64 {
        return Err(malformed());
    }
    let mut line = Zeroizing::new([0; FILE_BYTES]);
    file.read_exact_at(&mut *line, 0).map_err(io_error)?;
    parse(&*line).ok_or_else(malformed)
}

/// The key at `path` and the record of what it signed; both are made if there is no key.
///
/// One that is there is used, be it of a command that was killed or the operator's own.
///
/// # Errors
///
/// As [`load`] and [`create`]; [`heads::GuardError`] if the record cannot be used.
pub fn load_or_create(
    files: &Arc<dyn Files>,
    path: &Path,
) -> Result<(LogSeed, Arc<HeadGuard>), StoreError> {
    let there = files.exists(path);
    let there = there.map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
    let seed = if there { load(&**files, path)? } else { create(&**files, path)? };
    Ok((seed, Arc::new(HeadGuard::open(files.clone(), path)?)))
}

/// The seed in a key file's one line.
fn parse(line: &[u8]) -> Option<LogSeed> {
    let text = line.strip_prefix(TAG.as_bytes())?.strip_suffix(b"\n")?;
    let bytes = Zeroizing::new(BASE64.decode(text).ok()?);
    let seed = <[u8; SEED_BYTES]>::try_from(bytes.as_slice()).ok()?;
    Some(LogSeed::from_bytes(seed))
}

/// Writes the key beside its place, then renames it there: a crash leaves no half key behind.
fn write_secret(files: &dyn Files, path: &Path, seed: &LogSeed) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // What a crash left there was never used.
    if files.exists(&beside)? {
        files.remove(&beside)?;
    }
    let text = Zeroizing::new(BASE64.encode(seed.as_bytes()));
    let mut file = files.create_secret(&beside)?;
    for part in [TAG, &text, "\n"] {
        file.write_all(part.as_bytes())?;
    }
    file.sync()?;
    drop(file);
    files.rename(&beside, path)?;
    files.sync_dir(parent(path))
}

/// The directory a file lies in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::store::files::Disk;

    /// A directory with a key in it.
    fn with_key() -> (tempfile::TempDir, PathBuf, LogSeed) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/log.key");
        let seed = create(&Disk, &path).unwrap();
        (dir, path, seed)
    }

    #[test]
    fn a_key_reads_back_and_is_never_replaced() {
        let (_dir, path, seed) = with_key();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load(&Disk, &path).unwrap().as_bytes(), seed.as_bytes());
        assert!(matches!(create(&Disk, &path), Err(KeyError::Exists { .. })));
        assert_eq!(load(&Disk, &path).unwrap().as_bytes(), seed.as_bytes());
        HeadGuard::open(Arc::new(Disk), &path).unwrap();
    }

    #[test]
    fn a_half_key_left_by_a_crash_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("log.key.new"), "gradledger-log").unwrap();
        let seed = create(&Disk, &dir.path().join("log.key")).unwrap();
        let loaded = load(&Disk, &dir.path().join("log.key")).unwrap();
        assert_eq!(loaded.as_bytes(), seed.as_bytes());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let (_dir, path, _) = with_key();
        for mode in [0o640, 0o604, 0o620, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(load(&Disk, &path), Err(KeyError::NotSecret { .. })), "{mode:o}");
        }
    }

    #[test]
    fn other_bytes_are_not_a_key() {
        let (dir, path, _) = with_key();
        let good = fs::read_to_string(&path).unwrap();
        let bad = [
            String::new(),
            good.trim_end().to_owned(),
            format!("{good}\n"),
            good.replace("/1", "/2"),
            good.replace('=', "A"),
            good.replace('\n', "\r"),
            "x".repeat(FILE_BYTES),
        ];
        for text in bad {
            fs::write(&path, &text).unwrap();
            assert!(matches!(load(&Disk, &path), Err(KeyError::Malformed { .. })), "{text:?}");
        }
        let absent = load(&Disk, &dir.path().join("absent"));
        assert!(matches!(absent, Err(KeyError::Absent { .. })));
    }

    #[test]
    fn a_seed_is_not_shown() {
        assert_eq!(format!("{:?}", LogSeed::from_bytes([7; 32])), "LogSeed(secret)");
    }
}
