//! The list for many threads, behind two locks.

use std::{sync::PoisonError, vec::Vec};

// tests/loom.rs explores the threads' interleavings with loom's mutex.
#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};

use ima_log::{Digest, Endian, KexecError, RecordBuf};

use crate::{
    AppendError, Chunk, Counts, Cut, DeleteError, List, Options, Part, Removed, Spare, StageError,
    TrimError, kexec,
};

/// A list for many threads.
///
/// Two locks: the order lock is held while the TPM is extended, so the TPM is extended in list
/// order; the list lock is only held briefly. Readers, stage and delete requests never wait for the
/// TPM; only appends do. A record becomes readable before the TPM is extended with it, never after.
#[derive(Debug)]
pub struct SharedList {
    order: Mutex<()>,
    list: Mutex<List>,
}

impl SharedList {
    /// An empty list.
    pub fn new(options: Options) -> SharedList {
        List::new(options).into()
    }

    /// Appends a record, then calls `extend`; no other record is appended until `extend` returns.
    /// See [`List::append`].
    ///
    /// # Errors
    /// [`AppendError`]; `extend` was not called.
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
        let spare = Spare::default();
        self.lock().stage_with(spare)
    }

    /// [`List::delete_staged`]. Dropping the returned value frees the memory, with the list
    /// unlocked.
    ///
    /// # Errors
    /// [`DeleteError`].
    pub fn delete_staged(&self) -> Result<Removed, DeleteError> {
        self.lock().delete_staged()
    }

    /// [`List::delete_first`]. Dropping the returned value frees the memory, with the list
    /// unlocked.
    ///
    /// # Errors
    /// [`DeleteError`].
    pub fn delete_first(&self, n: u64) -> Result<Removed, DeleteError> {
        let mut cut = self.cut(n);
        self.lock().delete_first_with(&mut cut)?;
        Ok(Removed::first(cut))
    }

    /// [`List::trim`]. Dropping the returned value frees the memory, with the list unlocked.
    ///
    /// # Errors
    /// [`TrimError`].
    pub fn trim(&self, expected_total: u64, n: u64) -> Result<Removed, TrimError> {
        let mut cut = self.cut(n);
        self.lock().trim_with(expected_total, &mut cut)?;
        Ok(Removed::first(cut))
    }

    /// [`List::trimmed`].
    pub fn trimmed(&self) -> u64 {
        self.lock().trimmed()
    }

    /// [`List::suspend`].
    pub fn suspend(&self) {
        self.lock().suspend();
    }

    /// [`List::snapshot`].
    pub fn snapshot(&self, part: Part, from: u64, max_bytes: usize) -> Chunk {
        self.lock().snapshot(part, from, max_bytes)
    }

    /// [`List::dump`]. The list is locked only for the snapshot.
    ///
    /// # Errors
    /// As [`List::dump`].
    pub fn dump(&self, endian: Endian, capacity: usize) -> (Vec<u8>, Result<(), KexecError>) {
        let all = self.lock().carried();
        kexec::write(&all, endian, capacity)
    }

    /// [`List::count`].
    pub fn count(&self, part: Part) -> u64 {
        self.lock().count(part)
    }

    /// [`List::counts`].
    pub fn counts(&self) -> Counts {
        self.lock().counts()
    }

    /// Prepares a deletion: finds the `n`-th record and allocates with the list unlocked.
    fn cut(&self, n: u64) -> Cut {
        let outline = self.lock().outline();
        outline.cut(n)
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        // A poisoned lock is safe to use: the list never panics during a change, and the caller's
        // `extend` runs without this lock.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<List> for SharedList {
    fn from(list: List) -> SharedList {
        SharedList { order: Mutex::new(()), list: Mutex::new(list) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use ima_log::Bank;
    use std::thread;

    #[test]
    fn tpm_is_extended_in_list_order() {
        const EACH: u32 = 500;
        let list = SharedList::new(Options::default());
        let extended = Mutex::new(Vec::new());
        let mut drained = Vec::new();
        let drain = |into: &mut Vec<u8>| {
            if list.stage().is_ok() {
                let chunk = list.snapshot(Part::Staged, 0, usize::MAX);
                chunk.slices().for_each(|slice| into.extend_from_slice(slice));
                assert_eq!(list.delete_staged().unwrap().records(), chunk.records());
            }
        };
        thread::scope(|scope| {
            let adding: Vec<_> = (0..4)
                .map(|thread| {
                    let (list, extended) = (&list, &extended);
                    scope.spawn(move || {
                        for i in 0..EACH {
                            let name = [thread, i.to_le_bytes()[0], i.to_le_bytes()[1]];
                            let file = Bank::Sha256.hash(&[&name]);
                            let record = RecordBuf::ima_ng(10, &file, b"/file");
                            let key = record.record().template_digest(Bank::Sha256);
                            let extend = || {
                                extended.lock().unwrap().extend_from_slice(record.as_bytes());
                            };
                            list.append(&record, &key, extend).unwrap();
                            let again = list.append(&record, &key, || panic!("extended twice"));
                            assert_eq!(again, Err(AppendError::Duplicate));
                        }
                    })
                })
                .collect();
            while !adding.iter().all(|thread| thread.is_finished()) {
                drain(&mut drained);
            }
        });
        drain(&mut drained);
        assert_eq!(drained, *extended.lock().unwrap());
        assert_eq!(list.counts().total, 4 * u64::from(EACH));
    }
}
