//! Repair without guessing. Nothing that a commit covers is changed, what is cut off is
//! copied first, and what is rebuilt is proven by all that is whole around it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Damage, Remedy, StoreError,
    beneath::SystemDisk,
    check::{check_epoch_on, commit_again},
    checkpoints::{self, Checkpoints},
    closed::lock_closed,
    commits::{Commits, HEADER},
    disk::{Disk, Mode},
    files::{self, At, CHECKPOINTS, COMMITS, NOTES},
    notes,
    store::{lock, lock_to_read},
    writing::{Keep, Writing},
};

/// The repairs of an epoch, made or planned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// The epoch's number.
    pub number: u64,
    /// The repairs, in order.
    pub done: Vec<Repair>,
    /// The remaining damage.
    pub left: Vec<Damage>,
}

/// A repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The file.
    pub path: PathBuf,
    /// The repair as text.
    pub what: String,
    /// The copy of the previous bytes.
    pub kept: Option<PathBuf>,
}

/// One repair can make damage of another kind visible; more rounds than there are kinds are not
/// needed.
const MOST_ROUNDS: usize = 8;

/// Repairs every epoch as far as possible: cuts off what an interrupted commit left and what no
/// commit stored, removes incomplete remarks, and rebuilds checkpoints, a single damaged commit or
/// the header of `commits`. With `dry_run` nothing is changed, and the result contains the repairs
/// that are known to be needed before the first one is made. Linear in the store's bytes.
///
/// # Errors
/// [`StoreError::Locked`] while a service runs, [`StoreError::Busy`] if another process packs,
/// prunes or repairs, [`StoreError::NotAStore`], [`StoreError::Io`].
pub fn repair(state: &Path, dry_run: bool) -> Result<Vec<RepairReport>, StoreError> {
    let disk = SystemDisk::new(state);
    files::require(&disk, state)?;
    let lock = match dry_run {
        true => lock_to_read(&disk, state)?,
        false => Some(lock(&disk, state)?),
    };
    let _locks = (lock, lock_closed(&disk, state)?);
    repair_on(&(Arc::new(disk) as _), state, checkpoints::DISTANCE, dry_run)
}

pub(crate) fn repair_on(
    disk: &Arc<dyn Disk>,
    state: &Path,
    distance: u64,
    dry_run: bool,
) -> Result<Vec<RepairReport>, StoreError> {
    let mut reports = Vec::new();
    for number in files::epochs(disk.as_ref(), state)? {
        let dir = files::epoch_dir(state, number);
        let mut epoch = Epoch { disk, dir, distance, dry_run, done: Vec::new() };
        for _ in 0..MOST_ROUNDS {
            let damage = check_epoch_on(disk.as_ref(), state, number)?.damage;
            let before = epoch.done.len();
            for damage in damage.iter().filter(|damage| damage.remedy.is_ours()) {
                epoch.mend(damage)?;
            }
            if dry_run || epoch.done.len() == before {
                break;
            }
        }
        epoch.cut_tail()?;
        let report = check_epoch_on(disk.as_ref(), state, number)?;
        if report.damage.is_empty() && !report.checkpoints.is_empty() {
            epoch.make_checkpoints()?;
        }
        reports.push(RepairReport { number, done: epoch.done, left: report.damage });
    }
    Ok(reports)
}

struct Epoch<'a> {
    disk: &'a Arc<dyn Disk>,
    dir: PathBuf,
    distance: u64,
    dry_run: bool,
    done: Vec<Repair>,
}

