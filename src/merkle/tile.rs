//! Tiles and entry bundles: how a log's tree and entries are cut into files (C2SP tlog-tiles).
//!
//! A tile holds up to 256 neighbouring hashes of every eighth level; a bundle holds the entries of
//! one level-0 tile. `store` writes them, `http` serves them under the same paths, and
//! [`TileNodes`] reads a tree out of them. See `schema/log.md`.
//!
//! Trust: paths and bytes come from strangers; a reader compares the root it computes.

use std::{fmt, ops::Range, str::FromStr};

use super::tree::{self, Nodes};
use crate::types::{digest::Digest, record::ENTRY_BYTES_MAX};

/// log2 of a full tile's width.
pub const TILE_HEIGHT: u8 = 8;

/// Hashes of a full tile, entries of a full bundle.
pub const TILE_WIDTH: u16 = 1 << TILE_HEIGHT;

/// Highest level a path may name. No tree has tiles above level 7.
pub const TILE_LEVEL_MAX: u8 = 63;

// An entry's length stands in a bundle as a u16.
const _: () = assert!(ENTRY_BYTES_MAX == u16::MAX as usize);

/// A path or a file of a log that is not as C2SP tlog-tiles has it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum TileError {
    #[error("{path:?} is not the path of a {kind}")]
    Path { kind: &'static str, path: String },
    #[error("a tile is 1 to {TILE_WIDTH} wide, not {width}")]
    Width { width: u16 },
    #[error("a tile's level is 0 to {TILE_LEVEL_MAX}, not {level}")]
    Level { level: u8 },
    #[error("{id} has {expected} bytes, not {found}")]
    Bytes { id: TileId, expected: usize, found: usize },
    #[error("entry {at} of {id} is cut short: {left} bytes are left of {expected}")]
    Cut { id: BundleId, at: u16, expected: usize, left: usize },
    #[error("{id} has {bytes} bytes after its last entry")]
    Trailing { id: BundleId, bytes: usize },
    #[error("an entry is at most {ENTRY_BYTES_MAX} bytes, not {bytes}")]
    Entry { bytes: usize },
    #[error("a tree of {size} leaves has no node {index} at level {level}")]
    Node { level: u8, index: u64, size: u64 },
}

/// Which tile: `tile/LEVEL/INDEX`, with `.p/WIDTH` where it is not full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileId {
    level: u8,
    index: u64,
    width: u16,
}

impl TileId {
    /// The first `width` hashes of tile `index` at `level`.
    ///
    /// # Errors
    ///
    /// [`TileError`] if the width is not 1 to 256 or the level above 63.
    pub fn new(level: u8, index: u64, width: u16) -> Result<Self, TileError> {
        if level > TILE_LEVEL_MAX {
            return Err(TileError::Level { level });
        }
        check_width(width)?;
        Ok(Self { level, index, width })
    }

    /// Its level: hash i covers `256^level` leaves.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Its position within the level.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Number of hashes, 1 to 256.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Whether it never changes any more.
    pub fn is_full(&self) -> bool {
        self.width == TILE_WIDTH
    }

    /// The same tile once it is full; it takes the place of the partial one.
    pub fn full(self) -> Self {
        Self { width: TILE_WIDTH, ..self }
    }
}

/// Which entry bundle: `tile/entries/INDEX`, with `.p/WIDTH` where it is not full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleId {
    index: u64,
    width: u16,
}

impl BundleId {
    /// The first `width` entries of bundle `index`.
    ///
    /// # Errors
    ///
    /// [`TileError::Width`] if the width is not 1 to 256.
    pub fn new(index: u64, width: u16) -> Result<Self, TileError> {
        check_width(width)?;
        Ok(Self { index, width })
    }

    /// Its position.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Number of entries, 1 to 256.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Whether it never changes any more.
    pub fn is_full(&self) -> bool {
        self.width == TILE_WIDTH
    }

    /// The same bundle once it is full.
    pub fn full(self) -> Self {
        Self { width: TILE_WIDTH, ..self }
    }

