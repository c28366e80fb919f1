//! Fetching from all mirrors at once: workers, each bound to a mirror, take runs of pieces from one queue.
//!
//! A slower mirror takes fewer. A piece that does not have its digest is not written; its mirror is left,
//! and another fetches it. What is asked for at once is at most a thousandth of the whole, so a run that
//! is killed loses little: pieces that arrived whole are found again by their digests.

use std::{
    collections::BTreeSet,
    io,
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    thread,
    time::Duration,
};

use gradledger_kernels::sha256::hash_pieces;

use super::{
    SyncReport,
    error::{Fault, SyncError},
    hold::Copy,
    item::{Item, Source, What, store},
    meter::Meter,
    mirror::{Mirror, Mirrors},
    queue::{Active, Queue, Step, Task},
    stretch::{Window, stretches},
    ways::{Way, WayKind},
};
use crate::{
    codec::layout::Layout,
    ledger::LedgerError,
    store::{
        StoreError,
        artifacts::StoredCheckpoint,
        hashes::{self, HashesReader},
        segment::SegmentError,
    },
    types::{
        digest::Digest,
        manifest::{ManifestId, PIECE_BYTES},
        progress::Progress,
    },
};

/// Most bytes that one request asks for.
const RUN_BYTES_MAX: u64 = 4 << 20;

/// Which part of the whole may be asked for at once, at most.
const UNDER_WAY: u64 = 1000;

/// How long a worker waits for something to do before it looks again.
const LOOK: Duration = Duration::from_millis(100);

/// Fetches what `way` asks for and is not here.
pub(super) fn fetch(
    copy: &Copy<'_>,
    mirrors: &Mirrors,
    way: &Way,
    connections: usize,
    progress: &dyn Progress,
    report: &mut SyncReport,
) -> Result<(), SyncError> {
    let base = copy.id(way.base);
    if !copy.has_hashes(base) {
        let wanted = format!("the hashes of {}", copy.name(way.base));
        mirrors.ask(&wanted, progress, |mirror| copy_hashes(copy, mirror, base, "state"))?;
    }
    let state = StoredCheckpoint::open(copy.place, base)?;
    let layout = Layout::of(state.manifest(), copy.ledger.rule()).map_err(LedgerError::from)?;
    let wanted = wanted(copy, way, &state);
    let total: u64 = wanted.iter().map(What::bytes).sum();
    let workers = connections.max(1) * mirrors.alive().count();
    let run_bytes = total / UNDER_WAY / workers.max(1) as u64 / PIECE_BYTES * PIECE_BYTES;
    let tasks = wanted.into_iter().map(|what| Task { what, lacking: BTreeSet::new() }).collect();
    let fetch = Fetch {
        copy,
        mirrors,
        state: &state,
        layout: &layout,
        run_bytes: run_bytes.clamp(PIECE_BYTES, RUN_BYTES_MAX),
        active_max: workers,
        meter: Meter::default(),
        progress,
        queue: Mutex::new(Queue { tasks, active: Vec::new(), working: 0, failed: None }),
        wake: Condvar::new(),
    };
    progress.begin("fetch", total);
    thread::scope(|scope| {
        let telling = scope.spawn(|| fetch.meter.tell(mirrors, total, progress));
        let alive = mirrors.all.iter().enumerate().filter(|(_, mirror)| mirror.is_alive());
        let workers: Vec<_> = alive
            .flat_map(|mirror| std::iter::repeat_n(mirror, connections.max(1)))
            .map(|(number, mirror)| {
                let fetch = &fetch;
                scope.spawn(move || fetch.work(number, mirror))
            })
            .collect();
        let ended: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        fetch.meter.end();
        drop(telling.join());
        // A panic of ours goes on as one, after the others have ended.
        ended.into_iter().for_each(|ended| {
            if let Err(panic) = ended {
                std::panic::resume_unwind(panic);
            }
        });
    });
    progress.end();
    report.verified_bytes += fetch.meter.verified_bytes.load(Ordering::Relaxed);
    report.resumed_bytes += fetch.meter.resumed_bytes.load(Ordering::Relaxed);
    let queue = fetch.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
    match queue {
        Queue { failed: Some(error), .. } => Err(error),
        queue if queue.is_empty() => Ok(()),
        _ => Err(mirrors.none("what is missing")),
    }
}

