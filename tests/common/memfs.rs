//! A disk in memory that knows what is durable, and fails on purpose.
//!
//! Every call that changes something is counted; [`Fault`] picks the one that goes wrong. After a
//! cut, [`MemFs::restart`] gives the disk as the next process finds it. Bytes are durable once the
//! file was synced, names once their directory was, each on its own.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io::{self, Write},
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex},
};

use gradledger::{
    store::files::{Files, ReadFile, WriteFile},
    types::digest::Digest,
};

use super::Random;

/// What goes wrong, counting calls that change something from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::enum_variant_names)] // Each is at a call.
pub enum Fault {
    /// This call and all after it fail, reading too; half of what it does is done: bytes written,
    /// directories made, names removed.
    CutAt(usize),
    /// This call fails and changes nothing; later ones work.
    FailAt(usize),
    /// From this call on nothing that needs room works: writing, creating.
    NoSpaceAt(usize),
    /// If this call writes, it writes half of its bytes, and says so.
    ShortAt(usize),
    /// If this call writes, a signal interrupts it before the first byte.
    InterruptAt(usize),
}

/// A call that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Create,
    Write,
    Sync,
    Rename,
    Remove,
    RemoveDirAll,
    CreateDirAll,
    SyncDir,
}

/// What a process that starts after the cut finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// Only the process died: all is there, but what was not durable still is not.
    Killed,
    /// The power was cut: what was not durable is gone, and removed names are back.
    Dropped,
    /// The power was cut: names were kept, of bytes that were not durable the first half.
    Torn,
    /// The power was cut: of changed names and sectors that were not durable some were kept, in any
    /// order; sectors that were not read as zeros. The seed picks.
    Scattered(u64),
}

impl Survival {
    pub const ALL: [Self; 3] = [Self::Killed, Self::Dropped, Self::Torn];

    /// All of them.
    pub fn all(seed: u64) -> [Self; 4] {
        [Self::Killed, Self::Dropped, Self::Torn, Self::Scattered(seed)]
    }

    /// Its name, for counts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Killed => "kept",
            Self::Dropped => "dropped",
            Self::Torn => "torn",
            Self::Scattered(_) => "scattered",
        }
    }
}

/// The disk. Clones are the same disk; [`MemFs::fork`] makes another.
#[derive(Clone)]
pub struct MemFs(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    inodes: Vec<Inode>,
    /// Changes of names that are not durable yet, oldest first.
    pending: Vec<NameChange>,
    calls: Vec<(Call, PathBuf)>,
    fault: Option<Fault>,
    cut: bool,
    full: bool,
}

/// Names that change at once, and what each stands for then: two for a rename.
#[derive(Clone)]
struct NameChange(Vec<(usize, OsString, Option<usize>)>);

type Names = BTreeMap<OsString, usize>;

#[derive(Clone)]
enum Inode {
    Dir { live: Names, durable: Names },
    File { bytes: Vec<u8>, durable: Vec<u8>, secret: bool },
}

const ROOT: usize = 0;

impl Inode {
    fn dir() -> Self {
        Self::Dir { live: Names::new(), durable: Names::new() }
    }

    fn file(secret: bool) -> Self {
        Self::File { bytes: vec![], durable: vec![], secret }
    }

    /// What is left of it.
    fn survive(&mut self, survival: Survival) {
        match self {
            Self::Dir { live, durable } => match survival {
                Survival::Killed => {}
                Survival::Dropped => *live = durable.clone(),
                Survival::Torn => *durable = live.clone(),
                Survival::Scattered(_) => unreachable!("scattered by the whole disk"),
            },
            Self::File { bytes, durable, .. } => match survival {
                Survival::Killed => {}
                Survival::Dropped => *bytes = durable.clone(),
                Survival::Torn => {
                    let kept = if bytes.starts_with(durable) { durable.len() } else { 0 };
                    bytes.truncate(kept + (bytes.len() - kept) / 2);
                    *durable = bytes.clone();
                }
                Survival::Scattered(_) => unreachable!("scattered by the whole disk"),
            },
        }
    }
}

const SECTOR_BYTES: usize = 512;

