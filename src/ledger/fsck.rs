//! Checking a whole ledger: every log hash, every stored byte, every scalar and every fold again.

mod copy;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{
    codec::layout::{DeltaGroup, Layout},
    intake::dispose::accepted,
    store::{
        StoreError,
        artifacts::{ArtifactReader, StoredDelta},
        place::Place,
        quarantine, segment,
    },
    types::{
        json,
        manifest::ManifestId,
        progress::Progress,
        submission::{Fetched, Miner, Outcome, Submission},
    },
};

use super::{
    Ledger, LedgerError,
    anchored::{self, AnchorTrust},
    check,
    hub::given_files,
    replay::{ReplayOptions, replay, stored_plan},
    retention::{Kept, StateName},
    seal::FoldOptions,
    thread_pool,
};

/// What was found in order.
#[derive(Debug, Default, Serialize)]
pub struct FsckReport {
    /// Whether it is a copy that `sync` made: then what it holds was checked, and rounds are those that
    /// could be folded.
    pub copy: bool,
    /// Entries of both logs.
    pub log_entries: u64,
    /// Distinct states whose every byte was hashed.
    pub checkpoints: u64,
    /// Distinct states that gc dropped: their digests were checked, and they were folded again.
    pub dropped: u64,
    /// Deltas whose every byte was hashed.
    pub deltas: u64,
    /// Refused files whose every byte was hashed.
    pub quarantined: u64,
    /// Rounds whose record, plan and fold were derived again.
    pub rounds: u64,
    /// Files that were given at init, each hashed.
    pub files: u64,
    /// Bytes hashed, folds left aside.
    pub bytes: u64,
}

