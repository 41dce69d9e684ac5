//! The options of a list, and the errors of its operations.

/// How a list behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// What becomes of records that are there already.
    pub duplicates: Duplicates,
    /// When requests are refused.
    pub rules: Rules,
}

/// When requests are refused. They differ where records are staged already, and where the machine
/// is going down. [`List::trim`](crate::List::trim) is the same in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rules {
    /// As in Linux 7.2: N leaves what is staged alone, and nothing is staged or deleted once the
    /// list is suspended.
    #[default]
    Linux72,
    /// As in version 4 of the staging patches: N stages, deletes and puts the rest back, so that it
    /// is refused while records are staged. Suspending refuses nothing; only what was staged when
    /// the list was dumped stays.
    V4,
}

/// What becomes of records that are there already: same digest, same PCR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Duplicates {
    /// They are refused, even when the first one was deleted (the kernel's default).
    #[default]
    Detect,
    /// They are refused, but deleting the staged records forgets all digests, those of current
    /// records too (boot parameter `ima_flush_htable`, with which the kernel deletes only what was
    /// staged).
    Flush,
    /// They are added (`CONFIG_IMA_DISABLE_HTABLE`).
    Off,
}

/// Why a record was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The list is suspended (in the kernel ENODEV).
    #[error("no record is added to a suspended list: the machine is going down")]
    Suspended,
    /// A record with this digest and PCR is or was in the list (in the kernel EEXIST).
    #[error("a record with this digest and PCR was added before")]
    Duplicate,
}

/// Why nothing was staged. The first that applies, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// Records are staged already (EEXIST).
    #[error("records are staged already; delete them first")]
    Pending,
    /// There are no current records (ENOENT).
    #[error("there are no records to stage")]
    Empty,
    /// The list is suspended (EACCES).
    #[error("nothing is staged from a suspended list: the machine is going down")]
    Suspended,
}

/// Why nothing was deleted. The first that applies, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeleteError {
    /// Records are staged, and N needs the staged part for itself: [`Rules::V4`] (EEXIST).
    #[error("records are staged; delete them before others")]
    Pending,
    /// No records are staged (ENOENT).
    #[error("no records are staged")]
    Empty,
    /// There are fewer current records than were to be deleted (ENOENT).
    #[error("{asked} records cannot be deleted where there are {found}")]
    TooMany {
        /// How many were to be deleted.
        asked: u64,
        /// How many there are.
        found: u64,
    },
    /// The list is suspended: [`Rules::Linux72`] (ESTALE). Its records may come back in the next
    /// kernel.
    #[error("nothing is deleted from a suspended list: the machine is going down")]
    Suspended,
    /// What is staged was dumped: [`Rules::V4`] (ESTALE). It comes back in the next kernel, unless
    /// that was handed less than all.
    #[error("the next kernel was handed the staged records already; they are not deleted")]
    Dumped,
}

/// Why nothing was trimmed. The first that applies, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrimError {
    /// The list forgets digests when records are deleted, which is for staged ones only: see
    /// [`Duplicates::Flush`] (EINVAL).
    #[error("a list that forgets digests deletes only what was staged")]
    Flush,
    /// Others trimmed, or T was never right (ESTALE).
    #[error("{found} records were trimmed so far, not {expected}: read again what is left")]
    WrongTotal {
        /// T, as it was expected.
        expected: u64,
        /// T, as it is.
        found: u64,
    },
    /// There are fewer current records than were to be trimmed (ENOENT).
    #[error("{asked} records cannot be trimmed where there are {found}")]
    TooMany {
        /// How many were to be trimmed.
        asked: u64,
        /// How many there are.
        found: u64,
    },
    /// The list is suspended (ESTALE): its records may come back in the next kernel.
    #[error("nothing is trimmed from a suspended list: the machine is going down")]
    Suspended,
}
