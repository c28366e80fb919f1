//! The one lock file: a ledger has at most one writer.
//!
//! The operating system lets go of it when the process ends, however it ends, so a crash leaves
//! nothing to clean up. Readers take no lock. The file holds no data, which is why this is the one
//! file that is not opened through `Files`.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// Name of the lock file in a ledger's directory.
const NAME: &str = "lock";

/// The right to write to a ledger, until dropped.
#[derive(Debug)]
pub struct WriterLock {
    file: File,
}

/// The right to write was not given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process, or another part of this one, is writing.
    #[error("{path}: another process is writing here; wait for it or stop it")]
    Held {
        /// The lock file.
        path: PathBuf,
    },
    /// The lock file could not be opened or locked.
    #[error("{path}: {source}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl WriterLock {
    /// Whether `dir` ever had a writer.
    pub fn exists(dir: &Path) -> bool {
        dir.join(NAME).exists()
    }

    /// Takes the lock of the ledger in `dir`, without waiting.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] if there is a writer; [`LockError::Io`] if `dir` cannot be written to.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        Self::take(dir.join(NAME))
    }

    /// Takes the lock of one file outside of a ledger: `FILE.lock`, which stays.
    ///
    /// # Errors
    ///
    /// As [`WriterLock::acquire`].
    pub fn beside(file: &Path) -> Result<Self, LockError> {
        let mut path = file.as_os_str().to_owned();
        path.push(".lock");
        Self::take(path.into())
    }

    fn take(path: PathBuf) -> Result<Self, LockError> {
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(source) => return Err(LockError::Io { path, source }),
        };
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => Err(LockError::Held { path }),
            Err(TryLockError::Error(source)) => Err(LockError::Io { path, source }),
        }
    }
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        // Closing the file is not enough at once: a child that is being started holds a copy of it
        // until it has become another program. If this fails, closing is what remains.
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_kept_out_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = WriterLock::acquire(dir.path()).unwrap();
        assert!(matches!(WriterLock::acquire(dir.path()), Err(LockError::Held { .. })));
        drop(first);
        WriterLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_directory_that_is_not_there_is_another_error_than_a_held_lock() {
        let dir = tempfile::tempdir().unwrap();
        let absent = WriterLock::acquire(&dir.path().join("absent"));
        assert!(matches!(absent, Err(LockError::Io { .. })));
    }
}
