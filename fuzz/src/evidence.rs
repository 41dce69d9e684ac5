//! What a verifier is given.

use std::sync::LazyLock;

use imastage_verifier::{PcrHint, PcrValues, PublicKey, Token, UnverifiedQuote};
use p256::{
    ecdsa::{Signature, SigningKey, signature::Signer},
    pkcs8::{EncodePublicKey, LineEnding},
};

/// Without a right signature nothing of a message is looked at, so a key that everybody has signs
/// it.
static KEY: LazyLock<(SigningKey, PublicKey)> = LazyLock::new(|| {
    let key = SigningKey::from_slice(&[1; 32]).unwrap();
    let pem = key.verifying_key().to_public_key_pem(LineEnding::LF).unwrap();
    (key, PublicKey::from_pem(&pem).unwrap())
});

/// The nonce of the corpus.
const NONCE: [u8; 8] = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];

/// The first byte chooses whether the rest is a message, which then is signed, or a signature.
pub fn quote(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    let (signer, key) = &*KEY;
    let signed;
    let quote = if choice & 1 == 0 {
        let signature: Signature = signer.sign(rest);
        let (r, s) = signature.split_bytes();
        // TPMT_SIGNATURE: TPM_ALG_ECDSA, TPM_ALG_SHA256, r, s.
        signed = [&[0, 0x18, 0, 0x0b, 0, 32][..], &r, &[0, 32], &s].concat();
        UnverifiedQuote { message: rest, signature: &signed }
    } else {
        UnverifiedQuote { message: b"", signature: rest }
    };
    if let Ok(quote) = quote.verify(key, &NONCE) {
        assert_eq!(choice & 1, 0, "a signature of nothing");
        assert!(quote.pcrs().count() <= quote.selection().len() * 32);
        let _ = (quote.clock(), quote.firmware_version(), quote.digest());
    }
}

/// Files of PCR values. The first byte chooses the bank of values that name none, none itself, and
/// whether the PCR is another one than 10.
pub fn pcrs(data: &[u8]) {
    let Some((&choice, file)) = data.split_first() else { return };
    let bank = ima_log::Bank::ALL.get(usize::from(choice & 0x7f)).copied();
    let pcr = (choice & 0x80 != 0).then_some(11);
    let _ = PcrValues::parse_tpm2_tools(file);
    let _ = PcrValues::parse(file, PcrHint { bank, pcr });
}

/// Tokens: what is read reads back the same.
pub fn token(data: &[u8]) {
    if let Ok(token) = Token::from_json(data) {
        let again = Token::from_json(token.to_json().as_bytes()).unwrap();
        assert_eq!(again.to_json(), token.to_json());
    }
}

/// Public keys, in any form.
pub fn key(data: &[u8]) {
    if let Ok(key) = PublicKey::from_bytes(data) {
        let _ = (key.fingerprint(), key.describe());
    }
}
