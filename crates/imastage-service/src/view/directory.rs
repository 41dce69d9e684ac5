//! The view's files, served through FUSE.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, SystemTime},
};

use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen,
};
use ima_log::Bank;
use ima_securityfs::{Dialect, FileName, Kind, directory};

use super::{
    index::{Mark, Shown},
    listing::Listing,
};

/// What the view has and who may read it.
pub(super) struct Tree {
    files: Vec<FileName>,
    group: u32,
    born: SystemTime,
    /// What the files were last said to hold, and since when. The kernel may have everything before
    /// that in its page cache, and has nothing of what comes behind.
    told: Mutex<(Mark, SystemTime)>,
}

/// Answers the kernel, at once where it can; what needs a drain first is put in a queue.
pub(super) struct Directory {
    tree: Arc<Tree>,
    listing: Arc<Listing>,
    waiting: mpsc::Sender<Waiting>,
    /// What each open file that holds a number showed when it was last read from the start.
    numbers: Arc<Mutex<HashMap<u64, String>>>,
    next_handle: Mutex<u64>,
}

/// A request that is answered after a drain.
pub(super) enum Waiting {
    /// How large is it, and so on.
    Attr(INodeNo, ReplyAttr),
    /// The number in it.
    Number(FileName, Numbers, u32, ReplyData),
}

/// Where the answer to a read of a number is kept for the reads that follow.
pub(super) struct Numbers {
    kept: Arc<Mutex<HashMap<u64, String>>>,
    handle: u64,
}

/// The inode of the first file; the directory's is 1.
const FIRST_INODE: u64 = 2;
/// Sizes are never taken from a cache: who reads to the end asks how large the file is, and gets
/// the answer after a drain.
const TTL: Duration = Duration::ZERO;
/// The kernel's own unit of caching, and ours.
const BLOCK: u32 = 4096;

impl Tree {
    pub(super) fn new(banks: &[Bank], group: u32) -> Tree {
        let banks: Vec<ima_securityfs::Bank> =
            banks.iter().map(|bank| ima_securityfs::Bank(bank.tpm_alg())).collect();
        // Nothing was ever staged here, and there is nothing to ask for.
        let read_only = |file: &FileName| file.mode(Dialect::V4) == 0o440;
        let files = directory(Dialect::V4, &banks).filter(read_only).collect();
        let born = SystemTime::now();
        Tree { files, group, born, told: Mutex::new((Mark::default(), born)) }
    }

    /// The files that show records, each once, with their inodes.
    pub(super) fn lists(&self) -> impl Iterator<Item = (INodeNo, Shown)> {
        self.files.iter().enumerate().filter_map(|(at, file)| match file.kind() {
            Kind::File => Some((INodeNo(FIRST_INODE + at as u64), Shown::of(*file)?)),
            Kind::Symlink(_) => None,
        })
    }

    /// What the files were last said to hold.
    pub(super) fn told(&self) -> Mark {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// From now on the files are said to hold this.
    pub(super) fn tell(&self, end: Mark) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = (end, SystemTime::now());
    }

    pub(super) fn number(&self, file: FileName) -> String {
        let told = self.told();
        match file {
            FileName::Violations => format!("{}\n", told.violations),
            _ => format!("{}\n", told.records),
        }
    }

    pub(super) fn attr(&self, inode: INodeNo) -> Option<FileAttr> {
        let (end, since) = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (kind, size, perm) = match self.file(inode) {
            None if inode == INodeNo::ROOT => (FileType::Directory, 0, 0o755),
            None => return None,
            Some(file) => match (file.kind(), Shown::of(file)) {
                (Kind::Symlink(target), _) => {
                    (FileType::Symlink, target.to_string().len() as u64, 0o777)
                }
                (Kind::File, Some(shown)) => (FileType::RegularFile, end.offset(shown), 0o440),
                // As securityfs's.
                (Kind::File, None) => (FileType::RegularFile, 0, 0o440),
            },
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(512),
            atime: since,
            mtime: since,
            ctime: since,
            crtime: self.born,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: rustix::process::geteuid().as_raw(),
            gid: self.group,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        })
    }

    fn file(&self, inode: INodeNo) -> Option<FileName> {
        let at = usize::try_from(u64::from(inode).checked_sub(FIRST_INODE)?).ok()?;
        self.files.get(at).copied()
    }
}

