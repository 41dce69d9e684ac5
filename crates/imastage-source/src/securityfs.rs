use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    num::NonZeroU64,
    path::{Path, PathBuf},
};

use rustix::io::Errno;

use crate::{Hold, Holders, Part, Request, Sink, Source, SourceError};

/// A directory with IMA's files: `/sys/kernel/security/ima`, or one that a sandbox mounted.
#[derive(Clone, Debug)]
pub struct Securityfs {
    dir: PathBuf,
}

impl Securityfs {
    /// Where Linux shows the files.
    pub const DEFAULT: &str = "/sys/kernel/security/ima";

    /// The list whose files are in `dir`.
    ///
    /// # Errors
    /// [`SourceError::Missing`] if there is no binary list in it.
    pub fn new(dir: &Path) -> Result<Securityfs, SourceError> {
        let source = Securityfs { dir: dir.to_owned() };
        let path = source.path(Part::Current);
        match path.symlink_metadata() {
            Ok(_) => Ok(source),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(SourceError::NotPermitted { path, why: CANNOT_ENTER })
            }
            Err(_) => Err(SourceError::Missing { path }),
        }
    }

    fn path(&self, part: Part) -> PathBuf {
        self.dir.join(match part {
            Part::Current => "binary_runtime_measurements",
            Part::Staged => "binary_runtime_measurements_staged",
        })
    }

    fn open(&self, part: Part, write: bool) -> Result<(PathBuf, File), SourceError> {
        let path = self.path(part);
        match File::options().read(true).write(write).open(&path) {
            Ok(file) => Ok((path, file)),
            Err(error) => Err(match Errno::from_io_error(&error) {
                Some(Errno::BUSY) => SourceError::Busy { path, holders: Holders::find(&self.dir) },
                Some(Errno::PERM) => SourceError::NotPermitted { path, why: NEEDS_CAPABILITY },
                Some(Errno::ACCESS) => SourceError::NotPermitted { path, why: NEEDS_ROOT_OR_GROUP },
                Some(Errno::NOENT) => SourceError::Missing { path },
                _ => SourceError::Io { path, doing: "open", error },
            }),
        }
    }
}

impl Source for Securityfs {
    fn hold(&mut self, part: Part) -> Result<Box<dyn Hold + '_>, SourceError> {
        let (path, file) = self.open(part, true)?;
        Ok(Box::new(HeldFile { path, file, one_thread: std::marker::PhantomData }))
    }

    fn read(&mut self, part: Part, sink: &mut Sink<'_>) -> Result<(), SourceError> {
        let (path, mut file) = self.open(part, false)?;
        read_to_end(&path, &mut file, sink)
    }

    fn count(&mut self) -> Result<u64, SourceError> {
        let path = self.dir.join("runtime_measurements_count");
        let io = |doing, error| SourceError::Io { path: path.clone(), doing, error };
        let text = fs::read_to_string(&path).map_err(|error| io("read", error))?;
        text.trim().parse().map_err(|_| {
            let what = format!("expected a number, found {text:?}");
            io("read", io::Error::new(io::ErrorKind::InvalidData, what))
        })
    }

    fn name(&self) -> String {
        self.dir.display().to_string()
    }
}

const CANNOT_ENTER: &str = "the directory cannot be entered; run as root";
const NEEDS_CAPABILITY: &str =
    "writing needs the capability CAP_SYS_ADMIN (run as root, or give the service that capability)";
const NEEDS_ROOT_OR_GROUP: &str =
    "the file belongs to root; run as root, or change the group of the file and join it";

struct HeldFile {
    path: PathBuf,
    file: File,
    /// Keeps the hold on the thread that opened it.
    one_thread: std::marker::PhantomData<*const ()>,
}

impl HeldFile {
    fn request(&mut self, request: Request) -> Result<(), SourceError> {
        let _ = self.one_thread;
        let text = format!("{request}\n");
        // One request, one write(2): the kernel takes whatever a write holds as a whole request.
        let error = match self.file.write(text.as_bytes()) {
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
            _ => SourceError::Io { path: self.path.clone(), doing: "write a request", error },
        })
    }
}

impl Hold for HeldFile {
    fn stage(&mut self) -> Result<(), SourceError> {
        self.request(Request::Stage)
    }

    fn read(&mut self, sink: &mut Sink<'_>) -> Result<(), SourceError> {
        // The descriptor remembers a record index and part of a record; only a seek forgets them.
        self.file.rewind().map_err(|error| SourceError::Io {
            path: self.path.clone(),
            doing: "seek to the beginning",
            error,
        })?;
        read_to_end(&self.path, &mut self.file, sink)
    }

    fn delete_staged(&mut self) -> Result<(), SourceError> {
        self.request(Request::DeleteStaged)
    }

    fn delete_first(&mut self, n: NonZeroU64) -> Result<(), SourceError> {
        self.request(Request::DeleteFirst(n.get()))
    }
}

fn read_to_end(path: &Path, file: &mut File, sink: &mut Sink<'_>) -> Result<(), SourceError> {
    // The kernel gives about a page of records a call; a longer record comes alone.
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => sink(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(SourceError::Io { path: path.to_owned(), doing: "read", error });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What the files do is tested where they exist: in the service's tests, on a mounted sandbox.

    #[test]
    fn a_directory_without_a_list_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Securityfs::new(dir.path()).unwrap_err().to_string();
        assert!(error.contains("binary_runtime_measurements: not there"), "{error}");
    }

    #[test]
    fn holders_are_found_by_device_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ascii_runtime_measurements_sha1");
        let _open = File::create(&path).unwrap();
        let holders = Holders::find(dir.path());
        let me = std::process::id();
        assert!(holders.0.iter().any(|h| h.pid == me && h.path == path), "{holders}");
        assert!(holders.to_string().contains(&format!("pid {me}")));
    }

    #[test]
    fn plain_files_can_be_read_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("binary_runtime_measurements"), b"bytes").unwrap();
        fs::write(dir.path().join("runtime_measurements_count"), b"12\n").unwrap();
        let mut source = Securityfs::new(dir.path()).unwrap();
        assert_eq!(source.count().unwrap(), 12);
        let mut read = Vec::new();
        source.read(Part::Current, &mut |bytes| read.extend_from_slice(bytes)).unwrap();
        assert_eq!(read, b"bytes");
        assert!(matches!(source.hold(Part::Staged), Err(SourceError::Missing { .. })));
    }
}
