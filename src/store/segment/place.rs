//! Where segments lie below a ledger's directory, and how a finished one gets there.
//!
//! Every name holds a root, so a name says what is in it and equal content is stored once.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    store::files::Files,
    types::{digest::Digest, manifest::ArtifactId, record::DispositionsId, tensor::Dtype},
};

/// A kind of thing whose names hold roots, 256 shelves to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Values of a tensor: a file.
    Tensor,
    /// A delta: a directory of files.
    Delta,
    /// A round's scalars: a file.
    Plan,
    /// A round's dispositions: a file.
    Dispositions,
    /// Descriptors and piece digests of a state or a delta: a file.
    Hashes,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Tensor, Self::Delta, Self::Plan, Self::Dispositions, Self::Hashes];

    /// The directory of its shelves, below the ledger's.
    const fn dir(self) -> &'static str {
        match self {
            Self::Tensor => "segments/tensors",
            Self::Delta => "segments/deltas",
            Self::Plan => "segments/plans",
            Self::Dispositions => "segments/dispositions",
            Self::Hashes => "hashes",
        }
    }

    /// Whether `name` is one that this kind's files have: a root, and for segments of one file what
    /// follows it.
    fn names(self, name: &str) -> bool {
        let Some((root, rest)) = name.split_at_checked(Digest::BYTES * 2) else { return false };
        let whole = match self {
            Self::Delta | Self::Hashes => rest.is_empty(),
            _ => rest.starts_with('-') && rest.ends_with(".parquet"),
        };
        whole && root.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    }
}

/// Everything of one kind that lies below a ledger's directory, sorted; other names are passed over.
///
/// # Errors
///
/// The operating system's.
pub fn all(files: &dyn Files, ledger: &Path, kind: Kind) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let shelves = ledger.join(kind.dir());
    if !files.exists(&shelves)? {
        return Ok(found);
    }
    for shelf in files.list(&shelves)? {
        let Some(first) = shelf.to_str().filter(|name| name.len() == 2) else { continue };
        for name in files.list(&shelves.join(&shelf))? {
            if name.to_str().is_some_and(|name| name.starts_with(first) && kind.names(name)) {
                found.push(shelves.join(&shelf).join(name));
            }
        }
    }
    Ok(found)
}

/// Where the values of a tensor lie.
pub fn tensor(ledger: &Path, artifact: &ArtifactId, dtype: Dtype) -> PathBuf {
    let (root, bytes, dtype) = (artifact.root, artifact.bytes, dtype.name().to_lowercase());
    shelf(ledger, Kind::Tensor, root).join(format!("{root}-{bytes}.{dtype}.parquet"))
}

/// The directory of the delta whose manifest has this root.
pub fn delta(ledger: &Path, manifest_root: Digest) -> PathBuf {
    shelf(ledger, Kind::Delta, manifest_root).join(manifest_root.to_hex())
}

/// Where a plan lies.
pub fn plan(ledger: &Path, artifact: &ArtifactId) -> PathBuf {
    let ArtifactId { root, bytes } = artifact;
    shelf(ledger, Kind::Plan, *root).join(format!("{root}-{bytes}.parquet"))
}

/// Where the dispositions of a round lie.
pub fn dispositions(ledger: &Path, id: &DispositionsId) -> PathBuf {
    let DispositionsId { root, count } = id;
    shelf(ledger, Kind::Dispositions, *root).join(format!("{root}-{count}.parquet"))
}

/// The piece digests of the manifest with this root.
pub fn hashes(ledger: &Path, manifest_root: Digest) -> PathBuf {
    shelf(ledger, Kind::Hashes, manifest_root).join(manifest_root.to_hex())
}

/// One of 256 directories, so that none grows past what a file system lists well.
fn shelf(ledger: &Path, kind: Kind, root: Digest) -> PathBuf {
    ledger.join(kind.dir()).join(&root.to_hex()[..2])
}

/// Moves a finished, synced file to its place; durable when this returns.
///
/// A file that is there already is replaced: it has the same content, or was damaged.
///
/// # Errors
///
/// The operating system's; fatal.
pub fn commit_file(files: &dyn Files, ledger: &Path, from: &Path, to: &Path) -> io::Result<()> {
    make_parents(files, ledger, to)?;
    files.rename(from, to)?;
    sync_parents(files, ledger, to)
}

/// Moves a finished directory of synced files to its place; durable when this returns.
///
/// If the place is taken, each file there is replaced: it has the same content, since the name holds
/// its root, or was damaged.
///
/// # Errors
///
/// The operating system's; fatal.
pub fn commit_dir(files: &dyn Files, ledger: &Path, from: &Path, to: &Path) -> io::Result<()> {
    make_parents(files, ledger, to)?;
    if files.exists(to)? {
        replace_dir(files, from, to)?;
    } else if let Err(error) = files.rename(from, to) {
        // Two threads may bring the same content; the later one finds the place taken.
        if !files.exists(to)? {
            return Err(error);
        }
        replace_dir(files, from, to)?;
    }
    sync_parents(files, ledger, to)
}

/// File by file, so that at any moment each is there, whole.
fn replace_dir(files: &dyn Files, from: &Path, to: &Path) -> io::Result<()> {
    let names = files.list(from)?;
    for name in &names {
        files.rename(&from.join(name), &to.join(name))?;
    }
    for name in files.list(to)?.iter().filter(|name| !names.contains(name)) {
        files.remove(&to.join(name))?;
    }
    files.sync_dir(to)?;
    files.remove_dir_all(from)
}

fn make_parents(files: &dyn Files, ledger: &Path, path: &Path) -> io::Result<()> {
    files.create_dir_all(path.parent().unwrap_or(ledger))
}

/// Makes `path`'s name durable, and those of the directories between it and the ledger's.
///
/// All of them each time: one that exists may be left from a run that ended before its sync.
fn sync_parents(files: &dyn Files, ledger: &Path, path: &Path) -> io::Result<()> {
    let within = |dir: &&Path| dir.starts_with(ledger);
    path.ancestors().skip(1).take_while(within).try_for_each(|dir| files.sync_dir(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_knows_its_names() {
        let root = "0a".repeat(32);
        let segment = format!("{root}-12.f32.parquet");
        assert!(Kind::Tensor.names(&segment) && Kind::Plan.names(&format!("{root}-9.parquet")));
        assert!(Kind::Delta.names(&root) && Kind::Hashes.names(&root));
        for other in ["notes.txt", &root[1..], &root.to_uppercase(), &format!("{root}.new")] {
            assert!(Kind::ALL.iter().all(|kind| !kind.names(other)), "{other}");
        }
        assert!(!Kind::Delta.names(&segment) && !Kind::Tensor.names(&root));
    }

    #[test]
    fn names_hold_root_length_and_dtype() {
        let artifact = ArtifactId { root: Digest([0xab; 32]), bytes: 12 };
        let path = tensor(Path::new("l"), &artifact, Dtype::F8E4m3);
        let root = "ab".repeat(32);
        assert_eq!(path, Path::new(&format!("l/segments/tensors/ab/{root}-12.f8_e4m3.parquet")));
    }
}
