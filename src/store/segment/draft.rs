//! A Parquet file being written: pages in, footer out.
//!
//! Parquet's own file writer hands out row groups that borrow it, which a caller who streams bytes
//! over many calls cannot hold. So the file is put together here from the crate's parts: its page
//! writer, its column writers (small columns), its footer writer. Pages of fixed-width values are
//! written as they come: PLAIN bytes are the logical bytes.

use std::{
    io::{self, BufWriter, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::BytesMut;
use parquet::{
    basic::{Encoding, PageType},
    column::{
        page::{CompressedPage, Page, PageWriteSpec, PageWriter},
        writer::{get_column_writer, get_typed_column_writer},
    },
    data_type::DataType,
    errors::ParquetError,
    file::{
        metadata::{
            ColumnChunkMetaData, FileMetaData, KeyValue, OffsetIndexBuilder, PageEncodingStats,
            ParquetMetaDataBuilder, ParquetMetaDataWriter, RowGroupMetaData,
            page_index::PageIndexBuilder,
        },
        page_index::offset_index::{OffsetIndexMetaData, PageLocation},
        properties::{EnabledStatistics, WriterProperties},
        writer::{SerializedPageWriter, TrackedWrite},
    },
    schema::types::SchemaDescPtr,
};

use super::{
    error::SegmentError,
    footer::{MAGIC, SegmentFile},
};
use crate::store::files::{Files, WriteFile};

/// Version of the Parquet format that the files claim: data pages of version 1.
const FORMAT: i32 = 1;

/// Most rows of a row group that is copied: what a footer claims is added up.
const ROW_GROUP_ROWS_MAX: i64 = 1 << 31;

/// Bytes gathered for one write: a header and a page at a time take a fifth longer.
const BUFFER_BYTES: usize = 1 << 20;

/// The file below Parquet's writers, which flush when dropped and then have nobody to tell.
#[derive(Clone)]
struct Sink(Arc<Mutex<SinkState>>);

struct SinkState {
    file: BufWriter<Box<dyn WriteFile>>,
    failed: Option<io::Error>,
    /// What is written while it is held.
    held: Option<Vec<u8>>,
}

impl Sink {
    fn new(file: Box<dyn WriteFile>) -> Self {
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Self(Arc::new(Mutex::new(SinkState { file, failed: None, held: None })))
    }

    fn state(&self) -> MutexGuard<'_, SinkState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first error of a write, if there was one.
    fn take_error(&self) -> Option<io::Error> {
        self.state().failed.take()
    }

    /// Keeps what is written from here on.
    fn hold(&self) {
        self.state().held = Some(Vec::new());
    }

    /// Writes what was kept, after `change`.
    fn release(&self, change: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let mut state = self.state();
        let mut held = state.held.take().unwrap_or_default();
        change(&mut held);
        state.file.write_all(&held)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        match state.failed.take() {
            Some(error) => Err(error),
            None => state.file.flush().and_then(|()| state.file.get_mut().sync()),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        if let Some(held) = &mut state.held {
            held.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        let written = state.file.write(bytes);
        if let Err(error) = &written
            && error.kind() != io::ErrorKind::Interrupted
        {
            let kept =
                error.raw_os_error().map_or(error.kind().into(), io::Error::from_raw_os_error);
            state.failed.get_or_insert(kept);
        }
        written
    }

    /// Keeps what is buffered: Parquet flushes at every page, the file needs it once.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A Parquet file being written, column by column, row group by row group.
pub(super) struct Draft {
    path: PathBuf,
    sink: Sink,
    out: TrackedWrite<Sink>,
    schema: SchemaDescPtr,
    open: Vec<Closed>,
    open_at: u64,
    row_groups: Vec<RowGroupMetaData>,
    indexes: Vec<Vec<Option<OffsetIndexMetaData>>>,
    keys: Vec<KeyValue>,
}

/// A column chunk that is written.
struct Closed {
    chunk: ColumnChunkMetaData,
    index: Option<OffsetIndexMetaData>,
    rows: u64,
}

impl Draft {
    /// Creates the file.
    pub(super) fn create(
        files: &dyn Files,
        path: &Path,
        schema: SchemaDescPtr,
    ) -> Result<Self, SegmentError> {
        let sink = Sink::new(files.create(path).map_err(SegmentError::io(path))?);
        let mut out = TrackedWrite::new(sink.clone());
        out.write_all(MAGIC).map_err(SegmentError::io(path))?;
        Ok(Self {
            path: path.to_owned(),
            sink,
            out,
            schema,
            open: Vec::new(),
            open_at: 0,
            row_groups: Vec::new(),
            indexes: Vec::new(),
            keys: Vec::new(),
        })
    }

    /// Says how many bytes will be written at least.
    pub(super) fn reserve(&self, bytes: u64) -> Result<(), SegmentError> {
        let reserved = self.sink.state().file.get_mut().reserve(bytes);
        reserved.map_err(SegmentError::io(&self.path))
    }

    /// The file's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds an entry to the file's metadata.
    pub(super) fn key(&mut self, key: &str, value: String) {
        self.keys.push(KeyValue::new(key.to_owned(), value));
    }

    /// Writes the next column of a row group at once; levels as Parquet defines them.
    pub(super) fn column<T: DataType>(
        &mut self,
        values: &[T::T],
        definition: Option<&[i16]>,
        repetition: Option<&[i16]>,
    ) -> Result<(), SegmentError> {
        self.begin_column();
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .build();
        let description = self.schema.column(self.open.len());
        let write = |out: &mut TrackedWrite<Sink>| {
            let pages = Box::new(SerializedPageWriter::new(out));
            let untyped = get_column_writer(description, Arc::new(properties), pages);
            let mut writer = get_typed_column_writer::<T>(untyped);
            writer.write_batch(values, definition, repetition)?;
            writer.close()
        };
        let closed = write(&mut self.out).map_err(|source| self.failed(source))?;
        self.end_column(closed.metadata, closed.offset_index, closed.rows_written)
    }

    /// Copies all row groups of a file with the same schema, as their bytes are.
    pub(super) fn copy(&mut self, from: &SegmentFile) -> Result<(), SegmentError> {
        let mut free_at = MAGIC.len() as u64;
        for row_group in 0..from.row_groups() {
            for column in 0..self.schema.num_columns() {
                self.copy_chunk(from, row_group, column, &mut free_at)?;
            }
        }
        Ok(())
    }

    fn copy_chunk(
        &mut self,
        from: &SegmentFile,
        row_group: usize,
        column: usize,
        free_at: &mut u64,
    ) -> Result<(), SegmentError> {
        let (group, chunk) = from.whole_chunk(row_group, column, free_at)?;
        let (start, bytes) = (chunk.data_page_offset(), chunk.compressed_size());
        let locations = from.locations(row_group, column, group, chunk)?;
        let pages = pages_of(&locations, start..start.saturating_add(bytes), group.num_rows());
        let (pages, rows) = pages.ok_or_else(|| SegmentError::Pages {
            path: from.path.clone(),
            row_group,
            found: locations.len(),
            rows: group.num_rows(),
        })?;
        let mut body = vec![0; bytes as usize]; // Within the file.
        from.file.read_exact_at(&mut body, start as u64).map_err(SegmentError::io(&from.path))?;
        self.begin_column();
        let to = self.out.bytes_written() as i64;
        self.out.write_all(&body).map_err(SegmentError::io(&self.path))?;
        let mut index = OffsetIndexBuilder::new();
        for (offset, page_bytes, rows) in pages {
            index.append_offset_and_size(to + offset, page_bytes);
            index.append_row_count(rows);
        }
        let copied = ColumnChunkMetaData::builder(self.schema.column(column))
            .set_encodings(chunk.encodings().collect())
            .set_num_values(chunk.num_values())
            .set_total_compressed_size(bytes)
            .set_total_uncompressed_size(bytes)
            .set_data_page_offset(to)
            .build()
            .map_err(|source| self.failed(source))?;
        self.end_column(copied, Some(index.build()), rows)
    }

    /// Writes the footer and syncs the file.
    pub(super) fn finish(self) -> Result<(), SegmentError> {
        assert!(self.open.is_empty(), "a row group has all its columns before the file ends");
        let Self { path, sink, out, schema, row_groups, indexes, keys, .. } = self;
        let rows = row_groups.iter().map(RowGroupMetaData::num_rows).sum();
        let mut pages = PageIndexBuilder::new(row_groups.len(), schema.num_columns());
        for (row_group, columns) in indexes.into_iter().enumerate() {
            for (column, index) in columns.into_iter().enumerate() {
                index.into_iter().for_each(|i| pages.put_offset_index(i, row_group, column));
            }
        }
        let creator = concat!("gradledger version ", env!("CARGO_PKG_VERSION")).to_owned();
        let keys = (!keys.is_empty()).then_some(keys);
        let file = FileMetaData::new(FORMAT, rows, Some(creator), keys, schema, None);
        let metadata = ParquetMetaDataBuilder::new(file)
            .set_row_groups(row_groups)
            .set_page_index(Some(Arc::new(pages.build())))
            .build();
        sink.hold();
        let written = ParquetMetaDataWriter::new_with_tracked(out, &metadata).finish();
        written.map_err(|source| failed(&path, &sink, source))?;
        sink.release(|end| {
            order_by_type(end, metadata.file_metadata().schema_descr().num_columns())
        })
        .map_err(SegmentError::io(&path))?;
        sink.sync().map_err(SegmentError::io(&path))
    }

    fn begin_column(&mut self) {
        if self.open.is_empty() {
            self.open_at = self.out.bytes_written() as u64;
        }
    }

    fn page(&mut self, page: CompressedPage) -> Result<PageWriteSpec, SegmentError> {
        let written = SerializedPageWriter::new(&mut self.out).write_page(page);
        written.map_err(|source| self.failed(source))
    }

    /// Takes a column that is written; the last one of a row group closes it.
    fn end_column(
        &mut self,
        chunk: ColumnChunkMetaData,
        index: Option<OffsetIndexMetaData>,
        rows: u64,
    ) -> Result<(), SegmentError> {
        let first = self.open.first().map_or(rows, |column| column.rows);
        if first != rows {
            return Err(SegmentError::Rows {
                path: self.path.clone(),
                row_group: self.row_groups.len(),
                expected: first as i64,
                found: rows as i64,
            });
        }
        self.open.push(Closed { chunk, index, rows });
        if self.open.len() == self.schema.num_columns() {
            self.end_row_group(rows)?;
        }
        Ok(())
    }

    fn end_row_group(&mut self, rows: u64) -> Result<(), SegmentError> {
        let columns = self.open.drain(..).map(|column| (column.chunk, column.index));
        let (chunks, indexes): (Vec<_>, Vec<_>) = columns.unzip();
        let bytes = chunks.iter().map(ColumnChunkMetaData::uncompressed_size).sum();
        let mut builder = RowGroupMetaData::builder(self.schema.clone())
            .set_column_metadata(chunks)
            .set_total_byte_size(bytes)
            .set_num_rows(rows as i64)
            .set_file_offset(self.open_at as i64);
        if let Ok(ordinal) = i16::try_from(self.row_groups.len()) {
            builder = builder.set_ordinal(ordinal.into());
        }
        let row_group = builder.build().map_err(|source| self.failed(source))?;
        self.row_groups.push(row_group);
        self.indexes.push(indexes);
        Ok(())
    }

    fn failed(&self, source: ParquetError) -> SegmentError {
        failed(&self.path, &self.sink, source)
    }
}

/// Where each page lies within its chunk, its length, its rows.
type PageAt = (i64, i32, i64);

/// The pages of a chunk, and the rows of all. None if a page does not lie within the chunk, or its rows do
/// not follow those before.
fn pages_of(
    locations: &[PageLocation],
    chunk: Range<i64>,
    rows: i64,
) -> Option<(Vec<PageAt>, u64)> {
    let ends = locations.iter().skip(1).map(|next| next.first_row_index).chain([rows]);
    let mut expected_row = 0;
    let page = |(location, end): (&PageLocation, i64)| {
        let bytes = location.compressed_page_size;
        let page_end = location.offset.checked_add(i64::from(bytes))?;
        let follows = location.first_row_index == expected_row && end > expected_row;
        let within = bytes > 0 && location.offset >= chunk.start && page_end <= chunk.end;
        let rows = end.checked_sub(expected_row)?;
        expected_row = end;
        (follows && within).then_some((location.offset - chunk.start, bytes, rows))
    };
    let pages = locations.iter().zip(ends).map(page).collect::<Option<Vec<_>>>()?;
    let sound = pages.is_empty() == (rows == 0) && (0..=ROW_GROUP_ROWS_MAX).contains(&rows);
    sound.then_some((pages, rows as u64))
}

/// Says that the order of floats is that of their type, in a file's last bytes.
///
/// Parquet 60 writes IEEE_754_TOTAL_ORDER, a member of the union `ColumnOrder` that strict readers made
/// before it was added (parquet2, so arrow2 and what is built on it) refuse with the whole file. It
/// concerns statistics alone, of which there are none here. In Thrift's compact form the orders are
/// the footer's last field: a member's id and type (`1c` is TYPE_ORDER, `2c` IEEE_754_TOTAL_ORDER), an
/// empty struct, a stop; then the footer's stop, its length, the magic.
fn order_by_type(end: &mut [u8], columns: usize) {
    let orders = end.len().checked_sub(3 * columns + 1 + 8).map(|at| at..at + 3 * columns);
    let Some(orders) = orders.and_then(|range| end.get_mut(range)) else { return };
    let orders = orders.as_chunks_mut::<3>().0;
    if orders.iter().all(|order| matches!(order, [0x1c | 0x2c, 0, 0])) {
        orders.iter_mut().for_each(|order| order[0] = 0x1c);
    }
}

/// The file's own error if a write failed, which Parquet would show as text only.
fn failed(path: &Path, sink: &Sink, source: ParquetError) -> SegmentError {
    let path = path.to_owned();
    match sink.take_error() {
        Some(source) => SegmentError::Io { path, source },
        None => SegmentError::Parquet { path, source },
    }
}

/// The pages of one column chunk of fixed-width values, filled with bytes in any cut.
pub(super) struct Chunk {
    width: usize,
    page_bytes: usize,
    page: BytesMut,
    index: OffsetIndexBuilder,
    first_page_at: Option<u64>,
    pages: i32,
    stored_bytes: u64,
    rows: u64,
}

impl Chunk {
    /// An empty chunk of values of `width` bytes, in pages of at most `page_bytes_max`.
    pub(super) fn new(width: usize, page_bytes_max: usize) -> Self {
        let page_bytes = (page_bytes_max / width).max(1) * width;
        Self {
            width,
            page_bytes,
            page: BytesMut::new(),
            index: OffsetIndexBuilder::new(),
            first_page_at: None,
            pages: 0,
            stored_bytes: 0,
            rows: 0,
        }
    }

    /// Logical bytes taken.
    pub(super) fn bytes(&self) -> u64 {
        self.rows * self.width as u64 + self.page.len() as u64
    }

    /// Takes the next bytes and writes the pages that they fill.
    pub(super) fn write(
        &mut self,
        draft: &mut Draft,
        mut bytes: &[u8],
    ) -> Result<(), SegmentError> {
        while !bytes.is_empty() {
            self.page.reserve(self.page_bytes - self.page.len());
            let room = self.page_bytes - self.page.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.page.extend_from_slice(now);
            bytes = later;
            if self.page.len() == self.page_bytes {
                self.end_page(draft)?;
            }
        }
        Ok(())
    }

    /// Writes the last page and closes the column chunk.
    ///
    /// The bytes taken must be whole values.
    pub(super) fn finish(mut self, draft: &mut Draft) -> Result<(), SegmentError> {
        assert!(self.page.len().is_multiple_of(self.width), "callers count the bytes of a column");
        if !self.page.is_empty() {
            self.end_page(draft)?;
        }
        draft.begin_column();
        let stats = PageEncodingStats {
            page_type: PageType::DATA_PAGE,
            encoding: Encoding::PLAIN,
            count: self.pages,
        };
        let chunk = ColumnChunkMetaData::builder(draft.schema.column(draft.open.len()))
            .set_encodings(vec![Encoding::PLAIN, Encoding::RLE])
            .set_page_encoding_stats(vec![stats])
            .set_num_values(self.rows as i64)
            .set_total_compressed_size(self.stored_bytes as i64)
            .set_total_uncompressed_size(self.stored_bytes as i64)
            .set_data_page_offset(self.first_page_at.unwrap_or(0) as i64)
            .build()
            .map_err(|source| draft.failed(source))?;
        draft.end_column(chunk, Some(self.index.build()), self.rows)
    }

    fn end_page(&mut self, draft: &mut Draft) -> Result<(), SegmentError> {
        draft.begin_column();
        let rows = self.page.len() / self.width;
        let page = Page::DataPage {
            buf: self.page.split().freeze(),
            num_values: rows as u32, // A page has at most a MiB.
            encoding: Encoding::PLAIN,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let body_bytes = page.buffer().len();
        let spec = draft.page(CompressedPage::new(page, body_bytes))?;
        self.index.append_offset_and_size(spec.offset as i64, spec.compressed_size as i32);
        self.index.append_row_count(rows as i64);
        self.first_page_at.get_or_insert(spec.offset);
        self.pages += 1;
        self.stored_bytes += spec.bytes_written;
        self.rows += rows as u64;
        Ok(())
    }
}
