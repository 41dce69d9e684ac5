//! The epoch to which records are added.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ima_log::{Bank, Format, Record};

use crate::{
    Epoch, StoreError,
    checkpoints::Checkpoints,
    commits::{Commit, Commits, extend},
    disk::{Content, Disk, Mode},
    files::{self, At, COMMITS},
};

/// Bytes that were cut off after the last commit when the store was opened: a batch that a crash
/// interrupted, and that was not acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes of a torn commit.
    pub commit_bytes: u64,
    /// Bytes of records.
    pub record_bytes: u64,
    /// The copy of these records, or of the invalid entries if there are no records. Made only if
    /// the last entry of `commits` is complete and invalid: it may have been valid once.
    pub kept: Option<PathBuf>,
}

/// What is copied before it is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// What a commit may have covered that was whole once.
    Doubtful,
    /// That, and what a crash interrupted for certain.
    All,
}

#[derive(Debug)]
pub(crate) struct Writing {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) epoch: Epoch,
    commits: Commits,
    /// The segment of `committed`, once there is one.
    segment: Option<Arc<dyn Content>>,
    /// What is durable.
    pub(crate) committed: Commit,
    /// That, and what was appended since.
    pub(crate) running: Commit,
    /// The bytes of what was appended since.
    pending: Vec<u8>,
    /// `None` if the file cannot be had: nothing is lost without it.
    checkpoints: Option<Checkpoints>,
    /// Those among what was appended since, and those of earlier commits that are not written.
    marks: Vec<Commit>,
    /// A commit failed and may have left bytes after the last one.
    untidy: bool,
}

