//! What a delta is made of: the base's and the trained values, as f32, front to back.

use gradledger_kernels::{bytes as f32_bytes, widen};

use super::{DeltaError, DeltaJob, Sweep, bands::Cut, feedback::Feedback};
use crate::{
    codec::layout::{Layout, TensorLayout},
    import::checkpoint::Checkpoint,
    merkle::{manifest::manifest_id, pieces::PieceHasher},
    store::artifacts::{ArtifactReader, StoredCheckpoint},
    types::{
        digest::Digest,
        grid::Grid,
        manifest::{ArtifactType, Descriptor, Manifest, group},
        rule::SparseMeanSgd,
        tensor::{Dtype, TensorSpec},
    },
};

/// A checkpoint that is read tensor by tensor.
pub enum Weights {
    /// A ledger's state, re-hashed as it is read.
    Stored(Box<StoredCheckpoint>),
    /// A foreign one; its name in messages.
    Foreign(Box<Checkpoint>, &'static str),
}

impl Weights {
    /// The tensors as `rule` cuts them.
    ///
    /// # Errors
    ///
    /// [`DeltaError`]; never for a checkpoint that was opened.
    pub fn layout(&self, rule: &SparseMeanSgd) -> Result<Layout, DeltaError> {
        let checkpoint = match self {
            Self::Stored(stored) => return Ok(Layout::of(stored.manifest(), rule)?),
            Self::Foreign(checkpoint, _) => checkpoint,
        };
        let describe = |spec: &TensorSpec| {
            Descriptor::new(ArtifactType::Tensor, group::WEIGHTS, spec, Digest::default())
        };
        let manifest = Manifest::new(checkpoint.tensors().iter().map(describe).collect())?;
        Ok(Layout::of(&manifest, rule)?)
    }

    /// Names of tensors and other things that are there but not taken.
    pub fn left_out(&self, layout: &Layout) -> Vec<String> {
        let Self::Foreign(checkpoint, _) = self else { return Vec::new() };
        let unknown = |name: &&str| layout.find(name).is_none();
        let others = checkpoint.tensors().iter().map(TensorSpec::name).filter(unknown);
        checkpoint.left_out().iter().cloned().chain(others.map(str::to_owned)).collect()
    }

    /// That the tensor is there, has the shape, and elements that are read.
    pub(super) fn check(&self, tensor: &TensorLayout) -> Result<(), DeltaError> {
        let (spec, which) = match self {
            Self::Stored(stored) => {
                let found = stored.manifest().find(group::WEIGHTS, &tensor.name);
                (found.map(Descriptor::spec).transpose()?, "base")
            }
            Self::Foreign(checkpoint, which) => {
                (place(checkpoint, &tensor.name).map(|at| checkpoint.tensors()[at].clone()), *which)
            }
        };
        let name = || tensor.name.clone();
        let spec = spec.ok_or_else(|| DeltaError::Missing { which, name: name() })?;
        let Grid { rows, columns, .. } = tensor.grid;
        let expected = if tensor.rank == 1 { vec![columns] } else { vec![rows, columns] };
        if spec.shape() != expected || !spec.dtype().widens_to_f32() {
            let (dtype, found) = (spec.dtype(), spec.shape().to_vec());
            return Err(DeltaError::Shape { which, name: name(), dtype, found, expected });
        }
        Ok(())
    }

    /// The values of a tensor that [`Weights::check`] has found good.
    pub(super) fn open(&self, tensor: &TensorLayout) -> Result<Values<'_>, DeltaError> {
        let source = match self {
            Self::Stored(stored) => {
                let at = stored.manifest().position(group::WEIGHTS, &tensor.name);
                let at = at.expect("it was found when the job was checked");
                let root = stored.manifest().descriptors()[at].root;
                Source::Stored { reader: stored.tensor(at)?, root }
            }
            Self::Foreign(checkpoint, _) => {
                let at = place(checkpoint, &tensor.name);
                let index = at.expect("it was found when the job was checked");
                let dtype = checkpoint.tensors()[index].dtype();
                let (raw, hasher) = (Vec::new(), PieceHasher::new());
                Source::Foreign { checkpoint, index, dtype, offset: 0, raw, hasher }
            }
        };
        Ok(Values { source })
    }
}

