use std::fmt;

use ima_log::{Bank, Digest};
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use rsa::{
    pkcs8::{DecodePublicKey, Document, SubjectPublicKeyInfoRef},
    pss::Pss,
    traits::PublicKeyParts,
};
use sha2::{Sha256, Sha384, Sha512};
use tpm2_protocol::data::{TpmsSignatureEcc, TpmsSignatureRsa, TpmuSignature};

/// The public half of the attestation key a verifier trusts: RSA of 2048 to 8192 bits, or ECC on
/// the curves P-256 and P-384.
#[derive(Clone)]
pub struct PublicKey {
    kind: Kind,
    fingerprint: Digest,
}

/// Why a file is no attestation key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a PEM file of a public key.
    #[error(
        "expected PEM with the label PUBLIC KEY (tpm2_readpublic -f pem, openssl pkey -pubout): \
         {0}"
    )]
    Pem(String),
    /// Neither RSA, P-256 nor P-384, or damaged.
    #[error("not an RSA (2048 to 8192 bits), P-256 or P-384 public key: {0}")]
    Key(String),
    /// An RSA key that is too short to be trusted.
    #[error("the RSA key has {0} bits: at least 2048 are needed")]
    Short(usize),
}

/// Why a signature was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignatureProblem {
    /// The scheme belongs to another type of key, or to none this crate knows.
    Scheme,
    /// The signature is not this key's over this digest.
    Wrong,
}

#[derive(Clone)]
enum Kind {
    Rsa(rsa::PublicKey),
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo in PEM, as `tpm2_readpublic -f pem` writes it.
    ///
    /// # Errors
    /// [`KeyError`] when it is none, or not of a type or size that is taken.
    pub fn from_pem(pem: &str) -> Result<PublicKey, KeyError> {
        let (label, document) =
            Document::from_pem(pem).map_err(|error| KeyError::Pem(error.to_string()))?;
        if label != "PUBLIC KEY" {
            return Err(KeyError::Pem(format!("found {label}")));
        }
        PublicKey::from_der(document.as_bytes())
    }

    /// The SHA-256 of the key's SubjectPublicKeyInfo in DER; its `Display` is hex.
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    fn from_der(der: &[u8]) -> Result<PublicKey, KeyError> {
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
        Ok(PublicKey { kind, fingerprint: Bank::Sha256.hash(&[der]) })
    }

    /// The type of the key as errors name it.
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

/// A TPM salts with as many bytes as fit, or in FIPS mode with as many as the hash has (TPM 2.0
/// Library Part 1, RSASSA_PSS): the length is found, as RFC 8017 9.1.2 leaves open.
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

/// r and s, padded to the curve's size: a TPM may leave their leading zeros out.
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

    fn corpus(name: &str) -> Vec<u8> {
        let path = format!("{}/../../tests/corpus/signed/{name}", env!("CARGO_MANIFEST_DIR"));
        let pem = std::fs::read_to_string(path).unwrap();
        Document::from_pem(&pem).unwrap().1.as_bytes().to_vec()
    }

    proptest! {
        #[test]
        fn no_key_panics_nor_accepts(
            rsa in any::<bool>(),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            sig in proptest::collection::vec(any::<u8>(), 0..300),
            bank in prop::sample::select(&Bank::ALL[..]),
        ) {
            let mut der = corpus(if rsa { "ak.pub.pem" } else { "akecc.pub.pem" });
            for (at, byte) in flips {
                let at = at.index(der.len());
                der[at] = byte;
            }
            let Ok(key) = PublicKey::from_der(&der) else { return Ok(()) };
            let hash = tpm2_protocol::data::TpmAlgId::Sha256;
            let digest = bank.hash(&[&sig]);
            let rsa = TpmsSignatureRsa { hash, sig: sig.as_slice().try_into().unwrap() };
            let (r, s) = sig.split_at(sig.len() / 2);
            let mut signatures = vec![TpmuSignature::Rsassa(rsa), TpmuSignature::Rsapss(rsa)];
            if let (Ok(signature_r), Ok(signature_s)) = (r.try_into(), s.try_into()) {
                let ecc = TpmsSignatureEcc { hash, signature_r, signature_s };
                signatures.push(TpmuSignature::Ecdsa(ecc));
            }
            for signature in signatures {
                prop_assert!(key.verify(&digest, &signature).is_err());
            }
        }

        #[test]
        fn no_pem_panics(pem in "(-----(BEGIN|END) (PUBLIC KEY|X)-----\n?|[A-Za-z0-9=+/\n]{0,70}){0,6}") {
            let _ = PublicKey::from_pem(&pem);
        }
    }
}
