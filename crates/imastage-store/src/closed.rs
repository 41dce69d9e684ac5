//! Closed epochs, to which no record is added: packed to save space, pruned by policy. The latest
//! epoch is open and is never changed here.

use std::{
    fs::File,
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::fs::FlockOperation;

use crate::{
    EpochId, StoreError,
    beneath::{Foreign, SystemDisk},
    check::check_epoch_on,
    commits::Commits,
    disk::{Content, Disk, Kind, Mode},
    files::{self, At, CHUNK},
    packed::{self, Packed},
    reader::Reader,
    store::lock_soon,
};

/// A summary of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EpochSummary {
    /// Its number.
    pub number: u64,
    /// Its identity; `None` if `epoch.json` is damaged.
    pub id: Option<EpochId>,
    /// Its start, in seconds since 1970.
    pub created: Option<u64>,
    /// The start of the next one; `None` for the open epoch.
    pub closed: Option<u64>,
    /// The number of its records.
    pub records: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// The size of its files on disk, in bytes.
    pub disk_bytes: u64,
    /// Whether its records are packed.
    pub packed: bool,
}

/// The retention of closed epochs. An epoch that exceeds any of the three limits is removed, the
/// oldest first. By default all are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The maximum number of closed epochs.
    pub epochs: Option<u64>,
    /// The maximum size of all epochs in bytes, including the open one.
    pub bytes: Option<u64>,
    /// The maximum time since an epoch was closed.
    pub age: Option<Duration>,
}

/// The result of packing an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// The epoch's number.
    pub number: u64,
    /// Its segments' size before, in bytes.
    pub before: u64,
    /// Their size now, in bytes.
    pub after: u64,
    /// The damage because of which it was left unchanged; `imastage store check` reports details.
    pub damage: Option<String>,
}

/// A pruned epoch's directory until its files are removed: `epochs/0001.gone`.
const GONE: &str = "gone";

/// All epochs, the oldest first. Linear in the number of their files.
///
/// # Errors
/// [`StoreError::NotAStore`], [`StoreError::Io`].
pub fn epochs(state: &Path) -> Result<Vec<EpochSummary>, StoreError> {
    let disk = SystemDisk::shared(state);
    files::require(disk.as_ref(), state)?;
    summaries(&disk, state)
}

/// Packs the closed epochs that are not packed yet, one segment at a time: at any moment, and after
/// any crash, each segment exists plain or packed. Damaged epochs are left unchanged. A service and
/// readers can run meanwhile; readers that have a segment open continue reading it.
///
/// # Errors
/// [`StoreError::Busy`] if another process packs, prunes or repairs, [`StoreError::NotAStore`],
/// [`StoreError::Io`].
pub fn pack(state: &Path) -> Result<Vec<Packing>, StoreError> {
    let disk = SystemDisk::new(state);
    files::require(&disk, state)?;
    let _lock = lock_closed(&disk, state)?;
    pack_on(&(Arc::new(disk) as _), state)
}

/// Removes closed epochs that exceed `retention`, the oldest first; returns them. With `dry_run`
/// they are only returned. A service can run meanwhile; a reader of a removed epoch gets an error.
///
/// Only files with names of the store's format are removed, only in directories of epochs, and no
/// link is followed. An epoch that contains anything else is left unchanged, and so are later ones.
///
/// # Errors
/// As [`pack`]; [`StoreError::Damaged`] names the entry that does not belong to the store.
pub fn prune(
    state: &Path,
    retention: &Retention,
    dry_run: bool,
) -> Result<Vec<EpochSummary>, StoreError> {
    let disk = SystemDisk::new(state);
    files::require(&disk, state)?;
    let _lock = lock_closed(&disk, state)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    prune_on(&(Arc::new(disk) as _), state, retention, now, dry_run)
}

/// Locks the store against other processes that pack, prune or repair. The writer has a lock of its
/// own.
pub(crate) fn lock_closed(disk: &SystemDisk, state: &Path) -> Result<File, StoreError> {
    let path = files::epochs_dir(state);
    let dir = disk.open_dir(&path).at(&path, "open")?;
    match lock_soon(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(dir),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Busy { path }),
        Err(error) => Err(io::Error::from(error)).at(&path, "lock"),
    }
}

pub(crate) fn summaries(
    disk: &Arc<dyn Disk>,
    state: &Path,
) -> Result<Vec<EpochSummary>, StoreError> {
    let numbers = files::epochs(disk.as_ref(), state)?;
    let mut summaries: Vec<EpochSummary> = Vec::new();
    for number in numbers {
        let summary = summary(disk, &files::epoch_dir(state, number), number)?;
        if let Some(before) = summaries.last_mut() {
            before.closed = summary.created;
        }
        summaries.push(summary);
    }
    Ok(summaries)
}

