//! Attestation keys in a TPM's memory.

use tpm2_protocol::basic::TpmHandle;

use crate::PublicArea;

/// A restricted signing key in the TPM's memory: it signs nothing but what the TPM itself says.
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

    /// The public half as the TPM says it, attributes and all.
    pub fn public_area(&self) -> &PublicArea {
        &self.public_area
    }

    pub(crate) fn handle(&self) -> TpmHandle {
        self.handle
    }
}
