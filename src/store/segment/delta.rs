//! One miner's delta: a file per row layout, a row group per tensor, a row per block; and its books.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parquet::{
    basic::Repetition,
    data_type::{ByteArray, ByteArrayType},
    schema::types::SchemaDescPtr,
};

use super::{
    LogicalBytes, Section,
    column::{self, FixedColumn},
    draft::{Chunk, Draft},
    error::SegmentError,
    footer::SegmentFile,
    place, schema,
};
use crate::{
    store::files::{Files, read_whole},
    types::{digest::Digest, grid::BLOCK_ELEMENTS},
};

/// Largest page of a delta. Pages mean nothing here, a piece may span two.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// Largest file of books that is read: 250,000 tensors at 256 bins.
const BOOKS_BYTES_MAX: u64 = 256 << 20;

const BOOKS: &str = "books.parquet";
const TENSORS: &str = "tensors";
const BINS: &str = "bins";

/// How the rows of a tensor are laid out: entries of a block, and bits of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowLayout {
    /// Entries kept of each block: even.
    pub k: u64,
    /// Bits of a code: 2, 4 or 8.
    pub bits: u64,
}

impl RowLayout {
    /// Bytes of a block's positions, 12 bits each.
    pub const fn index_bytes(self) -> u64 {
        self.k / 2 * 3
    }

    /// Bytes of a block's codes.
    pub const fn code_bytes(self) -> u64 {
        (self.k * self.bits).div_ceil(8)
    }

    fn file_name(self) -> String {
        format!("k{}-{}bit.parquet", self.k, self.bits)
    }

    /// The layout that a file name such as `k64-2bit.parquet` stands for.
    fn of_file_name(name: &str) -> Option<Self> {
        let (k, bits) = name.strip_prefix('k')?.strip_suffix("bit.parquet")?.split_once('-')?;
        let layout = Self { k: k.parse().ok()?, bits: bits.parse().ok()? };
        (layout.is_valid() && layout.file_name() == name).then_some(layout)
    }

    fn is_valid(self) -> bool {
        BLOCK_ELEMENTS.contains(&self.k)
            && self.k.is_multiple_of(2)
            && matches!(self.bits, 2 | 4 | 8)
    }

    fn schema(self) -> SchemaDescPtr {
        schema::of(vec![
            schema::fixed("index", self.index_bytes() as usize),
            schema::fixed("code", self.code_bytes() as usize),
        ])
    }
}

/// Bits of a code that `bins` levels need.
fn bits_of(bins: usize) -> Result<u64, SegmentError> {
    match bins {
        4 => Ok(2),
        16 => Ok(4),
        256 => Ok(8),
        found => Err(SegmentError::Bins { found }),
    }
}

fn book_bytes(bins: usize) -> usize {
    4 * (bins + 1)
}

fn books_schema(bins: usize) -> SchemaDescPtr {
    schema::of(vec![
        schema::text("name", Repetition::REQUIRED),
        schema::fixed("book", book_bytes(bins)),
    ])
}

/// Writes one miner's delta into a directory.
///
/// Memory: two pages, and the books.
pub struct DeltaWriter<'f> {
    files: &'f dyn Files,
    dir: PathBuf,
    bins: usize,
    bits: u64,
    layouts: BTreeMap<RowLayout, Layout>,
    /// Tensors that were started.
    seen: BTreeSet<String>,
    books: BTreeMap<String, Vec<u8>>,
}

/// The file of one row layout, and the tensors in it.
struct Layout {
    draft: Draft,
    tensors: Vec<String>,
}

impl<'f> DeltaWriter<'f> {
    /// Creates the directory `dir`, a temporary place.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Bins`] if it is not 4, 16 or 256; [`SegmentError::Io`].
    pub fn create(files: &'f dyn Files, dir: &Path, bins: usize) -> Result<Self, SegmentError> {
        let bits = bits_of(bins)?;
        files.create_dir_all(dir).map_err(SegmentError::io(dir))?;
        let dir = dir.to_owned();
        let (layouts, seen, books) = Default::default();
        Ok(Self { files, dir, bins, bits, layouts, seen, books })
    }