    /// The bundle that holds entry `entry` of a log of `size`, and its place there.
    ///
    /// # Errors
    ///
    /// [`TileError::Node`] if the log has no such entry.
    pub fn holding(entry: u64, size: u64) -> Result<(Self, u16), TileError> {
        let (tile, slots) = tile_holding(0, entry, size)?;
        Ok((Self { index: tile.index, width: tile.width }, slots.start as u16))
    }
}

fn check_width(width: u16) -> Result<(), TileError> {
    if (1..=TILE_WIDTH).contains(&width) { Ok(()) } else { Err(TileError::Width { width }) }
}

impl fmt::Display for TileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tile/{}/{}", self.level, Place(self.index, self.width))
    }
}

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tile/entries/{}", Place(self.index, self.width))
    }
}

impl FromStr for TileId {
    type Err = TileError;

    fn from_str(path: &str) -> Result<Self, TileError> {
        let read = || {
            let (level, place) = path.strip_prefix("tile/")?.split_once('/')?;
            let Place(index, width) = Place::read(place)?;
            Self::new(level.parse().ok()?, index, width).ok()
        };
        // One tile has one path: signs, more zeros or fewer are seen by writing it again.
        read().filter(|id| id.to_string() == path).ok_or_else(|| bad_path("tile", path))
    }
}

impl FromStr for BundleId {
    type Err = TileError;

    fn from_str(path: &str) -> Result<Self, TileError> {
        let read = || {
            let Place(index, width) = Place::read(path.strip_prefix("tile/entries/")?)?;
            Self::new(index, width).ok()
        };
        read().filter(|id| id.to_string() == path).ok_or_else(|| bad_path("entry bundle", path))
    }
}

fn bad_path(kind: &'static str, path: &str) -> TileError {
    TileError::Path { kind, path: path.chars().take(80).collect() }
}

/// Index and width, the part of a path that tiles and bundles share.
struct Place(u64, u16);

impl Place {
    /// Reads leniently; the caller compares with what it would write.
    fn read(path: &str) -> Option<Self> {
        let (index, width) = match path.split_once(".p/") {
            Some((index, width)) => (index, width.parse().ok()?),
            None => (path, TILE_WIDTH),
        };
        let add = |index: u64, group: &str| {
            let digits: u64 = group.strip_prefix('x').unwrap_or(group).parse().ok()?;
            index.checked_mul(1000)?.checked_add(digits)
        };
        Some(Self(index.split('/').try_fold(0, add)?, width))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = self.0.checked_ilog10().unwrap_or(0) / 3;
        for group in (1..=groups).rev() {
            write!(f, "x{:03}/", self.0 / 1000u64.pow(group) % 1000)?;
        }
        write!(f, "{:03}", self.0 % 1000)?;
        if self.1 < TILE_WIDTH { write!(f, ".p/{}", self.1) } else { Ok(()) }
    }
}

/// Number of hashes that the tiles of `level` hold for a tree of `size` leaves.
fn hashes_at(level: u8, size: u64) -> u64 {
    size.checked_shr(u32::from(level) * u32::from(TILE_HEIGHT)).unwrap_or(0)
}

/// Every tile of a tree of `size` leaves, level by level.
pub fn tiles_of(size: u64) -> impl Iterator<Item = TileId> {
    tiles_grown(0, size)
}

/// The tiles of a tree of `size` leaves that it did not have at `old` leaves, level by level.
pub fn tiles_grown(old: u64, size: u64) -> impl Iterator<Item = TileId> {
    let of_level = move |level| {
        places_grown(hashes_at(level, old), hashes_at(level, size))
            .map(move |Place(index, width)| TileId { level, index, width })
    };
    (0..u64::BITS as u8 / TILE_HEIGHT).flat_map(of_level)
}

/// Every entry bundle of a log of `size` entries.
pub fn bundles_of(size: u64) -> impl Iterator<Item = BundleId> {
    bundles_grown(0, size)
}

