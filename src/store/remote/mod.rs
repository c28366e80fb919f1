//! A ledger behind a URL: [`Files`] over a server's `/v1/files/`, for reading.
//!
//! So every reader of a directory reads a server, and re-hashes what it gets all the same. Files that
//! never change under their name (segments, hashes, tiles, refused uploads) are kept in blocks of
//! 64 KiB; heads and lists are asked for each time. What is read front to back is fetched ahead, in
//! runs that double up to 4 MiB and stop doubling when too many files are read at once for the cache.
//!
//! Trust: none. A server can refuse, delay within limits, and lie about anything; each answer is
//! bounded before it is read, in bytes and in time. A connection that fails is no statement about
//! bytes: see [`RemoteError`].
//!
//! Memory: [`CACHE_BYTES`] and, for each read under way, one run.

mod cache;
mod error;
mod http;
mod range;
mod send;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::{
    cache::{BLOCK_BYTES, Blocks},
    http::Found,
};
pub use self::{
    error::RemoteError,
    http::{Http, HttpOptions, Traffic},
    send::{Question, Sent},
};
use super::files::{Disk, Files, ReadFile, WriteFile};

/// Bytes of blocks that are kept.
pub const CACHE_BYTES: u64 = 128 << 20;

/// Most blocks that are fetched at once: 4 MiB.
const RUN_BLOCKS: u64 = 64;

/// Most files whose length is remembered; beyond it all are asked for again.
const FILES_MAX: usize = 1 << 16;

/// Bytes at the end of a segment that are fetched to find its footer.
const TAIL_BYTES: u64 = 4 << 10;

/// How far before them the page indexes may start that are then fetched in one go.
const TAIL_BYTES_MAX: u64 = 4 << 20;

/// As [`TAIL_BYTES`], of a delta's books, which are small and wanted whole.
const BOOKS_TAIL_BYTES: u64 = 1 << 20;

/// The files of a ledger that a server serves.
#[derive(Clone)]
pub struct Remote {
    shared: Arc<Shared>,
    /// A directory that may have files that never change already.
    near: Option<PathBuf>,
    /// Of segments only what is asked for is fetched, and not kept.
    sparing: bool,
}

struct Shared {
    http: Http,
    root: PathBuf,
    blocks: Mutex<Blocks>,
    /// Files that never change, as they were found.
    known: Mutex<HashMap<PathBuf, Arc<File>>>,
}

/// A file as a server described it.
struct File {
    /// Its path below the ledger.
    path: String,
    /// Tells its blocks in the cache.
    id: u64,
    bytes: u64,
    etag: Option<String>,
    /// Held by whoever fetches: so no block is fetched twice.
    fetching: Mutex<()>,
}

/// A panic elsewhere leaves maps that are still right: each change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Remote {
    /// The ledger that the server at `url` serves. Nothing is asked yet.
    ///
    /// # Errors
    ///
    /// [`RemoteError::Url`] if it is no http or https URL of a server; [`RemoteError::Client`] if the
    /// system has no certificates to trust.
    pub fn new(url: &str, options: &HttpOptions) -> Result<Self, RemoteError> {
        let http = Http::new(url, options)?;
        let root = PathBuf::from(http.base());
        let blocks = Mutex::new(Blocks::new(CACHE_BYTES));
        let shared = Arc::new(Shared { http, root, blocks, known: Mutex::default() });
        Ok(Self { shared, near: None, sparing: false })
    }

    /// The same server for whoever keeps what it gets in the ledger's copy `dir`: what never changes
    /// and is there is not asked for, and of segments no byte is asked for twice.
    pub fn keeping(self, dir: &Path) -> Self {
        Self { near: Some(dir.to_owned()), sparing: true, ..self }
    }

    /// What [`super::place::Place`] calls the ledger's directory: the URL of its files.
    pub fn root(&self) -> &Path {
        &self.shared.root
    }

    /// The URL as it was given.
    pub fn url(&self) -> &str {
        self.shared.http.url()
    }

    /// What was asked and received so far.
    pub fn traffic(&self) -> Traffic {
        self.shared.http.traffic()
    }

    /// Bytes of a file, past the cache.
    ///
    /// # Errors
    ///
    /// [`RemoteError`]; also if the answer is not exactly what was asked for.
    pub fn range(&self, path: &Path, range: std::ops::Range<u64>) -> Result<Vec<u8>, RemoteError> {
        self.shared.http.range(&self.relative(path)?, range, None).map(|found| found.bytes)
    }

    fn relative(&self, path: &Path) -> Result<String, RemoteError> {
        let outside = || RemoteError::Outside { path: path.to_owned() };
        let below = path.strip_prefix(&self.shared.root).map_err(|_| outside())?;
        below.to_str().map(str::to_owned).ok_or_else(outside)
    }

    fn find(&self, path: &Path) -> Result<Arc<File>, RemoteError> {
        let relative = self.relative(path)?;
        let constant = is_constant(&relative);
        if constant && let Some(file) = lock(&self.shared.known).get(path) {
            return Ok(file.clone());
        }
        let Found { bytes, whole, etag } = self.shared.http.start(&relative, BLOCK_BYTES)?;
        let mut blocks = lock(&self.shared.blocks);
        let id = blocks.new_file();
        blocks.insert(id, 0, &bytes);
        drop(blocks);
        let file = File { path: relative, id, bytes: whole, etag, fetching: Mutex::default() };
        let file = Arc::new(file);
        if constant {
            let mut known = lock(&self.shared.known);
            if known.len() >= FILES_MAX {
                known.clear();
            }
            known.insert(path.to_owned(), file.clone());
        }
        Ok(file)
    }
}

