//! Signatures verified: RSA (PKCS #1 v1.5) and ECDSA on P-256 and P-384.

use alloc::{string::String, vec::Vec};
use core::fmt;

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use rsa::pkcs8::{Document, SubjectPublicKeyInfoRef, spki::DecodePublicKey};
use x509_cert::{
    Certificate,
    der::{Decode, Encode},
    ext::pkix::SubjectKeyIdentifier,
};

use crate::{
    Bank, Digest, KeyId, Record, Signature, SignatureError, SignatureKind, SignatureVersion,
};

/// A public key that files are signed with: RSA, or ECDSA on the curves P-256 and P-384.
#[derive(Clone)]
pub struct SigningKey {
    kind: Kind,
    /// Of the certificate first, if there is one.
    ids: Vec<KeyId>,
}

/// Why a file is no public key or certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// PEM with a broken body, or of something else.
    #[error("expected PEM with the label PUBLIC KEY or CERTIFICATE: {0}")]
    Pem(String),
    /// No key that is taken.
    #[error(
        "expected a public key or X.509 certificate in DER, RSA or ECDSA on P-256 or P-384: {0}"
    )]
    Key(String),
}

/// Why the signature of a record is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The record has none.
    #[error("the record has no signature")]
    Unsigned,
    /// What stands there is no signature.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// None of the keys has the signature's key id.
    #[error("no key with the id {0}, which the signature names")]
    UnknownKey(KeyId),
    /// It is over the inode's metadata, which the record does not have.
    #[error("an EVM signature is over metadata that the record does not have")]
    Evm,
    /// A version 2 signature over an fs-verity digest: no kernel makes or takes one.
    #[error("an fs-verity signature has version 3, found 2")]
    VerityVersion,
    /// The record's digest is missing, or made with another hash function or over something else
    /// than the signature's, so that the record does not have what was signed.
    #[error(
        "the signature is over a digest ({signed}) that the record does not have (it has {found})"
    )]
    OtherDigest {
        /// The digest signed.
        signed: String,
        /// The digest in the record.
        found: String,
    },
    /// No bank of this crate has the hash function; holds its number.
    #[error("hash function {0} of the signature is not supported")]
    Hash(u8),
    /// The signature is not of this key over this digest.
    #[error("wrong signature: it is not by key {0} over the digest in the record")]
    Wrong(KeyId),
}

#[derive(Clone)]
enum Kind {
    Rsa(rsa::PublicKey),
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
}

impl SigningKey {
    /// Reads a public key (SubjectPublicKeyInfo) or an X.509 certificate, in PEM or DER.
    ///
    /// A certificate is taken at its word: nobody's signature on it is checked, nor when it was
    /// valid, as the kernel does not look at that either when it verifies a file's signature.
    ///
    /// # Errors
    /// [`KeyError`] when it is neither, or the key is of another type.
    pub fn parse(file: &[u8]) -> Result<SigningKey, KeyError> {
        if !file.trim_ascii_start().starts_with(b"-----BEGIN") {
            return SigningKey::from_der(file);
        }
        let text = core::str::from_utf8(file).map_err(|error| KeyError::Pem(message(error)))?;
        let (label, document) =
            Document::from_pem(text.trim()).map_err(|error| KeyError::Pem(message(error)))?;
        match label {
            "PUBLIC KEY" => SigningKey::from_spki(document.as_bytes()),
            "CERTIFICATE" => SigningKey::from_certificate(document.as_bytes()),
            _ => Err(KeyError::Pem(alloc::format!("found {label}"))),
        }
    }

    /// The id that signatures name it by: the certificate's, or that of the public key.
    pub fn id(&self) -> KeyId {
        self.ids.first().copied().unwrap_or(KeyId([0; 4]))
    }

    /// Whether signatures by this key name this id. A key read from a certificate has two: some
    /// tools take the id from the certificate, some from the key.
    pub fn has_id(&self, id: KeyId) -> bool {
        self.ids.contains(&id)
    }

    /// Checks a signature over a digest that was made with the signature's hash function: that of
    /// the file, or for [`SignatureKind::Verity`] that of its fs-verity tree. Of a digest longer
    /// than its curve, ECDSA signs no more than the beginning.
    ///
    /// # Errors
    /// [`VerifyError::Hash`] when the hash function is none of [`Bank::ALL`], [`VerifyError::Wrong`]
    /// when the signature is not by this key over this digest.
    pub fn verify(&self, signature: &Signature<'_>, digest: &[u8]) -> Result<(), VerifyError> {
        let bank = signature.hash_bank().ok_or(VerifyError::Hash(signature.hash))?;
        let digest =
            Digest::from_slice(bank, digest).map_err(|_| VerifyError::Wrong(signature.key_id))?;
        let signed = match signature.version {
            SignatureVersion::V2 => digest,
            SignatureVersion::V3 => {
                bank.hash(&[&[signature.kind.byte(), signature.hash], digest.as_bytes()])
            }
        };
        if self.is_right(&signed, signature)? {
            Ok(())
        } else {
            Err(VerifyError::Wrong(signature.key_id))
        }
    }

