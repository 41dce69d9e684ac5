//! Following a list: kernels that do not delete records.

use std::{
    io::{Seek, SeekFrom},
    num::NonZeroU64,
};

use crate::{
    Batch, Dialect, Holders, Look, Sink, Source, SourceError,
    files::{Files, Named},
};

/// A list that only grows. Taken records stay in the list and are not read again: "deletion" moves
/// the position at which the next batch begins.
///
/// One descriptor stays open at the end of the last read: the kernel continues from there.
#[derive(Debug)]
pub(crate) struct Follow {
    files: Files,
    open: Option<Named>,
    /// The descriptor's position; differs from `taken` after a batch that was not deleted.
    at: u64,
    /// The taken bytes, from the list's first record.
    taken: u64,
    /// The taken records.
    taken_records: u64,
}

impl Follow {
    pub(crate) fn new(files: Files) -> Follow {
        Follow { files, open: None, at: 0, taken: 0, taken_records: 0 }
    }

    /// The descriptor, positioned at the first record that was not taken.
    fn at_taken(&mut self) -> Result<&mut Named, SourceError> {
        let file = match self.open.take() {
            Some(file) => file,
            None => {
                self.at = 0;
                self.files.open(self.files.current(), false)?
            }
        };
        let file = self.open.insert(file);
        if self.at != self.taken {
            // The kernel walks to the position once.
            let sought = file.file.seek(SeekFrom::Start(self.taken));
            sought.map_err(|error| file.io("seek to the first new record", error))?;
            self.at = self.taken;
        }
        Ok(file)
    }

    /// Reads from `at` to the end.
    fn read_on(&mut self, sink: &mut Sink<'_>) -> Result<(), SourceError> {
        let Follow { open: Some(file), at, .. } = self else { return Ok(()) };
        let mut read = 0;
        let result = file.read(&mut |bytes| {
            read += bytes.len() as u64;
            sink(bytes);
        });
        *at += read;
        if result.is_err() {
            self.open = None;
        }
        result
    }
}

impl Source for Follow {
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError> {
        self.at_taken()?;
        Ok(Box::new(LookOn { follow: self }))
    }

    fn take(&mut self, sink: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError> {
        let count = self.files.count()?;
        if count < self.taken_records {
            // Another process deleted records.
            *self = Follow::new(self.files.clone());
            return Err(SourceError::Overtaken);
        }
        // A record is counted before the TPM is extended with it, so this misses no record that a
        // quote covers.
        if count == self.taken_records && self.taken > 0 {
            return Ok(None);
        }
        self.at_taken()?;
        self.read_on(sink)?;
        if self.at == self.taken {
            return Ok(None);
        }
        Ok(Some(Box::new(FollowBatch { follow: self })))
    }

    fn try_open(&mut self) -> Result<(), SourceError> {
        self.files.open(self.files.current(), false).map(drop)
    }

    fn count(&mut self) -> Result<u64, SourceError> {
        Ok(self.files.count()?.saturating_sub(self.taken_records))
    }

    fn dialect(&self) -> Dialect {
        Dialect::Follow
    }

    fn holders(&self) -> Holders {
        self.files.holders()
    }

    fn name(&self) -> String {
        self.files.name()
    }
}

struct LookOn<'a> {
    follow: &'a mut Follow,
}

impl Look for LookOn<'_> {
    fn read(&mut self, sink: &mut Sink<'_>) -> Result<(), SourceError> {
        self.follow.read_on(sink)
    }
}

struct FollowBatch<'a> {
    follow: &'a mut Follow,
}

impl Batch for FollowBatch<'_> {
    fn was_pending(&self) -> bool {
        false
    }

    fn delete(self: Box<Self>, records: NonZeroU64) -> Result<(), SourceError> {
        self.follow.taken = self.follow.at;
        self.follow.taken_records += records.get();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::{self, File},
        io::Write,
        path::Path,
    };

    /// Appends records to a plain file, as a kernel's list grows.
    fn grow(dir: &Path, records: &[&str], count: u64) {
        let list = dir.join("binary_runtime_measurements");
        let mut list = File::options().append(true).create(true).open(list).unwrap();
        records.iter().for_each(|record| list.write_all(record.as_bytes()).unwrap());
        fs::write(dir.join("runtime_measurements_count"), format!("{count}\n")).unwrap();
    }

    fn take(source: &mut Follow, records: u64) -> String {
        let mut read = Vec::new();
        if let Some(batch) = source.take(&mut |bytes| read.extend_from_slice(bytes)).unwrap()
            && let Some(records) = NonZeroU64::new(records)
        {
            batch.delete(records).unwrap();
        }
        String::from_utf8(read).unwrap()
    }

    #[test]
    fn taken_records_are_not_read_again_and_others_are() {
        let dir = tempfile::tempdir().unwrap();
        grow(dir.path(), &["a", "bb"], 2);
        let mut source = Follow::new(Files::new(dir.path()));
        assert_eq!(source.count().unwrap(), 2);
        // Read but not taken.
        assert_eq!(take(&mut source, 0), "abb");
        assert_eq!(take(&mut source, 2), "abb");
        assert_eq!((take(&mut source, 1).as_str(), source.count().unwrap()), ("", 0));
        grow(dir.path(), &["ccc"], 3);
        assert_eq!(source.count().unwrap(), 1);
        let mut look = Vec::new();
        source.look().unwrap().read(&mut |bytes| look.extend_from_slice(bytes)).unwrap();
        assert_eq!(look, b"ccc");
        assert_eq!(take(&mut source, 1), "ccc");
        grow(dir.path(), &["d"], 4);
        assert_eq!(take(&mut source, 1), "d");
    }

    #[test]
    fn list_that_shrinks_is_read_from_the_beginning() {
        let dir = tempfile::tempdir().unwrap();
        grow(dir.path(), &["a", "b"], 2);
        let mut source = Follow::new(Files::new(dir.path()));
        assert_eq!(take(&mut source, 2), "ab");
        fs::remove_file(dir.path().join("binary_runtime_measurements")).unwrap();
        grow(dir.path(), &["b"], 1);
        let overtaken = source.take(&mut |_| ()).err().unwrap();
        assert!(matches!(overtaken, SourceError::Overtaken));
        assert_eq!(take(&mut source, 1), "b");
    }
}
