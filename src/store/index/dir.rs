//! The index's directory: a backend's files, and the mark that says what they were when closed.
//!
//! A backend that is handed files which a crash, a bad disk or another program left may panic, ask
//! for any amount of memory, or open them and answer wrongly. So it is handed none: at closing the
//! length and root of each file are written to `closed`; that mark goes before the backend opens, and
//! files without a mark, or other than it says, are removed. No order of writes matters and nothing
//! is synced: what a power cut leaves does not agree with its mark, or is whole.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use super::{Index, IndexError, Pair};
use crate::{merkle::pieces::PieceHasher, types::manifest::ArtifactId};

#[cfg(feature = "index-rocksdb")]
use super::rocks::RocksIndex as Backend;
#[cfg(not(feature = "index-rocksdb"))]
use super::sled::SledIndex as Backend;

/// Name of the backend's own directory: another backend starts anew.
#[cfg(feature = "index-rocksdb")]
const BACKEND: &str = "rocksdb";
#[cfg(not(feature = "index-rocksdb"))]
const BACKEND: &str = "sled";

/// Name of the mark.
const MARK: &str = "closed";

/// First line of the mark: its format and that of the keys.
const FORMAT: &str = "gradledger-index/1";

/// Largest mark that is read, and most bytes of a file that are hashed at once.
const MARK_BYTES_MAX: u64 = 16 << 20;
const CHUNK_BYTES: usize = 1 << 20;

/// The index in its directory, open. Dropping it closes it.
pub struct IndexDir {
    root: PathBuf,
    /// Nothing after a failure: then the directory stays without a mark.
    index: Option<Box<dyn Index>>,
}

/// How the index of a ledger stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is none.
    Absent,
    /// Its files are those that were closed last.
    Closed,
    /// A process has it open, or had it open and was killed.
    Open,
}

impl IndexDir {
    /// Opens the index below `root` as it was closed, or an empty one if it is not as it was.
    ///
    /// Reads and hashes all of it: some tenths of a second a million submissions.
    ///
    /// # Errors
    ///
    /// [`IndexError`] if not even an empty one can be had.
    pub fn open(root: &Path) -> Result<Self, IndexError> {
        if is_as_closed(root)
            && fs::remove_file(root.join(MARK)).is_ok()
            && let Ok(index) = guarded(|| Backend::open(&root.join(BACKEND)))
        {
            return Ok(Self { root: root.to_owned(), index: Some(Box::new(index)) });
        }
        Self::anew(root)
    }

    /// Removes whatever is at `root` and starts an empty index there.
    ///
    /// # Errors
    ///
    /// As [`IndexDir::open`].
    pub fn anew(root: &Path) -> Result<Self, IndexError> {
        let io = |source| IndexError::Io { path: root.to_owned(), source };
        remove(root).map_err(io)?;
        fs::create_dir_all(root).map_err(io)?;
        let index = guarded(|| Backend::open(&root.join(BACKEND)))?;
        Ok(Self { root: root.to_owned(), index: Some(Box::new(index)) })
    }

    /// How the index below `root` stands; nothing is changed. Hashes all of it, as [`IndexDir::open`].
    pub fn standing(root: &Path) -> Standing {
        match fs::symlink_metadata(root.join(BACKEND)) {
            Err(_) => Standing::Absent,
            Ok(_) if is_as_closed(root) => Standing::Closed,
            Ok(_) => Standing::Open,
        }
    }

    /// As [`Index::get`].
    ///
    /// # Errors
    ///
    /// As [`Index::get`].
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.ask(|index| index.get(key))
    }

    /// As [`Index::scan`].
    ///
    /// # Errors
    ///
    /// As [`Index::get`].
    pub fn scan(&mut self, prefix: &[u8], max: usize) -> Result<Vec<Pair>, IndexError> {
        self.ask(|index| index.scan(prefix, max))
    }

    /// As [`Index::apply`].
    ///
    /// # Errors
    ///
    /// As [`Index::get`].
    pub fn apply(&mut self, puts: &[Pair]) -> Result<(), IndexError> {
        self.ask(|index| index.apply(puts))
    }

    fn ask<T>(
        &mut self,
        call: impl FnOnce(&mut dyn Index) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        let index = self.index.as_deref_mut().ok_or(IndexError::Closed)?;
        guarded(|| call(index)).inspect_err(|_| self.give_up())
    }

    /// Closes it without a mark: it is made anew when it is opened next.
    fn give_up(&mut self) {
        if let Some(index) = self.index.take() {
            let _ = guarded(|| index.close());
        }
    }
}

impl Drop for IndexDir {
    /// Closes it. What fails here leaves no mark, and costs making it anew.
    fn drop(&mut self) {
        if let Some(index) = self.index.take()
            && guarded(|| index.close()).is_ok()
            && let Ok(mark) = mark(&self.root)
        {
            let _ = fs::write(self.root.join(MARK), mark);
        }
    }
}

/// The one place where a backend's panic ends.
fn guarded<T>(call: impl FnOnce() -> Result<T, IndexError>) -> Result<T, IndexError> {
    // What it left half done is never looked at again: the index is given up.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(IndexError::Panicked { message: text.unwrap_or_default() })
    })
}

/// Removes whatever is at `path`, if anything; a link, not what it leads to.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether a mark is there, and says what the files are now.
fn is_as_closed(root: &Path) -> bool {
    let path = root.join(MARK);
    let read = || {
        let metadata = fs::symlink_metadata(&path)?;
        if !metadata.is_file() || metadata.len() > MARK_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        fs::read_to_string(&path)
    };
    // Lengths first: a file that grew without bound is not hashed.
    read().is_ok_and(|text| lengths_agree(root, &text) && mark(root).is_ok_and(|now| now == text))
}

/// Whether the files are those of the mark by name and length.
fn lengths_agree(root: &Path, mark: &str) -> bool {
    let line = |line: &str| {
        let (bytes, rest) = line.split_once(' ')?;
        Some((rest.split_once(' ')?.1.to_owned(), bytes.parse().ok()?))
    };
    let stated: BTreeSet<(String, u64)> = mark.lines().skip(1).filter_map(line).collect();
    files(root, stated.len())
        .is_ok_and(|found| found.into_iter().collect::<BTreeSet<_>>() == stated)
}

/// The mark of the files as they are: a line each, its length, root and name.
fn mark(root: &Path) -> io::Result<String> {
    let mut text = format!("{FORMAT} {BACKEND}\n");
    for (name, _) in files(root, usize::MAX)? {
        let ArtifactId { root, bytes } = hash(&root.join(&name))?;
        let _ = writeln!(text, "{bytes} {root} {name}");
    }
    Ok(text)
}

/// Name and length of each file below the backend's directory, at most `max`, sorted.
fn files(root: &Path, max: usize) -> io::Result<Vec<(String, u64)>> {
    let refused = || io::Error::from(io::ErrorKind::InvalidData);
    let (mut found, mut open) = (Vec::new(), vec![BACKEND.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let name = format!("{dir}/{}", entry.file_name().to_str().ok_or_else(refused)?);
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                open.push(name);
            } else if metadata.is_file() && found.len() < max {
                found.push((name, metadata.len()));
            } else {
                return Err(refused());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn hash(path: &Path) -> io::Result<ArtifactId> {
    let (mut file, mut hasher) = (File::open(path)?, PieceHasher::new());
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish().artifact),
            read => hasher.update(&buffer[..read]),
        }
    }
}
