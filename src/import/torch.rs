//! A `torch.save` archive: a pickle in a zip, with each storage's bytes as an entry of its own.
//!
//! `templar` and `dcp` open archives here and find tensors in the pickle's values. A [`TensorRef`] says
//! where a tensor's bytes lie; nothing of them is read until someone asks, by range or as a stream.
//!
//! Trust: none. A tensor has to be row-major and inside its storage, and its storage exactly one entry
//! of the length that the pickle states. The location (`cpu`, `cuda:0`) is ignored.

use std::sync::Arc;

use super::{
    pickle::{Global, Limits, Pickle, PickleError, Value},
    source::Source,
    zip::{Archive, CHUNK_BYTES, EntryReader, Verified, ZipError},
};
use crate::types::tensor::{Dtype, RANK_MAX};

const REBUILD_V2: Global = ("torch._utils", "_rebuild_tensor_v2");
const REBUILD_V3: Global = ("torch._utils", "_rebuild_tensor_v3");
const UNTYPED: Global = ("torch.storage", "UntypedStorage");

/// The globals that an archive may name: tensors, their storages and dtypes.
pub const GLOBALS: &[Global] = &[
    REBUILD_V2,
    REBUILD_V3,
    ("collections", "OrderedDict"),
    UNTYPED,
    ("torch", "ByteStorage"),
    ("torch", "CharStorage"),
    ("torch", "ShortStorage"),
    ("torch", "IntStorage"),
    ("torch", "LongStorage"),
    ("torch", "HalfStorage"),
    ("torch", "BFloat16Storage"),
    ("torch", "FloatStorage"),
    ("torch", "DoubleStorage"),
    ("torch", "BoolStorage"),
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
];

/// File format versions that torch's own reader takes.
const VERSIONS: std::ops::RangeInclusive<u64> = 1..=10;

/// Longest of the small entries (`version`, `byteorder`) in bytes.
const NOTE_BYTES_MAX: u64 = 32;

/// What is wrong with an archive or a tensor in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum TorchError {
    #[error(transparent)]
    Zip(#[from] ZipError),
    #[error("data.pkl: {0}")]
    Pickle(#[from] PickleError),
    #[error("an archive of torch.save has one folder with data.pkl in it, found {found:?}")]
    Root { found: String },
    #[error("the archive has no entry {name:?}")]
    NoEntry { name: String },
    #[error("the archive's byte order is {found:?}; only \"little\" is read")]
    ByteOrder { found: String },
    #[error("the archive's version is {found:?}; 1 to 10 are read")]
    Version { found: String },
    #[error("a tensor is made of {expected}, not of {found}")]
    Tensor { expected: &'static str, found: &'static str },
    #[error("a storage of the unknown type {module}.{name}")]
    StorageType { module: &'static str, name: &'static str },
    #[error("a tensor of {rank} dimensions; at most {RANK_MAX} are taken")]
    Rank { rank: usize },
    #[error("shape {shape:?} does not fit in 2^53 bytes")]
    Size { shape: Vec<u64> },
    #[error("strides {strides:?} are not the row-major ones of shape {shape:?}")]
    Strided { shape: Vec<u64>, strides: Vec<u64> },
    #[error("entry {entry:?} has {found} bytes; its storage is stated to have {stated}")]
    StorageBytes { entry: String, stated: u64, found: u64 },
    #[error("the tensor takes bytes {start} to {end} of a storage of {len}")]
    OutsideStorage { start: u64, end: u64, len: u64 },
    #[error("the tensor is marked to be read as conjugated or negated")]
    Marked,
    #[error("bytes {offset} to {end} of a tensor of {len}")]
    Range { offset: u64, end: u64, len: u64 },
    #[error("the entry {name:?} has {bytes} bytes; at most {NOTE_BYTES_MAX} are read")]
    Note { name: String, bytes: u64 },
    #[error("a tensor of {bytes} bytes where at most {max} are expected")]
    Long { bytes: u64, max: u64 },
}

/// A tensor in an archive: what it is and where its bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRef {
    dtype: Dtype,
    shape: Vec<u64>,
    entry: usize,
    offset: u64,
    bytes: u64,
    whole: bool,
}

