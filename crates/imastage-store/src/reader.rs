use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use ima_log::{Bank, Decoder, Digest, Format, Record};

use crate::{
    Epoch, StoreError,
    commits::{Commit, Commits},
    files::{self, At, COMMITS},
};

/// The records of the latest epoch as they were when this was opened. Any number may read, in any
/// process, while one writes.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    epoch: Epoch,
    commits: Commits,
    last: Commit,
}

/// Gives records one after the other.
#[derive(Debug)]
pub struct Cursor {
    dir: PathBuf,
    /// The index behind the last record to be given.
    to: u64,
    /// The index of the next record.
    next: u64,
    last: Commit,
    segment: Segment,
    decoder: Decoder,
    chunk: Vec<u8>,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    /// What is left of it.
    bytes: std::io::Take<File>,
}

impl Reader {
    /// Opens a state directory's latest epoch. Logarithmic in the number of commits.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`], [`StoreError::Empty`], [`StoreError::Damaged`].
    pub fn open(state: &Path) -> Result<Reader, StoreError> {
        files::require(state)?;
        let number = files::latest_epoch(state)?
            .ok_or_else(|| StoreError::Empty { path: state.to_owned() })?;
        let dir = files::epoch_dir(state, number);
        let epoch = Epoch::read(&dir)?;
        let path = dir.join(COMMITS);
        let file = File::open(&path).at(&path, "open")?;
        let commits = Commits::open(&dir, file, &epoch.banks)?;
        let last = commits.last()?;
        Ok(Reader { dir, epoch, commits, last })
    }

    /// The epoch.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Records in the epoch.
    pub fn len(&self) -> u64 {
        self.last.records
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The size of the records in bytes.
    pub fn bytes(&self) -> u64 {
        self.last.bytes
    }

    /// PCR 10 as all records replay, in each bank that is kept.
    pub fn running(&self) -> &[Digest] {
        &self.last.pcrs
    }

    /// The records from index `from` on. Finding it reads at most one commit's records.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRecord`] if `from` is behind the end, [`StoreError::Io`].
    pub fn records(&self, from: u64) -> Result<Cursor, StoreError> {
        if from > self.len() {
            return Err(StoreError::NoSuchRecord { asked: from, len: self.len() });
        }
        let start = self.commits.before(from)?;
        let mut cursor = Cursor {
            dir: self.dir.clone(),
            to: self.len(),
            next: start.records,
            segment: Segment::open(&self.dir, start.segment, start.segment_len, &self.last)?,
            last: self.last.clone(),
            decoder: Decoder::new(Format::native(Bank::Sha1)),
            chunk: vec![0; 256 << 10],
        };
        while cursor.next < from {
            cursor.next_record()?;
        }
        Ok(cursor)
    }
}

impl Cursor {
    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`], [`StoreError::Damaged`], [`StoreError::Io`].
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, StoreError> {
        if self.next == self.to {
            return Ok(None);
        }
        // Asked twice, because what is given borrows the decoder.
        while !self.decoder.has_record().map_err(|error| self.unreadable(error))? {
            let Segment { path, bytes } = &mut self.segment;
            match bytes.read(&mut self.chunk).at(path, "read")? {
                0 => self.next_segment()?,
                n => self.decoder.feed(&self.chunk[..n]),
            }
        }
        self.next += 1;
        let (path, index) = (&self.segment.path, self.next - 1);
        let unreadable = |error| StoreError::Unreadable { path: path.clone(), index, error };
        self.decoder.next_record().map_err(unreadable)
    }

    fn next_segment(&mut self) -> Result<(), StoreError> {
        self.decoder.finish().map_err(|error| self.unreadable(error))?;
        if !files::segment_path(&self.dir, self.next).exists() {
            return Err(StoreError::Damaged {
                path: self.segment.path.clone(),
                offset: self.decoder.offset(),
                why: format!(
                    "record {} should follow here or begin a segment; the records from there to \
                     index {} are missing",
                    self.next,
                    self.to - 1
                ),
            });
        }
        self.segment = Segment::open(&self.dir, self.next, 0, &self.last)?;
        self.decoder = Decoder::new(Format::native(Bank::Sha1));
        Ok(())
    }

    fn unreadable(&self, error: ima_log::ParseError) -> StoreError {
        StoreError::Unreadable { path: self.segment.path.clone(), index: self.next, error }
    }
}

impl Segment {
    /// From an offset on, up to the last commit.
    fn open(dir: &Path, first: u64, offset: u64, last: &Commit) -> Result<Segment, StoreError> {
        use std::io::{Seek, SeekFrom};
        let path = files::segment_path(dir, first);
        if last.records == 0 {
            // Nothing was stored, so there is no segment, and nothing will be read.
            let nothing = File::open("/dev/null").at(&path, "open")?;
            return Ok(Segment { path, bytes: nothing.take(0) });
        }
        let mut file = File::open(&path).at(&path, "open")?;
        file.seek(SeekFrom::Start(offset)).at(&path, "seek")?;
        let end = if first == last.segment { last.segment_len } else { u64::MAX };
        Ok(Segment { path, bytes: file.take(end.saturating_sub(offset)) })
    }
}
