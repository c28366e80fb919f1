//! Deterministic archives: tar with one spelling, so that two readers cannot take one file for two.
//!
//! Members are regular files in a fixed order with mode 0644 and no time, owner or group. The reader
//! refuses whatever the writer would not have written. See `schema/bundle.md`.

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

/// Bytes of a tar block.
const BLOCK: usize = 512;

/// A member is shorter than this: what eleven octal digits hold.
const MEMBER_BYTES_END: u64 = 1 << 33;

/// An archive that cannot be written or is not one of ours.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ArchiveError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("a member of {bytes} bytes is too long for an archive")]
    Long { bytes: u64 },
    #[error("the archive ends early")]
    Cut,
    #[error("the header after {after:?} is not spelled as our archives' are")]
    Header { after: String },
    #[error("the padding of {name:?} is not zero")]
    Padding { name: String },
    #[error("the archive goes on after its end")]
    Trailing,
}

/// The one header of a member.
fn header(name: &str, bytes: u64) -> Result<[u8; BLOCK], ArchiveError> {
    if bytes >= MEMBER_BYTES_END {
        return Err(ArchiveError::Long { bytes });
    }
    let mut header = Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    Ok(*header.as_bytes())
}

fn padding(bytes: u64) -> usize {
    (BLOCK - (bytes % BLOCK as u64) as usize) % BLOCK
}

/// Writes an archive, member after member.
pub struct ArchiveWriter<W> {
    to: W,
}

impl<W: Write> ArchiveWriter<W> {
    /// Into `to`.
    pub fn new(to: W) -> Self {
        Self { to }
    }

    /// A member in memory.
    ///
    /// # Errors
    ///
    /// [`ArchiveError`].
    pub fn member(&mut self, name: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.stream(name, bytes.len() as u64, |to| Ok(to.write_all(bytes)?))
    }

    /// A member of `bytes` bytes that `write` gives, all of them.
    ///
    /// # Errors
    ///
    /// [`ArchiveError`], or what `write` says.
    pub fn stream<E: From<ArchiveError>>(
        &mut self,
        name: &str,
        bytes: u64,
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<(), E> {
        let io = |error: io::Error| E::from(error.into());
        self.to.write_all(&header(name, bytes)?).map_err(io)?;
        write(&mut self.to)?;
        self.to.write_all(&[0; BLOCK][..padding(bytes)]).map_err(io)
    }

    /// Ends the archive.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Io`].
    pub fn finish(mut self) -> Result<W, ArchiveError> {
        self.to.write_all(&[0; 2 * BLOCK])?;
        self.to.flush()?;
        Ok(self.to)
    }
}

/// Reads an archive, member after member.
pub struct ArchiveReader<R> {
    from: R,
    name: String,
}

impl<R: Read> ArchiveReader<R> {
    /// From `from`.
    pub fn new(from: R) -> Self {
        Self { from, name: String::new() }
    }

    /// Name and length of the next member, or nothing at the archive's end. Its bytes are to be
    /// taken before the next call.
    ///
    /// # Errors
    ///
    /// [`ArchiveError`] if the writer would not have written it so.
    pub fn next_member(&mut self) -> Result<Option<(String, u64)>, ArchiveError> {
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        if block == [0; BLOCK] {
            self.fill(&mut block)?;
            let more = self.from.read(&mut [0])?;
            return if block == [0; BLOCK] && more == 0 {
                Ok(None)
            } else {
                Err(ArchiveError::Trailing)
            };
        }
        let wrong = || ArchiveError::Header { after: self.name.clone() };
        let read = Header::from_byte_slice(&block);
        let name = std::str::from_utf8(&read.path_bytes()).map_err(|_| wrong())?.to_owned();
        let plain = |b: u8| b.is_ascii_lowercase() || b == b'-' || b == b'.';
        let bytes = read.size().map_err(|_| wrong())?;
        if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
            return Err(wrong());
        }
        if header(&name, bytes).map_err(|_| wrong())? != block {
            return Err(wrong());
        }
        self.name.clone_from(&name);
        Ok(Some((name, bytes)))
    }

    /// Hands the bytes of the member that [`Self::next_member`] named to `take`, in runs of at most 1 MiB.
    ///
    /// # Errors
    ///
    /// [`ArchiveError`].
    pub fn body(&mut self, bytes: u64, mut take: impl FnMut(&[u8])) -> Result<(), ArchiveError> {
        let mut left = bytes;
        let mut buffer = vec![0; left.min(1 << 20) as usize];
        while left > 0 {
            let now = left.min(1 << 20) as usize;
            self.fill(&mut buffer[..now])?;
            take(&buffer[..now]);
            left -= now as u64;
        }
        let mut zeros = [0; BLOCK];
        let zeros = &mut zeros[..padding(bytes)];
        self.fill(zeros)?;
        if zeros.iter().any(|byte| *byte != 0) {
            return Err(ArchiveError::Padding { name: self.name.clone() });
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        self.from.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Cut,
            _ => error.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, ArchiveError> {
        let mut reader = ArchiveReader::new(bytes);
        let mut members = Vec::new();
        while let Some((name, length)) = reader.next_member()? {
            let mut body = Vec::new();
            reader.body(length, |run| body.extend_from_slice(run))?;
            members.push((name, body));
        }
        Ok(members)
    }

    fn archive() -> Vec<u8> {
        let mut writer = ArchiveWriter::new(Vec::new());
        writer.member("bundle.json", b"{}").unwrap();
        writer.member("piece", &[7; 513]).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn an_archive_reads_back_and_any_tar_reads_it() {
        let bytes = archive();
        assert_eq!(bytes.len(), 512 * (2 + 3 + 2));
        let members = read(&bytes).unwrap();
        assert_eq!(
            members,
            [("bundle.json".into(), b"{}".to_vec()), ("piece".into(), vec![7; 513])]
        );
        let mut theirs = tar::Archive::new(&bytes[..]);
        let names: Vec<_> = theirs
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["bundle.json", "piece"]);
    }

    #[test]
    fn every_byte_of_headers_padding_and_end_counts() {
        let bytes = archive();
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            let content = (512..514).contains(&at) || (1536..2049).contains(&at);
            let taken = read(&other).is_ok();
            // A name or a length may change only together with the checksum.
            assert_eq!(taken, content, "byte {at}");
        }
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(read(&[&bytes[..], &[0]].concat()).is_err());
    }
}
