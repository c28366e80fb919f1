//! The thread that hashes what was sealed, newest first, and publishes each revision once it is whole.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{Listed, Named};
use crate::{
    export::ExportDtype,
    http::Node,
    ledger::{
        At, Ledger, LedgerError,
        hub::{Hashed, Revision, revision, states},
        retention::Kept,
        thread_pool,
    },
    store::hub::drop_sums,
    types::{digest::Digest, manifest::ManifestId},
};

/// How often it is looked for what is new.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long a state that could not be hashed is left alone.
const RETRY_AFTER_LOOKS: u32 = 60;

/// The thread; it ends when this is dropped, in the middle of a file if need be.
pub struct Worker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts to hash the states of `node`'s ledger, on one core.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Threads`] if the system refuses.
    pub fn start(node: &Arc<Node>) -> Result<Self, LedgerError> {
        let stop = Arc::new(AtomicBool::new(false));
        // Requests go before: whatever is read here is hashed on one thread.
        let pool = thread_pool(1)?;
        let mut work = Work {
            node: node.clone(),
            stop: stop.clone(),
            done: BTreeMap::new(),
            failed: BTreeMap::new(),
        };
        let thread = std::thread::spawn(move || {
            while !work.stop.load(Ordering::Relaxed) {
                pool.install(|| work.pass());
                std::thread::park_timeout(LOOK_EVERY);
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It has told of its panic itself.
            let _ = thread.join();
        }
    }
}

/// What identifies a revision before it is hashed.
type Key = (Digest, ExportDtype);

struct Work {
    node: Arc<Node>,
    stop: Arc<AtomicBool>,
    done: BTreeMap<Key, Arc<Revision>>,
    /// States that could not be hashed, and after how many looks they are tried again.
    failed: BTreeMap<Key, u32>,
}

impl Work {
    /// Publishes what is known of the states that are kept now, and hashes what is missing.
    fn pass(&mut self) {
        // It tells of its failure itself; what was there before goes on to be served.
        let _ = self.node.look();
        let snapshot = self.node.snapshot();
        let ledger = &snapshot.ledger;
        let kept = match Kept::load(ledger) {
            Ok(kept) => kept,
            Err(error) => return tracing::error!(%error, "which states are kept cannot be read"),
        };
        let states = states(ledger, &kept);
        self.forget(ledger, &kept);
        self.publish(&states);
        for &(at, id) in states.iter().rev() {
            for dtype in [ExportDtype::Bf16, ExportDtype::F32] {
                if !self.is_due((id.root, dtype)) {
                    continue;
                }
                self.hash(ledger, at, id, dtype);
                self.publish(&states);
                // What was sealed meanwhile goes first.
                let _ = self.node.look();
                let newer = self.node.snapshot().ledger.sealed().len() > ledger.sealed().len();
                if newer || self.stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    }

    /// Whether a state has no digests yet and is to be hashed now.
    fn is_due(&mut self, key: Key) -> bool {
        if self.done.contains_key(&key) {
            return false;
        }
        match self.failed.get_mut(&key) {
            Some(looks) if *looks > 0 => {
                *looks -= 1;
                false
            }
            _ => true,
        }
    }

    fn hash(&mut self, ledger: &Ledger, at: At, id: ManifestId, dtype: ExportDtype) {
        let (state, dtype_name) = (super::tag(at), dtype.name());
        let stop = || self.stop.load(Ordering::Relaxed);
        let mut told = false;
        let unkept = &mut |error| {
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(%error, "digests for Hub clients are not kept and will be made again");
            }
        };
        let given = self.node.hub().given(ledger);
        let hashed = given.and_then(|_| revision(ledger, id, dtype, &stop, unkept));
        let key = (id.root, dtype);
        match hashed {
            Ok(Hashed::Whole(revision)) => {
                tracing::info!(
                    state,
                    dtype = dtype_name,
                    commit = revision.commit,
                    "listed for Hub clients"
                );
                self.failed.remove(&key);
                self.done.insert(key, Arc::new(revision));
            }
            Ok(Hashed::Stopped) => {}
            Ok(Hashed::TooLarge(file)) => {
                tracing::error!(
                    state,
                    dtype = dtype_name,
                    file,
                    "not listed for Hub clients: a file would be too large"
                );
                self.failed.insert(key, u32::MAX);
            }
            Err(error) => {
                tracing::error!(%error, state, dtype = dtype_name, "not listed for Hub clients");
                self.failed.insert(key, RETRY_AFTER_LOOKS);
            }
        }
    }

    /// Leaves out what was dropped.
    fn forget(&mut self, ledger: &Ledger, kept: &Kept) {
        let count = self.done.len();
        self.done.retain(|_, revision| kept.has(revision.state));
        if self.done.len() < count {
            let roots: std::collections::BTreeSet<_> =
                states(ledger, kept).into_iter().map(|(_, id)| id.root).collect();
            if let Err(error) = drop_sums(ledger.place(), |root| roots.contains(&root)) {
                tracing::warn!(%error, "digests of dropped states stay");
            }
        }
    }

    fn publish(&self, states: &[(At, ManifestId)]) {
        let named = |dtype| -> Arc<Named> {
            let of = |&(at, id): &(At, ManifestId)| {
                Some((at, self.done.get(&(id.root, dtype))?.clone()))
            };
            Arc::new(states.iter().filter_map(of).collect())
        };
        let listed = Listed { bf16: named(ExportDtype::Bf16), f32: named(ExportDtype::F32) };
        self.node.hub().publish(listed);
    }
}