/// Some sectors of what was written after the last sync.
fn scatter(bytes: &mut Vec<u8>, durable: &mut Vec<u8>, random: &mut Random) {
    if bytes == durable {
        return;
    }
    if !bytes.starts_with(durable) && random.below(2) == 0 {
        // Emptied and written anew, none of which happened.
        bytes.clone_from(durable);
        return;
    }
    let kept = if bytes.starts_with(durable) { durable.len() } else { 0 };
    let length = match random.below(3) {
        0 => kept,
        1 => bytes.len(),
        _ => kept + random.below((bytes.len() - kept) as u64 + 1) as usize,
    };
    bytes.truncate(length);
    for sector in bytes[kept..].chunks_mut(SECTOR_BYTES) {
        if random.below(2) == 0 {
            sector.fill(0);
        }
    }
    durable.clone_from(bytes);
}

impl State {
    fn names(&mut self, dir: usize) -> io::Result<&mut Names> {
        match &mut self.inodes[dir] {
            Inode::Dir { live, .. } => Ok(live),
            Inode::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn find(&mut self, path: &Path) -> io::Result<usize> {
        parts(path).try_fold(ROOT, |dir, name| {
            self.names(dir)?.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    /// The directory that a path's last name is in, and that name.
    fn place(&mut self, path: &Path) -> io::Result<(usize, OsString)> {
        let name = parts(path).last().expect("a path below the root").to_owned();
        Ok((self.find(path.parent().expect("a path below the root"))?, name))
    }

    fn add(&mut self, inode: Inode) -> usize {
        self.inodes.push(inode);
        self.inodes.len() - 1
    }

    /// Counts a call that changes something.
    fn change(&mut self, what: Call, path: &Path) -> io::Result<()> {
        self.look()?;
        let call = self.calls.len();
        self.calls.push((what, path.to_owned()));
        let needs_room = match what {
            Call::Create | Call::Write => true,
            Call::CreateDirAll => self.find(path).is_err(),
            _ => false,
        };
        match self.fault {
            Some(Fault::CutAt(at)) if at == call => {
                self.cut = true;
                return Err(io::Error::other("power cut"));
            }
            Some(Fault::FailAt(at)) if at == call => return Err(io::Error::other("disk failure")),
            Some(Fault::NoSpaceAt(at)) if at == call => self.full = true,
            Some(Fault::InterruptAt(at)) if at == call && what == Call::Write => {
                return Err(io::ErrorKind::Interrupted.into());
            }
            _ => {}
        }
        if self.full && needs_room { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    /// Changes names at once, live; durable at the next sync of their directories.
    fn rename_all(&mut self, names: Vec<(usize, OsString, Option<usize>)>) -> io::Result<()> {
        for (dir, name, id) in &names {
            let live = self.names(*dir)?;
            match id {
                Some(id) => drop(live.insert(name.clone(), *id)),
                None => drop(live.remove(name)),
            }
        }
        self.pending.push(NameChange(names));
        Ok(())
    }

    fn survive(&mut self, survival: Survival) {
        let Survival::Scattered(seed) = survival else {
            self.inodes.iter_mut().for_each(|inode| inode.survive(survival));
            if survival != Survival::Killed {
                self.pending.clear();
            }
            return;
        };
        let mut random = Random(seed);
        for NameChange(names) in std::mem::take(&mut self.pending) {
            if random.below(2) == 0 {
                continue;
            }
            for (dir, name, id) in names {
                let Inode::Dir { durable, .. } = &mut self.inodes[dir] else { continue };
                match id {
                    Some(id) => drop(durable.insert(name, id)),
                    None => drop(durable.remove(&name)),
                }
            }
        }
        for inode in &mut self.inodes {
            match inode {
                Inode::Dir { live, durable } => live.clone_from(durable),
                Inode::File { bytes, durable, .. } => scatter(bytes, durable, &mut random),
            }
        }
    }

    /// A call that changes nothing.
    fn look(&self) -> io::Result<()> {
        if self.cut { Err(io::Error::other("power is cut")) } else { Ok(()) }
    }
}

fn parts(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    })
}

impl MemFs {
    /// An empty disk.
    pub fn new() -> Self {
        let state = State { inodes: vec![Inode::dir()], ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no test panics within a call")
    }

    /// As the trait's handle.
    pub fn handle(&self) -> Arc<dyn Files> {
        Arc::new(self.clone())
    }

    /// A disk with the same bytes, a fault to come, and no call counted.
    pub fn fork(&self, fault: Option<Fault>) -> Self {
        let state = self.state();
        let state = State {
            inodes: state.inodes.clone(),
            pending: state.pending.clone(),
            calls: vec![],
            fault,
            cut: false,
            full: false,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// The disk as the next process finds it.
    pub fn restart(&self, survival: Survival) -> Self {
        let next = self.fork(None);
        next.state().survive(survival);
        next
    }

    /// How many calls changed something, or tried to.
    pub fn calls(&self) -> usize {
        self.state().calls.len()
    }

    /// Which calls, with the path each was for.
    pub fn trace(&self) -> Vec<(Call, PathBuf)> {
        self.state().calls.clone()
    }

    /// The bytes of a file as they would be found if what is not durable were dropped.
    pub fn durable(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        let id = parts(path).try_fold(ROOT, |dir, name| match &state.inodes[dir] {
            Inode::Dir { durable, .. } => durable.get(name).copied(),
            Inode::File { .. } => None,
        })?;
        match &state.inodes[id] {
            Inode::File { durable, .. } => Some(durable.clone()),
            Inode::Dir { .. } => None,
        }
    }

    /// A digest of all that is there, and of all that is durable.
    pub fn fingerprint(&self) -> Digest {
        fn of(inodes: &[Inode], id: usize, known: &mut BTreeMap<usize, Digest>) -> Digest {
            if let Some(digest) = known.get(&id) {
                return *digest;
            }
            let mut text = Vec::new();
            match &inodes[id] {
                Inode::File { bytes, durable, secret } => {
                    text.push(u8::from(*secret));
                    text.extend(Digest::of(bytes).as_bytes());
                    text.extend(Digest::of(durable).as_bytes());
                }
                Inode::Dir { live, durable } => {
                    for (kind, names) in [(2, live), (3, durable)] {
                        for (name, id) in names {
                            text.push(kind);
                            text.extend(Digest::of(name.as_encoded_bytes()).as_bytes());
                            text.extend(of(inodes, *id, known).as_bytes());
                        }
                    }
                }
            }
            let digest = Digest::of(&text);
            known.insert(id, digest);
            digest
        }
        of(&self.state().inodes, ROOT, &mut BTreeMap::new())
    }

    /// Every file with its bytes.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.state();
        let mut files = BTreeMap::new();
        let mut dirs = vec![(PathBuf::from("/"), ROOT)];
        while let Some((path, dir)) = dirs.pop() {
            let Inode::Dir { live, .. } = &state.inodes[dir] else { continue };
            for (name, &id) in live {
                match &state.inodes[id] {
                    Inode::Dir { .. } => dirs.push((path.join(name), id)),
                    Inode::File { bytes, .. } => drop(files.insert(path.join(name), bytes.clone())),
                }
            }
        }
        files
    }

    /// Puts a file there behind the program's back, and the directories above it.
    pub fn put(&self, path: &Path, bytes: Vec<u8>) {
        self.create_dir_all(path.parent().expect("a file below the root")).expect("a free name");
        drop(self.create(path).expect("a free name"));
        self.tamper(path, |file| *file = bytes);
    }

    /// Changes a file behind the program's back.
    pub fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let id = state.find(path).expect("a file to tamper with");
        if let Inode::File { bytes, .. } = &mut state.inodes[id] {
            change(bytes);
        }
    }

    fn create_file(&self, path: &Path, secret: bool) -> io::Result<Box<dyn WriteFile>> {
        let mut state = self.state();
        state.change(Call::Create, path)?;
        let (dir, name) = state.place(path)?;
        let found = state.names(dir)?.get(&name).copied();
        let id = match found {
            Some(_) if secret => return Err(io::ErrorKind::AlreadyExists.into()),
            Some(id) => {
                let Inode::File { bytes, .. } = &mut state.inodes[id] else {
                    return Err(io::ErrorKind::IsADirectory.into());
                };
                bytes.clear();
                id
            }
            None => {
                let id = state.add(Inode::file(secret));
                state.rename_all(vec![(dir, name, Some(id))])?;
                id
            }
        };
        Ok(Box::new(Handle { fs: self.clone(), id, path: path.to_owned() }))
    }
}

/// An open file.
struct Handle {
    fs: MemFs,
    id: usize,
    path: PathBuf,
}

impl Write for Handle {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let mut state = self.fs.state();
        let call = state.calls.len();
        let was_cut = state.cut;
        let changed = state.change(Call::Write, &self.path);
        let cut = state.cut && !was_cut;
        let short = state.fault == Some(Fault::ShortAt(call));
        let length = match &changed {
            Ok(()) if short => buffer.len().div_ceil(2),
            Ok(()) => buffer.len(),
            Err(_) if cut => buffer.len() / 2,
            Err(_) => 0,
        };
        if let Inode::File { bytes, .. } = &mut state.inodes[self.id] {
            bytes.extend(&buffer[..length]);
        }
        changed.map(|()| length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteFile for Handle {
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.fs.state();
        state.change(Call::Sync, &self.path)?;
        if let Inode::File { bytes, durable, .. } = &mut state.inodes[self.id] {
            durable.clone_from(bytes);
        }
        Ok(())
    }
}

impl ReadFile for Handle {
    fn len(&self) -> io::Result<u64> {
        let state = self.fs.state();
        state.look()?;
        match &state.inodes[self.id] {
            Inode::File { bytes, .. } => Ok(bytes.len() as u64),
            Inode::Dir { .. } => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.fs.state();
        state.look()?;
        let Inode::File { bytes, .. } = &state.inodes[self.id] else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        let start = usize::try_from(offset).expect("a test's offset");
        let part = bytes.get(start..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn is_secret(&self) -> io::Result<bool> {
        let state = self.fs.state();
        Ok(matches!(state.inodes[self.id], Inode::File { secret: true, .. }))
    }
}

impl Files for MemFs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.create_file(path, false)
    }

    fn create_secret(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.create_file(path, true)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        let mut state = self.state();
        state.look()?;
        let id = state.find(path)?;
        match state.inodes[id] {
            Inode::File { .. } => {
                Ok(Arc::new(Handle { fs: self.clone(), id, path: path.to_owned() }))
            }
            Inode::Dir { .. } => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.change(Call::Rename, to)?;
        let id = state.find(from)?;
        let ((from_dir, from_name), (to_dir, to_name)) = (state.place(from)?, state.place(to)?);
        if let Some(&old) = state.names(to_dir)?.get(&to_name)
            && matches!(&state.inodes[old], Inode::Dir { live, .. } if !live.is_empty())
        {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        state.rename_all(vec![(from_dir, from_name, None), (to_dir, to_name, Some(id))])
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.change(Call::Remove, path)?;
        let id = state.find(path)?;
        if matches!(state.inodes[id], Inode::Dir { .. }) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let (dir, name) = state.place(path)?;
        state.rename_all(vec![(dir, name, None)])
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let cut = state.cut;
        let changed = state.change(Call::RemoveDirAll, path);
        if changed.is_err() && (cut || !state.cut) {
            return changed;
        }
        let id = state.find(path)?;
        // Names go one after the other, so a cut may leave some.
        let names: Vec<_> = state.names(id)?.keys().cloned().collect();
        let removed = if changed.is_ok() { names.len() } else { names.len() / 2 };
        for name in names.into_iter().take(removed) {
            state.rename_all(vec![(id, name, None)])?;
        }
        changed?;
        let (dir, name) = state.place(path)?;
        state.rename_all(vec![(dir, name, None)])
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let cut = state.cut;
        let changed = state.change(Call::CreateDirAll, path);
        if changed.is_err() && (cut || !state.cut) {
            return changed;
        }
        // As above: the first ones only.
        let depth = parts(path).count();
        let made = if changed.is_ok() { depth } else { depth - 1 };
        let mut dir = ROOT;
        for name in parts(path).take(made) {
            let found = state.names(dir)?.get(name).copied();
            dir = match found {
                Some(id) => id,
                None => {
                    let id = state.add(Inode::dir());
                    state.rename_all(vec![(dir, name.to_owned(), Some(id))])?;
                    id
                }
            };
        }
        changed?;
        state.names(dir).map(|_| ())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.change(Call::SyncDir, path)?;
        let id = state.find(path)?;
        match &mut state.inodes[id] {
            Inode::Dir { live, durable } => durable.clone_from(live),
            Inode::File { .. } => return Err(io::ErrorKind::NotADirectory.into()),
        }
        state.pending.iter_mut().for_each(|NameChange(names)| names.retain(|(dir, ..)| *dir != id));
        state.pending.retain(|NameChange(names)| !names.is_empty());
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut state = self.state();
        state.look()?;
        let id = state.find(path)?;
        Ok(state.names(id)?.keys().map(PathBuf::from).collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.state();
        state.look()?;
        Ok(state.find(path).is_ok())
    }
}
