//! The hashes store: the descriptors and piece digests of every checkpoint and delta, one file each.
//!
//! `seal` and `intake` write a file as they hash, `audit`, `replay` and `sync` read it to name the
//! piece that differs, also where the bytes themselves were dropped long ago. See `schema/hashes.md`.
//!
//! Trust: none. The descriptors must give the manifest's root, the digests their artifact's root.
//! A lost file keeps its state or delta from being read; it never changes an answer.
//!
//! Cost: 32 bytes a piece; 142 MB for a checkpoint of 291 GB. In memory: the descriptors, and the
//! digests of one artifact.

use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    files::{Files, ReadFile, WriteFile},
    segment::place,
};
use crate::{
    merkle::{manifest::manifest_id, pieces::artifact_root},
    types::{
        digest::Digest,
        manifest::{Descriptor, Manifest, ManifestError, ManifestId, piece_count},
    },
};

/// What a hashes file ends with: name and version of the layout.
const MAGIC: &[u8; 16] = b"gradledger-hash1";

/// Number of digests, number of descriptors, bytes of the descriptors, magic.
const TAIL_BYTES: u64 = 40;
const _: () = assert!(TAIL_BYTES == 3 * 8 + MAGIC.len() as u64);

/// Before each descriptor: where its digests start, and its length.
const HEAD_BYTES: u64 = 12;

/// Length of the file of a manifest, whatever its roots: as the writer writes it, no digest unused.
pub fn file_bytes(manifest: &Manifest) -> u64 {
    let digests: u64 = manifest.descriptors().iter().map(|d| piece_count(d.bytes)).sum();
    let descriptors: u64 = manifest.entries().map(|json| HEAD_BYTES + json.len() as u64).sum();
    digests * Digest::BYTES as u64 + descriptors + TAIL_BYTES
}

/// Most bytes of descriptors that are read: about a million of them.
const DESCRIPTORS_BYTES_MAX: u64 = 256 << 20;

/// Copies and hashes are buffered by this much.
const BUFFER_BYTES: usize = 1 << 20;

/// A hashes file that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum HashesError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: not a hashes file of version 1", path = path.display())]
    Magic { path: PathBuf },
    #[error(
        "{path}: {digests} digests and {descriptor_bytes} bytes of descriptors do not make {file_bytes}",
        path = path.display()
    )]
    Layout { path: PathBuf, digests: u64, descriptor_bytes: u64, file_bytes: u64 },
    #[error("{path}: descriptor {index} of {count} is cut or has bytes after it", path = path.display())]
    Cut { path: PathBuf, index: u64, count: u64 },
    #[error("{path}: {source}", path = path.display())]
    Manifest { path: PathBuf, source: ManifestError },
    #[error("{path}: the descriptors give {found:?}, not {expected:?}", path = path.display())]
    OtherManifest { path: PathBuf, expected: ManifestId, found: ManifestId },
    #[error("{path}: {artifact} has {found} digests for {expected} pieces", path = path.display())]
    Count { path: PathBuf, artifact: String, expected: u64, found: u64 },
    #[error("{path}: {artifact} has its digests at {start}, beyond {digests}", path = path.display())]
    Start { path: PathBuf, artifact: String, start: u64, digests: u64 },
    #[error("{path}: the digests of {artifact} give {found}, not {expected}", path = path.display())]
    Root { path: PathBuf, artifact: String, expected: Digest, found: Digest },
    #[error("{path}: no artifact {index}; there are {count}", path = path.display())]
    Artifact { path: PathBuf, index: usize, count: usize },
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> HashesError + '_ {
    move |source| HashesError::Io { path: path.to_owned(), source }
}

/// How errors name an artifact.
fn artifact_name(Descriptor { group, name, .. }: &Descriptor) -> String {
    format!("{group}/{name:?}")
}

/// Writes a hashes file: digests as they are found, the descriptors last, since they hold the roots.
pub struct HashesWriter {
    path: PathBuf,
    file: BufWriter<Box<dyn WriteFile>>,
    digests: u64,
    /// First digest and number of digests, by group and name.
    artifacts: BTreeMap<(String, String), (u64, u64)>,
}

impl HashesWriter {
    /// Creates the file at `path`, a temporary place.
    ///
    /// # Errors
    ///
    /// [`HashesError::Io`].
    pub fn create(files: &dyn Files, path: &Path) -> Result<Self, HashesError> {
        let file = BufWriter::with_capacity(BUFFER_BYTES, files.create(path).map_err(io_at(path))?);
        Ok(Self { path: path.to_owned(), file, digests: 0, artifacts: BTreeMap::new() })
    }

