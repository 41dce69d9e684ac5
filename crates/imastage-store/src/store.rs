//! The writer of a state directory: open, lock, begin epochs, append, commit.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ima_log::{Bank, Digest, Extend, Record};
use rustix::fs::FlockOperation;

use crate::{
    Epoch, EpochId, Note, Reader, Recovery, StoreError,
    beneath::SystemDisk,
    checkpoints,
    commits::Commits,
    disk::{Disk, Mode},
    files::{self, At, COMMITS, EPOCH, LOCK},
    notes::{self, Withdrawal},
    writing::{Keep, Writing},
};

/// The writer of a state directory's records; a directory has at most one at a time.
#[derive(Debug)]
pub struct Store {
    disk: Arc<dyn Disk>,
    state: PathBuf,
    layout: Layout,
    writing: Option<Writing>,
    recovery: Recovery,
    /// Locked while it is open.
    lock: Option<File>,
}

/// The sizes of an epoch's parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The size in bytes from which a segment is full.
    pub(crate) segment_size: u64,
    /// Records between two checkpoints.
    pub(crate) distance: u64,
}

/// When a segment is this large, the next commit begins a new one.
const SEGMENT_SIZE: u64 = 64 << 20;

impl Store {
    /// Opens a state directory for writing; creates it (mode 0700) if it does not exist. The
    /// remains of an interrupted commit are cut off.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another process has it open, [`StoreError::Damaged`] if more is
    /// missing than a crash can remove, [`StoreError::NotAStore`], [`StoreError::Io`].
    pub fn open(state: &Path) -> Result<Store, StoreError> {
        Store::open_with(state, SEGMENT_SIZE)
    }

    /// As [`Store::open`], with segments of about `segment_size` bytes.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(state: &Path, segment_size: u64) -> Result<Store, StoreError> {
        let disk = SystemDisk::new(state);
        files::make_dirs(&disk, state)?;
        let lock = lock(&disk, state)?;
        let layout = Layout { segment_size, distance: checkpoints::DISTANCE };
        let mut store = Store::open_on(Arc::new(disk), state, layout)?;
        store.lock = Some(lock);
        Ok(store)
    }

    /// Opens a state directory that no other process writes to.
    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        state: &Path,
        layout: Layout,
    ) -> Result<Store, StoreError> {
        files::make_dirs(disk.as_ref(), state)?;
        files::prepare(disk.as_ref(), state)?;
        let mut store = Store {
            disk,
            state: state.to_owned(),
            layout,
            writing: None,
            recovery: Recovery::default(),
            lock: None,
        };
        if let Some(number) = files::latest_epoch(store.disk.as_ref(), state)? {
            store.enter(number)?;
        }
        Ok(store)
    }

    /// Starts a new epoch, to which later records are added. Records that were appended to the
    /// previous one and not committed are discarded. The store keeps the running PCR of `banks`.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the store has no epoch to write to then.
    pub fn begin_epoch(&mut self, id: EpochId, banks: &[Bank]) -> Result<(), StoreError> {
        self.begin_epoch_with(id, banks, &[])
    }

    /// As [`Store::begin_epoch`]. For each bank of `padded`, in `banks` or not, the store also
    /// keeps the PCR as extended by kernels without the bank's hash. That costs one hash per
    /// record; the template data is not hashed again.
    ///
    /// # Errors
    /// As [`Store::begin_epoch`].
    pub fn begin_epoch_with(
        &mut self,
        id: EpochId,
        banks: &[Bank],
        padded: &[Bank],
    ) -> Result<(), StoreError> {
        self.writing = None;
        let disk = self.disk.as_ref();
        let in_order = |banks: &[Bank]| {
            let mut banks = banks.to_vec();
            banks.sort_unstable();
            banks.dedup();
            banks
        };
        let banks = in_order(banks);
        let mut padded = in_order(padded);
        // A SHA-1 digest has nothing to be padded with.
        padded.retain(|bank| *bank != Bank::Sha1);
        let epochs = files::epochs_dir(&self.state);
        let number = files::latest_epoch(disk, &self.state)?.unwrap_or(0).checked_add(1);
        let number = number
            .ok_or_else(|| std::io::ErrorKind::InvalidData.into())
            .at(&epochs, "number the next epoch")?;

        // Made under another name first: an epoch is there whole or not at all.
        let dir = files::epoch_dir(&self.state, number);
        let new = dir.with_extension("new");
        let created =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let epoch = Epoch { number, id, banks, padded, created };
        let json = epoch.encode().map_err(std::io::Error::from).at(&new, "describe the epoch")?;
        files::make_dirs(disk, &new)?;
        files::replace(disk, &new.join(COMMITS), &Commits::header(&epoch, &json))?;
        files::replace(disk, &new.join(EPOCH), &json)?;
        disk.rename(&new, &dir).at(&dir, "rename into place")?;
        self.enter(number)
    }

    /// The epoch to which records are added; `None` before the first.
    pub fn epoch(&self) -> Option<&Epoch> {
        self.writing.as_ref().map(|writing| &writing.epoch)
    }

    /// The number of records in the epoch, including uncommitted ones: the index of the next
    /// record.
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

    /// Violations among the epoch's records.
    pub fn violations(&self) -> u64 {
        self.writing.as_ref().map_or(0, |writing| writing.running.violations)
    }

    /// The PCR whose values are kept: the one that the epoch's first record names; `None`
    /// without records. See [`Reader::pcr`].
    pub fn pcr(&self) -> Option<u32> {
        self.writing.as_ref()?.running.pcr
    }

    /// The value of the PCR ([`Store::pcr`]) to which all records of the epoch replay with the
    /// bank's own digest; `None` for a bank that is not kept.
    pub fn running(&self, bank: Bank) -> Option<Digest> {
        self.running_as(bank, Extend::Own)
    }

    /// The value of the PCR to which all records of the epoch replay if the bank is extended in
    /// this way;
    /// `None` if that is not kept. In the sha1 bank all ways are the same.
    pub fn running_as(&self, bank: Bank, extend: Extend) -> Option<Digest> {
        let extend = if bank == Bank::Sha1 { Extend::Own } else { extend };
        let pcrs = &self.writing.as_ref()?.running.pcrs;
        let kept =
            pcrs.iter().find(|pcr| (pcr.value().bank(), pcr.extend_kind()) == (bank, extend));
        kept.map(|pcr| pcr.value())
    }

    /// What opening the store cut off.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Appends a record, in the sha1 form and native byte order; returns its index. The record is
    /// in memory until [`Store::commit`].
    ///
    /// # Errors
    /// [`StoreError::WrongForm`], [`StoreError::WrongDigest`], [`StoreError::NoEpoch`].
    pub fn append(&mut self, record: &Record<'_>) -> Result<u64, StoreError> {
        self.writing.as_mut().ok_or(StoreError::NoEpoch)?.append(record)
    }

    /// Makes all appended records durable: when this returns, they survive a power cut.
    ///
    /// # Errors
    /// [`StoreError::Io`]; no record that was appended since the last commit is stored then, and
    /// the index of the next record is the one after that commit.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        match &mut self.writing {
            Some(writing) => writing.commit(self.layout.segment_size),
            None => Ok(()),
        }
    }

    /// Discards the records that were appended since the last commit.
    pub fn rollback(&mut self) {
        if let Some(writing) = &mut self.writing {
            writing.rollback();
        }
    }

    /// The last `n` committed records (all if there are fewer), in order.
    ///
    /// # Errors
    /// [`StoreError`] if they cannot be read.
    pub fn tail(&self, n: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let Some(writing) = &self.writing else { return Ok(Vec::new()) };
        let from = writing.committed.records.saturating_sub(n as u64);
        let mut tail = Vec::new();
        let reader = Reader::open_epoch(Arc::clone(&self.disk), &writing.dir)?;
        let mut cursor = reader.records(from)?;
        for _ in from..writing.committed.records {
            tail.extend(cursor.next_record()?.map(|record| record.as_bytes().to_vec()));
        }
        Ok(tail)
    }

    /// Stores a remark about a place between records, durably.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Damaged`] if the file of remarks is full,
    /// [`StoreError::NoEpoch`].
    pub fn note(&mut self, note: &Note) -> Result<(), StoreError> {
        let writing = self.writing.as_ref().ok_or(StoreError::NoEpoch)?;
        notes::append(self.disk.as_ref(), &writing.dir, note)
    }

    /// Withdraws a remark that turned out to be wrong, durably: [`crate::notes`] omits it,
    /// [`crate::all_notes`] returns it with time and reason. `time` is in seconds since 1970.
    /// Withdrawing it again changes nothing.
    ///
    /// # Errors
    /// [`StoreError::NoSuchNote`] if there is no such remark; otherwise as [`Store::note`].
    pub fn withdraw(&mut self, note: &Note, time: u64, why: &str) -> Result<(), StoreError> {
        let writing = self.writing.as_ref().ok_or(StoreError::NoEpoch)?;
        let withdrawal = Withdrawal { time, text: why.to_owned() };
        notes::withdraw(self.disk.as_ref(), &writing.dir, note, &withdrawal)
    }

    fn enter(&mut self, number: u64) -> Result<(), StoreError> {
        // Its name may have been given, and not made durable, by one who was killed.
        files::sync_dir(self.disk.as_ref(), &files::epochs_dir(&self.state))?;
        let dir = files::epoch_dir(&self.state, number);
        let (writing, recovery) =
            Writing::open(Arc::clone(&self.disk), &dir, self.layout.distance, Keep::Doubtful)?;
        self.writing = Some(writing);
        self.recovery = recovery;
        Ok(())
    }
}

