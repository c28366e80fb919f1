//! PyTorch's distributed checkpoint (DCP): a folder with `.metadata` and files of chunks.
//!
//! `checkpoint` opens folders here. `.metadata` is a pickle that says, per tensor, its dtype, its shape and how
//! it is cut into chunks, and per chunk where in which `.distcp` file it lies; each chunk is an archive
//! of `torch.save` of its own, inside that file. Templar, prime and OpenDiLoCo keep their states so.
//!
//! The chunks of a tensor have to form a grid (each dimension cut at the same places everywhere), as
//! FSDP, tensor parallelism and both together write them. Then they tile the tensor exactly if
//! their number is that of the grid's cells, and the chunk of an element is found by bisection.
//!
//! Trust: none. Memory is bounded by [`Limits::METADATA`] and, on reading, by the caller's buffer. A
//! chunk's own archive is opened when it is first read and must hold the tensor that was announced.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use super::{
    pickle::{Global, Limits, Pickle, PickleError, Value},
    source::{FileSource, Source, Window},
    torch::{TorchArchive, TorchError, dtype_of},
};
use crate::types::tensor::{Dtype, RANK_MAX, TensorError, TensorSpec};

const METADATA: &str = "torch.distributed.checkpoint.metadata";
const SIZE: Global = ("torch", "Size");
const TENSOR: Global = (METADATA, "TensorStorageMetadata");
const STORAGE_INFO: Global = ("torch.distributed.checkpoint.filesystem", "_StorageInfo");
const LAYOUT: Global = ("torch.serialization", "_get_layout");

/// The globals that `.metadata` may name.
pub const GLOBALS: &[Global] = &[
    (METADATA, "Metadata"),
    TENSOR,
    (METADATA, "TensorProperties"),
    (METADATA, "_MEM_FORMAT_ENCODING"),
    (METADATA, "ChunkStorageMetadata"),
    (METADATA, "BytesStorageMetadata"),
    (METADATA, "MetadataIndex"),
    (METADATA, "StorageMeta"),
    STORAGE_INFO,
    LAYOUT,
    SIZE,
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib._local", "PosixPath"),
    ("torch", "bool"),
    ("torch", "uint8"),
    ("torch", "int8"),
    ("torch", "float8_e4m3fn"),
    ("torch", "float8_e5m2"),
    ("torch", "uint16"),
    ("torch", "int16"),
    ("torch", "float16"),
    ("torch", "bfloat16"),
    ("torch", "uint32"),
    ("torch", "int32"),
    ("torch", "float32"),
    ("torch", "uint64"),
    ("torch", "int64"),
    ("torch", "float64"),
    ("torch", "complex64"),
    ("torch", "complex128"),
];

/// The file that describes a checkpoint.
pub const METADATA_FILE: &str = ".metadata";

/// Prefixes that hold the model where nothing else is asked for: Templar's, then torchtitan's and others'.
pub const MODEL_PREFIXES: [&str; 2] = ["app.", "model."];

/// Most files of a checkpoint.
pub const FILES_MAX: usize = 4096;

/// Longest name of a file in bytes.
const FILE_NAME_BYTES_MAX: usize = 255;

