//! The deletion designs proposed for the kernel, and the design of this crate, behind one trait.
//!
//! The three kernel designs share its data structures: a list of queue entries, each with a pointer
//! to a template entry, which points to the digests and to the field data; and a hash table of
//! 1,024 buckets. They differ in the work they do under the lock, which is the subject of the
//! study.

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use ima_list::{Duplicates, Part};
use ima_log::{Bank, Digest, RecordBuf};

use crate::{
    clock::{Clock, ticks},
    ours::Ours,
};

/// A list with one deletion design. Any number of threads append and read; one thread deletes.
pub trait Design: Send + Sync {
    /// Appends a record of template ima-ng.
    fn append(&self, record: &RecordBuf, key: &Digest) -> Result<(), Refused>;

    /// Request A; returns the number of records staged.
    fn stage(&self) -> Result<u64, Refused>;

    /// Request D; returns the number of records deleted.
    fn delete_staged(&self) -> Result<u64, Refused>;

    /// Request N or T:N, whichever the design has. `total` is T.
    fn delete_first(&self, total: u64, n: u64) -> Result<u64, Refused>;

    /// Reads all records of a part through a buffer of `page` bytes.
    fn read(&self, part: Part, page: usize, into: &mut dyn FnMut(&[u8]));

    /// The total time all requests so far held the list's lock, in nanoseconds.
    fn held(&self) -> f64;
}

/// The reason a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The record is or was in the list.
    Duplicate,
    /// Records are already staged.
    Pending,
    /// The list has no records to stage, or fewer than were to be deleted.
    TooFew,
    /// T is not the number of records deleted so far.
    WrongTotal,
    /// The design has no such request.
    Unknown,
}

/// The deletion designs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Version 4 of the staging patches: N stages all records, finds the N-th without the lock,
    /// cuts there and splices the rest back.
    V4,
    /// The trim patches: T:N finds the N-th record under the lock. No staging.
    Trim,
    /// Linux 7.2: N finds the N-th record in the current list without the lock, then cuts.
    Linux72,
    /// The list of this crate: the N-th record is found in a tree without the lock; a few pointers
    /// change under the lock.
    Ours,
    /// The list of this crate, with T:N.
    OursTrim,
}

impl Kind {
    /// All designs, oldest first.
    pub const ALL: [Kind; 5] = [Kind::V4, Kind::Trim, Kind::Linux72, Kind::Ours, Kind::OursTrim];

    /// The name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Kind::V4 => "v4: stage, cut, splice",
            Kind::Trim => "T:N: scan under the lock",
            Kind::Linux72 => "7.2: scan, then cut",
            Kind::Ours => "ours: segments",
            Kind::OursTrim => "ours, T:N",
        }
    }

    /// Whether the design has A and D.
    pub fn stages(self) -> bool {
        !self.trims()
    }

    /// Whether the design has T:N instead of A, D and N.
    pub fn trims(self) -> bool {
        matches!(self, Kind::Trim | Kind::OursTrim)
    }

    /// An empty list, with or without duplicate detection.
    pub fn new_list(self, detect: bool) -> Box<dyn Design> {
        match self {
            Kind::Ours | Kind::OursTrim => {
                let duplicates = if detect { Duplicates::Detect } else { Duplicates::Off };
                Box::new(Ours::new(self.trims(), duplicates))
            }
            kind => {
                let buckets = if detect { vec![Vec::new(); BUCKETS] } else { Vec::new() };
                let lists = Lists { buckets, ..Lists::default() };
                Box::new(Linked { kind, detect, lists: Mutex::new(lists), held: Held::default() })
            }
        }
    }
}

/// The time a lock was held, in clock ticks.
#[derive(Default)]
pub struct Held(AtomicU64);

impl Held {
    /// Runs `work` under the lock and adds the hold time, up to the release of the lock. The
    /// overhead of clock and lock is subtracted.
    pub fn locked<T, U>(&self, lock: &Mutex<T>, work: impl FnOnce(&mut T) -> U) -> U {
        let nothing = Clock::get().nothing;
        let mut guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let start = ticks();
        let done = work(&mut guard);
        drop(guard);
        let held = ticks() - start;
        self.0.fetch_add(held.saturating_sub(nothing), Ordering::Relaxed);
        done
    }

    /// The hold time in nanoseconds.
    pub fn nanoseconds(&self) -> f64 {
        Clock::get().nanoseconds(self.0.load(Ordering::Relaxed))
    }
}

struct Linked {
    kind: Kind,
    detect: bool,
    lists: Mutex<Lists>,
    held: Held,
}

#[derive(Default)]
struct Lists {
    current: Queue,
    staged: Queue,
    deleted: u64,
    buckets: Vec<Vec<Arc<QueueEntry>>>,
}

