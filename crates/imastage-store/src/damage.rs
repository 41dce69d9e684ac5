//! Damage of a store, and its remedies.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

/// Damage of a store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {what}", place(.path, .offset, .records, .remedy))]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// The offset in bytes.
    pub offset: u64,
    /// The affected records: one, or those of a commit; empty if no record is affected.
    pub records: Range<u64>,
    /// The damage as text: expected and found.
    pub what: String,
    /// The remedy.
    pub remedy: Remedy,
}

/// A remedy for damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Remedy {
    /// It contains no stored record: [`crate::repair`] sets it aside.
    #[error("`imastage store repair` puts it aside; no stored record is in it")]
    PutAside,
    /// It does not belong to the store: [`crate::repair`] leaves it unchanged.
    #[error(
        "it is not the store's: move it out of the state directory, and find out who put it there"
    )]
    MoveAway,
    /// Other data proves its content: [`crate::repair`] rebuilds it.
    #[error("`imastage store repair` makes it again from what is whole")]
    Rebuild,
    /// The store has no other copy.
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
