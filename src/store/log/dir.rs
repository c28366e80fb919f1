//! The files of a log: their names, bounded reading of each, and the walk over all.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{LogError, TreeState, tiler::hashes_at};
use crate::{
    merkle::{
        head::TreeHead,
        note::NOTE_BYTES_MAX,
        tile::{
            BundleId, TILE_WIDTH, TileId, TileNodes, TileNodesError, decode_bundle, decode_tile,
            encode_tile,
        },
        tree::{Nodes, leaf_hash, root_at},
    },
    store::files::{Files, read_whole, write_whole},
    types::{digest::Digest, json, record::ENTRY_BYTES_MAX},
};

/// Where the signed tree head is published; the name is C2SP's.
const HEAD: &str = "checkpoint";

/// The tree that is committed.
const STATE: &str = "tree-state";

/// Bound on `tree-state`; the origin is all that varies in it.
const STATE_BYTES_MAX: u64 = 64 << 10;

/// How often a reader looks again for a file that a writer replaces by a wider one meanwhile.
const LOOKS_MAX: usize = 16;

/// A tile or an entry bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Tile(TileId),
    Bundle(BundleId),
}

impl Part {
    /// The part that a path below the log's directory names.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let bundle = || path.parse().map(Self::Bundle);
        path.parse().map(Self::Tile).or_else(|_| bundle()).ok()
    }

    fn index(&self) -> u64 {
        match self {
            Self::Tile(id) => id.index(),
            Self::Bundle(id) => id.index(),
        }
    }

    pub(super) fn width(&self) -> u16 {
        match self {
            Self::Tile(id) => id.width(),
            Self::Bundle(id) => id.width(),
        }
    }

    /// The same part with more or fewer hashes or entries, if there can be so many.
    pub(super) fn resized(&self, width: u16) -> Option<Self> {
        match self {
            Self::Tile(id) => TileId::new(id.level(), id.index(), width).map(Self::Tile).ok(),
            Self::Bundle(id) => BundleId::new(id.index(), width).map(Self::Bundle).ok(),
        }
    }

    /// This part as it is in a log of `size` entries, if anything of it is.
    pub(super) fn at_size(&self, size: u64) -> Option<Self> {
        let level = match self {
            Self::Tile(id) => id.level(),
            Self::Bundle(_) => 0,
        };
        let first = self.index().checked_mul(u64::from(TILE_WIDTH))?;
        let hashes = if level < 8 { hashes_at(level, size) } else { 0 };
        self.resized(hashes.saturating_sub(first).min(u64::from(TILE_WIDTH)) as u16)
    }

    /// Bound on the file.
    fn bytes_max(&self) -> u64 {
        let each = match self {
            Self::Tile(_) => Digest::BYTES,
            Self::Bundle(_) => 2 + ENTRY_BYTES_MAX,
        };
        u64::from(self.width()) * each as u64
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tile(id) => id.fmt(f),
            Self::Bundle(id) => id.fmt(f),
        }
    }
}

/// A part as it was read: maybe a wider one than was asked for.
pub(super) struct Found {
    pub(super) part: Part,
    pub(super) bytes: Vec<u8>,
}

/// What [`LogDir::walk`] hands each file to; none for a name that no part has.
pub(super) type Visit<'a> = dyn FnMut(&Path, Option<Part>) -> Result<(), LogError> + 'a;

/// A log's directory.
#[derive(Clone)]
pub(super) struct LogDir {
    pub(super) files: Arc<dyn Files>,
    pub(super) path: PathBuf,
}

impl LogDir {
    pub(super) fn head_path(&self) -> PathBuf {
        self.path.join(HEAD)
    }

    pub(super) fn state_path(&self) -> PathBuf {
        self.path.join(STATE)
    }

    pub(super) fn part_path(&self, part: Part) -> PathBuf {
        self.path.join(part.to_string())
    }

    /// The published head's note.
    pub(super) fn read_head(&self) -> Result<Vec<u8>, LogError> {
        self.read_small(self.head_path(), NOTE_BYTES_MAX as u64)
    }

    pub(super) fn read_state(&self) -> Result<TreeState, LogError> {
        let path = self.state_path();
        let bytes = self.read_small(path.clone(), STATE_BYTES_MAX)?;
        json::from_slice(&bytes).map_err(|source| LogError::State { path, source })
    }

