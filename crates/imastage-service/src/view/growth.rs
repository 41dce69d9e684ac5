//! How the view's files come to be longer: drain, look, tell the kernel, answer who waited.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use fuser::Notifier;

use super::{
    directory::{Tree, Waiting},
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

    /// The last page of a file may be cached with nothing behind its old end: the kernel is to read
    /// it again before it hears of the new size. Reads that are under way are waited for; another
    /// thread answers them.
    fn tell_kernel(&self, new_epoch: bool) {
        let (told, end) = (self.tree.told(), self.listing.end());
        if told == end && !new_epoch {
            return;
        }
        for (inode, shown) in self.tree.lists() {
            let old_end = if new_epoch { 0 } else { told.offset(shown) };
            let from = i64::try_from(old_end - old_end % PAGE).unwrap_or(0);
            // A length of 0: all that is behind.
            if let Err(error) = self.notifier.inval_inode(inode, from, 0) {
                tracing::warn!(%error, "the kernel does not take that a file of the view grew");
            }
        }
        self.tree.tell(end);
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
