//! Logical bytes read front to back, each piece checked against its digest before it is handed out.

use std::{ops::Range, sync::Arc};

use gradledger_kernels::sha256::{TASK_PIECES, hash_pieces};
use rayon::prelude::*;

use super::{LogicalBytes, check_range, error::SegmentError};
use crate::types::{
    digest::Digest,
    manifest::{PIECE_BYTES, piece_count},
};

/// Bytes of the pieces that are read and hashed by one task: as many as are hashed at once, and still
/// in a core's cache from the read to the hash.
const TASK_BYTES: usize = TASK_PIECES * PIECE;

/// Bytes of a piece, in memory.
const PIECE: usize = PIECE_BYTES as usize;

/// Pieces read at once: 16 MiB, enough for 16 cores.
const RUN_PIECES: usize = 256;

/// How far ahead of a reader that fetches the system is asked to read.
const AHEAD_BYTES: u64 = 32 << 20;

/// Reads logical bytes and trusts none of them: only pieces with the right digest come out.
///
/// Memory: one piece beyond what is asked for, or as many as [`VerifiedReader::hold`] says.
pub struct VerifiedReader {
    source: Arc<dyn LogicalBytes>,
    digests: Arc<[Digest]>,
    position: u64,
    /// Checked pieces of which only a part was asked for, and the first one's number.
    held: Vec<u8>,
    held_first: u64,
    /// How many are held at most.
    hold: usize,
    /// Up to where the system was asked to read.
    asked: u64,
}

/// Pieces that [`VerifiedReader::fetch`] read and nobody has compared with their digests yet.
#[must_use = "the bytes mean nothing before they are checked"]
pub struct UncheckedPieces {
    digests: Arc<[Digest]>,
    first: u64,
    /// Where they lie in what was read.
    within: Range<usize>,
}

impl UncheckedPieces {
    /// Compares them; `buffer` is what was read. Parallel on the current rayon pool.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Piece`] names the first that is not what it should be.
    pub fn check(&self, buffer: &[u8]) -> Result<(), SegmentError> {
        let pieces = &buffer[self.within.clone()];
        let expected = &self.digests[self.first as usize..];
        let tasks = pieces.par_chunks(TASK_BYTES).zip(expected.par_chunks(TASK_PIECES)).enumerate();
        first_error(tasks.map(|(task, (pieces, expected))| {
            compare(self.first + (task * TASK_PIECES) as u64, pieces, expected)
        }))
    }

    /// Compares digests that were made of them elsewhere, in order.
    ///
    /// # Errors
    ///
    /// As [`UncheckedPieces::check`].
    pub fn check_digests(&self, found: &[[u8; 32]]) -> Result<(), SegmentError> {
        let pieces = self.within.len().div_ceil(PIECE);
        assert_eq!(found.len(), pieces, "one of each piece");
        same(self.first, &self.digests[self.first as usize..][..pieces], found)
    }
}

/// What the first of the tasks that fail gives.
fn first_error(
    tasks: impl IndexedParallelIterator<Item = Result<(), SegmentError>>,
) -> Result<(), SegmentError> {
    tasks.find_map_first(Result::err).map_or(Ok(()), Err)
}

/// Compares the pieces from number `first` on with their digests.
fn compare(first: u64, pieces: &[u8], expected: &[Digest]) -> Result<(), SegmentError> {
    let mut found = Vec::with_capacity(TASK_PIECES);
    hash_pieces(pieces, PIECE, &mut found);
    same(first, expected, &found)
}

