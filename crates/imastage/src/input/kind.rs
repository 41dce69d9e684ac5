//! What a file is, told by its beginning: the one place that knows.

use ima_log::{Bank, Format};

/// What a file is.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// A measurement list.
    List(ListKind),
    /// Something packed with gzip.
    Gzip,
    /// No measurement list.
    Other {
        /// What it is.
        what: &'static str,
        /// What to give or to do instead.
        instead: &'static str,
    },
    /// Nothing that is known. If it is a list, it is a binary one.
    Unknown,
}

/// The form of a list.
#[derive(Debug, PartialEq, Eq)]
pub enum ListKind {
    Binary(Format),
    Ascii,
    Json,
    CelJson,
    CelCbor,
    CelTlv,
}

/// The list that most who give something else meant.
const LIST: &str =
    "give IMA's list, /sys/kernel/security/ima/binary_runtime_measurements, or a copy";
const UNPACK: &str = "unpack it first";
const PCRS: &str = "give it with --pcrs, beside a list";
const QUOTE: &str = "imastage verify takes it with --quote, --signature and a list";

/// Files that begin with these bytes.
const MAGIC: [(&[u8], &str, &str); 19] = [
    (b"\xfd7zXZ\0", "a file packed with xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a file packed with zstd", UNPACK),
    (b"BZh", "a file packed with bzip2", UNPACK),
    (b"PK\x03\x04", "a zip file", UNPACK),
    (b"\x7fELF", "an ELF program", LIST),
    (b"\xffTCG", "what a TPM signed (TPMS_ATTEST), such as a quote", QUOTE),
    (b"-----BEGIN CERTIFICATE", "a certificate (PEM)", "give it with --key, beside a list"),
    (b"-----BEGIN", "a key (PEM)", "give it with --key, beside a list"),
    (b"\x30\x82", "a certificate or a key (DER)", "give it with --key, beside a list"),
    (b"\xff\xfe", "text in UTF-16", "convert it to UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "convert it to UTF-8"),
    (b"<", "HTML or XML, such as a web page with a list in it", "download the list itself"),
    (b"#!", "a script", LIST),
    (b"PCR-", "PCR values", PCRS),
    (b"measure ", "an IMA policy", LIST),
    (b"dont_measure ", "an IMA policy", LIST),
    (b"appraise ", "an IMA policy", LIST),
    (b"dont_appraise ", "an IMA policy", LIST),
    (b"audit ", "an IMA policy", LIST),
];

/// Tells what a file is whose first bytes are `head`: a record of a binary list, or all of it.
pub fn recognise(head: &[u8]) -> Kind {
    let other = |what, instead| Kind::Other { what, instead };
    if head.starts_with(b"\x1f\x8b") {
        return Kind::Gzip;
    }
    if is_cel_tlv(head) {
        return Kind::List(ListKind::CelTlv);
    }
    const FIRMWARE: &str = "the firmware's event log (binary_bios_measurements)";
    if is_crypto_agile_log(head) {
        return other(FIRMWARE, LIST);
    }
    if let Some(format) = Format::detect(head) {
        return Kind::List(ListKind::Binary(format));
    }
    if head.len() >= 64 && head.iter().all(|byte| *byte == 0) {
        return other("a file of zeros (a copy that was never filled?)", LIST);
    }
    if is_sha1_log(head) {
        return other("the firmware's event log (binary_bios_measurements, of a TPM 1.2)", LIST);
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let magic = MAGIC.iter().find(|(magic, ..)| head.starts_with(magic) || text.starts_with(magic));
    if let Some((_, what, instead)) = magic {
        return other(what, instead);
    }
    match text {
        // TPM2B_ATTEST.
        [_, _, 0xff, b'T', b'C', b'G', ..] => {
            other("what a TPM signed (TPM2B_ATTEST), such as a quote", QUOTE)
        }
        [b'[' | 0x1e, ..] => Kind::List(ListKind::CelJson),
        [b'{', ..] => json(text),
        [b'0'..=b'9', ..] => digits(text),
        [b'#', ..] => other("text that begins with a comment, such as an IMA policy", LIST),
        _ if is_pcr_text(text) => other("PCR values", PCRS),
        _ if is_pcr_file(head) => other("PCR values of tpm2-tools", PCRS),
        _ if is_signature(head) => other("a TPM's signature (TPMT_SIGNATURE)", QUOTE),
        [0x80..=0xbf, ..] => Kind::List(ListKind::CelCbor),
        _ => Kind::Unknown,
    }
}

/// A record number of one to eight bytes, and a PCR or NV index behind it (CEL section 5.1).
fn is_cel_tlv(head: &[u8]) -> bool {
    let Some(([0, 0, 0, 0, len @ 1..=8], rest)) = head.split_first_chunk::<5>() else {
        return false;
    };
    matches!(rest.get(usize::from(*len)..), Some([1 | 2, 0, 0, 0, 1..=8, ..]))
}

/// The header event of TCG PC Client Platform Firmware Profile section 10: PCR 0, EV_NO_ACTION, no
/// digest, and a signature that begins with "Spec ID Event".
fn is_crypto_agile_log(head: &[u8]) -> bool {
    head.get(32..45) == Some(b"Spec ID Event")
}

/// TCG_PCR_EVENT: PCR, type, SHA-1 digest, size, event. Two in a row, or one that is all.
fn is_sha1_log(head: &[u8]) -> bool {
    let event = |bytes: &[u8]| {
        let number = |at: usize| {
            let number = bytes.get(at..at + 4)?.first_chunk::<4>()?;
            Some(u32::from_le_bytes(*number))
        };
        let (pcr, kind, size) = (number(0)?, number(4)?, number(28)?);
        let known = kind <= 0x12 || (0x8000_0001..=0x8000_00ff).contains(&kind);
        (pcr < 24 && known && size < 1 << 20).then_some(32 + size as usize)
    };
    let Some(len) = event(head) else { return false };
    head.len() == len || head.get(len..).is_some_and(|rest| event(rest).is_some())
}

/// One record a line: ours has "fields", that of an event log "content".
fn json(text: &[u8]) -> Kind {
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let has = |text: &[u8], name: &[u8]| text.windows(name.len()).any(|part| part == name);
    if has(line, b"\"content_type\"") {
        return Kind::List(ListKind::CelJson);
    }
    if has(text, b"\"meta\"") && (has(text, b"\"excludes\"") || has(text, b"\"keyrings\"")) {
        let what = "a runtime policy of Keylime";
        return Kind::Other { what, instead: LIST };
    }
    if has(text, b"\"content_type\"") {
        return Kind::List(ListKind::CelJson);
    }
    Kind::List(ListKind::Json)
}

/// Text that begins with a digit.
fn digits(text: &[u8]) -> Kind {
    let other = |what, instead| Kind::Other { what, instead };
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default().trim_ascii_end();
    let words: Vec<&[u8]> = line
        .split(|byte| matches!(byte, b' ' | b'\t'))
        .filter(|word| !word.is_empty())
        .take(5)
        .collect();
    let is_hex = |word: &[u8]| word.iter().all(u8::is_ascii_hexdigit);
    match words.as_slice() {
        [number] if text.len() < 24 && number.iter().all(u8::is_ascii_digit) => {
            other("a number, as of runtime_measurements_count", LIST)
        }
        // What tpm2_pcrread and sysfs show.
        [first, ..] if first.ends_with(b":") || first.contains(&b':') => other("PCR values", PCRS),
        [_, digest, kind, event, ..]
            if digest.len() == 40 && kind.len() == 2 && is_hex(kind) && event.starts_with(b"[") =>
        {
            other("the firmware's event log (ascii_bios_measurements)", LIST)
        }
        [digest, ..] if matches!(digest.len(), 40 | 64 | 96 | 128) && is_hex(digest) => {
            other("digests of files, as sha256sum writes them", LIST)
        }
        _ => Kind::List(ListKind::Ascii),
    }
}

/// `sha256 10 HEX` lines, or what tpm2_pcrread shows.
fn is_pcr_text(text: &[u8]) -> bool {
    let end = text.iter().position(|byte| matches!(byte, b' ' | b':' | b'\n' | b'\r'));
    let word = text.get(..end.unwrap_or_default()).unwrap_or_default();
    std::str::from_utf8(word).is_ok_and(|word| word.parse::<Bank>().is_ok())
}

/// What `tpm2_quote --pcrs` writes: TPML_PCR_SELECTION first, little-endian: count, hash, size of the
/// bit map.
fn is_pcr_file(head: &[u8]) -> bool {
    let Some(([count @ 1..=16, 0, 0, 0, low, high, 3], _)) = head.split_first_chunk::<7>() else {
        return false;
    };
    *count <= 16 && Bank::from_tpm_alg(u16::from_le_bytes([*low, *high])).is_some()
}

/// TPMT_SIGNATURE: TPM_ALG_RSASSA, TPM_ALG_RSAPSS or TPM_ALG_ECDSA, then a hash.
fn is_signature(head: &[u8]) -> bool {
    match head {
        [0, 0x14 | 0x16 | 0x18, high, low, ..] => {
            Bank::from_tpm_alg(u16::from_be_bytes([*high, *low])).is_some()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_15_common_mistakes_are_named() {
        let event = |kind: u32| {
            let head = [&4u32.to_le_bytes()[..], &kind.to_le_bytes(), &[7; 20]].concat();
            [&head[..], &4u32.to_le_bytes(), &[0; 4]].concat()
        };
        let digest = "ab".repeat(20);
        for (head, expected) in [
            ([event(4), event(0x8000_0003)].concat(), "event log (binary_bios_measurements"),
            ([&[0; 4], &[3, 0, 0, 0], &[0; 24][..], b"Spec ID Event03\0"].concat(), "event log"),
            (format!(" 0 {digest} 08 [S-CRTM Version]\n").into(), "ascii_bios_measurements"),
            (b"\x7fELF\x02\x01".to_vec(), "ELF"),
            (b"-----BEGIN PUBLIC KEY-----\n".to_vec(), "a key"),
            (b"\xffTCG\x80\x18".to_vec(), "TPM signed"),
            (b"\0\x91\xffTCG\x80\x18".to_vec(), "TPM2B_ATTEST"),
            (b"\0\x14\0\x0b\x01\0".to_vec(), "signature"),
            (b"sha256 10 00\n".to_vec(), "PCR values"),
            (b"  sha256:\n    10: 0x00\n".to_vec(), "PCR values"),
            (b"PCR-10: 00 11\n".to_vec(), "PCR values"),
            (b"10: 0xAB\n".to_vec(), "PCR values"),
            (b"\x01\0\0\0\x0b\0\x03\0\x04\0".to_vec(), "PCR values of tpm2-tools"),
            (b"4711\n".to_vec(), "runtime_measurements_count"),
            (format!("{}  /bin/sh\n", "0a".repeat(32)).into(), "sha256sum"),
            (b"\xff\xfe1\x000\0 \0".to_vec(), "UTF-16"),
            (b"<!DOCTYPE html>".to_vec(), "HTML"),
            (b"measure func=BPRM_CHECK\n".to_vec(), "policy"),
            (b"# PROC_SUPER_MAGIC\ndont_measure fsmagic=0x9fa0\n".to_vec(), "policy"),
            (b"{\"meta\": {}, \"release\": 0,\n \"excludes\": []}".to_vec(), "Keylime"),
            (b"\x28\xb5\x2f\xfd\x04".to_vec(), "zstd"),
            (vec![0; 100], "zeros"),
        ] {
            match recognise(&head) {
                Kind::Other { what, .. } => assert!(what.contains(expected), "{expected}: {what}"),
                kind => panic!("{expected}: {kind:?}"),
            }
        }
    }

    #[test]
    fn lists_are_told_apart() {
        let digest = "ab".repeat(20);
        for (head, expected) in [
            (b"{\"index\":0,\"fields\":[]}".to_vec(), ListKind::Json),
            (b"{\"content_type\":\"cel\"}".to_vec(), ListKind::CelJson),
            (b"\n[\n".to_vec(), ListKind::CelJson),
            (b"\x9f\xa5".to_vec(), ListKind::CelCbor),
            (b"\0\0\0\0\x08\0\0\0\0\0\0\0\0\x01\0\0\0\x04".to_vec(), ListKind::CelTlv),
            (format!("\u{feff}10 {digest} ima-ng").into(), ListKind::Ascii),
            (format!("\r\n  9 {digest} ima-ng").into(), ListKind::Ascii),
        ] {
            assert_eq!(recognise(&head), Kind::List(expected));
        }
        assert_eq!(recognise(b"\x1f\x8b\x08"), Kind::Gzip);
        assert_eq!(recognise(b""), Kind::Unknown);
    }
}
