use alloc::vec::Vec;

use crate::{Bank, Digest, IMA_PCR, Record};

/// What the kernel extended a bank with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extend {
    /// The template digest of the bank's own hash (Linux 5.8 on, where the kernel has the hash).
    Own,
    /// The SHA-1 template digest, padded with zeros to the bank's size: kernels before 5.8, and
    /// banks whose hash could not be allocated when IMA started.
    Sha1Padded,
}

/// The value of one PCR in one bank as records extend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    extend: Extend,
    value: Digest,
}

/// Finds how many records of a list lead to given PCR values.
///
/// Feed it records with [`PrefixSearch::push`]; it replays every bank it was given, each both with
/// its own hash and zero-padded SHA-1, and remembers the shortest prefix that leads to the bank's
/// target. Records of other PCRs count but extend nothing.
#[derive(Clone, Debug)]
pub struct PrefixSearch {
    pcr: u32,
    banks: Vec<BankSearch>,
    records: u64,
    violations: u64,
    common: Option<u64>,
}

/// A prefix that leads to a PCR value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BankMatch {
    /// How many records, from the first.
    pub records: u64,
    /// What the bank was extended with.
    pub extend: Extend,
}

impl Extend {
    /// What `record` extends a PCR of `bank` with: a template digest, or for a violation all ones,
    /// as many as the bank's digests have, padded or not. (Seen on Linux 6.1. Kernels before 5.8
    /// padded those, too.)
    #[inline]
    pub fn value(self, bank: Bank, record: &Record<'_>) -> Digest {
        let hashed_with = match self {
            Extend::Own => bank,
            Extend::Sha1Padded => Bank::Sha1,
        };
        if record.is_violation() {
            return Digest::ones(bank);
        }
        let digest = record.data_digest(hashed_with);
        if hashed_with == bank { digest } else { digest.padded_to(bank) }
    }
}

impl Replay {
    /// A PCR as a TPM reset leaves it.
    pub fn new(bank: Bank, extend: Extend) -> Replay {
        Replay::resume(Digest::zero(bank), extend)
    }

    /// A PCR that has `value` already.
    pub fn resume(value: Digest, extend: Extend) -> Replay {
        Replay { extend, value }
    }

    /// Extends the PCR with a record, whichever PCR the record names: two hashes.
    #[inline]
    pub fn extend(&mut self, record: &Record<'_>) {
        if let (Extend::Own, false, Some(data)) =
            (self.extend, record.is_violation(), record.hashed_data())
        {
            self.value.extend_with_hash_of(data);
        } else {
            let value = self.extend.value(self.value.bank(), record);
            self.value.extend_with(&value);
        }
    }

    /// Extends the PCR with `value`, a digest of its bank.
    #[inline]
    pub(crate) fn extend_with(&mut self, value: &Digest) {
        self.value.extend_with(value);
    }

    /// The PCR's value.
    pub fn value(&self) -> Digest {
        self.value
    }

    /// What the bank is taken to be extended with.
    pub fn extend_kind(&self) -> Extend {
        self.extend
    }
}

#[derive(Clone, Debug)]
struct BankSearch {
    replays: Vec<Replay>,
    target: Option<Digest>,
    found: Option<BankMatch>,
}

impl PrefixSearch {
    /// Replays PCR `pcr` (mostly [`IMA_PCR`]) from reset.
    pub fn new(pcr: u32) -> PrefixSearch {
        PrefixSearch { pcr, banks: Vec::new(), records: 0, violations: 0, common: None }
    }

    /// Adds a bank, to be matched against `target` if there is one. Add banks before records.
    pub fn add_bank(&mut self, bank: Bank, target: Option<Digest>) {
        let mut replays = alloc::vec![Replay::new(bank, Extend::Own)];
        // In the sha1 bank the two are the same, and without a target nobody asks.
        if bank != Bank::Sha1 && target.is_some() {
            replays.push(Replay::new(bank, Extend::Sha1Padded));
        }
        self.banks.push(BankSearch { replays, target, found: None });
        self.common = None;
        self.compare();
    }

