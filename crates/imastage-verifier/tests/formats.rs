//! Keys and quotes in the forms in which people keep them.
#![allow(clippy::unwrap_used, clippy::panic)]

use imastage_verifier::{KeyError, PublicKey, QuoteError, UnverifiedQuote, VerifiedQuote};
use p256::pkcs8::EncodePrivateKey;

mod common;

use common::read;

/// Of all quotes in `cases`.
const NONCE: [u8; 16] = [
    0xa1, 0xb2, 0xc3, 0xd4, 0xe5, 0xf6, 0x07, 0x18, 0x29, 0x3a, 0x4b, 0x5c, 0x6d, 0x7e, 0x8f, 0x90,
];

fn case_09(name: &str) -> Vec<u8> {
    read(&format!("cases/09-key-formats/{name}"))
}

fn verify(message: &[u8], signature: &[u8], key: &PublicKey) -> Result<VerifiedQuote, QuoteError> {
    UnverifiedQuote { message, signature }.verify(key, &NONCE)
}

fn refused(file: &[u8]) -> KeyError {
    PublicKey::from_bytes(file).unwrap_err()
}

#[test]
fn case_09_a_key_is_the_same_in_every_form() {
    let (message, signature) = (case_09("quote.msg"), case_09("quote.sig"));
    let pem = PublicKey::from_bytes(&case_09("ak.pem")).unwrap();
    assert_eq!(pem.describe(), "RSA 2048");
    let padded = [case_09("ak-cert.der"), vec![0; 100]].concat();
    let mut unusual = case_09("ak.pem");
    unusual.splice(0..0, *b"Subject: what openssl x509 -text prints\n");
    let one_line = String::from_utf8(case_09("ak-cert.pem")).unwrap();
    let lines: Vec<&str> = one_line.lines().collect();
    let (last, first) = (lines.len() - 1, lines[0]);
    let one_line = format!("{first}\r\n{}\r\n{}\r\n", lines[1..last].concat(), lines[last]);
    let forms = ["ak.tss", "ak.tpmt", "ak.der", "ak-pkcs1.pem", "ak-cert.pem", "ak-cert.der"]
        .map(case_09)
        .into_iter()
        .chain([padded, unusual, one_line.into_bytes()]);
    for (n, form) in forms.enumerate() {
        let key = PublicKey::from_bytes(&form).unwrap_or_else(|error| panic!("{n}: {error}"));
        assert_eq!(key.fingerprint(), pem.fingerprint(), "{n}");
        verify(&message, &signature, &key).unwrap();
    }
}

#[test]
fn case_09_ecc_keys_of_a_tpm_are_read() {
    for (name, curve, bits, described) in
        [("p256", 3u8, 32usize, "ECC P-256"), ("p384", 4, 48, "ECC P-384")]
    {
        let pem = read(&format!("cases/p5-quote-variants/ak-{name}.pem"));
        let key = PublicKey::from_bytes(&pem).unwrap();
        assert_eq!(key.describe(), described);
        // The last bytes of a SubjectPublicKeyInfo are the point's coordinates.
        let body: String =
            std::str::from_utf8(&pem).unwrap().lines().filter(|l| !l.contains('-')).collect();
        let der = base64(&body);
        let (x, y) = der[der.len() - 2 * bits..].split_at(bits);
        let mut tpmt =
            vec![0, 0x23, 0, 11, 0, 5, 0, 0x72, 0, 0, 0, 0x10, 0, 0x18, 0, 11, 0, curve, 0, 0x10];
        for coordinate in [x, y] {
            tpmt.extend_from_slice(&(bits as u16).to_be_bytes());
            tpmt.extend_from_slice(coordinate);
        }
        assert_eq!(PublicKey::from_bytes(&tpmt).unwrap().fingerprint(), key.fingerprint());
        let last = tpmt.len() - 1;
        tpmt[last] ^= 1;
        assert!(matches!(refused(&tpmt), KeyError::Key(_)), "not on the curve");
    }
}

fn base64(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("{c}"),
    };
    let digits: Vec<u8> = text.bytes().filter(|c| *c != b'=').map(value).collect();
    let bits = digits.iter().flat_map(|d| (0..6).rev().map(move |bit| d >> bit & 1));
    let bits: Vec<u8> = bits.collect();
    bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | bit)).collect()
}

#[test]
fn case_09_keys_that_are_no_attestation_keys_are_refused_by_the_attribute() {
    for (attribute, attributes) in [
        ("restricted", [0u8, 4, 0, 0x72]),
        ("sign", [0, 1, 0, 0x72]),
        ("fixedTPM", [0, 5, 0, 0x70]),
        ("fixedParent", [0, 5, 0, 0x62]),
        ("sensitiveDataOrigin", [0, 5, 0, 0x52]),
        ("decrypt", [0, 7, 0, 0x72]),
        ("decrypt", [0, 3, 0, 0x72]),
    ] {
        for (name, at) in [("ak.tss", 6), ("ak.tpmt", 4)] {
            let mut file = case_09(name);
            file[at..at + 4].copy_from_slice(&attributes);
            let error = refused(&file);
            assert!(error.to_string().contains(attribute), "{attribute}: {error}");
            assert!(matches!(error, KeyError::Attribute { .. }));
        }
    }
    // More than there should be, or less.
    let tss = case_09("ak.tss");
    let tpmt = case_09("ak.tpmt");
    assert!(matches!(refused(&[&tpmt[..], &[0]].concat()), KeyError::Key(_)));
    assert!(matches!(refused(&tpmt[..100]), KeyError::Key(_)));
    assert!(matches!(refused(&tss[..100]), KeyError::Other(_)));
}

