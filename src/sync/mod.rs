//! Layer 6, sync: a miner's side of a ledger that others serve. What it hands in is in [`submit`]; the rest is
//! a copy of the ledger, brought to the newest or a given state.
//!
//! In this order: the logs, each new entry hashed onto the copy and compared with the signed head; the
//! cheaper of two ways (the newest kept checkpoint, or the deltas that are missing), counted beforehand;
//! its pieces, from all mirrors at once, each compared with its digest as it arrives; the fold, done here
//! by the functions that `replay` uses, which ends at the root of the record or fails; the files given at
//! `init`, which an export puts beside the weights.
//!
//! What is done is what lies on the disk and has its digest: nothing else is kept about it. So a run
//! that was killed goes on where it was. See `schema/sync.md`.
//!
//! Trust: none in a mirror. One that lies is left and named; its lie changes nothing.

mod error;
mod fetch;
mod given;
mod hold;
mod item;
mod logs;
mod meter;
mod mirror;
mod queue;
mod spool;
mod stretch;
pub mod submit;
mod ways;

use std::{collections::BTreeSet, path::Path, sync::Arc};

use serde::Serialize;

pub use self::{
    error::{Fault, SyncError},
    mirror::MirrorView,
    ways::{WayKind, WayView},
};
use self::{fetch::fetch, hold::Copy, mirror::Mirrors, ways::Way};
use crate::{
    ledger::{
        At, Ledger, LedgerError, check::check_rotations, replay::rebuild, retention::StateName,
        seal::FoldOptions,
    },
    store::{
        StoreError,
        files::{Disk, create_dir_durable},
        lock::WriterLock,
        place::Place,
        remote::HttpOptions,
        retention::Retention,
    },
    types::{manifest::ManifestId, progress::Progress},
};

/// Deltas that are folded in one pass; the states between two passes are stored.
const FOLD_AT_ONCE: usize = 200;

/// Connections to each mirror, if nobody says otherwise.
pub const CONNECTIONS: usize = 4;

/// Says why the heads of a ledger are not believed.
pub type Trusts<'a> = dyn Fn(&Ledger) -> Result<(), String> + 'a;

/// How to sync.
pub struct SyncOptions<'a> {
    /// To the state after this round, or the genesis; else to the newest.
    pub at: Option<At>,
    /// Whether earlier states and deltas stay, so that rounds can be replayed.
    pub keep: bool,
    /// Connections to each mirror.
    pub connections: usize,
    /// How mirrors are asked.
    pub http: HttpOptions,
    /// How to fold.
    pub fold: FoldOptions,
    /// Whose signatures are believed.
    pub trusts: &'a Trusts<'a>,
}

/// What a sync came to.
#[derive(Debug, Serialize)]
pub struct SyncReport {
    /// The state that the copy is at.
    pub state: StateName,
    /// Its manifest.
    pub manifest: ManifestId,
    /// What it was made from: the way that was taken, if there was anything to do.
    pub taken: Option<WayView>,
    /// All ways that were open, with what each asked for.
    pub ways: Vec<WayView>,
    /// Rounds that were folded here.
    pub folded: usize,
    /// Bytes of answers, of all mirrors together.
    pub network_bytes: u64,
    /// Bytes that were compared with their digests as they arrived.
    pub verified_bytes: u64,
    /// Bytes that were there already from an earlier run that did not end.
    pub resumed_bytes: u64,
    /// The mirrors.
    pub mirrors: Vec<MirrorView>,
}

