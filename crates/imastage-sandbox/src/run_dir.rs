//! A sandbox's run directory, for sockets and swtpm's state.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    process::geteuid,
};
use tempfile::TempDir;

use crate::SandboxError;

const PREFIX: &str = "imastage-";

/// Locked while the sandbox runs. Only a directory with this file is a sandbox's.
const LOCK: &str = "sandbox.lock";

/// The run directory. Accessible to its owner only, regardless of the umask: access to the sockets
/// permits measuring files and using the TPM. Removed when the sandbox ends; if the sandbox is
/// killed, the next one removes the directory.
pub(crate) struct RunDir {
    dir: TempDir,
    _lock: File,
}

impl RunDir {
    /// Creates the directory, with a path short enough for a socket address.
    pub(crate) fn make() -> Result<RunDir, SandboxError> {
        let base = match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
            Some(dir) => PathBuf::from(dir),
            None if geteuid().is_root() => PathBuf::from("/run"),
            None => std::env::temp_dir(),
        };
        remove_leftovers(&base);
        RunDir::make_in(&base).map_err(|error| SandboxError::Path { path: base, error })
    }

    fn make_in(base: &Path) -> io::Result<RunDir> {
        let owner_only = Permissions::from_mode(0o700);
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(owner_only.clone())
            .tempdir_in(base)?;
        // The umask may have cleared the owner's permissions.
        fs::set_permissions(dir.path(), owner_only)?;
        let lock = File::create_new(dir.path().join(LOCK))?;
        lock.try_lock()?;
        Ok(RunDir { dir, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Creates a socket in the directory to which only its owner can connect.
    pub(crate) fn listen(&self, name: &str) -> Result<UnixListener, SandboxError> {
        let path = self.dir.path().join(name);
        let listen = || {
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        listen().map_err(|error| SandboxError::Path { path: path.clone(), error })
    }
}

/// Removes the run directories of this user's killed sandboxes. Follows no links in `base`, which
/// other users may have created.
fn remove_leftovers(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let ours = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())
            && entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == geteuid().as_raw());
        // The lock is kept until the directory is removed.
        if ours && let Ok(Some(_lock)) = abandoned(&entry.path()) {
            match fs::remove_dir_all(entry.path()) {
                Ok(()) => {
                    tracing::info!("removed {} of a killed sandbox", entry.path().display())
                }
                Err(error) => tracing::warn!(%error, "cannot remove {}", entry.path().display()),
            }
        }
    }
}

/// Acquires the lock of a directory whose sandbox is gone.
fn abandoned(dir: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let dir = rustix::fs::open(dir, flags | OFlags::DIRECTORY, Mode::empty())?;
    // NONBLOCK: opening a FIFO must not wait.
    let lock = rustix::fs::openat(&dir, LOCK, flags | OFlags::NONBLOCK, Mode::empty())?;
    let lock = File::from(lock);
    let meta = lock.metadata()?;
    let is_lock = meta.is_file() && meta.uid() == geteuid().as_raw();
    Ok((is_lock && lock.try_lock().is_ok()).then_some(lock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_killed_sandboxes_are_removed() {
        let base = tempfile::tempdir().unwrap();
        let alive = RunDir::make_in(base.path()).unwrap();
        let make = |name: &str| {
            let dir = base.path().join(name);
            fs::create_dir(&dir).unwrap();
            dir
        };
        let killed = make("imastage-killed");
        fs::write(killed.join(LOCK), "").unwrap();
        fs::create_dir(killed.join("swtpm")).unwrap();
        // A directory without a lock, one with another name, a link to a directory with a lock, and
        // a directory whose lock is a link.
        let foreign = make("imastage-other");
        let target = make("target");
        fs::write(target.join(LOCK), "").unwrap();
        std::os::unix::fs::symlink(&target, base.path().join("imastage-link")).unwrap();
        let linked = make("imastage-linked");
        std::os::unix::fs::symlink(target.join(LOCK), linked.join(LOCK)).unwrap();

        remove_leftovers(base.path());
        assert!(!killed.exists());
        for kept in [alive.path(), &foreign, &target, &linked] {
            assert!(kept.exists(), "{}", kept.display());
        }
        assert!(target.join(LOCK).exists());
    }
}
