//! Dropping states: the genesis, the newest and every k-th are kept, all deltas and all hashes are.
//!
//! A plan is made first: what goes, what a replay then starts from, and what stands against it.
//! Which states go is durable before the first file does, and a run that was cut is finished by the
//! next. The logs are not touched.
//!
//! With the states go files that nothing names: of a seal or an import that was cut before its entry
//! in the log. That is why all of it is done under the writer's lock, where nothing is under way.
//!
//! Memory: the names of what the kept states, the deltas and the records are stored as.

use std::{
    collections::BTreeSet,
    io,
    num::NonZeroU64,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    codec::layout::Layout,
    store::{
        StoreError,
        artifacts::StoredDelta,
        retention::Retention,
        segment::place::{self, Kind},
    },
    types::{manifest::ManifestId, progress::Progress},
};

use super::{
    Ledger, LedgerError,
    check::check_round,
    fsck::open_all,
    retention::{Kept, StateName, base_name, runs},
    writer::LedgerWriter,
};

/// Every how many rounds a state is kept if nobody says otherwise: some 20 hours of Templar's.
pub const KEEP_EVERY: NonZeroU64 = NonZeroU64::new(50).expect("it is not 0");

/// What a gc does, or did.
#[derive(Debug, Serialize)]
pub struct GcReport {
    /// Every how many rounds a state is kept, the genesis and the newest aside.
    pub keep_every: NonZeroU64,
    /// Number of distinct states kept, the genesis among them.
    pub kept: usize,
    /// First and last round of each run of rounds whose states are dropped now.
    pub dropped: Vec<[u64; 2]>,
    /// Rounds whose replay starts from an older state than before.
    pub replays: Vec<ReplayFrom>,
    /// What is removed: files of dropped states, and what no log names.
    pub freed: Freed,
    /// Why nothing is dropped, if something stands against it.
    pub obstacles: Vec<Obstacle>,
}

/// Where the replay of some rounds starts.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ReplayFrom {
    /// The first of the rounds.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// The last kept state before them.
    pub from: StateName,
}

/// Files and their bytes, by what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Freed {
    /// All bytes.
    pub bytes: u64,
    /// Segments of tensors.
    pub tensors: u64,
    /// Deltas that no submission names.
    pub deltas: u64,
    /// Plans, dispositions and hashes that no record and no submission names.
    pub others: u64,
}

/// Something that a dropped state would have to be folded from, or the newest state, is not there.
#[derive(Debug, Serialize)]
pub struct Obstacle {
    /// The round whose delta it is, or the state after which; null for the genesis.
    pub round: Option<u64>,
    /// What is missing or has a wrong size.
    pub reason: String,
}

/// Something to be removed.
struct Removal {
    kind: Kind,
    path: PathBuf,
    bytes: u64,
}

/// What is to be done, and nothing of it is yet.
pub struct GcPlan {
    report: GcReport,
    retention: Retention,
    removals: Vec<Removal>,
}

impl GcPlan {
    /// What [`gc`] would report.
    pub fn into_report(self) -> GcReport {
        self.report
    }

    fn refused(&self) -> bool {
        !self.report.obstacles.is_empty()
    }
}

/// Plans to keep every `keep_every`-th state.
///
/// Looked at are presence and sizes: of the newest state's segments, and for each state to be dropped
/// of the kept state that it is folded from and of the deltas and hashes of the rounds between.
/// Hashing them is for `fsck`. What is not in order is an obstacle in the report.
///
/// # Errors
///
/// [`LedgerError`] if the logs or the directories cannot be read; [`LedgerError::Copy`] of a copy.
pub fn plan(ledger: &Ledger, keep_every: NonZeroU64) -> Result<GcPlan, LedgerError> {
    let before = Kept::load(ledger)?;
    if before.is_of_copy() {
        return Err(LedgerError::Copy { path: ledger.place().root.clone() });
    }
    let after = before.thinned(ledger, keep_every);
    let dropped: Vec<usize> = (0..ledger.sealed().len())
        .filter(|&position| before.has_after(position) && !after.has_after(position))
        .collect();
    let mut obstacles = missing(ledger, &after, &dropped)?;
    let mut removals = Vec::new();
    match named(ledger, &after)? {
        Ok(named) => removals = unnamed(ledger, &named)?,
        Err(obstacle) => obstacles.push(obstacle),
    }
    let number = |position: usize| ledger.sealed()[position].record.round;
    let report = GcReport {
        keep_every,
        kept: after.count(),
        dropped: runs(dropped.into_iter()).map(|run| run.map(number)).collect(),
        replays: replays(ledger, &before, &after),
        freed: freed(&removals),
        obstacles,
    };
    Ok(GcPlan { report, retention: Retention::Dropped(after.dropped(ledger)), removals })
}

