//! The TPM as the service uses it: one connection, one attestation key, and an order of who is next.

mod link;
mod turns;

use std::sync::Arc;

use ima_log::Bank;
use imastage_tpm::{ClockInfo, Endpoint, PcrSelection, PcrValue, Quote, TpmError};

use link::{Connection, Link};
use turns::{Caller, Turns};

/// Quotes and reads PCRs. Cheap to clone; all clones share one connection, which is made again by
/// itself when it breaks.
///
/// The drain goes first: clients of the API have the TPM only while no drain waits for it, and give
/// it back after each thing they ask of it.
#[derive(Clone)]
pub(crate) struct Attester {
    turns: Arc<Turns<Link>>,
    banks: Vec<Bank>,
    clock: ClockInfo,
    public_pem: String,
}

impl Attester {
    /// Connects and makes the attestation key, which is the same each time for the same TPM.
    ///
    /// # Errors
    /// [`TpmError`].
    pub(crate) fn connect(endpoint: &Endpoint) -> Result<Attester, TpmError> {
        let mut connection = Connection::make(endpoint)?;
        let banks = connection.tpm.banks()?;
        let clock = connection.tpm.clock()?;
        let public_pem = connection.key.public_pem().to_owned();
        let turns = Arc::new(Turns::new(Link::new(endpoint.clone(), connection)));
        Ok(Attester { turns, banks, clock, public_pem })
    }

    /// The banks the TPM has.
    pub(crate) fn banks(&self) -> &[Bank] {
        &self.banks
    }

    /// The bank that is compared and, unless asked otherwise, quoted.
    pub(crate) fn bank(&self) -> Bank {
        let preferred = [Bank::Sha256, Bank::Sha1].into_iter().find(|b| self.banks.contains(b));
        preferred.or(self.banks.first().copied()).unwrap_or(Bank::Sha256)
    }

    /// The reset and restart counters when the service connected.
    pub(crate) fn clock(&self) -> &ClockInfo {
        &self.clock
    }

    /// The attestation key's public half.
    pub(crate) fn public_pem(&self) -> &str {
        &self.public_pem
    }

    /// These PCRs in every bank the TPM has, all of one moment, bank by bank, ascending. For the
    /// drain: before all clients. One TPM command for eight values.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::NoPcr`] if the TPM does not have one of them.
    pub(crate) fn read(&self, pcrs: &[u32]) -> Result<Vec<PcrValue>, TpmError> {
        self.values(Caller::Drain, &selection(&self.banks, pcrs)?)
    }

    /// As [`Attester::read`], for a client.
    ///
    /// # Errors
    /// [`TpmError`].
    pub(crate) fn read_for_client(&self, pcrs: &[u32]) -> Result<Vec<PcrValue>, TpmError> {
        self.values(Caller::Client, &selection(&self.banks, pcrs)?)
    }

    /// The clock and the counters as they are now, for the drain: another reset counter than
    /// [`Attester::clock`]'s says that the TPM was reset since the service connected.
    ///
    /// # Errors
    /// [`TpmError`].
    pub(crate) fn clock_now(&self) -> Result<ClockInfo, TpmError> {
        self.with(Caller::Drain, |connection| connection.tpm.clock())
    }

    /// A quote over these PCRs of these banks, for a client, and their values if they were the same
    /// before the quote and after it; `None` if they changed each time.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::NoPcr`] if the TPM does not have one of them.
    pub(crate) fn quote(
        &self,
        nonce: &[u8],
        banks: &[Bank],
        pcrs: &[u32],
    ) -> Result<(Quote, Option<Vec<PcrValue>>), TpmError> {
        const TRIES: usize = 3;
        let selection = selection(banks, pcrs)?;
        let mut before = self.values(Caller::Client, &selection)?;
        let mut tries = 1;
        loop {
            let quote = self.with(Caller::Client, |connection| {
                let Connection { tpm, key } = connection;
                tpm.quote(key, nonce, &selection)
            })?;
            let after = self.values(Caller::Client, &selection)?;
            if after == before {
                return Ok((quote, Some(after)));
            }
            if tries == TRIES {
                return Ok((quote, None));
            }
            before = after;
            tries += 1;
        }
    }

    fn values(
        &self,
        caller: Caller,
        selection: &[PcrSelection],
    ) -> Result<Vec<PcrValue>, TpmError> {
        self.with(caller, |connection| connection.tpm.pcr_values(selection))
    }

    fn with<T>(
        &self,
        caller: Caller,
        act: impl FnMut(&mut Connection) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        self.turns.with(caller, |link| link.act(&self.public_pem, act))
    }
}

/// These PCRs of each bank.
fn selection(banks: &[Bank], pcrs: &[u32]) -> Result<Vec<PcrSelection>, TpmError> {
    let mut selected = 0;
    for pcr in pcrs.iter().copied() {
        if pcr >= PcrSelection::PCRS {
            let bank = banks.first().copied().unwrap_or(Bank::Sha256);
            return Err(TpmError::NoPcr { bank, pcr });
        }
        selected |= 1 << pcr;
    }
    Ok(banks.iter().map(|bank| PcrSelection { bank: *bank, pcrs: selected }).collect())
}
