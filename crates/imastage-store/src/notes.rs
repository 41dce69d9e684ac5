use std::{fs, io::Write, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    StoreError,
    files::{self, At},
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
    /// What is to be said.
    pub text: String,
}

const NOTES: &str = "notes";

/// The remarks about the latest epoch of a state directory, in the order in which they were made.
/// A line that a crash cut off is left out.
///
/// # Errors
/// [`StoreError`].
pub fn notes(state: &Path) -> Result<Vec<Note>, StoreError> {
    files::require(state)?;
    let Some(number) = files::latest_epoch(state)? else { return Ok(Vec::new()) };
    let path = files::epoch_dir(state, number).join(NOTES);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).at(&path, "read"),
    }
}

pub(crate) fn append(epoch: &Path, note: &Note) -> Result<(), StoreError> {
    let path = epoch.join(NOTES);
    let is_new = !path.exists();
    let mut file =
        fs::OpenOptions::new().append(true).create(true).open(&path).at(&path, "open")?;
    let mut line = serde_json::to_vec(note).map_err(std::io::Error::from).at(&path, "write")?;
    line.push(b'\n');
    file.write_all(&line).at(&path, "write")?;
    file.sync_all().at(&path, "sync")?;
    if is_new { files::sync_parent(&path) } else { Ok(()) }
}
