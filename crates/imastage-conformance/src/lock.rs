//! A list that stays locked against writers: a process that has a file open, or a kernel bug.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags};

/// How long another process may have a file of the list open: the time to read a long list.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time limit if no process has a file open: one may have closed it during the search.
const UNEXPLAINED: Duration = Duration::from_secs(1);
/// The interval between two attempts.
const POLL: Duration = Duration::from_millis(10);

/// An open fails with EBUSY, and this program has no file of the list open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locked {
    path: PathBuf,
    access: &'static str,
    /// A process that has a file of the list open. With none, a kernel bug is the only cause.
    holder: Option<String>,
}

impl fmt::Display for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Locked { access, holder, .. } = self;
        let path = self.path.display();
        match holder {
            Some(holder) => write!(
                f,
                "opening {path} {access}: EBUSY: {holder} has a file of the list \
                 open; stop that process"
            ),
            None => write!(
                f,
                "opening {path} {access}: EBUSY, and no visible process has a \
                 file of the list open: kernel bug: writer lock lost; reboot to unlock the list"
            ),
        }
    }
}

impl Locked {
    /// Opens `name` in `dir` until another result than EBUSY, or until the time limit.
    pub(crate) fn check(dir: &Path, name: &str, flags: OFlags) -> Option<Locked> {
        let path = dir.join(name);
        let start = Instant::now();
        loop {
            let opened = rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty()).map(drop);
            if opened != Err(rustix::io::Errno::BUSY) {
                return None;
            }
            if start.elapsed() >= UNEXPLAINED {
                let holder = holder(dir);
                if holder.is_none() || start.elapsed() >= PATIENCE {
                    let reads = flags & OFlags::RWMODE == OFlags::RDONLY;
                    let access = if reads { "for reading" } else { "for writing" };
                    return Some(Locked { path, access, holder });
                }
            }
            thread::sleep(POLL);
        }
    }
}

/// A process that has a file of the list open, as /proc shows it.
fn holder(dir: &Path) -> Option<String> {
    let dir = fs::canonicalize(dir).ok()?;
    let locked = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let list = name.contains("runtime_measurements") && !name.ends_with("_count");
        path.parent() == Some(&dir) && (list || name == crate::target::TRIM_LOG)
    };
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    for process in processes {
        let pid = process.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // Other processes' descriptors are visible only to root. Links are not followed: that could
        // block on another file system.
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let mut paths = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        if paths.any(|path| locked(&path)) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("process {pid} ({})", name.trim().escape_default()));
        }
    }
    None
}

/// Whether a directory on FUSE is `imastage sandbox`'s, by the source of its mount.
pub(crate) fn is_sandbox(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Ok(meta) = fs::metadata(dir) else { return false };
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    is_mounted(&mounts, &format!("{major}:{minor}"), "imastage-sandbox")
}

/// Whether the mount of a device in a mountinfo file (proc_pid_mountinfo(5)) has this source.
fn is_mounted(mountinfo: &str, device: &str, source: &str) -> bool {
    mountinfo.lines().any(|line| {
        let mut halves = line.split(" - ");
        let found = halves.next().and_then(|half| half.split(' ').nth(2));
        let from = halves.next().and_then(|half| half.split(' ').nth(1));
        found == Some(device) && from == Some(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandbox_is_recognized_by_its_mount() {
        let mounts = "22 1 0:20 / /sys/kernel/security rw shared:6 - securityfs securityfs rw\n\
                      36 35 0:51 / /tmp/ima rw,nosuid,nodev - fuse imastage-sandbox rw,user_id=0\n";
        assert!(is_mounted(mounts, "0:51", "imastage-sandbox"));
        assert!(!is_mounted(mounts, "0:20", "imastage-sandbox"));
        assert!(!is_mounted(mounts, "0:5", "imastage-sandbox"));
    }

    #[test]
    fn process_with_an_open_list_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("runtime_measurements_count");
        let _count = fs::File::create(count).unwrap();
        assert_eq!(holder(dir.path()), None);
        let path = dir.path().join("binary_runtime_measurements_sha1");
        let _list = fs::File::create(path).unwrap();
        let holder = holder(dir.path()).unwrap();
        assert!(holder.starts_with(&format!("process {} (", std::process::id())), "{holder}");
    }
}
