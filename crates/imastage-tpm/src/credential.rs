//! Creates credentials from the public areas of two keys, as TPM2_MakeCredential does.

use std::fmt;

use aes::Aes128;
use cfb_mode::{Encryptor, cipher::KeyIvInit};
use getrandom::SysRng;
use hmac::{Hmac, KeyInit, Mac};
use ima_log::Bank;
use p256::elliptic_curve::sec1::ToSec1Point;
use rsa::BoxedUint;
use sha2::Sha256;
use tpm2_protocol::{
    TpmMarshal, TpmUnmarshal, TpmWriter,
    data::{TpmAlgId, TpmaObject, TpmtPublic, TpmuPublicId, TpmuPublicParms},
};

use crate::{
    KeyKind,
    kind::{coordinate, pem},
};

/// A secret that can be decrypted only by the TPM with a given endorsement key, and only if another
/// given key is in the same TPM (TPM 2.0 Library Part 1, "Credential Protection").
///
/// A verifier that trusts an endorsement key creates one for a new attestation key. If the machine
/// returns the secret, that attestation key is in the same TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The encrypted secret, bound to the attestation key's name: the content of a TPM2B_ID_OBJECT.
    pub blob: Vec<u8>,
    /// The seed of its encryption, for the endorsement key: the content of a
    /// TPM2B_ENCRYPTED_SECRET.
    pub seed: Vec<u8>,
}

/// The public area of a TPM's key, with its attributes (TPMT_PUBLIC).
#[derive(Clone, PartialEq, Eq)]
pub struct PublicArea {
    inner: TpmtPublic,
}

/// Why no credential can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// Not a public area.
    #[error("not a TPMT_PUBLIC: {0}")]
    Malformed(String),
    /// The key does not have a known endorsement key template.
    #[error(
        "not an endorsement key of the TCG's templates L-1 (RSA 2048) or L-2 (P-256): {0}; see TCG EK \
         Credential Profile, annex B"
    )]
    NotEndorsement(String),
    /// The key is not restricted to structures of its TPM.
    #[error(
        "not a restricted signing key that cannot leave its TPM: attributes {0:#010x}; it must not be \
         trusted with quotes"
    )]
    NotAttestation(u32),
    /// The secret is too long.
    #[error("a secret of {0} bytes: 1 to 32 are taken")]
    Length(usize),
    /// No random numbers, or the key cannot be used.
    #[error("encryption: {0}")]
    Encryption(String),
}

impl PublicArea {
    pub(crate) fn new(inner: TpmtPublic) -> PublicArea {
        PublicArea { inner }
    }

    /// Reads a TPMT_PUBLIC.
    ///
    /// # Errors
    /// [`CredentialError::Malformed`].
    pub fn from_bytes(bytes: &[u8]) -> Result<PublicArea, CredentialError> {
        match TpmtPublic::unmarshal(bytes) {
            Ok((inner, [])) => Ok(PublicArea { inner }),
            Ok((_, rest)) => Err(CredentialError::Malformed(format!("{} bytes more", rest.len()))),
            Err(error) => Err(CredentialError::Malformed(format!("{error:?}"))),
        }
    }

    /// The TPMT_PUBLIC.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Larger than any; a public area that was read fits.
        let mut buffer = [0; 2048];
        let mut writer = TpmWriter::new(&mut buffer);
        match self.inner.marshal(&mut writer) {
            Ok(()) => writer.as_bytes().to_vec(),
            Err(_) => Vec::new(),
        }
    }

    /// The key's name: its name algorithm and the public area's digest (Part 1, "Names").
    pub fn name(&self) -> Vec<u8> {
        let mut name = (TpmAlgId::Sha256 as u16).to_be_bytes().to_vec();
        name.extend_from_slice(Bank::Sha256.hash(&[&self.to_bytes()]).as_bytes());
        name
    }

    /// The attestation key as SubjectPublicKeyInfo in PEM, if it signs only structures of its TPM.
    ///
    /// # Errors
    /// [`CredentialError::NotAttestation`] if it signs anything else.
    pub fn attestation_pem(&self) -> Result<String, CredentialError> {
        let refused = || CredentialError::NotAttestation(self.inner.object_attributes.bits());
        let kind = self.kind().ok_or_else(refused)?;
        if self.inner.name_alg != TpmAlgId::Sha256 {
            return Err(refused());
        }
        // Attributes are compared there.
        pem(kind, &self.inner).map_err(|_| refused())
    }

    fn kind(&self) -> Option<KeyKind> {
        match &self.inner.unique {
            TpmuPublicId::Ecc(_) => Some(KeyKind::EccP256),
            TpmuPublicId::Rsa(_) => Some(KeyKind::Rsa2048),
            _ => None,
        }
    }
}

impl fmt::Debug for PublicArea {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicArea({})", Bank::Sha256.hash(&[&self.to_bytes()]))
    }
}

