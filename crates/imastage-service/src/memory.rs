//! What one service tells the next: how far store and TPM agreed.
//!
//! A hint. It is not synced: what it says was true once, and if it is lost the service only knows
//! less about where records are missing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Kept in a file of the state directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The epoch it is about.
    pub epoch: u64,
    /// How many records led to the TPM's PCR when that was last compared.
    pub in_step: u64,
}

const FILE: &str = "compared.json";

/// A few words and numbers.
const LONGEST: u64 = 4096;

impl Memory {
    /// What is remembered about an epoch that has `records` records.
    pub fn load(state: &Path, epoch: u64, records: u64) -> Option<Memory> {
        let file = fs::File::open(state.join(FILE)).ok()?;
        let memory: Memory = serde_json::from_reader(io::Read::take(file, LONGEST)).ok()?;
        (memory.epoch == epoch && memory.in_step <= records).then_some(memory)
    }

    /// Remembers this. Whoever reads meanwhile reads this or what was there.
    ///
    /// # Errors
    /// [`io::Error`]; what was there is there still.
    pub fn save(&self, state: &Path) -> io::Result<()> {
        let path: PathBuf = state.join(FILE);
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(&new, &path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_true_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Memory::load(dir.path(), 1, 10), None);
        let memory = Memory { epoch: 1, in_step: 7 };
        memory.save(dir.path()).unwrap();
        assert_eq!(Memory::load(dir.path(), 1, 10), Some(memory));
        assert_eq!(Memory::load(dir.path(), 2, 10), None);
        // More than is stored: the store was cut since.
        assert_eq!(Memory::load(dir.path(), 1, 6), None);
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(Memory::load(dir.path(), 1, 10), None);
    }
}
