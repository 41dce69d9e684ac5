//! All designs of the lock study compared with one model, to validate what the study measures.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use ima_list::Part;
use ima_log::{Bank, Digest, RecordBuf};
use proptest::prelude::*;

#[allow(dead_code, reason = "only the benchmark uses all of it")]
#[path = "../benches/lock_study/clock.rs"]
mod clock;
#[allow(dead_code, reason = "only the benchmark uses all of it")]
#[path = "../benches/lock_study/designs.rs"]
mod designs;
#[path = "../benches/lock_study/ours.rs"]
mod ours;

use designs::{Design, Kind, Refused, record};

#[derive(Clone, Debug)]
enum Op {
    Append(u64),
    AppendViolation,
    Stage,
    DeleteStaged,
    DeleteFirst { n: u64, wrong_total: bool },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        12 => (0u64..200).prop_map(Op::Append),
        1 => Just(Op::AppendViolation),
        1 => Just(Op::Stage),
        1 => Just(Op::DeleteStaged),
        2 => (1u64..12, prop::bool::weighted(0.1))
            .prop_map(|(n, wrong_total)| Op::DeleteFirst { n, wrong_total }),
    ];
    prop::collection::vec(op, 1..120)
}

#[derive(Default)]
struct Model {
    current: Vec<Vec<u8>>,
    staged: Vec<Vec<u8>>,
    seen: HashSet<Digest>,
    deleted: u64,
}

impl Model {
    fn append(&mut self, detect: bool, record: &RecordBuf, key: Digest) -> Result<(), Refused> {
        if detect && !record.record().is_violation() && !self.seen.insert(key) {
            return Err(Refused::Duplicate);
        }
        self.current.push(record.as_bytes().to_vec());
        Ok(())
    }

    fn stage(&mut self, kind: Kind) -> Result<u64, Refused> {
        if !kind.stages() {
            Err(Refused::Unknown)
        } else if !self.staged.is_empty() {
            Err(Refused::Pending)
        } else if self.current.is_empty() {
            Err(Refused::TooFew)
        } else {
            self.staged = std::mem::take(&mut self.current);
            Ok(self.staged.len() as u64)
        }
    }

    fn delete_staged(&mut self, kind: Kind) -> Result<u64, Refused> {
        if !kind.stages() {
            Err(Refused::Unknown)
        } else if self.staged.is_empty() {
            Err(Refused::TooFew)
        } else {
            let deleted = self.staged.drain(..).count() as u64;
            self.deleted += deleted;
            Ok(deleted)
        }
    }

    fn delete_first(&mut self, kind: Kind, total: u64, n: u64) -> Result<u64, Refused> {
        if kind == Kind::V4 && !self.staged.is_empty() {
            Err(Refused::Pending)
        } else if kind.trims() && total != self.deleted {
            Err(Refused::WrongTotal)
        } else if n > self.current.len() as u64 {
            Err(Refused::TooFew)
        } else {
            self.current.drain(..n as usize);
            self.deleted += n;
            Ok(n)
        }
    }
}

fn read(list: &dyn Design, part: Part, page: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    list.read(part, page, &mut |slice| bytes.extend_from_slice(slice));
    bytes
}

fn check(kind: Kind, detect: bool, ops: &[Op]) -> Result<(), TestCaseError> {
    let list = kind.new_list(detect);
    let mut model = Model::default();
    for op in ops {
        match *op {
            Op::Append(i) => {
                let (record, key) = record(i);
                prop_assert_eq!(list.append(&record, &key), model.append(detect, &record, key));
            }
            Op::AppendViolation => {
                let record = RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/v");
                let key = Digest::zero(Bank::Sha256);
                prop_assert_eq!(list.append(&record, &key), model.append(detect, &record, key));
            }
            Op::Stage => prop_assert_eq!(list.stage(), model.stage(kind)),
            Op::DeleteStaged => prop_assert_eq!(list.delete_staged(), model.delete_staged(kind)),
            Op::DeleteFirst { n, wrong_total } => {
                let total = model.deleted + u64::from(wrong_total);
                let expected = model.delete_first(kind, total, n);
                prop_assert_eq!(list.delete_first(total, n), expected);
            }
        }
        for (part, records) in [(Part::Current, &model.current), (Part::Staged, &model.staged)] {
            for page in [1, 700, 1 << 20] {
                prop_assert_eq!(read(&*list, part, page), records.concat());
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn every_design_matches_a_model_of_vectors(ops in ops(), detect in any::<bool>()) {
        for kind in Kind::ALL {
            check(kind, detect, &ops)?;
        }
    }
}

#[test]
fn appends_concurrent_with_deletions_keep_their_order() {
    const MOST: u64 = 3_000;
    let records: Vec<_> = (0..MOST).map(record).collect();
    for kind in Kind::ALL {
        let list = kind.new_list(true);
        let done = AtomicBool::new(false);
        let deleted = thread::scope(|scope| {
            let deleting = scope.spawn(|| {
                let mut deleted = 0;
                while !done.load(Ordering::Relaxed) {
                    if kind.stages() && deleted % 2 == 0 && list.stage().is_ok() {
                        deleted += list.delete_staged().expect("records are staged");
                    }
                    deleted += list.delete_first(deleted, 3).unwrap_or(0);
                }
                deleted
            });
            for (record, key) in &records {
                list.append(record, key).expect("all records are distinct");
            }
            done.store(true, Ordering::Relaxed);
            deleting.join().expect("the deleting thread does not panic")
        });
        let left: Vec<_> =
            records[deleted as usize..].iter().flat_map(|(record, _)| record.as_bytes()).collect();
        assert!(
            read(&*list, Part::Current, 4096).iter().eq(left),
            "{}: {deleted} deleted",
            kind.name()
        );
        for (record, key) in &records {
            assert_eq!(list.append(record, key), Err(Refused::Duplicate), "{kind:?}");
        }
    }
}
