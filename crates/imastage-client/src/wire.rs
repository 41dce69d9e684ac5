//! The JSON types of the API, which are stable. Bytes are in hex.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use ima_log::{Extend, IMA_PCR};
use serde::{Deserialize, Serialize};

use crate::health::{Health, State};

/// The API's socket in the state directory.
pub const SOCKET: &str = "api.sock";

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The conditions, the most severe first.
    #[serde(default)]
    pub health: Health,
    /// Whether TPM and store agree.
    pub verdict: Verdict,
    /// The problems and their remedies as text; empty if there are none.
    pub problems: Vec<String>,
    /// The service's process ID; `None` if none runs and the state directory was read.
    pub pid: Option<u32>,
    /// The epoch's number in the state directory.
    pub epoch: u64,
    /// The number of stored records: the index of the next one.
    pub records: u64,
    /// Their size in bytes in the sha1 form.
    pub bytes: u64,
    /// The PCRs by bank: all banks of the TPM, or without one, of the store.
    pub banks: BTreeMap<String, BankStatus>,
    /// Since the service was started.
    pub since_start: Activity,
}

/// The progress of the check of stored records since the service started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checking {
    /// The number of records read.
    pub read: u64,
    /// The number of records stored when the service started.
    pub of: u64,
}

/// The service's activity since it started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Activity {
    /// The list.
    pub source: String,
    /// Its dialect: `7.2`, `v4`, `trim`, or `follow` if no record is deleted.
    pub dialect: String,
    /// The check of records stored before the service started, while it runs. Until it is complete,
    /// the verdict is `unchecked`.
    #[serde(default)]
    pub checking: Option<Checking>,
    /// The number of drains that found records.
    pub drains: u64,
    /// The number of records stored.
    pub stored: u64,
    /// The number of records in the list that were already stored.
    pub already_stored: u64,
    /// The number of records deleted from the list.
    pub deleted: u64,
    /// The number of bytes deleted from the list (sha1 form).
    pub deleted_bytes: u64,
    /// The time for which drains held the list's files, p50, in microseconds.
    pub hold_p50_us: u64,
    /// The same, p99.
    pub hold_p99_us: u64,
    /// The same, maximum.
    pub longest_hold_us: u64,
    /// The number of drains during which another process used the list.
    pub busy: u64,
    /// The processes at the last such drain; empty after a successful one.
    pub holders: Vec<Holder>,
    /// The reason that the last drain failed or did not delete what it stored; `None` if it did.
    pub last_error: Option<String>,
    /// The resulting condition.
    #[serde(default)]
    pub last_error_state: Option<State>,
    /// The reason that the PCRs could not be read at the last drain; `None` if they were, or
    /// without a TPM.
    pub tpm_error: Option<String>,
    /// The reason that the view cannot be read; `None` if it can, or without a view.
    #[serde(default)]
    pub view_error: Option<String>,
    /// The time of the last drain, or of storing records without deletion, in seconds since 1970.
    #[serde(default)]
    pub drained: Option<u64>,
    /// The time of the last comparison of store and TPM, in seconds since 1970.
    #[serde(default)]
    pub compared: Option<u64>,
}

/// A process that has one of the list's files open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process ID.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Its descriptor.
    pub fd: u32,
    /// The file.
    pub path: PathBuf,
}

/// Whether TPM and store agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Verdict {
    /// There is no TPM, or nothing was compared yet.
    #[default]
    Unchecked,
    /// The first `records` stored records replay to the TPM's PCR.
    Consistent {
        /// The number of records.
        records: u64,
    },
    /// The first `records` stored records replay to an earlier value of the TPM's PCR. It was
    /// extended since, and the corresponding records cannot be stored at the moment.
    Lagging {
        /// The number of records.
        records: u64,
        /// The number of records in the list.
        waiting: u64,
    },
    /// The records do not replay to the TPM's PCR.
    Diverged(Divergence),
    /// The list's record with this index was altered: its digest does not match its data. Neither
    /// it nor a later record is stored or deleted.
    Altered {
        /// The index.
        index: u64,
        /// The defect.
        why: String,
    },
    /// The store is damaged or cannot be read: no conclusions are drawn from it.
    Damaged {
        /// The first damage found.
        why: String,
    },
    /// The PCR is zero in every bank although there are records: the kernel does not extend this
    /// TPM. No record is proven, and none is deleted.
    NotExtended {
        /// The finding and its remedy.
        why: String,
    },
}

