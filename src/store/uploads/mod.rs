//! The upload store: deltas that miners are sending, a directory each, part by part.
//!
//! Every piece is compared with a digest that the signed root vouches for before it is written, and a
//! part has its name only once its bytes are durable: so what is listed has arrived, and a server that
//! was killed goes on from there. See `schema/upload.md`.
//!
//! Trust: none. Whoever admits an upload hashes all of it again. Losing one costs sending it again.

mod arrived;
mod arriving;

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use gradledger_kernels::sha256::Sha256;
use serde::{Deserialize, Serialize};

pub use self::arriving::{ArrivalError, Arriving};
use self::{arrived::UploadedBytes, arriving::Piece};
use super::{
    files::{Files, create_dir_durable, read_whole, write_whole},
    hashes::HashesReader,
    place::Place,
    segment::LogicalBytes,
};
use crate::{
    codec::parts::DeltaShape,
    types::{
        digest::Digest,
        json,
        manifest::{ManifestId, PIECE_BYTES},
        upload::Part,
    },
};

const RECORD: &str = "upload.json";
const HASHES: &str = "hashes";
const RECEIPT: &str = "receipt.json";
const PART: &str = ".part";
const NEW: &str = ".new";

/// Largest record and receipt that are read back.
const SMALL_BYTES_MAX: u64 = 1 << 20;

/// Version of the records that are written and read.
const RECORD_VERSION: u64 = 1;

/// What a miner announced: enough to make the statement again, and the token of its parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadRecord {
    /// Version of this record: 1.
    pub version: u64,
    /// The round the delta is for.
    pub round: u64,
    /// Root of the manifest of the state it was made from.
    pub base: Digest,
    /// The delta.
    pub delta: ManifestId,
    /// Whose it is.
    pub hotkey: Digest,
    /// Random: whoever has it may send parts.
    pub token: Digest,
    /// The size that the delta is cut by.
    pub part_bytes: u64,
}

impl UploadRecord {
    /// A record of this version.
    pub fn new(
        round: u64,
        base: Digest,
        delta: ManifestId,
        hotkey: Digest,
        token: Digest,
        part_bytes: u64,
    ) -> Self {
        Self { version: RECORD_VERSION, round, base, delta, hotkey, token, part_bytes }
    }
}

/// What is there of an upload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Whether the hashes file is.
    pub hashes: bool,
    /// Offsets of the parts that are.
    pub parts: BTreeSet<u64>,
    /// The receipt, as it was given.
    pub receipt: Option<Vec<u8>>,
}

/// The directory of one upload.
#[derive(Clone)]
pub struct UploadDir {
    files: Arc<dyn Files>,
    path: PathBuf,
}

impl UploadDir {
    /// That of upload `id`, there or not.
    pub fn new(place: &Place, id: Digest) -> Self {
        Self { files: place.files.clone(), path: place.uploads().join(id.to_hex()) }
    }

