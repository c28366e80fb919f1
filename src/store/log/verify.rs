//! The full check: the log's tree is grown anew from its entries and compared with every file.

use super::{
    LogError, LogReader,
    dir::{LogDir, Part},
    tiler::Tiler,
};
use crate::{
    merkle::{
        tile::{TileId, bundles_of, encode_bundle, encode_tile},
        tree::leaf_hash,
    },
    types::digest::Digest,
};

impl LogReader {
    /// Checks the whole log, also entries that are committed but not published yet.
    ///
    /// Every entry gives its leaf hash, every tile what lies below it, the roots are those of
    /// `tree-state` and of the head, and partial files are how the wider ones start. Files beyond
    /// `tree-state` belong to a batch that is being written or was cut off, and are passed over.
    /// `progress` is told the entries done and their number, a bundle at a time.
    ///
    /// # Errors
    ///
    /// The first disagreement, in the order of the entries.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), LogError> {
        let dir = &self.dir;
        // Read after the head, so it is never behind, whatever a writer does meanwhile.
        let state = dir.read_state()?;
        if state.origin != self.head.origin {
            let (expected, found) = (self.head.origin.clone(), state.origin);
            return Err(LogError::Origin { path: dir.state_path(), expected, found });
        }
        if self.head.size > state.size {
            let (path, stated) = (dir.head_path(), self.head.size);
            return Err(LogError::Ahead { path, stated, size: state.size });
        }
        let tiler = self.regrow(state.size, progress)?;
        let (stated, computed, size) = (state.root, tiler.root(), state.size);
        if stated != computed {
            return Err(LogError::Root { path: dir.state_path(), size, stated, computed });
        }
        dir.check_head(dir.head_path(), &self.head, size)?;
        check_files(dir, size)
    }

    /// The tree of the entries; every tile is compared on the way.
    fn regrow(&self, size: u64, progress: &mut dyn FnMut(u64, u64)) -> Result<Tiler, LogError> {
        let mut tiler = Tiler::default();
        let compare = |tile: TileId, computed: &[Digest]| {
            self.dir.check_hashes(tile, &self.dir.read_tile(tile)?, computed)
        };
        for bundle in bundles_of(size) {
            for entry in self.dir.read_bundle(bundle)? {
                tiler.push(leaf_hash(&entry), compare)?;
            }
            progress(tiler.size(), size);
        }
        for (tile, computed) in tiler.partials(0) {
            compare(tile, computed)?;
        }
        Ok(tiler)
    }
}

/// Compares the partial files that wider ones replaced, and names what is no file of a log.
fn check_files(dir: &LogDir, size: u64) -> Result<(), LogError> {
    dir.walk(&mut |path, part| {
        let part = part.ok_or_else(|| LogError::Foreign { path: path.to_owned() })?;
        match part.at_size(size) {
            Some(wider) if wider.width() > part.width() => check_partial(dir, part, wider),
            _ => Ok(()),
        }
    })
}

/// Compares a partial file with the wider one that was checked.
fn check_partial(dir: &LogDir, part: Part, wider: Part) -> Result<(), LogError> {
    // A writer may have removed it since it was listed.
    let Some(narrow) = dir.read_exact(part)? else { return Ok(()) };
    let found = dir.read_nearest(wider)?;
    let start = match part {
        Part::Tile(tile) => encode_tile(&dir.decode_tile(tile, &found)?),
        Part::Bundle(bundle) => {
            encode_bundle(dir.decode_bundle(bundle, &found)?).expect("the entries were in a bundle")
        }
    };
    if narrow == start {
        return Ok(());
    }
    let at = narrow.iter().zip(&start).take_while(|(a, b)| a == b).count();
    let (path, wider) = (dir.part_path(part), dir.part_path(found.part));
    Err(LogError::Partial { path, wider, at })
}
