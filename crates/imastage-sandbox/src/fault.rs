//! Deliberate faults: each breaks one rule of the interface, to test conformance tests.
//!
//! The `faults` module implements them.

use std::{fmt, str::FromStr};

use ima_securityfs::Dialect;

macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// One rule of the interface that a sandbox breaks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Fault {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Fault {
            /// All faults.
            pub const ALL: &[Fault] = &[$(Fault::$variant),+];

            /// The name on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Fault::$variant => $name,)+
                }
            }
        }
    };
}

faults! {
    /// The mode of writable files is read-only.
    ModeReadOnly = "mode-read-only",
    /// The mode permits everybody to read.
    ModeForAll = "mode-for-all",
    /// Files have a size.
    SizeTold = "size-told",
    /// The link for staged records points to the current ones.
    LinkToCurrent = "link-to-current",
    /// A writer may open while there are readers.
    ReaderLetsWriterIn = "reader-lets-writer-in",
    /// A reader may open while there is a writer.
    WriterLetsReaderIn = "writer-lets-reader-in",
    /// The writing thread may open a file read-only.
    OwnReaderLetIn = "own-reader-let-in",
    /// A second writer may open.
    SecondWriterLetIn = "second-writer-let-in",
    /// The writing thread may not open another file for writing.
    OwnWriterRefused = "own-writer-refused",
    /// Staged files are excluded from the lock.
    StagedNotLocked = "staged-not-locked",
    /// ASCII files are excluded from the lock.
    AsciiNotLocked = "ascii-not-locked",
    /// Only one reader may open.
    OneReader = "one-reader",
    /// The count cannot be opened while there is a writer.
    CountLocked = "count-locked",
    /// The lock of a writer is never released.
    LockStuck = "lock-stuck",
    /// The first close of a writer's file releases the lock.
    LockFreedEarly = "lock-freed-early",
    /// A caller without the capability gets EBUSY while there is a writer.
    BusyBeforePermission = "busy-before-permission",
    /// The capability is not required.
    CapabilityIgnored = "capability-ignored",
    /// The capability is required to read.
    CapabilityToRead = "capability-to-read",
    /// The capability is checked for every request.
    CapabilityToAsk = "capability-to-ask",
    /// `+5` is not a number.
    PlusRefused = "plus-refused",
    /// `a` and `d` are requests.
    LowerCaseTaken = "lower-case-taken",
    /// A request needs no newline.
    NoNewlineTaken = "no-newline-taken",
    /// Blanks before a number are skipped.
    BlanksSkipped = "blanks-skipped",
    /// `0x5` is a number.
    HexTaken = "hex-taken",
    /// Deleting 0 records succeeds.
    ZeroTaken = "zero-taken",
    /// A number beyond 64 bits is EINVAL.
    RangeInvalid = "range-invalid",
    /// A write may be longer than 21 bytes.
    LongTaken = "long-taken",
    /// A write with a NUL is refused.
    NulRefused = "nul-refused",
    /// Staged files accept N.
    StagedTakesN = "staged-takes-n",
    /// Current files accept A and D.
    CurrentTakesStage = "current-takes-stage",
    /// Only binary files accept requests.
    BinaryRequestsOnly = "binary-requests-only",
    /// A granted request returns 1 byte written.
    ShortWrite = "short-write",
    /// Staging an empty list succeeds.
    StageNothing = "stage-nothing",
    /// Staging again succeeds.
    StageTwice = "stage-twice",
    /// Staging again fails with EBUSY.
    StageTwiceBusy = "stage-twice-busy",
    /// Staging loses the first record.
    StageLosesOne = "stage-loses-one",
    /// D without staged records succeeds.
    DeleteNothing = "delete-nothing",
    /// D also deletes the current records.
    DeleteTakesCurrent = "delete-takes-current",
    /// D succeeds and deletes nothing.
    DeleteForgotten = "delete-forgotten",
    /// N beyond the length deletes all current records.
    TooManyClamped = "too-many-clamped",
    /// N beyond the length is refused and deletes all current records.
    TooManyDeleted = "too-many-deleted",
    /// N deletes one record more.
    OneMore = "one-more",
    /// N deletes one record fewer.
    OneFewer = "one-fewer",
    /// N fails with EEXIST while records are staged.
    NoNWhileStaged = "no-n-while-staged",
    /// N also deletes the staged records.
    NTakesStaged = "n-takes-staged",
    /// Staged files show current records.
    StagedShowsCurrent = "staged-shows-current",
    /// ASCII files show binary records.
    FormsMixed = "forms-mixed",
    /// A request rewinds its descriptor.
    RequestRewinds = "request-rewinds",
    /// A descriptor that reached the end stays there.
    EndForEver = "end-for-ever",
    /// A read can return part of a record.
    RecordsCut = "records-cut",
    /// The count includes staged records.
    CountWithStaged = "count-with-staged",
    /// The count never decreases.
    CountNeverFalls = "count-never-falls",
    /// A stage counts as a violation.
    StageIsViolation = "stage-is-violation",
    /// Files can be removed.
    UnlinkTaken = "unlink-taken",
    /// chmod has no effect.
    ModeKept = "mode-kept",
    /// chgrp has no effect.
    GroupKept = "group-kept",
    /// fsync succeeds.
    SyncTaken = "sync-taken",
    /// A writer is identified by its process, not by its thread.
    ProcessWrites = "process-writes",
    /// The close of the first duplicate of a descriptor releases the lock.
    CopyFrees = "copy-frees",
    /// A close by a thread other than the writer does not release the lock.
    OtherCloses = "other-closes",
    /// A read renders a page of records, whatever its size.
    ReadsAhead = "reads-ahead",
    /// Duplicates are added.
    DuplicatesTaken = "duplicates-taken",
    /// Deletion flushes the digests.
    DigestsForgotten = "digests-forgotten",
    /// N is accepted if deletion flushes digests.
    FlushTakesN = "flush-takes-n",
    /// During shutdown, requests succeed without effect.
    DownGranted = "down-granted",
    /// During shutdown, A fails with ESTALE.
    DownStale = "down-stale",
    /// Shutdown takes precedence over missing records.
    DownFirst = "down-first",
    /// A violation is not counted.
    ViolationsLost = "violations-lost",
    /// Dialect v4: a request is accepted at any file position.
    PositionIgnored = "position-ignored",
    /// Dialect v4: a write moves the file position, so that a second write is refused.
    WriteMoves = "write-moves",
    /// Dialect v4: the original files accept N.
    OriginalTakesN = "original-takes-n",
    /// Dialect v4: the writing thread may open another file for writing.
    OwnWriterLetIn = "own-writer-let-in",
    /// Dialect v4: N fails with ENOENT while records are staged.
    PendingMissing = "pending-missing",
    /// Dialect v4: N beyond the length is refused and leaves the records staged.
    TooManyStaged = "too-many-staged",
    /// Dialect v4: D deletes records that were dumped for the next kernel.
    DumpedDeleted = "dumped-deleted",
    /// Dialect v4: all requests are refused during shutdown.
    DownRefuses = "down-refuses",
    /// Dialect trim: a wrong T fails with EINVAL.
    WrongTotalInvalid = "wrong-total-invalid",
    /// Dialect trim: any T is accepted.
    AnyTotalTaken = "any-total-taken",
    /// Dialect trim: an empty T is 0.
    EmptyTotalTaken = "empty-total-taken",
    /// Dialect trim: N is decimal.
    TrimDecimal = "trim-decimal",
    /// Dialect trim: a newline at the end is refused.
    TrimNewlineRefused = "trim-newline-refused",
    /// Dialect trim: the trim log always shows 0.
    TotalStuck = "total-stuck",
    /// Dialect trim: a reader of the trim log excludes writers.
    TrimLogLocks = "trim-log-locks",
    /// Dialect trim: the trim log can be read without the capability.
    TrimLogForAll = "trim-log-for-all",
    /// Dialect trim: a trim of 0 records is refused.
    TrimNothingRefused = "trim-nothing-refused",
    /// Dialect trim: missing records take precedence over a wrong T.
    MissingFirst = "missing-first",
    /// Dialect trim: a trim succeeds during shutdown.
    DownTrims = "down-trims",
    /// Dialect trim: the record of a trim shows the total after the trim.
    TrimToldLate = "trim-told-late",
    /// Dialect trim: the trim log accepts A.
    TrimLogStages = "trim-log-stages",
}

