//! One upload, and how far it has come.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use crate::{
    codec::statement::Statement,
    store::uploads::{Arrived, UploadDir, UploadRecord},
    types::{digest::Digest, upload::Part},
};

/// One upload.
pub(super) struct Upload {
    pub(super) id: Digest,
    pub(super) record: UploadRecord,
    pub(super) dir: UploadDir,
    pub(super) parts: Arc<[Part]>,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) arrived: Arrived,
    pub(super) touched: Instant,
    /// Parts under way.
    pub(super) arriving: usize,
    pub(super) committing: bool,
}

impl Upload {
    pub(super) fn new(id: Digest, record: UploadRecord, dir: UploadDir, parts: Vec<Part>) -> Self {
        let state = State {
            arrived: Arrived::default(),
            touched: Instant::now(),
            arriving: 0,
            committing: false,
        };
        Self { id, record, dir, parts: parts.into(), state: Mutex::new(state) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is held")
    }

    pub(super) fn statement(&self, run: Digest) -> Statement {
        let UploadRecord { round, base, delta, hotkey, .. } = self.record;
        Statement { run, round, base, delta: delta.root, delta_bytes: delta.bytes, hotkey }
    }

    pub(super) fn missing(&self, state: &State) -> Vec<Part> {
        let there = |part: &&Part| !state.arrived.parts.contains(&part.offset);
        self.parts.iter().filter(there).copied().collect()
    }

    pub(super) fn arrived_bytes(&self, state: &State) -> u64 {
        self.record.delta.bytes - self.missing(state).iter().map(|part| part.bytes).sum::<u64>()
    }
}
