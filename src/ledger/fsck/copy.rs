//! Checking a copy that `sync` made: all that it holds, and nothing that it need not have.

use std::collections::BTreeSet;

use super::{FsckReport, given, hash_delta, logs};
use crate::{
    ledger::{
        Ledger, LedgerError,
        check::check_round,
        replay::{ReplayOptions, has_deltas, replay},
        retention::{Kept, name, runs},
        seal::FoldOptions,
        thread_pool,
    },
    store::{StoreError, segment::place},
    types::{manifest::ManifestId, progress::Progress},
};

/// As [`super::fsck`], of what a copy holds: its logs and every record, the states and deltas that are
/// here, the given files, and a fold of each round whose base and deltas are.
pub(super) fn fsck(
    ledger: &Ledger,
    kept: &Kept,
    options: FoldOptions,
    progress: &dyn Progress,
) -> Result<FsckReport, LedgerError> {
    let mut report = FsckReport { log_entries: logs(ledger)?, copy: true, ..FsckReport::default() };
    if kept.any(ledger).is_none() {
        return Err(kept.not_held(ledger, ledger.newest()));
    }
    given(ledger, &mut report).map_err(|error| damaged(ledger, "a given file", error))?;
    let pool = thread_pool(options.threads)?;
    pool.install(|| {
        states(ledger, kept, &mut report, progress)?;
        deltas(ledger, &mut report, progress)
    })?;
    for [first, last] in runs(foldable(ledger, kept)?.into_iter()) {
        let [first, last] = [first, last].map(|at| ledger.sealed()[at].record.round);
        let replay_options = ReplayOptions { rounds: first..=last, tensor: None, fold: options };
        report.rounds += replay(ledger, &replay_options, progress)?.rounds.len() as u64;
    }
    Ok(report)
}

fn damaged(ledger: &Ledger, what: impl ToString, source: StoreError) -> LedgerError {
    let boot = ledger.place().sync().join("boot");
    LedgerError::CopyDamaged { what: what.to_string(), boot, source }
}

/// Hashes every byte of the states that are held.
fn states(
    ledger: &Ledger,
    kept: &Kept,
    report: &mut FsckReport,
    progress: &dyn Progress,
) -> Result<(), LedgerError> {
    let rounds = ledger.sealed().iter().map(|sealed| sealed.record.next);
    let held: BTreeSet<ManifestId> =
        rounds.chain([ledger.genesis().model]).filter(|id| kept.has(*id)).collect();
    progress.begin("fsck states", held.iter().map(|id| id.bytes).sum());
    for id in held {
        let bytes = hash_state(ledger, id, progress);
        report.bytes += bytes.map_err(|error| damaged(ledger, name(ledger, id), error))?;
        report.checkpoints += 1;
    }
    progress.end();
    Ok(())
}

fn hash_state(ledger: &Ledger, id: ManifestId, progress: &dyn Progress) -> Result<u64, StoreError> {
    let state = ledger.checkpoint(id)?;
    let tensors = 0..state.manifest().descriptors().len();
    let verified = |position| {
        let mut tensor = state.tensor(position)?;
        tensor.verify_to_end(progress)?;
        Ok(tensor.len())
    };
    tensors.map(verified).sum()
}

/// Hashes every byte of the deltas that are here.
fn deltas(
    ledger: &Ledger,
    report: &mut FsckReport,
    progress: &dyn Progress,
) -> Result<(), LedgerError> {
    let (layout, store) = (ledger.layout()?, ledger.place());
    let named = ledger.submissions(0..ledger.submissions_log().size())?;
    let named: BTreeSet<ManifestId> = named.iter().filter_map(|(_, s)| s.stored_delta()).collect();
    progress.begin("fsck deltas", 0);
    for id in named {
        let path = place::delta(&store.root, id.root);
        if !store.files.exists(&path).map_err(|source| StoreError::Io { path, source })? {
            continue;
        }
        let whole = hash_delta(store, &layout, id, progress);
        whole.map_err(|error| damaged(ledger, format!("delta {}", id.root), error))?;
        report.deltas += 1;
        report.bytes += id.bytes;
    }
    progress.end();
    Ok(())
}

/// Checks every record against the logs, and gives the places of the rounds that can be folded here: the
/// state before is held, or follows from one that is.
fn foldable(ledger: &Ledger, kept: &Kept) -> Result<Vec<usize>, LedgerError> {
    let mut foldable = Vec::new();
    for (position, sealed) in ledger.sealed().iter().enumerate() {
        let checked = check_round(ledger, position)?;
        let follows = position.checked_sub(1).is_some_and(|at| foldable.last() == Some(&at));
        if (follows || kept.has(sealed.record.base)) && has_deltas(ledger, &checked)? {
            foldable.push(position);
        }
    }
    Ok(foldable)
}
