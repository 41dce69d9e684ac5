use ima_log::{Bank, Digest};
use tpm2_protocol::{
    TpmError, TpmUnmarshal,
    constant::TPM_GENERATED_VALUE,
    data::{
        TpmAlgId, TpmSt, TpmlPcrSelection, TpmsAttest, TpmtSignature, TpmuAttest, TpmuSignature,
    },
};

use crate::{PublicKey, key::SignatureProblem};

/// A quote as it came, of which nothing is known yet.
#[derive(Clone, Copy, Debug)]
pub struct UnverifiedQuote<'a> {
    /// `TPMS_ATTEST` as marshalled by the TPM: `tpm2_quote -m`.
    pub message: &'a [u8],
    /// `TPMT_SIGNATURE` over it: `tpm2_quote -s`.
    pub signature: &'a [u8],
}

/// A quote that the holder of the attestation key made for this verifier's nonce. Nothing but
/// [`UnverifiedQuote::verify`] makes one.
#[derive(Clone, Debug)]
pub struct VerifiedQuote {
    selection: Vec<PcrSelection>,
    digest: Digest,
    clock: ClockInfo,
    firmware_version: u64,
    key_fingerprint: Digest,
}

/// The PCRs of one bank that a quote covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcrSelection {
    /// The bank.
    pub bank: Bank,
    /// Bit n stands for PCR n.
    pub mask: u32,
}

/// The TPM's clock and counters (`TPMS_CLOCK_INFO`). For keys outside the endorsement and platform
/// hierarchies the TPM adds a secret of the key's to both counters: they can be compared, modulo
/// 2^32, with each other but mean nothing alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockInfo {
    /// Milliseconds that the TPM was powered on; it never goes back until it is cleared.
    pub clock: u64,
    /// TPM Resets: each one begins an epoch.
    pub reset_count: u32,
    /// TPM Restarts and Resumes since.
    pub restart_count: u32,
    /// Whether no greater clock value was given out before.
    pub safe: bool,
}

/// Why a quote is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuoteError {
    /// The signature is not a `TPMT_SIGNATURE`.
    #[error("the signature is not a TPMT_SIGNATURE (tpm2_quote -s without --format): {0}")]
    SignatureFormat(TpmError),
    /// The message is not a `TPMS_ATTEST`.
    #[error("the message is not a TPMS_ATTEST (tpm2_quote -m): {0}")]
    MessageFormat(TpmError),
    /// Bytes behind the structure.
    #[error("{count} bytes behind the end of the {what}")]
    Trailing {
        /// `message` or `signature`.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// The signature uses a hash that is not taken.
    #[error("the signature's hash is {0:?}: make the quote with sha256, sha384 or sha512")]
    Hash(TpmAlgId),
    /// The signature's scheme is not one for this key.
    #[error(
        "the signature's scheme is {scheme:?}, the key is {key}: expected RSASSA or RSAPSS of an \
         RSA key, or ECDSA of a P-256 or P-384 key"
    )]
    Scheme {
        /// The scheme.
        scheme: TpmAlgId,
        /// The type of the key.
        key: &'static str,
    },
    /// The signature is not of this key over this message.
    #[error(
        "the signature is not one of key {key} over this message: another key's quote, or one \
         that was altered"
    )]
    Signature {
        /// The fingerprint of the key it was checked with.
        key: Digest,
    },
    /// The message was not made by a TPM.
    #[error("the message does not begin with TPM_GENERATED: found {0:#010x}")]
    NotGenerated(u32),
    /// The TPM attests something else.
    #[error("the message is an attestation of type {0:#06x}, not a quote (0x8018)")]
    NotAQuote(u16),
    /// The quote was made for another nonce.
    #[error(
        "the quote is for nonce {found}, not for {expected}: an old quote, or another \
         verifier's",
        found = hex::encode(found),
        expected = hex::encode(expected)
    )]
    Nonce {
        /// The nonce it should hold.
        expected: Vec<u8>,
        /// The nonce it holds.
        found: Vec<u8>,
    },
    /// The quote covers PCRs of a bank this crate does not know.
    #[error("the quote covers bank {0:?} (known: sha1, sha256, sha384, sha512)")]
    Bank(TpmAlgId),
    /// The quote lists a bank twice.
    #[error("the quote lists bank {0} twice")]
    BankTwice(Bank),
    /// The PCR digest does not have the size of the signature's hash.
    #[error("the PCR digest has {found} bytes, the signature's hash {hash} has {}", hash.size())]
    DigestSize {
        /// The signature's hash.
        hash: Bank,
        /// Bytes of the digest.
        found: usize,
    },
}

