use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use ima_log::{Bank, Digest, Format, IMA_PCR, Record};
use rustix::fs::FlockOperation;

use crate::{
    Epoch, EpochId, Note, Reader, StoreError,
    commits::{Commit, Commits},
    files::{self, At, COMMITS, LOCK},
    notes,
};

/// The records of a state directory, to be added to. One at a time for each directory.
#[derive(Debug)]
pub struct Store {
    state: PathBuf,
    segment_size: u64,
    writing: Option<Writing>,
    recovery: Recovery,
    /// Locked as long as it is open.
    _lock: File,
}

/// What opening a store cut off behind the last commit: batches that a crash interrupted, whose
/// records nobody was told were stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes of a torn commit.
    pub commit_bytes: u64,
    /// Bytes of records.
    pub record_bytes: u64,
}

/// The epoch that is written to.
#[derive(Debug)]
struct Writing {
    epoch: Epoch,
    dir: PathBuf,
    commits: Commits,
    /// The segment of `committed`, once there is one.
    segment: Option<File>,
    /// What is durable.
    committed: Commit,
    /// That, and what was appended since.
    running: Commit,
    /// The bytes of what was appended since.
    pending: Vec<u8>,
    /// A commit failed and may have left something behind the last one.
    untidy: bool,
}

/// When a segment is this large, the next commit begins a new one.
const SEGMENT_SIZE: u64 = 64 << 20;

impl Store {
    /// Opens a state directory for writing, or makes it (for the owner only). What an interrupted
    /// commit left is cut off.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another process has it open, [`StoreError::Damaged`] if more is
    /// missing than a crash can take.
    pub fn open(state: &Path) -> Result<Store, StoreError> {
        Store::open_with(state, SEGMENT_SIZE)
    }

