//! Artifacts as trees of 64 KiB pieces: any piece can be fetched, checked and blamed alone.
//!
//! Piece `P_i = SHA-256(bytes[64Ki*i .. min(64Ki*(i+1), len)])`; the root is the RFC 6962 tree whose
//! entries are the 32-byte `P_i`. A root pins bytes only together with their length, so it goes
//! about as an [`ArtifactId`]. See `schema/merkle.md`.

use gradledger_kernels::sha256::{hash_pieces, sha256};

use super::tree::{self, MemoryNodes, ProofError, ProveError, TreeBuilder};
use crate::types::{
    digest::Digest,
    manifest::{ArtifactId, PIECE_BYTES, piece_count},
};

const PIECE: usize = PIECE_BYTES as usize;

/// An artifact's identity and the digests that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// Root and length.
    pub artifact: ArtifactId,
    /// SHA-256 of each piece.
    pub digests: Vec<Digest>,
}

impl Pieces {
    /// The pieces of bytes that are in memory.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = PieceHasher::new();
        hasher.update(bytes);
        hasher.finish()
    }
}

/// Hashes logical bytes as they stream by. Memory: one piece, and 32 bytes for each piece so far.
#[derive(Clone, Debug, Default)]
pub struct PieceHasher {
    bytes: u64,
    /// The start of a piece that is not whole yet; shorter than a piece.
    rest: Vec<u8>,
    digests: Vec<[u8; 32]>,
    /// What the digests come to, where that was found elsewhere.
    root: Option<[u8; 32]>,
}

impl PieceHasher {
    /// Of no bytes yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes, cut anywhere. Whole pieces are hashed where they lie, so updates of
    /// many pieces copy nothing.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.root = None;
        if !self.rest.is_empty() {
            let (missing, after) = bytes.split_at(bytes.len().min(PIECE - self.rest.len()));
            self.rest.extend_from_slice(missing);
            if self.rest.len() < PIECE {
                return;
            }
            bytes = after;
            self.digests.push(sha256(&self.rest));
            self.rest.clear();
        }
        let whole = bytes.len() - bytes.len() % PIECE;
        hash_pieces(&bytes[..whole], PIECE, &mut self.digests);
        self.rest.extend_from_slice(&bytes[whole..]);
    }

    /// Takes the next bytes by what was made of them elsewhere.
    ///
    /// # Panics
    ///
    /// If the part does not start where the bytes so far end.
    pub fn append(&mut self, part: PiecePart) {
        let PiecePart { offset, bytes, head, digests, tail, root } = part;
        assert_eq!(self.bytes, offset, "parts are appended in order");
        self.update(&head);
        assert!(digests.is_empty() || self.rest.is_empty(), "whole pieces start where one does");
        self.digests.extend(digests);
        self.rest.extend_from_slice(&tail);
        self.bytes = offset + bytes;
        self.root = root;
    }

    /// The identity of all bytes taken, and the digests of their pieces.
    pub fn finish(mut self) -> Pieces {
        hash_pieces(&self.rest, PIECE, &mut self.digests);
        let digests: Vec<_> = self.digests.into_iter().map(Digest).collect();
        let root = self.root.map_or_else(|| artifact_root(&digests), Digest);
        let artifact = ArtifactId { root, bytes: self.bytes };
        Pieces { artifact, digests }
    }
}

/// A run of an artifact's bytes, hashed for itself: whole pieces as digests, the ends as they are. In
/// order, parts make a [`PieceHasher`]'s whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PiecePart {
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
    /// Up to where its first piece starts; shorter than a piece.
    pub head: Vec<u8>,
    /// Of its whole pieces; at the artifact's end also of the last one, if that is short.
    pub digests: Vec<[u8; 32]>,
    /// After the last piece with a digest; shorter than a piece.
    pub tail: Vec<u8>,
    /// The artifact's root, if this is all of it and who hashed it knows.
    pub root: Option<[u8; 32]>,
}

