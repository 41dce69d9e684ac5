//! The helper process: performs requests from its standard input, one at a time.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, BufRead, BufReader, IoSliceMut, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    process::{Child, ChildStdout, Command, Stdio},
};

use rustix::{
    fs::{Mode, OFlags},
    net::{self, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags},
};

use super::{ERRNO, ERROR, MESSAGE, OK, verb};

/// The maximum length of a text in a reply, in bytes.
const TEXT: usize = 4096;

/// Performs the requests on standard input, which must be the socket of a test run, until its end.
///
/// # Errors
/// [`io::Error`] if standard input is not such a socket.
pub fn serve_helper() -> io::Result<()> {
    let mut helper = Process::default();
    let socket = io::stdin();
    let mut buffer = vec![0; MESSAGE];
    loop {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = net::recvmsg(socket.as_fd(), &mut slices, &mut control, flags);
        let len = match received {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if len == 0 {
            return Ok(());
        }
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let message = buffer.get(..len).unwrap_or_default();
        let fields = message.split(|byte| *byte == 0).map(OsStr::from_bytes).collect::<Vec<_>>();
        let reply = match helper.perform(&fields, fd) {
            Ok(text) => [OK, clipped(&text)].join("\0"),
            Err(error) => match error.raw_os_error() {
                Some(errno) => [ERRNO, &errno.to_string()].join("\0"),
                None => [ERROR, clipped(&error.to_string())].join("\0"),
            },
        };
        net::send(socket.as_fd(), reply.as_bytes(), SendFlags::NOSIGNAL)?;
    }
}

/// What the helper has open and has started.
#[derive(Default)]
struct Process {
    kept: Option<OwnedFd>,
    script: Option<(Child, BufReader<ChildStdout>)>,
}

impl Process {
    fn perform(&mut self, fields: &[&OsStr], fd: Option<OwnedFd>) -> io::Result<String> {
        let Some((verb, fields)) = fields.split_first() else { return Err(invalid()) };
        match (verb.to_str().unwrap_or_default(), fields) {
            (verb::OPEN, [flags, path]) => {
                let bits = flags.to_str().and_then(|bits| bits.parse().ok()).ok_or_else(invalid)?;
                let flags = OFlags::from_bits_retain(bits) | OFlags::CLOEXEC;
                rustix::fs::open(*path, flags, Mode::from_raw_mode(0o600))?;
            }
            (verb::RUN, [program, args @ ..]) => run(program, args)?,
            (verb::START, [script, args @ ..]) => return self.start(script, args),
            (verb::KILL, []) => self.kill(),
            (verb::FINISH, []) => self.finish()?,
            (verb::KEEP, []) => self.kept = Some(fd.ok_or_else(invalid)?),
            (verb::COPY, [to]) => {
                let mut bytes = Vec::new();
                File::from(self.kept.as_ref().ok_or_else(invalid)?.try_clone()?)
                    .read_to_end(&mut bytes)?;
                fs::write(to, bytes)?;
            }
            (verb::CLOSE, []) => self.kept = None,
            _ => return Err(invalid()),
        }
        Ok(String::new())
    }

    fn start(&mut self, script: &OsStr, args: &[&OsStr]) -> io::Result<String> {
        self.kill();
        let mut child = Command::new("/bin/sh")
            .arg("-c")
            .arg(script)
            .arg("sh")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = child.stdout.take().ok_or_else(invalid)?;
        let (_, output) = self.script.insert((child, BufReader::new(output)));
        let mut line = String::new();
        output.read_line(&mut line)?;
        if line.is_empty() {
            self.kill();
            return Err(io::Error::other("the script failed"));
        }
        Ok(line.trim_end().to_owned())
    }

    /// The kernel closes the files of the killed process.
    fn kill(&mut self) {
        if let Some((mut child, _)) = self.script.take() {
            // The process may have exited already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        let (mut child, mut output) = self.script.take().ok_or_else(invalid)?;
        drop(child.stdin.take());
        output.read_to_end(&mut Vec::new())?;
        child.wait().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn run(program: &OsStr, args: &[&OsStr]) -> io::Result<()> {
    let args: Vec<OsString> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let output =
        Command::new(program).args(args).env("LC_ALL", "C").stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{}: {}", output.status, said.trim())))
}

fn invalid() -> io::Error {
    io::Error::other("invalid request to a helper process")
}

fn clipped(text: &str) -> &str {
    text.get(..text.floor_char_boundary(TEXT)).unwrap_or_default()
}
