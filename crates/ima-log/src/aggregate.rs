//! `boot_aggregate`: the digest of the PCRs that firmware and boot loader extended.

use alloc::{format, string::String, vec::Vec};
use core::fmt;

use crate::{Bank, Digest, Event, Record};

/// Why a record is not the `boot_aggregate` of given PCR values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AggregateError {
    /// The record is not a boot_aggregate.
    #[error("expected a record boot_aggregate or boot_aggregate_late")]
    OtherEvent,
    /// The hash of its digest is unknown.
    #[error("boot_aggregate has no digest of a known bank (known: {})", Bank::known())]
    Hash,
    /// All zeros: the kernel found no TPM at boot.
    #[error("boot_aggregate is zero: the kernel found no TPM it could use when it booted")]
    NoTpm,
    /// A required PCR value is missing.
    #[error("boot_aggregate is over PCR 0 to {last} of bank {bank}: no value of PCR {pcr}")]
    MissingPcr {
        /// The bank.
        bank: Bank,
        /// The first PCR that is missing.
        pcr: u32,
        /// The last PCR that is needed.
        last: u32,
    },
    /// The values have another digest.
    #[error(
        "boot_aggregate is {recorded}: the values of PCR 0 to {last} of bank {bank} give \
         {computed}{}",
        alone(*without_8_and_9)
    )]
    Different {
        /// The bank.
        bank: Bank,
        /// The digest in the record.
        recorded: Digest,
        /// The computed digest.
        computed: Digest,
        /// The last PCR that was used.
        last: u32,
        /// The digest of PCR 0 to 7 alone, if a kernel may have omitted 8 and 9.
        without_8_and_9: Option<Digest>,
    },
}

fn alone(computed: Option<Digest>) -> String {
    computed
        .map_or_else(String::new, |computed| format!(", and those of PCR 0 to 7 alone {computed}"))
}

/// The PCRs of which a `boot_aggregate` is the digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AggregatedPcrs {
    /// The bank they were read from.
    pub bank: Bank,
    /// The last of them; the first is 0.
    pub last: u32,
}

impl AggregatedPcrs {
    /// Whether PCR 8 and 9 are omitted although the hash is not SHA-1: 5.4 and 5.7 stable kernels
    /// and release candidates of 5.8, from June and July 2020.
    pub fn is_of_mid_2020(&self) -> bool {
        self.last != last_pcr(self.bank)
    }
}

impl fmt::Display for AggregatedPcrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PCR 0 to {} of bank {}", self.last, self.bank)?;
        if self.is_of_mid_2020() { f.write_str(" (kernels of mid 2020)") } else { Ok(()) }
    }
}

/// The `boot_aggregate` of a kernel: the digest of the PCRs that firmware and boot loader extended,
/// 0 to 7 for SHA-1 and, since Linux 5.8, 0 to 9 for other hashes, of one bank and with its hash.
/// `pcr` returns their values.
///
/// # Errors
/// [`AggregateError::MissingPcr`] if `pcr` returns none, or one of another bank.
pub fn boot_aggregate(
    bank: Bank,
    pcr: impl FnMut(u32) -> Option<Digest>,
) -> Result<Digest, AggregateError> {
    aggregate(bank, last_pcr(bank), pcr)
}

/// Compares a record `boot_aggregate` with PCR values; returns the PCRs of which it is the digest.
/// `pcr` returns the value of a PCR.
///
/// A list has one such record per booted kernel; after a kexec, all are digests of the PCRs of the
/// one cold boot. The values of PCR 8 and 9 are final only when the system is up. Some kernels of
/// mid 2020 use PCR 0 to 7 in all banks, so [`AggregatedPcrs::last`] shows whether PCR 8 and 9 are
/// proven.
///
/// # Errors
/// [`AggregateError`] if the record is not a boot_aggregate, or not the digest of these values.
pub fn check_boot_aggregate(
    record: &Record<'_>,
    mut pcr: impl FnMut(Bank, u32) -> Option<Digest>,
) -> Result<AggregatedPcrs, AggregateError> {
    if record.event() != Some(Event::BootAggregate) {
        return Err(AggregateError::OtherEvent);
    }
    let digest = record.file_digest().ok_or(AggregateError::Hash)?;
    let bank = digest.algorithm.parse().map_err(|_| AggregateError::Hash)?;
    let recorded = Digest::from_slice(bank, digest.digest).map_err(|_| AggregateError::Hash)?;
    if recorded.is_zero() {
        return Err(AggregateError::NoTpm);
    }
    let last = last_pcr(bank);
    let computed = aggregate(bank, last, |index| pcr(bank, index));
    if computed.as_ref() == Ok(&recorded) {
        return Ok(AggregatedPcrs { bank, last });
    }
    let mut without_8_and_9 = None;
    if last != LAST_OF_SHA1 {
        without_8_and_9 = aggregate(bank, LAST_OF_SHA1, |index| pcr(bank, index)).ok();
        if without_8_and_9 == Some(recorded) {
            return Ok(AggregatedPcrs { bank, last: LAST_OF_SHA1 });
        }
    }
    let computed = computed?;
    Err(AggregateError::Different { bank, recorded, computed, last, without_8_and_9 })
}

