//! Whole tables to query: rows of typed columns, by a schema, as plain Parquet.
//!
//! `ledger::tables` derives their rows; nothing in a ledger reads one back but to merge it with
//! others. See `schema/tables.md`.
//!
//! Memory: one table's rows; for a merge, one row group.

use std::path::{Path, PathBuf};

use parquet::{
    basic::{Repetition, Type as Physical},
    data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int64Type},
    schema::types::SchemaDescPtr,
};

use super::{draft::Draft, error::SegmentError, footer::SegmentFile, schema, table::Values};
use crate::store::files::Files;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// BOOLEAN.
    Bool,
    /// INT64.
    Int,
    /// FLOAT.
    Float32,
    /// DOUBLE.
    Float64,
    /// UTF-8.
    Text,
    /// A list of INT64; never null.
    Ints,
}

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct ColumnSchema {
    /// Its name, snake_case, the unit last.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Whether a row may have none.
    pub nullable: bool,
}

/// A table: its name and columns.
#[derive(Clone, Copy, Debug)]
pub struct TableSchema {
    /// Its name: the directory's.
    pub name: &'static str,
    /// Its columns in order.
    pub columns: &'static [ColumnSchema],
}

/// One value of a row.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(untagged)]
#[allow(missing_docs)] // As in [`Kind`].
pub enum Cell {
    Null,
    Bool(bool),
    Int(u64),
    Float32(f32),
    Float64(f64),
    Text(String),
    Ints(Vec<u64>),
}

impl Cell {
    /// `of` a value that may be missing.
    pub fn maybe<T>(value: Option<T>, of: impl FnOnce(T) -> Self) -> Self {
        value.map_or(Self::Null, of)
    }
}

/// A row: one cell a column.
pub type Row = Vec<Cell>;

impl TableSchema {
    fn parquet(&self) -> SchemaDescPtr {
        let column = |ColumnSchema { name, kind, nullable }: &ColumnSchema| {
            let repetition = if *nullable { Repetition::OPTIONAL } else { Repetition::REQUIRED };
            match kind {
                Kind::Bool => schema::primitive(name, Physical::BOOLEAN, repetition),
                Kind::Int => schema::primitive(name, Physical::INT64, repetition),
                Kind::Float32 => schema::primitive(name, Physical::FLOAT, repetition),
                Kind::Float64 => schema::primitive(name, Physical::DOUBLE, repetition),
                Kind::Text => schema::text(name, repetition),
                Kind::Ints => schema::list_i64(name),
            }
        };
        schema::of(self.columns.iter().map(column).collect())
    }
}

/// Writes `rows` of a table to `path`, a temporary place, and syncs it.
///
/// # Errors
///
/// [`SegmentError::Io`].
///
/// # Panics
///
/// If a row is not one of this table.
pub fn write(
    files: &dyn Files,
    path: &Path,
    table: &TableSchema,
    rows: &[Row],
) -> Result<(), SegmentError> {
    let mut draft = Draft::create(files, path, table.parquet())?;
    if !rows.is_empty() {
        for (at, column) in table.columns.iter().enumerate() {
            write_column(&mut draft, column, rows.iter().map(|row| &row[at]))?;
        }
    }
    draft.finish()
}

fn write_column<'a>(
    draft: &mut Draft,
    column: &ColumnSchema,
    cells: impl Iterator<Item = &'a Cell>,
) -> Result<(), SegmentError> {
    macro_rules! write {
        ($parquet:ty, $cell:ident, $of:expr) => {{
            let value = |cell: &Cell| match cell {
                Cell::$cell(value) => Some($of(value)),
                Cell::Null if column.nullable => None,
                other => panic!("column {}: {other:?} is no {:?}", column.name, column.kind),
            };
            flat::<$parquet>(draft, column.nullable, cells.map(value))
        }};
    }
    match column.kind {
        Kind::Bool => write!(BoolType, Bool, |v: &bool| *v),
        Kind::Int => write!(Int64Type, Int, |v: &u64| *v as i64), // Below 2^53, as records are.
        Kind::Float32 => write!(FloatType, Float32, |v: &f32| *v),
        Kind::Float64 => write!(DoubleType, Float64, |v: &f64| *v),
        Kind::Text => write!(ByteArrayType, Text, |v: &String| ByteArray::from(v.as_str())),
        Kind::Ints => {
            let list = |cell: &Cell| match cell {
                Cell::Ints(values) => values.iter().map(|&value| value as i64).collect(),
                other => panic!("column {}: {other:?} is no list", column.name),
            };
            let lists: Vec<Vec<i64>> = cells.map(list).collect();
            Values::<Int64Type>::lists(lists.iter().map(Vec::as_slice)).write(draft)
        }
    }
}

fn flat<T: DataType>(
    draft: &mut Draft,
    nullable: bool,
    values: impl Iterator<Item = Option<T::T>>,
) -> Result<(), SegmentError> {
    let values = match nullable {
        true => Values::<T>::optional(values),
        false => Values::<T>::required(values.flatten()),
    };
    values.write(draft)
}

/// Writes the rows of `sources`, files of the same table, to `path`, a temporary place, and syncs it.
///
/// # Errors
///
/// [`SegmentError`] if one does not read.
pub fn merge(
    files: &dyn Files,
    path: &Path,
    table: &TableSchema,
    sources: &[PathBuf],
) -> Result<(), SegmentError> {
    let mut draft = Draft::create(files, path, table.parquet())?;
    for source in sources {
        let segment = SegmentFile::open(files, source, table.parquet())?;
        draft.copy(&segment)?;
    }
    draft.finish()
}
