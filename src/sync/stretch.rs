//! Where a mirror's files have a run of pieces: stretches that are asked for at once.

use std::{io, ops::Range, path::PathBuf};

use super::item::{Item, Source};
use crate::store::{StoreError, files::ReadFile, segment::SegmentError};

/// Bytes between two pages of one stretch: headers, no more.
const GAP_BYTES_MAX: u64 = 4 << 10;

/// Bytes of a mirror's file that are asked for at once, and which pieces are in them.
pub(super) struct Stretch {
    pub(super) path: PathBuf,
    pub(super) span: Range<u64>,
    pub(super) parts: Vec<(usize, Range<u64>)>,
}

/// Cuts a run where the mirror's file has it in more than one place; each stretch is hardly longer than
/// the pieces in it, or the mirror's file is not laid out as ours are.
pub(super) fn stretches(
    item: &Item,
    source: &Source,
    pieces: &Range<u64>,
) -> Result<Vec<Stretch>, StoreError> {
    let mut stretches: Vec<Stretch> = Vec::new();
    for (stream, part) in item.parts(pieces) {
        let (column, bytes) = (&source.columns[stream], item.streams[stream].bytes_of(&part));
        let span = column.span(bytes.start, bytes.end - bytes.start);
        if span.end - span.start > 2 * (bytes.end - bytes.start) + GAP_BYTES_MAX {
            let (path, expected) = (column.path().to_owned(), bytes.end - bytes.start);
            return Err(
                SegmentError::Scattered { path, expected, found: span.end - span.start }.into()
            );
        }
        match stretches.last_mut() {
            Some(last)
                if last.path == column.path()
                    && (last.span.end..=last.span.end + GAP_BYTES_MAX).contains(&span.start) =>
            {
                last.span.end = span.end;
                last.parts.push((stream, part));
            }
            _ => {
                let path = column.path().to_owned();
                stretches.push(Stretch { path, span, parts: vec![(stream, part)] });
            }
        }
    }
    Ok(stretches)
}

/// Bytes of a file that were fetched.
pub(super) struct Window {
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
}

impl ReadFile for Window {
    fn len(&self) -> io::Result<u64> {
        Ok(self.at + self.bytes.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let part = offset.checked_sub(self.at).and_then(|at| {
            let at = usize::try_from(at).ok()?;
            self.bytes.get(at..)?.get(..buffer.len())
        });
        match part {
            Some(part) => buffer.copy_from_slice(part),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }
}
