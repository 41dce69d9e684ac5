//! The file `checkpoints`: the state after every 1,024 records. It makes nothing durable and proves
//! nothing; it avoids the replay of a large commit to find a record in it. An entry is used only if
//! it is consistent with the commits around it, and all can be rebuilt from the records.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ima_log::Replay;

use crate::{
    Epoch, StoreError,
    commits::{self, Commit, HEADER},
    disk::{Content, Disk, Mode},
    files::{self, At, CHECKPOINTS, EPOCH},
};

/// The file, open.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoints {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn Content>,
    pub(crate) reset: Vec<Replay>,
    /// The number of records between two entries.
    pub(crate) distance: u64,
}

/// The default number of records between two entries. Their replay takes a quarter of a millisecond
/// in two banks.
pub(crate) const DISTANCE: u64 = 1024;

const MAGIC: &[u8; 8] = b"IMSTGK1\n";

impl Checkpoints {
    /// The checkpoints of an epoch, if the file is there and is of this epoch.
    pub(crate) fn open(
        disk: &dyn Disk,
        dir: &Path,
        epoch: &Epoch,
        mode: Mode,
    ) -> Option<Checkpoints> {
        let path = dir.join(CHECKPOINTS);
        let json = files::read_small(disk, &dir.join(EPOCH), commits::MOST_JSON).ok()??;
        let file = disk.open(&path, mode).ok()?;
        let mut header = [0; HEADER as usize];
        file.read_up_to(&mut header, 0).ok()?;
        let distance = u32::from_le_bytes(*header.get(8..)?.first_chunk()?);
        let is_of_epoch = distance > 0 && header[..] == commits::header(MAGIC, distance, &json);
        let reset = epoch.reset();
        is_of_epoch.then_some(Checkpoints { path, file, reset, distance: distance.into() })
    }

    /// Restarts the file.
    pub(crate) fn create(
        disk: &dyn Disk,
        dir: &Path,
        epoch: &Epoch,
        distance: u64,
    ) -> Result<Checkpoints, StoreError> {
        let path = dir.join(CHECKPOINTS);
        let json = files::read_small(disk, &dir.join(EPOCH), commits::MOST_JSON)?;
        let file = disk.open(&path, Mode::Create).at(&path, "open")?;
        file.set_size(0).at(&path, "empty")?;
        let short = u32::try_from(distance).unwrap_or(u32::MAX);
        let header = commits::header(MAGIC, short, &json.unwrap_or_default());
        file.write_all(&header, 0).at(&path, "write")?;
        Ok(Checkpoints { path, file, reset: epoch.reset(), distance: short.into() })
    }

    /// The expected number of entries for a number of records.
    pub(crate) fn due(&self, records: u64) -> u64 {
        records / self.distance
    }

    /// The last checkpoint at or before `index`, if it is whole and can lie between two commits
    /// that follow each other.
    pub(crate) fn before(&self, index: u64, commit: &Commit, next: &Commit) -> Option<Commit> {
        let at = self.due(index).checked_sub(1)?;
        self.read(at).filter(|checkpoint| lies_between(checkpoint, commit, next))
    }

    /// The entry at a place; `None` if it is not whole.
    pub(crate) fn read(&self, at: u64) -> Option<Commit> {
        let mut entry = vec![0; commits::entry_len(&self.reset) as usize];
        let read = self.file.read_up_to(&mut entry, self.offset(at)).ok()?;
        let checkpoint = Commit::decode(entry.get(..read)?, &self.reset)?;
        (Some(checkpoint.records) == (at + 1).checked_mul(self.distance)).then_some(checkpoint)
    }

    /// Writes an entry at its offset.
    pub(crate) fn write(&self, checkpoint: &Commit) -> Result<(), StoreError> {
        let Some(at) = self.due(checkpoint.records).checked_sub(1) else { return Ok(()) };
        let offset = self.offset(at);
        self.file.write_all(&checkpoint.encode(), offset).at(&self.path, "write a checkpoint")
    }

    pub(crate) fn offset(&self, at: u64) -> u64 {
        at.saturating_mul(commits::entry_len(&self.reset)).saturating_add(HEADER)
    }
}

/// Whether a checkpoint is consistent with `next`, the commit after `commit`, in which it lies.
fn lies_between(checkpoint: &Commit, commit: &Commit, next: &Commit) -> bool {
    checkpoint.crc == next.crc
        && checkpoint.records > commit.records
        && checkpoint.records <= next.records
        && (commit.violations..=next.violations).contains(&checkpoint.violations)
        && checkpoint.segment == next.segment
        && checkpoint.pcr == next.pcr
        && checkpoint.bytes > commit.bytes
        && next.bytes.checked_sub(checkpoint.bytes)
            == next.segment_len.checked_sub(checkpoint.segment_len)
}

#[cfg(test)]
mod tests {
    use ima_log::{Bank, Extend, RecordBuf};
    use proptest::prelude::*;

    use super::*;
    use crate::{EpochId, Reader, Store, check::check_on, sim::SimDisk, store::Layout};

    const STATE: &str = "/state";

