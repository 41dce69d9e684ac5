//! Primary keys of a TPM: attestation keys, and the key that identifies a TPM.

use ima_log::{Bank, Digest};
use tpm2_protocol::{
    basic::TpmHandle,
    data::{Tpm2bPublic, TpmRh},
    frame::{TpmCreatePrimaryCommand, TpmCreatePrimaryResponse},
};

use crate::{
    AttestationKey, KeyKind, PublicArea, Tpm, TpmError,
    command::{malformed, password},
    kind::{pem, template},
};

impl Tpm {
    /// Creates an attestation key in the owner (storage) hierarchy. It is a primary key of a fixed
    /// template: a TPM always creates the same key, until TPM2_Clear changes its owner seed.
    ///
    /// TPM2_Clear must end the key: it sets clock and counters to zero, so a user who can clear the
    /// TPM can restore earlier values of clock, counters and PCRs. A key of the endorsement
    /// hierarchy, whose seed persists, would then attest them (Part 3, TPM2_Clear).
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::OwnerAuth`] if the owner hierarchy has an authorization value.
    pub fn attestation_key(&mut self, kind: KeyKind) -> Result<AttestationKey, TpmError> {
        self.primary_key(kind, TpmRh::Owner).map_err(|error| match error {
            TpmError::Refused { command, code } if code.is_wrong_auth() => {
                TpmError::OwnerAuth { command, code }
            }
            error => error,
        })
    }

    /// Tells this TPM from others: SHA-256 of the public half (PEM) of a primary key of the
    /// endorsement hierarchy. As long as its maker's seed is in the TPM this stays; TPM2_Clear does
    /// not change it.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::Refused`] if the endorsement hierarchy is switched off or has an
    /// authorization value.
    pub fn identity(&mut self) -> Result<Digest, TpmError> {
        let key = self.primary_key(KeyKind::EccP256, TpmRh::Endorsement)?;
        let identity = Bank::Sha256.hash(&[key.public_pem().as_bytes()]);
        self.flush(key)?;
        Ok(identity)
    }

    fn primary_key(&mut self, kind: KeyKind, hierarchy: TpmRh) -> Result<AttestationKey, TpmError> {
        const WHAT: &str = "TPM2_CreatePrimary";
        let command = TpmCreatePrimaryCommand {
            in_public: Tpm2bPublic { inner: template(kind) },
            handles: [TpmHandle::from(hierarchy as u32)],
            ..Default::default()
        };
        let response: TpmCreatePrimaryResponse = self.ask(WHAT, &command, &[password()])?;
        let [handle] = response.handles;
        // If a client had this handle, what it stood for is gone.
        self.claims.forget(handle.value());
        match pem(kind, &response.out_public.inner) {
            Ok(public_pem) => {
                let public_area = PublicArea::new(response.out_public.inner);
                Ok(AttestationKey::new(handle, public_pem, public_area))
            }
            Err(why) => {
                self.flush_handle(handle)?;
                Err(malformed(WHAT, &why))
            }
        }
    }
}
