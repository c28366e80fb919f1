//! A file on its way in: its pieces are checked before they are written, its name comes last.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use gradledger_kernels::sha256::{Sha256, sha256};

use crate::{
    codec::parts::DeltaShape,
    store::{
        files::{Files, WriteFile},
        hashes::{HashesError, HashesReader},
    },
    types::{digest::Digest, manifest::ManifestId},
};

/// Bytes that are not taken, or that could not be stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ArrivalError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{bytes} bytes are expected here, and more came")]
    Long { bytes: u64 },
    #[error("{bytes} bytes are expected here, {found} came")]
    Short { bytes: u64, found: u64 },
    #[error("the bytes have SHA-256 {found}, the request says {expected}")]
    Sha256 { expected: Digest, found: Digest },
    #[error("piece {piece} of {artifact} has digest {found}, the hashes say {expected}")]
    Piece { artifact: String, piece: u64, expected: Digest, found: Digest },
    #[error("the hashes are not those of the delta that was announced: {0}")]
    Hashes(#[from] HashesError),
    #[error("the hashes are of a delta for another model")]
    Shape,
}

impl ArrivalError {
    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        let full = |source: &io::Error| {
            matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        };
        match self {
            Self::Io { source, .. } | Self::Hashes(HashesError::Io { source, .. }) => full(source),
            _ => false,
        }
    }

    /// Whether the disk failed, rather than the sender.
    pub fn is_ours(&self) -> bool {
        match self {
            Self::Io { .. } => true,
            // A file that was just written whole: its bytes are the sender's, other errors are not.
            Self::Hashes(HashesError::Io { source, .. }) => source.raw_os_error().is_some(),
            _ => false,
        }
    }
}

/// A piece that is to come.
pub(super) struct Piece {
    pub(super) artifact: usize,
    pub(super) piece: u64,
    pub(super) bytes: u64,
    pub(super) digest: Digest,
}

/// A file that is arriving; dropped before it is finished, it is gone.
///
/// Memory: a piece, and the digests of those to come.
pub struct Arriving {
    pub(super) files: Arc<dyn Files>,
    pub(super) path: PathBuf,
    pub(super) tmp: PathBuf,
    /// None once it has its name.
    pub(super) file: Option<Box<dyn WriteFile>>,
    pub(super) bytes: u64,
    pub(super) taken: u64,
    pub(super) sha256: Sha256,
    pub(super) pieces: std::vec::IntoIter<Piece>,
    /// The start of a piece that is not whole yet.
    pub(super) piece: Vec<u8>,
    /// What errors call the artifacts.
    pub(super) names: Vec<String>,
}

impl Arriving {
    /// Takes the next bytes, cut anywhere.
    ///
    /// # Errors
    ///
    /// [`ArrivalError::Long`], [`ArrivalError::Piece`] before the piece is written,
    /// [`ArrivalError::Io`].
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), ArrivalError> {
        self.taken += bytes.len() as u64;
        if self.taken > self.bytes {
            return Err(ArrivalError::Long { bytes: self.bytes });
        }
        self.sha256.update(bytes);
        while let Some(next) = self.pieces.as_slice().first() {
            let missing = usize::try_from(next.bytes).expect("at most a piece") - self.piece.len();
            let (now, after) = bytes.split_at(bytes.len().min(missing));
            self.piece.extend_from_slice(now);
            bytes = after;
            if now.len() < missing {
                return Ok(());
            }
            let next = self.pieces.next().expect("it was there");
            let found = Digest(sha256(&self.piece));
            if found != next.digest {
                let (artifact, expected) = (self.names[next.artifact].clone(), next.digest);
                return Err(ArrivalError::Piece { artifact, piece: next.piece, expected, found });
            }
            let piece = std::mem::take(&mut self.piece);
            self.put(&piece)?;
            self.piece = piece;
            self.piece.clear();
        }
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ArrivalError> {
        let file = self.file.as_mut().expect("it is open until it is finished");
        file.write_all(bytes).map_err(|source| ArrivalError::Io { path: self.tmp.clone(), source })
    }

    /// All bytes were taken and have this SHA-256: makes them durable under their name.
    ///
    /// # Errors
    ///
    /// [`ArrivalError::Short`], [`ArrivalError::Sha256`], [`ArrivalError::Io`].
    pub fn finish(self, expected: Digest) -> Result<(), ArrivalError> {
        self.finish_if(expected, |_, _| Ok(()))
    }

    /// As [`Arriving::finish`], of a hashes file: if it leads to `delta` and is of this shape.
    ///
    /// # Errors
    ///
    /// Also [`ArrivalError::Hashes`], [`ArrivalError::Shape`].
    pub fn finish_hashes(
        self,
        expected: Digest,
        delta: &ManifestId,
        shape: &DeltaShape,
    ) -> Result<(), ArrivalError> {
        self.finish_if(expected, |files, path| {
            let reader = HashesReader::open_file(files, path, delta)?;
            if !shape.is_of(reader.manifest()) {
                return Err(ArrivalError::Shape);
            }
            (0..reader.manifest().descriptors().len())
                .try_for_each(|artifact| Ok(drop(reader.digests(artifact)?)))
        })
    }

    fn finish_if(
        mut self,
        expected: Digest,
        check: impl FnOnce(&dyn Files, &Path) -> Result<(), ArrivalError>,
    ) -> Result<(), ArrivalError> {
        if self.taken < self.bytes {
            return Err(ArrivalError::Short { bytes: self.bytes, found: self.taken });
        }
        let found = Digest(std::mem::replace(&mut self.sha256, Sha256::new()).finish());
        if found != expected {
            return Err(ArrivalError::Sha256 { expected, found });
        }
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| ArrivalError::Io { path, source }
        };
        let file = self.file.as_mut().expect("it is open until it is finished");
        file.sync().map_err(at(&self.tmp))?;
        check(&*self.files, &self.tmp)?;
        self.files.rename(&self.tmp, &self.path).map_err(at(&self.path))?;
        self.file = None;
        self.files.sync_dir(self.path.parent().unwrap_or(Path::new("."))).map_err(at(&self.path))
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // What stays is removed when the upload is opened again.
            let _ = self.files.remove(&self.tmp);
        }
    }
}
