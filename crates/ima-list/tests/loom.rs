//! What several threads may do to one list, in every interleaving of their locks.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ima-list --test loom --release`; without the flag there is
//! nothing here.
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

/// What stands for a PCR extend: the result depends on every record before it and on their order.
fn extended(pcr: u64, record: usize) -> u64 {
    pcr * 10 + record as u64 + 1
}

impl Machine {
    fn append(&self, record: usize) -> Result<(), AppendError> {
        let (bytes, key) = &self.made[record];
        self.list.append(bytes, key, || {
            // Two steps, as a TPM's: another extend in between would be lost.
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
                .expect("what is read are whole records that were added");
            bytes = &bytes[self.made[record].0.as_bytes().len()..];
            records.push(record);
        }
        records
    }

    /// All that was taken, then what is left, is what the PCR was extended with.
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
                assert_eq!(read.len() as u64, staged, "nothing joins what is staged");
                assert_eq!(self.read(Part::Staged), read, "nor leaves it");
                assert_eq!(self.list.delete_staged().map(gone), Ok(staged));
                read
            }
        }
    }
}

fn gone(removed: Removed) -> u64 {
    removed.records()
}

/// Runs `test` in every interleaving of the threads it starts, on a list that `options` describe.
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
fn whoever_drains_gets_the_records_in_the_order_of_the_pcr() {
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
fn of_equal_records_one_is_added_even_while_it_is_being_deleted() {
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
fn flushing_forgets_digests_at_one_moment() {
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
        // Added again only if that was after the deletion; then the deleted one is not the only one.
        let current = machine.read(Part::Current);
        assert_eq!(current.contains(&0), again.is_ok(), "{again:?}, {current:?}");
        // If record 0 came before the flush, so did record 1, and its digest is forgotten too.
        let forgotten = machine.append(1).is_ok();
        assert!(forgotten || again.is_ok(), "{current:?}");
        machine.settle(taken);
    });
}

#[test]
fn deleting_the_first_leaves_the_rest_whoever_adds() {
    every_interleaving(Options::default(), |machine| {
        machine.append(0).unwrap();
        let adding = [1, 2].map(|record| {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.append(record))
        });
        let before = machine.read(Part::Current);
        let removed = machine.list.delete_first(2).map(gone);
        let added = adding.map(|thread| thread.join().unwrap());
        assert_eq!(added, [Ok(()), Ok(())]);
        let left = machine.read(Part::Current);
        match removed {
            Ok(records) => {
                assert_eq!((records, left.len()), (2, 1));
                assert!(before.len() == 3 || !before.contains(&left[0]), "{before:?}, {left:?}");
                // The first two are those that are not left: their order is what the PCR has.
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
fn of_two_who_trim_what_both_have_read_one_does() {
    every_interleaving(Options::default(), |machine| {
        machine.append(0).unwrap();
        let adding = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.append(1).unwrap())
        };
        let trim = |machine: &Machine| {
            let total = machine.list.trimmed();
            let read = machine.read(Part::Current);
            (total, machine.list.trim(total, read.len() as u64).map(gone), read)
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
                // Right only if nobody trimmed between the total and the records being read.
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
fn what_was_staged_when_the_list_was_dumped_stays_whoever_deletes() {
    let options = Options { rules: Rules::V4, ..Options::default() };
    every_interleaving(options, |machine| {
        machine.append(0).unwrap();
        let draining = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let staged = machine.list.stage();
                (staged, machine.read(Part::Staged), machine.list.delete_staged().map(gone))
            })
        };
        let cutting = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.list.delete_first(1).map(gone))
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
fn the_pcr_is_never_ahead_of_the_list() {
    every_interleaving(Options::default(), |machine| {
        let adding = [0, 1].map(|record| {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.append(record).unwrap())
        });
        // As an attestation does it: quote first, then read.
        // Without the yield, loom does not come to try a quote between an extend and a later append.
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
fn what_was_read_stays_what_it_was_while_all_is_deleted() {
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
        assert!(read as usize + taken.len() >= 1, "record 0 is read or was taken");
        assert!(again.is_empty() || again.is_sorted(), "{again:?}");
        machine.settle(taken);
    });
}

#[test]
fn what_a_suspended_list_holds_does_not_change() {
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
                (staged, read, machine.list.delete_staged().map(gone))
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
fn what_is_carried_over_a_kexec_is_the_list_at_one_moment() {
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