/// Why a checkpoint is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum DcpError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(".metadata: {0}")]
    Pickle(#[from] PickleError),
    #[error(".metadata: {what} is {found}, not {expected}")]
    Layout { what: &'static str, expected: &'static str, found: &'static str },
    #[error(".metadata: {what} of {name:?} stands twice")]
    Twice { what: &'static str, name: String },
    #[error("the file name {name:?} is not a plain name within the checkpoint's folder")]
    FileName { name: String },
    #[error("the checkpoint has more than {FILES_MAX} files")]
    Files,
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error("tensor {name:?} is of the dtype {found}, which is not read")]
    Dtype { name: String, found: String },
    #[error("tensor {name:?} is stored as {found}, not strided")]
    Sparse { name: String, found: String },
    #[error("tensor {name:?} has rank {rank}; a chunk of it has {found}")]
    ChunkRank { name: String, rank: usize, found: usize },
    #[error(
        "tensor {name:?} of shape {shape:?} has a chunk at {offsets:?} of {sizes:?}, outside of it"
    )]
    ChunkOutside { name: String, shape: Vec<u64>, offsets: Vec<u64>, sizes: Vec<u64> },
    #[error("tensor {name:?}: dimension {dimension} has a gap or an overlap from {from} to {to}")]
    Cut { name: String, dimension: usize, from: u64, to: u64 },
    #[error("tensor {name:?} is cut into a grid of {cells} cells, but has {chunks} chunks")]
    Tiles { name: String, cells: u64, chunks: u64 },
    #[error("with tensor {name:?} the tensors have more chunks than the {stored} that are stored")]
    Chunks { name: String, stored: usize },
    #[error("tensor {name:?}: the chunk at {offsets:?} overlaps another")]
    Overlap { name: String, offsets: Vec<u64> },
    #[error("tensor {name:?}: .metadata does not say where the chunk at {offsets:?} is stored")]
    NotStored { name: String, offsets: Vec<u64> },
    #[error("tensor {name:?}: a chunk is stored with the transform {found:?}; none is read")]
    Transformed { name: String, found: String },
    #[error("tensor {name:?}: a chunk takes bytes {start} to {end} of {file:?}, which has {len}")]
    OutsideFile { name: String, file: String, start: u64, end: u64, len: u64 },
    #[error(
        "tensor {name:?}: a chunk takes bytes of {file:?} from {start} on that another takes, too"
    )]
    Shared { name: String, file: String, start: u64 },
    #[error("tensor {name:?}, chunk at {offsets:?}: {source}")]
    Chunk { name: String, offsets: Vec<u64>, source: TorchError },
    #[error("tensor {name:?}, chunk at {offsets:?}: it holds {found}, not {expected}")]
    Other { name: String, offsets: Vec<u64>, expected: String, found: String },
    #[error("no tensor lies below the prefix {prefix:?}; there is, for example, {example:?}")]
    Nothing { prefix: String, example: String },
    #[error("bytes {offset} to {end} of tensor {name:?} of {len}")]
    Range { name: String, offset: u64, end: u64, len: u64 },
}

/// Where one chunk of a tensor, or one thing that is no tensor, is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The file's name within the folder.
    pub file: Arc<str>,
    /// Where its archive starts in the file, in bytes.
    pub start: u64,
    /// The archive's length in bytes.
    pub bytes: u64,
}

/// A part of a tensor: a box, stored as one archive.
pub struct Chunk {
    offsets: Vec<u64>,
    sizes: Vec<u64>,
    stored: Stored,
    /// Where its elements start in the file, once its archive was opened.
    data: OnceLock<u64>,
}

impl Chunk {
    /// Its first element within the tensor, per dimension.
    pub fn offsets(&self) -> &[u64] {
        &self.offsets
    }

    /// Its extent per dimension.
    pub fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// Where it is stored.
    pub fn stored(&self) -> &Stored {
        &self.stored
    }
}

/// A tensor whose chunks are known to tile it.
pub struct DcpTensor {
    spec: TensorSpec,
    /// Per dimension, where a chunk starts, ascending from 0. Chunks are in row-major order of the grid.
    cuts: Vec<Vec<u64>>,
    chunks: Vec<Chunk>,
}

impl DcpTensor {
    /// Its name without the prefix, its dtype and shape.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// Its chunks, row-major over their grid; none for a tensor without elements.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }
}

/// A checkpoint whose description was read and checked.
pub struct DcpCheckpoint {
    tensors: Vec<DcpTensor>,
    left_out: Vec<String>,
    files: BTreeMap<Arc<str>, Arc<dyn Source>>,
}

