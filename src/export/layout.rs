//! Which files a state is exported as, and what each of their bytes comes from.
//!
//! The same description serves the writing of an export and reads of any range of its files, so a file
//! that is served is the file that is written. It follows from the manifest alone.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{ExportDtype, ExportError};
use crate::{
    import::safetensors_writer::{self, Part},
    types::{
        manifest::{Descriptor, Manifest, group},
        tensor::Dtype,
    },
};

/// Most tensor bytes of a shard, unless one tensor alone is larger: 5 GB, as the Hub's tools do.
pub const SHARD_BYTES_MAX: u64 = 5_000_000_000;

/// What the shards of the weights are called, before their number.
const MODEL: &str = "model";

/// The files that a state is exported as.
#[derive(Clone, Debug)]
pub struct FileSet {
    files: Vec<Arc<VirtualFile>>,
}

/// A file that need not lie anywhere: its own bytes first, then the bytes of tensors without a gap.
#[derive(Debug)]
pub struct VirtualFile {
    name: String,
    bytes: u64,
    head: Arc<[u8]>,
    tensors: Vec<Placed>,
}

/// A tensor's place in a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    /// In the manifest.
    pub position: usize,
    /// The first of its bytes in the file.
    pub start: u64,
    /// Their number in the file.
    pub bytes: u64,
    /// Whether f32 is written as bf16.
    pub narrowed: bool,
}

impl VirtualFile {
    /// A file that is held in memory.
    pub fn small(name: &str, bytes: impl Into<Arc<[u8]>>) -> Self {
        let head = bytes.into();
        Self { name: name.to_owned(), bytes: head.len() as u64, head, tensors: Vec::new() }
    }

    /// Its name, without a directory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it begins with: the header, or all of a small file.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// What follows, in order, without a gap.
    pub(super) fn tensors(&self) -> &[Placed] {
        &self.tensors
    }
}

impl FileSet {
    /// The files of the state that `manifest` describes: each group of tensors in shards of at most
    /// `shard_bytes_max` bytes of tensors, unless one tensor is larger, with an index where a group
    /// takes several.
    ///
    /// The weights are `model.safetensors` or `model-00001-of-0000N.safetensors`, another group has
    /// its name in place of `model`.
    ///
    /// # Errors
    ///
    /// [`ExportError::Name`] if two files would have one name: a group is called `model`, or as a
    /// shard of another.
    pub fn of(
        manifest: &Manifest,
        dtype: ExportDtype,
        shard_bytes_max: u64,
    ) -> Result<Self, ExportError> {
        let mut groups: BTreeMap<&str, Vec<Tensor<'_>>> = BTreeMap::new();
        for (position, descriptor) in manifest.descriptors().iter().enumerate() {
            let tensor = Tensor::new(position, descriptor, dtype);
            groups.entry(&descriptor.group).or_default().push(tensor);
        }
        let mut set = Self { files: Vec::new() };
        for (name, tensors) in groups {
            let stem = if name == group::WEIGHTS { MODEL } else { name };
            let shards = Shard::cut(stem, tensors, shard_bytes_max);
            set.files.extend(shards.iter().map(|shard| Arc::new(shard.file())));
            set.files.extend(index(stem, &shards).map(Arc::new));
        }
        set.check_names()?;
        Ok(set)
    }

    /// These files and others beside them.
    ///
    /// # Errors
    ///
    /// [`ExportError::Name`] if two would have one name.
    pub fn with(mut self, others: Vec<Arc<VirtualFile>>) -> Result<Self, ExportError> {
        self.files.extend(others);
        self.check_names()?;
        Ok(self)
    }

    fn check_names(&self) -> Result<(), ExportError> {
        let mut seen = BTreeSet::from([super::SUMS]);
        match self.files.iter().find(|file| !seen.insert(&file.name)) {
            Some(file) => Err(ExportError::Name { name: file.name.clone() }),
            None => Ok(()),
        }
    }

    /// The files, in the order in which an export writes them.
    pub fn files(&self) -> &[Arc<VirtualFile>] {
        &self.files
    }

    /// Length of all of them together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// A tensor on its way into a file.
struct Tensor<'a> {
    position: usize,
    descriptor: &'a Descriptor,
    dtype: Dtype,
    bytes: u64,
}

impl<'a> Tensor<'a> {
    fn new(position: usize, descriptor: &'a Descriptor, dtype: ExportDtype) -> Self {
        let narrowed = dtype == ExportDtype::Bf16 && descriptor.dtype == Dtype::F32;
        let dtype = if narrowed { Dtype::Bf16 } else { descriptor.dtype };
        let bytes = descriptor.bytes / descriptor.dtype.bytes() * dtype.bytes();
        Self { position, descriptor, dtype, bytes }
    }
}

/// One file of a group.
struct Shard<'a> {
    name: String,
    tensors: Vec<Tensor<'a>>,
}

impl<'a> Shard<'a> {
    fn cut(stem: &str, tensors: Vec<Tensor<'a>>, shard_bytes_max: u64) -> Vec<Self> {
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
            1 => format!("{stem}.safetensors"),
            _ => format!("{stem}-{:05}-of-{of:05}.safetensors", at + 1),
        };
        let shard = |(at, mut tensors): (usize, Vec<Tensor<'a>>)| {
            // Wide elements first keeps every tensor aligned, as the safetensors library writes them.
            tensors.sort_by_key(|t| (Reverse(t.dtype.bytes()), t.position));
            Self { name: name(at), tensors }
        };
        cuts.into_iter().enumerate().map(shard).collect()
    }

    fn file(&self) -> VirtualFile {
        let metadata = BTreeMap::from([("format", "pt".to_owned())]);
        let parts = self.tensors.iter().map(|tensor| Part {
            name: &tensor.descriptor.name,
            dtype: tensor.dtype,
            shape: &tensor.descriptor.shape,
        });
        let head = safetensors_writer::header(&metadata, parts);
        let mut end = head.len() as u64;
        let place = |tensor: &Tensor<'_>| {
            let start = end;
            end += tensor.bytes;
            let narrowed = tensor.dtype != tensor.descriptor.dtype;
            Placed { position: tensor.position, start, bytes: tensor.bytes, narrowed }
        };
        let tensors = self.tensors.iter().map(place).collect();
        VirtualFile { name: self.name.clone(), bytes: end, head: head.into(), tensors }
    }
}

/// Which shard holds which tensor; none where there is one file.
fn index(stem: &str, shards: &[Shard<'_>]) -> Option<VirtualFile> {
    if shards.len() < 2 {
        return None;
    }
    let tensors = || shards.iter().flat_map(|s| s.tensors.iter().map(move |t| (t, s)));
    let total: u64 = tensors().map(|(t, _)| t.bytes).sum();
    let map: BTreeMap<_, _> = tensors().map(|(t, s)| (&t.descriptor.name, &s.name)).collect();
    let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
    let json = serde_json::to_vec_pretty(&index).expect("plain data becomes JSON");
    Some(VirtualFile::small(&format!("{stem}.safetensors.index.json"), json))
}