fn summary(disk: &Arc<dyn Disk>, dir: &Path, number: u64) -> Result<EpochSummary, StoreError> {
    let mut disk_bytes = 0;
    let mut packed = false;
    // What is no directory, or no file, is not ours and counts nothing; `check` names it.
    let names = match disk.list(dir).at(dir, "list") {
        Err(StoreError::Damaged { .. }) => Vec::new(),
        names => names?,
    };
    for name in names {
        let path = dir.join(name);
        let file = match disk.open(&path, Mode::Read).at(&path, "open") {
            Err(StoreError::Damaged { .. }) => continue,
            file => file?,
        };
        disk_bytes += file.size().at(&path, "look at")?;
        packed |= path.extension().is_some_and(|extension| extension == "gz");
    }
    // One that is damaged takes space as well.
    let reader = Reader::open_epoch(Arc::clone(disk), dir).ok();
    let epoch = reader.as_ref().map(Reader::epoch);
    Ok(EpochSummary {
        number,
        id: epoch.map(|epoch| epoch.id.clone()),
        created: epoch.map(|epoch| epoch.created),
        closed: None,
        records: reader.as_ref().map_or(0, Reader::len),
        bytes: reader.as_ref().map_or(0, Reader::bytes),
        disk_bytes,
        packed,
    })
}

pub(crate) fn pack_on(disk: &Arc<dyn Disk>, state: &Path) -> Result<Vec<Packing>, StoreError> {
    let mut packings = Vec::new();
    for number in closed(disk.as_ref(), state)? {
        let dir = files::epoch_dir(state, number);
        let mut packing = Packing { number, before: 0, after: 0, damage: None };
        let plain = match plain_segments(disk.as_ref(), &dir) {
            Err(error @ StoreError::Damaged { .. }) => {
                packing.damage = Some(error.to_string());
                packings.push(packing);
                continue;
            }
            plain => plain?,
        };
        if plain.is_empty() {
            continue;
        }
        match check_epoch_on(disk.as_ref(), state, number) {
            Ok(report) => packing.damage = report.damage.first().map(ToString::to_string),
            Err(error @ StoreError::Io { .. }) => return Err(error),
            Err(error) => packing.damage = Some(error.to_string()),
        }
        if packing.damage.is_none() {
            for first in plain {
                let (before, after) = pack_segment(disk.as_ref(), &dir, first)?;
                packing.before += before;
                packing.after += after;
            }
        }
        packings.push(packing);
    }
    Ok(packings)
}

/// The closed epochs. The latest one is open; a later entry that is not an epoch, such as a file
/// with the name of an epoch, does not close it.
fn closed(disk: &dyn Disk, state: &Path) -> Result<Vec<u64>, StoreError> {
    let mut numbers = files::epochs(disk, state)?;
    while let Some(latest) = numbers.pop() {
        match Commits::open(disk, &files::epoch_dir(state, latest), Mode::Read) {
            Err(StoreError::Damaged { .. }) => {}
            opened => {
                opened?;
                break;
            }
        }
    }
    Ok(numbers)
}

