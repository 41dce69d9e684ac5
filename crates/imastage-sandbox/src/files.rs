//! The open files, and the reads and requests through them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ima_list::{DeleteError, SharedList, StageError, TrimError};
use ima_securityfs::{Access, Caller, Dialect, Errno, FileName, Grammar, Open, OpenLock, Request};

use crate::{Hazard, Machine, caller, descriptor::Descriptor, faults::Faults, reading::Reading};

/// The open files of a machine's `ima` directory.
pub(crate) struct Files {
    machine: Arc<Machine>,
    faults: Faults,
    grammar: Grammar,
    state: Mutex<State>,
}

/// The result of a read or write of an open file.
pub(crate) type Answer<T> = Result<T, Refusal>;

/// The reason a read or write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// An errno of the interface.
    Errno(Errno),
    /// The file was opened in an earlier boot.
    Gone,
}

struct State {
    lock: OpenLock,
    /// The boot that the lock belongs to.
    boot: u64,
    open: HashMap<u64, OpenFile>,
    /// A thread that is mistaken for a writer thread that has ended: (thread, writer).
    in_place_of: Option<(u64, u64)>,
    next_handle: u64,
}

struct OpenFile {
    file: FileName,
    boot: u64,
    descriptor: Descriptor,
    /// The read state; `None` if the file shows no records.
    reading: Option<Reading>,
    /// `None` if the file has no lock class, or because of a fault.
    open: Option<Open>,
    access: Access,
    /// The thread that last closed a descriptor of the file.
    closer: u64,
    /// A read reached the end.
    ended: bool,
}

impl Files {
    pub(crate) fn new(machine: Arc<Machine>, faults: Faults) -> Files {
        let grammar = faults.grammar(machine.grammar());
        let state = State {
            lock: lock(&machine),
            boot: machine.boots(),
            open: HashMap::new(),
            in_place_of: None,
            next_handle: 1,
        };
        Files { machine, faults, grammar, state: Mutex::new(state) }
    }

    /// Opens a file and returns its handle.
    pub(crate) fn open(
        &self,
        file: FileName,
        access: Access,
        caller: Caller,
    ) -> Result<u64, Errno> {
        let mut state = self.state();
        let state = &mut *state;
        let caller = match access {
            Access::Write => Caller { thread: self.taken_for(state, caller.thread), ..caller },
            Access::Read => caller,
        };
        let open = match file.class() {
            Some(_) => self.faults.open(&mut state.lock, file, access, caller)?,
            None => {
                self.faults.open_number(&mut state.lock, caller)?;
                None
            }
        };
        let handle = state.next_handle;
        state.next_handle += 1;
        let open = OpenFile {
            file,
            boot: state.boot,
            descriptor: Descriptor::default(),
            reading: Reading::of(self.faults.shown(file), |bank| self.machine.ima().extend(bank)),
            open,
            access,
            closer: caller.thread,
            ended: false,
        };
        state.open.insert(handle, open);
        Ok(handle)
    }

    /// Reads at most `size` bytes at FUSE's `offset`.
    pub(crate) fn read(&self, handle: u64, offset: u64, size: usize) -> Answer<Vec<u8>> {
        let mut state = self.state();
        let file = state.file(handle)?;
        let list = self.machine.ima().list();
        let position = file.descriptor.arrive(offset);
        let Some(reading) = &mut file.reading else {
            let text = self.number(file.file, &list);
            let start = usize::try_from(position).map_or(text.len(), |at| at.min(text.len()));
            let end = text.len().min(start.saturating_add(size));
            file.descriptor.read(end - start);
            return Ok(text.as_bytes()[start..end].to_vec());
        };
        if file.ended && offset > 0 && self.faults.end_for_ever() {
            return Ok(Vec::new());
        }
        let size = self.faults.read_size(size);
        let bytes = reading.read(&list, position, size, self.faults.wanted(size)).to_vec();
        file.ended = bytes.is_empty();
        file.descriptor.read(bytes.len());
        Ok(bytes)
    }

    /// Executes a request written at FUSE's `offset`; returns the number of bytes written.
    pub(crate) fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Answer<u32> {
        let mut state = self.state();
        let file = state.file(handle)?;
        let position = file.descriptor.arrive(offset);
        self.request(file.file, position, data).map_err(Refusal::Errno)?;
        // A request is at most 31 bytes.
        let len = self.faults.written(data.len() as u32);
        if self.faults.write_moves() {
            file.descriptor.read(len as usize);
        } else {
            file.descriptor.written(len as usize);
        }
        if self.faults.request_rewinds() {
            file.descriptor.rewind();
        }
        Ok(len)
    }

