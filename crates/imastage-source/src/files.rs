//! Opening, reading and writing the directory's files, and mapping system errors.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use rustix::io::Errno;

use crate::{
    Holders, Look, Request, Sight, Sink, SourceError,
    lock_watch::LockWatch,
    names::{COUNT, CURRENT, STAGED, TRIM},
};

/// The files of one directory.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    watch: Arc<Mutex<LockWatch>>,
}

/// An open file and its name.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
}

/// Both parts of the list, open for reading.
pub(crate) struct Both {
    /// `None` if the kernel has no staged file.
    staged: Option<Named>,
    current: Named,
}

impl Files {
    pub(crate) fn new(dir: &Path) -> Files {
        Files { dir: dir.to_owned(), watch: Arc::default() }
    }

    pub(crate) fn current(&self) -> PathBuf {
        self.dir.join(CURRENT)
    }

    pub(crate) fn staged(&self) -> PathBuf {
        self.dir.join(STAGED)
    }

    pub(crate) fn trim(&self) -> PathBuf {
        self.dir.join(TRIM)
    }

    pub(crate) fn count_path(&self) -> PathBuf {
        self.dir.join(COUNT)
    }

    pub(crate) fn look_at(&self, path: &Path) -> Result<Metadata, SourceError> {
        fs::metadata(path).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::ACCESS | Errno::PERM) => {
                SourceError::NotPermitted { path: path.to_owned(), why: CANNOT_ENTER }
            }
            Some(Errno::NOTCONN) => SourceError::DeadMount { path: self.dir.clone() },
            _ => SourceError::Missing { path: path.to_owned() },
        })
    }

    pub(crate) fn open(&self, path: PathBuf, write: bool) -> Result<Named, SourceError> {
        match File::options().read(true).write(write).open(&path) {
            Ok(file) => {
                if write {
                    self.watch().granted();
                }
                Ok(Named { path, file })
            }
            Err(error) => Err(match Errno::from_io_error(&error) {
                Some(Errno::BUSY) if write => self.refused(path),
                Some(Errno::BUSY) => SourceError::Busy { path, holders: self.holders() },
                Some(Errno::PERM) => SourceError::NotPermitted { path, why: NEEDS_CAPABILITY },
                Some(Errno::ACCESS) => SourceError::NotPermitted { path, why: NEEDS_ROOT_OR_GROUP },
                Some(Errno::NOENT) => SourceError::Missing { path },
                Some(Errno::NOTCONN) => SourceError::DeadMount { path: self.dir.clone() },
                _ => SourceError::Io { path, doing: "open", error },
            }),
        }
    }

    /// The reason for a refused open for writing.
    fn refused(&self, path: PathBuf) -> SourceError {
        let mut watch = self.watch();
        if watch.is_lost() {
            return SourceError::LockLost { path };
        }
        let mut holders = match watch.is_thorough() {
            true => Holders::find_thoroughly(&self.dir),
            false => self.holders(),
        };
        if watch.refused(self.explain_nothing(&holders), Instant::now()) {
            watch.search_thoroughly();
            holders = Holders::find_thoroughly(&self.dir);
            if self.explain_nothing(&holders) {
                watch.lose();
                return SourceError::LockLost { path };
            }
        }
        SourceError::Busy { path, holders }
    }

    /// Whether nothing explains why the list cannot be opened for writing. A writer would refuse
    /// readers, too.
    fn explain_nothing(&self, holders: &Holders) -> bool {
        let is_readable = || File::open(self.current()).is_ok();
        holders.found.is_empty() && holders.sight == Sight::Complete && is_readable()
    }

    fn watch(&self) -> MutexGuard<'_, LockWatch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens both parts for reading, or only the current part if there is no staged file. While one
    /// of them is open, no file can be opened for writing.
    pub(crate) fn look(&self) -> Result<Both, SourceError> {
        let current = self.open(self.current(), false)?;
        let staged = match self.open(self.staged(), false) {
            Ok(staged) => Some(staged),
            Err(SourceError::Missing { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Both { staged, current })
    }

    pub(crate) fn count(&self) -> Result<u64, SourceError> {
        self.open_count()?.number()
    }

    pub(crate) fn open_count(&self) -> Result<Named, SourceError> {
        self.open(self.count_path(), false)
    }

    pub(crate) fn holders(&self) -> Holders {
        Holders::find(&self.dir)
    }

    pub(crate) fn name(&self) -> String {
        self.dir.display().to_string()
    }
}

impl Named {
    /// Writes a request in one write(2): the kernel parses each write as a whole request.
    pub(crate) fn write(&mut self, request: Request, text: &[u8]) -> Result<(), SourceError> {
        let error = match self.file.write(text) {
            Ok(n) if n == text.len() => return Ok(()),
            Ok(_) => io::ErrorKind::WriteZero.into(),
            Err(error) => error,
        };
        Err(match (Errno::from_io_error(&error), request) {
            (Some(Errno::EXIST), _) => SourceError::Pending,
            (Some(Errno::NOENT), _) => SourceError::Nothing(request),
            (Some(Errno::ACCESS), Request::Stage) | (Some(Errno::STALE), _) => {
                SourceError::GoingDown(request)
            }
            (Some(Errno::NOMEM), Request::DeleteStaged) => SourceError::NoMemory,
            (Some(Errno::INVAL), _) => SourceError::Refused(request),
            (Some(Errno::PERM), _) => {
                SourceError::NotPermitted { path: self.path.clone(), why: NEEDS_CAPABILITY }
            }
            _ => self.io("write a request", error),
        })
    }

    /// Reads to the end.
    pub(crate) fn read(&mut self, sink: &mut Sink<'_>) -> Result<(), SourceError> {
        // The kernel returns about a page of records per call, or one longer record.
        let mut buffer = vec![0; 256 << 10];
        loop {
            match self.read_some(&mut buffer)? {
                0 => return Ok(()),
                n => sink(&buffer[..n]),
            }
        }
    }

    /// One read(2); 0 at the end.
    pub(crate) fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        loop {
            match self.file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.map_err(|error| self.io("read", error)),
            }
        }
    }

    /// The number that the file shows.
    pub(crate) fn number(&mut self) -> Result<u64, SourceError> {
        /// Digits of 64 bits and a newline.
        const LONGEST: u64 = 21;
        let mut text = String::new();
        let read = (&mut self.file).take(LONGEST).read_to_string(&mut text);
        read.map_err(|error| self.io("read", error))?;
        text.trim().parse().map_err(|_| {
            let what = format!("expected a number, found {text:?}");
            self.io("read", io::Error::new(io::ErrorKind::InvalidData, what))
        })
    }

    pub(crate) fn io(&self, doing: &'static str, error: io::Error) -> SourceError {
        SourceError::Io { path: self.path.clone(), doing, error }
    }
}

