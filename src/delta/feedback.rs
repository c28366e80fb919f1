//! The state file: what the rounds so far did not send, and the round and delta it stands after.
//!
//! Written beside its place, synced, renamed over the old one. See `schema/feedback.md`.
//!
//! Trust: it is the miner's own. What does not read is an error; its values are not checked
//! against anything but being finite once the gradient was added.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use gradledger_kernels::{bytes as f32_bytes, codes};
use rayon::prelude::*;

use super::{
    DeltaError, Made, Sweep,
    bands::{Band, each_band},
    encode::{Encoded, runs, small},
    inputs::Inputs,
    output::{Published, SentRows, Through, parent},
};
use crate::{
    codec::layout::{Layout, TensorLayout},
    import::{
        safetensors::{Safetensors, metadata},
        safetensors_writer::{Part, header},
        source::Source,
    },
    store::files::{Files, create_dir_durable},
    types::{bits::F32Bits, digest::Digest, grid::Grid, manifest::ManifestId, tensor::Dtype},
};

/// The metadata's key that says what the file is, and the version that is read and written.
const KIND: (&str, &str) = ("gradledger_feedback", "1");

/// A state file, its header read.
pub(super) struct Feedback {
    path: PathBuf,
    file: Safetensors,
    made: Made,
    delta: ManifestId,
}

