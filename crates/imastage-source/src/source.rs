//! The traits of a measurement list: [`Source`], [`Look`] and [`Batch`].

use std::num::NonZeroU64;

use crate::{Dialect, Holders, SourceError};

/// Receives the bytes of a list as they are read: the binary sha1 form, in chunks that may end
/// inside a record.
pub type Sink<'a> = dyn FnMut(&[u8]) + 'a;

/// A measurement list whose records can be read and, except in [`Dialect::Follow`], deleted.
pub trait Source: Send {
    /// Opens the whole list for reading. No records can be deleted until the result is dropped.
    ///
    /// # Errors
    /// [`SourceError::Busy`] while a process has the list open for writing,
    /// [`SourceError::NotPermitted`], [`SourceError::Missing`].
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError>;

    /// Reads the list's oldest records, all that one request deletes, as a batch; `None` if the
    /// list is empty. In the kernel this takes time quadratic in their number.
    ///
    /// # Errors
    /// [`SourceError::Busy`] if another process has one of the list's files open,
    /// [`SourceError::LockLost`] if that was refused for some time although no process has one open;
    /// [`SourceError::NotPermitted`], [`SourceError::Missing`] if the kernel cannot stage;
    /// [`SourceError::GoingDown`] (EACCES).
    fn take(&mut self, sink: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError>;

    /// Checks that this process has the permissions for [`Source::take`] and deletion.
    ///
    /// # Errors
    /// [`SourceError::Busy`], [`SourceError::LockLost`], [`SourceError::NotPermitted`],
    /// [`SourceError::Missing`].
    fn try_open(&mut self) -> Result<(), SourceError>;

    /// The number of records in the current list, without staged records.
    ///
    /// # Errors
    /// [`SourceError::Io`].
    fn count(&mut self) -> Result<u64, SourceError>;

    /// The dialect of the list.
    fn dialect(&self) -> Dialect;

    /// Whether other processes can delete records. If none can, a missing record was never in the
    /// list.
    fn others_may_delete(&self) -> bool {
        self.dialect() != Dialect::Follow
    }

    /// The number of records the kernel has deleted for any client, if the dialect reports it
    /// ([`Dialect::Trim`]).
    ///
    /// # Errors
    /// [`SourceError::Io`], [`SourceError::NotPermitted`].
    fn trimmed(&mut self) -> Result<Option<u64>, SourceError> {
        Ok(None)
    }

    /// The processes that have the list's files open. Linear in the descriptors open on the
    /// machine.
    fn holders(&self) -> Holders;

    /// Whether no other process can have deleted records of this list.
    fn is_private(&self) -> bool {
        false
    }

    /// The name for messages: the directory, or a description.
    fn name(&self) -> String;
}

/// The whole list, open for reading.
pub trait Look {
    /// Reads to the end: staged records, then current ones. Later calls read the records added
    /// since.
    ///
    /// # Errors
    /// [`SourceError::Io`].
    fn read(&mut self, sink: &mut Sink<'_>) -> Result<(), SourceError>;
}

/// Records that were read and can be deleted. Dropping the batch leaves them in the list.
pub trait Batch {
    /// Whether the records had already been staged. The list may then contain newer records that
    /// were added before this batch was taken.
    fn was_pending(&self) -> bool;

    /// The number of records the kernel had before the first one of the batch, if the dialect
    /// reports it ([`Dialect::Trim`]). If that exceeds the number taken, other clients deleted the
    /// difference.
    fn position(&self) -> Option<u64> {
        None
    }

    /// Deletes exactly the records of the batch; `records` is their number.
    ///
    /// # Errors
    /// [`SourceError::GoingDown`] (ESTALE: the records stay, and the next kernel may restore them),
    /// [`SourceError::NoMemory`] (ENOMEM: the records are deleted nevertheless),
    /// [`SourceError::Nothing`] (ENOENT), [`SourceError::Refused`] (EINVAL),
    /// [`SourceError::Overtaken`] if another client deleted them.
    fn delete(self: Box<Self>, records: NonZeroU64) -> Result<(), SourceError>;
}
