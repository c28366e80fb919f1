//! A delta on the wire: its logical bytes in manifest order, cut into parts of whole pieces.
//!
//! The cut follows from the model and the size of a part alone, so that sender and receiver agree on
//! it before a byte was sent, and each part is checked by the piece digests of its own. See
//! `schema/upload.md`.

use super::layout::Layout;
use crate::types::{
    digest::Digest,
    manifest::{Manifest, ManifestError, PIECE_BYTES},
    upload::Part,
};

/// Largest part that is taken.
pub const PART_BYTES_MAX: u64 = 64 << 20;

/// What all deltas for one model have in common: which artifacts, how long, one after the other.
#[derive(Clone, Debug)]
pub struct DeltaShape {
    /// A manifest with no roots in it yet.
    manifest: Manifest,
    /// Where each artifact starts.
    starts: Vec<u64>,
}

/// A piece of an artifact that lies in a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceAt {
    /// Which artifact, in manifest order.
    pub artifact: usize,
    /// Which of its pieces.
    pub piece: u64,
    /// Its length, at most [`PIECE_BYTES`].
    pub bytes: u64,
}

impl DeltaShape {
    /// The shape of deltas for `layout`.
    ///
    /// # Errors
    ///
    /// [`ManifestError`]; never for a layout of a sealed checkpoint.
    pub fn of(layout: &Layout) -> Result<Self, ManifestError> {
        let manifest = layout.delta_manifest(|_, _| Digest::default())?;
        let starts = manifest.descriptors().iter().scan(0, |at, descriptor| {
            let start = *at;
            *at += descriptor.bytes;
            Some(start)
        });
        Ok(Self { starts: starts.collect(), manifest })
    }

    /// The artifacts, without their roots.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Length of the delta.
    pub fn bytes(&self) -> u64 {
        self.manifest.bytes()
    }

    /// Number of artifacts.
    pub fn count(&self) -> u64 {
        self.starts.len() as u64
    }

    /// Where an artifact starts, in manifest order.
    pub fn start_of(&self, artifact: usize) -> u64 {
        self.starts[artifact]
    }

    /// Whether `manifest` is that of a delta of this shape, whatever its roots.
    pub fn is_of(&self, manifest: &Manifest) -> bool {
        let ours = self.manifest.descriptors();
        ours.len() == manifest.descriptors().len()
            && ours.iter().zip(manifest.descriptors()).all(|(ours, theirs)| {
                (ours.kind, &ours.group, &ours.name, ours.dtype, &ours.shape)
                    == (theirs.kind, &theirs.group, &theirs.name, theirs.dtype, &theirs.shape)
            })
    }

    /// The cut into parts: each takes whole pieces as long as they fit into `part_bytes`.
    ///
    /// # Panics
    ///
    /// If `part_bytes` is less than a piece.
    pub fn parts(&self, part_bytes: u64) -> Vec<Part> {
        assert!(part_bytes >= PIECE_BYTES, "a part holds at least a piece");
        let mut parts = Vec::new();
        let mut part = Part { offset: 0, bytes: 0 };
        for descriptor in self.manifest.descriptors() {
            let mut left = descriptor.bytes;
            while left > 0 {
                // Whole pieces that fit, or all that is left.
                let room = part_bytes - part.bytes;
                let take = if left <= room { left } else { room / PIECE_BYTES * PIECE_BYTES };
                part.bytes += take;
                left -= take;
                if left > 0 {
                    let next = part.offset + part.bytes;
                    parts.push(std::mem::replace(&mut part, Part { offset: next, bytes: 0 }));
                }
            }
        }
        parts.extend((part.bytes > 0).then_some(part));
        parts
    }

    /// The pieces of a part, in order; of one out of [`DeltaShape::parts`] they are its bytes.
    pub fn pieces(&self, part: Part) -> Vec<PieceAt> {
        let mut pieces = Vec::new();
        let end = part.offset + part.bytes;
        let first = self.starts.partition_point(|&start| start <= part.offset).saturating_sub(1);
        for (artifact, &start) in self.starts.iter().enumerate().skip(first) {
            let bytes = self.manifest.descriptors()[artifact].bytes;
            if start >= end {
                break;
            }
            let mut at = part.offset.max(start) - start;
            while at < bytes && start + at < end {
                let length = (bytes - at).min(PIECE_BYTES);
                pieces.push(PieceAt { artifact, piece: at / PIECE_BYTES, bytes: length });
                at += length;
            }
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codec::layout::TensorLayout,
        types::{
            grid::Grid,
            manifest::piece_count,
            tensor::{Dtype, TensorSpec},
        },
    };

    fn shape(tensors: &[(&str, &[u64])]) -> DeltaShape {
        let tensor = |(position, (name, shape)): (usize, &(&str, &[u64]))| TensorLayout {
            position,
            name: (*name).to_owned(),
            rank: shape.len(),
            grid: Grid::of(&TensorSpec::new(name, Dtype::F32, shape).unwrap(), 8).unwrap(),
            k: 4,
            code_bits: 2,
        };
        let tensors = tensors.iter().enumerate().map(tensor).collect();
        DeltaShape::of(&Layout { tensors, frozen: vec![] }).unwrap()
    }

    #[test]
    fn parts_are_whole_pieces_one_after_the_other() {
        let shape =
            shape(&[("a", &[4096, 1024]), ("b", &[24]), ("c", &[8, 8]), ("d", &[2048, 800])]);
        for part_bytes in [PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 1 << 20, PART_BYTES_MAX] {
            let parts = shape.parts(part_bytes);
            let (mut at, mut pieces) = (0, Vec::new());
            for part in &parts {
                assert_eq!(part.offset, at);
                assert!((1..=part_bytes).contains(&part.bytes));
                let inside = shape.pieces(*part);
                assert_eq!(inside.iter().map(|p| p.bytes).sum::<u64>(), part.bytes);
                pieces.extend(inside);
                at += part.bytes;
            }
            assert_eq!(at, shape.bytes());
            let all = shape.manifest().descriptors().iter().enumerate().flat_map(|(at, d)| {
                (0..piece_count(d.bytes)).map(move |piece| PieceAt {
                    artifact: at,
                    piece,
                    bytes: (d.bytes - piece * PIECE_BYTES).min(PIECE_BYTES),
                })
            });
            assert_eq!(pieces, all.collect::<Vec<_>>());
        }
        assert_eq!(shape.parts(PART_BYTES_MAX).len(), 1);
    }

    #[test]
    fn a_manifest_with_other_artifacts_is_of_another_shape() {
        let ours = shape(&[("a", &[64, 64]), ("b", &[24])]);
        assert!(ours.is_of(ours.manifest()));
        for other in [shape(&[("a", &[64, 64])]), shape(&[("a", &[64, 72]), ("b", &[24])])] {
            assert!(!ours.is_of(other.manifest()));
        }
    }
}
