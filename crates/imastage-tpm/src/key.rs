//! Attestation keys in a TPM's memory.

use tpm2_protocol::basic::TpmHandle;

use crate::PublicArea;

/// A restricted signing key in the TPM's memory: it signs only structures of the TPM itself.
#[derive(Debug)]
pub struct AttestationKey {
    handle: TpmHandle,
    public_pem: String,
    public_area: PublicArea,
}

impl AttestationKey {
    pub(crate) fn new(
        handle: TpmHandle,
        public_pem: String,
        public_area: PublicArea,
    ) -> AttestationKey {
        AttestationKey { handle, public_pem, public_area }
    }

    /// The public half as SubjectPublicKeyInfo in PEM, as `tpm2_readpublic -f pem` writes it.
    pub fn public_pem(&self) -> &str {
        &self.public_pem
    }

    /// The public area as returned by the TPM, with attributes.
    pub fn public_area(&self) -> &PublicArea {
        &self.public_area
    }

    pub(crate) fn handle(&self) -> TpmHandle {
        self.handle
    }
}
