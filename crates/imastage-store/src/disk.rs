//! What the store asks of a file system, and nothing else. Tests put a disk under it that fails and
//! loses power.

use std::{
    ffi::OsString,
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

/// Directories and names.
pub(crate) trait Disk: fmt::Debug + Send + Sync {
    /// The names in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;
    /// Makes one directory, for the owner only.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes durable which names a directory holds, and what they stand for.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn Content>>;
    /// Replaces what `to` stands for, at once.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory that holds nothing.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
}

/// What a file holds.
pub(crate) trait Content: fmt::Debug + Send + Sync {
    fn size(&self) -> io::Result<u64>;
    /// May give less than asked for; 0 at the end.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    /// May take less than given.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    fn set_size(&self, size: u64) -> io::Result<()>;
    /// Makes content and size durable (fdatasync), not the name.
    fn sync(&self) -> io::Result<()>;
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Read,
    /// For reading, writing and cutting.
    Write,
    /// So, and made if it is not there, for the owner only.
    Create,
}

/// The file system of this machine.
#[derive(Debug)]
pub(crate) struct SystemDisk;

impl Disk for SystemDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn Content>> {
        Ok(Arc::new(open(path, mode)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir(dir)
    }
}

impl Content for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

pub(crate) fn open(path: &Path, mode: Mode) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(mode != Mode::Read)
        .create(mode == Mode::Create)
        .mode(0o600)
        .open(path)
}

impl dyn Content + '_ {
    /// Fills `bytes` as far as the file goes; gives how far.
    pub(crate) fn read_up_to(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Writes all of `bytes`.
    pub(crate) fn write_all(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            match self.write_at(rest, offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
