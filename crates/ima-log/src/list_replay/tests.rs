//! Tests of the replay of whole lists.

use super::*;
use crate::RecordBuf;
use alloc::{string::ToString, vec};
use proptest::prelude::*;

fn record(pcr: u32, name: &[u8]) -> RecordBuf {
    RecordBuf::ima_ng(pcr, &Bank::Sha256.hash(&[name]), name)
}

fn violation() -> RecordBuf {
    RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/v")
}

/// What a kernel that extends `bank` so leaves in the TPM.
fn tpm(pcrs: &mut BankPcrs, records: &[RecordBuf]) -> Vec<PcrTarget> {
    records.iter().for_each(|record| pcrs.extend(&record.record()));
    targets(pcrs)
}

fn targets(pcrs: &BankPcrs) -> Vec<PcrTarget> {
    pcrs.values().map(|(pcr, value)| PcrTarget { pcr, value }).collect()
}

fn push(replay: &mut ListReplay, records: &[RecordBuf]) {
    records.iter().for_each(|record| replay.push(&record.record()));
}

fn ways_of(bank: Bank) -> Vec<Extend> {
    if bank == Bank::Sha1 { vec![Extend::Own] } else { Extend::ALL.to_vec() }
}

#[test]
fn every_pcr_and_way_is_found_among_records_of_several() {
    let list: Vec<RecordBuf> = [10, 11, 10, 17, 11, 10]
        .into_iter()
        .enumerate()
        .map(|(at, pcr)| record(pcr, &[b'a' + at as u8]))
        .chain([violation(), record(12, b"last")])
        .collect();
    for bank in Bank::ALL {
        for extend in ways_of(bank) {
            let mut state = BankPcrs::new(bank, extend);
            let targets = tpm(&mut state, &list[..7]);
            let mut replay = ListReplay::new([bank]);
            replay.look_for(&targets);
            push(&mut replay, &list);
            assert_eq!(replay.agreement(), Some(Prefix { from: 7, to: 8 }), "{bank} {extend}");
            let (prefix, way) = replay.found(bank, 11).unwrap();
            assert_eq!((prefix, way), (Prefix { from: 5, to: 8 }, extend));
            assert_eq!(
                (replay.pcr(), replay.named().to_string().as_str()),
                (Some(10), "10, 11, 12, 17")
            );
            replay.settle(7);
            assert_eq!(replay.extend_kind(bank), Some(extend));
            assert_eq!((replay.records(), replay.violations()), (8, 1));
        }
    }
}

#[test]
fn a_pcr_that_was_extended_otherwise_stands_apart() {
    let list = [record(10, b"a"), record(11, b"b"), record(10, b"c")];
    let mut state = BankPcrs::new(Bank::Sha256, Extend::Own);
    let mut targets = tpm(&mut state, &list);
    targets[1].value = targets[1].value.extended_with(&Digest::zero(Bank::Sha256));
    let mut replay = ListReplay::new([Bank::Sha256]);
    replay.look_for(&targets);
    push(&mut replay, &list);
    assert_eq!(replay.agreement(), None);
    assert_eq!(replay.best(), Some(3));
    assert_eq!(replay.apart(3), [(Bank::Sha256, 11)]);
    // Nothing is ruled out by values that no way leads to.
    replay.settle(3);
    assert_eq!(replay.extend_kind(Bank::Sha256), None);
}

#[test]
fn values_that_were_reached_before_are_found() {
    let list: Vec<RecordBuf> = (0..9).map(|at| record(10, &[b'a' + at])).collect();
    let mut replay = ListReplay::new([Bank::Sha1, Bank::Sha384]).remember(4);
    let records: Vec<Record<'_>> = list.iter().map(RecordBuf::record).collect();
    replay.push_all(&records);
    let after = |records: usize| {
        let mut targets = tpm(&mut BankPcrs::new(Bank::Sha1, Extend::Own), &list[..records]);
        targets.extend(tpm(&mut BankPcrs::new(Bank::Sha384, Extend::Sha1Padded), &list[..records]));
        targets
    };
    for records in 0..=9u64 {
        replay.look_for(&after(records as usize));
        let found = (records >= 6).then_some(Prefix { from: records, to: records });
        assert_eq!(replay.agreement().filter(|_| records > 0), found, "{records}");
    }
    replay.look_for(&after(9));
    push(&mut replay, &[record(11, b"other")]);
    assert_eq!(replay.agreement(), Some(Prefix { from: 9, to: 10 }));
    assert_eq!(replay.best(), Some(10));
}