    /// All uploads that lie below a ledger.
    ///
    /// # Errors
    ///
    /// [`ArrivalError::Io`].
    pub fn all(place: &Place) -> Result<Vec<Digest>, ArrivalError> {
        let dir = place.uploads();
        match place.files.list(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(ArrivalError::Io { path: dir, source }),
            Ok(names) => Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect()),
        }
    }

    /// Makes the directory with its record, durably.
    ///
    /// # Errors
    ///
    /// [`ArrivalError::Io`].
    pub fn create(&self, record: &UploadRecord) -> Result<(), ArrivalError> {
        let made = create_dir_durable(&*self.files, &self.path).and_then(|()| {
            write_whole(&*self.files, &self.path.join(RECORD), &json::to_vec(record))
        });
        made.map_err(|source| self.io(source))
    }

    /// Reads the record and what has arrived; files that a killed process left half made are removed.
    /// `None` if there is no record that can be read: then the directory is of no use.
    ///
    /// # Errors
    ///
    /// [`ArrivalError::Io`].
    pub fn load(
        &self,
        shape: &DeltaShape,
    ) -> Result<Option<(UploadRecord, Vec<Part>, Arrived)>, ArrivalError> {
        let read = |name: &str| read_whole(&*self.files, &self.path.join(name), SMALL_BYTES_MAX);
        let Ok(bytes) = read(RECORD) else { return Ok(None) };
        let Ok(record) = json::from_slice::<UploadRecord>(&bytes) else { return Ok(None) };
        if record.version != RECORD_VERSION || record.part_bytes < PIECE_BYTES {
            return Ok(None);
        }
        let parts = shape.parts(record.part_bytes);
        let mut arrived = Arrived { receipt: read(RECEIPT).ok(), ..Arrived::default() };
        for name in self.files.list(&self.path).map_err(|source| self.io(source))? {
            let path = self.path.join(&name);
            match name.to_str().unwrap_or_default() {
                name if name.ends_with(NEW) => {
                    self.files.remove(&path).map_err(|source| self.io(source))?;
                }
                HASHES => arrived.hashes = true,
                name => {
                    let offset = name.strip_suffix(PART).and_then(|at| at.parse::<u64>().ok());
                    let ours = offset.filter(|at| parts.iter().any(|part| part.offset == *at));
                    arrived.parts.extend(ours);
                }
            }
        }
        Ok(Some((record, parts, arrived)))
    }

    /// Starts the hashes file, of `bytes` bytes. `number` is of no other file that is arriving: two
    /// connections may send the same.
    ///
    /// # Errors
    ///
    /// [`ArrivalError::Io`].
    pub fn hashes(&self, number: u64, bytes: u64) -> Result<Arriving, ArrivalError> {
        self.arriving(HASHES, number, bytes, Vec::new())
    }

    /// Starts a part, whose pieces must be those of the hashes file. `number` as for
    /// [`UploadDir::hashes`].
    ///
    /// # Errors
    ///
    /// [`ArrivalError::Io`], [`ArrivalError::Hashes`] if the hashes file is damaged.
    pub fn part(
        &self,
        number: u64,
        delta: &ManifestId,
        shape: &DeltaShape,
        part: Part,
    ) -> Result<Arriving, ArrivalError> {
        let reader = HashesReader::open_file(&*self.files, &self.path.join(HASHES), delta)?;
        let (mut pieces, mut of) = (Vec::new(), (usize::MAX, Vec::new()));
        for at in shape.pieces(part) {
            if of.0 != at.artifact {
                of = (at.artifact, reader.digests(at.artifact)?);
            }
            let digest = usize::try_from(at.piece).ok().and_then(|piece| of.1.get(piece));
            let digest = *digest.ok_or(ArrivalError::Shape)?;
            pieces.push(Piece { artifact: at.artifact, piece: at.piece, bytes: at.bytes, digest });
        }
        let mut arriving = self.arriving(&part_name(part.offset), number, part.bytes, pieces)?;
        arriving.names = shape.manifest().descriptors().iter().map(name_of).collect();
        Ok(arriving)
    }

    fn arriving(
        &self,
        name: &str,
        number: u64,
        bytes: u64,
        pieces: Vec<Piece>,
    ) -> Result<Arriving, ArrivalError> {
        let tmp = self.path.join(format!("{name}.{number}{NEW}"));
        let file = self.files.create(&tmp).map_err(|source| self.io(source))?;
        Ok(Arriving {
            files: self.files.clone(),
            path: self.path.join(name),
            tmp,
            file: Some(file),
            bytes,
            taken: 0,
            sha256: Sha256::new(),
            pieces: pieces.into_iter(),
            piece: Vec::new(),
            names: Vec::new(),
        })
    }

    /// An artifact of a whole upload.
    pub fn artifact(
        &self,
        shape: &DeltaShape,
        parts: Arc<[Part]>,
        artifact: usize,
    ) -> Arc<dyn LogicalBytes> {
        Arc::new(UploadedBytes {
            dir: self.clone(),
            parts,
            start: shape.start_of(artifact),
            bytes: shape.manifest().descriptors()[artifact].bytes,
            open: Mutex::new(None),
        })
    }

    /// Keeps the receipt and lets the bytes go: they are in their place now.
    ///
    /// # Errors
    ///
    /// [`ArrivalError::Io`].
    pub fn settle(&self, receipt: &[u8]) -> Result<(), ArrivalError> {
        write_whole(&*self.files, &self.path.join(RECEIPT), receipt)
            .map_err(|source| self.io(source))?;
        self.clear()
    }

    /// Removes hashes and parts.
    ///
    /// # Errors
    ///
    /// [`ArrivalError::Io`].
    pub fn clear(&self) -> Result<(), ArrivalError> {
        for name in self.files.list(&self.path).map_err(|source| self.io(source))? {
            if name.to_str().is_some_and(|name| name == HASHES || name.ends_with(PART)) {
                let path = self.path.join(name);
                self.files.remove(&path).map_err(|source| ArrivalError::Io { path, source })?;
            }
        }
        self.files.sync_dir(&self.path).map_err(|source| self.io(source))
    }

    /// Removes all of it.
    ///
    /// # Errors
    ///
    /// [`ArrivalError::Io`].
    pub fn remove(&self) -> Result<(), ArrivalError> {
        match self.files.remove_dir_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|source| self.io(source)),
        }
    }

    fn io(&self, source: io::Error) -> ArrivalError {
        ArrivalError::Io { path: self.path.clone(), source }
    }
}

/// Sorts as its number does.
fn part_name(offset: u64) -> String {
    format!("{offset:016}{PART}")
}

fn name_of(descriptor: &crate::types::manifest::Descriptor) -> String {
    format!("{}/{:?}", descriptor.group, descriptor.name)
}
