//! The kernel's measurement list from the perspective of a client.
//!
//! [`Source`] is a list as a service uses it: read the list, take the oldest records, delete the
//! taken records. [`open`] detects the [`Dialect`] of a directory with securityfs's files (the
//! kernel's or the sandbox's); [`InProcess`] is a list in this process.
//!
//! A service that starts programs accesses its list through a separate process: [`SourceProcess`]
//! in the service, [`serve`] in the other process. [`ListLock`] prevents two services from deleting
//! from one list.
//!
//! A [`Batch`] is a transaction: while it lives its records stay in the list, or their deletion is
//! refused. The kernel identifies a writer by thread, and its accounting is only correct for *one*
//! write descriptor, closed by the thread that opened it. A batch therefore has at most one, and is
//! neither [`Send`] nor [`Sync`].
#![forbid(unsafe_code)]

mod dialect;
mod error;
mod files;
mod first;
mod follow;
mod follow_staged;
mod holders;
mod in_process;
mod lock;
mod lock_watch;
mod message;
mod names;
mod open;
mod process;
mod sight;
mod source;
mod staged;
mod trim;

pub use dialect::{DeleteMode, Dialect};
pub use error::{Request, SourceError};
pub use holders::{Holder, Holders};
pub use in_process::InProcess;
pub use lock::{ListLock, ListService, STATE_ARGUMENT, parent, service_of};
pub use open::{DEFAULT_DIR, open};
pub use process::{SourceProcess, serve};
pub use sight::Sight;
pub use source::{Batch, Look, Sink, Source};
