//! Helper processes, which open files and start programs on behalf of the cases.
//!
//! They are started before the first file of the list is opened, and this process forks no more:
//! Linux 7.2 can lose its writer lock if a writer's descriptor is copied by fork(2).
#![allow(clippy::disallowed_methods)]

mod process;

use std::{
    ffi::OsStr,
    io::{self, IoSlice},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    fs::OFlags,
    net::{
        self, AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown,
        SocketFlags, SocketType, sockopt, sockopt::Timeout,
    },
};

pub use process::serve_helper;

use crate::errno::{Answer, Errno};

/// The only argument of a helper process. A program that receives it calls [`serve_helper`].
pub const HELPER: &str = "conformance-helper";

/// The number of helper processes, and so of programs that are executed at the same time.
pub(crate) const HELPERS: usize = 4;

/// The time limit of one request, which may execute a user's command on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// The maximum size of a message in bytes: a request with two paths fits.
const MESSAGE: usize = 1 << 16;

/// The first field of a request.
mod verb {
    /// open(2) and close(2): flags, path.
    pub(super) const OPEN: &str = "open";
    /// Executes a program to its end: path, arguments.
    pub(super) const RUN: &str = "run";
    /// Starts a shell script and returns the first line of its output: script, arguments.
    pub(super) const START: &str = "start";
    /// Sends SIGKILL to the started script.
    pub(super) const KILL: &str = "kill";
    /// Closes the input of the started script and waits for the end of its output.
    pub(super) const FINISH: &str = "finish";
    /// Keeps the descriptor sent with this request.
    pub(super) const KEEP: &str = "keep";
    /// Copies what the kept descriptor reads to a new file: path.
    pub(super) const COPY: &str = "copy";
    /// Closes the kept descriptor.
    pub(super) const CLOSE: &str = "close";
}

/// The first field of a reply: success, followed by a text.
const OK: &str = "ok";
/// A failed system call, followed by its error number.
const ERRNO: &str = "errno";
/// Another failure, followed by a text.
const ERROR: &str = "error";

/// All helper processes.
pub(crate) struct Helpers(Vec<Mutex<Helper>>);

/// A helper process; it exits when its socket is closed.
struct Helper {
    socket: OwnedFd,
    child: Child,
}

impl Helpers {
    /// Starts the processes.
    pub(crate) fn start(program: &Path) -> io::Result<Helpers> {
        let all = (0..HELPERS).map(|_| Helper::start(program).map(Mutex::new));
        let helpers = Helpers(all.collect::<io::Result<_>>()?);
        // A program that is not a helper is recognized now.
        for helper in &helpers.0 {
            lock(helper).done(verb::CLOSE, &[], None)?;
        }
        Ok(helpers)
    }

    /// open(2) and close(2).
    pub(crate) fn open(&self, path: &Path, flags: OFlags) -> Answer<()> {
        let flags = flags.bits().to_string();
        let reply = self.first()?.ask(verb::OPEN, &[flags.as_ref(), path.as_os_str()], None)?;
        match reply {
            Reply::Done(_) => Ok(()),
            Reply::Errno(errno) => Err(errno),
            Reply::Failed(_) => Err(Errno(0)),
        }
    }

    /// Executes a program to its end; the error has its standard error. Can be called from several
    /// threads.
    pub(crate) fn run(&self, program: &Path, args: &[&OsStr]) -> io::Result<()> {
        let fields = [&[program.as_os_str()], args].concat();
        let free = self.0.iter().rev().find_map(|helper| helper.try_lock().ok());
        free.map_or_else(|| self.first(), Ok)?.done(verb::RUN, &fields, None).map(drop)
    }

    /// Starts a shell script with `paths` as its arguments; returns the first line of its output.
    pub(crate) fn start_script(&self, script: &str, paths: &[PathBuf]) -> io::Result<String> {
        let paths = paths.iter().map(|path| path.as_os_str());
        let fields: Vec<_> = [OsStr::new(script)].into_iter().chain(paths).collect();
        self.first()?.done(verb::START, &fields, None)
    }

