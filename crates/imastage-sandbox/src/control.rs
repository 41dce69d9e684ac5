//! The control socket of a running sandbox, in its run directory: client and server.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::net::{
    self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt, sockopt::Timeout,
};

pub use crate::wire::{Answer, Command, Measured, Status};
use crate::{Machine, commands};

/// The link in a sandbox's mount to its run directory. Directory listings omit it: they show only
/// securityfs's files.
pub const RUN_LINK: &str = ".imastage-sandbox";

/// Sends a command to the sandbox at `mount` and returns its answer. Calls `progress` with every
/// intermediate answer.
///
/// # Errors
/// [`io::Error`] if no sandbox answers, or the command fails.
pub fn ask(
    mount: &Path,
    command: &Command,
    progress: &mut dyn FnMut(&Measured),
) -> io::Result<Answer> {
    let socket = mount.join(RUN_LINK).join("control.sock");
    let patience = patience(command);
    let mut stream = connect(&socket, patience).map_err(|error| {
        let text = format!("{}: no sandbox answers: {error}", mount.display());
        io::Error::new(error.kind(), text)
    })?;
    let pid = sockopt::socket_peercred(&stream).ok().map(|peer| peer.pid);
    let silent = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "{}: the sandbox{} does not answer (waited {} s); the process is stopped, or its \
                 TPM hangs",
                mount.display(),
                pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(),
                patience.as_secs()
            ),
        ),
        _ => error,
    };
    let list = match command {
        Command::Replay { path, .. } => Some((path, File::open(path).map_err(about(path))?)),
        _ => None,
    };
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(silent)?;
    let to = stream.try_clone()?;
    // Concurrently: the sandbox blocks if its progress answers are not read.
    thread::scope(|scope| {
        let sending =
            list.map(|(path, list)| scope.spawn(move || send(list, to).map_err(about(path))));
        let answer = hear(stream, progress).map_err(silent);
        match sending.map(|sending| sending.join()) {
            // A read error of the list explains the sandbox's error.
            Some(Ok(Err(error))) => Err(error),
            _ => answer,
        }
    })
}

/// The time without an answer after which the sandbox counts as hung.
fn patience(command: &Command) -> Duration {
    match command {
        Command::Status => Duration::from_secs(5),
        // Progress is sent every 100 records, which at the slowest rate is every 100 seconds.
        _ => Duration::from_secs(150),
    }
}

/// Connects to a socket. `patience` limits the connect and every later send and receive.
fn connect(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    let stream =
        net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    for direction in [Timeout::Send, Timeout::Recv] {
        sockopt::set_socket_timeout(&stream, direction, Some(patience))?;
    }
    let address = SocketAddrUnix::new(socket)?;
    // With a timeout set, the kernel does not restart connect(2) after a signal.
    rustix::io::retry_on_intr(|| net::connect(&stream, &address))?;
    Ok(UnixStream::from(stream))
}

fn about(path: &Path) -> impl Fn(io::Error) -> io::Error {
    let path = path.display().to_string();
    move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// Sends the content of a file. If the sandbox stops reading, its answer gives the reason.
fn send(mut list: File, mut to: UnixStream) -> io::Result<()> {
    let mut chunk = vec![0; 64 << 10];
    loop {
        match list.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => {
                if to.write_all(&chunk[..n]).is_err() {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let _ = to.shutdown(Shutdown::Write);
                return Err(error);
            }
        }
    }
    // Fails if the peer has closed the connection, which is harmless.
    let _ = to.shutdown(Shutdown::Write);
    Ok(())
}

fn hear(stream: UnixStream, progress: &mut dyn FnMut(&Measured)) -> io::Result<Answer> {
    let shut = stream.try_clone()?;
    let answer = BufReader::new(stream).lines().find_map(|line| {
        let answer = line.and_then(|line| Ok(serde_json::from_str(&line)?));
        match answer {
            Ok(Answer::Progress(measured)) => {
                progress(&measured);
                None
            }
            Ok(Answer::Failed { why }) => Some(Err(io::Error::other(why))),
            answer => Some(answer),
        }
    });
    // Ends a `send` that is still running.
    let _ = shut.shutdown(Shutdown::Both);
    let ended =
        || io::Error::new(io::ErrorKind::UnexpectedEof, "the sandbox ended before it answered");
    answer.unwrap_or_else(|| Err(ended()))
}

/// Serves the control socket until the process ends.
pub(crate) fn serve(machine: Arc<Machine>, listener: UnixListener) -> io::Result<()> {
    let accept = move || {
        for stream in listener.incoming().flatten() {
            let machine = Arc::clone(&machine);
            let spawned = thread::Builder::new().name("control".into()).spawn(move || {
                if let Err(error) = answer(&machine, stream) {
                    tracing::debug!(%error, "control socket: client disconnected");
                }
            });
            if let Err(error) = spawned {
                tracing::error!(%error, "control socket: cannot start a thread for a client");
            }
        }
    };
    thread::Builder::new().name("control-accept".into()).spawn(accept).map(drop)
}

fn answer(machine: &Machine, stream: UnixStream) -> io::Result<()> {
    /// In bytes; allows a few thousand paths per command.
    const LONGEST_COMMAND: u64 = 1 << 20;
    let mut line = String::new();
    let mut from = BufReader::new(stream.try_clone()?);
    (&mut from).take(LONGEST_COMMAND).read_line(&mut line)?;
    let mut out = stream;
    let mut reply = |answer: &Answer| -> io::Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        out.write_all(&line)
    };
    let done = match serde_json::from_str(&line) {
        Ok(command) => commands::execute(machine, command, &mut from, &mut |so_far| {
            reply(&Answer::Progress(so_far.clone()))
        }),
        Err(error) => Err(io::Error::other(format!("malformed command: {error}"))),
    };
    // Also fails if the client has disconnected.
    reply(&done.unwrap_or_else(|error| Answer::Failed { why: error.to_string() }))
}
