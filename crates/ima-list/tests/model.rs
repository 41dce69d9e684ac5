//! The list compared with a model made of vectors.

use std::collections::HashSet;

use ima_list::{
    AppendError, Chunk, Counts, DeleteError, Duplicates, List, Options, Part, Removed, Rules,
    StageError, TrimError,
};
use ima_log::{Bank, Digest, Endian, RecordBuf};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Append {
        which: u8,
        pcr: u32,
    },
    AppendMany {
        records: u16,
        len: u16,
    },
    AppendViolation,
    Stage,
    DeleteStaged,
    DeleteFirst(u64),
    /// Prepares a deletion for a later [`Op::DeletePrepared`].
    Prepare(u64),
    DeletePrepared,
    Trim {
        n: u64,
        wrong_total: bool,
    },
    Suspend,
    Dump {
        capacity: usize,
    },
    Snapshot {
        part: Part,
        from: u64,
        max_bytes: usize,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let part = prop_oneof![Just(Part::Current), Just(Part::Staged)];
    let op = prop_oneof![
        4 => (any::<u8>(), 10u32..12).prop_map(|(which, pcr)| Op::Append { which, pcr }),
        4 => (1u16..120, 0u16..900).prop_map(|(records, len)| Op::AppendMany { records, len }),
        1 => Just(Op::AppendViolation),
        2 => Just(Op::Stage),
        2 => Just(Op::DeleteStaged),
        3 => (0u64..300).prop_map(Op::DeleteFirst),
        2 => (0u64..300).prop_map(Op::Prepare),
        2 => Just(Op::DeletePrepared),
        2 => (prop_oneof![1 => Just(0), 3 => 0u64..300], prop::bool::weighted(0.2))
            .prop_map(|(n, wrong_total)| Op::Trim { n, wrong_total }),
        4 => (part, 0u64..300, 0usize..60_000)
            .prop_map(|(part, from, max_bytes)| Op::Snapshot { part, from, max_bytes }),
    ];
    // At most one suspension and one dump, near the end, each followed by a few operations. A
    // capacity below the header's size is the same as the header's size.
    let some = |most| prop::collection::vec(op.clone(), 0..most);
    let dumped = (prop_oneof![0usize..50_000, Just(usize::MAX)], some(12));
    (some(60), prop::option::of((some(8), prop::option::of(dumped)))).prop_map(
        |(mut ops, suspended)| {
            if let Some((suspended, dumped)) = suspended {
                ops.push(Op::Suspend);
                ops.extend(suspended);
                if let Some((capacity, dumped)) = dumped {
                    ops.push(Op::Dump { capacity });
                    ops.extend(dumped);
                }
            }
            ops
        },
    )
}

#[derive(Default)]
struct Model {
    options: Options,
    current: Vec<Vec<u8>>,
    staged: Vec<Vec<u8>>,
    seen: HashSet<(Digest, u32)>,
    suspended: bool,
    staged_dumped: bool,
    trimmed: u64,
    counts: Counts,
}

impl Model {
    fn append(&mut self, record: &RecordBuf, key: Digest) -> Result<(), AppendError> {
        let parsed = record.record();
        if self.suspended {
            return Err(AppendError::Suspended);
        }
        if parsed.is_violation() {
            self.counts.violations += 1;
        } else if self.options.duplicates != Duplicates::Off
            && !self.seen.insert((key, parsed.pcr()))
        {
            return Err(AppendError::Duplicate);
        }
        self.current.push(record.as_bytes().to_vec());
        self.counts.total += 1;
        Ok(())
    }

    fn stage(&mut self) -> Result<u64, StageError> {
        if !self.staged.is_empty() {
            Err(StageError::Pending)
        } else if self.current.is_empty() {
            Err(StageError::Empty)
        } else if self.suspended && self.options.rules == Rules::Linux72 {
            Err(StageError::Suspended)
        } else {
            self.staged = std::mem::take(&mut self.current);
            Ok(self.staged.len() as u64)
        }
    }

    fn delete_staged(&mut self) -> Result<Vec<Vec<u8>>, DeleteError> {
        match self.options.rules {
            _ if self.staged.is_empty() => return Err(DeleteError::Empty),
            Rules::Linux72 if self.suspended => return Err(DeleteError::Suspended),
            Rules::V4 if self.staged_dumped => return Err(DeleteError::Dumped),
            Rules::Linux72 | Rules::V4 => {}
        }
        if self.options.duplicates == Duplicates::Flush {
            self.seen.clear();
        }
        Ok(std::mem::take(&mut self.staged))
    }

    fn delete_first(&mut self, n: u64) -> Result<Vec<Vec<u8>>, DeleteError> {
        let found = self.current.len() as u64;
        match self.options.rules {
            Rules::V4 if !self.staged.is_empty() => Err(DeleteError::Pending),
            _ if found < n => Err(DeleteError::TooMany { asked: n, found }),
            Rules::Linux72 if self.suspended => Err(DeleteError::Suspended),
            Rules::Linux72 | Rules::V4 => Ok(self.current.drain(..n as usize).collect()),
        }
    }

    fn trim(&mut self, expected: u64, n: u64) -> Result<Vec<Vec<u8>>, TrimError> {
        let found = self.current.len() as u64;
        if self.options.duplicates == Duplicates::Flush {
            Err(TrimError::Flush)
        } else if expected != self.trimmed {
            Err(TrimError::WrongTotal { expected, found: self.trimmed })
        } else if n == 0 {
            Ok(Vec::new())
        } else if found < n {
            Err(TrimError::TooMany { asked: n, found })
        } else if self.suspended {
            Err(TrimError::Suspended)
        } else {
            self.trimmed += n;
            Ok(self.current.drain(..n as usize).collect())
        }
    }

