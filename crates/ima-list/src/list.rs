//! The list without a lock: append, stage, delete, trim, suspend, snapshot.

use alloc::boxed::Box;
use core::mem;

use ima_log::{Digest, RecordBuf};

use crate::{
    AppendError, Chunk, DeleteError, Duplicates, Options, Rules, StageError, TrimError,
    chain::{Chain, Cut, Outline, Spare},
    digest_set::DigestSet,
};

/// A measurement list, for one thread at a time.
///
/// Only [`List::dump`] and [`List::restore`] take time proportional to the list. Dropping
/// [`Removed`] frees the memory: drop it outside any lock.
///
/// A list behind a lock can prepare requests outside the lock: with [`List::outline`] and [`Spare`]
/// a request only changes a few pointers. [`SharedList`](crate::SharedList) does so.
// The fields that requests read share the cache line that every append touches, so a request under
// the lock has no cache miss. The common paths of requests are inlined for the same reason.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct List {
    /// Boxed, so that a request only changes pointers.
    current: Box<Chain>,
    staged: Option<Box<Chain>>,
    total: u64,
    total_bytes: u64,
    trimmed: u64,
    options: Options,
    suspended: bool,
    /// The staged records were dumped for the next kernel.
    staged_dumped: bool,
    violations: u64,
    digests: DigestSet,
}

/// A part of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The records added since the list was last staged and not deleted.
    Current,
    /// The records that were staged and not yet deleted. No record is ever added to this part.
    Staged,
}

/// Numbers and sizes of present and past records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records in the current part.
    pub current: u64,
    /// Records in the staged part.
    pub staged: u64,
    /// Records ever added or restored.
    pub total: u64,
    /// Violations ever added, without restored ones.
    pub violations: u64,
    /// Bytes of the records in both parts, in the sha1 form.
    pub held_bytes: u64,
    /// Bytes of the deleted records, in the sha1 form.
    pub freed_bytes: u64,
}

/// Records removed from a list. Dropping this frees their memory.
#[derive(Debug)]
#[must_use = "dropping this frees memory: drop it when the list is unlocked"]
pub struct Removed(Memory);

#[derive(Debug)]
enum Memory {
    /// The staged records, and the digests if they are flushed.
    Staged {
        records: Option<Box<Chain>>,
        _digests: Option<DigestSet>,
    },
    First(Cut),
}

impl List {
    /// An empty list.
    pub fn new(options: Options) -> List {
        List {
            current: Box::default(),
            staged: None,
            digests: DigestSet::default(),
            options,
            suspended: false,
            staged_dumped: false,
            trimmed: 0,
            total: 0,
            total_bytes: 0,
            violations: 0,
        }
    }

    /// Appends a record. `key` is its template digest for duplicate detection, in the IMA default
    /// hash: SHA-256 or stronger, so that collisions cannot suppress measurements. A violation has
    /// no digest of its own and is always added.
    ///
    /// # Errors
    /// [`AppendError`], in the order of its variants.
    pub fn append(&mut self, record: &RecordBuf, key: &Digest) -> Result<(), AppendError> {
        if self.suspended {
            return Err(AppendError::Suspended);
        }
        let (pcr, violation) = head(record);
        if violation {
            self.violations += 1;
        } else if self.options.duplicates != Duplicates::Off && !self.digests.insert(key, pcr) {
            return Err(AppendError::Duplicate);
        }
        self.push(record.as_bytes());
        Ok(())
    }

    /// Stages all current records (`A`) and returns their number.
    ///
    /// # Errors
    /// [`StageError`], in the order of its variants. The list is unchanged.
    pub fn stage(&mut self) -> Result<u64, StageError> {
        self.stage_with(Spare::default())
    }

    /// As [`List::stage`], with memory allocated before the list was locked.
    ///
    /// # Errors
    /// As [`List::stage`].
    #[inline]
    pub fn stage_with(&mut self, spare: Spare) -> Result<u64, StageError> {
        if self.staged.is_some() {
            return Err(StageError::Pending);
        }
        let records = self.current.records();
        if records == 0 {
            return Err(StageError::Empty);
        }
        if self.refuses() {
            return Err(StageError::Suspended);
        }
        self.staged = Some(mem::replace(&mut self.current, spare.0));
        Ok(records)
    }