impl Writing {
    /// Opens an epoch and cuts off what follows its last commit.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        distance: u64,
        keep: Keep,
    ) -> Result<(Writing, Recovery), StoreError> {
        let (epoch, commits) = match keep {
            Keep::Doubtful => Commits::open(disk.as_ref(), dir, Mode::Write)?,
            Keep::All => Commits::open_damaged(disk.as_ref(), dir, Mode::Write)?,
        };
        let committed = commits.last()?;
        let mut writing = Writing {
            disk,
            dir: dir.to_owned(),
            epoch,
            commits,
            segment: None,
            running: committed.clone(),
            committed,
            pending: Vec::new(),
            checkpoints: None,
            marks: Vec::new(),
            untidy: false,
        };
        // Before anything is cut: a segment that is too short is damage, and is left as it is.
        writing.segment = writing.last_segment()?;
        writing.rewrite_last_entry()?;
        let kept = match (keep, writing.commits.torn) {
            (Keep::Doubtful, 0) => None,
            _ => writing.keep_tail()?,
        };
        let kept = match writing.keep_garbage()? {
            // Of two copies the one with the records counts.
            Some(garbage) => kept.or(Some(garbage)),
            None => kept,
        };
        let recovery = writing.tidy()?;
        // Without them all else works: what fails here is tried again when the store is opened
        // next.
        let (disk, dir) = (&writing.disk, &writing.dir);
        writing.checkpoints = Checkpoints::complete(disk, dir, distance).ok();
        Ok((writing, Recovery { kept, ..recovery }))
    }

    /// See [`crate::Store::append`].
    pub(crate) fn append(&mut self, record: &Record<'_>) -> Result<u64, StoreError> {
        let index = self.running.records;
        if record.format() != Format::native(Bank::Sha1) {
            return Err(StoreError::WrongForm { index });
        }
        let computed = record.template_digest(Bank::Sha1);
        let printed = record.printed_digest();
        if computed != printed {
            return Err(StoreError::WrongDigest { index, printed, computed });
        }
        let pcr = self.running.pcr_with(record);
        self.running.pcr = Some(pcr);
        extend(&mut self.running.pcrs, pcr, record, &computed);
        self.running.records += 1;
        self.running.violations += u64::from(record.is_violation());
        self.running.bytes += record.as_bytes().len() as u64;
        self.pending.extend_from_slice(record.as_bytes());
        if let Some(checkpoints) = &self.checkpoints
            && self.running.records.is_multiple_of(checkpoints.distance)
        {
            // Where in which segment that is, the commit will tell.
            let segment_len = self.pending.len() as u64;
            self.marks.push(Commit { segment_len, ..self.running.clone() });
        }
        Ok(index)
    }

    /// See [`crate::Store::commit`].
    pub(crate) fn commit(&mut self, segment_size: u64) -> Result<(), StoreError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let result = self.write(segment_size);
        if result.is_err() {
            self.untidy = true;
            self.rollback();
            // Readers would see what is left. What fails now is tried again before the next
            // commit, and no commit is written before it succeeds.
            let _ = self.tidy();
        }
        result
    }

    pub(crate) fn rollback(&mut self) {
        self.pending.clear();
        let committed = self.committed.records;
        self.marks.retain(|mark| mark.records <= committed);
        self.running = self.committed.clone();
    }

    fn write(&mut self, segment_size: u64) -> Result<(), StoreError> {
        if self.untidy {
            self.tidy()?;
        }
        let segment = self.segment.as_ref().filter(|_| self.committed.segment_len < segment_size);
        let (first, start) = match segment {
            Some(_) => (self.committed.segment, self.committed.segment_len),
            None => (self.committed.records, 0),
        };
        let path = files::segment_path(&self.dir, first);
        let (segment, is_new) = match segment {
            Some(segment) => (Arc::clone(segment), false),
            None => (self.disk.open(&path, Mode::New).at(&path, "open")?, true),
        };
        // Everything else in `running` was counted by `append`.
        self.running.segment = first;
        self.running.segment_len = start + self.pending.len() as u64;
        self.running.crc = crc32fast::hash(&self.pending);
        let committed = self.committed.records;
        for mark in self.marks.iter_mut().filter(|mark| mark.records > committed) {
            mark.segment = first;
            mark.segment_len += start;
            mark.crc = self.running.crc;
        }
        segment.write_all(&self.pending, start).at(&path, "write records")?;
        segment.sync().at(&path, "sync")?;
        if is_new {
            files::sync_dir(self.disk.as_ref(), &self.dir)?;
        }
        let Commits { file, path, .. } = &self.commits;
        let offset = self.commits.offset(self.commits.entries);
        file.write_all(&self.running.encode(), offset).at(path, "write a commit")?;
        file.sync().at(path, "sync")?;

        self.segment = Some(segment);
        self.commits.entries += 1;
        self.committed = self.running.clone();
        self.pending.clear();
        self.write_marks(is_new);
        Ok(())
    }

    /// Writes the checkpoints that are due. The records are durable without them, so a failure is
    /// retried with the next commit.
    fn write_marks(&mut self, segment_is_new: bool) {
        const MOST: usize = 1 << 16;
        let Some(checkpoints) = &self.checkpoints else { return };
        let written = self.marks.iter().try_for_each(|mark| checkpoints.write(mark));
        if written.is_ok() || self.marks.len() > MOST {
            self.marks.clear();
        }
        if segment_is_new {
            // So that those of earlier segments are there after a crash.
            let _ = checkpoints.file.sync();
        }
    }

    /// Cuts off what follows the last commit, and makes durable what is not: a process that was
    /// killed may have written a commit and not synced it.
    ///
    /// `commits` is cut first, so that no valid entry exists without its records.
    fn tidy(&mut self) -> Result<Recovery, StoreError> {
        let disk = self.disk.as_ref();
        let end = self.commits.offset(self.commits.entries);
        let commit_bytes = files::cut(self.commits.file.as_ref(), end, &self.commits.path)?;
        self.commits.torn = 0;

        let mut record_bytes = 0;
        if let Some(segment) = &self.segment {
            let path = files::segment_path(&self.dir, self.committed.segment);
            record_bytes += files::cut(segment.as_ref(), self.committed.segment_len, &path)?;
        }
        for first in self.unfinished()? {
            let path = files::segment_path(&self.dir, first);
            let file = disk.open(&path, Mode::Read).at(&path, "open")?;
            record_bytes += file.size().at(&path, "look at")?;
            disk.remove(&path).at(&path, "remove")?;
        }
        files::sync_dir(disk, &self.dir)?;
        self.untidy = false;
        Ok(Recovery { commit_bytes, record_bytes, kept: None })
    }

    /// Rewrites the last entry unchanged, to be synced: the process that wrote it may have failed
    /// to sync it, and a later sync need not write what a failed one did not. All other entries,
    /// and all records, are durable.
    fn rewrite_last_entry(&self) -> Result<(), StoreError> {
        let Commits { file, path, entries, .. } = &self.commits;
        match entries.checked_sub(1) {
            Some(last) => file
                .write_all(&self.committed.encode(), self.commits.offset(last))
                .at(path, "write a commit again"),
            None => Ok(()),
        }
    }

    /// The segments begun by a commit that was not finished.
    fn unfinished(&self) -> Result<Vec<u64>, StoreError> {
        let mut firsts = files::segments(self.disk.as_ref(), &self.dir)?;
        firsts.retain(|first| self.segment.is_none() || *first > self.committed.segment);
        Ok(firsts)
    }

    /// The segment of the last commit, seen to be long enough.
    fn last_segment(&self) -> Result<Option<Arc<dyn Content>>, StoreError> {
        let Commit { records, segment, segment_len, .. } = self.committed;
        if records == 0 {
            return Ok(None);
        }
        let path = files::segment_path(&self.dir, segment);
        let file = self.disk.open(&path, Mode::Write);
        let packed = files::packed_path(&self.dir, segment);
        if file.is_err() && self.disk.open(&packed, Mode::Read).is_ok() {
            let why = "the segment was packed because a later epoch was there, which is gone; to go \
                       on with this one unpack its segments (gunzip)";
            return Err(StoreError::Damaged { path: packed, offset: 0, why: why.to_owned() });
        }
        let file = file.map_err(|error| files::unopened(path.clone(), error, records - 1))?;
        let size = file.size().at(&path, "look at")?;
        if size < segment_len {
            let why = format!(
                "the segment ends here, {segment_len} bytes were committed: records up to index {} \
                 are missing",
                records - 1
            );
            return Err(StoreError::Damaged { path, offset: size, why });
        }
        Ok(Some(file))
    }

    /// Copies what follows the last commit in `commits`, if it is more than a crash leaves.
    fn keep_garbage(&self) -> Result<Option<PathBuf>, StoreError> {
        let Commits { file, path, entries, torn, .. } = &self.commits;
        if *torn < 2 {
            return Ok(None);
        }
        let disk = self.disk.as_ref();
        let to = files::aside_path(disk, &self.dir, COMMITS)?;
        let copy = disk.open(&to, Mode::New).at(&to, "open")?;
        let part = self.commits.offset(*entries)..u64::MAX;
        files::copy((file.as_ref(), path), part, (copy.as_ref(), &to), 0)?;
        copy.sync().at(&to, "sync")?;
        files::sync_dir(disk, &self.dir)?;
        Ok(Some(to))
    }

    /// Copies the records after the last commit to a file of their own, if there are any.
    fn keep_tail(&self) -> Result<Option<PathBuf>, StoreError> {
        let disk = self.disk.as_ref();
        let mut parts = Vec::new();
        if let Some(segment) = &self.segment {
            let path = files::segment_path(&self.dir, self.committed.segment);
            parts.push((path, Arc::clone(segment), self.committed.segment_len));
        }
        for first in self.unfinished()? {
            let path = files::segment_path(&self.dir, first);
            let file = disk.open(&path, Mode::Read).at(&path, "open")?;
            parts.push((path, file, 0));
        }
        let to = files::aside_path(disk, &self.dir, &format!("{:020}", self.committed.records))?;
        let mut copy: Option<Arc<dyn Content>> = None;
        let mut end = 0;
        for (path, file, begin) in parts {
            if file.size().at(&path, "look at")? <= begin {
                continue;
            }
            let copy = match &mut copy {
                Some(copy) => copy,
                None => copy.insert(disk.open(&to, Mode::New).at(&to, "open")?),
            };
            let part = begin..u64::MAX;
            end += files::copy((file.as_ref(), &path), part, (copy.as_ref(), &to), end)?;
        }
        let Some(copy) = copy else { return Ok(None) };
        copy.sync().at(&to, "sync")?;
        files::sync_dir(disk, &self.dir)?;
        Ok(Some(to))
    }
}
