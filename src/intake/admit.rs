//! Admission: one foreign file becomes a stored delta, or the first of its faults by a fixed order.
//!
//! `ledger` hands in an opened file; what is admitted is read by `plan` and `fold`. One pass: each
//! tensor's bytes are read once, checked, hashed and written; faults of later classes are noted
//! while earlier ones may still turn up (a CRC is known at an entry's end).
//!
//! Trust: nothing in the file is believed. It can waste its own length of disk, below `tmp/`, while
//! it is read.

use std::path::{Path, PathBuf};

use gradledger_kernels::{Band, Contribution, KernelError, check, codes};

use crate::{
    codec::{
        book::{Book, BookError},
        layout::{DeltaGroup, Layout, TensorLayout},
    },
    import::{
        templar::{ForeignDelta, Parts, TemplarError, refusal_of},
        torch::{TensorRef, TorchArchive, TorchError},
        zip::{Verified, ZipError},
    },
    merkle::{
        manifest::manifest_id,
        pieces::{PieceHasher, Pieces},
    },
    store::{
        StoreError,
        hashes::{self, HashesWriter},
        place::Place,
        segment::delta,
    },
    types::{
        digest::Digest,
        manifest::{Manifest, ManifestId},
        refusal::{Code, Refusal},
        rule::{Dialect, SparseMeanSgd},
        tensor::Dtype,
    },
};

/// |scale| that Templar's gather takes.
const SCALE: std::ops::RangeInclusive<f64> = 1e-12..=1e4;

/// A file that could not be read or a delta that could not be stored: nobody's fault is recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdmitError {
    /// The disk refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file could not be read, which says nothing about what is in it.
    #[error("reading the file: {0}")]
    Read(#[source] std::io::Error),
}

/// A miner's delta as an opened file describes it.
#[derive(Clone, Copy)]
pub struct Opened<'a> {
    /// The file.
    pub archive: &'a TorchArchive,
    /// What it says of this miner's delta.
    pub delta: &'a ForeignDelta,
    /// Whether nobody else's delta is in the file: then every entry's CRC is this miner's affair.
    pub alone: bool,
}

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It holds this delta, which is stored.
    Delta(ManifestId),
    /// It is refused.
    Refused(Refusal),
}

/// What a file is checked against.
#[derive(Clone, Copy)]
pub struct Expected<'a> {
    /// The model as the rule sees it.
    pub layout: &'a Layout,
    /// The rule.
    pub rule: &'a SparseMeanSgd,
    /// The round it should be made for.
    pub round: u64,
}

/// Checks an opened file and stores its delta.
///
/// `scratch` names a directory below `tmp/` that no other call uses at the same time.
///
/// Of several faults the first by [`Code`]'s order counts, then by tensor in manifest order.
///
/// # Errors
///
/// [`AdmitError`] if the disk fails; a fault of the file is [`Admission::Refused`].
pub fn admit(
    opened: Result<Opened<'_>, &TemplarError>,
    expected: Expected<'_>,
    place: &Place,
    scratch: &str,
) -> Result<Admission, AdmitError> {
    let file = match opened {
        Ok(file) => file,
        Err(error) => return error.refusal().map(Admission::Refused).ok_or_else(|| unread(error)),
    };
    let (faults, verified) = (Faults::default(), file.archive.verified());
    let mut reading = Reading { file, expected, faults, verified };
    let stored = match reading.parts()? {
        Some(parts) => Some(reading.read(&parts, place, scratch)?),
        None => None,
    };
    reading.metadata();
    if file.alone {
        reading.other_entries()?;
    }
    match (reading.faults.first(), stored) {
        (Some(fault), stored) => {
            if let Some(stored) = stored {
                stored.abandon(place)?;
            }
            Ok(Admission::Refused(fault))
        }
        (None, Some(stored)) => Ok(Admission::Delta(stored.commit(place, expected.layout)?)),
        (None, None) => unreachable!("without all parts there is a fault"),
    }
}