/// The tensors and deltas that are not here, each once; the largest tensors first.
fn wanted(copy: &Copy<'_>, way: &Way, state: &StoredCheckpoint) -> Vec<What> {
    let mut wanted = Vec::new();
    if way.kind == WayKind::Checkpoint {
        let mut seen = BTreeSet::new();
        let tensors = state.manifest().descriptors().iter();
        let missing = tensors
            .filter(|tensor| !copy.has_tensor(tensor) && seen.insert(copy.tensor_path(tensor)));
        wanted.extend(missing.cloned().map(What::Tensor));
        wanted.sort_by_key(|what| std::cmp::Reverse(what.bytes()));
    }
    let mut seen = BTreeSet::new();
    let deltas = way.rounds.values().flatten();
    let missing = deltas.filter(|id| !copy.has_delta(**id) && seen.insert(id.root));
    wanted.extend(missing.map(|id| What::Delta(*id)));
    wanted
}

/// Copies the hashes of a manifest, each digest checked. `scratch` tells calls at one time apart.
fn copy_hashes(
    copy: &Copy<'_>,
    mirror: &Mirror,
    id: ManifestId,
    scratch: &str,
) -> Result<(), StoreError> {
    let from = HashesReader::open(&*mirror.place.files, &mirror.place.root, &id)?;
    let tmp = copy.place.tmp().join(format!("{scratch}.hashes"));
    hashes::copy(&from, &*copy.place.files, &copy.place.root, &tmp)?;
    Ok(())
}

/// Why a step failed: because of the mirror, or for good.
enum Failure {
    Mirror(StoreError),
    Ours(SyncError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match Fault::of(&error) {
            Fault::Ours => Self::Ours(error.into()),
            _ => Self::Mirror(error),
        }
    }
}

