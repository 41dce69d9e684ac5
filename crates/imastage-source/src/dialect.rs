//! How records leave a list.

use std::fmt;

/// How a kernel lets go of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Linux 7.2: A and D on the staged files, N on the original ones.
    Linux72,
    /// The patches of version 4: A, D and N on the staged files, the original ones read-only.
    V4,
    /// T:N on `ima_trim_log`.
    Trim,
    /// Not at all: the list is followed, and nothing is freed.
    Follow,
}

/// How to delete records from a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteMode {
    /// Stage all (`A`), delete what was staged (`D`).
    Stage,
    /// Delete the first N of the current list.
    FirstN,
    /// Not at all: the list is followed, whatever its kernel could do.
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