impl Fault {
    /// The dialect whose rule the fault breaks.
    pub const fn dialect(self) -> Dialect {
        match self {
            Fault::PositionIgnored
            | Fault::WriteMoves
            | Fault::OriginalTakesN
            | Fault::OwnWriterLetIn
            | Fault::PendingMissing
            | Fault::TooManyStaged
            | Fault::DumpedDeleted
            | Fault::DownRefuses => Dialect::V4,
            Fault::WrongTotalInvalid
            | Fault::AnyTotalTaken
            | Fault::EmptyTotalTaken
            | Fault::TrimDecimal
            | Fault::TrimNewlineRefused
            | Fault::TotalStuck
            | Fault::TrimLogLocks
            | Fault::TrimLogForAll
            | Fault::TrimNothingRefused
            | Fault::MissingFirst
            | Fault::TrimToldLate
            | Fault::DownTrims
            | Fault::TrimLogStages => Dialect::Trim,
            _ => Dialect::Linux72,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name is not that of a [`Fault`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown fault {0:?}")]
pub struct UnknownFault(String);

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Fault, UnknownFault> {
        let fault = Fault::ALL.iter().find(|fault| fault.name() == text);
        fault.copied().ok_or_else(|| UnknownFault(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_names_round_trip() {
        for fault in Fault::ALL {
            assert_eq!(fault.to_string().parse(), Ok(*fault));
        }
        assert_eq!("".parse::<Fault>(), Err(UnknownFault(String::new())));
    }
}
