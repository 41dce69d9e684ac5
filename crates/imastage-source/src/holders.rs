//! The processes that have the list's files open.

use std::{
    ffi::OsStr,
    fmt, fs,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, StatxFlags};

use crate::{Sight, names::TRIM};

/// A process that has one of the list's files open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process id.
    pub pid: u32,
    /// The process name (`/proc/PID/comm`).
    pub name: String,
    /// The descriptor number.
    pub fd: u32,
    /// The file.
    pub path: PathBuf,
}

/// The processes that have the list's files open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// The holders that were found.
    pub found: Vec<Holder>,
    /// The processes that the search covered.
    pub sight: Sight,
}

impl Holders {
    /// Searches `/proc` for descriptors of the files in `dir`, by their names. Linear in the
    /// descriptors open on the machine.
    pub fn find(dir: &Path) -> Holders {
        search(dir, by_name)
    }

    /// As [`Holders::find`], with files that are bind-mounted under another name, and with threads
    /// whose descriptors are not those of their process. Linear in the descriptors of all threads.
    pub fn find_thoroughly(dir: &Path) -> Holders {
        let files = fs::read_dir(dir).into_iter().flatten().flatten();
        let files = files.filter(|file| is_list(&file.file_name()));
        let files: Vec<_> =
            files.filter_map(|file| Some(fs::metadata(file.path()).ok()?.ino())).collect();
        search(dir, |process, search| by_inode(process, &files, search))
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.found.is_empty() {
            return f.write_str("no visible process");
        }
        for (i, holder) in self.found.iter().enumerate() {
            let Holder { pid, name, fd, .. } = holder;
            let separator = if i == 0 { "" } else { ", " };
            write!(f, "{separator}{name} (pid {pid}, fd {fd})")?;
        }
        Ok(())
    }
}

/// A search for the descriptors of one directory's files.
struct Search {
    device: u64,
    found: Vec<Holder>,
    /// The first process to whose descriptors `/proc` denied access.
    denied: Option<u32>,
}

fn search(dir: &Path, in_process: impl Fn(&Process, &mut Search)) -> Holders {
    let Ok(dir_meta) = fs::metadata(dir) else { return Holders::default() };
    let Ok(processes) = fs::read_dir("/proc") else {
        return Holders { found: Vec::new(), sight: Sight::NoProc };
    };
    let mut search = Search { device: dir_meta.dev(), found: Vec::new(), denied: None };
    for process in processes.flatten() {
        let Some(pid) = number(&process.file_name()) else { continue };
        in_process(&Process { pid, path: process.path() }, &mut search);
    }
    Holders { found: search.found, sight: Sight::of_this_thread(search.denied) }
}

/// A directory `/proc/PID`.
struct Process {
    pid: u32,
    path: PathBuf,
}

fn by_name(process: &Process, search: &mut Search) {
    for (fd, path) in search.descriptors(process, &process.path.join("fd")) {
        let Some(link) = search.permitted(process, fs::read_link(&path)) else { continue };
        if link.file_name().is_some_and(is_list) {
            search.add(process, fd, &path, link);
        }
    }
}

fn by_inode(process: &Process, files: &[u64], search: &mut Search) {
    let Some(threads) = search.permitted(process, fs::read_dir(process.path.join("task"))) else {
        return;
    };
    for thread in threads.flatten().map(|thread| thread.path()) {
        for (fd, path) in search.descriptors(process, &thread.join("fd")) {
            let Some(link) = search.permitted(process, fs::read_link(&path)) else { continue };
            // Sockets, pipes and the like.
            if !link.as_os_str().as_bytes().starts_with(b"/") {
                continue;
            }
            let info = inode(&thread.join("fdinfo").join(fd.to_string()));
            let is_file = match search.permitted(process, info) {
                Some(Some(inode)) => files.contains(&inode),
                Some(None) => link.file_name().is_some_and(is_list),
                None => false,
            };
            if is_file {
                search.add(process, fd, &path, link);
            }
        }
    }
}