/// Our system failed, not the miner.
fn unread(error: &TemplarError) -> AdmitError {
    match error {
        TemplarError::Torch(TorchError::Zip(ZipError::Io(source))) => {
            AdmitError::Read(std::io::Error::new(source.kind(), source.to_string()))
        }
        other => AdmitError::Read(std::io::Error::other(other.to_string())),
    }
}

/// The faults found so far; the first by code, then by tensor.
#[derive(Default)]
pub(super) struct Faults(Option<Refusal>);

impl Faults {
    /// A fault in reading a tensor; an I/O error is ours and ends the admission.
    fn note_error(&mut self, tensor: Option<&str>, error: TorchError) -> Result<(), AdmitError> {
        let fault = refusal_of(tensor, &error).ok_or_else(|| unread(&error.into()))?;
        self.note(fault);
        Ok(())
    }

    pub(super) fn note(&mut self, fault: Refusal) {
        // Manifest order is by name; what is said of no tensor says less.
        let key = |fault: &Refusal| (fault.code, fault.tensor.is_none(), fault.tensor.clone());
        if self.0.as_ref().is_none_or(|first| key(&fault) < key(first)) {
            self.0 = Some(fault);
        }
    }

    pub(super) fn first(&self) -> Option<Refusal> {
        self.0.clone()
    }
}

/// One tensor's parts, known to have the right dtypes and shapes.
struct Checked<'a> {
    tensor: &'a TensorLayout,
    idxs: &'a TensorRef,
    vals: &'a TensorRef,
    lookup: &'a TensorRef,
    shift: &'a TensorRef,
    scale: Option<f64>,
}

/// A file being read.
struct Reading<'a> {
    file: Opened<'a>,
    expected: Expected<'a>,
    faults: Faults,
    verified: Verified,
}

