//! What has arrived, read back as the delta's artifacts.

use std::sync::{Arc, Mutex};

use super::{UploadDir, part_name};
use crate::{
    store::{
        files::ReadFile,
        segment::{LogicalBytes, SegmentError},
    },
    types::upload::Part,
};

/// Bytes of an artifact, out of the parts that hold them.
pub(super) struct UploadedBytes {
    pub(super) dir: UploadDir,
    pub(super) parts: Arc<[Part]>,
    pub(super) start: u64,
    pub(super) bytes: u64,
    /// The part that was read last: an artifact is read front to back.
    pub(super) open: Mutex<Option<(u64, Arc<dyn ReadFile>)>>,
}

impl UploadedBytes {
    fn part(&self, offset: u64) -> Result<Arc<dyn ReadFile>, SegmentError> {
        let mut open = self.open.lock().expect("no panic while it is held");
        if let Some((_, file)) = open.as_ref().filter(|(at, _)| *at == offset) {
            return Ok(file.clone());
        }
        let path = self.dir.path.join(part_name(offset));
        let file = self.dir.files.open(&path).map_err(SegmentError::io(&path))?;
        *open = Some((offset, file.clone()));
        Ok(file)
    }
}

impl LogicalBytes for UploadedBytes {
    fn len(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, mut buffer: &mut [u8]) -> Result<(), SegmentError> {
        let len = buffer.len();
        if offset.checked_add(len as u64).is_none_or(|end| end > self.bytes) {
            return Err(SegmentError::Range { offset, len, bytes: self.bytes });
        }
        let mut at = self.start + offset;
        while !buffer.is_empty() {
            let index = self.parts.partition_point(|part| part.offset <= at);
            let part = self.parts[index.saturating_sub(1)];
            let left = usize::try_from(part.offset + part.bytes - at).unwrap_or(usize::MAX);
            let (now, after) = buffer.split_at_mut(len.min(left).min(buffer.len()));
            let path = self.dir.path.join(part_name(part.offset));
            let read = self.part(part.offset)?.read_exact_at(now, at - part.offset);
            read.map_err(SegmentError::io(&path))?;
            at += now.len() as u64;
            buffer = after;
        }
        Ok(())
    }
}
