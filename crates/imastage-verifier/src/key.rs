//! Public parts of attestation keys, and verification of signatures with them.

mod formats;

use std::fmt;

use ima_log::{Bank, Digest};
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use rsa::{
    pkcs8::{DecodePublicKey, EncodePublicKey, SubjectPublicKeyInfoRef},
    pss::Pss,
    traits::PublicKeyParts,
};
use sha2::{Sha256, Sha384, Sha512};
use tpm2_protocol::data::{TpmAlgId, TpmsSignatureEcc, TpmsSignatureRsa, TpmuSignature};

/// The public part of an attestation key that a verifier trusts: RSA of 2048 to 8192 bits, or ECC
/// on the curves P-256 and P-384.
#[derive(Clone)]
pub struct PublicKey {
    kind: Kind,
    fingerprint: Digest,
}

/// Why a file is not an attestation key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A file of another kind, which is named.
    #[error("expected {EXPECTED}: found {0}")]
    Other(&'static str),
    /// The private half of a key.
    #[error(
        "this is a private key, which has no place on a verifier: who has it can make quotes for \
         the machine; remove it from here, do not trust the key any more, and give the public half \
         of a key that a TPM keeps (tpm2_readpublic -f pem)"
    )]
    Private,
    /// More than one key or certificate.
    #[error("expected {EXPECTED}: found {0} PEM blocks; give the attestation key's alone")]
    Several(usize),
    /// A PEM file that is damaged, or of another kind.
    #[error("expected {EXPECTED}: {0}")]
    Pem(String),
    /// Neither RSA, P-256 nor P-384, or damaged.
    #[error("not an RSA (2048 to 8192 bits), P-256 or P-384 public key: {0}")]
    Key(String),
    /// An RSA key that is too short to be trusted.
    #[error("the RSA key has {0} bits: at least 2048 are needed")]
    Short(usize),
    /// A key of a TPM whose attributes are not those of an attestation key.
    #[error(
        "the key's attribute {attribute} is {state}: {why}; make an attestation key \
         (tpm2_createak)"
    )]
    Attribute {
        /// The name of the attribute in TPM 2.0 Library Part 2, TPMA_OBJECT.
        attribute: &'static str,
        /// `set` or `not set`.
        state: &'static str,
        /// The consequence.
        why: &'static str,
    },
    /// Larger than any key.
    #[error("{0} bytes: no key or certificate is as large as that")]
    Size(usize),
}

const EXPECTED: &str = "a public key in PEM or DER (tpm2_readpublic -f pem), an X.509 certificate, \
                        or TPM2B_PUBLIC or TPMT_PUBLIC (tpm2_createak -u)";

/// Why a signature was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignatureProblem {
    /// The scheme is of another type of key, or unknown.
    Scheme,
    /// The signature is not of this key over this digest.
    Wrong,
}

#[derive(Clone)]
enum Kind {
    Rsa(rsa::PublicKey),
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
}

impl PublicKey {
    /// Reads a key in any of these forms:
    ///
    /// | form | written by |
    /// |---|---|
    /// | SubjectPublicKeyInfo, PEM or DER | `tpm2_readpublic -f pem` or `-f der`, openssl |
    /// | PKCS #1 RSAPublicKey, PEM or DER | `openssl rsa -RSAPublicKey_out` |
    /// | X.509 certificate, PEM or DER | a cloud provider, in an NV index of the TPM |
    /// | `TPM2B_PUBLIC`, `TPMT_PUBLIC` | `tpm2_createak -u`, `tpm2_readpublic -f tss` or `-f tpmt` |
    ///
    /// Of a certificate, only the key is used: signature and validity are not checked. If the form
    /// contains the key's attributes, they must be those of an attestation key; other forms do not
    /// show whether the key is restricted to structures of its TPM.
    ///
    /// # Errors
    /// [`KeyError`] if it has none of these forms, or its type or size is not supported.
    pub fn from_bytes(file: &[u8]) -> Result<PublicKey, KeyError> {
        formats::read(file)
    }

    /// As [`PublicKey::from_bytes`], of text.
    ///
    /// # Errors
    /// As [`PublicKey::from_bytes`].
    pub fn from_pem(pem: &str) -> Result<PublicKey, KeyError> {
        PublicKey::from_bytes(pem.as_bytes())
    }

    /// The SHA-256 of the key's SubjectPublicKeyInfo in DER, independent of the form from which it
    /// was read; its `Display` is hex.
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// Type and size: `RSA 2048`, `ECC P-256`.
    pub fn describe(&self) -> String {
        match &self.kind {
            Kind::Rsa(key) => format!("RSA {}", key.n().bit_width()),
            Kind::P256(_) | Kind::P384(_) => format!("ECC {}", self.type_name()),
        }
    }

