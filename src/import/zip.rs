//! Zip archives as torch writes them: stored entries, zip64, sizes from the central directory.
//!
//! `torch` opens an archive and reads its entries by range. The whole layout is checked before any
//! entry is used: the directory ends where its end records begin, every local header agrees with the
//! directory, and no two entries share a byte, so that the data of an archive is never more than its
//! length (a zip bomb needs compression or overlap; both are refused).
//!
//! Trust: none. Memory is bounded by [`DIRECTORY_BYTES_MAX`] and [`ENTRIES_MAX`]; CRCs are checked
//! as entries are read ([`EntryReader`]) and for those nobody read by [`Archive::verify_rest`].

use std::{io, sync::Arc};

use super::source::Source;

/// Largest central directory in bytes: 64 MiB.
pub const DIRECTORY_BYTES_MAX: u64 = 64 << 20;

/// Most entries of an archive.
pub const ENTRIES_MAX: u64 = 1 << 20;

/// Most bytes that a reader hands out at once: 1 MiB.
pub const CHUNK_BYTES: usize = 1 << 20;

const END_BYTES: u64 = 22;
const END64_BYTES: u64 = 56;
const LOCATOR_BYTES: u64 = 20;
const LOCAL_BYTES: u64 = 30;
const CENTRAL_BYTES: usize = 46;
const COMMENT_BYTES_MAX: u64 = 0xffff;

const LOCAL_MAGIC: u32 = 0x0403_4b50;
const CENTRAL_MAGIC: u32 = 0x0201_4b50;
const END_MAGIC: u32 = 0x0605_4b50;
const END64_MAGIC: u32 = 0x0606_4b50;
const LOCATOR_MAGIC: u32 = 0x0706_4b50;

/// In a 16 or 32-bit field: the value stands in the zip64 record.
const IN_ZIP64_16: u16 = u16::MAX;
const IN_ZIP64: u32 = u32::MAX;

