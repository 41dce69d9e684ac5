//! Reads stored records from any index, and the PCR values after any record.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ima_log::{Bank, Decoder, Digest, Format, ParseError, Record, Replay};

use crate::{
    Epoch, StoreError,
    beneath::SystemDisk,
    checkpoints::Checkpoints,
    commits::{Commit, Commits, extend},
    disk::{Content, Disk, Mode},
    files::{self, At, CHUNK},
};

/// The records of an epoch at the time of opening. Any number of readers, in any process, can read
/// in parallel with the writer.
#[derive(Debug)]
pub struct Reader {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    epoch: Epoch,
    commits: Commits,
    checkpoints: Option<Checkpoints>,
    last: Commit,
    running: Vec<Digest>,
}

/// Iterates over records.
#[derive(Debug)]
pub struct Cursor {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    commits: Commits,
    /// The index after the last record to be given.
    to: u64,
    /// The index of the next record.
    next: u64,
    segment: Segment,
    decoder: Decoder,
    chunk: Vec<u8>,
}

/// The part of a segment that is read.
#[derive(Debug)]
struct Segment {
    path: PathBuf,
    file: Arc<dyn Content>,
    /// Its first record.
    first: u64,
    /// The offset at which reading and the decoder started.
    begin: u64,
    /// The offset of the next read.
    offset: u64,
    /// The end of the last commit in the segment.
    end: u64,
    /// The index of the record that follows it.
    next: u64,
}

/// The size of a read in bytes: about the distance of two checkpoints.
const REPLAY_CHUNK: usize = 64 << 10;

impl Reader {
    /// Opens a state directory's latest epoch. Constant time.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`], [`StoreError::Empty`], [`StoreError::Damaged`],
    /// [`StoreError::Io`].
    pub fn open(state: &Path) -> Result<Reader, StoreError> {
        let disk = SystemDisk::shared(state);
        files::require(disk.as_ref(), state)?;
        let number = files::latest_epoch(disk.as_ref(), state)?
            .ok_or_else(|| StoreError::Empty { path: state.to_owned() })?;
        Reader::open_epoch(disk, &files::epoch_dir(state, number))
    }

    /// Opens any epoch of a state directory; closed ones can be packed. Constant time.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`], [`StoreError::NoSuchEpoch`], [`StoreError::Damaged`],
    /// [`StoreError::Io`].
    pub fn open_number(state: &Path, number: u64) -> Result<Reader, StoreError> {
        let disk = SystemDisk::shared(state);
        let dir = files::require_epoch(disk.as_ref(), state, number)?;
        Reader::open_epoch(disk, &dir)
    }

