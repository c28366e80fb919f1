//! Admission of our own form of a delta: a directory of delta segments, as a miner's tools write it, or
//! the same bytes as they were uploaded.
//!
//! What does not have the model's shape cannot be what a miner signed, and is answered with its
//! code. What has the shape is stored whatever its values, so that the statement about it can stand
//! in the log with the reason why it does not count.

use std::{path::Path, sync::Arc};

use gradledger_kernels::codes;

use crate::{
    codec::{
        book::Book,
        layout::{DeltaGroup, TensorLayout},
    },
    merkle::pieces::{PieceHasher, Pieces},
    store::{
        StoreError,
        files::{Disk, Files},
        place::Place,
        segment::{
            LogicalBytes, SegmentError,
            delta::{DeltaSegments, DeltaTensor, DeltaWriter},
        },
    },
    types::{
        manifest::ManifestId,
        refusal::{Code, Refusal},
    },
};

use super::admit::{Expected, Faults, Stored, book_refusal, index_fault, small};

/// Bytes of rows that are handled at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// What became of a directory of segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NativeAdmission {
    /// It is stored; `refused` says what is wrong with its values, if anything is.
    Stored {
        /// What it is.
        delta: ManifestId,
        /// Why it does not count.
        refused: Option<Refusal>,
    },
    /// It does not have the model's shape, and nothing is stored.
    Malformed(Refusal),
}

/// Checks the delta segments in `dir` against the model and stores them.
///
/// `scratch` names a directory below `tmp/` that no other call uses at the same time.
///
/// # Errors
///
/// [`StoreError`] if the ledger's disk fails; what is wrong with the miner's files is an answer.
pub fn admit_segments(
    dir: &Path,
    expected: Expected<'_>,
    place: &Place,
    scratch: &str,
) -> Result<NativeAdmission, StoreError> {
    admit_segments_in(&Disk, dir, expected, place, scratch)
}

/// As [`admit_segments`], of a directory behind another door.
///
/// # Errors
///
/// As [`admit_segments`], and if the door leads to a server that does not answer.
pub fn admit_segments_in(
    files: &dyn Files,
    dir: &Path,
    expected: Expected<'_>,
    place: &Place,
    scratch: &str,
) -> Result<NativeAdmission, StoreError> {
    match open_parts(files, dir, expected)? {
        Ok(parts) => admit_parts(&parts, expected, None, place, scratch),
        Err(fault) => Ok(NativeAdmission::Malformed(fault)),
    }
}

/// Checks the artifacts of an upload against the model and stores them, if they are `delta`'s.
///
/// `open` gives an artifact by its position in the delta's manifest, as long as the model asks.
/// `scratch` as for [`admit_segments`].
///
/// # Errors
///
/// As [`admit_segments`].
pub fn admit_upload(
    open: impl Fn(usize) -> Arc<dyn LogicalBytes>,
    delta: ManifestId,
    expected: Expected<'_>,
    place: &Place,
    scratch: &str,
) -> Result<NativeAdmission, StoreError> {
    let count = expected.layout.tensors.len();
    let part = |(at, tensor)| {
        // Manifest order is by group, then by name.
        let artifacts = DeltaGroup::ALL.map(|group| open(group as usize * count + at));
        Part { tensor, artifacts }
    };
    let parts: Vec<_> = expected.layout.tensors.iter().enumerate().map(part).collect();
    admit_parts(&parts, expected, Some(delta), place, scratch)
}

fn admit_parts(
    parts: &[Part<'_>],
    expected: Expected<'_>,
    wanted: Option<ManifestId>,
    place: &Place,
    scratch: &str,
) -> Result<NativeAdmission, StoreError> {
    let tmp = place.tmp().join(scratch);
    let mut stored = Stored { dir: tmp.clone(), pieces: Vec::with_capacity(parts.len()) };
    let mut faults = Faults::default();
    let bins = 1 << expected.rule.code_bits();
    let mut writer = DeltaWriter::create(&*place.files, &tmp, bins)?;
    for part in parts {
        match copy_tensor(part, expected, &mut writer, &mut faults)? {
            Ok(pieces) => stored.pieces.push(pieces),
            Err(fault) => {
                drop(writer);
                stored.abandon(place)?;
                return Ok(NativeAdmission::Malformed(fault));
            }
        }
    }
    writer.finish()?;
    let found = stored.id(expected.layout);
    if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
        stored.abandon(place)?;
        let (want, found) = (wanted.root.to_hex(), found.root.to_hex());
        return Ok(NativeAdmission::Malformed(Refusal::new(Code::Truncated, None, want, found)));
    }
    let delta = stored.commit(place, expected.layout)?;
    Ok(NativeAdmission::Stored { delta, refused: faults.first() })
}

/// One tensor of a miner's segments, its three artifacts of the right length.
struct Part<'a> {
    tensor: &'a TensorLayout,
    /// Book, code, index: the order of [`DeltaGroup::ALL`].
    artifacts: [Arc<dyn LogicalBytes>; 3],
}

/// The parts; the inner error is the miner's, the outer one says that nobody can tell.
fn open_parts<'a>(
    files: &dyn Files,
    dir: &Path,
    expected: Expected<'a>,
) -> Result<Result<Vec<Part<'a>>, Refusal>, StoreError> {
    match DeltaSegments::open(files, dir) {
        Ok(segments) => parts_of(&segments, expected),
        Err(error) if error.is_unanswered() => Err(error.into()),
        Err(error) => {
            let want = "delta segments that can be read";
            Ok(Err(Refusal::new(Code::Truncated, None, want, error.to_string())))
        }
    }
}

