//! The columns of a table that people query: written at once, and compared with what they should
//! hold.
//!
//! Nothing reads them back to go on with: the hashed bytes stand in a column of their own beside
//! them. But who queries a table believes it, so `fsck` compares every value with the derived one.

use std::sync::Arc;

use bytes::Bytes;
use parquet::{
    column::{
        page::PageReader,
        reader::{get_column_reader, get_typed_column_reader},
    },
    data_type::{
        AsBytes, ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type,
    },
    errors::Result as ParquetResult,
    file::{metadata::ColumnChunkMetaData, serialized_reader::SerializedPageReader},
};

use super::{
    draft::Draft,
    error::SegmentError,
    footer::{MAGIC, SegmentFile, guarded},
};

/// What a column holds.
pub(super) enum Column {
    Text(Values<ByteArrayType>),
    I64(Values<Int64Type>),
    I32(Values<Int32Type>),
    F64(Values<DoubleType>),
    F32(Values<FloatType>),
}

/// Values, and the levels of those columns that have some.
pub(super) struct Values<T: DataType> {
    pub(super) values: Vec<T::T>,
    pub(super) definition: Option<Vec<i16>>,
    pub(super) repetition: Option<Vec<i16>>,
}

impl<T: DataType> Values<T> {
    /// A value a row.
    pub(super) fn required(values: impl IntoIterator<Item = T::T>) -> Self {
        Self { values: values.into_iter().collect(), definition: None, repetition: None }
    }

    /// A value or none a row.
    pub(super) fn optional(values: impl IntoIterator<Item = Option<T::T>>) -> Self {
        let values: Vec<Option<T::T>> = values.into_iter().collect();
        let definition = values.iter().map(|value| i16::from(value.is_some())).collect();
        let values = values.into_iter().flatten().collect();
        Self { values, definition: Some(definition), repetition: None }
    }

    /// A list a row: its first value at repetition level 0, the others at 1; an empty one undefined.
    pub(super) fn lists<'l>(lists: impl Iterator<Item = &'l [T::T]> + Clone) -> Self
    where
        T::T: 'l,
    {
        let lengths = || lists.clone().map(<[T::T]>::len);
        let definition =
            lengths().flat_map(|n| std::iter::repeat_n(i16::from(n > 0), n.max(1))).collect();
        let repetition =
            lengths().flat_map(|n| (0..n.max(1)).map(|at| i16::from(at > 0))).collect();
        let values = lists.flatten().cloned().collect();
        Self { values, definition: Some(definition), repetition: Some(repetition) }
    }

    /// Writes the next column of a row group.
    pub(super) fn write(&self, draft: &mut Draft) -> Result<(), SegmentError> {
        draft.column::<T>(&self.values, self.definition.as_deref(), self.repetition.as_deref())
    }

    /// Bits are compared, so that a NaN is itself.
    fn same(&self, other: &Self) -> bool {
        let bits =
            |values: &[T::T]| values.iter().map(|v| v.as_bytes().to_vec()).collect::<Vec<_>>();
        self.values.len() == other.values.len()
            && bits(&self.values) == bits(&other.values)
            && self.definition == other.definition
            && self.repetition == other.repetition
    }

    /// What the file has of this column, at most one row more than there are in `self`. None if its pages
    /// claim more values than that: a run of levels is spelled in few bytes, however long it is.
    fn read(
        &self,
        segment: &SegmentFile,
        whole: &Bytes,
        column: usize,
        rows: usize,
    ) -> Result<Option<Self>, SegmentError> {
        let mut found = Self {
            values: Vec::new(),
            definition: self.definition.as_ref().map(|_| Vec::new()),
            repetition: self.repetition.as_ref().map(|_| Vec::new()),
        };
        let (mut left, mut free_at) = (rows + 1, MAGIC.len() as u64);
        let mut levels_left = self.definition.as_ref().map_or(self.values.len(), Vec::len) as u64;
        for row_group in 0..segment.row_groups() {
            let (_, chunk) = segment.sound_chunk(whole, row_group, column, &mut free_at)?;
            let claimed = guarded(&segment.path, || claimed_values(whole, chunk, left))?;
            match levels_left.checked_sub(claimed) {
                Some(rest) => levels_left = rest,
                None => return Ok(None),
            }
            left -= guarded(&segment.path, || {
                let whole = Arc::new(whole.clone());
                let pages = SerializedPageReader::new(whole, chunk, left, None)?;
                let reader = get_column_reader(chunk.column_descr_ptr(), Box::new(pages));
                let mut reader = get_typed_column_reader::<T>(reader);
                let Self { values, definition, repetition } = &mut found;
                reader.read_records(left, definition.as_mut(), repetition.as_mut(), values)
            })?
            .0;
        }
        Ok(Some(found))
    }
}

/// How many values, lists that are empty and nothings among them, the headers of a chunk's pages claim.
fn claimed_values(whole: &Bytes, chunk: &ColumnChunkMetaData, rows: usize) -> ParquetResult<u64> {
    let mut pages = SerializedPageReader::new(Arc::new(whole.clone()), chunk, rows, None)?;
    let mut claimed = 0;
    while let Some(page) = pages.get_next_page()? {
        claimed += u64::from(page.num_values());
    }
    Ok(claimed)
}

/// Text as Parquet takes it.
pub(super) fn text(text: &str) -> ByteArray {
    ByteArray::from(text)
}

/// Applies one expression to the values of a column, whatever their type.
macro_rules! of_any_type {
    ($column:expr, $values:ident => $do:expr) => {
        match $column {
            Column::Text($values) => $do,
            Column::I64($values) => $do,
            Column::I32($values) => $do,
            Column::F64($values) => $do,
            Column::F32($values) => $do,
        }
    };
}

impl Column {
    /// Writes the next column of a row group.
    pub(super) fn write(&self, draft: &mut Draft) -> Result<(), SegmentError> {
        of_any_type!(self, values => values.write(draft))
    }

    fn is_in(
        &self,
        segment: &SegmentFile,
        whole: &Bytes,
        column: usize,
        rows: usize,
    ) -> Result<bool, SegmentError> {
        of_any_type!(self, values => {
            let found = values.read(segment, whole, column, rows)?;
            Ok(found.is_some_and(|found| values.same(&found)))
        })
    }
}

/// Compares the first columns of a file, all of whose bytes are at hand, with what they should hold.
pub(super) fn check(
    segment: &SegmentFile,
    whole: &Bytes,
    columns: &[Column],
    rows: usize,
) -> Result<(), SegmentError> {
    for (column, expected) in columns.iter().enumerate() {
        if !expected.is_in(segment, whole, column, rows)? {
            let name = segment.metadata.file_metadata().schema_descr().column(column);
            let (path, column) = (segment.path.clone(), name.path().string());
            return Err(SegmentError::Column { path, column });
        }
    }
    Ok(())
}
