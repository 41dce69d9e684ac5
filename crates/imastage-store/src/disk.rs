//! What the store asks of a file system, and nothing else. Tests put a disk under it that fails and
//! loses power.

use std::{ffi::OsString, fmt, fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};

use rustix::{fs::SeekFrom, io::Errno};

/// Directories and names.
pub(crate) trait Disk: fmt::Debug + Send + Sync {
    /// The names in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;
    /// What a name stands for, itself: where a link leads to does not count.
    fn kind(&self, path: &Path) -> io::Result<Kind>;
    /// Makes one directory, for the owner only.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes durable which names a directory holds, and what they stand for.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn Content>>;
    /// Replaces what `to` stands for, at once.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file, or whatever else a name stands for that is no directory.
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
    /// Where, from `offset` on, the next bytes are that take room on the disk; `None` if all that
    /// follows is a hole, which reads as zeros.
    fn data_from(&self, offset: u64) -> io::Result<Option<u64>>;
}

/// What a name in a directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Kind {
    #[error("a file")]
    File,
    #[error("a directory")]
    Directory,
    #[error("a symbolic link")]
    Link,
    #[error("a FIFO")]
    Fifo,
    #[error("a socket")]
    Socket,
    #[error("a device")]
    Device,
    /// A file that would be written to, and is one elsewhere as well.
    #[error("a file with several names (hard links)")]
    Linked,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Read,
    /// For reading, writing and cutting.
    Write,
    /// So, and made if it is not there, for the owner only.
    Create,
    /// So, and it must not be there.
    New,
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

    fn data_from(&self, offset: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(self, SeekFrom::Data(offset)) {
            Ok(data) => Ok(Some(data)),
            Err(Errno::NXIO) => Ok(None),
            // A file system that cannot tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(error) => Err(error.into()),
        }
    }
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
