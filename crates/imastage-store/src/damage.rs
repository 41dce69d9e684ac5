//! What is wrong with a store, and what can be done about it.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

/// Something that is not as it was stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {what}", place(.path, .offset, .records, .remedy))]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Where in it, in bytes.
    pub offset: u64,
    /// The records it is in: one, or those of a commit; none if it is in no record.
    pub records: Range<u64>,
    /// What is wrong: what was expected, what was found.
    pub what: String,
    /// What can be done.
    pub remedy: Remedy,
}

/// What can be done about damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Remedy {
    /// No stored record is in it: [`crate::repair`] puts it aside.
    #[error("`imastage store repair` puts it aside; no stored record is in it")]
    PutAside,
    /// The store did not make it: [`crate::repair`] leaves it alone.
    #[error(
        "it is not the store's: move it out of the state directory, and find out who put it there"
    )]
    MoveAway,
    /// All else proves what it was: [`crate::repair`] makes it again.
    #[error("`imastage store repair` makes it again from what is whole")]
    Rebuild,
    /// It is nowhere else in the store.
    #[error(
        "restore the file from a backup; without one, what follows the last whole record cannot be \
         verified before the next TPM reset"
    )]
    Restore,
}

impl Remedy {
    /// Whether [`crate::repair`] does it.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Remedy::PutAside | Remedy::Rebuild)
    }
}

fn place(path: &Path, offset: &u64, records: &Range<u64>, remedy: &Remedy) -> String {
    if *remedy == Remedy::MoveAway {
        // Not a place in records.
        return path.display().to_string();
    }
    let records = match records.end.saturating_sub(records.start) {
        0 => format!("before record {}", records.end),
        1 => format!("record {}", records.start),
        _ => format!("between record {} and record {}", records.start, records.end - 1),
    };
    format!("{records} ({} at byte {offset})", path.display())
}
