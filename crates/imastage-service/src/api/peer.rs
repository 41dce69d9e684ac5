//! The client at the other end of a connection.

use std::{os::fd::OwnedFd, sync::Arc};

use rustix::event::{PollFd, PollFlags, Timespec};

/// The client at the other end of a connection.
#[derive(Clone)]
pub(super) struct Peer {
    /// The connection; a copy, since the server has it.
    pub(super) socket: Arc<OwnedFd>,
}

impl Peer {
    /// Whether the client closed the connection, also if it sent more than has been read.
    pub(super) fn is_gone(&self) -> bool {
        let mut socket = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // If it cannot be asked, it is there.
        rustix::event::poll(&mut socket, Some(&now)).is_ok_and(|events| events > 0)
    }
}
