//! safetensors: one file, or a folder of shards with an index.
//!
//! `checkpoint` opens them here. The header is JSON with a length before it; the rest of the file is
//! the tensors' bytes. Read strictly, as the format asks: no gap, no overlap, no byte left over, every
//! name once, every length that of its dtype and shape.
//!
//! Trust: none. Memory is bounded by [`HEADER_BYTES_MAX`] for each of at most [`SHARDS_MAX`] shards.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{
    Deserialize,
    de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor},
};

use super::source::{FileSource, Source};
use crate::types::tensor::{Dtype, TensorError, TensorSpec};

/// Longest header in bytes, as safetensors' own reader has it.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Longest index of shards in bytes.
pub const INDEX_BYTES_MAX: u64 = 64 << 20;

/// Most shards of a checkpoint.
pub const SHARDS_MAX: usize = 4096;

/// Name of the one file of a checkpoint without shards.
pub const SINGLE_FILE: &str = "model.safetensors";

/// How the name of an index ends.
pub const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// The header's key that is no tensor.
pub(super) const METADATA_KEY: &str = "__metadata__";

/// Why a file or a folder is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum SafetensorsError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{what} ends at byte {end} of a file of {len}")]
    Truncated { what: &'static str, end: u64, len: u64 },
    #[error("the header has {bytes} bytes; at most {HEADER_BYTES_MAX} are read")]
    HeaderBytes { bytes: u64 },
    #[error("the index has {bytes} bytes; at most {INDEX_BYTES_MAX} are read")]
    IndexBytes { bytes: u64 },
    #[error("{what}: {source}")]
    Json { what: &'static str, source: serde_json::Error },
    #[error("the header starts with byte {found:#04x}, not with a brace")]
    Brace { found: u8 },
    #[error("{name:?} stands twice in {what}")]
    Twice { what: &'static str, name: String },
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error("tensor {name:?} is of the dtype {found:?}, which is not read")]
    Dtype { name: String, found: String },
    #[error("tensor {name:?} takes bytes {start} to {end}, where its shape asks for {expected}")]
    Length { name: String, start: u64, end: u64, expected: u64 },
    #[error(
        "tensor {name:?} starts at byte {start} of the data; the one before ends at {expected}"
    )]
    Gap { name: String, start: u64, expected: u64 },
    #[error("the tensors take {expected} bytes; the file holds {found}")]
    Rest { expected: u64, found: u64 },
    #[error("the index names the file {name:?}, which is not a plain name in its folder")]
    FileName { name: String },
    #[error("the index names more than {SHARDS_MAX} files")]
    Shards,
    #[error("the index places tensor {name:?} in {shard:?}, which does not hold it")]
    NotInShard { name: String, shard: String },
    #[error("{shard:?} holds tensor {name:?}, which the index does not place there")]
    NotInIndex { name: String, shard: String },
    #[error("bytes {offset} to {end} of tensor {name:?} of {len}")]
    Range { name: String, offset: u64, end: u64, len: u64 },
}

/// A tensor of a file.
struct Stored {
    spec: TensorSpec,
    file: usize,
    /// Where its bytes start in the file.
    start: u64,
}

/// One file, or all shards of a folder, their headers checked.
pub struct Safetensors {
    files: Vec<Arc<dyn Source>>,
    tensors: Vec<Stored>,
}

impl Safetensors {
    /// Reads the header of one file.
    ///
    /// # Errors
    ///
    /// [`SafetensorsError`] names the first thing that is refused.
    pub fn open_file(path: &Path) -> Result<Self, SafetensorsError> {
        Self::of_source(open(path)?)
    }

    /// Reads the header of one source.
    ///
    /// # Errors
    ///
    /// As [`Self::open_file`].
    pub fn of_source(source: Arc<dyn Source>) -> Result<Self, SafetensorsError> {
        let mut tensors = read_header(source.as_ref(), 0)?;
        tensors.sort_by(|a, b| a.spec.name().cmp(b.spec.name()));
        Ok(Self { files: vec![source], tensors })
    }

