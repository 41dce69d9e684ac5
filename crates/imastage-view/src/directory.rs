//! The view's files, served through FUSE.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant, SystemTime},
};

use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
};
use ima_log::Bank;
use ima_securityfs::{Dialect, FileName, Kind, directory};

use crate::{
    index::{Mark, Shown},
    listing::Listing,
    reader,
};

/// The files of the view, and their readers.
pub(crate) struct Tree {
    files: Vec<FileName>,
    group: u32,
    born: SystemTime,
    /// The last reported content of the files, and its time. The kernel can have all of it, and
    /// nothing after it, in its page cache.
    told: Mutex<(Mark, SystemTime)>,
}

/// Answers the kernel's requests; those that need a drain first are queued.
pub(crate) struct Directory {
    tree: Arc<Tree>,
    listing: Arc<Listing>,
    waiting: mpsc::Sender<Waiting>,
    open: Arc<OpenFiles>,
}

/// A request that one thread answers, so that sizes are reported in order.
pub(crate) enum Waiting {
    /// A lookup. Needs no drain; all others do.
    Entry(INodeNo, ReplyEntry),
    /// The attributes; with the open file, if there is one.
    Attr(INodeNo, Option<u64>, ReplyAttr),
    /// The number that the file shows, with a maximum size in bytes.
    Number(FileName, u64, u32, ReplyData),
}

/// The state of open files, by their handles.
#[derive(Default)]
pub(crate) struct OpenFiles(Mutex<Handles>);

#[derive(Default)]
struct Handles {
    last: u64,
    numbers: HashMap<u64, String>,
    chases: HashMap<u64, Chase>,
}

/// A reader that reads to the end repeatedly and finds more each time.
struct Chase {
    /// The last reported size, the growth in it, its time, and the number of consecutive times that
    /// it had grown.
    size: u64,
    new: u64,
    told: Instant,
    grown: u32,
    /// Whether the end of the file was then reported.
    has_ended: bool,
}

/// If records are added faster than they are drained, a file would never end. A reader that saw
/// this number of consecutive growths, and asks again as soon as it can have read the new part,
/// still continues the same reading: it has all records from its start, and gets the end of the
/// file. A quote takes longer than this.
///
/// Reads are served from the kernel's page cache, so only time distinguishes a continued reading
/// from the next one. But how long one takes depends on the machine: with each further round that
/// the file has grown it may take twice as long, so that it ends after some rounds, however slow it
/// is.
const MOST_CHASED: u32 = 4;
const AT_ONCE: Duration = Duration::from_millis(5);
/// The maximum time that an ordinary reader needs per byte.
const BYTE: Duration = Duration::from_nanos(20);

/// The inode of the first file; the directory's is 1.
const FIRST_INODE: u64 = 2;
/// Sizes are not cached: a reader at the end requests the size, which is reported after a drain.
const TTL: Duration = Duration::ZERO;
/// The kernel's own unit of caching, and ours.
const BLOCK: u32 = 4096;

impl Tree {
    pub(crate) fn new(banks: &[Bank], group: u32) -> Tree {
        let banks: Vec<ima_securityfs::Bank> =
            banks.iter().map(|bank| ima_securityfs::Bank(bank.tpm_alg())).collect();
        // The view has no staged records and takes no requests.
        let read_only = |file: &FileName| file.mode(Dialect::V4) == 0o440;
        let files = directory(Dialect::V4, &banks).filter(read_only).collect();
        let born = SystemTime::now();
        Tree { files, group, born, told: Mutex::new((Mark::default(), born)) }
    }

    /// The files that show records, each once, with their inodes.
    pub(crate) fn lists(&self) -> impl Iterator<Item = (INodeNo, Shown)> {
        self.files.iter().enumerate().filter_map(|(at, file)| match file.kind() {
            Kind::File => Some((INodeNo(FIRST_INODE + at as u64), Shown::of(*file)?)),
            Kind::Symlink(_) => None,
        })
    }

    /// The last reported content of the files.
    pub(crate) fn told(&self) -> Mark {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Sets the reported content of the files.
    pub(crate) fn tell(&self, end: Mark) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = (end, SystemTime::now());
    }

    pub(crate) fn number(&self, file: FileName) -> String {
        let told = self.told();
        match file {
            FileName::Violations => format!("{}\n", told.violations),
            _ => format!("{}\n", told.records),
        }
    }

