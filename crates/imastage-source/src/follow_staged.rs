//! Following a list from which other processes may delete records.

use std::{
    io::{Seek, SeekFrom},
    num::NonZeroU64,
};

use crate::{
    Batch, Dialect, Holders, Look, Sink, Source, SourceError,
    files::{Both, Files},
};

/// A list that is only read. Taken records stay in the list and are not read again, unless another
/// process deletes records.
///
/// No descriptor stays open, because that would prevent others from staging and deleting. Instead
/// each look checks that the list begins as before.
#[derive(Debug)]
pub(crate) struct FollowStaged {
    files: Files,
    /// The list's first bytes at the last take, at most a page.
    head: Vec<u8>,
    /// The taken bytes, from the list's first record, staged ones included.
    taken: u64,
    /// The taken records.
    taken_records: u64,
}

/// The list from the first record that was not taken.
struct Rest {
    both: Both,
    /// The list's first bytes.
    head: Vec<u8>,
    /// The number of bytes still to skip.
    skip: u64,
}

impl FollowStaged {
    pub(crate) fn new(files: Files) -> FollowStaged {
        FollowStaged { files, head: Vec::new(), taken: 0, taken_records: 0 }
    }

    /// The rest of the list, open for reading.
    fn rest(&mut self) -> Result<Rest, SourceError> {
        let mut both = self.files.look()?;
        let mut head = vec![0; 4096];
        let mut length = match both.staged() {
            Some(staged) => staged.read_some(&mut head)?,
            None => 0,
        };
        let is_staged = length > 0;
        if !is_staged {
            length = both.current().read_some(&mut head)?;
        }
        head.truncate(length);
        // The kernel returns whole records, so a head shorter than a page can have grown.
        if !head.starts_with(&self.head) {
            *self = FollowStaged::new(self.files.clone());
            return Err(SourceError::Overtaken);
        }
        // The kernel walks to the position. The position within the current records is known only
        // if none are staged.
        let (staged_at, current_at, skip) =
            if is_staged { (0, 0, self.taken) } else { (0, self.taken, 0) };
        if let Some(staged) = both.staged() {
            let sought = staged.file.seek(SeekFrom::Start(staged_at));
            sought.map_err(|error| staged.io("seek to the beginning", error))?;
        }
        let current = both.current();
        let sought = current.file.seek(SeekFrom::Start(current_at));
        sought.map_err(|error| current.io("seek to the first new record", error))?;
        Ok(Rest { both, head, skip })
    }
}

impl Source for FollowStaged {
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError> {
        Ok(Box::new(self.rest()?))
    }

    fn take(&mut self, sink: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError> {
        let mut rest = self.rest()?;
        let mut bytes = 0;
        rest.read(&mut |chunk| {
            bytes += chunk.len() as u64;
            sink(chunk);
        })?;
        if rest.skip > 0 {
            // The list is shorter than at the last take.
            *self = FollowStaged::new(self.files.clone());
            return Err(SourceError::Overtaken);
        }
        let head = std::mem::take(&mut rest.head);
        drop(rest);
        if bytes == 0 {
            return Ok(None);
        }
        Ok(Some(Box::new(FollowStagedBatch { follow: self, bytes, head })))
    }

    fn try_open(&mut self) -> Result<(), SourceError> {
        self.files.open(self.files.current(), false).map(drop)
    }

    /// Too low while records are staged, since these are not counted.
    fn count(&mut self) -> Result<u64, SourceError> {
        Ok(self.files.count()?.saturating_sub(self.taken_records))
    }

    fn dialect(&self) -> Dialect {
        Dialect::Follow
    }

    fn others_may_delete(&self) -> bool {
        true
    }

    fn holders(&self) -> Holders {
        self.files.holders()
    }

    fn name(&self) -> String {
        self.files.name()
    }
}

impl Look for Rest {
    fn read(&mut self, sink: &mut Sink<'_>) -> Result<(), SourceError> {
        let Rest { both, skip, .. } = self;
        Look::read(both, &mut |chunk| {
            let old = chunk.len().min(usize::try_from(*skip).unwrap_or(usize::MAX));
            *skip -= old as u64;
            let (_, new) = chunk.split_at(old);
            if !new.is_empty() {
                sink(new);
            }
        })
    }
}

struct FollowStagedBatch<'a> {
    follow: &'a mut FollowStaged,
    bytes: u64,
    head: Vec<u8>,
}

impl Batch for FollowStagedBatch<'_> {
    fn was_pending(&self) -> bool {
        false
    }

    fn delete(self: Box<Self>, records: NonZeroU64) -> Result<(), SourceError> {
        let FollowStagedBatch { follow, bytes, head } = *self;
        follow.head = head;
        follow.taken += bytes;
        follow.taken_records += records.get();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    fn set(dir: &Path, staged: &str, current: &str) {
        fs::write(dir.join("binary_runtime_measurements_staged"), staged).unwrap();
        fs::write(dir.join("binary_runtime_measurements"), current).unwrap();
        fs::write(dir.join("runtime_measurements_count"), format!("{}\n", current.len())).unwrap();
    }

    fn take(source: &mut FollowStaged) -> Result<String, SourceError> {
        let mut read = Vec::new();
        let batch = source.take(&mut |bytes| read.extend_from_slice(bytes))?;
        if let Some(batch) = batch {
            batch.delete(NonZeroU64::new(1).unwrap()).unwrap();
        }
        Ok(String::from_utf8(read).unwrap())
    }

    #[test]
    fn foreign_stage_is_transparent_and_foreign_deletion_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        let mut source = FollowStaged::new(Files::new(dir.path()));
        set(dir.path(), "", "ab");
        assert_eq!(take(&mut source).unwrap(), "ab");
        assert_eq!(take(&mut source).unwrap(), "");
        // Another process stages: positions do not change.
        set(dir.path(), "ab", "cd");
        assert_eq!(take(&mut source).unwrap(), "cd");
        assert_eq!(take(&mut source).unwrap(), "");
        let mut look = Vec::new();
        source.look().unwrap().read(&mut |bytes| look.extend_from_slice(bytes)).unwrap();
        assert_eq!(look, b"");
        // Another process deletes: the list begins with other records, whatever its length.
        set(dir.path(), "", "cdefgh");
        assert!(matches!(take(&mut source), Err(SourceError::Overtaken)));
        assert_eq!(take(&mut source).unwrap(), "cdefgh");
        set(dir.path(), "", "cd");
        assert!(matches!(take(&mut source), Err(SourceError::Overtaken)));
        assert_eq!(take(&mut source).unwrap(), "cd");
    }
}
