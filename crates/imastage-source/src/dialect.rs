//! The dialects of the interface as a client uses them, and the delete modes.

use std::fmt;

/// The way a kernel deletes records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Linux 7.2: A and D on the staged files, N on the original ones.
    Linux72,
    /// Version 4 of the staging patches: A, D and N on the staged files; the original files are
    /// read-only.
    V4,
    /// The trim patches: T:N on `ima_trim_log`.
    Trim,
    /// No deletion: the list is followed, and nothing is freed.
    Follow,
}

/// The way to delete records from a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteMode {
    /// Stage all records (`A`), then delete the staged records (`D`).
    Stage,
    /// Delete the first N records of the current list.
    FirstN,
    /// No deletion: the list is followed, even if its kernel can delete.
    None,
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dialect::Linux72 => "7.2",
            Dialect::V4 => "v4",
            Dialect::Trim => "trim",
            Dialect::Follow => "follow",
        })
    }
}

impl fmt::Display for DeleteMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeleteMode::Stage => "stage",
            DeleteMode::FirstN => "first-n",
            DeleteMode::None => "none",
        })
    }
}
