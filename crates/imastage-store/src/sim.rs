//! A disk in memory that fails and loses power where it is told to, for tests.
//!
//! What is not synced may survive a power cut or not, in parts: of a write any of its sectors, of a
//! file its size without its bytes, of a directory any of its changes, in whatever order. A sync that
//! fails drops the bytes it could not write, and later ones do not make up for it, as on Linux.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Component, Path},
    sync::{Arc, Mutex, MutexGuard},
};

use crate::disk::{Content, Disk, Kind, Mode};

/// Small, so that everything is torn somewhere.
const SECTOR: usize = 16;

#[derive(Clone, Debug)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// From this operation on, nothing works until [`SimDisk::restart`].
    PowerCut { at: u64 },
    /// So many operations meet this.
    Trouble { at: u64, count: u64, trouble: Trouble },
}

/// What an operation meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Whatever it is, it fails: EIO.
    Broken,
    /// A write takes less than it was given.
    Short,
    /// What needs room fails: ENOSPC.
    Full,
    /// What changes anything fails: EROFS.
    ReadOnly,
}

/// What an operation does to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Look,
    Grow,
    Change,
    Sync,
}

#[derive(Debug)]
struct State {
    nodes: Vec<Node>,
    operations: u64,
    faults: Vec<Fault>,
    /// For what chance decides.
    random: u64,
}

#[derive(Debug)]
enum Node {
    File { live: Vec<u8>, durable: Vec<u8>, dirty: Vec<Change> },
    Dir { live: Names, durable: Names, dirty: Vec<Renaming> },
}

type Names = BTreeMap<OsString, usize>;

/// What one operation did to a directory: what names stand for now.
type Renaming = Vec<(OsString, Option<usize>)>;

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Size(u64),
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    node: usize,
}

impl SimDisk {
    pub(crate) fn new(seed: u64) -> SimDisk {
        let root = Node::Dir { live: Names::new(), durable: Names::new(), dirty: Vec::new() };
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        SimDisk(Arc::new(Mutex::new(State {
            nodes: vec![root],
            operations: 0,
            faults: Vec::new(),
            random,
        })))
    }

    /// How many operations were asked for, of any kind.
    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    /// What goes wrong from now on, instead of what was said before.
    pub(crate) fn set_faults(&self, faults: &[Fault]) {
        self.state().faults = faults.to_vec();
    }

