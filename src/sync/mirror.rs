//! The servers that a sync reads from, and which of them are still believed.

use std::{
    fmt::Display,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Serialize;

use super::error::{Fault, SyncError};
use crate::{
    store::{
        StoreError,
        place::Place,
        remote::{HttpOptions, Remote},
    },
    types::progress::Progress,
};

/// A server.
pub(super) struct Mirror {
    pub(super) remote: Remote,
    pub(super) place: Place,
    /// Bytes from it that had their digest.
    pub(super) verified_bytes: AtomicU64,
    dropped: Mutex<Option<(Fault, String)>>,
}

/// A mirror, as the report tells of it.
#[derive(Debug, Serialize)]
pub struct MirrorView {
    /// Its URL.
    pub url: String,
    /// Bytes of its answers.
    pub network_bytes: u64,
    /// Bytes from it that had their digest.
    pub verified_bytes: u64,
    /// Whether it sent something that is not what it should be.
    pub lied: bool,
    /// Why it was left, if it was.
    pub dropped: Option<String>,
}

impl Mirror {
    fn dropped(&self) -> std::sync::MutexGuard<'_, Option<(Fault, String)>> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_alive(&self) -> bool {
        self.dropped().is_none()
    }

    /// Leaves it, and says so; once.
    pub(super) fn leave(&self, fault: Fault, why: &dyn Display, progress: &dyn Progress) {
        let mut dropped = self.dropped();
        if dropped.is_none() {
            let what = if fault == Fault::Lie { "lies" } else { "is of no use" };
            progress.note(&format!("mirror {} {what} and is left: {why}", self.remote.url()));
            *dropped = Some((fault, why.to_string()));
        }
    }
}

/// All of them.
pub(super) struct Mirrors {
    pub(super) all: Vec<Mirror>,
}

impl Mirrors {
    pub(super) fn new(urls: &[String], dir: &Path, http: &HttpOptions) -> Result<Self, SyncError> {
        let mirror = |url: &String| {
            let remote = Remote::new(url, http)?.keeping(dir);
            let place = Place::new(Arc::new(remote.clone()), remote.root());
            let (verified_bytes, dropped) = Default::default();
            Ok(Mirror { remote, place, verified_bytes, dropped })
        };
        Ok(Self { all: urls.iter().map(mirror).collect::<Result<_, SyncError>>()? })
    }

    pub(super) fn alive(&self) -> impl Iterator<Item = &Mirror> {
        self.all.iter().filter(|mirror| mirror.is_alive())
    }

    /// The answer of the first that gives one; those that lie or fail are left.
    pub(super) fn ask<T>(
        &self,
        wanted: &str,
        progress: &dyn Progress,
        question: impl Fn(&Mirror) -> Result<T, StoreError>,
    ) -> Result<T, SyncError> {
        let mut absent = false;
        for mirror in self.alive() {
            match question(mirror) {
                Ok(answer) => return Ok(answer),
                Err(error) => match Fault::of(&error) {
                    Fault::Absent => absent = true,
                    Fault::Ours => return Err(error.into()),
                    fault => mirror.leave(fault, &error, progress),
                },
            }
        }
        if absent {
            Err(SyncError::Nowhere { what: wanted.to_owned() })
        } else {
            Err(self.none(wanted))
        }
    }

    /// That nobody is left who has what is `wanted`.
    pub(super) fn none(&self, wanted: &str) -> SyncError {
        let (mut reasons, mut worst) = (Vec::new(), Fault::Absent);
        for mirror in &self.all {
            if let Some((fault, why)) = &*mirror.dropped() {
                reasons.push(format!("{}: {why}", mirror.remote.url()));
                worst = worst.max(*fault);
            }
        }
        SyncError::NoMirror { wanted: format!("gives {wanted}"), reasons, worst }
    }

    pub(super) fn network_bytes(&self) -> u64 {
        self.all.iter().map(|mirror| mirror.remote.traffic().bytes).sum()
    }

    pub(super) fn views(&self) -> Vec<MirrorView> {
        let view = |mirror: &Mirror| {
            let dropped = mirror.dropped();
            MirrorView {
                url: mirror.remote.url().to_owned(),
                network_bytes: mirror.remote.traffic().bytes,
                verified_bytes: mirror.verified_bytes.load(Ordering::Relaxed),
                lied: dropped.as_ref().is_some_and(|(fault, _)| *fault == Fault::Lie),
                dropped: dropped.as_ref().map(|(_, why)| why.clone()),
            }
        };
        self.all.iter().map(view).collect()
    }
}