impl DcpCheckpoint {
    /// Reads `.metadata` and checks the tensors below a prefix, which is dropped from their names.
    ///
    /// `select` names the prefix, with or without its last dot; `Some("")` takes everything. Without
    /// it, the first of [`MODEL_PREFIXES`] that some tensor has is taken, else everything.
    ///
    /// # Errors
    ///
    /// [`DcpError`] names the tensor and the first thing that is refused.
    pub fn open(folder: &Path, select: Option<&str>) -> Result<Self, DcpError> {
        let path = folder.join(METADATA_FILE);
        let bytes = read_metadata(&path).map_err(|source| DcpError::Io { path, source })?;
        let pickle = Pickle::read(bytes, GLOBALS, Limits::METADATA)?;
        let mut metadata = Metadata::read(&pickle)?;
        let entries = std::mem::take(&mut metadata.entries);
        let prefix = choose_prefix(&pickle, &entries, select);
        let mut made = Self { tensors: Vec::new(), left_out: Vec::new(), files: BTreeMap::new() };
        for (&name, &value) in &entries {
            match name.strip_prefix(&prefix).filter(|_| is_tensor(&pickle, value)) {
                Some(short) => {
                    let tensor = metadata.tensor(name, short, value)?;
                    made.check_files(folder, &tensor)?;
                    made.tensors.push(tensor);
                }
                None => made.left_out.push(name.to_owned()),
            }
        }
        check_disjoint(&made.tensors)?;
        if made.tensors.is_empty() {
            let example = made.left_out.first().cloned().unwrap_or_default();
            return Err(DcpError::Nothing { prefix, example });
        }
        Ok(made)
    }

    /// The tensors, by name.
    pub fn tensors(&self) -> &[DcpTensor] {
        &self.tensors
    }

    /// Names of what was not taken: tensors outside the prefix, and what is no tensor.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Fills `buffer` with a tensor's logical bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// [`DcpError`]: a chunk's archive is not what was announced, or the range ends past the tensor.
    pub fn read(&self, tensor: usize, offset: u64, buffer: &mut [u8]) -> Result<(), DcpError> {
        let tensor = &self.tensors[tensor];
        let end = offset.saturating_add(buffer.len() as u64);
        if end > tensor.spec.bytes() {
            let (name, len) = (tensor.spec.name().to_owned(), tensor.spec.bytes());
            return Err(DcpError::Range { name, offset, end, len });
        }
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let run = tensor.run(at);
            let len = run.bytes.min(rest.len() as u64) as usize;
            let (part, after) = rest.split_at_mut(len);
            let chunk = &tensor.chunks[run.chunk];
            let start = self.data_start(tensor, chunk)?;
            self.file(chunk).read_exact_at(part, start + run.start).map_err(|source| {
                DcpError::Io { path: PathBuf::from(&*chunk.stored.file), source }
            })?;
            at += len as u64;
            rest = after;
        }
        Ok(())
    }

    /// Checks every CRC of a tensor's chunks, by reading them through.
    ///
    /// # Errors
    ///
    /// [`DcpError::Chunk`] names the first that is wrong.
    pub fn verify(&self, tensor: usize) -> Result<(), DcpError> {
        let tensor = &self.tensors[tensor];
        for chunk in &tensor.chunks {
            let archive = self.open_chunk(tensor, chunk)?;
            let mut verified = archive.verified();
            archive.verify_crcs(&mut verified).map_err(|e| chunk_error(tensor, chunk, e))?;
        }
        Ok(())
    }

    /// Opens the files that a tensor's chunks name, and checks that the chunks lie within them.
    fn check_files(&mut self, folder: &Path, tensor: &DcpTensor) -> Result<(), DcpError> {
        for chunk in &tensor.chunks {
            let stored = &chunk.stored;
            if !self.files.contains_key(&stored.file) {
                if self.files.len() == FILES_MAX {
                    return Err(DcpError::Files);
                }
                check_file_name(&stored.file)?;
                let path = folder.join(&*stored.file);
                let file =
                    FileSource::open(&path).map_err(|source| DcpError::Io { path, source })?;
                self.files.insert(stored.file.clone(), Arc::new(file));
            }
            let (start, len) = (stored.start, self.file(chunk).len());
            let end = start.saturating_add(stored.bytes);
            if end > len {
                let (name, file) = (tensor.spec.name().to_owned(), stored.file.to_string());
                return Err(DcpError::OutsideFile { name, file, start, end, len });
            }
        }
        Ok(())
    }

    fn file(&self, chunk: &Chunk) -> &Arc<dyn Source> {
        &self.files[&chunk.stored.file]
    }

    fn data_start(&self, tensor: &DcpTensor, chunk: &Chunk) -> Result<u64, DcpError> {
        if let Some(start) = chunk.data.get() {
            return Ok(*start);
        }
        let archive = self.open_chunk(tensor, chunk)?;
        let value = archive.pickle().root();
        let found = match archive.tensor(value) {
            Some(found) => found.map_err(|error| chunk_error(tensor, chunk, error))?,
            None => return Err(other(tensor, chunk, value.kind().to_owned())),
        };
        if found.dtype() != tensor.spec.dtype() || found.shape() != chunk.sizes {
            return Err(other(tensor, chunk, format!("{} {:?}", found.dtype(), found.shape())));
        }
        let within = archive.zip().entries()[found.entry()].start() + found.offset();
        Ok(*chunk.data.get_or_init(|| chunk.stored.start + within))
    }

    fn open_chunk(&self, tensor: &DcpTensor, chunk: &Chunk) -> Result<TorchArchive, DcpError> {
        let Stored { start, bytes, .. } = chunk.stored;
        let window = Window::new(self.file(chunk).clone(), start, bytes)
            .expect("check_files compared it with the file");
        TorchArchive::open(Arc::new(window)).map_err(|error| chunk_error(tensor, chunk, error))
    }
}

