//! The bytes of an artifact under way, each where it belongs. Which of them have arrived is seen by their
//! digests and nowhere else, so a spool can be lost, cut or scrambled at any time.
//!
//! It is written at any offset, which [`crate::store::files::Files`] has no call for, and it is trusted for
//! nothing: so, like the index, it goes to the disk directly.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use gradledger_kernels::sha256::hash_pieces;

use crate::types::{digest::Digest, manifest::PIECE_BYTES};

/// Bytes that are hashed at once.
const CHUNK_BYTES: u64 = 8 << 20;

/// A file of a known length, filled piece by piece.
pub(super) struct Spool {
    path: PathBuf,
    file: File,
}

impl Spool {
    /// The spool at `path` with what an earlier run left in it; its other bytes are zero.
    pub(super) fn open(path: &Path, bytes: u64) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len(bytes)?;
        Ok(Self { path: path.to_owned(), file })
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    pub(super) fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, at)
    }

    /// Which of the pieces of the bytes in `range` do not have their digest.
    pub(super) fn missing(&self, range: Range<u64>, digests: &[Digest]) -> io::Result<Vec<u64>> {
        let mut missing = Vec::new();
        let (mut buffer, mut found) = (Vec::new(), Vec::new());
        let (mut at, mut piece) = (range.start, 0);
        while at < range.end {
            let now = CHUNK_BYTES.min(range.end - at);
            buffer.resize(now as usize, 0);
            self.read(at, &mut buffer)?;
            found.clear();
            hash_pieces(&buffer, PIECE_BYTES as usize, &mut found);
            for found in &found {
                if digests[piece as usize] != Digest(*found) {
                    missing.push(piece);
                }
                piece += 1;
            }
            at += now;
        }
        Ok(missing)
    }

    /// It is not needed any more.
    pub(super) fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}
