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

use gradledger::store::files::{Files, ReadFile, WriteFile};

/// What goes wrong, counting calls that change something from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This call and all after it fail, reading too; if it writes, half of its bytes are written.
    CutAt(usize),
    /// This call fails and changes nothing; later ones work.
    FailAt(usize),
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
}

impl Survival {
    pub const ALL: [Self; 3] = [Self::Killed, Self::Dropped, Self::Torn];
}

/// The disk. Clones are the same disk; [`MemFs::fork`] makes another.
#[derive(Clone)]
pub struct MemFs(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    inodes: Vec<Inode>,
    calls: usize,
    fault: Option<Fault>,
    cut: bool,
}

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
            },
            Self::File { bytes, durable, .. } => match survival {
                Survival::Killed => {}
                Survival::Dropped => *bytes = durable.clone(),
                Survival::Torn => {
                    let kept = if bytes.starts_with(durable) { durable.len() } else { 0 };
                    bytes.truncate(kept + (bytes.len() - kept) / 2);
                    *durable = bytes.clone();
                }
            },
        }
    }
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
    fn change(&mut self) -> io::Result<()> {
        self.look()?;
        let call = self.calls;
        self.calls += 1;
        match self.fault {
            Some(Fault::CutAt(at)) if at == call => {
                self.cut = true;
                Err(io::Error::other("power cut"))
            }
            Some(Fault::FailAt(at)) if at == call => Err(io::Error::other("disk failure")),
            _ => Ok(()),
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
        let state = State { calls: 0, fault, cut: false, ..self.state().clone() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// The disk as the next process finds it.
    pub fn restart(&self, survival: Survival) -> Self {
        let next = self.fork(None);
        next.state().inodes.iter_mut().for_each(|inode| inode.survive(survival));
        next
    }

    /// How many calls changed something, or tried to.
    pub fn calls(&self) -> usize {
        self.state().calls
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
        state.change()?;
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
                state.names(dir)?.insert(name, id);
                id
            }
        };
        Ok(Box::new(Handle { fs: self.clone(), id }))
    }
}

/// An open file.
struct Handle {
    fs: MemFs,
    id: usize,
}

impl Write for Handle {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let mut state = self.fs.state();
        let changed = state.change();
        let cut = state.cut;
        if let Inode::File { bytes, .. } = &mut state.inodes[self.id] {
            match &changed {
                Ok(()) => bytes.extend(buffer),
                Err(_) if cut => bytes.extend(&buffer[..buffer.len() / 2]),
                Err(_) => {}
            }
        }
        changed.map(|()| buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteFile for Handle {
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.fs.state();
        state.change()?;
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
            Inode::File { .. } => Ok(Arc::new(Handle { fs: self.clone(), id })),
            Inode::Dir { .. } => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        let id = state.find(from)?;
        let ((from_dir, from_name), (to_dir, to_name)) = (state.place(from)?, state.place(to)?);
        if let Some(&old) = state.names(to_dir)?.get(&to_name)
            && matches!(&state.inodes[old], Inode::Dir { live, .. } if !live.is_empty())
        {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        state.names(from_dir)?.remove(&from_name);
        state.names(to_dir)?.insert(to_name, id);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        let id = state.find(path)?;
        if matches!(state.inodes[id], Inode::Dir { .. }) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let (dir, name) = state.place(path)?;
        state.names(dir)?.remove(&name);
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        let id = state.find(path)?;
        state.names(id)?;
        let (dir, name) = state.place(path)?;
        state.names(dir)?.remove(&name);
        Ok(())
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        let mut dir = ROOT;
        for name in parts(path) {
            let found = state.names(dir)?.get(name).copied();
            dir = match found {
                Some(id) => id,
                None => {
                    let id = state.add(Inode::dir());
                    state.names(dir)?.insert(name.to_owned(), id);
                    id
                }
            };
        }
        state.names(dir).map(|_| ())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        let id = state.find(path)?;
        match &mut state.inodes[id] {
            Inode::Dir { live, durable } => durable.clone_from(live),
            Inode::File { .. } => return Err(io::ErrorKind::NotADirectory.into()),
        }
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