/// Checks that no two chunks share bytes of a file: each is read through by its CRC, and one large archive
/// that all of them name would be read once for each.
fn check_disjoint(tensors: &[DcpTensor]) -> Result<(), DcpError> {
    let mut all: Vec<(&Stored, &DcpTensor)> = Vec::new();
    for tensor in tensors {
        all.extend(tensor.chunks.iter().map(|chunk| (&chunk.stored, tensor)));
    }
    all.retain(|(stored, _)| stored.bytes > 0);
    all.sort_by_key(|(stored, _)| (&stored.file, stored.start));
    for pair in all.windows(2) {
        let [(before, _), (after, tensor)] = pair else { unreachable!("windows of two") };
        if before.file == after.file && before.start + before.bytes > after.start {
            let (name, file) = (tensor.spec.name().to_owned(), after.file.to_string());
            return Err(DcpError::Shared { name, file, start: after.start });
        }
    }
    Ok(())
}

fn chunk_error(tensor: &DcpTensor, chunk: &Chunk, source: TorchError) -> DcpError {
    let (name, offsets) = (tensor.spec.name().to_owned(), chunk.offsets.clone());
    DcpError::Chunk { name, offsets, source }
}

fn other(tensor: &DcpTensor, chunk: &Chunk, found: String) -> DcpError {
    let (name, offsets) = (tensor.spec.name().to_owned(), chunk.offsets.clone());
    let expected = format!("{} {:?}", tensor.spec.dtype(), chunk.sizes);
    DcpError::Other { name, offsets, expected, found }
}

