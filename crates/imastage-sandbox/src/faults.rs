//! The implementation of all faults. [`crate::files`] and [`crate::filesystem`] call this module at
//! every point where a fault can act; without a fault the results are those of the interface.

use ima_list::{Counts, Duplicates, SharedList};
use ima_securityfs::{
    Access, Caller, Dialect, Errno, FileClass, FileName, Form, Grammar, Open, OpenLock, Part,
    Request,
};

use crate::{Fault, caller};

/// The fault of a sandbox, if any.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults(pub(crate) Option<Fault>);

impl Faults {
    fn has(self, fault: Fault) -> bool {
        self.0 == Some(fault)
    }

    /// The permission bits of a file.
    pub(crate) fn mode(self, mode: u16) -> u16 {
        match self.0 {
            Some(Fault::ModeReadOnly) => mode & 0o440,
            Some(Fault::ModeForAll) => mode | 0o444,
            _ => mode,
        }
    }

    /// The permission bits of a file after chmod.
    pub(crate) fn changed_mode(self, old: u16, new: u16) -> u16 {
        if self.has(Fault::ModeKept) { old } else { new }
    }

    /// The group of a file after chgrp.
    pub(crate) fn changed_group(self, old: u32, new: u32) -> u32 {
        if self.has(Fault::GroupKept) { old } else { new }
    }

    /// Whether the capability is checked for every request.
    pub(crate) fn asks_again(self) -> bool {
        self.has(Fault::CapabilityToAsk)
    }