    /// Deletes the staged records (`D`).
    ///
    /// # Errors
    /// [`DeleteError`], in the order of its variants. The list is unchanged.
    #[inline]
    pub fn delete_staged(&mut self) -> Result<Removed, DeleteError> {
        let refused = match self.options.rules {
            Rules::Linux72 => self.suspended,
            Rules::V4 => self.staged_dumped,
        };
        if self.staged.is_none() || refused {
            return Err(self.staged_refusal());
        }
        // Does not read the staged chain: its memory is probably in no cache.
        let records = self.staged.take();
        let digests = match self.options.duplicates {
            Duplicates::Flush => Some(self.flush_digests()),
            Duplicates::Detect | Duplicates::Off => None,
        };
        Ok(Removed(Memory::Staged { records, _digests: digests }))
    }

    /// Deletes the first `n` current records (`N`). [`Rules`] decides whether this is permitted
    /// while (older) records are staged.
    ///
    /// # Errors
    /// [`DeleteError`], in the order of its variants. The list is unchanged.
    pub fn delete_first(&mut self, n: u64) -> Result<Removed, DeleteError> {
        let mut cut = self.outline().cut(n);
        self.delete_first_with(&mut cut)?;
        Ok(Removed::first(cut))
    }

    /// As [`List::delete_first`], with a deletion prepared before the list was locked. `cut` then
    /// owns the deleted records: drop it when the list is unlocked.
    ///
    /// # Errors
    /// As [`List::delete_first`].
    #[inline]
    pub fn delete_first_with(&mut self, cut: &mut Cut) -> Result<(), DeleteError> {
        // The patches stage and splice back in two steps, and return ESTALE if the list is dumped
        // in between. Here both are one step.
        if self.options.rules == Rules::V4 && self.staged.is_some() {
            return Err(DeleteError::Pending);
        }
        let (asked, found) = (cut.records(), self.current.records());
        if found < asked {
            return Err(DeleteError::TooMany { asked, found });
        }
        if self.refuses() {
            return Err(DeleteError::Suspended);
        }
        self.current.cut(cut);
        Ok(())
    }

    /// Deletes the first `n` current records if `expected_total` records were trimmed before
    /// (`T:N`). If two clients read and trim the same records, the second trim is refused instead
    /// of deleting records that its client did not read.
    ///
    /// # Errors
    /// [`TrimError`], in the order of its variants. The list is unchanged. Trimming 0 records is
    /// not an error if the total is right.
    pub fn trim(&mut self, expected_total: u64, n: u64) -> Result<Removed, TrimError> {
        let mut cut = self.outline().cut(n);
        self.trim_with(expected_total, &mut cut)?;
        Ok(Removed::first(cut))
    }

    /// As [`List::trim`], with a deletion prepared before the list was locked. `cut` then owns the
    /// deleted records: drop it when the list is unlocked.
    ///
    /// # Errors
    /// As [`List::trim`].
    #[inline]
    pub fn trim_with(&mut self, expected: u64, cut: &mut Cut) -> Result<(), TrimError> {
        if self.options.duplicates == Duplicates::Flush {
            return Err(TrimError::Flush);
        }
        if expected != self.trimmed {
            return Err(TrimError::WrongTotal { expected, found: self.trimmed });
        }
        let (asked, found) = (cut.records(), self.current.records());
        if found < asked {
            return Err(TrimError::TooMany { asked, found });
        }
        if self.suspended && asked > 0 {
            return Err(TrimError::Suspended);
        }
        self.trimmed += asked;
        self.current.cut(cut);
        Ok(())
    }

    /// The number of records trimmed so far (`T`). Not carried over a kexec.
    pub fn trimmed(&self) -> u64 {
        self.trimmed
    }

    /// The state of the current records that prepares a deletion.
    #[inline]
    pub fn outline(&self) -> Outline {
        self.current.outline()
    }

    /// Suspends the list, as a kernel that is going down does: no more records are added. [`Rules`]
    /// decides which other requests are refused.
    pub fn suspend(&mut self) {
        self.suspended = true;
    }