#[test]
fn a_zero_pcr_is_led_to_by_no_record_alone() {
    let zero = PcrTarget { pcr: 10, value: Digest::zero(Bank::Sha256) };
    let mut replay = ListReplay::new([Bank::Sha256]);
    replay.look_for(&[zero]);
    push(&mut replay, &[record(11, b"a"), record(10, b"b")]);
    assert_eq!(replay.agreement(), Some(Prefix { from: 0, to: 1 }));
}

#[test]
fn pcrs_that_no_tpm_has_extend_nothing_and_take_no_memory() {
    let mut replay = ListReplay::new([Bank::Sha256]);
    for pcr in 32..1000 {
        push(&mut replay, &[record(pcr, b"x")]);
    }
    assert!(replay.named().is_empty());
    assert_eq!(replay.bank(Bank::Sha256).unwrap().most_likely().unwrap().values().count(), 0);
}

#[test]
fn many_kernels_and_violations_keep_the_work_bounded() {
    let mut replay = ListReplay::new([Bank::Sha256]);
    let boot = record(10, b"boot_aggregate");
    for _ in 0..20 {
        push(&mut replay, &[boot.clone(), violation()]);
    }
    assert!(replay.bank(Bank::Sha256).unwrap().ways().len() <= ListReplay::MAX_WAYS);
    // Kernels that all extend in one way are still matched.
    for extend in Extend::ALL {
        let list: Vec<RecordBuf> = (0..40).flat_map(|_| [boot.clone(), violation()]).collect();
        let mut replay = ListReplay::new([Bank::Sha256]);
        replay.look_for(&tpm(&mut BankPcrs::new(Bank::Sha256, extend), &list));
        push(&mut replay, &list);
        assert_eq!(replay.agreement().map(|prefix| prefix.from), Some(80), "{extend}");
    }
}

#[test]
fn case_17_a_zero_aggregate_is_known_by_both_names() {
    for (name, zero, is_so) in [
        (&b"boot_aggregate"[..], true, true),
        (b"boot_aggregate_late", true, true),
        (b"boot_aggregate", false, false),
        (b"/file", true, false),
    ] {
        let digest = match zero {
            true => Digest::zero(Bank::Sha256),
            false => Bank::Sha256.hash(&[]),
        };
        let record = RecordBuf::ima_ng(10, &digest, name);
        assert_eq!(record.record().says_no_tpm(), is_so, "{name:?}");
    }
}

proptest! {
    /// Kernels that follow each other by kexec, each with a way of its own to extend a bank, the
    /// PCRs compared after some of them.
    #[test]
    fn kernels_may_extend_in_other_ways(
        kernels in proptest::collection::vec((0usize..3, 0u8..3, any::<bool>(), any::<bool>()), 1..6),
        bank in prop::sample::select(Bank::ALL.to_vec()),
        late: bool,
    ) {
        let boot: &[u8] = if late { b"boot_aggregate_late" } else { b"boot_aggregate" };
        let mut replay = ListReplay::new([bank]).remember(64);
        let mut state = BankPcrs::new(bank, Extend::Own);
        let mut apart = 0;
        for (way, count, violates, compares) in kernels {
            let ways = ways_of(bank);
            state = state.with_extend(ways[way % ways.len()]);
            let mut records = vec![record(10, boot)];
            records.extend((0..count).map(|at| record(10 + u32::from(at), &[at])));
            records.extend(violates.then(violation));
            let targets = tpm(&mut state, &records);
            push(&mut replay, &records);
            apart += 1;
            // Between few kernels all ways are followed.
            if compares && apart <= 3 {
                replay.look_for(&targets);
                prop_assert_eq!(replay.best(), Some(replay.records()));
                prop_assert_eq!(replay.apart(replay.records()), vec![]);
                replay.settle(replay.records());
                prop_assert_eq!(replay.value(bank, 10), Some(state.value(10)));
                apart = 0;
            } else if apart > 3 {
                return Ok(());
            }
        }
    }
}