#[test]
fn case_09_private_keys_are_refused_with_a_warning() {
    let secret = p256::SecretKey::from_slice(&[7; 32]).unwrap();
    let pkcs8 = secret.to_pkcs8_der().unwrap();
    let pem = secret.to_pkcs8_pem(Default::default()).unwrap();
    assert_eq!(refused(pem.as_bytes()), KeyError::Private);
    assert_eq!(refused(pkcs8.as_bytes()), KeyError::Private);
    // SEC 1: version, octets.
    assert_eq!(refused(&[0x30, 7, 2, 1, 1, 4, 2, 1, 2]), KeyError::Private);
    // PKCS #1: version and eight numbers, here short ones.
    let numbers = [2u8, 1, 1].repeat(8);
    assert_eq!(refused(&[&[0x30, 27, 2, 1, 0], &numbers[..]].concat()), KeyError::Private);
    for label in ["RSA", "EC", "ENCRYPTED", "OPENSSH", "TSS2"] {
        let pem = format!(
            "-----BEGIN {label} PRIVATE KEY-----\nAAAA\n-----END {label} PRIVATE KEY-----\n"
        );
        assert_eq!(refused(pem.as_bytes()), KeyError::Private);
        // Beside a public one, too.
        let both = [pem.as_bytes(), &case_09("ak.pem")].concat();
        assert_eq!(refused(&both), KeyError::Private);
    }
    assert!(KeyError::Private.to_string().contains("private key"));
}

#[test]
fn case_09_other_files_are_named() {
    let context = [&[0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1][..], &[1; 100]].concat();
    let private = [&[0, 4, 0, 0x20][..], &[9, 9]].concat();
    let name = [&[0, 0x22, 0, 11][..], &[7; 32]].concat();
    let ssh: &[u8] = b"ssh-rsa AAAAB3NzaC1yc2E= somebody@somewhere\n";
    let readpublic: &[u8] = b"name: 000b00\nqualified name: 00\nattributes:\n  value: x\n";
    let attestation = case_09("quote.msg");
    let sized = read("cases/10-quote-wrappings/quote.2b");
    for (file, words) in [
        (&b""[..], "empty"),
        (b"  \n", "blank"),
        (ssh, "ssh"),
        (readpublic, "tpm2_readpublic"),
        (&context, "context file"),
        (&private, "TPM2B_PRIVATE"),
        (&name, "TPM2B_NAME"),
        (&attestation, "attestation"),
        (&sized, "attestation"),
        (&case_09("quote.sig"), "signature"),
        (b"{\"kty\": \"RSA\"}", "JSON"),
        (b"0001000b00050072000000100014000b080000000000", "hex"),
        (&[0x1f, 0x8b, 8, 0], "gzip"),
        (&[0x30, 3, 1, 1, 0], "DER"),
        (&[0xfe; 30], "nothing that is known"),
    ] {
        let error = refused(file).to_string();
        assert!(error.contains(words) && error.contains("expected"), "{words}: {error}");
    }
    let pem = case_09("ak.pem");
    assert_eq!(refused(&[&pem[..], &pem].concat()), KeyError::Several(2));
    assert_eq!(refused(&vec![0x30; 100_000]), KeyError::Size(100_000));
    let cut = &case_09("ak-cert.der")[..200];
    assert!(matches!(refused(cut), KeyError::Key(_)));
    let request = b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";
    assert!(refused(request).to_string().contains("a request for a certificate"));
}

#[test]
fn case_10_a_size_in_front_changes_nothing() {
    let file = |name: &str| read(&format!("cases/10-quote-wrappings/{name}"));
    let key = PublicKey::from_bytes(&file("ak.pem")).unwrap();
    let signature = file("quote.sig");
    let sized = [&(signature.len() as u16).to_be_bytes()[..], &signature].concat();
    for message in [file("quote.msg"), file("quote.2b")] {
        for signature in [&signature, &sized] {
            verify(&message, signature, &key).unwrap();
        }
    }
    // Altered is altered, with a size or without.
    let mut altered = file("quote.2b");
    let last = altered.len() - 1;
    altered[last] ^= 1;
    let error = verify(&altered, &signature, &key).unwrap_err();
    assert_eq!(error, QuoteError::Signature { key: key.fingerprint() });
    assert!(!error.is_other_file());
}