impl<'a> Reading<'a> {
    /// Every tensor's parts, if all are there and shaped as the model asks.
    fn parts(&mut self) -> Result<Option<Vec<Checked<'a>>>, AdmitError> {
        let layout = self.expected.layout;
        let delta = self.file.delta;
        let ours = |name: &str| {
            layout.find(name).is_some() || layout.frozen.iter().any(|frozen| frozen.name == name)
        };
        for name in delta.parts.keys().filter(|name| !ours(name)) {
            let want = "a tensor of the model";
            self.faults.note(Refusal::new(Code::UnknownTensor, Some(name), want, "none"));
        }
        if let Some(fault) = &delta.fault {
            let refusal = fault.refusal();
            self.faults
                .note(refusal.ok_or_else(|| AdmitError::Read(std::io::Error::other("part")))?);
        }
        let faulty = |name: &str| delta.unreadable.contains(name);
        let mut all = Vec::with_capacity(layout.tensors.len());
        for tensor in layout.tensors.iter().filter(|tensor| !faulty(&tensor.name)) {
            match tensor_parts(tensor, delta.parts.get(tensor.name.as_str())) {
                Ok(parts) => all.push(parts),
                Err(fault) => self.faults.note(fault),
            }
        }
        Ok(self.faults.first().is_none().then_some(all))
    }

    /// Reads, checks, hashes and writes every tensor.
    fn read(
        &mut self,
        parts: &[Checked<'_>],
        place: &Place,
        scratch: &str,
    ) -> Result<Stored, AdmitError> {
        let dir = place.tmp().join(scratch);
        let bins = 1 << self.expected.rule.code_bits();
        let files = &*place.files;
        let mut writer = delta::DeltaWriter::create(files, &dir, bins).map_err(StoreError::from)?;
        let mut stored = Stored { dir: dir.clone(), pieces: Vec::with_capacity(parts.len()) };
        for part in parts {
            let (index, code) = self.read_tensor(part, &mut writer)?;
            let book = self.read_book(part)?;
            writer.book(&part.tensor.name, &book).map_err(StoreError::from)?;
            stored.pieces.push([Pieces::of(&book), code, index]);
        }
        writer.finish().map_err(StoreError::from)?;
        Ok(stored)
    }

    /// Positions, then codes; `[index, code]` pieces.
    fn read_tensor(
        &mut self,
        part: &Checked<'_>,
        writer: &mut delta::DeltaWriter<'_>,
    ) -> Result<(Pieces, Pieces), AdmitError> {
        let tensor = part.tensor;
        let mut rows = writer
            .tensor(&tensor.name, tensor.k, tensor.grid.blocks())
            .map_err(StoreError::from)?;
        let mut hasher = PieceHasher::new();
        let mut first_block = 0;
        let block_bytes = small(tensor.index_bytes_per_block());
        let mut fault: Option<Refusal> = None;
        self.stream((&tensor.name, part.idxs), block_bytes, &mut |blocks| {
            let later = index_fault(tensor, blocks, first_block);
            // Of one tensor the first by code, then by block.
            fault = [fault.take(), later].into_iter().flatten().min_by_key(|fault| fault.code);
            first_block += (blocks.len() / block_bytes) as u64;
            hasher.update(blocks);
            rows.write_index(blocks).map_err(StoreError::from)
        })?;
        let index = hasher.finish();
        let mut hasher = PieceHasher::new();
        let (mut packed, mut first_block, k) = (Vec::new(), 0, small(tensor.k));
        let mut code_fault = None;
        self.stream((&tensor.name, part.vals), k, &mut |values| {
            packed.clear();
            if let Err(error) = codes::pack_codes(values, k, tensor.code_bits, &mut packed) {
                code_fault.get_or_insert_with(|| code_refusal(tensor, first_block, &error));
                // What is written from here on is dropped with the file; its length has to be right.
                let bytes = values.len() / k * small(tensor.code_bytes_per_block());
                packed.clear();
                packed.resize(bytes, 0);
            }
            first_block += (values.len() / k) as u64;
            hasher.update(&packed);
            rows.write_code(&packed).map_err(StoreError::from)
        })?;
        rows.finish().map_err(StoreError::from)?;
        fault.into_iter().chain(code_fault).for_each(|fault| self.faults.note(fault));
        Ok((index, hasher.finish()))
    }

    /// Hands out a tensor's bytes in whole blocks; a wrong CRC is noted and what is missing is zero.
    fn stream(
        &mut self,
        (name, tensor): (&str, &TensorRef),
        block_bytes: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), AdmitError> {
        let mut stream = self.file.archive.open_stream(tensor);
        let mut left = tensor.bytes();
        let mut pending = Vec::new();
        loop {
            match stream.next_chunk() {
                Ok(Some(chunk)) => {
                    pending.extend_from_slice(chunk);
                    let whole = pending.len() / block_bytes * block_bytes;
                    take(&pending[..whole])?;
                    left -= whole as u64;
                    pending.drain(..whole);
                }
                Ok(None) => {
                    stream.mark(&mut self.verified);
                    return Ok(());
                }
                Err(error) => {
                    self.faults.note_error(Some(name), error)?;
                    // The file is refused; the segment only has to keep its shape until it is dropped.
                    let zeros = vec![0; block_bytes];
                    for _ in 0..left / block_bytes as u64 {
                        take(&zeros)?;
                    }
                    return Ok(());
                }
            }
        }
    }

    /// The book's logical bytes; what is wrong with its values is noted.
    fn read_book(&mut self, part: &Checked<'_>) -> Result<Vec<u8>, AdmitError> {
        let (name, dialect) = (&part.tensor.name, self.expected.rule.dialect);
        let mut bytes = Vec::new();
        for (tensor, len) in [(part.lookup, part.tensor.book_bytes() - 4), (part.shift, 4)] {
            match self.file.archive.read_small(tensor, len, &mut self.verified) {
                Ok(values) => bytes.extend(values),
                Err(error) => {
                    self.faults.note_error(Some(name), error)?;
                    bytes.resize(bytes.len() + small(len), 0);
                }
            }
        }
        if let Err(error) = Book::from_bytes(&bytes).check(dialect) {
            self.faults.note(book_refusal(name, &error));
        }
        let scale = part.scale.filter(|_| dialect == Dialect::Templar);
        if let Some(scale) = scale.filter(|scale| !SCALE.contains(&scale.abs())) {
            let want = "a scale of 1e-12 to 1e4 in magnitude";
            self.faults.note(Refusal::new(Code::WrongScale, Some(name), want, scale.to_string()));
        }
        Ok(bytes)
    }

    fn metadata(&mut self) {
        let window = self.file.delta.window;
        if let Some(window) = window.filter(|&w| u64::try_from(w) != Ok(self.expected.round)) {
            let (want, found) = (self.expected.round.to_string(), window.to_string());
            self.faults.note(Refusal::new(Code::WrongRound, None, want, found));
        }
    }

    /// Entries that no tensor is in have a CRC too.
    fn other_entries(&mut self) -> Result<(), AdmitError> {
        match self.file.archive.verify_crcs(&mut self.verified) {
            Ok(()) => Ok(()),
            Err(error) => self.faults.note_error(None, error),
        }
    }
}