    pub(crate) fn attr(&self, inode: INodeNo) -> Option<FileAttr> {
        let (end, since) = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (kind, size, perm) = match self.file(inode) {
            // Others cannot request attributes of its files, which would drain the list.
            None if inode == INodeNo::ROOT => (FileType::Directory, 0, 0o750),
            None => return None,
            Some(file) => match (file.kind(), Shown::of(file)) {
                (Kind::Symlink(target), _) => {
                    (FileType::Symlink, target.to_string().len() as u64, 0o777)
                }
                (Kind::File, Some(shown)) => (FileType::RegularFile, end.offset(shown), 0o440),
                // As in securityfs.
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
    pub(crate) fn new(
        tree: Arc<Tree>,
        listing: Arc<Listing>,
        waiting: mpsc::Sender<Waiting>,
    ) -> Directory {
        Directory { tree, listing, waiting, open: Arc::default() }
    }

    /// The state of open files.
    pub(crate) fn open_files(&self) -> Arc<OpenFiles> {
        Arc::clone(&self.open)
    }

    fn queue(&self, request: Waiting) {
        // If the view ends, the request is dropped, which answers EIO.
        let _ = self.waiting.send(request);
    }
}

impl OpenFiles {
    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file's size was reported after a drain.
    pub(crate) fn told_size(&self, handle: u64, size: u64) {
        self.handles().chases.entry(handle).or_insert_with(|| Chase::new(size)).told_size(size);
    }

    /// Whether the end of the file can be reported to its reader now.
    fn has_caught_up(&self, handle: u64) -> bool {
        self.handles().chases.get_mut(&handle).is_some_and(Chase::has_caught_up)
    }

    /// A number was read from the start; reads that follow continue in the same text.
    pub(crate) fn told_number(&self, handle: u64, text: String) {
        self.handles().numbers.insert(handle, text);
    }
}

impl Chase {
    fn new(size: u64) -> Chase {
        Chase { size, new: 0, told: Instant::now(), grown: 0, has_ended: false }
    }

    fn told_size(&mut self, size: u64) {
        self.grown = if size > self.size { self.grown.saturating_add(1) } else { 0 };
        self.new = size.saturating_sub(self.size);
        (self.size, self.told) = (size, Instant::now());
    }

    fn has_caught_up(&mut self) -> bool {
        /// A reader that returns this long after the end was reported starts a new reading.
        const LATER: u32 = 4;
        const MOST_DOUBLED: u32 = 16;
        let Some(further) = self.grown.checked_sub(MOST_CHASED) else { return false };
        let new = u32::try_from(self.new).unwrap_or(u32::MAX);
        let patience = (AT_ONCE + BYTE * new) * (1 << further.min(MOST_DOUBLED));
        let waited = self.told.elapsed();
        if waited < patience {
            self.has_ended = true;
            return true;
        }
        if self.has_ended && waited > patience * LATER {
            self.grown = 0;
        }
        self.has_ended = false;
        false
    }
}

impl Filesystem for Directory {
    fn init(&mut self, _: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        // When a file grows, cached pages stay valid except for the last one, which is invalidated
        // separately. A kernel without this flag (before 5.2) drops the whole file's cache.
        if config.add_capabilities(InitFlags::FUSE_EXPLICIT_INVAL_DATA).is_err() {
            tracing::info!("this kernel drops its cache of a view file whenever the file grows");
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
        match at {
            Some(at) => self.queue(Waiting::Entry(INodeNo(FIRST_INODE + at as u64), reply)),
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    /// The kernel requests the size before it reports the end of a file, before a seek to the end,
    /// for `stat` and at `open`: whenever a process is about to learn the length of the list. A
    /// process that may not read the file, for example with a descriptor from another, gets the
    /// known size.
    fn getattr(
        &self,
        request: &fuser::Request,
        inode: INodeNo,
        handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let handle = handle.map(u64::from);
        match self.tree.file(inode) {
            Some(file)
                if matches!(file.kind(), Kind::File)
                    && match handle {
                        // Opened by a process that may read it.
                        Some(handle) => !self.open.has_caught_up(handle),
                        None => reader::may_read(request, self.tree.group),
                    } =>
            {
                self.queue(Waiting::Attr(inode, handle, reply));
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
        let flags = match self.tree.file(inode).map(Shown::of) {
            Some(Some(_)) => FopenFlags::FOPEN_KEEP_CACHE,
            Some(None) => FopenFlags::FOPEN_DIRECT_IO,
            None => return reply.error(fuser::Errno::ENOENT),
        };
        let mut handles = self.open.handles();
        handles.last += 1;
        reply.opened(FileHandle(handles.last), flags);
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
                tracing::error!("view: cannot read {file} at byte {offset}: {error}");
                // Dropped without an answer, the request returns EIO.
            }
            return;
        }
        let handle = u64::from(handle);
        if offset == 0 {
            return self.queue(Waiting::Number(file, handle, size, reply));
        }
        let handles = self.open.handles();
        let text = handles.numbers.get(&handle).map_or(&[][..], |text| text.as_bytes());
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
        let mut handles = self.open.handles();
        handles.numbers.remove(&u64::from(handle));
        handles.chases.remove(&u64::from(handle));
        reply.ok();
    }

    fn readdir(
        &self,
        _: &fuser::Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        imastage_mount::list(inode, &self.tree.files, FIRST_INODE, offset, reply);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_ends_however_slow_the_reader_is() {
        for slow in [Duration::ZERO, Duration::from_millis(50), Duration::from_secs(3)] {
            let mut chase = Chase::new(0);
            let mut rounds = 0;
            while !chase.has_caught_up() {
                rounds += 1;
                assert!(rounds < 64, "{slow:?}");
                chase.told_size(chase.size + 1000);
                chase.told -= slow;
            }
            assert!(chase.grown >= MOST_CHASED);
            // The last read may not have reached the end: the size is reported once more.
            assert!(chase.has_caught_up());
        }
    }

    #[test]
    fn the_next_reading_sees_what_came_since() {
        let mut chase = Chase::new(0);
        // A file that did not grow was read to its end.
        for size in [1, 2, 3, 3, 4, 5, 6] {
            assert!(!chase.has_caught_up());
            chase.told_size(size);
        }
        while !chase.has_caught_up() {
            chase.told_size(chase.size + 1);
        }
        chase.told -= Duration::from_secs(3600);
        for _ in 0..MOST_CHASED {
            assert!(!chase.has_caught_up());
            chase.told_size(chase.size + 1);
        }
    }
}
