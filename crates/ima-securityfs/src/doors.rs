use crate::Errno;

/// Who has the list's files open. All of them, of both parts, both forms and every bank, share one
/// state: any number of readers, or one writer.
///
/// There is no waiting and no queue: what cannot be opened now is [`Errno::EBUSY`].
#[derive(Debug, Default)]
pub struct Doors {
    state: State,
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

/// An open file: give it back to [`Doors::release`] when its last descriptor is closed.
#[derive(Debug)]
#[must_use = "until it is released the files stay locked"]
pub struct Open {
    access: Access,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    Readers(u64),
    /// `files` counts what the writing thread has open.
    Writer {
        thread: u64,
        files: u64,
    },
}

/// What the kernel's counter can count.
const MOST: u64 = i64::MAX as u64;

impl Doors {
    /// Nobody has a file open.
    pub const fn new() -> Doors {
        Doors { state: State::Idle }
    }

    /// Opens a file that the caller is permitted to open by the file's mode.
    ///
    /// # Errors
    /// [`Errno::EPERM`] for writing without `CAP_SYS_ADMIN`, whatever else is open.
    /// [`Errno::EBUSY`] for writing while anyone reads or another thread writes, and for reading
    /// while anyone writes; to the caller itself, too: only further opens for writing are granted
    /// to the thread that writes. [`Errno::ENFILE`] when no more can be counted.
    pub fn open(&mut self, access: Access, caller: Caller) -> Result<Open, Errno> {
        if access == Access::Write && !caller.admin {
            return Err(Errno::EPERM);
        }
        let more = |count: u64| if count < MOST { Ok(count + 1) } else { Err(Errno::ENFILE) };
        self.state = match (&self.state, access) {
            (State::Idle, Access::Read) => State::Readers(1),
            (State::Readers(count), Access::Read) => State::Readers(more(*count)?),
            (State::Idle, Access::Write) => State::Writer { thread: caller.thread, files: 1 },
            (State::Writer { thread, files }, Access::Write) if *thread == caller.thread => {
                State::Writer { thread: *thread, files: more(*files)? }
            }
            _ => return Err(Errno::EBUSY),
        };
        Ok(Open { access })
    }

    /// Closes a file. The files are free when the last one is closed, whoever closes it.
    ///
    /// Here is the one difference to Linux 7.2, which also looks at who closes: if a writer has
    /// several files open and another thread closes one, or the last one, its books are wrong for
    /// ever. To reproduce that for a test, this is the place; it needs the closing thread.
    pub fn release(&mut self, open: Open) {
        let count = match (&mut self.state, open.access) {
            (State::Readers(count), Access::Read) => count,
            (State::Writer { files, .. }, Access::Write) => files,
            // Opened through other doors.
            _ => return,
        };
        *count -= 1;
        if *count == 0 {
            self.state = State::Idle;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: Caller = Caller { thread: 1, admin: true };

    #[test]
    fn no_more_are_let_in_than_can_be_counted() {
        let mut doors = Doors { state: State::Readers(MOST - 1) };
        let last = doors.open(Access::Read, CALLER).unwrap();
        assert_eq!(doors.open(Access::Read, CALLER).unwrap_err(), Errno::ENFILE);
        assert_eq!(doors.open(Access::Write, CALLER).unwrap_err(), Errno::EBUSY);
        doors.release(last);
        assert_eq!(doors.state, State::Readers(MOST - 1));
        let mut doors = Doors { state: State::Writer { thread: 1, files: MOST } };
        assert_eq!(doors.open(Access::Write, CALLER).unwrap_err(), Errno::ENFILE);
    }

    #[test]
    fn the_last_close_frees_the_files_whoever_closes() {
        let mut doors = Doors::new();
        let files = [0; 3].map(|_| doors.open(Access::Write, CALLER).unwrap());
        let other = Caller { thread: 2, ..CALLER };
        for file in files {
            assert_eq!(doors.open(Access::Write, other).unwrap_err(), Errno::EBUSY);
            doors.release(file);
        }
        assert_eq!(doors.state, State::Idle);
        let reader = doors.open(Access::Read, other).unwrap();
        // What was opened through other doors changes nothing here.
        let stranger = Doors::new().open(Access::Write, CALLER).unwrap();
        doors.release(stranger);
        assert_eq!(doors.state, State::Readers(1));
        doors.release(reader);
        assert_eq!(doors.state, State::Idle);
    }
}
