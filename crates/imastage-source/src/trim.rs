//! Read the list and trim it (T:N): the trim patches.

use std::num::NonZeroU64;

use crate::{
    Batch, Dialect, Holders, Look, Request, Sink, Source, SourceError,
    files::{Both, Files},
};

/// Deletes the first N records if exactly T records were deleted before.
///
/// A policy can measure each trim, and trimming that record would add the next one. A list of one
/// record is therefore taken, but not trimmed until there are more records.
#[derive(Debug)]
pub(crate) struct Trim {
    files: Files,
    /// The first record of the list, if it was taken but not trimmed.
    left: Option<Left>,
}

#[derive(Clone, Copy, Debug)]
struct Left {
    /// T when the record was taken.
    total: u64,
    bytes: usize,
}

impl Trim {
    pub(crate) fn new(files: Files) -> Trim {
        Trim { files, left: None }
    }

    fn total(&self) -> Result<u64, SourceError> {
        self.files.open(self.files.trim(), false)?.number()
    }
}

impl Source for Trim {
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError> {
        let look = self.files.look()?;
        let total = self.total()?;
        let left = self.left.filter(|left| left.total == total);
        Ok(Box::new(LookBehind { look, skip: left.map_or(0, |left| left.bytes) }))
    }

    fn take(&mut self, sink: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError> {
        let mut look = self.files.look()?;
        // Nobody trims while the list is open for reading, so this total belongs to its content.
        let total = self.total()?;
        self.left = self.left.filter(|left| left.total == total);
        let mut bytes = 0;
        let skip = self.left.map_or(0, |left| left.bytes);
        Look::read(&mut look, &mut |chunk| {
            let new = chunk.len().min((bytes + chunk.len()).saturating_sub(skip));
            bytes += chunk.len();
            sink(&chunk[chunk.len() - new..]);
        })?;
        drop(look);
        if bytes <= skip {
            return Ok(None);
        }
        Ok(Some(Box::new(TrimBatch { trim: self, total, bytes })))
    }

    fn try_open(&mut self) -> Result<(), SourceError> {
        self.files.open(self.files.trim(), true).map(drop)
    }

    fn count(&mut self) -> Result<u64, SourceError> {
        let left = u64::from(self.left.is_some());
        Ok(self.files.count()?.saturating_sub(left))
    }

    fn dialect(&self) -> Dialect {
        Dialect::Trim
    }

    fn trimmed(&mut self) -> Result<Option<u64>, SourceError> {
        self.total().map(Some)
    }

    fn holders(&self) -> Holders {
        self.files.holders()
    }

    fn name(&self) -> String {
        self.files.name()
    }
}

/// The list without the record that was taken but not trimmed.
struct LookBehind {
    look: Both,
    skip: usize,
}

impl Look for LookBehind {
    fn read(&mut self, sink: &mut Sink<'_>) -> Result<(), SourceError> {
        let skip = &mut self.skip;
        Look::read(&mut self.look, &mut |chunk| {
            let old = chunk.len().min(*skip);
            *skip -= old;
            sink(&chunk[old..]);
        })
    }
}

struct TrimBatch<'a> {
    trim: &'a mut Trim,
    total: u64,
    /// The size of the whole list.
    bytes: usize,
}

impl Batch for TrimBatch<'_> {
    fn was_pending(&self) -> bool {
        false
    }

    fn position(&self) -> Option<u64> {
        Some(self.total + u64::from(self.trim.left.is_some()))
    }

    fn delete(self: Box<Self>, records: NonZeroU64) -> Result<(), SourceError> {
        let TrimBatch { trim, total, bytes } = *self;
        let left = trim.left.take();
        let all = records.get() + u64::from(left.is_some());
        if all == 1 {
            trim.left = Some(Left { total, bytes });
            return Ok(());
        }
        let request = Request::Trim { total, records: all };
        let mut file = trim.files.open(trim.files.trim(), true)?;
        // The posted patches do not reliably accept a newline.
        match file.write(request, format!("{request}\0").as_bytes()) {
            // A wrong total is ESTALE or EINVAL, depending on the implementation.
            Err(SourceError::GoingDown(_) | SourceError::Refused(_)) if trim.total()? != total => {
                Err(SourceError::Overtaken)
            }
            result => result,
        }
    }
}
