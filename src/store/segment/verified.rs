//! Logical bytes read front to back, each piece checked against its digest before it is handed out.

use std::sync::Arc;

use gradledger_kernels::sha256::hash_pieces;
use rayon::prelude::*;

use super::{LogicalBytes, check_range, error::SegmentError};
use crate::types::{
    digest::Digest,
    manifest::{PIECE_BYTES, piece_count},
};

/// Pieces read and hashed by one task: they stay in a core's cache from the read to the hash.
const TASK_PIECES: usize = 8;

/// Bytes of a piece, in memory.
const PIECE: usize = PIECE_BYTES as usize;

/// Pieces read at once: 8 MiB, enough for 16 cores.
const RUN_PIECES: usize = 128;

/// Reads logical bytes and trusts none of them: only pieces with the right digest come out.
///
/// Memory: one piece beyond what is asked for.
pub struct VerifiedReader {
    source: Arc<dyn LogicalBytes>,
    digests: Arc<[Digest]>,
    position: u64,
    /// A checked piece that was asked for in part, and its number.
    piece: Vec<u8>,
    piece_number: Option<u64>,
}

impl VerifiedReader {
    /// A reader at the start of `source`, which should have `bytes` bytes with these piece digests.
    ///
    /// The digests must be known to give the artifact's root.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Digests`] if they are not as many as the pieces, [`SegmentError::Range`] if the
    /// source has another length.
    pub fn new(
        source: Arc<dyn LogicalBytes>,
        digests: impl Into<Arc<[Digest]>>,
        bytes: u64,
    ) -> Result<Self, SegmentError> {
        let digests = digests.into();
        if source.len() != bytes {
            let len = usize::try_from(bytes).unwrap_or(usize::MAX);
            return Err(SegmentError::Range { offset: 0, len, bytes: source.len() });
        }
        let (expected, found) = (piece_count(bytes), digests.len());
        if found as u64 != expected {
            return Err(SegmentError::Digests { bytes, expected, found });
        }
        Ok(Self { source, digests, position: 0, piece: Vec::new(), piece_number: None })
    }

    /// Number of the bytes, read or not.
    #[allow(clippy::len_without_is_empty)] // A length in bytes, not a collection's.
    pub fn len(&self) -> u64 {
        self.source.len()
    }

    /// Where the next read starts.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Makes the next read start at `offset`. The piece that holds it is checked from its start.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Range`] beyond the end.
    pub fn seek_to(&mut self, offset: u64) -> Result<(), SegmentError> {
        check_range(self.len(), offset, 0)?;
        self.position = offset;
        Ok(())
    }

    /// Appends the next `len` bytes to `out`.
    ///
    /// # Errors
    ///
    /// As [`VerifiedReader::read_exact`]; `out` is as before then.
    pub fn read(&mut self, len: usize, out: &mut Vec<u8>) -> Result<(), SegmentError> {
        check_range(self.len(), self.position, len)?;
        let start = out.len();
        out.resize(start + len, 0);
        let read = self.read_exact(&mut out[start..]);
        if read.is_err() {
            out.truncate(start);
        }
        read
    }

    /// Fills `buffer` with the next bytes.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Piece`] names the first piece that is not what it should be,
    /// [`SegmentError::Range`] if there are fewer bytes. The position is as before then, and what is
    /// in `buffer` means nothing.
    pub fn read_exact(&mut self, mut buffer: &mut [u8]) -> Result<(), SegmentError> {
        check_range(self.len(), self.position, buffer.len())?;
        let from = self.position;
        while !buffer.is_empty() {
            match self.read_some(buffer) {
                Ok(read) => buffer = &mut buffer[read..],
                Err(error) => {
                    self.position = from;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Reads a part of a piece, or a run of whole ones straight into `buffer`; gives their length.
    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, SegmentError> {
        let number = self.position / PIECE_BYTES;
        let skip = (self.position % PIECE_BYTES) as usize;
        let to_end = self.position + buffer.len() as u64 == self.len();
        let whole = if to_end { buffer.len() } else { buffer.len() / PIECE * PIECE };
        let read = if skip == 0 && whole > 0 && self.piece_number != Some(number) {
            let run = whole.min(RUN_PIECES * PIECE);
            self.read_checked(number, &mut buffer[..run])?;
            run
        } else {
            self.load(number)?;
            let part = &self.piece[skip..];
            let part = &part[..buffer.len().min(part.len())];
            buffer[..part.len()].copy_from_slice(part);
            part.len()
        };
        self.position += read as u64;
        Ok(read)
    }

    /// Holds piece `number`, checked.
    fn load(&mut self, number: u64) -> Result<(), SegmentError> {
        if self.piece_number == Some(number) {
            return Ok(());
        }
        self.piece_number = None;
        let mut piece = std::mem::take(&mut self.piece);
        let left = self.len() - number * PIECE_BYTES;
        piece.resize(left.min(PIECE_BYTES) as usize, 0);
        self.read_checked(number, &mut piece)?;
        self.piece = piece;
        self.piece_number = Some(number);
        Ok(())
    }

    /// Reads whole pieces from piece `first` on and compares their digests, in parallel on the current
    /// rayon pool. Of several wrong ones the first is named.
    fn read_checked(&self, first: u64, pieces: &mut [u8]) -> Result<(), SegmentError> {
        let expected = &self.digests[first as usize..];
        let tasks =
            pieces.par_chunks_mut(TASK_PIECES * PIECE).zip(expected.par_chunks(TASK_PIECES));
        let outcomes: Vec<_> = (0..tasks.len())
            .into_par_iter()
            .zip(tasks)
            .map(|(task, (pieces, expected))| {
                self.check(first + (task * TASK_PIECES) as u64, pieces, expected)
            })
            .collect();
        outcomes.into_iter().collect()
    }

    fn check(
        &self,
        first: u64,
        pieces: &mut [u8],
        expected: &[Digest],
    ) -> Result<(), SegmentError> {
        self.source.read_at(first * PIECE_BYTES, pieces)?;
        let mut found = Vec::with_capacity(expected.len());
        hash_pieces(pieces, PIECE, &mut found);
        for (piece, (&expected, found)) in (first..).zip(expected.iter().zip(found)) {
            let found = Digest(found);
            if expected != found {
                return Err(SegmentError::Piece { piece, expected, found });
            }
        }
        Ok(())
    }
}