impl Epoch<'_> {
    fn mend(&mut self, damage: &Damage) -> Result<(), StoreError> {
        let Damage { path, offset, .. } = damage;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match (name, damage.remedy) {
            (COMMITS, Remedy::Rebuild) if *offset == 0 => self.make_header(path),
            (COMMITS, Remedy::Rebuild) => self.make_commit(path, *offset),
            // That one is cut off with all that follows it.
            (COMMITS, _) => Ok(()),
            (NOTES, _) => self.drop_notes(path),
            (segment, Remedy::PutAside) if segment.ends_with(".ima") => self.cut(path, *offset),
            _ => Ok(()),
        }
    }

    fn did(&mut self, path: &Path, what: String, kept: Option<PathBuf>) {
        self.done.push(Repair { path: path.to_owned(), what, kept });
    }

    fn make_header(&mut self, path: &Path) -> Result<(), StoreError> {
        let Some(header) = Commits::header_again(self.disk.as_ref(), &self.dir)? else {
            return Ok(());
        };
        let kept = self.write_over(path, 0, &header)?;
        self.did(path, "made the header again from epoch.json".to_owned(), kept);
        Ok(())
    }

    fn make_commit(&mut self, path: &Path, offset: u64) -> Result<(), StoreError> {
        let disk = self.disk.as_ref();
        let (_, commits) = Commits::open_damaged(disk, &self.dir, Mode::Read)?;
        let at = offset.saturating_sub(HEADER) / commits.entry_len();
        let Some(commit) = commit_again(disk, &self.dir, at)? else { return Ok(()) };
        let kept = self.write_over(path, offset, &commit.encode())?;
        let what = format!(
            "made commit {at} again: it ends behind record {}, as the commits around it prove",
            commit.records - 1
        );
        self.did(path, what, kept);
        Ok(())
    }

    /// Overwrites bytes within a file; copies the previous ones first.
    fn write_over(
        &self,
        path: &Path,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Option<PathBuf>, StoreError> {
        if self.dry_run {
            return Ok(None);
        }
        let kept = self.keep(path, offset, offset + bytes.len() as u64)?;
        let file = self.disk.open(path, Mode::Write).at(path, "open")?;
        file.write_all(bytes, offset).at(path, "write")?;
        file.sync().at(path, "sync")?;
        Ok(Some(kept))
    }

    /// Removes damaged remarks.
    fn drop_notes(&mut self, path: &Path) -> Result<(), StoreError> {
        if self.done.iter().any(|done| done.path == path) {
            // All of them were dropped with the first.
            return Ok(());
        }
        let mut kept = None;
        if !self.dry_run {
            let disk = self.disk.as_ref();
            let lines = notes::read(disk, &self.dir)?.encode().map_err(std::io::Error::from);
            kept = Some(self.keep(path, 0, u64::MAX)?);
            files::replace(disk, path, &lines.at(path, "write")?)?;
        }
        self.did(path, "dropped the remarks that are not whole".to_owned(), kept);
        Ok(())
    }

    /// Cuts off what no commit stored; removes a segment of which nothing is left.
    fn cut(&mut self, path: &Path, offset: u64) -> Result<(), StoreError> {
        let file = self.disk.open(path, Mode::Write).at(path, "open")?;
        let bytes = file.size().at(path, "look at")?.saturating_sub(offset);
        let mut kept = None;
        if !self.dry_run {
            kept = Some(self.keep(path, offset, u64::MAX)?);
            if offset == 0 {
                self.disk.remove(path).at(path, "remove")?;
                files::sync_dir(self.disk.as_ref(), &self.dir)?;
            } else {
                files::cut(file.as_ref(), offset, path)?;
            }
        }
        self.did(path, format!("cut off {bytes} bytes that no commit stored"), kept);
        Ok(())
    }

    /// Cuts off what follows the last commit, as opening the store does.
    fn cut_tail(&mut self) -> Result<(), StoreError> {
        let Some(bytes) = self.tail()? else { return Ok(()) };
        let path = self.dir.join(COMMITS);
        let mut kept = None;
        if !self.dry_run {
            let disk = Arc::clone(self.disk);
            let (_, recovery) = Writing::open(disk, &self.dir, self.distance, Keep::All)?;
            kept = recovery.kept;
        }
        self.did(&path, format!("cut off {bytes} bytes behind the last commit"), kept);
        Ok(())
    }

    /// The bytes after the last commit, in `commits` and in segments, if there are any.
    fn tail(&self) -> Result<Option<u64>, StoreError> {
        let disk = self.disk.as_ref();
        let (commits, last) = match Commits::open_damaged(disk, &self.dir, Mode::Read) {
            // Reported already.
            Err(StoreError::Damaged { .. }) => return Ok(None),
            opened => {
                let (_, commits) = opened?;
                let last = commits.last()?;
                (commits, last)
            }
        };
        let size = commits.file.size().at(&commits.path, "look at")?;
        let mut bytes = size.saturating_sub(commits.offset(commits.entries));
        for first in files::segments(disk, &self.dir)? {
            let path = files::segment_path(&self.dir, first);
            if last.records > 0 && first < last.segment {
                continue;
            }
            // A packed one has nothing after its last commit.
            let Ok(file) = disk.open(&path, Mode::Read) else { return Ok(None) };
            let size = file.size().at(&path, "look at")?;
            match last.records > 0 && first == last.segment {
                // Too short is damage, not a tail.
                true if size < last.segment_len => return Ok(None),
                true => bytes += size - last.segment_len,
                false => bytes += size,
            }
        }
        Ok((bytes > 0).then_some(bytes))
    }

    fn make_checkpoints(&mut self) -> Result<(), StoreError> {
        let path = self.dir.join(CHECKPOINTS);
        if !self.dry_run {
            match self.disk.remove(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).at(&path, "remove");
                }
                _ => {}
            }
            Checkpoints::complete(self.disk, &self.dir, self.distance)?;
            files::sync_dir(self.disk.as_ref(), &self.dir)?;
        }
        self.did(&path, "made again from the records".to_owned(), None);
        Ok(())
    }

    /// Copies a part of a file, durably; returns the copy's name.
    fn keep(&self, path: &Path, from: u64, to: u64) -> Result<PathBuf, StoreError> {
        let disk = self.disk.as_ref();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let copy_path = files::aside_path(disk, &self.dir, &name)?;
        let file = disk.open(path, Mode::Read).at(path, "open")?;
        let copy = disk.open(&copy_path, Mode::New).at(&copy_path, "open")?;
        files::copy((file.as_ref(), path), from..to, (copy.as_ref(), &copy_path), 0)?;
        copy.sync().at(&copy_path, "sync")?;
        files::sync_dir(disk, &self.dir)?;
        Ok(copy_path)
    }
}

