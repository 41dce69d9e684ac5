//! The list does what a list of vectors would do.

use std::collections::HashSet;

use ima_list::{
    AppendError, Chunk, Counts, DeleteError, Duplicates, List, Options, Part, StageError,
};
use ima_log::{Bank, Digest, RecordBuf};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Append { which: u8, pcr: u32 },
    AppendMany { records: u16, len: u16 },
    AppendViolation,
    Stage,
    DeleteStaged,
    DeleteFirst(u64),
    Suspend,
    Snapshot { part: Part, from: u64, max_bytes: usize },
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
        4 => (part, 0u64..300, 0usize..60_000)
            .prop_map(|(part, from, max_bytes)| Op::Snapshot { part, from, max_bytes }),
    ];
    // At most one suspension, at the end of what is done, with a few refused operations behind it.
    (prop::collection::vec(op.clone(), 1..60), prop::option::of(prop::collection::vec(op, 0..8)))
        .prop_map(|(mut ops, suspended)| {
            if let Some(refused) = suspended {
                ops.push(Op::Suspend);
                ops.extend(refused);
            }
            ops
        })
}

#[derive(Default)]
struct Model {
    current: Vec<Vec<u8>>,
    staged: Vec<Vec<u8>>,
    seen: HashSet<(Digest, u32)>,
    suspended: bool,
    counts: Counts,
}

impl Model {
    fn append(
        &mut self,
        duplicates: Duplicates,
        record: &RecordBuf,
        key: Digest,
    ) -> Result<(), AppendError> {
        let parsed = record.record();
        if self.suspended {
            return Err(AppendError::Suspended);
        }
        if parsed.is_violation() {
            self.counts.violations += 1;
        } else if duplicates != Duplicates::Off && !self.seen.insert((key, parsed.pcr())) {
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
        } else if self.suspended {
            Err(StageError::Suspended)
        } else {
            self.staged = std::mem::take(&mut self.current);
            Ok(self.staged.len() as u64)
        }
    }

    fn delete_staged(&mut self, duplicates: Duplicates) -> Result<Vec<Vec<u8>>, DeleteError> {
        if self.staged.is_empty() {
            Err(DeleteError::Empty)
        } else if self.suspended {
            Err(DeleteError::Suspended)
        } else {
            if duplicates == Duplicates::Flush {
                self.seen.clear();
            }
            Ok(std::mem::take(&mut self.staged))
        }
    }

    fn delete_first(&mut self, n: u64) -> Result<Vec<Vec<u8>>, DeleteError> {
        let found = self.current.len() as u64;
        if found < n {
            Err(DeleteError::TooMany { asked: n, found })
        } else if self.suspended {
            Err(DeleteError::Suspended)
        } else {
            Ok(self.current.drain(..n as usize).collect())
        }
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

fn check(duplicates: Duplicates, ops: &[Op]) -> Result<(), TestCaseError> {
    let mut list = List::new(Options { duplicates });
    let mut model = Model::default();
    let mut unique = 1_000;
    let mut kept = Vec::new();
    for op in ops {
        match *op {
            Op::Append { which, pcr } => {
                let (record, key) = record(pcr, u64::from(which % 32), usize::from(which % 32));
                let expected = model.append(duplicates, &record, key);
                prop_assert_eq!(list.append(&record, &key), expected);
            }
            Op::AppendMany { records, len } => {
                for i in 0..records {
                    unique += 1;
                    let (record, key) = record(10, unique, usize::from(len + i % 7));
                    let expected = model.append(duplicates, &record, key);
                    prop_assert_eq!(list.append(&record, &key), expected);
                }
            }
            Op::AppendViolation => {
                let record = RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/v");
                let key = Digest::zero(Bank::Sha256);
                let expected = model.append(duplicates, &record, key);
                prop_assert_eq!(list.append(&record, &key), expected);
            }
            Op::Stage => prop_assert_eq!(list.stage(), model.stage()),
            Op::DeleteStaged | Op::DeleteFirst(_) => {
                let (done, expected) = match *op {
                    Op::DeleteFirst(n) => (list.delete_first(n), model.delete_first(n)),
                    _ => (list.delete_staged(), model.delete_staged(duplicates)),
                };
                let done = done.map(|removed| (removed.records(), removed.bytes()));
                let expected = expected.map(|removed| {
                    (removed.len() as u64, removed.iter().map(Vec::len).sum::<usize>() as u64)
                });
                model.counts.freed_bytes += expected.map_or(0, |(_, bytes)| bytes);
                prop_assert_eq!(done, expected);
            }
            Op::Suspend => {
                list.suspend();
                model.suspended = true;
            }
            Op::Snapshot { part, from, max_bytes } => {
                let chunk = list.snapshot(part, from, max_bytes);
                let expected = model.snapshot(part, from, max_bytes);
                prop_assert_eq!(read(&chunk), expected.clone());
                kept.push((chunk, expected));
            }
        }
        prop_assert_eq!(list.counts(), model.counts());
        for part in [Part::Current, Part::Staged] {
            let all = model.snapshot(part, 0, usize::MAX);
            prop_assert_eq!((list.count(part), list.size(part)), (all.0, all.1.len() as u64));
            prop_assert_eq!(read(&list.snapshot(part, 0, usize::MAX)), all);
        }
    }
    // What was taken once stays what it was, whatever became of the list.
    for (chunk, expected) in &kept {
        prop_assert_eq!(&read(chunk), expected);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_list_is_a_list_of_vectors(
        ops in ops(),
        duplicates in prop_oneof![
            Just(Duplicates::Detect), Just(Duplicates::Flush), Just(Duplicates::Off)
        ],
    ) {
        check(duplicates, &ops)?;
    }
}
