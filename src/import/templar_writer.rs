//! Writes a gradient file as Templar's miners do.
//!
//! Miners, tools and tests hand in one tensor after the other; each is written at once, so that memory
//! holds only the directory and the pickle (about 1.5 KB a tensor). `data.pkl` comes last: readers
//! find entries through the directory, in any order. Only opcodes, globals and records are written that
//! torch's `weights_only` reader takes, and Python's `zipfile` and `pickle` read the result.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

/// The entries' data starts at multiples of this, as torch writes it.
const ALIGNMENT: u64 = 64;

/// From here on a size or an offset stands in a zip64 field.
const ZIP64_FROM: u64 = u32::MAX as u64;

/// Why a file is not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum WriteError {
    #[error("writing the gradient file: {0}")]
    Io(#[from] io::Error),
    #[error("tensor {name:?} was given twice")]
    Twice { name: String },
    #[error("tensor {name:?}: {found} codes for the shape {shape:?}")]
    Shape { name: String, found: u64, shape: Vec<u64> },
    #[error("an entry of {bytes} bytes; entries are below 4 GiB")]
    Long { bytes: u64 },
    #[error("the folder name {root:?} is empty, holds a slash, or is longer than 255 bytes")]
    Root { root: String },
}

/// One tensor's part of a delta.
#[derive(Debug, Clone, Copy)]
pub struct GradientTensor<'a> {
    /// The model's tensor.
    pub name: &'a str,
    /// Packed 12-bit positions, two in three bytes.
    pub idxs: &'a [u8],
    /// A code per byte, row-major.
    pub vals: &'a [u8],
    /// Blocks and k: the shape of `vals`.
    pub vals_shape: &'a [u64],
    /// Added to every value.
    pub shift: f32,
    /// The quantiser's scale.
    pub scale: f64,
    /// What each code stands for.
    pub lookup: &'a [f32],
}

/// What a gradient file says about itself.
#[derive(Debug, Clone, Copy)]
pub struct GradientMetadata<'a> {
    /// The round.
    pub window: i64,
    /// The miner's own count of steps.
    pub global_step: i64,
    /// What the miner trained on: 32 hex digits.
    pub sample_digest: &'a str,
    /// How many samples.
    pub sample_count: i64,
}

/// A gradient file being written.
pub struct GradientWriter<W: Write> {
    zip: ZipWriter<W>,
    pickle: Vec<u8>,
    names: BTreeSet<String>,
    storages: u64,
}

impl<W: Write> GradientWriter<W> {
    /// Starts a file whose entries lie under the folder `root`; Templar takes `temp_` and the file's stem.
    ///
    /// # Errors
    ///
    /// [`WriteError::Root`].
    pub fn new(out: W, root: &str) -> Result<Self, WriteError> {
        if root.is_empty() || root.len() > 255 || root.contains('/') {
            return Err(WriteError::Root { root: root.to_owned() });
        }
        let zip =
            ZipWriter { out, root: root.to_owned(), at: 0, directory: Vec::new(), entries: 0 };
        let mut pickle = b"\x80\x02}(".to_vec();
        put_text(&mut pickle, "state_dict");
        pickle.extend(b"}(");
        Ok(Self { zip, pickle, names: BTreeSet::new(), storages: 0 })
    }

    /// Writes one tensor's part. The order of calls is the order in the file.
    ///
    /// # Errors
    ///
    /// [`WriteError`] names what does not fit; nothing is written then.
    pub fn tensor(&mut self, tensor: &GradientTensor<'_>) -> Result<(), WriteError> {
        let (found, shape) = (tensor.vals.len() as u64, tensor.vals_shape);
        let expected = shape.iter().try_fold(1_u64, |product, &n| product.checked_mul(n));
        if expected != Some(found) {
            let (name, shape) = (tensor.name.to_owned(), shape.to_vec());
            return Err(WriteError::Shape { name, found, shape });
        }
        let lookup: Vec<u8> = tensor.lookup.iter().flat_map(|v| v.to_le_bytes()).collect();
        for bytes in [tensor.idxs, tensor.vals, &lookup].map(|part| part.len() as u64) {
            check_length(bytes)?;
        }
        if !self.names.insert(tensor.name.to_owned()) {
            return Err(WriteError::Twice { name: tensor.name.to_owned() });
        }
        put_text(&mut self.pickle, &format!("{}idxs", tensor.name));
        self.storage(BYTE, tensor.idxs, &[tensor.idxs.len() as u64])?;
        put_text(&mut self.pickle, &format!("{}vals", tensor.name));
        self.storage(BYTE, tensor.vals, shape)?;
        put_text(&mut self.pickle, &format!("{}quant_params", tensor.name));
        self.pickle.push(b'(');
        self.storage(FLOAT, &tensor.shift.to_le_bytes(), &[])?;
        self.pickle.push(b'G');
        self.pickle.extend(tensor.scale.to_be_bytes());
        put_int(&mut self.pickle, tensor.lookup.len() as i64 / 2);
        self.storage(FLOAT, &lookup, &[tensor.lookup.len() as u64])?;
        self.pickle.extend(b"ctorch\nfloat32\nt");
        Ok(())
    }

