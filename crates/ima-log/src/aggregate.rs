use alloc::vec::Vec;

use crate::{Bank, Digest, Event, Record};

/// Why a record is not the `boot_aggregate` of given PCR values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AggregateError {
    /// It is a record of something else.
    #[error("expected a record boot_aggregate or boot_aggregate_late")]
    OtherEvent,
    /// Its digest is not of a known bank.
    #[error("boot_aggregate has no digest of a known bank (known: {})", Bank::known())]
    Hash,
    /// All zeros: the kernel found no TPM when it booted.
    #[error("boot_aggregate is zero: the kernel found no TPM it could use when it booted")]
    NoTpm,
    /// A PCR value is needed that there is none of.
    #[error("boot_aggregate is over PCR 0 to {last} of bank {bank}: no value of PCR {pcr}")]
    MissingPcr {
        /// The bank.
        bank: Bank,
        /// The first PCR that is missing.
        pcr: u32,
        /// The last PCR that is needed.
        last: u32,
    },
    /// The values lead to another digest.
    #[error(
        "boot_aggregate is {recorded}: the values of PCR 0 to {last} of bank {bank} give {computed}"
    )]
    Different {
        /// The bank.
        bank: Bank,
        /// What the record has.
        recorded: Digest,
        /// What was computed.
        computed: Digest,
        /// The last PCR that was used.
        last: u32,
    },
}

/// What a kernel records when it boots: the digest of the PCRs that firmware and boot loader
/// extended, 0 to 7 for SHA-1 and, since Linux 5.8, 0 to 9 for any other, read from one bank and
/// hashed with its hash. `pcr` gives their values.
///
/// # Errors
/// [`AggregateError::MissingPcr`] when `pcr` gives none, or one of another bank.
pub fn boot_aggregate(
    bank: Bank,
    mut pcr: impl FnMut(u32) -> Option<Digest>,
) -> Result<Digest, AggregateError> {
    let last = last_pcr(bank);
    let values = (0..=last)
        .map(|index| {
            let value = pcr(index).filter(|value| value.bank() == bank);
            value.ok_or(AggregateError::MissingPcr { bank, pcr: index, last })
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(bank.hash(&values.iter().map(Digest::as_bytes).collect::<Vec<_>>()))
}

/// Checks a record `boot_aggregate` against PCR values, and says of which bank they are. `pcr`
/// gives the value of a PCR.
///
/// A list has one such record for each kernel that was booted; after a kexec they are all over the
/// PCRs of the one cold boot. Values of PCR 8 and 9 are final only once the system is up.
///
/// # Errors
/// [`AggregateError`] when the record is another one, or is not the digest of these values.
pub fn check_boot_aggregate(
    record: &Record<'_>,
    mut pcr: impl FnMut(Bank, u32) -> Option<Digest>,
) -> Result<Bank, AggregateError> {
    if record.event() != Some(Event::BootAggregate) {
        return Err(AggregateError::OtherEvent);
    }
    let digest = record.file_digest().ok_or(AggregateError::Hash)?;
    let bank = digest.algorithm.parse().map_err(|_| AggregateError::Hash)?;
    let recorded = Digest::from_slice(bank, digest.digest).map_err(|_| AggregateError::Hash)?;
    if recorded.is_zero() {
        return Err(AggregateError::NoTpm);
    }
    let computed = boot_aggregate(bank, |index| pcr(bank, index))?;
    if computed == recorded {
        Ok(bank)
    } else {
        Err(AggregateError::Different { bank, recorded, computed, last: last_pcr(bank) })
    }
}

const fn last_pcr(bank: Bank) -> u32 {
    match bank {
        Bank::Sha1 => 7,
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
            assert_eq!(check(&|pcr| Some(value(bank, pcr))), Ok(bank));
            let last = asked - 1;
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