/// Flag bit 3: CRC and sizes follow the data, and are zero in the local header.
const FLAG_DESCRIPTOR: u16 = 1 << 3;
/// Bits 1 and 2 say how hard a compressor tried, 11 that names are UTF-8.
const FLAGS_TAKEN: u16 = FLAG_DESCRIPTOR | 1 << 1 | 1 << 2 | 1 << 11;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ZipError {
    #[error("reading the archive: {0}")]
    Io(#[from] io::Error),
    #[error(
        "the file of {len} bytes has no end of a zip archive: it ends early or is another thing"
    )]
    NoEnd { len: u64 },
    #[error("{what} ends at byte {end} of a file of {len}")]
    Truncated { what: &'static str, end: u64, len: u64 },
    #[error("entry {name:?} has CRC-32 {found:08x}; the archive states {stated:08x}")]
    Crc { name: String, stated: u32, found: u32 },
    #[error("{what} at byte {offset} starts with {found:08x}, not {expected:08x}")]
    Magic { what: &'static str, offset: u64, expected: u32, found: u32 },
    #[error("the archive states {found} as {what}, where it is {expected}")]
    Field { what: &'static str, expected: u64, found: u64 },
    #[error("the central directory has {bytes} bytes; at most {DIRECTORY_BYTES_MAX} are read")]
    DirectoryBytes { bytes: u64 },
    #[error("the archive has {entries} entries; at most {ENTRIES_MAX} are read")]
    Entries { entries: u64 },
    #[error("the name of entry {index} is not UTF-8")]
    Name { index: u64 },
    #[error("entry {name:?} is compressed by method {method}; only stored entries are read")]
    Compressed { name: String, method: u16 },
    #[error("entry {name:?} has the flags {flags:04x}; encryption and patches are not read")]
    Flags { name: String, flags: u16 },
    #[error("entry {name:?} has no zip64 field for a value that needs one")]
    NoZip64 { name: String },
    #[error("entry {name:?} stands twice in the directory")]
    Twice { name: String },
    #[error("entry {name:?} has another {what} in its local header")]
    Local { name: String, what: &'static str },
    #[error("entry {name:?} ends at byte {end}, but {next:?} starts at {start}")]
    Overlap { name: String, end: u64, next: String, start: u64 },
}

/// One entry, its place checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    name: Box<str>,
    header: u64,
    start: u64,
    len: u64,
    crc: u32,
}

impl Entry {
    /// The entry's name, its folders included.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its data starts in the archive.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// The CRC-32 that the archive states.
    pub fn crc(&self) -> u32 {
        self.crc
    }
}

/// An archive whose layout was checked.
pub struct Archive {
    source: Arc<dyn Source>,
    entries: Vec<Entry>,
    /// Indices of entries, by name.
    by_name: Vec<u32>,
}

/// Entries whose CRC was found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified(Vec<bool>);

impl Verified {
    /// None of an archive's `entries` so far.
    pub fn none(entries: usize) -> Self {
        Self(vec![false; entries])
    }

    /// Adds one entry, by index.
    pub fn insert(&mut self, entry: usize) {
        self.0[entry] = true;
    }

    /// Whether an entry is among them.
    pub fn contains(&self, entry: usize) -> bool {
        self.0[entry]
    }

    /// Adds what another reader of the same archive verified.
    pub fn merge(&mut self, other: &Self) {
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            *own |= other;
        }
    }
}

impl Archive {
    /// Reads the directory and every local header, and checks the layout. Reads no data.
    ///
    /// # Errors
    ///
    /// [`ZipError`]; see `schema/foreign.md` for what is refused.
    pub fn open(source: Arc<dyn Source>) -> Result<Self, ZipError> {
        let end = find_end(source.as_ref())?;
        let mut directory = vec![0; end.directory_bytes as usize]; // At most DIRECTORY_BYTES_MAX.
        source.read_exact_at(&mut directory, end.directory_start)?;
        let mut entries = read_directory(&directory, &end)?;
        drop(directory);
        let by_name = sort_names(&entries)?;
        for entry in &mut entries {
            read_local(source.as_ref(), entry, end.directory_start)?;
        }
        check_overlaps(&entries)?;
        Ok(Self { source, entries, by_name })
    }

    /// The entries, in directory order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The index of the entry called `name`.
    pub fn find(&self, name: &str) -> Option<usize> {
        let at = |i: &u32| self.entries[*i as usize].name();
        let place = self.by_name.binary_search_by(|i| at(i).cmp(name)).ok()?;
        Some(self.by_name[place] as usize)
    }

    /// A reader of a whole entry that checks its CRC.
    pub fn reader(&self, entry: usize) -> EntryReader<'_> {
        let entry = &self.entries[entry];
        let (source, crc) = (self.source.as_ref(), crc32fast::Hasher::new());
        EntryReader { source, entry, read: 0, crc, done: false }
    }

    /// All bytes of an entry, its CRC checked. The caller has checked that the length is one it takes.
    ///
    /// # Errors
    ///
    /// [`ZipError::Crc`] or [`ZipError::Io`].
    pub fn read(&self, entry: usize) -> Result<Vec<u8>, ZipError> {
        let mut bytes = Vec::new();
        let mut reader = self.reader(entry);
        let mut buffer = Vec::new();
        while let Some(chunk) = reader.next_chunk(&mut buffer)? {
            bytes.extend_from_slice(chunk);
        }
        Ok(bytes)
    }

    /// Fills `buffer` from `offset` of an entry on, without a check of the CRC.
    ///
    /// # Errors
    ///
    /// [`ZipError::Io`], also for a range that ends past the entry.
    pub fn read_at(&self, entry: usize, buffer: &mut [u8], offset: u64) -> Result<(), ZipError> {
        let entry = &self.entries[entry];
        match offset.checked_add(buffer.len() as u64) {
            Some(end) if end <= entry.len => {
                Ok(self.source.read_exact_at(buffer, entry.start + offset)?)
            }
            _ => Err(ZipError::Io(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Reads every entry that is not in `verified` and adds it: afterwards every CRC was right.
    ///
    /// # Errors
    ///
    /// [`ZipError::Crc`] names the first that was not, in directory order.
    pub fn verify_rest(&self, verified: &mut Verified) -> Result<(), ZipError> {
        let mut buffer = Vec::new();
        for index in 0..self.entries.len() {
            if !verified.contains(index) {
                let mut reader = self.reader(index);
                while reader.next_chunk(&mut buffer)?.is_some() {}
                verified.insert(index);
            }
        }
        Ok(())
    }
}

/// Hands out an entry's bytes in chunks of at most [`CHUNK_BYTES`].
///
/// The CRC is compared before the last chunk is handed out: whoever got all bytes got the right ones.
pub struct EntryReader<'a> {
    source: &'a dyn Source,
    entry: &'a Entry,
    read: u64,
    crc: crc32fast::Hasher,
    done: bool,
}

impl EntryReader<'_> {
    /// Whether all bytes were read and the CRC was right.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The next bytes, kept in `buffer`; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`ZipError::Crc`] instead of the last chunk, or [`ZipError::Io`].
    pub fn next_chunk<'b>(
        &mut self,
        buffer: &'b mut Vec<u8>,
    ) -> Result<Option<&'b [u8]>, ZipError> {
        if self.done {
            return Ok(None);
        }
        let left = self.entry.len - self.read;
        buffer.resize(left.min(CHUNK_BYTES as u64) as usize, 0);
        self.source.read_exact_at(buffer, self.entry.start + self.read)?;
        self.crc.update(buffer);
        self.read += buffer.len() as u64;
        if self.read == self.entry.len {
            let found = self.crc.clone().finalize();
            if found != self.entry.crc {
                let name = self.entry.name.to_string();
                return Err(ZipError::Crc { name, stated: self.entry.crc, found });
            }
            self.done = true;
        }
        Ok((!buffer.is_empty()).then_some(buffer))
    }
}