    /// Starts the next tensor: `blocks` blocks of `k` entries. Its writer must be finished before
    /// the next one starts; a delta with one that was dropped is lost.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Layout`], [`SegmentError::Twice`], [`SegmentError::Io`].
    pub fn tensor(
        &mut self,
        name: &str,
        k: u64,
        blocks: u64,
    ) -> Result<DeltaTensor<'_>, SegmentError> {
        let row = RowLayout { k, bits: self.bits };
        let small = blocks.checked_mul(row.index_bytes().max(1)).is_some_and(|b| b < 1 << 53);
        if !row.is_valid() || blocks == 0 || !small {
            return Err(SegmentError::Layout { tensor: name.to_owned(), k, blocks });
        }
        if !self.seen.insert(name.to_owned()) {
            return Err(SegmentError::Twice { path: self.dir.clone(), tensor: name.to_owned() });
        }
        let layout = match self.layouts.entry(row) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let path = self.dir.join(row.file_name());
                let draft = Draft::create(self.files, &path, row.schema())?;
                entry.insert(Layout { draft, tensors: Vec::new() })
            }
        };
        Ok(DeltaTensor {
            layout,
            name: name.to_owned(),
            index: Column::new(row.index_bytes(), blocks),
            code: Column::new(row.code_bytes(), blocks),
        })
    }

    /// Takes the book of a tensor: lookup values, then the shift.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Length`] if it has other than `bins + 1` values, [`SegmentError::Twice`].
    pub fn book(&mut self, name: &str, bytes: &[u8]) -> Result<(), SegmentError> {
        let path = || self.dir.join(BOOKS);
        let (expected, found) = (book_bytes(self.bins), bytes.len());
        if found != expected {
            let (expected, found) = (expected as u64, found as u64);
            return Err(SegmentError::Length { path: path(), expected, found });
        }
        if self.books.contains_key(name) {
            return Err(SegmentError::Twice { path: path(), tensor: name.to_owned() });
        }
        self.books.insert(name.to_owned(), bytes.to_owned());
        Ok(())
    }

    /// Writes books and footers and syncs every file and the directory.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Missing`] for a tensor that was started only; [`SegmentError::Io`], fatal.
    pub fn finish(mut self) -> Result<(), SegmentError> {
        for name in self.layouts.values().flat_map(|layout| &layout.tensors) {
            self.seen.remove(name);
        }
        if let Some(tensor) = self.seen.pop_first() {
            return Err(SegmentError::Missing { path: self.dir, tensor });
        }
        for Layout { mut draft, tensors } in std::mem::take(&mut self.layouts).into_values() {
            draft.key(TENSORS, serde_json::Value::from(tensors).to_string());
            draft.finish()?;
        }
        self.write_books()?;
        self.files.sync_dir(&self.dir).map_err(SegmentError::io(&self.dir))
    }

    fn write_books(&self) -> Result<(), SegmentError> {
        let path = self.dir.join(BOOKS);
        let mut draft = Draft::create(self.files, &path, books_schema(self.bins))?;
        draft.key(BINS, self.bins.to_string());
        if !self.books.is_empty() {
            let names: Vec<_> = self.books.keys().map(|n| ByteArray::from(n.as_str())).collect();
            draft.column::<ByteArrayType>(&names, None, None)?;
            let mut chunk = Chunk::new(book_bytes(self.bins), PAGE_BYTES_MAX);
            self.books.values().try_for_each(|book| chunk.write(&mut draft, book))?;
            chunk.finish(&mut draft)?;
        }
        draft.finish()
    }
}

/// Writes the blocks of one tensor: all positions, then all codes, each in any cut.
pub struct DeltaTensor<'w> {
    layout: &'w mut Layout,
    name: String,
    index: Column,
    code: Column,
}

/// A column that is being filled, and how many bytes it takes.
struct Column {
    chunk: Option<Chunk>,
    expected: u64,
    taken: u64,
}

impl Column {
    fn new(row_bytes: u64, blocks: u64) -> Self {
        let chunk = Some(Chunk::new(row_bytes as usize, PAGE_BYTES_MAX));
        Self { chunk, expected: row_bytes * blocks, taken: 0 }
    }

    fn write(&mut self, draft: &mut Draft, bytes: &[u8]) -> Result<(), SegmentError> {
        self.taken += bytes.len() as u64;
        match &mut self.chunk {
            Some(chunk) if self.taken <= self.expected => chunk.write(draft, bytes),
            _ => Err(self.length(draft)),
        }
    }

