//! The quoted PCR values, as far as they are known, and whether records lead to them.

use ima_log::{Bank, BankPcrs, BankReplay, Digest, ListReplay};

use crate::{AppraisalError, PcrValues, ValuesGiven, VerifiedQuote};

/// What the PCRs that records name must be for the quote to hold.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Every quoted PCR in the order in which the TPM hashed them, and the value given for it.
    quoted: Vec<(Bank, u32, Option<Digest>)>,
    digest: Digest,
    given: ValuesGiven,
    preimage: Vec<u8>,
}

/// A TPM resets no PCR to what firmware and boot loader make of these before a kernel starts.
const FIRMWARE: std::ops::RangeInclusive<u32> = 0..=7;

/// How many combinations of ways to extend the quoted banks are tried for each record, if values are
/// missing. Four banks with four ways each.
const MOST_COMBINATIONS: usize = 256;

impl Target {
    /// `values` must hold the values of those PCRs that no records lead to.
    pub(crate) fn new(quote: &VerifiedQuote, values: &PcrValues) -> Result<Target, AppraisalError> {
        let quoted: Vec<_> =
            quote.pcrs().map(|(bank, pcr)| (bank, pcr, values.get(bank, pcr))).collect();
        let is_missing = |(_, pcr, value): &&(Bank, u32, Option<Digest>)| {
            value.is_none() && FIRMWARE.contains(pcr)
        };
        let missing: Vec<_> = quoted.iter().filter(is_missing).map(|(b, p, _)| (*b, *p)).collect();
        if !missing.is_empty() {
            return Err(AppraisalError::MissingValues(missing));
        }
        let digest = quote.digest();
        let preimage: Option<Vec<&[u8]>> =
            quoted.iter().map(|(_, _, value)| value.as_ref().map(Digest::as_bytes)).collect();
        let given = match preimage {
            Some(preimage) if digest.bank().hash(&preimage) == digest => ValuesGiven::Proven,
            Some(_) => ValuesGiven::Refuted,
            None if quoted.iter().all(|(_, _, value)| value.is_none()) => ValuesGiven::None,
            None => ValuesGiven::Some,
        };
        Ok(Target { quoted, digest, given, preimage: Vec::new() })
    }

    /// Of a quote that is not looked at any more.
    pub(crate) fn refused(quote: &VerifiedQuote) -> Target {
        let (quoted, preimage) = (Vec::new(), Vec::new());
        Target { quoted, digest: quote.digest(), given: ValuesGiven::None, preimage }
    }

    /// What the values given are worth.
    pub(crate) fn given(&self) -> ValuesGiven {
        self.given
    }

    /// Whether a PCR is quoted, in any bank.
    pub(crate) fn covers(&self, pcr: u32) -> bool {
        self.quoted.iter().any(|(_, index, _)| *index == pcr)
    }

    /// The value given for a quoted PCR. It is the TPM's once the quote's digest was met.
    pub(crate) fn value(&self, bank: Bank, pcr: u32) -> Option<Digest> {
        let quoted = self.quoted.iter().find(|(b, p, _)| (*b, *p) == (bank, pcr));
        quoted.and_then(|(_, _, value)| *value)
    }

    /// Whether every value given for this PCR is that of a TPM reset, or none is given: then the
    /// value with which the quote's digest was met was that of a TPM reset.
    pub(crate) fn is_reset(&self, pcr: u32) -> bool {
        let mut quoted = self.quoted.iter().filter(|(_, index, _)| *index == pcr);
        quoted.all(|(bank, _, value)| value.is_none_or(|value| value == Digest::reset(*bank, pcr)))
    }

    /// The PCRs that no value is given for.
    pub(crate) fn unknown(&self) -> Vec<(Bank, u32)> {
        let unknown = self.quoted.iter().filter(|(_, _, value)| value.is_none());
        unknown.map(|(bank, pcr, _)| (*bank, *pcr)).collect()
    }

    /// The way of each bank, in the order of `replay`'s, in which its records lead to the quote.
    pub(crate) fn matching(&mut self, replay: &ListReplay) -> Option<Vec<BankPcrs>> {
        if self.given == ValuesGiven::Proven {
            let banks = replay.banks().iter();
            return banks.map(|bank| self.way(bank, replay).cloned()).collect();
        }
        let most = most_ways(replay);
        let ways: Vec<Vec<&BankPcrs>> =
            replay.banks().iter().map(|bank| bank.ways().take(most).collect()).collect();
        let combinations = ways.iter().map(Vec::len).product();
        (0..combinations).find_map(|combination| {
            let choice: Vec<&BankPcrs> = choice(&ways, combination).collect();
            self.preimage.clear();
            for (bank, pcr, value) in &self.quoted {
                let led = choice.iter().find(|way| way.bank() == *bank);
                let value = match (led, value) {
                    (_, Some(value)) if !is_led(replay, *pcr) => *value,
                    (Some(way), _) => way.value(*pcr),
                    (None, Some(value)) => *value,
                    (None, None) => Digest::reset(*bank, *pcr),
                };
                self.preimage.extend_from_slice(value.as_bytes());
            }
            let is_it = self.digest.bank().hash(&[&self.preimage]) == self.digest;
            is_it.then(|| choice.into_iter().cloned().collect())
        })
    }

    /// The PCRs that records name and do not lead to the values given, each bank in the way in which
    /// most are met: proven to be the TPM's.
    pub(crate) fn missed(&self, replay: &ListReplay) -> Vec<(Bank, u32)> {
        let missed = |bank: &BankReplay| {
            let missed = |way: &BankPcrs| -> Vec<(Bank, u32)> {
                let led = self.led_in(bank.bank(), replay);
                let missed = led.filter(|(pcr, value)| way.value(*pcr) != *value);
                missed.map(|(pcr, _)| (bank.bank(), pcr)).collect()
            };
            bank.ways().map(missed).min_by_key(Vec::len).unwrap_or_default()
        };
        replay.banks().iter().flat_map(missed).collect()
    }

    fn way<'r>(&self, bank: &'r BankReplay, replay: &ListReplay) -> Option<&'r BankPcrs> {
        bank.ways().find(|way| {
            self.led_in(bank.bank(), replay).all(|(pcr, value)| way.value(pcr) == value)
        })
    }

    fn led_in(&self, bank: Bank, replay: &ListReplay) -> impl Iterator<Item = (u32, Digest)> {
        let quoted =
            self.quoted.iter().filter(move |(b, pcr, _)| *b == bank && is_led(replay, *pcr));
        quoted.filter_map(|(_, pcr, value)| Some((*pcr, (*value)?)))
    }
}

/// Whether records lead to a PCR's value.
fn is_led(replay: &ListReplay, pcr: u32) -> bool {
    replay.named().contains(pcr)
}

/// So many ways of each bank that all combinations can be tried.
fn most_ways(replay: &ListReplay) -> usize {
    match replay.banks().len() {
        0 | 1 => MOST_COMBINATIONS,
        2 => 16,
        3 => 6,
        _ => 4,
    }
}

/// One way of each bank: `combination` is a number whose digits, of the base of each bank's ways,
/// choose them.
fn choice<'r>(
    banks: &[Vec<&'r BankPcrs>],
    mut combination: usize,
) -> impl Iterator<Item = &'r BankPcrs> {
    banks.iter().filter_map(move |ways| {
        let digit = combination % ways.len();
        combination /= ways.len();
        ways.get(digit).copied()
    })
}
