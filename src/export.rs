//! Layer 4, export: a checkpoint as the safetensors files that Hub tools expect.
//!
//! `model.safetensors`, or `model-00001-of-0000N.safetensors` with an index where it is larger than
//! a shard; other groups of the state as `GROUP.safetensors`; `SHA256SUMS` last, so a directory that
//! has it is complete. bf16 is computed on the way out and is never a base to fold.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
};

use gradledger_kernels::{sha256::Sha256, widen};

use crate::{
    import::safetensors_writer::{self, Part},
    store::{
        StoreError,
        artifacts::StoredCheckpoint,
        files::{Files, WriteFile},
    },
    types::{
        digest::Digest,
        manifest::{Descriptor, group},
        progress::Progress,
        tensor::Dtype,
    },
};

/// Most tensor bytes of a shard, unless one tensor alone is larger: 5 GB, as the Hub's tools do.
pub const SHARD_BYTES_MAX: u64 = 5_000_000_000;

/// Bytes of a tensor that are handled at once.
const CHUNK_BYTES: u64 = 8 << 20;

/// Element type of the exported state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportDtype {
    /// The state's own bits.
    F32,
    /// Rounded to nearest even.
    Bf16,
}

/// An export that did not come to its end. Files without a `SHA256SUMS` beside them are incomplete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A stored tensor is missing or wrong.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file could not be written.
    #[error("writing {path}: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something is in the way.
    #[error("{path} is not empty; give a new or an empty directory")]
    NotEmpty {
        /// Where.
        path: PathBuf,
    },
}

/// One file of an export.
struct Shard<'a> {
    name: String,
    tensors: Vec<Tensor<'a>>,
}

/// A tensor's place in a file.
struct Tensor<'a> {
    position: usize,
    descriptor: &'a Descriptor,
    dtype: Dtype,
    bytes: u64,
}

/// What was written: name and SHA-256 of each file.
pub type Written = Vec<(String, Digest)>;

/// Writes `checkpoint` below `out`, which is created or empty.
///
/// # Errors
///
/// [`ExportError`]; a piece that does not have its digest is never written on.
pub fn export(
    checkpoint: &StoredCheckpoint,
    dtype: ExportDtype,
    shard_bytes_max: u64,
    files: &dyn Files,
    out: &Path,
    progress: &dyn Progress,
) -> Result<Written, ExportError> {
    let at = |path: &Path, source| ExportError::Write { path: path.to_owned(), source };
    files.create_dir_all(out).map_err(|e| at(out, e))?;
    if !files.list(out).map_err(|e| at(out, e))?.is_empty() {
        return Err(ExportError::NotEmpty { path: out.to_owned() });
    }
    let shards = shards(checkpoint, dtype, shard_bytes_max);
    let mut written = Vec::new();
    for shard in &shards {
        let digest = write_shard(checkpoint, shard, files, &out.join(&shard.name), progress)?;
        written.push((shard.name.clone(), digest));
    }
    if let Some(index) = index_json(&shards) {
        let name = "model.safetensors.index.json".to_owned();
        let digest = write_small(files, &out.join(&name), &index)?;
        written.push((name, digest));
    }
    let sums: String = written.iter().map(|(name, digest)| format!("{digest}  {name}\n")).collect();
    write_small(files, &out.join("SHA256SUMS"), sums.as_bytes())?;
    files.sync_dir(out).map_err(|e| at(out, e))?;
    Ok(written)
}

/// Cuts the state's groups into files: the weights into shards, each other group one file.
fn shards(
    checkpoint: &StoredCheckpoint,
    dtype: ExportDtype,
    shard_bytes_max: u64,
) -> Vec<Shard<'_>> {
    let mut groups: BTreeMap<&str, Vec<Tensor<'_>>> = BTreeMap::new();
    for (position, descriptor) in checkpoint.manifest().descriptors().iter().enumerate() {
        let narrowed = dtype == ExportDtype::Bf16 && descriptor.dtype == Dtype::F32;
        let dtype = if narrowed { Dtype::Bf16 } else { descriptor.dtype };
        let bytes = descriptor.bytes / descriptor.dtype.bytes() * dtype.bytes();
        let tensor = Tensor { position, descriptor, dtype, bytes };
        groups.entry(&descriptor.group).or_default().push(tensor);
    }
    let mut shards = Vec::new();
    for (name, tensors) in groups {
        if name == group::WEIGHTS {
            shards.extend(weight_shards(tensors, shard_bytes_max));
        } else {
            shards.push(Shard { name: format!("{name}.safetensors"), tensors });
        }
    }
    for shard in &mut shards {
        // Wide elements first keeps every tensor aligned, as the safetensors library writes them.
        shard.tensors.sort_by_key(|t| (std::cmp::Reverse(t.dtype.bytes()), t.position));
    }
    shards
}