    /// Takes the piece digests of one artifact; artifacts come in any order.
    ///
    /// # Errors
    ///
    /// [`HashesError::Io`].
    pub fn artifact(
        &mut self,
        group: &str,
        name: &str,
        digests: &[Digest],
    ) -> Result<(), HashesError> {
        for digest in digests {
            self.file.write_all(digest.as_bytes()).map_err(io_at(&self.path))?;
        }
        let count = digests.len() as u64;
        self.artifacts.insert((group.to_owned(), name.to_owned()), (self.digests, count));
        self.digests += count;
        Ok(())
    }

    /// Writes the descriptors and syncs the file.
    ///
    /// # Errors
    ///
    /// [`HashesError::Count`] if an artifact of `manifest` was not given, or has other pieces;
    /// [`HashesError::Io`], fatal.
    pub fn finish(mut self, manifest: &Manifest) -> Result<(), HashesError> {
        let mut descriptors = Vec::new();
        for (descriptor, json) in manifest.descriptors().iter().zip(manifest.entries()) {
            let start = self.start_of(descriptor)?;
            descriptors.extend_from_slice(&start.to_le_bytes());
            descriptors.extend_from_slice(&(json.len() as u32).to_le_bytes());
            descriptors.extend_from_slice(&json);
        }
        let count = manifest.descriptors().len() as u64;
        let tail = [self.digests, count, descriptors.len() as u64].map(u64::to_le_bytes);
        let mut write = || {
            self.file.write_all(&descriptors)?;
            self.file.write_all(tail.as_flattened())?;
            self.file.write_all(MAGIC)?;
            self.file.flush()?;
            self.file.get_mut().sync()
        };
        write().map_err(io_at(&self.path))
    }

    fn start_of(&self, descriptor: &Descriptor) -> Result<u64, HashesError> {
        let Descriptor { group, name, bytes, .. } = descriptor;
        let (start, found) =
            self.artifacts.get(&(group.clone(), name.clone())).copied().unwrap_or_default();
        let expected = piece_count(*bytes);
        if found != expected {
            let (path, artifact) = (self.path.clone(), artifact_name(descriptor));
            return Err(HashesError::Count { path, artifact, expected, found });
        }
        Ok(start)
    }
}

/// Copies the hashes that `from` has to their place below `ledger`, durably; every digest is checked on
/// the way. `tmp` is a place for the file under way.
///
/// # Errors
///
/// [`HashesError`] names what does not fit.
pub fn copy(
    from: &HashesReader,
    files: &dyn Files,
    ledger: &Path,
    tmp: &Path,
) -> Result<PathBuf, HashesError> {
    let mut writer = HashesWriter::create(files, tmp)?;
    for (at, Descriptor { group, name, .. }) in from.manifest().descriptors().iter().enumerate() {
        writer.artifact(group, name, &from.digests(at)?)?;
    }
    writer.finish(from.manifest())?;
    commit(files, ledger, tmp, manifest_id(from.manifest()).root)
}

/// Moves a finished file to its place below `ledger`, durably; returns the place.
///
/// # Errors
///
/// [`HashesError::Io`], fatal.
pub fn commit(
    files: &dyn Files,
    ledger: &Path,
    from: &Path,
    manifest_root: Digest,
) -> Result<PathBuf, HashesError> {
    let to = place::hashes(ledger, manifest_root);
    place::commit_file(files, ledger, from, &to).map_err(io_at(&to))?;
    Ok(to)
}

/// The descriptors and piece digests of one manifest.
pub struct HashesReader {
    path: PathBuf,
    file: Arc<dyn ReadFile>,
    manifest: Manifest,
    /// First digest of each artifact.
    starts: Vec<u64>,
    digests: u64,
}

impl HashesReader {
    /// Opens the hashes of `id` below `ledger`; the descriptors are checked to give it.
    ///
    /// # Errors
    ///
    /// [`HashesError`] names what does not fit.
    pub fn open(files: &dyn Files, ledger: &Path, id: &ManifestId) -> Result<Self, HashesError> {
        Self::open_file(files, &place::hashes(ledger, id.root), id)
    }

