//! Hashes and parts on their way in.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{UploadDesk, error::UploadError, upload::Upload};
use crate::{
    store::uploads::Arriving,
    types::{digest::Digest, upload::Part},
};

/// Parts of one upload that may arrive at once.
pub(super) const ARRIVING_MAX: usize = 8;

impl UploadDesk {
    /// Starts to take the hashes file, or the part at an offset; `bytes` is the body's length.
    ///
    /// # Errors
    ///
    /// [`UploadError`] says why it is not taken.
    pub fn receive(
        self: &Arc<Self>,
        id: Digest,
        token: Digest,
        offset: Option<u64>,
        bytes: u64,
    ) -> Result<Receiving, UploadError> {
        let upload = self.by_token(id, token)?;
        self.check_not_sealing()?;
        let part = match offset {
            None => Part { offset: 0, bytes: self.hashes_bytes },
            Some(offset) => *upload
                .parts
                .iter()
                .find(|part| part.offset == offset)
                .ok_or(UploadError::Offset { offset })?,
        };
        if part.bytes != bytes {
            return Err(UploadError::Length { expected: part.bytes, found: bytes });
        }
        self.check_free(bytes)?;
        {
            let mut state = upload.state();
            if state.arrived.receipt.is_some() {
                return Err(UploadError::Committed);
            }
            if state.committing {
                return Err(UploadError::Committing);
            }
            if offset.is_some() && !state.arrived.hashes {
                return Err(UploadError::HashesFirst);
            }
            if state.arriving >= ARRIVING_MAX {
                return Err(UploadError::Arriving);
            }
            state.arriving += 1;
            state.touched = Instant::now();
        }
        let mut receiving = Receiving { desk: self.clone(), upload, offset, arriving: None };
        let (dir, number) = (&receiving.upload.dir, self.numbers.fetch_add(1, Ordering::Relaxed));
        let arriving = match offset {
            None => dir.hashes(number, bytes),
            Some(_) => dir.part(number, &receiving.upload.record.delta, &self.shape, part),
        };
        receiving.arriving = Some(arriving?);
        Ok(receiving)
    }
}

/// The hashes file or a part on its way in.
pub struct Receiving {
    desk: Arc<UploadDesk>,
    upload: Arc<Upload>,
    /// Which part; none for the hashes.
    offset: Option<u64>,
    arriving: Option<Arriving>,
}

impl Receiving {
    /// Takes the next bytes.
    ///
    /// # Errors
    ///
    /// [`UploadError`]: too many, a piece that is not the delta's, a full disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), UploadError> {
        Ok(self.arriving.as_mut().expect("it is there until it is finished").write(bytes)?)
    }

    /// All has come: when this returns it is durable.
    ///
    /// # Errors
    ///
    /// [`UploadError`] if the bytes do not have this SHA-256, or the disk fails.
    pub fn finish(mut self, sha256: Digest) -> Result<(), UploadError> {
        let arriving = self.arriving.take().expect("it is there until it is finished");
        match self.offset {
            Some(_) => arriving.finish(sha256)?,
            None => {
                arriving.finish_hashes(sha256, &self.upload.record.delta, &self.desk.shape)?;
            }
        }
        let mut state = self.upload.state();
        match self.offset {
            Some(offset) => drop(state.arrived.parts.insert(offset)),
            None => state.arrived.hashes = true,
        }
        Ok(())
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let mut state = self.upload.state();
        state.arriving -= 1;
        state.touched = Instant::now();
    }
}
