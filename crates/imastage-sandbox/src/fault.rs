//! Deliberate faults: each breaks one rule of the interface, so that tests of it can be tested.
//!
//! All that is wrong on purpose is in this file. `filesystem` asks here at the places where
//! something could go wrong; without a fault the answers are those of the interface.

use std::{fmt, str::FromStr};

use ima_list::{Counts, SharedList};
use ima_securityfs::{Access, Caller, Doors, Errno, FileName, Form, Open, Part, Request};

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

/// The fault a sandbox has, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults(pub(crate) Option<Fault>);

impl Faults {
    fn has(self, fault: Fault) -> bool {
        self.0 == Some(fault)
    }

    /// The permission bits that a file tells.
    pub(crate) fn mode(self, mode: u16) -> u16 {
        match self.0 {
            Some(Fault::ModeReadOnly) => mode & 0o440,
            Some(Fault::ModeForAll) => mode | 0o444,
            _ => mode,
        }
    }

    /// The size that a file tells.
    pub(crate) fn size(self) -> u64 {
        if self.has(Fault::SizeTold) { 4096 } else { 0 }
    }

    /// What a symbolic link leads to.
    pub(crate) fn target(self, target: FileName) -> FileName {
        match target {
            FileName::Measurements { form, bank, .. } if self.has(Fault::LinkToCurrent) => {
                FileName::Measurements { form, bank, part: Part::Current }
            }
            target => target,
        }
    }

    /// The file whose records `file` shows.
    pub(crate) fn shown(self, file: FileName) -> FileName {
        match (file, self.0) {
            (FileName::Measurements { form, bank, .. }, Some(Fault::StagedShowsCurrent)) => {
                FileName::Measurements { form, bank, part: Part::Current }
            }
            (FileName::Measurements { bank, part, .. }, Some(Fault::FormsMixed)) => {
                FileName::Measurements { form: Form::Binary, bank, part }
            }
            _ => file,
        }
    }

    /// Opens a file of the list; without a door if it should have stayed shut.
    pub(crate) fn open(
        self,
        doors: &mut Doors,
        file: FileName,
        access: Access,
        caller: Caller,
    ) -> Result<Option<Open>, Errno> {
        let Some(fault) = self.0 else { return doors.open(access, caller).map(Some) };
        let (staged, ascii) = match file {
            FileName::Measurements { form, part, .. } => {
                (part == Part::Staged, form == Form::Ascii)
            }
            _ => (false, false),
        };
        if fault == Fault::CapabilityToRead && !caller.admin {
            return Err(Errno::EPERM);
        }
        let unlocked =
            fault == Fault::StagedNotLocked && staged || fault == Fault::AsciiNotLocked && ascii;
        if unlocked && (access == Access::Read || caller.admin) {
            return Ok(None);
        }
        let admin = Caller { admin: true, ..caller };
        // Who is there can be told from who else would be let in.
        let mut would = |access| doors.open(access, admin).map(|open| doors.release(open)).is_ok();
        let (read, write) = (would(Access::Read), would(Access::Write));
        let (readers, own, other) = (read && !write, write && !read, !read && !write);
        match (fault, access) {
            (Fault::ReaderLetsWriterIn, Access::Write) if readers && caller.admin => Ok(None),
            (Fault::WriterLetsReaderIn, Access::Read) if other => Ok(None),
            (Fault::OwnReaderLetIn, Access::Read) if own => Ok(None),
            (Fault::SecondWriterLetIn, Access::Write) if other && caller.admin => Ok(None),
            (Fault::OwnWriterRefused, Access::Write) if own => Err(Errno::EBUSY),
            (Fault::OneReader, Access::Read) if readers => Err(Errno::EBUSY),
            (Fault::BusyBeforePermission, Access::Write) if !write => Err(Errno::EBUSY),
            (Fault::CapabilityIgnored, _) => doors.open(access, admin).map(Some),
            _ => doors.open(access, caller).map(Some),
        }
    }

    /// Opens a file that tells a number.
    pub(crate) fn open_number(self, doors: &mut Doors, caller: Caller) -> Result<(), Errno> {
        if self.has(Fault::CountLocked) {
            doors.open(Access::Read, caller).map(|open| doors.release(open))?;
        }
        Ok(())
    }

    /// Closes a file. `writer` tells whether it was opened for writing.
    pub(crate) fn release(self, doors: &mut Doors, open: Open, writer: bool) {
        match self.0 {
            Some(Fault::LockStuck) if writer => {}
            Some(Fault::LockFreedEarly) if writer => *doors = Doors::new(),
            _ => doors.release(open),
        }
    }

