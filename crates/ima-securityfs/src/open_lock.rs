//! The lock over the files of a list: many readers or one writer.

use crate::{Dialect, Errno};

/// Who has the list's files open. All of them, of both parts, both forms and every bank, share one
/// state: any number of readers, or one writer.
///
/// There is no waiting and no queue: what cannot be opened now is [`Errno::EBUSY`].
#[derive(Debug)]
pub struct OpenLock {
    dialect: Dialect,
    hazards: bool,
    /// How many read, or [`WRITING`].
    users: i64,
    /// How many files the writer has open beside the first.
    more_files: u64,
    /// Who writes, or wrote last.
    writer: u64,
}

/// A class of files that are locked together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileClass {
    /// Those that show records.
    Measurements,
    /// The one that shows and takes the number of trimmed records. It is for the privileged alone,
    /// but who reads it does not lock it.
    TrimLog,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `O_RDONLY`.
    Read,
    /// `O_WRONLY` or `O_RDWR`: requests can be written. Only `O_RDWR` can read as well, and the
    /// writer has no other way to read.
    Write,
}

/// Who opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The thread, by a number that no other thread has while this one lives (its id). The kernel
    /// knows a writer by its thread, not by its process.
    pub thread: u64,
    /// Whether it has the capability `CAP_SYS_ADMIN`.
    pub admin: bool,
}

/// An open file: give it back to [`OpenLock::release`] when its last descriptor is closed.
#[derive(Debug)]
#[must_use = "until it is released the files stay locked"]
pub struct Open {
    /// What is locked by it.
    locked: Option<Access>,
}

const WRITING: i64 = -1;

impl OpenLock {
    /// Nobody has a file open.
    pub const fn new(dialect: Dialect) -> OpenLock {
        OpenLock { dialect, hazards: false, users: 0, more_files: 0, writer: 0 }
    }

    /// As [`OpenLock::new`], with the counters that Linux 7.2 keeps: right as long as a writer has
    /// one file open, or closes all in the thread that opened them. Otherwise the files may be free
    /// too early, or locked against writers for ever.
    pub const fn with_hazards(dialect: Dialect) -> OpenLock {
        let hazards = matches!(dialect, Dialect::Linux72);
        OpenLock { hazards, ..OpenLock::new(dialect) }
    }

    /// Opens a file that the caller is permitted to open by the file's mode.
    ///
    /// # Errors
    /// [`Errno::EPERM`] for writing without `CAP_SYS_ADMIN`, and for reading the trim log without
    /// it, whatever else is open. [`Errno::EBUSY`] for writing while anyone reads or another thread
    /// writes, and for reading records while anyone writes; to the caller itself, too: only in
    /// dialect 7.2, and only for writing, the thread that writes may open further files.
    /// [`Errno::ENFILE`] when no more can be counted.
    pub fn open(
        &mut self,
        class: FileClass,
        access: Access,
        caller: Caller,
    ) -> Result<Open, Errno> {
        if !caller.admin && (access == Access::Write || class == FileClass::TrimLog) {
            return Err(Errno::EPERM);
        }
        match access {
            Access::Read if class == FileClass::TrimLog => return Ok(Open { locked: None }),
            Access::Read if self.users == WRITING => return Err(Errno::EBUSY),
            Access::Read => self.users = self.users.checked_add(1).ok_or(Errno::ENFILE)?,
            Access::Write if self.users == 0 => {
                (self.users, self.writer) = (WRITING, caller.thread);
            }
            Access::Write if self.dialect == Dialect::Linux72 && self.is_writer(caller.thread) => {
                self.more_files = self.more_files.checked_add(1).ok_or(Errno::ENFILE)?;
            }
            Access::Write => return Err(Errno::EBUSY),
        }
        Ok(Open { locked: Some(access) })
    }

    /// Closes a file. The files are free when the last one is closed, whoever closes it; but with
    /// [`OpenLock::with_hazards`] it matters that `closer` is the thread that opened it.
    pub fn release(&mut self, open: Open, closer: u64) {
        match open.locked {
            Some(Access::Read) if self.users > 0 => self.users -= 1,
            Some(Access::Write) if self.users == WRITING || self.hazards => {
                let known = !self.hazards || self.writer == closer;
                if self.more_files > 0 && known {
                    self.more_files -= 1;
                } else {
                    self.users = self.users.saturating_add(1);
                }
            }
            // Nothing was locked, or by another lock.
            _ => {}
        }
    }

