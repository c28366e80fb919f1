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
        digest::Digest,
        json,
        manifest::{ArtifactId, ManifestId},
        progress::Progress,
        submission::{Fetched, Miner, Outcome, Submission},
        tensor::Dtype,
    },
};

use super::{
    Ledger, LedgerError,
    anchored::{self, AnchorTrust},
    check::{self, CheckedRound, derive_round},
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
    /// Distinct states whose every byte was hashed, once whether for itself or to be folded.
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
    /// Bytes hashed, what folds made left aside.
    pub bytes: u64,
}

/// Re-hashes and re-derives everything.
///
/// Logs against their tiles and signed heads (with the keys that the ledger names, so this finds damage,
/// not a forger: that is `audit` with keys from outside); records against the logs; every round folded
/// again, over dropped states from the last kept one; every tensor of a kept state, every delta, plan,
/// disposition and quarantined file against its digest. What the folds read was compared as it was read,
/// and is not hashed again. Of a copy, what it holds.
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
    let states = states(ledger, &kept)?;
    rounds(ledger, &mut report)?;
    let read = fold_all(ledger, options, progress)?;
    pool.install(|| {
        checkpoints(ledger, &states, &read, &mut report, progress)?;
        deltas(ledger, &read, &mut report, progress)
    })?;
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

/// What the folds read, each byte compared with its digest.
#[derive(Default)]
struct Read {
    tensors: BTreeSet<(ArtifactId, Dtype)>,
    /// Roots of deltas.
    deltas: BTreeSet<Digest>,
}

/// Folds every round again.
fn fold_all(
    ledger: &Ledger,
    options: FoldOptions,
    progress: &dyn Progress,
) -> Result<Read, LedgerError> {
    let mut read = Read::default();
    let (Some(first), Some(last)) = (ledger.sealed().first(), ledger.sealed().last()) else {
        return Ok(read);
    };
    let rounds = first.record.round..=last.record.round;
    let options = ReplayOptions { rounds, tensor: None, fold: options };
    let layout = ledger.layout()?;
    for base in replay(ledger, &options, progress)?.bases {
        let checkpoint = ledger.checkpoint(base)?;
        let folded = layout.tensors.iter().map(|tensor| tensor.position);
        let descriptors = checkpoint.manifest().descriptors();
        read.tensors.extend(folded.map(|at| (descriptors[at].artifact(), descriptors[at].dtype)));
    }
    for position in 0..ledger.sealed().len() {
        // `rounds` has checked the signatures.
        let (CheckedRound { deltas, .. }, _) = derive_round(ledger, position)?;
        read.deltas.extend(deltas.iter().map(|(_, id)| id.root));
    }
    Ok(read)
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

/// The distinct states of a ledger, in order of their ids.
struct States {
    /// Each with its name; all their files are there.
    kept: Vec<(StateName, ManifestId)>,
    dropped: Vec<ManifestId>,
}

fn states(ledger: &Ledger, kept: &Kept) -> Result<States, LedgerError> {
    let rounds = ledger.sealed().iter().map(|s| (s.record.next, Some(s.record.round)));
    // Rounds that came to the same state are one state.
    let all: BTreeMap<ManifestId, Option<u64>> =
        rounds.chain([(ledger.genesis().model, None)]).collect();
    let mut states = States { kept: Vec::new(), dropped: Vec::new() };
    for (id, round) in all {
        if !kept.has(id) {
            states.dropped.push(id);
            continue;
        }
        let checkpoint = ledger.checkpoint(id)?;
        let name = StateName { round, root: id.root };
        for position in 0..checkpoint.manifest().descriptors().len() {
            checkpoint.tensor(position).map_err(|source| lost(name, source))?;
        }
        states.kept.push((name, id));
    }
    Ok(states)
}

/// Hashes every tensor of every kept state that was not read yet, once, and the list of digests of every
/// dropped one.
fn checkpoints(
    ledger: &Ledger,
    states: &States,
    read: &Read,
    report: &mut FsckReport,
    progress: &dyn Progress,
) -> Result<(), LedgerError> {
    for &id in &states.dropped {
        let checkpoint = ledger.checkpoint(id)?;
        let positions = 0..checkpoint.manifest().descriptors().len();
        positions.into_iter().try_for_each(|at| checkpoint.digests(at).map(drop))?;
        report.dropped += 1;
    }
    progress.begin("fsck states", states.kept.iter().map(|(_, id)| id.bytes).sum());
    let mut seen = BTreeSet::new();
    for &(name, id) in &states.kept {
        let checkpoint = ledger.checkpoint(id)?;
        for (position, descriptor) in checkpoint.manifest().descriptors().iter().enumerate() {
            let tensor = (descriptor.artifact(), descriptor.dtype);
            let first = seen.insert(tensor);
            if first {
                report.bytes += descriptor.bytes;
            }
            if first && !read.tensors.contains(&tensor) {
                let mut artifact = checkpoint.tensor(position).map_err(|e| lost(name, e))?;
                artifact.verify_to_end(progress)?;
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

/// Hashes every delta that a submission names and that was not read yet, and every file that was refused.
fn deltas(
    ledger: &Ledger,
    read: &Read,
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
            if read.deltas.contains(&id.root) {
                progress.advance(id.bytes);
            } else {
                hash_delta(ledger.place(), &layout, id, progress)?;
            }
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
        let (checked, _) = derive_round(ledger, position)?;
        let accepted = accepted(&checked.disposed.dispositions);
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