    /// Takes the list's next record.
    pub fn push(&mut self, record: &Record<'_>) {
        self.records += 1;
        self.violations += u64::from(record.is_violation());
        if record.pcr() == self.pcr {
            for bank in &mut self.banks {
                for replay in &mut bank.replays {
                    replay.extend(record);
                }
            }
            self.compare();
        }
    }

    /// Records so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Violations among them.
    pub fn violations(&self) -> u64 {
        self.violations
    }

    /// The bank's PCR after all records, replayed with its own hash, or with padded SHA-1 if that
    /// is what was found to match.
    pub fn value(&self, bank: Bank) -> Option<Digest> {
        let search = self.bank(bank)?;
        let extend = search.found.map_or(Extend::Own, |found| found.extend);
        let replay = search.replays.iter().find(|r| r.extend == extend);
        replay.or(search.replays.first()).map(Replay::value)
    }

    /// The shortest prefix that leads to the bank's target.
    pub fn bank_match(&self, bank: Bank) -> Option<BankMatch> {
        self.bank(bank)?.found
    }

    /// The shortest prefix at which every bank that has a target matches it at once.
    pub fn common_match(&self) -> Option<u64> {
        self.common
    }

    fn bank(&self, bank: Bank) -> Option<&BankSearch> {
        self.banks.iter().find(|search| search.replays.iter().any(|r| r.value.bank() == bank))
    }

    fn compare(&mut self) {
        let mut targets = 0;
        let mut hits = 0;
        for bank in &mut self.banks {
            let Some(target) = bank.target else { continue };
            targets += 1;
            if let Some(replay) = bank.replays.iter().find(|replay| replay.value == target) {
                hits += 1;
                bank.found
                    .get_or_insert(BankMatch { records: self.records, extend: replay.extend });
            }
        }
        if targets > 0 && hits == targets {
            self.common.get_or_insert(self.records);
        }
    }
}

impl Default for PrefixSearch {
    fn default() -> Self {
        PrefixSearch::new(IMA_PCR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RecordBuf;

    #[test]
    fn finds_the_prefix_and_how_each_bank_was_extended() {
        let records: Vec<RecordBuf> = (0..9u8)
            .map(|i| RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[&[i]]), &[b'a' + i]))
            .chain([RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/v")])
            .chain([RecordBuf::ima_ng(11, &Bank::Sha256.hash(&[]), b"other PCR")])
            .collect();
        let mut own = Replay::new(Bank::Sha256, Extend::Own);
        let mut padded = Replay::new(Bank::Sha512, Extend::Sha1Padded);
        for record in &records[..10] {
            own.extend(&record.record());
            padded.extend(&record.record());
        }
        let mut search = PrefixSearch::new(10);
        search.add_bank(Bank::Sha256, Some(own.value()));
        search.add_bank(Bank::Sha512, Some(padded.value()));
        search.add_bank(Bank::Sha1, None);
        for record in &records {
            search.push(&record.record());
        }
        assert_eq!(
            search.bank_match(Bank::Sha256),
            Some(BankMatch { records: 10, extend: Extend::Own })
        );
        assert_eq!(
            search.bank_match(Bank::Sha512),
            Some(BankMatch { records: 10, extend: Extend::Sha1Padded })
        );
        assert_eq!(search.bank_match(Bank::Sha1), None);
        assert_eq!(search.common_match(), Some(10));
        assert_eq!(search.value(Bank::Sha512), Some(padded.value()));
        assert_eq!((search.records(), search.violations()), (11, 1));
    }

    #[test]
    fn banks_that_match_apart_have_no_common_prefix() {
        let a = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), b"a");
        let mut one = Replay::new(Bank::Sha1, Extend::Own);
        one.extend(&a.record());
        let mut search = PrefixSearch::new(10);
        search.add_bank(Bank::Sha1, Some(one.value()));
        search.add_bank(Bank::Sha256, Some(Digest::zero(Bank::Sha256)));
        search.push(&a.record());
        assert_eq!(search.bank_match(Bank::Sha1).map(|m| m.records), Some(1));
        assert_eq!(search.bank_match(Bank::Sha256).map(|m| m.records), Some(0));
        assert_eq!(search.common_match(), None);
    }
}
