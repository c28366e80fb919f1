//! The index in sled: the default.

use std::{
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{Index, IndexError, Pair};

/// Most memory that sled's cache takes.
const CACHE_BYTES: u64 = 32 << 20;

/// How long the lock of an index that was just closed is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(2);

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
        let start = Instant::now();
        loop {
            match config.open() {
                // Only the ledger's one writer opens its index. The lock on its file may outlive the
                // close for a moment, though: a child that is being started holds a copy until it
                // has become another program.
                Err(error) if is_locked(&error) && start.elapsed() < LOCK_WAIT => {
                    thread::sleep(Duration::from_millis(10));
                }
                opened => return Ok(Self { db: opened? }),
            }
        }
    }
}

/// Whether another has the database open. Sled wraps the system's answer in words of its own.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(io) if io.kind() == io::ErrorKind::WouldBlock
        || io.to_string().starts_with("could not acquire lock"))
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