    fn read_small(&self, path: PathBuf, bytes_max: u64) -> Result<Vec<u8>, LogError> {
        read_whole(&*self.files, &path, bytes_max).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => LogError::Absent { path },
            _ => LogError::Io { path, source },
        })
    }

    /// Replaces the published head.
    pub(super) fn write_head(&self, note: &[u8]) -> Result<(), LogError> {
        self.write_small(self.head_path(), note)
    }

    /// Replaces `tree-state`: the commit point.
    pub(super) fn write_state(&self, state: &TreeState) -> Result<(), LogError> {
        self.write_small(self.state_path(), &json::to_vec(state))
    }

    fn write_small(&self, path: PathBuf, bytes: &[u8]) -> Result<(), LogError> {
        write_whole(&*self.files, &path, bytes).map_err(|source| LogError::Io { path, source })
    }

    /// The part itself; none if there is no such file.
    pub(super) fn read_exact(&self, part: Part) -> Result<Option<Vec<u8>>, LogError> {
        let path = self.part_path(part);
        match read_whole(&*self.files, &path, part.bytes_max()) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LogError::Io { path, source }),
        }
    }

    /// The part, or the narrowest wider one that starts with it.
    ///
    /// A writer removes a partial file only after the next wider one is committed. So the narrowest
    /// that is there is committed, and if it is removed before it can be read, a wider one is there.
    pub(super) fn read_nearest(&self, part: Part) -> Result<Found, LogError> {
        for _ in 0..LOOKS_MAX {
            // Mostly it is there: then no directory is listed, which a server would be asked for.
            if let Some(bytes) = self.read_exact(part)? {
                return Ok(Found { part, bytes });
            }
            let wider = self.widths(part)?.into_iter().filter(|width| *width > part.width());
            for width in wider.chain([TILE_WIDTH]) {
                let Some(part) = part.resized(width) else { continue };
                if let Some(bytes) = self.read_exact(part)? {
                    return Ok(Found { part, bytes });
                }
            }
        }
        Err(LogError::Missing { path: self.part_path(part) })
    }

    /// The widths of the partial files of a part, ascending.
    fn widths(&self, part: Part) -> Result<Vec<u16>, LogError> {
        let path = self.partials_path(part);
        let mut widths: Vec<u16> = match self.files.list(&path) {
            Ok(names) => names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => vec![],
            Err(source) => return Err(LogError::Io { path, source }),
        };
        widths.sort_unstable();
        Ok(widths)
    }

    /// The directory with the partial files of a part.
    pub(super) fn partials_path(&self, part: Part) -> PathBuf {
        let one = part.resized(1).expect("a part can be 1 wide");
        let mut path = self.part_path(one);
        path.pop();
        path
    }

    /// The hashes of a tile.
    pub(super) fn read_tile(&self, tile: TileId) -> Result<Vec<Digest>, LogError> {
        let found = self.read_nearest(Part::Tile(tile))?;
        self.decode_tile(tile, &found)
    }

    /// The first hashes of a tile that was found, as many as `tile` has.
    pub(super) fn decode_tile(&self, tile: TileId, found: &Found) -> Result<Vec<Digest>, LogError> {
        let Part::Tile(id) = found.part else { unreachable!("a tile's wider part is a tile") };
        let mut hashes = decode_tile(id, &found.bytes)
            .map_err(|source| LogError::Tile { path: self.part_path(found.part), source })?;
        hashes.truncate(usize::from(tile.width()));
        Ok(hashes)
    }

    /// The entries of a bundle.
    pub(super) fn read_bundle(&self, bundle: BundleId) -> Result<Vec<Vec<u8>>, LogError> {
        let found = self.read_nearest(Part::Bundle(bundle))?;
        self.decode_bundle(bundle, &found)
    }

    /// The first entries of a bundle that was found, as many as `bundle` has.
    pub(super) fn decode_bundle(
        &self,
        bundle: BundleId,
        found: &Found,
    ) -> Result<Vec<Vec<u8>>, LogError> {
        let Part::Bundle(id) = found.part else {
            unreachable!("a bundle's wider part is a bundle")
        };
        let entries = decode_bundle(id, &found.bytes)
            .map_err(|source| LogError::Tile { path: self.part_path(found.part), source })?;
        Ok(entries.into_iter().take(usize::from(bundle.width())).map(<[u8]>::to_vec).collect())
    }

    /// Compares entries with the hashes of their tile.
    pub(super) fn check_leaves(
        &self,
        tile: TileId,
        entries: &[Vec<u8>],
        stored: &[Digest],
    ) -> Result<(), LogError> {
        let computed: Vec<Digest> = entries.iter().map(|entry| leaf_hash(entry)).collect();
        self.check_hashes(tile, stored, &computed)
    }

    /// Compares the hashes of a tile with what lies below them.
    pub(super) fn check_hashes(
        &self,
        tile: TileId,
        stored: &[Digest],
        computed: &[Digest],
    ) -> Result<(), LogError> {
        let first = tile.index() * u64::from(TILE_WIDTH);
        match (first..).zip(stored.iter().zip(computed)).find(|(_, (a, b))| a != b) {
            None => Ok(()),
            Some((index, (&stored, &computed))) => {
                Err(self.disagreement(tile, index, stored, computed))
            }
        }
    }

    fn disagreement(&self, tile: TileId, index: u64, stored: Digest, computed: Digest) -> LogError {
        let (path, level) = (self.part_path(Part::Tile(tile)), tile.level());
        if level > 0 {
            return LogError::Hash { path, level, index, stored, computed };
        }
        let bundle = BundleId::new(tile.index(), tile.width()).expect("it has the tile's width");
        let bundle = self.part_path(Part::Bundle(bundle));
        LogError::Entry { path: bundle, tile: path.into(), index, stored, computed }
    }

    /// The tree of `size` entries, each tile being read once.
    pub(super) fn nodes(&self, size: u64) -> impl Nodes<Error = TileNodesError<LogError>> {
        let tiles = RefCell::new(BTreeMap::<TileId, Vec<u8>>::new());
        TileNodes::new(size, move |tile| {
            if let Some(bytes) = tiles.borrow().get(&tile) {
                return Ok(bytes.clone());
            }
            let bytes = encode_tile(&self.read_tile(tile)?);
            tiles.borrow_mut().insert(tile, bytes.clone());
            Ok(bytes)
        })
    }

    /// The error of a tree's node.
    pub(super) fn node_error(&self, error: TileNodesError<LogError>) -> LogError {
        match error {
            TileNodesError::Read { source, .. } => source,
            TileNodesError::Tile(source) => LogError::Tile { path: self.path.clone(), source },
        }
    }

    /// Compares a head with the tree of `size` entries.
    pub(super) fn check_head(
        &self,
        path: PathBuf,
        head: &TreeHead,
        size: u64,
    ) -> Result<(), LogError> {
        if head.size > size {
            return Err(LogError::Ahead { path, stated: head.size, size });
        }
        let computed = root_at(head.size, &self.nodes(size)).map_err(|e| self.node_error(e))?;
        if head.root != computed {
            return Err(LogError::Root { path, size: head.size, stated: head.root, computed });
        }
        Ok(())
    }

    /// Hands every file below `tile/` to `visit`.
    pub(super) fn walk(&self, visit: &mut Visit<'_>) -> Result<(), LogError> {
        self.walk_below("tile", visit)
    }

    fn walk_below(&self, relative: &str, visit: &mut Visit<'_>) -> Result<(), LogError> {
        let path = self.path.join(relative);
        let names = match self.files.list(&path) {
            Ok(names) => names,
            // A log without entries, or a directory that a writer removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(LogError::Io { path, source }),
        };
        for name in names {
            let Some(name) = name.to_str() else {
                visit(&path.join(&name), None)?;
                continue;
            };
            let below = format!("{relative}/{name}");
            // Names tell directories: levels and `entries` at the top, then x000 and 000.p.
            let level = relative == "tile" && (name == "entries" || name.parse::<u8>().is_ok());
            if level || name.starts_with('x') || name.ends_with(".p") {
                self.walk_below(&below, visit)?;
            } else {
                visit(&path.join(name), Part::parse(&below))?;
            }
        }
        Ok(())
    }
}