fn weight_shards(tensors: Vec<Tensor<'_>>, shard_bytes_max: u64) -> Vec<Shard<'_>> {
    let mut cuts: Vec<Vec<Tensor<'_>>> = vec![Vec::new()];
    let mut filled = 0;
    for tensor in tensors {
        if filled > 0 && filled + tensor.bytes > shard_bytes_max {
            cuts.push(Vec::new());
            filled = 0;
        }
        filled += tensor.bytes;
        cuts.last_mut().expect("it starts with one").push(tensor);
    }
    let of = cuts.len();
    let name = |at: usize| match of {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{of:05}.safetensors", at + 1),
    };
    cuts.into_iter().enumerate().map(|(at, tensors)| Shard { name: name(at), tensors }).collect()
}

fn header(shard: &Shard<'_>) -> Vec<u8> {
    let metadata = BTreeMap::from([("format", "pt".to_owned())]);
    let parts = shard.tensors.iter().map(|tensor| Part {
        name: &tensor.descriptor.name,
        dtype: tensor.dtype,
        shape: &tensor.descriptor.shape,
    });
    safetensors_writer::header(&metadata, parts)
}

fn write_shard(
    checkpoint: &StoredCheckpoint,
    shard: &Shard<'_>,
    files: &dyn Files,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Digest, ExportError> {
    let failed = |source| ExportError::Write { path: path.to_owned(), source };
    let mut file = Hashed { file: files.create(path).map_err(failed)?, sha256: Sha256::new() };
    file.write(&header(shard)).map_err(failed)?;
    for tensor in &shard.tensors {
        let mut reader = checkpoint.tensor(tensor.position)?;
        let mut left = tensor.descriptor.bytes;
        let (mut bytes, mut narrow) = (Vec::new(), Vec::new());
        while left > 0 {
            let now = left.min(CHUNK_BYTES);
            bytes.resize(usize::try_from(now).expect("a chunk fits in memory"), 0);
            reader.read_exact(&mut bytes)?;
            if tensor.dtype == tensor.descriptor.dtype {
                file.write(&bytes).map_err(failed)?;
            } else {
                narrow.clear();
                narrow.extend(bytes.as_chunks::<4>().0.iter().flat_map(|value| {
                    widen::f32_to_bf16(f32::from_le_bytes(*value)).to_le_bytes()
                }));
                file.write(&narrow).map_err(failed)?;
            }
            progress.advance(now);
            left -= now;
        }
    }
    file.file.sync().map_err(failed)?;
    Ok(Digest(file.sha256.finish()))
}

/// A file whose SHA-256 is taken as it is written.
struct Hashed {
    file: Box<dyn WriteFile>,
    sha256: Sha256,
}

impl Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.sha256.update(bytes);
        self.file.write_all(bytes)
    }
}

fn write_small(files: &dyn Files, path: &Path, bytes: &[u8]) -> Result<Digest, ExportError> {
    let failed = |source| ExportError::Write { path: path.to_owned(), source };
    let mut file = files.create(path).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync()).map_err(failed)?;
    Ok(Digest::of(bytes))
}

/// Which shard holds which tensor; none where there is one file.
fn index_json(shards: &[Shard<'_>]) -> Option<Vec<u8>> {
    let weights: Vec<_> = shards.iter().filter(|s| s.name.starts_with("model-")).collect();
    if weights.is_empty() {
        return None;
    }
    let tensors = || weights.iter().flat_map(|s| s.tensors.iter().map(move |t| (t, s)));
    let total: u64 = tensors().map(|(t, _)| t.bytes).sum();
    let map: BTreeMap<_, _> = tensors().map(|(t, s)| (&t.descriptor.name, &s.name)).collect();
    let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
    Some(serde_json::to_vec_pretty(&index).expect("plain data becomes JSON"))
}
