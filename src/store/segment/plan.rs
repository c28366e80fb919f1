//! The plan of a round as a table to query, and beside it the rows as they are hashed.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use parquet::{
    basic::{Repetition, Type as Physical},
    data_type::ByteArray,
    schema::types::SchemaDescPtr,
};

use super::{
    LogicalBytes,
    column::FixedColumn,
    draft::{Chunk, Draft},
    error::SegmentError,
    footer::SegmentFile,
    place, schema,
    table::{self, Column, Values, text},
};
use crate::{
    store::files::{Files, read_whole},
    types::{
        manifest::ArtifactId,
        plan::{NAN_F32, NAN_F64, Plan, PlanRow},
        submission::Miner,
    },
};

const PAGE_BYTES_MAX: usize = 1 << 20;

/// Largest file whose columns are compared: a hundred times the plan of a 72B model.
const FILE_BYTES_MAX: u64 = 512 << 20;

/// Which column holds the rows' logical bytes: the only one that is read back to go on with.
const ROW: usize = 6;

fn columns(bins: usize) -> SchemaDescPtr {
    schema::of(vec![
        schema::text("tensor", Repetition::REQUIRED),
        schema::text("miner", Repetition::REQUIRED),
        schema::plain("norm", Physical::DOUBLE),
        schema::plain("factor", Physical::FLOAT),
        schema::plain("flags", Physical::INT32),
        schema::list_i64("counts"),
        schema::fixed("row", Plan::row_bytes(bins)),
    ])
}

/// Writes `plan` to `path`, a temporary place, and syncs it.
///
/// `tensors` are those that the rule takes, in manifest order, `miners` in ledger order.
///
/// # Errors
///
/// [`SegmentError::PlanRows`] if the plan is of others; [`SegmentError::Io`].
pub fn write(
    files: &dyn Files,
    path: &Path,
    plan: &Plan,
    tensors: &[&str],
    miners: &[Miner],
) -> Result<(), SegmentError> {
    let found = plan.rows.len();
    if miners.len() != plan.miners || found != tensors.len() * miners.len() {
        return Err(SegmentError::PlanRows { tensors: tensors.len(), miners: miners.len(), found });
    }
    let mut draft = Draft::create(files, path, columns(plan.bins))?;
    if !plan.rows.is_empty() {
        write_rows(&mut draft, plan, tensors, miners)?;
    }
    draft.finish()
}

fn write_rows(
    draft: &mut Draft,
    plan: &Plan,
    tensors: &[&str],
    miners: &[Miner],
) -> Result<(), SegmentError> {
    query_columns(plan, tensors, miners).iter().try_for_each(|column| column.write(draft))?;
    let mut rows = Chunk::new(Plan::row_bytes(plan.bins), PAGE_BYTES_MAX);
    rows.write(draft, &plan.to_bytes())?;
    rows.finish(draft)
}

/// The columns before the rows' bytes.
fn query_columns(plan: &Plan, tensors: &[&str], miners: &[Miner]) -> [Column; 6] {
    let rows = &plan.rows;
    let names = tensors.iter().flat_map(|name| std::iter::repeat_n(text(name), miners.len()));
    let miners = miners.iter().map(miner_text).cycle().take(rows.len());
    let counts: Vec<Vec<i64>> =
        rows.iter().map(|row| row.counts.iter().map(|&count| count as i64).collect()).collect();
    [
        Column::Text(Values::required(names)),
        Column::Text(Values::required(miners)),
        Column::F64(Values::required(rows.iter().map(norm))),
        Column::F32(Values::required(rows.iter().map(factor))),
        Column::I32(Values::required(vec![0; rows.len()])),
        Column::I64(Values::lists(counts.iter().map(Vec::as_slice))),
    ]
}

/// As it is hashed: one NaN.
fn norm(row: &PlanRow) -> f64 {
    if row.norm.is_nan() { f64::from_bits(NAN_F64) } else { row.norm }
}

fn factor(row: &PlanRow) -> f32 {
    if row.factor.is_nan() { f32::from_bits(NAN_F32) } else { row.factor }
}

/// A miner in a table: the uid's digits, or the hotkey's 64 hex digits.
pub(super) fn miner_text(miner: &Miner) -> ByteArray {
    let text = match miner {
        Miner::Uid(uid) => uid.to_string(),
        Miner::Hotkey(key) => key.to_hex(),
    };
    ByteArray::from(text.into_bytes())
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
) -> Result<PathBuf, SegmentError> {
    let to = place::plan(ledger, artifact);
    place::commit_file(files, ledger, from, &to).map_err(SegmentError::io(&to))?;
    Ok(to)
}

/// Opens the logical bytes of a plan below `ledger`; their length is checked, their root is not.
///
/// # Errors
///
/// [`SegmentError`] names what does not fit.
pub fn open(
    files: &dyn Files,
    ledger: &Path,
    artifact: &ArtifactId,
    bins: usize,
) -> Result<FixedColumn, SegmentError> {
    let segment = SegmentFile::open(files, &place::plan(ledger, artifact), columns(bins))?;
    let rows = FixedColumn::open(&segment, 0..segment.row_groups(), ROW, Plan::row_bytes(bins))?;
    rows.of_length(artifact.bytes)
}

/// Reads the plan of `tensors` tensors and `miners` miners; its root is not checked.
///
/// # Errors
///
/// [`SegmentError`] names what does not fit.
pub fn read(
    files: &dyn Files,
    ledger: &Path,
    artifact: &ArtifactId,
    tensors: usize,
    miners: usize,
    bins: usize,
) -> Result<Plan, SegmentError> {
    let rows = open(files, ledger, artifact, bins)?;
    let path = place::plan(ledger, artifact);
    // No longer than the file: pages share no bytes.
    let mut bytes = vec![0; rows.len() as usize];
    rows.read_at(0, &mut bytes)?;
    Plan::from_bytes(&bytes, tensors, miners, bins)
        .map_err(|source| SegmentError::Plan { path, source })
}

/// Compares the columns beside the rows' bytes with `plan`, which is theirs.
///
/// # Errors
///
/// [`SegmentError::Column`] names the first that differs.
pub fn check_columns(
    files: &dyn Files,
    ledger: &Path,
    artifact: &ArtifactId,
    plan: &Plan,
    tensors: &[&str],
    miners: &[Miner],
) -> Result<(), SegmentError> {
    let path = place::plan(ledger, artifact);
    let segment = SegmentFile::open(files, &path, columns(plan.bins))?;
    let whole = read_whole(files, &path, FILE_BYTES_MAX).map_err(SegmentError::io(&path))?;
    let expected = query_columns(plan, tensors, miners);
    table::check(&segment, &Bytes::from(whole), &expected, plan.rows.len())
}
