//! What all requests share: the ledger as it is published now.
//!
//! Another process may write to the ledger, or a room of this one. So the heads are looked at again,
//! at most every tenth of a second, by the first request that comes after that.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, time::timeout};

use super::{
    anchoring::Lag,
    blob::Blocks,
    hub::Hub,
    manifests::Opened,
    metrics::Metrics,
    problem::Problem,
    submissions::Entries,
    uploads::Door,
    visible::{Published, Tensors},
};
use crate::{
    ledger::{Ledger, LedgerError},
    store::{artifacts::StoredDelta, hashes::HashesReader, log::LogFiles, place::Place},
};

/// How old a look at the heads may be.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How many requests may read for a document at once.
const TURNS: usize = 32;

/// How long a request waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// A ledger as of its published heads, and what its records make public.
pub struct Snapshot {
    /// The ledger.
    pub ledger: Ledger,
    /// The names that may be read.
    pub published: Arc<Published>,
}

/// What all requests share.
pub struct Node {
    snapshot: RwLock<Arc<Snapshot>>,
    /// When the heads were last looked at. Held while they are.
    looked: Mutex<Instant>,
    /// Whether the last look found a ledger that reads.
    reads: AtomicBool,
    draining: AtomicBool,
    turns: Arc<Semaphore>,
    tensors: Mutex<Tensors>,
    hashes: Mutex<Opened<HashesReader>>,
    deltas: Mutex<Opened<StoredDelta>>,
    entries: Mutex<Entries>,
    blocks: Arc<Blocks>,
    hub: Hub,
    uploads: OnceLock<Arc<Door>>,
    lag: Mutex<Lag>,
    metrics: Metrics,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// The node of a ledger that was opened.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if a submission or the ledger's configuration does not read.
    pub fn new(ledger: Ledger) -> Result<Arc<Self>, LedgerError> {
        let hub = Hub::new(&ledger)?;
        let published = Arc::new(Published::of(&ledger)?);
        Ok(Arc::new(Self {
            snapshot: RwLock::new(Arc::new(Snapshot { ledger, published })),
            looked: Mutex::new(Instant::now()),
            reads: AtomicBool::new(true),
            draining: AtomicBool::new(false),
            turns: Arc::new(Semaphore::new(TURNS)),
            tensors: Mutex::default(),
            hashes: Mutex::default(),
            deltas: Mutex::default(),
            entries: Mutex::default(),
            blocks: Arc::default(),
            hub,
            uploads: OnceLock::new(),
            lag: Mutex::default(),
            metrics: Metrics::default(),
        }))
    }

    /// The ledger as it was at the last look.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The ledger as it was at most a tenth of a second ago; as it was before if it does not read now.
    pub async fn fresh(self: &Arc<Self>) -> Arc<Snapshot> {
        // Who finds it locked does not wait: somebody is looking already.
        let old = self.looked.try_lock().is_ok_and(|looked| looked.elapsed() >= LOOK_EVERY);
        if old {
            let node = self.clone();
            // The look itself logs what it could not read.
            let _ = self.blocking(move || Ok(node.look()?)).await;
        }
        self.snapshot()
    }

    /// Looks at the heads, and takes up what was appended. It blocks.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if the ledger does not read; the snapshot stays as it was.
    pub fn look(&self) -> Result<(), LedgerError> {
        let mut looked = lock(&self.looked);
        if looked.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        *looked = Instant::now();
        let followed = self.follow();
        let read_before = self.reads.swap(followed.is_ok(), Ordering::Relaxed);
        // It is told once, not at every look.
        if let Err(error) = followed.as_ref()
            && read_before
        {
            tracing::error!(%error, "the ledger does not read; what it was is served");
        }
        followed
    }

    /// Takes up what was appended, however short ago the last look was. It blocks.
    ///
    /// # Errors
    ///
    /// As [`Node::look`].
    pub fn look_now(&self) -> Result<(), LedgerError> {
        let _looked = lock(&self.looked);
        self.follow()
    }

    fn follow(&self) -> Result<(), LedgerError> {
        let now = self.snapshot();
        let Some(ledger) = now.ledger.follow()? else { return Ok(()) };
        let mut published = now.published.clone();
        if ledger.sealed().len() > published.rounds() {
            Arc::make_mut(&mut published).follow(&ledger)?;
        }
        let snapshot = Arc::new(Snapshot { ledger, published });
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = snapshot;
        Ok(())
    }

    /// Runs what blocks on a thread for that, when it is its turn: so that documents, however many are
    /// asked for, leave threads for bytes on their way.
    ///
    /// # Errors
    ///
    /// What `work` says; [`Problem`] (429) if its turn does not come, (500) if it panics.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let turn = timeout(TURN_TIMEOUT, self.turns.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(Problem::busy("too many others ask for documents"));
        };
        let span = tracing::Span::current();
        let work = move || {
            // It goes on when nobody waits for it any more.
            let _turn = turn;
            span.in_scope(work)
        };
        tokio::task::spawn_blocking(work).await.map_err(Problem::internal)?
    }

    /// Where the ledger lies.
    pub fn place(&self) -> Place {
        self.snapshot().ledger.place().clone()
    }

    /// The files of the log in this directory.
    pub fn log_files(&self, dir: &Path) -> LogFiles {
        LogFiles::new(self.place().files, dir)
    }

    /// Which tensors belong to states that are kept.
    pub fn tensors(&self) -> MutexGuard<'_, Tensors> {
        lock(&self.tensors)
    }

    /// The repositories for Hub clients.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Takes uploads from now on; once.
    pub fn open_uploads(&self, door: Arc<Door>) {
        // A second door would be to the same ledger.
        let _ = self.uploads.set(door);
    }

    /// Where uploads are handed in, if they are taken.
    pub fn uploads(&self) -> Option<Arc<Door>> {
        self.uploads.get().cloned()
    }

    /// Manifests that are open.
    pub fn hashes(&self) -> MutexGuard<'_, Opened<HashesReader>> {
        lock(&self.hashes)
    }

    /// Deltas that are open.
    pub fn deltas(&self) -> MutexGuard<'_, Opened<StoredDelta>> {
        lock(&self.deltas)
    }

    /// Where statements and miners stand in the submissions log.
    pub fn entries(&self) -> MutexGuard<'_, Entries> {
        lock(&self.entries)
    }

    /// How many rounds of `ledger` no anchored head holds, and for how long the oldest of them was seen
    /// so.
    pub fn lag(&self, ledger: &Ledger) -> (u64, Duration) {
        lock(&self.lag).of(ledger)
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Buffers for what is sent.
    pub fn blocks(&self) -> &Arc<Blocks> {
        &self.blocks
    }

    /// Whether the ledger reads and the server is not about to end.
    pub fn is_ready(&self) -> bool {
        self.reads.load(Ordering::Relaxed) && !self.draining.load(Ordering::Relaxed)
    }

    /// The server is about to end.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}
