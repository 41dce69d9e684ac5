//! The forms in which the public half of a key is kept.

use rsa::{
    BoxedUint,
    pkcs1::DecodeRsaPublicKey,
    pkcs8::{Document, EncodePublicKey},
};
use tpm2_protocol::{
    TpmUnmarshal,
    data::{TpmEccCurve, TpmaObject, TpmtPublic, TpmuPublicId, TpmuPublicParms},
};
use x509_cert::{
    Certificate,
    der::{Decode, Encode, Header, Reader, SliceReader, Tag},
};

use super::{KeyError, PublicKey};
use crate::kind;

/// More than any key or certificate has.
const MAX_FILE: usize = 64 * 1024;

/// As [`PublicKey::from_bytes`].
pub(super) fn read(file: &[u8]) -> Result<PublicKey, KeyError> {
    if file.len() > MAX_FILE {
        return Err(KeyError::Size(file.len()));
    }
    if let Ok(text) = std::str::from_utf8(file)
        && text.contains("-----BEGIN ")
    {
        return pem(text);
    }
    if kind::is_public(file) {
        return tpmt_public(file);
    }
    match kind::without_size(file) {
        Some(public) if kind::is_public(public) => return tpmt_public(public),
        _ => {}
    }
    if file.first() == Some(&0x30) && !kind::is_text(file) {
        return der(unpadded(file));
    }
    Err(KeyError::Other(kind::name(file)))
}

/// The one key or certificate in PEM (RFC 7468), whatever stands around it and however its lines
/// are broken.
fn pem(text: &str) -> Result<PublicKey, KeyError> {
    let blocks: Vec<&str> = text.split("-----BEGIN ").skip(1).collect();
    let label = |block: &str| block.split("-----").next().unwrap_or_default().to_owned();
    if blocks.iter().any(|block| label(block).contains("PRIVATE KEY")) {
        return Err(KeyError::Private);
    }
    let [block] = blocks.as_slice() else { return Err(KeyError::Several(blocks.len())) };
    let (label, rest) = block
        .split_once("-----")
        .ok_or_else(|| KeyError::Pem("no end of its first line".into()))?;
    let (body, end) = rest
        .split_once("-----END ")
        .ok_or_else(|| KeyError::Pem("there is no line -----END: cut short".into()))?;
    if !end.starts_with(&format!("{label}-----")) {
        return Err(KeyError::Pem("its last line names something else than its first".into()));
    }
    let read: fn(&[u8]) -> Result<PublicKey, KeyError> = match label {
        "PUBLIC KEY" => PublicKey::from_spki,
        "RSA PUBLIC KEY" => pkcs1,
        "CERTIFICATE" | "X509 CERTIFICATE" => certificate,
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => {
            return Err(KeyError::Other("a request for a certificate"));
        }
        "SSH2 PUBLIC KEY" => return Err(KeyError::Other("an ssh public key")),
        label => return Err(KeyError::Pem(format!("found {}", label.escape_debug()))),
    };
    let body: Vec<char> = body.chars().filter(|c| !c.is_whitespace()).collect();
    let lines: Vec<String> = body.chunks(64).map(|line| line.iter().collect()).collect();
    let pem = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"));
    let (_, document) = Document::from_pem(&pem).map_err(|e| KeyError::Pem(e.to_string()))?;
    read(document.as_bytes())
}

/// What it is tells what its first members are.
fn der(der: &[u8]) -> Result<PublicKey, KeyError> {
    match members(der).as_deref() {
        None => Err(KeyError::Key("DER (ASN.1) that is cut short or damaged".into())),
        Some([Tag::Sequence, Tag::BitString]) => PublicKey::from_spki(der),
        Some([Tag::Integer, Tag::Integer]) => pkcs1(der),
        // PKCS #8; PKCS #1, which has nine numbers; SEC 1.
        Some([Tag::Integer, Tag::Sequence, Tag::OctetString, ..])
        | Some([Tag::Integer, Tag::Integer, Tag::Integer, Tag::Integer, ..])
        | Some([Tag::Integer, Tag::OctetString, ..]) => Err(KeyError::Private),
        // What tpm2-openssl calls TSS2 PRIVATE KEY; with two members it is a PKCS #7.
        Some([Tag::ObjectIdentifier, _, _, ..]) => Err(KeyError::Private),
        // PKCS #8, encrypted.
        Some([Tag::Sequence, Tag::OctetString]) => Err(KeyError::Private),
        // A request for a certificate and a list of revoked ones begin in the same way.
        Some([Tag::Sequence, Tag::Sequence, Tag::BitString]) => certificate(der),
        Some(_) => Err(KeyError::Other(kind::name(der))),
    }
}

/// The tags of the members of a DER sequence, the first few.
fn members(der: &[u8]) -> Option<Vec<Tag>> {
    let mut reader = SliceReader::new(der).ok()?;
    let header = Header::decode(&mut reader).ok()?;
    let mut inside = SliceReader::new(reader.read_slice(header.length()).ok()?).ok()?;
    let mut tags = Vec::new();
    while !inside.is_finished() && tags.len() < 8 {
        let member = Header::decode(&mut inside).ok()?;
        inside.read_slice(member.length()).ok()?;
        tags.push(member.tag());
    }
    reader.is_finished().then_some(tags)
}

