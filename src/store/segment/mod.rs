//! Segments: Parquet files that hold logical bytes, one layout per kind of artifact.
//!
//! `seal`, `intake` and `sync` write them; `fold`, `audit`, `export` and `http` read byte ranges
//! through [`LogicalBytes`]. A column of fixed-width values, PLAIN and uncompressed, is its logical
//! bytes cut into pages, so the writer copies pages as they are, the reader finds any byte through
//! the offset index, and every Parquet tool can query the values. See `schema/segments.md`.
//!
//! Trust: none. Offsets are checked before they are used, bytes are re-hashed by whoever reads them
//! ([`VerifiedReader`]). Losing a segment stops the replay of what it held, never alters it.
//!
//! Cost: a page of 64 KiB is one copy and one write, or one read into the caller's buffer. In memory
//! are one page a writer, 16 bytes a page a reader.

mod column;
pub mod delta;
pub mod dispositions;
mod draft;
mod error;
mod footer;
pub mod place;
pub mod plan;
pub mod query;
mod schema;
mod table;
pub mod tensor;
mod thrift;
pub mod verified;

use std::{ops::Range, sync::Arc};

pub use column::FixedColumn;
pub use error::SegmentError;
pub use verified::VerifiedReader;

/// The logical bytes of one artifact, readable at any offset.
#[allow(clippy::len_without_is_empty)] // A length in bytes, not a collection's.
pub trait LogicalBytes: Send + Sync {
    /// Their number.
    fn len(&self) -> u64;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Range`] beyond the end; [`SegmentError::Io`]. What is in `buffer` then means
    /// nothing.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SegmentError>;

    /// Says that the bytes in `range` will be read soon. Nothing comes of it but speed.
    fn will_need(&self, _range: Range<u64>) {}
}

impl LogicalBytes for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SegmentError> {
        check_range(LogicalBytes::len(self), offset, buffer.len())?;
        let start = offset as usize; // Within this vector, so it fits.
        buffer.copy_from_slice(&self[start..start + buffer.len()]);
        Ok(())
    }
}

/// A run of another's logical bytes.
pub(crate) struct Section {
    source: Arc<dyn LogicalBytes>,
    start: u64,
    bytes: u64,
}

impl LogicalBytes for Section {
    fn len(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SegmentError> {
        check_range(self.bytes, offset, buffer.len())?;
        self.source.read_at(self.start + offset, buffer)
    }
}

/// Refuses a read of `len` bytes at `offset` that `bytes` bytes do not hold.
fn check_range(bytes: u64, offset: u64, len: usize) -> Result<(), SegmentError> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= bytes => Ok(()),
        _ => Err(SegmentError::Range { offset, len, bytes }),
    }
}
