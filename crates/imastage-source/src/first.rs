//! Read the current list and delete its first N records: Linux 7.2.

use std::{marker::PhantomData, num::NonZeroU64};

use crate::{
    Batch, Dialect, Holders, Look, Request, Sink, Source, SourceError,
    files::{Files, Named},
    staged::stage,
};

/// Deletes the first N records of the current list. Records staged by others are older: while there
/// are any, they are offloaded first, without N.
#[derive(Debug)]
pub(crate) struct First {
    files: Files,
}

impl First {
    pub(crate) fn new(files: Files) -> First {
        First { files }
    }

    /// The beginning of the current list, or `None` if records are staged.
    fn head(&self) -> Result<Option<Vec<u8>>, SourceError> {
        let mut look = self.files.look()?;
        let mut head = vec![0; 4096];
        // The kernel returns whole records, and 0 bytes only at the end.
        if let Some(staged) = look.staged()
            && staged.read_some(&mut head)? > 0
        {
            return Ok(None);
        }
        let len = look.current().read_some(&mut head)?;
        head.truncate(len);
        Ok(Some(head))
    }
}

impl Source for First {
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError> {
        Ok(Box::new(self.files.look()?))
    }

    fn take(&mut self, sink: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError> {
        let Some(head) = self.head()? else {
            let Some(batch) = stage(&self.files, sink)? else { return Ok(None) };
            return Ok(Some(Box::new(batch)));
        };
        if head.is_empty() {
            return Ok(None);
        }
        // If another process stages before this open, the staged records are older, and the list
        // begins with other records.
        let mut current = self.files.open(self.files.current(), true)?;
        let mut expected = &head[..];
        let mut overtaken = false;
        current.read(&mut |bytes| {
            let (begin, rest) = expected.split_at(expected.len().min(bytes.len()));
            overtaken |= !bytes.starts_with(begin);
            expected = rest;
            sink(bytes);
        })?;
        if overtaken || !expected.is_empty() {
            return Err(SourceError::Overtaken);
        }
        Ok(Some(Box::new(CurrentBatch { current, one_thread: PhantomData })))
    }

    fn try_open(&mut self) -> Result<(), SourceError> {
        self.files.open(self.files.current(), true).map(drop)
    }

    fn count(&mut self) -> Result<u64, SourceError> {
        self.files.count()
    }

    fn dialect(&self) -> Dialect {
        Dialect::Linux72
    }

    fn holders(&self) -> Holders {
        self.files.holders()
    }

    fn name(&self) -> String {
        self.files.name()
    }
}

struct CurrentBatch {
    current: Named,
    /// Makes the batch !Send: the opening thread must close the descriptor.
    one_thread: PhantomData<*const ()>,
}

impl Batch for CurrentBatch {
    fn was_pending(&self) -> bool {
        false
    }

    fn delete(mut self: Box<Self>, records: NonZeroU64) -> Result<(), SourceError> {
        let _ = self.one_thread;
        self.current.write(Request::DeleteFirst(records.get()), format!("{records}\n").as_bytes())
    }
}