    /// A snapshot of a part's records from index `from` on: as many whole records as fit in
    /// `max_bytes`, but at least one if one exists. Copies at most `max_bytes` (or that one
    /// record).
    pub fn snapshot(&self, part: Part, from: u64, max_bytes: usize) -> Chunk {
        self.part(part).map(|part| part.snapshot(from, max_bytes)).unwrap_or_default()
    }

    /// The number of records in a part.
    pub fn count(&self, part: Part) -> u64 {
        self.part(part).map_or(0, Chain::records)
    }

    /// The size of a part's records in bytes, in the sha1 form.
    pub fn size(&self, part: Part) -> u64 {
        self.part(part).map_or(0, Chain::size)
    }

    /// Numbers and sizes of present and past records.
    pub fn counts(&self) -> Counts {
        let held_bytes = self.size(Part::Current) + self.size(Part::Staged);
        Counts {
            current: self.count(Part::Current),
            staged: self.count(Part::Staged),
            total: self.total,
            violations: self.violations,
            held_bytes,
            freed_bytes: self.total_bytes - held_bytes,
        }
    }

    /// A snapshot of both parts, in record order, for the next kernel.
    pub(crate) fn carried(&mut self) -> [Chunk; 2] {
        self.staged_dumped = self.staged.is_some();
        [Part::Staged, Part::Current].map(|part| self.snapshot(part, 0, usize::MAX))
    }

    /// Appends a record without any check.
    pub(crate) fn push(&mut self, record: &[u8]) {
        self.current.push(record);
        self.total += 1;
        self.total_bytes += record.len() as u64;
    }

    /// The reason that the staged records cannot be deleted.
    #[cold]
    fn staged_refusal(&self) -> DeleteError {
        match self.options.rules {
            _ if self.staged.is_none() => DeleteError::Empty,
            Rules::Linux72 => DeleteError::Suspended,
            Rules::V4 => DeleteError::Dumped,
        }
    }

    #[cold]
    fn flush_digests(&mut self) -> DigestSet {
        mem::take(&mut self.digests)
    }

    /// Whether staging and deleting are refused because the list is suspended.
    #[inline]
    fn refuses(&self) -> bool {
        self.suspended && self.options.rules == Rules::Linux72
    }

    fn part(&self, part: Part) -> Option<&Chain> {
        match part {
            Part::Current => Some(&self.current),
            Part::Staged => self.staged.as_deref(),
        }
    }
}

impl Removed {
    pub(crate) fn first(cut: Cut) -> Removed {
        Removed(Memory::First(cut))
    }

    /// The number of records.
    pub fn records(&self) -> u64 {
        match &self.0 {
            Memory::Staged { records, .. } => records.as_deref().map_or(0, Chain::records),
            Memory::First(cut) => cut.records(),
        }
    }

    /// Their size in bytes, in the sha1 form.
    pub fn bytes(&self) -> u64 {
        match &self.0 {
            Memory::Staged { records, .. } => records.as_deref().map_or(0, Chain::size),
            Memory::First(cut) => cut.bytes(),
        }
    }
}