impl Credential {
    /// Protects a secret of 1 to 32 bytes for the TPM with the endorsement key, bound to an
    /// attestation key.
    ///
    /// # Errors
    /// [`CredentialError`] if a key is not of the expected kind.
    pub fn make(
        endorsement: &PublicArea,
        attestation: &PublicArea,
        secret: &[u8],
    ) -> Result<Credential, CredentialError> {
        attestation.attestation_pem()?;
        if !(1..=32).contains(&secret.len()) {
            return Err(CredentialError::Length(secret.len()));
        }
        let (seed, seed_sent) = seed_for(endorsement)?;
        let name = attestation.name();

        // Part 1, 24.4 and 24.5: encrypted with one key of the seed, authenticated with another.
        let storage = kdfa::<16>(&seed, b"STORAGE", &name)?;
        let mut identity = sized(secret);
        Encryptor::<Aes128>::new(&storage.into(), &[0; 16].into()).encrypt(&mut identity);
        let integrity = hmac(&kdfa::<32>(&seed, b"INTEGRITY", &[])?, &[&identity, &name])?;
        let mut blob = sized(&integrity);
        blob.extend(identity);
        Ok(Credential { blob, seed: seed_sent })
    }
}

/// A new seed, and how it is sent to the endorsement key.
fn seed_for(endorsement: &PublicArea) -> Result<(Vec<u8>, Vec<u8>), CredentialError> {
    let public = &endorsement.inner;
    let refused = |why: &str| CredentialError::NotEndorsement(why.to_owned());
    if public.object_attributes != endorsement_attributes() {
        return Err(refused("its attributes are others"));
    }
    if public.name_alg != TpmAlgId::Sha256 {
        return Err(refused("its name is not made with SHA-256"));
    }
    match (&public.parameters, &public.unique) {
        (TpmuPublicParms::Rsa(parameters), TpmuPublicId::Rsa(modulus)) => {
            if parameters.key_bits.value() != 2048 {
                return Err(refused("its RSA key does not have 2048 bits"));
            }
            let exponent = match parameters.exponent.value() {
                0 => 65537,
                exponent => exponent,
            };
            let modulus = BoxedUint::from_be_slice(modulus, 2048).map_err(encryption)?;
            let key = rsa::PublicKey::new(modulus, exponent.into()).map_err(encryption)?;
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).map_err(encryption)?;
            // Part 1, B.4: the label's zero byte is part of it.
            let padding = rsa::Oaep::<Sha256>::new_with_label(*b"IDENTITY\0");
            let sent = key.encrypt(&mut SysRng, padding, &seed).map_err(encryption)?;
            Ok((seed.to_vec(), sent))
        }
        (TpmuPublicParms::Ecc(_), TpmuPublicId::Ecc(point)) => {
            let bad = |why: String| CredentialError::NotEndorsement(why);
            let x = coordinate(&point.x).map_err(bad)?;
            let y = coordinate(&point.y).map_err(bad)?;
            let theirs = p256::Sec1Point::from_affine_coordinates(&x.into(), &y.into(), false);
            let theirs = p256::PublicKey::from_sec1_bytes(theirs.as_bytes())
                .map_err(|_| refused("its key is no point of P-256"))?;
            let ours = random_scalar()?;
            let shared = p256::ecdh::diffie_hellman(&ours.to_nonzero_scalar(), theirs.as_affine());
            let point = ours.public_key().to_sec1_point(false);
            let (Some(our_x), Some(our_y)) = (point.x(), point.y()) else {
                return Err(encryption("no point"));
            };
            // KDFe, Part 1, 11.4.10.3: one round, the hash being as long as the seed.
            let seed = Bank::Sha256.hash(&[
                &1u32.to_be_bytes(),
                shared.raw_secret_bytes(),
                b"IDENTITY\0",
                our_x,
                &x,
            ]);
            Ok((seed.as_bytes().to_vec(), [sized(our_x), sized(our_y)].concat()))
        }
        _ => Err(refused("it is neither RSA nor ECC")),
    }
}

/// TCG EK Credential Profile, annex B: what the default templates promise.
pub(crate) fn endorsement_attributes() -> TpmaObject {
    TpmaObject::FIXED_TPM
        | TpmaObject::FIXED_PARENT
        | TpmaObject::SENSITIVE_DATA_ORIGIN
        | TpmaObject::ADMIN_WITH_POLICY
        | TpmaObject::RESTRICTED
        | TpmaObject::DECRYPT
}

fn random_scalar() -> Result<p256::SecretKey, CredentialError> {
    loop {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(encryption)?;
        // All but one in 2^32 numbers are scalars.
        if let Ok(key) = p256::SecretKey::from_slice(&bytes) {
            return Ok(key);
        }
    }
}

/// KDFa with SHA-256, Part 1, 11.4.10.2, for up to one digest: a single round.
fn kdfa<const SIZE: usize>(
    key: &[u8],
    label: &[u8],
    context: &[u8],
) -> Result<[u8; SIZE], CredentialError> {
    let bits = u32::try_from(SIZE * 8).map_err(encryption)?.to_be_bytes();
    let digest = hmac(key, &[&1u32.to_be_bytes(), label, &[0], context, &bits])?;
    digest.first_chunk().copied().ok_or_else(|| encryption("a key longer than a digest"))
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Result<[u8; 32], CredentialError> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(encryption)?;
    for part in parts {
        mac.update(part);
    }
    Ok(mac.finalize().into_bytes().into())
}

/// With its length before it, as a TPM2B has.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), bytes].concat()
}

fn encryption(error: impl fmt::Display) -> CredentialError {
    CredentialError::Encryption(error.to_string())
}