    /// Kills the started script.
    pub(crate) fn kill_script(&self) -> io::Result<()> {
        self.first()?.done(verb::KILL, &[], None).map(drop)
    }

    /// Ends the input of the started script; returns when it and its children have exited.
    pub(crate) fn finish_script(&self) -> io::Result<()> {
        self.first()?.done(verb::FINISH, &[], None).map(drop)
    }

    /// Passes a descriptor to the helper, which keeps it.
    pub(crate) fn keep(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.first()?.done(verb::KEEP, &[], Some(fd)).map(drop)
    }

    /// Copies what the kept descriptor reads to a new file.
    pub(crate) fn copy_kept(&self, to: &Path) -> io::Result<()> {
        self.first()?.done(verb::COPY, &[to.as_os_str()], None).map(drop)
    }

    /// Closes the kept descriptor.
    pub(crate) fn close_kept(&self) -> io::Result<()> {
        self.first()?.done(verb::CLOSE, &[], None).map(drop)
    }

    /// The process for requests that belong together.
    fn first(&self) -> io::Result<MutexGuard<'_, Helper>> {
        self.0.first().map(lock).ok_or_else(|| io::Error::other("no helper process"))
    }
}

fn lock(helper: &Mutex<Helper>) -> MutexGuard<'_, Helper> {
    helper.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reply to a request.
enum Reply {
    Done(String),
    Errno(Errno),
    Failed(String),
}

impl Helper {
    fn start(program: &Path) -> io::Result<Helper> {
        let kind = SocketType::SEQPACKET;
        let (socket, theirs) =
            net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(LIMIT))?;
        let child = Command::new(program)
            .arg(HELPER)
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Helper { socket, child })
    }

    /// Requests something that succeeds; returns the text of the reply.
    fn done(
        &self,
        verb: &str,
        fields: &[&OsStr],
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<String> {
        match self.ask(verb, fields, fd)? {
            Reply::Done(text) => Ok(text),
            Reply::Errno(Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Reply::Failed(text) => Err(io::Error::other(text)),
        }
    }

    fn ask(&self, verb: &str, fields: &[&OsStr], fd: Option<BorrowedFd<'_>>) -> io::Result<Reply> {
        let asked = self.send(verb, fields, fd).and_then(|()| self.receive());
        asked.inspect_err(|_| {
            // A late reply must not answer the next request. If this fails, so will that.
            let _ = net::shutdown(&self.socket, Shutdown::Both);
        })
    }

    fn send(&self, verb: &str, fields: &[&OsStr], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let fields = fields.iter().map(|field| field.as_bytes());
        let message = [verb.as_bytes()].into_iter().chain(fields).collect::<Vec<_>>().join(&0);
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = fd.as_slice();
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        net::sendmsg(&self.socket, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Reply> {
        let mut buffer = vec![0; MESSAGE];
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut *buffer));
        let len = read.map_err(|errno| match errno {
            rustix::io::Errno::AGAIN => {
                let text = format!("a helper process did not answer in {} s", LIMIT.as_secs());
                io::Error::new(io::ErrorKind::TimedOut, text)
            }
            errno => errno.into(),
        })?;
        let text = String::from_utf8_lossy(buffer.get(..len).unwrap_or_default()).into_owned();
        match text.split_once('\0') {
            Some((OK, text)) => Ok(Reply::Done(text.into())),
            Some((ERROR, text)) => Ok(Reply::Failed(text.into())),
            Some((ERRNO, number)) => Ok(Reply::Errno(Errno(number.parse().unwrap_or_default()))),
            _ => Err(io::Error::other("a helper process has exited, or is not a helper")),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It exits at the end of its input; SIGKILL is for one that is stuck in a program.
        let _ = net::shutdown(&self.socket, Shutdown::Both);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
