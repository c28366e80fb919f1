//! One thing to fetch, a tensor or a delta: its pieces, where they go, and where a mirror has them.

use std::{ops::Range, path::Path, sync::Arc};

use super::{error::SyncError, hold::Copy, mirror::Mirror, spool::Spool};
use crate::{
    codec::layout::{DeltaGroup, Layout, TensorLayout},
    store::{
        StoreError,
        artifacts::StoredCheckpoint,
        segment::{
            FixedColumn, LogicalBytes, SegmentError, VerifiedReader,
            delta::{self, DeltaSegments, DeltaWriter},
            place,
            tensor::{self, TensorSegment, TensorWriter},
        },
    },
    types::{
        digest::Digest,
        manifest::{Descriptor, ManifestId, PIECE_BYTES, piece_count},
    },
};

/// Bytes that are copied at once from a spool to a segment.
const CHUNK_BYTES: u64 = 1 << 20;

/// What is fetched as one.
#[derive(Clone, Debug)]
pub(super) enum What {
    Tensor(Descriptor),
    Delta(ManifestId),
}

impl What {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Tensor(tensor) => format!("tensor {}", tensor.name),
            Self::Delta(id) => format!("delta {}", id.root),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Tensor(tensor) => tensor.bytes,
            Self::Delta(id) => id.bytes,
        }
    }

    /// Its spool's name.
    fn key(&self) -> String {
        match self {
            Self::Tensor(tensor) => format!("{}-{}", tensor.root, tensor.dtype.name()),
            Self::Delta(id) => id.root.to_hex(),
        }
    }
}

/// One artifact of an item.
pub(super) struct Stream {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// Where it starts in the spool.
    pub(super) at: u64,
    /// The number of its first piece within the item.
    pub(super) first: u64,
    pub(super) digests: Arc<[Digest]>,
}

impl Stream {
    /// The bytes of the artifact that these pieces of the item are.
    pub(super) fn bytes_of(&self, pieces: &Range<u64>) -> Range<u64> {
        let byte = |piece: u64| ((piece - self.first) * PIECE_BYTES).min(self.bytes);
        byte(pieces.start)..byte(pieces.end)
    }

    fn pieces(&self) -> Range<u64> {
        self.first..self.first + piece_count(self.bytes)
    }
}

/// An item whose digests are known.
pub(super) struct Item {
    pub(super) what: What,
    /// In the order in which a segment has them: a delta's positions and codes, tensor by tensor.
    pub(super) streams: Vec<Stream>,
    pub(super) spool: Spool,
}

impl Item {
    /// A tensor of a state whose hashes the copy has, or a delta whose hashes it has.
    pub(super) fn open(
        copy: &Copy<'_>,
        what: What,
        state: &StoredCheckpoint,
        layout: &Layout,
    ) -> Result<Self, SyncError> {
        let mut streams = Vec::new();
        let mut push = |name: String, bytes: u64, digests: Vec<Digest>| {
            let (at, first) = streams
                .last()
                .map_or((0, 0), |last: &Stream| (last.at + last.bytes, last.pieces().end));
            streams.push(Stream { name, bytes, at, first, digests: digests.into() });
        };
        match &what {
            What::Tensor(tensor) => {
                let position = state.manifest().position(&tensor.group, &tensor.name);
                let position = position.expect("a tensor of this state");
                push(what.name(), tensor.bytes, state.digests(position)?);
            }
            What::Delta(id) => {
                let hashes = copy.hashes(*id)?;
                for tensor in &layout.tensors {
                    for group in [DeltaGroup::Index, DeltaGroup::Code] {
                        let name =
                            format!("{} of {} in {}", group.name(), tensor.name, what.name());
                        let position = hashes.manifest().position(group.name(), &tensor.name);
                        let position = position
                            .ok_or_else(|| StoreError::NoArtifact { what: name.clone() })?;
                        let bytes = hashes.manifest().descriptors()[position].bytes;
                        let digests = hashes.digests(position).map_err(StoreError::from)?;
                        push(name, bytes, digests);
                    }
                }
            }
        }
        let bytes = streams.last().map_or(0, |last| last.at + last.bytes);
        let path = copy.place.sync().join(what.key());
        let spool = Spool::open(&path, bytes).map_err(|source| SyncError::Io { path, source })?;
        Ok(Self { what, streams, spool })
    }

