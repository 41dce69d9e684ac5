//! How the view's files come to be longer: drain, look, tell the kernel, answer who waited.

use std::{
    io,
    sync::{Arc, mpsc},
    time::Duration,
};

use fuser::Notifier;

use super::{
    directory::{Tree, Waiting},
    index::Mark,
    listing::Listing,
};
use crate::service::Shared;

/// Works off what waits for a drain: one drain for all who asked before it began.
pub(super) struct Growth {
    pub(super) tree: Arc<Tree>,
    pub(super) listing: Arc<Listing>,
    pub(super) shared: Arc<Shared>,
    pub(super) notifier: Notifier,
    /// Why the list could not be drained or looked at, as it was last logged.
    pub(super) said: Option<String>,
}

/// As long as readers wait for a drain at most: longer than one takes, and than others are waited
/// for. It is there for what cannot be foreseen.
const PATIENCE: Duration = Duration::from_secs(30);
/// As long as they wait when the last drain failed: what is stored is better than nothing.
const BRIEF: Duration = Duration::from_millis(250);
/// Answers need not be cached.
const TTL: Duration = Duration::ZERO;
/// The unit in which the kernel caches files, or a divisor of it.
const PAGE: u64 = 4096;

impl Growth {
    /// Goes on until the view has ended.
    pub(super) fn run(mut self, inbox: &mpsc::Receiver<Waiting>) {
        while let Ok(first) = inbox.recv() {
            let waiting: Vec<Waiting> = std::iter::once(first).chain(inbox.try_iter()).collect();
            self.catch_up();
            for request in waiting {
                self.answer(request);
            }
        }
    }

    fn catch_up(&mut self) {
        let patience = if self.said.is_none() { PATIENCE } else { BRIEF };
        let drained = self.shared.drain_within(patience);
        let grown = self.listing.grow().map_err(|error| error.to_string());
        if let Ok(new_epoch) = grown {
            self.tell_kernel(new_epoch);
        }
        match drained.and(grown) {
            Ok(_) => self.said = None,
            Err(why) if self.said.as_ref() == Some(&why) => {}
            Err(why) => {
                tracing::error!("the view shows what is stored, which may not be all: {why}");
                self.said = Some(why);
            }
        }
    }

    /// Readers are told of growth by storing it in the kernel's cache, which makes files longer at
    /// once. The answer to their own question how long a file is would come too late: the kernel
    /// holds it to be older than the notice that the last page's cached content, with nothing behind
    /// the old end, is not true any more. Reads that are under way are waited for; another thread
    /// answers them.
    fn tell_kernel(&self, new_epoch: bool) {
        let (told, end) = (self.tree.told(), self.listing.end());
        if new_epoch {
            for (inode, _) in self.tree.lists() {
                // A length of 0: all that is behind.
                self.noted(self.notifier.inval_inode(inode, 0, 0));
            }
        } else if told == end {
            return;
        }
        let from = if new_epoch { Mark::default() } else { told };
        self.store_growth(&from, &end);
        self.tree.tell(end);
        // Who looked a file up in between was told the old length, and the kernel with it.
        self.store_growth(&from, &end);
    }

    /// Stores the end of what was the last page, and what is in the last page now; what is between
    /// is in no cache.
    fn store_growth(&self, told: &Mark, end: &Mark) {
        for (inode, shown) in self.tree.lists() {
            let (old_end, new_end) = (told.offset(shown), end.offset(shown));
            let page_end = old_end.next_multiple_of(PAGE).min(new_end);
            let last = page_end.max(new_end.saturating_sub(1) / PAGE * PAGE);
            for (from, to) in [(old_end, page_end), (last, new_end)] {
                // No more than a page.
                let size = usize::try_from(to.saturating_sub(from)).unwrap_or(0);
                let store = |bytes: &[u8]| self.noted(self.notifier.store(inode, from, bytes));
                if size > 0
                    && let Err(error) = self.listing.read(shown, from, size, store)
                {
                    tracing::error!("the view cannot show what it grew by: {error}");
                }
            }
        }
    }

    fn noted(&self, result: io::Result<()>) {
        if let Err(error) = result {
            tracing::warn!(%error, "the kernel does not take that a file of the view grew");
        }
    }

    fn answer(&self, request: Waiting) {
        match request {
            Waiting::Attr(inode, reply) => match self.tree.attr(inode) {
                Some(attr) => reply.attr(&TTL, &attr),
                None => reply.error(fuser::Errno::ENOENT),
            },
            Waiting::Number(file, numbers, size, reply) => {
                numbers.answer(self.tree.number(file), size, reply);
            }
        }
    }
}
