//! Stage (A), read and delete (D): Linux 7.2 and version 4 of the staging patches.

use std::{io::Seek, marker::PhantomData, num::NonZeroU64};

use crate::{
    Batch, Dialect, Holders, Look, Request, Sink, Source, SourceError,
    files::{Files, Named},
};

/// Stages all records and deletes the staged records.
#[derive(Debug)]
pub(crate) struct Staged {
    files: Files,
    dialect: Dialect,
}

impl Staged {
    pub(crate) fn new(files: Files, dialect: Dialect) -> Staged {
        Staged { files, dialect }
    }
}

impl Source for Staged {
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError> {
        Ok(Box::new(self.files.look()?))
    }

    fn take(&mut self, sink: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError> {
        let Some(batch) = stage(&self.files, sink)? else { return Ok(None) };
        Ok(Some(Box::new(batch)))
    }

    fn try_open(&mut self) -> Result<(), SourceError> {
        self.files.open(self.files.staged(), true).map(drop)
    }

    fn count(&mut self) -> Result<u64, SourceError> {
        self.files.count()
    }

    fn dialect(&self) -> Dialect {
        self.dialect
    }

    fn holders(&self) -> Holders {
        self.files.holders()
    }

    fn name(&self) -> String {
        self.files.name()
    }
}

/// The staged records, open for writing.
pub(crate) struct StagedBatch {
    staged: Named,
    was_pending: bool,
    /// Makes the batch !Send: the opening thread must close the descriptor.
    one_thread: PhantomData<*const ()>,
}

/// Stages all records, unless some are already staged, and reads the staged records.
pub(crate) fn stage(
    files: &Files,
    sink: &mut Sink<'_>,
) -> Result<Option<StagedBatch>, SourceError> {
    let mut staged = files.open(files.staged(), true)?;
    let was_pending = match staged.write(Request::Stage, b"A\n") {
        Ok(()) => false,
        Err(SourceError::Pending) => true,
        Err(SourceError::Nothing(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    staged.read(sink)?;
    Ok(Some(StagedBatch { staged, was_pending, one_thread: PhantomData }))
}

impl Batch for StagedBatch {
    fn was_pending(&self) -> bool {
        self.was_pending
    }

    fn delete(mut self: Box<Self>, _: NonZeroU64) -> Result<(), SourceError> {
        let _ = self.one_thread;
        // Version 4 accepts requests only at file position 0.
        let sought = self.staged.file.rewind();
        sought.map_err(|error| self.staged.io("seek to the beginning", error))?;
        self.staged.write(Request::DeleteStaged, b"D\n")
    }
}
