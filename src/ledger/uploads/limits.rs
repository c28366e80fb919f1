//! Who may send, and how much at once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    UploadDesk,
    error::{RETRY_SOON_S, UploadError},
    upload::Upload,
};
use crate::{
    store::StoreError,
    types::{
        digest::Digest,
        refusal::{Code, Refusal},
    },
};

impl UploadDesk {
    pub(super) fn check_may(&self, hotkey: Digest) -> Result<(), UploadError> {
        let may = self.choice.hotkeys.as_ref();
        if may.is_none_or(|keys| keys.iter().any(|key| key.0 == hotkey)) {
            return Ok(());
        }
        let want = "a hotkey that the operator lets upload";
        let refusal = Refusal::new(Code::NotListed, None, want, hotkey.to_hex());
        Err(UploadError::Refused(refusal))
    }

    pub(super) fn check_not_sealing(&self) -> Result<(), UploadError> {
        match *self.sealing.lock().expect("no panic while it is held") {
            Some(round) => Err(UploadError::Sealing { round }),
            None => Ok(()),
        }
    }

    pub(super) fn check_quota(
        &self,
        uploads: &BTreeMap<Digest, Arc<Upload>>,
        hotkey: Digest,
    ) -> Result<(), UploadError> {
        let (mut count, mut bytes, mut oldest) = (0, self.shape.bytes(), Duration::ZERO);
        for upload in uploads.values().filter(|upload| upload.record.hotkey == hotkey) {
            let state = upload.state();
            if state.arrived.receipt.is_none() {
                count += 1;
                bytes += upload.record.delta.bytes;
                oldest = oldest.max(state.touched.elapsed());
            }
        }
        let retry_s = self.choice.expire_s.saturating_sub(oldest.as_secs()).max(RETRY_SOON_S);
        if count >= self.choice.uploads_per_hotkey {
            let (what, most) = ("uploads", self.choice.uploads_per_hotkey as u64);
            return Err(UploadError::Quota { what, most, retry_s });
        }
        if bytes > self.choice.bytes_per_hotkey {
            let (what, most) = ("bytes of uploads", self.choice.bytes_per_hotkey);
            return Err(UploadError::Quota { what, most, retry_s });
        }
        Ok(())
    }

    /// Whether `more` bytes can be promised beside what was promised: each delta is there twice, until
    /// it is in its place.
    pub(super) fn check_space(
        &self,
        uploads: &BTreeMap<Digest, Arc<Upload>>,
        more: u64,
    ) -> Result<(), UploadError> {
        let promised = uploads.values().map(|upload| {
            let state = upload.state();
            let under_way = state.arrived.receipt.is_none();
            let bytes = 2 * upload.record.delta.bytes - upload.arrived_bytes(&state);
            if under_way { bytes } else { 0 }
        });
        self.check_free(promised.sum::<u64>().saturating_add(more))
    }

    pub(super) fn check_free(&self, bytes: u64) -> Result<(), UploadError> {
        let free = self
            .place
            .files
            .free_bytes(&self.place.root)
            .map_err(|source| StoreError::Io { path: self.place.root.clone(), source })?;
        let needed = bytes.saturating_add(self.choice.disk_reserve_bytes);
        if free < needed { Err(UploadError::Space { free, needed }) } else { Ok(()) }
    }
}
