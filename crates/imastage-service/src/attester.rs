//! The TPM as the service uses it: one connection, one attestation key.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ima_log::{Bank, Digest, IMA_PCR};
use imastage_tpm::{
    AttestationKey, ClockInfo, Endpoint, KeyKind, PcrSelection, Quote, Tpm, TpmError,
};

/// Quotes and reads PCR 10. Cheap to clone; all clones share one connection.
#[derive(Clone)]
pub(crate) struct Attester {
    inner: Arc<Mutex<Inner>>,
    banks: Vec<Bank>,
    clock: ClockInfo,
    identity: Digest,
    public_pem: String,
}

struct Inner {
    tpm: Tpm,
    key: AttestationKey,
}

impl Attester {
    /// Connects and makes the attestation key, which is the same each time for the same TPM.
    pub(crate) fn connect(endpoint: &Endpoint) -> Result<Attester, TpmError> {
        let mut tpm = Tpm::connect(endpoint)?;
        let banks = tpm.banks()?;
        let clock = tpm.clock()?;
        let identity = tpm.identity();
        let key = tpm.attestation_key(KeyKind::EccP256)?;
        let public_pem = key.public_pem().to_owned();
        let identity = match identity {
            Ok(identity) => identity,
            // Where nobody may use the endorsement hierarchy, this key has to do.
            Err(TpmError::Refused { .. }) => Bank::Sha256.hash(&[public_pem.as_bytes()]),
            Err(error) => return Err(error),
        };
        let inner = Arc::new(Mutex::new(Inner { tpm, key }));
        Ok(Attester { inner, banks, clock, identity, public_pem })
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

    /// Which TPM it is: not by its attestation key, since versions of imastage made that in
    /// another hierarchy, and an upgrade does not end an epoch.
    pub(crate) fn identity(&self) -> Digest {
        self.identity
    }

    /// The attestation key's public half.
    pub(crate) fn public_pem(&self) -> &str {
        &self.public_pem
    }

    /// PCR 10 of every bank, all of one moment.
    pub(crate) fn pcrs(&self) -> Result<Vec<Digest>, TpmError> {
        let values = self.lock().tpm.pcr_values(&selection(&self.banks))?;
        Ok(values.into_iter().map(|(_, _, value)| value).collect())
    }

    /// A quote over PCR 10 of `banks`.
    pub(crate) fn quote(&self, nonce: &[u8], banks: &[Bank]) -> Result<Quote, TpmError> {
        let Inner { tpm, key } = &mut *self.lock();
        tpm.quote(key, nonce, &selection(banks))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves a connection that answers or fails; both are handled.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// PCR 10 of each bank.
fn selection(banks: &[Bank]) -> Vec<PcrSelection> {
    banks.iter().map(|bank| PcrSelection { bank: *bank, pcrs: 1 << IMA_PCR }).collect()
}