    /// Writes what remains and returns the writer, unflushed.
    ///
    /// # Errors
    ///
    /// [`WriteError`].
    pub fn finish(mut self, metadata: &GradientMetadata<'_>) -> Result<W, WriteError> {
        let pickle = &mut self.pickle;
        put_text(pickle, "metadata");
        pickle.extend(b"}(");
        put_text(pickle, "window");
        put_int(pickle, metadata.window);
        put_text(pickle, "sample_digest");
        put_text(pickle, metadata.sample_digest);
        put_text(pickle, "sample_count");
        put_int(pickle, metadata.sample_count);
        pickle.extend(b"uu");
        put_text(pickle, "global_step");
        put_int(pickle, metadata.global_step);
        pickle.extend(b"u.");
        self.zip.entry(".format_version", b"1")?;
        self.zip.entry(".storage_alignment", b"64")?;
        self.zip.entry("byteorder", b"little")?;
        self.zip.entry("version", b"3\n")?;
        self.zip.entry("data.pkl", &self.pickle)?;
        self.zip.finish()
    }

    /// Writes a storage, and the tensor that is all of it into the pickle.
    fn storage(&mut self, kind: Storage, bytes: &[u8], shape: &[u64]) -> Result<(), WriteError> {
        let key = self.storages.to_string();
        self.storages += 1;
        self.zip.entry(&format!("data/{key}"), bytes)?;
        let pickle = &mut self.pickle;
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        put_text(pickle, "storage");
        pickle.extend(kind.global);
        put_text(pickle, &key);
        put_text(pickle, "cpu");
        put_int(pickle, bytes.len() as i64 / kind.element_bytes);
        pickle.extend(b"tQK\x00");
        put_sizes(pickle, shape);
        let mut strides = vec![1; shape.len()];
        for d in (1..shape.len()).rev() {
            // Saturates only behind a zero, where strides mean nothing.
            strides[d - 1] = u64::saturating_mul(strides[d], shape[d]).min(i64::MAX as u64);
        }
        put_sizes(pickle, &strides);
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Storage {
    global: &'static [u8],
    element_bytes: i64,
}

const BYTE: Storage = Storage { global: b"ctorch\nByteStorage\n", element_bytes: 1 };
const FLOAT: Storage = Storage { global: b"ctorch\nFloatStorage\n", element_bytes: 4 };

fn put_text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.as_bytes());
}

fn put_int(pickle: &mut Vec<u8>, int: i64) {
    if let Ok(byte) = u8::try_from(int) {
        pickle.extend([b'K', byte]);
    } else if let Ok(short) = i32::try_from(int) {
        pickle.push(b'J');
        pickle.extend(short.to_le_bytes());
    } else {
        pickle.extend([0x8a, 8]);
        pickle.extend(int.to_le_bytes());
    }
}

fn put_sizes(pickle: &mut Vec<u8>, sizes: &[u64]) {
    pickle.push(b'(');
    for &size in sizes {
        put_int(pickle, size as i64); // A product of them is the length of a slice.
    }
    pickle.push(b't');
}

fn check_length(bytes: u64) -> Result<(), WriteError> {
    if bytes < ZIP64_FROM { Ok(()) } else { Err(WriteError::Long { bytes }) }
}

/// Stored entries, sizes and CRCs in their headers, zip64 where an offset asks for it.
struct ZipWriter<W: Write> {
    out: W,
    root: String,
    at: u64,
    directory: Vec<u8>,
    entries: u64,
}

