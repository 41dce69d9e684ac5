//! Dump and restore of a list over a kexec.
#![allow(clippy::unwrap_used)]

use std::ops::Range;

use ima_list::{AppendError, List, Options, Part};
use ima_log::{Bank, Digest, Endian, Format, KexecBuffer, KexecError, Record, RecordBuf};
use proptest::prelude::*;

const HEADER: usize = 24;

fn record(i: u16) -> (RecordBuf, Digest) {
    if i.is_multiple_of(10) {
        let violation = RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/v");
        return (violation, Digest::zero(Bank::Sha256));
    }
    let name = vec![b'n'; usize::from(i)];
    let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[&i.to_le_bytes()]), &name);
    let key = record.record().template_digest(Bank::Sha256);
    (record, key)
}

/// A list that deleted `deleted` records and has `staged` and then `current` records.
fn list_of(deleted: u16, staged: u16, current: u16) -> List {
    let mut list = List::new(Options::default());
    add(&mut list, 0..deleted);
    drop(list.delete_first(u64::from(deleted)).unwrap());
    add(&mut list, deleted..deleted + staged);
    if staged > 0 {
        list.stage().unwrap();
    }
    add(&mut list, deleted + staged..deleted + staged + current);
    list
}

fn add(list: &mut List, records: Range<u16>) {
    for (record, key) in records.map(record) {
        list.append(&record, &key).unwrap();
    }
}

fn bytes(list: &List, part: Part) -> Vec<u8> {
    list.snapshot(part, 0, usize::MAX).slices().collect::<Vec<_>>().concat()
}

fn restored(buffer: &[u8]) -> (List, Result<(), KexecError>) {
    List::restore(Options::default(), &KexecBuffer::parse(buffer).unwrap())
}

proptest! {
    #[test]
    fn dump_contains_staged_then_current_records_up_to_its_capacity(
        deleted in 0u16..50,
        staged in 0u16..50,
        current in 0u16..200,
        short in prop::option::of(0usize..5_000),
    ) {
        let mut list = list_of(deleted, staged, current);
        let all = [bytes(&list, Part::Staged), bytes(&list, Part::Current)].concat();
        let capacity = (HEADER + all.len()).saturating_sub(short.unwrap_or(0)).max(HEADER);
        let (buffer, whole) = list.dump(Endian::native(), capacity);
        prop_assert!(buffer.len() <= capacity);
        prop_assert_eq!(whole.is_ok(), capacity == HEADER + all.len(), "{:?}", whole);

        let (next, complete) = restored(&buffer);
        prop_assert_eq!(complete, Ok(()));
        let carried = bytes(&next, Part::Current);
        prop_assert!(all.starts_with(&carried));
        if let Err(error) = whole {
            let lost = Record::parse_prefix(&all[carried.len()..], Format::native(Bank::Sha1));
            let needed = lost.unwrap().unwrap().as_bytes().len();
            let left = capacity - HEADER - carried.len();
            prop_assert!(needed > left);
            let record = next.count(Part::Current);
            prop_assert_eq!(error, KexecError::Full { record, needed, left });
        }

        let counts = next.counts();
        prop_assert_eq!((counts.current, counts.total), (counts.total, counts.current));
        prop_assert_eq!((counts.staged, counts.violations, counts.freed_bytes), (0, 0, 0));
    }
}

#[test]
fn restored_record_does_not_count_as_duplicate() {
    let mut old = list_of(0, 0, 3);
    old.suspend();
    let (buffer, whole) = old.dump(Endian::native(), 4096);
    assert_eq!(whole, Ok(()));
    let (mut next, _) = restored(&buffer);
    let (record, key) = record(1);
    assert_eq!(next.append(&record, &key), Ok(()), "neither known nor suspended");
    assert_eq!(next.append(&record, &key), Err(AppendError::Duplicate));
    assert_eq!(next.stage(), Ok(4));
}

#[test]
fn restore_recomputes_all_digests_except_those_of_violations() {
    let mut list = list_of(0, 0, 2);
    let (mut buffer, _) = list.dump(Endian::native(), 4096);
    let size = record(0).0.as_bytes().len();
    buffer[HEADER + size + 4..][..20].fill(0xaa);
    let (next, _) = restored(&buffer);
    assert_eq!(bytes(&next, Part::Current), bytes(&list, Part::Current));

    // A zero digest marks a violation, whatever the data is.
    buffer[HEADER + size + 4..][..20].fill(0);
    let (next, _) = restored(&buffer);
    assert_eq!(bytes(&next, Part::Current), buffer[HEADER..]);
}

#[test]
fn restore_keeps_the_records_before_a_malformed_one() {
    let mut list = list_of(0, 2, 5);
    let (mut buffer, _) = list.dump(Endian::native(), 4096);
    let last = record(6).0.as_bytes().len();
    buffer.truncate(buffer.len() - last + 30);
    let used = buffer.len() as u64;
    buffer[8..16].copy_from_slice(&used.to_ne_bytes());
    let (next, complete) = restored(&buffer);
    assert!(
        matches!(&complete, Err(KexecError::Record(error)) if error.record == 6),
        "{complete:?}"
    );
    assert_eq!(next.count(Part::Current), 6);
}
