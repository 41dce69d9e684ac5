//! Names of files and directories, and how they come to be durably.

use std::{
    ffi::OsStr,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    StoreError,
    beneath::Foreign,
    disk::{Content, Disk, Kind, Mode},
    packed::Packed,
};

/// How much is read at once, in bytes.
pub(crate) const CHUNK: usize = 256 << 10;

pub(crate) const LOCK: &str = "lock";
pub(crate) const EPOCH: &str = "epoch.json";
pub(crate) const COMMITS: &str = "commits";
pub(crate) const CHECKPOINTS: &str = "checkpoints";
pub(crate) const NOTES: &str = "notes";
pub(crate) const FORMAT: &str = "format";
const FORMAT_LINE: &str = "imastage store 1\n";

/// Says what was being done to what.
pub(crate) trait At<T> {
    fn at(self, path: &Path, doing: &'static str) -> Result<T, StoreError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path, doing: &'static str) -> Result<T, StoreError> {
        self.map_err(|error| {
            let foreign = error.get_ref().and_then(|error| error.downcast_ref::<Foreign>());
            match foreign {
                Some(foreign) => {
                    let (path, why) = (foreign.path.clone(), foreign.to_string());
                    StoreError::Damaged { path, offset: 0, why }
                }
                // What a packed segment holds.
                None if error.kind() == io::ErrorKind::InvalidData => {
                    let (path, why) = (path.to_owned(), error.to_string());
                    StoreError::Damaged { path, offset: 0, why }
                }
                None => StoreError::Io { path: path.to_owned(), doing, error },
            }
        })
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
            segment_number(name.strip_suffix(".gz").unwrap_or(name).strip_suffix(".ima")?)
        })
        .collect();
    firsts.sort_unstable();
    firsts.dedup();
    Ok(firsts)
}

/// The first index that a segment's name gives, if it is written as the store writes it.
fn segment_number(digits: &str) -> Option<u64> {
    let first = digits.parse().ok()?;
    (format!("{first:020}") == digits).then_some(first)
}

/// The number that an epoch's directory has by its name, if it is written as the store writes it.
pub(crate) fn epoch_number(name: &OsStr) -> Option<u64> {
    let name = name.to_str()?;
    let number = name.parse().ok()?;
    (number > 0 && format!("{number:04}") == name).then_some(number)
}

/// Whether the store makes files of this name in an epoch's directory.
pub(crate) fn is_ours(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let is_segment = |name: &str| {
        name.strip_suffix(".ima").is_some_and(|digits| segment_number(digits).is_some())
    };
    let is_kept = |name: &str| {
        name == NOTES || name == COMMITS || is_segment(name) || segment_number(name).is_some()
    };
    if let Some(cut) = name.strip_suffix(".cut") {
        let parts = cut.rsplit_once('-');
        return parts.is_some_and(|(what, n)| is_kept(what) && n.parse::<u32>().is_ok());
    }
    matches!(
        name,
        EPOCH | COMMITS | CHECKPOINTS | NOTES | "epoch.new" | "commits.new" | "notes.new"
    ) || is_segment(name.strip_suffix(".new").and_then(|n| n.strip_suffix(".gz")).unwrap_or(name))
        || is_segment(name.strip_suffix(".gz").unwrap_or(name))
}

/// The names in an epoch's directory that are not the store's, or stand for something else than a
/// file, with what is wrong.
pub(crate) fn foreign(disk: &dyn Disk, epoch: &Path) -> Result<Vec<(PathBuf, String)>, StoreError> {
    let mut foreign = Vec::new();
    for name in disk.list(epoch).at(epoch, "list")? {
        let path = epoch.join(&name);
        let kind = match disk.kind(&path) {
            // Renamed or removed since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            kind => kind.at(&path, "look at")?,
        };
        if kind != Kind::File {
            foreign.push((path, format!("{kind} is here, expected a file")));
        } else if !is_ours(&name) {
            foreign.push((path, "the store makes no file of this name".to_owned()));
        }
    }
    foreign.sort();
    Ok(foreign)
}

/// The numbers of the epochs there are, ascending.
pub(crate) fn epochs(disk: &dyn Disk, state: &Path) -> Result<Vec<u64>, StoreError> {
    let dir = epochs_dir(state);
    let names = disk.list(&dir).at(&dir, "list")?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| epoch_number(name)).collect();
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
    let file = open_new(disk, &new)?;
    file.write_all(bytes, 0).at(&new, "write")?;
    file.sync().at(&new, "sync")?;
    disk.rename(&new, path).at(path, "rename into place")?;
    sync_parent(disk, path)
}

/// A new file for the owner only. What stands there is removed, whatever it is: a file that was not
/// finished, or a link, which is not followed.
pub(crate) fn open_new(disk: &dyn Disk, path: &Path) -> Result<Arc<dyn Content>, StoreError> {
    match disk.kind(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Ok(Kind::Directory) => {
            return Err(Foreign::error(path, Kind::Directory, "a file")).at(path, "remove");
        }
        found => {
            found.at(path, "look at")?;
            disk.remove(path).at(path, "remove")?;
        }
    }
    disk.open(path, Mode::New).at(path, "open")
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
    // Numbered over all copies, in the order in which they were made.
    let mut n = names.iter().filter(|name| name.to_string_lossy().ends_with(".cut")).count();
    loop {
        let name = format!("{what}-{n}.cut");
        if !names.iter().any(|taken| *taken == *name) {
            return Ok(dir.join(name));
        }
        n += 1;
    }
}

/// Copies part of a file to `at` in another one and gives the size of the part. Holes stay holes: what
/// takes no room must not fill the disk, whatever size a file claims.
pub(crate) fn copy(
    (from, from_path): (&dyn Content, &Path),
    part: Range<u64>,
    (to, to_path): (&dyn Content, &Path),
    at: u64,
) -> Result<u64, StoreError> {
    let end = part.end.min(from.size().at(from_path, "look at")?);
    let (mut chunk, mut offset) = (vec![0; CHUNK], part.start);
    while let Some(data) = from.data_from(offset).at(from_path, "look at")? {
        offset = data;
        if offset >= end {
            break;
        }
        let most = usize::try_from(end - offset).unwrap_or(CHUNK).min(CHUNK);
        let read = from.read_up_to(&mut chunk[..most], offset).at(from_path, "read")?;
        if read == 0 {
            break;
        }
        to.write_all(&chunk[..read], at + (offset - part.start)).at(to_path, "write")?;
        offset += read as u64;
    }
    let len = end.saturating_sub(part.start);
    if to.size().at(to_path, "look at")? < at + len {
        to.set_size(at + len).at(to_path, "make longer")?;
    }
    Ok(len)
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
        _ => match Err(error).at(&path, "open") {
            Ok(error) | Err(error) => error,
        },
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
        // epochs without the line that says how they are to be read are not ours to continue with.
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
            let why =
                format!("there is no file {FORMAT} in it; name the directory of `run --state`");
            return Err(not_a_store(state, why));
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(not_a_store(state, "it is no directory".to_owned()));
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

/// Whether a name is one that pruning gives an epoch.
pub(crate) fn is_gone(name: &OsStr) -> bool {
    let epoch = name.to_str().and_then(|name| name.strip_suffix(".gone"));
    epoch.is_some_and(|epoch| epoch_number(epoch.as_ref()).is_some())
}
