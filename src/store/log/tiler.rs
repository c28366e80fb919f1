//! The right edge of a log's tree, cut into tiles: what a writer grows and a check grows anew.
//!
//! Memory: at most 255 hashes for each of 8 levels.

use crate::{
    merkle::{
        tile::{TILE_HEIGHT, TILE_WIDTH, TileId, TileNodes, TileNodesError, encode_tile},
        tree::{LEAVES_MAX, ProveError, TreeBuilder},
    },
    types::digest::Digest,
};

/// Levels of tiles that a tree can have.
const LEVELS: u8 = (u64::BITS / TILE_HEIGHT as u32) as u8;

/// A growing tree, with the hashes of the tiles that are not full yet.
#[derive(Debug, Default)]
pub(super) struct Tiler {
    tree: TreeBuilder,
    tails: [Vec<Digest>; LEVELS as usize],
}

/// How many hashes the tiles of `level` hold for a tree of `size` leaves.
pub(super) fn hashes_at(level: u8, size: u64) -> u64 {
    size >> (u32::from(level) * u32::from(TILE_HEIGHT))
}

/// The tiles of a tree of `size` leaves that are not full, level by level.
pub(super) fn partial_tiles(size: u64) -> impl Iterator<Item = TileId> {
    (0..LEVELS).filter_map(move |level| {
        let hashes = hashes_at(level, size);
        let width = (hashes % u64::from(TILE_WIDTH)) as u16;
        // Refused if the width is 0: then there is no such tile.
        TileId::new(level, hashes / u64::from(TILE_WIDTH), width).ok()
    })
}

impl Tiler {
    /// The edge of the tree of `size` leaves, from its partial tiles.
    pub(super) fn load<E>(
        size: u64,
        read: impl Fn(TileId) -> Result<Vec<Digest>, E>,
    ) -> Result<Self, E> {
        assert!(size <= LEAVES_MAX, "records hold smaller sizes");
        let mut tails = <[Vec<Digest>; LEVELS as usize]>::default();
        for tile in partial_tiles(size) {
            tails[usize::from(tile.level())] = read(tile)?;
        }
        // The tree's edge consists of hashes in partial tiles only.
        let tail = |tile: TileId| Ok(encode_tile(&tails[usize::from(tile.level())]));
        let tree = match TreeBuilder::load(size, &TileNodes::new(size, tail)) {
            Ok(tree) => tree,
            Err(ProveError::Node(TileNodesError::Read { source, .. })) => return Err(source),
            Err(_) => unreachable!("the tails are as long as the tiles are wide"),
        };
        Ok(Self { tree, tails })
    }

    /// Adds a leaf; hands every tile that it fills to `full`.
    pub(super) fn push<E>(
        &mut self,
        leaf: Digest,
        mut full: impl FnMut(TileId, &[Digest]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut filled = Ok(());
        let tails = &mut self.tails;
        self.tree.push_with(leaf, |level, index, hash| {
            if level % TILE_HEIGHT != 0 || filled.is_err() {
                return;
            }
            let level = level / TILE_HEIGHT;
            let tail = &mut tails[usize::from(level)];
            tail.push(hash);
            if tail.len() == usize::from(TILE_WIDTH) {
                let tile = TileId::new(level, index / u64::from(TILE_WIDTH), TILE_WIDTH)
                    .expect("a tree has 8 levels of tiles");
                filled = full(tile, tail);
                tail.clear();
            }
        });
        filled
    }

    /// The partial tiles that the tree did not have at `old` leaves, with their hashes.
    pub(super) fn partials(&self, old: u64) -> impl Iterator<Item = (TileId, &[Digest])> {
        let grown = move |tile: &TileId| {
            hashes_at(tile.level(), old) != hashes_at(tile.level(), self.size())
        };
        let hashes = |tile: TileId| (tile, self.tails[usize::from(tile.level())].as_slice());
        partial_tiles(self.size()).filter(grown).map(hashes)
    }

    /// Number of leaves.
    pub(super) fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Root over them.
    pub(super) fn root(&self) -> Digest {
        self.tree.root()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, convert::Infallible};

    use super::*;
    use crate::merkle::{
        tile::tiles_of,
        tree::{leaf_hash, root_of},
    };

    #[test]
    fn the_tiles_are_those_of_the_format_and_the_edge_loads_from_them() {
        let leaves: Vec<Digest> = (0..66_000u32).map(|i| leaf_hash(&i.to_be_bytes())).collect();
        let mut tiler = Tiler::default();
        let mut tiles = BTreeMap::new();
        for (at, leaf) in (0..).zip(&leaves) {
            if [0, 1, 255, 256, 257, 65_535, 65_536, 65_537].contains(&at) {
                let mut at_size = tiles.clone();
                at_size.extend(tiler.partials(0).map(|(id, hashes)| (id, hashes.to_vec())));
                assert!(at_size.keys().copied().eq(tiles_of(at)), "{at}");
                let loaded = Tiler::load(at, |id| Ok::<_, Infallible>(at_size[&id].clone()));
                assert_eq!(loaded.unwrap().root(), root_of(&leaves[..at as usize]), "{at}");
            }
            let mut keep = |id, hashes: &[Digest]| {
                tiles.insert(id, hashes.to_vec());
                Ok::<_, Infallible>(())
            };
            tiler.push(*leaf, &mut keep).unwrap();
        }
        assert_eq!(tiler.root(), root_of(&leaves));
    }
}
