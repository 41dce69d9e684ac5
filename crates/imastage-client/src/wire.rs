//! What the API says: JSON, stable, hex for bytes.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use ima_log::{Extend, IMA_PCR};
use serde::{Deserialize, Serialize};

use crate::health::{Health, State};

/// The API's socket in the state directory.
pub const SOCKET: &str = "api.sock";

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What is wrong, the worst first.
    #[serde(default)]
    pub health: Health,
    /// Whether TPM and store agree.
    pub verdict: Verdict,
    /// In words, what is wrong and what to do; empty when nothing is.
    pub problems: Vec<String>,
    /// The service's process; `None` if it does not run and the state directory was read.
    pub pid: Option<u32>,
    /// The epoch's number in the state directory.
    pub epoch: u64,
    /// Records stored: the next record's index.
    pub records: u64,
    /// Their bytes in the sha1 form.
    pub bytes: u64,
    /// The PCRs by bank: of all that the TPM has, or without one, that are kept.
    pub banks: BTreeMap<String, BankStatus>,
    /// Since the service was started.
    pub since_start: Activity,
}

/// How far stored records were read since the service started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checking {
    /// Records read.
    pub read: u64,
    /// Records stored when the service started.
    pub of: u64,
}

/// What the service did since it was started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Activity {
    /// The list that is drained.
    pub source: String,
    /// The dialect that was found there: `7.2`, `v4`, `trim`, or `follow` where nothing is freed.
    pub dialect: String,
    /// The check of records stored before the service started, while it is made. The verdict is
    /// `unchecked` until it is complete.
    #[serde(default)]
    pub checking: Option<Checking>,
    /// Drains that found records.
    pub drains: u64,
    /// Records stored.
    pub stored: u64,
    /// Records that were found in the list and were stored already.
    pub already_stored: u64,
    /// Records deleted from the list.
    pub deleted: u64,
    /// Bytes deleted from the list (sha1 form).
    pub deleted_bytes: u64,
    /// The time that drains held the list's files, p50, in microseconds.
    pub hold_p50_us: u64,
    /// p99.
    pub hold_p99_us: u64,
    /// The longest.
    pub longest_hold_us: u64,
    /// How often someone else was using the list when it was to be drained.
    pub busy: u64,
    /// Who was, the last time; empty once a drain succeeded.
    pub holders: Vec<Holder>,
    /// Why the last drain failed, or did not delete what it stored; `None` if it did.
    pub last_error: Option<String>,
    /// What that means for the service's health.
    #[serde(default)]
    pub last_error_state: Option<State>,
    /// Why the TPM did not tell its PCRs at the last drain; `None` if it did, or there is none.
    pub tpm_error: Option<String>,
    /// Why the view cannot be read; `None` if it can, or there is none.
    #[serde(default)]
    pub view_error: Option<String>,
    /// When the list was last drained, or its records stored, in seconds since 1970.
    #[serde(default)]
    pub drained: Option<u64>,
    /// When store and TPM were last compared, in seconds since 1970.
    #[serde(default)]
    pub compared: Option<u64>,
}

/// A process that has one of the list's files open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Which of its descriptors.
    pub fd: u32,
    /// The file.
    pub path: PathBuf,
}

/// Whether TPM and store agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Verdict {
    /// There is no TPM to compare with, or nothing was compared yet.
    #[default]
    Unchecked,
    /// The first `records` stored records replay to the TPM's PCR.
    Consistent {
        /// How many records.
        records: u64,
    },
    /// The first `records` stored records replay to what the TPM's PCR was; it was extended since
    /// then, and the records that tell with what cannot be stored at the moment.
    Lagging {
        /// How many records.
        records: u64,
        /// How many are waiting in the list.
        waiting: u64,
    },
    /// The TPM's PCR is not reached.
    Diverged(Divergence),
    /// The list's record that would have this index is not as it was measured: its digest is not
    /// its data's. It is neither stored nor deleted, and nothing after it is.
    Altered {
        /// The index.
        index: u64,
        /// What was found.
        why: String,
    },
    /// The store cannot be read, or does not hold what was stored: nothing is concluded from it.
    Damaged {
        /// What was found first.
        why: String,
    },
    /// The PCR is zero in every bank although there are records: the kernel does not extend this
    /// TPM. No record is proven, and none is deleted.
    NotExtended {
        /// What was found, and what to do.
        why: String,
    },
}

impl Verdict {
    /// All names there are.
    pub const NAMES: [&str; 7] =
        ["unchecked", "consistent", "lagging", "diverged", "altered", "damaged", "not-extended"];

    /// Its name, as in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Unchecked => "unchecked",
            Verdict::Consistent { .. } => "consistent",
            Verdict::Lagging { .. } => "lagging",
            Verdict::Diverged(_) => "diverged",
            Verdict::Altered { .. } => "altered",
            Verdict::Damaged { .. } => "damaged",
            Verdict::NotExtended { .. } => "not-extended",
        }
    }
}

/// Where store and TPM diverged. No later PCR of the epoch is reached, either.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// The last index before the place; `None` if it is before the first record.
    pub after: Option<u64>,
    /// The first index after the place.
    pub before: u64,
    /// What happened, as far as can be told.
    pub cause: Cause,
    /// When it was found, in seconds since 1970.
    pub time: u64,
    /// In words: what happened, who may have done it.
    pub text: String,
}

/// What happened where store and TPM diverged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Records are missing: someone else deleted them.
    Missing,
    /// The PCR was extended, and no record tells with what; or a record did not extend it, because the
    /// TPM failed.
    UnloggedExtend,
    /// One of these two: this kernel does not tell.
    MissingOrUnloggedExtend,
    /// Records are missing: a kernel that was started by kexec did not get them.
    LostAtKexec,
}

