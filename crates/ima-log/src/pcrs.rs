//! PCRs as records extend them: which there are, and what a bank's hold.

use alloc::vec::Vec;
use core::{fmt, str::FromStr};

use crate::{Bank, Digest, Extend, Record};

/// Indexes of PCRs, 0 to 31. TPMs of PCs have 24 (TCG PC Client Platform TPM Profile); a selection
/// of four bytes can name 32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PcrSet(u32);

/// A text that names no PCRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected indexes from 0 to 31 or ranges of them, such as 0-9,11")]
pub struct PcrSetError;

/// The PCRs of one bank, as records extend them in one way. PCRs that no record named have the
/// value that a TPM reset gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BankPcrs {
    bank: Bank,
    extend: Extend,
    /// The first that a record named, which is the list's own, then the others in ascending order.
    values: Vec<(u32, Digest)>,
}

impl PcrSet {
    /// One more than the largest index.
    pub const LIMIT: u32 = 32;

    /// No PCR.
    pub const EMPTY: PcrSet = PcrSet(0);

    /// The PCRs whose bits are set: bit n is PCR n.
    pub const fn from_mask(mask: u32) -> PcrSet {
        PcrSet(mask)
    }

    /// Bit n is PCR n.
    pub const fn mask(self) -> u32 {
        self.0
    }

    /// Adds a PCR; an index of 32 or more is ignored.
    pub fn insert(&mut self, pcr: u32) {
        self.0 |= 1u32.checked_shl(pcr).unwrap_or(0);
    }

    /// Whether the PCR is one of these.
    pub fn contains(self, pcr: u32) -> bool {
        self.0 & 1u32.checked_shl(pcr).unwrap_or(0) != 0
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Those in `self`, in `other` or in both.
    #[must_use]
    pub const fn union(self, other: PcrSet) -> PcrSet {
        PcrSet(self.0 | other.0)
    }

    /// Those in `self` that are not in `other`.
    #[must_use]
    pub const fn without(self, other: PcrSet) -> PcrSet {
        PcrSet(self.0 & !other.0)
    }

    /// The indexes in ascending order.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..PcrSet::LIMIT).filter(move |pcr| self.contains(*pcr))
    }
}

impl FromIterator<u32> for PcrSet {
    fn from_iter<I: IntoIterator<Item = u32>>(pcrs: I) -> PcrSet {
        let mut set = PcrSet::EMPTY;
        pcrs.into_iter().for_each(|pcr| set.insert(pcr));
        set
    }
}

impl FromIterator<PcrSet> for PcrSet {
    fn from_iter<I: IntoIterator<Item = PcrSet>>(sets: I) -> PcrSet {
        sets.into_iter().fold(PcrSet::EMPTY, PcrSet::union)
    }
}

impl FromStr for PcrSet {
    type Err = PcrSetError;

    /// Reads indexes and ranges with commas between them: `0-9,11`.
    fn from_str(text: &str) -> Result<PcrSet, PcrSetError> {
        let index = |digits: &str| {
            let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
            let index = digits.parse().ok().filter(|index| is_number && *index < PcrSet::LIMIT);
            index.ok_or(PcrSetError)
        };
        let mut set = PcrSet::EMPTY;
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (index(first)?, index(last)?);
            if first > last {
                return Err(PcrSetError);
            }
            (first..=last).for_each(|pcr| set.insert(pcr));
        }
        Ok(set)
    }
}

impl fmt::Display for PcrSet {
    /// `10, 11`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, pcr) in self.iter().enumerate() {
            write!(f, "{}{pcr}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl Digest {
    /// What a TPM reset leaves in a PCR: all ones in PCR 17 to 22, zeros in all others (TCG PC Client
    /// Platform TPM Profile, PCR attributes).
    pub fn reset(bank: Bank, pcr: u32) -> Digest {
        if matches!(pcr, 17..=22) { Digest::ones(bank) } else { Digest::zero(bank) }
    }
}

impl BankPcrs {
    /// The PCRs as a TPM reset leaves them.
    pub fn new(bank: Bank, extend: Extend) -> BankPcrs {
        BankPcrs { bank, extend, values: Vec::new() }
    }

    /// As [`BankPcrs::new`], once for each way in which kernels extend the bank; that of kernels
    /// before 5.8 is told from [`Extend::Sha1Padded`] by the first violation.
    pub fn ways(bank: Bank) -> impl Iterator<Item = BankPcrs> {
        let ways = [Extend::Own, Extend::Sha1Padded].into_iter();
        ways.filter(move |extend| bank != Bank::Sha1 || *extend == Extend::Own)
            .map(move |extend| BankPcrs::new(bank, extend))
    }

    /// The PCRs that have these values already, the list's own PCR first; digests of other banks
    /// and PCRs of 32 or more are left out.
    pub fn resume(
        bank: Bank,
        extend: Extend,
        values: impl IntoIterator<Item = (u32, Digest)>,
    ) -> BankPcrs {
        let mut pcrs = BankPcrs::new(bank, extend);
        for (pcr, value) in values.into_iter().filter(|(_, value)| value.bank() == bank) {
            if let Some(known) = pcrs.value_mut(pcr) {
                *known = value;
            }
        }
        pcrs
    }