/// A download under way.
struct Fetch<'a> {
    copy: &'a Copy<'a>,
    mirrors: &'a Mirrors,
    /// The state that tensors are fetched of, by its hashes.
    state: &'a StoredCheckpoint,
    layout: &'a Layout,
    run_bytes: u64,
    active_max: usize,
    meter: Meter,
    progress: &'a dyn Progress,
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Fetch<'_> {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, number: usize, mirror: &Mirror) {
        while let Some(step) = self.next(number, mirror) {
            let outcome = match &step {
                Step::Prepare(task) => self.prepare(number, mirror, task),
                Step::Fetch(item, pieces) => self.run(number, mirror, item, pieces),
            };
            self.settle(number, mirror, step, outcome);
            self.wake.notify_all();
        }
        self.wake.notify_all();
    }

    /// Takes something that this mirror may have; waits while others may give some back.
    fn next(&self, number: usize, mirror: &Mirror) -> Option<Step> {
        let mut queue = self.queue();
        loop {
            if queue.failed.is_some() || queue.is_empty() && queue.working == 0 {
                return None;
            }
            let alive: Vec<usize> =
                (0..self.mirrors.all.len()).filter(|&m| self.mirrors.all[m].is_alive()).collect();
            if let Some(what) = queue.lacking_everywhere(&alive).filter(|_| !alive.is_empty()) {
                queue.failed = Some(SyncError::Nowhere { what });
                return None;
            }
            if !mirror.is_alive() {
                return None;
            }
            if let Some(step) = queue.take(number, self.active_max) {
                queue.working += 1;
                return Some(step);
            }
            let waited = self.wake.wait_timeout(queue, LOOK);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What came of a step: the rest is queued again, or left to another mirror.
    fn settle(&self, number: usize, mirror: &Mirror, step: Step, outcome: Result<(), Failure>) {
        let mut queue = self.queue();
        queue.working -= 1;
        let error = match outcome {
            Ok(()) => return,
            Err(Failure::Ours(error)) => {
                queue.failed.get_or_insert(error);
                return;
            }
            Err(Failure::Mirror(error)) => error,
        };
        let fault = Fault::of(&error);
        let lacks = fault == Fault::Absent;
        match step {
            Step::Prepare(mut task) => {
                task.lacking.extend(lacks.then_some(number));
                queue.tasks.push_back(task);
            }
            Step::Fetch(item, run) => {
                let active = queue.find(&item);
                active.lacking.extend(lacks.then_some(number));
                active.todo.push_front(run);
            }
        }
        drop(queue);
        if !lacks {
            mirror.leave(fault, &error, self.progress);
        }
    }

    /// Finds out which pieces of a task are missing, and queues them.
    fn prepare(&self, number: usize, mirror: &Mirror, task: &Task) -> Result<(), Failure> {
        if let What::Delta(id) = task.what
            && !self.copy.has_hashes(id)
        {
            let scratch = id.root.to_hex();
            copy_hashes(self.copy, mirror, id, &scratch)?;
            let hashes = self.copy.hashes(id)?;
            if !self.layout.is_delta(hashes.manifest()) {
                let what = task.what.name();
                return Err(Failure::Ours(StoreError::NoArtifact { what }.into()));
            }
        }
        let opened = Item::open(self.copy, task.what.clone(), self.state, self.layout);
        let item = Arc::new(opened.map_err(Failure::Ours)?);
        let (runs, left) = item.missing(self.run_bytes).map_err(|source| self.spool(source))?;
        let missing: u64 = runs.iter().map(|run| bytes_of(&item, run)).sum();
        let resumed = item.streams.last().map_or(0, |last| last.at + last.bytes) - missing;
        self.meter.resumed_bytes.fetch_add(resumed, Ordering::Relaxed);
        self.progress.advance(resumed);
        let (lacking, sources) = Default::default();
        let active = Active { item: item.clone(), todo: runs.into(), left, lacking, sources };
        self.queue().active.push(active);
        if left > 0 {
            return Ok(());
        }
        // Of a delta the books are missing still, which are not in the spool.
        let ended = self.source(number, mirror, &item).and_then(|source| self.end(&item, &source));
        if ended.is_err() {
            self.queue().active.retain(|active| !Arc::ptr_eq(&active.item, &item));
        }
        ended
    }

    fn spool(&self, source: io::Error) -> Failure {
        Failure::Ours(SyncError::Io { path: self.copy.place.sync(), source })
    }

    /// Where this mirror has the item; asked once.
    fn source(
        &self,
        number: usize,
        mirror: &Mirror,
        item: &Arc<Item>,
    ) -> Result<Arc<Source>, Failure> {
        if let Some(source) = self.queue().find(item).sources.get(&number) {
            return Ok(source.clone());
        }
        let source = Arc::new(Source::open(self.copy, mirror, item, self.layout)?);
        self.queue().find(item).sources.insert(number, source.clone());
        Ok(source)
    }

    /// Fetches a run of pieces, compares each with its digest, and writes it to its place.
    fn run(
        &self,
        number: usize,
        mirror: &Mirror,
        item: &Arc<Item>,
        pieces: &Range<u64>,
    ) -> Result<(), Failure> {
        let source = self.source(number, mirror, item)?;
        for stretch in stretches(item, &source, pieces)? {
            let bytes = mirror
                .remote
                .range(&stretch.path, stretch.span.clone())
                .map_err(|error| at(&stretch.path, error.into()))?;
            let window = Window { at: stretch.span.start, bytes };
            for (stream, part) in &stretch.parts {
                self.take_in(mirror, item, &source, *stream, part, &window)?;
            }
        }
        let mut queue = self.queue();
        let active = queue.find(item);
        active.left -= pieces.end - pieces.start;
        let ended = active.left == 0;
        drop(queue);
        if ended { self.end(item, &source) } else { Ok(()) }
    }

    /// Checks pieces of one stream and writes them.
    fn take_in(
        &self,
        mirror: &Mirror,
        item: &Item,
        source: &Source,
        stream: usize,
        pieces: &Range<u64>,
        window: &Window,
    ) -> Result<(), Failure> {
        let (column, stream) = (&source.columns[stream], &item.streams[stream]);
        let range = stream.bytes_of(pieces);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        column.read_from(window, range.start, &mut bytes).map_err(StoreError::from)?;
        let mut found = Vec::new();
        hash_pieces(&bytes, PIECE_BYTES as usize, &mut found);
        let first = pieces.start - stream.first;
        for (piece, found) in (first..).zip(found) {
            let (expected, found) = (stream.digests[piece as usize], Digest(found));
            if expected != found {
                let what = stream.name.clone();
                return Err(StoreError::Piece { what, piece, expected, found }.into());
            }
        }
        let written = item.spool.write(stream.at + range.start, &bytes);
        written.map_err(|source| self.spool(source))?;
        let bytes = bytes.len() as u64;
        mirror.verified_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.meter.verified_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.progress.advance(bytes);
        Ok(())
    }

    /// All of an item is here.
    fn end(&self, item: &Arc<Item>, source: &Source) -> Result<(), Failure> {
        let bins = 1 << self.copy.ledger.rule().code_bits();
        store(self.copy, item, &source.books, self.layout, bins).map_err(Failure::Ours)?;
        self.queue().active.retain(|active| !Arc::ptr_eq(&active.item, item));
        Ok(())
    }
}

/// Bytes of a run.
fn bytes_of(item: &Item, pieces: &Range<u64>) -> u64 {
    let part = |(stream, part): (usize, Range<u64>)| {
        let bytes = item.streams[stream].bytes_of(&part);
        bytes.end - bytes.start
    };
    item.parts(pieces).map(part).sum()
}

fn at(path: &std::path::Path, source: io::Error) -> StoreError {
    SegmentError::Io { path: path.to_owned(), source }.into()
}
