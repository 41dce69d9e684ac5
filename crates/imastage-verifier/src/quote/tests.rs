//! Tests of the verification of quotes.

use super::*;
use p256::{
    ecdsa::{Signature, SigningKey, signature::hazmat::PrehashSigner},
    pkcs8::EncodePublicKey,
};
use proptest::prelude::*;

const NONCE: &[u8] = b"nonce";

fn signing_key() -> SigningKey {
    SigningKey::from_slice(&[7; 32]).unwrap()
}

fn public_key() -> PublicKey {
    let key = signing_key();
    PublicKey::from_pem(&key.verifying_key().to_public_key_pem(Default::default()).unwrap())
        .unwrap()
}

/// A TPMT_SIGNATURE, as no TPM would make it over every message.
fn sign(message: &[u8], hash: Bank) -> Vec<u8> {
    let signature: Signature =
        signing_key().sign_prehash(hash.hash(&[message]).as_bytes()).unwrap();
    let (r, s) = signature.split_bytes();
    let alg = hash.tpm_alg().to_be_bytes();
    [&[0, 0x18], &alg[..], &[0, 32], &r, &[0, 32], &s].concat()
}

/// A TPMS_ATTEST of a quote with these selections (bank, bitmap) and a digest of this size.
fn message(selections: &[(u16, &[u8])], digest: usize) -> Vec<u8> {
    let mut message = vec![0xff, b'T', b'C', b'G', 0x80, 0x18, 0, 2, 1, 2, 0, 5];
    message.extend_from_slice(NONCE);
    message.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 7, 1]);
    message.extend_from_slice(&6u64.to_be_bytes());
    message.extend_from_slice(&(selections.len() as u32).to_be_bytes());
    for (alg, bitmap) in selections {
        message.extend_from_slice(&alg.to_be_bytes());
        message.push(bitmap.len() as u8);
        message.extend_from_slice(bitmap);
    }
    message.extend_from_slice(&(digest as u16).to_be_bytes());
    message.resize(message.len() + digest, 0xdd);
    message
}

fn verify(message: &[u8], hash: Bank) -> Result<VerifiedQuote, QuoteError> {
    UnverifiedQuote { message, signature: &sign(message, hash) }.verify(&public_key(), NONCE)
}

fn sound() -> Vec<u8> {
    message(&[(11, &[1, 4, 0]), (4, &[0, 4, 0, 0x80])], 32)
}

#[test]
fn all_fields_are_told() {
    let quote = verify(&sound(), Bank::Sha256).unwrap();
    let pcrs: Vec<(Bank, u32)> = quote.pcrs().collect();
    let expected = [(Bank::Sha256, 0), (Bank::Sha256, 10), (Bank::Sha1, 10), (Bank::Sha1, 31)];
    assert_eq!(pcrs, expected);
    assert_eq!(quote.clock(), ClockInfo { clock: 9, reset_count: 8, restart_count: 7, safe: true });
    assert_eq!(quote.firmware_version(), 6);
    assert_eq!(quote.digest().as_bytes(), [0xdd; 32]);
    assert_eq!(quote.key_fingerprint(), public_key().fingerprint());
}

#[test]
fn what_no_tpm_says_is_refused_though_signed() {
    let refused = |message: &[u8]| verify(message, Bank::Sha256).unwrap_err();
    let altered = |at: usize, byte: u8| {
        let mut message = sound();
        message[at] = byte;
        refused(&message)
    };
    assert_eq!(altered(0, 0xfe), QuoteError::NotGenerated(0xfe54_4347));
    assert_eq!(altered(5, 0x19), QuoteError::NotAQuote(0x8019));
    assert!(matches!(altered(12, b'N'), QuoteError::Nonce { .. }));
    assert!(matches!(refused(b""), QuoteError::MessageFormat(_)));
    assert!(matches!(refused(b"\xffTCG"), QuoteError::MessageFormat(_)));
    let longer = [sound(), vec![0; 3]].concat();
    assert_eq!(refused(&longer), QuoteError::Trailing { what: "message", count: 3 });
    let message = |selections: &[(u16, &[u8])], digest| refused(&message(selections, digest));
    assert_eq!(
        message(&[(11, &[0, 4, 0]), (11, &[0, 4, 0])], 32),
        QuoteError::BankTwice(Bank::Sha256)
    );
    let unknown = message(&[(11, &[0, 4, 0]), (0x27, &[0, 4, 0])], 32);
    assert_eq!(unknown, QuoteError::Bank("sha3_256".to_owned()));
    let text = unknown.to_string();
    assert!(text.contains("sha3_256") && text.contains("sm3;"), "{text}");
    assert!(matches!(message(&[(11, &[0; 5])], 32), QuoteError::MessageFormat(_)));
    assert_eq!(
        message(&[(11, &[0, 4, 0])], 20),
        QuoteError::DigestSize { hash: Bank::Sha256, found: 20 }
    );
}

#[test]
fn sha1_signatures_are_refused() {
    let error = verify(&message(&[(11, &[0, 4, 0])], 20), Bank::Sha1).unwrap_err();
    assert_eq!(error, QuoteError::Hash("Sha1".to_owned()));
    verify(&message(&[(11, &[0, 4, 0])], 48), Bank::Sha384).unwrap();
}

#[test]
fn leading_zeros_of_a_scalar_may_be_left_out() {
    // Some message has a signature whose r begins with a zero byte: one in 256 does.
    let (message, signature) = (0..=u64::MAX)
        .map(|clock| {
            let mut message = sound();
            message[17..25].copy_from_slice(&clock.to_be_bytes());
            let signature = sign(&message, Bank::Sha256);
            (message, signature)
        })
        .find(|(_, signature)| signature[6] == 0)
        .unwrap();
    let stripped = [&signature[..4], &[0, 31], &signature[7..]].concat();
    for signature in [&signature, &stripped] {
        let quote = UnverifiedQuote { message: &message, signature };
        quote.verify(&public_key(), NONCE).unwrap();
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let key = public_key();
        let mutated = |mut sound: Vec<u8>| {
            for (at, byte) in &flips {
                let at = at.index(sound.len());
                sound[at] = *byte;
            }
            sound
        };
        let message = sound();
        for signature in [&bytes, &mutated(sign(&message, Bank::Sha256))] {
            let quote = UnverifiedQuote { message: &message, signature };
            if quote.verify(&key, NONCE).is_ok() {
                prop_assert_eq!(signature, &sign(&message, Bank::Sha256));
            }
        }
        // After the signature check, which random bytes do not pass.
        for message in [&bytes, &mutated(message)] {
            let quote = UnverifiedQuote { message, signature: &[] };
            let _ = quote.check_message(&key, Bank::Sha256, NONCE);
        }
    }
}
