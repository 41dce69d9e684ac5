//! Explains a PCR value to which no prefix of a list replays.

use alloc::{collections::VecDeque, vec::Vec};

use crate::{Digest, Extend, Record, Replay};

/// Explains why no prefix of a list replays to a PCR value: one extra, missing or altered record.
///
/// A PCR does not show with what it was extended, so only causes that can be tried are found: see
/// [`Cause`]. After the whole list was added, [`Explain::find`] tries each cause at each of the
/// last [`Explain::window`] records, whose digests it keeps (80 bytes each).
///
/// ```
/// use ima_log::{Bank, Cause, Explain, Extend, RecordBuf, Replay};
///
/// let [a, b, c] = [b"/a", b"/b", b"/c"].map(|name| RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), name));
/// let mut pcr = Replay::new(Bank::Sha256, Extend::Own);
/// pcr.extend(&a.record());
/// pcr.extend(&c.record());
///
/// let mut explain = Explain::new(10, pcr.value(), Extend::Own);
/// for record in [&a, &b, &c] {
///     explain.push(&record.record());
/// }
/// let found = explain.find().unwrap();
/// assert_eq!((found.cause, found.record), (Cause::NotExtended, 1));
/// ```
#[derive(Clone, Debug)]
pub struct Explain {
    pcr: u32,
    target: Digest,
    /// The PCR before the window.
    base: Replay,
    window: VecDeque<Step>,
    capacity: usize,
    records: u64,
    printed: Printed,
    resets: Vec<Reset>,
}

/// An explanation of a PCR value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The cause.
    pub cause: Cause,
    /// The index of the affected record; the first record is 0.
    pub record: u64,
    /// The number of records of the list, from the first, that the value then covers.
    pub records: u64,
}

/// A cause of a PCR value to which no prefix of a list replays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The record is in the list and never extended the PCR: without it the values agree.
    NotExtended,
    /// The record extended the PCR twice: an identical one is missing right after it.
    RepeatMissing,
    /// A violation is missing right before the record.
    ViolationMissing,
    /// The record was a violation, or its digest is another: all ones extended the PCR.
    WasViolation,
    /// The template data was altered, and the printed digest, which extended the PCR, was not. More
    /// such records may follow; this is the first.
    DataAltered,
    /// The TPM was reset before this record, a `boot_aggregate`: earlier records belong to an
    /// earlier boot.
    ResetBefore,
}

#[derive(Clone, Debug)]
struct Step {
    record: u64,
    value: Digest,
}

/// A replay of the digests as they are printed, where they can extend this bank.
#[derive(Clone, Debug)]
struct Printed {
    replay: Replay,
    /// The first record whose printed digest does not match its data.
    first_wrong: Option<u64>,
    found: Option<u64>,
}

/// A replay that begins at a later `boot_aggregate`.
#[derive(Clone, Debug)]
struct Reset {
    record: u64,
    replay: Replay,
    found: Option<u64>,
}

/// An upper limit of the number of kernels that start without a TPM reset.
const MAX_RESETS: usize = 8;

impl Explain {
    /// The default of [`Explain::window`]: at most 8 million extends, which take about a second.
    pub const WINDOW: usize = 2048;

    /// Explains `target`, a value of PCR `pcr` that was extended in the way `extend`.
    pub fn new(pcr: u32, target: Digest, extend: Extend) -> Explain {
        let base = Replay::new(target.bank(), extend);
        Explain {
            pcr,
            target,
            base,
            window: VecDeque::new(),
            capacity: Explain::WINDOW,
            records: 0,
            printed: Printed { replay: base, first_wrong: None, found: None },
            resets: Vec::new(),
        }
    }

    /// Sets the number of records, from the list's end, that are tried; the cost grows with its
    /// square: two extends for each pair of records. [`Cause::DataAltered`] and
    /// [`Cause::ResetBefore`] are found in the whole list.
    #[must_use]
    pub fn window(mut self, records: usize) -> Explain {
        self.capacity = records;
        self
    }