    /// The result of unlink.
    pub(crate) fn unlink(self) -> Result<(), Errno> {
        if self.has(Fault::UnlinkTaken) { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// The result of fsync.
    pub(crate) fn sync(self) -> Result<(), Errno> {
        if self.has(Fault::SyncTaken) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// The treatment of duplicate records.
    pub(crate) fn duplicates(self, duplicates: Duplicates) -> Duplicates {
        match self.0 {
            Some(Fault::DuplicatesTaken) => Duplicates::Off,
            Some(Fault::DigestsForgotten) => Duplicates::Flush,
            _ => duplicates,
        }
    }

    /// The grammar of writes.
    pub(crate) fn grammar(self, grammar: Grammar) -> Grammar {
        let takes = self.has(Fault::FlushTakesN) || self.has(Fault::DigestsForgotten);
        Grammar { flush: grammar.flush && !takes, ..grammar }
    }

    /// The id by which a caller is identified: the thread, unless a fault selects the process.
    pub(crate) fn thread(self, thread: u32) -> u32 {
        if self.has(Fault::ProcessWrites) { caller::process_of(thread) } else { thread }
    }

    /// Whether closing one duplicate of a descriptor releases the file.
    pub(crate) fn copy_frees(self) -> bool {
        self.has(Fault::CopyFrees)
    }

    /// The size of a file.
    pub(crate) fn size(self) -> u64 {
        if self.has(Fault::SizeTold) { 4096 } else { 0 }
    }

    /// The target of a symbolic link.
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

    /// Opens a file of the list; `None` if a fault grants the open without a lock.
    pub(crate) fn open(
        self,
        lock: &mut OpenLock,
        file: FileName,
        access: Access,
        caller: Caller,
    ) -> Result<Option<Open>, Errno> {
        let class = file.class().unwrap_or(FileClass::Measurements);
        let Some(fault) = self.0 else { return lock.open(class, access, caller).map(Some) };
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
        // Trial opens reveal the current readers and writer.
        let mut would = |access| opens(lock, access, admin).is_ok();
        let (read, write) = (would(Access::Read), would(Access::Write));
        let (readers, own, other) = (read && !write, write && !read, !read && !write);
        match (fault, access) {
            (Fault::TrimLogLocks, Access::Read) if class == FileClass::TrimLog && caller.admin => {
                lock.open(FileClass::Measurements, access, caller).map(Some)
            }
            (Fault::TrimLogForAll, Access::Read) if class == FileClass::TrimLog => Ok(None),
            (Fault::OwnWriterLetIn, Access::Write)
                if caller.admin && lock.writer() == Some(caller.thread) =>
            {
                Ok(None)
            }
            (Fault::ReaderLetsWriterIn, Access::Write) if readers && caller.admin => Ok(None),
            (Fault::WriterLetsReaderIn, Access::Read) if other => Ok(None),
            (Fault::OwnReaderLetIn, Access::Read) if own => Ok(None),
            (Fault::SecondWriterLetIn, Access::Write) if other && caller.admin => Ok(None),
            (Fault::OwnWriterRefused, Access::Write) if own => Err(Errno::EBUSY),
            (Fault::OneReader, Access::Read) if readers => Err(Errno::EBUSY),
            (Fault::BusyBeforePermission, Access::Write) if !write => Err(Errno::EBUSY),
            (Fault::CapabilityIgnored, _) => lock.open(class, access, admin).map(Some),
            _ => lock.open(class, access, caller).map(Some),
        }
    }

    /// Opens a counter file.
    pub(crate) fn open_number(self, lock: &mut OpenLock, caller: Caller) -> Result<(), Errno> {
        if self.has(Fault::CountLocked) {
            opens(lock, Access::Read, caller)?;
        }
        Ok(())
    }

    /// Closes a file that was opened for `access`.
    pub(crate) fn release(self, lock: &mut OpenLock, open: Open, access: Access, closer: u64) {
        let writer = access == Access::Write;
        match self.0 {
            Some(Fault::LockStuck) if writer => {}
            Some(Fault::OtherCloses) if writer && lock.writer() != Some(closer) => {}
            Some(Fault::LockFreedEarly) if writer => *lock = OpenLock::new(Dialect::Linux72),
            _ => lock.release(open, closer),
        }
    }

    /// The request in a write; `Ok(None)` succeeds without effect.
    pub(crate) fn parse(
        self,
        write: &[u8],
        file: FileName,
        position: u64,
        grammar: Grammar,
    ) -> Result<Option<Request>, Errno> {
        let honest = |write: &[u8], file| Request::parse(write, file, position, grammar).map(Some);
        let Some(fault) = self.0 else { return honest(write, file) };
        let (part, ascii) = match file {
            FileName::Measurements { part, form, .. } => (Some(part), form == Form::Ascii),
            _ => (None, false),
        };
        let number = part == Some(Part::Current);
        match (fault, write) {
            (Fault::PlusRefused, [b'+', ..]) => Err(Errno::EINVAL),
            (Fault::LowerCaseTaken, _) => honest(&write.to_ascii_uppercase(), file),
            (Fault::NoNewlineTaken, _) if !write.ends_with(b"\n") => {
                honest(&[write, b"\n"].concat(), file)
            }
            (Fault::BlanksSkipped, [b' ' | b'\t', rest @ ..]) => honest(rest, file),
            (Fault::HexTaken, [b'0', b'x' | b'X', rest @ ..]) => honest(rest, file),
            (Fault::ZeroTaken, b"0\n" | b"00\n" | b"+0\n") if number => Ok(None),
            (Fault::RangeInvalid, _) => honest(write, file).map_err(|_| Errno::EINVAL),
            (Fault::LongTaken, [b'0', rest @ ..]) if write.len() > Request::MAX_LEN => {
                honest(rest, file)
            }
            (Fault::NulRefused, _) if write.contains(&0) => Err(Errno::EINVAL),
            (Fault::StagedTakesN, [b'0'..=b'9', ..]) => honest(write, of(Part::Current)),
            (Fault::CurrentTakesStage, b"A\n" | b"D\n") => honest(write, of(Part::Staged)),
            (Fault::BinaryRequestsOnly, _) if ascii => Err(Errno::EINVAL),
            (Fault::PositionIgnored, _) => Request::parse(write, file, 0, grammar).map(Some),
            (Fault::OriginalTakesN, [b'0'..=b'9', ..]) => honest(write, of(Part::Staged)),
            (Fault::EmptyTotalTaken, [b':', ..]) => honest(&[b"0", write].concat(), file),
            (Fault::TrimDecimal, _) => {
                let colon = write.iter().position(|byte| *byte == b':');
                let (t, n) = write.split_at(colon.map_or(0, |colon| colon + 1));
                let zeros = n.iter().take_while(|byte| **byte == b'0').count();
                honest(&[t, &n[zeros..]].concat(), file)
            }
            (Fault::TrimNewlineRefused, _) if write.ends_with(b"\n") => Err(Errno::EINVAL),
            (Fault::TrimLogStages, b"A\n") => Ok(None),
            _ => honest(write, file),
        }
    }

    /// Executes a request with the fault. `right` executes the request without the fault.
    pub(crate) fn act(
        self,
        list: &SharedList,
        request: Request,
        down: bool,
        right: impl Fn(Request) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let Some(fault) = self.0 else { return right(request) };
        if down && let Some(answer) = while_down(fault, request, &right) {
            return answer;
        }
        let counts = list.counts();
        // Extra deletions by a fault; they may fail.
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
                    Fault::PendingMissing if counts.staged > 0 => return Err(Errno::ENOENT),
                    Fault::TooManyStaged if beyond && counts.staged == 0 => {
                        list.stage().map_err(|_| Errno::ENOENT)?;
                        return Err(Errno::ENOENT);
                    }
                    _ => {}
                }
                right(request)
            }
            Request::Trim { n, .. } => match fault {
                Fault::MissingFirst if n > counts.current => Err(Errno::ENOENT),
                Fault::TrimNothingRefused if n == 0 => Err(Errno::ENOENT),
                Fault::AnyTotalTaken => right(Request::Trim { trimmed: list.trimmed(), n }),
                Fault::WrongTotalInvalid => right(request).map_err(|errno| match errno {
                    Errno::ESTALE => Errno::EINVAL,
                    errno => errno,
                }),
                _ => right(request),
            },
        }
    }