/// Whether a path always stands for the same bytes: its name holds a root, or its place in a log.
fn is_constant(path: &str) -> bool {
    let log = path.strip_prefix("log/").and_then(|rest| rest.split_once('/'));
    log.is_some_and(|(_, part)| part.starts_with("tile/"))
        || ["segments/", "hashes/", "quarantine/"].iter().any(|dir| path.starts_with(dir))
}

/// A file open for reading.
struct Open {
    shared: Arc<Shared>,
    file: Arc<File>,
}

impl ReadFile for Open {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.bytes)
    }

    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        let Some(end) = end.filter(|end| *end <= self.file.bytes) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        while !buffer.is_empty() {
            let number = offset / BLOCK_BYTES;
            let block = self.block(number, (end - 1) / BLOCK_BYTES)?;
            let part = &block[(offset % BLOCK_BYTES) as usize..];
            let (now, later) = buffer.split_at_mut(part.len().min(buffer.len()));
            now.copy_from_slice(&part[..now.len()]);
            offset += now.len() as u64;
            buffer = later;
        }
        Ok(())
    }
}

impl Open {
    /// Block `number`; the read goes on to block `last`.
    fn block(&self, number: u64, last: u64) -> Result<Arc<[u8]>, RemoteError> {
        let Self { shared, file } = self;
        if let Some(block) = lock(&shared.blocks).get(file.id, number) {
            return Ok(block);
        }
        let _fetching = lock(&file.fetching);
        let run = {
            let mut blocks = lock(&shared.blocks);
            // Another thread may have fetched it meanwhile.
            if let Some(block) = blocks.get(file.id, number) {
                return Ok(block);
            }
            let blocks_in_file = file.bytes.div_ceil(BLOCK_BYTES);
            let ahead = blocks.before(file.id, number, RUN_BLOCKS).max(last - number + 1);
            let ahead = ahead.min(RUN_BLOCKS).min(blocks_in_file - number);
            blocks.missing(file.id, number, ahead)
        };
        let start = number * BLOCK_BYTES;
        let range = start..(start + run * BLOCK_BYTES).min(file.bytes);
        let found = shared.http.range(&file.path, range, file.etag.as_deref())?;
        if found.whole != file.bytes {
            let url = shared.http.url_of(&file.path);
            return Err(RemoteError::Changed { url });
        }
        let mut blocks = lock(&shared.blocks);
        for (at, block) in (number..).zip(found.bytes.chunks(BLOCK_BYTES as usize)) {
            blocks.insert(file.id, at, block);
        }
        drop(blocks);
        Ok(found.bytes[..found.bytes.len().min(BLOCK_BYTES as usize)].into())
    }
}

/// A file of which nothing is kept but its end, where a segment has its footer and its page indexes.
struct Spared {
    shared: Arc<Shared>,
    path: String,
    bytes: u64,
    tail: Mutex<Vec<u8>>,
}

impl ReadFile for Spared {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        let Some(end) = end.filter(|end| *end <= self.bytes) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        if buffer.is_empty() {
            return Ok(());
        }
        let mut tail = lock(&self.tail);
        let tail_at = self.bytes - tail.len() as u64;
        if offset < tail_at && self.bytes - offset > TAIL_BYTES_MAX {
            drop(tail);
            buffer.copy_from_slice(&self.shared.http.range(&self.path, offset..end, None)?.bytes);
            return Ok(());
        }
        if offset < tail_at {
            let mut longer = self.shared.http.range(&self.path, offset..tail_at, None)?.bytes;
            longer.extend_from_slice(&tail);
            *tail = longer;
        }
        let at = offset.saturating_sub(self.bytes - tail.len() as u64) as usize;
        buffer.copy_from_slice(&tail[at..][..buffer.len()]);
        Ok(())
    }
}

fn read_only<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Files for Remote {
    fn create(&self, _: &Path) -> io::Result<Box<dyn WriteFile>> {
        read_only()
    }

    fn create_secret(&self, _: &Path) -> io::Result<Box<dyn WriteFile>> {
        read_only()
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        let relative = self.relative(path)?;
        if let Some(near) = self.near.as_ref().filter(|_| is_constant(&relative)) {
            match Disk.open(&near.join(&relative)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                there => return there,
            }
        }
        let shared = self.shared.clone();
        if self.sparing && relative.starts_with("segments/") {
            let books = relative.ends_with("/books.parquet");
            let tail_bytes = if books { BOOKS_TAIL_BYTES } else { TAIL_BYTES };
            let Found { bytes: tail, whole, .. } = shared.http.end(&relative, tail_bytes)?;
            let tail = Mutex::new(tail);
            return Ok(Arc::new(Spared { shared, path: relative, bytes: whole, tail }));
        }
        let file = self.find(path)?;
        Ok(Arc::new(Open { shared, file }))
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        read_only()
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        read_only()
    }

    fn remove_dir_all(&self, _: &Path) -> io::Result<()> {
        read_only()
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        read_only()
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        read_only()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let names = self.shared.http.list(&self.relative(path)?)?;
        Ok(names.into_iter().map(PathBuf::from).collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let relative = self.relative(path)?;
        if lock(&self.shared.known).contains_key(path) {
            return Ok(true);
        }
        Ok(self.shared.http.is_file(&relative)? || self.shared.http.is_dir(&relative)?)
    }
}

#[cfg(test)]
mod tests {
    use super::is_constant;

    #[test]
    fn heads_and_lists_are_asked_for_each_time() {
        for path in
            ["log/rounds/checkpoint", "log/rounds/tree-state", "retention.json", "open-round.json"]
        {
            assert!(!is_constant(path), "{path}");
        }
        for path in
            ["log/rounds/tile/0/000", "hashes/ab/abcd", "segments/deltas/ab/abcd/books.parquet"]
        {
            assert!(is_constant(path), "{path}");
        }
    }
}