fn same(first: u64, expected: &[Digest], found: &[[u8; 32]]) -> Result<(), SegmentError> {
    for (piece, (&expected, &found)) in (first..).zip(expected.iter().zip(found)) {
        let found = Digest(found);
        if expected != found {
            return Err(SegmentError::Piece { piece, expected, found });
        }
    }
    Ok(())
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
        let (held, held_first, hold) = (Vec::new(), 0, 1);
        Ok(Self { source, digests, position: 0, held, held_first, hold, asked: 0 })
    }

    /// Reads as many pieces at once where less is asked for, between one and as many as are hashed at once,
    /// and holds them in `room`; what is in it goes. The system is asked to read as many ahead.
    pub fn hold(&mut self, pieces: usize, mut room: Vec<u8>) {
        room.clear();
        self.hold = pieces.clamp(1, TASK_PIECES);
        self.held = room;
        self.will_hold(self.position / PIECE_BYTES);
    }

    /// Asks the system for the pieces that are held when piece `first` is wanted. For a single one it is not
    /// worth a call.
    fn will_hold(&self, first: u64) {
        if self.hold > 1 {
            let start = first * PIECE_BYTES;
            self.source.will_need(start..start + self.hold as u64 * PIECE_BYTES);
        }
    }

    /// The room that pieces were held in, to be used again.
    pub fn into_room(self) -> Vec<u8> {
        self.held
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

    /// As [`VerifiedReader::read_exact`], but whole pieces are left for another to check, and the system
    /// is asked to read ahead.
    ///
    /// # Errors
    ///
    /// As [`VerifiedReader::read_exact`], for the parts of pieces at both ends.
    pub fn fetch(&mut self, buffer: &mut [u8]) -> Result<UncheckedPieces, SegmentError> {
        check_range(self.len(), self.position, buffer.len())?;
        let from = self.position;
        let fetched = self.fetch_from(from, buffer);
        self.position = if fetched.is_ok() { from + buffer.len() as u64 } else { from };
        fetched
    }

    fn fetch_from(
        &mut self,
        from: u64,
        buffer: &mut [u8],
    ) -> Result<UncheckedPieces, SegmentError> {
        let end = from + buffer.len() as u64;
        if end + AHEAD_BYTES / 2 > self.asked {
            let until = (end + AHEAD_BYTES).min(self.len());
            self.source.will_need(self.asked.max(from)..until);
            self.asked = until;
        }
        let first = from.div_ceil(PIECE_BYTES);
        let head = ((first * PIECE_BYTES - from) as usize).min(buffer.len());
        let rest = buffer.len() - head;
        let whole = if end == self.len() { rest } else { rest / PIECE * PIECE };
        let within = head..head + whole;
        self.read_exact(&mut buffer[..head])?;
        self.source.read_at(from + head as u64, &mut buffer[within.clone()])?;
        self.position = from + within.end as u64;
        self.read_exact(&mut buffer[within.end..])?;
        Ok(UncheckedPieces { digests: self.digests.clone(), first, within })
    }

    /// Reads and checks what is left, in parallel on the current rayon pool; `advance` is told of bytes as
    /// they are done.
    ///
    /// Memory: as many pieces a thread as are hashed at once.
    ///
    /// # Errors
    ///
    /// As [`VerifiedReader::read_exact`].
    pub fn verify_to_end(&mut self, advance: &(dyn Fn(u64) + Sync)) -> Result<(), SegmentError> {
        let (bytes, first) = (self.len(), self.position / PIECE_BYTES);
        let expected = &self.digests[(first as usize).min(self.digests.len())..];
        let tasks = expected.par_chunks(TASK_PIECES).enumerate();
        let source = &self.source;
        first_error(tasks.map_init(Vec::new, |buffer, (task, expected)| {
            let first = first + (task * TASK_PIECES) as u64;
            let at = first * PIECE_BYTES;
            // Each asks for what another will read when this is long done.
            source.will_need(at + AHEAD_BYTES..at + AHEAD_BYTES + TASK_BYTES as u64);
            buffer.resize((bytes - at).min(TASK_BYTES as u64) as usize, 0);
            source.read_at(at, buffer)?;
            compare(first, buffer, expected)?;
            advance(buffer.len() as u64);
            Ok(())
        }))?;
        self.position = bytes;
        Ok(())
    }

    /// Reads a part of the pieces held, or a run of whole ones straight into `buffer`; gives their length.
    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, SegmentError> {
        let number = self.position / PIECE_BYTES;
        let skip = (self.position % PIECE_BYTES) as usize;
        let to_end = self.position + buffer.len() as u64 == self.len();
        let whole = if to_end { buffer.len() } else { buffer.len() / PIECE * PIECE };
        let straight = skip == 0 && whole > 0 && whole >= self.hold * PIECE;
        let read = if straight && !self.holds(self.position) {
            let run = whole.min(RUN_PIECES * PIECE);
            self.read_checked(number, &mut buffer[..run])?;
            run
        } else {
            self.load(number)?;
            let part = &self.held[(self.position - self.held_first * PIECE_BYTES) as usize..];
            let part = &part[..buffer.len().min(part.len())];
            buffer[..part.len()].copy_from_slice(part);
            part.len()
        };
        self.position += read as u64;
        Ok(read)
    }

    /// Whether the byte at `position` is held.
    fn holds(&self, position: u64) -> bool {
        let start = self.held_first * PIECE_BYTES;
        (start..start + self.held.len() as u64).contains(&position)
    }

    /// Holds piece `number` and some after it, checked.
    fn load(&mut self, number: u64) -> Result<(), SegmentError> {
        if self.holds(number * PIECE_BYTES) {
            return Ok(());
        }
        let mut held = std::mem::take(&mut self.held);
        let left = self.len() - number * PIECE_BYTES;
        held.resize(left.min(self.hold as u64 * PIECE_BYTES) as usize, 0);
        self.will_hold(number + self.hold as u64);
        self.read_checked(number, &mut held)?;
        (self.held, self.held_first) = (held, number);
        Ok(())
    }

    /// Reads whole pieces from piece `first` on and compares their digests; more than a task's in parallel
    /// on the current rayon pool. Of several wrong ones the first is named.
    fn read_checked(&self, first: u64, pieces: &mut [u8]) -> Result<(), SegmentError> {
        let expected = &self.digests[first as usize..];
        if pieces.len() <= TASK_BYTES {
            return self.read_task(first, pieces, expected);
        }
        let tasks = pieces.par_chunks_mut(TASK_BYTES).zip(expected.par_chunks(TASK_PIECES));
        first_error(tasks.enumerate().map(|(task, (pieces, expected))| {
            self.read_task(first + (task * TASK_PIECES) as u64, pieces, expected)
        }))
    }

    fn read_task(
        &self,
        first: u64,
        pieces: &mut [u8],
        expected: &[Digest],
    ) -> Result<(), SegmentError> {
        self.source.read_at(first * PIECE_BYTES, pieces)?;
        compare(first, pieces, expected)
    }
}