    /// As [`Store::open`], with segments of about `segment_size` bytes.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(state: &Path, segment_size: u64) -> Result<Store, StoreError> {
        files::prepare(state)?;
        let lock = lock(state)?;
        let mut store = Store {
            state: state.to_owned(),
            segment_size,
            writing: None,
            recovery: Recovery::default(),
            _lock: lock,
        };
        if let Some(number) = files::latest_epoch(state)? {
            store.enter(number)?;
        }
        Ok(store)
    }

    /// Begins a new epoch, which becomes the one that is written to. The store keeps the running
    /// PCR 10 of `banks`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn begin_epoch(&mut self, id: EpochId, banks: &[Bank]) -> Result<(), StoreError> {
        let mut banks = banks.to_vec();
        banks.sort_unstable();
        banks.dedup();
        let number = files::latest_epoch(&self.state)?.unwrap_or(0) + 1;
        // Made under another name first: an epoch is there whole or not at all.
        let dir = files::epoch_dir(&self.state, number);
        let new = dir.with_extension("new");
        if new.exists() {
            fs::remove_dir_all(&new).at(&new, "remove")?;
        }
        files::create_dir(&new)?;
        files::replace(&new.join(COMMITS), &Commits::header(&banks))?;
        Epoch { number, id, banks }.write(&new)?;
        fs::rename(&new, &dir).at(&dir, "rename into place")?;
        files::sync_parent(&dir)?;
        self.enter(number)
    }

    /// The epoch that is written to; `None` before the first.
    pub fn epoch(&self) -> Option<&Epoch> {
        self.writing.as_ref().map(|writing| &writing.epoch)
    }

    /// Records of the epoch, those included that are appended and not committed: the index of the
    /// next one.
    pub fn len(&self) -> u64 {
        self.writing.as_ref().map_or(0, |writing| writing.running.records)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The size of the epoch's records in bytes.
    pub fn bytes(&self) -> u64 {
        self.writing.as_ref().map_or(0, |writing| writing.running.bytes)
    }

    /// PCR 10 as all records of the epoch replay; `None` for a bank that is not kept.
    pub fn running(&self, bank: Bank) -> Option<Digest> {
        let pcrs = &self.writing.as_ref()?.running.pcrs;
        pcrs.iter().find(|pcr| pcr.bank() == bank).copied()
    }

    /// What opening the store cut off.
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// Appends a record, in the sha1 form and native byte order, and gives its index. It is not
    /// durable before [`Store::commit`].
    ///
    /// # Errors
    /// [`StoreError::WrongForm`], [`StoreError::WrongDigest`], [`StoreError::NoEpoch`].
    pub fn append(&mut self, record: &Record<'_>) -> Result<u64, StoreError> {
        let writing = self.writing.as_mut().ok_or(StoreError::NoEpoch)?;
        let index = writing.running.records;
        if record.format() != Format::native(Bank::Sha1) {
            return Err(StoreError::WrongForm { index });
        }
        let digest = record.template_digest(Bank::Sha1);
        if digest != record.printed_digest() {
            let printed = record.printed_digest();
            return Err(StoreError::WrongDigest { index, printed, computed: digest });
        }
        extend(&mut writing.running.pcrs, record, &digest);
        writing.running.records += 1;
        writing.running.violations += u64::from(record.is_violation());
        writing.running.bytes += record.as_bytes().len() as u64;
        writing.pending.extend_from_slice(record.as_bytes());
        Ok(index)
    }

    /// Makes everything that was appended durable. When this returns, it survives a power cut.
    ///
    /// # Errors
    /// [`StoreError::Io`]; nothing that was appended since the last commit counts as stored then.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        let Some(writing) = &mut self.writing else { return Ok(()) };
        if writing.pending.is_empty() {
            return Ok(());
        }
        let result = writing.commit(self.segment_size);
        if result.is_err() {
            writing.untidy = true;
            writing.rollback();
        }
        result
    }

    /// Forgets what was appended since the last commit.
    pub fn rollback(&mut self) {
        if let Some(writing) = &mut self.writing {
            writing.rollback();
        }
    }

    /// The last `n` committed records, or all there are, in order.
    ///
    /// # Errors
    /// [`StoreError`] if they cannot be read.
    pub fn tail(&self, n: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let Some(writing) = &self.writing else { return Ok(Vec::new()) };
        let from = writing.committed.records.saturating_sub(n as u64);
        let mut tail = Vec::new();
        if from < writing.committed.records {
            let mut cursor = Reader::open(&self.state)?.records(from)?;
            while let Some(record) = cursor.next_record()? {
                tail.push(record.as_bytes().to_vec());
            }
        }
        Ok(tail)
    }

    /// Keeps a remark about a place between records.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::NoEpoch`].
    pub fn note(&mut self, note: &Note) -> Result<(), StoreError> {
        let writing = self.writing.as_ref().ok_or(StoreError::NoEpoch)?;
        notes::append(&writing.dir, note)
    }

    /// Opens an epoch and cuts off what is behind its last commit.
    fn enter(&mut self, number: u64) -> Result<(), StoreError> {
        let dir = files::epoch_dir(&self.state, number);
        let epoch = Epoch::read(&dir)?;
        let file = files::open_writable(&dir.join(COMMITS))?;
        let commits = Commits::open(&dir, file, &epoch.banks)?;
        let committed = commits.last()?;
        let mut writing = Writing {
            epoch,
            dir,
            commits,
            segment: None,
            running: committed.clone(),
            committed,
            pending: Vec::new(),
            untidy: false,
        };
        self.recovery = writing.tidy()?;
        self.writing = Some(writing);
        Ok(())
    }
}

