//! securityfs's `ima` directory, served through FUSE.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, TimeOrNow, WriteFlags,
};
use ima_securityfs::{Access, Caller, Errno, FileName, Kind, directory};

use crate::{
    Machine, caller,
    control::RUN_LINK,
    faults::Faults,
    files::{Files, Refusal},
};

/// The directory. Requests are served one at a time, in the order the kernel sends them, so that a
/// close takes effect before the next open.
pub(crate) struct Directory {
    faults: Faults,
    run_dir: PathBuf,
    names: Vec<FileName>,
    files: Files,
    /// Owner, group and permission bits of each file; chmod and chgrp change them.
    access: Mutex<Vec<(u32, u32, u16)>>,
    owner: u32,
    born: SystemTime,
}

/// The inode of the first file; the directory's is 1.
const FIRST_INODE: u64 = 2;
/// The inode of the link to the run directory.
const RUN_LINK_INODE: u64 = 1 << 32;
/// Zero, so that chmod and chgrp take effect immediately.
const TTL: Duration = Duration::ZERO;

impl Directory {
    pub(crate) fn new(machine: Arc<Machine>, faults: Faults, run_dir: PathBuf) -> Directory {
        let banks: Vec<ima_securityfs::Bank> =
            machine.ima().banks().iter().map(|bank| ima_securityfs::Bank(bank.tpm_alg())).collect();
        let dialect = machine.grammar().dialect;
        let names: Vec<FileName> = directory(dialect, &banks).collect();
        let owner = rustix::process::geteuid().as_raw();
        let group = rustix::process::getegid().as_raw();
        let access = names
            .iter()
            .map(|file| match file.kind() {
                Kind::File => (owner, group, faults.mode(file.mode(dialect))),
                Kind::Symlink(_) => (owner, group, 0o777),
            })
            .collect();
        Directory {
            faults,
            run_dir,
            names,
            files: Files::new(machine, faults),
            access: Mutex::new(access),
            owner,
            born: SystemTime::now(),
        }
    }

    fn access(&self) -> MutexGuard<'_, Vec<(u32, u32, u16)>> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, inode: INodeNo) -> Option<(usize, FileName)> {
        let at = usize::try_from(u64::from(inode).checked_sub(FIRST_INODE)?).ok()?;
        Some((at, *self.names.get(at)?))
    }

    fn attr(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, size, (uid, gid, perm)) = if inode == INodeNo::ROOT {
            (FileType::Directory, 0, (self.owner, rustix::process::getegid().as_raw(), 0o755))
        } else if u64::from(inode) == RUN_LINK_INODE {
            (FileType::Symlink, 0, (self.owner, rustix::process::getegid().as_raw(), 0o777))
        } else {
            let (at, file) = self.file(inode)?;
            let access = self.access()[at];
            match file.kind() {
                // securityfs's files have size 0.
                Kind::File => (FileType::RegularFile, self.faults.size(), access),
                Kind::Symlink(target) => {
                    (FileType::Symlink, target.to_string().len() as u64, access)
                }
            }
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: 0,
            atime: self.born,
            mtime: self.born,
            ctime: self.born,
            crtime: self.born,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// The caller of a request. A sandbox without root treats the user who started it as root.
    fn caller(&self, request: &fuser::Request) -> Caller {
        let thread = request.pid();
        let stands_in = self.owner != 0 && request.uid() == self.owner;
        let admin = stands_in || caller::is_admin(thread);
        Caller { thread: u64::from(self.faults.thread(thread)), admin }
    }
}

fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw())
}

fn refusal(refusal: Refusal) -> fuser::Errno {
    match refusal {
        Refusal::Errno(refused) => errno(refused),
        Refusal::Gone => fuser::Errno::EIO,
    }
}

impl Filesystem for Directory {
    fn lookup(&self, _: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let inode = if parent != INodeNo::ROOT {
            None
        } else if name == RUN_LINK {
            Some(RUN_LINK_INODE)
        } else {
            let at = self.names.iter().position(|file| file.to_string().as_str() == name);
            at.map(|at| FIRST_INODE + at as u64)
        };
        match inode.and_then(|inode| self.attr(INodeNo(inode))) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &fuser::Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(inode) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    /// Changes owner, group and mode; a truncation (`>` in a shell) has no effect.
    fn setattr(
        &self,
        _: &fuser::Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Some((at, _)) = self.file(inode) {
            let faults = self.faults;
            let access = &mut self.access()[at];
            access.0 = uid.unwrap_or(access.0);
            access.1 = gid.map_or(access.1, |gid| faults.changed_group(access.1, gid));
            access.2 =
                mode.map_or(access.2, |mode| faults.changed_mode(access.2, (mode & 0o7777) as u16));
        }
        match self.attr(inode) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn readlink(&self, _: &fuser::Request, inode: INodeNo, reply: ReplyData) {
        if u64::from(inode) == RUN_LINK_INODE {
            return reply.data(self.run_dir.as_os_str().as_bytes());
        }
        match self.file(inode).map(|(_, file)| file.kind()) {
            Some(Kind::Symlink(target)) => {
                reply.data(self.faults.target(target).to_string().as_bytes());
            }
            _ => reply.error(fuser::Errno::EINVAL),
        }
    }

    fn open(&self, request: &fuser::Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Some((_, file)) = self.file(inode) else { return reply.error(fuser::Errno::ENOENT) };
        let access = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => Access::Read,
            OpenAccMode::O_WRONLY | OpenAccMode::O_RDWR => Access::Write,
        };
        match self.files.open(file, access, self.caller(request)) {
            // Direct I/O passes every read and write unchanged, regardless of the file's size.
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO),
            Err(refused) => reply.error(errno(refused)),
        }
    }

    fn read(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.files.read(u64::from(handle), offset, size as usize) {
            Ok(bytes) => reply.data(&bytes),
            Err(refused) => reply.error(refusal(refused)),
        }
    }

    fn write(
        &self,
        request: &fuser::Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if self.faults.asks_again() && !self.caller(request).admin {
            return reply.error(errno(Errno::EPERM));
        }
        match self.files.write(u64::from(handle), offset, data) {
            Ok(len) => reply.written(len),
            Err(refused) => reply.error(refusal(refused)),
        }
    }

    /// Handles the close of a descriptor. Unlike [`Self::release`], the request comes from the
    /// thread that closes.
    fn flush(
        &self,
        request: &fuser::Request,
        _: INodeNo,
        handle: FileHandle,
        _: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.files.close(u64::from(handle), u64::from(self.faults.thread(request.pid())));
        reply.ok();
    }

    fn release(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.files.release(u64::from(handle));
        reply.ok();
    }

    fn fsync(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.faults.sync() {
            Ok(()) => reply.ok(),
            Err(refused) => reply.error(errno(refused)),
        }
    }

    fn unlink(&self, _: &fuser::Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        match self.faults.unlink() {
            Ok(()) => reply.ok(),
            Err(refused) => reply.error(errno(refused)),
        }
    }

    fn readdir(
        &self,
        _: &fuser::Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        imastage_mount::list(inode, &self.names, FIRST_INODE, offset, reply);
    }
}