/// What the end records say, checked against each other and the file's length.
struct End {
    directory_start: u64,
    directory_bytes: u64,
    entries: u64,
}

fn find_end(source: &dyn Source) -> Result<End, ZipError> {
    let len = source.len();
    let tail_bytes = len.min(END_BYTES + COMMENT_BYTES_MAX);
    let mut tail = vec![0; tail_bytes as usize];
    source.read_exact_at(&mut tail, len - tail_bytes)?;
    let magic = END_MAGIC.to_le_bytes();
    let last = tail.len().checked_sub(END_BYTES as usize).ok_or(ZipError::NoEnd { len })?;
    // The last signature counts and has to fit: two readers must not find two ends.
    let at = (0..=last).rev().find(|&i| tail[i..i + 4] == magic).ok_or(ZipError::NoEnd { len })?;
    let record = &tail[at..];
    let comment = record.len() as u64 - END_BYTES;
    same("comment length", comment, u64::from(u16_at(record, 20)))?;
    same("disk number", 0, u64::from(u16_at(record, 4)))?;
    same("directory disk", 0, u64::from(u16_at(record, 6)))?;
    same("entries of this disk", u64::from(u16_at(record, 10)), u64::from(u16_at(record, 8)))?;
    let (count, bytes, start) = (u16_at(record, 10), u32_at(record, 12), u32_at(record, 16));
    let end_at = len - tail_bytes + at as u64;
    let (end, directory_end) = match find_end64(source, end_at)? {
        Some((end, at)) => {
            let narrow = |what, wide, found: u64, saturated: u64| {
                if found == saturated { Ok(()) } else { same(what, wide, found) }
            };
            narrow("entries", end.entries, count.into(), IN_ZIP64_16.into())?;
            narrow("directory size", end.directory_bytes, bytes.into(), IN_ZIP64.into())?;
            narrow("directory start", end.directory_start, start.into(), IN_ZIP64.into())?;
            (end, at)
        }
        None => {
            let (entries, directory_bytes) = (u64::from(count), u64::from(bytes));
            (End { directory_start: start.into(), directory_bytes, entries }, end_at)
        }
    };
    if end.directory_bytes > DIRECTORY_BYTES_MAX {
        return Err(ZipError::DirectoryBytes { bytes: end.directory_bytes });
    }
    if end.entries > ENTRIES_MAX {
        return Err(ZipError::Entries { entries: end.entries });
    }
    // Nothing before the archive and nothing between the directory and its end.
    let stated = end.directory_start.saturating_add(end.directory_bytes);
    same("end of the directory", directory_end, stated)?;
    Ok(end)
}

