//! The processes that have the list's files open.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, StatxFlags};

use crate::names::TRIM;

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
    /// Those that are visible.
    pub seen: Vec<Holder>,
    /// Why there may be others.
    pub unseen: Option<Unseen>,
}

/// Why a process that has a file of the list open may not be visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// The descriptors of some processes cannot be read, or /proc hides processes.
    Processes,
    /// This process is in a PID namespace: /proc does not show processes outside it.
    Namespace,
}

impl Unseen {
    /// All of them, in the order of their numbers in messages.
    pub(crate) const ALL: [Unseen; 2] = [Unseen::Processes, Unseen::Namespace];
}

impl Holders {
    /// Searches `/proc` for descriptors of the files in `dir`. Linear in the descriptors open on
    /// the machine. Without CAP_SYS_PTRACE, the descriptors of other users are not visible.
    pub fn find(dir: &Path) -> Holders {
        let unseen = Some(Unseen::Processes);
        let mut holders = Holders { seen: Vec::new(), unseen };
        let Ok(dir_meta) = fs::metadata(dir) else { return holders };
        let Ok(processes) = fs::read_dir("/proc") else { return holders };
        let mut all_are_readable = true;
        let mut first_process = false;
        for process in processes.flatten() {
            let Some(pid) = number(&process.file_name()) else { continue };
            let fds = match fs::read_dir(process.path().join("fd")) {
                Ok(fds) => fds,
                Err(error) => {
                    all_are_readable &= error.kind() != io::ErrorKind::PermissionDenied;
                    continue;
                }
            };
            first_process |= pid == 1;
            for fd in fds.flatten() {
                let Ok(path) = fs::read_link(fd.path()) else { continue };
                let is_list = path.file_name().is_some_and(|name| {
                    let name = name.to_string_lossy();
                    name.contains("_runtime_measurements") || name == TRIM
                });
                // Compare by device: the same directory can be reached by several paths.
                if is_list && device(&fd.path()) == Some(dir_meta.dev()) {
                    let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                    holders.seen.push(Holder {
                        pid,
                        name: name.trim_end().to_owned(),
                        fd: number(&fd.file_name()).unwrap_or_default(),
                        path,
                    });
                }
            }
        }
        // Process 1 always exists; if it is not shown, /proc is mounted with hidepid.
        holders.unseen = match all_are_readable && first_process {
            false => unseen,
            true => (!is_initial_namespace()).then_some(Unseen::Namespace),
        };
        holders
    }
}

/// Whether this process is in the initial PID namespace, whose inode number is a constant of the
/// kernel's interface (PROC_PID_INIT_INO).
fn is_initial_namespace() -> bool {
    const INITIAL: u64 = 0xeffffffc;
    match fs::metadata("/proc/self/ns/pid") {
        Ok(meta) => meta.ino() == INITIAL,
        // A kernel without CONFIG_PID_NS has no such file.
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.seen.is_empty() {
            return f.write_str(match self.unseen {
                Some(Unseen::Processes) => {
                    "a process that this user cannot see (run as root, or with CAP_SYS_PTRACE)"
                }
                Some(Unseen::Namespace) => "a process outside this PID namespace",
                None => "a process that has closed it meanwhile",
            });
        }
        for (i, holder) in self.seen.iter().enumerate() {
            let Holder { pid, name, fd, .. } = holder;
            let separator = if i == 0 { "" } else { ", " };
            write!(f, "{separator}{name} (pid {pid}, fd {fd})")?;
        }
        Ok(())
    }
}

/// The device of a file, without a request to its file system: a size request on the service's own
/// view starts a drain, and a drain searches for holders.
fn device(path: &Path) -> Option<u64> {
    let flags = AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::empty()).ok()?;
    Some(rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor))
}

fn number(name: &std::ffi::OsStr) -> Option<u32> {
    name.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_found_by_device_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ascii_runtime_measurements_sha1");
        let _open = fs::File::create(&path).unwrap();
        let holders = Holders::find(dir.path());
        let me = std::process::id();
        assert!(holders.seen.iter().any(|h| h.pid == me && h.path == path), "{holders}");
        assert!(holders.to_string().contains(&format!("pid {me}")));
    }
}
