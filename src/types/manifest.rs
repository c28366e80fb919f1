//! Descriptors of artifacts and the manifests that list them.
//!
//! An artifact is a run of logical bytes: little-endian, row-major, no padding. Its descriptor says
//! what the bytes are and pins them by root and length; a manifest is the sorted list of the
//! descriptors of one checkpoint or one delta. See `schema/manifest.md`.

use serde::{Deserialize, Serialize};

use super::{
    digest::Digest,
    json,
    tensor::{Dtype, TensorError, TensorSpec},
};

/// log2 of the piece size.
pub const PIECE_LOG2: u8 = 16;

/// Bytes of a piece, the unit of hashing: 64 KiB.
pub const PIECE_BYTES: u64 = 1 << PIECE_LOG2;

/// Number of pieces of `bytes` logical bytes.
pub const fn piece_count(bytes: u64) -> u64 {
    bytes.div_ceil(PIECE_BYTES)
}

/// Groups an artifact can belong to. A state is named groups, not only weights: later rules add some.
pub mod group {
    /// Model parameters of a checkpoint.
    pub const WEIGHTS: &str = "weights";
    /// Packed 12-bit positions of a delta.
    pub const INDEX: &str = "index";
    /// Packed codes of a delta.
    pub const CODE: &str = "code";
    /// Lookup values and shift of a delta.
    pub const BOOK: &str = "book";
}

/// What kind of thing an artifact is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactType {
    /// A tensor of a checkpoint.
    Tensor,
    /// A part of a miner's delta.
    Delta,
}

/// What an artifact is, and the root and length that pin its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// Part of a checkpoint or of a delta.
    #[serde(rename = "type")]
    pub kind: ArtifactType,
    /// The named group, see [`group`].
    pub group: String,
    /// The tensor's name.
    pub name: String,
    /// Element type of the logical bytes.
    pub dtype: Dtype,
    /// Shape of the logical bytes.
    pub shape: Vec<u64>,
    /// Length of the logical bytes: the product of the shape times the dtype's size.
    pub bytes: u64,
    /// Always [`PIECE_LOG2`].
    pub piece_log2: u8,
    /// Root of the tree over the SHA-256 of the pieces.
    pub root: Digest,
}

/// A descriptor that contradicts itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ManifestError {
    #[error("descriptor {index}: {source}")]
    Json { index: u64, source: json::JsonError },
    #[error("descriptor {index}: {source}")]
    Tensor { index: u64, source: TensorError },
    #[error("descriptor of {name:?}: {bytes} bytes stand for a shape of {shape_bytes}")]
    Bytes { name: String, bytes: u64, shape_bytes: u64 },
    #[error("descriptor of {name:?}: piece_log2 is {found}, not {PIECE_LOG2}")]
    Piece { name: String, found: u8 },
    #[error("descriptor of {name:?}: group {group:?} is empty, too long or not lower-case ASCII")]
    Group { name: String, group: String },
    #[error("the manifest names {group}/{name:?} twice")]
    Twice { group: String, name: String },
    #[error("descriptor {index} is not in the order of (group, name)")]
    Order { index: u64 },
    #[error("the artifacts add up to more than 2^53 bytes")]
    Total,
}

impl Descriptor {
    /// The descriptor of `spec`'s bytes.
    pub fn new(kind: ArtifactType, group: &str, spec: &TensorSpec, root: Digest) -> Self {
        Self {
            kind,
            group: group.to_owned(),
            name: spec.name().to_owned(),
            dtype: spec.dtype(),
            shape: spec.shape().to_vec(),
            bytes: spec.bytes(),
            piece_log2: PIECE_LOG2,
            root,
        }
    }

    /// What the artifact's elements are.
    ///
    /// # Errors
    ///
    /// [`TensorError`] if name or size are not taken; never for a descriptor out of a [`Manifest`].
    pub fn spec(&self) -> Result<TensorSpec, TensorError> {
        TensorSpec::new(&self.name, self.dtype, &self.shape)
    }

    /// Root and length, the pair that pins the bytes.
    pub fn artifact(&self) -> ArtifactId {
        ArtifactId { root: self.root, bytes: self.bytes }
    }

