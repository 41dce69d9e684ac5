//! The file `commits`: how far the records go. Entries are of one size, so any is found by
//! arithmetic, and the last ones tell all that is needed to go on.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use ima_log::{Bank, Digest};

use crate::{
    StoreError,
    files::{At, COMMITS},
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
    pub(crate) pcrs: Vec<Digest>,
}

/// The file, open.
#[derive(Debug)]
pub(crate) struct Commits {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    banks: Vec<Bank>,
    /// How many entries count.
    pub(crate) entries: u64,
}

const MAGIC: &[u8; 8] = b"IMSTGC1\n";
pub(crate) const HEADER: u64 = 16;
const FIXED: usize = 44;

impl Commit {
    /// Before the first record.
    pub(crate) fn none(banks: &[Bank]) -> Commit {
        Commit {
            records: 0,
            violations: 0,
            bytes: 0,
            segment: 0,
            segment_len: 0,
            crc: 0,
            pcrs: banks.iter().map(|bank| Digest::zero(*bank)).collect(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut entry = Vec::with_capacity(FIXED + 4 + 4 * Digest::MAX);
        for field in [self.records, self.violations, self.bytes, self.segment, self.segment_len] {
            entry.extend_from_slice(&field.to_le_bytes());
        }
        entry.extend_from_slice(&self.crc.to_le_bytes());
        for pcr in &self.pcrs {
            entry.extend_from_slice(pcr.as_bytes());
        }
        entry.extend_from_slice(&crc32fast::hash(&entry).to_le_bytes());
        entry
    }

    /// `None` if it is damaged. `entry` has the size that these banks give it.
    fn decode(entry: &[u8], banks: &[Bank]) -> Option<Commit> {
        let (body, crc) = entry.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let (fields, mut rest) = body.split_at_checked(FIXED)?;
        let field =
            |at: usize| fields.get(at * 8..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let mut pcrs = Vec::with_capacity(banks.len());
        for bank in banks {
            let (pcr, behind) = rest.split_at_checked(bank.size())?;
            pcrs.push(Digest::from_slice(*bank, pcr).ok()?);
            rest = behind;
        }
        Some(Commit {
            records: field(0)?,
            violations: field(1)?,
            bytes: field(2)?,
            segment: field(3)?,
            segment_len: field(4)?,
            crc: u32::from_le_bytes(*fields.get(40..)?.first_chunk()?),
            pcrs,
        })
    }
}

impl Commits {
    /// The header of a new file.
    pub(crate) fn header(banks: &[Bank]) -> Vec<u8> {
        let mask = banks.iter().fold(0u32, |mask, bank| mask | 1 << bank_bit(*bank));
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&mask.to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        header
    }

    /// The commits of an epoch. Constant time: the entry at the end may be torn, all others are
    /// taken to be whole ([`crate::check`] reads them all).
    pub(crate) fn open(epoch: &Path, file: File, banks: &[Bank]) -> Result<Commits, StoreError> {
        let path = epoch.join(COMMITS);
        let len = file.metadata().at(&path, "look at")?.len();
        let expected = Commits::header(banks);
        let mut header = vec![0; expected.len()];
        let header_is_right = len >= HEADER && file.read_exact_at(&mut header, 0).is_ok();
        if !header_is_right || header != expected {
            let why = "the header is not that of the epoch's commits".to_owned();
            return Err(StoreError::Damaged { path, offset: 0, why });
        }
        let mut commits = Commits { path, file, banks: banks.to_vec(), entries: 0 };
        commits.entries = (len - HEADER) / commits.entry_len();
        // A crash tears the last entry at most.
        if commits.entries > 0 && commits.read(commits.entries - 1)?.is_none() {
            commits.entries -= 1;
            if commits.entries > 0 && commits.read(commits.entries - 1)?.is_none() {
                return Err(commits.damaged(commits.entries - 1));
            }
        }
        Ok(commits)
    }

    /// The entry at a place; `None` if it is damaged.
    pub(crate) fn read(&self, at: u64) -> Result<Option<Commit>, StoreError> {
        let mut entry = vec![0; self.entry_len() as usize];
        self.file.read_exact_at(&mut entry, self.offset(at)).at(&self.path, "read")?;
        Ok(Commit::decode(&entry, &self.banks))
    }

    /// The last commit that holds no more than `records` records; the state before the first if
    /// there is none. Logarithmic in the number of commits.
    pub(crate) fn before(&self, records: u64) -> Result<Commit, StoreError> {
        let (mut low, mut high) = (0, self.entries);
        let mut found = Commit::none(&self.banks);
        while low < high {
            let middle = low + (high - low) / 2;
            let commit = self.read(middle)?.ok_or_else(|| self.damaged(middle))?;
            if commit.records <= records {
                found = commit;
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(found)
    }

    /// The last commit.
    pub(crate) fn last(&self) -> Result<Commit, StoreError> {
        self.before(u64::MAX)
    }

    pub(crate) fn entry_len(&self) -> u64 {
        let digests: usize = self.banks.iter().map(|bank| bank.size()).sum();
        (FIXED + digests + 4) as u64
    }

    pub(crate) fn offset(&self, at: u64) -> u64 {
        HEADER + at * self.entry_len()
    }

    pub(crate) fn damaged(&self, at: u64) -> StoreError {
        StoreError::Damaged {
            path: self.path.clone(),
            offset: self.offset(at),
            why: format!("commit {at} is damaged"),
        }
    }
}

fn bank_bit(bank: Bank) -> u32 {
    match bank {
        Bank::Sha1 => 0,
        Bank::Sha256 => 1,
        Bank::Sha384 => 2,
        Bank::Sha512 => 3,
    }
}
