//! Remarks about places between records, such as that records are missing there.

use std::{collections::HashMap, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    StoreError,
    beneath::SystemDisk,
    disk::{Disk, Mode},
    files::{self, At, NOTES},
};

/// A remark about a place between records, such as that some are missing there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The first record after the place.
    pub index: u64,
    /// The last record before it; `None` if it is before the first.
    pub after: Option<u64>,
    /// The time of detection, in seconds since 1970.
    pub time: u64,
    /// The kind of remark, defined by the caller; can be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The text.
    pub text: String,
}

/// A remark, and its withdrawal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeptNote {
    /// The remark.
    pub note: Note,
    /// The withdrawal; `None` if the remark is in force.
    pub withdrawn: Option<Withdrawal>,
}

/// The withdrawal of a wrong remark. The remark stays in the file: its existence is evidence, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withdrawal {
    /// The time of withdrawal, in seconds since 1970.
    pub time: u64,
    /// The reason.
    pub text: String,
}

/// The content of a line: a remark, or the withdrawal of earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    #[serde(flatten)]
    note: Note,
    /// The CRC of the remark that is withdrawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    withdraws: Option<u32>,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    entry: Entry,
    /// Of the entry alone.
    crc: u32,
}

/// What the file holds.
#[derive(Default)]
pub(crate) struct Notes {
    pub(crate) entries: Vec<Entry>,
    /// The offsets of damaged lines.
    pub(crate) damaged: Vec<u64>,
    /// The offset of the last line, if it is incomplete.
    pub(crate) torn: Option<u64>,
    /// The offset of the next remark; a crash may have left a part of one there.
    end: u64,
}

/// The maximum size of the file, in bytes.
const MOST_BYTES: usize = 16 << 20;

/// The kind of a line that withdraws another.
const WITHDRAWN: &str = "withdrawn";

/// The remarks in force about the latest epoch of a state directory, in the order in which they
/// were added. Damaged lines are omitted; [`crate::check`] reports them.
///
/// # Errors
/// [`StoreError`].
pub fn notes(state: &Path) -> Result<Vec<Note>, StoreError> {
    Ok(of_latest(state)?.in_force())
}

/// As [`notes`], including withdrawn ones.
///
/// # Errors
/// [`StoreError`].
pub fn all_notes(state: &Path) -> Result<Vec<KeptNote>, StoreError> {
    Ok(of_latest(state)?.kept())
}

fn of_latest(state: &Path) -> Result<Notes, StoreError> {
    let disk = &SystemDisk::new(state);
    files::require(disk, state)?;
    match files::latest_epoch(disk, state)? {
        Some(number) => read(disk, &files::epoch_dir(state, number)),
        None => Ok(Notes::default()),
    }
}

pub(crate) fn read(disk: &dyn Disk, epoch: &Path) -> Result<Notes, StoreError> {
    let bytes = files::read_small(disk, &epoch.join(NOTES), MOST_BYTES)?;
    Ok(Notes::decode(&bytes.unwrap_or_default()))
}

/// Adds a note, durably.
pub(crate) fn append(disk: &dyn Disk, epoch: &Path, note: &Note) -> Result<(), StoreError> {
    append_entry(disk, epoch, &Entry { note: note.clone(), withdraws: None })
}

/// Withdraws a note, durably. A note that is already withdrawn is not an error, so that a caller
/// can retry after a failure.
pub(crate) fn withdraw(
    disk: &dyn Disk,
    epoch: &Path,
    note: &Note,
    withdrawal: &Withdrawal,
) -> Result<(), StoreError> {
    let path = epoch.join(NOTES);
    let crc = Entry { note: note.clone(), withdraws: None }.crc();
    let crc = crc.map_err(io::Error::from).at(&path, "write")?;
    let notes = read(disk, epoch)?;
    if notes.in_force().contains(note) {
        let Withdrawal { time, text } = withdrawal.clone();
        let kind = WITHDRAWN.to_owned();
        let note = Note { index: note.index, after: note.after, time, kind, text };
        return append_entry(disk, epoch, &Entry { note, withdraws: Some(crc) });
    }
    match notes.entries.iter().rfind(|entry| entry.withdraws == Some(crc)) {
        // It may have been written and not synced.
        Some(entry) if notes.entries.last() == Some(entry) => append_entry(disk, epoch, entry),
        Some(_) => Ok(()),
        None => Err(StoreError::NoSuchNote { path }),
    }
}

