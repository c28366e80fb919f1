//! Quarantine: refused uploads as they were received, so that a refusal can be derived again.
//!
//! An import keeps them, `fsck` hashes them again, [`release`] ends them. One file for each content,
//! `quarantine/ROUND/SHA256`; the submissions log knows the name it came with. See
//! `schema/quarantine.md`.
//!
//! Trust: none; a file is what its name says or of no use. Losing one costs re-deriving that refusal.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use gradledger_kernels::sha256::Sha256;

use super::{files::Files, segment::place};
use crate::types::digest::Digest;

const DIR: &str = "quarantine";

/// Bytes copied at once.
const BUFFER_BYTES: usize = 1 << 20;

/// An upload that cannot be kept or found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum QuarantineError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("reading {name:?}: {source}")]
    Source { name: String, source: io::Error },
    #[error("{name:?} has SHA-256 {found} now, not {expected}")]
    Changed { name: String, expected: Digest, found: Digest },
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> QuarantineError + '_ {
    move |source| QuarantineError::Io { path: path.to_owned(), source }
}

/// Where the upload with this SHA-256, refused for `round`, is kept.
pub fn path_of(ledger: &Path, round: u64, sha256: Digest) -> PathBuf {
    ledger.join(DIR).join(round.to_string()).join(sha256.to_hex())
}

/// Copies a refused upload into quarantine, durably; returns where. One that is there is replaced.
///
/// `name` says in errors which upload it is.
///
/// # Errors
///
/// [`QuarantineError::Changed`] if `source` does not have this SHA-256;
/// [`QuarantineError::Source`] if it cannot be read; [`QuarantineError::Io`].
pub fn keep(
    files: &dyn Files,
    ledger: &Path,
    round: u64,
    source: &mut dyn Read,
    sha256: Digest,
    name: &str,
) -> Result<PathBuf, QuarantineError> {
    let to = path_of(ledger, round, sha256);
    let beside = to.with_extension("new");
    let dir = to.parent().unwrap_or(ledger);
    files.create_dir_all(dir).map_err(io_at(dir))?;
    let found = copy(files, source, &beside, name)?;
    if found != sha256 {
        files.remove(&beside).map_err(io_at(&beside))?;
        return Err(QuarantineError::Changed { name: name.to_owned(), expected: sha256, found });
    }
    place::commit_file(files, ledger, &beside, &to).map_err(io_at(&to))?;
    Ok(to)
}

/// Copies to a synced file and returns the SHA-256 of what was copied.
fn copy(
    files: &dyn Files,
    source: &mut dyn Read,
    to: &Path,
    name: &str,
) -> Result<Digest, QuarantineError> {
    let mut file = files.create(to).map_err(io_at(to))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(QuarantineError::Source { name: name.to_owned(), source }),
        };
        hash.update(&buffer[..read]);
        file.write_all(&buffer[..read]).map_err(io_at(to))?;
    }
    file.sync().map_err(io_at(to))?;
    Ok(Digest(hash.finish()))
}

/// The kept upload with this SHA-256, if it is there.
///
/// # Errors
///
/// [`QuarantineError::Io`].
pub fn find(
    files: &dyn Files,
    ledger: &Path,
    round: u64,
    sha256: Digest,
) -> Result<Option<PathBuf>, QuarantineError> {
    let path = path_of(ledger, round, sha256);
    let there = files.exists(&path).map_err(io_at(&path))?;
    Ok(there.then_some(path))
}

/// Hashes the kept upload with this SHA-256 again; false if it is not there.
///
/// # Errors
///
/// [`QuarantineError::Changed`] if its bytes have another SHA-256; [`QuarantineError::Io`].
pub fn verify(
    files: &dyn Files,
    ledger: &Path,
    round: u64,
    sha256: Digest,
) -> Result<bool, QuarantineError> {
    let Some(path) = find(files, ledger, round, sha256)? else { return Ok(false) };
    let file = files.open(&path).map_err(io_at(&path))?;
    let (bytes, mut at) = (file.len().map_err(io_at(&path))?, 0);
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; BUFFER_BYTES]);
    while at < bytes {
        let now = usize::try_from(bytes - at).map_or(BUFFER_BYTES, |left| left.min(BUFFER_BYTES));
        file.read_exact_at(&mut buffer[..now], at).map_err(io_at(&path))?;
        hash.update(&buffer[..now]);
        at += now as u64;
    }
    let found = Digest(hash.finish());
    if found != sha256 {
        let name = path.display().to_string();
        return Err(QuarantineError::Changed { name, expected: sha256, found });
    }
    Ok(true)
}

/// Rounds and SHA-256 of all kept uploads, ascending. Files of other names are passed over.
///
/// # Errors
///
/// [`QuarantineError::Io`].
pub fn list(files: &dyn Files, ledger: &Path) -> Result<Vec<(u64, Digest)>, QuarantineError> {
    let dir = ledger.join(DIR);
    if !files.exists(&dir).map_err(io_at(&dir))? {
        return Ok(Vec::new());
    }
    let mut kept = Vec::new();
    for name in files.list(&dir).map_err(io_at(&dir))? {
        let Some(round) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let dir = dir.join(&name);
        for name in files.list(&dir).map_err(io_at(&dir))? {
            let digest = name.to_str().and_then(|name| name.parse().ok());
            kept.extend(digest.map(|digest| (round, digest)));
        }
    }
    kept.sort();
    Ok(kept)
}

/// Ends the quarantine of what was refused for `round`.
///
/// # Errors
///
/// [`QuarantineError::Io`].
pub fn release(files: &dyn Files, ledger: &Path, round: u64) -> Result<(), QuarantineError> {
    let dir = ledger.join(DIR).join(round.to_string());
    if files.exists(&dir).map_err(io_at(&dir))? {
        files.remove_dir_all(&dir).map_err(io_at(&dir))?;
    }
    Ok(())
}
