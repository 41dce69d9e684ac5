use std::{num::NonZeroU64, sync::Arc};

use ima_list::{DeleteError, Part, SharedList, StageError};

use crate::{Hold, Request, Sink, Source, SourceError};

/// A list in this process. Its only client, so it is never busy.
#[derive(Clone, Debug)]
pub struct InProcess {
    list: Arc<SharedList>,
}

impl InProcess {
    /// The list that others in this process add to.
    pub fn new(list: Arc<SharedList>) -> InProcess {
        InProcess { list }
    }
}

impl Source for InProcess {
    fn hold(&mut self, part: Part) -> Result<Box<dyn Hold + '_>, SourceError> {
        Ok(Box::new(Held { list: &self.list, part }))
    }

    fn read(&mut self, part: Part, sink: &mut Sink<'_>) -> Result<(), SourceError> {
        read(&self.list, part, sink);
        Ok(())
    }

    fn count(&mut self) -> Result<u64, SourceError> {
        Ok(self.list.count(Part::Current))
    }

    fn name(&self) -> String {
        "a list in this process".to_owned()
    }
}

struct Held<'a> {
    list: &'a SharedList,
    part: Part,
}

impl Hold for Held<'_> {
    fn stage(&mut self) -> Result<(), SourceError> {
        self.list.stage().map(drop).map_err(|error| match error {
            StageError::Pending => SourceError::Pending,
            StageError::Empty => SourceError::Nothing(Request::Stage),
            StageError::Suspended => SourceError::GoingDown(Request::Stage),
        })
    }

    fn read(&mut self, sink: &mut Sink<'_>) -> Result<(), SourceError> {
        read(self.list, self.part, sink);
        Ok(())
    }

    fn delete_staged(&mut self) -> Result<(), SourceError> {
        let refused = |error| refusal(Request::DeleteStaged, error);
        self.list.delete_staged().map(drop).map_err(refused)
    }

    fn delete_first(&mut self, n: NonZeroU64) -> Result<(), SourceError> {
        let refused = |error| refusal(Request::DeleteFirst(n.get()), error);
        self.list.delete_first(n.get()).map(drop).map_err(refused)
    }
}

fn refusal(request: Request, error: DeleteError) -> SourceError {
    match error {
        DeleteError::Empty | DeleteError::TooMany { .. } => SourceError::Nothing(request),
        DeleteError::Pending => SourceError::Pending,
        DeleteError::Suspended | DeleteError::Dumped => SourceError::GoingDown(request),
    }
}

fn read(list: &SharedList, part: Part, sink: &mut Sink<'_>) {
    const CHUNK: usize = 256 << 10;
    let mut from = 0;
    loop {
        let chunk = list.snapshot(part, from, CHUNK);
        if chunk.records() == 0 {
            return;
        }
        from += chunk.records();
        chunk.slices().for_each(&mut *sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ima_list::Options;
    use ima_log::{Bank, RecordBuf};

    #[test]
    fn a_round_of_stage_read_delete() {
        let list = Arc::new(SharedList::new(Options::default()));
        let mut expected = Vec::new();
        for i in 0..5000 {
            let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), format!("{i}").as_bytes());
            let key = record.record().template_digest(Bank::Sha256);
            list.append(&record, &key, || {}).unwrap();
            expected.extend(record.into_bytes());
        }
        let mut source = InProcess::new(list);
        assert_eq!(source.count().unwrap(), 5000);
        let mut hold = source.hold(Part::Staged).unwrap();
        assert!(matches!(hold.delete_staged(), Err(SourceError::Nothing(Request::DeleteStaged))));
        hold.stage().unwrap();
        assert!(matches!(hold.stage(), Err(SourceError::Pending)));
        let mut read = Vec::new();
        hold.read(&mut |bytes| read.extend_from_slice(bytes)).unwrap();
        assert_eq!(read, expected);
        hold.delete_staged().unwrap();
        assert!(matches!(hold.stage(), Err(SourceError::Nothing(Request::Stage))));
    }
}
