//! A sandbox's directory for sockets and swtpm's state.

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

/// Locked as long as the sandbox lives. Only a directory with such a file is a sandbox's.
const LOCK: &str = "sandbox.lock";

/// Only its owner may enter, whatever the umask: who reaches the sockets has the sandbox measure files,
/// and uses its TPM. It is removed when the sandbox ends; if that is killed, by the next one.
pub(crate) struct RunDir {
    dir: TempDir,
    _lock: File,
}

impl RunDir {
    /// Its path is short enough for a socket's name.
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
        // A umask may have taken the owner's permissions, too.
        fs::set_permissions(dir.path(), owner_only)?;
        let lock = File::create_new(dir.path().join(LOCK))?;
        lock.try_lock()?;
        Ok(RunDir { dir, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A socket in it that its owner alone may connect to.
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

/// Removes what sandboxes of this user left that were killed. Links in `base` may
/// have been placed there by others: none is followed.
fn remove_leftovers(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let ours = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())
            && entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == geteuid().as_raw());
        // The lock is kept until all is gone.
        if ours && let Ok(Some(_lock)) = abandoned(&entry.path()) {
            match fs::remove_dir_all(entry.path()) {
                Ok(()) => {
                    tracing::info!("removed {}: its sandbox was killed", entry.path().display())
                }
                Err(error) => tracing::warn!(%error, "{} stays", entry.path().display()),
            }
        }
    }
}

/// The lock of a directory whose sandbox is gone.
fn abandoned(dir: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let dir = rustix::fs::open(dir, flags | OFlags::DIRECTORY, Mode::empty())?;
    // What is no regular file is not to be waited for.
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
    fn what_a_killed_sandbox_left_is_removed_and_nothing_else() {
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
        // Another program's; another name; a link to what looks like one.
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
