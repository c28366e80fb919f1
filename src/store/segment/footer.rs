//! A Parquet file opened for reading: its footer, and where the pages of a column lie.
//!
//! The schema is known beforehand from the file's place and is never taken from the file, so a
//! nested one cannot exhaust the stack. What the footer claims is checked against the file's length.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use parquet::{
    basic::{Compression, Encoding},
    errors::Result as ParquetResult,
    file::{
        metadata::{
            ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataOptions, ParquetMetaDataReader,
            ParquetStatisticsPolicy, RowGroupMetaData,
        },
        page_index::{index_reader::decode_offset_index, offset_index::PageLocation},
    },
    schema::types::SchemaDescPtr,
};

use super::{error::SegmentError, thrift};
use crate::store::files::{Files, ReadFile};

/// What a Parquet file starts and ends with.
pub(super) const MAGIC: &[u8; 4] = b"PAR1";

/// Length of the footer, then the magic.
const TAIL_BYTES: usize = 8;

/// Largest footer that is read: 600,000 row groups of a tensor (39 TB), 70,000 tensors of a delta.
const FOOTER_BYTES_MAX: u64 = 64 << 20;

/// Largest offset index that is read, of one column chunk: over a million pages.
const INDEX_BYTES_MAX: u64 = 16 << 20;

/// Fewest bytes of a page's entry in the offset index: three fields of two bytes, and the stop.
const LOCATION_BYTES_MIN: usize = 7;

/// Most bytes of an offset index beside those of its pages, and of each page's entry: three numbers, and
/// the length of its text. What is longer holds something else, which would be read for each row group.
const INDEX_BYTES_MIN: u64 = 64;
const LOCATION_BYTES_MAX: u64 = 48;

/// Largest page header that is taken for one; ours have 21 to 23 bytes.
const PAGE_HEADER_BYTES_MAX: u64 = 256;

/// A Parquet file and its footer.
pub(super) struct SegmentFile {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn ReadFile>,
    pub(super) metadata: ParquetMetaData,
    /// Where the footer starts: pages and indexes end before.
    footer_at: u64,
}

/// One page's values: where they start in the column and in the file, and how many bytes they have.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageBody {
    pub(super) at: u64,
    pub(super) bytes: u64,
}

impl SegmentFile {
    /// Opens a file that has this schema.
    pub(super) fn open(
        files: &dyn Files,
        path: &Path,
        schema: SchemaDescPtr,
    ) -> Result<Self, SegmentError> {
        let file = files.open(path).map_err(SegmentError::io(path))?;
        let (footer_at, footer) = read_footer(&*file, path)?;
        if !thrift::is_sound(&footer, thrift::FILE) {
            return Err(SegmentError::Shape { path: path.to_owned() });
        }
        let skip = ParquetStatisticsPolicy::SkipAll;
        let options = ParquetMetaDataOptions::new()
            .with_schema(schema)
            .with_column_stats_policy(skip.clone())
            .with_encoding_stats_policy(skip.clone())
            .with_size_stats_policy(skip);
        let metadata = guarded(path, || {
            ParquetMetaDataReader::decode_metadata_with_options(&footer, Some(&options))
        })?;
        Ok(Self { path: path.to_owned(), file, metadata, footer_at })
    }

    /// Number of row groups.
    pub(super) fn row_groups(&self) -> usize {
        self.metadata.num_row_groups()
    }

    /// The value that the file's metadata has for `key`.
    pub(super) fn key(&self, key: &'static str) -> Result<&str, SegmentError> {
        let pairs = self.metadata.file_metadata().key_value_metadata();
        pairs
            .and_then(|pairs| pairs.iter().find(|pair| pair.key == key))
            .and_then(|pair| pair.value.as_deref())
            .ok_or_else(|| SegmentError::Key { path: self.path.clone(), key })
    }