    /// What a write asks for; `Ok(None)` is nothing, gladly granted.
    pub(crate) fn parse(self, write: &[u8], file: FileName) -> Result<Option<Request>, Errno> {
        let part = file.part().ok_or(Errno::EINVAL)?;
        let honest = |write: &[u8], part| Request::parse(write, part, false).map(Some);
        let Some(fault) = self.0 else { return honest(write, part) };
        let number = part == Part::Current;
        match (fault, write) {
            (Fault::PlusRefused, [b'+', ..]) => Err(Errno::EINVAL),
            (Fault::LowerCaseTaken, _) => honest(&write.to_ascii_uppercase(), part),
            (Fault::NoNewlineTaken, _) if !write.ends_with(b"\n") => {
                honest(&[write, b"\n"].concat(), part)
            }
            (Fault::BlanksSkipped, [b' ' | b'\t', rest @ ..]) => honest(rest, part),
            (Fault::HexTaken, [b'0', b'x' | b'X', rest @ ..]) => honest(rest, part),
            (Fault::ZeroTaken, b"0\n" | b"00\n" | b"+0\n") if number => Ok(None),
            (Fault::RangeInvalid, _) => honest(write, part).map_err(|_| Errno::EINVAL),
            (Fault::LongTaken, [b'0', rest @ ..]) if write.len() > Request::MAX_LEN => {
                honest(rest, part)
            }
            (Fault::NulRefused, _) if write.contains(&0) => Err(Errno::EINVAL),
            (Fault::StagedTakesN, [b'0'..=b'9', ..]) => honest(write, Part::Current),
            (Fault::CurrentTakesStage, b"A\n" | b"D\n") => honest(write, Part::Staged),
            (Fault::BinaryRequestsOnly, _)
                if matches!(file, FileName::Measurements { form: Form::Ascii, .. }) =>
            {
                Err(Errno::EINVAL)
            }
            _ => honest(write, part),
        }
    }

    /// Does what is wrong about a request instead of what is right, or beside it. `right` does
    /// what is right.
    pub(crate) fn act(
        self,
        list: &SharedList,
        request: Request,
        right: impl Fn(Request) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let Some(fault) = self.0 else { return right(request) };
        let counts = list.counts();
        // What is deleted beside what was asked for may be nothing.
        let delete = |n: u64| drop(list.delete_first(n));
        match request {
            Request::Stage => {
                match fault {
                    Fault::StageNothing if counts.current + counts.staged == 0 => return Ok(()),
                    Fault::StageTwice if counts.staged > 0 => return Ok(()),
                    Fault::StageTwiceBusy if counts.staged > 0 => return Err(Errno::EBUSY),
                    Fault::StageLosesOne if counts.staged == 0 && counts.current > 1 => delete(1),
                    _ => {}
                }
                right(request)
            }
            Request::DeleteStaged => {
                match fault {
                    Fault::DeleteNothing if counts.staged == 0 => return Ok(()),
                    Fault::DeleteForgotten if counts.staged > 0 => return Ok(()),
                    Fault::DeleteTakesCurrent if counts.staged > 0 => delete(counts.current),
                    _ => {}
                }
                right(request)
            }
            Request::DeleteFirst(n) => {
                let n = n.get();
                let beyond = n > counts.current;
                match fault {
                    Fault::TooManyClamped if beyond && counts.current > 0 => {
                        delete(counts.current);
                        return Ok(());
                    }
                    Fault::TooManyDeleted if beyond => delete(counts.current),
                    Fault::OneMore if n < counts.current => delete(1),
                    Fault::OneFewer if !beyond => {
                        delete(n - 1);
                        return Ok(());
                    }
                    Fault::NoNWhileStaged if counts.staged > 0 => return Err(Errno::EEXIST),
                    Fault::NTakesStaged => drop(list.delete_staged()),
                    _ => {}
                }
                right(request)
            }
        }
    }

    /// How many bytes of a granted request were written.
    pub(crate) fn written(self, len: u32) -> u32 {
        if self.has(Fault::ShortWrite) { 1 } else { len }
    }

    /// Whether a request makes the descriptor begin anew.
    pub(crate) fn request_rewinds(self) -> bool {
        self.has(Fault::RequestRewinds)
    }

    /// Whether a descriptor that came to the end stays there.
    pub(crate) fn end_for_ever(self) -> bool {
        self.has(Fault::EndForEver)
    }

    /// How much one read gives at most.
    pub(crate) fn read_size(self, size: usize) -> usize {
        if self.has(Fault::RecordsCut) { size.min(1000) } else { size }
    }

    /// What a file that counts tells.
    pub(crate) fn number(self, file: FileName, counts: Counts) -> u64 {
        match (file, self.0) {
            (FileName::Violations, Some(Fault::StageIsViolation)) => {
                counts.violations + u64::from(counts.staged > 0)
            }
            (FileName::Violations, _) => counts.violations,
            (_, Some(Fault::CountWithStaged)) => counts.current + counts.staged,
            (_, Some(Fault::CountNeverFalls)) => counts.total,
            _ => counts.current,
        }
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