/// Queue entries from first to last. A deleted entry still points to its successor; this is
/// harmless because every walk counts its entries.
#[derive(Default)]
struct Queue {
    first: Option<Arc<QueueEntry>>,
    last: Option<Arc<QueueEntry>>,
    records: u64,
    bytes: u64,
}

struct QueueEntry {
    /// Set once; read without a lock.
    later: OnceLock<Arc<QueueEntry>>,
    entry: Box<TemplateEntry>,
}

struct TemplateEntry {
    pcr: u32,
    data_len: u32,
    /// SHA-1 and SHA-256, each in the size of the kernel's struct for the largest digest.
    digests: Box<[[u8; 66]; 2]>,
    /// d-ng and n-ng. Deletion frees only these if digests are kept.
    fields: Mutex<[Box<[u8]>; 2]>,
}

const BUCKETS: usize = 1024;
const TEMPLATE: &[u8] = b"ima-ng";

impl Linked {
    fn lock(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Lists) -> T) -> T {
        self.held.locked(&self.lists, work)
    }

    fn take_staged(lists: &mut Lists) -> Result<u64, Refused> {
        if lists.staged.records > 0 {
            return Err(Refused::Pending);
        }
        if lists.current.records == 0 {
            return Err(Refused::TooFew);
        }
        lists.staged = std::mem::take(&mut lists.current);
        Ok(lists.staged.records)
    }

    fn delete_v4(&self, n: u64) -> Result<Queue, Refused> {
        self.locked(Self::take_staged)?;
        let first = self.lock().staged.first.clone();
        let found = nth(&first, n);
        self.locked(|lists| {
            let removed = found.ok_or(Refused::TooFew).map(|cut| lists.staged.cut(n, cut));
            let added = std::mem::take(&mut lists.current);
            lists.current = std::mem::take(&mut lists.staged);
            lists.current.join(added);
            removed
        })
    }

    fn delete_trim(&self, total: u64, n: u64) -> Result<Queue, Refused> {
        self.locked(|lists| {
            if total != lists.deleted {
                return Err(Refused::WrongTotal);
            }
            let found = nth(&lists.current.first, n).ok_or(Refused::TooFew)?;
            Ok(lists.current.cut(n, found))
        })
    }

    fn delete_72(&self, n: u64) -> Result<Queue, Refused> {
        // The kernel needs no lock for this read, so its hold time is not counted.
        let first = self.lock().current.first.clone();
        let found = nth(&first, n).ok_or(Refused::TooFew)?;
        Ok(self.locked(|lists| lists.current.cut(n, found)))
    }

    /// Frees deleted records outside the lock: all of each, or all but the digests for duplicate
    /// detection.
    fn free(&self, removed: Queue) -> u64 {
        self.lock().deleted += removed.records;
        let mut next = removed.first.clone();
        for _ in 0..removed.records {
            let Some(entry) = next else { break };
            if self.detect {
                *fields(&entry) = Default::default();
            }
            next = entry.later.get().cloned();
        }
        removed.records
    }
}

/// The `n`-th entry, counted from 1, and the size of all entries up to it.
fn nth(first: &Option<Arc<QueueEntry>>, n: u64) -> Option<(Arc<QueueEntry>, u64)> {
    let mut entry = first.as_ref()?;
    let mut bytes = entry.size();
    for _ in 1..n {
        entry = entry.later.get()?;
        bytes += entry.size();
    }
    Some((Arc::clone(entry), bytes))
}

impl Queue {
    fn push(&mut self, entry: Arc<QueueEntry>) {
        self.records += 1;
        self.bytes += entry.size();
        match self.last.replace(Arc::clone(&entry)) {
            Some(last) => drop(last.later.set(entry)),
            None => self.first = Some(entry),
        }
    }

    /// Removes the first `n` entries; the last of them and their total size are given.
    fn cut(&mut self, n: u64, (last, bytes): (Arc<QueueEntry>, u64)) -> Queue {
        let rest = last.later.get().filter(|_| n < self.records).cloned();
        if rest.is_none() {
            return std::mem::take(self);
        }
        self.records -= n;
        self.bytes -= bytes;
        let first = std::mem::replace(&mut self.first, rest);
        Queue { first, last: Some(last), records: n, bytes }
    }

    /// Appends another queue.
    fn join(&mut self, other: Queue) {
        let (Some(last), Some(first)) = (&self.last, &other.first) else {
            if self.records == 0 {
                *self = other;
            }
            return;
        };
        drop(last.later.set(Arc::clone(first)));
        self.last = other.last;
        self.records += other.records;
        self.bytes += other.bytes;
    }
}