fn read_metadata(path: &Path) -> io::Result<Vec<u8>> {
    let file = FileSource::open(path)?;
    // One byte more than is taken, so that the reader refuses the length by name.
    let mut bytes = vec![0; file.len().min(Limits::METADATA.bytes + 1) as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn check_file_name(name: &str) -> Result<(), DcpError> {
    let plain = !name.is_empty()
        && name.len() <= FILE_NAME_BYTES_MAX
        && !name.starts_with('.')
        && !name.contains(['/', '\\', ':'])
        && !name.chars().any(char::is_control);
    if plain { Ok(()) } else { Err(DcpError::FileName { name: name.to_owned() }) }
}

fn choose_prefix(pickle: &Pickle, entries: &BTreeMap<&str, Value>, select: Option<&str>) -> String {
    match select {
        Some(prefix) if prefix.is_empty() || prefix.ends_with('.') => prefix.to_owned(),
        Some(prefix) => format!("{prefix}."),
        None => {
            let has = |prefix: &&str| {
                let below =
                    |name: &str, value| name.starts_with(*prefix) && is_tensor(pickle, value);
                entries.iter().any(|(name, value)| below(name, *value))
            };
            MODEL_PREFIXES.into_iter().find(has).unwrap_or_default().to_owned()
        }
    }
}

fn is_tensor(pickle: &Pickle, value: Value) -> bool {
    pickle.object(value).is_some_and(|object| object.global == TENSOR)
}

/// What `.metadata` says, as far as it is the same for all tensors.
struct Metadata<'a> {
    pickle: &'a Pickle,
    entries: BTreeMap<&'a str, Value>,
    /// By name and offsets, as DCP itself looks a chunk up.
    stored: BTreeMap<(&'a str, Vec<u64>), Value>,
    /// How many chunks tensors may still have: what is stored is stored once, but a hostile list of
    /// chunks could be shared by any number of tensors.
    chunks_left: usize,
}

impl<'a> Metadata<'a> {
    fn read(pickle: &'a Pickle) -> Result<Self, DcpError> {
        let state = state(pickle, pickle.root(), "the root")?;
        let mut entries = BTreeMap::new();
        for &(key, value) in pairs_of(pickle, state, "state_dict_metadata")? {
            let kind = || layout("a key of state_dict_metadata", "text", key.kind());
            let name = pickle.text(key).ok_or_else(kind)?;
            if entries.insert(name, value).is_some() {
                return Err(DcpError::Twice { what: "metadata", name: name.to_owned() });
            }
        }
        let mut stored = BTreeMap::new();
        for &(key, value) in pairs_of(pickle, state, "storage_data")? {
            let key = self::state(pickle, key, "a key of storage_data")?;
            let name = field(pickle, key, "fqn")?;
            let kind = || layout("fqn", "text", name.kind());
            let name = pickle.text(name).ok_or_else(kind)?;
            // Things that are no tensor have no offset, nor are they read.
            let Some(offset) = pickle.field(key, "offset").filter(|v| !matches!(v, Value::None))
            else {
                continue;
            };
            let offsets = sizes(pickle, offset, "the offset of a chunk")?;
            if stored.insert((name, offsets), value).is_some() {
                return Err(DcpError::Twice { what: "a chunk", name: name.to_owned() });
            }
        }
        let chunks_left = stored.len();
        Ok(Self { pickle, entries, stored, chunks_left })
    }

    fn tensor(&mut self, name: &str, short: &str, value: Value) -> Result<DcpTensor, DcpError> {
        let pickle = self.pickle;
        let state = state(pickle, value, "a tensor's metadata")?;
        let dtype = self.dtype(name, field(pickle, state, "properties")?)?;
        let shape = sizes(pickle, field(pickle, state, "size")?, "a tensor's size")?;
        let spec = TensorSpec::new(short, dtype, &shape)?;
        let chunks = field(pickle, state, "chunks")?;
        let kind = || layout("chunks", "a list", chunks.kind());
        let chunks = pickle.items(chunks).ok_or_else(kind)?;
        self.chunks_left = match self.chunks_left.checked_sub(chunks.len()) {
            Some(left) => left,
            None => {
                return Err(DcpError::Chunks { name: name.to_owned(), stored: self.stored.len() });
            }
        };
        let mut boxes = Vec::with_capacity(chunks.len());
        for &chunk in chunks {
            let chunk = self::state(pickle, chunk, "a chunk")?;
            let offsets = sizes(pickle, field(pickle, chunk, "offsets")?, "a chunk's offsets")?;
            let sizes = sizes(pickle, field(pickle, chunk, "sizes")?, "a chunk's sizes")?;
            check_box(name, &shape, &offsets, &sizes)?;
            // A rank without a part of the tensor states an empty chunk.
            if !sizes.contains(&0) {
                let stored = self.stored(name, &offsets)?;
                boxes.push(Chunk { offsets, sizes, stored, data: OnceLock::new() });
            }
        }
        let (cuts, chunks) = tile(name, &shape, boxes)?;
        Ok(DcpTensor { spec, cuts, chunks })
    }

    /// `TensorProperties` keeps its state as (dtype, layout, requires_grad, memory format, pinned, ..).
    fn dtype(&self, name: &str, properties: Value) -> Result<Dtype, DcpError> {
        let pickle = self.pickle;
        let state = state(pickle, properties, "properties")?;
        let kind = || layout("properties", "a tuple of dtype and layout", state.kind());
        let Some([dtype, layout, ..]) = pickle.tuple(state) else { return Err(kind()) };
        if let Some(object) = pickle.object(*layout)
            && object.global == LAYOUT
        {
            let text = pickle.tuple(object.args).and_then(|args| args.first());
            let found = text.and_then(|text| pickle.text(*text)).unwrap_or("unknown");
            if found != "torch.strided" {
                return Err(DcpError::Sparse { name: name.to_owned(), found: found.to_owned() });
            }
        }
        let global = pickle.global(*dtype).ok_or_else(kind)?;
        dtype_of(global).ok_or_else(|| DcpError::Dtype {
            name: name.to_owned(),
            found: format!("{}.{}", global.0, global.1),
        })
    }

    fn stored(&self, name: &str, offsets: &[u64]) -> Result<Stored, DcpError> {
        let pickle = self.pickle;
        let Some(&value) = self.stored.get(&(name, offsets.to_vec())) else {
            let (name, offsets) = (name.to_owned(), offsets.to_vec());
            return Err(DcpError::NotStored { name, offsets });
        };
        let state = state(pickle, value, "a place of storage")?;
        if let Some(transforms) = pickle.field(state, "transform_descriptors") {
            let items = pickle.items(transforms).unwrap_or_default();
            if !matches!(transforms, Value::None) && !items.is_empty() {
                let found = items.first().and_then(|item| pickle.text(*item)).unwrap_or_default();
                let (name, found) = (name.to_owned(), found.to_owned());
                return Err(DcpError::Transformed { name, found });
            }
        }
        let file = field(pickle, state, "relative_path")?;
        let kind = || layout("relative_path", "text", file.kind());
        let file = pickle.text(file).ok_or_else(kind)?;
        let number = |what| {
            let value = field(pickle, state, what)?;
            pickle.count(value).ok_or_else(|| layout(what, "a length", value.kind()))
        };
        Ok(Stored { file: file.into(), start: number("offset")?, bytes: number("length")? })
    }
}

/// The state of an object: the dict (or tuple) that it was to be built from.
fn state(pickle: &Pickle, value: Value, what: &'static str) -> Result<Value, DcpError> {
    let object = pickle.object(value);
    let state = object.and_then(|object| object.state);
    state.ok_or_else(|| layout(what, "an object with a state", value.kind()))
}

fn field(pickle: &Pickle, state: Value, name: &'static str) -> Result<Value, DcpError> {
    pickle.field(state, name).ok_or_else(|| layout(name, "a field", "absent"))
}

fn pairs_of<'a>(
    pickle: &'a Pickle,
    state: Value,
    name: &'static str,
) -> Result<&'a [(Value, Value)], DcpError> {
    let value = field(pickle, state, name)?;
    pickle.pairs(value).ok_or_else(|| layout(name, "a dict", value.kind()))
}