/// Drops all states but the genesis, the newest and every `keep_every`-th, and removes what nothing
/// names. With obstacles in its report, nothing was changed.
///
/// # Errors
///
/// [`LedgerError`]; the next gc finishes what was begun.
pub fn gc(
    writer: &mut LedgerWriter,
    keep_every: NonZeroU64,
    progress: &dyn Progress,
) -> Result<GcReport, LedgerError> {
    let ledger = writer.ledger();
    let plan = plan(ledger, keep_every)?;
    if !plan.refused() {
        let recorded = Retention::load(ledger.place()).map_err(StoreError::from)?;
        // Also if it reads so already: a process that was killed may have left it not durable.
        let dropped_any = plan.retention != Retention::Dropped(Vec::new());
        let in_doubt = !plan.removals.is_empty() && dropped_any;
        if in_doubt || recorded != plan.retention {
            plan.retention.save(ledger.place()).map_err(StoreError::from)?;
        }
        progress.begin("gc", plan.report.freed.bytes);
        remove_all(ledger, &plan.removals, progress)?;
        progress.end();
    }
    Ok(plan.into_report())
}

// ---- what stands against it ----

/// What the newest state, and the states at `dropped`, would need and do not have.
fn missing(ledger: &Ledger, after: &Kept, dropped: &[usize]) -> Result<Vec<Obstacle>, LedgerError> {
    let newest = ledger.sealed().last().map(|s| s.record.round);
    let mut obstacles: Vec<_> = incomplete(ledger, newest, ledger.newest()).into_iter().collect();
    if !obstacles.is_empty() {
        return Ok(obstacles);
    }
    let layout = ledger.layout()?;
    // Dropped states that are folded from the same kept one.
    for run in dropped.chunk_by(|a, b| after.start(*a) == after.start(*b)) {
        let (start, last) = (start(after, run[0]), run[run.len() - 1]);
        let (base, id) = (base_name(ledger, start).round, ledger.sealed()[start].record.base);
        obstacles.extend(incomplete(ledger, base, id));
        obstacles.extend(lost_deltas(ledger, &layout, start..last + 1)?);
    }
    Ok(obstacles)
}

/// The first tensor of a state that is missing or has a wrong size.
fn incomplete(ledger: &Ledger, round: Option<u64>, id: ManifestId) -> Option<Obstacle> {
    let open = || -> Result<(), StoreError> {
        let checkpoint = ledger.checkpoint(id)?;
        let tensors = 0..checkpoint.manifest().descriptors().len();
        tensors.into_iter().try_for_each(|position| checkpoint.tensor(position).map(drop))
    };
    let name = StateName { round, root: id.root };
    let reason = |error| format!("{name} is not whole: {error}");
    open().err().map(|error| Obstacle { round, reason: reason(error) })
}

/// The accepted deltas of these rounds that are missing or have wrong sizes.
fn lost_deltas(
    ledger: &Ledger,
    layout: &Layout,
    positions: Range<usize>,
) -> Result<Vec<Obstacle>, LedgerError> {
    let mut obstacles = Vec::new();
    for position in positions {
        let round = ledger.sealed()[position].record.round;
        for (miner, id) in check_round(ledger, position)?.deltas {
            let opened = StoredDelta::open(ledger.place(), id)
                .and_then(|delta| open_all(&delta, layout, |_| Ok(())));
            if let Err(error) = opened {
                let reason = format!("round {round}: the delta of {miner} is not whole: {error}");
                obstacles.push(Obstacle { round: Some(round), reason });
            }
        }
    }
    Ok(obstacles)
}

/// Where a replay of the round at `position` starts.
fn start(kept: &Kept, position: usize) -> usize {
    kept.start(position).expect("a ledger keeps its genesis")
}

/// Runs of rounds whose replay starts from an older state than before.
fn replays(ledger: &Ledger, before: &Kept, after: &Kept) -> Vec<ReplayFrom> {
    let older = |&position: &usize| after.start(position) < before.start(position);
    let positions: Vec<usize> = (0..ledger.sealed().len()).filter(older).collect();
    positions
        .chunk_by(|a, b| a + 1 == *b && after.start(*a) == after.start(*b))
        .map(|run| ReplayFrom {
            first: ledger.sealed()[run[0]].record.round,
            last: ledger.sealed()[run[run.len() - 1]].record.round,
            from: base_name(ledger, start(after, run[0])),
        })
        .collect()
}

