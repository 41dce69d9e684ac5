//! The client at the other end of a connection.

use std::{os::fd::OwnedFd, sync::Arc};

use rustix::event::{PollFd, PollFlags, Timespec};

/// The client at the other end of a connection.
#[derive(Clone)]
pub(super) struct Peer {
    /// The connection; a duplicate, because the server owns it.
    pub(super) socket: Arc<OwnedFd>,
}

impl Peer {
    /// Whether the client closed the connection, even if unread data is left.
    pub(super) fn is_gone(&self) -> bool {
        let mut socket = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Without information, the client is assumed to be connected.
        rustix::event::poll(&mut socket, Some(&now)).is_ok_and(|events| events > 0)
    }
}
