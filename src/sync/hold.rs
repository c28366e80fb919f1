//! What the copy has: which states are whole, and what it keeps in the end.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::error::SyncError;
use crate::{
    codec::layout::{DeltaGroup, Layout},
    ledger::{At, Ledger, LedgerError, retention::StateName},
    store::{
        StoreError,
        artifacts::{ArtifactReader, StoredCheckpoint, StoredDelta},
        files::write_whole,
        hashes::HashesReader,
        place::Place,
        retention::Retention,
        segment::place::{self, Kind},
    },
    types::{
        manifest::{Descriptor, ManifestId},
        progress::Progress,
    },
};

/// Where Linux tells one boot from the next.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// A copy and its logs. States are numbered: 0 is the genesis, `n` the one after the `n`-th round.
pub(super) struct Copy<'a> {
    pub(super) place: &'a Place,
    pub(super) ledger: &'a Ledger,
}

impl<'a> Copy<'a> {
    pub(super) fn new(place: &'a Place, ledger: &'a Ledger) -> Self {
        Self { place, ledger }
    }

    /// Number of states.
    pub(super) fn states(&self) -> usize {
        self.ledger.sealed().len() + 1
    }

    pub(super) fn id(&self, state: usize) -> ManifestId {
        match state.checked_sub(1) {
            Some(position) => self.ledger.sealed()[position].record.next,
            None => self.ledger.genesis().model,
        }
    }

    pub(super) fn name(&self, state: usize) -> StateName {
        let round = state.checked_sub(1).map(|at| self.ledger.sealed()[at].record.round);
        StateName { round, root: self.id(state).root }
    }

    /// The state to come to: the first of those in a row that are the same.
    pub(super) fn target(&self, at: Option<At>) -> Result<usize, LedgerError> {
        let mut state = match at {
            None => self.states() - 1,
            Some(At::Genesis) => 0,
            Some(At::Round(round)) => self.ledger.position(round)? + 1,
        };
        while state > 0 && self.id(state - 1) == self.id(state) {
            state -= 1;
        }
        Ok(state)
    }

    /// Whether all of a state is here. A file that has its name is whole.
    pub(super) fn holds(&self, state: usize) -> bool {
        let hashes = place::hashes(&self.place.root, self.id(state).root);
        if !hashes.exists() {
            return false;
        }
        let Ok(stored) = StoredCheckpoint::open(self.place, self.id(state)) else { return false };
        stored.manifest().descriptors().iter().all(|tensor| self.has_tensor(tensor))
    }

    /// The newest state up to `state` that is here.
    pub(super) fn newest_held(&self, state: usize) -> Option<usize> {
        (0..=state).rev().find(|&state| self.holds(state))
    }

    pub(super) fn tensor_path(&self, tensor: &Descriptor) -> PathBuf {
        place::tensor(&self.place.root, &tensor.artifact(), tensor.dtype)
    }

    pub(super) fn has_tensor(&self, tensor: &Descriptor) -> bool {
        self.tensor_path(tensor).exists()
    }

    pub(super) fn has_hashes(&self, id: ManifestId) -> bool {
        place::hashes(&self.place.root, id.root).exists()
    }

    pub(super) fn has_delta(&self, id: ManifestId) -> bool {
        self.has_hashes(id) && place::delta(&self.place.root, id.root).exists()
    }

    /// Writes down that of all states these are here, for whoever reads the copy.
    pub(super) fn record_held(&self, states: &[usize]) -> Result<(), SyncError> {
        let held = states.iter().map(|&state| self.id(state).root).collect();
        Ok(Retention::Held(held).save(self.place).map_err(StoreError::from)?)
    }

    /// The copy is at `target`: writes down what it holds, and unless all of it is to be kept removes the
    /// rest.
    pub(super) fn settle(&self, target: usize, keep: bool) -> Result<(), SyncError> {
        if keep {
            let held: Vec<usize> = (0..self.states()).filter(|&state| self.holds(state)).collect();
            self.record_held(&held)?;
        } else {
            self.record_held(&[target])?;
            self.remove_all_but(target)?;
        }
        self.remember_boot()?;
        Ok(())
    }

