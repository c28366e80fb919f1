//! Handing a delta in over a network, the miner's side.
//!
//! The delta is admitted into a directory of the miner's first, by the same code that will admit it at
//! the server: so its hashes are there to be sent, and a delta that would be refused is not sent.

use std::{io, path::PathBuf, sync::Arc};

use crate::{
    codec::{
        layout::{DeltaGroup, Layout},
        parts::{DeltaShape, PART_BYTES_MAX},
    },
    store::{
        StoreError,
        artifacts::StoredDelta,
        files::{Disk, read_whole},
        place::Place,
        segment::place as segment_place,
    },
    types::{manifest::ManifestId, upload::Part},
};

/// Largest hashes file that is sent: it is one part.
const HASHES_BYTES_MAX: u64 = PART_BYTES_MAX;

/// A delta as it is sent: its hashes file, and its bytes in manifest order.
pub struct Staged {
    place: Place,
    delta: ManifestId,
    stored: StoredDelta,
    shape: DeltaShape,
}

impl Staged {
    /// The delta `delta`, which was stored below `place`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it is not there.
    pub fn open(place: &Place, layout: &Layout, delta: ManifestId) -> Result<Self, StoreError> {
        let stored = StoredDelta::open(place, delta)?;
        let shape = DeltaShape::of(layout).expect("a layout's artifacts fit a manifest");
        Ok(Self { place: place.clone(), delta, stored, shape })
    }

    /// What it is.
    pub fn delta(&self) -> ManifestId {
        self.delta
    }

    /// The hashes file.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn hashes(&self) -> Result<Vec<u8>, StoreError> {
        let path = segment_place::hashes(&self.place.root, self.delta.root);
        let read = read_whole(&*self.place.files, &path, HASHES_BYTES_MAX);
        read.map_err(|source| StoreError::Io { path, source })
    }

    /// The bytes of a part, each piece checked. Whoever asks for it is not believed.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it does not lie in the delta or is larger than any part may be, or if what was
    /// stored is damaged.
    pub fn part(&self, part: Part) -> Result<Vec<u8>, StoreError> {
        let end = part.offset.checked_add(part.bytes).filter(|end| *end <= self.shape.bytes());
        let end = end.filter(|_| part.bytes <= PART_BYTES_MAX).ok_or_else(|| StoreError::Io {
            path: PathBuf::from(format!("part of {} bytes at {}", part.bytes, part.offset)),
            source: io::ErrorKind::InvalidInput.into(),
        })?;
        let mut bytes = vec![0; usize::try_from(part.bytes).expect("64 MiB at most")];
        let mut left = &mut bytes[..];
        for (artifact, descriptor) in self.shape.manifest().descriptors().iter().enumerate() {
            let start = self.shape.start_of(artifact);
            let (from, to) = (part.offset.max(start), end.min(start + descriptor.bytes));
            if from >= to {
                continue;
            }
            let group = DeltaGroup::ALL.into_iter().find(|g| g.name() == descriptor.group);
            let group = group.expect("a delta's artifacts are of its groups");
            let mut reader = self.stored.open_artifact(group, &descriptor.name)?;
            reader.seek_to(from - start)?;
            let length = usize::try_from(to - from).expect("a part's bytes");
            let (now, after) = left.split_at_mut(length);
            reader.read_exact(now)?;
            left = after;
        }
        Ok(bytes)
    }
}

/// A directory of the miner's own disk.
pub fn scratch(path: PathBuf) -> Place {
    Place::new(Arc::new(Disk), &path)
}
