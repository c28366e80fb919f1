//! The index in sled: the default.

use std::path::Path;

use super::{Index, IndexError, Pair};

/// Most memory that sled's cache takes.
const CACHE_BYTES: u64 = 32 << 20;

/// An index in a directory of sled's files.
pub struct SledIndex {
    db: sled::Db,
}

impl From<sled::Error> for IndexError {
    fn from(error: sled::Error) -> Self {
        Self::Backend { backend: "sled", source: error.into() }
    }
}

impl SledIndex {
    /// Opens the index in `dir`, or makes one.
    ///
    /// # Errors
    ///
    /// [`IndexError::Backend`]. May panic on files that sled did not write.
    pub fn open(dir: &Path) -> Result<Self, IndexError> {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::HighThroughput)
            // Its flush makes nothing durable, so nobody waits for one.
            .flush_every_ms(None);
        Ok(Self { db: config.open()? })
    }
}

impl Index for SledIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.db.get(key)?.map(|value| value.to_vec()))
    }

    fn scan(&self, prefix: &[u8], max: usize) -> Result<Vec<Pair>, IndexError> {
        let pair = |pair: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, value) = pair?;
            Ok((key.to_vec(), value.to_vec()))
        };
        self.db.scan_prefix(prefix).take(max).map(pair).collect()
    }

    fn apply(&mut self, puts: &[Pair]) -> Result<(), IndexError> {
        let mut batch = sled::Batch::default();
        for (key, value) in puts {
            batch.insert(&key[..], &value[..]);
        }
        Ok(self.db.apply_batch(batch)?)
    }

    fn close(self: Box<Self>) -> Result<(), IndexError> {
        self.db.flush()?;
        Ok(())
    }
}