    /// What a disk holds after the power was cut: what is durable, and what else chance wrote.
    pub(crate) fn restart(&self) {
        let State { nodes, faults, random, .. } = &mut *self.state();
        faults.clear();
        // Now and then all or nothing, which chance would not give for many changes.
        let luck = next(random) % 8;
        for node in nodes {
            match node {
                Node::File { live, durable, dirty } => {
                    for change in std::mem::take(dirty) {
                        survive(durable, change, luck, random);
                    }
                    live.clone_from(durable);
                }
                Node::Dir { live, durable, dirty } => {
                    for renaming in std::mem::take(dirty) {
                        let survives = match luck {
                            0 => false,
                            1 => true,
                            _ => next(random).is_multiple_of(2),
                        };
                        if survives {
                            rename(durable, &renaming);
                        }
                    }
                    live.clone_from(durable);
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

/// Writes what chance lets survive of a change.
fn survive(bytes: &mut Vec<u8>, change: Change, luck: u64, random: &mut u64) {
    let mut chance = || match luck {
        0 => false,
        1 => true,
        _ => next(random).is_multiple_of(2),
    };
    match change {
        Change::Size(size) => {
            if chance() {
                bytes.resize(size as usize, 0);
            }
        }
        Change::Write(offset, new) => {
            let end = offset as usize + new.len();
            if bytes.len() < end && chance() {
                bytes.resize(end, 0);
            }
            for (i, sector) in new.chunks(SECTOR).enumerate() {
                let begin = offset as usize + i * SECTOR;
                if chance() {
                    if bytes.len() < begin + sector.len() {
                        bytes.resize(begin + sector.len(), 0);
                    }
                    bytes[begin..begin + sector.len()].copy_from_slice(sector);
                }
            }
        }
    }
}

/// xorshift64
fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random >> 11
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Size(size) => bytes.resize(*size as usize, 0),
        Change::Write(offset, new) => {
            let end = *offset as usize + new.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset as usize..end].copy_from_slice(new);
        }
    }
}

impl State {
    /// Counts an operation. `Ok(true)` if it may do only part of its work.
    fn step(&mut self, op: Op) -> io::Result<bool> {
        const EIO: i32 = 5;
        const ENOSPC: i32 = 28;
        const EROFS: i32 = 30;
        let now = self.operations;
        self.operations += 1;
        let fails = |errno| Err(io::Error::from_raw_os_error(errno));
        for fault in &self.faults {
            match *fault {
                Fault::PowerCut { at } if now >= at => return fails(EIO),
                Fault::Trouble { at, count, trouble } if (at..at + count).contains(&now) => {
                    return match (trouble, op) {
                        (Trouble::Broken, _) => fails(EIO),
                        (Trouble::Short, _) => Ok(true),
                        (Trouble::Full, Op::Grow) => fails(ENOSPC),
                        (Trouble::ReadOnly, Op::Grow | Op::Change) => fails(EROFS),
                        (Trouble::Full | Trouble::ReadOnly, _) => Ok(false),
                    };
                }
                _ => {}
            }
        }
        Ok(false)
    }

    /// Whether this is where the power goes: of a write that is under way part may survive.
    fn power_goes(&self) -> bool {
        let is_now =
            |fault: &Fault| matches!(fault, Fault::PowerCut { at } if self.operations == at + 1);
        self.faults.iter().any(is_now)
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut node = 0;
        for part in path.components().filter(|part| *part != Component::RootDir) {
            let Node::Dir { live, .. } = &self.nodes[node] else { return Err(not_found()) };
            node = *live.get(part.as_os_str()).ok_or_else(not_found)?;
        }
        Ok(node)
    }

    fn names(&mut self, dir: &Path) -> io::Result<(&mut Names, &mut Vec<Renaming>)> {
        let node = self.find(dir)?;
        match &mut self.nodes[node] {
            Node::Dir { live, dirty, .. } => Ok((live, dirty)),
            Node::File { .. } => Err(not_found()),
        }
    }

    /// Changes the directory that `path` is in.
    fn change(&mut self, path: &Path, changes: &[(&Path, Option<usize>)]) -> io::Result<()> {
        let (live, dirty) = self.names(path.parent().unwrap())?;
        let name = |path: &Path| path.file_name().unwrap().to_owned();
        let renaming = changes.iter().map(|(path, node)| (name(path), *node)).collect();
        rename(live, &renaming);
        dirty.push(renaming);
        Ok(())
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<usize> {
        let number = self.nodes.len();
        self.change(path, &[(path, Some(number))])?;
        self.nodes.push(node);
        Ok(number)
    }
}

fn rename(names: &mut Names, renaming: &Renaming) {
    for (name, node) in renaming {
        match node {
            Some(node) => names.insert(name.clone(), *node),
            None => names.remove(name),
        };
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for SimDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let mut state = self.state();
        state.step(Op::Look)?;
        Ok(state.names(dir)?.0.keys().cloned().collect())
    }

    fn kind(&self, path: &Path) -> io::Result<Kind> {
        let mut state = self.state();
        state.step(Op::Look)?;
        let node = state.find(path)?;
        Ok(match &state.nodes[node] {
            Node::File { .. } => Kind::File,
            Node::Dir { .. } => Kind::Directory,
        })
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step(Op::Grow)?;
        if state.find(dir).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let node = Node::Dir { live: Names::new(), durable: Names::new(), dirty: Vec::new() };
        state.add(dir, node).map(|_| ())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step(Op::Sync)?;
        let node = state.find(dir)?;
        if let Node::Dir { live, durable, dirty } = &mut state.nodes[node] {
            durable.clone_from(live);
            dirty.clear();
        }
        Ok(())
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn Content>> {
        let mut state = self.state();
        let op = match (mode, state.find(path)) {
            (Mode::Read, _) => Op::Look,
            (Mode::Create | Mode::New, Err(_)) => Op::Grow,
            _ => Op::Change,
        };
        state.step(op)?;
        let node = match state.find(path) {
            Ok(_) if mode == Mode::New => return Err(io::ErrorKind::AlreadyExists.into()),
            Ok(node) => node,
            Err(_) if matches!(mode, Mode::Create | Mode::New) => {
                let (live, durable, dirty) = Default::default();
                state.add(path, Node::File { live, durable, dirty })?
            }
            Err(error) => return Err(error),
        };
        Ok(Arc::new(SimFile { disk: self.clone(), node }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step(Op::Change)?;
        let node = state.find(from)?;
        assert_eq!(from.parent(), to.parent());
        state.change(from, &[(from, None), (to, Some(node))])
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step(Op::Change)?;
        state.find(path)?;
        state.change(path, &[(path, None)])
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step(Op::Change)?;
        if !state.names(dir)?.0.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        state.change(dir, &[(dir, None)])
    }
}

impl SimFile {
    fn change(&self, change: Change) -> io::Result<usize> {
        let mut state = self.disk.state();
        let op = if matches!(change, Change::Write(..)) { Op::Grow } else { Op::Change };
        let short = state.step(op);
        let power_goes = state.power_goes();
        let Node::File { live, dirty, .. } = &mut state.nodes[self.node] else {
            return Err(not_found());
        };
        let (change, done) = match (change, &short) {
            (Change::Write(offset, mut bytes), Ok(true)) => {
                bytes.truncate(bytes.len().div_ceil(2));
                let done = bytes.len();
                (Change::Write(offset, bytes), done)
            }
            (Change::Write(offset, bytes), _) => {
                let done = bytes.len();
                (Change::Write(offset, bytes), done)
            }
            (change, _) => (change, 0),
        };
        if short.is_ok() || power_goes {
            apply(live, &change);
            dirty.push(change);
        }
        short.map(|_| done)
    }
}

impl Content for SimFile {
    fn size(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        state.step(Op::Look)?;
        match &state.nodes[self.node] {
            Node::File { live, .. } => Ok(live.len() as u64),
            Node::Dir { .. } => Err(not_found()),
        }
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.step(Op::Look)?;
        let Node::File { live, .. } = &state.nodes[self.node] else { return Err(not_found()) };
        let from = live.get(offset as usize..).unwrap_or_default();
        let n = from.len().min(bytes.len());
        bytes[..n].copy_from_slice(&from[..n]);
        Ok(n)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.change(Change::Write(offset, bytes.to_vec()))
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.change(Change::Size(size)).map(|_| ())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let step = state.step(Op::Sync);
        let power_goes = state.power_goes();
        let State { nodes, random, .. } = &mut *state;
        let Node::File { durable, dirty, .. } = &mut nodes[self.node] else {
            return Err(not_found());
        };
        match step {
            Ok(_) => {
                for change in dirty.drain(..) {
                    apply(durable, &change);
                }
                Ok(())
            }
            // Those still to be decided by the power cut.
            Err(error) if power_goes => Err(error),
            Err(error) => {
                for change in dirty.drain(..) {
                    match change {
                        // Sizes are metadata: a file system keeps them, or takes no more writes.
                        Change::Size(_) => apply(durable, &change),
                        Change::Write(..) => survive(durable, change, 2, random),
                    }
                }
                Err(error)
            }
        }
    }

    /// Holes are found sector by sector.
    fn data_from(&self, offset: u64) -> io::Result<Option<u64>> {
        let mut state = self.disk.state();
        state.step(Op::Look)?;
        let Node::File { live, .. } = &state.nodes[self.node] else { return Err(not_found()) };
        let from = live.get(offset as usize..).unwrap_or_default();
        let hole = from.chunks(SECTOR).take_while(|sector| sector.iter().all(|byte| *byte == 0));
        let data = hole.count() * SECTOR;
        Ok((data < from.len()).then_some(offset + data as u64))
    }
}
