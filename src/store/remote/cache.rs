//! Blocks of files, the most recently used ones kept.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Bytes of a block: those of a piece.
pub(super) const BLOCK_BYTES: u64 = 64 << 10;

/// A file's number and a block's within it.
type Key = (u64, u64);

/// The blocks.
pub(super) struct Blocks {
    bytes_max: u64,
    bytes: u64,
    files: u64,
    /// When each was used last, and which it is.
    by_use: BTreeMap<u64, Key>,
    blocks: HashMap<Key, (Arc<[u8]>, u64)>,
    clock: u64,
}

impl Blocks {
    pub(super) fn new(bytes_max: u64) -> Self {
        let (by_use, blocks) = Default::default();
        Self { bytes_max, bytes: 0, files: 0, by_use, blocks, clock: 0 }
    }

    /// A number that no file has.
    pub(super) fn new_file(&mut self) -> u64 {
        self.files += 1;
        self.files
    }

    pub(super) fn get(&mut self, file: u64, number: u64) -> Option<Arc<[u8]>> {
        let (block, used) = self.blocks.get_mut(&(file, number))?;
        self.clock += 1;
        self.by_use.remove(used);
        self.by_use.insert(self.clock, (file, number));
        *used = self.clock;
        Some(block.clone())
    }

    pub(super) fn insert(&mut self, file: u64, number: u64, block: &[u8]) {
        self.remove((file, number));
        self.clock += 1;
        self.bytes += block.len() as u64;
        self.by_use.insert(self.clock, (file, number));
        self.blocks.insert((file, number), (block.into(), self.clock));
        while self.bytes > self.bytes_max {
            let Some((_, key)) = self.by_use.pop_first() else { return };
            self.remove(key);
        }
    }

    fn remove(&mut self, key: Key) {
        if let Some((block, used)) = self.blocks.remove(&key) {
            self.bytes -= block.len() as u64;
            self.by_use.remove(&used);
        }
    }

    /// How many blocks right before `number` are kept, up to `max`: the longer, the surer is it that
    /// the file is read front to back and that the cache has room for it.
    pub(super) fn before(&self, file: u64, number: u64, max: u64) -> u64 {
        let first = number.saturating_sub(max);
        let kept = |number: &u64| self.blocks.contains_key(&(file, *number));
        (first..number).rev().take_while(kept).count() as u64
    }

    /// How many blocks from `number` on are not kept, up to `max`; `number` itself is not.
    pub(super) fn missing(&self, file: u64, number: u64, max: u64) -> u64 {
        let missing = |number: &u64| !self.blocks.contains_key(&(file, *number));
        (number..number + max).take_while(missing).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let mut blocks = Blocks::new(3);
        let file = blocks.new_file();
        for number in 0..3 {
            blocks.insert(file, number, &[number as u8]);
        }
        assert_eq!(blocks.before(file, 3, 64), 3);
        blocks.get(file, 0);
        blocks.insert(file, 3, &[3]);
        assert!(blocks.get(file, 1).is_none());
        assert_eq!(blocks.before(file, 4, 64), 2);
        assert_eq!((blocks.missing(file, 1, 9), blocks.missing(file, 4, 9)), (1, 9));
        assert_eq!(&*blocks.get(file, 0).unwrap(), &[0]);
        blocks.insert(file, 0, &[9, 9, 9]);
        assert!(blocks.get(file, 3).is_none(), "three bytes in all");
    }
}