impl<W: Write> ZipWriter<W> {
    fn entry(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        check_length(bytes.len() as u64)?;
        let name = format!("{}/{name}", self.root);
        // Flags, method, time and date, CRC, both sizes, length of the name: the same in both headers.
        let mut common = vec![0, 0x08, 0, 0, 0, 0, 0, 0];
        common.extend(crc32fast::hash(bytes).to_le_bytes());
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        let header = self.at;
        let data = (header + 30 + name.len() as u64 + 4).next_multiple_of(ALIGNMENT);
        let padding = data - header - 30 - name.len() as u64;
        let mut local = b"PK\x03\x04\0\0".to_vec();
        local.extend(&common);
        local.extend((padding as u16).to_le_bytes());
        local.extend(name.as_bytes());
        // An extra field of torch's kind, `FB`, filled with Z.
        local.extend(b"FB");
        local.extend((padding as u16 - 4).to_le_bytes());
        local.resize((data - header) as usize, b'Z');
        self.out.write_all(&local)?;
        self.out.write_all(bytes)?;
        self.at = data + bytes.len() as u64;
        self.entries += 1;
        let wide = header >= ZIP64_FROM;
        let directory = &mut self.directory;
        directory.extend(b"PK\x01\x02\0\0\0\0");
        directory.extend(&common);
        directory.extend([if wide { 12 } else { 0 }, 0]);
        directory.extend([0; 10]); // Comment, disk, attributes.
        directory.extend((header.min(ZIP64_FROM) as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        if wide {
            directory.extend([1, 0, 8, 0]);
            directory.extend(header.to_le_bytes());
        }
        Ok(())
    }

    fn finish(mut self) -> Result<W, WriteError> {
        let (start, bytes, entries) = (self.at, self.directory.len() as u64, self.entries);
        self.out.write_all(&self.directory)?;
        // Torch always writes the zip64 end, too.
        let mut end = b"PK\x06\x06".to_vec();
        end.extend(44_u64.to_le_bytes());
        end.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for word in [entries, entries, bytes, start] {
            end.extend(word.to_le_bytes());
        }
        end.extend(b"PK\x06\x07\0\0\0\0");
        end.extend((start + bytes).to_le_bytes());
        end.extend([1, 0, 0, 0]);
        end.extend(b"PK\x05\x06\0\0\0\0");
        let count = entries.min(u16::MAX.into()) as u16;
        end.extend(count.to_le_bytes());
        end.extend(count.to_le_bytes());
        end.extend((bytes.min(ZIP64_FROM) as u32).to_le_bytes());
        end.extend((start.min(ZIP64_FROM) as u32).to_le_bytes());
        end.extend([0, 0]);
        self.out.write_all(&end)?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use super::*;
    use crate::import::{source::Source, zip::Archive};

    /// What a writer wrote, behind a hole of `start` bytes.
    struct Behind {
        start: u64,
        bytes: Vec<u8>,
    }

    impl Source for Behind {
        fn len(&self) -> u64 {
            self.start + self.bytes.len() as u64
        }

        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            let hole = self.start.saturating_sub(offset).min(buffer.len() as u64);
            let (zeros, rest) = buffer.split_at_mut(hole as usize);
            zeros.fill(0);
            self.bytes.read_exact_at(rest, (offset + hole).saturating_sub(self.start))
        }
    }

    #[test]
    fn offsets_above_4_gib_read_back() {
        for start in [0, (4 << 30) - 64, (4 << 30) - 1, 4 << 30, 55 << 30] {
            let root = "a".to_owned();
            let out = Vec::new();
            let mut zip = ZipWriter { out, root, at: start, directory: Vec::new(), entries: 0 };
            zip.entry("data/0", b"first").unwrap();
            zip.entry("data/1", b"second").unwrap();
            let bytes = zip.finish().unwrap();
            let archive = Archive::open(Arc::new(Behind { start, bytes })).unwrap();
            let second = archive.find("a/data/1").unwrap();
            assert_eq!(archive.read(second).unwrap(), b"second");
            assert_eq!(archive.entries()[second].start() % ALIGNMENT, 0);
        }
    }

    #[test]
    fn integers_take_the_shortest_opcode_that_holds_them() {
        let put = |int| {
            let mut pickle = Vec::new();
            put_int(&mut pickle, int);
            pickle
        };
        assert_eq!(put(255), b"K\xff");
        assert_eq!(put(-1), b"J\xff\xff\xff\xff");
        assert_eq!(put(1 << 31), b"\x8a\x08\0\0\0\x80\0\0\0\0");
    }
}
