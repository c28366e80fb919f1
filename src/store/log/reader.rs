//! Reading a log as its published head has it, while a writer may run.

use std::{ops::Range, path::Path, sync::Arc, vec};

use super::{
    LogError, TreeState,
    dir::{LogDir, Part},
};
use crate::{
    merkle::{
        head::TreeHead,
        note::{SignedNote, VerifierKey},
        tile::{BundleId, TILE_WIDTH, TileId},
        tree::{
            LEAVES_MAX, Nodes, ProveError, consistency_proof, edge_nodes, inclusion_proof, root_at,
        },
    },
    store::files::Files,
    types::digest::Digest,
};

/// A log up to the head that was published when it was opened.
///
/// Entries are compared with their leaf hashes whenever they are read. That these lead to the head's
/// root is shown by a proof, or for the whole log by [`Self::verify`]; that the log's key signed the
/// head, by [`Self::verify_head`].
#[derive(Clone)]
pub struct LogReader {
    pub(super) dir: LogDir,
    pub(super) head: TreeHead,
    note: Vec<u8>,
}

impl LogReader {
    /// Opens the log in `dir` at its published head. The signature is not checked.
    ///
    /// # Errors
    ///
    /// [`LogError::Absent`] if no head is published; [`LogError::Head`] if it cannot be read.
    pub fn open(files: Arc<dyn Files>, dir: &Path) -> Result<Self, LogError> {
        let dir = LogDir { files, path: dir.to_owned() };
        let note = dir.read_head()?;
        let read = || {
            let head = TreeHead::parse(SignedNote::parse(&note)?.text())?;
            head.check().map(|()| head)
        };
        let head = read().map_err(|source| LogError::Head { path: dir.head_path(), source })?;
        if head.size > LEAVES_MAX {
            return Err(LogError::Size { path: dir.head_path(), size: head.size });
        }
        Ok(Self { dir, head, note })
    }

    /// Opens the log in `dir` at the tree that is committed, of which no head may be published yet.
    ///
    /// For a writer, which has to know what the log says before it signs it. It has no note.
    ///
    /// # Errors
    ///
    /// [`LogError::Absent`] if there is no log; [`LogError::State`] if its state cannot be read.
    pub fn open_committed(files: Arc<dyn Files>, dir: &Path) -> Result<Self, LogError> {
        let dir = LogDir { files, path: dir.to_owned() };
        let TreeState { origin, root, size, .. } = dir.read_state()?;
        if size > LEAVES_MAX {
            return Err(LogError::Size { path: dir.state_path(), size });
        }
        Ok(Self { dir, head: TreeHead { origin, size, root }, note: Vec::new() })
    }

    /// The published head.
    pub fn head(&self) -> &TreeHead {
        &self.head
    }

    /// Its signed note.
    pub fn note(&self) -> &[u8] {
        &self.note
    }

    /// Number of entries.
    pub fn size(&self) -> u64 {
        self.head.size
    }

    /// Checks that the log's key signed the head.
    ///
    /// # Errors
    ///
    /// [`LogError::Head`].
    pub fn verify_head(&self, key: &VerifierKey) -> Result<(), LogError> {
        self.verify_head_by(std::slice::from_ref(key))
    }

    /// Checks that one of `keys` signed the head.
    ///
    /// # Errors
    ///
    /// [`LogError::Head`].
    pub fn verify_head_by(&self, keys: &[VerifierKey]) -> Result<(), LogError> {
        match TreeHead::open_by_any(&self.note, keys) {
            Ok(_) => Ok(()),
            Err(source) => Err(LogError::Head { path: self.dir.head_path(), source }),
        }
    }

    /// One entry.
    ///
    /// # Errors
    ///
    /// [`LogError::Beyond`] if the head does not reach to it; [`LogError::Hash`] if it is not what
    /// its leaf hash says.
    pub fn entry(&self, index: u64) -> Result<Vec<u8>, LogError> {
        let entry = self.entries(index..index.saturating_add(1))?.next();
        entry.expect("the range holds one entry")
    }