fn aggregate(
    bank: Bank,
    last: u32,
    mut pcr: impl FnMut(u32) -> Option<Digest>,
) -> Result<Digest, AggregateError> {
    let values = (0..=last)
        .map(|index| {
            let value = pcr(index).filter(|value| value.bank() == bank);
            value.ok_or(AggregateError::MissingPcr { bank, pcr: index, last })
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(bank.hash(&values.iter().map(Digest::as_bytes).collect::<Vec<_>>()))
}

/// With SHA-1, the digest is always of PCR 0 to 7.
const LAST_OF_SHA1: u32 = 7;

const fn last_pcr(bank: Bank) -> u32 {
    match bank {
        Bank::Sha1 => LAST_OF_SHA1,
        _ => 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RecordBuf, RecordBuilder};

    fn value(bank: Bank, pcr: u32) -> Digest {
        bank.hash(&[&[pcr as u8]])
    }

    #[test]
    fn every_bank_has_its_own_pcrs() {
        for bank in Bank::ALL {
            let mut asked = 0;
            let digest = boot_aggregate(bank, |pcr| {
                asked += 1;
                Some(value(bank, pcr))
            });
            let record = RecordBuf::ima_ng(10, &digest.unwrap(), b"boot_aggregate");
            assert_eq!(asked, if bank == Bank::Sha1 { 8 } else { 10 });
            let check = |pcr: &dyn Fn(u32) -> Option<Digest>| {
                check_boot_aggregate(&record.record(), |_, index| pcr(index))
            };
            let last = asked - 1;
            let found = check(&|pcr| Some(value(bank, pcr)));
            assert_eq!(found, Ok(AggregatedPcrs { bank, last }));
            assert!(!found.unwrap().is_of_mid_2020());
            assert_eq!(
                check(&|pcr| (pcr != last).then(|| value(bank, pcr))),
                Err(AggregateError::MissingPcr { bank, pcr: last, last })
            );
            assert!(matches!(
                check(&|pcr| Some(value(bank, pcr ^ u32::from(pcr == last)))),
                Err(AggregateError::Different { .. })
            ));
            let other = if bank == Bank::Sha1 { Bank::Sha256 } else { Bank::Sha1 };
            assert!(matches!(
                check(&|pcr| Some(value(other, pcr))),
                Err(AggregateError::MissingPcr { pcr: 0, .. })
            ));
        }
    }

    #[test]
    fn case_12_kernels_of_mid_2020_left_out_pcr_8_and_9() {
        for bank in Bank::ALL {
            let digest = aggregate(bank, 7, |pcr| Some(value(bank, pcr))).unwrap();
            let record = RecordBuf::ima_ng(10, &digest, b"boot_aggregate_late");
            let check = |last: u32, other: u32| {
                check_boot_aggregate(&record.record(), |_, pcr| {
                    let other = u32::from(pcr == other);
                    (pcr <= last).then(|| value(bank, pcr ^ (other << 5)))
                })
            };
            let found = check(9, 24).unwrap();
            assert_eq!((found.bank, found.last), (bank, 7));
            assert_eq!(found.is_of_mid_2020(), bank != Bank::Sha1);
            // What PCR 8 and 9 are does not matter to it.
            assert_eq!((check(7, 24), check(9, 8)), (Ok(found), Ok(found)));
            let error = check(9, 3).unwrap_err();
            let AggregateError::Different { without_8_and_9, .. } = &error else {
                panic!("{error}")
            };
            assert_eq!(without_8_and_9.is_some(), bank != Bank::Sha1);
            let tried = format!("{error}").contains("PCR 0 to 7 alone");
            assert_eq!(tried, bank != Bank::Sha1, "{error}");
        }
    }

    #[test]
    fn other_records_are_told_apart() {
        let check = |record: &RecordBuf| {
            check_boot_aggregate(&record.record(), |bank, pcr| Some(value(bank, pcr)))
        };
        let digest = Bank::Sha256.hash(&[]);
        assert_eq!(check(&RecordBuf::ima_ng(10, &digest, b"/f")), Err(AggregateError::OtherEvent));
        assert_eq!(
            check(&RecordBuf::ima_ng(10, &Digest::zero(Bank::Sha256), b"boot_aggregate")),
            Err(AggregateError::NoTpm)
        );
        let md5 = RecordBuilder::new(10).record("ima-ng", &[b"md5:\0x", b"boot_aggregate\0"]);
        assert_eq!(check(&md5.unwrap()), Err(AggregateError::Hash));
    }
}
