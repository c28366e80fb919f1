//! What came of each submission of a round, as a table to query, and beside it the hashed entries.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use parquet::{
    basic::Repetition,
    data_type::{ByteArray, ByteArrayType},
    schema::types::SchemaDescPtr,
};

use super::{
    column,
    draft::Draft,
    error::SegmentError,
    footer::SegmentFile,
    place,
    plan::miner_text,
    schema,
    table::{self, Column, Values, text},
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

/// Which column holds the entries: the only one that is read back to go on with.
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
    query_columns(rows).iter().try_for_each(|column| column.write(draft))?;
    let entries: Vec<_> = rows.iter().map(|row| ByteArray::from(json::to_vec(row))).collect();
    draft.column::<ByteArrayType>(&entries, None, None)
}

/// The columns before the entries.
fn query_columns(rows: &[Disposition]) -> [Column; 8] {
    let refusal = |field: fn(&Refusal) -> Option<&str>| {
        let values = rows.iter().map(move |row| refused(row).and_then(field).map(text));
        Column::Text(Values::optional(values))
    };
    let index = rows.iter().map(|row| row.index.map(|index| index as i64));
    [
        Column::I64(Values::optional(index)),
        Column::Text(Values::required(rows.iter().map(|row| miner_text(&row.miner)))),
        Column::Text(Values::required(rows.iter().map(|row| text(verdict(row))))),
        Column::I64(Values::optional(rows.iter().map(order))),
        refusal(|refusal| Some(refusal.code.as_str())),
        refusal(|refusal| refusal.tensor.as_deref()),
        refusal(|refusal| Some(&refusal.expected)),
        refusal(|refusal| Some(&refusal.found)),
    ]
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
    let (segment, whole) = open(files, &path)?;
    let entries = column::text(&segment, &whole, ENTRY)?;
    if entries.len() as u64 != id.count {
        let (expected, found) = (id.count, entries.len() as u64);
        return Err(SegmentError::Entries { path, expected, found });
    }
    Ok(entries)
}

/// Compares the columns beside the entries with `dispositions`, which are the entries'.
///
/// # Errors
///
/// [`SegmentError::Column`] names the first that differs.
pub fn check_columns(
    files: &dyn Files,
    ledger: &Path,
    id: &DispositionsId,
    dispositions: &[Disposition],
) -> Result<(), SegmentError> {
    let (segment, whole) = open(files, &place::dispositions(ledger, id))?;
    table::check(&segment, &whole, &query_columns(dispositions), dispositions.len())
}

fn open(files: &dyn Files, path: &Path) -> Result<(SegmentFile, Bytes), SegmentError> {
    let segment = SegmentFile::open(files, path, columns())?;
    let whole = read_whole(files, path, FILE_BYTES_MAX).map_err(SegmentError::io(path))?;
    Ok((segment, Bytes::from(whole)))
}
