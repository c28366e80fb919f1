//! Layer 4, export: a checkpoint as the safetensors files that Hub tools expect.
//!
//! `model.safetensors`, or `model-00001-of-0000N.safetensors` with an index where it is larger than
//! a shard; other groups of the state by their own name; `SHA256SUMS` last, so a directory that
//! has it is complete. bf16 is computed on the way out and is never a base to fold.
//!
//! `layout` says what the files are, `read` gives any range of one, and writing them is reading
//! each from front to back.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use gradledger_kernels::sha256::Sha256;

use crate::{
    store::{
        StoreError,
        artifacts::StoredCheckpoint,
        files::{Files, WriteFile},
    },
    types::{digest::Digest, progress::Progress},
};

mod layout;
mod read;

pub use layout::{FileSet, SHARD_BYTES_MAX, VirtualFile};
pub use read::FileReader;

/// The file that lists the others with their digests.
pub const SUMS: &str = "SHA256SUMS";

/// Bytes of a file that are handled at once.
const CHUNK_BYTES: u64 = 8 << 20;

/// Element type of the exported state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExportDtype {
    /// The state's own bits.
    F32,
    /// Rounded to nearest even.
    Bf16,
}

impl ExportDtype {
    /// How it is spelled: `f32`, `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// An export that did not come to its end. Files without a `SHA256SUMS` beside them are incomplete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A stored tensor is missing or wrong.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file could not be written.
    #[error("writing {path}: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something is in the way.
    #[error("{path} is not empty; give a new or an empty directory")]
    NotEmpty {
        /// Where.
        path: PathBuf,
    },
    /// The state cannot be files.
    #[error("two files of the export would be called {name}")]
    Name {
        /// How.
        name: String,
    },
}

/// What was written: name and SHA-256 of each file.
pub type Written = Vec<(String, Digest)>;

/// Writes the files `set` of the state `checkpoint` below `out`, which is created or empty.
///
/// # Errors
///
/// [`ExportError`]; a piece that does not have its digest is never written on.
pub fn export(
    checkpoint: &StoredCheckpoint,
    set: &FileSet,
    files: &dyn Files,
    out: &Path,
    progress: &dyn Progress,
) -> Result<Written, ExportError> {
    let at = |path: &Path, source| ExportError::Write { path: path.to_owned(), source };
    files.create_dir_all(out).map_err(|e| at(out, e))?;
    if !files.list(out).map_err(|e| at(out, e))?.is_empty() {
        return Err(ExportError::NotEmpty { path: out.to_owned() });
    }
    let mut written = Vec::new();
    for file in set.files() {
        let reader = FileReader::new(checkpoint.clone(), file.clone());
        let digest = write(reader, files, &out.join(file.name()), progress)?;
        written.push((file.name().to_owned(), digest));
    }
    let sums = VirtualFile::small(SUMS, sums(&written));
    let reader = FileReader::new(checkpoint.clone(), Arc::new(sums));
    write(reader, files, &out.join(SUMS), progress)?;
    files.sync_dir(out).map_err(|e| at(out, e))?;
    Ok(written)
}

/// What `sha256sum` would print of files with these names and digests.
pub fn sums(files: &[(String, Digest)]) -> Vec<u8> {
    files.iter().flat_map(|(name, digest)| format!("{digest}  {name}\n").into_bytes()).collect()
}

fn write(
    mut reader: FileReader,
    files: &dyn Files,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Digest, ExportError> {
    let failed = |source| ExportError::Write { path: path.to_owned(), source };
    let mut file: Box<dyn WriteFile> = files.create(path).map_err(failed)?;
    let digest = digest(&mut reader, &mut |bytes| {
        file.write_all(bytes).map_err(failed)?;
        progress.advance(bytes.len() as u64);
        Ok::<(), ExportError>(())
    })?;
    file.sync().map_err(failed)?;
    Ok(digest)
}

/// The SHA-256 of a whole file; `each` is shown its bytes in order and may end the reading.
///
/// # Errors
///
/// What `each` gives, or what reading gives.
pub fn digest<E: From<StoreError>>(
    reader: &mut FileReader,
    each: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<Digest, E> {
    let (mut sha256, mut at, mut buffer) = (Sha256::new(), 0, Vec::new());
    let bytes = reader.file().bytes();
    while at < bytes {
        let now = CHUNK_BYTES.min(bytes - at);
        buffer.resize(usize::try_from(now).expect("a chunk fits in memory"), 0);
        reader.read_exact_at(at, &mut buffer)?;
        sha256.update(&buffer);
        each(&buffer)?;
        at += now;
    }
    Ok(Digest(sha256.finish()))
}
