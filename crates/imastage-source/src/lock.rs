//! The lock that allows one service per list to delete.

use std::{
    fs::{self, File, Metadata},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{fs::FlockOperation, io::Errno};

use crate::{SourceError, files::Files};

/// The exclusive right to delete from a list, released when this is dropped.
///
/// A flock(2) on the count file: only a process that may read the list can acquire it, it is the
/// same lock for every path to the directory, and an open count file does not block other users of
/// the list.
#[derive(Debug)]
pub struct ListLock {
    _file: File,
}

/// The service that deletes from a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListService {
    /// The process id.
    pub pid: u32,
    /// The state directory, if it can be determined.
    pub state: Option<PathBuf>,
}

/// In the arguments of the process with the lock, the service's state directory follows this
/// option.
pub const STATE_ARGUMENT: &str = "--state";

impl ListLock {
    /// Acquires the lock of the list in `dir`. Waits for the exit of a process whose service has
    /// already ended.
    ///
    /// # Errors
    /// [`SourceError::Served`] if another service has the lock; [`SourceError::Missing`],
    /// [`SourceError::NotPermitted`], [`SourceError::Io`].
    pub fn take(dir: &Path) -> Result<ListLock, SourceError> {
        const PAUSE: Duration = Duration::from_millis(20);
        /// The time allowed for a service that was just killed to disappear.
        const WHILE_IT_LIVES: Duration = Duration::from_secs(1);
        const WHILE_IT_DIES: Duration = Duration::from_secs(10);
        let files = Files::new(dir);
        let count = files.open_count()?;
        let since = Instant::now();
        loop {
            match rustix::fs::flock(&count.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(ListLock { _file: count.file }),
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(count.io("lock", error.into())),
            }
            let other = service_of(dir);
            let patience = if other.is_some() { WHILE_IT_LIVES } else { WHILE_IT_DIES };
            if since.elapsed() > patience {
                let (pid, state) = match other {
                    Some(ListService { pid, state }) => (Some(pid), state),
                    None => (None, None),
                };
                return Err(SourceError::Served { path: dir.to_owned(), pid, state });
            }
            thread::sleep(PAUSE);
        }
    }
}

/// The service that deletes from the list in `dir`, if one exists and is visible to this process.
pub fn service_of(dir: &Path) -> Option<ListService> {
    let count = fs::metadata(Files::new(dir).count_path()).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let holder = locks.lines().find_map(|line| holder(line, &count))?;
    let pid = parent(holder)?;
    let arguments = fs::read(format!("/proc/{holder}/cmdline")).unwrap_or_default();
    let mut arguments = arguments.split(|byte| *byte == 0);
    arguments.find(|argument| *argument == STATE_ARGUMENT.as_bytes());
    let state = arguments.next().filter(|state| !state.is_empty());
    let state = state.map(|state| PathBuf::from(std::ffi::OsStr::from_bytes(state)));
    Some(ListService { pid, state })
}

/// The process id in a line of /proc/locks that describes a lock of `file`:
/// `1: FLOCK  ADVISORY  WRITE 708 00:05:42 0 EOF` (proc(5)). Lines of waiters have a `->`.
fn holder(line: &str, file: &Metadata) -> Option<u32> {
    let words: Vec<_> = line.split_whitespace().collect();
    let [_, "FLOCK", _, "WRITE", pid, inode, ..] = words[..] else { return None };
    let mut parts = inode.split(':');
    let major = u32::from_str_radix(parts.next()?, 16).ok()?;
    let minor = u32::from_str_radix(parts.next()?, 16).ok()?;
    let number: u64 = parts.next()?.parse().ok()?;
    let is_it = rustix::fs::makedev(major, minor) == file.dev() && number == file.ino();
    // The pid is 0 for a process in another namespace.
    pid.parse().ok().filter(|pid| is_it && *pid != 0)
}

/// The service of a process that has a list open: its parent, or `None` if the parent has exited.
pub fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    let parent: u32 = line.trim().parse().ok()?;
    let name = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    // An orphan has a new parent, which is another program.
    (parent != 0 && name(parent) == name(pid)).then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_is_locked_once_through_any_path() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("ima");
        fs::create_dir(&list).unwrap();
        assert!(matches!(ListLock::take(&list), Err(SourceError::Missing { .. })));
        fs::write(list.join("runtime_measurements_count"), "0\n").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&list, &link).unwrap();
        let lock = ListLock::take(&list).unwrap();
        let error = ListLock::take(&link).unwrap_err().to_string();
        assert!(error.contains("another service"), "{error}");
        drop(lock);
        ListLock::take(&link).unwrap();
    }

    #[test]
    fn lock_holder_is_found_in_proc_locks() {
        let file = fs::metadata("/proc/self/exe").unwrap();
        let (dev, ino) = (file.dev(), file.ino());
        let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
        let id = format!("{major:02x}:{minor:02x}:{ino}");
        let line = |kind: &str, pid: &str, id: &str| {
            format!("1: {kind}  ADVISORY  WRITE {pid} {id} 0 EOF")
        };
        assert_eq!(holder(&line("FLOCK", "42", &id), &file), Some(42));
        assert_eq!(holder(&line("POSIX", "42", &id), &file), None);
        assert_eq!(holder(&line("FLOCK", "0", &id), &file), None);
        assert_eq!(holder(&line("FLOCK", "42", "00:00:1"), &file), None);
        for line in ["", "1:", "1: -> FLOCK ADVISORY WRITE 1 00:00:1 0 EOF", "1: FLOCK A WRITE x y"]
        {
            assert_eq!(holder(line, &file), None);
        }
    }
}
