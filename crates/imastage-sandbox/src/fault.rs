//! Deliberate faults: each breaks one rule of the interface, so that tests of it can be tested.
//!
//! What they do is in `faults`.

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
            /// All there are.
            pub const ALL: &[Fault] = &[$(Fault::$variant),+];

            /// Its name, as one writes it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Fault::$variant => $name,)+
                }
            }
        }
    };
}

faults! {
    /// Files that can be written to say that they cannot.
    ModeReadOnly = "mode-read-only",
    /// Everybody may read by the mode.
    ModeForAll = "mode-for-all",
    /// Files tell a size.
    SizeTold = "size-told",
    /// The link for staged records leads to the current ones.
    LinkToCurrent = "link-to-current",
    /// A writer is let in beside readers.
    ReaderLetsWriterIn = "reader-lets-writer-in",
    /// A reader is let in beside a writer.
    WriterLetsReaderIn = "writer-lets-reader-in",
    /// The thread that writes may open for reading only.
    OwnReaderLetIn = "own-reader-let-in",
    /// A second writer is let in.
    SecondWriterLetIn = "second-writer-let-in",
    /// The thread that writes may not open another file for writing.
    OwnWriterRefused = "own-writer-refused",
    /// Staged files are locked neither by others nor against them.
    StagedNotLocked = "staged-not-locked",
    /// ASCII files are locked neither by others nor against them.
    AsciiNotLocked = "ascii-not-locked",
    /// Only one reader is let in.
    OneReader = "one-reader",
    /// The count cannot be opened while somebody writes.
    CountLocked = "count-locked",
    /// The lock of a writer is never freed.
    LockStuck = "lock-stuck",
    /// The first of a writer's files that is closed frees all.
    LockFreedEarly = "lock-freed-early",
    /// Who lacks the capability and finds a writer is told EBUSY.
    BusyBeforePermission = "busy-before-permission",
    /// The capability is not asked for.
    CapabilityIgnored = "capability-ignored",
    /// The capability is asked for even of readers.
    CapabilityToRead = "capability-to-read",
    /// The capability is asked for with every request.
    CapabilityToAsk = "capability-to-ask",
    /// `+5` is no number.
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
    /// What follows a NUL counts.
    NulRefused = "nul-refused",
    /// N can be asked of staged files.
    StagedTakesN = "staged-takes-n",
    /// A and D can be asked of current files.
    CurrentTakesStage = "current-takes-stage",
    /// Requests can be made to binary files only.
    BinaryRequestsOnly = "binary-requests-only",
    /// A request that was granted says that one byte was written.
    ShortWrite = "short-write",
    /// Staging nothing succeeds.
    StageNothing = "stage-nothing",
    /// Staging again succeeds.
    StageTwice = "stage-twice",
    /// Staging again is EBUSY.
    StageTwiceBusy = "stage-twice-busy",
    /// Staging loses the first record.
    StageLosesOne = "stage-loses-one",
    /// Deleting nothing succeeds.
    DeleteNothing = "delete-nothing",
    /// D deletes the current records, too.
    DeleteTakesCurrent = "delete-takes-current",
    /// D succeeds and deletes nothing.
    DeleteForgotten = "delete-forgotten",
    /// N beyond the length deletes what there is.
    TooManyClamped = "too-many-clamped",
    /// N beyond the length is refused and deletes what there is.
    TooManyDeleted = "too-many-deleted",
    /// N deletes one record more.
    OneMore = "one-more",
    /// N deletes one record fewer.
    OneFewer = "one-fewer",
    /// N is EEXIST while records are staged.
    NoNWhileStaged = "no-n-while-staged",
    /// N deletes the staged records, too.
    NTakesStaged = "n-takes-staged",
    /// Staged files show current records.
    StagedShowsCurrent = "staged-shows-current",
    /// ASCII files show binary records.
    FormsMixed = "forms-mixed",
    /// A request makes its descriptor begin anew.
    RequestRewinds = "request-rewinds",
    /// A descriptor that came to the end stays there.
    EndForEver = "end-for-ever",
    /// One read gives part of a record.
    RecordsCut = "records-cut",
    /// The count includes staged records.
    CountWithStaged = "count-with-staged",
    /// The count never falls.
    CountNeverFalls = "count-never-falls",
    /// A stage counts as a violation.
    StageIsViolation = "stage-is-violation",
    /// Files can be removed.
    UnlinkTaken = "unlink-taken",
    /// Files keep the mode they have.
    ModeKept = "mode-kept",
    /// Files keep the group they have.
    GroupKept = "group-kept",
    /// There is nothing fsync would refuse.
    SyncTaken = "sync-taken",
    /// A writer is known by its process, not by its thread.
    ProcessWrites = "process-writes",
    /// The first copy of a descriptor that is closed frees all.
    CopyFrees = "copy-frees",
    /// What another thread than the writer's closes stays locked.
    OtherCloses = "other-closes",
    /// A read renders a page of records, however little is asked for.
    ReadsAhead = "reads-ahead",
    /// Records that are there already are added again.
    DuplicatesTaken = "duplicates-taken",
    /// What is deleted is forgotten.
    DigestsForgotten = "digests-forgotten",
    /// Where digests are flushed, N is taken.
    FlushTakesN = "flush-takes-n",
    /// A machine that goes down says yes and does nothing.
    DownGranted = "down-granted",
    /// A machine that goes down says ESTALE to A, too.
    DownStale = "down-stale",
    /// A machine that goes down says so before it says what is missing.
    DownFirst = "down-first",
    /// A violation is not counted.
    ViolationsLost = "violations-lost",
    /// Dialect v4: a request is taken wherever the descriptor stands.
    PositionIgnored = "position-ignored",
    /// Dialect v4: a write moves the descriptor, so that no second one is taken.
    WriteMoves = "write-moves",
    /// Dialect v4: N can be asked of the original files.
    OriginalTakesN = "original-takes-n",
    /// Dialect v4: the thread that writes may open another file for writing.
    OwnWriterLetIn = "own-writer-let-in",
    /// Dialect v4: N is ENOENT while records are staged.
    PendingMissing = "pending-missing",
    /// Dialect v4: N beyond the length is refused and leaves the records staged.
    TooManyStaged = "too-many-staged",
    /// Dialect v4: D deletes what the next kernel was given.
    DumpedDeleted = "dumped-deleted",
    /// Dialect v4: a machine that goes down refuses everything.
    DownRefuses = "down-refuses",
    /// Dialect trim: a wrong T is EINVAL.
    WrongTotalInvalid = "wrong-total-invalid",
    /// Dialect trim: any T will do.
    AnyTotalTaken = "any-total-taken",
    /// Dialect trim: no T at all is 0.
    EmptyTotalTaken = "empty-total-taken",
    /// Dialect trim: N is decimal.
    TrimDecimal = "trim-decimal",
    /// Dialect trim: a newline at the end is refused.
    TrimNewlineRefused = "trim-newline-refused",
    /// Dialect trim: the log tells 0 for ever.
    TotalStuck = "total-stuck",
    /// Dialect trim: whoever reads the log keeps writers out.
    TrimLogLocks = "trim-log-locks",
    /// Dialect trim: the log can be read without the capability.
    TrimLogForAll = "trim-log-for-all",
    /// Dialect trim: to trim nothing is refused.
    TrimNothingRefused = "trim-nothing-refused",
    /// Dialect trim: what is missing is said before that T is wrong.
    MissingFirst = "missing-first",
    /// Dialect trim: a machine that goes down trims.
    DownTrims = "down-trims",
    /// Dialect trim: the record of a trim tells the total after it.
    TrimToldLate = "trim-told-late",
    /// Dialect trim: the log takes A.
    TrimLogStages = "trim-log-stages",
}

impl Fault {
    /// The dialect whose rule it breaks.
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

/// No fault has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no fault is called {0:?}")]
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
    fn faults_are_called_by_their_names() {
        for fault in Fault::ALL {
            assert_eq!(fault.to_string().parse(), Ok(*fault));
        }
        assert_eq!("".parse::<Fault>(), Err(UnknownFault(String::new())));
    }
}