impl Directory {
    pub(super) fn new(
        tree: Arc<Tree>,
        listing: Arc<Listing>,
        waiting: mpsc::Sender<Waiting>,
    ) -> Directory {
        Directory { tree, listing, waiting, numbers: Arc::default(), next_handle: Mutex::new(1) }
    }

    fn queue(&self, request: Waiting) {
        // Nobody takes it when the view ends: then it is dropped, which answers EIO.
        let _ = self.waiting.send(request);
    }
}

impl Numbers {
    /// Answers a read from the start.
    pub(super) fn answer(self, text: String, size: u32, reply: ReplyData) {
        reply.data(&text.as_bytes()[..text.len().min(size as usize)]);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(self.handle, text);
    }
}

impl Filesystem for Directory {
    fn init(&mut self, _: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        // What is cached stays right when a file grows, but for the last page, of which we say that
        // ourselves. A kernel that does not know this (before 5.2) drops the whole file's cache.
        if config.add_capabilities(InitFlags::FUSE_EXPLICIT_INVAL_DATA).is_err() {
            tracing::info!("this kernel forgets what it cached of the view whenever it grows");
        }
        Ok(())
    }

    fn lookup(&self, _: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let at = match parent {
            INodeNo::ROOT => {
                self.tree.files.iter().position(|file| file.to_string().as_str() == name)
            }
            _ => None,
        };
        match at.and_then(|at| self.tree.attr(INodeNo(FIRST_INODE + at as u64))) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    /// The kernel asks before it says that a file ends, before a seek to the end, for `stat` and at
    /// `open`: in short, whenever someone is about to know how far the list goes.
    fn getattr(&self, _: &fuser::Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree.file(inode) {
            Some(file) if matches!(file.kind(), Kind::File) => {
                self.queue(Waiting::Attr(inode, reply));
            }
            _ => match self.tree.attr(inode) {
                Some(attr) => reply.attr(&TTL, &attr),
                None => reply.error(fuser::Errno::ENOENT),
            },
        }
    }

    fn readlink(&self, _: &fuser::Request, inode: INodeNo, reply: ReplyData) {
        match self.tree.file(inode).map(|file| file.kind()) {
            Some(Kind::Symlink(target)) => reply.data(target.to_string().as_bytes()),
            _ => reply.error(fuser::Errno::EINVAL),
        }
    }

    fn open(&self, _: &fuser::Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.tree.file(inode).map(Shown::of) {
            // No handle: what a file shows is the same for all who have it open.
            Some(Some(_)) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Some(None) => {
                let mut next = self.next_handle.lock().unwrap_or_else(PoisonError::into_inner);
                reply.opened(FileHandle(*next), FopenFlags::FOPEN_DIRECT_IO);
                *next += 1;
            }
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _: &fuser::Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = self.tree.file(inode) else { return reply.error(fuser::Errno::ENOENT) };
        if let Some(shown) = Shown::of(file) {
            let mut reply = Some(reply);
            let give = |bytes: &[u8]| reply.take().map(|reply| reply.data(bytes));
            if let Err(error) = self.listing.read(shown, offset, size as usize, give) {
                tracing::error!("the view cannot show {file} from byte {offset} on: {error}");
                // Dropped without an answer, it says EIO.
            }
            return;
        }
        let handle = u64::from(handle);
        if offset == 0 {
            let numbers = Numbers { kept: Arc::clone(&self.numbers), handle };
            return self.queue(Waiting::Number(file, numbers, size, reply));
        }
        let kept = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let text = kept.get(&handle).map_or(&[][..], |text| text.as_bytes());
        let rest = usize::try_from(offset).ok().and_then(|at| text.get(at..)).unwrap_or_default();
        reply.data(&rest[..rest.len().min(size as usize)]);
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
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.remove(&u64::from(handle));
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
        let files = self.tree.files.iter().enumerate().map(|(at, file)| {
            let kind = match file.kind() {
                Kind::File => FileType::RegularFile,
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
