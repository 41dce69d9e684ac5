//! Paths, permissions and syncs.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::StoreError;

pub(crate) const FORMAT: &str = "format";
pub(crate) const LOCK: &str = "lock";
pub(crate) const COMMITS: &str = "commits";
const FORMAT_LINE: &str = "imastage store 1\n";

/// Says what was being done to what.
pub(crate) trait At<T> {
    fn at(self, path: &Path, doing: &'static str) -> Result<T, StoreError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path, doing: &'static str) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::Io { path: path.to_owned(), doing, error })
    }
}

pub(crate) fn epochs_dir(state: &Path) -> PathBuf {
    state.join("epochs")
}

pub(crate) fn epoch_dir(state: &Path, number: u64) -> PathBuf {
    epochs_dir(state).join(format!("{number:04}"))
}

pub(crate) fn segment_path(epoch: &Path, first: u64) -> PathBuf {
    epoch.join(format!("{first:020}.ima"))
}

/// The first indexes of the segments there are, ascending.
pub(crate) fn segments(epoch: &Path) -> Result<Vec<u64>, StoreError> {
    let mut firsts = Vec::new();
    for entry in fs::read_dir(epoch).at(epoch, "list")? {
        let name = entry.at(epoch, "list")?.file_name();
        let first = name.to_str().and_then(|name| name.strip_suffix(".ima"));
        if let Some(Ok(first)) = first.map(str::parse) {
            firsts.push(first);
        }
    }
    firsts.sort_unstable();
    Ok(firsts)
}

/// The number of the latest epoch.
pub(crate) fn latest_epoch(state: &Path) -> Result<Option<u64>, StoreError> {
    let dir = epochs_dir(state);
    let mut latest = None;
    for entry in fs::read_dir(&dir).at(&dir, "list")? {
        let name = entry.at(&dir, "list")?.file_name();
        latest = latest.max(name.to_str().and_then(|name| name.parse().ok()));
    }
    Ok(latest)
}

/// Makes a directory for our eyes only, and syncs the one it is in.
pub(crate) fn create_dir(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => sync_parent(path),
        Err(error) => Err(error).at(path, "make the directory"),
    }
}

/// Opens a file for appending and cutting, for our eyes only.
pub(crate) fn open_writable(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .at(path, "open")
}

/// Writes a small file whole or not at all.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let new = path.with_extension("new");
    let mut file = open_writable(&new)?;
    file.set_len(0).at(&new, "empty")?;
    file.write_all(bytes).at(&new, "write")?;
    file.sync_all().at(&new, "sync")?;
    fs::rename(&new, path).at(path, "rename into place")?;
    sync_parent(path)
}

pub(crate) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).at(dir, "sync")
}

/// Makes a state directory, or sees that it is one.
pub(crate) fn prepare(state: &Path) -> Result<(), StoreError> {
    create_dir(state)?;
    let format = state.join(FORMAT);
    if !format.exists() {
        // Something else's directory is not ours to fill; our own sockets and mounts may be there.
        create_dir(&epochs_dir(state))?;
        replace(&format, FORMAT_LINE.as_bytes())?;
    }
    require(state)
}

/// Sees that it is a state directory of this version.
pub(crate) fn require(state: &Path) -> Result<(), StoreError> {
    let path = state.join(FORMAT);
    let not_a_store = |why: String| StoreError::NotAStore { path: state.to_owned(), why };
    match fs::read_to_string(&path) {
        Ok(line) if line == FORMAT_LINE => Ok(()),
        Ok(line) => Err(not_a_store(format!(
            "the file {FORMAT} holds {:?}, expected {FORMAT_LINE:?}",
            line.chars().take(40).collect::<String>()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(not_a_store(format!("there is no file {FORMAT}")))
        }
        Err(error) => Err(error).at(&path, "read"),
    }
}
