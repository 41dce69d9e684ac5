//! Growth of the view's files: drain, read the store, notify the kernel, answer waiting requests.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use fuser::{Generation, Notifier};

use crate::origin::Origin;
use crate::{
    directory::{OpenFiles, Tree, Waiting},
    listing::Listing,
};

/// Processes requests that wait for a drain: one drain for all requests before its start.
pub(crate) struct Growth {
    pub(crate) tree: Arc<Tree>,
    pub(crate) listing: Arc<Listing>,
    pub(crate) open: Arc<OpenFiles>,
    pub(crate) origin: Arc<dyn Origin>,
    pub(crate) mount: PathBuf,
    pub(crate) notifier: Notifier,
    /// Whether this process ends the view.
    pub(crate) is_ending: Arc<AtomicBool>,
    /// The last logged reason that the list could not be drained or read.
    pub(crate) said: Option<String>,
}

/// The maximum time that readers wait for a drain: longer than any expected drain.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same after a failed drain: stored records are better than none.
const BRIEF: Duration = Duration::from_millis(250);
/// Answers need not be cached.
const TTL: Duration = Duration::ZERO;
/// The unit in which the kernel caches files, or a divisor of it.
const PAGE: u64 = 4096;

impl Growth {
    /// Continues until the view has ended.
    pub(crate) fn run(mut self, inbox: &mpsc::Receiver<Waiting>) {
        while let Ok(first) = inbox.recv() {
            let waiting: Vec<Waiting> = std::iter::once(first).chain(inbox.try_iter()).collect();
            if !waiting.iter().all(|request| matches!(request, Waiting::Entry(..))) {
                self.catch_up();
            }
            for request in waiting {
                self.answer(request);
            }
        }
        if !self.is_ending.load(Ordering::SeqCst) {
            tracing::error!(
                "{}: the view was unmounted; restart the service to mount it again",
                self.mount.display()
            );
            self.origin.set_view_failed(true);
        }
    }

    fn catch_up(&mut self) {
        let patience = if self.said.is_none() { PATIENCE } else { BRIEF };
        let drained = self.origin.drain_within(patience);
        let grown = self.listing.grow().map_err(|error| error.to_string());
        if let Ok(new_epoch) = grown {
            self.tell_kernel(new_epoch);
        }
        match drained.and(grown) {
            Ok(_) => self.said = None,
            Err(why) if self.said.as_ref() == Some(&why) => {}
            Err(why) => {
                tracing::error!("the view may be incomplete: {why}");
                self.said = Some(why);
            }
        }
    }

    /// The last cached page of a file is incomplete now. The kernel is notified to invalidate it,
    /// and reads it again with the new records. Then the file's last byte is stored in the kernel's
    /// cache, which sets the new size: after an invalidation, the kernel ignores the answer to an
    /// earlier request. Both wait for reads in progress, which another thread answers.
    fn tell_kernel(&self, new_epoch: bool) {
        let (told, end) = (self.tree.told(), self.listing.end());
        if told == end && !new_epoch {
            return;
        }
        for (inode, shown) in self.tree.lists() {
            let old_end = if new_epoch { 0 } else { told.offset(shown) };
            let page = old_end - old_end % PAGE;
            // A length of 0: all that follows.
            let forgot = self.notifier.inval_inode(inode, i64::try_from(page).unwrap_or(0), 0);
            let last = [end.last_byte(shown)];
            let result = forgot.and_then(|()| match end.offset(shown).checked_sub(1) {
                Some(at) => self.notifier.store(inode, at, &last),
                None => Ok(()),
            });
            if let Err(error) = result {
                tracing::warn!(%error, "cannot notify the kernel that a view file grew");
            }
        }
        self.tree.tell(end);
    }

    fn answer(&self, request: Waiting) {
        match request {
            Waiting::Entry(inode, reply) => match self.tree.attr(inode) {
                Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
                None => reply.error(fuser::Errno::ENOENT),
            },
            Waiting::Attr(inode, handle, reply) => match self.tree.attr(inode) {
                Some(attr) => {
                    if let Some(handle) = handle {
                        self.open.told_size(handle, attr.size);
                    }
                    reply.attr(&TTL, &attr);
                }
                None => reply.error(fuser::Errno::ENOENT),
            },
            Waiting::Number(file, handle, size, reply) => {
                let text = self.tree.number(file);
                // Set first: a reader with the answer can continue immediately.
                self.open.told_number(handle, text.clone());
                reply.data(&text.as_bytes()[..text.len().min(size as usize)]);
            }
        }
    }
}