#[test]
fn case_10_signatures_alone_are_taken() {
    let file = |name: &str| read(&format!("cases/{name}"));
    for (quote, key) in [
        ("10-quote-wrappings/quote", "10-quote-wrappings/ak.pem"),
        ("09-key-formats/quote", "09-key-formats/ak.pem"),
        ("p5-quote-variants/pss-max-salt", "p5-quote-variants/ak.pem"),
        ("p5-quote-variants/p256-with-sha384", "p5-quote-variants/ak-p256.pem"),
        ("p5-quote-variants/p384-with-sha256", "p5-quote-variants/ak-p384.pem"),
    ] {
        let key = PublicKey::from_bytes(&file(key)).unwrap();
        let (message, signature) = (file(&format!("{quote}.msg")), file(&format!("{quote}.sig")));
        let mut plain = vec![signature[6..].to_vec()];
        if key.describe().starts_with("ECC") {
            let size = usize::from(signature[5]);
            let (r, s) = (&signature[6..6 + size], &signature[8 + size..]);
            plain = vec![[r, s].concat(), der_signature(r, s)];
        }
        for signature in plain {
            verify(&message, &signature, &key).unwrap_or_else(|error| panic!("{quote}: {error}"));
            let mut altered = message.clone();
            let last = altered.len() - 1;
            altered[last] ^= 1;
            let error = verify(&altered, &signature, &key).unwrap_err();
            assert_eq!(error, QuoteError::Signature { key: key.fingerprint() });
        }
    }
}

fn der_signature(r: &[u8], s: &[u8]) -> Vec<u8> {
    let integer = |bytes: &[u8]| {
        let sign: &[u8] = if bytes[0] & 0x80 == 0 { &[] } else { &[0] };
        [&[2, (bytes.len() + sign.len()) as u8], sign, bytes].concat()
    };
    let body = [integer(r), integer(s)].concat();
    [&[0x30, body.len() as u8][..], &body].concat()
}

#[test]
fn case_10_files_of_something_else_are_named_and_nobody_is_accused() {
    let file = |name: &str| read(&format!("cases/10-quote-wrappings/{name}"));
    let key = PublicKey::from_bytes(&file("ak.pem")).unwrap();
    let (message, signature) = (file("quote.msg"), file("quote.sig"));
    assert_eq!(verify(&signature, &message, &key).unwrap_err(), QuoteError::Swapped);
    let hex: String = message.iter().map(|byte| format!("{byte:02x}")).collect();
    for (other, words) in [
        (&b""[..], "empty"),
        (hex.as_bytes(), "hex digits"),
        (&signature, "a signature"),
        (&file("ak.pem"), "PEM"),
        (&[7; 129], "nothing that is known"),
    ] {
        let error = verify(other, &signature, &key).unwrap_err();
        assert!(matches!(error, QuoteError::OtherMessage(_)) && error.is_other_file());
        assert!(error.to_string().contains(words), "{error}");
    }
    for (other, words) in [(&b""[..], "empty"), (b"text", "text"), (&message, "attestation")] {
        let error = verify(&message, other, &key).unwrap_err();
        assert!(matches!(error, QuoteError::OtherSignature { .. }) && error.is_other_file());
        assert!(error.to_string().contains(words), "{error}");
    }
    // A quote that was cut short is no other file, and no other key's.
    let error = verify(&message[..100], &signature, &key).unwrap_err();
    assert!(matches!(error, QuoteError::MessageFormat(_)) && !error.is_other_file());
}

#[test]
fn case_11_a_bank_of_which_nothing_is_quoted_does_not_matter() {
    let file = |name: &str| read(&format!("cases/11-unknown-bank/{name}"));
    let key = PublicKey::from_bytes(&file("ak.pem")).unwrap();
    let quote = verify(&file("quote.msg"), &file("quote.sig"), &key).unwrap();
    let pcrs: Vec<_> = quote.pcrs().collect();
    assert_eq!(pcrs, [(ima_log::Bank::Sha256, 10)]);
    assert_eq!(quote.selection().len(), 1);
}

#[test]
fn p5_quote_variants_are_verified() {
    for (name, key, banks) in [
        ("pss-max-salt", "ak", 1),
        ("pss-salt-32", "ak", 1),
        ("empty-sha1-selection", "ak", 1),
        ("four-byte-bitmap", "ak", 1),
        ("sha256-before-sha1", "ak", 2),
        ("sha1-bank-only", "ak", 1),
        ("padded-sha256", "ak", 1),
        ("p256-with-sha384", "ak-p256", 1),
        ("p384-with-sha256", "ak-p384", 1),
        ("no-nonce", "ak", 1),
    ] {
        let file = |end: &str| read(&format!("cases/p5-quote-variants/{end}"));
        let key = PublicKey::from_bytes(&file(&format!("{key}.pem"))).unwrap();
        let (message, signature) = (file(&format!("{name}.msg")), file(&format!("{name}.sig")));
        let nonce: &[u8] = if name == "no-nonce" { &[] } else { &NONCE };
        let quote = UnverifiedQuote { message: &message, signature: &signature };
        let quote = quote.verify(&key, nonce).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(quote.selection().len(), banks, "{name}");
    }
}
