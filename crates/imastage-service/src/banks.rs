//! PCR 10 of every bank as records replay, beside what the TPM has.

use std::collections::VecDeque;

use ima_log::{Bank, Digest, Extend, IMA_PCR, Record, Replay};

use crate::compare::is_boot_aggregate;

/// Replays records in every bank of the TPM. What the kernel extends a bank with, its own hash or
/// SHA-1 padded with zeros, is found out by comparing.
#[derive(Clone, Debug)]
pub struct Banks {
    banks: Vec<BankReplay>,
    records: u64,
}

/// One bank.
#[derive(Clone, Debug)]
pub struct BankReplay {
    bank: Bank,
    /// The ways to extend it that are not ruled out.
    replays: Vec<Replay>,
    /// The values after the last records, oldest first, and which of `replays` had them: the TPM
    /// may be a little behind the list.
    recent: VecDeque<(u64, Digest, Option<usize>)>,
    /// What is looked for, and how many records lead to it in which of `replays`.
    target: Option<Digest>,
    found: Option<(u64, Option<usize>)>,
}

/// More records than can be between list and PCR at one moment.
const RECENT: usize = 64;

impl Banks {
    /// PCRs as a TPM reset leaves them.
    pub fn new(banks: &[Bank]) -> Banks {
        let replays = banks.iter().map(|bank| match bank {
            // The two are the same.
            Bank::Sha1 => vec![Replay::new(*bank, Extend::Own)],
            _ => [Extend::Own, Extend::Sha1Padded].map(|e| Replay::new(*bank, e)).to_vec(),
        });
        Banks::resume(replays.collect(), 0)
    }

    /// PCRs after `records` records: for each bank the ways to extend it that are possible.
    pub fn resume(banks: Vec<Vec<Replay>>, records: u64) -> Banks {
        let banks = banks.into_iter().filter_map(|replays| {
            let bank = replays.first()?.value().bank();
            let recent = VecDeque::new();
            Some(BankReplay { bank, replays, recent, target: None, found: None })
        });
        Banks { banks: banks.collect(), records }
    }

    /// How many records were replayed.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The banks.
    pub fn iter(&self) -> impl Iterator<Item = &BankReplay> {
        self.banks.iter()
    }

    /// Looks for `pcrs` from now on, beginning with the last records' values.
    pub fn look_for(&mut self, pcrs: &[Digest]) {
        for bank in &mut self.banks {
            bank.target = pcrs.iter().find(|pcr| pcr.bank() == bank.bank).copied();
            bank.found = bank.target.and_then(|target| bank.recently(self.records, target));
        }
    }

    /// Replays the next records: two hashes a record for each bank and way.
    pub fn push(&mut self, records: &[Record<'_>]) {
        if self.banks.is_empty() {
            self.records += records.len() as u64;
            return;
        }
        for (at, record) in records.iter().enumerate() {
            let begins_kernel = self.records > 0 && is_boot_aggregate(record);
            self.records += 1;
            let is_recent = records.len() - at <= RECENT;
            for bank in &mut self.banks {
                if begins_kernel {
                    bank.reopen();
                }
                bank.push(record, self.records, is_recent);
            }
        }
    }

    /// How many records lead to the values that are looked for, in the bank that agrees with most;
    /// `None` if none does.
    pub fn agreed(&self) -> Option<u64> {
        self.banks.iter().filter_map(|bank| bank.found.map(|(records, _)| records)).max()
    }

    /// The banks of which `agreed` records do not lead to the value that is looked for.
    pub fn apart(&self, agreed: u64) -> Vec<Bank> {
        let is_apart = |bank: &&BankReplay| {
            bank.target.is_some() && bank.found.is_none_or(|(records, _)| records != agreed)
        };
        self.banks.iter().filter(is_apart).map(|bank| bank.bank).collect()
    }

    /// Rules out the ways to extend banks that do not agree with the TPM.
    pub fn settle(&mut self) {
        self.banks.iter_mut().for_each(BankReplay::settle);
    }

    /// Each bank's replays: the one whose hash is strongest for its cost first.
    pub fn candidates(&self) -> Vec<Replay> {
        let mut banks: Vec<&BankReplay> = self.banks.iter().collect();
        banks.sort_by_key(|bank| match bank.bank {
            Bank::Sha256 => 0,
            Bank::Sha1 => 2,
            _ => 1,
        });
        banks.iter().flat_map(|bank| bank.replays.iter().copied()).collect()
    }
}

impl BankReplay {
    /// Which bank.
    pub fn bank(&self) -> Bank {
        self.bank
    }

