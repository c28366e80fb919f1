//! Where a delta goes: a directory of delta segments, or a gradient file as Templar's miners write it.
//!
//! Written beside its place, synced, renamed; then read back, so that what is subtracted from the
//! error is what the ledger will decode.

use std::{
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use gradledger_kernels::codes;

use super::{
    DeltaError, DeltaJob,
    encode::{ArtifactRoots, Sent, root_in, small},
};
use crate::{
    codec::{book::Book, layout::TensorLayout},
    import::{
        source::Source,
        templar::{GradientFile, Parts},
        templar_writer::{GradientMetadata, GradientTensor, GradientWriter},
        torch::TensorRef,
    },
    merkle::{
        manifest::manifest_id,
        pieces::{PieceHasher, Pieces},
    },
    store::{
        files::{Files, ReadFile, WriteFile, create_dir_durable},
        segment::{
            LogicalBytes,
            delta::{DeltaSegments, DeltaWriter},
        },
    },
    types::{manifest::ManifestId, tensor::Dtype},
};

/// Blocks whose rows are read at once when all of a delta is hashed.
const ROWS: u64 = 1 << 12;

/// What Templar's layout has for the samples that were trained on, when nobody says.
const NO_SAMPLES: &str = "00000000000000000000000000000000";

/// In which form a delta is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A directory of delta segments, which `submit` takes.
    Native,
    /// A gradient file that Templar's reader takes.
    Templar,
}

/// Where a delta goes.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// A directory or a file, by the format.
    pub path: &'a Path,
    /// Its form.
    pub format: Format,
}

/// The place beside `path` where it is written.
fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    beside.into()
}

/// The directory that names `path`.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

type TemplarWriter = GradientWriter<BufWriter<Box<dyn WriteFile>>>;

/// A delta being written.
pub(super) enum Draft<'f> {
    /// A dry run.
    Nowhere,
    Native(DeltaWriter<'f>),
    Templar(TemplarWriter),
    /// All is written and synced.
    Done,
}

impl<'f> Draft<'f> {
    pub(super) fn create(files: &'f dyn Files, job: &DeltaJob<'_>) -> Result<Self, DeltaError> {
        let Some(Output { path, format }) = job.output else { return Ok(Self::Nowhere) };
        let new = beside(path);
        let at = |error| DeltaError::io(&new)(error);
        create_dir_durable(files, parent(path)).map_err(at)?;
        if files.exists(&new).map_err(at)? {
            // Of a run that was killed.
            remove(files, &new, format).map_err(at)?;
        }
        match format {
            Format::Native => {
                Ok(Self::Native(DeltaWriter::create(files, &new, small(job.rule.bins))?))
            }
            Format::Templar => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                let out = BufWriter::with_capacity(1 << 20, files.create(&new).map_err(at)?);
                Ok(Self::Templar(GradientWriter::new(out, &format!("temp_{stem}"))?))
            }
        }
    }

    pub(super) fn tensor(&mut self, sent: &Sent<'_>) -> Result<(), DeltaError> {
        let Sent { tensor, index, codes, packed, book, scale } = sent;
        match self {
            Self::Nowhere | Self::Done => Ok(()),
            Self::Native(writer) => {
                let mut rows = writer.tensor(&tensor.name, tensor.k, tensor.grid.blocks())?;
                rows.write_index(index)?;
                rows.write_code(packed)?;
                rows.finish()?;
                Ok(writer.book(&tensor.name, &book.to_bytes())?)
            }
            Self::Templar(writer) => {
                let mut shape = tensor.block_shape();
                shape.push(tensor.k);
                Ok(writer.tensor(&GradientTensor {
                    name: &tensor.name,
                    idxs: index,
                    vals: codes,
                    vals_shape: &shape,
                    shift: book.shift,
                    scale: f64::from(*scale),
                    lookup: &book.lookup,
                })?)
            }
        }
    }

    /// Writes what remains and syncs it.
    pub(super) fn finish(&mut self, job: &DeltaJob<'_>) -> Result<(), DeltaError> {
        match std::mem::replace(self, Self::Done) {
            Self::Nowhere | Self::Done => Ok(()),
            Self::Native(writer) => Ok(writer.finish()?),
            Self::Templar(writer) => {
                let metadata = GradientMetadata {
                    window: job.round as i64, // Checked to be below 2^53.
                    global_step: 0,
                    sample_digest: NO_SAMPLES,
                    sample_count: 0,
                };
                let mut out = writer.finish(&metadata)?;
                let path = job.output.map_or(Path::new(""), |output| output.path);
                out.flush().and_then(|()| out.get_mut().sync()).map_err(DeltaError::io(path))
            }
        }
    }

    /// Renames it to its place, durably. A run that was killed may have done so already.
    pub(super) fn publish(
        &self,
        files: &dyn Files,
        output: Output<'_>,
        job: &DeltaJob<'_>,
        delta: ManifestId,
    ) -> Result<Published, DeltaError> {
        let (path, new) = (output.path, beside(output.path));
        let at = |error| DeltaError::io(path)(error);
        // A directory that was made for it may stand there.
        let free = !files.exists(path).map_err(at)?
            || output.format == Format::Native
                && files.list(path).is_ok_and(|names| names.is_empty());
        if free {
            files.rename(&new, path).map_err(at)?;
        } else {
            let there = Published::check(files, output, job, delta);
            remove(files, &new, output.format).map_err(at)?;
            there?;
        }
        files.sync_dir(parent(path)).map_err(at)?;
        Published::open(files, output)
    }
}

