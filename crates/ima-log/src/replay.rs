//! The value of one PCR after records, for each way in which kernels extend a bank.

use core::{fmt, str::FromStr};

use crate::{Bank, Digest, Record};

/// The value with which the kernel extends a bank. The sha1 bank is always extended with its own
/// hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extend {
    /// The template digest of the bank's own hash (since Linux 5.8, if the kernel has the hash); a
    /// violation extends all ones.
    Own,
    /// The SHA-1 template digest, padded with zeros to the bank's size; a violation extends all
    /// ones of the bank's size. For banks whose hash could not be allocated when IMA started (seen
    /// on Linux 6.1).
    Sha1Padded,
    /// As [`Extend::Sha1Padded`], but the 20 bytes of ones of a violation are padded with zeros,
    /// too: kernels before 5.8.
    Sha1PaddedViolations,
}

/// The running value of one PCR in one bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    extend: Extend,
    value: Digest,
}

/// A text that is not the name of a way to extend a bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected own, sha1-padded or sha1-padded-violations")]
pub struct UnknownExtendError;

impl Extend {
    /// Every way, the one of current kernels first.
    pub const ALL: [Extend; 3] = [Extend::Own, Extend::Sha1Padded, Extend::Sha1PaddedViolations];

    /// The name in JSON and messages: `own`, `sha1-padded`, `sha1-padded-violations`.
    pub const fn name(self) -> &'static str {
        match self {
            Extend::Own => "own",
            Extend::Sha1Padded => "sha1-padded",
            Extend::Sha1PaddedViolations => "sha1-padded-violations",
        }
    }

    /// The hash of the template digest that extends a PCR of `bank`.
    pub const fn hashed_with(self, bank: Bank) -> Bank {
        match self {
            Extend::Own => bank,
            Extend::Sha1Padded | Extend::Sha1PaddedViolations => Bank::Sha1,
        }
    }

    /// The value with which a violation extends a PCR of `bank`.
    pub fn violation(self, bank: Bank) -> Digest {
        match self {
            Extend::Own | Extend::Sha1Padded => Digest::ones(bank),
            Extend::Sha1PaddedViolations => Digest::ones(Bank::Sha1).padded_to(bank),
        }
    }

    /// The value with which `record` extends a PCR of `bank`.
    #[inline]
    pub fn value(self, bank: Bank, record: &Record<'_>) -> Digest {
        if record.is_violation() {
            return self.violation(bank);
        }
        let hashed_with = self.hashed_with(bank);
        let digest = record.data_digest(hashed_with);
        if hashed_with == bank { digest } else { digest.padded_to(bank) }
    }
}

impl fmt::Display for Extend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Extend {
    type Err = UnknownExtendError;

    /// Accepts [`Extend::name`].
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Extend::ALL.into_iter().find(|extend| extend.name() == name).ok_or(UnknownExtendError)
    }
}

impl Replay {
    /// A PCR after a TPM reset.
    pub fn new(bank: Bank, extend: Extend) -> Replay {
        Replay::resume(Digest::zero(bank), extend)
    }

    /// A PCR with a given value.
    pub fn resume(value: Digest, extend: Extend) -> Replay {
        Replay { extend, value }
    }

    /// Extends the PCR with a record, independent of the PCR that the record names: two hashes.
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

    /// The assumed way in which the bank is extended.
    pub fn extend_kind(&self) -> Extend {
        self.extend
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RecordBuf;

    #[test]
    fn names_round_trip() {
        for extend in Extend::ALL {
            assert_eq!(extend.name().parse(), Ok(extend));
        }
        assert_eq!("padded".parse::<Extend>(), Err(UnknownExtendError));
    }

    #[test]
    fn kernels_before_5_8_pad_violations_too() {
        let violation = RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/v");
        let value = |extend: Extend| extend.value(Bank::Sha256, &violation.record());
        assert_eq!(value(Extend::Own), Digest::ones(Bank::Sha256));
        assert_eq!(value(Extend::Sha1Padded), Digest::ones(Bank::Sha256));
        let padded = value(Extend::Sha1PaddedViolations);
        assert_eq!(padded.as_bytes(), [[0xff; 20].as_slice(), &[0; 12]].concat());
    }
}
