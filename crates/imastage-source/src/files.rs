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
    search: Search,
}

/// A search for holders, thorough or not. Tests replace the machine's.
type Search = fn(&Path, bool) -> Holders;

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
        let search: Search = |dir, thoroughly| match thoroughly {
            true => Holders::find_thoroughly(dir),
            false => Holders::find(dir),
        };
        Files { dir: dir.to_owned(), watch: Arc::default(), search }
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
        let mut holders = (self.search)(&self.dir, watch.is_thorough());
        if watch.refused(self.explain_nothing(&holders), Instant::now()) {
            watch.search_thoroughly();
            holders = (self.search)(&self.dir, true);
            if self.explain_nothing(&holders) && holders.sight == Sight::Complete {
                watch.lose();
                return SourceError::LockLost { path };
            }
        }
        SourceError::Busy { path, holders }
    }

    /// Whether no visible process explains why the list cannot be opened for writing. A writer would
    /// refuse readers, too.
    fn explain_nothing(&self, holders: &Holders) -> bool {
        holders.found.is_empty() && File::open(self.current()).is_ok()
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
        (self.search)(&self.dir, false)
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
    use std::{sync::mpsc, thread, time::Duration};

    use imastage_sandbox::{
        Config, Hazard, Sandbox, TpmChoice,
        control::{Command, ask},
    };

    use super::*;

    // The files' behaviour is tested on a mounted sandbox, in tests/.

    /// The machine of a test may hide processes of its own.
    fn sees_all(dir: &Path, thoroughly: bool) -> Holders {
        let holders = if thoroughly { Holders::find_thoroughly(dir) } else { Holders::find(dir) };
        Holders { sight: Sight::Complete, ..holders }
    }

    /// Opens for writing until the error is not [`SourceError::Busy`].
    fn outcome(files: &Files) -> Result<(), SourceError> {
        loop {
            match files.open(files.staged(), true) {
                Err(SourceError::Busy { holders, .. }) => {
                    assert_eq!(holders.found, []);
                    thread::sleep(Duration::from_millis(50));
                }
                opened => return opened.map(drop),
            }
        }
    }

    #[test]
    fn lock_lost_by_the_kernel_is_recognised_and_readable() {
        if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
            return eprintln!("SKIPPED: /dev/fuse: {error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let mut kernel = Config::new(dir.path().join("ima"), TpmChoice::None);
        kernel.watch = false;
        kernel.hazards = vec![Hazard::LockBooks];
        let _sandbox = Sandbox::start(&kernel).unwrap();
        let files = Files { search: sees_all, ..Files::new(&kernel.mount) };
        outcome(&files).unwrap();
        // One thread opens two files, another closes both.
        thread::scope(|scope| {
            let (opened, when_opened) = mpsc::channel();
            let (staged, opening) = (files.staged(), File::options().write(true).clone());
            let thread = scope.spawn(move || {
                opened.send([(); 2].map(|()| opening.open(&staged).unwrap())).unwrap();
                thread::park();
            });
            drop(when_opened.recv().unwrap());
            thread.thread().unpark();
        });
        assert!(matches!(outcome(&files), Err(SourceError::LockLost { .. })));
        // A reader does not change that.
        let mut look = files.look().unwrap();
        let mut read = Vec::new();
        look.read(&mut |bytes| read.extend_from_slice(bytes)).unwrap();
        assert!(!read.is_empty());
        assert!(matches!(outcome(&files), Err(SourceError::LockLost { .. })));
        drop(look);
        ask(&kernel.mount, &Command::Reboot, &mut |_| {}).unwrap();
        outcome(&files).unwrap();
    }

    #[test]
    fn lock_is_not_called_lost_unless_all_processes_are_visible() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("binary_runtime_measurements"), "").unwrap();
        let search: Search = |_, _| Holders { found: Vec::new(), sight: Sight::NoPtrace };
        let files = Files { search, ..Files::new(dir.path()) };
        // The refusals suffice as soon as searches are thorough.
        while !files.watch().is_thorough() {
            let error = files.refused(files.staged());
            assert!(matches!(error, SourceError::Busy { .. }), "{error}");
            thread::sleep(Duration::from_millis(50));
        }
        let error = files.refused(files.staged());
        assert!(matches!(error, SourceError::Busy { .. }), "{error}");
    }

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