    /// Adds the list's next record: two hashes; four if its printed digest is wrong.
    pub fn push(&mut self, record: &Record<'_>) {
        let index = self.records;
        self.records += 1;
        if record.pcr() != self.pcr {
            return;
        }
        let (bank, extend) = (self.target.bank(), self.base.extend_kind());
        let value = extend.value(bank, record);
        self.printed.push(index, record, &value, &self.target);

        if index > 0 && self.resets.len() < MAX_RESETS && record.begins_kernel() {
            let replay = Replay::new(bank, extend);
            self.resets.push(Reset { record: index, replay, found: None });
        }
        for reset in self.resets.iter_mut().filter(|reset| reset.found.is_none()) {
            reset.replay.extend_with(&value);
            reset.found = (reset.replay.value() == self.target).then_some(index + 1);
        }

        self.window.push_back(Step { record: index, value });
        if self.window.len() > self.capacity
            && let Some(step) = self.window.pop_front()
        {
            self.base.extend_with(&step.value);
        }
    }

    /// The index of the first record that was tried.
    pub fn looked_from(&self) -> u64 {
        self.window.front().map_or(self.records, |step| step.record)
    }

    /// The explanation, if one of the causes explains the value.
    pub fn find(&self) -> Option<Explanation> {
        self.found_in_passing().or_else(|| self.search())
    }

    fn found_in_passing(&self) -> Option<Explanation> {
        if let (Some(record), Some(records)) = (self.printed.first_wrong, self.printed.found) {
            return Some(Explanation { cause: Cause::DataAltered, record, records });
        }
        self.resets.iter().find_map(|reset| {
            let records = reset.found?;
            Some(Explanation { cause: Cause::ResetBefore, record: reset.record, records })
        })
    }

    /// Tries every cause at every record, the latest first because they cost least.
    fn search(&self) -> Option<Explanation> {
        let ones = self.base.extend_kind().violation(self.target.bank());
        let steps: Vec<&Step> = self.window.iter().collect();
        let mut before = Vec::with_capacity(steps.len());
        let mut replay = self.base;
        for step in &steps {
            before.push(replay);
            replay.extend_with(&step.value);
        }
        for (at, (step, before)) in steps.iter().zip(&before).enumerate().rev() {
            let guesses: [(Cause, &[&Digest]); 4] = [
                (Cause::NotExtended, &[]),
                (Cause::RepeatMissing, &[&step.value, &step.value]),
                (Cause::ViolationMissing, &[&ones, &step.value]),
                (Cause::WasViolation, &[&ones]),
            ];
            for (cause, instead) in guesses {
                let mut replay = *before;
                for value in instead {
                    replay.extend_with(value);
                }
                if let Some(records) = self.reached(replay, step.record + 1, &steps[at + 1..]) {
                    return Some(Explanation { cause, record: step.record, records });
                }
            }
        }
        None
    }

    /// How many records it takes until the target is reached, `records` if `replay` is there.
    fn reached(&self, mut replay: Replay, records: u64, rest: &[&Step]) -> Option<u64> {
        if replay.value() == self.target {
            return Some(records);
        }
        for step in rest {
            replay.extend_with(&step.value);
            if replay.value() == self.target {
                return Some(step.record + 1);
            }
        }
        None
    }
}

impl Printed {
    fn push(&mut self, index: u64, record: &Record<'_>, value: &Digest, target: &Digest) {
        if self.found.is_some() {
            return;
        }
        let printed = record.printed_digest();
        let hashed_with = self.replay.extend_kind().hashed_with(target.bank());
        // Of another bank's digest nothing is printed.
        let value = if record.is_violation() || printed.bank() != hashed_with {
            *value
        } else {
            printed.padded_to(target.bank())
        };
        if self.first_wrong.is_none() && !record.digest_is_right() {
            self.first_wrong = Some(index);
        }
        self.replay.extend_with(&value);
        if self.replay.value() == *target && self.first_wrong.is_some() {
            self.found = Some(index + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bank, Format, RecordBuf};
    use proptest::prelude::*;

    fn records(count: u8) -> Vec<RecordBuf> {
        (0..count)
            .map(|i| RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[&[i]]), &[b'/', b'a' + i % 26]))
            .collect()
    }