/// The zip64 end record and where it stands, if a locator announces one.
fn find_end64(source: &dyn Source, end_at: u64) -> Result<Option<(End, u64)>, ZipError> {
    let Some(locator_at) = end_at.checked_sub(LOCATOR_BYTES) else { return Ok(None) };
    let mut locator = [0; LOCATOR_BYTES as usize];
    source.read_exact_at(&mut locator, locator_at)?;
    if u32_at(&locator, 0) != LOCATOR_MAGIC {
        return Ok(None);
    }
    let Some(expected) = locator_at.checked_sub(END64_BYTES) else {
        let (what, len) = ("the zip64 end", source.len());
        return Err(ZipError::Truncated { what, end: locator_at, len });
    };
    same("disk of the zip64 end", 0, u32_at(&locator, 4).into())?;
    same("place of the zip64 end", expected, u64_at(&locator, 8))?;
    let mut record = [0; END64_BYTES as usize];
    source.read_exact_at(&mut record, expected)?;
    magic("the zip64 end", &record, expected, END64_MAGIC)?;
    same("size of the zip64 end", END64_BYTES - 12, u64_at(&record, 4))?;
    same("zip64 disk number", 0, u32_at(&record, 16).into())?;
    same("zip64 directory disk", 0, u32_at(&record, 20).into())?;
    same("zip64 entries of this disk", u64_at(&record, 32), u64_at(&record, 24))?;
    let (entries, directory_bytes) = (u64_at(&record, 32), u64_at(&record, 40));
    let end = End { directory_start: u64_at(&record, 48), directory_bytes, entries };
    Ok(Some((end, expected)))
}

fn read_directory(directory: &[u8], end: &End) -> Result<Vec<Entry>, ZipError> {
    // A count is believed only as far as its entries fit, so that it cannot ask for memory.
    let fit = directory.len() as u64 / CENTRAL_BYTES as u64;
    if end.entries > fit {
        return Err(ZipError::Field { what: "entries", expected: fit, found: end.entries });
    }
    let mut entries = Vec::with_capacity(end.entries as usize);
    let mut at = 0_usize;
    for index in 0..end.entries {
        let offset = end.directory_start + at as u64;
        let truncated = || ZipError::Truncated {
            what: "a directory entry",
            end: end.directory_start + directory.len() as u64,
            len: end.directory_start + directory.len() as u64,
        };
        let fixed = directory.get(at..at + CENTRAL_BYTES).ok_or_else(truncated)?;
        magic("a directory entry", fixed, offset, CENTRAL_MAGIC)?;
        let lengths = [28, 30, 32].map(|i| usize::from(u16_at(fixed, i)));
        let rest = &directory[at + CENTRAL_BYTES..];
        let rest = rest.get(..lengths.iter().sum()).ok_or_else(truncated)?;
        let (name, rest_of) = rest.split_at(lengths[0]);
        let name = std::str::from_utf8(name).map_err(|_| ZipError::Name { index })?;
        entries.push(read_central(fixed, name, &rest_of[..lengths[1]])?);
        at += CENTRAL_BYTES + rest.len();
    }
    same("bytes of the directory's entries", directory.len() as u64, at as u64)?;
    Ok(entries)
}

fn read_central(fixed: &[u8], name: &str, extra: &[u8]) -> Result<Entry, ZipError> {
    let owned = || name.to_owned();
    let flags = u16_at(fixed, 8);
    if flags & !FLAGS_TAKEN != 0 {
        return Err(ZipError::Flags { name: owned(), flags });
    }
    let method = u16_at(fixed, 10);
    if method != 0 {
        return Err(ZipError::Compressed { name: owned(), method });
    }
    let mut wide = zip64_values(extra);
    let mut field = |narrow: u32| match narrow {
        IN_ZIP64 => wide.next().ok_or_else(|| ZipError::NoZip64 { name: owned() }),
        narrow => Ok(u64::from(narrow)),
    };
    let plain = field(u32_at(fixed, 24))?;
    let packed = field(u32_at(fixed, 20))?;
    let header = field(u32_at(fixed, 42))?;
    same("packed size of a stored entry", plain, packed)?;
    let disk = u16_at(fixed, 34);
    if disk != IN_ZIP64_16 {
        same("disk of an entry", 0, disk.into())?;
    }
    let crc = u32_at(fixed, 16);
    Ok(Entry { name: name.into(), header, start: 0, len: plain, crc })
}