    /// What it is extended with, once that is known.
    pub fn extend(&self) -> Option<Extend> {
        match self.replays[..] {
            [only] => Some(only.extend_kind()),
            _ => None,
        }
    }

    /// Its PCR 10 as all records replay; by its own hash as long as it is not known better.
    pub fn value(&self) -> Digest {
        self.replays.first().map_or(Digest::zero(self.bank), Replay::value)
    }

    fn push(&mut self, record: &Record<'_>, records: u64, is_recent: bool) {
        for (at, replay) in self.replays.iter_mut().enumerate() {
            if record.pcr() == IMA_PCR {
                replay.extend(record);
            }
            let value = replay.value();
            if self.target == Some(value) {
                self.found = Some((records, Some(at)));
            }
            if is_recent {
                if self.recent.len() == RECENT {
                    self.recent.pop_front();
                }
                self.recent.push_back((records, value, Some(at)));
            }
        }
    }

    fn recently(&self, records: u64, target: Digest) -> Option<(u64, Option<usize>)> {
        if let Some(at) = self.replays.iter().position(|replay| replay.value() == target) {
            return Some((records, Some(at)));
        }
        let mut recent = self.recent.iter().rev();
        recent.find(|(_, value, _)| *value == target).map(|(records, _, at)| (*records, *at))
    }

    /// Keeps the replay that was found, once it can be told from the others.
    fn settle(&mut self) {
        let Some((records @ 1.., Some(at))) = self.found else { return };
        if self.replays.len() == 1 || !self.tells_apart() {
            return;
        }
        self.replays = self.replays.get(at).copied().into_iter().collect();
        self.recent.retain_mut(|(_, _, of)| of.replace(0) == Some(at));
        self.found = Some((records, Some(0)));
    }

    /// Another kernel begins, by kexec: it may have other hashes.
    fn reopen(&mut self) {
        /// After many kernels, between which nobody compared, ways to begin are not multiplied.
        const MOST: usize = 4;
        if self.bank == Bank::Sha1 || self.replays.len() > MOST {
            return;
        }
        let ways = |replay: &Replay| {
            [Extend::Own, Extend::Sha1Padded].map(|way| Replay::resume(replay.value(), way))
        };
        self.replays = self.replays.iter().flat_map(ways).collect();
        self.recent.iter_mut().for_each(|(_, _, of)| *of = None);
        self.found = self.found.map(|(records, _)| (records, None));
    }

    /// Whether its replays have different values by now.
    fn tells_apart(&self) -> bool {
        self.replays.windows(2).any(|two| two[0].value() != two[1].value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ima_log::RecordBuf;

    fn records(count: u8) -> Vec<RecordBuf> {
        (0..count).map(|i| RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), &[b'a' + i])).collect()
    }

    fn pcr(bank: Bank, extend: Extend, records: &[RecordBuf]) -> Digest {
        let mut replay = Replay::new(bank, extend);
        records.iter().for_each(|record| replay.extend(&record.record()));
        replay.value()
    }

    fn banks(records: &[RecordBuf], look_for: &[Digest]) -> Banks {
        let mut banks = Banks::new(&[Bank::Sha1, Bank::Sha256, Bank::Sha384]);
        banks.look_for(look_for);
        let records: Vec<Record<'_>> = records.iter().map(RecordBuf::record).collect();
        banks.push(&records);
        banks
    }