    pub(crate) fn open_epoch(disk: Arc<dyn Disk>, dir: &Path) -> Result<Reader, StoreError> {
        let (epoch, commits) = Commits::open(disk.as_ref(), dir, Mode::Read)?;
        let last = commits.last()?;
        let checkpoints = Checkpoints::open(disk.as_ref(), dir, &epoch, Mode::Read);
        let own = last.pcrs.iter().take(epoch.banks.len());
        let running = own.map(Replay::value).collect();
        Ok(Reader { disk, dir: dir.to_owned(), epoch, commits, checkpoints, last, running })
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

    /// The PCR whose values are kept: the one that the epoch's first record names; `None` without
    /// records. It is 10 if that record names no PCR of a TPM, and in epochs that were started by
    /// versions that support no other.
    pub fn pcr(&self) -> Option<u32> {
        self.last.pcr
    }

    /// The values of the PCR ([`Reader::pcr`]) to which all records replay, in each bank that is
    /// kept, extended with the bank's own digest.
    pub fn running(&self) -> &[Digest] {
        &self.running
    }

    /// The values of the PCR to which the first `records` records replay: each bank that is kept,
    /// with its own digest, then those kept with padded SHA-1 ([`Epoch::padded`]). Replays at most
    /// about a thousand records, independent of their number.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRecord`] if there are fewer; [`StoreError::Damaged`],
    /// [`StoreError::Unreadable`], [`StoreError::Io`].
    pub fn running_at(&self, records: u64) -> Result<Vec<Replay>, StoreError> {
        if records == self.len() {
            return Ok(self.last.pcrs.clone());
        }
        // Without a record `records` is what there are.
        let pcr = self.last.pcr.unwrap_or(ima_log::IMA_PCR);
        let mut start = self.start(records)?;
        let mut cursor = self.cursor(&start, records)?;
        cursor.chunk.truncate(REPLAY_CHUNK);
        while let Some(record) = cursor.next_record()? {
            let (printed, computed) = (record.printed_digest(), record.template_digest(Bank::Sha1));
            if printed != computed {
                let (len, index) = (record.as_bytes().len() as u64, cursor.next - 1);
                let why = format!(
                    "record {index} was altered: its digest is {printed}, its data's {computed}"
                );
                let offset = cursor.segment.begin + cursor.decoder.offset() - len;
                return Err(StoreError::Damaged { path: cursor.segment.path, offset, why });
            }
            extend(&mut start.pcrs, pcr, &record, &computed);
        }
        Ok(start.pcrs)
    }

    /// The records from index `from` on. Finding it skips at most about a thousand records and
    /// reads a number of commits that is logarithmic in their total.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRecord`] if `from` is after the end; [`StoreError::Damaged`],
    /// [`StoreError::Unreadable`], [`StoreError::Io`].
    pub fn records(&self, from: u64) -> Result<Cursor, StoreError> {
        let mut cursor = self.cursor(&self.start(from)?, self.len())?;
        while cursor.next < from {
            cursor.next_record()?;
        }
        Ok(cursor)
    }

    /// The last place at or before record `index` from which reading can start.
    pub(crate) fn start(&self, index: u64) -> Result<Commit, StoreError> {
        if index > self.len() {
            return Err(StoreError::NoSuchRecord { asked: index, len: self.len() });
        }
        let (commit, next) = self.commits.around(|commit| commit.records <= index)?;
        let checkpoint = match (&self.checkpoints, next) {
            (Some(checkpoints), Some(next)) => checkpoints.before(index, &commit, &next),
            _ => None,
        };
        Ok(checkpoint.unwrap_or(commit))
    }

    /// The CRC of the commit that stored a record.
    pub(crate) fn crc_of_commit_with(&self, index: u64) -> Result<u32, StoreError> {
        let (_, commit) = self.commits.around(|commit| commit.records <= index)?;
        commit
            .map(|commit| commit.crc)
            .ok_or(StoreError::NoSuchRecord { asked: index, len: self.len() })
    }

    /// The records from `start` to index `to`.
    pub(crate) fn cursor(&self, start: &Commit, to: u64) -> Result<Cursor, StoreError> {
        // At the end nothing is read, and without a commit there is no segment.
        let segment = if start.records == to {
            Segment::none(&self.commits)
        } else {
            Segment::open(self.disk.as_ref(), &self.dir, &self.commits, start)?
        };
        let left = usize::try_from(self.last.bytes - start.bytes.min(self.last.bytes));
        let chunk = left.unwrap_or(CHUNK).clamp(1, CHUNK);
        Ok(Cursor {
            disk: Arc::clone(&self.disk),
            dir: self.dir.clone(),
            commits: self.commits.clone(),
            to,
            next: start.records,
            segment,
            decoder: Decoder::new(Format::native(Bank::Sha1)),
            chunk: vec![0; chunk],
        })
    }
}

impl Cursor {
    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`], [`StoreError::Damaged`], [`StoreError::Io`]. The cursor cannot
    /// be used after an error.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, StoreError> {
        if self.next == self.to {
            return Ok(None);
        }
        // Asked twice, because what is given borrows the decoder.
        while !self.decoder.has_record().map_err(|error| self.unreadable(error))? {
            if self.segment.offset == self.segment.end {
                self.next_segment()?;
            } else {
                let n = self.segment.read(&mut self.chunk, self.next)?;
                self.decoder.feed(&self.chunk[..n]);
            }
        }
        self.next += 1;
        let Cursor { decoder, segment, next, .. } = self;
        decoder.next_record().map_err(|error| segment.unreadable(*next - 1, error))
    }

    /// The segment of the last record returned, and the offset of its end.
    pub(crate) fn place(&self) -> (u64, u64) {
        (self.segment.first, self.segment.begin + self.decoder.offset())
    }

    fn next_segment(&mut self) -> Result<(), StoreError> {
        self.decoder.finish().map_err(|error| self.unreadable(error))?;
        if self.next != self.segment.next {
            let why = format!(
                "{} records were committed up to here, {} are there; records since the commit \
                 before are not those that were stored",
                self.segment.next, self.next
            );
            return Err(StoreError::Damaged {
                path: self.segment.path.clone(),
                offset: self.segment.end,
                why,
            });
        }
        // A segment is named by its first record.
        let start = Commit { segment: self.next, segment_len: 0, ..Commit::none(&[]) };
        self.segment = Segment::open(self.disk.as_ref(), &self.dir, &self.commits, &start)?;
        self.decoder = Decoder::new(Format::native(Bank::Sha1));
        Ok(())
    }

    fn unreadable(&self, error: ParseError) -> StoreError {
        self.segment.unreadable(self.next, error)
    }
}

impl Segment {
    /// From after commit `start` on, up to the last commit of that segment.
    fn open(
        disk: &dyn Disk,
        dir: &Path,
        commits: &Commits,
        start: &Commit,
    ) -> Result<Segment, StoreError> {
        let last = commits.last_that(|commit| commit.segment <= start.segment)?;
        if last.records == 0
            || last.segment != start.segment
            || last.segment_len < start.segment_len
        {
            return Err(StoreError::Damaged {
                path: commits.path.clone(),
                offset: 0,
                why: format!("record {} begins a segment, no commit says so", start.segment),
            });
        }
        let (path, file) = files::open_segment(disk, dir, start.segment);
        let file = file.map_err(|error| files::unopened(path.clone(), error, last.records - 1))?;
        let (begin, end) = (start.segment_len, last.segment_len);
        let first = start.segment;
        Ok(Segment { path, file, first, begin, offset: begin, end, next: last.records })
    }

    /// Nothing to read.
    fn none(commits: &Commits) -> Segment {
        let (path, file) = (commits.path.clone(), Arc::clone(&commits.file));
        Segment { path, file, first: 0, begin: 0, offset: 0, end: 0, next: 0 }
    }

    /// Reads more bytes; `next` is the index of the record that they complete.
    fn read(&mut self, chunk: &mut [u8], next: u64) -> Result<usize, StoreError> {
        let left = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        let chunk_len = chunk.len().min(left);
        let chunk = &mut chunk[..chunk_len];
        match self.file.read_up_to(chunk, self.offset).at(&self.path, "read")? {
            0 => Err(StoreError::Damaged {
                path: self.path.clone(),
                offset: self.offset,
                why: format!(
                    "the segment ends here, {} bytes were committed: records {next} to {} are \
                     missing",
                    self.end,
                    self.next - 1
                ),
            }),
            n => {
                self.offset += n as u64;
                Ok(n)
            }
        }
    }

    fn unreadable(&self, index: u64, error: ParseError) -> StoreError {
        StoreError::Unreadable {
            path: self.path.clone(),
            index,
            offset: self.begin + error.offset,
            error: error.kind,
        }
    }
}