    fn remove_all_but(&self, target: usize) -> Result<(), SyncError> {
        let (files, root) = (&*self.place.files, &self.place.root);
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| SyncError::Io { path, source }
        };
        let id = self.id(target);
        let stored = StoredCheckpoint::open(self.place, id)?;
        let mut named: BTreeSet<PathBuf> =
            stored.manifest().descriptors().iter().map(|t| self.tensor_path(t)).collect();
        named.insert(place::hashes(root, id.root));
        for kind in [Kind::Tensor, Kind::Delta, Kind::Hashes] {
            for path in place::all(files, root, kind).map_err(io(root))? {
                if named.contains(&path) {
                    continue;
                }
                if kind == Kind::Delta {
                    // Half a delta must not be taken for a whole one: its name goes first.
                    let to = self.place.tmp().join(path.file_name().expect("a delta has a name"));
                    files.rename(&path, &to).map_err(io(&path))?;
                    files.remove_dir_all(&to).map_err(io(&to))?;
                } else {
                    files.remove(&path).map_err(io(&path))?;
                }
            }
        }
        for name in files.list(&self.place.sync()).map_err(io(root))? {
            let path = self.place.sync().join(&name);
            if name.to_str() != Some("boot") {
                files.remove(&path).map_err(io(&path))?;
            }
        }
        Ok(())
    }

    // ---- after a reboot ----

    fn boot_path(&self) -> PathBuf {
        self.place.sync().join("boot")
    }

    fn remember_boot(&self) -> Result<(), SyncError> {
        let (path, boot) = (self.boot_path(), fs::read(BOOT).unwrap_or_default());
        if fs::read(&path).is_ok_and(|known| known == boot) {
            return Ok(());
        }
        write_whole(&*self.place.files, &path, &boot)
            .map_err(|source| SyncError::Io { path, source })
    }

    /// If the machine was started anew since the last run, hashes again what is here; what does not have
    /// its digest any more is removed, and so fetched again.
    pub(super) fn verify_after_boot(&self, progress: &dyn Progress) -> Result<(), SyncError> {
        let known = fs::read(self.boot_path()).unwrap_or_default();
        if known != fs::read(BOOT).unwrap_or_default() {
            self.verify(progress)?;
        }
        self.remember_boot()
    }

    fn verify(&self, progress: &dyn Progress) -> Result<(), SyncError> {
        progress.begin("hash again", 0);
        let mut seen = BTreeSet::new();
        let mut layout = None;
        for state in (0..self.states()).filter(|&state| self.has_hashes(self.id(state))) {
            let Ok(stored) = StoredCheckpoint::open(self.place, self.id(state)) else {
                self.discard(&place::hashes(&self.place.root, self.id(state).root), progress)?;
                continue;
            };
            for (position, tensor) in stored.manifest().descriptors().iter().enumerate() {
                if self.has_tensor(tensor) && seen.insert(self.tensor_path(tensor)) {
                    let read = stored.tensor(position);
                    if !verified(read, progress)? {
                        self.discard(&self.tensor_path(tensor), progress)?;
                    }
                }
            }
            layout = layout.or(Layout::of(stored.manifest(), self.ledger.rule()).ok());
        }
        if let Some(layout) = layout {
            self.verify_deltas(&layout, progress)?;
        }
        progress.end();
        Ok(())
    }

    fn verify_deltas(&self, layout: &Layout, progress: &dyn Progress) -> Result<(), SyncError> {
        let all = self.ledger.submissions(0..self.ledger.submissions_log().size())?;
        for id in all.iter().filter_map(|(_, submission)| submission.stored_delta()) {
            if !self.has_delta(id) {
                continue;
            }
            let whole = || -> Result<bool, StoreError> {
                let delta = StoredDelta::open(self.place, id)?;
                for tensor in &layout.tensors {
                    for group in DeltaGroup::ALL {
                        if !verified(delta.open_artifact(group, &tensor.name), progress)? {
                            return Ok(false);
                        }
                    }
                }
                Ok(true)
            };
            if !matches!(whole(), Ok(true)) {
                self.discard(&place::delta(&self.place.root, id.root), progress)?;
            }
        }
        Ok(())
    }

    fn discard(&self, path: &Path, progress: &dyn Progress) -> Result<(), SyncError> {
        progress.note(&format!("{} is damaged and is fetched again", path.display()));
        let removed = if path.is_dir() {
            self.place.files.remove_dir_all(path)
        } else {
            self.place.files.remove(path)
        };
        removed.map_err(|source| SyncError::Io { path: path.to_owned(), source })
    }

    /// The hashes of a manifest that the copy has.
    pub(super) fn hashes(&self, id: ManifestId) -> Result<HashesReader, StoreError> {
        Ok(HashesReader::open(&*self.place.files, &self.place.root, &id)?)
    }
}

/// Whether an artifact has its digests; an error only if the disk fails.
fn verified(
    opened: Result<ArtifactReader, StoreError>,
    progress: &dyn Progress,
) -> Result<bool, StoreError> {
    match opened.and_then(|mut reader| reader.verify_to_end(progress)) {
        Ok(()) => Ok(true),
        Err(error) if error.is_mismatch() || error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}
