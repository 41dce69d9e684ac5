//! Kinds of attestation keys: their templates, and their public halves as PEM.

use p256::pkcs8::{EncodePublicKey, LineEnding};
use rsa::BoxedUint;
use tpm2_protocol::{
    basic::{TpmUint16, TpmUint32},
    data::{
        TpmAlgId, TpmEccCurve, TpmaObject, TpmsEccParms, TpmsEccPoint, TpmsRsaParms,
        TpmsSchemeHash, TpmtEccScheme, TpmtPublic, TpmtRsaScheme, TpmtSymDefObject, TpmuAsymScheme,
        TpmuPublicId, TpmuPublicParms,
    },
};

/// The kind of a key that signs quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyKind {
    /// NIST P-256, ECDSA with SHA-256.
    EccP256,
    /// RSA 2048, RSASSA (PKCS #1 v1.5) with SHA-256. Its creation takes a software TPM a second.
    Rsa2048,
}

pub(crate) fn template(kind: KeyKind) -> TpmtPublic {
    let sha256 = TpmuAsymScheme::Hash(TpmsSchemeHash { hash_alg: TpmAlgId::Sha256 });
    let (object_type, parameters, unique) = match kind {
        KeyKind::EccP256 => (
            TpmAlgId::Ecc,
            TpmuPublicParms::Ecc(TpmsEccParms {
                symmetric: TpmtSymDefObject::default(),
                scheme: TpmtEccScheme { scheme: TpmAlgId::Ecdsa, details: sha256 },
                curve_id: TpmEccCurve::NistP256,
                kdf: Default::default(),
            }),
            TpmuPublicId::Ecc(TpmsEccPoint::default()),
        ),
        KeyKind::Rsa2048 => (
            TpmAlgId::Rsa,
            TpmuPublicParms::Rsa(TpmsRsaParms {
                symmetric: TpmtSymDefObject::default(),
                scheme: TpmtRsaScheme { scheme: TpmAlgId::Rsassa, details: sha256 },
                key_bits: TpmUint16::from(2048),
                exponent: TpmUint32::from(0),
            }),
            TpmuPublicId::Rsa(Default::default()),
        ),
    };
    TpmtPublic {
        object_type,
        name_alg: TpmAlgId::Sha256,
        object_attributes: TpmaObject::FIXED_TPM
            | TpmaObject::FIXED_PARENT
            | TpmaObject::SENSITIVE_DATA_ORIGIN
            | TpmaObject::USER_WITH_AUTH
            | TpmaObject::NO_DA
            | TpmaObject::RESTRICTED
            | TpmaObject::SIGN_ENCRYPT,
        auth_policy: Default::default(),
        parameters,
        unique,
    }
}

/// SubjectPublicKeyInfo (RFC 5280, 4.1.2.7) in PEM.
pub(crate) fn pem(kind: KeyKind, public: &TpmtPublic) -> Result<String, String> {
    if public.object_attributes != template(kind).object_attributes {
        return Err(format!("the key has attributes {:?}", public.object_attributes));
    }
    match (kind, &public.parameters, &public.unique) {
        (KeyKind::EccP256, TpmuPublicParms::Ecc(_), TpmuPublicId::Ecc(point)) => {
            let (x, y) = (coordinate(&point.x)?, coordinate(&point.y)?);
            let point = p256::Sec1Point::from_affine_coordinates(&x.into(), &y.into(), false);
            let key = p256::PublicKey::from_sec1_bytes(point.as_bytes())
                .map_err(|error| format!("the key is no point of P-256: {error}"))?;
            key.to_public_key_pem(LineEnding::LF).map_err(|error| error.to_string())
        }
        (KeyKind::Rsa2048, TpmuPublicParms::Rsa(parameters), TpmuPublicId::Rsa(modulus)) => {
            let modulus = BoxedUint::from_be_slice(modulus, 2048).map_err(|e| e.to_string())?;
            let exponent = match parameters.exponent.value() {
                // What 0 stands for (Part 2, TPMS_RSA_PARMS).
                0 => 65537,
                exponent => exponent,
            };
            let key = rsa::PublicKey::new(modulus, BoxedUint::from(exponent))
                .map_err(|error| error.to_string())?;
            key.to_public_key_pem(LineEnding::LF).map_err(|error| error.to_string())
        }
        _ => Err("the key is of another kind than was asked for".to_owned()),
    }
}

/// A TPM may leave leading zeros out.
pub(crate) fn coordinate(bytes: &[u8]) -> Result<[u8; 32], String> {
    let mut coordinate = [0; 32];
    let start = 32usize.checked_sub(bytes.len());
    match start {
        Some(start) => coordinate[start..].copy_from_slice(bytes),
        None => return Err(format!("a coordinate of {} bytes", bytes.len())),
    }
    Ok(coordinate)
}