/// Re-hashes and re-derives everything.
///
/// Logs against their tiles and signed heads (with the keys that the ledger names, so this finds damage,
/// not a forger: that is `audit` with keys from outside); records against the logs; every tensor of a
/// kept state, every delta, plan, disposition and quarantined file against its digest; every round
/// folded again, over dropped states from the last kept one. Of a copy, what it holds.
///
/// # Errors
///
/// The first thing that disagrees; [`LedgerError::StateLost`] if a file of a state is gone that no gc
/// dropped; [`LedgerError::CopyDamaged`] if one of a copy is, or is another.
pub fn fsck(
    ledger: &Ledger,
    options: FoldOptions,
    progress: &dyn Progress,
) -> Result<FsckReport, LedgerError> {
    let (pool, kept) = (thread_pool(options.threads)?, Kept::load(ledger)?);
    if kept.is_of_copy() {
        return copy::fsck(ledger, &kept, options, progress);
    }
    let mut report = FsckReport { log_entries: logs(ledger)?, ..FsckReport::default() };
    given(ledger, &mut report)?;
    pool.install(|| {
        checkpoints(ledger, &kept, &mut report, progress)?;
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

fn given(ledger: &Ledger, report: &mut FsckReport) -> Result<(), StoreError> {
    for file in given_files(ledger)? {
        report.files += 1;
        report.bytes += file.bytes();
    }
    Ok(())
}

fn logs(ledger: &Ledger) -> Result<u64, LedgerError> {
    let (rounds, submissions) = (ledger.rounds_log(), ledger.submissions_log());
    for log in [rounds, submissions] {
        log.verify(&mut |_, _| {})?;
    }
    ledger.verify_heads()?;
    check::check_rotations(ledger)?;
    anchored::judge_all(ledger, AnchorTrust::default())?;
    Ok(rounds.size() + submissions.size())
}

/// Hashes every tensor of every kept state once, and the list of digests of every dropped one.
fn checkpoints(
    ledger: &Ledger,
    kept: &Kept,
    report: &mut FsckReport,
    progress: &dyn Progress,
) -> Result<(), LedgerError> {
    let rounds = ledger.sealed().iter().map(|s| (s.record.next, Some(s.record.round)));
    // Rounds that came to the same state are one state.
    let states: BTreeMap<ManifestId, Option<u64>> =
        rounds.chain([(ledger.genesis().model, None)]).collect();
    let mut hashed = BTreeSet::new();
    progress
        .begin("fsck states", states.keys().filter(|id| kept.has(**id)).map(|id| id.bytes).sum());
    for (id, round) in states {
        let checkpoint = ledger.checkpoint(id)?;
        if !kept.has(id) {
            let positions = 0..checkpoint.manifest().descriptors().len();
            positions.into_iter().try_for_each(|at| checkpoint.digests(at).map(drop))?;
            report.dropped += 1;
            continue;
        }
        let state = StateName { round, root: id.root };
        for (position, descriptor) in checkpoint.manifest().descriptors().iter().enumerate() {
            if hashed.insert((descriptor.artifact(), descriptor.dtype)) {
                let tensor = checkpoint.tensor(position).map_err(|source| lost(state, source))?;
                report.bytes += verified(tensor, progress)?;
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

/// Says what to do where the file of a kept state is gone.
fn lost(state: StateName, source: StoreError) -> LedgerError {
    if source.is_not_found() { LedgerError::StateLost { state, source } } else { source.into() }
}

/// Hashes all of an artifact and gives its bytes.
fn verified(mut artifact: ArtifactReader, progress: &dyn Progress) -> Result<u64, StoreError> {
    artifact.verify_to_end(progress)?;
    Ok(artifact.len())
}

/// Hashes every delta that a submission names, and every file that was refused.
fn deltas(
    ledger: &Ledger,
    report: &mut FsckReport,
    progress: &dyn Progress,
) -> Result<(), LedgerError> {
    let layout = ledger.layout()?;
    let submissions = ledger.submissions(0..ledger.submissions_log().size())?;
    let bytes = |(_, s): &(u64, Submission)| s.stored_delta().map_or(0, |id| id.bytes);
    progress.begin("fsck deltas", submissions.iter().map(bytes).sum());
    let (mut seen, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for (_, submission) in &submissions {
        if let Some(id) = submission.stored_delta().filter(|id| seen.insert(id.root)) {
            hash_delta(ledger.place(), &layout, id, progress)?;
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

/// Hashes every byte of a delta.
pub(super) fn hash_delta(
    place: &Place,
    layout: &Layout,
    id: ManifestId,
    progress: &dyn Progress,
) -> Result<(), StoreError> {
    let delta = StoredDelta::open(place, id)?;
    open_all(&delta, layout, |mut artifact| artifact.verify_to_end(progress))
}

/// Opens each artifact of a delta in turn: its lengths and its list of digests are right then.
pub(super) fn open_all(
    delta: &StoredDelta,
    layout: &Layout,
    mut each: impl FnMut(ArtifactReader) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    for tensor in &layout.tensors {
        for group in DeltaGroup::ALL {
            each(delta.open_artifact(group, &tensor.name)?)?;
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
        let dispositions = &checked.disposed.dispositions;
        segment::dispositions::check_columns(files, root, id, dispositions)
            .map_err(StoreError::from)?;
        report.rounds += 1;
    }
    Ok(())
}

/// Hashes every stored plan. Its root is known to be right by then, or this would blame the store.
fn plans(ledger: &Ledger, report: &mut FsckReport) -> Result<(), LedgerError> {
    let layout = ledger.layout()?;
    let tensors: Vec<&str> = layout.tensors.iter().map(|t| t.name.as_str()).collect();
    let (files, root) = (&*ledger.place().files, &ledger.place().root);
    let mut stored = BTreeMap::<_, Vec<_>>::new();
    for (position, sealed) in ledger.sealed().iter().enumerate() {
        let accepted = accepted(&check::check_round(ledger, position)?.disposed.dispositions);
        let miners: Vec<Miner> = accepted.into_iter().map(|(_, _, miner)| miner).collect();
        stored.entry(sealed.record.plan).or_default().push((&sealed.record, miners));
    }
    for (id, rounds) in &stored {
        let (record, miners) = &rounds[0];
        let plan = stored_plan(ledger, &layout, record, miners.len())?;
        // Rounds of equal scalars share a table, which names the miners of one of them.
        let mut checks = rounds.iter().map(|(_, miners)| {
            segment::plan::check_columns(files, root, id, &plan, &tensors, miners)
        });
        let first = checks.next().expect("a round a plan");
        if first.is_err() && !checks.any(|check| check.is_ok()) {
            first.map_err(StoreError::from)?;
        }
        report.bytes += id.bytes;
    }
    Ok(())
}
