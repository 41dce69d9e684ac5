//! The lock over the files of a list: many readers or one writer.

use crate::{Dialect, Errno};

/// The lock state of the list's files. All files, of both parts, both forms and every bank, share
/// one state: any number of readers, or one writer.
///
/// An open never waits: it is granted or fails with [`Errno::EBUSY`].
#[derive(Debug)]
pub struct OpenLock {
    dialect: Dialect,
    hazards: bool,
    /// The number of readers, or [`WRITING`].
    users: i64,
    /// The number of files the writer has open in addition to the first.
    more_files: u64,
    /// The current or last writer.
    writer: u64,
}

/// A class of files that are locked together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileClass {
    /// The files that show records.
    Measurements,
    /// The trim log. Opening it requires `CAP_SYS_ADMIN`; reading it takes no lock.
    TrimLog,
}

/// The access mode of an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `O_RDONLY`.
    Read,
    /// `O_WRONLY` or `O_RDWR`: requests can be written. A writer can read only through its own
    /// `O_RDWR` descriptor.
    Write,
}

/// The caller of an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The thread id, unique while the thread lives. The kernel identifies a writer by its thread,
    /// not by its process.
    pub thread: u64,
    /// Whether the thread has the capability `CAP_SYS_ADMIN`.
    pub admin: bool,
}

/// An open file: pass it to [`OpenLock::release`] when its last descriptor is closed.
#[derive(Debug)]
#[must_use = "the files stay locked until this is released"]
pub struct Open {
    /// The lock that this open file has, if any.
    locked: Option<Access>,
}

const WRITING: i64 = -1;
/// No thread has this id.
const NOBODY: u64 = 0;

impl OpenLock {
    /// A lock without open files.
    pub const fn new(dialect: Dialect) -> OpenLock {
        OpenLock { dialect, hazards: false, users: 0, more_files: 0, writer: NOBODY }
    }

    /// As [`OpenLock::new`], with the accounting of Linux 7.2. It is correct if a writer has one
    /// file open, or closes all its files in the thread that opened them. Otherwise the files may
    /// be unlocked too early, or stay locked against writers until reboot.
    pub const fn with_hazards(dialect: Dialect) -> OpenLock {
        let hazards = matches!(dialect, Dialect::Linux72);
        OpenLock { hazards, ..OpenLock::new(dialect) }
    }

    /// Opens a file. The caller has already passed the check of the file's mode.
    ///
    /// # Errors
    /// [`Errno::EPERM`], regardless of other open files, for writing without `CAP_SYS_ADMIN` and
    /// for reading the trim log without it. [`Errno::EBUSY`] for writing while there is a reader or
    /// another writing thread, and for reading records while there is a writer. This includes the
    /// caller's own files, except that in dialect 7.2 the writing thread may open more files for
    /// writing. [`Errno::ENFILE`] if a counter would overflow.
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

    /// Closes a file. The files are unlocked when the last one is closed. `closer` matters only
    /// with [`OpenLock::with_hazards`]: it should be the thread that opened the file.
    pub fn release(&mut self, open: Open, closer: u64) {
        match open.locked {
            Some(Access::Read) if self.users > 0 => self.users -= 1,
            Some(Access::Write) if self.users == WRITING || self.hazards => {
                let known = !self.hazards || self.writer == closer;
                if self.more_files > 0 && known {
                    self.more_files -= 1;
                } else {
                    (self.users, self.writer) = (self.users.saturating_add(1), NOBODY);
                }
            }
            // The file has no lock, or belongs to another `OpenLock`.
            _ => {}
        }
    }

    /// The writing thread. Linux 7.2 stores a task pointer: after that thread ends, a new thread at
    /// the same address is mistaken for the writer.
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
    fn open_fails_when_a_counter_is_at_its_maximum() {
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
    fn last_close_unlocks_the_files_from_any_thread() {
        let mut lock = OpenLock::new(Dialect::Linux72);
        let files = [0; 3].map(|_| lock.open(LIST, Access::Write, CALLER).unwrap());
        for file in files {
            assert_eq!(lock.open(LIST, Access::Write, OTHER).unwrap_err(), Errno::EBUSY);
            lock.release(file, 2);
        }
        assert_eq!(lock.users, 0);
        let reader = lock.open(LIST, Access::Read, OTHER).unwrap();
        // A file of another lock does not affect this lock.
        let stranger = OpenLock::new(Dialect::Linux72).open(LIST, Access::Write, CALLER).unwrap();
        lock.release(stranger, 1);
        assert_eq!(lock.users, 1);
        lock.release(reader, 1);
        assert_eq!(lock.users, 0);
    }

    #[test]
    fn writer_may_open_more_files_only_in_7_2() {
        for (dialect, answer) in
            Dialect::ALL.into_iter().zip([Ok(()), Err(Errno::EBUSY), Err(Errno::EBUSY)])
        {
            let mut lock = OpenLock::new(dialect);
            let _held = lock.open(LIST, Access::Write, CALLER).unwrap();
            assert_eq!(lock.open(LIST, Access::Write, CALLER).map(drop), answer, "{dialect}");
        }
    }

    #[test]
    fn accounting_of_linux_7_2_fails_after_fork() {
        let mut lock = OpenLock::with_hazards(Dialect::Linux72);
        // A child has a copy of the first file, which the writer closes before it opens another.
        let inherited = lock.open(LIST, Access::Write, CALLER).unwrap();
        let reopened = lock.open(LIST, Access::Write, CALLER).unwrap();
        lock.release(inherited, 2);
        lock.release(reopened, 1);
        assert_eq!(lock.open(LIST, Access::Write, CALLER).unwrap_err(), Errno::EBUSY);
        assert!(lock.open(LIST, Access::Read, CALLER).is_ok());
    }

    #[test]
    fn accounting_of_linux_7_2_fails_with_two_files() {
        let two = || {
            let mut lock = OpenLock::with_hazards(Dialect::Linux72);
            let files = [0; 2].map(|_| lock.open(LIST, Access::Write, CALLER).unwrap());
            (lock, files)
        };
        // All closed by another thread: locked against writers until reboot.
        let (mut lock, files) = two();
        files.into_iter().for_each(|file| lock.release(file, 2));
        assert_eq!(lock.open(LIST, Access::Write, CALLER).unwrap_err(), Errno::EBUSY);
        assert!(lock.open(LIST, Access::Read, CALLER).is_ok());
        // One closed by another thread: unlocked although the other is open.
        let (mut lock, [first, second]) = two();
        lock.release(first, 2);
        let other = lock.open(LIST, Access::Write, OTHER).unwrap();
        // The next writer's close is accounted to the file that is still open.
        lock.release(other, 2);
        assert_eq!(lock.open(LIST, Access::Read, CALLER).unwrap_err(), Errno::EBUSY);
        lock.release(second, 1);
        assert!(lock.open(LIST, Access::Read, CALLER).is_ok());
        // Safe: one file closed by any thread, and two files closed by the thread that opened them.
        let mut lock = OpenLock::with_hazards(Dialect::Linux72);
        let file = lock.open(LIST, Access::Write, CALLER).unwrap();
        lock.release(file, 2);
        assert_eq!((lock.users, lock.more_files), (0, 0));
        let (mut lock, files) = two();
        files.into_iter().for_each(|file| lock.release(file, 1));
        assert_eq!((lock.users, lock.more_files), (0, 0));
    }
}