/// The entry bundles of a log of `size` entries that it did not have at `old` entries.
pub fn bundles_grown(old: u64, size: u64) -> impl Iterator<Item = BundleId> {
    places_grown(old, size).map(|Place(index, width)| BundleId { index, width })
}

fn places_grown(old: u64, new: u64) -> impl Iterator<Item = Place> {
    let wide = u64::from(TILE_WIDTH);
    let indices = if old < new { old / wide..new.div_ceil(wide) } else { 0..0 };
    indices.map(move |index| Place(index, (new - index * wide).min(wide) as u16))
}

/// The tile of a tree of `size` leaves that holds the leaves of node `index` at `level`, and where.
///
/// # Errors
///
/// [`TileError::Node`] if the tree has no such node.
pub fn tile_holding(level: u8, index: u64, size: u64) -> Result<(TileId, Range<usize>), TileError> {
    if index >= size.checked_shr(u32::from(level)).unwrap_or(0) {
        return Err(TileError::Node { level, index, size });
    }
    let (tile_level, above) = (level / TILE_HEIGHT, level % TILE_HEIGHT);
    let wide = u64::from(TILE_WIDTH);
    let first = index << above;
    let tile = first / wide;
    let width = (hashes_at(tile_level, size) - tile * wide).min(wide) as u16;
    let slot = (first % wide) as usize;
    Ok((TileId { level: tile_level, index: tile, width }, slot..slot + (1 << above)))
}