/// A size that the layout bounds.
pub(super) fn small(n: u64) -> usize {
    usize::try_from(n).expect("a block's sizes fit in memory")
}

/// The parts of one tensor with their dtypes, shapes and k checked.
fn tensor_parts<'a>(
    tensor: &'a TensorLayout,
    parts: Option<&'a Parts>,
) -> Result<Checked<'a>, Refusal> {
    let name = Some(tensor.name.as_str());
    let missing = |what: &str| Refusal::new(Code::MissingTensor, name, what, "nothing");
    let parts = parts.ok_or_else(|| missing("idxs, vals and quant_params"))?;
    let idxs = parts.idxs.as_ref().ok_or_else(|| missing("idxs"))?;
    let vals = parts.vals.as_ref().ok_or_else(|| missing("vals"))?;
    let quant = parts.quant_params.as_ref().ok_or_else(|| missing("quant_params"))?;
    let lookup = quant.lookup.as_ref().ok_or_else(|| missing("a lookup tensor"))?;
    let shift = quant.shift.as_ref().ok_or_else(|| missing("a shift tensor"))?;
    let wrong = |what: &str, want: String, found: &TensorRef| {
        let found = format!("{} {:?}", found.dtype(), found.shape());
        Refusal::new(Code::WrongShape, name, format!("{what} of {want}"), found)
    };
    let blocks = tensor.block_shape();
    let k = vals.shape().last().copied().unwrap_or(0);
    let prefix = vals.shape().split_last().is_some_and(|(_, prefix)| prefix == blocks);
    if vals.dtype() != Dtype::U8 || !prefix {
        return Err(wrong("vals", format!("U8 {blocks:?} and k"), vals));
    }
    let packed = tensor.grid.blocks().saturating_mul(k).checked_mul(3).map(|n| n / 2);
    if idxs.dtype() != Dtype::U8 || Some(idxs.bytes()) != packed {
        return Err(wrong("idxs", format!("U8 of {} bytes", packed.unwrap_or(u64::MAX)), idxs));
    }
    let bins = 1 << tensor.code_bits;
    if lookup.dtype() != Dtype::F32 || lookup.elements() != bins {
        return Err(wrong("lookup", format!("F32 [{bins}]"), lookup));
    }
    if shift.dtype() != Dtype::F32 || shift.elements() != 1 {
        return Err(wrong("shift", "one F32".to_owned(), shift));
    }
    if k != tensor.k {
        let (want, found) = (tensor.k.to_string(), k.to_string());
        return Err(Refusal::new(Code::WrongTopK, name, want, found));
    }
    Ok(Checked { tensor, idxs, vals, lookup, shift, scale: quant.scale })
}

