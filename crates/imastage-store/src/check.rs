//! Reads a stored epoch again in full and reports damage.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use crc32fast::Hasher;
use ima_log::{Bank, Decoder, Format, Replay};

use crate::{
    Damage, Remedy, StoreError,
    beneath::SystemDisk,
    checkpoints::Checkpoints,
    commits::{Commit, Commits, extend},
    directory::check_directory_on,
    disk::{Disk, Mode},
    files::{self, CHECKPOINTS, CHUNK, COMMITS, NOTES},
    notes::{self, Notes},
};

/// The result of a full check of an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckReport {
    /// The number of committed records.
    pub records: u64,
    /// The damage, in the order of the records; at most about a hundred findings.
    pub damage: Vec<Damage>,
    /// Damage of the checkpoints, if the records are intact. They contain no evidence: readers do
    /// without them, and they are rebuilt when the store is opened for writing.
    pub checkpoints: Vec<Damage>,
}

/// The maximum number of findings.
const MOST_DAMAGE: usize = 100;

/// Checks every commit, record, digest and running PCR of the latest epoch, and the other entries
/// of the state directory ([`crate::check_directory`]). Linear in the size; keeps one record and
/// one chunk in memory.
///
/// # Errors
/// [`StoreError`] if the epoch cannot be read. Damage is not an error but reported.
pub fn check(state: &Path) -> Result<CheckReport, StoreError> {
    check_with(state, &mut |_| {})
}

/// As [`check`]; calls `progress` with the number of records read after each commit.
///
/// # Errors
/// As [`check`].
pub fn check_with(state: &Path, progress: &mut dyn FnMut(u64)) -> Result<CheckReport, StoreError> {
    check_on(&SystemDisk::new(state), state, progress)
}

/// As [`check`], of any epoch, packed or not.
///
/// # Errors
/// As [`check`]; [`StoreError::NoSuchEpoch`].
pub fn check_epoch(state: &Path, number: u64) -> Result<CheckReport, StoreError> {
    check_epoch_on(&SystemDisk::new(state), state, number)
}