    fn from_spki(der: &[u8]) -> Result<PublicKey, KeyError> {
        let error = |error: rsa::pkcs8::spki::Error| KeyError::Key(error.to_string());
        SubjectPublicKeyInfoRef::try_from(der).map_err(|error| KeyError::Key(error.to_string()))?;
        let kind = if let Ok(key) = p256::ecdsa::VerifyingKey::from_public_key_der(der) {
            Kind::P256(key)
        } else if let Ok(key) = p384::ecdsa::VerifyingKey::from_public_key_der(der) {
            Kind::P384(key)
        } else {
            let key = rsa::PublicKey::from_public_key_der(der).map_err(error)?;
            let bits = key.n().bit_width() as usize;
            if bits < 2048 {
                return Err(KeyError::Short(bits));
            }
            Kind::Rsa(key)
        };
        // Encoded again, because points can be compressed and parameters omitted: one key has one
        // fingerprint.
        let der = match &kind {
            Kind::Rsa(key) => key.to_public_key_der(),
            Kind::P256(key) => key.to_public_key_der(),
            Kind::P384(key) => key.to_public_key_der(),
        };
        let fingerprint = Bank::Sha256.hash(&[der.map_err(error)?.as_bytes()]);
        Ok(PublicKey { kind, fingerprint })
    }

    /// The possible meanings of a bare signature of this key, without scheme and hash, as written
    /// by openssl and `tpm2_quote -f plain`. Empty if it has another form.
    pub(crate) fn plain_signatures(&self, bytes: &[u8]) -> Vec<TpmuSignature> {
        const HASHES: [TpmAlgId; 3] = [TpmAlgId::Sha256, TpmAlgId::Sha384, TpmAlgId::Sha512];
        let scalars: Option<(Vec<u8>, Vec<u8>)> = match &self.kind {
            Kind::Rsa(key) => {
                let Ok(sig) = bytes.try_into() else { return Vec::new() };
                if bytes.len() != key.size() {
                    return Vec::new();
                }
                return HASHES
                    .into_iter()
                    .map(|hash| TpmsSignatureRsa { hash, sig })
                    .flat_map(|s| [TpmuSignature::Rsassa(s), TpmuSignature::Rsapss(s)])
                    .collect();
            }
            Kind::P256(_) => p256::ecdsa::Signature::from_der(bytes)
                .or_else(|_| p256::ecdsa::Signature::from_slice(bytes))
                .ok()
                .map(|signature| signature.split_bytes())
                .map(|(r, s)| (r.to_vec(), s.to_vec())),
            Kind::P384(_) => p384::ecdsa::Signature::from_der(bytes)
                .or_else(|_| p384::ecdsa::Signature::from_slice(bytes))
                .ok()
                .map(|signature| signature.split_bytes())
                .map(|(r, s)| (r.to_vec(), s.to_vec())),
        };
        let scalars = scalars.and_then(|(r, s)| {
            Some((r.as_slice().try_into().ok()?, s.as_slice().try_into().ok()?))
        });
        let Some((signature_r, signature_s)) = scalars else { return Vec::new() };
        HASHES
            .into_iter()
            .map(|hash| TpmuSignature::Ecdsa(TpmsSignatureEcc { hash, signature_r, signature_s }))
            .collect()
    }

    /// The type of the key in errors.
    pub(crate) fn type_name(&self) -> &'static str {
        match self.kind {
            Kind::Rsa(_) => "RSA",
            Kind::P256(_) => "P-256",
            Kind::P384(_) => "P-384",
        }
    }

    /// Checks a signature over a message whose digest, of the signature's hash, is `digest`.
    pub(crate) fn verify(
        &self,
        digest: &Digest,
        signature: &TpmuSignature,
    ) -> Result<(), SignatureProblem> {
        let right = match (&self.kind, signature) {
            (Kind::Rsa(key), TpmuSignature::Rsassa(signature)) => rsassa(key, digest, signature),
            (Kind::Rsa(key), TpmuSignature::Rsapss(signature)) => rsapss(key, digest, signature),
            (Kind::P256(key), TpmuSignature::Ecdsa(signature)) => scalars(signature)
                .and_then(|(r, s)| p256::ecdsa::Signature::from_scalars(r, s).ok())
                .is_some_and(|signature| key.verify_prehash(digest.as_bytes(), &signature).is_ok()),
            (Kind::P384(key), TpmuSignature::Ecdsa(signature)) => scalars(signature)
                .and_then(|(r, s)| p384::ecdsa::Signature::from_scalars(r, s).ok())
                .is_some_and(|signature| key.verify_prehash(digest.as_bytes(), &signature).is_ok()),
            _ => return Err(SignatureProblem::Scheme),
        };
        if right { Ok(()) } else { Err(SignatureProblem::Wrong) }
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} {})", self.type_name(), self.fingerprint)
    }
}

