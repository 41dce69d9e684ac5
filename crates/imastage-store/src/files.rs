//! Names of files and directories, and how they come to be durably.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    StoreError,
    disk::{Content, Disk, Mode},
    packed::Packed,
};

pub(crate) const LOCK: &str = "lock";
pub(crate) const EPOCH: &str = "epoch.json";
pub(crate) const COMMITS: &str = "commits";
pub(crate) const CHECKPOINTS: &str = "checkpoints";
pub(crate) const NOTES: &str = "notes";
const FORMAT: &str = "format";
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

/// A segment of a closed epoch that was packed.
pub(crate) fn packed_path(epoch: &Path, first: u64) -> PathBuf {
    epoch.join(format!("{first:020}.ima.gz"))
}

pub(crate) fn segment_path(epoch: &Path, first: u64) -> PathBuf {
    epoch.join(format!("{first:020}.ima"))
}

/// The first indexes of the segments there are, ascending.
pub(crate) fn segments(disk: &dyn Disk, epoch: &Path) -> Result<Vec<u64>, StoreError> {
    let mut firsts: Vec<u64> = disk
        .list(epoch)
        .at(epoch, "list")?
        .iter()
        .filter_map(|name| {
            let name = name.to_str()?;
            name.strip_suffix(".gz").unwrap_or(name).strip_suffix(".ima")?.parse().ok()
        })
        .collect();
    firsts.sort_unstable();
    firsts.dedup();
    Ok(firsts)
}

/// The numbers of the epochs there are, ascending.
pub(crate) fn epochs(disk: &dyn Disk, state: &Path) -> Result<Vec<u64>, StoreError> {
    let dir = epochs_dir(state);
    let names = disk.list(&dir).at(&dir, "list")?;
    let mut numbers: Vec<u64> =
        names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The number of the latest epoch.
pub(crate) fn latest_epoch(disk: &dyn Disk, state: &Path) -> Result<Option<u64>, StoreError> {
    Ok(epochs(disk, state)?.pop())
}

/// The directory of an epoch that is there.
pub(crate) fn require_epoch(
    disk: &dyn Disk,
    state: &Path,
    number: u64,
) -> Result<PathBuf, StoreError> {
    require(disk, state)?;
    if epochs(disk, state)?.contains(&number) {
        return Ok(epoch_dir(state, number));
    }
    Err(StoreError::NoSuchEpoch { path: state.to_owned(), asked: number })
}

/// Makes a directory and those it is in, durably. They may be there: then their names are synced all
/// the same, because one who was killed, or whose sync failed, may have made them.
pub(crate) fn make_dirs(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    let mut dirs: Vec<&Path> = dir.ancestors().filter(|dir| !dir.as_os_str().is_empty()).collect();
    dirs.reverse();
    for dir in dirs {
        match disk.make_dir(dir) {
            Ok(()) => sync_parent(disk, dir)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                match sync_parent(disk, dir) {
                    // Where we may not even read we made nothing.
                    Err(StoreError::Io { error, .. })
                        if error.kind() == io::ErrorKind::PermissionDenied => {}
                    synced => synced?,
                }
            }
            Err(error) => return Err(error).at(dir, "make the directory"),
        }
    }
    Ok(())
}

/// Writes a small file whole or not at all.
pub(crate) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let new = path.with_extension("new");
    let file = disk.open(&new, Mode::Create).at(&new, "open")?;
    file.set_size(0).at(&new, "empty")?;
    file.write_all(bytes, 0).at(&new, "write")?;
    file.sync().at(&new, "sync")?;
    disk.rename(&new, path).at(path, "rename into place")?;
    sync_parent(disk, path)
}

fn exists(disk: &dyn Disk, path: &Path) -> Result<bool, StoreError> {
    match disk.open(path, Mode::Read) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).at(path, "open"),
    }
}

/// A small file; `None` if there is none.
pub(crate) fn read_small(
    disk: &dyn Disk,
    path: &Path,
    most: usize,
) -> Result<Option<Vec<u8>>, StoreError> {
    match disk.open(path, Mode::Read) {
        Ok(file) => read_whole(file.as_ref(), path, most).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at(path, "open"),
    }
}

