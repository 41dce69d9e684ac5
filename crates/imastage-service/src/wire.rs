//! What the API says: JSON, stable, hex for bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
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
    /// PCR 10 as stored records replay, by bank.
    pub replayed: BTreeMap<String, String>,
    /// PCR 10 as the TPM has it, by bank; empty if no service runs.
    pub tpm: BTreeMap<String, String>,
    /// Since the service was started.
    pub since_start: Activity,
}

/// What the service did since it was started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Activity {
    /// The list that is drained.
    pub source: String,
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
    /// The longest time the list's files were held by one drain, in microseconds.
    pub longest_hold_us: u64,
    /// Why the last drain failed; `None` if it did not.
    pub last_error: Option<String>,
}

/// Whether TPM and store agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Verdict {
    /// There is no TPM to compare with, or nothing was compared yet.
    Unchecked,
    /// The first `records` stored records replay to the TPM's PCR.
    InStep {
        /// How many records.
        records: u64,
    },
    /// The TPM's PCR is not reached: between index `after` and index `before` records are missing,
    /// or the PCR was extended without a record.
    Parted {
        /// The last index before the place; `None` if it is before the first record.
        after: Option<u64>,
        /// The first index behind the place.
        before: u64,
    },
}

/// `POST /v1/quote`: ask for a quote over PCR 10 of these banks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QuoteRequest {
    /// The verifier's nonce: hex, 1 to 64 bytes.
    pub nonce: String,
    /// Banks to quote; empty for the TPM's own choice (sha256, or sha1).
    #[serde(default)]
    pub banks: Vec<String>,
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
}

/// Any refusal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// Why, in words.
    pub error: String,
}