/// The 64-bit values of the zip64 extra field, in order; none if there is no such field.
fn zip64_values(mut extra: &[u8]) -> impl Iterator<Item = u64> + use<'_> {
    let mut body: &[u8] = &[];
    while extra.len() >= 4 {
        let (tag, bytes) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let Some(field) = extra.get(4..4 + bytes) else { break };
        if tag == 1 {
            body = field;
            break;
        }
        extra = &extra[4 + bytes..];
    }
    body.chunks_exact(8).map(|value| u64_at(value, 0))
}

/// Indices of the entries in the order of their names, each name once.
fn sort_names(entries: &[Entry]) -> Result<Vec<u32>, ZipError> {
    let name = |i: u32| entries[i as usize].name();
    let mut order: Vec<u32> = (0..entries.len() as u32).collect(); // At most ENTRIES_MAX.
    order.sort_unstable_by(|&a, &b| name(a).cmp(name(b)));
    match order.windows(2).find(|pair| name(pair[0]) == name(pair[1])) {
        Some(pair) => Err(ZipError::Twice { name: name(pair[0]).to_owned() }),
        None => Ok(order),
    }
}

/// Checks an entry's local header and finds where its data starts.
fn read_local(source: &dyn Source, entry: &mut Entry, limit: u64) -> Result<(), ZipError> {
    let past = |end| ZipError::Truncated { what: "an entry", end, len: limit };
    let reach = |from: u64, bytes: u64| {
        from.checked_add(bytes).filter(|&end| end <= limit).ok_or_else(|| past(from))
    };
    let fixed_end = reach(entry.header, LOCAL_BYTES)?;
    let name_end = reach(fixed_end, entry.name.len() as u64)?;
    // One read for both, though the header may state another length of the name.
    let mut header = vec![0; (name_end - entry.header) as usize];
    source.read_exact_at(&mut header, entry.header)?;
    let (fixed, name) = header.split_at(LOCAL_BYTES as usize);
    magic("a local header", fixed, entry.header, LOCAL_MAGIC)?;
    let differs = |what| Err(ZipError::Local { name: entry.name.to_string(), what });
    if usize::from(u16_at(fixed, 26)) != entry.name.len() || name != entry.name.as_bytes() {
        return differs("name");
    }
    let (flags, method) = (u16_at(fixed, 6), u16_at(fixed, 8));
    if flags & !FLAGS_TAKEN != 0 {
        return differs("set of flags");
    }
    if method != 0 {
        return differs("method");
    }
    if flags & FLAG_DESCRIPTOR == 0 {
        let sizes = [u32_at(fixed, 18), u32_at(fixed, 22)];
        if u32_at(fixed, 14) != entry.crc {
            return differs("CRC-32");
        }
        if sizes.iter().any(|&size| size != IN_ZIP64 && u64::from(size) != entry.len) {
            return differs("size");
        }
    }
    entry.start = reach(name_end, u16_at(fixed, 28).into())?;
    reach(entry.start, entry.len)?;
    Ok(())
}

/// No two entries share a byte. (That they end before the directory was checked with each.)
fn check_overlaps(entries: &[Entry]) -> Result<(), ZipError> {
    let mut order: Vec<&Entry> = entries.iter().collect();
    order.sort_unstable_by_key(|entry| entry.header);
    for pair in order.windows(2) {
        let (end, start) = (pair[0].start + pair[0].len, pair[1].header);
        if end > start {
            let (name, next) = (pair[0].name.to_string(), pair[1].name.to_string());
            return Err(ZipError::Overlap { name, end, next, start });
        }
    }
    Ok(())
}

fn same(what: &'static str, expected: u64, found: u64) -> Result<(), ZipError> {
    if expected == found { Ok(()) } else { Err(ZipError::Field { what, expected, found }) }
}

fn magic(what: &'static str, at: &[u8], offset: u64, expected: u32) -> Result<(), ZipError> {
    match u32_at(at, 0) {
        found if found == expected => Ok(()),
        found => Err(ZipError::Magic { what, offset, expected, found }),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