    /// Reads an index and the header of every shard it names.
    ///
    /// # Errors
    ///
    /// As [`Self::open_file`]; also if the shards do not hold exactly what the index places in them.
    pub fn open_index(path: &Path) -> Result<Self, SafetensorsError> {
        let index = read_index(path)?;
        let shards: BTreeSet<&str> = index.values().map(String::as_str).collect();
        if shards.len() > SHARDS_MAX {
            return Err(SafetensorsError::Shards);
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut made = Self { files: Vec::new(), tensors: Vec::new() };
        for shard in shards {
            check_file_name(shard)?;
            let file = open(&folder.join(shard))?;
            for tensor in read_header(file.as_ref(), made.files.len())? {
                let name = tensor.spec.name();
                if index.get(name).map(String::as_str) != Some(shard) {
                    let (name, shard) = (name.to_owned(), shard.to_owned());
                    return Err(SafetensorsError::NotInIndex { name, shard });
                }
                made.tensors.push(tensor);
            }
            made.files.push(file);
        }
        made.tensors.sort_by(|a, b| a.spec.name().cmp(b.spec.name()));
        // Every tensor found is in the index, each once; so the first difference is one not found.
        let mut found = made.tensors.iter().map(|tensor| tensor.spec.name());
        if let Some((name, shard)) =
            index.iter().find(|(name, _)| found.next() != Some(name.as_str()))
        {
            let (name, shard) = (name.clone(), shard.clone());
            return Err(SafetensorsError::NotInShard { name, shard });
        }
        Ok(made)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// What a tensor is; they are in the order of their names.
    pub fn spec(&self, tensor: usize) -> &TensorSpec {
        &self.tensors[tensor].spec
    }

    /// Fills `buffer` with a tensor's bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// [`SafetensorsError::Range`] past its end, or what the system says.
    pub fn read(
        &self,
        tensor: usize,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), SafetensorsError> {
        let stored = &self.tensors[tensor];
        let (end, len) = (offset.saturating_add(buffer.len() as u64), stored.spec.bytes());
        let name = || stored.spec.name().to_owned();
        if end > len {
            return Err(SafetensorsError::Range { name: name(), offset, end, len });
        }
        let file = &self.files[stored.file];
        file.read_exact_at(buffer, stored.start + offset)
            .map_err(|source| SafetensorsError::Io { path: name().into(), source })
    }
}

/// The texts that a file's header holds beside its tensors.
///
/// # Errors
///
/// [`SafetensorsError`] if there is no header, or its `__metadata__` is not a map of texts.
pub fn metadata(source: &dyn Source) -> Result<BTreeMap<String, String>, SafetensorsError> {
    let pairs: Pairs<Option<BTreeMap<String, String>>> =
        parse("the header", &header_bytes(source)?)?;
    Ok(pairs.0.into_iter().find_map(|(_, texts)| texts).unwrap_or_default())
}

/// An entry of the header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

fn read_header(source: &dyn Source, file: usize) -> Result<Vec<Stored>, SafetensorsError> {
    let header = header_bytes(source)?;
    let pairs: Pairs<HeaderValue> = parse("the header", &header)?;
    let data = 8 + header.len() as u64;
    drop(header);
    place(pairs, file, data, source.len() - data)
}

/// The JSON of the header, its length checked.
fn header_bytes(source: &dyn Source) -> Result<Vec<u8>, SafetensorsError> {
    let io = |source| SafetensorsError::Io { path: PathBuf::new(), source };
    let len = source.len();
    if len < 8 {
        return Err(SafetensorsError::Truncated { what: "the header's length", end: 8, len });
    }
    let mut word = [0; 8];
    source.read_exact_at(&mut word, 0).map_err(io)?;
    let bytes = u64::from_le_bytes(word);
    if bytes > HEADER_BYTES_MAX {
        return Err(SafetensorsError::HeaderBytes { bytes });
    }
    if 8 + bytes > len {
        return Err(SafetensorsError::Truncated { what: "the header", end: 8 + bytes, len });
    }
    let mut header = vec![0; bytes as usize];
    source.read_exact_at(&mut header, 8).map_err(io)?;
    match header.first() {
        Some(&found) if found != b'{' => Err(SafetensorsError::Brace { found }),
        _ => Ok(header),
    }
}

/// Checks that the entries fill `bytes` of data exactly.
fn place(
    pairs: Pairs<HeaderValue>,
    file: usize,
    data: u64,
    bytes: u64,
) -> Result<Vec<Stored>, SafetensorsError> {
    let mut names = BTreeSet::new();
    let mut entries = Vec::with_capacity(pairs.0.len());
    for (name, value) in &pairs.0 {
        if !names.insert(name) {
            return Err(SafetensorsError::Twice { what: "the header", name: name.clone() });
        }
        if let HeaderValue::Tensor(entry) = value {
            entries.push((name, entry));
        }
    }
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let (mut at, mut stored) = (0, Vec::with_capacity(entries.len()));
    for (name, entry) in entries {
        let dtype = Dtype::named(&entry.dtype).ok_or_else(|| SafetensorsError::Dtype {
            name: name.clone(),
            found: entry.dtype.clone(),
        })?;
        let spec = TensorSpec::new(name, dtype, &entry.shape)?;
        let ((start, end), expected) = (entry.data_offsets, spec.bytes());
        if end.checked_sub(start) != Some(expected) {
            return Err(SafetensorsError::Length { name: name.clone(), start, end, expected });
        }
        if start != at {
            return Err(SafetensorsError::Gap { name: name.clone(), start, expected: at });
        }
        if end > bytes {
            let (what, len) = ("a tensor", data + bytes);
            return Err(SafetensorsError::Truncated { what, end: data.saturating_add(end), len });
        }
        stored.push(Stored { spec, file, start: data + start });
        at = end;
    }
    if at != bytes {
        return Err(SafetensorsError::Rest { expected: at, found: bytes });
    }
    Ok(stored)
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, SafetensorsError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: Pairs<String>,
    }
    let source = open(path)?;
    let bytes = source.len();
    if bytes > INDEX_BYTES_MAX {
        return Err(SafetensorsError::IndexBytes { bytes });
    }
    let mut text = vec![0; bytes as usize];
    source
        .read_exact_at(&mut text, 0)
        .map_err(|source| SafetensorsError::Io { path: path.to_owned(), source })?;
    let index: Index = parse("the index", &text)?;
    let mut map = BTreeMap::new();
    for (name, shard) in index.weight_map.0 {
        if let Some(_first) = map.insert(name.clone(), shard) {
            return Err(SafetensorsError::Twice { what: "the index", name });
        }
    }
    Ok(map)
}

fn open(path: &Path) -> Result<Arc<dyn Source>, SafetensorsError> {
    match FileSource::open(path) {
        Ok(file) => Ok(Arc::new(file)),
        Err(source) => Err(SafetensorsError::Io { path: path.to_owned(), source }),
    }
}

fn check_file_name(name: &str) -> Result<(), SafetensorsError> {
    let plain = !name.is_empty()
        && !name.starts_with('.')
        && !name.contains(['/', '\\', ':'])
        && !name.chars().any(char::is_control);
    if plain { Ok(()) } else { Err(SafetensorsError::FileName { name: name.to_owned() }) }
}

fn parse<T: DeserializeOwned>(what: &'static str, text: &[u8]) -> Result<T, SafetensorsError> {
    serde_json::from_slice(text).map_err(|source| SafetensorsError::Json { what, source })
}

/// A JSON object as it stands, duplicate keys included: a map would keep the last one silently.
struct Pairs<V>(Vec<(String, V)>);

/// What a value of the header is depends on its key.
enum HeaderValue {
    Tensor(Entry),
    Metadata,
}

trait KeyedValue: Sized {
    fn read<'de, A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error>;
}

impl KeyedValue for HeaderValue {
    fn read<'de, A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error> {
        match key {
            METADATA_KEY => map.next_value::<IgnoredAny>().map(|_| Self::Metadata),
            _ => map.next_value().map(Self::Tensor),
        }
    }
}

/// Of the header, the metadata alone.
impl KeyedValue for Option<BTreeMap<String, String>> {
    fn read<'de, A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error> {
        match key {
            METADATA_KEY => map.next_value().map(Some),
            _ => map.next_value::<IgnoredAny>().map(|_| None),
        }
    }
}

impl KeyedValue for String {
    fn read<'de, A: MapAccess<'de>>(_key: &str, map: &mut A) -> Result<Self, A::Error> {
        map.next_value()
    }
}

impl<'de, V: KeyedValue> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<V>(std::marker::PhantomData<V>);
        impl<'de, V: KeyedValue> Visitor<'de> for Reader<V> {
            type Value = Pairs<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<V>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = V::read(&key, &mut map)?;
                    pairs.push((key, value));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Reader(std::marker::PhantomData))
    }
}
