//! A log's files as they grow: bundles, tiles, then `tree-state`. What is written before that is nowhere
//! until it is.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    Format, LogError, TreeState,
    dir::{LogDir, Part},
    tiler::{Tiler, partial_tiles},
};
use crate::{
    merkle::{
        tile::{BundleId, TILE_WIDTH, bundles_grown, encode_tile, push_entry},
        tree::leaf_hash,
    },
    store::files::Files,
};

/// A log that grows in its directory, whoever vouches for what it grows by.
///
/// Memory: the last bundle's bytes, at most 16 MiB, and a few tiles.
pub(super) struct Grown {
    dir: LogDir,
    pub(super) tiler: Tiler,
    /// Bytes of the last bundle, if it is not full.
    tail: Vec<u8>,
    dirs: Dirs,
}

impl Grown {
    pub(super) fn new(dir: LogDir, tiler: Tiler, tail: Vec<u8>) -> Self {
        let dirs = Dirs { root: dir.path.clone(), seen: BTreeSet::new(), dirty: BTreeSet::new() };
        Self { dir, tiler, tail, dirs }
    }

    /// Writes the bundles that hold new entries; their names are durable after [`Self::sync_dirs`].
    pub(super) fn write_bundles<E: AsRef<[u8]>>(&mut self, entries: &[E]) -> Result<(), LogError> {
        let start = self.tiler.size();
        let mut entries = entries.iter();
        for bundle in bundles_grown(start, start + entries.len() as u64) {
            let first = bundle.index() * u64::from(TILE_WIDTH);
            let added = usize::from(bundle.width()) - start.saturating_sub(first) as usize;
            for entry in entries.by_ref().take(added) {
                push_entry(&mut self.tail, entry.as_ref()).expect("the lengths were checked");
            }
            self.dirs.write(&self.dir, Part::Bundle(bundle), &self.tail)?;
            if bundle.is_full() {
                self.tail.clear();
            }
        }
        Ok(())
    }

    /// Adds the entries' hashes to the tree, and writes the tiles that they fill.
    pub(super) fn write_tiles<E: AsRef<[u8]>>(&mut self, entries: &[E]) -> Result<(), LogError> {
        for entry in entries {
            self.tiler.push(leaf_hash(entry.as_ref()), |tile, hashes| {
                self.dirs.write(&self.dir, Part::Tile(tile), &encode_tile(hashes))
            })?;
        }
        Ok(())
    }

    /// Writes the tiles that are not full and have grown since the tree had `start` leaves.
    pub(super) fn write_partials(&mut self, start: u64) -> Result<(), LogError> {
        for (tile, hashes) in self.tiler.partials(start) {
            self.dirs.write(&self.dir, Part::Tile(tile), &encode_tile(hashes))?;
        }
        Ok(())
    }

    /// Makes the names of what was written durable.
    pub(super) fn sync_dirs(&mut self) -> Result<(), LogError> {
        for path in std::mem::take(&mut self.dirs.dirty) {
            self.dir.files.sync_dir(&path).map_err(|source| LogError::Io { path, source })?;
        }
        Ok(())
    }

    /// The commit point.
    pub(super) fn commit_state(&self, origin: &str) -> Result<(), LogError> {
        let (root, size, origin) = (self.tiler.root(), self.tiler.size(), origin.to_owned());
        self.dir.write_state(&TreeState { format: Format::V1, origin, root, size })
    }

    /// Removes the partial files of the head before, where wider ones took their place.
    ///
    /// Nothing depends on it, and the batch is acknowledged: what stays is removed on opening.
    pub(super) fn remove_partials_of(&mut self, size: u64) {
        let tiles = partial_tiles(size).map(Part::Tile);
        let width = (size % u64::from(TILE_WIDTH)) as u16;
        let bundle = BundleId::new(size / u64::from(TILE_WIDTH), width).map(Part::Bundle);
        for part in tiles.chain(bundle) {
            let now = part.at_size(self.tiler.size()).expect("a log only grows");
            if now.width() == TILE_WIDTH {
                let path = self.dir.partials_path(part);
                let _ = self.dir.files.remove_dir_all(&path);
                self.dirs.seen.remove(&path);
            } else if now != part {
                let _ = self.dir.files.remove(&self.dir.part_path(part));
            }
        }
    }
}

/// Which directories have names in them that are not durable yet.
struct Dirs {
    root: PathBuf,
    /// Directories whose own name is durable, or will be at the next sync.
    seen: BTreeSet<PathBuf>,
    dirty: BTreeSet<PathBuf>,
}

impl Dirs {
    /// Writes a file and makes its bytes durable; its name is after the next sync of directories.
    fn write(&mut self, dir: &LogDir, part: Part, bytes: &[u8]) -> Result<(), LogError> {
        let path = dir.part_path(part);
        let written = self.prepare(&*dir.files, &path).and_then(|()| {
            let mut file = dir.files.create(&path)?;
            file.write_all(bytes)?;
            file.sync()
        });
        written.map_err(|source| LogError::Io { path, source })
    }

    /// Makes the directories above a file.
    fn prepare(&mut self, files: &dyn Files, path: &Path) -> io::Result<()> {
        let parent = path.parent().expect("a part lies below the log's directory");
        self.dirty.insert(parent.to_owned());
        if self.seen.contains(parent) {
            return Ok(());
        }
        files.create_dir_all(parent)?;
        for dir in parent.ancestors().take_while(|dir| *dir != self.root) {
            if self.seen.insert(dir.to_owned()) {
                self.dirty.extend(dir.parent().map(Path::to_owned));
            }
        }
        Ok(())
    }
}