    /// Runs of pieces that are not here yet, each of about `run_bytes`, and their number.
    pub(super) fn missing(&self, run_bytes: u64) -> std::io::Result<(Vec<Range<u64>>, u64)> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let (mut filled, mut count) = (0, 0);
        for stream in &self.streams {
            let missing =
                self.spool.missing(stream.at..stream.at + stream.bytes, &stream.digests)?;
            for piece in missing {
                let piece = stream.first + piece;
                let bytes = stream.bytes_of(&(piece..piece + 1));
                let bytes = bytes.end - bytes.start;
                count += 1;
                match runs.last_mut() {
                    Some(run) if run.end == piece && filled + bytes <= run_bytes => {
                        run.end += 1;
                        filled += bytes;
                    }
                    _ => {
                        runs.push(piece..piece + 1);
                        filled = bytes;
                    }
                }
            }
        }
        Ok((runs, count))
    }

    /// The streams that have some of these pieces, with which.
    pub(super) fn parts(&self, pieces: &Range<u64>) -> impl Iterator<Item = (usize, Range<u64>)> {
        let first = self.streams.partition_point(|stream| stream.pieces().end <= pieces.start);
        let pieces = pieces.clone();
        (first..self.streams.len()).map_while(move |at| {
            let of = self.streams[at].pieces();
            let part = of.start.max(pieces.start)..of.end.min(pieces.end);
            (of.start < pieces.end).then_some((at, part))
        })
    }

    fn source(self: &Arc<Self>, stream: usize) -> Result<VerifiedReader, SegmentError> {
        let Stream { bytes, digests, .. } = &self.streams[stream];
        let source = Arc::new(Spooled { item: self.clone(), stream });
        VerifiedReader::new(source, digests.clone(), *bytes)
    }
}

/// The bytes of an artifact in its item's spool.
struct Spooled {
    item: Arc<Item>,
    stream: usize,
}

