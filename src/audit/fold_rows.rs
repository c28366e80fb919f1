//! What the fold of one piece stands on: which bytes of which artifacts, in which order.
//!
//! The prover writes the pieces that hold them, the verifier takes them from there. For a matrix of
//! the largest model and 20 miners that is some megabytes of the deltas' 40 gigabytes.

use std::ops::Range;

use crate::{
    codec::layout::{Layout, TensorLayout},
    fold::piece::{Run, whole_rows},
    merkle::pieces::piece_length,
    types::{
        manifest::{ArtifactId, Descriptor, PIECE_BYTES},
        plan::Plan,
    },
};

/// Bytes of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Of which.
    pub artifact: ArtifactId,
    /// Which of them.
    pub bytes: Range<u64>,
}

impl Span {
    /// The pieces that hold them.
    pub fn pieces(&self) -> Range<u64> {
        let Range { start, end } = self.bytes;
        if start == end { 0..0 } else { start / PIECE_BYTES..end.div_ceil(PIECE_BYTES) }
    }

    /// The bytes alone, of the pieces that hold them.
    pub fn cut<'p>(&self, pieces: &'p [u8]) -> &'p [u8] {
        let skipped = self.bytes.start - self.pieces().start * PIECE_BYTES;
        let at = |offset: u64| usize::try_from(offset).expect("pieces in memory");
        &pieces[at(skipped)..][..at(self.bytes.end - self.bytes.start)]
    }
}

/// One piece of a tensor that the rule folds.
#[derive(Clone, Debug)]
pub struct FoldedPiece<'a> {
    /// The tensor.
    pub tensor: &'a TensorLayout,
    /// Its place among those that the rule folds.
    planned: usize,
    tensors: usize,
    /// The rows of blocks around the piece, neighbours.
    pub runs: Vec<Run>,
    bytes: Range<u64>,
}

impl<'a> FoldedPiece<'a> {
    /// Piece `piece` of the tensor at `position` of the manifest; nothing where the rule does not fold
    /// that tensor, or it has no such piece.
    pub fn of(layout: &'a Layout, position: usize, piece: u64) -> Option<Self> {
        let planned = layout.tensors.iter().position(|tensor| tensor.position == position)?;
        let tensor = &layout.tensors[planned];
        let all = 4 * tensor.grid.rows * tensor.grid.columns;
        let start = piece.checked_mul(PIECE_BYTES)?;
        let bytes = start..start + piece_length(all, piece)?;
        let runs = whole_rows(&tensor.grid, piece);
        Some(Self { tensor, planned, tensors: layout.tensors.len(), runs, bytes })
    }

    /// The piece itself in the base.
    pub fn base(&self, base: &Descriptor) -> Span {
        Span { artifact: base.artifact(), bytes: self.bytes.clone() }
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.bytes.start / PIECE_BYTES
    }

    /// The tensor's rows of a plan; nothing where it is not of the length that so many miners make.
    pub fn plan(&self, plan: ArtifactId, miners: usize) -> Option<Span> {
        let row = Plan::row_bytes(1 << self.tensor.code_bits) as u64;
        let rows = |tensors: usize| row * tensors as u64 * miners as u64;
        let bytes = rows(self.planned)..rows(self.planned + 1);
        (plan.bytes == rows(self.tensors)).then_some(Span { artifact: plan, bytes })
    }

    /// A miner's book, and the codes and positions of the blocks around the piece.
    pub fn delta(&self, [book, code, index]: [ArtifactId; 3]) -> [Span; 3] {
        let rows = |artifact, block_bytes: u64| {
            let first = self.runs.first().map_or(0, |run| run.first_block);
            let blocks: u64 = self.runs.iter().map(|run| run.blocks).sum();
            Span { artifact, bytes: first * block_bytes..(first + blocks) * block_bytes }
        };
        [
            Span { artifact: book, bytes: 0..self.tensor.book_bytes() },
            rows(code, self.tensor.code_bytes_per_block()),
            rows(index, self.tensor.index_bytes_per_block()),
        ]
    }

    /// Cuts codes or positions, as [`Self::delta`] names them, by runs.
    pub fn by_run<'b>(&self, mut rows: &'b [u8], block_bytes: u64) -> Vec<&'b [u8]> {
        let cut = |run: &Run| {
            let bytes = usize::try_from(run.blocks * block_bytes).expect("rows in memory");
            let (these, after) = rows.split_at(bytes);
            rows = after;
            these
        };
        self.runs.iter().map(cut).collect()
    }
}
