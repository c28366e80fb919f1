//! A copy of somebody else's log: it grows as the original does, and holds what the original's head says.
//!
//! Nothing is signed here. What the copy has is what it was; the entries that come are hashed onto it, and
//! only if they give the root of the head is the copy a larger one.

use std::{io, path::Path, sync::Arc};

use super::{
    LogError, LogReader, TreeState,
    dir::LogDir,
    grown::Grown,
    recover::{load_edge, remove_torn, sweep},
    tiler::Tiler,
};
use crate::{
    merkle::{
        tile::{TILE_WIDTH, bundles_of},
        tree::root_at,
    },
    store::files::{Files, create_dir_durable},
};

/// How a copy came to stand to the log that it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// It is at the head, and has so many entries more than before.
    Grown(u64),
    /// It has more than the head, which it leads to.
    Ahead,
}

/// Removes what an interrupted run left beyond the copy in `dir`, if there is one.
///
/// # Errors
///
/// [`LogError`] if the copy is damaged.
pub fn mend_copy(files: Arc<dyn Files>, dir: &Path) -> Result<(), LogError> {
    let dir = LogDir { files, path: dir.to_owned() };
    match dir.read_state() {
        Ok(state) => {
            remove_torn(&dir)?;
            load_edge(&dir, &state)?; // Or what is wrong here would be laid to whom it is compared with.
            sweep(&dir, state.size)
        }
        // It was not copied to its end even once.
        Err(LogError::Absent { .. }) => sweep(&dir, 0),
        Err(error) => Err(error),
    }
}

impl LogReader {
    /// Brings the copy of this log in `dir` to this head, durably. One copy is written at a time.
    ///
    /// `progress` is told the bytes of the entries.
    ///
    /// # Errors
    ///
    /// [`LogError::Root`] if this log does not continue the copy, or its entries do not give the root of
    /// its head; [`LogError::Origin`] if the copy is of another log. The copy is as before then.
    pub fn copy_to(
        &self,
        files: Arc<dyn Files>,
        dir: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Copied, LogError> {
        let dir = LogDir { files, path: dir.to_owned() };
        let (size, mut grown) = self.open_copy(&dir)?;
        if size > self.size() {
            let nodes = dir.nodes(size);
            let ours = root_at(self.size(), &nodes).map_err(|error| dir.node_error(error))?;
            self.check_copied(ours)?;
            return Ok(Copied::Ahead);
        }
        for bundle in bundles_of(self.size()) {
            let first = bundle.index() * u64::from(TILE_WIDTH);
            if first + u64::from(bundle.width()) <= size {
                continue;
            }
            let entries = self.dir.read_bundle(bundle)?;
            let new = &entries[size.saturating_sub(first) as usize..];
            grown.write_bundles(new)?;
            grown.write_tiles(new)?;
            progress(new.iter().map(|entry| entry.len() as u64).sum());
        }
        grown.write_partials(size)?;
        self.check_copied(grown.tiler.root())?;
        grown.sync_dirs()?;
        grown.commit_state(&self.head.origin)?;
        dir.write_head(self.note())?;
        if size < self.size() {
            grown.remove_partials_of(size);
        }
        Ok(Copied::Grown(self.size() - size))
    }

    /// The copy as it is: empty if there is none.
    fn open_copy(&self, dir: &LogDir) -> Result<(u64, Grown), LogError> {
        match dir.read_state() {
            Ok(TreeState { origin, .. }) if origin != self.head.origin => {
                let (expected, found) = (self.head.origin.clone(), origin);
                Err(LogError::Origin { path: dir.state_path(), expected, found })
            }
            Ok(state) => {
                let (tiler, tail) = load_edge(dir, &state)?;
                Ok((state.size, Grown::new(dir.clone(), tiler, tail)))
            }
            Err(LogError::Absent { .. }) => {
                let made = create_dir_durable(&*dir.files, &dir.path);
                made.map_err(|source: io::Error| LogError::Io { path: dir.path.clone(), source })?;
                Ok((0, Grown::new(dir.clone(), Tiler::default(), Vec::new())))
            }
            Err(error) => Err(error),
        }
    }

    fn check_copied(&self, computed: crate::types::digest::Digest) -> Result<(), LogError> {
        let (stated, size) = (self.head.root, self.size());
        if stated == computed {
            return Ok(());
        }
        Err(LogError::Root { path: self.dir.head_path(), size, stated, computed })
    }
}
