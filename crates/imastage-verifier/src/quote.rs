//! Verifies a quote: signature, origin, nonce and PCR selection.

use ima_log::{Bank, Digest};
use tpm2_protocol::{
    TpmUnmarshal,
    constant::TPM_GENERATED_VALUE,
    data::{
        TpmAlgId, TpmSt, TpmlPcrSelection, TpmsAttest, TpmtSignature, TpmuAttest, TpmuSignature,
    },
};

use crate::{PublicKey, key::SignatureProblem, kind};

/// A quote as received, not verified.
#[derive(Clone, Copy, Debug)]
pub struct UnverifiedQuote<'a> {
    /// `TPMS_ATTEST` as marshalled by the TPM (`tpm2_quote -m`), or `TPM2B_ATTEST`, which starts with its
    /// size.
    pub message: &'a [u8],
    /// `TPMT_SIGNATURE` over it (`tpm2_quote -s`), with or without a preceding size; or the bare signature
    /// (`tpm2_quote -f plain`): of an RSA key, with the size of its modulus; of an ECC key, in DER
    /// or as the concatenation of both numbers.
    pub signature: &'a [u8],
}

/// A quote by the attestation key over the verifier's nonce. Only [`UnverifiedQuote::verify`]
/// creates one.
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
    /// Bit n is PCR n.
    pub mask: u32,
}

/// The TPM's clock and counters (`TPMS_CLOCK_INFO`). For keys outside the endorsement and platform
/// hierarchies the TPM adds a secret of the key to both counters: they can be compared with each
/// other, modulo 2^32, but have no meaning alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockInfo {
    /// The time for which the TPM was powered on, in milliseconds; it never decreases until a
    /// clear.
    pub clock: u64,
    /// The number of TPM Resets; each one starts an epoch.
    pub reset_count: u32,
    /// The number of TPM Restarts and Resumes since the last Reset.
    pub restart_count: u32,
    /// Whether no greater clock value was returned before.
    pub safe: bool,
}

/// Why a quote is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuoteError {
    /// Message and signature are swapped.
    #[error("message and signature are swapped: each was given as the other")]
    Swapped,
    /// The message is of another kind, which is named.
    #[error("expected a quote (TPMS_ATTEST, tpm2_quote -m) as the message: found {0}")]
    OtherMessage(&'static str),
    /// The signature is of another kind, which is named.
    #[error(
        "expected a signature by a key of type {key} (TPMT_SIGNATURE, tpm2_quote -s): found {found}"
    )]
    OtherSignature {
        /// The type of the key.
        key: &'static str,
        /// Its kind.
        found: &'static str,
    },
    /// The signature starts like a `TPMT_SIGNATURE` and is malformed.
    #[error("the signature is a TPMT_SIGNATURE that is cut short or damaged: {0}")]
    SignatureFormat(String),
    /// The message starts like a quote and is malformed.
    #[error("the message is a TPMS_ATTEST that is cut short or damaged: {0}")]
    MessageFormat(String),
    /// Bytes after the structure.
    #[error("{count} bytes behind the end of the {what}")]
    Trailing {
        /// `message` or `signature`.
        what: &'static str,
        /// Their number.
        count: usize,
    },
    /// The signature uses an unsupported hash, which is named.
    #[error("the signature's hash is {0}: make the quote with sha256, sha384 or sha512")]
    Hash(String),
    /// The signature's scheme is not one for this key.
    #[error(
        "the signature's scheme is {scheme}, the key is {key}: expected RSASSA or RSAPSS of an \
         RSA key, or ECDSA of a P-256 or P-384 key"
    )]
    Scheme {
        /// The name of the scheme.
        scheme: String,
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
    /// The attestation is not a quote.
    #[error("the message is an attestation of type {0:#06x}, not a quote (0x8018)")]
    NotAQuote(u16),
    /// The quote is over another nonce.
    #[error(
        "the quote is for nonce {found}, not for {expected}: an old quote, or another \
         verifier's",
        found = hex::encode(found),
        expected = hex::encode(expected)
    )]
    Nonce {
        /// The expected nonce.
        expected: Vec<u8>,
        /// The nonce in the quote.
        found: Vec<u8>,
    },
    /// The quote covers PCRs of an unknown bank; contains its name as in tpm2-tools.
    #[error(
        "the quote covers PCRs of bank {0}, which is not known: quote PCRs of banks that are \
         (known: {known}; tpm2_quote -l sha256:10)",
        known = Bank::known()
    )]
    Bank(String),
    /// The quote lists a bank twice.
    #[error("the quote lists bank {0} twice")]
    BankTwice(Bank),
    /// The PCR digest does not have the size of the signature's hash.
    #[error("the PCR digest has {found} bytes, the signature's hash {hash} has {}", hash.size())]
    DigestSize {
        /// The signature's hash.
        hash: Bank,
        /// The size of the digest in bytes.
        found: usize,
    },
}