/// Locks a state directory against other writers while the file is open.
pub(crate) fn lock(disk: &SystemDisk, state: &Path) -> Result<File, StoreError> {
    let path = state.join(LOCK);
    let file = disk.open_file(&path, Mode::Create).at(&path, "open")?;
    let mut file = locked(file, FlockOperation::NonBlockingLockExclusive, state)?;
    file.set_len(0).at(&path, "empty")?;
    writeln!(file, "{}", std::process::id()).at(&path, "write")?;
    Ok(file)
}

/// The same for a reader, which writes nothing; without the file, no process ever wrote.
pub(crate) fn lock_to_read(disk: &SystemDisk, state: &Path) -> Result<Option<File>, StoreError> {
    let path = state.join(LOCK);
    match disk.open_file(&path, Mode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => {
            let file = file.at(&path, "open")?;
            locked(file, FlockOperation::NonBlockingLockShared, state).map(Some)
        }
    }
}

fn locked(file: File, how: FlockOperation, state: &Path) -> Result<File, StoreError> {
    match lock_soon(&file, how) {
        Ok(()) => Ok(file),
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
        Err(error) => Err(io::Error::from(error)).at(&state.join(LOCK), "lock"),
    }
}

/// Locks a file; retries for a moment, because a child that the last holder started has the file
/// open until it calls execve.
pub(crate) fn lock_soon(file: &File, how: FlockOperation) -> Result<(), rustix::io::Errno> {
    const TRIES: u32 = 200;
    const WAIT: Duration = Duration::from_millis(10);
    let mut tries = 0;
    loop {
        tries += 1;
        match rustix::fs::flock(file, how) {
            Err(rustix::io::Errno::WOULDBLOCK) if tries < TRIES => thread::sleep(WAIT),
            result => return result,
        }
    }
}
