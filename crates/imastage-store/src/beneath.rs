//! The state directory on this machine's file system. It is opened once, and everything below it is
//! reached from there, name by name, without following a link: its maker cannot lead us
//! out of it. Only the way to the state directory itself may lead through links: that is the
//! administrator's.
//!
//! Paths have three names at most, so that each is opened on its own (`O_NOFOLLOW`): the same as
//! openat2 with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`, on every kernel and below every system call
//! filter.

use std::{
    ffi::{OsStr, OsString},
    fs::{DirBuilder, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::DirBuilderExt},
    },
    path::{Component, Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rustix::{
    fs::{self as sys, AtFlags, FileType, OFlags},
    io::Errno,
};

use crate::disk::{Content, Disk, Kind, Mode};

/// A state directory and what is in it.
#[derive(Debug)]
pub(crate) struct SystemDisk {
    state: PathBuf,
    root: OnceLock<OwnedFd>,
}

/// Something else stands where the store has a file or a directory.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Foreign {
    pub(crate) path: PathBuf,
    what: String,
}

impl SystemDisk {
    /// Nothing is opened yet: the directory need not be there.
    pub(crate) fn new(state: &Path) -> SystemDisk {
        SystemDisk { state: state.to_owned(), root: OnceLock::new() }
    }

    /// As [`SystemDisk::new`], to be shared.
    pub(crate) fn shared(state: &Path) -> Arc<dyn Disk> {
        Arc::new(SystemDisk::new(state))
    }

    /// A file, seen to be one.
    pub(crate) fn open_file(&self, path: &Path, mode: Mode) -> io::Result<File> {
        let (dir, name) = self.parent(path)?;
        // Opening a device can already do something, so that it is looked at first.
        match kind_of(dir.as_fd(), name) {
            Ok(Kind::File) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return Err(Foreign::error(path, found?, "a file")),
        }
        let access = match mode {
            Mode::Read => OFlags::RDONLY,
            Mode::Write => OFlags::RDWR,
            Mode::Create => OFlags::RDWR | OFlags::CREATE,
            Mode::New => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        };
        // What was put there since does not make us wait, or become our terminal.
        let safe = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match sys::openat(&dir, name, access | safe, 0o600.into()) {
            Err(Errno::LOOP) => return Err(Foreign::error(path, Kind::Link, "a file")),
            file => file?,
        };
        let stat = sys::fstat(&file)?;
        let kind = Kind::from(FileType::from_raw_mode(stat.st_mode));
        if kind != Kind::File {
            return Err(Foreign::error(path, kind, "a file"));
        }
        if mode != Mode::Read && stat.st_nlink > 1 {
            return Err(Foreign::error(path, Kind::Linked, "a file with one"));
        }
        Ok(file.into())
    }

    /// A directory, for reading, syncing and locking it.
    pub(crate) fn open_dir(&self, dir: &Path) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(sys::openat(self.walk(self.below(dir)?)?, ".", flags, sys::Mode::empty())?.into())
    }

    fn root(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(root) = self.root.get() {
            return Ok(root.as_fd());
        }
        let path = match self.state.as_os_str().is_empty() {
            true => Path::new("."),
            false => &self.state,
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = sys::open(path, flags, sys::Mode::empty())?;
        Ok(self.root.get_or_init(|| root).as_fd())
    }

    fn below<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        path.strip_prefix(&self.state)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "outside of the directory"))
    }

    /// Whether a path is that of the state directory or leads to it.
    fn leads_to(&self, path: &Path) -> bool {
        self.state.starts_with(path)
    }

    fn walk(&self, below: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut dir = self.root()?.try_clone_to_owned()?;
        let mut path = self.state.clone();
        for part in below.components() {
            let Component::Normal(name) = part else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            path.push(name);
            dir = match sys::openat(&dir, name, flags, sys::Mode::empty()) {
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let kind = kind_of(dir.as_fd(), name)?;
                    return Err(Foreign::error(&path, kind, "a directory"));
                }
                next => next?,
            };
        }
        Ok(dir)
    }

    /// The directory that a path is in, and its name there.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let below = self.below(path)?;
        match (below.parent(), below.file_name()) {
            (Some(parent), Some(name)) => Ok((self.walk(parent)?, name)),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl Disk for SystemDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in sys::Dir::new(self.open_dir(dir)?)? {
            let entry = entry?;
            match entry.file_name().to_bytes() {
                b"." | b".." => {}
                name => names.push(OsStr::from_bytes(name).to_owned()),
            }
        }
        Ok(names)
    }

    fn kind(&self, path: &Path) -> io::Result<Kind> {
        let (dir, name) = self.parent(path)?;
        kind_of(dir.as_fd(), name)
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        if self.leads_to(dir) {
            return DirBuilder::new().mode(0o700).create(dir);
        }
        let (parent, name) = self.parent(dir)?;
        Ok(sys::mkdirat(parent, name, 0o700.into())?)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let is_above = self.leads_to(dir) && dir != self.state;
        let dir = if is_above { File::open(dir)? } else { self.open_dir(dir)? };
        dir.sync_all()
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn Content>> {
        Ok(Arc::new(self.open_file(path, mode)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (dir, old) = self.parent(from)?;
        let (to_dir, new) = self.parent(to)?;
        Ok(sys::renameat(dir, old, to_dir, new)?)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        Ok(sys::unlinkat(dir, name, AtFlags::empty())?)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(dir)?;
        Ok(sys::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
    }
}

fn kind_of(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Kind> {
    let stat = sys::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode).into())
}

impl From<FileType> for Kind {
    fn from(kind: FileType) -> Kind {
        match kind {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Link,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            _ => Kind::Device,
        }
    }
}

impl Foreign {
    /// That `found` is where `expected` should be.
    pub(crate) fn error(path: &Path, found: Kind, expected: &str) -> io::Error {
        let what = format!("{found} is here, expected {expected}; it is not followed or opened");
        io::Error::new(io::ErrorKind::InvalidData, Foreign { path: path.to_owned(), what })
    }
}