fn plain_segments(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, StoreError> {
    let mut plain = Vec::new();
    for first in files::segments(disk, dir)? {
        let path = files::segment_path(dir, first);
        match disk.open(&path, Mode::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => {
                let size = file.at(&path, "open")?.size().at(&path, "look at")?;
                if packed::fits(size) {
                    plain.push(first);
                }
            }
        }
    }
    Ok(plain)
}

/// The plain segment is removed after the packed one is durable and was read back. Returns both
/// sizes.
fn pack_segment(disk: &dyn Disk, dir: &Path, first: u64) -> Result<(u64, u64), StoreError> {
    let plain_path = files::segment_path(dir, first);
    let path = files::packed_path(dir, first);
    let new = path.with_extension("gz.new");
    let plain = disk.open(&plain_path, Mode::Read).at(&plain_path, "open")?;
    let file = files::open_new(disk, &new)?;
    let after = packed::pack(plain.as_ref(), file.as_ref()).at(&new, "pack")?;
    file.sync().at(&new, "sync")?;
    let packed = Packed::open(file).at(&new, "read back")?;
    if !same(plain.as_ref(), &packed).at(&new, "read back")? {
        let error = io::Error::new(io::ErrorKind::InvalidData, "it is not what was packed");
        return Err(error).at(&new, "read back");
    }
    disk.rename(&new, &path).at(&path, "rename into place")?;
    files::sync_dir(disk, dir)?;
    disk.remove(&plain_path).at(&plain_path, "remove")?;
    files::sync_dir(disk, dir)?;
    Ok((plain.size().at(&plain_path, "look at")?, after))
}

fn same(a: &dyn Content, b: &dyn Content) -> io::Result<bool> {
    // No more than there is, and a byte to see the end by.
    let chunk = usize::try_from(a.size()? + 1).unwrap_or(CHUNK).min(CHUNK);
    let (mut offset, mut ours, mut theirs) = (0, vec![0; chunk], vec![0; chunk]);
    loop {
        let read = a.read_up_to(&mut ours, offset)?;
        if b.read_up_to(&mut theirs, offset)? != read || ours[..read] != theirs[..read] {
            return Ok(false);
        }
        if read == 0 {
            return Ok(true);
        }
        offset += read as u64;
    }
}

pub(crate) fn prune_on(
    disk: &Arc<dyn Disk>,
    state: &Path,
    retention: &Retention,
    now: u64,
    dry_run: bool,
) -> Result<Vec<EpochSummary>, StoreError> {
    let closed = closed(disk.as_ref(), state)?.len();
    let mut all = summaries(disk, state)?;
    all.truncate(closed + 1);
    let doomed = all.len() - kept(&all, retention, now).len();
    let pruned = all.get(..doomed).unwrap_or_default();
    for epoch in pruned {
        let dir = files::epoch_dir(state, epoch.number);
        if let Some((path, what)) = files::foreign(disk.as_ref(), &dir)?.into_iter().next() {
            let why = format!("{what}; epoch {} was not removed: move it away", epoch.number);
            return Err(StoreError::Damaged { path, offset: 0, why });
        }
    }
    if !dry_run {
        let epochs = files::epochs_dir(state);
        for epoch in pruned {
            let dir = files::epoch_dir(state, epoch.number);
            // First it is no epoch any more, then its files go: it is there whole or not at all.
            disk.rename(&dir, &dir.with_extension(GONE)).at(&dir, "rename")?;
            files::sync_dir(disk.as_ref(), &epochs)?;
        }
        sweep(disk.as_ref(), &epochs)?;
    }
    Ok(pruned.to_vec())
}

/// The epochs that remain after the oldest ones that exceed a limit.
fn kept<'a>(all: &'a [EpochSummary], retention: &Retention, now: u64) -> &'a [EpochSummary] {
    let mut kept = all;
    // The last one is open.
    while let [oldest, rest @ ..] = kept
        && !rest.is_empty()
    {
        let bytes: u64 = kept.iter().map(|epoch| epoch.disk_bytes).sum();
        let age = oldest.closed.map(|closed| Duration::from_secs(now.saturating_sub(closed)));
        let too_many = retention.epochs.is_some_and(|most| rest.len() as u64 > most);
        let too_large = retention.bytes.is_some_and(|most| bytes > most);
        let too_old = matches!((retention.age, age), (Some(most), Some(age)) if age > most);
        if !(too_many || too_large || too_old) {
            break;
        }
        kept = rest;
    }
    kept
}

/// Removes the remains of pruned epochs, also those from before a crash.
fn sweep(disk: &dyn Disk, epochs: &Path) -> Result<(), StoreError> {
    let names = disk.list(epochs).at(epochs, "list")?;
    for dir in names.iter().filter(|name| files::is_gone(name)).map(|name| epochs.join(name)) {
        let kind = disk.kind(&dir).at(&dir, "look at")?;
        if kind != Kind::Directory {
            return Err(Foreign::error(&dir, kind, "a directory")).at(&dir, "remove");
        }
        if let Some((path, what)) = files::foreign(disk, &dir)?.into_iter().next() {
            let why = format!("{what}; move it away, then prune again");
            return Err(StoreError::Damaged { path, offset: 0, why });
        }
        for name in disk.list(&dir).at(&dir, "list")? {
            let path = dir.join(name);
            disk.remove(&path).at(&path, "remove")?;
        }
        disk.remove_dir(&dir).at(&dir, "remove")?;
    }
    files::sync_dir(disk, epochs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(number: u64, closed: Option<u64>, disk_bytes: u64) -> EpochSummary {
        let (id, created, records, bytes, packed) = (None, None, 0, 0, false);
        EpochSummary { number, id, created, closed, records, bytes, disk_bytes, packed }
    }

    #[test]
    fn an_epoch_is_kept_for_its_age_from_when_it_was_closed() {
        let all = [epoch(1, Some(100), 5), epoch(2, Some(200), 5), epoch(5, None, 5)];
        let first = |now, age| {
            let age = Some(Duration::from_secs(age));
            kept(&all, &Retention { age, ..Retention::default() }, now)[0].number
        };
        assert_eq!(first(200, 100), 1);
        assert_eq!(first(201, 100), 2);
        assert_eq!(first(300, 100), 2);
        assert_eq!(first(301, 100), 5);
        // A clock that went back makes nothing old.
        assert_eq!(first(0, 0), 1);
    }
}