    fn replay(target: Replay, records: &[RecordBuf]) -> Replay {
        records.iter().fold(target, |mut replay, record| {
            replay.extend(&record.record());
            replay
        })
    }

    fn find(target: Digest, extend: Extend, list: &[RecordBuf]) -> Option<Explanation> {
        let mut explain = Explain::new(10, target, extend);
        list.iter().for_each(|record| explain.push(&record.record()));
        explain.find()
    }

    fn violation() -> RecordBuf {
        RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/v")
    }

    proptest! {
        #[test]
        fn one_record_too_many_too_few_or_another(
            count in 1u8..30,
            at: prop::sample::Index,
            end: prop::sample::Index,
            bank in prop::sample::select(Bank::ALL.to_vec()),
            extend in prop::sample::select(Extend::ALL.to_vec()),
            cause in prop::sample::select(alloc::vec![
                Cause::NotExtended,
                Cause::RepeatMissing,
                Cause::ViolationMissing,
                Cause::WasViolation,
            ]),
        ) {
            let extend = if bank == Bank::Sha1 { Extend::Own } else { extend };
            let list = records(count);
            let at = at.index(list.len());
            // The list may be ahead of the PCR.
            let end = at + 1 + end.index(list.len() - at);
            let mut extended = list[..end].to_vec();
            match cause {
                Cause::NotExtended => drop(extended.remove(at)),
                Cause::RepeatMissing => extended.insert(at, list[at].clone()),
                Cause::ViolationMissing => extended.insert(at, violation()),
                _ => extended[at] = violation(),
            }
            let target = replay(Replay::new(bank, extend), &extended).value();
            let found = find(target, extend, &list);
            let expected = Explanation { cause, record: at as u64, records: end as u64 };
            prop_assert_eq!(found, Some(expected));
        }
    }

    #[test]
    fn altered_data_is_told_by_its_digest() {
        let list = records(5);
        let target = replay(Replay::new(Bank::Sha1, Extend::Own), &list).value();
        let mut bytes: Vec<u8> = list.iter().flat_map(|r| r.as_bytes().to_vec()).collect();
        let end = list[0].as_bytes().len() * 3;
        bytes[end - 2] ^= 1;
        let mut explain = Explain::new(10, target, Extend::Own);
        for record in crate::Records::new(&bytes, Format::native(Bank::Sha1)) {
            explain.push(&record.unwrap());
        }
        let expected = Explanation { cause: Cause::DataAltered, record: 2, records: 5 };
        assert_eq!(explain.find(), Some(expected));
    }

    #[test]
    fn a_reset_before_a_boot_aggregate() {
        for name in [&b"boot_aggregate"[..], b"boot_aggregate_late"] {
            let mut list = records(3);
            list.push(RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), name));
            list.extend(records(2));
            let target = replay(Replay::new(Bank::Sha256, Extend::Own), &list[3..]).value();
            let expected = Explanation { cause: Cause::ResetBefore, record: 3, records: 6 };
            assert_eq!(find(target, Extend::Own, &list), Some(expected));
        }
    }

    #[test]
    fn outside_the_window_nothing_is_found() {
        let list = records(20);
        let mut extended = list.clone();
        extended.remove(3);
        let target = replay(Replay::new(Bank::Sha256, Extend::Own), &extended).value();
        let look = |window| {
            let mut explain = Explain::new(10, target, Extend::Own).window(window);
            list.iter().for_each(|record| explain.push(&record.record()));
            (explain.looked_from(), explain.find().map(|found| found.record))
        };
        assert_eq!(look(16), (4, None));
        assert_eq!(look(17), (3, Some(3)));
        assert_eq!(find(Digest::ones(Bank::Sha256), Extend::Own, &list), None);
    }
}
