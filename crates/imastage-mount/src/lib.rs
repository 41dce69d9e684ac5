//! Shared code of the FUSE file systems that show IMA's files: the sandbox and the view.
//!
//! - [`prepare`], [`is_dead`] and [`detach`] manage the mount point, including one that a killed
//!   process left mounted;
//! - [`list`] answers a readdir.
#![forbid(unsafe_code)]

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd, BorrowedFd},
    path::Path,
    process::Command,
};

use fuser::{FileType, INodeNo, ReplyDirectory};
use ima_securityfs::{FileName, Kind};
use rustix::mount::{MountFlags, UnmountFlags};

/// Creates the mount point if necessary, and unmounts a file system that a killed process left. The
/// directory must be empty, except for an entry named `known`.
///
/// # Errors
/// [`io::Error`] if the directory cannot be created or read, or is not empty.
pub fn prepare(mount: &Path, known: Option<&str>) -> io::Result<()> {
    if is_dead(mount) {
        detach(mount);
    }
    // The path may exist and not be a directory.
    if fs::metadata(mount).is_ok_and(|found| !found.is_dir()) {
        return Err(io::Error::other("this is not a directory; give an empty directory"));
    }
    fs::create_dir_all(mount)?;
    let is_known = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| known.is_some_and(|known| entry.file_name() == known))
    };
    match fs::read_dir(mount)?.all(is_known) {
        true => Ok(()),
        false => Err(io::Error::other("there are files in it; give an empty directory")),
    }
}

/// Whether `mount` is a FUSE mount whose server is gone (ENOTCONN, fuse(4)).
pub fn is_dead(mount: &Path) -> bool {
    let found = fs::metadata(mount);
    found
        .is_err_and(|error| error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()))
}

/// Mounts `device` (/dev/fuse, opened by the file system's server) read-only on `mount`; the files'
/// modes apply. Starts no program, and needs CAP_SYS_ADMIN.
///
/// # Errors
/// [`io::Error`].
pub fn mount_read_only(device: BorrowedFd<'_>, mount: &Path) -> io::Result<()> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    // fuse(4): rootmode is the octal mode of a directory.
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,allow_other",
        device.as_raw_fd(),
        user.as_raw(),
        group.as_raw()
    );
    let flags = MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
    let options = CString::new(options)?;
    Ok(rustix::mount::mount("imastage", mount, "fuse.imastage", flags, options.as_c_str())?)
}

/// Unmounts `mount` without starting a program; open files stay open.
///
/// # Errors
/// [`io::Error`].
pub fn unmount(mount: &Path) -> io::Result<()> {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    Ok(rustix::mount::unmount(mount, flags)?)
}

/// Detaches a mount from the directory tree; open files stay open. Logs a warning on failure.
pub fn detach(mount: &Path) {
    let unmounted = rustix::mount::unmount(mount, UnmountFlags::DETACH);
    if unmounted.is_err() {
        // Without root, only the setuid helper can unmount.
        let helper = Command::new("fusermount3").arg("-uz").arg(mount).status();
        if !helper.is_ok_and(|status| status.success()) {
            tracing::warn!("{}: cannot unmount; run umount -l", mount.display());
        }
    }
}

/// Lists the root directory, which has `files`, from `offset` on. The files' inodes are consecutive from
/// `first`; every other `inode` is not a directory (ENOTDIR).
pub fn list(
    inode: INodeNo,
    files: &[FileName],
    first: u64,
    offset: u64,
    mut reply: ReplyDirectory,
) {
    if inode != INodeNo::ROOT {
        return reply.error(fuser::Errno::ENOTDIR);
    }
    let dots = [(1, FileType::Directory, ".".to_owned()), (1, FileType::Directory, "..".into())];
    let files = files.iter().enumerate().map(|(at, file)| {
        let kind = match file.kind() {
            Kind::File => FileType::RegularFile,
            Kind::Symlink(_) => FileType::Symlink,
        };
        (first + at as u64, kind, file.to_string())
    });
    let entries = dots.into_iter().chain(files).enumerate();
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    for (at, (inode, kind, name)) in entries.skip(start) {
        // The offset of an entry is the position of the next one.
        if reply.add(INodeNo(inode), at as u64 + 1, kind, name) {
            break;
        }
    }
    reply.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_point_is_created_and_must_be_empty() {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("a/b");
        prepare(&mount, None).unwrap();
        prepare(&mount, Some("link")).unwrap();
        fs::write(mount.join("link"), "").unwrap();
        prepare(&mount, Some("link")).unwrap();
        assert!(prepare(&mount, None).unwrap_err().to_string().contains("files in it"));
        fs::write(mount.join("other"), "").unwrap();
        assert!(prepare(&mount, Some("link")).is_err());
        let file = mount.join("other");
        assert!(prepare(&file, None).unwrap_err().to_string().contains("not a directory"));
    }
}
