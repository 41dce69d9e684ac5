//! The kernel's measurement list as a client sees it.
//!
//! [`Source`] is what a service needs of a list: take hold of it, stage it, read it, delete what was
//! read, let go. Its homes are [`Securityfs`], a directory with securityfs's files (the kernel's or
//! the sandbox's), and [`InProcess`], a list in this very process.
//!
//! A [`Hold`] is a transaction: while it lives nobody else reads, stages or deletes. The kernel
//! identifies the holder by thread and keeps its books right only as long as there is *one* write
//! descriptor, closed by the thread that opened it. So a hold has exactly one, and is neither
//! [`Send`] nor [`Sync`].
#![forbid(unsafe_code)]

mod error;
mod holders;
mod in_process;
mod securityfs;

use std::num::NonZeroU64;

pub use error::{Request, SourceError};
pub use holders::{Holder, Holders};
pub use ima_list::Part;
pub use in_process::InProcess;
pub use securityfs::Securityfs;

/// Takes the bytes of a list as they are read: the binary sha1 form, in chunks that may end inside
/// a record.
pub type Sink<'a> = dyn FnMut(&[u8]) + 'a;

/// A measurement list that can be held, read and shortened.
pub trait Source: Send {
    /// Takes hold of the list through the file of `part`: [`Part::Staged`] to stage and delete what
    /// was staged, [`Part::Current`] to delete the first N.
    ///
    /// # Errors
    /// [`SourceError::Busy`] if anyone else has one of the list's files open,
    /// [`SourceError::NotPermitted`], [`SourceError::Missing`] if the kernel cannot stage.
    fn hold(&mut self, part: Part) -> Result<Box<dyn Hold + '_>, SourceError>;

    /// Reads a part without holding the list: others can read beside, nobody can shorten it
    /// meanwhile. Records that are added while reading goes on are read too.
    ///
    /// # Errors
    /// [`SourceError::Busy`] while someone holds the list for writing, and as [`Source::hold`].
    fn read(&mut self, part: Part, sink: &mut Sink<'_>) -> Result<(), SourceError>;

    /// How many records the current list has now. What was staged or deleted is not counted.
    ///
    /// # Errors
    /// [`SourceError::Io`].
    fn count(&mut self) -> Result<u64, SourceError>;

    /// What to call it in messages: the directory, or what else it is.
    fn name(&self) -> String;
}

/// The list held for writing. Dropping it lets go.
pub trait Hold {
    /// `A`: moves all current records to the staged list.
    ///
    /// # Errors
    /// [`SourceError::Pending`] if records are staged already (EEXIST), [`SourceError::Nothing`] if
    /// there are none to stage (ENOENT), [`SourceError::GoingDown`] (EACCES).
    fn stage(&mut self) -> Result<(), SourceError>;

    /// Reads the held part from its first record to its end. In the kernel this costs time
    /// quadratic in the part's length.
    ///
    /// # Errors
    /// [`SourceError::Io`].
    fn read(&mut self, sink: &mut Sink<'_>) -> Result<(), SourceError>;

    /// `D`: deletes the staged records.
    ///
    /// # Errors
    /// [`SourceError::Nothing`] if nothing is staged (ENOENT), [`SourceError::GoingDown`] (ESTALE:
    /// the records stay, and may come back in the next kernel), [`SourceError::NoMemory`] (ENOMEM:
    /// the records are gone all the same).
    fn delete_staged(&mut self) -> Result<(), SourceError>;

    /// `N`: deletes the first `n` current records. Never do this while records are staged: those
    /// are older.
    ///
    /// # Errors
    /// [`SourceError::Nothing`] if there are fewer (ENOENT; nothing was deleted),
    /// [`SourceError::GoingDown`] (ESTALE), [`SourceError::Refused`] if the kernel flushes its hash
    /// table (EINVAL).
    fn delete_first(&mut self, n: NonZeroU64) -> Result<(), SourceError>;
}