    fn is_right(&self, signed: &Digest, signature: &Signature<'_>) -> Result<bool, VerifyError> {
        Ok(match &self.kind {
            Kind::Rsa(key) => {
                let (hash, bytes) = (signed.as_bytes(), signature.bytes);
                match signed.bank() {
                    Bank::Sha1 => key.pkcs1v15_verify_prehash::<sha1::Sha1>(hash, bytes),
                    Bank::Sha256 => key.pkcs1v15_verify_prehash::<sha2::Sha256>(hash, bytes),
                    Bank::Sha384 => key.pkcs1v15_verify_prehash::<sha2::Sha384>(hash, bytes),
                    Bank::Sha512 => key.pkcs1v15_verify_prehash::<sha2::Sha512>(hash, bytes),
                    Bank::Sm3 => key.pkcs1v15_verify_prehash::<sm3::Sm3>(hash, bytes),
                }
                .is_ok()
            }
            Kind::P256(key) => p256::ecdsa::Signature::from_der(signature.bytes)
                .is_ok_and(|right| key.verify_prehash(&wide::<32>(signed), &right).is_ok()),
            Kind::P384(key) => p384::ecdsa::Signature::from_der(signature.bytes)
                .is_ok_and(|right| key.verify_prehash(&wide::<48>(signed), &right).is_ok()),
        })
    }

    fn from_der(der: &[u8]) -> Result<SigningKey, KeyError> {
        match Certificate::from_der(der) {
            Ok(_) => SigningKey::from_certificate(der),
            Err(_) => SigningKey::from_spki(der),
        }
    }

    fn from_certificate(der: &[u8]) -> Result<SigningKey, KeyError> {
        let error = |error: x509_cert::der::Error| KeyError::Key(message(error));
        let certificate = Certificate::from_der(der).map_err(error)?;
        let body = certificate.tbs_certificate();
        let mut key =
            SigningKey::from_spki(&body.subject_public_key_info().to_der().map_err(error)?)?;
        if let Some((_, SubjectKeyIdentifier(id))) = body.get_extension().map_err(error)?
            && let Some(id) = id.as_bytes().last_chunk()
            && !key.has_id(KeyId(*id))
        {
            key.ids.insert(0, KeyId(*id));
        }
        Ok(key)
    }

    fn from_spki(der: &[u8]) -> Result<SigningKey, KeyError> {
        let error = |error: rsa::pkcs8::spki::Error| KeyError::Key(message(error));
        let info = SubjectPublicKeyInfoRef::try_from(der)
            .map_err(|error| KeyError::Key(message(error)))?;
        let kind = if let Ok(key) = p256::ecdsa::VerifyingKey::from_public_key_der(der) {
            Kind::P256(key)
        } else if let Ok(key) = p384::ecdsa::VerifyingKey::from_public_key_der(der) {
            Kind::P384(key)
        } else {
            Kind::Rsa(rsa::PublicKey::from_public_key_der(der).map_err(error)?)
        };
        let bits = Bank::Sha1.hash(&[info.subject_public_key.raw_bytes()]);
        let ids = bits.as_bytes().last_chunk().map(|id| KeyId(*id)).into_iter().collect();
        Ok(SigningKey { kind, ids })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Rsa(_) => "RSA",
            Kind::P256(_) => "P-256",
            Kind::P384(_) => "P-384",
        };
        write!(f, "SigningKey({kind} {})", self.id())
    }
}

impl Record<'_> {
    /// Verifies the record's signature with the key it names, and gives that key. This says that
    /// the key's owner signed a file with the digest in the record; that the record is the kernel's
    /// is for the PCR to say.
    ///
    /// # Errors
    /// [`VerifyError`] when there is no signature, or none that can be or is accepted.
    pub fn verify_signature<'k>(
        &self,
        keys: &'k [SigningKey],
    ) -> Result<&'k SigningKey, VerifyError> {
        let signature = self.signature().ok_or(VerifyError::Unsigned)??;
        let digest_type = match (signature.kind, signature.version) {
            (SignatureKind::EvmPortable, _) => return Err(VerifyError::Evm),
            (SignatureKind::Verity, SignatureVersion::V2) => {
                return Err(VerifyError::VerityVersion);
            }
            (SignatureKind::Verity, SignatureVersion::V3) => "verity",
            (SignatureKind::Ima, _) => "ima",
        };
        let hash = signature.hash_name().ok_or(VerifyError::Hash(signature.hash))?;
        let file = self.file_digest();
        // Where the field has no type, it is a file's digest.
        let found = file.map(|file| (file.digest_type.unwrap_or("ima"), file.algorithm));
        let digest = match file {
            Some(file) if found == Some((digest_type, hash)) => file.digest,
            _ => {
                let signed = alloc::format!("{digest_type}:{hash}");
                let found =
                    found.map_or("none".into(), |(kind, hash)| alloc::format!("{kind}:{hash}"));
                return Err(VerifyError::OtherDigest { signed, found });
            }
        };
        // Four bytes of id are few: two keys may share them.
        let mut refused = VerifyError::UnknownKey(signature.key_id);
        for key in keys.iter().filter(|key| key.has_id(signature.key_id)) {
            match key.verify(&signature, digest) {
                Ok(()) => return Ok(key),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }
}

/// The digest, with zeros before it if it is shorter than the curve's field: the number that ECDSA
/// signs is the same (FIPS 186-5, 6.4.2), but the verifier takes no short ones.
fn wide<const FIELD: usize>(digest: &Digest) -> Vec<u8> {
    let bytes = digest.as_bytes();
    let mut wide = alloc::vec![0; FIELD.saturating_sub(bytes.len())];
    wide.extend_from_slice(bytes);
    wide
}

fn message(error: impl fmt::Display) -> String {
    alloc::format!("{error}")
}
