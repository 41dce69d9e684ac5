//! A record of an event log, whatever its encoding.

use alloc::{borrow::Cow, vec::Vec};

use crate::import::Binary;
use crate::{Bank, Digest, Endian, Format, ImportErrorKind, Record, Template};

/// How a Canonical Event Log is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// JSON.
    Json,
    /// CBOR.
    Cbor,
    /// Type, length and value.
    Tlv,
}

// `content_type`, CEL Table 2.
pub(super) const IMA_TEMPLATE: u64 = 7;
pub(super) const IMA_TLV: u64 = 8;

/// The template that stands for content type `ima_tlv`.
pub(super) const TLV_TEMPLATE: &str = "ima_tlv";

/// TCG Algorithm Registry.
pub(super) const TPM_ALG_SM3_256: u16 = 0x0012;

/// More digests than a TPM has banks.
pub(super) const MAX_DIGESTS: usize = 16;

/// A CEL record as it was read, whatever its encoding.
pub(super) struct Event<'a> {
    pub(super) pcr: Option<u32>,
    /// The digests of banks that are known.
    pub(super) digests: Vec<Digest>,
    pub(super) content: Content<'a>,
}

pub(super) enum Content<'a> {
    ImaTemplate { name: Cow<'a, str>, data: Cow<'a, [u8]> },
    ImaTlv(Cow<'a, [u8]>),
    Other,
}

impl Event<'_> {
    /// Puts the record together. `false` if it is not one of IMA. `endian` is the byte order of the
    /// template data, if an earlier record told it.
    pub(super) fn into_binary(
        self,
        endian: &mut Option<Endian>,
        out: &mut Binary,
    ) -> Result<bool, ImportErrorKind> {
        let (name, data) = match self.content {
            Content::ImaTemplate { name, data } => (name, data),
            Content::ImaTlv(content) => (TLV_TEMPLATE.into(), whole_tlv(content)),
            Content::Other => return Ok(false),
        };
        let pcr = self.pcr.ok_or(ImportErrorKind::Missing("pcr"))?;
        let [first, others @ ..] = self.digests.as_slice() else {
            return Err(ImportErrorKind::Missing("digests"));
        };
        let bank = first.bank();
        let violation = is_violation(first);
        let printed = if violation { Digest::zero(bank) } else { *first };
        let known = !matches!(Template::from_name(name.as_bytes()), Some(Template::Unknown(_)));

        let candidates = match *endian {
            Some(known) => [known, known],
            None => [Endian::Little, Endian::Big],
        };
        let mut attempt = |endian| {
            out.set(Format { bank, endian }, pcr, printed.as_bytes(), &name, &data).map(|()| endian)
        };
        let found =
            attempt(candidates[0]).or_else(|error| attempt(candidates[1]).map_err(|_| error))?;
        if known {
            *endian = Some(found);
        }
        let record = out.record()?;
        for digest in others {
            let right = if violation {
                is_violation(digest)
            } else if record.digest_is_right() {
                *digest == record.template_digest(digest.bank())
                    || *digest == record.template_digest(Bank::Sha1).padded_to(digest.bank())
            } else {
                // Nothing to compare it with.
                true
            };
            if !right {
                return Err(ImportErrorKind::Digest(digest.bank()));
            }
        }
        Ok(true)
    }
}

/// What the PCR of `digest`'s bank is extended with for `record`.
pub(super) fn extended(record: &Record<'_>, bank: Bank) -> Digest {
    if record.is_violation() {
        Digest::ones(bank)
    } else if bank == record.format().bank {
        record.printed_digest()
    } else {
        record.template_digest(bank)
    }
}

/// All ones is what a violation extends; other writers may have copied the list's zeros.
pub(super) fn is_violation(digest: &Digest) -> bool {
    digest.is_zero() || digest.as_bytes().iter().all(|byte| *byte == 0xff)
}

/// The TLV itself, which is what was hashed, around its value: type, big-endian length, value.
pub(super) fn whole_tlv(content: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    if tlv_value(&content).is_some() {
        return content;
    }
    let len = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let mut whole = Vec::with_capacity(5 + content.len());
    whole.push(IMA_TLV as u8);
    whole.extend_from_slice(&len.to_be_bytes());
    whole.extend_from_slice(&content);
    whole.into()
}

/// The value of a content TLV of type `ima_tlv`. A value cannot be mistaken for one: the types in
/// it are lower.
pub(super) fn tlv_value(whole: &[u8]) -> Option<&[u8]> {
    let (head, value) = whole.split_first_chunk::<5>()?;
    let [kind, len @ ..] = *head;
    let fits = u64::from(kind) == IMA_TLV && u32::from_be_bytes(len) as usize == value.len();
    fits.then_some(value)
}

/// The name of a bank's hash in JSON: the kernel's, but for SM3.
pub(super) fn hash_name(bank: Bank) -> &'static str {
    if bank.tpm_alg() == TPM_ALG_SM3_256 { "sm3_256" } else { bank.name() }
}

/// The bank with this hash, if it is known.
pub(super) fn bank_of(name: &str) -> Option<Bank> {
    if name.eq_ignore_ascii_case("sm3_256") {
        return Bank::from_tpm_alg(TPM_ALG_SM3_256);
    }
    name.parse().ok()
}

/// The digest of a bank that is known; `None` for other algorithms.
pub(super) fn digest(
    algorithm: Option<Bank>,
    bytes: &[u8],
) -> Result<Option<Digest>, ImportErrorKind> {
    let Some(bank) = algorithm else { return Ok(None) };
    Digest::from_slice(bank, bytes).map(Some).map_err(|_| ImportErrorKind::Member {
        name: "digest",
        expected: "as many bytes as the algorithm's digests have",
    })
}
