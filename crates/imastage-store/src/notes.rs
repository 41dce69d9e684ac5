use std::{io, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    StoreError,
    disk::{Disk, Mode, SystemDisk},
    files::{self, At, NOTES},
};

/// A remark about a place between records, such as that some are missing there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The first record behind the place.
    pub index: u64,
    /// The last record before it; `None` if it is before the first.
    pub after: Option<u64>,
    /// When it was found, in seconds since 1970.
    pub time: u64,
    /// A word for what it is about, of those who write notes; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// What is to be said.
    pub text: String,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    note: Note,
    /// Of the note alone.
    crc: u32,
}

/// What the file holds.
pub(crate) struct Notes {
    pub(crate) notes: Vec<Note>,
    /// Where lines stand that are not as they were written.
    pub(crate) damaged: Vec<u64>,
    /// Where the last line stands, if it is not whole.
    pub(crate) torn: Option<u64>,
    /// Where the next note goes: a crash may have left part of one there.
    end: u64,
}

/// The largest file, in bytes.
const MOST_BYTES: usize = 16 << 20;

/// The remarks about the latest epoch of a state directory, in the order in which they were made.
/// Lines that were damaged are left out; [`crate::check`] reports them.
///
/// # Errors
/// [`StoreError`].
pub fn notes(state: &Path) -> Result<Vec<Note>, StoreError> {
    let disk = &SystemDisk;
    files::require(disk, state)?;
    match files::latest_epoch(disk, state)? {
        Some(number) => Ok(read(disk, &files::epoch_dir(state, number))?.notes),
        None => Ok(Vec::new()),
    }
}

pub(crate) fn read(disk: &dyn Disk, epoch: &Path) -> Result<Notes, StoreError> {
    let bytes = files::read_small(disk, &epoch.join(NOTES), MOST_BYTES)?;
    Ok(Notes::decode(&bytes.unwrap_or_default()))
}

/// Adds a note, durably. If it is the last one already it takes its own place: what a note that
/// failed left cannot always be undone, and whoever failed tries again.
pub(crate) fn append(disk: &dyn Disk, epoch: &Path, note: &Note) -> Result<(), StoreError> {
    let path = epoch.join(NOTES);
    let line = encode(note).map_err(io::Error::from).at(&path, "write")?;
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
    /// The lines that are whole, as they stand in the file.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        self.notes.iter().try_fold(Vec::new(), |lines, note| Ok([lines, encode(note)?].concat()))
    }

    fn decode(bytes: &[u8]) -> Notes {
        let mut notes = Notes { notes: Vec::new(), damaged: Vec::new(), torn: None, end: 0 };
        let mut offset = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            match decode(line) {
                Some(note) => {
                    notes.notes.push(note);
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

fn encode(note: &Note) -> Result<Vec<u8>, serde_json::Error> {
    let crc = crc32fast::hash(&serde_json::to_vec(note)?);
    let mut line = serde_json::to_vec(&Line { note: note.clone(), crc })?;
    line.push(b'\n');
    Ok(line)
}

fn decode(line: &[u8]) -> Option<Note> {
    let Line { note, crc } = serde_json::from_slice(line.strip_suffix(b"\n")?).ok()?;
    (crc32fast::hash(&serde_json::to_vec(&note).ok()?) == crc).then_some(note)
}
