use ima_log::{Bank, Digest};
use tpm2_protocol::{
    TpmError, TpmUnmarshal,
    constant::TPM_GENERATED_VALUE,
    data::{TpmAlgId, TpmlPcrSelection, TpmsAttest, TpmtSignature, TpmuAttest, TpmuSignature},
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
            Some(hash) if hash != Bank::Sha1 => hash,
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