/// Brings the copy in `dir` to a state that the servers at `urls` lead to.
///
/// Memory: a request a connection (at most 4 MiB), the digests of the tensors under way, and what a
/// fold takes. Disk: the state before and the state after, and what is under way.
///
/// # Errors
///
/// [`SyncError`]. What arrived stays, and the next run goes on from there.
pub fn sync(
    urls: &[String],
    dir: &Path,
    options: &SyncOptions<'_>,
    progress: &dyn Progress,
) -> Result<SyncReport, SyncError> {
    progress.note(&format!("sync: asking {}", urls.join(", ")));
    let place = Place::new(Arc::new(Disk), dir);
    let _lock = prepare(&place)?;
    let mirrors = Mirrors::new(urls, dir, &options.http)?;
    logs::follow(&mirrors, &place, options.trusts, progress)?;
    let ledger = Ledger::open(dir)?;
    check_rotations(&ledger)?;
    let copy = Copy::new(&place, &ledger);
    copy.verify_after_boot(progress)?;
    let target = copy.target(options.at)?;
    let mut report = SyncReport {
        state: copy.name(target),
        manifest: copy.id(target),
        taken: None,
        ways: Vec::new(),
        folded: 0,
        network_bytes: 0,
        verified_bytes: 0,
        resumed_bytes: 0,
        mirrors: Vec::new(),
    };
    if copy.holds(target) {
        progress.note(&format!("{} is here already", report.state));
    } else {
        bring(&copy, &mirrors, target, options, progress, &mut report)?;
    }
    copy.settle(target, options.keep)?;
    report.verified_bytes += given::fetch(&copy, &mirrors, progress)?;
    report.network_bytes = mirrors.network_bytes();
    report.mirrors = mirrors.views();
    Ok(report)
}

/// Takes the copy's lock, in a directory that is one or is to become one.
fn prepare(place: &Place) -> Result<WriterLock, SyncError> {
    let io = |source| SyncError::Io { path: place.root.clone(), source };
    let (files, sync) = (&*place.files, place.sync());
    let there = files.exists(&place.root).map_err(io)?;
    if there
        && !files.exists(&sync).map_err(io)?
        && !files.list(&place.root).map_err(io)?.is_empty()
    {
        return Err(SyncError::NotACopy { path: place.root.clone() });
    }
    create_dir_durable(files, &sync).map_err(io)?;
    let lock = WriterLock::acquire(&place.root).map_err(LedgerError::from)?;
    if files.exists(&place.tmp()).map_err(io)? {
        files.remove_dir_all(&place.tmp()).map_err(io)?;
    }
    files.create_dir_all(&place.tmp()).map_err(io)?;
    if !files.exists(&place.retention()).map_err(io)? {
        // Whoever reads it before it has a state is told so.
        let nothing = Retention::Held(BTreeSet::new());
        nothing.save(place).map_err(StoreError::from)?;
    }
    Ok(lock)
}

/// Fetches what the cheapest way asks for that can be gone to its end, and folds.
fn bring(
    copy: &Copy<'_>,
    mirrors: &Mirrors,
    target: usize,
    options: &SyncOptions<'_>,
    progress: &dyn Progress,
    report: &mut SyncReport,
) -> Result<(), SyncError> {
    let ways = ways::ways(copy, mirrors, target, progress)?;
    report.ways = ways.iter().map(|way| way.view(copy)).collect();
    for view in &report.ways {
        progress.note(&format!("way: {view}"));
    }
    let mut failed = None;
    for way in &ways {
        let view = way.view(copy);
        progress.note(&format!("taking {view}"));
        match fetch(copy, mirrors, way, options.connections, progress, report) {
            Ok(()) => {
                report.folded = fold(copy, way, target, options.fold, progress)?;
                report.taken = Some(view);
                return Ok(());
            }
            // Another way may not need what nobody has.
            Err(error @ SyncError::Nowhere { .. }) => {
                progress.note(&error.to_string());
                failed = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(failed.unwrap_or(SyncError::NoWay { state: copy.name(target) }))
}

/// Folds from the way's base to `target`, in passes.
fn fold(
    copy: &Copy<'_>,
    way: &Way,
    target: usize,
    options: FoldOptions,
    progress: &dyn Progress,
) -> Result<usize, SyncError> {
    let (mut at, mut folded) = (way.base, 0);
    while at < target {
        let mut deltas = way.deltas_of(at);
        let mut next = at + 1;
        while next < target && deltas + way.deltas_of(next) <= FOLD_AT_ONCE {
            deltas += way.deltas_of(next);
            next += 1;
        }
        if copy.id(next) != copy.id(at) {
            copy.record_held(&[at])?;
            let ledger = Ledger::open(&copy.place.root)?;
            let round = copy.ledger.sealed()[next - 1].record.round;
            rebuild(&ledger, round, copy.place, options, progress)?;
        }
        folded += next - at;
        at = next;
    }
    Ok(folded)
}
