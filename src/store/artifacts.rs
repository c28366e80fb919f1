//! Checkpoints and deltas as they are stored: segments for the bytes, the hashes store for what the
//! bytes must be. Whatever is read here has been compared with a digest that its root vouches for.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use super::{
    StoreError,
    hashes::{self, HashesReader, HashesWriter},
    place::Place,
    segment::{
        LogicalBytes, SegmentError,
        delta::DeltaSegments,
        place::delta as delta_dir,
        tensor::{self, TensorSegment, TensorWriter},
        verified::{UncheckedPieces, VerifiedReader},
    },
};
use crate::{
    codec::layout::DeltaGroup,
    merkle::{manifest::manifest_id, pieces::Pieces},
    types::{
        digest::Digest,
        manifest::{Descriptor, Manifest, ManifestId},
        progress::Progress,
    },
};

/// Bytes that are verified at once.
const CHUNK_BYTES: u64 = 8 << 20;

/// The logical bytes of one artifact, front to back, each piece checked.
pub struct ArtifactReader {
    what: String,
    reader: VerifiedReader,
}

impl ArtifactReader {
    /// Number of the bytes, read or not.
    #[allow(clippy::len_without_is_empty)] // A length in bytes, not a collection's.
    pub fn len(&self) -> u64 {
        self.reader.len()
    }

    /// Fills `buffer` with the next bytes.
    ///
    /// # Errors
    ///
    /// [`StoreError::Piece`] names the first piece that is not what its root says.
    pub fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.reader.read_exact(buffer).map_err(|error| named(&self.what, error))
    }

    /// Makes the next read start at `offset`; the piece that holds it is checked whole.
    ///
    /// # Errors
    ///
    /// [`StoreError::Artifact`] beyond the end.
    pub fn seek_to(&mut self, offset: u64) -> Result<(), StoreError> {
        self.reader.seek_to(offset).map_err(|error| named(&self.what, error))
    }

    /// As [`ArtifactReader::read_exact`], but whole pieces are left for another to check, and the system
    /// is asked to read ahead.
    ///
    /// # Errors
    ///
    /// As [`ArtifactReader::read_exact`], for the parts of pieces at both ends.
    pub fn fetch(&mut self, buffer: &mut [u8]) -> Result<Unchecked, StoreError> {
        let pieces = self.reader.fetch(buffer).map_err(|error| named(&self.what, error))?;
        Ok(Unchecked { what: self.what.clone(), pieces })
    }

    /// Reads as many pieces at once where less is asked for, within 1 to 16, and holds them in `room`; what is
    /// in it goes.
    pub fn hold(&mut self, pieces: usize, room: Vec<u8>) {
        self.reader.hold(pieces, room);
    }

    /// The room that pieces were held in, to be used again.
    pub fn into_room(self) -> Vec<u8> {
        self.reader.into_room()
    }

    /// Reads and checks what is left, in parallel on the current rayon pool.
    ///
    /// # Errors
    ///
    /// As [`ArtifactReader::read_exact`].
    pub fn verify_to_end(&mut self, progress: &dyn Progress) -> Result<(), StoreError> {
        let verified = self.reader.verify_to_end(&|bytes| progress.advance(bytes));
        verified.map_err(|error| named(&self.what, error))
    }
}

/// Pieces that were read and not yet compared with their digests.
#[must_use = "the bytes mean nothing before they are checked"]
pub struct Unchecked {
    what: String,
    pieces: UncheckedPieces,
}

impl Unchecked {
    /// Compares them; `buffer` is what was read. Parallel on the current rayon pool.
    ///
    /// # Errors
    ///
    /// [`StoreError::Piece`] names the first piece that is not what its root says.
    pub fn check(&self, buffer: &[u8]) -> Result<(), StoreError> {
        self.pieces.check(buffer).map_err(|error| named(&self.what, error))
    }

    /// Compares digests that were made elsewhere of the pieces that start in what was read.
    ///
    /// # Errors
    ///
    /// As [`Unchecked::check`].
    pub fn check_digests(&self, found: &[[u8; 32]]) -> Result<(), StoreError> {
        self.pieces.check_digests(found).map_err(|error| named(&self.what, error))
    }
}

/// A size of at most some megabytes.
fn small(bytes: u64) -> usize {
    usize::try_from(bytes).expect("it is bounded far below a usize")
}

/// Says whose piece is wrong: a segment's name alone means nothing to a reader.
fn named(what: &str, error: SegmentError) -> StoreError {
    match error {
        SegmentError::Piece { piece, expected, found } => {
            StoreError::Piece { what: what.to_owned(), piece, expected, found }
        }
        source => StoreError::Artifact { what: what.to_owned(), source },
    }
}

/// A stored state. A clone is the same one.
#[derive(Clone)]
pub struct StoredCheckpoint {
    place: Place,
    hashes: Arc<HashesReader>,
    /// What readers hold open, by position: the next one of a tensor takes it from them.
    open: Arc<Mutex<BTreeMap<usize, OpenTensor>>>,
}