/// The inode number in a file `/proc/PID/fdinfo/FD`, which has it since Linux 5.14. In contrast to
/// stat(2), reading it makes no request to the file system.
fn inode(fdinfo: &Path) -> io::Result<Option<u64>> {
    /// It follows position, flags and mount.
    const LONGEST: u64 = 200;
    let mut text = String::new();
    fs::File::open(fdinfo)?.take(LONGEST).read_to_string(&mut text)?;
    let inode = text.lines().find_map(|line| line.strip_prefix("ino:"));
    Ok(inode.and_then(|inode| inode.trim().parse().ok()))
}

impl Search {
    /// The descriptors below a directory `fd`.
    fn descriptors(&mut self, process: &Process, dir: &Path) -> Vec<(u32, PathBuf)> {
        let entries = self.permitted(process, fs::read_dir(dir)).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some((number(&entry.file_name())?, entry.path()))).collect()
    }

    /// The result, unless access was denied, or the process or its descriptor is gone.
    fn permitted<T>(&mut self, process: &Process, result: io::Result<T>) -> Option<T> {
        let is_denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        if result.as_ref().is_err_and(is_denied) {
            self.denied.get_or_insert(process.pid);
        }
        result.ok()
    }

    /// Adds a holder if the descriptor is of the searched device: the same directory can be reached
    /// by several paths.
    fn add(&mut self, process: &Process, fd: u32, descriptor: &Path, path: PathBuf) {
        let pid = process.pid;
        let is_known = |holder: &Holder| (holder.pid, holder.fd) == (pid, fd);
        if device(descriptor) == Some(self.device) && !self.found.iter().any(is_known) {
            let name = fs::read_to_string(process.path.join("comm")).unwrap_or_default();
            self.found.push(Holder { pid, name: name.trim_end().to_owned(), fd, path });
        }
    }
}

fn is_list(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.contains("_runtime_measurements") || name == TRIM
}

/// The device of a file, without a request to its file system: a size request on the service's own
/// view starts a drain, and a drain searches for holders.
fn device(path: &Path) -> Option<u64> {
    let flags = AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::empty()).ok()?;
    Some(rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor))
}

fn number(name: &OsStr) -> Option<u32> {
    name.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finds(holders: &Holders, path: &Path) -> bool {
        let me = std::process::id();
        holders.found.iter().any(|holder| holder.pid == me && holder.path == path)
    }

    #[test]
    fn holders_are_found_by_device_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ascii_runtime_measurements_sha1");
        let _open = fs::File::create(&path).unwrap();
        for holders in [Holders::find(dir.path()), Holders::find_thoroughly(dir.path())] {
            assert!(finds(&holders, &path), "{holders}");
            assert!(holders.to_string().contains(&format!("pid {}", std::process::id())));
        }
    }

    #[test]
    fn thorough_search_finds_a_file_under_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("binary_runtime_measurements");
        fs::write(&list, "").unwrap();
        // A second name, as that of a bind mount.
        let other = dir.path().join("log");
        fs::hard_link(&list, &other).unwrap();
        let open = fs::File::open(&other).unwrap();
        assert!(!finds(&Holders::find(dir.path()), &other));
        assert!(finds(&Holders::find_thoroughly(dir.path()), &other));
        drop(open);
        let holders = Holders::find_thoroughly(dir.path());
        assert!(!finds(&holders, &other), "{holders}");
    }

    #[test]
    #[allow(deprecated)]
    fn thorough_search_finds_a_thread_with_descriptors_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("binary_runtime_measurements");
        fs::write(&path, "").unwrap();
        let unshared = || {
            rustix::thread::unshare(rustix::thread::UnshareFlags::FILES).unwrap();
            let _open = fs::File::open(&path).unwrap();
            [Holders::find(dir.path()), Holders::find_thoroughly(dir.path())]
                .map(|holders| finds(&holders, &path))
        };
        let found = std::thread::scope(|scope| scope.spawn(unshared).join().unwrap());
        assert_eq!(found, [false, true]);
    }
}