    fn check(&self, index: u64) -> Result<(), ManifestError> {
        let name = || self.name.clone();
        let spec = self.spec().map_err(|source| ManifestError::Tensor { index, source })?;
        if spec.bytes() != self.bytes {
            let (bytes, shape_bytes) = (self.bytes, spec.bytes());
            return Err(ManifestError::Bytes { name: name(), bytes, shape_bytes });
        }
        if self.piece_log2 != PIECE_LOG2 {
            return Err(ManifestError::Piece { name: name(), found: self.piece_log2 });
        }
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if self.group.is_empty() || self.group.len() > 64 || !self.group.bytes().all(plain) {
            return Err(ManifestError::Group { name: name(), group: self.group.clone() });
        }
        Ok(())
    }
}

/// Root and length of logical bytes; one without the other pins nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactId {
    /// Root of the tree over the pieces' SHA-256.
    pub root: Digest,
    /// Length of the logical bytes.
    pub bytes: u64,
}

/// What identifies a checkpoint or a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestId {
    /// RFC 6962 root over the descriptors' canonical JSON.
    pub root: Digest,
    /// Number of descriptors.
    pub count: u64,
    /// Sum over the artifacts' lengths.
    pub bytes: u64,
}

/// The descriptors of one checkpoint or one delta, sorted by (group, name) bytewise, none twice.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Manifest {
    descriptors: Vec<Descriptor>,
}

impl Manifest {
    /// Sorts and checks `descriptors`.
    ///
    /// # Errors
    ///
    /// [`ManifestError`] if one contradicts itself or two have the same group and name.
    pub fn new(mut descriptors: Vec<Descriptor>) -> Result<Self, ManifestError> {
        descriptors.sort_by(|a, b| a.key().cmp(&b.key()));
        Self::checked(descriptors)
    }

    /// A manifest read back: its entries must be canonical, in order and without repeats.
    ///
    /// # Errors
    ///
    /// [`ManifestError`] names the first entry that is not.
    pub fn from_entries<'a>(
        entries: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, ManifestError> {
        let read = |(index, entry)| {
            json::from_slice(entry)
                .map_err(|source| ManifestError::Json { index: index as u64, source })
        };
        Self::checked(entries.into_iter().enumerate().map(read).collect::<Result<_, _>>()?)
    }

    fn checked(descriptors: Vec<Descriptor>) -> Result<Self, ManifestError> {
        let mut total = 0u64;
        for (index, descriptor) in descriptors.iter().enumerate() {
            descriptor.check(index as u64)?;
            total = total
                .checked_add(descriptor.bytes)
                .filter(|&t| t < 1 << 53)
                .ok_or(ManifestError::Total)?;
        }
        for (index, pair) in descriptors.windows(2).enumerate() {
            match pair[0].key().cmp(&pair[1].key()) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => {
                    let Descriptor { group, name, .. } = pair[0].clone();
                    return Err(ManifestError::Twice { group, name });
                }
                std::cmp::Ordering::Greater => {
                    return Err(ManifestError::Order { index: index as u64 + 1 });
                }
            }
        }
        Ok(Self { descriptors })
    }

    /// The descriptors, sorted by (group, name).
    pub fn descriptors(&self) -> &[Descriptor] {
        &self.descriptors
    }

    /// The descriptor of `group`/`name`.
    pub fn find(&self, group: &str, name: &str) -> Option<&Descriptor> {
        self.position(group, name).map(|at| &self.descriptors[at])
    }

    /// Where the descriptor of `group`/`name` stands.
    pub fn position(&self, group: &str, name: &str) -> Option<usize> {
        self.descriptors.binary_search_by(|d| d.key().cmp(&(group, name))).ok()
    }

    /// The canonical JSON of each descriptor, in order: the entries of the manifest's tree.
    pub fn entries(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        self.descriptors.iter().map(json::to_vec)
    }

    /// Sum over the artifacts' lengths.
    pub fn bytes(&self) -> u64 {
        self.descriptors.iter().map(|d| d.bytes).sum()
    }
}

impl Descriptor {
    fn key(&self) -> (&str, &str) {
        (&self.group, &self.name)
    }
}
