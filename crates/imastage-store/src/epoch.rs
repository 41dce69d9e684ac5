use std::path::Path;

use ima_log::Bank;
use serde::{Deserialize, Serialize};

use crate::{
    StoreError,
    files::{At, replace},
};

/// What tells an epoch from others: the PCRs of one TPM since its last reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochId {
    /// The TPM: SHA-256 of its attestation key, hex. `None` without a TPM.
    pub tpm: Option<String>,
    /// Its reset counter.
    pub reset_count: Option<u32>,
    /// Which boot of which kernel (or which sandbox) began it. Decides only without a TPM: a kexec
    /// does not end an epoch.
    pub boot_id: String,
}

/// An epoch of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// Its place among the store's epochs, from 1 on.
    pub number: u64,
    /// What tells it from others.
    pub id: EpochId,
    /// The banks whose running PCR the store keeps.
    pub banks: Vec<Bank>,
}

#[derive(Serialize, Deserialize)]
struct EpochFile {
    number: u64,
    #[serde(flatten)]
    id: EpochId,
    created: u64,
    banks: Vec<String>,
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
    pub(crate) fn write(&self, dir: &Path) -> Result<(), StoreError> {
        let path = dir.join("epoch.json");
        let created = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let file = EpochFile {
            number: self.number,
            id: self.id.clone(),
            created,
            banks: self.banks.iter().map(ToString::to_string).collect(),
        };
        let mut json =
            serde_json::to_vec_pretty(&file).map_err(std::io::Error::from).at(&path, "write")?;
        json.push(b'\n');
        replace(&path, &json)
    }

    pub(crate) fn read(dir: &Path) -> Result<Epoch, StoreError> {
        let path = dir.join("epoch.json");
        let json = std::fs::read(&path).at(&path, "read")?;
        let not_a_store = |why: String| StoreError::NotAStore { path: path.clone(), why };
        let file: EpochFile =
            serde_json::from_slice(&json).map_err(|error| not_a_store(error.to_string()))?;
        let mut banks = Vec::new();
        for name in &file.banks {
            let bank = name.parse().map_err(|error| not_a_store(format!("{name}: {error}")))?;
            banks.push(bank);
        }
        if !banks.is_sorted_by(|a, b| a < b) {
            return Err(not_a_store("the banks are not in order".to_owned()));
        }
        Ok(Epoch { number: file.number, id: file.id, banks })
    }
}