    /// The total in the record of a trim.
    pub(crate) fn told_total(self, trimmed: u64, n: u64) -> u64 {
        if self.has(Fault::TrimToldLate) { trimmed + n } else { trimmed }
    }

    /// The number of bytes that a granted request returns as written.
    pub(crate) fn written(self, len: u32) -> u32 {
        if self.has(Fault::ShortWrite) { 1 } else { len }
    }

    /// Whether a request rewinds the descriptor.
    pub(crate) fn request_rewinds(self) -> bool {
        self.has(Fault::RequestRewinds)
    }

    /// Whether a descriptor that reached the end stays there.
    pub(crate) fn end_for_ever(self) -> bool {
        self.has(Fault::EndForEver)
    }

    /// The largest number of bytes that one read returns.
    pub(crate) fn read_size(self, size: usize) -> usize {
        if self.has(Fault::RecordsCut) { size.min(1000) } else { size }
    }

    /// The number of bytes to render for a read of `size` bytes.
    pub(crate) fn wanted(self, size: usize) -> usize {
        if self.has(Fault::ReadsAhead) { usize::MAX } else { size }
    }

    /// Whether a write moves the descriptor.
    pub(crate) fn write_moves(self) -> bool {
        self.has(Fault::WriteMoves)
    }

    /// The number that a counter file shows.
    pub(crate) fn number(self, file: FileName, counts: Counts, trimmed: u64) -> u64 {
        match (file, self.0) {
            (FileName::TrimLog, Some(Fault::TotalStuck)) => 0,
            (FileName::TrimLog, _) => trimmed,
            (FileName::Violations, Some(Fault::StageIsViolation)) => {
                counts.violations + u64::from(counts.staged > 0)
            }
            (FileName::Violations, Some(Fault::ViolationsLost)) => 0,
            (FileName::Violations, _) => counts.violations,
            (_, Some(Fault::CountWithStaged)) => counts.current + counts.staged,
            (_, Some(Fault::CountNeverFalls)) => counts.total,
            _ => counts.current,
        }
    }
}

/// The result of a request during shutdown; `None` if the fault does not change the result.
fn while_down(
    fault: Fault,
    request: Request,
    right: &impl Fn(Request) -> Result<(), Errno>,
) -> Option<Result<(), Errno>> {
    match (fault, request) {
        (Fault::DownGranted, _) => Some(right(request).or_else(|errno| match errno {
            Errno::ESTALE | Errno::EACCES => Ok(()),
            errno => Err(errno),
        })),
        (Fault::DownStale, Request::Stage) => Some(right(request).map_err(|errno| match errno {
            Errno::EACCES => Errno::ESTALE,
            errno => errno,
        })),
        (Fault::DumpedDeleted, Request::DeleteStaged) => {
            Some(right(request).or_else(|errno| match errno {
                Errno::ESTALE => Ok(()),
                errno => Err(errno),
            }))
        }
        (Fault::DownTrims, Request::Trim { .. }) => Some(Ok(())),
        (Fault::DownFirst | Fault::DownRefuses, _) => Some(Err(Errno::ESTALE)),
        _ => None,
    }
}

/// Opens and closes a file.
fn opens(lock: &mut OpenLock, access: Access, caller: Caller) -> Result<(), Errno> {
    let open = lock.open(FileClass::Measurements, access, caller)?;
    lock.release(open, caller.thread);
    Ok(())
}

fn of(part: Part) -> FileName {
    FileName::Measurements { form: Form::Binary, bank: None, part }
}