impl fmt::Display for Cause {
    /// As in JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// The PCRs of one bank. What stands here beside `pcrs` is of the list's own PCR.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BankStatus {
    /// The list's own PCR: the one that its first record names.
    #[serde(default)]
    pub pcr: Option<u32>,
    /// As stored records replay.
    pub replayed: String,
    /// As the TPM has it now; `None` if no service runs, or there is no TPM.
    pub tpm: Option<String>,
    /// What the kernel extends it with: `own`, `sha1-padded` or `sha1-padded-violations`; `None` until
    /// that is known.
    #[serde(default, with = "extend_name::option")]
    pub extended_with: Option<Extend>,
    /// Every PCR that records name, the list's own first.
    #[serde(default)]
    pub pcrs: Vec<PcrStatus>,
}

/// One PCR of a bank.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PcrStatus {
    /// Its index.
    pub pcr: u32,
    /// As stored records replay.
    pub replayed: String,
    /// As the TPM has it now; `None` if it was not read: others than the kernel extend it, no
    /// service runs, or there is no TPM.
    pub tpm: Option<String>,
}

impl Status {
    /// The list's own PCR; `None` before there is a record.
    pub fn pcr(&self) -> Option<u32> {
        self.banks.values().find_map(|bank| bank.pcr)
    }

    /// Takes over what the TPM has in one PCR of one bank.
    pub fn set_tpm(&mut self, bank: &str, pcr: u32, value: String) {
        let Some(bank) = self.banks.get_mut(bank) else { return };
        if bank.pcr.unwrap_or(IMA_PCR) == pcr {
            bank.tpm = Some(value.clone());
        }
        if let Some(status) = bank.pcrs.iter_mut().find(|status| status.pcr == pcr) {
            status.tpm = Some(value);
        }
    }
}

/// `POST /v1/quote`: ask for a quote over the list's PCRs, and others, of these banks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct QuoteRequest {
    /// The verifier's nonce: hex, 1 to 64 bytes.
    pub nonce: String,
    /// Banks to quote; empty for the TPM's own choice (sha256, or sha1).
    #[serde(default)]
    pub banks: Vec<String>,
    /// PCRs to quote besides those that the list extends, 0 to 23.
    #[serde(default)]
    pub pcrs: Vec<u32>,
}

/// The answer: the quote, and how many records are stored now, which are all that it covers and
/// perhaps more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QuoteReply {
    /// The epoch's number in the state directory.
    pub epoch: u64,
    /// Records stored after the quote was made.
    pub records: u64,
    /// TPMS_ATTEST, hex.
    pub message: String,
    /// TPMT_SIGNATURE, hex.
    pub signature: String,
    /// The attestation key's public half, PEM. A verifier trusts its own copy, not this one.
    pub key: String,
    /// The values of the quoted PCRs, bank by bank, ascending: the same before the quote and after
    /// it. A PCR that changed each time it was tried is missing. A verifier does not trust them: the
    /// quote has a digest of those that it covers.
    #[serde(default)]
    pub pcrs: Vec<PcrValue>,
}

/// The value of a PCR in a bank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PcrValue {
    /// The bank.
    pub bank: String,
    /// The PCR's number.
    pub pcr: u32,
    /// Its value, hex.
    pub value: String,
}

/// The form of the records in an answer to `GET /v1/records`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// As the kernel's binary file of a bank.
    #[default]
    Binary,
    /// As the kernel's ASCII file of a bank.
    Ascii,
    /// JSON lines (`docs/records-json.md`).
    Jsonl,
    /// A TCG Canonical Event Log in JSON.
    Cel,
}

impl Form {
    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Form::Binary => "application/octet-stream",
            Form::Ascii => "text/plain",
            Form::Jsonl => "application/x-ndjson",
            Form::Cel => "application/json",
        }
    }
}

/// The header of `GET /v1/records` that tells the number of the epoch.
pub const EPOCH_HEADER: &str = "imastage-epoch";
/// The header that tells the index of the answer's first record.
pub const FROM_HEADER: &str = "imastage-from";
/// The header that tells the index after the answer's last record: where the next answer begins.
pub const TO_HEADER: &str = "imastage-to";

/// `GET /v1/pcrs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pcrs {
    /// The epoch's number in the state directory.
    pub epoch: u64,
    /// After how many records.
    pub records: u64,
    /// PCR 10 of each bank that is kept, as these records replay.
    pub pcrs: Vec<Pcr>,
}

/// PCR 10 of one bank, as records replay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pcr {
    /// The bank.
    pub bank: String,
    /// What it is taken to be extended with: `own`, `sha1-padded` or `sha1-padded-violations`.
    #[serde(with = "extend_name")]
    pub extended_with: Extend,
    /// Its value, hex.
    pub value: String,
}

/// Any refusal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// Why, in words.
    pub error: String,
}

/// The way a bank is extended, by its name.
mod extend_name {
    use ima_log::Extend;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        extend: &Extend,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(extend.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Extend, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }

    /// The same, or `null`.
    pub(super) mod option {
        use serde::Serialize;

        use super::{Deserialize, Deserializer, Error, Extend, Serializer};

        pub(in super::super) fn serialize<S: Serializer>(
            extend: &Option<Extend>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            extend.map(Extend::name).serialize(serializer)
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<Extend>, D::Error> {
            let name = Option::<String>::deserialize(deserializer)?;
            name.map(|name| name.parse().map_err(D::Error::custom)).transpose()
        }
    }
}
