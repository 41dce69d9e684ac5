//! Concurrent use of one list by several threads, in every interleaving of their locks.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ima-list --test loom --release`; without the flag this
//! file is empty.
#![cfg(loom)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc as StdArc;

use ima_list::{
    AppendError, DeleteError, Duplicates, Options, Part, Removed, Rules, SharedList, StageError,
    TrimError,
};
use ima_log::{Bank, Digest, Endian, RecordBuf};
use loom::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// Records and their digests, made once: the model runs thousands of times.
type Made = StdArc<Vec<(RecordBuf, Digest)>>;

/// A list and the PCR its records extend.
struct Machine {
    list: SharedList,
    pcr: AtomicU64,
    made: Made,
}

/// Models a PCR extend: the result depends on every earlier record and on their order.
fn extended(pcr: u64, record: usize) -> u64 {
    pcr * 10 + record as u64 + 1
}

impl Machine {
    fn append(&self, record: usize) -> Result<(), AppendError> {
        let (bytes, key) = &self.made[record];
        self.list.append(bytes, key, || {
            // Two steps, so that a concurrent extend would be lost.
            let before = self.pcr.load(Ordering::Relaxed);
            self.pcr.store(extended(before, record), Ordering::Relaxed);
        })
    }

    fn read(&self, part: Part) -> Vec<usize> {
        let chunk = self.list.snapshot(part, 0, usize::MAX);
        let records = self.which(&chunk.slices().collect::<Vec<_>>().concat());
        assert_eq!(chunk.records(), records.len() as u64);
        records
    }

    fn which(&self, mut bytes: &[u8]) -> Vec<usize> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let record = self
                .made
                .iter()
                .position(|(record, _)| bytes.starts_with(record.as_bytes()))
                .expect("the list contains whole records that were appended");
            bytes = &bytes[self.made[record].0.as_bytes().len()..];
            records.push(record);
        }
        records
    }

    /// Checks that the offloaded records, followed by those in the list, replay to the PCR.
    fn settle(&self, mut taken: Vec<usize>) {
        taken.extend(self.read(Part::Staged));
        taken.extend(self.read(Part::Current));
        let pcr = taken.iter().fold(0, |pcr, record| extended(pcr, *record));
        assert_eq!(pcr, self.pcr.load(Ordering::Relaxed), "the list holds {taken:?}");
        assert_eq!(self.list.counts().total, taken.len() as u64);
    }

    /// One round of a collector: stage, read, delete.
    fn drain(&self) -> Vec<usize> {
        match self.list.stage() {
            Err(StageError::Empty) => return Vec::new(),
            Err(refused) => panic!("only one thread stages: {refused}"),
            Ok(staged) => {
                let read = self.read(Part::Staged);
                assert_eq!(read.len() as u64, staged, "no record is added to the staged part");
                assert_eq!(self.read(Part::Staged), read, "no record leaves the staged part");
                assert_eq!(self.list.delete_staged().map(removed_count), Ok(staged));
                read
            }
        }
    }
}

fn removed_count(removed: Removed) -> u64 {
    removed.records()
}

/// Runs `test` in every interleaving of the threads it starts, on a list with `options`.
fn every_interleaving(options: Options, test: impl Fn(Arc<Machine>) + Send + Sync + 'static) {
    let made: Made = StdArc::new(
        (0..4u8)
            .map(|i| {
                let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[&[i]]), b"/file");
                let key = record.record().template_digest(Bank::Sha256);
                (record, key)
            })
            .collect(),
    );
    loom::model(move || {
        test(Arc::new(Machine {
            list: SharedList::new(options),
            pcr: AtomicU64::new(0),
            made: StdArc::clone(&made),
        }));
    });
}

#[test]
fn drain_returns_records_in_pcr_order() {
    every_interleaving(Options::default(), |machine| {
        let adding: Vec<_> = [[0, 1], [2, 3]]
            .map(|records| {
                let machine = Arc::clone(&machine);
                thread::spawn(move || records.map(|record| machine.append(record)))
            })
            .into();
        let taken = machine.drain();
        for thread in adding {
            assert_eq!(thread.join().unwrap(), [Ok(()), Ok(())]);
        }
        machine.settle(taken);
    });
}

