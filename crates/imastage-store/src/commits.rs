//! The file `commits`: the number of stored records after each commit. Entries have one size, so
//! any is found by its offset, and the last ones suffice to resume.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use ima_log::{Bank, Digest, Extend, IMA_PCR, Record, Replay};

use crate::{
    Epoch, StoreError,
    disk::{Content, Disk, Mode},
    files::{self, At, COMMITS, EPOCH},
};

/// The number and size of stored records, and the PCR values to which they replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) records: u64,
    pub(crate) violations: u64,
    pub(crate) bytes: u64,
    /// The segment's name: the index of its first record.
    pub(crate) segment: u64,
    pub(crate) segment_len: u64,
    /// CRC-32 of the record bytes since the commit before.
    pub(crate) crc: u32,
    /// The PCR whose values follow: that of the list's first record. `None` before it.
    pub(crate) pcr: Option<u32>,
    /// Its values, in the order of [`Epoch::reset`].
    pub(crate) pcrs: Vec<Replay>,
}

/// The file, open.
#[derive(Clone, Debug)]
pub(crate) struct Commits {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn Content>,
    /// The PCR values in an entry, in order.
    reset: Vec<Replay>,
    /// The number of valid entries.
    pub(crate) entries: u64,
    /// The number of complete, invalid entries after them: one can result from a crash, more are
    /// damage.
    pub(crate) torn: u64,
}

const MAGIC: &[u8; 8] = b"IMSTGC1\n";
pub(crate) const HEADER: u64 = 20;
/// An entry without digests and its own CRC.
const FIXED: usize = 44;
/// The maximum size of `epoch.json`, in bytes.
pub(crate) const MOST_JSON: usize = 64 << 10;
/// The maximum size of an epoch in bytes, so that sums of sizes in files cannot overflow.
const MOST_BYTES: u64 = 1 << 56;
/// The position of the PCR in the first field: an epoch has less than 2^56 records.
const PCR_SHIFT: u32 = 56;
/// PCRs of a TPM (TCG PC Client Platform TPM Profile).
const PCRS: u32 = 24;
/// The maximum number of bytes in which the last complete entry is searched for.
const MOST_GARBAGE: u64 = 4 << 30;

