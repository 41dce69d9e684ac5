//! What a file is that is not what was asked for: for errors.

use tpm2_protocol::{TpmUnmarshal, constant::TPM_GENERATED_VALUE, data::TpmAlgId};

/// What TPM 2.0 Library Part 2 calls structures, and the tools that write them. The first that
/// fits.
pub(crate) fn name(file: &[u8]) -> &'static str {
    let (first, second) = (u16_at(file, 0), u16_at(file, 2));
    let sized = first.map(usize::from) == file.len().checked_sub(2);
    if file.is_empty() {
        return "empty";
    }
    if let Some(text) = text(file) {
        return text_name(text.trim_start_matches('\u{feff}').trim());
    }
    match (first, second) {
        _ if is_attestation(file) => "an attestation of a TPM (TPMS_ATTEST, tpm2_quote -m)",
        _ if sized && is_attestation(file.get(2..).unwrap_or_default()) => {
            "an attestation of a TPM (TPM2B_ATTEST)"
        }
        _ if is_signature(file) => "a signature (TPMT_SIGNATURE, tpm2_quote -s)",
        _ if is_public(file) => "a public key (TPMT_PUBLIC)",
        _ if sized && is_public(file.get(2..).unwrap_or_default()) => {
            "a public key (TPM2B_PUBLIC, tpm2_createak -u)"
        }
        (Some(0xbadc), Some(0xc0de)) => "a context file of tpm2-tools (tpm2_createak -c)",
        (Some(0x8000..=0x81ff), _)
            if matches!(u16_at(file, 4), Some(0x16 | 0x22 | 0x32 | 0x42)) =>
        {
            "a handle of tpm2-tools (ESYS_TR, tpm2_readpublic -t)"
        }
        (Some(_), Some(0x14 | 0x20 | 0x30 | 0x40)) if sized => {
            "a private key encrypted by a TPM (TPM2B_PRIVATE, tpm2_create -r)"
        }
        (Some(0x22 | 0x16 | 0x32 | 0x42), Some(_)) if sized => "a name (TPM2B_NAME)",
        (Some(0x000b), _) if file.len() == 34 => "the name of an object (tpm2_readpublic -n)",
        (Some(0x1f8b), _) => "a gzip file",
        (Some(first), _) if first >> 8 == 0x30 => "DER (ASN.1) of something else",
        _ => "nothing that is known",
    }
}

/// Whether people could read it.
pub(crate) fn is_text(file: &[u8]) -> bool {
    text(file).is_some()
}

fn text(file: &[u8]) -> Option<&str> {
    let is_binary = |c: char| c.is_control() && !c.is_whitespace();
    std::str::from_utf8(file).ok().filter(|text| !text.contains(is_binary))
}

fn text_name(text: &str) -> &'static str {
    let is_of = |alphabet: fn(u8) -> bool| {
        text.len() >= 32 && text.bytes().all(|b| b"\r\n".contains(&b) || alphabet(b))
    };
    match text {
        "" => "blank",
        _ if text.contains("-----BEGIN ") => "PEM",
        _ if text.starts_with('{') => "JSON",
        _ if ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"]
            .iter()
            .any(|b| text.starts_with(b)) =>
        {
            "an ssh public key"
        }
        _ if text.starts_with("name:") && text.contains("attributes:") => {
            "the text that tpm2_readpublic prints"
        }
        _ if is_of(|b| b.is_ascii_hexdigit()) => "hex digits (xxd -r -p makes bytes of them)",
        _ if is_of(|b| b.is_ascii_alphanumeric() || b"+/=-_".contains(&b)) => {
            "base64 (base64 -d makes bytes of it)"
        }
        _ => "text",
    }
}

/// Whether it begins as what a TPM attests: `TPM_GENERATED_VALUE`.
pub(crate) fn is_attestation(file: &[u8]) -> bool {
    file.starts_with(&TPM_GENERATED_VALUE.to_be_bytes())
}

/// Whether it begins as `TPMT_SIGNATURE`: a scheme, and the hash that goes with it.
pub(crate) fn is_signature(file: &[u8]) -> bool {
    let scheme = matches!(u16_at(file, 0), Some(0x05 | 0x14 | 0x16 | 0x18 | 0x1a..=0x1c));
    scheme && u16_at(file, 2).is_some_and(is_hash)
}

/// Whether it begins as `TPMT_PUBLIC`: the type of an object, and the hash of its name.
pub(crate) fn is_public(file: &[u8]) -> bool {
    let kind = matches!(u16_at(file, 0), Some(0x01 | 0x08 | 0x23 | 0x25));
    kind && u16_at(file, 2).is_some_and(|alg| is_hash(alg) || alg == TpmAlgId::Null as u16)
}

/// What follows the size that a `TPM2B_` structure has in front.
pub(crate) fn without_size(file: &[u8]) -> Option<&[u8]> {
    let rest = file.get(2..)?;
    (u16_at(file, 0).map(usize::from) == Some(rest.len())).then_some(rest)
}

/// A `TPM_ALG_ID` of a hash, whether or not any is supported here.
fn is_hash(alg: u16) -> bool {
    matches!(alg, 0x04 | 0x0b..=0x0d | 0x12 | 0x27..=0x29)
        && TpmAlgId::unmarshal(&alg.to_be_bytes()).is_ok()
}

pub(crate) fn u16_at(file: &[u8], offset: usize) -> Option<u16> {
    file.get(offset..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}