fn remove(files: &dyn Files, path: &Path, format: Format) -> io::Result<()> {
    match format {
        Format::Native => files.remove_dir_all(path),
        Format::Templar => files.remove(path),
    }
}

/// A delta at its place.
pub(super) struct Published {
    path: PathBuf,
    form: Form,
}

enum Form {
    Native(DeltaSegments),
    Templar(Box<GradientFile>),
}

/// A file read through the one door to the disk, as the readers of foreign files take it.
pub(super) struct Through {
    file: Arc<dyn ReadFile>,
    len: u64,
}

impl Through {
    pub(super) fn open(files: &dyn Files, path: &Path) -> io::Result<Self> {
        let file = files.open(path)?;
        Ok(Self { len: file.len()?, file })
    }
}

impl Source for Through {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

impl Published {
    pub(super) fn open(files: &dyn Files, output: Output<'_>) -> Result<Self, DeltaError> {
        let path = output.path.to_owned();
        let form = match output.format {
            Format::Native => Form::Native(DeltaSegments::open(files, &path)?),
            Format::Templar => {
                let source = Through::open(files, &path).map_err(DeltaError::io(&path))?;
                let file = GradientFile::open(Arc::new(source)).map_err(|source| {
                    DeltaError::Templar { path: path.clone(), source: Box::new(source) }
                })?;
                Form::Templar(Box::new(file))
            }
        };
        Ok(Self { path, form })
    }

    /// That the delta `expected` is there, and nothing else.
    pub(super) fn check(
        files: &dyn Files,
        output: Output<'_>,
        job: &DeltaJob<'_>,
        expected: ManifestId,
    ) -> Result<(), DeltaError> {
        let occupied = |found: String| {
            let (path, expected) = (output.path.to_owned(), expected.root);
            DeltaError::Occupied { path, expected, found }
        };
        let found = Self::open(files, output).and_then(|there| there.id(job));
        match found.map_err(|error| occupied(error.to_string()))? {
            found if found == expected => Ok(()),
            found => Err(occupied(format!("it is {}", found.root))),
        }
    }

    /// What it is, by hashing all of it.
    fn id(&self, job: &DeltaJob<'_>) -> Result<ManifestId, DeltaError> {
        let tensors = &job.layout.tensors;
        let roots =
            tensors.iter().map(|tensor| self.roots(tensor)).collect::<Result<Vec<_>, _>>()?;
        Ok(manifest_id(&job.layout.delta_manifest(|group, at| root_in(&roots[at], group))?))
    }

    fn roots(&self, tensor: &TensorLayout) -> Result<ArtifactRoots, DeltaError> {
        let sent = self.tensor(tensor)?;
        let (mut index, mut code) = (PieceHasher::new(), PieceHasher::new());
        let (mut packed, blocks) = (Vec::new(), tensor.grid.blocks());
        for first in (0..blocks).step_by(ROWS as usize) {
            let rows = sent.rows(first, ROWS.min(blocks - first))?;
            index.update(&rows.index);
            packed.clear();
            codes::pack_codes(&rows.codes, small(tensor.k), tensor.code_bits, &mut packed)
                .map_err(|_| sent.wrong())?;
            code.update(&packed);
        }
        let book = Pieces::of(&sent.book.to_bytes()).artifact.root;
        Ok([book, code.finish().artifact.root, index.finish().artifact.root])
    }

