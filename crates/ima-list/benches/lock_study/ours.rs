//! The list of this crate as one of the designs.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ima_list::{
    AppendError, DeleteError, Duplicates, List, Options, Part, Spare, StageError, TrimError,
};
use ima_log::{Digest, RecordBuf};

use crate::designs::{Design, Held, Refused};

/// The list of this crate under one lock, like the other designs. `SharedList` does the same, with
/// a second lock for the TPM.
pub struct Ours {
    /// Has T:N instead of A, D and N.
    trims: bool,
    list: Mutex<List>,
    held: Held,
}

impl Ours {
    /// An empty list, with T:N or with A, D and N.
    pub fn new(trims: bool, duplicates: Duplicates) -> Ours {
        let list = List::new(Options { duplicates, ..Options::default() });
        Ours { trims, list: Mutex::new(list), held: Held::default() }
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn locked<T>(&self, work: impl FnOnce(&mut List) -> T) -> T {
        self.held.locked(&self.list, work)
    }
}

impl Design for Ours {
    fn append(&self, record: &RecordBuf, key: &Digest) -> Result<(), Refused> {
        self.lock().append(record, key).map_err(|error| match error {
            AppendError::Duplicate => Refused::Duplicate,
            AppendError::Suspended => Refused::Unknown,
        })
    }

    fn stage(&self) -> Result<u64, Refused> {
        if self.trims {
            return Err(Refused::Unknown);
        }
        let spare = Spare::default();
        self.locked(|list| list.stage_with(spare)).map_err(|error| match error {
            StageError::Pending => Refused::Pending,
            StageError::Empty => Refused::TooFew,
            StageError::Suspended => Refused::Unknown,
        })
    }

    fn delete_staged(&self) -> Result<u64, Refused> {
        if self.trims {
            return Err(Refused::Unknown);
        }
        let removed = self.locked(List::delete_staged).map_err(refused)?;
        Ok(removed.records())
    }

    fn delete_first(&self, total: u64, n: u64) -> Result<u64, Refused> {
        let outline = self.locked(|list| list.outline());
        let mut cut = outline.cut(n);
        if self.trims {
            self.locked(|list| list.trim_with(total, &mut cut)).map_err(|error| match error {
                TrimError::WrongTotal { .. } => Refused::WrongTotal,
                TrimError::TooMany { .. } => Refused::TooFew,
                TrimError::Flush | TrimError::Suspended => Refused::Unknown,
            })?;
        } else {
            self.locked(|list| list.delete_first_with(&mut cut)).map_err(refused)?;
        }
        Ok(cut.records())
    }

    fn read(&self, part: Part, page: usize, into: &mut dyn FnMut(&[u8])) {
        let mut index = 0;
        loop {
            let chunk = self.lock().snapshot(part, index, page);
            if chunk.records() == 0 {
                return;
            }
            index += chunk.records();
            chunk.slices().for_each(&mut *into);
        }
    }

    fn held(&self) -> f64 {
        self.held.nanoseconds()
    }
}

fn refused(error: DeleteError) -> Refused {
    match error {
        DeleteError::Empty | DeleteError::TooMany { .. } => Refused::TooFew,
        DeleteError::Pending => Refused::Pending,
        DeleteError::Suspended | DeleteError::Dumped => Refused::Unknown,
    }
}