impl Writing {
    fn commit(&mut self, segment_size: u64) -> Result<(), StoreError> {
        if self.untidy {
            self.tidy()?;
        }
        let is_new = self.segment.is_none() || self.committed.segment_len >= segment_size;
        let (first, start) = if is_new {
            (self.committed.records, 0)
        } else {
            (self.committed.segment, self.committed.segment_len)
        };
        let path = files::segment_path(&self.dir, first);
        let segment = match &self.segment {
            Some(segment) if !is_new => segment,
            _ => self.segment.insert(files::open_writable(&path)?),
        };
        // Whatever is sent next, the counts in `running` are already right.
        self.running.segment = first;
        self.running.segment_len = start + self.pending.len() as u64;
        self.running.crc = crc32fast::hash(&self.pending);
        segment.write_all_at(&self.pending, start).at(&path, "write records")?;
        segment.sync_data().at(&path, "sync")?;
        if is_new {
            files::sync_dir(&self.dir)?;
        }
        let Commits { file, path, .. } = &self.commits;
        let offset = self.commits.offset(self.commits.entries);
        file.write_all_at(&self.running.encode(), offset).at(path, "write a commit")?;
        file.sync_data().at(path, "sync")?;

        self.commits.entries += 1;
        self.committed = self.running.clone();
        self.pending.clear();
        Ok(())
    }

    fn rollback(&mut self) {
        self.pending.clear();
        self.running = self.committed.clone();
    }

    /// Cuts off what is behind the last commit, and opens its segment.
    fn tidy(&mut self) -> Result<Recovery, StoreError> {
        let mut recovery = Recovery::default();
        let end = self.commits.offset(self.commits.entries);
        recovery.commit_bytes = cut(&self.commits.file, end, &self.commits.path)?;

        for first in files::segments(&self.dir)? {
            // Begun by a commit that was not finished.
            if first > self.committed.segment || self.committed.records == 0 {
                let path = files::segment_path(&self.dir, first);
                recovery.record_bytes += fs::metadata(&path).at(&path, "look at")?.len();
                fs::remove_file(&path).at(&path, "remove")?;
            }
        }
        self.segment = None;
        if self.committed.records > 0 {
            let path = files::segment_path(&self.dir, self.committed.segment);
            let file = File::options().read(true).write(true).open(&path).at(&path, "open")?;
            let len = file.metadata().at(&path, "look at")?.len();
            if len < self.committed.segment_len {
                let why = format!(
                    "the segment ends here, {} bytes were committed: records up to index {} are \
                     missing",
                    self.committed.segment_len,
                    self.committed.records - 1
                );
                return Err(StoreError::Damaged { path, offset: len, why });
            }
            recovery.record_bytes += cut(&file, self.committed.segment_len, &path)?;
            self.segment = Some(file);
        }
        self.untidy = false;
        Ok(recovery)
    }
}

/// Extends PCR 10 in each bank as the kernel did, given the record's SHA-1 template digest.
pub(crate) fn extend(pcrs: &mut [Digest], record: &Record<'_>, sha1: &Digest) {
    if record.pcr() != IMA_PCR {
        return;
    }
    for pcr in pcrs {
        let value = match pcr.bank() {
            bank if record.is_violation() => Digest::ones(bank),
            Bank::Sha1 => *sha1,
            bank => record.template_digest(bank),
        };
        *pcr = pcr.extended_with(&value);
    }
}

/// Shortens a file, durably; gives the number of bytes cut off.
fn cut(file: &File, to: u64, path: &Path) -> Result<u64, StoreError> {
    let len = file.metadata().at(path, "look at")?.len();
    if len <= to {
        return Ok(0);
    }
    file.set_len(to).at(path, "cut")?;
    file.sync_all().at(path, "sync")?;
    Ok(len - to)
}

fn lock(state: &Path) -> Result<File, StoreError> {
    let path = state.join(LOCK);
    let mut file = files::open_writable(&path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            file.set_len(0).at(&path, "empty")?;
            writeln!(file, "{}", std::process::id()).at(&path, "write")?;
            Ok(file)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // It only makes the message better.
            let _ = file.take(20).read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "unknown".to_owned(),
                pid => pid.to_owned(),
            };
            Err(StoreError::Locked { path: state.to_owned(), holder })
        }
        Err(error) => Err(std::io::Error::from(error)).at(&path, "lock"),
    }
}