    /// The bank.
    pub fn bank(&self) -> Bank {
        self.bank
    }

    /// What the bank is taken to be extended with, by the next records.
    pub fn extend_kind(&self) -> Extend {
        self.extend
    }

    /// The value of a PCR.
    pub fn value(&self, pcr: u32) -> Digest {
        let known = self.values.iter().find(|(index, _)| *index == pcr);
        known.map_or_else(|| Digest::reset(self.bank, pcr), |(_, value)| *value)
    }

    /// The PCRs that records named, and their values; the list's own first.
    pub fn values(&self) -> impl Iterator<Item = (u32, Digest)> + '_ {
        self.values.iter().copied()
    }

    /// Extends the PCR that the record names: two hashes. A PCR of 32 or more is none.
    pub fn extend(&mut self, record: &Record<'_>) {
        self.extend_knowing(record, record.is_violation(), &mut None);
    }

    /// As [`BankPcrs::extend`]. `sha1` is the SHA-1 template digest as soon as somebody knows it.
    #[inline]
    pub(crate) fn extend_knowing(
        &mut self,
        record: &Record<'_>,
        is_violation: bool,
        sha1: &mut Option<Digest>,
    ) {
        let (bank, extend) = (self.bank, self.extend);
        let Some(value) = self.value_mut(record.pcr()) else { return };
        if is_violation {
            value.extend_with(&extend.violation(bank));
            return;
        }
        if extend.hashed_with(bank) == Bank::Sha1 && (bank != Bank::Sha1 || sha1.is_some()) {
            let sha1 = sha1.get_or_insert_with(|| record.template_digest(Bank::Sha1));
            value.extend_with(&sha1.padded_to(bank));
        } else if let Some(data) = record.hashed_data() {
            value.extend_with_hash_of(data);
        } else {
            value.extend_with(&extend.value(bank, record));
        }
    }

    pub(crate) fn with_extend(&self, extend: Extend) -> BankPcrs {
        BankPcrs { extend, ..self.clone() }
    }

    #[inline]
    fn value_mut(&mut self, pcr: u32) -> Option<&mut Digest> {
        if pcr >= PcrSet::LIMIT {
            return None;
        }
        let at = match self.values.iter().position(|(index, _)| *index == pcr) {
            Some(at) => at,
            None => {
                let others = self.values.iter().skip(1);
                let at = others.take_while(|(index, _)| *index < pcr).count();
                let at = if self.values.is_empty() { 0 } else { at + 1 };
                self.values.insert(at, (pcr, Digest::reset(self.bank, pcr)));
                at
            }
        };
        self.values.get_mut(at).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RecordBuf, Replay};
    use alloc::string::ToString;

    #[test]
    fn sets_keep_what_a_selection_can_name() {
        let set: PcrSet = [11, 10, 10, 31, 32, u32::MAX].into_iter().collect();
        assert_eq!((set.to_string().as_str(), set.len()), ("10, 11, 31", 3));
        assert!(set.contains(31) && !set.contains(32) && !set.contains(u32::MAX));
        assert_eq!("10,11,31".parse(), Ok(set));
        assert_eq!("10-11,31-31".parse(), Ok(set));
        for text in ["", "10,", "32", "+1", "3-1", "0-", "1 ", "0-9-10", "99999999999"] {
            assert_eq!(text.parse::<PcrSet>(), Err(PcrSetError), "{text}");
        }
        let ten = PcrSet::from_mask(1 << 10);
        assert_eq!(set.without(ten).iter().collect::<Vec<_>>(), [11, 31]);
        assert_eq!(set.without(ten).union(ten), set);
    }

    #[test]
    fn each_record_extends_the_pcr_it_names() {
        let record = |pcr, name: &[u8]| RecordBuf::ima_ng(pcr, &Bank::Sha256.hash(&[name]), name);
        for bank in Bank::ALL {
            for extend in
                Extend::ALL.into_iter().filter(|e| bank != Bank::Sha1 || *e == Extend::Own)
            {
                let mut pcrs = BankPcrs::new(bank, extend);
                let (mut ten, mut twenty) =
                    (Replay::new(bank, extend), Replay::resume(Digest::ones(bank), extend));
                for (pcr, name) in [(10, &b"a"[..]), (20, b"b"), (10, b"c"), (32, b"d")] {
                    let record = record(pcr, name);
                    pcrs.extend(&record.record());
                    match pcr {
                        10 => ten.extend(&record.record()),
                        20 => twenty.extend(&record.record()),
                        _ => {}
                    }
                }
                assert_eq!((pcrs.value(10), pcrs.value(20)), (ten.value(), twenty.value()));
                assert_eq!(
                    (pcrs.value(11), pcrs.value(17)),
                    (Digest::zero(bank), Digest::ones(bank))
                );
                assert_eq!(pcrs.values().map(|(pcr, _)| pcr).collect::<Vec<_>>(), [10, 20]);
            }
        }
    }
}