pub(super) fn index_fault(
    tensor: &TensorLayout,
    blocks: &[u8],
    first_block: u64,
) -> Option<Refusal> {
    let block_len = small(tensor.grid.block_elements());
    let count = blocks.len() / small(tensor.index_bytes_per_block());
    if count == 0 {
        return None;
    }
    // To the check, blocks are blocks wherever they lie: a row of them will do.
    let band = Band {
        rows: 1,
        columns: count * block_len,
        block_rows: 1,
        block_columns: block_len,
        k: small(tensor.k),
        code_bits: tensor.code_bits,
    };
    let rows = [Contribution { index: blocks, code: &[], levels: &[] }];
    let name = Some(tensor.name.as_str());
    let out_of_range = |block: u64, index: u16| {
        let want = format!("an index below {block_len}");
        let found = format!("{index} in block {}", first_block + block);
        Some(Refusal::new(Code::IndexOutOfRange, name, want, found))
    };
    match check::indices(&band, &rows) {
        Ok(()) => None,
        Err(KernelError::IndexOutOfRange { block, index, .. }) => out_of_range(block, index),
        Err(KernelError::Repeated { block, index, first, entry, .. }) => {
            // The kernel stops at a repeat; one out of range behind it comes first by its code.
            let outside = |&(_, index): &(u64, u16)| usize::from(index) >= block_len;
            if let Some((at, index)) = (0..).zip(codes::indices(blocks)).find(outside) {
                return out_of_range(at / tensor.k, index);
            }
            let found =
                format!("{index} at entries {first} and {entry} of block {}", first_block + block);
            Some(Refusal::new(Code::DuplicateIndex, name, "each index once in a block", found))
        }
        Err(other) => unreachable!("the band was made for these rows: {other}"),
    }
}

fn code_refusal(tensor: &TensorLayout, first_block: u64, error: &KernelError) -> Refusal {
    let want = format!("codes below {}", 1 << tensor.code_bits);
    let found = format!("{error} (blocks from {first_block} on)");
    Refusal::new(Code::CodeOutOfRange, Some(&tensor.name), want, found)
}

pub(super) fn book_refusal(name: &str, error: &BookError) -> Refusal {
    let (code, want) = match error {
        BookError::Lookup { .. } | BookError::Shift { .. } => {
            (Code::NonFinite, "finite lookup and shift")
        }
        BookError::Magnitude { .. } => (Code::Magnitude, "values below 2^60 in magnitude"),
    };
    Refusal::new(code, Some(name), want, error.to_string())
}

/// A delta that is written but not in its place.
pub(super) struct Stored {
    pub(super) dir: PathBuf,
    /// Per tensor: book, code, index, the order of [`DeltaGroup::ALL`].
    pub(super) pieces: Vec<[Pieces; 3]>,
}

impl Stored {
    pub(super) fn abandon(&self, place: &Place) -> Result<(), StoreError> {
        let io = |source| StoreError::Io { path: self.dir.clone(), source };
        place.files.remove_dir_all(&self.dir).map_err(io)
    }

    fn artifact(&self, group: DeltaGroup, at: usize) -> &Pieces {
        &self.pieces[at][group as usize]
    }

    fn manifest(&self, layout: &Layout) -> Manifest {
        let root = |group, at| -> Digest { self.artifact(group, at).artifact.root };
        layout.delta_manifest(root).expect("a layout's artifacts fit a manifest")
    }

    /// What it is.
    pub(super) fn id(&self, layout: &Layout) -> ManifestId {
        manifest_id(&self.manifest(layout))
    }

    /// Moves segments, then hashes, to their places.
    pub(super) fn commit(self, place: &Place, layout: &Layout) -> Result<ManifestId, StoreError> {
        let manifest = self.manifest(layout);
        let id = manifest_id(&manifest);
        let (files, ledger): (_, &Path) = (&*place.files, &place.root);
        delta::commit(files, ledger, &self.dir, id.root)?;
        let tmp = self.dir.with_extension("hashes");
        let mut writer = HashesWriter::create(files, &tmp)?;
        for group in DeltaGroup::ALL {
            for (at, tensor) in layout.tensors.iter().enumerate() {
                writer.artifact(group.name(), &tensor.name, &self.artifact(group, at).digests)?;
            }
        }
        writer.finish(&manifest)?;
        hashes::commit(files, ledger, &tmp, id.root)?;
        Ok(id)
    }
}
