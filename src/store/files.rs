//! The one door to the disk: every file call of the store goes through [`Files`].
//!
//! So that tests can cut the power, tear a write or fail a call at each of them. Nothing here
//! retries: a failed sync is fatal, since the kernel may have dropped the pages it could not write.

use std::{
    fs,
    io::{self, Write},
    num::NonZeroU64,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A place with files: the local disk, or a test's stand-in that fails on purpose.
pub trait Files: Send + Sync {
    /// Creates `path` for writing, or empties it.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>>;

    /// As [`Files::create`], readable by the owner only (mode 0600); fails if `path` exists.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn create_secret(&self, path: &Path) -> io::Result<Box<dyn WriteFile>>;

    /// Opens `path` for reading at any offset.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>>;

    /// Renames within the ledger, replacing `to` (a directory must not exist or be empty).
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory and all below it.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory and its parents.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Makes the directory's entries durable.
    ///
    /// # Errors
    ///
    /// The operating system's; fatal.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Names in a directory, sorted.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;

    /// Whether `path` is there.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Bytes that can still be written below `path`, which exists. A place without an end says the most.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

/// A file being written, front to back.
pub trait WriteFile: Write + Send {
    /// Says how many bytes will be written at least, so that the system can find room for all at once.
    ///
    /// # Errors
    ///
    /// The operating system's, where there is no room.
    fn reserve(&mut self, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    /// Makes the bytes durable.
    ///
    /// # Errors
    ///
    /// The operating system's; fatal.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file being read, by range.
pub trait ReadFile: Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Says that the bytes in `range` will be read soon, so that the system can begin. Nothing comes of it
    /// but speed.
    fn will_need(&self, _range: Range<u64>) {}

    /// What tells this file from others that had its name or will have it: of files that are replaced
    /// by renaming, no two have the same. A place that cannot tell says the same of all.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn stamp(&self) -> io::Result<[u64; 3]> {
        Ok([0; 3])
    }

    /// Whether nobody but its owner may read or write it. A place that cannot tell says no.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn is_secret(&self) -> io::Result<bool> {
        Ok(false)
    }
}

/// The local disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl WriteFile for fs::File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Bytes that are written before the system is asked to bring them to the disk.
const BEHIND_BYTES: u64 = 16 << 20;

/// A file that goes to the disk while it is written, so that its sync has little left to wait for.
struct Behind {
    file: fs::File,
    written: u64,
    /// Up to where the system was asked.
    asked: u64,
}

impl Behind {
    /// Linux begins to write what it is told that nobody needs, and only drops what it has written.
    #[cfg(target_os = "linux")]
    fn ask(&self) {
        let bytes = NonZeroU64::new(self.written - self.asked);
        // If it does not begin now, the sync will.
        let _ = rustix::fs::fadvise(&self.file, self.asked, bytes, rustix::fs::Advice::DontNeed);
    }

    #[cfg(not(target_os = "linux"))]
    fn ask(&self) {}
}

impl Write for Behind {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.written += written as u64;
        if self.written - self.asked >= BEHIND_BYTES {
            self.ask();
            self.asked = self.written;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl WriteFile for Behind {
    /// The file's length stays as it is, so what a crash leaves is what was written.
    #[cfg(target_os = "linux")]
    fn reserve(&mut self, bytes: u64) -> io::Result<()> {
        use rustix::{fs::FallocateFlags, io::Errno};
        if bytes < BEHIND_BYTES {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, bytes) {
            Err(Errno::NOSPC) => Err(Errno::NOSPC.into()),
            // Where nothing can be promised, the writes will tell.
            _ => Ok(()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }
}

impl ReadFile for fs::File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    #[cfg(target_os = "linux")]
    fn will_need(&self, range: Range<u64>) {
        let bytes = NonZeroU64::new(range.end.saturating_sub(range.start));
        // A system that does not want to know reads when it is asked.
        let _ = rustix::fs::fadvise(self, range.start, bytes, rustix::fs::Advice::WillNeed);
    }

    fn stamp(&self) -> io::Result<[u64; 3]> {
        let metadata = self.metadata()?;
        let time = [metadata.mtime(), metadata.mtime_nsec()].map(i64::cast_unsigned);
        Ok([metadata.ino(), time[0], time[1]])
    }

    fn is_secret(&self) -> io::Result<bool> {
        Ok(self.metadata()?.permissions().mode() & 0o077 == 0)
    }
}

impl Files for Disk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        Ok(Box::new(Behind { file: fs::File::create(path)?, written: 0, asked: 0 }))
    }

    fn create_secret(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        let file = fs::File::open(path)?;
        // Opening a directory succeeds on Unix; reading it would fail later and less clearly.
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(Arc::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut names = fs::read_dir(path)?
            .map(|entry| Ok(PathBuf::from(entry?.file_name())))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let system = rustix::fs::statvfs(path)?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }
}

/// A place that keeps nothing: for a step that is done again for its answer alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nowhere;

impl WriteFile for io::Sink {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Files for Nowhere {
    fn create(&self, _: &Path) -> io::Result<Box<dyn WriteFile>> {
        Ok(Box::new(io::sink()))
    }

    fn create_secret(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.create(path)
    }

    fn open(&self, _: &Path) -> io::Result<Arc<dyn ReadFile>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }

    fn exists(&self, _: &Path) -> io::Result<bool> {
        Ok(false)
    }
}

/// Another door's files, each of them open only while it is read: so that any number can be in use.
///
/// For what is compared with its digest as it is read: a name may stand for another file next time.
pub struct Reopening(pub Arc<dyn Files>);

/// A file that is opened for each read.
struct Reopened {
    files: Arc<dyn Files>,
    path: PathBuf,
}

impl ReadFile for Reopened {
    fn len(&self) -> io::Result<u64> {
        self.files.open(&self.path)?.len()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.files.open(&self.path)?.read_exact_at(buffer, offset)
    }

    fn will_need(&self, range: Range<u64>) {
        if let Ok(file) = self.files.open(&self.path) {
            file.will_need(range);
        }
    }

    fn is_secret(&self) -> io::Result<bool> {
        self.files.open(&self.path)?.is_secret()
    }
}

impl Files for Reopening {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.0.create(path)
    }

    fn create_secret(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.0.create_secret(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        drop(self.0.open(path)?); // What cannot be opened is said now.
        Ok(Arc::new(Reopened { files: self.0.clone(), path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.remove_dir_all(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.0.list(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.0.exists(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.0.free_bytes(path)
    }
}

/// Has the system forget what it keeps of a file in memory, as far as it can, so that what is read next
/// comes from the disk: for measuring.
///
/// # Errors
///
/// The operating system's.
pub fn forget(path: &Path) -> io::Result<()> {
    let file = fs::File::open(path)?;
    file.sync_all()?;
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// Writes a small file whole: beside its place, synced, renamed over it, the directory synced.
///
/// A crash leaves the old bytes or the new ones.
///
/// # Errors
///
/// The operating system's.
pub fn write_whole(files: &dyn Files, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut file = files.create(&beside)?;
    file.write_all(bytes)?;
    file.sync()?;
    drop(file);
    files.rename(&beside, path)?;
    // A name alone lies in the working directory.
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    files.sync_dir(parent.unwrap_or(Path::new(".")))
}

/// Creates a directory and those above it, all their names durable.
///
/// Those that are there already too: a process that was killed may have made them and not synced.
///
/// # Errors
///
/// The operating system's.
pub fn create_dir_durable(files: &dyn Files, path: &Path) -> io::Result<()> {
    files.create_dir_all(path)?;
    for parent in path.ancestors().skip(1) {
        let parent = if parent == Path::new("") { Path::new(".") } else { parent };
        match files.sync_dir(parent) {
            // Nothing was made by us in a directory that we may not even read.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            synced => synced?,
        }
    }
    Ok(())
}

/// Reads a whole file of at most `bytes_max` bytes.
///
/// # Errors
///
/// The operating system's; [`io::ErrorKind::FileTooLarge`] above the limit.
pub fn read_whole(files: &dyn Files, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = files.open(path)?;
    let len = file.len()?;
    if len > bytes_max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