// ---- what goes ----

/// Where everything lies that is kept; or which kept state does not say what it is made of.
fn named(ledger: &Ledger, kept: &Kept) -> Result<Result<BTreeSet<PathBuf>, Obstacle>, LedgerError> {
    let root = &ledger.place().root;
    let mut named = BTreeSet::new();
    let genesis = (None, ledger.genesis().model);
    let rounds = ledger.sealed().iter().map(|s| (Some(s.record.round), s.record.next));
    let mut seen = BTreeSet::new();
    for (round, id) in [genesis].into_iter().chain(rounds) {
        named.insert(place::hashes(root, id.root));
        if !kept.has(id) || !seen.insert(id.root) {
            continue;
        }
        let checkpoint = match ledger.checkpoint(id) {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                let name = StateName { round, root: id.root };
                let reason = format!("{name} has no list of its tensors: {error}");
                return Ok(Err(Obstacle { round, reason }));
            }
        };
        let descriptors = checkpoint.manifest().descriptors();
        named.extend(descriptors.iter().map(|d| place::tensor(root, &d.artifact(), d.dtype)));
    }
    for sealed in ledger.sealed() {
        named.insert(place::plan(root, &sealed.record.plan));
        named.insert(place::dispositions(root, &sealed.record.dispositions));
    }
    for (_, submission) in ledger.submissions(0..ledger.submissions_log().size())? {
        if let Some(delta) = submission.stored_delta() {
            named.insert(place::delta(root, delta.root));
            named.insert(place::hashes(root, delta.root));
        }
    }
    Ok(Ok(named))
}

/// What lies on the shelves and is not named.
fn unnamed(ledger: &Ledger, named: &BTreeSet<PathBuf>) -> Result<Vec<Removal>, StoreError> {
    let (files, root) = (&*ledger.place().files, &ledger.place().root);
    let mut removals = Vec::new();
    for kind in Kind::ALL {
        let there = place::all(files, root, kind)
            .map_err(|source| StoreError::Io { path: root.clone(), source })?;
        for path in there.into_iter().filter(|path| !named.contains(path)) {
            let bytes = size(ledger, kind, &path)
                .map_err(|source| StoreError::Io { path: path.clone(), source })?;
            removals.push(Removal { kind, path, bytes });
        }
    }
    Ok(removals)
}

/// Bytes of a file, or of all files of a delta.
fn size(ledger: &Ledger, kind: Kind, path: &Path) -> io::Result<u64> {
    let files = &*ledger.place().files;
    let of_file = |path: &Path| files.open(path)?.len();
    match kind {
        Kind::Delta => files.list(path)?.iter().map(|name| of_file(&path.join(name))).sum(),
        _ => of_file(path),
    }
}

fn freed(removals: &[Removal]) -> Freed {
    let mut freed = Freed::default();
    for removal in removals {
        freed.bytes += removal.bytes;
        match removal.kind {
            Kind::Tensor => freed.tensors += 1,
            Kind::Delta => freed.deltas += 1,
            Kind::Plan | Kind::Dispositions | Kind::Hashes => freed.others += 1,
        }
    }
    freed
}

/// Removes, a shelf at a time, each durably.
fn remove_all(
    ledger: &Ledger,
    removals: &[Removal],
    progress: &dyn Progress,
) -> Result<(), StoreError> {
    let place = ledger.place();
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Io { path, source }
    };
    for shelf in removals.chunk_by(|a, b| a.path.parent() == b.path.parent()) {
        let mut taken = Vec::new();
        for Removal { kind, path, bytes } in shelf {
            match kind {
                // A delta is there as a whole or not at all, or an import would take half of one
                // for what it brings. So its name goes first, durably.
                Kind::Delta => {
                    let to = place.tmp().join(path.file_name().expect("a delta has a name"));
                    place.files.rename(path, &to).map_err(at(path))?;
                    taken.push(to);
                }
                _ => place.files.remove(path).map_err(at(path))?,
            }
            progress.advance(*bytes);
        }
        let dir = shelf[0].path.parent().expect("a file on a shelf");
        place.files.sync_dir(dir).map_err(at(dir))?;
        for path in taken {
            place.files.remove_dir_all(&path).map_err(at(&path))?;
        }
    }
    Ok(())
}
