//! A foreign checkpoint, whatever its form: named tensors that are read by range.
//!
//! `init` and `import` open one here and stream its tensors. The form is found by what is there: a file
//! is safetensors; a folder with `.metadata` is a DCP one; else a folder with an index of shards, or with
//! `model.safetensors`.
//!
//! Trust: none, as in the readers below. What is not taken is listed, never silently dropped.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use super::{
    dcp::{DcpCheckpoint, DcpError, METADATA_FILE},
    safetensors::{INDEX_SUFFIX, SINGLE_FILE, Safetensors, SafetensorsError},
};
use crate::types::tensor::{TensorError, TensorSpec};

/// Why a checkpoint is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ImportError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Dcp { path: PathBuf, source: Box<DcpError> },
    #[error("{}: {source}", path.display())]
    Safetensors { path: PathBuf, source: SafetensorsError },
    #[error(
        "{} holds no checkpoint: neither {METADATA_FILE}, nor an index of shards, nor {SINGLE_FILE}",
        path.display()
    )]
    NoCheckpoint { path: PathBuf },
    #[error("{} holds two checkpoints, {first:?} and {second:?}: name one of them", path.display())]
    Ambiguous { path: PathBuf, first: OsString, second: OsString },
    #[error("no tensor lies below the prefix {prefix:?}; there is, for example, {example:?}")]
    Nothing { prefix: String, example: String },
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error("without their prefix two tensors are called {name:?}")]
    Collision { name: String },
}

enum Form {
    Dcp(DcpCheckpoint),
    Safetensors(Safetensors),
}

/// A checkpoint whose description was read and checked; tensors in the order of their names.
pub struct Checkpoint {
    path: PathBuf,
    form: Form,
    tensors: Vec<TensorSpec>,
    /// Per tensor, its number within the form.
    places: Vec<usize>,
    left_out: Vec<String>,
}

impl Checkpoint {
    /// Opens a file or a folder.
    ///
    /// `select` takes the tensors below a prefix (with or without its last dot) and drops it;
    /// `Some("")` takes all. For DCP it defaults to `app.` or `model.` where there are such tensors.
    ///
    /// # Errors
    ///
    /// [`ImportError`] names the file, the tensor and the first thing that is refused.
    pub fn open(path: &Path, select: Option<&str>) -> Result<Self, ImportError> {
        let io = |source| ImportError::Io { path: path.to_owned(), source };
        if !std::fs::metadata(path).map_err(io)?.is_dir() {
            return Self::safetensors(path, select, Safetensors::open_file(path));
        }
        if path.join(METADATA_FILE).exists() {
            return match DcpCheckpoint::open(path, select) {
                Ok(dcp) => Self::dcp(path, dcp),
                Err(error) => {
                    Err(ImportError::Dcp { path: path.to_owned(), source: Box::new(error) })
                }
            };
        }
        if let Some(index) = find_index(path)? {
            return Self::safetensors(&index, select, Safetensors::open_index(&index));
        }
        let single = path.join(SINGLE_FILE);
        if single.exists() {
            return Self::safetensors(&single, select, Safetensors::open_file(&single));
        }
        Err(ImportError::NoCheckpoint { path: path.to_owned() })
    }

    /// Names without prefix, source dtypes and shapes.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// Names of what is there but was not taken: tensors outside the prefix, and what is no tensor.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Fills `buffer` with logical bytes (little-endian, row-major, of the source dtype) of the tensor
    /// at `index` of [`Self::tensors`], from byte `offset` on.
    ///
    /// # Errors
    ///
    /// The range ends past the tensor, a chunk of it is refused, or the system says why not.
    pub fn read(&self, index: usize, offset: u64, buffer: &mut [u8]) -> Result<(), ImportError> {
        let place = self.places[index];
        match &self.form {
            Form::Dcp(dcp) => dcp.read(place, offset, buffer).map_err(|e| self.dcp_error(e)),
            Form::Safetensors(file) => file
                .read(place, offset, buffer)
                .map_err(|source| ImportError::Safetensors { path: self.path.clone(), source }),
        }
    }

    /// Checks the CRCs of the archives that hold a tensor, by reading them through once more. Formats
    /// without CRCs (safetensors) have nothing to check.
    ///
    /// # Errors
    ///
    /// As [`Self::read`]; the CRC of a chunk is wrong.
    pub fn verify(&self, index: usize) -> Result<(), ImportError> {
        match &self.form {
            Form::Dcp(dcp) => dcp.verify(self.places[index]).map_err(|e| self.dcp_error(e)),
            Form::Safetensors(_) => Ok(()),
        }
    }

    fn dcp_error(&self, error: DcpError) -> ImportError {
        ImportError::Dcp { path: self.path.clone(), source: Box::new(error) }
    }

    fn dcp(path: &Path, dcp: DcpCheckpoint) -> Result<Self, ImportError> {
        let named = dcp.tensors().iter().map(|tensor| tensor.spec().clone()).enumerate().collect();
        let left_out = dcp.left_out().to_vec();
        Self::new(path, Form::Dcp(dcp), named, left_out)
    }

    fn safetensors(
        path: &Path,
        select: Option<&str>,
        opened: Result<Safetensors, SafetensorsError>,
    ) -> Result<Self, ImportError> {
        let file =
            opened.map_err(|source| ImportError::Safetensors { path: path.to_owned(), source })?;
        let mut prefix = select.unwrap_or_default().to_owned();
        if !prefix.is_empty() && !prefix.ends_with('.') {
            prefix.push('.');
        }
        let (mut named, mut left_out) = (Vec::new(), Vec::new());
        for place in 0..file.len() {
            let spec = file.spec(place);
            match spec.name().strip_prefix(&prefix) {
                Some(name) => {
                    named.push((place, TensorSpec::new(name, spec.dtype(), spec.shape())?));
                }
                None => left_out.push(spec.name().to_owned()),
            }
        }
        if named.is_empty() {
            let example = left_out.first().cloned().unwrap_or_default();
            return Err(ImportError::Nothing { prefix, example });
        }
        Self::new(path, Form::Safetensors(file), named, left_out)
    }

    fn new(
        path: &Path,
        form: Form,
        mut named: Vec<(usize, TensorSpec)>,
        left_out: Vec<String>,
    ) -> Result<Self, ImportError> {
        named.sort_by(|a, b| a.1.name().cmp(b.1.name()));
        if let Some(pair) = named.windows(2).find(|pair| pair[0].1.name() == pair[1].1.name()) {
            return Err(ImportError::Collision { name: pair[0].1.name().to_owned() });
        }
        let (places, tensors) = named.into_iter().unzip();
        Ok(Self { path: path.to_owned(), form, tensors, places, left_out })
    }
}

/// The index of shards in a folder: that of `model`, or the only one.
fn find_index(folder: &Path) -> Result<Option<PathBuf>, ImportError> {
    let io = |source| ImportError::Io { path: folder.to_owned(), source };
    let usual = folder.join(format!("model{INDEX_SUFFIX}"));
    if usual.exists() {
        return Ok(Some(usual));
    }
    let mut found: Option<OsString> = None;
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        if name.to_string_lossy().ends_with(INDEX_SUFFIX) {
            if let Some(first) = found {
                let path = folder.to_owned();
                return Err(ImportError::Ambiguous { path, first, second: name });
            }
            found = Some(name);
        }
    }
    Ok(found.map(|name| folder.join(name)))
}
