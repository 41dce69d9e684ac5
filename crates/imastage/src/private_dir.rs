//! Files that only their owner may read, in a directory where others may have put something.

use std::{
    ffi::OsString,
    fs::{DirBuilder, File},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

use crate::exit::{Fail, Failure};

/// A directory held open, so that it stays the same one whatever happens to its path.
pub struct PrivateDir {
    dir: OwnedFd,
    path: PathBuf,
}

/// A file that is not there under its name yet. Dropped, it is removed.
pub struct NewFile<'a> {
    dir: &'a PrivateDir,
    name: &'static str,
    temporary: OsString,
    file: File,
    finished: bool,
}

impl PrivateDir {
    /// Opens a directory, which is made if it is not there (mode 0700). A link that somebody else
    /// made is not followed.
    pub fn open(path: &Path) -> Result<PrivateDir, Failure> {
        // `LINK/` is followed by every system call.
        let path: &Path = &path.components().collect::<PathBuf>();
        DirBuilder::new().recursive(true).mode(0o700).create(path).environment(path.display())?;
        let link = path.symlink_metadata().environment(path.display())?;
        let own = rustix::process::geteuid().as_raw();
        let trusted = !link.is_symlink() || link.uid() == own || link.uid() == 0;
        if !trusted {
            return Err(Failure::input(format!(
                "{}: a link that user {} made: give the directory itself",
                path.display(),
                link.uid()
            )));
        }
        // What was looked at is what is opened: where it was no link, none is followed.
        let mut flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, !link.is_symlink());
        let dir = rustix::fs::open(path, flags, Mode::empty()).environment(path.display())?;
        Ok(PrivateDir { dir, path: path.to_owned() })
    }

    /// Begins a file (mode 0600) that takes its name when it is finished.
    pub fn create(&self, name: &'static str) -> Result<NewFile<'_>, Failure> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).environment("random numbers")?;
        let temporary = OsString::from(format!(".{name}.{}", hex::encode(random)));
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.dir, &temporary, flags, Mode::RUSR | Mode::WUSR)
            .environment(self.path.join(name).display())?;
        Ok(NewFile { dir: self, name, temporary, file: File::from(file), finished: false })
    }

    /// A whole file.
    pub fn write(&self, name: &'static str, bytes: &[u8]) -> Result<NewFile<'_>, Failure> {
        let mut file = self.create(name)?;
        file.write_all(bytes).environment(self.path.join(name).display())?;
        Ok(file)
    }
}

impl NewFile<'_> {
    /// Replaces whatever has its name. A link is replaced, not followed.
    pub fn finish(mut self) -> Result<(), Failure> {
        let dir = &self.dir.dir;
        renameat(dir, &self.temporary, dir, self.name)
            .environment(self.dir.path.join(self.name).display())?;
        self.finished = true;
        Ok(())
    }
}

impl Write for NewFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // Nobody misses it.
            let _ = unlinkat(&self.dir.dir, &self.temporary, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    #[test]
    fn finding_13_links_are_replaced_and_files_are_their_owners() {
        let dir = tempfile::tempdir().unwrap();
        let (out, target) = (dir.path().join("a/b"), dir.path().join("target"));
        fs::write(&target, "precious").unwrap();
        fs::create_dir_all(&out).unwrap();
        symlink(&target, out.join("list")).unwrap();
        let private = PrivateDir::open(&out).unwrap();
        private.write("list", b"records").unwrap().finish().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"precious");
        let meta = fs::symlink_metadata(out.join("list")).unwrap();
        assert!(meta.is_file());
        assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
        // Not finished: nothing is left.
        drop(private.write("list", b"other").unwrap());
        assert_eq!(fs::read(out.join("list")).unwrap(), b"records");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    }

    #[test]
    fn finding_13_a_directory_that_is_somebody_elses_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::create_dir(&real).unwrap();
        symlink(&real, &link).unwrap();
        PrivateDir::open(&link).unwrap();
        // Only root can give a link away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
            assert!(PrivateDir::open(&link).is_err());
            assert!(PrivateDir::open(&link.join("")).is_err());
        }
        assert!(PrivateDir::open(&real).is_ok());
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(PrivateDir::open(&dir.path().join("file")).is_err());
    }
}