    /// The number and size of the deleted records, as the list reports them.
    fn deleted<E>(&mut self, done: Result<Vec<Vec<u8>>, E>) -> Result<(u64, u64), E> {
        let (records, bytes) = done.map(|removed| {
            (removed.len() as u64, removed.iter().map(Vec::len).sum::<usize>() as u64)
        })?;
        self.counts.freed_bytes += bytes;
        Ok((records, bytes))
    }

    fn snapshot(&self, part: Part, from: u64, max_bytes: usize) -> (u64, Vec<u8>) {
        let records = match part {
            Part::Current => &self.current,
            Part::Staged => &self.staged,
        };
        let mut taken = (0, Vec::new());
        for record in records.iter().skip(from as usize) {
            if taken.0 > 0 && taken.1.len() + record.len() > max_bytes {
                break;
            }
            taken.0 += 1;
            taken.1.extend_from_slice(record);
        }
        taken
    }

    fn counts(&self) -> Counts {
        let bytes = |records: &[Vec<u8>]| records.iter().map(Vec::len).sum::<usize>() as u64;
        Counts {
            current: self.current.len() as u64,
            staged: self.staged.len() as u64,
            held_bytes: bytes(&self.current) + bytes(&self.staged),
            ..self.counts
        }
    }
}

fn read(chunk: &Chunk) -> (u64, Vec<u8>) {
    (chunk.records(), chunk.slices().collect::<Vec<_>>().concat())
}

fn record(pcr: u32, unique: u64, len: usize) -> (RecordBuf, Digest) {
    let file = Bank::Sha256.hash(&[&unique.to_le_bytes()]);
    let record = RecordBuf::ima_ng(pcr, &file, &vec![b'n'; len]);
    let key = record.record().template_digest(Bank::Sha256);
    (record, key)
}

fn deleted<E>(done: Result<Removed, E>) -> Result<(u64, u64), E> {
    done.map(|removed| (removed.records(), removed.bytes()))
}

fn check(options: Options, ops: &[Op]) -> Result<(), TestCaseError> {
    const HEADER: usize = 24;
    let mut list = List::new(options);
    let mut model = Model { options, ..Model::default() };
    let mut unique = 1_000;
    let mut kept = Vec::new();
    let mut prepared = None;
    for op in ops {
        match *op {
            Op::Append { which, pcr } => {
                let (record, key) = record(pcr, u64::from(which % 32), usize::from(which % 32));
                prop_assert_eq!(list.append(&record, &key), model.append(&record, key));
            }
            Op::AppendMany { records, len } => {
                for i in 0..records {
                    unique += 1;
                    let (record, key) = record(10, unique, usize::from(len + i % 7));
                    prop_assert_eq!(list.append(&record, &key), model.append(&record, key));
                }
            }
            Op::AppendViolation => {
                let record = RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/v");
                let key = Digest::zero(Bank::Sha256);
                prop_assert_eq!(list.append(&record, &key), model.append(&record, key));
            }
            Op::Stage => prop_assert_eq!(list.stage(), model.stage()),
            Op::DeleteStaged => {
                let expected = model.delete_staged();
                prop_assert_eq!(deleted(list.delete_staged()), model.deleted(expected));
            }
            Op::DeleteFirst(n) => {
                let expected = model.delete_first(n);
                prop_assert_eq!(deleted(list.delete_first(n)), model.deleted(expected));
            }
            Op::Prepare(n) => prepared = Some(list.outline().cut(n)),
            Op::DeletePrepared => {
                let Some(mut cut) = prepared.take() else { continue };
                let expected = model.delete_first(cut.records());
                let done = list.delete_first_with(&mut cut);
                let done = done.map(|()| (cut.records(), cut.bytes()));
                prop_assert_eq!(done, model.deleted(expected));
            }
            Op::Trim { n, wrong_total } => {
                let total = model.trimmed + u64::from(wrong_total);
                let expected = model.trim(total, n);
                prop_assert_eq!(deleted(list.trim(total, n)), model.deleted(expected));
            }
            Op::Suspend => {
                list.suspend();
                model.suspended = true;
            }
            Op::Dump { capacity } => {
                let (buffer, whole) = list.dump(Endian::native(), capacity);
                let all = [model.staged.concat(), model.current.concat()].concat();
                prop_assert!(all.starts_with(&buffer[HEADER..]));
                prop_assert_eq!(whole.is_ok(), buffer.len() == HEADER + all.len());
                model.staged_dumped = !model.staged.is_empty();
            }
            Op::Snapshot { part, from, max_bytes } => {
                let chunk = list.snapshot(part, from, max_bytes);
                let expected = model.snapshot(part, from, max_bytes);
                prop_assert_eq!(read(&chunk), expected.clone());
                kept.push((chunk, expected));
            }
        }
        prop_assert_eq!((list.counts(), list.trimmed()), (model.counts(), model.trimmed));
        for part in [Part::Current, Part::Staged] {
            let all = model.snapshot(part, 0, usize::MAX);
            prop_assert_eq!((list.count(part), list.size(part)), (all.0, all.1.len() as u64));
            prop_assert_eq!(read(&list.snapshot(part, 0, usize::MAX)), all);
        }
    }
    // Snapshots never change, whatever happened to the list.
    for (chunk, expected) in &kept {
        prop_assert_eq!(&read(chunk), expected);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn list_matches_a_model_of_vectors(
        ops in ops(),
        duplicates in prop_oneof![
            Just(Duplicates::Detect), Just(Duplicates::Flush), Just(Duplicates::Off)
        ],
        rules in prop_oneof![Just(Rules::Linux72), Just(Rules::V4)],
    ) {
        check(Options { duplicates, rules }, &ops)?;
    }
}
