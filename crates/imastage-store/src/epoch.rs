//! What identifies an epoch, and its file `epoch.json`.

use ima_log::{Bank, Extend, Replay};
use serde::{Deserialize, Serialize};

/// Identifies an epoch: the PCRs of one TPM since its last reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochId {
    /// The TPM: SHA-256 of a key that only this TPM can create, in hex. `None` without a TPM.
    pub tpm: Option<String>,
    /// Its reset counter.
    pub reset_count: Option<u32>,
    /// The boot of a kernel (or a sandbox) that started it. Significant only without a TPM: a kexec
    /// does not end an epoch.
    pub boot_id: String,
}

/// An epoch of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// Its number in the store, from 1 on.
    pub number: u64,
    /// Its identity.
    pub id: EpochId,
    /// The banks whose running PCR the store keeps.
    pub banks: Vec<Bank>,
    /// The banks whose PCR it also keeps as extended by kernels without the bank's hash: with the
    /// SHA-1 template digest padded with zeros.
    pub padded: Vec<Bank>,
    /// Its start, in seconds since 1970.
    pub created: u64,
}

#[derive(Serialize, Deserialize)]
struct EpochFile {
    number: u64,
    #[serde(flatten)]
    id: EpochId,
    created: u64,
    banks: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    padded: Vec<String>,
}

impl EpochId {
    /// Whether records of `other` belong to this epoch.
    pub fn is_same(&self, other: &EpochId) -> bool {
        match (&self.tpm, &other.tpm) {
            (Some(_), Some(_)) => self.tpm == other.tpm && self.reset_count == other.reset_count,
            (None, None) => self.boot_id == other.boot_id,
            _ => false,
        }
    }
}

impl Epoch {
    /// The file `epoch.json`.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut json = serde_json::to_vec_pretty(&EpochFile {
            number: self.number,
            id: self.id.clone(),
            created: self.created,
            banks: self.banks.iter().map(ToString::to_string).collect(),
            padded: self.padded.iter().map(ToString::to_string).collect(),
        })?;
        json.push(b'\n');
        Ok(json)
    }

    /// `Err` is the reason as text.
    pub(crate) fn decode(json: &[u8]) -> Result<Epoch, String> {
        let file: EpochFile = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let (banks, padded) = (parse(&file.banks)?, parse(&file.padded)?);
        Ok(Epoch { number: file.number, id: file.id, banks, padded, created: file.created })
    }

    /// The values of the list's PCR after a TPM reset: each one that is kept, in the order of the
    /// commits.
    pub(crate) fn reset(&self) -> Vec<Replay> {
        let own = self.banks.iter().map(|bank| Replay::new(*bank, Extend::Own));
        let padded = self.padded.iter().map(|bank| Replay::new(*bank, Extend::Sha1Padded));
        own.chain(padded).collect()
    }
}

fn parse(names: &[String]) -> Result<Vec<Bank>, String> {
    let mut banks: Vec<Bank> = Vec::new();
    for name in names {
        banks.push(name.parse().map_err(|error| format!("{name}: {error}"))?);
    }
    if !banks.is_sorted_by(|a, b| a < b) {
        return Err("the banks are not in order".to_owned());
    }
    Ok(banks)
}
