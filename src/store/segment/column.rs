//! Columns read back: the logical bytes of fixed-width values, and short text.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parquet::{
    basic::Encoding,
    column::page::{Page, PageReader},
    file::serialized_reader::SerializedPageReader,
};

use super::{
    LogicalBytes, check_range,
    error::SegmentError,
    footer::{MAGIC, SegmentFile, guarded},
};
use crate::store::files::ReadFile;

/// The logical bytes of a column of fixed-width values: its page bodies, one after the other.
pub struct FixedColumn {
    path: PathBuf,
    file: Arc<dyn ReadFile>,
    pages: Vec<PageAt>,
    bytes: u64,
}

/// Where a page's values start, in the column and in the file.
#[derive(Clone, Copy)]
struct PageAt {
    offset: u64,
    file_at: u64,
}

impl FixedColumn {
    /// The values of `width` bytes that `row_groups` have in a column.
    pub(super) fn open(
        segment: &SegmentFile,
        row_groups: Range<usize>,
        column: usize,
        width: usize,
    ) -> Result<Self, SegmentError> {
        let mut pages = Vec::new();
        let mut bytes = 0;
        let mut free_at = MAGIC.len() as u64;
        for row_group in row_groups {
            for body in segment.pages(row_group, column, width, free_at)? {
                pages.push(PageAt { offset: bytes, file_at: body.at });
                bytes += body.bytes;
                free_at = body.at + body.bytes;
            }
        }
        Ok(Self { path: segment.path.clone(), file: segment.file.clone(), pages, bytes })
    }

    /// Refuses a column that does not have `expected` bytes.
    pub(super) fn of_length(self, expected: u64) -> Result<Self, SegmentError> {
        if self.bytes == expected {
            return Ok(self);
        }
        Err(SegmentError::Length { path: self.path, expected, found: self.bytes })
    }

    /// The file that it lies in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of the file that hold `len` bytes of the column from `offset` on, which it has, with
    /// what lies between its pages.
    pub fn span(&self, offset: u64, len: u64) -> Range<u64> {
        if len == 0 {
            return 0..0;
        }
        let at = |offset: u64| {
            let page = self.pages[self.page_of(offset)];
            page.file_at + (offset - page.offset)
        };
        at(offset)..at(offset + len - 1) + 1
    }

    /// As [`LogicalBytes::read_at`], from `file` in place of its own: one that has only a span of it.
    ///
    /// # Errors
    ///
    /// As [`LogicalBytes::read_at`].
    pub fn read_from(
        &self,
        file: &dyn ReadFile,
        mut offset: u64,
        mut buffer: &mut [u8],
    ) -> Result<(), SegmentError> {
        check_range(self.bytes, offset, buffer.len())?;
        let mut page = self.page_of(offset);
        while !buffer.is_empty() {
            let PageAt { offset: page_offset, file_at } = self.pages[page];
            let here = usize::try_from(self.end(page) - offset).unwrap_or(usize::MAX);
            let (now, later) = buffer.split_at_mut(here.min(buffer.len()));
            let file_at = file_at + (offset - page_offset);
            file.read_exact_at(now, file_at).map_err(SegmentError::io(&self.path))?;
            offset += now.len() as u64;
            buffer = later;
            page += 1;
        }
        Ok(())
    }

    /// Which page holds the byte at `offset`.
    fn page_of(&self, offset: u64) -> usize {
        self.pages.partition_point(|page| page.offset <= offset).saturating_sub(1)
    }

    /// Where page number `page` ends in the column.
    fn end(&self, page: usize) -> u64 {
        self.pages.get(page + 1).map_or(self.bytes, |next| next.offset)
    }
}

impl LogicalBytes for FixedColumn {
    fn len(&self) -> u64 {
        self.bytes
    }

    /// One read a page, straight into `buffer`. At 64 KiB a page that is within a tenth of one large
    /// read; reading headers along would save calls but move every byte again.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SegmentError> {
        self.read_from(&*self.file, offset, buffer)
    }

    fn will_need(&self, range: Range<u64>) {
        let end = range.end.min(self.bytes);
        if range.start < end {
            self.file.will_need(self.span(range.start, end - range.start));
        }
    }
}

/// The values of a required column of text in a small file, all of whose bytes are at hand.
pub(super) fn text(
    segment: &SegmentFile,
    whole: &Bytes,
    column: usize,
) -> Result<Vec<Bytes>, SegmentError> {
    let (mut values, mut free_at) = (Vec::new(), MAGIC.len() as u64);
    for row_group in 0..segment.row_groups() {
        let (group, chunk) = segment.sound_chunk(whole, row_group, column, &mut free_at)?;
        let rows = group.num_rows();
        let before = values.len();
        let mut pages = guarded(&segment.path, || {
            SerializedPageReader::new(Arc::new(whole.clone()), chunk, rows.max(0) as usize, None)
        })?;
        for page in 0.. {
            let Some(body) = guarded(&segment.path, || pages.get_next_page())? else { break };
            plain_text(&body, &mut values).ok_or_else(|| SegmentError::Text {
                path: segment.path.clone(),
                column,
                page,
            })?;
        }
        let found = (values.len() - before) as i64;
        if found != rows {
            let path = segment.path.clone();
            return Err(SegmentError::Rows { path, row_group, expected: rows, found });
        }
    }
    Ok(values)
}

/// Appends a page's values, each a length of four bytes and as many bytes. None if it is otherwise.
fn plain_text(page: &Page, values: &mut Vec<Bytes>) -> Option<()> {
    let Page::DataPage { buf, num_values, encoding: Encoding::PLAIN, .. } = page else {
        return None;
    };
    let mut rest = buf.clone();
    for _ in 0..*num_values {
        let length = u32::from_le_bytes(*rest.first_chunk()?) as usize;
        let body = rest.slice(4..);
        if length > body.len() {
            return None;
        }
        values.push(body.slice(..length));
        rest = body.slice(length..);
    }
    rest.is_empty().then_some(())
}