impl Feedback {
    /// Opens the state at `path`; none if there is no file.
    pub(super) fn open(
        files: &dyn Files,
        path: &Path,
        layout: &Layout,
    ) -> Result<Option<Self>, DeltaError> {
        if !files.exists(path).map_err(DeltaError::io(path))? {
            return Ok(None);
        }
        let source: Arc<dyn Source> =
            Arc::new(Through::open(files, path).map_err(DeltaError::io(path))?);
        let failed = |source| DeltaError::StateFile { path: path.to_owned(), source };
        let texts = Texts { path, texts: metadata(source.as_ref()).map_err(failed)? };
        let (made, delta) = texts.read()?;
        let file = Safetensors::of_source(source).map_err(failed)?;
        check_tensors(path, &file, layout)?;
        Ok(Some(Self { path: path.to_owned(), file, made, delta }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it was advanced with.
    pub(super) fn made(&self) -> &Made {
        &self.made
    }

    /// The delta it was advanced for.
    pub(super) fn delta(&self) -> ManifestId {
        self.delta
    }

    /// Fills `out` with the kept error of a tensor from `element` on.
    pub(super) fn read(
        &self,
        tensor: &TensorLayout,
        element: u64,
        out: &mut [f32],
    ) -> Result<(), DeltaError> {
        let at = self.find(&tensor.name).expect("it was found when the state was opened");
        let read = self.file.read(at, 4 * element, f32_bytes::of_f32_mut(out));
        read.map_err(|source| DeltaError::StateFile { path: self.path.clone(), source })
    }

    fn find(&self, name: &str) -> Option<usize> {
        find(&self.file, name)
    }
}

fn find(file: &Safetensors, name: &str) -> Option<usize> {
    let (mut low, mut high) = (0, file.len());
    while low < high {
        let middle = low + (high - low) / 2;
        match file.spec(middle).name().cmp(name) {
            std::cmp::Ordering::Equal => return Some(middle),
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    None
}

fn shape(tensor: &TensorLayout) -> Vec<u64> {
    let Grid { rows, columns, .. } = tensor.grid;
    if tensor.rank == 1 { vec![columns] } else { vec![rows, columns] }
}

/// That the file holds the model's tensors in f32, and no others.
fn check_tensors(path: &Path, file: &Safetensors, layout: &Layout) -> Result<(), DeltaError> {
    let wrong = |what: String| DeltaError::State { path: path.to_owned(), what };
    for tensor in &layout.tensors {
        let name = &tensor.name;
        let at = find(file, name).ok_or_else(|| wrong(format!("it has no tensor {name:?}")))?;
        let spec = file.spec(at);
        if spec.dtype() != Dtype::F32 || spec.shape() != shape(tensor) {
            let found = format!("{name:?} is {} {:?}", spec.dtype(), spec.shape());
            return Err(wrong(format!("{found}, not F32 {:?}", shape(tensor))));
        }
    }
    let (found, expected) = (file.len(), layout.tensors.len());
    if found == expected {
        Ok(())
    } else {
        Err(wrong(format!("it has {found} tensors, not {expected}")))
    }
}

/// The texts of a state's header.
struct Texts<'a> {
    path: &'a Path,
    texts: BTreeMap<String, String>,
}

impl Texts<'_> {
    fn read(&self) -> Result<(Made, ManifestId), DeltaError> {
        let (key, version) = KIND;
        let found: String = self.value(key)?;
        if found != version {
            let what = format!("{key} is {found:?}, not {version:?}");
            return Err(DeltaError::State { path: self.path.to_owned(), what });
        }
        let delta = ManifestId {
            root: self.value("delta")?,
            count: self.value("delta_count")?,
            bytes: self.value("delta_bytes")?,
        };
        let bits = self.value::<String>("decay_f32")?;
        let decay = u32::from_str_radix(&bits, 16).map_err(|_| self.wrong("decay_f32"))?;
        let made = Made {
            round: self.value("round")?,
            base: self.value("base")?,
            trained: self.value("trained")?,
            decay_f32: F32Bits(f32::from_bits(decay)),
            range: self.value("range")?,
            chunk: self.value("chunk")?,
            top_k: self.value("top_k")?,
            bins: self.value("bins")?,
        };
        Ok((made, delta))
    }

    fn value<T: FromStr>(&self, key: &str) -> Result<T, DeltaError> {
        let text = self.texts.get(key).ok_or_else(|| self.wrong(key))?;
        text.parse().map_err(|_| self.wrong(key))
    }

    fn wrong(&self, key: &str) -> DeltaError {
        let what = match self.texts.get(key) {
            Some(text) => {
                let text: String = text.chars().take(80).collect();
                format!("its {key} is {text:?}")
            }
            None => format!("its header has no {key}"),
        };
        DeltaError::State { path: self.path.to_owned(), what }
    }
}

fn texts(made: &Made, delta: &ManifestId) -> BTreeMap<&'static str, String> {
    let Made { round, base, trained, decay_f32, range, chunk, top_k, bins } = made;
    let hex = |digest: &Digest| digest.to_hex();
    BTreeMap::from([
        (KIND.0, KIND.1.to_owned()),
        ("round", round.to_string()),
        ("delta", hex(&delta.root)),
        ("delta_count", delta.count.to_string()),
        ("delta_bytes", delta.bytes.to_string()),
        ("base", hex(base)),
        ("trained", hex(trained)),
        ("decay_f32", format!("{:08x}", decay_f32.0.to_bits())),
        ("range", range.to_string()),
        ("chunk", chunk.to_string()),
        ("top_k", top_k.to_string()),
        ("bins", bins.to_string()),
    ])
}

/// The second sweep: writes what `published` leaves of the error, and puts it in the state's place.
pub(super) fn advance(
    sweep: &Sweep<'_>,
    inputs: &Inputs<'_>,
    published: &Published,
    made: &Made,
    encoded: &Encoded<'_>,
    path: &Path,
) -> Result<(), DeltaError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let at = |error| DeltaError::io(path)(error);
    let layout = inputs.job.layout;
    create_dir_durable(sweep.files, parent(path)).map_err(at)?;
    let mut file = sweep.files.create(&new).map_err(at)?;
    let shapes: Vec<_> = layout.tensors.iter().map(|t| (t.name.as_str(), shape(t))).collect();
    let parts = shapes.iter().map(|(name, shape)| Part { name, dtype: Dtype::F32, shape });
    file.write_all(&header(&texts(made, &encoded.delta), parts)).map_err(at)?;
    for (tensor, first_roots) in layout.tensors.iter().zip(&encoded.roots.0) {
        let sent = published.tensor(tensor)?;
        let roots = each_band(sweep, inputs, tensor, |band| {
            subtract(sweep, tensor, &sent, band)?;
            file.write_all(f32_bytes::of_f32(&band.error)).map_err(at)
        })?;
        if roots != *first_roots {
            let which = if roots.0 == first_roots.0 { "trained checkpoint" } else { "base" };
            return Err(DeltaError::Changed { which, tensor: tensor.name.clone() });
        }
    }
    file.sync().map_err(at)?;
    drop(file);
    sweep.files.rename(&new, path).map_err(at)?;
    sweep.files.sync_dir(parent(path)).map_err(at)
}

/// `error = error - decoded`, in f32, where something is sent.
fn subtract(
    sweep: &Sweep<'_>,
    tensor: &TensorLayout,
    sent: &SentRows<'_>,
    band: &mut Band,
) -> Result<(), DeltaError> {
    let rows = sent.rows(band.first_block, band.blocks)?;
    let grid = &tensor.grid;
    let decoded: Vec<f32> = sent.book.lookup.iter().map(|value| value + sent.book.shift).collect();
    let unit_blocks = small(grid.unit_blocks());
    let unit_elements = unit_blocks * small(grid.block_elements());
    let (index_bytes, k) = (small(tensor.index_bytes_per_block()), small(tensor.k));
    let width = small(grid.block_columns);
    let in_unit = |(unit, (index, code)): (&mut [f32], (&[u8], &[u8]))| {
        let blocks = index.chunks_exact(index_bytes).zip(code.chunks_exact(k));
        for (block, (index, code)) in blocks.enumerate() {
            let first = runs(grid, block).next().map_or(0, |run| run.start);
            for (position, &code) in codes::indices(index).zip(code) {
                let (row, column) = (usize::from(position) / width, usize::from(position) % width);
                let place = first + row * small(grid.columns) + column;
                let (element, value) = (unit.get_mut(place)?, decoded.get(usize::from(code))?);
                *element -= value;
            }
        }
        Some(())
    };
    sweep
        .pool
        .install(|| {
            band.error
                .par_chunks_exact_mut(unit_elements)
                .zip(
                    rows.index
                        .par_chunks_exact(unit_blocks * index_bytes)
                        .zip(rows.codes.par_chunks_exact(unit_blocks * k)),
                )
                .map(in_unit)
                .collect::<Option<()>>()
        })
        .ok_or_else(|| sent.wrong())
}