    /// Closes the column; once.
    fn finish(&mut self, draft: &mut Draft) -> Result<(), SegmentError> {
        match self.chunk.take() {
            Some(chunk) if self.taken == self.expected => chunk.finish(draft),
            Some(_) => Err(self.length(draft)),
            None => Ok(()),
        }
    }

    fn length(&self, draft: &Draft) -> SegmentError {
        let path = draft.path().to_owned();
        SegmentError::Length { path, expected: self.expected, found: self.taken }
    }
}

impl DeltaTensor<'_> {
    /// Takes the next bytes of the packed positions.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Length`] if there are too many or codes were given already.
    pub fn write_index(&mut self, bytes: &[u8]) -> Result<(), SegmentError> {
        self.index.write(&mut self.layout.draft, bytes)
    }

    /// Takes the next bytes of the packed codes.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Length`] if there are too many or positions are missing.
    pub fn write_code(&mut self, bytes: &[u8]) -> Result<(), SegmentError> {
        self.index.finish(&mut self.layout.draft)?;
        self.code.write(&mut self.layout.draft, bytes)
    }

    /// Ends the tensor.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Length`] if positions or codes are missing.
    pub fn finish(mut self) -> Result<(), SegmentError> {
        self.index.finish(&mut self.layout.draft)?;
        self.code.finish(&mut self.layout.draft)?;
        self.layout.tensors.push(self.name);
        Ok(())
    }
}

/// Moves a finished directory to its place below `ledger`, durably; returns the place.
///
/// If the delta is there already, its files are replaced by ours.
///
/// # Errors
///
/// [`SegmentError::Io`], fatal.
pub fn commit(
    files: &dyn Files,
    ledger: &Path,
    from: &Path,
    manifest_root: Digest,
) -> Result<PathBuf, SegmentError> {
    let to = place::delta(ledger, manifest_root);
    place::commit_dir(files, ledger, from, &to).map_err(SegmentError::io(&to))?;
    Ok(to)
}

/// A stored delta.
///
/// Lengths are checked, bytes are not: see [`super::VerifiedReader`].
pub struct DeltaSegments {
    dir: PathBuf,
    layouts: Vec<(RowLayout, SegmentFile)>,
    /// Layout and row group of each tensor.
    tensors: BTreeMap<String, (usize, usize)>,
    books: Arc<FixedColumn>,
    /// Row of each tensor's book.
    book_rows: BTreeMap<String, u64>,
    book_bytes: u64,
}

impl DeltaSegments {
    /// Opens the delta in `dir`, see [`place::delta`].
    ///
    /// # Errors
    ///
    /// [`SegmentError`] names what does not fit.
    pub fn open(files: &dyn Files, dir: &Path) -> Result<Self, SegmentError> {
        let mut layouts = Vec::new();
        let mut tensors = BTreeMap::new();
        for name in files.list(dir).map_err(SegmentError::io(dir))? {
            let Some(row) = name.to_str().and_then(RowLayout::of_file_name) else { continue };
            let segment = SegmentFile::open(files, &dir.join(&name), row.schema())?;
            for (row_group, name) in tensor_names(&segment)?.into_iter().enumerate() {
                if tensors.contains_key(&name) {
                    return Err(SegmentError::Twice { path: segment.path, tensor: name });
                }
                tensors.insert(name, (layouts.len(), row_group));
            }
            layouts.push((row, segment));
        }
        let (books, book_rows, book_bytes) = open_books(files, &dir.join(BOOKS))?;
        let dir = dir.to_owned();
        Ok(Self { dir, layouts, tensors, books: Arc::new(books), book_rows, book_bytes })
    }

    /// The tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// How the rows of a tensor are laid out.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Missing`].
    pub fn layout(&self, tensor: &str) -> Result<RowLayout, SegmentError> {
        let (layout, _) = self.find(tensor)?;
        Ok(self.layouts[layout].0)
    }

    /// The packed positions of a tensor.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Missing`], or what does not fit in the file.
    pub fn index(&self, tensor: &str) -> Result<Arc<dyn LogicalBytes>, SegmentError> {
        Ok(Arc::new(self.index_column(tensor)?))
    }

    /// The packed codes of a tensor.
    ///
    /// # Errors
    ///
    /// As [`DeltaSegments::index`].
    pub fn code(&self, tensor: &str) -> Result<Arc<dyn LogicalBytes>, SegmentError> {
        Ok(Arc::new(self.code_column(tensor)?))
    }

