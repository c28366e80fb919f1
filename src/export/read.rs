//! Any range of a file of an export, computed from the stored tensors as it is read.
//!
//! Every piece is compared with its digest first, so a wrong byte on the disk is an error here and
//! never a byte of the file.

use std::sync::Arc;

use gradledger_kernels::widen;

use super::layout::{Placed, VirtualFile};
use crate::store::{
    StoreError,
    artifacts::{ArtifactReader, StoredCheckpoint},
    segment::SegmentError,
};

/// f32 bytes that are narrowed at once.
const WIDE_BYTES: usize = 1 << 20;

/// Reads one file of a state's export.
///
/// Memory: two pieces of 64 KiB, 1.5 MiB where f32 is narrowed, and what one open tensor takes, which
/// readers of one state share. Reads that follow each other hash each piece once.
pub struct FileReader {
    state: StoredCheckpoint,
    file: Arc<VirtualFile>,
    /// The tensor that was read last, by its number in the file.
    open: Option<(usize, ArtifactReader)>,
    wide: Vec<u8>,
    narrow: Vec<u8>,
}

impl FileReader {
    /// A reader of `file`, one of those of `state`.
    pub fn new(state: StoredCheckpoint, file: Arc<VirtualFile>) -> Self {
        Self { state, file, open: None, wide: Vec::new(), narrow: Vec::new() }
    }

    /// The file.
    pub fn file(&self) -> &VirtualFile {
        &self.file
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// [`StoreError::Piece`] names the first piece that is not what its root says; others if a segment
    /// is missing or the file ends before. What is in `buffer` then means nothing.
    pub fn read_exact_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        let file = self.file.clone();
        let (bytes, len) = (file.bytes(), buffer.len());
        if offset.checked_add(len as u64).is_none_or(|end| end > bytes) {
            let source = SegmentError::Range { offset, len, bytes };
            return Err(StoreError::Artifact { what: file.name().to_owned(), source });
        }
        let (mut at, mut left) = (offset, buffer);
        if let Some(head) = usize::try_from(at).ok().and_then(|at| file.head().get(at..)) {
            let (now, rest) = left.split_at_mut(head.len().min(left.len()));
            now.copy_from_slice(&head[..now.len()]);
            (at, left) = (at + now.len() as u64, rest);
        }
        let tensors = file.tensors();
        let mut number = tensors.partition_point(|t| t.start + t.bytes <= at);
        while !left.is_empty() {
            let tensor = &tensors[number];
            let in_tensor = at - tensor.start;
            let here = usize::try_from(tensor.bytes - in_tensor).unwrap_or(usize::MAX);
            let (now, rest) = left.split_at_mut(here.min(left.len()));
            self.read_tensor(number, tensor, in_tensor, now)?;
            (at, left, number) = (at + now.len() as u64, rest, number + 1);
        }
        Ok(())
    }

    fn read_tensor(
        &mut self,
        number: usize,
        tensor: &Placed,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), StoreError> {
        let mut reader = match self.open.take() {
            Some((open, reader)) if open == number => reader,
            _ => self.state.tensor(tensor.position)?,
        };
        if tensor.narrowed {
            self.read_narrowed(&mut reader, offset, buffer)?;
        } else {
            reader.seek_to(offset)?;
            reader.read_exact(buffer)?;
        }
        self.open = Some((number, reader));
        Ok(())
    }

    /// The bf16 bytes from `offset` on: each is one half of a rounded f32.
    fn read_narrowed(
        &mut self,
        reader: &mut ArtifactReader,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), StoreError> {
        let Self { wide, narrow, .. } = self;
        let (mut value, mut half) = (offset / 2, (offset % 2) as usize);
        let mut left = buffer;
        while !left.is_empty() {
            let values = (half + left.len()).div_ceil(2).min(WIDE_BYTES / 4);
            wide.resize(values * 4, 0);
            reader.seek_to(value * 4)?;
            reader.read_exact(wide)?;
            narrow.clear();
            narrow.extend(
                wide.as_chunks::<4>()
                    .0
                    .iter()
                    .flat_map(|value| widen::f32_to_bf16(f32::from_le_bytes(*value)).to_le_bytes()),
            );
            let read = &narrow[half..];
            let (now, rest) = left.split_at_mut(read.len().min(left.len()));
            now.copy_from_slice(&read[..now.len()]);
            (left, half, value) = (rest, 0, value + values as u64);
        }
        Ok(())
    }
}