impl LogicalBytes for Spooled {
    fn len(&self) -> u64 {
        self.item.streams[self.stream].bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SegmentError> {
        let at = self.item.streams[self.stream].at + offset;
        self.item
            .spool
            .read(at, buffer)
            .map_err(|source| SegmentError::Io { path: self.item.what.name().into(), source })
    }
}

/// Where one mirror has an item.
pub(super) struct Source {
    /// One for each stream.
    pub(super) columns: Vec<FixedColumn>,
    /// A delta's books, in the order of the layout's tensors, checked.
    pub(super) books: Vec<Vec<u8>>,
}

impl Source {
    /// Asks `mirror` where it has `item`: footers and page indexes.
    pub(super) fn open(
        copy: &Copy<'_>,
        mirror: &Mirror,
        item: &Item,
        layout: &Layout,
    ) -> Result<Self, StoreError> {
        let (files, root) = (&*mirror.place.files, &mirror.place.root);
        match &item.what {
            What::Tensor(tensor) => {
                let segment = TensorSegment::open(files, root, &tensor.artifact(), tensor.dtype)?;
                Ok(Self { columns: vec![segment.into_column()], books: Vec::new() })
            }
            What::Delta(id) => {
                let segments = DeltaSegments::open(files, &place::delta(root, id.root))?;
                let (mut columns, mut books) = (Vec::new(), Vec::new());
                for (at, tensor) in layout.tensors.iter().enumerate() {
                    let pair =
                        [segments.index_column(&tensor.name)?, segments.code_column(&tensor.name)?];
                    for (stream, column) in item.streams[2 * at..].iter().zip(pair) {
                        if column.len() != stream.bytes {
                            let (path, expected) = (column.path().to_owned(), stream.bytes);
                            let found = column.len();
                            return Err(SegmentError::Length { path, expected, found }.into());
                        }
                        columns.push(column);
                    }
                    books.push(book(copy, *id, tensor, &segments)?);
                }
                Ok(Self { columns, books })
            }
        }
    }
}

/// The book of a tensor, compared with its digest.
fn book(
    copy: &Copy<'_>,
    id: ManifestId,
    tensor: &TensorLayout,
    segments: &DeltaSegments,
) -> Result<Vec<u8>, StoreError> {
    let what = || format!("book of {} in delta {}", tensor.name, id.root);
    let hashes = copy.hashes(id)?;
    let position = hashes.manifest().position(DeltaGroup::Book.name(), &tensor.name);
    let position = position.ok_or_else(|| StoreError::NoArtifact { what: what() })?;
    let bytes = hashes.manifest().descriptors()[position].bytes;
    let reader =
        VerifiedReader::new(segments.book(&tensor.name)?, hashes.digests(position)?, bytes);
    let mut book = Vec::new();
    reader?.read(bytes as usize, &mut book).map_err(|error| match error {
        SegmentError::Piece { piece, expected, found } => {
            StoreError::Piece { what: what(), piece, expected, found }
        }
        error => error.into(),
    })?;
    Ok(book)
}

/// All pieces are in the spool: makes segments of them, durably, and drops the spool.
pub(super) fn store(
    copy: &Copy<'_>,
    item: &Arc<Item>,
    books: &[Vec<u8>],
    layout: &Layout,
    bins: usize,
) -> Result<(), SyncError> {
    let tmp = copy.place.tmp().join(item.what.key());
    let stored = match &item.what {
        What::Tensor(tensor) => store_tensor(copy, item, tensor, &tmp),
        What::Delta(id) => store_delta(copy, item, *id, books, layout, bins, &tmp),
    };
    let spool = |source| SyncError::Store { what: item.what.name(), source };
    stored.map_err(|error| spool(error.into()))?;
    item.spool.remove().map_err(|source| SyncError::Io { path: copy.place.sync(), source })
}

fn store_tensor(
    copy: &Copy<'_>,
    item: &Arc<Item>,
    tensor: &Descriptor,
    tmp: &Path,
) -> Result<(), SegmentError> {
    let (files, root) = (&*copy.place.files, &copy.place.root);
    let spec = tensor.spec().expect("a descriptor out of a manifest has a spec");
    let mut writer = TensorWriter::create(files, tmp, &spec)?;
    each_chunk(item, 0, |bytes| writer.write(bytes))?;
    writer.finish()?;
    tensor::commit(files, root, tmp, &tensor.artifact(), tensor.dtype).map(drop)
}

fn store_delta(
    copy: &Copy<'_>,
    item: &Arc<Item>,
    id: ManifestId,
    books: &[Vec<u8>],
    layout: &Layout,
    bins: usize,
    tmp: &Path,
) -> Result<(), SegmentError> {
    let (files, root) = (&*copy.place.files, &copy.place.root);
    let mut writer = DeltaWriter::create(files, tmp, bins)?;
    for (at, tensor) in layout.tensors.iter().enumerate() {
        let mut rows = writer.tensor(&tensor.name, tensor.k, tensor.grid.blocks())?;
        each_chunk(item, 2 * at, |bytes| rows.write_index(bytes))?;
        each_chunk(item, 2 * at + 1, |bytes| rows.write_code(bytes))?;
        rows.finish()?;
        writer.book(&tensor.name, &books[at])?;
    }
    writer.finish()?;
    delta::commit(files, root, tmp, id.root).map(drop)
}

/// Hands out the bytes of a stream in order, each piece compared with its digest once more.
fn each_chunk(
    item: &Arc<Item>,
    stream: usize,
    mut take: impl FnMut(&[u8]) -> Result<(), SegmentError>,
) -> Result<(), SegmentError> {
    let mut reader = item.source(stream)?;
    let mut buffer = Vec::new();
    while reader.position() < reader.len() {
        let now = CHUNK_BYTES.min(reader.len() - reader.position());
        buffer.resize(now as usize, 0);
        reader.read_exact(&mut buffer)?;
        take(&buffer)?;
    }
    Ok(())
}