/// A tensor's values and its piece digests.
type HeldTensor = (Arc<dyn LogicalBytes>, Arc<[Digest]>);

/// The same, for as long as someone reads them.
type OpenTensor = (Weak<dyn LogicalBytes>, Weak<[Digest]>);

impl StoredCheckpoint {
    /// Opens the state `id`: its manifest, checked; tensors are opened when they are read.
    ///
    /// # Errors
    ///
    /// [`StoreError::Hashes`] if its manifest is missing or not `id`'s.
    pub fn open(place: &Place, id: ManifestId) -> Result<Self, StoreError> {
        let hashes = Arc::new(HashesReader::open(&*place.files, &place.root, &id)?);
        Ok(Self { place: place.clone(), hashes, open: Arc::default() })
    }

    /// The descriptors of its tensors.
    pub fn manifest(&self) -> &Manifest {
        self.hashes.manifest()
    }

    /// The piece digests of the tensor at `position`, checked against its root.
    ///
    /// # Errors
    ///
    /// [`StoreError::Hashes`].
    pub fn digests(&self, position: usize) -> Result<Vec<Digest>, StoreError> {
        Ok(self.hashes.digests(position)?)
    }

    /// The bytes of the tensor at `position`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if its segment or its digests are missing.
    pub fn tensor(&self, position: usize) -> Result<ArtifactReader, StoreError> {
        let descriptor = &self.manifest().descriptors()[position];
        let what = format!("tensor {}", descriptor.name);
        let (values, digests) = match self.opened(position) {
            Some(opened) => opened,
            None => self.open_tensor(position, &what)?,
        };
        let reader = VerifiedReader::new(values, digests, descriptor.bytes)
            .map_err(|error| named(&what, error))?;
        Ok(ArtifactReader { what, reader })
    }

    /// What another reader of the tensor holds.
    fn opened(&self, position: usize) -> Option<HeldTensor> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (values, digests) = open.get(&position)?;
        Some((values.upgrade()?, digests.upgrade()?))
    }

    fn open_tensor(&self, position: usize, what: &str) -> Result<HeldTensor, StoreError> {
        let descriptor = &self.manifest().descriptors()[position];
        let (files, root) = (&*self.place.files, &self.place.root);
        let segment = TensorSegment::open(files, root, &descriptor.artifact(), descriptor.dtype)
            .map_err(|error| named(what, error))?;
        let values: Arc<dyn LogicalBytes> = Arc::new(segment);
        let digests: Arc<[Digest]> = self.digests(position)?.into();
        let opened = (Arc::downgrade(&values), Arc::downgrade(&digests));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, (values, _)| values.strong_count() > 0);
        open.insert(position, opened);
        Ok((values, digests))
    }
}

/// A stored delta.
pub struct StoredDelta {
    id: ManifestId,
    hashes: HashesReader,
    segments: DeltaSegments,
}

impl StoredDelta {
    /// Opens the delta `id`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if its manifest or its segments are missing.
    pub fn open(place: &Place, id: ManifestId) -> Result<Self, StoreError> {
        let hashes = HashesReader::open(&*place.files, &place.root, &id)?;
        let segments = DeltaSegments::open(&*place.files, &delta_dir(&place.root, id.root))?;
        Ok(Self { id, hashes, segments })
    }

    /// The descriptors of its artifacts.
    pub fn manifest(&self) -> &Manifest {
        self.hashes.manifest()
    }

    /// The piece digests of the artifact at `position`, checked against its root.
    ///
    /// # Errors
    ///
    /// [`StoreError::Hashes`].
    pub fn digests(&self, position: usize) -> Result<Vec<Digest>, StoreError> {
        Ok(self.hashes.digests(position)?)
    }

    /// The bytes of `group` of the tensor `name`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the delta has none, or they are missing.
    pub fn open_artifact(
        &self,
        group: DeltaGroup,
        name: &str,
    ) -> Result<ArtifactReader, StoreError> {
        let what = format!("{} of {name} in delta {}", group.name(), self.id.root);
        let position = self.manifest().position(group.name(), name);
        let position = position.ok_or_else(|| StoreError::NoArtifact { what: what.clone() })?;
        let bytes = self.manifest().descriptors()[position].bytes;
        let source = self.source(group, name).map_err(|error| named(&what, error))?;
        let reader = VerifiedReader::new(source, self.hashes.digests(position)?, bytes)
            .map_err(|error| named(&what, error))?;
        Ok(ArtifactReader { what, reader })
    }

    /// The bytes of `group` of the tensor `name` as they are stored: nobody has compared them.
    ///
    /// # Errors
    ///
    /// [`SegmentError`] if they are missing.
    pub fn source(
        &self,
        group: DeltaGroup,
        name: &str,
    ) -> Result<Arc<dyn LogicalBytes>, SegmentError> {
        match group {
            DeltaGroup::Index => self.segments.index(name),
            DeltaGroup::Code => self.segments.code(name),
            DeltaGroup::Book => self.segments.book(name),
        }
    }