/// All of a file that is open and not longer than `most` bytes.
pub(crate) fn read_whole(
    file: &dyn Content,
    path: &Path,
    most: usize,
) -> Result<Vec<u8>, StoreError> {
    let size = file.size().at(path, "look at")?;
    if size > most as u64 {
        let why = format!("the file has {size} bytes, expected at most {most}");
        return Err(StoreError::Damaged { path: path.to_owned(), offset: most as u64, why });
    }
    let mut bytes = vec![0; size as usize];
    let read = file.read_up_to(&mut bytes, 0).at(path, "read")?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Shortens a file to `to` bytes, and makes what is left durable whoever wrote it; gives the number
/// of bytes cut off.
pub(crate) fn cut(file: &dyn Content, to: u64, path: &Path) -> Result<u64, StoreError> {
    let size = file.size().at(path, "look at")?;
    if size > to {
        file.set_size(to).at(path, "cut")?;
    }
    // Also if nothing is to be cut: a sync that failed may have cut it before.
    file.sync().at(path, "sync")?;
    Ok(size.saturating_sub(to))
}

/// Where a copy is put of what is cut off: `<what>-<n>.cut`, a name that is not taken.
pub(crate) fn aside_path(disk: &dyn Disk, dir: &Path, what: &str) -> Result<PathBuf, StoreError> {
    let names = disk.list(dir).at(dir, "list")?;
    let n = names.iter().filter(|name| name.to_string_lossy().ends_with(".cut")).count();
    Ok(dir.join(format!("{what}-{n}.cut")))
}

/// Opens a segment for reading, packed or not. While it is being packed it is there twice; the one
/// that is not packed counts.
pub(crate) fn open_segment(
    disk: &dyn Disk,
    epoch: &Path,
    first: u64,
) -> (PathBuf, io::Result<Arc<dyn Content>>) {
    let path = segment_path(epoch, first);
    match disk.open(&path, Mode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let packed = packed_path(epoch, first);
            match disk.open(&packed, Mode::Read) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => (path, Err(error)),
                Err(error) => (packed, Err(error)),
                Ok(file) => (packed, Packed::open(file).map(|file| Arc::new(file) as _)),
            }
        }
        file => (path, file),
    }
}

/// That a segment could not be opened; `last` is the last record it has to hold.
pub(crate) fn unopened(path: PathBuf, error: io::Error, last: u64) -> StoreError {
    match error.kind() {
        io::ErrorKind::NotFound => StoreError::Damaged {
            path,
            offset: 0,
            why: format!("the segment is gone: its records, up to index {last}, are missing"),
        },
        _ => StoreError::Io { path, doing: "open", error },
    }
}

pub(crate) fn sync_parent(disk: &dyn Disk, path: &Path) -> Result<(), StoreError> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_dir(disk, Path::new(".")),
        Some(parent) => sync_dir(disk, parent),
        None => Ok(()),
    }
}

pub(crate) fn sync_dir(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    disk.sync_dir(dir).at(dir, "sync")
}

/// Makes what a state directory holds, or sees that it is there.
pub(crate) fn prepare(disk: &dyn Disk, state: &Path) -> Result<(), StoreError> {
    let epochs = epochs_dir(state);
    make_dirs(disk, &epochs)?;
    let format = state.join(FORMAT);
    if !exists(disk, &format)? {
        // The directory need not be empty: its owner's sockets and mounts may be there. But
        // epochs without the line that says how they are to be read are not ours to go on with.
        if !disk.list(&epochs).at(&epochs, "list")?.is_empty() {
            return Err(not_a_store(state, format!("it has epochs and no file {FORMAT}")));
        }
        replace(disk, &format, FORMAT_LINE.as_bytes())?;
    }
    require(disk, state)
}

/// Sees that it is a state directory of this version.
pub(crate) fn require(disk: &dyn Disk, state: &Path) -> Result<(), StoreError> {
    let path = state.join(FORMAT);
    let file = match disk.open(&path, Mode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(not_a_store(state, format!("there is no file {FORMAT}")));
        }
        file => file.at(&path, "open")?,
    };
    let mut line = [0; 40];
    let len = file.read_up_to(&mut line, 0).at(&path, "read")?;
    let line = String::from_utf8_lossy(&line[..len]);
    if line == FORMAT_LINE {
        return Ok(());
    }
    Err(not_a_store(state, format!("the file {FORMAT} holds {line:?}, expected {FORMAT_LINE:?}")))
}

fn not_a_store(state: &Path, why: String) -> StoreError {
    StoreError::NotAStore { path: state.to_owned(), why }
}
