//! Files in memory, for tests that damage many copies of a file or fill the disk.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use gradledger::store::files::{Files, ReadFile, WriteFile};

/// Files in memory; with a limit, the write that passes it fails.
#[derive(Clone, Default)]
pub struct Memory {
    files: Arc<Mutex<BTreeMap<PathBuf, Arc<Vec<u8>>>>>,
    left: Option<Arc<AtomicUsize>>,
}

struct MemoryFile {
    memory: Memory,
    path: PathBuf,
}

struct MemoryBytes(Arc<Vec<u8>>);

impl Memory {
    /// Files that together take `bytes` bytes.
    pub fn failing_after(bytes: usize) -> Self {
        Self { files: Arc::default(), left: Some(Arc::new(AtomicUsize::new(bytes))) }
    }

    /// A file's bytes.
    pub fn get(&self, path: &Path) -> Vec<u8> {
        self.files.lock().unwrap()[path].to_vec()
    }

    /// Makes a file of these bytes.
    pub fn put(&self, path: &Path, bytes: Vec<u8>) {
        self.files.lock().unwrap().insert(path.to_owned(), Arc::new(bytes));
    }
}

impl Write for MemoryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(left) = &self.memory.left {
            let take = |left: usize| left.checked_sub(bytes.len());
            left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
                .map_err(|_| io::ErrorKind::StorageFull)?;
        }
        let mut files = self.memory.files.lock().unwrap();
        Arc::make_mut(files.get_mut(&self.path).unwrap()).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteFile for MemoryFile {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ReadFile for MemoryBytes {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.0.get(offset as usize..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// Nobody else is there.
    fn is_secret(&self) -> io::Result<bool> {
        Ok(true)
    }
}

impl Files for Memory {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.put(path, Vec::new());
        Ok(Box::new(MemoryFile { memory: self.clone(), path: path.to_owned() }))
    }

    fn create_secret(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.create(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        let files = self.files.lock().unwrap();
        Ok(Arc::new(MemoryBytes(files.get(path).ok_or(io::ErrorKind::NotFound)?.clone())))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.files.lock().unwrap();
        let moved: Vec<_> = files.keys().filter(|path| path.starts_with(from)).cloned().collect();
        for path in moved {
            let bytes = files.remove(&path).unwrap();
            let rest = path.strip_prefix(from).unwrap();
            let to = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            files.insert(to, bytes);
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.remove_dir_all(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.files.lock().unwrap().retain(|file, _| !file.starts_with(path));
        Ok(())
    }

    fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let files = self.files.lock().unwrap();
        let below = files.keys().filter_map(|file| file.strip_prefix(path).ok());
        let mut names: Vec<_> =
            below.filter_map(|rest| rest.iter().next()).map(PathBuf::from).collect();
        names.dedup();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.files.lock().unwrap().keys().any(|file| file.starts_with(path)))
    }
}