/// Adds a line. If it is already the last one, it is replaced: the remains of a failed write cannot
/// always be removed, and the caller retries.
fn append_entry(disk: &dyn Disk, epoch: &Path, entry: &Entry) -> Result<(), StoreError> {
    let path = epoch.join(NOTES);
    let line = entry.encode().map_err(io::Error::from).at(&path, "write")?;
    let file = disk.open(&path, Mode::Create).at(&path, "open")?;
    let room = MOST_BYTES.saturating_sub(line.len());
    let bytes = files::read_whole(file.as_ref(), &path, room)?;
    let mut end = Notes::decode(&bytes).end;
    if bytes.get(..end as usize).is_some_and(|whole| whole.ends_with(&line)) {
        // Written again: after a sync that failed, the next one need not write what it did not.
        end -= line.len() as u64;
    }
    files::cut(file.as_ref(), end, &path)?;
    let written = file.write_all(&line, end).at(&path, "write").and_then(|()| {
        file.sync().at(&path, "sync")?;
        files::sync_dir(disk, epoch)
    });
    if written.is_err() {
        // As far as the disk lets us; half a line is taken for torn.
        let _ = files::cut(file.as_ref(), end, &path);
    }
    written
}

impl Notes {
    /// The complete lines, as in the file.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut lines = Vec::new();
        for entry in &self.entries {
            lines.extend(entry.encode()?);
        }
        Ok(lines)
    }

    /// All remarks in order. A withdrawal applies to earlier lines.
    pub(crate) fn kept(&self) -> Vec<KeptNote> {
        let mut withdrawals: HashMap<u32, Withdrawal> = HashMap::new();
        let mut kept = Vec::new();
        for entry in self.entries.iter().rev() {
            let note = entry.note.clone();
            match entry.withdraws {
                Some(crc) => {
                    let Note { time, text, .. } = note;
                    withdrawals.insert(crc, Withdrawal { time, text });
                }
                None => {
                    let crc = entry.crc().ok();
                    let withdrawn = crc.and_then(|crc| withdrawals.get(&crc).cloned());
                    kept.push(KeptNote { note, withdrawn });
                }
            }
        }
        kept.reverse();
        kept
    }

    pub(crate) fn in_force(&self) -> Vec<Note> {
        let kept = self.kept().into_iter();
        kept.filter(|kept| kept.withdrawn.is_none()).map(|kept| kept.note).collect()
    }

    fn decode(bytes: &[u8]) -> Notes {
        let mut notes = Notes::default();
        let mut offset = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            match Entry::decode(line) {
                Some(entry) => {
                    notes.entries.push(entry);
                    notes.end = offset + line.len() as u64;
                }
                None => notes.damaged.push(offset),
            }
            offset += line.len() as u64;
        }
        // The last one may be a crash's, but only the last.
        notes.torn = notes.damaged.pop_if(|at| *at >= notes.end);
        notes.end = notes.torn.unwrap_or(offset);
        notes
    }
}

impl Entry {
    fn crc(&self) -> Result<u32, serde_json::Error> {
        Ok(crc32fast::hash(&serde_json::to_vec(self)?))
    }

    fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut line = serde_json::to_vec(&Line { entry: self.clone(), crc: self.crc()? })?;
        line.push(b'\n');
        Ok(line)
    }

    fn decode(line: &[u8]) -> Option<Entry> {
        let Line { entry, crc } = serde_json::from_slice(line.strip_suffix(b"\n")?).ok()?;
        (entry.crc().ok()? == crc).then_some(entry)
    }
}
