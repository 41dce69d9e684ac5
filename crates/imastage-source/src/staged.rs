//! A, read, D: Linux 7.2 and the patches of version 4.

use std::{io::Seek, marker::PhantomData, num::NonZeroU64};

use crate::{
    Batch, Dialect, Holders, Look, Request, Sink, Source, SourceError,
    files::{Files, Named},
};

/// Stages all, and deletes what was staged.
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

/// What is staged, held for writing.
pub(crate) struct StagedBatch {
    staged: Named,
    was_pending: bool,
    /// Keeps the descriptor on the thread that opened it.
    one_thread: PhantomData<*const ()>,
}

/// Stages what there is, unless something is staged already, and reads it.
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
        // Version 4 takes no request where a read has left the descriptor.
        let sought = self.staged.file.rewind();
        sought.map_err(|error| self.staged.io("seek to the beginning", error))?;
        self.staged.write(Request::DeleteStaged, b"D\n")
    }
}