    /// The entries of a range in order, read a bundle at a time: at most 32 MiB are held.
    ///
    /// After an error the iterator ends.
    ///
    /// # Errors
    ///
    /// [`LogError::Beyond`] if the head does not reach to all of them.
    pub fn entries(&self, range: Range<u64>) -> Result<Entries<'_>, LogError> {
        self.check_size(range.end)?;
        Ok(Entries { log: self, range, bundle: vec![].into_iter() })
    }

    /// The leaf hash of an entry, from its tile.
    ///
    /// # Errors
    ///
    /// [`LogError::Beyond`] if the head does not reach to it.
    pub fn leaf_hash(&self, index: u64) -> Result<Digest, LogError> {
        self.check_size(index.saturating_add(1))?;
        let (tile, at) = self.leaf_tile(index);
        Ok(self.dir.read_tile(tile)?[at])
    }

    /// The root that the log had at `size`.
    ///
    /// # Errors
    ///
    /// [`LogError::Beyond`] if the head has fewer entries.
    pub fn root_at(&self, size: u64) -> Result<Digest, LogError> {
        self.check_size(size)?;
        let root = root_at(size, &self.dir.nodes(self.size()));
        root.map_err(|error| self.dir.node_error(error))
    }

    /// The right edge that the tree had at `size`: roots of the perfect subtrees that it is made of,
    /// the largest first.
    ///
    /// # Errors
    ///
    /// [`LogError::Beyond`] if the head has fewer entries.
    pub fn edge_at(&self, size: u64) -> Result<Vec<Digest>, LogError> {
        self.check_size(size)?;
        let nodes = self.dir.nodes(self.size());
        let edge = edge_nodes(size).map(|(level, index)| nodes.node(level, index));
        edge.collect::<Result<_, _>>().map_err(|error| self.dir.node_error(error))
    }

    /// The proof that entry `index` is in the tree of `size` entries.
    ///
    /// # Errors
    ///
    /// [`LogError::Beyond`] if the head has fewer entries, or `size` does not hold `index`.
    pub fn inclusion_proof(&self, index: u64, size: u64) -> Result<Vec<Digest>, LogError> {
        let mut proofs = self.inclusion_proofs(&[index], size)?;
        Ok(proofs.pop().expect("a proof an index"))
    }

    /// The proofs that entries are in the tree of `size` entries; each tile is read once.
    ///
    /// # Errors
    ///
    /// As [`LogReader::inclusion_proof`].
    pub fn inclusion_proofs(
        &self,
        indices: &[u64],
        size: u64,
    ) -> Result<Vec<Vec<Digest>>, LogError> {
        self.check_size(size)?;
        let nodes = self.dir.nodes(self.size());
        let prove = |&index: &u64| {
            inclusion_proof(index, size, &nodes).map_err(|error| match error {
                ProveError::Node(error) => self.dir.node_error(error),
                _ => LogError::Beyond {
                    path: self.dir.head_path(),
                    size,
                    asked: index.saturating_add(1),
                },
            })
        };
        indices.iter().map(prove).collect()
    }

    /// The proof that the tree of `size2` entries starts with that of `size1`.
    ///
    /// # Errors
    ///
    /// [`LogError::Beyond`] if the head has fewer entries; [`LogError::Sizes`] if `size1` is 0 or
    /// above `size2`.
    pub fn consistency_proof(&self, size1: u64, size2: u64) -> Result<Vec<Digest>, LogError> {
        self.check_size(size2)?;
        let proof = consistency_proof(size1, size2, &self.dir.nodes(self.size()));
        proof.map_err(|error| match error {
            ProveError::Node(error) => self.dir.node_error(error),
            _ => LogError::Sizes { size1, size2 },
        })
    }

    fn check_size(&self, asked: u64) -> Result<(), LogError> {
        let size = self.size();
        if asked <= size {
            return Ok(());
        }
        Err(LogError::Beyond { path: self.dir.head_path(), size, asked })
    }

    /// The level-0 tile with the hash of an entry that the head reaches to, and its place there.
    fn leaf_tile(&self, index: u64) -> (TileId, usize) {
        let full = TileId::new(0, index / u64::from(TILE_WIDTH), TILE_WIDTH);
        let full = Part::Tile(full.expect("a full tile of level 0"));
        let Some(Part::Tile(tile)) = full.at_size(self.size()) else {
            unreachable!("the head reaches to the entry")
        };
        (tile, (index % u64::from(TILE_WIDTH)) as usize)
    }

    /// All entries of the bundle that holds `index`, compared with their hashes.
    fn bundle_of(&self, index: u64) -> Result<Vec<Vec<u8>>, LogError> {
        let (tile, _) = self.leaf_tile(index);
        let bundle = BundleId::new(tile.index(), tile.width()).expect("it has the tile's width");
        let entries = self.dir.read_bundle(bundle)?;
        self.dir.check_leaves(tile, &entries, &self.dir.read_tile(tile)?)?;
        Ok(entries)
    }
}

/// Entries of a log in order.
pub struct Entries<'a> {
    log: &'a LogReader,
    range: Range<u64>,
    bundle: vec::IntoIter<Vec<u8>>,
}

impl Entries<'_> {
    /// Reads the bundle with the range's first entry, and starts at that entry.
    fn load(&mut self) -> Result<(), LogError> {
        let mut entries = self.log.bundle_of(self.range.start)?;
        entries.drain(..(self.range.start % u64::from(TILE_WIDTH)) as usize);
        self.bundle = entries.into_iter();
        Ok(())
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Vec<u8>, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.range.is_empty() {
            return None;
        }
        if self.bundle.len() == 0
            && let Err(error) = self.load()
        {
            self.range = 0..0;
            return Some(Err(error));
        }
        self.range.start += 1;
        self.bundle.next().map(Ok)
    }
}