    /// Handles the close of one descriptor of the file by `thread`; other descriptors may remain.
    pub(crate) fn close(&self, handle: u64, thread: u64) {
        let mut state = self.state();
        let state = &mut *state;
        let thread = match state.in_place_of {
            Some((stand_in, writer)) if stand_in == thread => writer,
            _ => thread,
        };
        let Some(file) = state.open.get_mut(&handle) else { return };
        file.closer = thread;
        if self.faults.copy_frees()
            && let Some(open) = file.open.take()
        {
            state.lock.release(open, thread);
        }
    }

    /// Handles the close of the last descriptor.
    pub(crate) fn release(&self, handle: u64) {
        let mut state = self.state();
        let Some(file) = state.open.remove(&handle) else { return };
        // The lock of an earlier boot is gone.
        if let Some(open) = file.open.filter(|_| file.boot == state.boot) {
            self.faults.release(&mut state.lock, open, file.access, file.closer);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let boot = self.machine.boots();
        if state.boot != boot {
            state.lock = lock(&self.machine);
            state.boot = boot;
        }
        state
    }

    /// The thread that the kernel mistakes this one for. The kernel stores the writer's task
    /// pointer; after that thread ends, a new task may have the same address. Here this is the
    /// first thread that opens a file, until it ends.
    fn taken_for(&self, state: &mut State, thread: u64) -> u64 {
        let gone = |thread| u32::try_from(thread).is_ok_and(|thread| !caller::exists(thread));
        let Some(writer) = state.lock.writer() else { return thread };
        if !self.machine.has(Hazard::LockBooks) || !gone(writer) {
            return thread;
        }
        match state.in_place_of {
            Some((stand_in, of)) if of == writer && !gone(stand_in) && stand_in != thread => thread,
            _ => {
                state.in_place_of = Some((thread, writer));
                writer
            }
        }
    }

    fn request(&self, file: FileName, position: u64, write: &[u8]) -> Result<(), Errno> {
        let list = self.machine.ima().list();
        match self.faults.parse(write, file, position, self.grammar)? {
            Some(request) => {
                let down = self.machine.is_down();
                self.faults.act(&list, request, down, |request| self.act(&list, request))
            }
            None => Ok(()),
        }
    }

    fn act(&self, list: &SharedList, request: Request) -> Result<(), Errno> {
        match request {
            Request::Stage => list.stage().map(drop).map_err(refused_stage),
            Request::DeleteStaged => {
                drop(list.delete_staged().map_err(refused_deletion)?);
                // The records are deleted nevertheless.
                if self.machine.has(Hazard::NoMemory) { Err(Errno::ENOMEM) } else { Ok(()) }
            }
            Request::DeleteFirst(n) => {
                list.delete_first(n.get()).map(drop).map_err(refused_deletion)
            }
            Request::Trim { trimmed, n } => {
                drop(list.trim(trimmed, n).map_err(refused_trim)?);
                if n > 0 {
                    self.machine.ima().note_trim(self.faults.told_total(trimmed, n));
                }
                Ok(())
            }
        }
    }

    fn number(&self, file: FileName, list: &SharedList) -> String {
        let number = self.faults.number(file, list.counts(), list.trimmed());
        format!("{number}\n")
    }
}

impl State {
    fn file(&mut self, handle: u64) -> Answer<&mut OpenFile> {
        let file = self.open.get_mut(&handle).filter(|file| file.boot == self.boot);
        file.ok_or(Refusal::Gone)
    }
}

fn lock(machine: &Machine) -> OpenLock {
    let dialect: Dialect = machine.grammar().dialect;
    if machine.has(Hazard::LockBooks) {
        OpenLock::with_hazards(dialect)
    } else {
        OpenLock::new(dialect)
    }
}

fn refused_stage(error: StageError) -> Errno {
    match error {
        StageError::Pending => Errno::EEXIST,
        StageError::Empty => Errno::ENOENT,
        StageError::Suspended => Errno::EACCES,
    }
}

fn refused_deletion(error: DeleteError) -> Errno {
    match error {
        DeleteError::Pending => Errno::EEXIST,
        DeleteError::Empty | DeleteError::TooMany { .. } => Errno::ENOENT,
        DeleteError::Suspended | DeleteError::Dumped => Errno::ESTALE,
    }
}

fn refused_trim(error: TrimError) -> Errno {
    match error {
        TrimError::Flush => Errno::EINVAL,
        TrimError::TooMany { .. } => Errno::ENOENT,
        TrimError::WrongTotal { .. } | TrimError::Suspended => Errno::ESTALE,
    }
}
