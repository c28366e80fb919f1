//! A model as a fold rule sees it: which tensors it takes, cut how; which stay frozen.

use crate::types::{
    digest::Digest,
    grid::{Grid, Unblockable},
    manifest::{ArtifactType, Descriptor, Manifest, ManifestError, group},
    rule::SparseMeanSgd,
    tensor::{Dtype, TensorError, TensorSpec},
};

/// One tensor that the rule folds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorLayout {
    /// Its position in the checkpoint's manifest.
    pub position: usize,
    /// Its name.
    pub name: String,
    /// Its rank: 1 or 2.
    pub rank: usize,
    /// How it is cut.
    pub grid: Grid,
    /// Entries kept of each block: even, at least 2.
    pub k: u64,
    /// Bits of a code: 2, 4 or 8.
    pub code_bits: u32,
}

impl TensorLayout {
    /// Bytes of a block's packed positions: 12 bits each.
    pub fn index_bytes_per_block(&self) -> u64 {
        self.k * 3 / 2
    }

    /// Bytes of a block's packed codes, padded to a byte.
    pub fn code_bytes_per_block(&self) -> u64 {
        (self.k * u64::from(self.code_bits)).div_ceil(8)
    }

    /// How Templar shapes the blocks: rows and columns of blocks, or the blocks of a 1-D tensor.
    pub fn block_shape(&self) -> Vec<u64> {
        let columns = self.grid.columns / self.grid.block_columns;
        if self.rank == 1 {
            vec![columns]
        } else {
            vec![self.grid.rows / self.grid.block_rows, columns]
        }
    }

    /// Bytes of the book: `bins` lookup values and the shift, f32 each.
    pub fn book_bytes(&self) -> u64 {
        4 * ((1 << self.code_bits) + 1)
    }

    /// The spec of the delta's artifact of this tensor in `group`.
    ///
    /// # Errors
    ///
    /// [`TensorError::Size`] if it does not fit in 2^53 bytes.
    pub fn artifact(&self, group: DeltaGroup) -> Result<TensorSpec, TensorError> {
        let blocks = self.grid.blocks();
        let bins = 1 << self.code_bits;
        let (dtype, shape) = match group {
            DeltaGroup::Index => (Dtype::U8, vec![blocks, self.index_bytes_per_block()]),
            DeltaGroup::Code => (Dtype::U8, vec![blocks, self.code_bytes_per_block()]),
            DeltaGroup::Book => (Dtype::F32, vec![bins + 1]),
        };
        TensorSpec::new(&self.name, dtype, &shape)
    }
}

/// The three artifacts that a delta has for each tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeltaGroup {
    /// Lookup values and shift.
    Book,
    /// Packed codes.
    Code,
    /// Packed positions.
    Index,
}

impl DeltaGroup {
    /// All three, in manifest order.
    pub const ALL: [Self; 3] = [Self::Book, Self::Code, Self::Index];

    /// The group of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.name() == name)
    }

    /// The group's name in descriptors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Book => group::BOOK,
            Self::Code => group::CODE,
            Self::Index => group::INDEX,
        }
    }
}

/// A tensor that the rule does not take, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// Its position in the checkpoint's manifest.
    pub position: usize,
    /// Its name.
    pub name: String,
    /// Why the rule does not take it.
    pub why: Unblockable,
}

/// A model as a rule sees it, tensors in manifest order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// What the rule folds.
    pub tensors: Vec<TensorLayout>,
    /// What it leaves as it is.
    pub frozen: Vec<Frozen>,
}

impl Layout {
    /// The layout of a checkpoint's weights under `rule`.
    ///
    /// # Errors
    ///
    /// [`TensorError`]; never for the manifest of a sealed checkpoint.
    pub fn of(manifest: &Manifest, rule: &SparseMeanSgd) -> Result<Self, TensorError> {
        let mut layout = Self::default();
        for (position, descriptor) in manifest.descriptors().iter().enumerate() {
            if descriptor.group != group::WEIGHTS {
                continue;
            }
            let name = descriptor.name.clone();
            match Grid::of(&descriptor.spec()?, rule.chunk) {
                Ok(grid) => layout.tensors.push(TensorLayout {
                    position,
                    name,
                    rank: descriptor.shape.len(),
                    grid,
                    k: grid.k(rule.top_k),
                    code_bits: rule.code_bits(),
                }),
                Err(why) => layout.frozen.push(Frozen { position, name, why }),
            }
        }
        Ok(layout)
    }

    /// The tensor called `name`, if the rule takes it.
    pub fn find(&self, name: &str) -> Option<&TensorLayout> {
        // Manifest order is by name within the group.
        self.tensors
            .binary_search_by(|t| t.name.as_str().cmp(name))
            .ok()
            .map(|at| &self.tensors[at])
    }

    /// The manifest of a delta, from each artifact's root.
    ///
    /// # Errors
    ///
    /// [`ManifestError`]; never for a layout made by [`Layout::of`].
    pub fn delta_manifest(
        &self,
        root: impl Fn(DeltaGroup, usize) -> Digest,
    ) -> Result<Manifest, ManifestError> {
        let mut descriptors = Vec::with_capacity(3 * self.tensors.len());
        for group in DeltaGroup::ALL {
            for (at, tensor) in self.tensors.iter().enumerate() {
                let spec = tensor
                    .artifact(group)
                    .map_err(|source| ManifestError::Tensor { index: at as u64, source })?;
                let root = root(group, at);
                descriptors.push(Descriptor::new(ArtifactType::Delta, group.name(), &spec, root));
            }
        }
        Manifest::new(descriptors)
    }

    /// Whether `manifest` has just the artifacts that a delta for this layout has.
    pub fn is_delta(&self, manifest: &Manifest) -> bool {
        let roots = |group: DeltaGroup, at: usize| {
            manifest
                .find(group.name(), &self.tensors[at].name)
                .map_or(Digest::default(), |d| d.root)
        };
        self.delta_manifest(roots).is_ok_and(|expected| &expected == manifest)
    }
}