/// The bytes of a tile: its hashes one after the other.
pub fn encode_tile(hashes: &[Digest]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// The hashes of tile `id`.
///
/// # Errors
///
/// [`TileError::Bytes`] if the length is not that of the tile's width.
pub fn decode_tile(id: TileId, bytes: &[u8]) -> Result<Vec<Digest>, TileError> {
    let expected = usize::from(id.width) * Digest::BYTES;
    if bytes.len() != expected {
        return Err(TileError::Bytes { id, expected, found: bytes.len() });
    }
    let (hashes, _) = bytes.as_chunks();
    Ok(hashes.iter().copied().map(Digest).collect())
}

/// Appends an entry to a bundle: its length as a big-endian u16, then its bytes.
///
/// # Errors
///
/// [`TileError::Entry`] if it is longer than a u16 says.
pub fn push_entry(bundle: &mut Vec<u8>, entry: &[u8]) -> Result<(), TileError> {
    let bytes = entry.len();
    let length = u16::try_from(bytes).map_err(|_| TileError::Entry { bytes })?;
    bundle.extend(length.to_be_bytes());
    bundle.extend(entry);
    Ok(())
}

/// The bytes of a bundle of these entries.
///
/// # Errors
///
/// [`TileError::Entry`] if one is longer than a u16 says.
pub fn encode_bundle<E: AsRef<[u8]>>(
    entries: impl IntoIterator<Item = E>,
) -> Result<Vec<u8>, TileError> {
    let mut bundle = Vec::new();
    for entry in entries {
        push_entry(&mut bundle, entry.as_ref())?;
    }
    Ok(bundle)
}

/// The entries of bundle `id`.
///
/// # Errors
///
/// [`TileError`] if there are fewer or more bytes than the bundle's entries take.
pub fn decode_bundle(id: BundleId, mut bytes: &[u8]) -> Result<Vec<&[u8]>, TileError> {
    let mut entries = Vec::with_capacity(usize::from(id.width));
    for at in 0..id.width {
        let cut = |expected, left| TileError::Cut { id, at, expected, left };
        let (length, rest) = bytes.split_first_chunk().ok_or(cut(2, bytes.len()))?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (entry, rest) = rest.split_at_checked(length).ok_or(cut(length, rest.len()))?;
        entries.push(entry);
        bytes = rest;
    }
    if !bytes.is_empty() {
        return Err(TileError::Trailing { id, bytes: bytes.len() });
    }
    Ok(entries)
}

/// A tree that is read from its tiles, each as often as it is asked for.
///
/// Nothing is verified here: compare [`tree::root_at`] or a proof with a signed root.
#[derive(Clone, Debug)]
pub struct TileNodes<R> {
    size: u64,
    read: R,
}

impl<R> TileNodes<R> {
    /// The tree of `size` leaves; `read` gives a tile's bytes.
    pub fn new(size: u64, read: R) -> Self {
        Self { size, read }
    }
}

/// A node that cannot be had from tiles. `E` is what their reader says.
#[derive(Debug, thiserror::Error)]
pub enum TileNodesError<E> {
    /// The tile is not as it should be, or not in the tree.
    #[error(transparent)]
    Tile(#[from] TileError),
    /// It cannot be read.
    #[error("cannot read {id}: {source}")]
    Read {
        /// Which one.
        id: TileId,
        /// Why.
        source: E,
    },
}

impl<E, R: Fn(TileId) -> Result<Vec<u8>, E>> Nodes for TileNodes<R> {
    type Error = TileNodesError<E>;

    fn node(&self, level: u8, index: u64) -> Result<Digest, Self::Error> {
        let (id, slots) = tile_holding(level, index, self.size)?;
        let bytes = (self.read)(id).map_err(|source| TileNodesError::Read { id, source })?;
        Ok(tree::root_of(&decode_tile(id, &bytes)?[slots]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::BTreeSet, convert::Infallible};

    #[test]
    fn a_tree_of_70000_has_the_tiles_that_c2sp_says() {
        let tiles: Vec<_> = tiles_of(70_000).collect();
        let level = |n| tiles.iter().filter(move |t| t.level() == n);
        assert_eq!(level(0).filter(|t| t.is_full()).count(), 273);
        let partial: Vec<_> =
            tiles.iter().filter(|t| !t.is_full()).map(|t| t.to_string()).collect();
        assert_eq!(partial, ["tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1"]);
        assert_eq!((level(1).count(), level(2).count(), tiles.len()), (2, 1, 277));
    }

    #[test]
    fn growth_names_what_changed_and_nothing_else() {
        for (old, new) in [(0, 0), (0, 1), (255, 256), (256, 257), (300, 70_000), (512, 512)] {
            let before: BTreeSet<_> = tiles_of(old).collect();
            let all: BTreeSet<_> = tiles_of(new).collect();
            let grown: BTreeSet<_> = tiles_grown(old, new).collect();
            assert_eq!(grown, all.difference(&before).copied().collect(), "{old} to {new}");
        }
        assert_eq!(tiles_grown(9, 3).count(), 0);
    }

    #[test]
    fn paths_at_the_ends_of_their_range() {
        let last = TileId::new(63, u64::MAX, 256).unwrap();
        assert_eq!(last.to_string(), "tile/63/x018/x446/x744/x073/x709/x551/615");
        assert_eq!(last.to_string().parse(), Ok(last));
        for bad in [
            "tile/64/000",
            "tile/00/000",
            "tile/0/x018/x446/x744/x073/x709/x551/616",
            "tile/0/000.p/256",
            "tile/0/000/",
            "/tile/0/000",
            "tile/0",
            "tile/entries/000",
            "",
        ] {
            assert!(bad.parse::<TileId>().is_err(), "{bad}");
        }
        assert!("tile/0/000".parse::<BundleId>().is_err());
        assert!(TileId::new(0, 0, 0).is_err() && BundleId::new(0, 257).is_err());
    }

    #[test]
    fn nodes_of_the_largest_tree_are_found_without_overflow() {
        for level in 0..64 {
            let index = (u64::MAX >> level) - 1;
            assert!(tile_holding(level, index, u64::MAX).is_ok());
            assert!(tile_holding(level, index + 1, u64::MAX).is_err());
        }
        assert!(tile_holding(64, 0, u64::MAX).is_err() && tile_holding(255, 0, 1).is_err());
        assert!(tiles_of(u64::MAX).next().is_some());
    }

    #[test]
    fn a_bundle_is_exactly_its_entries() {
        let id = BundleId::new(0, 2).unwrap();
        let bytes = encode_bundle(["", "ab"]).unwrap();
        assert_eq!(bytes, [0, 0, 0, 2, b'a', b'b']);
        assert_eq!(decode_bundle(id, &bytes).unwrap(), [&b""[..], b"ab"]);
        for cut in 0..bytes.len() {
            assert!(matches!(decode_bundle(id, &bytes[..cut]), Err(TileError::Cut { .. })));
        }
        let longer = [&bytes[..], &[0]].concat();
        let trailing = TileError::Trailing { id, bytes: 1 };
        assert_eq!(decode_bundle(id, &longer), Err(trailing));
        assert!(encode_bundle([vec![0; 65_535]]).is_ok());
        assert_eq!(encode_bundle([vec![0; 65_536]]), Err(TileError::Entry { bytes: 65_536 }));
        assert_eq!(BundleId::holding(300, 301), Ok((BundleId::new(1, 45).unwrap(), 44)));
    }

    #[test]
    fn a_tree_read_from_tiles_is_the_tree_in_memory() {
        let leaves: Vec<_> = (0..700u64).map(|i| tree::leaf_hash(&i.to_le_bytes())).collect();
        let memory = tree::MemoryNodes::of(&leaves);
        let read = |id: TileId| {
            let first = id.index() * 256;
            let hash = |i| memory.node(id.level() * TILE_HEIGHT, i);
            let hashes: Result<Vec<_>, _> =
                (first..first + u64::from(id.width())).map(hash).collect();
            hashes.map(|hashes| encode_tile(&hashes))
        };
        for size in [1, 255, 256, 257, 511, 700] {
            let tiles = TileNodes::new(size, read);
            assert_eq!(
                tree::root_at(size, &tiles).unwrap(),
                tree::root_of(&leaves[..size as usize])
            );
            let proof = tree::inclusion_proof(size / 2, size, &tiles).unwrap();
            assert_eq!(Ok(proof), tree::inclusion_proof(size / 2, size, &memory));
        }
        let empty = TileNodes::new(0, |_| Ok::<_, Infallible>(Vec::new()));
        assert_eq!(tree::root_at(0, &empty).unwrap(), tree::empty_root());
    }

    proptest! {
        #[test]
        fn a_tile_reads_back_from_its_path(level in 0..64u8, index: u64, width in 1..=256u16) {
            let id = TileId::new(level, index, width).unwrap();
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            let bundle = BundleId::new(index, width).unwrap();
            prop_assert_eq!(bundle.to_string().parse(), Ok(bundle));
        }

        #[test]
        fn no_path_panics_and_what_parses_is_spelled_so(
            path in "tile/(0|7|63|x|entries)(/x?[0-9+é]{1,4}){1,8}(\\.p/[0-9]{0,4})?|.{0,40}",
        ) {
            if let Ok(id) = path.parse::<TileId>() {
                prop_assert_eq!(id.to_string(), path.clone());
            }
            if let Ok(id) = path.parse::<BundleId>() {
                prop_assert_eq!(id.to_string(), path);
            }
        }

        #[test]
        fn what_decodes_as_a_bundle_encodes_to_the_same_bytes(
            bytes: Vec<u8>, width in 1..4u16,
        ) {
            let id = BundleId::new(0, width).unwrap();
            if let Ok(entries) = decode_bundle(id, &bytes) {
                prop_assert_eq!(encode_bundle(entries).unwrap(), bytes);
            }
        }

        #[test]
        fn tiles_are_those_of_the_tlog_tiles_crate(old in 0..200_000u64, more in 0..2_000u64) {
            let size = old + more;
            let theirs: BTreeSet<_> = tlog_tiles::Tile::new_tiles(8, old, size)
                .iter()
                .map(|t| TileId::new(t.level(), t.level_index(), t.width() as u16).unwrap())
                .collect();
            prop_assert_eq!(tiles_grown(old, size).collect::<BTreeSet<_>>(), theirs);
        }
    }
}
