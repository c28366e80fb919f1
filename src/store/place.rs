//! Where everything lies below a ledger's directory. See `schema/ledger.md`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::files::Files;
use crate::types::digest::Digest;

/// A ledger's directory and the door to it.
#[derive(Clone)]
pub struct Place {
    /// The door to the disk.
    pub files: Arc<dyn Files>,
    /// The ledger's directory.
    pub root: PathBuf,
}

impl Place {
    /// The ledger at `root`.
    pub fn new(files: Arc<dyn Files>, root: &Path) -> Self {
        Self { files, root: root.to_owned() }
    }

    /// The rounds log.
    pub fn rounds_log(&self) -> PathBuf {
        self.root.join("log/rounds")
    }

    /// The submissions log.
    pub fn submissions_log(&self) -> PathBuf {
        self.root.join("log/submissions")
    }

    /// The log key after this many rotations, unless it was put elsewhere.
    ///
    /// Each key has a name of its own, so that a retired one stays and none is ever replaced.
    pub fn log_key(&self, rotations: usize) -> PathBuf {
        match rotations {
            0 => self.root.join("keys/log.key"),
            n => self.root.join(format!("keys/log-{n}.key")),
        }
    }

    /// Who is expected in the round that is open.
    pub fn open_round(&self) -> PathBuf {
        self.root.join("open-round.json")
    }

    /// Tables to query, made from the rest.
    pub fn tables(&self) -> PathBuf {
        self.root.join("tables")
    }

    /// Receipts of anchored heads.
    pub fn anchors(&self) -> PathBuf {
        self.root.join("anchors")
    }

    /// The receipt of the anchored head with `size` entries.
    pub fn anchor(&self, size: u64) -> PathBuf {
        self.anchors().join(format!("{size}.json"))
    }

    /// The anchoring under way.
    pub fn anchor_intent(&self) -> PathBuf {
        self.anchors().join("intent.json")
    }

    /// Which states were dropped.
    pub fn retention(&self) -> PathBuf {
        self.root.join("retention.json")
    }

    /// What is kept for Hub clients: files given at `init`, and digests of exported files.
    pub fn hub(&self) -> PathBuf {
        self.root.join("hub")
    }

    /// A file that was given at `init`.
    pub fn given_file(&self, sha256: Digest) -> PathBuf {
        self.hub().join("files").join(sha256.to_hex())
    }

    /// The digests of what the state `root` is exported as in `dtype`.
    pub fn hub_sums(&self, root: Digest, dtype: &str) -> PathBuf {
        self.hub().join("sums").join(format!("{root}-{dtype}.json"))
    }

    /// What the operator chose for this ledger.
    pub fn config(&self) -> PathBuf {
        self.root.join("gradledger.toml")
    }

    /// The index, which the process that writes keeps outside of [`Files`].
    pub fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    /// What a copy of somebody else's ledger has under way.
    pub fn sync(&self) -> PathBuf {
        self.root.join("sync")
    }

    /// Uploads under way, a directory each.
    pub fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    /// Files under way; emptied when a writer opens the ledger.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }
}