impl TensorRef {
    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.bytes / self.dtype.bytes()
    }

    /// Length of its bytes: little-endian, row-major.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where its bytes start in its entry.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Which entry of the archive holds it.
    pub fn entry(&self) -> usize {
        self.entry
    }
}

/// An archive whose layout was checked and whose pickle was read.
pub struct TorchArchive {
    zip: Archive,
    root: String,
    pickle: Pickle,
    verified: Verified,
}

impl TorchArchive {
    /// Opens an archive and reads its pickle; no tensor's bytes are read.
    ///
    /// # Errors
    ///
    /// [`TorchError`]: the archive is damaged, not of `torch.save`, or its pickle is refused.
    pub fn open(source: Arc<dyn Source>) -> Result<Self, TorchError> {
        let zip = Archive::open(source)?;
        let root = find_root(&zip)?;
        let mut verified = Verified::none(zip.entries().len());
        if let Some(order) = read_note(&zip, &root, "byteorder", &mut verified)?
            && order != "little"
        {
            return Err(TorchError::ByteOrder { found: order });
        }
        let version = read_note(&zip, &root, "version", &mut verified)?
            .ok_or_else(|| TorchError::NoEntry { name: format!("{root}version") })?;
        if !version.trim_end().parse().is_ok_and(|number: u64| VERSIONS.contains(&number)) {
            return Err(TorchError::Version { found: version });
        }
        let data = zip.find(&format!("{root}data.pkl"));
        let data = data.ok_or_else(|| TorchError::NoEntry { name: format!("{root}data.pkl") })?;
        let (bytes, max) = (zip.entries()[data].bytes(), Limits::ARCHIVE.bytes);
        if bytes > max {
            return Err(PickleError::Bytes { bytes, max }.into());
        }
        let pickle = Pickle::read(zip.read(data)?, GLOBALS, Limits::ARCHIVE)?;
        verified.insert(data);
        Ok(Self { zip, root, pickle, verified })
    }

    /// The pickle's values.
    pub fn pickle(&self) -> &Pickle {
        &self.pickle
    }

    /// The zip archive.
    pub fn zip(&self) -> &Archive {
        &self.zip
    }

    /// The entries whose CRCs were checked on opening: where a reader of all entries starts from.
    pub fn verified(&self) -> Verified {
        self.verified.clone()
    }

    /// The tensor that a value of the pickle is; `None` for values that are none.
    ///
    /// # Errors
    ///
    /// [`TorchError`] if it is one that is not read.
    pub fn tensor(&self, value: Value) -> Option<Result<TensorRef, TorchError>> {
        let object = self.pickle.object(value)?;
        let args = self.pickle.tuple(object.args)?;
        match object.global {
            REBUILD_V2 => Some(self.rebuild(args, None)),
            REBUILD_V3 => Some(self.rebuild(args, Some(6))),
            _ => None,
        }
    }

    /// The dtype that a value of the pickle names.
    pub fn dtype(&self, value: Value) -> Option<Dtype> {
        dtype_of(self.pickle.global(value)?)
    }