impl QueueEntry {
    fn new(record: &RecordBuf, key: &Digest) -> QueueEntry {
        let parsed = record.record();
        let data = parsed.template_data();
        let length = |at: usize| {
            data[at..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes) as usize)
        };
        let (digest, name) = (length(0), length(4 + length(0)));
        let fields = [&data[4..4 + digest], &data[8 + digest..8 + digest + name]];
        let mut digests = Box::new([[0; 66]; 2]);
        let sha1 = parsed.printed_digest();
        for (kept, digest) in digests.iter_mut().zip([&sha1, key]) {
            kept[2..2 + digest.as_bytes().len()].copy_from_slice(digest.as_bytes());
        }
        QueueEntry {
            later: OnceLock::new(),
            entry: Box::new(TemplateEntry {
                pcr: parsed.pcr(),
                data_len: data.len() as u32,
                digests,
                fields: Mutex::new(fields.map(Box::from)),
            }),
        }
    }

    /// The record's size in the sha1 form.
    fn size(&self) -> u64 {
        (32 + TEMPLATE.len()) as u64 + u64::from(self.entry.data_len)
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.entry.pcr.to_ne_bytes());
        out.extend_from_slice(&self.entry.digests[0][2..22]);
        out.extend_from_slice(&(TEMPLATE.len() as u32).to_ne_bytes());
        out.extend_from_slice(TEMPLATE);
        out.extend_from_slice(&self.entry.data_len.to_ne_bytes());
        for field in fields(self).iter() {
            out.extend_from_slice(&(field.len() as u32).to_ne_bytes());
            out.extend_from_slice(field);
        }
    }
}

fn fields(entry: &QueueEntry) -> MutexGuard<'_, [Box<[u8]>; 2]> {
    entry.entry.fields.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for QueueEntry {
    /// Drops successors iteratively: recursion would use stack in proportion to the list.
    fn drop(&mut self) {
        let mut next = self.later.take();
        while let Some(mut entry) = next.and_then(Arc::into_inner) {
            next = entry.later.take();
        }
    }
}

impl Design for Linked {
    fn append(&self, record: &RecordBuf, key: &Digest) -> Result<(), Refused> {
        let entry = Arc::new(QueueEntry::new(record, key));
        let violation = entry.entry.digests[0] == [0; 66];
        let mut lists = self.lock();
        if self.detect && !violation {
            let bytes = key.as_bytes();
            let bucket = usize::from(u16::from_le_bytes([bytes[0], bytes[1]])) % BUCKETS;
            let known = |other: &Arc<QueueEntry>| {
                other.entry.digests[1] == entry.entry.digests[1]
                    && other.entry.pcr == entry.entry.pcr
            };
            // The kernel adds at a bucket's head and searches from there.
            if lists.buckets[bucket].iter().rev().any(known) {
                return Err(Refused::Duplicate);
            }
            lists.buckets[bucket].push(Arc::clone(&entry));
        }
        lists.current.push(entry);
        Ok(())
    }

    fn stage(&self) -> Result<u64, Refused> {
        if !self.kind.stages() {
            return Err(Refused::Unknown);
        }
        self.locked(Self::take_staged)
    }

    fn delete_staged(&self) -> Result<u64, Refused> {
        if !self.kind.stages() {
            return Err(Refused::Unknown);
        }
        let removed = self.locked(|lists| std::mem::take(&mut lists.staged));
        if removed.records == 0 {
            return Err(Refused::TooFew);
        }
        Ok(self.free(removed))
    }

    fn delete_first(&self, total: u64, n: u64) -> Result<u64, Refused> {
        let removed = match self.kind {
            Kind::V4 => self.delete_v4(n),
            Kind::Trim => self.delete_trim(total, n),
            Kind::Linux72 | Kind::Ours | Kind::OursTrim => self.delete_72(n),
        }?;
        Ok(self.free(removed))
    }

    /// Reads as the kernel's files do: each page begins with a walk from the first record.
    fn read(&self, part: Part, page: usize, into: &mut dyn FnMut(&[u8])) {
        let mut buffer = Vec::with_capacity(page);
        let mut index = 0;
        loop {
            let first = match part {
                Part::Current => self.lock().current.first.clone(),
                Part::Staged => self.lock().staged.first.clone(),
            };
            let mut next = first.as_ref();
            for _ in 0..index {
                next = next.and_then(|entry| entry.later.get());
            }
            buffer.clear();
            while let Some(entry) = next {
                if !buffer.is_empty() && buffer.len() + entry.size() as usize > page {
                    break;
                }
                entry.write(&mut buffer);
                index += 1;
                next = entry.later.get();
            }
            if buffer.is_empty() {
                return;
            }
            into(&buffer);
        }
    }

    fn held(&self) -> f64 {
        self.held.nanoseconds()
    }
}

/// A record of 138 bytes on average, and its digest.
pub fn record(i: u64) -> (RecordBuf, Digest) {
    let file = Bank::Sha256.hash(&[&i.to_le_bytes()]);
    let name = format!("/usr/lib/x86_64-linux-gnu/package-{}/file-{i}.so", i % 100);
    let record = RecordBuf::ima_ng(10, &file, name.as_bytes());
    let key = record.record().template_digest(Bank::Sha256);
    (record, key)
}