impl PiecePart {
    /// Of the bytes from `offset` on. Parallel as [`hash_pieces`].
    pub fn of(offset: u64, bytes: &[u8]) -> Self {
        let to_piece = (offset.next_multiple_of(PIECE_BYTES) - offset) as usize;
        let (head, rest) = bytes.split_at(to_piece.min(bytes.len()));
        let (whole, tail) = rest.split_at(rest.len() - rest.len() % PIECE);
        let mut digests = Vec::new();
        hash_pieces(whole, PIECE, &mut digests);
        let (head, tail) = (head.to_vec(), tail.to_vec());
        Self { offset, bytes: bytes.len() as u64, head, digests, tail, root: None }
    }
}

/// The root of the tree whose entries are these piece digests.
pub fn artifact_root(digests: &[Digest]) -> Digest {
    let mut tree = TreeBuilder::new();
    for digest in digests {
        tree.push(tree::leaf_hash(digest.as_bytes()));
    }
    tree.root()
}

/// A piece, or a list of pieces, that is not the artifact's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum PieceError {
    #[error("an artifact of {bytes} bytes has no piece {index}")]
    Index { index: u64, bytes: u64 },
    #[error("piece {index} has {expected} bytes, not {found}")]
    Length { index: u64, expected: u64, found: u64 },
    #[error("an artifact of {bytes} bytes has {expected} pieces, not {found}")]
    Count { bytes: u64, expected: u64, found: u64 },
    #[error("the pieces' root is {found}, the artifact's {expected}")]
    Root { expected: Digest, found: Digest },
    #[error("piece {index}: {source}")]
    Proof { index: u64, source: ProofError },
}

/// Length of piece `index` of an artifact of `bytes` bytes; nothing where it has no such piece.
pub fn piece_length(bytes: u64, index: u64) -> Option<u64> {
    let left = bytes.checked_sub(index.checked_mul(PIECE_BYTES)?)?;
    (left > 0).then_some(left.min(PIECE_BYTES))
}

/// Checks that `digests` are those of the artifact's pieces, all of them.
///
/// # Errors
///
/// [`PieceError::Count`] or [`PieceError::Root`] if they are not.
pub fn check_pieces(artifact: &ArtifactId, digests: &[Digest]) -> Result<(), PieceError> {
    let (bytes, expected, found) =
        (artifact.bytes, piece_count(artifact.bytes), digests.len() as u64);
    if expected != found {
        return Err(PieceError::Count { bytes, expected, found });
    }
    let (expected, found) = (artifact.root, artifact_root(digests));
    if expected != found {
        return Err(PieceError::Root { expected, found });
    }
    Ok(())
}

/// The proof that piece `index` is one of these, its sibling first.
///
/// # Errors
///
/// [`ProveError::Index`] if there is no such piece.
pub fn piece_proof(
    digests: &[Digest],
    index: u64,
) -> Result<Vec<Digest>, ProveError<tree::NoNode>> {
    let leaves: Vec<_> = digests.iter().map(|d| tree::leaf_hash(d.as_bytes())).collect();
    tree::inclusion_proof(index, leaves.len() as u64, &MemoryNodes::of(&leaves))
}