    /// One tensor's part.
    pub(super) fn tensor<'a>(
        &'a self,
        tensor: &'a TensorLayout,
    ) -> Result<SentRows<'a>, DeltaError> {
        let (book, columns) = match &self.form {
            Form::Native(segments) => {
                let book = segments.book(&tensor.name)?;
                let mut bytes = vec![0; small(tensor.book_bytes())];
                book.read_at(0, &mut bytes)?;
                let (index, code) = (segments.index(&tensor.name)?, segments.code(&tensor.name)?);
                (Book::from_bytes(&bytes), Columns::Native { index, code })
            }
            Form::Templar(file) => self.templar(file, tensor)?,
        };
        Ok(SentRows { path: &self.path, tensor, book, columns })
    }

    fn templar<'a>(
        &self,
        file: &'a GradientFile,
        tensor: &TensorLayout,
    ) -> Result<(Book, Columns<'a>), DeltaError> {
        let wrong = || DeltaError::Sent { path: self.path.clone(), tensor: tensor.name.clone() };
        let parts = file.delta().parts.get(tensor.name.as_str());
        let Some(Parts { idxs: Some(index), vals: Some(code), quant_params: Some(quant) }) = parts
        else {
            return Err(wrong());
        };
        let (Some(lookup), Some(shift)) = (&quant.lookup, &quant.shift) else {
            return Err(wrong());
        };
        let entries = tensor.grid.blocks() * tensor.k;
        let fits = |part: &TensorRef, dtype, bytes| part.dtype() == dtype && part.bytes() == bytes;
        if !(fits(lookup, Dtype::F32, tensor.book_bytes() - 4)
            && fits(shift, Dtype::F32, 4)
            && fits(index, Dtype::U8, entries / 2 * 3)
            && fits(code, Dtype::U8, entries))
        {
            return Err(wrong());
        }
        let mut bytes = vec![0; small(tensor.book_bytes())];
        let (values, last) = bytes.split_at_mut(small(tensor.book_bytes() - 4));
        for (part, bytes) in [(lookup, values), (shift, last)] {
            let read = file.archive().read_at(part, 0, bytes);
            read.map_err(|source| DeltaError::Torch { path: self.path.clone(), source })?;
        }
        Ok((Book::from_bytes(&bytes), Columns::Templar { file, index, code }))
    }
}

enum Columns<'a> {
    Native { index: Arc<dyn LogicalBytes>, code: Arc<dyn LogicalBytes> },
    Templar { file: &'a GradientFile, index: &'a TensorRef, code: &'a TensorRef },
}

/// One tensor's part of a delta at its place.
pub(super) struct SentRows<'a> {
    path: &'a Path,
    tensor: &'a TensorLayout,
    pub book: Book,
    columns: Columns<'a>,
}

/// Some blocks of it.
pub(super) struct Rows {
    /// Packed positions.
    pub index: Vec<u8>,
    /// A code a byte.
    pub codes: Vec<u8>,
}

impl SentRows<'_> {
    /// The rows of `blocks` blocks from `first` on.
    pub(super) fn rows(&self, first: u64, blocks: u64) -> Result<Rows, DeltaError> {
        let tensor = self.tensor;
        let (index_bytes, code_bytes) = match self.columns {
            Columns::Native { .. } => {
                (tensor.index_bytes_per_block(), tensor.code_bytes_per_block())
            }
            Columns::Templar { .. } => (tensor.index_bytes_per_block(), tensor.k),
        };
        let mut index = vec![0; small(blocks * index_bytes)];
        let mut code = vec![0; small(blocks * code_bytes)];
        match &self.columns {
            Columns::Native { index: from, code: codes_from } => {
                from.read_at(first * index_bytes, &mut index)?;
                codes_from.read_at(first * code_bytes, &mut code)?;
                let mut codes = Vec::new();
                codes::unpack_codes(&code, small(tensor.k), tensor.code_bits, &mut codes);
                Ok(Rows { index, codes })
            }
            Columns::Templar { file, index: from, code: codes_from } => {
                let at = |source| DeltaError::Torch { path: self.path.to_owned(), source };
                file.archive().read_at(from, first * index_bytes, &mut index).map_err(at)?;
                file.archive().read_at(codes_from, first * code_bytes, &mut code).map_err(at)?;
                Ok(Rows { index, codes: code })
            }
        }
    }

    pub(super) fn wrong(&self) -> DeltaError {
        DeltaError::Sent { path: self.path.to_owned(), tensor: self.tensor.name.clone() }
    }
}