/// A `torch.Size`, or the tuple it is made from.
fn sizes(pickle: &Pickle, value: Value, what: &'static str) -> Result<Vec<u64>, DcpError> {
    let kind = || layout(what, "a torch.Size of counts", value.kind());
    let plain = match pickle.object(value) {
        Some(object) if object.global == SIZE => match pickle.tuple(object.args) {
            Some([items]) => *items,
            _ => return Err(kind()),
        },
        _ => value,
    };
    let items = pickle.items(plain).ok_or_else(kind)?;
    if items.len() > RANK_MAX {
        return Err(layout(what, "of at most 8 dimensions", "longer"));
    }
    items.iter().map(|item| pickle.count(*item).ok_or_else(kind)).collect()
}

fn layout(what: &'static str, expected: &'static str, found: &'static str) -> DcpError {
    DcpError::Layout { what, expected, found }
}

fn check_box(name: &str, shape: &[u64], offsets: &[u64], sizes: &[u64]) -> Result<(), DcpError> {
    for part in [offsets, sizes] {
        if part.len() != shape.len() {
            let (name, rank, found) = (name.to_owned(), shape.len(), part.len());
            return Err(DcpError::ChunkRank { name, rank, found });
        }
    }
    let inside = |((&n, &offset), &size): ((&u64, &u64), &u64)| {
        offset.checked_add(size).is_some_and(|end| end <= n)
    };
    if shape.iter().zip(offsets).zip(sizes).all(inside) {
        return Ok(());
    }
    let (name, shape) = (name.to_owned(), shape.to_vec());
    Err(DcpError::ChunkOutside { name, shape, offsets: offsets.to_vec(), sizes: sizes.to_vec() })
}

