//! The options of a list, and the errors of its operations.

/// How a list behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The treatment of duplicate records.
    pub duplicates: Duplicates,
    /// The conditions under which requests are refused.
    pub rules: Rules,
}

/// The conditions under which requests are refused. They differ while records are staged and while
/// the machine is going down. [`List::trim`](crate::List::trim) is the same in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rules {
    /// As in Linux 7.2: N does not affect staged records, and a suspended list refuses to stage or
    /// delete.
    #[default]
    Linux72,
    /// As in version 4 of the staging patches: N stages, deletes and splices the rest back, so it
    /// is refused while records are staged. A suspended list still stages and deletes; only records
    /// that were staged when the list was dumped cannot be deleted.
    V4,
}

/// The treatment of duplicate records: same digest, same PCR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Duplicates {
    /// Duplicates are refused, even if the first record was deleted (the kernel's default).
    #[default]
    Detect,
    /// Duplicates are refused, but deleting the staged records flushes all digests, including those
    /// of current records (boot parameter `ima_flush_htable`; the kernel then deletes only staged
    /// records).
    Flush,
    /// Duplicates are added (`CONFIG_IMA_DISABLE_HTABLE`).
    Off,
}

/// The reason a record was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The list is suspended (in the kernel ENODEV).
    #[error("record not appended: the list is suspended, the machine is going down")]
    Suspended,
    /// A record with this digest and PCR is or was in the list (in the kernel EEXIST).
    #[error("record not appended: a record with this digest and PCR was appended before")]
    Duplicate,
}

/// The reason nothing was staged. The first variant that applies is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// Records are already staged (EEXIST).
    #[error("staging refused: records are already staged; delete them first")]
    Pending,
    /// There are no current records (ENOENT).
    #[error("staging refused: the list has no current records")]
    Empty,
    /// The list is suspended (EACCES).
    #[error("staging refused: the list is suspended, the machine is going down")]
    Suspended,
}

/// The reason nothing was deleted. The first variant that applies is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeleteError {
    /// Records are staged, and N itself uses the staged part: [`Rules::V4`] (EEXIST).
    #[error("deletion refused: records are staged; delete the staged records first")]
    Pending,
    /// No records are staged (ENOENT).
    #[error("deletion refused: no records are staged")]
    Empty,
    /// The list has fewer current records than requested (ENOENT).
    #[error("deletion of {asked} records refused: the list has {found}")]
    TooMany {
        /// Records requested.
        asked: u64,
        /// Current records.
        found: u64,
    },
    /// The list is suspended: [`Rules::Linux72`] (ESTALE). The next kernel may restore its records.
    #[error("deletion refused: the list is suspended, the machine is going down")]
    Suspended,
    /// The staged records were dumped: [`Rules::V4`] (ESTALE). The next kernel restores them,
    /// unless the dump was truncated.
    #[error("deletion refused: the staged records were already dumped for the next kernel")]
    Dumped,
}

/// The reason nothing was trimmed. The first variant that applies is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrimError {
    /// The list flushes digests on deletion and therefore deletes only staged records: see
    /// [`Duplicates::Flush`] (EINVAL).
    #[error("trim refused: a list that flushes digests deletes only staged records")]
    Flush,
    /// Another client trimmed the list, or T was never correct (ESTALE).
    #[error(
        "trim refused: {found} records were trimmed before, not {expected}; read the list again"
    )]
    WrongTotal {
        /// The expected T.
        expected: u64,
        /// The actual T.
        found: u64,
    },
    /// The list has fewer current records than requested (ENOENT).
    #[error("trim of {asked} records refused: the list has {found}")]
    TooMany {
        /// Records requested.
        asked: u64,
        /// Current records.
        found: u64,
    },
    /// The list is suspended (ESTALE). The next kernel may restore its records.
    #[error("trim refused: the list is suspended, the machine is going down")]
    Suspended,
}
