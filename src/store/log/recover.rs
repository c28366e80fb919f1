//! Opening a log to write: what a crash left behind is put right, or named.

use std::{io, path::Path, sync::Arc};

use super::{
    LogError, LogWriter, TreeState,
    dir::{Found, LogDir, Part},
    tiler::Tiler,
};
use crate::{
    merkle::{
        head::TreeHead,
        tile::{BundleId, TILE_WIDTH, TileId, encode_bundle},
    },
    store::{files::Files, keys::heads::HeadSigner},
};

impl LogWriter {
    /// Opens the log in `dir` to write.
    ///
    /// The tree that `tree-state` commits is believed once the tiles give its root, and every head
    /// that was signed or published leads to it. Its head is signed and published anew if that is
    /// missing, older, or signed by a key that the signer's took over from. What lies beyond it is of a batch that was never committed, and is removed,
    /// as are partial files that wider ones replaced.
    ///
    /// # Errors
    ///
    /// [`LogError::Absent`] if there is no log. Otherwise what is wrong with which file; of a log
    /// restored from an old backup [`LogError::Guard`] says so, or [`LogError::Ahead`].
    pub fn open(files: Arc<dyn Files>, dir: &Path, signer: HeadSigner) -> Result<Self, LogError> {
        let dir = LogDir { files, path: dir.to_owned() };
        let state = dir.read_state()?;
        check_origin(&dir, &state, signer.origin())?;
        // A process that died between rename and sync leaves a state that is seen but not durable;
        // what is signed from here on must not outlive it.
        let synced = dir.files.sync_dir(&dir.path);
        synced.map_err(|source| LogError::Io { path: dir.path.clone(), source })?;
        remove_torn(&dir)?;
        let (tiler, tail) = load_edge(&dir, &state)?;
        let published = read_published(&dir, &signer)?;
        check_past(&dir, &state, &signer, published.as_ref().map(|p| &p.head))?;
        let mut log = Self::at(dir.clone(), signer, tiler, tail);
        match published {
            Some(p) if p.ours && p.head.size == state.size => log.keep_published(p.note)?,
            _ => log.publish()?,
        }
        sweep(&dir, state.size)?;
        Ok(log)
    }
}

fn check_origin(dir: &LogDir, state: &TreeState, origin: &str) -> Result<(), LogError> {
    if state.origin == origin {
        return Ok(());
    }
    let (expected, found) = (origin.to_owned(), state.origin.clone());
    Err(LogError::Origin { path: dir.state_path(), expected, found })
}

/// Removes the files that were to be renamed into place.
pub(super) fn remove_torn(dir: &LogDir) -> Result<(), LogError> {
    for path in [dir.state_path(), dir.head_path()] {
        let path = path.with_extension("new");
        match dir.files.remove(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(LogError::Io { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The tree's edge and the last bundle's bytes, in agreement with each other and the state.
pub(super) fn load_edge(dir: &LogDir, state: &TreeState) -> Result<(Tiler, Vec<u8>), LogError> {
    // The exact files only: a wider one is of a batch that was not committed, and is removed below.
    let tiler = Tiler::load(state.size, |tile| {
        dir.decode_tile(tile, &read_committed(dir, Part::Tile(tile))?)
    })?;
    let (stated, computed, size) = (state.root, tiler.root(), state.size);
    if stated != computed {
        return Err(LogError::Root { path: dir.state_path(), size, stated, computed });
    }
    let width = (size % u64::from(TILE_WIDTH)) as u16;
    let Ok(bundle) = BundleId::new(size / u64::from(TILE_WIDTH), width) else {
        return Ok((tiler, vec![]));
    };
    let tile = TileId::new(0, bundle.index(), width).expect("it has the bundle's width");
    let entries = dir.decode_bundle(bundle, &read_committed(dir, Part::Bundle(bundle))?)?;
    dir.check_leaves(tile, &entries, &dir.read_tile(tile)?)?;
    let tail = encode_bundle(&entries).expect("the entries were in a bundle");
    Ok((tiler, tail))
}

fn read_committed(dir: &LogDir, part: Part) -> Result<Found, LogError> {
    let bytes = dir.read_exact(part)?;
    let bytes = bytes.ok_or_else(|| LogError::Missing { path: dir.part_path(part) })?;
    Ok(Found { part, bytes })
}

/// The published head.
struct Published {
    head: TreeHead,
    note: Vec<u8>,
    /// Whether our key signed it, not one that it took over from.
    ours: bool,
}

/// The published head, which our key or one before it must have signed; none if a crash came before
/// it.
fn read_published(dir: &LogDir, signer: &HeadSigner) -> Result<Option<Published>, LogError> {
    let note = match dir.read_head() {
        Ok(note) => note,
        Err(LogError::Absent { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let (head, ours) =
        signer.open(&note).map_err(|source| LogError::Head { path: dir.head_path(), source })?;
    Ok(Some(Published { head, note, ours }))
}

/// Checks that what was published and signed before leads to the committed tree.
fn check_past(
    dir: &LogDir,
    state: &TreeState,
    signer: &HeadSigner,
    published: Option<&TreeHead>,
) -> Result<(), LogError> {
    // The guard first: it says what to do about a log that is older than what was signed.
    let committed = TreeHead { origin: state.origin.clone(), size: state.size, root: state.root };
    signer.guard().check(&committed)?;
    let signed = signer.guard().signed(&state.origin)?;
    dir.check_head(signer.guard().path().to_owned(), &signed, state.size)?;
    match published {
        Some(head) => dir.check_head(dir.head_path(), head, state.size),
        None => Ok(()),
    }
}

/// Removes what is beyond the committed tree, and partial files that wider ones replaced.
pub(super) fn sweep(dir: &LogDir, size: u64) -> Result<(), LogError> {
    let mut stale = vec![];
    dir.walk(&mut |path, part| {
        // Names that no log has are left to the check, which says so.
        if let Some(part) = part
            && part.at_size(size) != Some(part)
        {
            stale.push(path.to_owned());
        }
        Ok(())
    })?;
    // Not synced: a name that comes back is removed by the next writer before it appends.
    for path in stale {
        dir.files.remove(&path).map_err(|source| LogError::Io { path, source })?;
    }
    Ok(())
}
