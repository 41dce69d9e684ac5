//! The kernel's measurement list as a client sees it.
//!
//! [`Source`] is what a service needs of a list: look at it, take its oldest records, delete what
//! was taken. [`open`] finds out which [`Dialect`] a directory with securityfs's files (the kernel's
//! or the sandbox's) speaks; [`InProcess`] is a list in this very process.
//!
//! A service that starts programs has its list in a process of its own: [`SourceProcess`] there,
//! [`serve`] here, [`ListLock`] so that no two services delete from one list.
//!
//! A [`Batch`] is a transaction: while it lives its records stay where they are, or their deletion
//! is refused. The kernel identifies a writer by thread and keeps its books right only as long as
//! there is *one* write descriptor, closed by the thread that opened it. So a batch has at most one,
//! and is neither [`Send`] nor [`Sync`].
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
mod message;
mod names;
mod open;
mod process;
mod staged;
mod trim;

use std::num::NonZeroU64;

pub use dialect::{DeleteMode, Dialect};
pub use error::{Request, SourceError};
pub use holders::{Holder, Holders};
pub use in_process::InProcess;
pub use lock::{ListLock, ListService, STATE_ARGUMENT, parent, service_of};
pub use open::{DEFAULT_DIR, open};
pub use process::{SourceProcess, serve};

/// Takes the bytes of a list as they are read: the binary sha1 form, in chunks that may end inside
/// a record.
pub type Sink<'a> = dyn FnMut(&[u8]) + 'a;

/// A measurement list that can be read and, but for [`Dialect::Follow`], shortened.
pub trait Source: Send {
    /// Holds the whole list for reading: until this is dropped nobody can shorten it.
    ///
    /// # Errors
    /// [`SourceError::Busy`] while someone holds the list for writing,
    /// [`SourceError::NotPermitted`], [`SourceError::Missing`].
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError>;

    /// Reads the list's oldest records, all that one deletion takes, and holds them; `None` if
    /// there are none. In the kernel this costs time quadratic in their number.
    ///
    /// # Errors
    /// [`SourceError::Busy`] if anyone else has one of the list's files open,
    /// [`SourceError::NotPermitted`], [`SourceError::Missing`] if the kernel cannot stage;
    /// [`SourceError::GoingDown`] (EACCES).
    fn take(&mut self, sink: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError>;

    /// Whether this process may do what [`Source::take`] and deleting need.
    ///
    /// # Errors
    /// [`SourceError::Busy`], [`SourceError::NotPermitted`], [`SourceError::Missing`].
    fn try_open(&mut self) -> Result<(), SourceError>;

    /// How many records the current list has now. What was staged or deleted is not counted.
    ///
    /// # Errors
    /// [`SourceError::Io`].
    fn count(&mut self) -> Result<u64, SourceError>;

    /// How it is talked to.
    fn dialect(&self) -> Dialect;

    /// Whether others may delete records of it: only where nobody can is a record that is missing one
    /// that never was in the list.
    fn others_may_delete(&self) -> bool {
        self.dialect() != Dialect::Follow
    }

    /// How many records its kernel has deleted, whoever asked for it, where the dialect tells
    /// ([`Dialect::Trim`]).
    ///
    /// # Errors
    /// [`SourceError::Io`], [`SourceError::NotPermitted`].
    fn trimmed(&mut self) -> Result<Option<u64>, SourceError> {
        Ok(None)
    }

    /// Who has the list's files open now. Linear in the descriptors open on the machine.
    fn holders(&self) -> Holders;

    /// Whether no other process can have taken records of it.
    fn is_private(&self) -> bool {
        false
    }

    /// What to call it in messages: the directory, or what else it is.
    fn name(&self) -> String;
}

/// The whole list, held for reading.
pub trait Look {
    /// Reads on to the end: staged records first, then current ones, then, called again, what was
    /// added meanwhile.
    ///
    /// # Errors
    /// [`SourceError::Io`].
    fn read(&mut self, sink: &mut Sink<'_>) -> Result<(), SourceError>;
}

/// Records that were read and can be deleted. Dropping it leaves them where they are.
pub trait Batch {
    /// Whether someone had staged them before: then there may be newer ones, which are not in this
    /// batch, from before it was taken.
    fn was_pending(&self) -> bool;

    /// How many records its kernel had before the first one of the batch, where the dialect tells
    /// ([`Dialect::Trim`]): if that is more than had been taken, others deleted the rest.
    fn position(&self) -> Option<u64> {
        None
    }

    /// Deletes the records, of which there are `records`, and no others.
    ///
    /// # Errors
    /// [`SourceError::GoingDown`] (ESTALE: the records stay, and may come back in the next kernel),
    /// [`SourceError::NoMemory`] (ENOMEM: they are gone all the same), [`SourceError::Nothing`]
    /// (ENOENT), [`SourceError::Refused`] (EINVAL), [`SourceError::Overtaken`] if someone else
    /// deleted them.
    fn delete(self: Box<Self>, records: NonZeroU64) -> Result<(), SourceError>;
}