type Tiles = (Vec<Vec<u64>>, Vec<Chunk>);

/// Orders chunks into a grid, which they have to fill exactly.
///
/// Each chunk has to reach from a cut to the next one in every dimension. Then it is one cell of the
/// grid, and as many different cells as the grid has are all of it: no gap, no overlap.
fn tile(name: &str, shape: &[u64], mut chunks: Vec<Chunk>) -> Result<Tiles, DcpError> {
    let owned = || name.to_owned();
    if shape.contains(&0) {
        return Ok((vec![Vec::new(); shape.len()], Vec::new()));
    }
    let mut cuts = Vec::with_capacity(shape.len());
    for (dimension, &n) in shape.iter().enumerate() {
        let starts: BTreeSet<u64> = chunks.iter().map(|chunk| chunk.offsets[dimension]).collect();
        let starts: Vec<u64> = starts.into_iter().collect();
        if starts.first() != Some(&0) {
            let to = starts.first().copied().unwrap_or(n);
            return Err(DcpError::Cut { name: owned(), dimension, from: 0, to });
        }
        for chunk in &chunks {
            let (offset, size) = (chunk.offsets[dimension], chunk.sizes[dimension]);
            let next = starts.partition_point(|&start| start <= offset);
            let next = starts.get(next).copied().unwrap_or(n);
            let end = offset + size; // Inside the shape, as was checked.
            if end != next {
                let (from, to) = (end.min(next), end.max(next));
                return Err(DcpError::Cut { name: owned(), dimension, from, to });
            }
        }
        cuts.push(starts);
    }
    let cells = cuts.iter().try_fold(1_u64, |cells, starts| cells.checked_mul(starts.len() as u64));
    let (cells, count) = (cells.unwrap_or(u64::MAX), chunks.len() as u64);
    chunks.sort_by(|a, b| a.offsets.cmp(&b.offsets));
    if let Some(pair) = chunks.windows(2).find(|pair| pair[0].offsets == pair[1].offsets) {
        return Err(DcpError::Overlap { name: owned(), offsets: pair[0].offsets.clone() });
    }
    if cells != count {
        return Err(DcpError::Tiles { name: owned(), cells, chunks: count });
    }
    Ok((cuts, chunks))
}

/// Bytes that follow each other both in the tensor and in a chunk.
struct Run {
    chunk: usize,
    /// Where they start in the chunk's elements, in bytes.
    start: u64,
    bytes: u64,
}