    /// Where the values of a column of `width` bytes a value lie within one row group, all of them
    /// from `free_at` on: so that no two pages share bytes, and what they hold is bounded by the file.
    pub(super) fn pages(
        &self,
        row_group: usize,
        column: usize,
        width: usize,
        mut free_at: u64,
    ) -> Result<Vec<PageBody>, SegmentError> {
        let (group, chunk) = self.chunk(row_group, column)?;
        let rows = group.num_rows();
        if chunk.num_values() != rows || rows < 0 {
            let (path, found) = (self.path.clone(), chunk.num_values());
            return Err(SegmentError::Rows { path, row_group, expected: rows, found });
        }
        let locations = self.locations(row_group, column, group, chunk)?;
        if locations.is_empty() != (rows == 0) || locations.len() as u64 > rows as u64 {
            let (path, found) = (self.path.clone(), locations.len());
            return Err(SegmentError::Pages { path, row_group, found, rows });
        }
        let ends = locations.iter().skip(1).map(|next| next.first_row_index).chain([rows]);
        let mut expected_row = 0;
        let mut bodies = Vec::with_capacity(locations.len());
        for (page, (location, end)) in locations.iter().zip(ends).enumerate() {
            let body = self.body(location, expected_row, end, width, free_at);
            let body = body.ok_or_else(|| SegmentError::Page {
                path: self.path.clone(),
                row_group,
                page,
                offset: location.offset,
                page_bytes: location.compressed_page_size,
                rows: end.saturating_sub(location.first_row_index),
                width,
                free_start: free_at,
                free_end: self.footer_at,
            })?;
            bodies.push(body);
            free_at = body.at + body.bytes;
            expected_row = end;
        }
        Ok(bodies)
    }

    /// One column of one row group, refused unless its pages can be values only.
    pub(super) fn chunk(
        &self,
        row_group: usize,
        column: usize,
    ) -> Result<(&RowGroupMetaData, &ColumnChunkMetaData), SegmentError> {
        let path = || self.path.clone();
        let row_groups = self.row_groups();
        let group = self
            .metadata
            .row_groups()
            .get(row_group)
            .ok_or_else(|| SegmentError::RowGroup { path: path(), row_group, row_groups })?;
        let refused = || SegmentError::Encoding { path: path(), row_group, column };
        let chunk = group.columns().get(column).ok_or_else(refused)?;
        let plain = chunk.encodings().all(|e| matches!(e, Encoding::PLAIN | Encoding::RLE))
            && chunk.compression() == Compression::UNCOMPRESSED
            && chunk.dictionary_page_offset().is_none()
            && chunk.file_path().is_none();
        if plain { Ok((group, chunk)) } else { Err(refused()) }
    }

    /// One column of one row group, and its row group, for a reader of all its pages in turn. It lies
    /// from `free_at` on, which becomes its end: chunks that share bytes would be read once each, and a
    /// small file would hold as much as it has row groups.
    ///
    /// Parquet 60 asserts that its start and length are not negative.
    pub(super) fn whole_chunk(
        &self,
        row_group: usize,
        column: usize,
        free_at: &mut u64,
    ) -> Result<(&RowGroupMetaData, &ColumnChunkMetaData), SegmentError> {
        let (group, chunk) = self.chunk(row_group, column)?;
        let (offset, bytes) = (chunk.data_page_offset(), chunk.compressed_size());
        let range = u64::try_from(offset).ok().zip(u64::try_from(bytes).ok());
        let end = range.and_then(|(offset, bytes)| match bytes {
            // A chunk of nothing lies nowhere.
            0 => Some(*free_at),
            _ if offset < *free_at => None,
            _ => offset.checked_add(bytes).filter(|&end| end <= self.footer_at),
        });
        let Some(end) = end else {
            let (path, free_start, file_bytes) = (self.path.clone(), *free_at, self.footer_at);
            return Err(SegmentError::Chunk {
                path,
                row_group,
                column,
                offset,
                bytes,
                free_start,
                file_bytes,
            });
        };
        *free_at = end;
        Ok((group, chunk))
    }

    /// As [`SegmentFile::whole_chunk`], with its bytes of the `whole` file looked at: page after page.
    pub(super) fn sound_chunk(
        &self,
        whole: &[u8],
        row_group: usize,
        column: usize,
        free_at: &mut u64,
    ) -> Result<(&RowGroupMetaData, &ColumnChunkMetaData), SegmentError> {
        let (group, chunk) = self.whole_chunk(row_group, column, free_at)?;
        let pages = match chunk.compressed_size() {
            0 => Some(&[][..]),
            // Both are within the file as it was when it was opened.
            bytes => {
                let from = whole.get(chunk.data_page_offset() as usize..);
                from.and_then(|from| from.get(..bytes as usize))
            }
        };
        if pages.is_some_and(thrift::pages_are_sound) {
            Ok((group, chunk))
        } else {
            Err(SegmentError::Shape { path: self.path.clone() })
        }
    }