    /// A stream of a tensor's bytes. It checks the entry's CRC if the tensor is all of its entry.
    pub fn open_stream(&self, tensor: &TensorRef) -> TensorStream<'_> {
        let reader = match tensor.whole {
            true => Reader::Whole(self.zip.reader(tensor.entry)),
            false => Reader::Part { zip: &self.zip, at: tensor.offset, left: tensor.bytes },
        };
        TensorStream { entry: tensor.entry, reader, buffer: Vec::new() }
    }

    /// Fills `buffer` with a tensor's bytes from `offset` on, without a check of the CRC.
    ///
    /// # Errors
    ///
    /// [`TorchError::Range`] past the tensor's end; [`TorchError::Zip`] from the system.
    pub fn read_at(
        &self,
        tensor: &TensorRef,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), TorchError> {
        let end = offset.saturating_add(buffer.len() as u64);
        if end > tensor.bytes {
            return Err(TorchError::Range { offset, end, len: tensor.bytes });
        }
        Ok(self.zip.read_at(tensor.entry, buffer, tensor.offset + offset)?)
    }

    /// All bytes of a small tensor, as [`Self::open_stream`] reads them.
    ///
    /// # Errors
    ///
    /// [`TorchError::Long`] above `bytes_max`; [`TorchError::Zip`] if the CRC is wrong.
    pub fn read_small(
        &self,
        tensor: &TensorRef,
        bytes_max: u64,
        verified: &mut Verified,
    ) -> Result<Vec<u8>, TorchError> {
        if tensor.bytes > bytes_max {
            return Err(TorchError::Long { bytes: tensor.bytes, max: bytes_max });
        }
        let mut bytes = Vec::with_capacity(tensor.bytes as usize);
        let mut stream = self.open_stream(tensor);
        while let Some(chunk) = stream.next_chunk()? {
            bytes.extend_from_slice(chunk);
        }
        stream.mark(verified);
        Ok(bytes)
    }

    /// Checks the CRC of every entry that is not in `verified` yet.
    ///
    /// # Errors
    ///
    /// [`ZipError::Crc`] names the first that is wrong.
    pub fn verify_crcs(&self, verified: &mut Verified) -> Result<(), TorchError> {
        Ok(self.zip.verify_rest(verified)?)
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks[, metadata])`; in v3 a
    /// dtype stands before the metadata.
    fn rebuild(&self, args: &[Value], dtype_at: Option<usize>) -> Result<TensorRef, TorchError> {
        let kind = |expected, value: Option<&Value>| TorchError::Tensor {
            expected,
            found: value.map_or("nothing", Value::kind),
        };
        if args.len() < dtype_at.map_or(6, |at| at + 1) {
            return Err(kind("six arguments or more", args.last()));
        }
        let storage = self.storage(args[0])?;
        let dtype = match dtype_at {
            Some(at) => Some(self.dtype(args[at]).ok_or_else(|| kind("a dtype", Some(&args[at])))?),
            None => storage.dtype,
        };
        let dtype = dtype.ok_or_else(|| kind("a storage with a dtype", Some(&args[0])))?;
        if let Some(metadata) = args.get(dtype_at.map_or(6, |at| at + 1)) {
            let empty = self.pickle.pairs(*metadata).is_some_and(<[_]>::is_empty);
            if !empty && !matches!(metadata, Value::None) {
                return Err(TorchError::Marked);
            }
        }
        let offset = self.pickle.count(args[1]).ok_or_else(|| kind("an offset", Some(&args[1])))?;
        let shape = self.sizes(args[2])?;
        let strides = self.sizes(args[3])?;
        let bytes = shape_bytes(&shape, dtype)?;
        if !is_row_major(&shape, &strides) {
            return Err(TorchError::Strided { shape, strides });
        }
        let len = self.zip.entries()[storage.entry].bytes();
        let start = offset.saturating_mul(dtype.bytes());
        let end = start.saturating_add(bytes);
        if end > len {
            return Err(TorchError::OutsideStorage { start, end, len });
        }
        let whole = bytes == len;
        Ok(TensorRef { dtype, shape, entry: storage.entry, offset: start, bytes, whole })
    }

    /// The id `("storage", type, key, location, numel)`.
    fn storage(&self, value: Value) -> Result<Storage, TorchError> {
        let kind = |expected, value: &Value| TorchError::Tensor { expected, found: value.kind() };
        let id = self.pickle.persistent(value).ok_or_else(|| kind("a storage", &value))?;
        let Some([tag, storage, key, _location, numel]) = self.pickle.tuple(id) else {
            return Err(kind("the five parts of a storage's id", &id));
        };
        if self.pickle.text(*tag) != Some("storage") {
            return Err(kind("the tag \"storage\"", tag));
        }
        let global = self.pickle.global(*storage).ok_or_else(|| kind("a storage type", storage))?;
        let dtype = storage_dtype(global);
        let (module, name) = global;
        if dtype.is_none() && global != UNTYPED {
            return Err(TorchError::StorageType { module, name });
        }
        let key = self.pickle.text(*key).ok_or_else(|| kind("a storage's key", key))?;
        let numel = self.pickle.count(*numel).ok_or_else(|| kind("a storage's length", numel))?;
        let name = format!("{}data/{key}", self.root);
        let Some(entry) = self.zip.find(&name) else { return Err(TorchError::NoEntry { name }) };
        let found = self.zip.entries()[entry].bytes();
        let stated = numel.saturating_mul(dtype.map_or(1, Dtype::bytes));
        if stated != found {
            return Err(TorchError::StorageBytes { entry: name, stated, found });
        }
        Ok(Storage { dtype, entry })
    }

    /// A tuple of sizes.
    fn sizes(&self, value: Value) -> Result<Vec<u64>, TorchError> {
        let found = value.kind();
        let kind = || TorchError::Tensor { expected: "a tuple of sizes", found };
        let items = self.pickle.tuple(value).ok_or_else(kind)?;
        if items.len() > RANK_MAX {
            return Err(TorchError::Rank { rank: items.len() });
        }
        items.iter().map(|item| self.pickle.count(*item).ok_or_else(kind)).collect()
    }
}

struct Storage {
    dtype: Option<Dtype>,
    entry: usize,
}

/// A tensor's bytes in chunks of at most 1 MiB.
///
/// If the tensor is all of its entry, the CRC is compared before the last chunk is handed out.
pub struct TensorStream<'a> {
    entry: usize,
    reader: Reader<'a>,
    buffer: Vec<u8>,
}

enum Reader<'a> {
    Whole(EntryReader<'a>),
    Part { zip: &'a Archive, at: u64, left: u64 },
}

impl TensorStream<'_> {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`TorchError::Zip`]: the CRC is wrong, or the system says why not.
    pub fn next_chunk(&mut self) -> Result<Option<&[u8]>, TorchError> {
        match &mut self.reader {
            Reader::Whole(reader) => Ok(reader.next_chunk(&mut self.buffer)?),
            Reader::Part { left: 0, .. } => Ok(None),
            Reader::Part { zip, at, left } => {
                self.buffer.resize((*left).min(CHUNK_BYTES as u64) as usize, 0);
                zip.read_at(self.entry, &mut self.buffer, *at)?;
                *at += self.buffer.len() as u64;
                *left -= self.buffer.len() as u64;
                Ok(Some(self.buffer.as_slice()))
            }
        }
    }

    /// Adds the entry to `verified`, if the stream was read to its end and checked its CRC.
    pub fn mark(&self, verified: &mut Verified) {
        if matches!(&self.reader, Reader::Whole(reader) if reader.is_done()) {
            verified.insert(self.entry);
        }
    }
}

/// The folder that all entries lie in, with its slash. Torch names it after the file; any name is taken.
fn find_root(zip: &Archive) -> Result<String, TorchError> {
    let mut names = zip.entries().iter().map(|entry| entry.name());
    let first = names.next().unwrap_or_default();
    let Some(slash) = first.find('/') else {
        return Err(TorchError::Root { found: first.to_owned() });
    };
    let root = &first[..=slash];
    match names.find(|name| !name.starts_with(root)) {
        Some(other) => Err(TorchError::Root { found: other.to_owned() }),
        None => Ok(root.to_owned()),
    }
}

fn read_note(
    zip: &Archive,
    root: &str,
    name: &str,
    verified: &mut Verified,
) -> Result<Option<String>, TorchError> {
    let Some(entry) = zip.find(&format!("{root}{name}")) else { return Ok(None) };
    let bytes = zip.entries()[entry].bytes();
    if bytes > NOTE_BYTES_MAX {
        return Err(TorchError::Note { name: name.to_owned(), bytes });
    }
    let text = zip.read(entry)?;
    verified.insert(entry);
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

/// The dtype that `torch` calls so, such as `("torch", "bfloat16")`.
pub(super) fn dtype_of(global: Global) -> Option<Dtype> {
    let ("torch", name) = global else { return None };
    Some(match name {
        "bool" => Dtype::Bool,
        "uint8" => Dtype::U8,
        "int8" => Dtype::I8,
        "float8_e4m3fn" => Dtype::F8E4m3,
        "float8_e5m2" => Dtype::F8E5m2,
        "uint16" => Dtype::U16,
        "int16" => Dtype::I16,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::Bf16,
        "uint32" => Dtype::U32,
        "int32" => Dtype::I32,
        "float32" => Dtype::F32,
        "uint64" => Dtype::U64,
        "int64" => Dtype::I64,
        "float64" => Dtype::F64,
        _ => return None,
    })
}

fn storage_dtype(global: Global) -> Option<Dtype> {
    let ("torch", name) = global else { return None };
    Some(match name {
        "ByteStorage" => Dtype::U8,
        "CharStorage" => Dtype::I8,
        "ShortStorage" => Dtype::I16,
        "IntStorage" => Dtype::I32,
        "LongStorage" => Dtype::I64,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::Bf16,
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        "BoolStorage" => Dtype::Bool,
        _ => return None,
    })
}

/// Bytes of a tensor, below 2^53, as [`crate::types::tensor::TensorSpec`] asks.
fn shape_bytes(shape: &[u64], dtype: Dtype) -> Result<u64, TorchError> {
    let fits = |bytes: &u64| *bytes < 1 << 53;
    let largest =
        shape.iter().try_fold(dtype.bytes(), |bytes, &n| bytes.checked_mul(n.max(1)).filter(fits));
    match largest {
        Some(_) => Ok(shape.iter().product::<u64>() * dtype.bytes()),
        None => Err(TorchError::Size { shape: shape.to_vec() }),
    }
}

/// Whether elements lie one after the other, the last dimension fastest. The stride of a dimension of
/// one element means nothing, nor does any of an empty tensor.
fn is_row_major(shape: &[u64], strides: &[u64]) -> bool {
    if shape.len() != strides.len() {
        return false;
    }
    if shape.contains(&0) {
        return true;
    }
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&n, &stride)| {
        let right = n == 1 || stride == expected;
        expected *= n; // Its product was checked with the size.
        right
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_count_only_where_there_are_two_elements() {
        assert!(is_row_major(&[2, 3], &[3, 1]));
        assert!(is_row_major(&[1, 3], &[99, 1]));
        assert!(is_row_major(&[], &[]));
        assert!(is_row_major(&[0, 3], &[7, 7]));
        assert!(!is_row_major(&[2, 3], &[1, 2]));
        assert!(!is_row_major(&[2, 3], &[0, 1]));
        assert!(!is_row_major(&[2, 3], &[1]));
    }

    #[test]
    fn sizes_above_2_to_the_53_are_refused_even_behind_a_zero() {
        assert!(shape_bytes(&[1 << 63], Dtype::F32).is_err());
        assert!(shape_bytes(&[0, 1 << 63, 4], Dtype::U8).is_err());
        assert_eq!(shape_bytes(&[], Dtype::F32).unwrap(), 4);
        assert_eq!(shape_bytes(&[3, 0], Dtype::F32).unwrap(), 0);
    }
}
