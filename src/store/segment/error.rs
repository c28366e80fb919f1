//! What can be wrong with a segment.

use std::{
    io,
    path::{Path, PathBuf},
};

use parquet::errors::ParquetError;

use crate::{
    store::remote::RemoteError,
    types::{digest::Digest, plan::PlanError},
};

/// A segment that cannot be written or read: the rule, where, and both values.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum SegmentError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {source}", path = path.display())]
    Parquet { path: PathBuf, source: ParquetError },
    /// Parquet's decoder panicked, which it should not do on any input.
    #[error("{path}: the file's metadata made the decoder give up", path = path.display())]
    Undecodable { path: PathBuf },
    #[error("{path}: the metadata is not of the shape that Parquet's has", path = path.display())]
    Shape { path: PathBuf },
    #[error("{path}: not a Parquet file: it does not end with PAR1", path = path.display())]
    Magic { path: PathBuf },
    #[error(
        "{path}: a footer of {footer_bytes} bytes in a file of {file_bytes}; at most {max} are read",
        path = path.display()
    )]
    Footer { path: PathBuf, footer_bytes: u64, file_bytes: u64, max: u64 },
    #[error("{path}: the metadata has no {key:?}, or not the JSON it should be", path = path.display())]
    Key { path: PathBuf, key: &'static str },
    #[error("{path}: the metadata says {key} is {found:?}, not {expected:?}", path = path.display())]
    OtherKey { path: PathBuf, key: &'static str, expected: String, found: String },
    #[error("{path}: {names} names stand for {row_groups} row groups", path = path.display())]
    Names { path: PathBuf, names: usize, row_groups: usize },
    #[error("{path}: row group {row_group} does not exist; there are {row_groups}", path = path.display())]
    RowGroup { path: PathBuf, row_group: usize, row_groups: usize },
    #[error("{path}: row group {row_group}: {found} values in a column, {expected} rows", path = path.display())]
    Rows { path: PathBuf, row_group: usize, expected: i64, found: i64 },
    #[error(
        "{path}: row group {row_group}: column {column} is compressed, in another file or not PLAIN",
        path = path.display()
    )]
    Encoding { path: PathBuf, row_group: usize, column: usize },
    #[error(
        "{path}: row group {row_group}: column {column} has no offset index within the file's {file_bytes} bytes",
        path = path.display()
    )]
    Index { path: PathBuf, row_group: usize, column: usize, file_bytes: u64 },
    #[error(
        "{path}: row group {row_group}: column {column} has {bytes} bytes at {offset}; only \
         {free_start}..{file_bytes} is free",
        path = path.display()
    )]
    Chunk {
        path: PathBuf,
        row_group: usize,
        column: usize,
        offset: i64,
        bytes: i64,
        free_start: u64,
        file_bytes: u64,
    },
    #[error(
        "{path}: row group {row_group}: page {page} of {rows} rows in {page_bytes} bytes at {offset} \
         leaves {free_start}..{free_end} or is no page of {width}-byte values",
        path = path.display()
    )]
    Page {
        path: PathBuf,
        row_group: usize,
        page: usize,
        offset: i64,
        page_bytes: i32,
        rows: i64,
        width: usize,
        free_start: u64,
        free_end: u64,
    },
    #[error("{path}: row group {row_group}: {found} pages for {rows} rows", path = path.display())]
    Pages { path: PathBuf, row_group: usize, found: usize, rows: i64 },
    #[error("{path}: page {page} of column {column} is not plain text values", path = path.display())]
    Text { path: PathBuf, column: usize, page: usize },
    #[error("{path}: column {column} is not what the hashed rows say", path = path.display())]
    Column { path: PathBuf, column: String },
    #[error("{path}: {found} bytes of data, not {expected}", path = path.display())]
    Length { path: PathBuf, expected: u64, found: u64 },
    #[error("{path}: {found} entries, not {expected}", path = path.display())]
    Entries { path: PathBuf, expected: u64, found: u64 },
    #[error("{len} bytes at {offset} were asked of {bytes}")]
    Range { offset: u64, len: usize, bytes: u64 },
    #[error(
        "tensor {tensor:?}: {blocks} blocks of {k} entries do not make a delta; k is even, 2 to 4096"
    )]
    Layout { tensor: String, k: u64, blocks: u64 },
    #[error("{found} bins; a book has 4, 16 or 256")]
    Bins { found: usize },
    #[error("{path}: tensor {tensor:?} stands in it twice", path = path.display())]
    Twice { path: PathBuf, tensor: String },
    #[error("{path}: no tensor {tensor:?}", path = path.display())]
    Missing { path: PathBuf, tensor: String },
    #[error("{path}: {expected} bytes lie scattered over {found}", path = path.display())]
    Scattered { path: PathBuf, expected: u64, found: u64 },
    #[error("{path}: {source}", path = path.display())]
    Plan { path: PathBuf, source: PlanError },
    #[error("a plan of {tensors} tensors and {miners} miners has {found} rows")]
    PlanRows { tensors: usize, miners: usize, found: usize },
    #[error("{bytes} bytes have {expected} pieces; {found} digests were given")]
    Digests { bytes: u64, expected: u64, found: usize },
    #[error("piece {piece} hashes to {found}, not {expected}")]
    Piece { piece: u64, expected: Digest, found: Digest },
}

impl SegmentError {
    /// Whether a server did not answer as asked: that says nothing about the bytes.
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Self::Io { source, .. } if RemoteError::is_behind(source))
    }

    /// Makes an I/O error at `path` out of the operating system's.
    pub(in crate::store) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
