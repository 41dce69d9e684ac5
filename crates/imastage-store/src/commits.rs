//! The file `commits`: how far the records go. Entries are of one size, so any is found by
//! arithmetic, and the last ones tell all that is needed to go on.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ima_log::{Bank, Digest, Replay};

use crate::{
    Epoch, StoreError,
    disk::{Content, Disk, Mode},
    files::{self, At, COMMITS, EPOCH},
};

/// How far the records go, and what they replay to.
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
    /// PCR 10, as each is kept ([`Epoch::reset`] says which).
    pub(crate) pcrs: Vec<Replay>,
}

/// The file, open.
#[derive(Clone, Debug)]
pub(crate) struct Commits {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn Content>,
    /// Which PCR values entries hold, in which order.
    reset: Vec<Replay>,
    /// How many entries count.
    pub(crate) entries: u64,
    /// The entry behind them, if one has its full size but is not valid.
    pub(crate) torn: Option<u64>,
}

const MAGIC: &[u8; 8] = b"IMSTGC1\n";
pub(crate) const HEADER: u64 = 20;
/// An entry without digests and its own CRC.
const FIXED: usize = 44;
/// The largest `epoch.json` that is read, in bytes.
pub(crate) const MOST_JSON: usize = 64 << 10;
/// The most bytes an epoch can have; keeps sums of what files claim from overflowing.
const MOST_BYTES: u64 = 1 << 56;

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
            pcrs: reset.to_vec(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut entry = Vec::with_capacity(entry_len(&self.pcrs) as usize);
        for field in [self.records, self.violations, self.bytes, self.segment, self.segment_len] {
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
        let commit = Commit {
            records: field(0)?,
            violations: field(1)?,
            bytes: field(2)?,
            segment: field(3)?,
            segment_len: field(4)?,
            crc: u32::from_le_bytes(*fields.get(40..)?.first_chunk()?),
            pcrs,
        };
        commit.can_be().then_some(commit)
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
        let commits = Commits { path, file, reset: epoch.reset(), entries: 0, torn: None };
        let first = commits.read(0)?;
        Ok(first.map(|_| Commits::header(&epoch, &json)))
    }

    /// The epoch in a directory and its commits. Constant time: the entry at the end may be torn,
    /// all others are taken to be whole ([`crate::check`] reads them all).
    pub(crate) fn open(
        disk: &dyn Disk,
        dir: &Path,
        mode: Mode,
    ) -> Result<(Epoch, Commits), StoreError> {
        let path = dir.join(COMMITS);
        let file = disk.open(&path, mode).at(&path, "open")?;
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

        let reset = epoch.reset();
        let mut commits = Commits { path, file, reset, entries: 0, torn: None };
        commits.entries = size.saturating_sub(HEADER) / commits.entry_len();
        // A crash tears the last entry at most.
        if let Some(last) = commits.entries.checked_sub(1)
            && commits.read(last)?.is_none()
        {
            commits.torn = Some(last);
            commits.entries = last;
            if let Some(before) = last.checked_sub(1)
                && commits.read(before)?.is_none()
            {
                return Err(commits.damaged(before));
            }
        }
        Ok((epoch, commits))
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
