//! Epochs that nothing is added to any more: packed to save space, pruned by policy. The latest epoch
//! is the open one and is never touched.

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

/// What is known of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EpochSummary {
    /// Its number.
    pub number: u64,
    /// What tells it from others; `None` if its description is damaged.
    pub id: Option<EpochId>,
    /// When it began, in seconds since 1970.
    pub created: Option<u64>,
    /// When the next one began; `None` for the one that is open.
    pub closed: Option<u64>,
    /// Its records.
    pub records: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// What its files take, in bytes.
    pub disk_bytes: u64,
    /// Whether its records are packed.
    pub packed: bool,
}

/// How long closed epochs are kept. What any of the three says is too much goes, the oldest epoch
/// first. By default all are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Closed epochs that are kept.
    pub epochs: Option<u64>,
    /// The most bytes that all epochs may take, the open one included.
    pub bytes: Option<u64>,
    /// How long after it was closed an epoch is kept.
    pub age: Option<Duration>,
}

/// What packing did with an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// The epoch's number.
    pub number: u64,
    /// Its segments' size before, in bytes.
    pub before: u64,
    /// And now.
    pub after: u64,
    /// What is wrong with it, if it was left as it is because of that; `imastage store check` says more.
    pub damage: Option<String>,
}

/// A pruned epoch's directory until its files are removed: `epochs/0001.gone`.
const GONE: &str = "gone";

/// The epochs there are, the oldest first. Linear in their files' number.
///
/// # Errors
/// [`StoreError::NotAStore`], [`StoreError::Io`].
pub fn epochs(state: &Path) -> Result<Vec<EpochSummary>, StoreError> {
    let disk = SystemDisk::shared(state);
    files::require(disk.as_ref(), state)?;
    summaries(&disk, state)
}

/// Packs the closed epochs that are not packed yet, each segment on its own: it is there plain or
/// packed at any moment, whatever happens. Epochs in which something is damaged are left as they are.
/// May run beside a service and readers; those that have a segment open continue reading it.
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

/// Removes the closed epochs that `retention` does not keep, whole, the oldest first, and gives them.
/// If `dry_run` is set they are only given. May run beside a service; who reads such an epoch meets an
/// error.
///
/// Only files are removed whose names the store gives, only in directories of epochs, and no link is
/// followed. An epoch in which anything else stands is left as it is, and so are those after it.
///
/// # Errors
/// As [`pack`]; [`StoreError::Damaged`] names what is not the store's.
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

/// Keeps others from packing, pruning and repairing; the service's own lock is another one.
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

/// The epochs that are closed. The latest one is open; whatever follows it and is none, such as
/// a file with the name of an epoch, closes nothing.
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

/// The plain segment goes only after the packed one is durable and was read back. Gives both sizes.
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

/// What is left when the oldest went, one after the other, as long as there was too much.
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

/// Removes what is left of epochs that are none any more, be it from before a crash.
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