fn parts_of<'a>(
    segments: &DeltaSegments,
    expected: Expected<'a>,
) -> Result<Result<Vec<Part<'a>>, Refusal>, StoreError> {
    if let Some(name) = segments.tensors().find(|name| expected.layout.find(name).is_none()) {
        let want = "a tensor that the rule folds";
        return Ok(Err(Refusal::new(Code::UnknownTensor, Some(name), want, "another one")));
    }
    let mut parts = Vec::with_capacity(expected.layout.tensors.len());
    for tensor in &expected.layout.tensors {
        let name = tensor.name.as_str();
        let missing = || {
            let want = "index, code and book";
            Ok(Err(Refusal::new(Code::MissingTensor, Some(name), want, "not all of them")))
        };
        let Ok(found) = segments.layout(name) else { return missing() };
        if found.k != tensor.k {
            let (want, found) = (tensor.k.to_string(), found.k.to_string());
            return Ok(Err(Refusal::new(Code::WrongTopK, Some(name), want, found)));
        }
        let open = || -> Result<_, SegmentError> {
            let (book, code) = (segments.book(name)?, segments.code(name)?);
            Ok([book, code, segments.index(name)?])
        };
        let artifacts = match open() {
            Ok(artifacts) => artifacts,
            Err(error) if SegmentError::is_unanswered(&error) => return Err(error.into()),
            Err(_) => return missing(),
        };
        for (group, artifact) in DeltaGroup::ALL.into_iter().zip(&artifacts) {
            let want = tensor.artifact(group).map_or(0, |spec| spec.bytes());
            if artifact.len() != want {
                let want = format!("{} of {want} bytes", group.name());
                let found = format!("{} bytes", artifact.len());
                return Ok(Err(Refusal::new(Code::WrongShape, Some(name), want, found)));
            }
        }
        parts.push(Part { tensor, artifacts });
    }
    Ok(Ok(parts))
}

/// Copies, hashes and checks one tensor; the inner error is the miner's, the outer one ours.
fn copy_tensor(
    part: &Part<'_>,
    expected: Expected<'_>,
    writer: &mut DeltaWriter<'_>,
    faults: &mut Faults,
) -> Result<Result<[Pieces; 3], Refusal>, StoreError> {
    let Part { tensor, artifacts: [book, code, index] } = part;
    let mut values = vec![0; small(book.len())];
    if let Err(error) = book.read_at(0, &mut values) {
        return lost(tensor, error).map(Err);
    }
    if let Err(error) = Book::from_bytes(&values).check(expected.rule.dialect) {
        faults.note(book_refusal(&tensor.name, &error));
    }
    let mut rows = writer.tensor(&tensor.name, tensor.k, tensor.grid.blocks())?;
    let index_block = tensor.index_bytes_per_block();
    let indices = copy(tensor, &**index, index_block, &mut rows, |rows, blocks, first| {
        if let Some(fault) = index_fault(tensor, blocks, first) {
            faults.note(fault);
        }
        rows.write_index(blocks)
    })?;
    let code_block = tensor.code_bytes_per_block();
    let codes = copy(tensor, &**code, code_block, &mut rows, |rows, blocks, first| {
        if let Err(error) = codes::check_padding(blocks, small(tensor.k), tensor.code_bits) {
            let found = format!("{error} (blocks from {first} on)");
            faults.note(Refusal::new(
                Code::CodeOutOfRange,
                Some(&tensor.name),
                "zero padding",
                found,
            ));
        }
        rows.write_code(blocks)
    })?;
    let (index, code) = match (indices, codes) {
        (Ok(index), Ok(code)) => (index, code),
        (Err(fault), _) | (_, Err(fault)) => return Ok(Err(fault)),
    };
    rows.finish()?;
    writer.book(&tensor.name, &values)?;
    Ok(Ok([Pieces::of(&values), code, index]))
}

/// Streams whole blocks of `source` through `take`, and hashes them.
fn copy(
    tensor: &TensorLayout,
    source: &dyn LogicalBytes,
    block_bytes: u64,
    rows: &mut DeltaTensor<'_>,
    mut take: impl FnMut(&mut DeltaTensor<'_>, &[u8], u64) -> Result<(), SegmentError>,
) -> Result<Result<Pieces, Refusal>, StoreError> {
    let mut hasher = PieceHasher::new();
    let mut buffer = Vec::new();
    let chunk = (CHUNK_BYTES / block_bytes).max(1) * block_bytes;
    let mut at = 0;
    while at < source.len() {
        let now = chunk.min(source.len() - at);
        buffer.resize(small(now), 0);
        if let Err(error) = source.read_at(at, &mut buffer) {
            return lost(tensor, error).map(Err);
        }
        hasher.update(&buffer);
        take(rows, &buffer, at / block_bytes)?;
        at += now;
    }
    Ok(Ok(hasher.finish()))
}

/// A miner's file that stopped being readable; an error if it is a server that stopped answering.
fn lost(tensor: &TensorLayout, error: SegmentError) -> Result<Refusal, StoreError> {
    if error.is_unanswered() {
        return Err(error.into());
    }
    let want = "delta segments that can be read";
    Ok(Refusal::new(Code::Truncated, Some(&tensor.name), want, error.to_string()))
}
