//! The values of one tensor: one column, one page a piece.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    LogicalBytes,
    column::FixedColumn,
    draft::{Chunk, Draft},
    error::SegmentError,
    footer::SegmentFile,
    place, schema,
};
use crate::{
    store::files::Files,
    types::{
        manifest::{ArtifactId, PIECE_BYTES},
        tensor::{Dtype, TensorSpec},
    },
};

/// Pages of a row group: 64 MiB.
const ROW_GROUP_PAGES: u64 = 1024;

const DTYPE: &str = "dtype";
const SHAPE: &str = "shape";

/// Writes the values of one tensor, taken as logical bytes in any cut.
///
/// Memory: one piece.
pub struct TensorWriter {
    draft: Draft,
    chunk: Chunk,
    width: usize,
    expected: u64,
    taken: u64,
}

impl TensorWriter {
    /// Creates the file at `path`, a temporary place; the tensor's name does not enter it.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Io`].
    pub fn create(files: &dyn Files, path: &Path, spec: &TensorSpec) -> Result<Self, SegmentError> {
        let width = spec.dtype().bytes() as usize;
        let columns = schema::of(vec![schema::value(spec.dtype())]);
        let mut draft = Draft::create(files, path, columns)?;
        draft.reserve(spec.bytes())?;
        draft.key(DTYPE, spec.dtype().name().to_owned());
        draft.key(SHAPE, serde_json::Value::from(spec.shape()).to_string());
        let chunk = Chunk::new(width, PIECE_BYTES as usize);
        Ok(Self { draft, chunk, width, expected: spec.bytes(), taken: 0 })
    }

    /// Takes the next logical bytes.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Length`] if there are more than the shape has; [`SegmentError::Io`].
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), SegmentError> {
        self.taken += bytes.len() as u64;
        if self.taken > self.expected {
            return Err(self.length());
        }
        while !bytes.is_empty() {
            let room = ROW_GROUP_PAGES * PIECE_BYTES - self.chunk.bytes();
            let now = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
            self.chunk.write(&mut self.draft, &bytes[..now])?;
            bytes = &bytes[now..];
            if self.chunk.bytes() == ROW_GROUP_PAGES * PIECE_BYTES {
                self.end_row_group()?;
            }
        }
        Ok(())
    }

    /// Writes the footer and syncs the file.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Length`] if bytes are missing; [`SegmentError::Io`], fatal.
    pub fn finish(mut self) -> Result<(), SegmentError> {
        if self.taken != self.expected {
            return Err(self.length());
        }
        if self.chunk.bytes() > 0 {
            self.end_row_group()?;
        }
        self.draft.finish()
    }

    fn end_row_group(&mut self) -> Result<(), SegmentError> {
        let next = Chunk::new(self.width, PIECE_BYTES as usize);
        std::mem::replace(&mut self.chunk, next).finish(&mut self.draft)
    }

    fn length(&self) -> SegmentError {
        let path = self.draft.path().to_owned();
        SegmentError::Length { path, expected: self.expected, found: self.taken }
    }
}

/// Moves a finished file to its place below `ledger`, durably; returns the place.
///
/// # Errors
///
/// [`SegmentError::Io`], fatal.
pub fn commit(
    files: &dyn Files,
    ledger: &Path,
    from: &Path,
    artifact: &ArtifactId,
    dtype: Dtype,
) -> Result<PathBuf, SegmentError> {
    let to = place::tensor(ledger, artifact, dtype);
    place::commit_file(files, ledger, from, &to).map_err(SegmentError::io(&to))?;
    Ok(to)
}

/// The stored values of a tensor.
pub struct TensorSegment {
    values: FixedColumn,
}

impl TensorSegment {
    /// Opens the segment below `ledger` that should hold these logical bytes.
    ///
    /// The length is checked, the bytes are not: see [`super::VerifiedReader`].
    ///
    /// # Errors
    ///
    /// [`SegmentError`] names what does not fit.
    pub fn open(
        files: &dyn Files,
        ledger: &Path,
        artifact: &ArtifactId,
        dtype: Dtype,
    ) -> Result<Self, SegmentError> {
        Self::open_at(files, &place::tensor(ledger, artifact, dtype), artifact.bytes, dtype)
    }

    /// Opens the segment at `path`, which should hold `bytes` logical bytes.
    ///
    /// # Errors
    ///
    /// As [`TensorSegment::open`].
    pub fn open_at(
        files: &dyn Files,
        path: &Path,
        bytes: u64,
        dtype: Dtype,
    ) -> Result<Self, SegmentError> {
        let columns = schema::of(vec![schema::value(dtype)]);
        let segment = SegmentFile::open(files, path, columns)?;
        let found = segment.key(DTYPE)?;
        if found != dtype.name() {
            let (expected, found) = (dtype.name().to_owned(), found.to_owned());
            return Err(SegmentError::OtherKey { path: path.into(), key: DTYPE, expected, found });
        }
        let values =
            FixedColumn::open(&segment, 0..segment.row_groups(), 0, dtype.bytes() as usize)?;
        Ok(Self { values: values.of_length(bytes)? })
    }

    /// The column that holds them.
    pub fn into_column(self) -> FixedColumn {
        self.values
    }
}

impl LogicalBytes for TensorSegment {
    fn len(&self) -> u64 {
        self.values.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SegmentError> {
        self.values.read_at(offset, buffer)
    }

    fn will_need(&self, range: Range<u64>) {
        self.values.will_need(range);
    }
}