/// Checks that `piece` is piece `index` of the artifact, by its proof.
///
/// # Errors
///
/// [`PieceError`] if there is no such piece, it has another length, or the proof fails.
pub fn verify_piece(
    artifact: &ArtifactId,
    index: u64,
    piece: &[u8],
    proof: &[Digest],
) -> Result<(), PieceError> {
    let bytes = artifact.bytes;
    let expected = piece_length(bytes, index).ok_or(PieceError::Index { index, bytes })?;
    let found = piece.len() as u64;
    if expected != found {
        return Err(PieceError::Length { index, expected, found });
    }
    let leaf = tree::leaf_hash(&sha256(piece));
    tree::verify_inclusion(index, piece_count(bytes), &leaf, proof, &artifact.root)
        .map_err(|source| PieceError::Proof { index, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes in which no two pieces are alike.
    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect()
    }

    #[test]
    fn every_piece_proves_itself_and_no_other() {
        for length in [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 4 * PIECE + 5] {
            let bytes = bytes(length);
            let Pieces { artifact, digests } = Pieces::of(&bytes);
            assert_eq!(check_pieces(&artifact, &digests), Ok(()));
            for (index, piece) in bytes.chunks(PIECE).enumerate() {
                let index = index as u64;
                let proof = piece_proof(&digests, index).unwrap();
                assert_eq!(verify_piece(&artifact, index, piece, &proof), Ok(()));
                assert!(verify_piece(&artifact, index + 1, piece, &proof).is_err());
                assert!(verify_piece(&artifact, index, &piece[1..], &proof).is_err());
            }
        }
    }

    /// Proofs alone cannot tell 3 pieces from 4, so a root goes about with its length.
    #[test]
    fn a_root_with_a_wrong_length_can_verify_a_piece_but_not_the_list() {
        let bytes = bytes(3 * PIECE);
        let Pieces { artifact, digests } = Pieces::of(&bytes);
        let longer = ArtifactId { bytes: artifact.bytes + PIECE_BYTES, ..artifact };
        let proof = piece_proof(&digests, 0).unwrap();
        assert_eq!(verify_piece(&longer, 0, &bytes[..PIECE], &proof), Ok(()));
        assert!(matches!(check_pieces(&longer, &digests), Err(PieceError::Count { .. })));
    }

    #[test]
    fn no_bytes_have_no_piece_and_the_root_of_the_empty_tree() {
        let Pieces { artifact, digests } = Pieces::of(b"");
        assert_eq!((artifact.root, artifact.bytes, digests.len()), (tree::empty_root(), 0, 0));
        assert!(piece_proof(&digests, 0).is_err());
        let none = verify_piece(&artifact, 0, b"", &[]);
        assert_eq!(none, Err(PieceError::Index { index: 0, bytes: 0 }));
    }

    #[test]
    fn pieces_of_another_length_or_order_are_refused() {
        let Pieces { artifact, mut digests } = Pieces::of(&bytes(3 * PIECE));
        let count = PieceError::Count { bytes: artifact.bytes, expected: 3, found: 2 };
        assert_eq!(check_pieces(&artifact, &digests[1..]), Err(count));
        digests.swap(0, 1);
        assert!(matches!(check_pieces(&artifact, &digests), Err(PieceError::Root { .. })));
    }

    #[test]
    fn lengths_of_pieces_at_the_end_of_the_range() {
        let end = u64::MAX / PIECE_BYTES;
        assert_eq!(piece_length(u64::MAX, end), Some(PIECE_BYTES - 1));
        assert_eq!(piece_length(u64::MAX, end + 1), None);
        assert_eq!(piece_length(PIECE_BYTES, 1), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn updates_may_be_cut_anywhere(
            length in 0..5 * PIECE,
            cuts in proptest::collection::vec(0..5 * PIECE, 0..9),
        ) {
            let bytes = bytes(length);
            let mut cuts: Vec<_> = cuts.into_iter().map(|at| at.min(length)).collect();
            cuts.extend([0, length]);
            cuts.sort_unstable();
            let mut hasher = PieceHasher::new();
            for pair in cuts.windows(2) {
                hasher.update(&bytes[pair[0]..pair[1]]);
            }
            prop_assert_eq!(hasher.finish(), Pieces::of(&bytes));
            let mut joined = PieceHasher::new();
            for pair in cuts.windows(2) {
                joined.append(PiecePart::of(pair[0] as u64, &bytes[pair[0]..pair[1]]));
            }
            prop_assert_eq!(joined.finish(), Pieces::of(&bytes));
        }
    }
}