impl Both {
    pub(crate) fn staged(&mut self) -> Option<&mut Named> {
        self.staged.as_mut()
    }

    pub(crate) fn current(&mut self) -> &mut Named {
        &mut self.current
    }
}

impl Look for Both {
    fn read(&mut self, sink: &mut Sink<'_>) -> Result<(), SourceError> {
        // Nobody can stage while the files are open, so the staged part is complete at its end.
        if let Some(staged) = &mut self.staged {
            staged.read(sink)?;
        }
        self.current.read(sink)
    }
}

const CANNOT_ENTER: &str = "the directory cannot be searched; run as root";
const NEEDS_CAPABILITY: &str = "writing needs the capability CAP_SYS_ADMIN (run as root, or grant \
     it to the service; `--delete-mode none` works without it and deletes no records)";
const NEEDS_ROOT_OR_GROUP: &str = "only root and the file's group have access; run as root, or \
     change the file's group and join it";

/// The causes in [`SourceError::NotPermitted`].
pub(crate) const WHYS: [&str; 3] = [CANNOT_ENTER, NEEDS_CAPABILITY, NEEDS_ROOT_OR_GROUP];

/// The operations in [`SourceError::Io`].
pub(crate) const DOINGS: [&str; 7] = [
    "open",
    "read",
    "write a request",
    "seek to the beginning",
    "seek to the first new record",
    "lock",
    "mount",
];

#[cfg(test)]
mod tests {
    use super::*;

    // The files' behaviour is tested on a mounted sandbox, in tests/.

    #[test]
    fn look_reads_staged_then_current_then_new_records() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        fs::write(files.current(), b"current ").unwrap();
        fs::write(files.staged(), b"staged ").unwrap();
        let mut look = files.look().unwrap();
        let mut read = Vec::new();
        look.read(&mut |bytes| read.extend_from_slice(bytes)).unwrap();
        File::options().append(true).open(files.current()).unwrap().write_all(b"new").unwrap();
        look.read(&mut |bytes| read.extend_from_slice(bytes)).unwrap();
        assert_eq!(read, b"staged current new");
    }

    #[test]
    fn malformed_count_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        let count = |text: &[u8]| {
            fs::write(dir.path().join(COUNT), text).unwrap();
            files.count()
        };
        assert_eq!(count(b"12\n").unwrap(), 12);
        assert_eq!(count(b"18446744073709551615\n").unwrap(), u64::MAX);
        for text in [&b""[..], b"x\n", b"-1\n", b"184467440737095516150000\n", b"\xff"] {
            assert!(matches!(count(text), Err(SourceError::Io { .. })), "{text:?}");
        }
    }
}