#[test]
fn one_of_two_equal_records_is_appended_during_a_deletion() {
    every_interleaving(Options::default(), |machine| {
        let adding = [(); 2].map(|()| {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.append(0))
        });
        let taken = machine.drain();
        let added = adding.map(|thread| thread.join().unwrap());
        assert!(
            matches!(
                added,
                [Ok(()), Err(AppendError::Duplicate)] | [Err(AppendError::Duplicate), Ok(())]
            ),
            "{added:?}"
        );
        machine.settle(taken);
    });
}

#[test]
fn flush_drops_all_digests_atomically() {
    let options = Options { duplicates: Duplicates::Flush, ..Options::default() };
    every_interleaving(options, |machine| {
        machine.append(0).unwrap();
        let adding = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || [machine.append(1), machine.append(0)])
        };
        let taken = machine.drain();
        let [new, again] = adding.join().unwrap();
        assert_eq!(new, Ok(()));
        // Record 0 is appended again only after the flush, and is then in the current part.
        let current = machine.read(Part::Current);
        assert_eq!(current.contains(&0), again.is_ok(), "{again:?}, {current:?}");
        // If the second append of record 0 preceded the flush, so did record 1, and its digest is
        // flushed too.
        let forgotten = machine.append(1).is_ok();
        assert!(forgotten || again.is_ok(), "{current:?}");
        machine.settle(taken);
    });
}

#[test]
fn deleting_the_first_n_leaves_concurrent_appends() {
    every_interleaving(Options::default(), |machine| {
        machine.append(0).unwrap();
        let adding = [1, 2].map(|record| {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.append(record))
        });
        let before = machine.read(Part::Current);
        let removed = machine.list.delete_first(2).map(removed_count);
        let added = adding.map(|thread| thread.join().unwrap());
        assert_eq!(added, [Ok(()), Ok(())]);
        let left = machine.read(Part::Current);
        match removed {
            Ok(records) => {
                assert_eq!((records, left.len()), (2, 1));
                assert!(before.len() == 3 || !before.contains(&left[0]), "{before:?}, {left:?}");
                // The deleted records are those not left in the list, in PCR order.
                let mut taken = vec![0, 3 - left[0]];
                taken.retain(|record| *record != left[0]);
                machine.settle(taken);
            }
            Err(refused) => {
                assert_eq!(refused, DeleteError::TooMany { asked: 2, found: 1 });
                assert_eq!(before, [0]);
                machine.settle(Vec::new());
            }
        }
    });
}

#[test]
fn second_trim_of_the_same_records_is_refused() {
    every_interleaving(Options::default(), |machine| {
        machine.append(0).unwrap();
        let adding = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.append(1).unwrap())
        };
        let trim = |machine: &Machine| {
            let total = machine.list.trimmed();
            let read = machine.read(Part::Current);
            (total, machine.list.trim(total, read.len() as u64).map(removed_count), read)
        };
        let other = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || trim(&machine))
        };
        let mut both = [trim(&machine), other.join().unwrap()];
        adding.join().unwrap();
        both.sort_by_key(|(total, ..)| *total);
        let mut taken = Vec::new();
        for (total, done, read) in both {
            match done {
                // The total matches only if nobody trimmed between reading it and the records.
                Ok(records) if total == taken.len() as u64 => {
                    assert_eq!(records, read.len() as u64);
                    taken.extend(read);
                }
                Err(TrimError::WrongTotal { expected, found }) => {
                    assert_eq!(expected, total);
                    assert!(found > total);
                }
                other => panic!("{other:?} after {total}, read {read:?}"),
            }
        }
        assert_eq!(machine.list.trimmed(), taken.len() as u64);
        machine.settle(taken);
    });
}

#[test]
fn records_staged_during_a_dump_cannot_be_deleted() {
    let options = Options { rules: Rules::V4, ..Options::default() };
    every_interleaving(options, |machine| {
        machine.append(0).unwrap();
        let draining = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let staged = machine.list.stage();
                (
                    staged,
                    machine.read(Part::Staged),
                    machine.list.delete_staged().map(removed_count),
                )
            })
        };
        let cutting = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.list.delete_first(1).map(removed_count))
        };
        machine.list.suspend();
        let (buffer, whole) = machine.list.dump(Endian::native(), usize::MAX);
        assert_eq!(whole, Ok(()));
        let carried = machine.which(&buffer[24..]);
        let taken = match (draining.join().unwrap(), cutting.join().unwrap()) {
            ((Err(StageError::Empty), _, Err(DeleteError::Empty)), Ok(1)) => vec![0],
            ((Ok(1), read, deleted), Err(refused)) => {
                assert_eq!(read, [0]);
                match deleted {
                    Ok(1) => read,
                    other => {
                        assert_eq!(other, Err(DeleteError::Dumped));
                        assert_eq!(carried, read);
                        assert_eq!(refused, DeleteError::Pending);
                        assert_eq!(machine.read(Part::Staged), read);
                        vec![]
                    }
                }
            }
            other => panic!("{other:?}"),
        };
        machine.settle(taken);
    });
}

