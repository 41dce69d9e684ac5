//! Asking a running sandbox, through a socket in its run directory.

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

/// The link in a sandbox's mount that leads to its run directory. It is not listed: a directory
/// listing shows securityfs's files and nothing else.
pub const RUN_LINK: &str = ".imastage-sandbox";

/// Asks the sandbox behind `mount`, calling `progress` as it goes.
///
/// # Errors
/// [`io::Error`] if there is no sandbox, or it says that it cannot.
pub fn ask(
    mount: &Path,
    command: &Command,
    progress: &mut dyn FnMut(&Measured),
) -> io::Result<Answer> {
    let socket = mount.join(RUN_LINK).join("control.sock");
    let patience = patience(command);
    let mut stream = connect(&socket, patience).map_err(|error| {
        let text = format!("{}: no sandbox answers there: {error}", mount.display());
        io::Error::new(error.kind(), text)
    })?;
    let pid = sockopt::socket_peercred(&stream).ok().map(|peer| peer.pid);
    let silent = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "{}: the sandbox{} does not answer (waited {} s); it is stopped, or its TPM hangs",
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
    // Beside each other: who does not hear how far it is, does not get further.
    thread::scope(|scope| {
        let sending =
            list.map(|(path, list)| scope.spawn(move || send(list, to).map_err(about(path))));
        let answer = hear(stream, progress).map_err(silent);
        match sending.map(|sending| sending.join()) {
            // Why the sandbox did not get what it was to read.
            Some(Ok(Err(error))) => Err(error),
            _ => answer,
        }
    })
}

/// How long the sandbox may say nothing.
fn patience(command: &Command) -> Duration {
    match command {
        Command::Status => Duration::from_secs(5),
        // It says how far it is every 100 records, at the slowest rate every 100 seconds.
        _ => Duration::from_secs(150),
    }
}

/// A connection on which nothing is waited for longer than `patience`, this included.
fn connect(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    let stream =
        net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    for direction in [Timeout::Send, Timeout::Recv] {
        sockopt::set_socket_timeout(&stream, direction, Some(patience))?;
    }
    let address = SocketAddrUnix::new(socket)?;
    // With a limit, the kernel does not restart it after a signal.
    rustix::io::retry_on_intr(|| net::connect(&stream, &address))?;
    Ok(UnixStream::from(stream))
}

fn about(path: &Path) -> impl Fn(io::Error) -> io::Error {
    let path = path.display().to_string();
    move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// Sends what is in a file. Where the sandbox does not want any more, it says why itself.
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
    // If it has gone, it hears no end.
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
    // What is still being sent is not needed.
    let _ = shut.shutdown(Shutdown::Both);
    let ended =
        || io::Error::new(io::ErrorKind::UnexpectedEof, "the sandbox ended before it answered");
    answer.unwrap_or_else(|| Err(ended()))
}

/// Serves the control socket. Ends with the process.
pub(crate) fn serve(machine: Arc<Machine>, listener: UnixListener) -> io::Result<()> {
    let accept = move || {
        for stream in listener.incoming().flatten() {
            let machine = Arc::clone(&machine);
            let spawned = thread::Builder::new().name("control".into()).spawn(move || {
                if let Err(error) = answer(&machine, stream) {
                    tracing::debug!(%error, "a client of the control socket left");
                }
            });
            if let Err(error) = spawned {
                tracing::error!(%error, "no thread for a client of the control socket");
            }
        }
    };
    thread::Builder::new().name("control-accept".into()).spawn(accept).map(drop)
}

fn answer(machine: &Machine, stream: UnixStream) -> io::Result<()> {
    /// Room for a few thousand paths; more come in more requests.
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
        Err(error) => Err(io::Error::other(format!("not a command: {error}"))),
    };
    // If it is the client who left, it does not hear this either.
    reply(&done.unwrap_or_else(|error| Answer::Failed { why: error.to_string() }))
}