fn place(checkpoint: &Checkpoint, name: &str) -> Option<usize> {
    checkpoint.tensors().binary_search_by(|spec| spec.name().cmp(name)).ok()
}

/// One tensor's values.
pub(super) struct Values<'a> {
    source: Source<'a>,
}

enum Source<'a> {
    Stored {
        reader: ArtifactReader,
        root: Digest,
    },
    Foreign {
        checkpoint: &'a Checkpoint,
        index: usize,
        dtype: Dtype,
        /// Bytes of the source that were read.
        offset: u64,
        raw: Vec<u8>,
        hasher: PieceHasher,
    },
}

impl Values<'_> {
    /// Fills `out` with the next values.
    pub(super) fn read(&mut self, out: &mut [f32]) -> Result<(), DeltaError> {
        match &mut self.source {
            Source::Stored { reader, .. } => Ok(reader.read_exact(f32_bytes::of_f32_mut(out))?),
            Source::Foreign { checkpoint, index, dtype, offset, raw, hasher } => {
                let bytes = out.len() * dtype.bytes() as usize;
                if *dtype == Dtype::F32 {
                    checkpoint.read(*index, *offset, f32_bytes::of_f32_mut(out))?;
                } else {
                    raw.resize(bytes, 0);
                    checkpoint.read(*index, *offset, raw)?;
                    match dtype {
                        Dtype::Bf16 => widen::bf16_slice_to_f32(raw, out),
                        _ => widen::f16_slice_to_f32(raw, out),
                    }
                }
                *offset += bytes as u64;
                hasher.update(f32_bytes::of_f32(out));
                Ok(())
            }
        }
    }

    /// The root of the values as f32, all of which were read.
    pub(super) fn root(self) -> Digest {
        match self.source {
            Source::Stored { root, .. } => root,
            Source::Foreign { hasher, .. } => hasher.finish().artifact.root,
        }
    }
}

/// What a job streams.
pub(super) struct Inputs<'a> {
    pub job: &'a DeltaJob<'a>,
    /// The error that was kept in the rounds before.
    pub old: Option<&'a Feedback>,
}

/// Per tensor of the layout: the root of its values in the base, and in the trained checkpoint.
#[derive(Default)]
pub(super) struct Roots(pub Vec<(Digest, Digest)>);

impl Roots {
    /// What identifies the base, and the trained checkpoint.
    pub(super) fn manifests(&self, layout: &Layout) -> (Digest, Digest) {
        let describe = |tensor: &TensorLayout, root: Digest| {
            let Grid { rows, columns, .. } = tensor.grid;
            let shape = if tensor.rank == 1 { vec![columns] } else { vec![rows, columns] };
            let spec = TensorSpec::new(&tensor.name, Dtype::F32, &shape);
            let spec = spec.expect("a tensor of a manifest has a spec");
            Descriptor::new(ArtifactType::Tensor, group::WEIGHTS, &spec, root)
        };
        let root_of = |of: fn(&(Digest, Digest)) -> Digest| {
            let roots = layout.tensors.iter().zip(&self.0);
            let descriptors = roots.map(|(tensor, roots)| describe(tensor, of(roots))).collect();
            manifest_id(&Manifest::new(descriptors).expect("tensors of a manifest make one")).root
        };
        (root_of(|roots| roots.0), root_of(|roots| roots.1))
    }
}

/// The roots of all inputs, by reading them.
pub(super) fn roots(sweep: &Sweep<'_>) -> Result<Roots, DeltaError> {
    let job = sweep.job;
    let root = |weights: &Weights, tensor: &TensorLayout| -> Result<Digest, DeltaError> {
        let mut values = weights.open(tensor)?;
        if let Source::Stored { root, .. } = values.source {
            return Ok(root);
        }
        let cut = Cut::new(tensor, job.band_bytes);
        let mut buffer = Vec::new();
        for (_, units) in cut.bands() {
            buffer.resize(cut.elements(units), 0.0);
            values.read(&mut buffer)?;
        }
        Ok(values.root())
    };
    let both = |tensor: &TensorLayout| {
        let roots = (root(job.base, tensor)?, root(job.trained, tensor)?);
        sweep.progress.advance(4 * tensor.grid.rows * tensor.grid.columns);
        Ok(roots)
    };
    sweep.pool.install(|| job.layout.tensors.iter().map(both).collect::<Result<_, _>>().map(Roots))
}