    fn record(n: usize) -> RecordBuf {
        match n % 5 {
            1 => RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/violation"),
            3 => RecordBuf::ima_ng(11, &Bank::Sha256.hash(&[]), b"/of/another/pcr"),
            _ => RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), format!("/file/{n}").as_bytes()),
        }
    }

    /// What is done to the file.
    #[derive(Clone, Debug)]
    enum Harm {
        None,
        Flip(prop::sample::Index),
        Cut(prop::sample::Index),
        /// The entries of a store with other records.
        Foreign,
    }

    fn harm() -> impl Strategy<Value = Harm> {
        prop_oneof![
            Just(Harm::None),
            any::<prop::sample::Index>().prop_map(Harm::Flip),
            any::<prop::sample::Index>().prop_map(Harm::Cut),
            Just(Harm::Foreign),
        ]
    }

    fn filled(disk: &SimDisk, layout: Layout, batches: &[usize], first: usize) -> Store {
        let mut store = Store::open_on(Arc::new(disk.clone()), Path::new(STATE), layout).unwrap();
        let padded = [Bank::Sha384, Bank::Sm3];
        store.begin_epoch_with(EpochId::default(), &Bank::ALL, &padded).unwrap();
        let mut next = first;
        for batch in batches {
            for _ in 0..*batch {
                store.append(&record(next).record()).unwrap();
                next += 1;
            }
            store.commit().unwrap();
        }
        store
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever the file contains, every index is found and every prefix replays correctly, and
        /// opening the store rebuilds the file.
        #[test]
        fn any_prefix_replays_as_if_from_its_beginning(
            batches in prop::collection::vec(1usize..40, 1..6),
            distance in 1u64..9,
            segment_size in 100u64..4_000,
            harm in harm(),
            // With 3, the list is one of PCR 11.
            first in prop_oneof![Just(0usize), Just(3usize)],
        ) {
            let layout = Layout { segment_size, distance };
            let disk = SimDisk::new(1);
            drop(filled(&disk, layout, &batches, first));
            let dir = files::epoch_dir(Path::new(STATE), 1);
            let file = disk.open(&dir.join(CHECKPOINTS), Mode::Write).unwrap();
            let size = file.size().unwrap() as usize;
            match &harm {
                Harm::None => {}
                Harm::Flip(at) => {
                    let (mut byte, at) = ([0], at.index(size) as u64);
                    file.read_at(&mut byte, at).unwrap();
                    file.write_all(&[byte[0] ^ 0x20], at).unwrap();
                }
                Harm::Cut(at) => file.set_size(at.index(size) as u64).unwrap(),
                Harm::Foreign => {
                    let other = SimDisk::new(2);
                    drop(filled(&other, layout, &batches, first + 1));
                    let theirs = other.open(&dir.join(CHECKPOINTS), Mode::Read).unwrap();
                    let mut bytes = vec![0; size];
                    let len = theirs.read_up_to(&mut bytes, 0).unwrap();
                    file.write_all(&bytes[HEADER as usize..len], HEADER).unwrap();
                }
            }

            let count: usize = batches.iter().sum();
            let records: Vec<RecordBuf> = (first..first + count).map(record).collect();
            let reader = Reader::open_epoch(Arc::new(disk.clone()), &dir).unwrap();
            prop_assert_eq!(reader.pcr(), Some(records[0].record().pcr()));
            let mut expected = reader.epoch().reset();
            prop_assert_eq!(expected.len(), 7);
            for index in 0..=count {
                prop_assert_eq!(reader.running_at(index as u64).unwrap(), expected.clone());
                let mut cursor = reader.records(index as u64).unwrap();
                if let Some(record) = records.get(index) {
                    let found = cursor.next_record().unwrap().unwrap();
                    prop_assert_eq!(found.as_bytes(), record.as_bytes());
                    if Some(record.record().pcr()) == reader.pcr() {
                        expected.iter_mut().for_each(|pcr| pcr.extend(&record.record()));
                    }
                }
            }
            prop_assert!(reader.running_at(count as u64 + 1).is_err());
            let store = Store::open_on(Arc::new(disk.clone()), Path::new(STATE), layout).unwrap();
            for pcr in &expected {
                let (bank, extend) = (pcr.value().bank(), pcr.extend_kind());
                prop_assert_eq!(store.running_as(bank, extend), Some(pcr.value()));
                prop_assert_eq!(extend == Extend::Own, store.running(bank) == Some(pcr.value()));
            }
            let report = check_on(&disk, Path::new(STATE), &mut |_| {}).unwrap();
            prop_assert_eq!(report.damage, vec![]);
            let whole = !matches!(harm, Harm::Foreign) || (count as u64) < distance;
            prop_assert_eq!(report.checkpoints.is_empty(), whole);
        }
    }

    #[test]
    fn behind_damage_there_are_checkpoints_again() {
        let disk = SimDisk::new(1);
        let layout = Layout { segment_size: 10_000, distance: 4 };
        drop(filled(&disk, layout, &[20], 0));
        let dir = files::epoch_dir(Path::new(STATE), 1);
        disk.remove(&dir.join(CHECKPOINTS)).unwrap();
        let segment = disk.open(&files::segment_path(&dir, 0), Mode::Write).unwrap();
        // The length of the first record's template name.
        segment.write_all(&[0xff; 4], 24).unwrap();
        let mut store = Store::open_on(Arc::new(disk.clone()), Path::new(STATE), layout).unwrap();
        for n in 20..40 {
            store.append(&record(n).record()).unwrap();
        }
        store.commit().unwrap();
        let reader = Reader::open_epoch(Arc::new(disk.clone()), &dir).unwrap();
        let start = reader.start(39).unwrap();
        assert_eq!(start.records, 36);
        assert!(reader.running_at(39).is_ok() && reader.running_at(3).is_err());
    }
}