impl UnverifiedQuote<'_> {
    /// Checks the quote in full: the signature, that a TPM made the message, that it is a quote, that
    /// it is for `nonce`, and that the PCR selection is well-formed.
    ///
    /// SHA-1 signatures are refused: who can influence what is signed could have two messages
    /// signed at once.
    ///
    /// # Errors
    /// [`QuoteError`] says which of these failed, the first in this order.
    pub fn verify(self, key: &PublicKey, nonce: &[u8]) -> Result<VerifiedQuote, QuoteError> {
        let hash = self.check_signature(key)?;
        self.check_message(key, hash, nonce)
    }

    /// Gives the hash of the signature, which is that of the PCR digest too (TPM 2.0 Library Part 3,
    /// `TPM2_Quote`).
    fn check_signature(&self, key: &PublicKey) -> Result<Bank, QuoteError> {
        let (signature, rest) =
            TpmtSignature::unmarshal(self.signature).map_err(QuoteError::SignatureFormat)?;
        no_trailing("signature", rest)?;
        let wrong_scheme = QuoteError::Scheme { scheme: signature.sig_alg, key: key.type_name() };
        let alg = match &signature.signature {
            TpmuSignature::Rsassa(signature) | TpmuSignature::Rsapss(signature) => signature.hash,
            TpmuSignature::Ecdsa(signature) => signature.hash,
            _ => return Err(wrong_scheme),
        };
        let hash = match bank(alg) {
            Some(hash) if !matches!(hash, Bank::Sha1 | Bank::Sm3) => hash,
            _ => return Err(QuoteError::Hash(alg)),
        };
        let digest = hash.hash(&[self.message]);
        key.verify(&digest, &signature.signature).map_err(|problem| match problem {
            SignatureProblem::Scheme => wrong_scheme,
            SignatureProblem::Wrong => QuoteError::Signature { key: key.fingerprint() },
        })?;
        Ok(hash)
    }

    fn check_message(
        &self,
        key: &PublicKey,
        hash: Bank,
        nonce: &[u8],
    ) -> Result<VerifiedQuote, QuoteError> {
        if let Some(magic) = self.message.first_chunk().map(|magic| u32::from_be_bytes(*magic))
            && magic != TPM_GENERATED_VALUE
        {
            return Err(QuoteError::NotGenerated(magic));
        }
        // Before the rest, which has another form in other attestations.
        if let Some(kind) = self.message.get(4..).and_then(|rest| rest.first_chunk())
            && u16::from_be_bytes(*kind) != TpmSt::AttestQuote as u16
        {
            return Err(QuoteError::NotAQuote(u16::from_be_bytes(*kind)));
        }
        let (attest, rest) =
            TpmsAttest::unmarshal(self.message).map_err(QuoteError::MessageFormat)?;
        let TpmuAttest::Quote(quote) = &attest.attested else {
            return Err(QuoteError::NotAQuote(attest.attest_type as u16));
        };
        no_trailing("message", rest)?;
        if *attest.extra_data != *nonce {
            return Err(QuoteError::Nonce {
                expected: nonce.to_vec(),
                found: attest.extra_data.to_vec(),
            });
        }
        let digest = Digest::from_slice(hash, &quote.pcr_digest)
            .map_err(|error| QuoteError::DigestSize { hash, found: error.found })?;
        let clock = attest.clock_info;
        Ok(VerifiedQuote {
            selection: selection(&quote.pcr_select)?,
            digest,
            clock: ClockInfo {
                clock: clock.clock.value(),
                reset_count: clock.reset_count.value(),
                restart_count: clock.restart_count.value(),
                safe: clock.safe.into(),
            },
            firmware_version: attest.firmware_version.value(),
            key_fingerprint: key.fingerprint(),
        })
    }
}

impl VerifiedQuote {
    /// The PCRs covered, bank by bank in the order in which the TPM hashed them.
    pub fn selection(&self) -> &[PcrSelection] {
        &self.selection
    }

