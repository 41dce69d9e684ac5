//! A list in this process.

use std::{num::NonZeroU64, sync::Arc};

use ima_list::{DeleteError, Part, SharedList, StageError};

use crate::{Batch, DeleteMode, Dialect, Holders, Look, Request, Sink, Source, SourceError};

/// A list in this process, with the behaviour of Linux 7.2. It has one client and is never busy.
#[derive(Clone, Debug)]
pub struct InProcess {
    list: Arc<SharedList>,
    mode: DeleteMode,
    /// The number of taken records in [`DeleteMode::None`].
    taken: u64,
}

impl InProcess {
    /// A source for a list that other threads append to.
    pub fn new(list: Arc<SharedList>, mode: DeleteMode) -> InProcess {
        InProcess { list, mode, taken: 0 }
    }
}

impl Source for InProcess {
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError> {
        Ok(Box::new(LookOn { list: &self.list, staged: 0, current: self.taken }))
    }

    fn take(&mut self, sink: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError> {
        if self.mode == DeleteMode::None {
            let read = read(&self.list, Part::Current, self.taken, sink);
            let batch = FollowedBatch { taken: &mut self.taken };
            return Ok((read > 0).then(|| Box::new(batch) as Box<dyn Batch>));
        }
        let list = &*self.list;
        let is_staged = list.count(Part::Staged) > 0;
        if self.mode == DeleteMode::FirstN && !is_staged {
            let read = read(list, Part::Current, 0, sink);
            let batch = InProcessBatch { list, part: Part::Current, was_pending: false };
            return Ok((read > 0).then(|| Box::new(batch) as Box<dyn Batch>));
        }
        let was_pending = match list.stage() {
            Ok(_) => false,
            Err(StageError::Pending) => true,
            Err(StageError::Empty) => return Ok(None),
            Err(StageError::Suspended) => return Err(SourceError::GoingDown(Request::Stage)),
        };
        read(list, Part::Staged, 0, sink);
        Ok(Some(Box::new(InProcessBatch { list, part: Part::Staged, was_pending })))
    }

    fn try_open(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn count(&mut self) -> Result<u64, SourceError> {
        Ok(self.list.count(Part::Current).saturating_sub(self.taken))
    }

    fn dialect(&self) -> Dialect {
        if self.mode == DeleteMode::None { Dialect::Follow } else { Dialect::Linux72 }
    }

    fn holders(&self) -> Holders {
        Holders::default()
    }

    fn is_private(&self) -> bool {
        true
    }

    fn name(&self) -> String {
        "a list in this process".to_owned()
    }
}

struct LookOn<'a> {
    list: &'a SharedList,
    staged: u64,
    current: u64,
}

impl Look for LookOn<'_> {
    fn read(&mut self, sink: &mut Sink<'_>) -> Result<(), SourceError> {
        self.staged += read(self.list, Part::Staged, self.staged, sink);
        self.current += read(self.list, Part::Current, self.current, sink);
        Ok(())
    }
}

struct FollowedBatch<'a> {
    taken: &'a mut u64,
}

impl Batch for FollowedBatch<'_> {
    fn was_pending(&self) -> bool {
        false
    }

    fn delete(self: Box<Self>, records: NonZeroU64) -> Result<(), SourceError> {
        *self.taken += records.get();
        Ok(())
    }
}

struct InProcessBatch<'a> {
    list: &'a SharedList,
    part: Part,
    was_pending: bool,
}

impl Batch for InProcessBatch<'_> {
    fn was_pending(&self) -> bool {
        self.was_pending
    }

    fn delete(self: Box<Self>, records: NonZeroU64) -> Result<(), SourceError> {
        match self.part {
            Part::Staged => {
                let refused = |error| refusal(Request::DeleteStaged, error);
                self.list.delete_staged().map(drop).map_err(refused)
            }
            Part::Current => {
                let n = records.get();
                let refused = |error| refusal(Request::DeleteFirst(n), error);
                self.list.delete_first(n).map(drop).map_err(refused)
            }
        }
    }
}

fn refusal(request: Request, error: DeleteError) -> SourceError {
    match error {
        DeleteError::Empty | DeleteError::TooMany { .. } => SourceError::Nothing(request),
        DeleteError::Pending => SourceError::Pending,
        DeleteError::Suspended | DeleteError::Dumped => SourceError::GoingDown(request),
    }
}

/// Reads a part from record `from` on; returns the number of records read.
fn read(list: &SharedList, part: Part, from: u64, sink: &mut Sink<'_>) -> u64 {
    const CHUNK: usize = 256 << 10;
    let mut at = from;
    loop {
        let chunk = list.snapshot(part, at, CHUNK);
        if chunk.records() == 0 {
            return at - from;
        }
        at += chunk.records();
        chunk.slices().for_each(&mut *sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ima_list::Options;
    use ima_log::{Bank, RecordBuf};

    #[test]
    fn stage_read_and_delete_in_every_mode() {
        let list = Arc::new(SharedList::new(Options::default()));
        let mut expected = Vec::new();
        for i in 0..5000 {
            let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), format!("{i}").as_bytes());
            let key = record.record().template_digest(Bank::Sha256);
            list.append(&record, &key, || {}).unwrap();
            expected.extend(record.into_bytes());
        }
        let mut followed = InProcess::new(Arc::clone(&list), DeleteMode::None);
        let mut read = Vec::new();
        let batch = followed.take(&mut |bytes| read.extend_from_slice(bytes)).unwrap().unwrap();
        batch.delete(NonZeroU64::new(5000).unwrap()).unwrap();
        assert!(read == expected && followed.take(&mut |_| ()).unwrap().is_none());
        assert_eq!((followed.count().unwrap(), list.count(Part::Current)), (0, 5000));
        for mode in [DeleteMode::Stage, DeleteMode::FirstN] {
            let mut source = InProcess::new(Arc::clone(&list), mode);
            for _ in 0..2 {
                let mut read = Vec::new();
                source.look().unwrap().read(&mut |bytes| read.extend_from_slice(bytes)).unwrap();
                assert_eq!(read, expected);
                read.clear();
                // A dropped batch deletes nothing.
                drop(source.take(&mut |bytes| read.extend_from_slice(bytes)).unwrap().unwrap());
                assert_eq!(read, expected);
            }
            if mode == DeleteMode::FirstN {
                let batch = source.take(&mut |_| ()).unwrap().unwrap();
                assert!(batch.was_pending());
                batch.delete(NonZeroU64::new(5000).unwrap()).unwrap();
                assert!(source.take(&mut |_| ()).unwrap().is_none());
            }
        }
    }
}
