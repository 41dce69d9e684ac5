//! What one drain did, or why it failed.

use std::time::Duration;

use ima_log::{Bank, Format, ParseError, PcrSet, PcrTarget, Record, Records};
use imastage_source::SourceError;
use imastage_store::{Store, StoreError};

/// What one drain did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Records that are stored now and were not before.
    pub stored: u64,
    /// Records that were in the list and in the store already.
    pub already_stored: u64,
    /// Records deleted from the list.
    pub deleted: u64,
    /// Their bytes (sha1 form).
    pub deleted_bytes: u64,
    /// How long the list's files were held, each time.
    pub holds: Vec<Duration>,
    /// How long all of it took.
    pub took: Duration,
}

/// Why a drain failed. Unless it says otherwise nothing was deleted, and the next drain begins
/// where this one did.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// The list could not be held, read or shortened.
    #[error("{0}")]
    Source(#[from] SourceError),
    /// The records could not be stored.
    #[error("{0}; nothing was deleted from the list")]
    Store(#[from] StoreError),
    /// What was read is not a list.
    #[error("the list cannot be read ({0}); nothing was deleted")]
    Unreadable(ParseError),
    /// Equal records kept being added while the list's place in the store was looked for.
    #[error(
        "cannot tell which records are already stored: identical records keep arriving; \
         nothing was deleted, the next drain tries again"
    )]
    NoPlace,
    /// The list's first records are not the last stored ones, as they were before.
    #[error("the list changed while it was looked at; nothing was deleted")]
    Moved,
    /// The TPM did not answer.
    #[error("TPM: {0}; nothing was deleted from the list")]
    Tpm(String),
    /// What is stored is damaged.
    #[error("the store is damaged; until it is restored records stay in the list")]
    Damaged,
    /// Records that came before the list's first are in no place that is known.
    #[error(
        "{list}: records before its first one are neither in this state directory nor in the list \
         (another service keeps them in another state directory, someone deleted them, or a PCR was \
         extended without a record); nothing was stored or deleted. Run the service with the state \
         directory that has them, or with --adopt to go on without them, which cannot be verified \
         before the next TPM reset"
    )]
    Foreign {
        /// The list.
        list: String,
    },
    /// The TPM was reset: what is in the list belongs to another epoch.
    #[error(
        "the TPM was reset under the running service (its reset counter is {now}, and was {was}): \
         nothing more is stored in this epoch, and nothing is deleted from the list; start the \
         service again, which begins a new epoch"
    )]
    TpmReset {
        /// The reset counter of the epoch.
        was: u32,
        /// The reset counter now.
        now: u32,
    },
}

/// What a drain asks a TPM.
pub trait AskTpm: Send {
    /// These PCRs in all banks, all of one moment.
    ///
    /// # Errors
    /// Why the TPM did not answer, in words.
    fn pcrs(&mut self, pcrs: PcrSet) -> Result<Vec<PcrTarget>, String>;

    /// How often it was reset (TPMS_CLOCK_INFO.resetCount); `None` if it does not count.
    ///
    /// # Errors
    /// Why the TPM did not answer, in words.
    fn reset_count(&mut self) -> Result<Option<u32>, String>;
}

/// Parses a whole list. The store checks the digests.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<Record<'_>>, DrainError> {
    Records::new(bytes, Format::native(Bank::Sha1))
        .collect::<Result<_, _>>()
        .map_err(DrainError::Unreadable)
}

/// Appends `records` and makes them durable.
pub(crate) fn keep(store: &mut Store, records: &[Record<'_>]) -> Result<(), StoreError> {
    records.iter().try_for_each(|record| store.append(record).map(drop))?;
    store.commit()
}
