//! A text file as a place to anchor in: a digest a line, the newest last.
//!
//! For tests, and for whoever publishes such a file where it cannot be changed. A line is a block, and
//! what is not the file's last line was overwritten.

use std::{io, path::PathBuf, sync::Arc};

use gradledger_anchor::{
    commitment::{Commitment, Field},
    hash::Hash32,
    receipt::{FileProof, Proof},
};

use super::{Chain, ChainError, SignedCall, View};
use crate::{
    store::files::{Files, read_whole, write_whole},
    types::{progress::Progress, record::AnchorPlace},
};

/// Largest file that is read: a quarter of a million lines.
const BYTES_MAX: u64 = 16 << 20;

/// A file with a digest a line.
pub struct FileChain {
    files: Arc<dyn Files>,
    path: PathBuf,
}

impl FileChain {
    /// The file at `path`, which is made by the first anchor.
    pub fn new(files: Arc<dyn Files>, path: PathBuf) -> Self {
        Self { files, path }
    }

    fn lines(&self) -> Result<Vec<Hash32>, ChainError> {
        let at = |source| ChainError::Io { path: self.path.clone(), source };
        let text = match read_whole(&*self.files, &self.path, BYTES_MAX) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|e| at(io::Error::other(e)))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(at(error)),
        };
        let read = |line: &str| line.parse().map_err(|e| at(io::Error::other(e)));
        text.lines().map(read).collect()
    }
}

impl Chain for FileChain {
    fn place(&self) -> Option<AnchorPlace> {
        None
    }

    fn look(&mut self) -> Result<View, ChainError> {
        let lines = self.lines()?;
        let newest = lines.len() as u32;
        let commitment = lines.last().map(|digest| Commitment {
            deposit: 0,
            block: newest,
            fields: vec![Field::sha256(digest)],
        });
        Ok(View { newest, commitment })
    }

    fn sign(&mut self, fields: &[Field]) -> Result<SignedCall, ChainError> {
        let [field] = fields else {
            return Err(ChainError::Fields { fields: fields.len(), max: 1 });
        };
        let digest = field.digest().expect("a commitment of ours has a digest");
        let line = format!("{digest}\n").into_bytes();
        // The file is valid for ever, but for this line only as the next one.
        Ok(SignedCall { call: line.clone(), extrinsic: line, dies: u32::MAX })
    }

    fn send(&mut self, extrinsic: &[u8], _: u32, _: &dyn Progress) -> Result<(), ChainError> {
        let mut text: Vec<u8> = Vec::new();
        for line in self.lines()? {
            text.extend(format!("{line}\n").as_bytes());
        }
        // Sent again after a crash, the line is there already.
        if text.ends_with(extrinsic) {
            return Ok(());
        }
        text.extend(extrinsic);
        write_whole(&*self.files, &self.path, &text)
            .map_err(|source| ChainError::Io { path: self.path.clone(), source })
    }

    fn prove(
        &mut self,
        digest: &Hash32,
        _: Option<&[u8]>,
        _: &dyn Progress,
    ) -> Result<Proof, ChainError> {
        let lines = self.lines()?;
        let line = lines.iter().rposition(|line| line == digest).ok_or_else(|| {
            let reason = format!("{} has no line {digest}", self.path.display());
            ChainError::NoProof { reason }
        })?;
        Ok(Proof::File(FileProof { line: line as u32 + 1, digest: *digest }))
    }
}