    /// The thread that writes. Linux 7.2 remembers a pointer: when that thread has ended, another
    /// one may come to be at the same place, and passes for it.
    pub fn writer(&self) -> Option<u64> {
        (self.users == WRITING).then_some(self.writer)
    }

    fn is_writer(&self, thread: u64) -> bool {
        self.writer() == Some(thread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: Caller = Caller { thread: 1, admin: true };
    const OTHER: Caller = Caller { thread: 2, ..CALLER };
    const LIST: FileClass = FileClass::Measurements;

    #[test]
    fn no_more_are_let_in_than_can_be_counted() {
        let mut lock = OpenLock { users: i64::MAX - 1, ..OpenLock::new(Dialect::Linux72) };
        let last = lock.open(LIST, Access::Read, CALLER).unwrap();
        assert_eq!(lock.open(LIST, Access::Read, CALLER).unwrap_err(), Errno::ENFILE);
        assert_eq!(lock.open(LIST, Access::Write, CALLER).unwrap_err(), Errno::EBUSY);
        lock.release(last, 1);
        assert_eq!(lock.users, i64::MAX - 1);
        let writer = OpenLock { users: WRITING, writer: 1, ..OpenLock::new(Dialect::Linux72) };
        let mut lock = OpenLock { more_files: u64::MAX, ..writer };
        assert_eq!(lock.open(LIST, Access::Write, CALLER).unwrap_err(), Errno::ENFILE);
    }

    #[test]
    fn the_last_close_frees_the_files_whoever_closes() {
        let mut lock = OpenLock::new(Dialect::Linux72);
        let files = [0; 3].map(|_| lock.open(LIST, Access::Write, CALLER).unwrap());
        for file in files {
            assert_eq!(lock.open(LIST, Access::Write, OTHER).unwrap_err(), Errno::EBUSY);
            lock.release(file, 2);
        }
        assert_eq!(lock.users, 0);
        let reader = lock.open(LIST, Access::Read, OTHER).unwrap();
        // What was opened under another lock changes nothing here.
        let stranger = OpenLock::new(Dialect::Linux72).open(LIST, Access::Write, CALLER).unwrap();
        lock.release(stranger, 1);
        assert_eq!(lock.users, 1);
        lock.release(reader, 1);
        assert_eq!(lock.users, 0);
    }

    #[test]
    fn only_in_7_2_a_writer_may_open_more() {
        for (dialect, answer) in
            Dialect::ALL.into_iter().zip([Ok(()), Err(Errno::EBUSY), Err(Errno::EBUSY)])
        {
            let mut lock = OpenLock::new(dialect);
            let _held = lock.open(LIST, Access::Write, CALLER).unwrap();
            assert_eq!(lock.open(LIST, Access::Write, CALLER).map(drop), answer, "{dialect}");
        }
    }

    #[test]
    fn the_books_of_linux_7_2_go_wrong_with_two_files() {
        let two = || {
            let mut lock = OpenLock::with_hazards(Dialect::Linux72);
            let files = [0; 2].map(|_| lock.open(LIST, Access::Write, CALLER).unwrap());
            (lock, files)
        };
        // All closed by another thread: locked against writers for ever.
        let (mut lock, files) = two();
        files.into_iter().for_each(|file| lock.release(file, 2));
        assert_eq!(lock.open(LIST, Access::Write, CALLER).unwrap_err(), Errno::EBUSY);
        assert!(lock.open(LIST, Access::Read, CALLER).is_ok());
        // One closed by another thread: free although the other is open.
        let (mut lock, [first, second]) = two();
        lock.release(first, 2);
        let other = lock.open(LIST, Access::Write, OTHER).unwrap();
        // The next writer's close counts for the file that is still open.
        lock.release(other, 2);
        assert_eq!(lock.open(LIST, Access::Read, CALLER).unwrap_err(), Errno::EBUSY);
        lock.release(second, 1);
        assert!(lock.open(LIST, Access::Read, CALLER).is_ok());
        // One file is safe, whoever closes; and so are two, closed by who opened them.
        let mut lock = OpenLock::with_hazards(Dialect::Linux72);
        let file = lock.open(LIST, Access::Write, CALLER).unwrap();
        lock.release(file, 2);
        assert_eq!((lock.users, lock.more_files), (0, 0));
        let (mut lock, files) = two();
        files.into_iter().for_each(|file| lock.release(file, 1));
        assert_eq!((lock.users, lock.more_files), (0, 0));
    }
}