#[test]
fn pcr_is_never_ahead_of_the_list() {
    every_interleaving(Options::default(), |machine| {
        let adding = [0, 1].map(|record| {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.append(record).unwrap())
        });
        // As in an attestation: quote first, then read. Without the yield, loom does not explore a
        // quote between an extend and a later append.
        thread::yield_now();
        let quoted = machine.pcr.load(Ordering::Relaxed);
        let read = machine.read(Part::Current);
        let mut prefixes = vec![0];
        for record in &read {
            prefixes.push(extended(prefixes[prefixes.len() - 1], *record));
        }
        assert!(prefixes.contains(&quoted), "{quoted} of {read:?}");
        for thread in adding {
            thread.join().unwrap();
        }
        let later = machine.read(Part::Current);
        assert!(later.starts_with(&read), "a list only grows: {read:?}, {later:?}");
        machine.settle(Vec::new());
    });
}

#[test]
fn snapshot_is_unchanged_while_all_records_are_deleted() {
    every_interleaving(Options::default(), |machine| {
        machine.append(0).unwrap();
        let reading = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let chunk = machine.list.snapshot(Part::Current, 0, usize::MAX);
                let read = chunk.slices().map(<[u8]>::to_vec).collect::<Vec<_>>();
                let again = machine.read(Part::Current);
                assert_eq!(chunk.slices().collect::<Vec<_>>(), read);
                (chunk.records(), again)
            })
        };
        let adding = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.append(1).unwrap())
        };
        let taken = machine.drain();
        let (read, again) = reading.join().unwrap();
        adding.join().unwrap();
        assert!(read as usize + taken.len() >= 1, "record 0 was read or drained");
        assert!(again.is_empty() || again.is_sorted(), "{again:?}");
        machine.settle(taken);
    });
}

#[test]
fn suspended_list_does_not_change() {
    every_interleaving(Options::default(), |machine| {
        machine.append(0).unwrap();
        let adding = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.append(1))
        };
        let draining = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let staged = machine.list.stage();
                let read = machine.read(Part::Staged);
                (staged, read, machine.list.delete_staged().map(removed_count))
            })
        };
        machine.list.suspend();
        let at_the_end = (machine.read(Part::Staged), machine.read(Part::Current));
        let added = adding.join().unwrap();
        let (staged, read, deleted) = draining.join().unwrap();
        assert_eq!((machine.read(Part::Staged), machine.read(Part::Current)), at_the_end);
        let taken = match (staged, deleted) {
            (Ok(_), Ok(records)) => {
                assert_eq!(records, read.len() as u64);
                read
            }
            (Ok(_), Err(DeleteError::Suspended)) | (Err(StageError::Suspended), Err(_)) => vec![],
            other => panic!("{other:?}"),
        };
        let total = 1 + u64::from(added.is_ok());
        assert_eq!(machine.list.counts().total, total);
        machine.settle(taken);
    });
}

#[test]
fn dump_is_an_atomic_snapshot() {
    every_interleaving(Options::default(), |machine| {
        machine.append(0).unwrap();
        let adding = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || [1, 2].map(|record| machine.append(record)))
        };
        let staging = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.list.stage())
        };
        let (buffer, whole) = machine.list.dump(Endian::native(), usize::MAX);
        assert_eq!(whole, Ok(()));
        let carried = machine.which(&buffer[24..]);
        assert!([0, 1, 2].starts_with(&carried) && !carried.is_empty(), "{carried:?}");
        assert_eq!(adding.join().unwrap(), [Ok(()), Ok(())]);
        staging.join().unwrap().unwrap();
        machine.settle(Vec::new());
    });
}
