//! What one service tells the next: how far store and TPM agreed.
//!
//! A hint. It is not synced: what it says was true once, and if it is lost the service only knows
//! less about where records are missing.

use std::{io, path::Path};

use ima_log::ListReplay;
use imastage_store::{COMPARED, SideFile};
use serde::{Deserialize, Serialize};

use crate::drain::{anchor::Anchor, banks::RECENT};

/// Kept in a file of the state directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCompared {
    /// The epoch it is about.
    pub epoch: u64,
    /// How many records led to the TPM's PCR when that was last compared. Its name in the file is older
    /// than the verdict's.
    #[serde(rename = "in_step")]
    pub consistent: u64,
    /// Where to resume the replay of what is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<Anchor>,
    /// The next anchor: proven as soon as the TPM agrees with as many records.
    #[serde(skip)]
    pub next: Option<Anchor>,
}

/// At most five banks, a few ways each, and the PCRs that records name.
const LONGEST: usize = 256 << 10;

impl LastCompared {
    /// What is remembered about an epoch that has `records` records.
    pub fn load(state: &Path, epoch: u64, records: u64) -> Option<LastCompared> {
        let bytes = SideFile::new(state, COMPARED).read(LONGEST).ok()??;
        let memory: LastCompared = serde_json::from_slice(&bytes).ok()?;
        (memory.epoch == epoch && memory.consistent <= records).then_some(memory)
    }

    /// Takes the end of a drain in which the TPM agreed with `consistent` records. Anchors are at least
    /// `distance` records apart: each is hashed and written.
    pub fn advance(&mut self, replay: &ListReplay, consistent: u64, distance: u64) {
        let is_proven = |next: &Anchor| {
            next.records <= consistent && next.records + RECENT as u64 <= replay.records()
        };
        if self.next.as_ref().is_some_and(is_proven) {
            self.anchor = self.next.take();
        }
        let last = self.anchor.as_ref().map_or(0, |anchor| anchor.records);
        if self.next.is_none() && replay.records() >= last + distance {
            self.next = Anchor::of(replay);
        }
    }

    /// Remembers this, for the owner only. A concurrent reader reads the old or the new content.
    ///
    /// # Errors
    /// [`io::Error`]; what was there is there still.
    pub fn save(&self, state: &Path) -> io::Result<()> {
        let json = serde_json::to_vec(self)?;
        SideFile::new(state, COMPARED).replace(&json).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn only_what_can_be_true_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(LastCompared::load(dir.path(), 1, 10), None);
        let memory = LastCompared { epoch: 1, consistent: 7, ..LastCompared::default() };
        memory.save(dir.path()).unwrap();
        assert_eq!(LastCompared::load(dir.path(), 1, 10), Some(memory.clone()));
        assert_eq!(LastCompared::load(dir.path(), 2, 10), None);
        // More than is stored: the store was cut since.
        assert_eq!(LastCompared::load(dir.path(), 1, 6), None);
        fs::write(dir.path().join(COMPARED), "{").unwrap();
        assert_eq!(LastCompared::load(dir.path(), 1, 10), None);
    }

    #[test]
    fn finding_13_it_is_for_the_owner_only_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join(COMPARED), dir.path().join("victim"));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join("compared.new")).unwrap();
        fs::write(&path, "{}").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let memory = LastCompared { epoch: 1, consistent: 7, ..LastCompared::default() };
        memory.save(dir.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert_eq!(LastCompared::load(dir.path(), 1, 10), None);
        memory.save(dir.path()).unwrap();
        assert_eq!(LastCompared::load(dir.path(), 1, 10), Some(memory));
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }
}
