use std::{fs::File, io::Read, ops::Range, path::PathBuf};

use ima_log::{Bank, Format, Records};

use crate::{
    Epoch, StoreError,
    commits::{Commit, Commits},
    files::{self, At, COMMITS},
    store::extend,
};

/// What a full check of a state directory's latest epoch found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Records that were read.
    pub records: u64,
    /// What is wrong, in the order of the records.
    pub damage: Vec<Damage>,
}

/// Something that is not as it was stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {what}", place(.path, .offset, .records))]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Where in it, in bytes.
    pub offset: u64,
    /// The records it is in: one, or those of a commit.
    pub records: Range<u64>,
    /// What is wrong.
    pub what: String,
}

/// More would not help anyone.
const MOST_DAMAGE: usize = 100;

/// Reads a whole epoch again: every commit, every record, every digest and every running PCR.
/// Linear; one commit's records are in memory at a time.
///
/// # Errors
/// [`StoreError`] if the files cannot be read at all. What is wrong in them is reported.
pub fn check(state: &std::path::Path) -> Result<CheckReport, StoreError> {
    files::require(state)?;
    let mut report = CheckReport::default();
    let Some(number) = files::latest_epoch(state)? else { return Ok(report) };
    let dir = files::epoch_dir(state, number);
    let epoch = Epoch::read(&dir)?;
    let path = dir.join(COMMITS);
    let file = File::open(&path).at(&path, "open")?;
    let commits = Commits::open(&dir, file, &epoch.banks)?;

    let mut before = Commit::none(&epoch.banks);
    let mut segment: Option<(u64, PathBuf, File)> = None;
    for at in 0..commits.entries {
        if report.damage.len() >= MOST_DAMAGE {
            break;
        }
        let Some(commit) = commits.read(at)? else {
            report.damage.push(Damage {
                path: path.clone(),
                offset: commits.offset(at),
                records: before.records..before.records,
                what: format!("commit {at} is damaged"),
            });
            // Where its records end, only the next one could tell.
            continue;
        };
        if !follows(&before, &commit) {
            report.damage.push(Damage {
                path: path.clone(),
                offset: commits.offset(at),
                records: before.records..before.records,
                what: format!("commit {at} does not follow the one before"),
            });
            before = commit;
            continue;
        }
        if segment.as_ref().is_none_or(|(first, ..)| *first != commit.segment) {
            let path = files::segment_path(&dir, commit.segment);
            let file = File::open(&path).at(&path, "open")?;
            segment = Some((commit.segment, path, file));
        }
        if let Some((_, path, file)) = &segment {
            let start = if before.segment == commit.segment { before.segment_len } else { 0 };
            let mut bytes = Vec::new();
            let mut file = file;
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(start)).at(path, "seek")?;
            let len = commit.segment_len - start;
            file.take(len).read_to_end(&mut bytes).at(path, "read")?;
            if let Some(damage) = examine(&bytes, path, start, &before, &commit) {
                report.damage.push(damage);
            }
        }
        before = commit;
    }
    report.records = before.records;
    Ok(report)
}

fn follows(before: &Commit, commit: &Commit) -> bool {
    let bytes = commit.bytes.checked_sub(before.bytes);
    let start = if before.segment == commit.segment { before.segment_len } else { 0 };
    let continues = before.segment == commit.segment || commit.segment == before.records;
    continues
        && commit.records > before.records
        && bytes.is_some()
        && commit.segment_len.checked_sub(start) == bytes
}

/// Checks the records of one commit. The most exact finding is given.
fn examine(
    bytes: &[u8],
    path: &std::path::Path,
    start: u64,
    before: &Commit,
    commit: &Commit,
) -> Option<Damage> {
    let damage = |offset: u64, records: Range<u64>, what: String| {
        Some(Damage { path: path.to_owned(), offset: start + offset, records, what })
    };
    let whole = before.records..commit.records;
    let mut index = before.records;
    let mut offset = 0;
    let mut pcrs = before.pcrs.clone();
    for record in Records::new(bytes, Format::native(Bank::Sha1)) {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                return damage(error.offset, index..commit.records, error.kind.to_string());
            }
        };
        let digest = record.template_digest(Bank::Sha1);
        if digest != record.printed_digest() {
            let what = format!(
                "the record was altered: its digest is {}, its data's {digest}",
                record.printed_digest()
            );
            return damage(offset, index..index + 1, what);
        }
        extend(&mut pcrs, &record, &digest);
        index += 1;
        offset += record.as_bytes().len() as u64;
    }
    if index != commit.records {
        let what = format!(
            "{} records were stored, {} are there",
            whole.end - whole.start,
            index - whole.start
        );
        return damage(offset, index.min(whole.end)..whole.end, what);
    }
    if crc32fast::hash(bytes) != commit.crc {
        let what = "a byte that no digest covers was altered (PCR index or template name), or a \
                    record was replaced"
            .to_owned();
        return damage(0, whole, what);
    }
    let wrong = pcrs.iter().zip(&commit.pcrs).find(|(replayed, stored)| replayed != stored);
    let (replayed, stored) = wrong?;
    let what = format!("records replay to {replayed} ({}), {stored} was stored", stored.bank());
    damage(0, whole, what)
}

fn place(path: &std::path::Path, offset: &u64, records: &Range<u64>) -> String {
    let records = match records.end.saturating_sub(records.start) {
        0 => format!("before record {}", records.end),
        1 => format!("record {}", records.start),
        _ => format!("between record {} and record {}", records.start, records.end - 1),
    };
    format!("{records} ({} at byte {offset})", path.display())
}