fn rsassa(key: &rsa::PublicKey, digest: &Digest, signature: &TpmsSignatureRsa) -> bool {
    let (hash, sig) = (digest.as_bytes(), &*signature.sig);
    match digest.bank() {
        Bank::Sha1 | Bank::Sm3 => false,
        Bank::Sha256 => key.pkcs1v15_verify_prehash::<Sha256>(hash, sig).is_ok(),
        Bank::Sha384 => key.pkcs1v15_verify_prehash::<Sha384>(hash, sig).is_ok(),
        Bank::Sha512 => key.pkcs1v15_verify_prehash::<Sha512>(hash, sig).is_ok(),
    }
}

/// The salt of a TPM has the maximum length, or in FIPS mode that of the hash (TPM 2.0 Library Part
/// 1, RSASSA_PSS). The length is determined from the signature, which RFC 8017 9.1.2 permits.
fn rsapss(key: &rsa::PublicKey, digest: &Digest, signature: &TpmsSignatureRsa) -> bool {
    let (hash, sig) = (digest.as_bytes(), &*signature.sig);
    match digest.bank() {
        Bank::Sha1 | Bank::Sm3 => false,
        Bank::Sha256 => {
            key.verify(Pss::<Sha256> { salt_len: None, ..Pss::new() }, hash, sig).is_ok()
        }
        Bank::Sha384 => {
            key.verify(Pss::<Sha384> { salt_len: None, ..Pss::new() }, hash, sig).is_ok()
        }
        Bank::Sha512 => {
            key.verify(Pss::<Sha512> { salt_len: None, ..Pss::new() }, hash, sig).is_ok()
        }
    }
}

/// r and s, padded to the curve's size: a TPM can omit their leading zeros.
fn scalars<const SIZE: usize>(signature: &TpmsSignatureEcc) -> Option<([u8; SIZE], [u8; SIZE])> {
    let pad = |bytes: &[u8]| {
        let mut scalar = [0; SIZE];
        scalar.get_mut(SIZE.checked_sub(bytes.len())?..)?.copy_from_slice(bytes);
        Some(scalar)
    };
    Some((pad(&signature.signature_r)?, pad(&signature.signature_s)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A key in one of its forms.
    fn file(name: &str) -> Vec<u8> {
        let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(path).unwrap()
    }

    const FORMS: [&str; 9] = [
        "signed/ak.pub.pem",
        "signed/akecc.pub.pem",
        "cases/09-key-formats/ak.der",
        "cases/09-key-formats/ak.tss",
        "cases/09-key-formats/ak.tpmt",
        "cases/09-key-formats/ak-pkcs1.pem",
        "cases/09-key-formats/ak-cert.der",
        "cases/09-key-formats/ak-cert.pem",
        "cases/p5-quote-variants/ak-p384.pem",
    ];

    proptest! {
        #[test]
        fn no_key_panics_nor_accepts(
            form in prop::sample::select(&FORMS[..]),
            cut in any::<prop::sample::Index>(),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            sig in proptest::collection::vec(any::<u8>(), 0..300),
            bank in prop::sample::select(&Bank::ALL[..]),
        ) {
            let mut file = file(form);
            let _ = PublicKey::from_bytes(&file[..cut.index(file.len())]);
            for (at, byte) in flips {
                let at = at.index(file.len());
                file[at] = byte;
            }
            let Ok(key) = PublicKey::from_bytes(&file) else { return Ok(()) };
            let hash = tpm2_protocol::data::TpmAlgId::Sha256;
            let digest = bank.hash(&[&sig]);
            let rsa = TpmsSignatureRsa { hash, sig: sig.as_slice().try_into().unwrap() };
            let (r, s) = sig.split_at(sig.len() / 2);
            let mut signatures = vec![TpmuSignature::Rsassa(rsa), TpmuSignature::Rsapss(rsa)];
            if let (Ok(signature_r), Ok(signature_s)) = (r.try_into(), s.try_into()) {
                let ecc = TpmsSignatureEcc { hash, signature_r, signature_s };
                signatures.push(TpmuSignature::Ecdsa(ecc));
            }
            signatures.extend(key.plain_signatures(&sig));
            for signature in signatures {
                prop_assert!(key.verify(&digest, &signature).is_err());
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), head in 0..6usize) {
            let heads: [&[u8]; 6] =
                [&[], &[0x30, 0x40, 0x30, 2], &[0, 1, 0, 11], &[0, 0x23, 0, 11], &[0x30, 0x82], &[0xba]];
            let file = [heads[head], &bytes].concat();
            let _ = PublicKey::from_bytes(&file);
            let length = u16::try_from(file.len()).unwrap().to_be_bytes();
            let _ = PublicKey::from_bytes(&[&length, &file[..]].concat());
        }

        #[test]
        fn no_pem_panics(pem in "(-----(BEGIN|END) (PUBLIC KEY|X)-----\n?|[A-Za-z0-9=+/\n]{0,70}){0,6}") {
            let _ = PublicKey::from_pem(&pem);
        }
    }
}