pub(crate) fn check_on(
    disk: &dyn Disk,
    state: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<CheckReport, StoreError> {
    let mut damage = check_directory_on(disk, state)?.damage;
    let epochs = match files::epochs(disk, state) {
        // Named already.
        Err(StoreError::Damaged { .. }) => Vec::new(),
        epochs => epochs?,
    };
    let mut report = match epochs.last() {
        Some(number) => check_epoch_with(disk, state, *number, progress)?,
        None => CheckReport::default(),
    };
    damage.retain(|found| report.damage.iter().all(|damage| damage.path != found.path));
    damage.append(&mut report.damage);
    Ok(CheckReport { damage, ..report })
}

pub(crate) fn check_epoch_on(
    disk: &dyn Disk,
    state: &Path,
    number: u64,
) -> Result<CheckReport, StoreError> {
    check_epoch_with(disk, state, number, &mut |_| {})
}

fn check_epoch_with(
    disk: &dyn Disk,
    state: &Path,
    number: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<CheckReport, StoreError> {
    let dir = files::require_epoch(disk, state, number)?;
    let mut report = match check_records(disk, &dir, progress) {
        Err(StoreError::Damaged { path, offset, why: what }) => {
            let remedy = match Commits::header_again(disk, &dir) {
                Ok(Some(_)) if offset == 0 && path.ends_with(COMMITS) => Remedy::Rebuild,
                _ => Remedy::Restore,
            };
            let damage = vec![Damage { path, offset, records: 0..0, what, remedy }];
            CheckReport { damage, ..CheckReport::default() }
        }
        report => report?,
    };
    let foreign = match files::foreign(disk, &dir) {
        // No directory: named already.
        Err(StoreError::Damaged { .. }) => Vec::new(),
        foreign => foreign?,
    };
    let end = report.records..report.records;
    for (path, what) in foreign.into_iter().take(MOST_DAMAGE) {
        match report.damage.iter_mut().find(|damage| damage.path == path) {
            Some(damage) => damage.remedy = Remedy::MoveAway,
            None => {
                let (records, remedy) = (end.clone(), Remedy::MoveAway);
                report.damage.push(Damage { path, offset: 0, records, what, remedy });
            }
        }
    }
    Ok(report)
}

fn check_records(
    disk: &dyn Disk,
    dir: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<CheckReport, StoreError> {
    let (epoch, commits) = Commits::open_damaged(disk, dir, Mode::Read)?;
    let dir = dir.to_owned();
    let segments = files::segments(disk, &dir)?;
    let checkpoints = Checkpoints::open(disk, &dir, &epoch, Mode::Read);
    let mut check =
        Check { disk, dir, segments, checkpoints, damage: vec![], stale: vec![], search: None };

    let mut before = Commit::none(&epoch.reset());
    // Where the entries after `before` that are damaged were reported.
    let mut gap: Vec<usize> = Vec::new();
    for at in 0..commits.entries {
        if check.damage.len() >= MOST_DAMAGE {
            break;
        }
        let offset = commits.offset(at);
        match commits.read(at)? {
            None => {
                let what = format!("commit {at} is damaged");
                check.found(&commits.path, offset, before.records..before.records, what);
                gap.push(check.damage.len() - 1);
            }
            Some(commit) => {
                if follows(&before, &commit) {
                    let is_whole = check.span(&before, &commit, !gap.is_empty()).is_some();
                    if let ([entry], true) = (&gap[..], is_whole)
                        && let Some(damage) = check.damage.get_mut(*entry)
                    {
                        damage.remedy = Remedy::Rebuild;
                    }
                } else {
                    let what = format!("commit {at} does not follow the one before");
                    check.found(&commits.path, offset, before.records..before.records, what);
                }
                before = commit;
                gap.clear();
                progress(before.records);
            }
        }
    }
    if commits.torn > 0 {
        let at = commits.entries;
        let what = match commits.torn {
            1 => format!(
                "commit {at}, the last, is torn or was altered: what it stored does not count, and \
                 is put aside when the store is opened for writing"
            ),
            more => format!(
                "{more} entries behind the last whole commit are none, or were altered: what they \
                 stored does not count"
            ),
        };
        check.aside(&commits.path, commits.offset(at), before.records..before.records, what);
        // Of a packed segment nothing can be cut off.
        let (segment, _) = files::open_segment(disk, &check.dir, before.segment);
        if let Some(damage) = check.damage.last_mut()
            && segment.extension().is_some_and(|extension| extension == "gz")
        {
            damage.remedy = Remedy::Restore;
        }
    }
    let end = before.records..before.records;
    let notes = match notes::read(disk, &check.dir) {
        Err(StoreError::Damaged { path, offset, why }) => {
            check.found(&path, offset, end.clone(), why);
            Notes::default()
        }
        notes => notes?,
    };
    for offset in notes.damaged.into_iter().take(MOST_DAMAGE) {
        check.aside(&check.dir.join(NOTES), offset, end.clone(), "a remark is damaged".to_owned());
    }
    if let Some(offset) = notes.torn {
        let what = "the last remark is torn or was altered: it does not count".to_owned();
        check.aside(&check.dir.join(NOTES), offset, end, what);
    }
    if check.checkpoints.is_none() && before.records > 0 {
        let path = check.dir.join(CHECKPOINTS);
        let what = "the file is missing, or its header is damaged".to_owned();
        let remedy = Remedy::Rebuild;
        check.stale.push(Damage { path, offset: 0, records: 0..0, what, remedy });
    }
    let (damage, checkpoints) = (check.damage, check.stale);
    Ok(CheckReport { records: before.records, damage, checkpoints })
}

/// The commit at a place whose entry is damaged, if those around it are whole and prove all
/// records between them.
pub(crate) fn commit_again(
    disk: &dyn Disk,
    dir: &Path,
    at: u64,
) -> Result<Option<Commit>, StoreError> {
    let (epoch, commits) = Commits::open_damaged(disk, dir, Mode::Read)?;
    let before = match at.checked_sub(1) {
        Some(before) => commits.read(before)?,
        None => Some(Commit::none(&epoch.reset())),
    };
    let (Some(before), Some(behind)) = (before, commits.read(at + 1)?) else { return Ok(None) };
    let segments = files::segments(disk, dir)?;
    let (damage, stale) = (Vec::new(), Vec::new());
    let dir = dir.to_owned();
    let mut check = Check { disk, dir, segments, checkpoints: None, damage, stale, search: None };
    let Some(all) = check.span(&before, &behind, true) else { return Ok(None) };
    let search = Search { so_far: Hasher::new(), all, behind: behind.clone(), found: None };
    check.search = Some(search);
    check.span(&before, &behind, true);
    Ok(check.search.and_then(|search| search.found))
}

/// Whether `commit` can be a later one than `before`.
fn follows(before: &Commit, commit: &Commit) -> bool {
    let goes_on = if before.segment == commit.segment {
        commit.segment_len > before.segment_len
    } else {
        commit.segment >= before.records
    };
    goes_on
        && commit.records > before.records
        && commit.bytes > before.bytes
        && commit.violations >= before.violations
        && (before.pcr.is_none() || before.pcr == commit.pcr)
}

struct Check<'a> {
    disk: &'a dyn Disk,
    dir: PathBuf,
    /// The first indexes of the segments there are, ascending.
    segments: Vec<u64>,
    checkpoints: Option<Checkpoints>,
    damage: Vec<Damage>,
    /// Wrong checkpoints.
    stale: Vec<Damage>,
    search: Option<Search>,
}

/// The search for the end of a commit whose entry is damaged: the CRC of all bytes that were read
/// is then the CRC of the bytes before that place, combined with that of the following commit.
struct Search {
    so_far: Hasher,
    all: u32,
    /// The commit after the one that is searched for.
    behind: Commit,
    found: Option<Commit>,
}

/// What was read of a span of records.
struct Span {
    /// The index after the last record read.
    next: u64,
    violations: u64,
    bytes: u64,
    crc: Hasher,
    /// The PCR whose values are kept.
    pcr: Option<u32>,
    pcrs: Vec<Replay>,
    /// The expected checkpoints.
    marks: Vec<Commit>,
}

impl Span {
    /// That the records go to here.
    fn commit(&self, segment: u64, segment_len: u64, crc: u32) -> Commit {
        Commit {
            records: self.next,
            violations: self.violations,
            bytes: self.bytes,
            segment,
            segment_len,
            crc,
            pcr: self.pcr,
            pcrs: self.pcrs.clone(),
        }
    }
}

impl Search {
    fn is_met(&self, bytes: u64) -> bool {
        let left = self.behind.bytes.saturating_sub(bytes);
        let mut all = self.so_far.clone();
        all.combine(&Hasher::new_with_initial_len(self.behind.crc, left));
        self.found.is_none() && left > 0 && all.finalize() == self.all
    }
}

impl Check<'_> {
    fn found(&mut self, path: &Path, offset: u64, records: Range<u64>, what: String) {
        let (path, remedy) = (path.to_owned(), Remedy::Restore);
        self.damage.push(Damage { path, offset, records, what, remedy });
    }

    fn aside(&mut self, path: &Path, offset: u64, records: Range<u64>, what: String) {
        let (path, remedy) = (path.to_owned(), Remedy::PutAside);
        self.damage.push(Damage { path, offset, records, what, remedy });
    }

    /// Checks the records between two consecutive commits; with a `gap`, one or more damaged
    /// commits lie between them. Returns the CRC of their bytes if they are intact.
    fn span(&mut self, before: &Commit, commit: &Commit, gap: bool) -> Option<u32> {
        let known = self.damage.len();
        let mut span = Span {
            next: before.records,
            violations: before.violations,
            bytes: before.bytes,
            crc: Hasher::new(),
            pcr: commit.pcr,
            pcrs: before.pcrs.clone(),
            marks: Vec::new(),
        };
        let whole = before.records..commit.records;
        let same = before.segment == commit.segment;
        if !same && before.records > 0 {
            // Nothing may follow the last commit of a segment that was left.
            let unaccounted = if gap { u64::MAX } else { before.segment_len };
            self.part(&mut span, before.segment, before.segment_len, unaccounted, commit);
        }
        let between: Vec<u64> = self.segments.clone();
        let later = |first: &u64| *first > before.segment || before.records == 0;
        for first in between.into_iter().filter(later).filter(|first| *first < commit.segment) {
            let end = if gap { u64::MAX } else { 0 };
            self.part(&mut span, first, 0, end, commit);
        }
        let begin = if same { before.segment_len } else { 0 };
        if !same && span.next != commit.segment && self.damage.len() == known {
            let what = format!(
                "the segment should begin with record {}, its name says {}",
                span.next, commit.segment
            );
            let (path, _) = files::open_segment(self.disk, &self.dir, commit.segment);
            self.found(&path, 0, whole.clone(), what);
        }
        self.part(&mut span, commit.segment, begin, commit.segment_len, commit);
        if self.damage.len() > known {
            // What follows would only say the same less exactly.
            return None;
        }

        let crc = span.crc.clone().finalize();
        let wrong_pcr = span.pcrs.iter().zip(&commit.pcrs).find(|(now, then)| now != then);
        let what = if (span.next, span.bytes) != (commit.records, commit.bytes) {
            format!(
                "records up to index {} in {} bytes were stored, index {} in {} bytes are there",
                commit.records - 1,
                commit.bytes,
                span.next.saturating_sub(1),
                span.bytes
            )
        } else if let Some((now, then)) = wrong_pcr {
            let (now, then) = (now.value(), then.value());
            format!("the records replay to {now} ({}), {then} was stored", then.bank())
        } else if !gap && crc != commit.crc {
            "a byte that no digest covers was altered (PCR index or template name)".to_owned()
        } else if span.violations != commit.violations {
            let (then, now) = (commit.violations, span.violations);
            format!("{then} violations up to here were stored, {now} are there")
        } else {
            // After a damaged commit nobody knows which one a checkpoint lies in.
            if !gap {
                self.compare(&span.marks);
            }
            return Some(crc);
        };
        let (path, _) = files::open_segment(self.disk, &self.dir, commit.segment);
        self.found(&path, begin, whole, what);
        None
    }

    /// Compares the checkpoints with the intact records.
    fn compare(&mut self, marks: &[Commit]) {
        let Some(checkpoints) = &self.checkpoints else { return };
        for mark in marks {
            let at = checkpoints.due(mark.records) - 1;
            if checkpoints.read(at).as_ref() != Some(mark) && self.stale.len() < MOST_DAMAGE {
                let (path, offset) = (checkpoints.path.clone(), checkpoints.offset(at));
                let records = mark.records..mark.records;
                let what = format!("checkpoint {at} is not what the records lead to");
                let remedy = Remedy::Rebuild;
                self.stale.push(Damage { path, offset, records, what, remedy });
            }
        }
    }

    /// Reads part of a segment. To its end, if `end` is [`u64::MAX`]; if it is the beginning, there
    /// should be nothing.
    fn part(&mut self, span: &mut Span, first: u64, begin: u64, end: u64, commit: &Commit) {
        let left = |span: &Span| span.next.min(commit.records)..commit.records;
        let (path, file) = files::open_segment(self.disk, &self.dir, first);
        let (size, file) = match file.and_then(|file| Ok((file.size()?, file))) {
            Ok(file) => file,
            Err(error) => return self.found(&path, begin, left(span), error.to_string()),
        };
        if begin == end {
            if size > end {
                let what = format!("{} bytes are there that no commit stored", size - end);
                self.aside(&path, end, span.next..span.next, what);
            }
            return;
        }
        let end = if end == u64::MAX { size } else { end };
        let mut decoder = Decoder::new(Format::native(Bank::Sha1));
        let chunk = usize::try_from(end.saturating_sub(begin)).unwrap_or(CHUNK).min(CHUNK);
        let (mut chunk, mut offset) = (vec![0; chunk], begin);
        while offset < end {
            let most = usize::try_from(end - offset).unwrap_or(usize::MAX).min(chunk.len());
            let read = match file.read_up_to(&mut chunk[..most], offset) {
                Ok(0) => {
                    let what = format!("the segment ends here, expected {end} bytes");
                    return self.found(&path, offset, left(span), what);
                }
                Ok(read) => read,
                Err(error) => return self.found(&path, offset, left(span), error.to_string()),
            };
            let bytes = &chunk[..read];
            span.crc.update(bytes);
            offset += read as u64;
            decoder.feed(bytes);
            loop {
                let at = begin + decoder.offset();
                let record = match decoder.next_record() {
                    Ok(Some(record)) => record,
                    Ok(None) => break,
                    Err(error) => {
                        return self.found(&path, at, left(span), error.kind.to_string());
                    }
                };
                let (printed, computed) =
                    (record.printed_digest(), record.template_digest(Bank::Sha1));
                if let Some(pcr) = span.pcr {
                    extend(&mut span.pcrs, pcr, &record, &computed);
                }
                span.violations += u64::from(record.is_violation());
                let (index, len) = (span.next, record.as_bytes().len() as u64);
                span.next += 1;
                span.bytes += len;
                if let Some(checkpoints) = &self.checkpoints
                    && span.next.is_multiple_of(checkpoints.distance)
                {
                    span.marks.push(span.commit(first, at + len, commit.crc));
                }
                if let Some(search) = &mut self.search {
                    search.so_far.update(record.as_bytes());
                    if search.is_met(span.bytes) {
                        let crc = search.so_far.clone().finalize();
                        search.found = Some(span.commit(first, at + len, crc));
                    }
                }
                if printed != computed && self.damage.len() < MOST_DAMAGE {
                    let what = format!(
                        "the record was altered: its digest is {printed}, its data's {computed}"
                    );
                    self.found(&path, at, index..index + 1, what);
                }
            }
        }
        if let Err(error) = decoder.finish() {
            self.found(&path, begin + error.offset, left(span), error.kind.to_string());
        }
    }
}