impl UnverifiedQuote<'_> {
    /// Verifies the quote: the signature, that a TPM made the message, that it is a quote, that it
    /// is over
    /// `nonce`, and that the PCR selection is well-formed.
    ///
    /// SHA-1 signatures are refused: with influence on the content, one signature can be valid for
    /// two messages.
    ///
    /// # Errors
    /// [`QuoteError`]: the first of these that failed, in this order.
    pub fn verify(self, key: &PublicKey, nonce: &[u8]) -> Result<VerifiedQuote, QuoteError> {
        let quote = self.without_sizes();
        let hash = quote.check_signature(key)?;
        quote.check_message(key, hash, nonce)
    }

    /// The structures without sizes: the signature is over what follows the size.
    fn without_sizes(self) -> Self {
        let unwrapped = |bytes, is_inside: fn(&[u8]) -> bool| {
            kind::without_size(bytes).filter(|inside| is_inside(inside)).unwrap_or(bytes)
        };
        UnverifiedQuote {
            message: unwrapped(self.message, kind::is_attestation),
            signature: unwrapped(self.signature, kind::is_signature),
        }
    }

    /// Returns the hash of the signature, which is also that of the PCR digest (TPM 2.0 Library
    /// Part 3,
    /// `TPM2_Quote`).
    fn check_signature(&self, key: &PublicKey) -> Result<Bank, QuoteError> {
        if kind::is_attestation(self.signature) && kind::is_signature(self.message) {
            return Err(QuoteError::Swapped);
        }
        if !kind::is_signature(self.signature) {
            return self.check_plain_signature(key);
        }
        let (signature, rest) = TpmtSignature::unmarshal(self.signature)
            .map_err(|error| QuoteError::SignatureFormat(error.to_string()))?;
        no_trailing("signature", rest)?;
        let scheme = format!("{:?}", signature.sig_alg);
        let wrong_scheme = QuoteError::Scheme { scheme, key: key.type_name() };
        let Some(alg) = hash_of(&signature.signature) else { return Err(wrong_scheme) };
        let hash = match bank(alg) {
            Some(hash) if !matches!(hash, Bank::Sha1 | Bank::Sm3) => hash,
            _ => return Err(QuoteError::Hash(format!("{alg:?}"))),
        };
        let digest = hash.hash(&[self.message]);
        key.verify(&digest, &signature.signature).map_err(|problem| match problem {
            SignatureProblem::Scheme => wrong_scheme,
            SignatureProblem::Wrong => self.why_wrong(key),
        })?;
        Ok(hash)
    }

    /// Without scheme and hash: a signature is valid with at most one of each.
    fn check_plain_signature(&self, key: &PublicKey) -> Result<Bank, QuoteError> {
        let signatures = key.plain_signatures(self.signature);
        if signatures.is_empty() {
            let found = kind::name(self.signature);
            return Err(QuoteError::OtherSignature { key: key.type_name(), found });
        }
        signatures
            .iter()
            .filter_map(|signature| Some((bank(hash_of(signature)?)?, signature)))
            .find(|(hash, signature)| key.verify(&hash.hash(&[self.message]), signature).is_ok())
            .map(|(hash, _)| hash)
            .ok_or_else(|| self.why_wrong(key))
    }

    /// The reason that the signature does not match; a file that is not a quote is named first.
    fn why_wrong(&self, key: &PublicKey) -> QuoteError {
        if !kind::is_attestation(self.message) {
            return QuoteError::OtherMessage(kind::name(self.message));
        }
        match attestation(self.message) {
            Ok(_) => QuoteError::Signature { key: key.fingerprint() },
            Err(error) => error,
        }
    }

    fn check_message(
        &self,
        key: &PublicKey,
        hash: Bank,
        nonce: &[u8],
    ) -> Result<VerifiedQuote, QuoteError> {
        let attest = attestation(self.message)?;
        let TpmuAttest::Quote(quote) = &attest.attested else {
            return Err(QuoteError::NotAQuote(attest.attest_type as u16));
        };
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

impl QuoteError {
    /// Whether message or signature is a file of another kind, given by mistake: this is no
    /// statement about the evidence.
    pub fn is_other_file(&self) -> bool {
        matches!(
            self,
            QuoteError::Swapped | QuoteError::OtherMessage(_) | QuoteError::OtherSignature { .. }
        )
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

    /// The hash of the concatenated values of all covered PCRs.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The TPM's clock and counters when it made the quote.
    pub fn clock(&self) -> ClockInfo {
        self.clock
    }

    /// The manufacturer's firmware version; obfuscated for keys outside the endorsement and
    /// platform hierarchies.
    pub fn firmware_version(&self) -> u64 {
        self.firmware_version
    }

    /// [`PublicKey::fingerprint`] of the key of the quote.
    pub fn key_fingerprint(&self) -> Digest {
        self.key_fingerprint
    }
}

#[cfg(test)]
impl VerifiedQuote {
    /// A quote as of a TPM whose PCRs have these values.
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
        set_bits(mask).map(move |index| (bank, index))
    }
}

/// The PCRs of a bitmap, ascending.
pub(crate) fn set_bits(mask: u32) -> impl Iterator<Item = u32> {
    (0..u32::BITS).filter(move |index| mask >> index & 1 == 1)
}

/// The bank with this hash.
pub(crate) fn bank(alg: TpmAlgId) -> Option<Bank> {
    Bank::from_tpm_alg(alg as u16)
}

/// The name of a bank in tpm2-tools.
fn alg_name(alg: TpmAlgId) -> String {
    format!("{alg:?}").to_ascii_lowercase()
}

/// The hash of a signature with a supported scheme.
fn hash_of(signature: &TpmuSignature) -> Option<TpmAlgId> {
    match signature {
        TpmuSignature::Rsassa(signature) | TpmuSignature::Rsapss(signature) => Some(signature.hash),
        TpmuSignature::Ecdsa(signature) => Some(signature.hash),
        _ => None,
    }
}

/// The whole message as a quote.
fn attestation(message: &[u8]) -> Result<TpmsAttest, QuoteError> {
    if let Some(magic) = message.first_chunk().map(|magic| u32::from_be_bytes(*magic))
        && magic != TPM_GENERATED_VALUE
    {
        return Err(QuoteError::NotGenerated(magic));
    }
    // Before the rest, which has another form in other attestations.
    if let Some(kind) = kind::u16_at(message, 4)
        && kind != TpmSt::AttestQuote as u16
    {
        return Err(QuoteError::NotAQuote(kind));
    }
    let (attest, rest) = TpmsAttest::unmarshal(message)
        .map_err(|error| QuoteError::MessageFormat(error.to_string()))?;
    no_trailing("message", rest)?;
    Ok(attest)
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
        let mut mask = [0; 4];
        for (to, from) in mask.iter_mut().zip(entry.pcr_select.iter()) {
            *to = *from;
        }
        let mask = u32::from_le_bytes(mask);
        // Covers nothing, in any bank.
        if mask == 0 {
            continue;
        }
        let bank = bank(entry.hash).ok_or_else(|| QuoteError::Bank(alg_name(entry.hash)))?;
        if selection.iter().any(|earlier| earlier.bank == bank) {
            return Err(QuoteError::BankTwice(bank));
        }
        selection.push(PcrSelection { bank, mask });
    }
    Ok(selection)
}

#[cfg(test)]
mod tests;