    /// The values of a page: the last `rows x width` bytes of where it lies. None if that is not
    /// free, not within the file, or not a page of the rows up to `end`.
    fn body(
        &self,
        location: &PageLocation,
        expected_row: i64,
        end: i64,
        width: usize,
        free_at: u64,
    ) -> Option<PageBody> {
        let offset = u64::try_from(location.offset).ok()?;
        let page_bytes = u64::try_from(location.compressed_page_size).ok()?;
        let page_end = offset.checked_add(page_bytes)?;
        let rows = u64::try_from(end.checked_sub(location.first_row_index)?).ok()?;
        let bytes = rows.checked_mul(width as u64)?;
        let header_bytes = page_bytes.checked_sub(bytes)?;
        let taken = location.first_row_index == expected_row
            && rows > 0
            && (1..=PAGE_HEADER_BYTES_MAX).contains(&header_bytes)
            && offset >= free_at
            && page_end <= self.footer_at;
        taken.then_some(PageBody { at: offset + header_bytes, bytes })
    }

    /// Where the pages of a column chunk lie, as its offset index says; a page has a row or more.
    pub(super) fn locations(
        &self,
        row_group: usize,
        column: usize,
        group: &RowGroupMetaData,
        chunk: &ColumnChunkMetaData,
    ) -> Result<Vec<PageLocation>, SegmentError> {
        let refused = || SegmentError::Index {
            path: self.path.clone(),
            row_group,
            column,
            file_bytes: self.footer_at,
        };
        let at = chunk.offset_index_offset().and_then(|at| u64::try_from(at).ok());
        let bytes = chunk.offset_index_length().and_then(|bytes| u64::try_from(bytes).ok());
        let (at, bytes) = at.zip(bytes).ok_or_else(refused)?;
        let within = at.checked_add(bytes).is_some_and(|end| end <= self.footer_at);
        let rows = u64::try_from(group.num_rows()).map_err(|_| refused())?;
        let most = rows.saturating_mul(LOCATION_BYTES_MAX).saturating_add(INDEX_BYTES_MIN);
        if !within || bytes > INDEX_BYTES_MAX.min(most) {
            return Err(refused());
        }
        let mut index = vec![0; bytes as usize];
        self.file.read_exact_at(&mut index, at).map_err(SegmentError::io(&self.path))?;
        if !list_fits(&index) || !thrift::is_sound(&index, thrift::OFFSET_INDEX) {
            return Err(refused());
        }
        let index = guarded(&self.path, || decode_offset_index(&index))?;
        Ok(index.page_locations)
    }
}

/// The footer's bytes and where they start.
fn read_footer(file: &dyn ReadFile, path: &Path) -> Result<(u64, Vec<u8>), SegmentError> {
    let file_bytes = file.len().map_err(SegmentError::io(path))?;
    let magic = || SegmentError::Magic { path: path.to_owned() };
    let tail_at = file_bytes.checked_sub(TAIL_BYTES as u64).ok_or_else(magic)?;
    let mut tail = [0; TAIL_BYTES];
    file.read_exact_at(&mut tail, tail_at).map_err(SegmentError::io(path))?;
    let [a, b, c, d, end @ ..] = tail;
    if &end != MAGIC {
        return Err(magic());
    }
    let footer_bytes = u64::from(u32::from_le_bytes([a, b, c, d]));
    let footer_at = tail_at.checked_sub(footer_bytes).filter(|&at| at >= MAGIC.len() as u64);
    let footer_at = footer_at.filter(|_| footer_bytes <= FOOTER_BYTES_MAX).ok_or_else(|| {
        SegmentError::Footer {
            path: path.to_owned(),
            footer_bytes,
            file_bytes,
            max: FOOTER_BYTES_MAX,
        }
    })?;
    let mut footer = vec![0; footer_bytes as usize];
    file.read_exact_at(&mut footer, footer_at).map_err(SegmentError::io(path))?;
    Ok((footer_at, footer))
}

/// Whether an offset index can hold as many pages as it claims.
///
/// Parquet 60 reserves memory for the claimed number before it reads the first: up to 51 GB.
fn list_fits(index: &[u8]) -> bool {
    let claimed = thrift::first_list_claims(index);
    claimed.is_some_and(|pages| pages <= (index.len() / LOCATION_BYTES_MIN) as u64)
}

/// Runs Parquet's decoder on bytes that nobody vouches for: a panic in it becomes an error.
pub(super) fn guarded<T>(
    path: &Path,
    decode: impl FnOnce() -> ParquetResult<T>,
) -> Result<T, SegmentError> {
    let path = || path.to_owned();
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(decoded) => decoded.map_err(|source| SegmentError::Parquet { path: path(), source }),
        Err(_) => Err(SegmentError::Undecodable { path: path() }),
    }
}
