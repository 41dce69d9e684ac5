//! securityfs's `ima` directory, served through FUSE.

use std::{
    collections::HashMap,
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
use ima_list::{DeleteError, StageError};
use ima_securityfs::{Access, Caller, Doors, Errno, FileName, Kind, Open, Request, directory};

use crate::{Ima, caller, control::RUN_LINK, fault::Faults, reading::Reading};

/// The directory. One request is served at a time, in the order the kernel sends them, so that a
/// file that was closed is closed for whoever opens next.
pub(crate) struct Directory {
    ima: Arc<Ima>,
    faults: Faults,
    run_dir: PathBuf,
    files: Vec<FileName>,
    state: Mutex<State>,
    owner: u32,
    born: SystemTime,
}

struct State {
    doors: Doors,
    open: HashMap<u64, OpenFile>,
    next_handle: u64,
    /// Owner, group and permission bits of each file: files can be given to a group.
    access: Vec<(u32, u32, u16)>,
}

enum OpenFile {
    /// A file that shows the list.
    Measurements {
        file: FileName,
        reading: Reading,
        /// `None` if there is a fault.
        door: Option<Open>,
        writer: bool,
        /// A read came to the end.
        ended: bool,
    },
    /// A file that shows a number.
    Number(FileName),
}

/// The inode of the first file; the directory's is 1.
const FIRST_INODE: u64 = 2;
/// The inode of the link to the run directory.
const RUN_LINK_INODE: u64 = 1 << 32;
/// Attributes change by chmod and chgrp only, but then at once.
const TTL: Duration = Duration::ZERO;

impl Directory {
    pub(crate) fn new(ima: Arc<Ima>, faults: Faults, run_dir: PathBuf) -> Directory {
        let banks: Vec<ima_securityfs::Bank> =
            ima.banks().iter().map(|bank| ima_securityfs::Bank(bank.tpm_alg())).collect();
        let files: Vec<FileName> = directory(&banks).collect();
        let owner = rustix::process::geteuid().as_raw();
        let group = rustix::process::getegid().as_raw();
        let access = files
            .iter()
            .map(|file| match file.kind() {
                Kind::File { mode } => (owner, group, faults.mode(mode)),
                Kind::Symlink(_) => (owner, group, 0o777),
            })
            .collect();
        let state = State { doors: Doors::new(), open: HashMap::new(), next_handle: 1, access };
        let state = Mutex::new(state);
        Directory { ima, faults, run_dir, files, state, owner, born: SystemTime::now() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, inode: INodeNo) -> Option<(usize, FileName)> {
        let at = usize::try_from(u64::from(inode).checked_sub(FIRST_INODE)?).ok()?;
        Some((at, *self.files.get(at)?))
    }

    fn attr(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, size, (uid, gid, perm)) = if inode == INodeNo::ROOT {
            (FileType::Directory, 0, (self.owner, rustix::process::getegid().as_raw(), 0o755))
        } else if u64::from(inode) == RUN_LINK_INODE {
            (FileType::Symlink, 0, (self.owner, rustix::process::getegid().as_raw(), 0o777))
        } else {
            let (at, file) = self.file(inode)?;
            let access = self.state().access[at];
            match file.kind() {
                // securityfs's files say that they are empty.
                Kind::File { .. } => (FileType::RegularFile, self.faults.size(), access),
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

    /// A sandbox without root takes the user who started it for root.
    fn caller(&self, request: &fuser::Request) -> Caller {
        let thread = request.pid();
        let stands_in = self.owner != 0 && request.uid() == self.owner;
        Caller { thread: u64::from(thread), admin: stands_in || caller::is_admin(thread) }
    }

    fn request(&self, file: FileName, write: &[u8]) -> Result<(), Errno> {
        let list = self.ima.list();
        let act = |request| match request {
            Request::Stage => list.stage().map(drop).map_err(|error| match error {
                StageError::Pending => Errno::EEXIST,
                StageError::Empty => Errno::ENOENT,
                StageError::Suspended => Errno::EACCES,
            }),
            Request::DeleteStaged => list.delete_staged().map(drop).map_err(refused_deletion),
            Request::DeleteFirst(n) => {
                list.delete_first(n.get()).map(drop).map_err(refused_deletion)
            }
        };
        match self.faults.parse(write, file)? {
            Some(request) => self.faults.act(list, request, act),
            None => Ok(()),
        }
    }

    fn number(&self, file: FileName) -> String {
        format!("{}\n", self.faults.number(file, self.ima.list().counts()))
    }
}

fn refused_deletion(error: DeleteError) -> Errno {
    match error {
        DeleteError::Pending => Errno::EEXIST,
        DeleteError::Empty | DeleteError::TooMany { .. } => Errno::ENOENT,
        DeleteError::Suspended | DeleteError::Dumped => Errno::ESTALE,
    }
}

fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw())
}

impl Filesystem for Directory {
    fn lookup(&self, _: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let inode = if parent != INodeNo::ROOT {
            None
        } else if name == RUN_LINK {
            Some(RUN_LINK_INODE)
        } else {
            let at = self.files.iter().position(|file| file.to_string().as_str() == name);
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

    /// Owner, group and mode can be changed; a truncation (`>` in a shell) has no effect.
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
            let access = &mut self.state().access[at];
            access.0 = uid.unwrap_or(access.0);
            access.1 = gid.unwrap_or(access.1);
            access.2 = mode.map_or(access.2, |mode| (mode & 0o7777) as u16);
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
        let mut state = self.state();
        let caller = self.caller(request);
        let open = match Reading::of(self.faults.shown(file)) {
            None => match self.faults.open_number(&mut state.doors, caller) {
                Ok(()) => OpenFile::Number(file),
                Err(refusal) => return reply.error(errno(refusal)),
            },
            Some(reading) => {
                let access = match flags.acc_mode() {
                    OpenAccMode::O_RDONLY => Access::Read,
                    OpenAccMode::O_WRONLY | OpenAccMode::O_RDWR => Access::Write,
                };
                match self.faults.open(&mut state.doors, file, access, caller) {
                    Ok(door) => {
                        let writer = access == Access::Write;
                        OpenFile::Measurements { file, reading, door, writer, ended: false }
                    }
                    Err(refusal) => return reply.error(errno(refusal)),
                }
            }
        };
        let handle = state.next_handle;
        state.next_handle += 1;
        state.open.insert(handle, open);
        // Every read and write comes to us as it was made, whatever size the file says it has.
        reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
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
        match self.state().open.get_mut(&u64::from(handle)) {
            Some(OpenFile::Measurements { reading, ended, .. }) => {
                if *ended && offset > 0 && self.faults.end_for_ever() {
                    return reply.data(&[]);
                }
                let size = self.faults.read_size(size as usize);
                let bytes = reading.read(self.ima.list(), offset, size);
                *ended = bytes.is_empty();
                reply.data(bytes);
            }
            Some(OpenFile::Number(file)) => {
                let text = self.number(*file);
                let rest = usize::try_from(offset).ok().and_then(|at| text.as_bytes().get(at..));
                let rest = rest.unwrap_or_default();
                reply.data(&rest[..rest.len().min(size as usize)]);
            }
            None => reply.error(fuser::Errno::EBADF),
        }
    }

    fn write(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.state().open.get_mut(&u64::from(handle)) {
            Some(OpenFile::Measurements { file, reading, .. }) => {
                match self.request(*file, data) {
                    Ok(()) => {
                        // A request is at most 21 bytes.
                        let len = self.faults.written(data.len() as u32);
                        reading.written(offset, len as usize);
                        if self.faults.request_rewinds() {
                            reading.rewind();
                        }
                        reply.written(len);
                    }
                    Err(refusal) => reply.error(errno(refusal)),
                }
            }
            Some(OpenFile::Number(_)) => reply.error(fuser::Errno::EINVAL),
            None => reply.error(fuser::Errno::EBADF),
        }
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
        let mut state = self.state();
        if let Some(OpenFile::Measurements { door: Some(door), writer, .. }) =
            state.open.remove(&u64::from(handle))
        {
            self.faults.release(&mut state.doors, door, writer);
        }
        reply.ok();
    }

    fn fsync(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EINVAL);
    }

    fn unlink(&self, _: &fuser::Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EPERM);
    }

    fn flush(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn readdir(
        &self,
        _: &fuser::Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if inode != INodeNo::ROOT {
            return reply.error(fuser::Errno::ENOTDIR);
        }
        let dots =
            [(1, FileType::Directory, ".".to_owned()), (1, FileType::Directory, "..".into())];
        let files = self.files.iter().enumerate().map(|(at, file)| {
            let kind = match file.kind() {
                Kind::File { .. } => FileType::RegularFile,
                Kind::Symlink(_) => FileType::Symlink,
            };
            (FIRST_INODE + at as u64, kind, file.to_string())
        });
        let entries = dots.into_iter().chain(files).enumerate();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (inode, kind, name)) in entries.skip(start) {
            // The offset of an entry is where the next one is read from.
            if reply.add(INodeNo(inode), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
