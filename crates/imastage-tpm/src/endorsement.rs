//! Endorsement keys, and activation of a credential (TPM2_ActivateCredential).

use tpm2_protocol::{
    basic::{TpmHandle, TpmUint16, TpmUint32},
    data::{
        Tpm2bDigest, Tpm2bEncryptedSecret, Tpm2bIdObject, Tpm2bNonce, Tpm2bPublic, TpmAlgId,
        TpmEccCurve, TpmRh, TpmSe, TpmsAuthCommand, TpmsEccParms, TpmsEccPoint, TpmsRsaParms,
        TpmtPublic, TpmtSymDef, TpmuPublicId, TpmuPublicParms, TpmuSymKeyBits, TpmuSymMode,
    },
    frame::{
        TpmActivateCredentialCommand, TpmActivateCredentialResponse, TpmCreatePrimaryCommand,
        TpmCreatePrimaryResponse, TpmPolicySecretCommand, TpmPolicySecretResponse,
        TpmStartAuthSessionCommand, TpmStartAuthSessionResponse,
    },
};

use crate::{
    AttestationKey, Credential, KeyKind, PublicArea, Tpm, TpmError,
    command::{password, unwritable},
    credential::endorsement_attributes,
};

/// The key that identifies a TPM, which its manufacturer certifies. It decrypts, with the
/// authorization of the endorsement hierarchy.
#[derive(Debug)]
pub struct EndorsementKey {
    handle: TpmHandle,
    public_area: PublicArea,
}

/// PolicySecret(TPM_RH_ENDORSEMENT), TCG EK Credential Profile, B.6.2 (PolicyA with SHA-256).
const POLICY_A: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

impl EndorsementKey {
    /// The public area, by which a verifier identifies the TPM.
    pub fn public_area(&self) -> &PublicArea {
        &self.public_area
    }
}

impl Tpm {
    /// Creates the endorsement key of the TCG's default template (L-1 for RSA, L-2 for ECC): always
    /// the same one, until the endorsement seed changes.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn endorsement_key(&mut self, kind: KeyKind) -> Result<EndorsementKey, TpmError> {
        let command = TpmCreatePrimaryCommand {
            in_public: Tpm2bPublic { inner: template(kind)? },
            handles: [TpmHandle::from(TpmRh::Endorsement as u32)],
            ..Default::default()
        };
        let response: TpmCreatePrimaryResponse =
            self.ask("TPM2_CreatePrimary", &command, &[password()])?;
        let [handle] = response.handles;
        self.claims.forget(handle.value());
        Ok(EndorsementKey { handle, public_area: PublicArea::new(response.out_public.inner) })
    }

    /// Decrypts a credential's secret, which proves that both keys are in this TPM.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::Refused`] if the credential is for other keys.
    pub fn activate_credential(
        &mut self,
        endorsement: &EndorsementKey,
        attestation: &AttestationKey,
        credential: &Credential,
    ) -> Result<Vec<u8>, TpmError> {
        const WHAT: &str = "TPM2_ActivateCredential";
        let command = TpmActivateCredentialCommand {
            credential_blob: Tpm2bIdObject::try_from(&credential.blob[..])
                .map_err(unwritable(WHAT))?,
            secret: Tpm2bEncryptedSecret::try_from(&credential.seed[..])
                .map_err(unwritable(WHAT))?,
            handles: [attestation.handle(), endorsement.handle],
        };
        let session = self.endorsement_session()?;
        let policy = TpmsAuthCommand { session_handle: session, ..Default::default() };
        let answer = self.ask(WHAT, &command, &[password(), policy]);
        let answer: TpmActivateCredentialResponse = match answer {
            Ok(answer) => answer,
            Err(error) => {
                // A session that was not used is still there.
                self.flush_handle(session)?;
                return Err(error);
            }
        };
        Ok(answer.cert_info.to_vec())
    }

    /// Removes the key from the TPM's memory.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn flush_endorsement_key(&mut self, key: EndorsementKey) -> Result<(), TpmError> {
        self.flush_handle(key.handle)
    }

    /// A policy session that is authorized with the endorsement hierarchy's (empty) password.
    fn endorsement_session(&mut self) -> Result<TpmHandle, TpmError> {
        const WHAT: &str = "TPM2_StartAuthSession";
        let null = TpmHandle::from(TpmRh::Null as u32);
        let start = TpmStartAuthSessionCommand {
            // Nothing is encrypted or signed in the session, so this need not be random.
            nonce_caller: Tpm2bNonce::try_from(&[0; 16][..]).map_err(unwritable(WHAT))?,
            encrypted_salt: Tpm2bEncryptedSecret::default(),
            session_type: TpmSe::Policy,
            symmetric: TpmtSymDef::default(),
            auth_hash: TpmAlgId::Sha256,
            handles: [null, null],
        };
        let started: TpmStartAuthSessionResponse = self.ask(WHAT, &start, &[])?;
        let [session] = started.handles;
        let policy = TpmPolicySecretCommand {
            handles: [TpmHandle::from(TpmRh::Endorsement as u32), session],
            ..Default::default()
        };
        let said: Result<TpmPolicySecretResponse, TpmError> =
            self.ask("TPM2_PolicySecret", &policy, &[password()]);
        match said {
            Ok(_) => Ok(session),
            Err(error) => {
                self.flush_handle(session)?;
                Err(error)
            }
        }
    }
}

/// TCG EK Credential Profile, B.3.3 and B.3.4.
fn template(kind: KeyKind) -> Result<TpmtPublic, TpmError> {
    const WHAT: &str = "TPM2_CreatePrimary";
    let symmetric = TpmtSymDef {
        algorithm: TpmAlgId::Aes,
        key_bits: TpmuSymKeyBits::Aes(TpmUint16::from(128)),
        mode: TpmuSymMode::Aes(TpmAlgId::Cfb),
    };
    let (object_type, parameters, unique) = match kind {
        KeyKind::EccP256 => {
            let zeros = || (&[0; 32][..]).try_into().map_err(unwritable(WHAT));
            (
                TpmAlgId::Ecc,
                TpmuPublicParms::Ecc(TpmsEccParms {
                    symmetric,
                    scheme: Default::default(),
                    curve_id: TpmEccCurve::NistP256,
                    kdf: Default::default(),
                }),
                TpmuPublicId::Ecc(TpmsEccPoint { x: zeros()?, y: zeros()? }),
            )
        }
        KeyKind::Rsa2048 => (
            TpmAlgId::Rsa,
            TpmuPublicParms::Rsa(TpmsRsaParms {
                symmetric,
                scheme: Default::default(),
                key_bits: TpmUint16::from(2048),
                exponent: TpmUint32::from(0),
            }),
            TpmuPublicId::Rsa((&[0; 256][..]).try_into().map_err(unwritable(WHAT))?),
        ),
    };
    Ok(TpmtPublic {
        object_type,
        name_alg: TpmAlgId::Sha256,
        object_attributes: endorsement_attributes(),
        auth_policy: Tpm2bDigest::try_from(&POLICY_A[..]).map_err(unwritable(WHAT))?,
        parameters,
        unique,
    })
}
