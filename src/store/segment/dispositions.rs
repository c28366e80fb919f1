//! What came of each submission of a round, as a table to query, and beside it the hashed entries.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use parquet::{
    basic::Repetition,
    data_type::{ByteArray, ByteArrayType, Int64Type},
    schema::types::SchemaDescPtr,
};

use super::{
    column, draft::Draft, error::SegmentError, footer::SegmentFile, place, plan::miner_text, schema,
};
use crate::{
    store::files::{Files, read_whole},
    types::{
        json,
        record::{Disposition, DispositionsId, Verdict},
        refusal::Refusal,
    },
};

/// Largest file that is read: a million submissions of a round.
const FILE_BYTES_MAX: u64 = 512 << 20;

/// Which column holds the entries: the only one that is read back.
const ENTRY: usize = 8;

fn columns() -> SchemaDescPtr {
    let optional_text = |name| schema::text(name, Repetition::OPTIONAL);
    schema::of(vec![
        schema::optional_i64("index"),
        schema::text("miner", Repetition::REQUIRED),
        schema::text("verdict", Repetition::REQUIRED),
        schema::optional_i64("order"),
        optional_text("code"),
        optional_text("tensor"),
        optional_text("expected"),
        optional_text("found"),
        schema::text("entry", Repetition::REQUIRED),
    ])
}

/// Writes the dispositions of a round to `path`, a temporary place, and syncs it.
///
/// # Errors
///
/// [`SegmentError::Io`].
pub fn write(
    files: &dyn Files,
    path: &Path,
    dispositions: &[Disposition],
) -> Result<(), SegmentError> {
    let mut draft = Draft::create(files, path, columns())?;
    if !dispositions.is_empty() {
        write_rows(&mut draft, dispositions)?;
    }
    draft.finish()
}

fn write_rows(draft: &mut Draft, rows: &[Disposition]) -> Result<(), SegmentError> {
    let text = |text: &str| ByteArray::from(text);
    let refusal = |field: fn(&Refusal) -> Option<&str>| {
        rows.iter().map(move |row| refused(row).and_then(field).map(text))
    };
    optional::<Int64Type>(draft, rows.iter().map(|row| row.index.map(|index| index as i64)))?;
    required(draft, rows.iter().map(|row| miner_text(&row.miner)))?;
    required(draft, rows.iter().map(|row| text(verdict(row))))?;
    optional::<Int64Type>(draft, rows.iter().map(order))?;
    optional::<ByteArrayType>(draft, refusal(|refusal| Some(refusal.code.as_str())))?;
    optional::<ByteArrayType>(draft, refusal(|refusal| refusal.tensor.as_deref()))?;
    optional::<ByteArrayType>(draft, refusal(|refusal| Some(&refusal.expected)))?;
    optional::<ByteArrayType>(draft, refusal(|refusal| Some(&refusal.found)))?;
    required(draft, rows.iter().map(|row| ByteArray::from(json::to_vec(row))))
}

fn required(
    draft: &mut Draft,
    values: impl Iterator<Item = ByteArray>,
) -> Result<(), SegmentError> {
    draft.column::<ByteArrayType>(&values.collect::<Vec<_>>(), None, None)
}

fn optional<T: parquet::data_type::DataType>(
    draft: &mut Draft,
    values: impl Iterator<Item = Option<T::T>>,
) -> Result<(), SegmentError> {
    let values: Vec<Option<T::T>> = values.collect();
    let definition: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
    let values: Vec<T::T> = values.into_iter().flatten().collect();
    draft.column::<T>(&values, Some(&definition), None)
}

fn verdict(row: &Disposition) -> &'static str {
    match row.verdict {
        Verdict::Accepted { .. } => "accepted",
        Verdict::Rejected(_) => "rejected",
        Verdict::Absent => "absent",
    }
}

fn order(row: &Disposition) -> Option<i64> {
    match row.verdict {
        Verdict::Accepted { order } => Some(order as i64),
        Verdict::Rejected(_) | Verdict::Absent => None,
    }
}

fn refused(row: &Disposition) -> Option<&Refusal> {
    match &row.verdict {
        Verdict::Rejected(refusal) => Some(refusal),
        Verdict::Accepted { .. } | Verdict::Absent => None,
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
    id: &DispositionsId,
) -> Result<PathBuf, SegmentError> {
    let to = place::dispositions(ledger, id);
    place::commit_file(files, ledger, from, &to).map_err(SegmentError::io(&to))?;
    Ok(to)
}

/// The entries as they are hashed, in order; their number is checked, their root is not.
///
/// # Errors
///
/// [`SegmentError`] names what does not fit.
pub fn read_entries(
    files: &dyn Files,
    ledger: &Path,
    id: &DispositionsId,
) -> Result<Vec<Bytes>, SegmentError> {
    let path = place::dispositions(ledger, id);
    let segment = SegmentFile::open(files, &path, columns())?;
    let whole = read_whole(files, &path, FILE_BYTES_MAX).map_err(SegmentError::io(&path))?;
    let entries = column::text(&segment, &Bytes::from(whole), ENTRY)?;
    if entries.len() as u64 != id.count {
        let (expected, found) = (id.count, entries.len() as u64);
        return Err(SegmentError::Entries { path, expected, found });
    }
    Ok(entries)
}
