//! The processes that have the list's files open.

use std::{
    fmt, fs,
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

/// The processes that have the list's files open. May be incomplete: without root, the descriptors
/// of other users are hidden.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders(pub Vec<Holder>);

impl Holders {
    /// Searches `/proc` for descriptors of the files in `dir`. Linear in the descriptors open on
    /// the machine.
    pub fn find(dir: &Path) -> Holders {
        let mut holders = Vec::new();
        let Ok(dir_meta) = fs::metadata(dir) else { return Holders(holders) };
        let Ok(processes) = fs::read_dir("/proc") else { return Holders(holders) };
        for process in processes.flatten() {
            let Some(pid) = number(&process.file_name()) else { continue };
            // Not permitted, or the process has exited: skip.
            let Ok(fds) = fs::read_dir(process.path().join("fd")) else { continue };
            for fd in fds.flatten() {
                let Ok(path) = fs::read_link(fd.path()) else { continue };
                let is_list = path.file_name().is_some_and(|name| {
                    let name = name.to_string_lossy();
                    name.contains("_runtime_measurements") || name == TRIM
                });
                // Compare by device: the same directory can be reached by several paths.
                if is_list && device(&fd.path()) == Some(dir_meta.dev()) {
                    let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                    holders.push(Holder {
                        pid,
                        name: name.trim_end().to_owned(),
                        fd: number(&fd.file_name()).unwrap_or_default(),
                        path,
                    });
                }
            }
        }
        Holders(holders)
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("a process not visible to this user (try as root)");
        }
        for (i, holder) in self.0.iter().enumerate() {
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
        assert!(holders.0.iter().any(|h| h.pid == me && h.path == path), "{holders}");
        assert!(holders.to_string().contains(&format!("pid {me}")));
    }
}
