//! Checking a whole ledger: every log hash, every stored byte, every scalar and every fold again.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::{
    codec::layout::{DeltaGroup, Layout},
    store::{
        StoreError,
        artifacts::{StoredCheckpoint, StoredDelta},
        quarantine, segment,
    },
    types::{
        json,
        manifest::ManifestId,
        progress::Progress,
        submission::{Fetched, Outcome, Submission},
    },
};

use super::{
    Ledger, LedgerError,
    anchored::{self, AnchorTrust},
    check,
    replay::{ReplayOptions, replay, stored_plan},
    seal::FoldOptions,
    thread_pool,
};

/// What was found in order.
#[derive(Debug, Default, Serialize)]
pub struct FsckReport {
    /// Entries of both logs.
    pub log_entries: u64,
    /// Distinct states whose every byte was hashed.
    pub checkpoints: u64,
    /// Deltas whose every byte was hashed.
    pub deltas: u64,
    /// Refused files whose every byte was hashed.
    pub quarantined: u64,
    /// Rounds whose record, plan and fold were derived again.
    pub rounds: u64,
    /// Bytes hashed, folds left aside.
    pub bytes: u64,
}

/// Re-hashes and re-derives everything.
///
/// Logs against their tiles and signed heads (with the keys of the genesis, so this finds damage,
/// not a forger: that is `audit` with keys from outside); records against the logs; every tensor,
/// delta, plan, disposition and quarantined file against its digest; every round folded again.
///
/// # Errors
///
/// The first thing that disagrees.
pub fn fsck(
    ledger: &Ledger,
    options: FoldOptions,
    progress: &dyn Progress,
) -> Result<FsckReport, LedgerError> {
    let mut report = FsckReport { log_entries: logs(ledger)?, ..FsckReport::default() };
    let pool = thread_pool(options.threads)?;
    pool.install(|| {
        checkpoints(ledger, &mut report, progress)?;
        deltas(ledger, &mut report, progress)?;
        rounds(ledger, &mut report)
    })?;
    if let (Some(first), Some(last)) = (ledger.sealed().first(), ledger.sealed().last()) {
        let rounds = first.record.round..=last.record.round;
        replay(ledger, &ReplayOptions { rounds, tensor: None, fold: options }, progress)?;
    }
    plans(ledger, &mut report)?;
    Ok(report)
}

fn logs(ledger: &Ledger) -> Result<u64, LedgerError> {
    let keys = &ledger.genesis().log_keys;
    let mut entries = 0;
    for (log, key) in
        [(ledger.rounds_log(), &keys.rounds), (ledger.submissions_log(), &keys.submissions)]
    {
        log.verify(&mut |_, _| {})?;
        log.verify_head(&key.parse()?)?;
        entries += log.size();
    }
    anchored::judge_all(ledger, AnchorTrust::default())?;
    Ok(entries)
}

/// Hashes every tensor of every state once.
fn checkpoints(
    ledger: &Ledger,
    report: &mut FsckReport,
    progress: &dyn Progress,
) -> Result<(), LedgerError> {
    let rounds = ledger.sealed().iter().map(|s| s.record.next);
    let ids: BTreeSet<ManifestId> = rounds.chain([ledger.genesis().model]).collect();
    let mut hashed = BTreeSet::new();
    progress.begin("fsck states", ids.iter().map(|id| id.bytes).sum());
    for id in &ids {
        let checkpoint: StoredCheckpoint = ledger.checkpoint(*id)?;
        for (position, descriptor) in checkpoint.manifest().descriptors().iter().enumerate() {
            if hashed.insert((descriptor.artifact(), descriptor.dtype)) {
                checkpoint.tensor(position)?.verify_to_end(progress)?;
                report.bytes += descriptor.bytes;
            } else {
                // Shared with another state; this one has digests of its own.
                checkpoint.digests(position)?;
                progress.advance(descriptor.bytes);
            }
        }
        report.checkpoints += 1;
    }
    progress.end();
    Ok(())
}

/// Hashes every delta that a submission names, and every file that was refused.
fn deltas(
    ledger: &Ledger,
    report: &mut FsckReport,
    progress: &dyn Progress,
) -> Result<(), LedgerError> {
    let layout = ledger.layout()?;
    let submissions = ledger.submissions(0..ledger.submissions_log().size())?;
    let kept = |s: &Submission| match s {
        // A signed delta is kept whether it counts or not: it is what its miner answers for.
        Submission::Signed(signed) => Some(signed.delta),
        Submission::Fetched(Fetched { outcome: Outcome::Delta(id), .. }) => Some(*id),
        Submission::Fetched(_) => None,
    };
    let bytes = |(_, s): &(u64, Submission)| kept(s).map_or(0, |id| id.bytes);
    progress.begin("fsck deltas", submissions.iter().map(bytes).sum());
    let (mut seen, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for (_, submission) in &submissions {
        if let Some(id) = kept(submission).filter(|id| seen.insert(id.root)) {
            hash_delta(ledger, &layout, id, progress)?;
            report.deltas += 1;
            report.bytes += id.bytes;
        }
        if let Submission::Fetched(fetched @ Fetched { outcome: Outcome::Refused(_), .. }) =
            submission
            && refused.insert((fetched.round, fetched.source_sha256))
        {
            let (round, digest) = (fetched.round, fetched.source_sha256);
            let (files, root) = (&*ledger.place().files, &ledger.place().root);
            // What is past its time in quarantine is gone; that is no damage.
            if quarantine::verify(files, root, round, digest).map_err(StoreError::from)? {
                report.quarantined += 1;
                report.bytes += fetched.source_bytes;
            }
        }
    }
    progress.end();
    Ok(())
}

fn hash_delta(
    ledger: &Ledger,
    layout: &Layout,
    id: ManifestId,
    progress: &dyn Progress,
) -> Result<(), LedgerError> {
    let delta = StoredDelta::open(ledger.place(), id)?;
    for tensor in &layout.tensors {
        for group in DeltaGroup::ALL {
            delta.open_artifact(group, &tensor.name)?.verify_to_end(progress)?;
        }
    }
    Ok(())
}

/// Derives every record again and compares what is stored of its dispositions.
fn rounds(ledger: &Ledger, report: &mut FsckReport) -> Result<(), LedgerError> {
    for (position, sealed) in ledger.sealed().iter().enumerate() {
        let checked = check::check_round(ledger, position)?;
        let (files, root) = (&*ledger.place().files, &ledger.place().root);
        let id = &sealed.record.dispositions;
        let stored =
            segment::dispositions::read_entries(files, root, id).map_err(StoreError::from)?;
        let derived = checked.disposed.dispositions.iter().map(json::to_vec);
        if let Some(entry) = stored.iter().zip(derived).position(|(a, b)| a[..] != b[..]) {
            let round = sealed.record.round;
            return Err(check::Disagreement::StoredDisposition { round, entry }.into());
        }
        report.rounds += 1;
    }
    Ok(())
}

/// Hashes every stored plan. Its root is known to be right by then, or this would blame the store.
fn plans(ledger: &Ledger, report: &mut FsckReport) -> Result<(), LedgerError> {
    let layout = ledger.layout()?;
    for (position, sealed) in ledger.sealed().iter().enumerate() {
        let miners = check::check_round(ledger, position)?.deltas.len();
        stored_plan(ledger, &layout, &sealed.record, miners)?;
        report.bytes += sealed.record.plan.bytes;
    }
    Ok(())
}