    /// The book of a tensor: lookup values, then the shift.
    ///
    /// # Errors
    ///
    /// As [`DeltaSegments::index`].
    pub fn book(&self, tensor: &str) -> Result<Arc<dyn LogicalBytes>, SegmentError> {
        let row = self.book_rows.get(tensor).ok_or_else(|| self.missing(tensor))?;
        let (source, bytes) = (self.books.clone(), self.book_bytes);
        Ok(Arc::new(Section { source, start: row * bytes, bytes }))
    }

    /// The column that holds a tensor's packed positions.
    ///
    /// # Errors
    ///
    /// As [`DeltaSegments::index`].
    pub fn index_column(&self, tensor: &str) -> Result<FixedColumn, SegmentError> {
        self.column(tensor, 0, RowLayout::index_bytes)
    }

    /// The column that holds a tensor's packed codes.
    ///
    /// # Errors
    ///
    /// As [`DeltaSegments::index`].
    pub fn code_column(&self, tensor: &str) -> Result<FixedColumn, SegmentError> {
        self.column(tensor, 1, RowLayout::code_bytes)
    }

    fn column(
        &self,
        tensor: &str,
        column: usize,
        row_bytes: fn(RowLayout) -> u64,
    ) -> Result<FixedColumn, SegmentError> {
        let (layout, row_group) = self.find(tensor)?;
        let (row, segment) = &self.layouts[layout];
        let width = row_bytes(*row) as usize;
        FixedColumn::open(segment, row_group..row_group + 1, column, width)
    }

    fn find(&self, tensor: &str) -> Result<(usize, usize), SegmentError> {
        self.tensors.get(tensor).copied().ok_or_else(|| self.missing(tensor))
    }

    fn missing(&self, tensor: &str) -> SegmentError {
        SegmentError::Missing { path: self.dir.clone(), tensor: tensor.to_owned() }
    }
}

/// Which tensor each row group holds.
fn tensor_names(segment: &SegmentFile) -> Result<Vec<String>, SegmentError> {
    let path = || segment.path.clone();
    let names: Vec<String> = serde_json::from_str(segment.key(TENSORS)?)
        .map_err(|_| SegmentError::Key { path: path(), key: TENSORS })?;
    let row_groups = segment.row_groups();
    if names.len() != row_groups {
        return Err(SegmentError::Names { path: path(), names: names.len(), row_groups });
    }
    Ok(names)
}

type Books = (FixedColumn, BTreeMap<String, u64>, u64);

fn open_books(files: &dyn Files, path: &Path) -> Result<Books, SegmentError> {
    // The width is not known yet; it is not Parquet's decoder that needs it.
    let segment = SegmentFile::open(files, path, books_schema(4))?;
    let bins = segment.key(BINS)?.parse().ok().filter(|&bins| bits_of(bins).is_ok());
    let bins = bins.ok_or_else(|| SegmentError::Key { path: path.to_owned(), key: BINS })?;
    let whole = read_whole(files, path, BOOKS_BYTES_MAX).map_err(SegmentError::io(path))?;
    let names = column::text(&segment, &Bytes::from(whole), 0)?;
    let mut rows = BTreeMap::new();
    for (row, name) in names.iter().enumerate() {
        let name = String::from_utf8_lossy(name).into_owned();
        if let Some(_first) = rows.insert(name.clone(), row as u64) {
            return Err(SegmentError::Twice { path: path.to_owned(), tensor: name });
        }
    }
    let width = book_bytes(bins);
    let books = FixedColumn::open(&segment, 0..segment.row_groups(), 1, width)?;
    let books = books.of_length((width * names.len()) as u64)?;
    Ok((books, rows, width as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_is_its_layout() {
        let row = RowLayout { k: 64, bits: 2 };
        assert_eq!((row.index_bytes(), row.code_bytes()), (96, 16));
        assert_eq!(row.file_name(), "k64-2bit.parquet");
        assert_eq!(RowLayout::of_file_name("k64-2bit.parquet"), Some(row));
        for name in ["books.parquet", "k064-2bit.parquet", "k63-2bit.parquet", "k64-3bit.parquet"] {
            assert_eq!(RowLayout::of_file_name(name), None, "{name}");
        }
    }
}