/// A record's PCR, and whether it is a violation. Both are at the record's beginning, so it need
/// not be parsed while the list is locked.
fn head(record: &RecordBuf) -> (u32, bool) {
    let bytes = record.as_bytes();
    let format = record.format();
    let pcr = bytes.first_chunk().map_or(0, |pcr| format.endian.u32(*pcr));
    let mut digest = bytes.iter().skip(4).take(format.bank.size());
    (pcr, digest.all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ima_log::Bank;

    fn add(list: &mut List, name: &[u8]) -> Result<(), AppendError> {
        let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[name]), name);
        list.append(&record, &record.record().template_digest(Bank::Sha256))
    }

    fn list_of(records: u8) -> List {
        let mut list = List::new(Options::default());
        for i in 0..records {
            add(&mut list, &[b'a' + i]).unwrap();
        }
        list
    }

    #[test]
    fn missing_records_are_reported_before_suspension() {
        let mut list = List::new(Options::default());
        list.suspend();
        assert_eq!(list.stage(), Err(StageError::Empty));
        assert_eq!(list.delete_staged().unwrap_err(), DeleteError::Empty);
        assert_eq!(list.delete_first(1).unwrap_err(), DeleteError::TooMany { asked: 1, found: 0 });
    }

    #[test]
    fn suspended_list_refuses_all_requests_and_keeps_its_records() {
        let mut list = list_of(3);
        list.suspend();
        assert_eq!(list.stage(), Err(StageError::Suspended));
        assert_eq!(list.delete_first(3).unwrap_err(), DeleteError::Suspended);
        assert_eq!(add(&mut list, b"new"), Err(AppendError::Suspended));
        assert_eq!(add(&mut list, b"a"), Err(AppendError::Suspended));
        assert_eq!(list.count(Part::Current), 3);

        let mut list = list_of(3);
        list.stage().unwrap();
        list.suspend();
        assert_eq!(list.stage(), Err(StageError::Pending));
        assert_eq!(list.delete_staged().unwrap_err(), DeleteError::Suspended);
        assert_eq!(list.count(Part::Staged), 3);
    }

    #[test]
    fn staging_is_refused_until_staged_records_are_deleted() {
        let mut list = list_of(3);
        assert_eq!(list.stage(), Ok(3));
        assert_eq!(list.stage(), Err(StageError::Pending));
        add(&mut list, b"new").unwrap();
        assert_eq!(list.stage(), Err(StageError::Pending));
        assert_eq!(list.delete_staged().unwrap().records(), 3);
        assert_eq!(list.stage(), Ok(1));
    }

    #[test]
    fn violations_are_never_duplicates() {
        let mut list = List::new(Options::default());
        let violation = RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/v");
        for _ in 0..3 {
            list.append(&violation, &Digest::zero(Bank::Sha256)).unwrap();
        }
        let counts = list.counts();
        assert_eq!((counts.current, counts.total, counts.violations), (3, 3, 3));
    }

    #[test]
    fn equal_digests_of_different_pcrs_are_not_duplicates() {
        let mut list = List::new(Options::default());
        for pcr in [10, 11] {
            let record = RecordBuf::ima_ng(pcr, &Bank::Sha256.hash(&[]), b"a");
            let key = record.record().template_digest(Bank::Sha256);
            assert_eq!(list.append(&record, &key), Ok(()));
            assert_eq!(list.append(&record, &key), Err(AppendError::Duplicate));
        }
    }

    #[test]
    fn record_longer_than_a_segment_gets_its_own_segment() {
        let mut list = List::new(Options::default());
        let long = alloc::vec![b'x'; 3 << 20];
        for name in [b"a", &long[..], b"b"] {
            add(&mut list, name).unwrap();
        }
        let chunk = list.snapshot(Part::Current, 1, 10);
        assert_eq!(chunk.records(), 1);
        assert!(chunk.slices().next().unwrap().len() > long.len());
        assert_eq!(list.snapshot(Part::Current, 0, usize::MAX).records(), 3);
        assert_eq!(list.delete_first(2).unwrap().records(), 2);
        assert_eq!(list.snapshot(Part::Current, 0, 0).records(), 1);
        assert_eq!(list.snapshot(Part::Current, 1, 0).records(), 0);
    }

    #[test]
    fn records_appended_after_deleting_all_are_found() {
        let mut list = list_of(3);
        assert_eq!(list.delete_first(3).unwrap().records(), 3);
        add(&mut list, b"new").unwrap();
        let chunk = list.snapshot(Part::Current, 0, 0);
        assert_eq!(chunk.records(), 1);
        assert_eq!(chunk.slices().map(<[u8]>::len).sum::<usize>() as u64, list.size(Part::Current));
    }

    #[test]
    fn chunk_contains_every_record_that_fits() {
        let mut list = list_of(20);
        let one = list.size(Part::Current) as usize / 20;
        let long = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), &[b'x'; 1 << 20]);
        let key = long.record().template_digest(Bank::Sha256);
        for sealed in [false, true] {
            for records in 1..20 {
                let taken = |max_bytes| list.snapshot(Part::Current, 0, max_bytes).records();
                assert_eq!(taken(one * records), records as u64, "{sealed}");
                assert_eq!(taken(one * (records + 1) - 1), records as u64, "{sealed}");
            }
            // Exceeds the open segment's capacity, so that segment is sealed.
            list.append(&long, &key).ok();
        }
    }
}