    /// All bytes of a small artifact: a book.
    ///
    /// # Errors
    ///
    /// As [`StoredDelta::open_artifact`].
    pub fn book(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let mut reader = self.open_artifact(DeltaGroup::Book, name)?;
        let mut bytes = vec![0; small(reader.reader.len())];
        reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// A state being stored, tensor by tensor in manifest order.
///
/// Tensors go to their place as they are done, named by their root; the state is there once its
/// hashes are. Until a log names it, it is garbage that nothing reads.
pub struct CheckpointWriter {
    place: Place,
    hashes: HashesWriter,
    descriptors: Vec<Descriptor>,
    under_way: Option<UnderWay>,
    /// Where the hashes are written.
    tmp: PathBuf,
    /// Where the tensor under way is written.
    tensor: PathBuf,
}

struct UnderWay {
    writer: TensorWriter,
    descriptor: Descriptor,
}

impl CheckpointWriter {
    /// Starts a state.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the disk refuses.
    pub fn create(place: &Place) -> Result<Self, StoreError> {
        let (tmp, tensor) = (place.tmp().join("state.hashes"), place.tmp().join("tensor.parquet"));
        let hashes = HashesWriter::create(&*place.files, &tmp)?;
        let (place, descriptors) = (place.clone(), Vec::new());
        Ok(Self { place, hashes, descriptors, under_way: None, tmp, tensor })
    }

    /// The next bytes of the tensor that `of` describes (its root is not known yet).
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the disk refuses.
    pub fn write(&mut self, of: &Descriptor, bytes: &[u8]) -> Result<(), StoreError> {
        if self.under_way.is_none() {
            let spec = of.spec().expect("a descriptor out of a manifest has a spec");
            let writer = TensorWriter::create(&*self.place.files, &self.tensor, &spec)?;
            self.under_way = Some(UnderWay { writer, descriptor: of.clone() });
        }
        let under_way = self.under_way.as_mut().expect("it was made above");
        assert_eq!(under_way.descriptor.name, of.name, "one tensor at a time");
        Ok(under_way.writer.write(bytes)?)
    }

    /// The tensor under way is whole and has these pieces.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the disk refuses.
    pub fn commit(&mut self, pieces: Pieces) -> Result<(), StoreError> {
        let UnderWay { writer, descriptor } =
            self.under_way.take().expect("a tensor is written before it is committed");
        writer.finish()?;
        let descriptor = Descriptor { root: pieces.artifact.root, ..descriptor };
        let (files, root) = (&*self.place.files, &self.place.root);
        tensor::commit(files, root, &self.tensor, &pieces.artifact, descriptor.dtype)?;
        self.hashes.artifact(&descriptor.group, &descriptor.name, &pieces.digests)?;
        self.descriptors.push(descriptor);
        Ok(())
    }

    /// Drops the tensor under way.
    pub fn abandon(&mut self) {
        // The next tensor writes over its file.
        self.under_way = None;
    }

    /// The next tensor is the one at `position` of `base`, shared and not copied.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if its digests are missing.
    pub fn unchanged(
        &mut self,
        base: &StoredCheckpoint,
        position: usize,
    ) -> Result<(), StoreError> {
        let descriptor = base.manifest().descriptors()[position].clone();
        self.hashes.artifact(&descriptor.group, &descriptor.name, &base.digests(position)?)?;
        self.descriptors.push(descriptor);
        Ok(())
    }

    /// The next tensor is the one at `position` of `base`, copied.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if its bytes are missing or wrong, or the disk refuses.
    pub fn copy(&mut self, base: &StoredCheckpoint, position: usize) -> Result<(), StoreError> {
        let descriptor = &base.manifest().descriptors()[position];
        let mut reader = base.tensor(position)?;
        let (mut left, mut buffer) = (reader.len(), Vec::new());
        self.write(descriptor, &[])?; // One without bytes is a file, too.
        while left > 0 {
            let now = left.min(CHUNK_BYTES);
            buffer.resize(small(now), 0);
            reader.read_exact(&mut buffer)?;
            self.write(descriptor, &buffer)?;
            left -= now;
        }
        let (artifact, digests) = (descriptor.artifact(), base.digests(position)?);
        self.commit(Pieces { artifact, digests })
    }

    /// Binds the tensors into a state.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the disk refuses.
    pub fn finish(self) -> Result<ManifestId, StoreError> {
        let manifest =
            Manifest::new(self.descriptors).expect("descriptors of specs, each written once");
        let id = manifest_id(&manifest);
        self.hashes.finish(&manifest)?;
        hashes::commit(&*self.place.files, &self.place.root, &self.tmp, id.root)?;
        Ok(id)
    }
}
