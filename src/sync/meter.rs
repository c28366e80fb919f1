//! How far a download is: bytes from the network and bytes that have their digest, side by side.

use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::mirror::Mirrors;
use crate::types::progress::Progress;

/// How soon the first line comes, and how often the next ones.
const FIRST: Duration = Duration::from_millis(700);
const AGAIN: Duration = Duration::from_secs(5);

/// Counts, and the end that whoever tells of them waits for.
#[derive(Default)]
pub(super) struct Meter {
    pub(super) verified_bytes: AtomicU64,
    pub(super) resumed_bytes: AtomicU64,
    over: Mutex<bool>,
    ended: Condvar,
}

impl Meter {
    /// Tells of the counts until [`Meter::end`].
    pub(super) fn tell(&self, mirrors: &Mirrors, total: u64, progress: &dyn Progress) {
        let (since, before) = (Instant::now(), mirrors.network_bytes());
        let mut wait = FIRST;
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        while !*over {
            let (guard, waited) =
                self.ended.wait_timeout(over, wait).unwrap_or_else(PoisonError::into_inner);
            over = guard;
            if !*over && waited.timed_out() {
                let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
                let network = mib(mirrors.network_bytes() - before);
                progress.note(&format!(
                    "{:.1} of {:.1} MiB verified, {network:.1} MiB received, {:.1} MiB/s",
                    mib(self.verified_bytes.load(Ordering::Relaxed)),
                    mib(total),
                    network / since.elapsed().as_secs_f64()
                ));
                wait = AGAIN;
            }
        }
    }

    pub(super) fn end(&self) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.ended.notify_all();
    }
}