    /// As [`HashesReader::open`], of a file that lies elsewhere.
    ///
    /// # Errors
    ///
    /// As [`HashesReader::open`].
    pub fn open_file(files: &dyn Files, path: &Path, id: &ManifestId) -> Result<Self, HashesError> {
        let path = path.to_owned();
        let file = files.open(&path).map_err(io_at(&path))?;
        let tail = Tail::read(&*file, &path)?;
        let mut bytes = vec![0; tail.descriptor_bytes as usize];
        let at = tail.digests * Digest::BYTES as u64;
        file.read_exact_at(&mut bytes, at).map_err(io_at(&path))?;
        let (starts, entries) = tail.split(&bytes, &path)?;
        let manifest = Manifest::from_entries(entries)
            .map_err(|source| HashesError::Manifest { path: path.clone(), source })?;
        let found = manifest_id(&manifest);
        if found != *id {
            return Err(HashesError::OtherManifest { path, expected: *id, found });
        }
        Ok(Self { path, file, manifest, starts, digests: tail.digests })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The piece digests of the manifest's artifact number `index`, checked to give its root.
    ///
    /// # Errors
    ///
    /// [`HashesError`] names what does not fit.
    pub fn digests(&self, index: usize) -> Result<Vec<Digest>, HashesError> {
        let (descriptors, path) = (self.manifest.descriptors(), self.path.clone());
        let count = descriptors.len();
        let Some(descriptor) = descriptors.get(index) else {
            return Err(HashesError::Artifact { path, index, count });
        };
        let artifact = artifact_name(descriptor);
        let (start, pieces) = (self.starts[index], piece_count(descriptor.bytes));
        // What lies within the file is bounded by it, whatever the descriptor says.
        if start.checked_add(pieces).is_none_or(|end| end > self.digests) {
            return Err(HashesError::Start { path, artifact, start, digests: self.digests });
        }
        let mut digests = vec![Digest::default(); pieces as usize];
        self.read_digests(start, &mut digests)?;
        let (expected, found) = (descriptor.root, artifact_root(&digests));
        if found != expected {
            return Err(HashesError::Root { path, artifact, expected, found });
        }
        Ok(digests)
    }

    fn read_digests(&self, start: u64, digests: &mut [Digest]) -> Result<(), HashesError> {
        let mut buffer = vec![0; (digests.len() * Digest::BYTES).min(BUFFER_BYTES)];
        let mut at = start * Digest::BYTES as u64;
        for run in digests.chunks_mut(BUFFER_BYTES / Digest::BYTES) {
            let bytes = &mut buffer[..run.len() * Digest::BYTES];
            self.file.read_exact_at(bytes, at).map_err(io_at(&self.path))?;
            for (digest, bytes) in run.iter_mut().zip(bytes.as_chunks().0) {
                *digest = Digest(*bytes);
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }
}

/// The end of a hashes file: how much of what lies before it.
struct Tail {
    digests: u64,
    count: u64,
    descriptor_bytes: u64,
}

impl Tail {
    fn read(file: &dyn ReadFile, path: &Path) -> Result<Self, HashesError> {
        let magic = || HashesError::Magic { path: path.to_owned() };
        let file_bytes = file.len().map_err(io_at(path))?;
        let tail_at = file_bytes.checked_sub(TAIL_BYTES).ok_or_else(magic)?;
        let mut bytes = [0; TAIL_BYTES as usize];
        file.read_exact_at(&mut bytes, tail_at).map_err(io_at(path))?;
        let (numbers, end) = bytes.as_chunks::<8>().0.split_at(3);
        if end.as_flattened() != MAGIC {
            return Err(magic());
        }
        let [digests, count, descriptor_bytes] = [0, 1, 2].map(|i| u64::from_le_bytes(numbers[i]));
        let sum = digests
            .checked_mul(Digest::BYTES as u64)
            .and_then(|bytes| bytes.checked_add(descriptor_bytes));
        if sum != Some(tail_at) || descriptor_bytes > DESCRIPTORS_BYTES_MAX {
            let path = path.to_owned();
            return Err(HashesError::Layout { path, digests, descriptor_bytes, file_bytes });
        }
        Ok(Self { digests, count, descriptor_bytes })
    }

    /// Where each artifact's digests start, and each descriptor's JSON.
    fn split<'b>(
        &self,
        mut bytes: &'b [u8],
        path: &Path,
    ) -> Result<(Vec<u64>, Vec<&'b [u8]>), HashesError> {
        let cut = |index| HashesError::Cut { path: path.to_owned(), index, count: self.count };
        let mut starts = Vec::new();
        let mut entries = Vec::new();
        for index in 0..self.count {
            let (start, json, rest) = split_one(bytes).ok_or_else(|| cut(index))?;
            starts.push(start);
            entries.push(json);
            bytes = rest;
        }
        if bytes.is_empty() { Ok((starts, entries)) } else { Err(cut(self.count)) }
    }
}

/// One descriptor: where its digests start, its JSON, and what follows.
fn split_one(bytes: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES as usize)?;
    let (start, length) = head.split_at(8);
    let start = u64::from_le_bytes(start.try_into().ok()?);
    let length = u32::from_le_bytes(length.try_into().ok()?);
    let (json, rest) = rest.split_at_checked(length as usize)?;
    Some((start, json, rest))
}
