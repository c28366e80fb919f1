//! The index in RocksDB, for nodes with very many submissions: feature `index-rocksdb`.

use std::path::Path;

use rocksdb::{DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions};

use super::{Index, IndexError, Pair};

/// Most files that RocksDB holds open.
const OPEN_FILES_MAX: i32 = 256;

/// An index in a directory of RocksDB's files.
pub struct RocksIndex {
    db: DB,
}

impl From<rocksdb::Error> for IndexError {
    fn from(error: rocksdb::Error) -> Self {
        Self::Backend { backend: "RocksDB", source: error.into() }
    }
}

impl RocksIndex {
    /// Opens the index in `dir`, or makes one.
    ///
    /// # Errors
    ///
    /// [`IndexError::Backend`].
    pub fn open(dir: &Path) -> Result<Self, IndexError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_keep_log_file_num(1);
        Ok(Self { db: DB::open(&options, dir)? })
    }
}

impl Index for RocksIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.db.get(key)?)
    }

    fn scan(&self, prefix: &[u8], max: usize) -> Result<Vec<Pair>, IndexError> {
        let mut found = Vec::new();
        for pair in self.db.iterator(IteratorMode::From(prefix, Direction::Forward)) {
            let (key, value) = pair?;
            if found.len() == max || !key.starts_with(prefix) {
                break;
            }
            found.push((key.into_vec(), value.into_vec()));
        }
        Ok(found)
    }

    fn apply(&mut self, puts: &[Pair]) -> Result<(), IndexError> {
        let mut batch = WriteBatch::default();
        for (key, value) in puts {
            batch.put(key, value);
        }
        // What a crash interrupts is made anew, so its own log would be written for nothing.
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        Ok(self.db.write_opt(batch, &options)?)
    }

    fn close(self: Box<Self>) -> Result<(), IndexError> {
        self.db.flush()?;
        self.db.cancel_all_background_work(true);
        Ok(())
    }
}
