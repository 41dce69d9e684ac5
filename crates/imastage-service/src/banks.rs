//! PCR 10 of every bank as records replay, beside what the TPM has.

use std::collections::VecDeque;

use ima_log::{Bank, Digest, Extend, IMA_PCR, Record, Replay};

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
    /// The values after the last records, oldest first: the TPM may be a little behind the list.
    recent: VecDeque<(u64, Digest, Extend)>,
    /// What is looked for, and how many records lead to it.
    target: Option<Digest>,
    found: Option<(u64, Extend)>,
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
            self.records += 1;
            let is_recent = records.len() - at <= RECENT;
            for bank in &mut self.banks {
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
        for bank in &mut self.banks {
            if let Some((records, way)) = bank.found
                && records > 0
                && bank.replays.len() > 1
                && bank.tells_apart()
            {
                bank.replays.retain(|replay| replay.extend_kind() == way);
                bank.recent.retain(|(_, _, extend)| *extend == way);
            }
        }
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
        for replay in &mut self.replays {
            if record.pcr() == IMA_PCR {
                replay.extend(record);
            }
            let (value, extend) = (replay.value(), replay.extend_kind());
            if self.target == Some(value) {
                self.found = Some((records, extend));
            }
            if is_recent {
                if self.recent.len() == RECENT {
                    self.recent.pop_front();
                }
                self.recent.push_back((records, value, extend));
            }
        }
    }

    fn recently(&self, records: u64, target: Digest) -> Option<(u64, Extend)> {
        let now = self.replays.iter().find(|replay| replay.value() == target);
        if let Some(replay) = now {
            return Some((records, replay.extend_kind()));
        }
        let mut recent = self.recent.iter().rev();
        recent.find(|(_, value, _)| *value == target).map(|(records, _, way)| (*records, *way))
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
    fn before_the_first_record_nothing_is_ruled_out() {
        let mut banks = banks(&[], &pcrs(&[]));
        assert_eq!(banks.agreed(), Some(0));
        banks.settle();
        assert!(banks.iter().any(|bank| bank.extend().is_none()));
    }
}
