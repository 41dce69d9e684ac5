use std::sync::{Mutex, MutexGuard, PoisonError};

use ima_log::{Digest, RecordBuf};

use crate::{
    AppendError, Chunk, Counts, DeleteError, List, Options, Part, Removed, StageError, chain::Room,
};

/// A list for many threads.
///
/// Two locks: one gives records their order and is held while the TPM is extended, so that the TPM
/// sees records in the order of the list; the other guards the list and is only ever held for a
/// moment. So whoever reads, stages or deletes never waits for the TPM, only those who add do.
/// A record can be read a moment before the TPM was extended with it, never after.
#[derive(Debug)]
pub struct SharedList {
    order: Mutex<()>,
    list: Mutex<List>,
}

impl SharedList {
    /// An empty list.
    pub fn new(options: Options) -> SharedList {
        SharedList { order: Mutex::new(()), list: Mutex::new(List::new(options)) }
    }

    /// Adds a record, then calls `extend`, and lets nobody else add a record before that returns.
    /// See [`List::append`].
    ///
    /// # Errors
    /// [`AppendError`]; `extend` was not called then.
    pub fn append(
        &self,
        record: &RecordBuf,
        key: &Digest,
        extend: impl FnOnce(),
    ) -> Result<(), AppendError> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        self.lock().append(record, key)?;
        extend();
        Ok(())
    }

    /// [`List::stage`].
    ///
    /// # Errors
    /// [`StageError`].
    pub fn stage(&self) -> Result<u64, StageError> {
        self.lock().stage()
    }

    /// [`List::delete_staged`]. Memory is freed when what is returned is dropped; the list is
    /// unlocked by then.
    ///
    /// # Errors
    /// [`DeleteError`].
    pub fn delete_staged(&self) -> Result<Removed, DeleteError> {
        self.lock().delete_staged()
    }

    /// [`List::delete_first`]. Memory is freed when what is returned is dropped; the list is
    /// unlocked by then.
    ///
    /// # Errors
    /// [`DeleteError`].
    pub fn delete_first(&self, n: u64) -> Result<Removed, DeleteError> {
        // An allocator may take its time. If the list outgrows this meanwhile, it allocates again.
        let segments = self.lock().room();
        let room = Room::for_segments(segments + 1);
        self.lock().delete_first_into(room, n)
    }

    /// [`List::suspend`].
    pub fn suspend(&self) {
        self.lock().suspend();
    }

    /// [`List::snapshot`].
    pub fn snapshot(&self, part: Part, from: u64, max_bytes: usize) -> Chunk {
        self.lock().snapshot(part, from, max_bytes)
    }

    /// [`List::count`].
    pub fn count(&self, part: Part) -> u64 {
        self.lock().count(part)
    }

    /// [`List::counts`].
    pub fn counts(&self) -> Counts {
        self.lock().counts()
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        // Nothing in the list panics halfway; a panic of a caller's `extend` leaves it whole.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
