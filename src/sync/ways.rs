//! The ways to a state, and what each asks for: counted from records and manifests before anything is
//! fetched.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::Serialize;

use super::{
    error::SyncError,
    hold::Copy,
    mirror::{Mirror, Mirrors},
};
use crate::{
    ledger::{check::check_round, retention::StateName},
    store::{StoreError, hashes::HashesReader, retention::Retention},
    types::{
        digest::Digest,
        manifest::{ManifestId, piece_count},
        progress::Progress,
    },
};

/// What a way starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WayKind {
    /// A state that is here.
    Deltas,
    /// A state that mirrors keep.
    Checkpoint,
}

/// A way.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) kind: WayKind,
    /// The state that it starts from.
    pub(super) base: usize,
    /// The deltas of each round from there on.
    pub(super) rounds: BTreeMap<usize, Vec<ManifestId>>,
    pub(super) bytes: u64,
}

/// A way, as reports name it.
#[derive(Clone, Debug, Serialize)]
pub struct WayView {
    /// What it starts from.
    pub way: WayKind,
    /// Which state.
    pub from: StateName,
    /// Rounds to fold.
    pub rounds: usize,
    /// Bytes that are missing for it.
    pub bytes: u64,
}

impl fmt::Display for WayView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { way, from, rounds, bytes } = self;
        match way {
            WayKind::Deltas => write!(f, "the deltas of {rounds} rounds onto {from}")?,
            WayKind::Checkpoint => write!(f, "{from} and the deltas of {rounds} rounds")?,
        }
        write!(f, ", {bytes} bytes")
    }
}

impl Way {
    pub(super) fn view(&self, copy: &Copy<'_>) -> WayView {
        let (way, from, bytes) = (self.kind, copy.name(self.base), self.bytes);
        WayView { way, from, rounds: self.rounds.len(), bytes }
    }

    /// Number of deltas of the round after state `state`.
    pub(super) fn deltas_of(&self, state: usize) -> usize {
        self.rounds.get(&state).map_or(0, Vec::len)
    }
}

/// The ways to `target`, the cheapest first.
pub(super) fn ways(
    copy: &Copy<'_>,
    mirrors: &Mirrors,
    target: usize,
    progress: &dyn Progress,
) -> Result<Vec<Way>, SyncError> {
    let held = copy.newest_held(target);
    let mut rounds = BTreeMap::new();
    let mut ways = Vec::new();
    if let Some(base) = held {
        ways.push(way(copy, WayKind::Deltas, base, target, 0, &mut rounds)?);
    }
    for base in kept(copy, mirrors, target, progress) {
        if Some(base) == held {
            continue;
        }
        let id = copy.id(base);
        let wanted = format!("the list of tensors of {}", copy.name(base));
        let missing = mirrors.ask(&wanted, progress, |mirror| missing_of(copy, mirror, id));
        match missing {
            Ok(missing) => {
                ways.push(way(copy, WayKind::Checkpoint, base, target, missing, &mut rounds)?);
            }
            Err(SyncError::Nowhere { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    ways.sort_by_key(|way| way.bytes);
    Ok(ways)
}

/// For each mirror the newest state up to `target` that it says it keeps, and the genesis, which all but
/// copies keep.
fn kept(
    copy: &Copy<'_>,
    mirrors: &Mirrors,
    target: usize,
    progress: &dyn Progress,
) -> BTreeSet<usize> {
    let mut kept = BTreeSet::from([0]);
    for mirror in mirrors.alive() {
        match Retention::load(&mirror.place).map_err(StoreError::from) {
            Ok(retention) => {
                let keeps = |&state: &usize| {
                    let StateName { round, root } = copy.name(state);
                    retention.keeps(round, root)
                };
                kept.extend((0..=target).rev().find(keeps));
            }
            Err(error) => progress.note(&format!("{}: {error}", mirror.remote.url())),
        }
    }
    // The genesis costs what a newer state does and more deltas beside it.
    if kept.len() > 1 {
        kept.pop_first();
    }
    kept
}

/// Bytes of a state, and of its hashes, that are not here. A tensor with a root that is here is here.
fn missing_of(copy: &Copy<'_>, mirror: &Mirror, id: ManifestId) -> Result<u64, StoreError> {
    let hashes = HashesReader::open(&*mirror.place.files, &mirror.place.root, &id)?;
    let mut seen = BTreeSet::new();
    let descriptors = hashes.manifest().descriptors();
    let missing = descriptors
        .iter()
        .filter(|tensor| !copy.has_tensor(tensor) && seen.insert(copy.tensor_path(tensor)))
        .map(|tensor| tensor.bytes);
    let digests = if copy.has_hashes(id) {
        0
    } else {
        descriptors.iter().map(|tensor| hashes_bytes(tensor.bytes)).sum()
    };
    Ok(missing.sum::<u64>() + digests)
}

fn hashes_bytes(bytes: u64) -> u64 {
    piece_count(bytes) * Digest::BYTES as u64
}

fn way(
    copy: &Copy<'_>,
    kind: WayKind,
    base: usize,
    target: usize,
    missing: u64,
    known: &mut BTreeMap<usize, Vec<ManifestId>>,
) -> Result<Way, SyncError> {
    let mut bytes = missing;
    let mut rounds = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for state in base..target {
        if let std::collections::btree_map::Entry::Vacant(entry) = known.entry(state) {
            let deltas = check_round(copy.ledger, state)?.deltas;
            entry.insert(deltas.into_iter().map(|(_, id)| id).collect());
        }
        let deltas = known[&state].clone();
        for id in &deltas {
            if !copy.has_delta(*id) && seen.insert(id.root) {
                bytes += id.bytes + hashes_bytes(id.bytes);
            }
        }
        rounds.insert(state, deltas);
    }
    Ok(Way { kind, base, rounds, bytes })
}