impl Commit {
    /// Before the first record.
    pub(crate) fn none(reset: &[Replay]) -> Commit {
        Commit {
            records: 0,
            violations: 0,
            bytes: 0,
            segment: 0,
            segment_len: 0,
            crc: 0,
            pcr: None,
            pcrs: reset.to_vec(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut entry = Vec::with_capacity(entry_len(&self.pcrs) as usize);
        let pcr = match self.pcr {
            None | Some(IMA_PCR) => 0,
            Some(pcr) => u64::from(pcr) + 1,
        };
        let records = self.records | pcr << PCR_SHIFT;
        for field in [records, self.violations, self.bytes, self.segment, self.segment_len] {
            entry.extend_from_slice(&field.to_le_bytes());
        }
        entry.extend_from_slice(&self.crc.to_le_bytes());
        for pcr in &self.pcrs {
            entry.extend_from_slice(pcr.value().as_bytes());
        }
        entry.extend_from_slice(&crc32fast::hash(&entry).to_le_bytes());
        entry
    }

    /// `None` if it is damaged. `entry` has the size that these values give it.
    pub(crate) fn decode(entry: &[u8], reset: &[Replay]) -> Option<Commit> {
        let (body, crc) = entry.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let (fields, mut rest) = body.split_at_checked(FIXED)?;
        let field =
            |at: usize| fields.get(at * 8..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let mut pcrs = Vec::with_capacity(reset.len());
        for pcr in reset {
            let bank = pcr.value().bank();
            let (value, behind) = rest.split_at_checked(bank.size())?;
            let value = Digest::from_slice(bank, value).ok()?;
            pcrs.push(Replay::resume(value, pcr.extend_kind()));
            rest = behind;
        }
        let first = field(0)?;
        let pcr = match u32::try_from(first >> PCR_SHIFT).ok()? {
            0 => IMA_PCR,
            // That one is written in one way only.
            pcr if pcr == IMA_PCR + 1 || pcr > PCRS => return None,
            pcr => pcr - 1,
        };
        let commit = Commit {
            records: first & ((1 << PCR_SHIFT) - 1),
            pcr: Some(pcr),
            violations: field(1)?,
            bytes: field(2)?,
            segment: field(3)?,
            segment_len: field(4)?,
            crc: u32::from_le_bytes(*fields.get(40..)?.first_chunk()?),
            pcrs,
        };
        commit.can_be().then_some(commit)
    }

    /// The PCR that the values are of, if `record` is the next one. Whatever the first record names
    /// decides: a kernel measures into the PCR it was built for.
    pub(crate) fn pcr_with(&self, record: &Record<'_>) -> u32 {
        // A number that no TPM has tells nothing.
        let named = if record.pcr() < PCRS { record.pcr() } else { IMA_PCR };
        self.pcr.unwrap_or(named)
    }

    fn can_be(&self) -> bool {
        self.violations <= self.records
            && self.records <= self.bytes
            && self.bytes < MOST_BYTES
            && self.segment < self.records
            && (1..=self.bytes).contains(&self.segment_len)
    }
}

impl Commits {
    /// The header of a new file, for an epoch whose `epoch.json` is given.
    pub(crate) fn header(epoch: &Epoch, json: &[u8]) -> Vec<u8> {
        let own = epoch.banks.iter().map(|bank| 1u32 << bank_bit(*bank));
        let padded = epoch.padded.iter().map(|bank| 1u32 << (8 + bank_bit(*bank)));
        header(MAGIC, own.chain(padded).sum(), json)
    }

    /// The header as it should be, if `epoch.json` and the first entry prove it.
    pub(crate) fn header_again(disk: &dyn Disk, dir: &Path) -> Result<Option<Vec<u8>>, StoreError> {
        let json = files::read_small(disk, &dir.join(EPOCH), MOST_JSON)?.unwrap_or_default();
        let Ok(epoch) = Epoch::decode(&json) else { return Ok(None) };
        let path = dir.join(COMMITS);
        let file = disk.open(&path, Mode::Read).at(&path, "open")?;
        let commits = Commits { path, file, reset: epoch.reset(), entries: 0, torn: 0 };
        let first = commits.read(0)?;
        Ok(first.map(|_| Commits::header(&epoch, &json)))
    }

    /// The epoch in a directory and its commits. Constant time: the entry at the end may be torn,
    /// all others are taken to be whole ([`crate::check`] reads them all).
    ///
    /// Whatever else follows the last whole entry is skipped if no record is: then the
    /// segments prove that nothing else was stored. If there are any it is damage.
    pub(crate) fn open(
        disk: &dyn Disk,
        dir: &Path,
        mode: Mode,
    ) -> Result<(Epoch, Commits), StoreError> {
        let (epoch, commits) = Commits::open_damaged(disk, dir, mode)?;
        if commits.torn > 1 && commits.records_behind(disk, dir)? {
            let at = commits.entries;
            let why = format!(
                "commit {at} is damaged, as is all behind it ({} entries), and records stand behind the \
                 last whole commit. Restore the file from a backup; `imastage store repair` goes \
                 back to the last whole commit and keeps copies of what is behind it",
                commits.torn
            );
            let offset = commits.offset(at);
            return Err(StoreError::Damaged { path: commits.path, offset, why });
        }
        Ok((epoch, commits))
    }

    /// As [`Commits::open`], whatever follows the last whole entry.
    pub(crate) fn open_damaged(
        disk: &dyn Disk,
        dir: &Path,
        mode: Mode,
    ) -> Result<(Epoch, Commits), StoreError> {
        let path = dir.join(COMMITS);
        let file = match disk.open(&path, mode) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let why = "the file is missing, and with it how far the records go".to_owned();
                return Err(StoreError::Damaged { path, offset: 0, why });
            }
            file => file.at(&path, "open")?,
        };
        let size = file.size().at(&path, "look at")?;
        let mut header = [0; HEADER as usize];
        let read = file.read_up_to(&mut header, 0).at(&path, "read")?;
        let (body, crc) = header.split_at(HEADER as usize - 4);
        if read < header.len()
            || !body.starts_with(MAGIC)
            || crc32fast::hash(body).to_le_bytes() != crc
        {
            let why = "the header is damaged".to_owned();
            return Err(StoreError::Damaged { path, offset: 0, why });
        }

        let epoch_path = dir.join(EPOCH);
        let damaged =
            |why: String| StoreError::Damaged { path: epoch_path.clone(), offset: 0, why };
        let json = files::read_small(disk, &epoch_path, MOST_JSON)?
            .ok_or_else(|| damaged("the file is missing".to_owned()))?;
        let epoch = Epoch::decode(&json).map_err(damaged)?;
        if header[..] != Commits::header(&epoch, &json) {
            return Err(damaged(format!("it is not the file that {} began with", path.display())));
        }
        // One that is being made has another name.
        if let Some(number) = dir.file_name().and_then(files::epoch_number)
            && number != epoch.number
        {
            let why = format!(
                "it is of epoch {}, expected {number} as its directory's name: the directory was \
                 renamed or copied here",
                epoch.number
            );
            return Err(damaged(why));
        }

        let reset = epoch.reset();
        let mut commits = Commits { path, file, reset, entries: 0, torn: 0 };
        let all = size.saturating_sub(HEADER) / commits.entry_len();
        let most = (MOST_GARBAGE / commits.entry_len()).min(all);
        commits.entries = commits.end_of_whole(all - most, all)?;
        commits.torn = all - commits.entries;
        if commits.entries == all - most && all > most {
            return Err(commits.damaged(all - most));
        }
        Ok((epoch, commits))
    }

    /// The place after the last whole entry of those from `from` to `to`; `from` if none is whole.
    fn end_of_whole(&self, from: u64, to: u64) -> Result<u64, StoreError> {
        let len = self.entry_len();
        let mut end = to;
        // The last one is whole, or one before it.
        let mut count = 2;
        while end > from {
            let begin = end.saturating_sub(count).max(from);
            let mut entries = vec![0; ((end - begin) * len) as usize];
            let read = self.file.read_up_to(&mut entries, self.offset(begin));
            entries.truncate(read.at(&self.path, "read")?);
            let whole = entries
                .chunks_exact(len as usize)
                .rposition(|entry| Commit::decode(entry, &self.reset).is_some());
            if let Some(at) = whole {
                return Ok(begin + at as u64 + 1);
            }
            (end, count) = (begin, (1 << 20) / len);
        }
        Ok(from)
    }

    /// Whether segments hold more than the last whole commit says.
    fn records_behind(&self, disk: &dyn Disk, dir: &Path) -> Result<bool, StoreError> {
        let last = self.last()?;
        for first in files::segments(disk, dir)? {
            if last.records > 0 && first < last.segment {
                continue;
            }
            let (path, file) = files::open_segment(disk, dir, first);
            let size = file.and_then(|file| file.size()).at(&path, "look at")?;
            let is_last = last.records > 0 && first == last.segment;
            if size > if is_last { last.segment_len } else { 0 } {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The entry at a place; `None` if it is damaged.
    pub(crate) fn read(&self, at: u64) -> Result<Option<Commit>, StoreError> {
        let mut entry = vec![0; self.entry_len() as usize];
        let read = self.file.read_up_to(&mut entry, self.offset(at)).at(&self.path, "read")?;
        Ok(entry.get(..read).and_then(|entry| Commit::decode(entry, &self.reset)))
    }

    /// The last commit for which `holds` is true, which it is up to some commit and no further; the
    /// state before the first if there is none. Logarithmic in the number of commits.
    pub(crate) fn last_that(&self, holds: impl Fn(&Commit) -> bool) -> Result<Commit, StoreError> {
        Ok(self.around(holds)?.0)
    }

    /// That commit, and the one that follows if there is one.
    pub(crate) fn around(
        &self,
        holds: impl Fn(&Commit) -> bool,
    ) -> Result<(Commit, Option<Commit>), StoreError> {
        let (mut low, mut high) = (0, self.entries);
        let mut found = (Commit::none(&self.reset), None);
        while low < high {
            let middle = low + (high - low) / 2;
            let commit = self.read(middle)?.ok_or_else(|| self.damaged(middle))?;
            if holds(&commit) {
                found.0 = commit;
                low = middle + 1;
            } else {
                found.1 = Some(commit);
                high = middle;
            }
        }
        Ok(found)
    }

    /// The last commit.
    pub(crate) fn last(&self) -> Result<Commit, StoreError> {
        match self.entries.checked_sub(1) {
            Some(last) => self.read(last)?.ok_or_else(|| self.damaged(last)),
            None => Ok(Commit::none(&self.reset)),
        }
    }

    pub(crate) fn entry_len(&self) -> u64 {
        entry_len(&self.reset)
    }

    pub(crate) fn offset(&self, at: u64) -> u64 {
        HEADER + at * self.entry_len()
    }

    fn damaged(&self, at: u64) -> StoreError {
        StoreError::Damaged {
            path: self.path.clone(),
            offset: self.offset(at),
            why: format!("commit {at} is damaged"),
        }
    }
}

/// The first bytes of a file about an epoch whose `epoch.json` is given.
pub(crate) fn header(magic: &[u8; 8], what: u32, json: &[u8]) -> Vec<u8> {
    let mut header = magic.to_vec();
    header.extend_from_slice(&what.to_le_bytes());
    header.extend_from_slice(&crc32fast::hash(json).to_le_bytes());
    header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
    header
}

/// The size of an entry with these values, in bytes.
pub(crate) fn entry_len(pcrs: &[Replay]) -> u64 {
    let digests: usize = pcrs.iter().map(|pcr| pcr.value().bank().size()).sum();
    (FIXED + digests + 4) as u64
}

fn bank_bit(bank: Bank) -> u32 {
    match bank {
        Bank::Sha1 => 0,
        Bank::Sha256 => 1,
        Bank::Sha384 => 2,
        Bank::Sha512 => 3,
        Bank::Sm3 => 4,
    }
}

/// Extends the values of a PCR as the kernel did, given the record's SHA-1 template digest.
pub(crate) fn extend(pcrs: &mut [Replay], pcr: u32, record: &Record<'_>, sha1: &Digest) {
    if record.pcr() != pcr {
        return;
    }
    for pcr in pcrs {
        let bank = pcr.value().bank();
        // What was hashed once is not hashed again.
        let value = match pcr.extend_kind() {
            _ if record.is_violation() => None,
            Extend::Own if bank == Bank::Sha1 => Some(*sha1),
            Extend::Own => None,
            Extend::Sha1Padded | Extend::Sha1PaddedViolations => Some(sha1.padded_to(bank)),
        };
        match value {
            Some(value) => {
                *pcr = Replay::resume(pcr.value().extended_with(&value), pcr.extend_kind());
            }
            None => pcr.extend(record),
        }
    }
}
