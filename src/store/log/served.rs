//! The files of a log as a server hands them out: what is committed, and nothing beyond it.

use std::{path::Path, sync::Arc};

use super::{
    LogError,
    dir::{LogDir, Part},
};
use crate::{
    merkle::tile::{TILE_WIDTH, encode_bundle, encode_tile},
    store::files::Files,
};

/// The files of the log in a directory, by the paths that C2SP tlog-tiles gives them.
#[derive(Clone)]
pub struct LogFiles {
    dir: LogDir,
}

/// A tile or an entry bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedPart {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether it is 256 wide, so that no wider one will ever take its place.
    pub full: bool,
}

impl LogFiles {
    /// The log in `dir`, which need not be there.
    pub fn new(files: Arc<dyn Files>, dir: &Path) -> Self {
        Self { dir: LogDir { files, path: dir.to_owned() } }
    }

    /// The published head's signed note.
    ///
    /// # Errors
    ///
    /// [`LogError::Absent`] if there is none.
    pub fn head(&self) -> Result<Vec<u8>, LogError> {
        self.dir.read_head()
    }

    /// The tile or bundle that `path` names (`tile/0/000`, `tile/entries/000.p/7`); none if no part has
    /// that name or the committed tree has none so wide.
    ///
    /// A partial part that a wider file replaced is cut from it. What a batch has written and not
    /// committed may yet be replaced by other bytes, so it is not there.
    ///
    /// # Errors
    ///
    /// [`LogError`] if a file does not read.
    pub fn part(&self, path: &str) -> Result<Option<ServedPart>, LogError> {
        let Some(asked) = Part::parse(path) else { return Ok(None) };
        let committed = match self.dir.read_state() {
            Err(LogError::Absent { .. }) => return Ok(None),
            state => state?.size,
        };
        match asked.at_size(committed) {
            Some(there) if there.width() >= asked.width() => self.cut(asked).map(Some),
            _ => Ok(None),
        }
    }

    fn cut(&self, asked: Part) -> Result<ServedPart, LogError> {
        let found = self.dir.read_nearest(asked)?;
        let bytes = match asked {
            part if part == found.part => found.bytes,
            Part::Tile(tile) => encode_tile(&self.dir.decode_tile(tile, &found)?),
            Part::Bundle(bundle) => encode_bundle(self.dir.decode_bundle(bundle, &found)?)
                .expect("the entries were in a bundle"),
        };
        Ok(ServedPart { bytes, full: asked.width() == TILE_WIDTH })
    }
}