/// DER without the zeros or ones that fill an NV index up after a certificate.
fn unpadded(der: &[u8]) -> &[u8] {
    let length = SliceReader::new(der)
        .ok()
        .and_then(|mut reader| {
            let header = Header::decode(&mut reader).ok()?;
            let head = usize::try_from(reader.position()).ok()?;
            head.checked_add(usize::try_from(header.length()).ok()?)
        })
        .filter(|length| *length <= der.len());
    match length.map(|length| der.split_at(length)) {
        Some((der, rest)) if rest.iter().all(|b| *b == 0) || rest.iter().all(|b| *b == 0xff) => der,
        _ => der,
    }
}

fn pkcs1(der: &[u8]) -> Result<PublicKey, KeyError> {
    let key = rsa::PublicKey::from_pkcs1_der(der).map_err(|e| KeyError::Key(e.to_string()))?;
    rsa_key(&key)
}

fn certificate(der: &[u8]) -> Result<PublicKey, KeyError> {
    let error = |error: x509_cert::der::Error| KeyError::Key(format!("no certificate: {error}"));
    let certificate = Certificate::from_der(der).map_err(error)?;
    let key = certificate.tbs_certificate().subject_public_key_info();
    PublicKey::from_spki(&key.to_der().map_err(error)?)
}

/// The attributes that make a key an attestation key (TPM 2.0 Library Part 1, Attestation Keys), and
/// what each is for.
const REQUIRED: [(TpmaObject, &str, &str); 5] = [
    (TpmaObject::RESTRICTED, "restricted", "it would sign what only looks like a quote"),
    (TpmaObject::SIGN_ENCRYPT, "sign", "it signs nothing"),
    (TpmaObject::FIXED_TPM, "fixedTPM", "another TPM may have it too"),
    (TpmaObject::FIXED_PARENT, "fixedParent", "another TPM may have it too"),
    (
        TpmaObject::SENSITIVE_DATA_ORIGIN,
        "sensitiveDataOrigin",
        "it was not made in the TPM, so others may have it",
    ),
];

fn tpmt_public(bytes: &[u8]) -> Result<PublicKey, KeyError> {
    let error = |error: &dyn std::fmt::Display| KeyError::Key(format!("TPMT_PUBLIC: {error}"));
    let (public, rest) = TpmtPublic::unmarshal(bytes).map_err(|e| error(&e))?;
    if !rest.is_empty() {
        return Err(error(&format!("{} bytes behind its end", rest.len())));
    }
    let spki = match (&public.parameters, &public.unique) {
        (TpmuPublicParms::Rsa(parameters), TpmuPublicId::Rsa(modulus)) => {
            check_attributes(public.object_attributes)?;
            let exponent = match parameters.exponent.value() {
                // What 0 stands for (Part 2, TPMS_RSA_PARMS).
                0 => 65537,
                exponent => exponent,
            };
            let modulus = BoxedUint::from_be_slice_vartime(modulus);
            let key = rsa::PublicKey::new(modulus, BoxedUint::from(exponent));
            return rsa_key(&key.map_err(|e| KeyError::Key(e.to_string()))?);
        }
        (TpmuPublicParms::Ecc(parameters), TpmuPublicId::Ecc(point)) => {
            check_attributes(public.object_attributes)?;
            match parameters.curve_id {
                TpmEccCurve::NistP256 => {
                    let point = sec1::<32>(&point.x, &point.y)?;
                    p256::PublicKey::from_sec1_bytes(&point)
                        .map_err(|e| KeyError::Key(e.to_string()))?
                        .to_public_key_der()
                }
                TpmEccCurve::NistP384 => {
                    let point = sec1::<48>(&point.x, &point.y)?;
                    p384::PublicKey::from_sec1_bytes(&point)
                        .map_err(|e| KeyError::Key(e.to_string()))?
                        .to_public_key_der()
                }
                curve => return Err(KeyError::Key(format!("it is on the curve {curve:?}"))),
            }
        }
        _ => return Err(KeyError::Other("a TPM object that is no asymmetric key (TPMT_PUBLIC)")),
    };
    PublicKey::from_spki(spki.map_err(|e| KeyError::Key(e.to_string()))?.as_bytes())
}

fn check_attributes(attributes: TpmaObject) -> Result<(), KeyError> {
    if attributes.contains(TpmaObject::DECRYPT) {
        let why = "it decrypts, as storage and endorsement keys do";
        return Err(KeyError::Attribute { attribute: "decrypt", state: "set", why });
    }
    match REQUIRED.iter().find(|(attribute, ..)| !attributes.contains(*attribute)) {
        Some((_, attribute, why)) => Err(KeyError::Attribute { attribute, state: "not set", why }),
        None => Ok(()),
    }
}

fn rsa_key(key: &rsa::PublicKey) -> Result<PublicKey, KeyError> {
    let der = key.to_public_key_der().map_err(|e| KeyError::Key(e.to_string()))?;
    PublicKey::from_spki(der.as_bytes())
}

/// The point uncompressed (SEC 1, 2.3.3); a TPM may leave leading zeros out.
fn sec1<const SIZE: usize>(x: &[u8], y: &[u8]) -> Result<Vec<u8>, KeyError> {
    let mut point = vec![4];
    for coordinate in [x, y] {
        let zeros = SIZE
            .checked_sub(coordinate.len())
            .ok_or_else(|| KeyError::Key(format!("a coordinate of {} bytes", coordinate.len())))?;
        point.resize(point.len() + zeros, 0);
        point.extend_from_slice(coordinate);
    }
    Ok(point)
}