    /// Bank and index of each PCR covered, in the order in which the TPM hashed them.
    pub fn pcrs(&self) -> impl Iterator<Item = (Bank, u32)> + '_ {
        self.selection.iter().flat_map(PcrSelection::pcrs)
    }

    /// The hash of the values of all PCRs covered, one behind the other.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The TPM's clock and counters when it made the quote.
    pub fn clock(&self) -> ClockInfo {
        self.clock
    }

    /// The TPM's firmware version, as its maker counts them; not in clear for keys outside the
    /// endorsement and platform hierarchies.
    pub fn firmware_version(&self) -> u64 {
        self.firmware_version
    }

    /// [`PublicKey::fingerprint`] of the key the quote was verified with.
    pub fn key_fingerprint(&self) -> Digest {
        self.key_fingerprint
    }
}

#[cfg(test)]
impl VerifiedQuote {
    /// As if a TPM whose PCRs have these values had made it.
    pub(crate) fn of(selection: Vec<PcrSelection>, value: impl Fn(Bank, u32) -> Digest) -> Self {
        let pcrs = selection.iter().flat_map(PcrSelection::pcrs);
        let values: Vec<Digest> = pcrs.map(|(bank, pcr)| value(bank, pcr)).collect();
        let digest = Bank::Sha256.hash(&values.iter().map(Digest::as_bytes).collect::<Vec<_>>());
        let clock = ClockInfo { clock: 9, reset_count: 1, restart_count: 0, safe: true };
        let key_fingerprint = Bank::Sha256.hash(&[b"key"]);
        VerifiedQuote { selection, digest, clock, firmware_version: 0, key_fingerprint }
    }
}

impl PcrSelection {
    /// Bank and index of each PCR, ascending.
    pub fn pcrs(&self) -> impl Iterator<Item = (Bank, u32)> + use<> {
        let PcrSelection { bank, mask } = *self;
        (0..u32::BITS).filter(move |index| mask >> index & 1 == 1).map(move |index| (bank, index))
    }
}

/// The bank with this hash.
pub(crate) fn bank(alg: TpmAlgId) -> Option<Bank> {
    Bank::from_tpm_alg(alg as u16)
}

fn no_trailing(what: &'static str, rest: &[u8]) -> Result<(), QuoteError> {
    match rest.len() {
        0 => Ok(()),
        count => Err(QuoteError::Trailing { what, count }),
    }
}

fn selection(list: &TpmlPcrSelection) -> Result<Vec<PcrSelection>, QuoteError> {
    let mut selection: Vec<PcrSelection> = Vec::new();
    for entry in list.iter() {
        let bank = bank(entry.hash).ok_or(QuoteError::Bank(entry.hash))?;
        if selection.iter().any(|earlier| earlier.bank == bank) {
            return Err(QuoteError::BankTwice(bank));
        }
        let mut mask = [0; 4];
        for (to, from) in mask.iter_mut().zip(entry.pcr_select.iter()) {
            *to = *from;
        }
        selection.push(PcrSelection { bank, mask: u32::from_le_bytes(mask) });
    }
    Ok(selection)
}

#[cfg(test)]
mod tests {
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
        assert_eq!(
            quote.clock(),
            ClockInfo { clock: 9, reset_count: 8, restart_count: 7, safe: true }
        );
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
        assert_eq!(message(&[(0x27, &[0, 4, 0])], 32), QuoteError::Bank(TpmAlgId::Sha3_256));
        assert!(matches!(message(&[(11, &[0; 5])], 32), QuoteError::MessageFormat(_)));
        assert_eq!(
            message(&[(11, &[0, 4, 0])], 20),
            QuoteError::DigestSize { hash: Bank::Sha256, found: 20 }
        );
    }

    #[test]
    fn sha1_signatures_are_refused() {
        let error = verify(&message(&[(11, &[0, 4, 0])], 20), Bank::Sha1).unwrap_err();
        assert_eq!(error, QuoteError::Hash(TpmAlgId::Sha1));
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
            // Behind the signature check, which random bytes do not pass.
            for message in [&bytes, &mutated(message)] {
                let quote = UnverifiedQuote { message, signature: &[] };
                let _ = quote.check_message(&key, Bank::Sha256, NONCE);
            }
        }
    }
}