impl Verdict {
    /// All names.
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

/// The place at which store and TPM diverged. No later PCR value of the epoch is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// The last index before the place; `None` if it is before the first record.
    pub after: Option<u64>,
    /// The first index after the place.
    pub before: u64,
    /// The cause, as far as it is known.
    pub cause: Cause,
    /// The time of detection, in seconds since 1970.
    pub time: u64,
    /// The cause as text, with possible originators.
    pub text: String,
}

/// The cause of a divergence of store and TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Records are missing: another process deleted them.
    Missing,
    /// The PCR was extended without a record; or a record did not extend it, because the TPM
    /// failed.
    UnloggedExtend,
    /// One of these two; this kernel does not show which.
    MissingOrUnloggedExtend,
    /// Records are missing: kexec did not pass them to the next kernel.
    LostAtKexec,
}

impl fmt::Display for Cause {
    /// As in JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// The PCRs of one bank. The members other than `pcrs` are of the list's own PCR.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BankStatus {
    /// The list's own PCR: the one that its first record names.
    #[serde(default)]
    pub pcr: Option<u32>,
    /// The value to which stored records replay.
    pub replayed: String,
    /// The TPM's current value; `None` without a service or a TPM.
    pub tpm: Option<String>,
    /// The way in which the kernel extends it: `own`, `sha1-padded` or `sha1-padded-violations`;
    /// `None` until that is known.
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
    /// The value to which stored records replay.
    pub replayed: String,
    /// The TPM's current value; `None` if it was not read: because others than the kernel extend
    /// it, or without a service or a TPM.
    pub tpm: Option<String>,
}

impl Status {
    /// The list's own PCR; `None` without a record.
    pub fn pcr(&self) -> Option<u32> {
        self.banks.values().find_map(|bank| bank.pcr)
    }

    /// Sets the TPM's value of one PCR of one bank.
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

/// `POST /v1/quote`: requests a quote over the list's PCRs, and others, of these banks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct QuoteRequest {
    /// The verifier's nonce: hex, 1 to 64 bytes.
    pub nonce: String,
    /// Banks to quote; empty for the default (sha256, or sha1 without it).
    #[serde(default)]
    pub banks: Vec<String>,
    /// PCRs to quote in addition to those that the list extends, 0 to 23.
    #[serde(default)]
    pub pcrs: Vec<u32>,
}

/// The answer: the quote, and the number of stored records, which include all that it covers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QuoteReply {
    /// The epoch's number in the state directory.
    pub epoch: u64,
    /// The number of records stored, determined after the quote.
    pub records: u64,
    /// TPMS_ATTEST, hex.
    pub message: String,
    /// TPMT_SIGNATURE, hex.
    pub signature: String,
    /// The attestation key's public part in PEM. A verifier trusts its own copy, not this one.
    pub key: String,
    /// The values of the quoted PCRs, bank by bank, ascending: equal before and after the quote. A
    /// PCR that changed at each attempt is missing. A verifier does not trust them: the quote
    /// contains their digest.
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

/// The header of `GET /v1/records` with the number of the epoch.
pub const EPOCH_HEADER: &str = "imastage-epoch";
/// The header with the index of the answer's first record.
pub const FROM_HEADER: &str = "imastage-from";
/// The header with the index after the answer's last record, from which the next request continues.
pub const TO_HEADER: &str = "imastage-to";

/// `GET /v1/pcrs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pcrs {
    /// The epoch's number in the state directory.
    pub epoch: u64,
    /// The number of records.
    pub records: u64,
    /// The value of the list's PCR to which these records replay, in each bank that is kept.
    pub pcrs: Vec<Pcr>,
}

/// The value of the list's PCR to which records replay, in one bank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pcr {
    /// The bank.
    pub bank: String,
    /// The assumed way in which it is extended: `own`, `sha1-padded` or `sha1-padded-violations`.
    #[serde(with = "extend_name")]
    pub extended_with: Extend,
    /// Its value, hex.
    pub value: String,
}

/// The answer to a refused request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// The reason as text.
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