impl DcpTensor {
    /// The run that starts at byte `at` of the tensor.
    fn run(&self, at: u64) -> Run {
        let (shape, width) = (self.spec.shape(), self.spec.dtype().bytes());
        let (mut rest, within) = (at / width, at % width);
        // From the innermost dimension out: which cell, and how far into it.
        let (mut cells, mut local) = ([0; RANK_MAX], [0; RANK_MAX]);
        for d in (0..shape.len()).rev() {
            let coordinate = rest % shape[d];
            rest /= shape[d];
            cells[d] = self.cuts[d].partition_point(|&start| start <= coordinate) - 1;
            local[d] = coordinate - self.cuts[d][cells[d]];
        }
        let grid = self.cuts.iter().map(Vec::len);
        let chunk = grid.zip(cells).fold(0, |index, (count, cell)| index * count + cell);
        // A run goes on to the next row of the chunk only where the chunk has whole rows.
        let sizes = &self.chunks[chunk].sizes;
        let (mut stride, mut start, mut run_bytes) = (width, within, width);
        let mut start_in_run = within;
        let mut whole = true;
        for d in (0..shape.len()).rev() {
            start += local[d] * stride;
            stride *= sizes[d];
            if whole {
                start_in_run = start;
                run_bytes = stride;
                whole = sizes[d] == shape[d];
            }
        }
        Run { chunk, start, bytes: run_bytes - start_in_run }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(offsets: &[u64], sizes: &[u64]) -> Chunk {
        let stored = Stored { file: "f".into(), start: 0, bytes: 0 };
        let (offsets, sizes) = (offsets.to_vec(), sizes.to_vec());
        Chunk { offsets, sizes, stored, data: OnceLock::new() }
    }

    fn tensor(shape: &[u64], chunks: Vec<Chunk>) -> Result<DcpTensor, DcpError> {
        let spec = TensorSpec::new("t", Dtype::F32, shape).unwrap();
        let (cuts, chunks) = tile("t", shape, chunks)?;
        Ok(DcpTensor { spec, cuts, chunks })
    }

    #[test]
    fn chunks_of_a_grid_are_read_in_the_tensors_order() {
        // 5 x 7, cut at row 2 and column 3, given in no order.
        let chunks = vec![
            chunk(&[2, 3], &[3, 4]),
            chunk(&[0, 0], &[2, 3]),
            chunk(&[2, 0], &[3, 3]),
            chunk(&[0, 3], &[2, 4]),
        ];
        let tensor = tensor(&[5, 7], chunks).unwrap();
        for at in 0..5 * 7 * 4 {
            let run = tensor.run(at);
            let (row, column) = (at / 4 / 7, at / 4 % 7);
            let chunk = &tensor.chunks[run.chunk];
            let (r, c) = (row - chunk.offsets[0], column - chunk.offsets[1]);
            assert_eq!(run.start, (r * chunk.sizes[1] + c) * 4 + at % 4);
            assert_eq!(run.bytes, (chunk.sizes[1] - c) * 4 - at % 4);
        }
    }

    #[test]
    fn a_shard_of_whole_rows_is_one_run() {
        let rows = vec![chunk(&[0, 0], &[1, 3]), chunk(&[1, 0], &[3, 3])];
        let run = tensor(&[4, 3], rows).unwrap().run(17);
        assert_eq!((run.chunk, run.start, run.bytes), (1, 5, 31));
        let run = tensor(&[], vec![chunk(&[], &[])]).unwrap().run(1);
        assert_eq!((run.chunk, run.start, run.bytes), (0, 1, 3));
    }

    #[test]
    fn gaps_and_overlaps_are_refused() {
        let cut = |shape: &[u64], chunks| match tensor(shape, chunks) {
            Err(DcpError::Cut { from, to, .. }) => (from, to),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("taken"),
        };
        assert_eq!(cut(&[4], vec![chunk(&[0], &[2]), chunk(&[3], &[1])]), (2, 3));
        assert_eq!(cut(&[4], vec![chunk(&[0], &[3]), chunk(&[2], &[2])]), (2, 3));
        assert_eq!(cut(&[4], vec![chunk(&[1], &[3])]), (0, 1));
        assert_eq!(cut(&[4], vec![chunk(&[0], &[3])]), (3, 4));
        assert_eq!(cut(&[4], vec![]), (0, 4));
        let twice = vec![chunk(&[0], &[4]), chunk(&[0], &[4])];
        assert!(matches!(tensor(&[4], twice), Err(DcpError::Overlap { .. })));
        // Three of four cells.
        let three = vec![chunk(&[0, 0], &[1, 1]), chunk(&[0, 1], &[1, 1]), chunk(&[1, 0], &[1, 1])];
        assert!(matches!(tensor(&[2, 2], three), Err(DcpError::Tiles { cells: 4, chunks: 3, .. })));
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for name in
            ["../x", "/etc/passwd", "a/b", "", ".", "..", "a\\b", "c:x", "a\0b", ".metadata"]
        {
            assert!(check_file_name(name).is_err(), "{name:?}");
        }
        assert!(check_file_name("__0_0.distcp").is_ok());
    }
}
