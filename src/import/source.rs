//! Bytes that are read by range: a file, a window of one, or memory.
//!
//! Every reader of this layer takes a [`Source`], so that a file of hundreds of gigabytes is never
//! held in memory and an archive inside a larger file is read as if it stood alone.
//!
//! Trust: none in the content. A source's length is taken once, when it is opened; a file that
//! shrinks under a reader gives an I/O error.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, OnceLock},
};

/// Bytes that can be read by range.
pub trait Source: Send + Sync {
    /// Number of bytes.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::UnexpectedEof`] if they do not all exist, or what the system says.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A file on disk, opened when it is first read.
pub struct FileSource {
    path: std::path::PathBuf,
    len: u64,
    file: OnceLock<File>,
}

impl FileSource {
    /// The file at `path`, which has to be a regular one: opening a pipe could wait for ever.
    ///
    /// # Errors
    ///
    /// What the system says, or [`io::ErrorKind::InvalidInput`] for what is not a file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        Ok(Self { path: path.to_owned(), len: metadata.len(), file: OnceLock::new() })
    }
}

impl Source for FileSource {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        if self.file.get().is_none() {
            // Two threads may both open it; one handle is kept.
            let _ = self.file.set(File::open(&self.path)?);
        }
        match self.file.get() {
            Some(file) => file.read_exact_at(buffer, offset),
            None => unreachable!("set above"),
        }
    }
}

/// A run of bytes within another source.
pub struct Window {
    source: Arc<dyn Source>,
    start: u64,
    len: u64,
}

impl Window {
    /// `len` bytes of `source` from `start` on; `None` if they do not all exist.
    pub fn new(source: Arc<dyn Source>, start: u64, len: u64) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= source.len()).then_some(Self { source, start, len })
    }
}

impl Source for Window {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(buffer, offset, self.len)?;
        self.source.read_exact_at(buffer, self.start + offset)
    }
}

impl Source for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(buffer, offset, Source::len(self))?;
        let start = offset as usize; // At most the length of a Vec.
        buffer.copy_from_slice(&self[start..start + buffer.len()]);
        Ok(())
    }
}

fn check_range(buffer: &[u8], offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(buffer.len() as u64) {
        Some(end) if end <= len => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the range ends past the source")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_ends_where_it_says() {
        let whole: Arc<dyn Source> = Arc::new(b"0123456789".to_vec());
        assert!(Window::new(whole.clone(), 8, 3).is_none());
        assert!(Window::new(whole.clone(), u64::MAX, 2).is_none());
        let window = Window::new(whole, 2, 4).unwrap();
        let mut buffer = [0; 3];
        window.read_exact_at(&mut buffer, 1).unwrap();
        assert_eq!(&buffer, b"345");
        assert!(window.read_exact_at(&mut buffer, 2).is_err());
        assert!(window.read_exact_at(&mut buffer, u64::MAX).is_err());
    }

    #[test]
    fn a_folder_is_not_a_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(FileSource::open(folder.path()).is_err());
    }
}
