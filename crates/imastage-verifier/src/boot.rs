//! Compares `boot_aggregate` with the PCR values that the quote proved.

use ima_log::{
    AggregateError, Bank, Digest, Event, PcrSet, Record, RecordBuf, check_boot_aggregate,
};

/// Whether the kernel's first record is the digest of the PCRs that firmware and boot loader
/// extended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootAggregate {
    /// It is the digest of the quoted PCRs of this bank.
    Matches(Bank),
    /// The quote does not cover the PCRs of the digest, 0 to 9 of this bank.
    NotQuoted(Bank),
    /// The list's records extend PCRs of the digest, so they have changed.
    Overwritten(PcrSet),
    /// The list does not start with a boot_aggregate, or its hash is unknown.
    Absent,
    /// No PCR values were proven.
    NotCompared,
}

/// The digest in the kernel's first record; `None` if that is not a `boot_aggregate` or its hash is
/// unknown.
pub(crate) fn recorded(first: &Record<'_>) -> Option<Digest> {
    let digest = first.file_digest().filter(|_| first.event() == Some(Event::BootAggregate))?;
    Digest::from_slice(digest.algorithm.parse().ok()?, digest.digest).ok()
}

/// Compares the digest with PCR values that the quote proved. `named` are the PCRs that records
/// extend.
pub(crate) fn compare(
    recorded: Option<Digest>,
    named: PcrSet,
    mut value: impl FnMut(Bank, u32) -> Option<Digest>,
) -> Result<BootAggregate, AggregateError> {
    let Some(digest) = recorded else { return Ok(BootAggregate::Absent) };
    let overwritten: PcrSet = named.iter().filter(|pcr| *pcr <= 9).collect();
    if !overwritten.is_empty() {
        return Ok(BootAggregate::Overwritten(overwritten));
    }
    let record = RecordBuf::ima_ng(ima_log::IMA_PCR, &digest, b"boot_aggregate");
    match check_boot_aggregate(&record.record(), &mut value) {
        Ok(_) => Ok(BootAggregate::Matches(digest.bank())),
        Err(AggregateError::MissingPcr { bank, .. }) => Ok(BootAggregate::NotQuoted(bank)),
        Err(AggregateError::NoTpm) if value(digest.bank(), 0).is_none() => {
            Ok(BootAggregate::NotQuoted(digest.bank()))
        }
        Err(error) => Err(error),
    }
}