#[cfg(test)]
mod tests {
    use ima_log::{Bank, RecordBuf};

    use super::*;
    use crate::{
        EpochId, Note, Reader, Store,
        sim::{Fault, SimDisk},
        store::Layout,
    };

    const STATE: &str = "/state";
    const LAYOUT: Layout = Layout { segment_size: 400, distance: 2 };

    fn records() -> Vec<RecordBuf> {
        let name = |i: u8| format!("/file/{i}").into_bytes();
        (0..15).map(|i| RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[&[i]]), &name(i))).collect()
    }

    /// A store in which everything that can be repaired is broken, durably.
    fn broken(seed: u64) -> SimDisk {
        let disk = SimDisk::new(seed);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut store = Store::open_on(Arc::clone(&shared), Path::new(STATE), LAYOUT).unwrap();
        store.begin_epoch(EpochId::default(), &[Bank::Sha1, Bank::Sha256]).unwrap();
        for batch in records().chunks(3) {
            for record in batch {
                store.append(&record.record()).unwrap();
            }
            store.commit().unwrap();
        }
        for time in 0..2 {
            let (kind, text) = (String::new(), "remark".into());
            store.note(&Note { index: 0, after: None, time, kind, text }).unwrap();
        }
        drop(store);
        let dir = files::epoch_dir(Path::new(STATE), 1);
        let segments = files::segments(&disk, &dir).unwrap();
        assert!(segments.len() > 2);
        let write = |path: PathBuf, bytes: &[u8], at: Option<u64>| {
            let file = disk.open(&path, Mode::Create).unwrap();
            file.write_all(bytes, at.unwrap_or(file.size().unwrap())).unwrap();
            file.sync().unwrap();
        };
        write(dir.join(COMMITS), b"xx", Some(10));
        write(dir.join(COMMITS), b"xx", Some(HEADER + 330));
        write(dir.join(COMMITS), b"half an entry", None);
        write(dir.join(NOTES), b"xx", Some(10));
        write(dir.join(CHECKPOINTS), b"xx", Some(40));
        write(files::segment_path(&dir, segments[0]), b"stray", None);
        write(files::segment_path(&dir, segments[0] + 1), b"stray", None);
        write(files::segment_path(&dir, segments[segments.len() - 1]), b"half a record", None);
        disk.sync_dir(&dir).unwrap();
        disk
    }

    #[test]
    fn a_power_cut_during_repair_is_mended_by_repairing_again() {
        let mend = |disk: &SimDisk| {
            let shared: Arc<dyn Disk> = Arc::new(disk.clone());
            repair_on(&shared, Path::new(STATE), LAYOUT.distance, false)
        };
        let disk = broken(1);
        let begin = disk.operations();
        let report = mend(&disk).unwrap();
        // The checkpoints are rebuilt where the tail is cut off.
        assert_eq!((report[0].done.len(), &report[0].left[..]), (6, &[][..]), "{report:#?}");
        let operations = disk.operations() - begin;

        let expected: Vec<Vec<u8>> = records().into_iter().map(RecordBuf::into_bytes).collect();
        let mut cuts = 0;
        for at in 0..operations {
            for seed in 1..=3 {
                let disk = broken(seed);
                disk.set_faults(&[Fault::PowerCut { at: disk.operations() + at }]);
                assert!(mend(&disk).is_err());
                disk.restart();
                let report = mend(&disk).unwrap();
                assert_eq!(report[0].left, [], "power cut at {at}, seed {seed}");
                disk.restart();
                let dir = files::epoch_dir(Path::new(STATE), 1);
                let reader = Reader::open_epoch(Arc::new(disk.clone()), &dir).unwrap();
                let mut cursor = reader.records(0).unwrap();
                let mut found = Vec::new();
                while let Some(record) = cursor.next_record().unwrap() {
                    found.push(record.as_bytes().to_vec());
                }
                assert_eq!(found, expected, "power cut at {at}, seed {seed}");
                assert_eq!(notes::read(&disk, &dir).unwrap().in_force().len(), 1);
                cuts += 1;
            }
        }
        eprintln!("{cuts} power cuts during repair");
    }
}