    /// As a stock kernel 6.1 does.
    fn pcrs(records: &[RecordBuf]) -> Vec<Digest> {
        vec![
            pcr(Bank::Sha1, Extend::Own, records),
            pcr(Bank::Sha256, Extend::Own, records),
            pcr(Bank::Sha384, Extend::Sha1Padded, records),
        ]
    }

    #[test]
    fn the_way_a_bank_is_extended_is_found_out() {
        let list = records(9);
        let mut banks = banks(&list, &pcrs(&list[..7]));
        assert_eq!((banks.agreed(), banks.apart(7)), (Some(7), vec![]));
        banks.settle();
        let ways: Vec<_> = banks.iter().map(BankReplay::extend).collect();
        assert_eq!(ways, [Some(Extend::Own), Some(Extend::Own), Some(Extend::Sha1Padded)]);
        // What was pushed before it was looked for is found, too.
        banks.look_for(&pcrs(&list));
        assert_eq!((banks.agreed(), banks.apart(9)), (Some(9), vec![]));
        banks.look_for(&pcrs(&list[..8]));
        assert_eq!(banks.agreed(), Some(8));
    }

    #[test]
    fn one_bank_that_was_extended_alone_is_told_from_a_list_that_fits_none() {
        let list = records(5);
        let mut values = pcrs(&list);
        values[0] = values[0].extended_with(&Digest::zero(Bank::Sha1));
        let banks_ = banks(&list, &values);
        assert_eq!((banks_.agreed(), banks_.apart(5)), (Some(5), vec![Bank::Sha1]));
        let strange: Vec<Digest> =
            values.iter().map(|value| value.extended_with(&Digest::zero(value.bank()))).collect();
        assert_eq!(banks(&list, &strange).agreed(), None);
    }

    #[test]
    fn another_kernel_may_have_other_hashes() {
        let boot = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), b"boot_aggregate");
        let mut list = vec![boot.clone()];
        list.extend(records(3));
        let mut values = pcrs(&list);
        let mut banks = banks(&list, &values);
        banks.settle();
        // Twice: to a kernel that has SHA-384, and back, with nobody comparing in between.
        let mut more = Vec::new();
        for way in [Extend::Own, Extend::Sha1Padded] {
            let new = [vec![boot.clone()], records(2)].concat();
            for value in &mut values {
                let way = if value.bank() == Bank::Sha384 { way } else { Extend::Own };
                let mut replay = Replay::resume(*value, way);
                new.iter().for_each(|record| replay.extend(&record.record()));
                *value = replay.value();
            }
            more.extend(new);
        }
        banks.look_for(&values);
        banks.push(&more.iter().map(RecordBuf::record).collect::<Vec<_>>());
        assert_eq!((banks.agreed(), banks.apart(10)), (Some(10), vec![]));
        banks.settle();
        let sha384 = banks.iter().find(|bank| bank.bank() == Bank::Sha384).unwrap();
        assert_eq!(sha384.extend(), Some(Extend::Sha1Padded));
        let again = [record("/after")];
        let replays = |value: &Digest| {
            let way = if value.bank() == Bank::Sha384 { Extend::Sha1Padded } else { Extend::Own };
            let mut replay = Replay::resume(*value, way);
            replay.extend(&again[0].record());
            replay.value()
        };
        banks.look_for(&values.iter().map(replays).collect::<Vec<_>>());
        banks.push(&[again[0].record()]);
        assert_eq!((banks.agreed(), banks.apart(11)), (Some(11), vec![]));
    }

    fn record(name: &str) -> RecordBuf {
        RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), name.as_bytes())
    }

    #[test]
    fn before_the_first_record_nothing_is_ruled_out() {
        let mut banks = banks(&[], &pcrs(&[]));
        assert_eq!(banks.agreed(), Some(0));
        banks.settle();
        assert!(banks.iter().any(|bank| bank.extend().is_none()));
    }
}
