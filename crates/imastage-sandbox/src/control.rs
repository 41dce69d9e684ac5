//! Asking a running sandbox, through a socket in its run directory.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use serde::{Deserialize, Serialize};

use crate::{Carried, Kexec, Machine, orders};

/// The link in a sandbox's mount that leads to its run directory. It is not listed: a directory
/// listing shows securityfs's files and nothing else.
pub const RUN_LINK: &str = ".imastage-sandbox";

/// What is asked of a sandbox; one JSON line on its control socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub enum Command {
    /// Measure these files, and all files below these directories.
    Measure {
        /// Absolute paths.
        paths: Vec<PathBuf>,
    },
    /// As [`Command::Measure`], by a policy rule with `pcr=`.
    MeasureInto {
        /// The PCR, 0 to 23.
        pcr: u32,
        /// Absolute paths.
        paths: Vec<PathBuf>,
    },
    /// Note that these files were changed while they were measured.
    Violation {
        /// Absolute paths. The files need not be there.
        paths: Vec<PathBuf>,
    },
    /// Measure data that is no file.
    CriticalData {
        /// What the record calls it.
        name: String,
        /// The data, in hex.
        data: String,
    },
    /// Add the records of a list.
    Replay {
        /// Absolute path of a binary list.
        path: PathBuf,
        /// Records a second at most.
        rate: Option<u64>,
    },
    /// Stop measuring, as a machine does that goes down.
    Suspend {
        /// Write the records for a next kernel, as it does last.
        dump: bool,
    },
    /// Go on with another kernel, the TPM as it is.
    Kexec(Kexec),
    /// Go down and up, the TPM too.
    Reboot,
    /// Tell the state.
    Status,
}

/// What a sandbox answers; JSON lines, all but the last [`Answer::Progress`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    /// So far.
    Progress(Measured),
    /// All of it.
    Done(Measured),
    /// The state.
    Status(Status),
    /// What a kexec carried over.
    Kexec(Carried),
    /// It could not be done.
    Failed {
        /// Why.
        why: String,
    },
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Files that made a record.
    pub added: u64,
    /// Files that were known already.
    pub known: u64,
    /// Files that could not be read; the first few with the reason.
    pub unreadable: u64,
    /// The first few of the files that could not be read, and why.
    pub examples: Vec<String>,
}

/// The state of a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// Every record the list ever held.
    pub total: u64,
    /// Records in the current list.
    pub current: u64,
    /// Records in the staged list.
    pub staged: u64,
    /// Records that were trimmed since it booted.
    pub trimmed: u64,
    /// Violations measured.
    pub violations: u64,
    /// Bytes of records that were let go (sha1 form).
    pub freed_bytes: u64,
    /// Bytes of records in the list (sha1 form).
    pub held_bytes: u64,
    /// Records that did not extend the TPM because it failed.
    pub failed_extends: u64,
}

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
    let mut stream = UnixStream::connect(&socket).map_err(|error| {
        let text = format!("{}: no sandbox answers there: {error}", mount.display());
        io::Error::new(error.kind(), text)
    })?;
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    for line in BufReader::new(stream).lines() {
        match serde_json::from_str(&line?)? {
            Answer::Progress(measured) => progress(&measured),
            Answer::Failed { why } => return Err(io::Error::other(why)),
            answer => return Ok(answer),
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the sandbox ended before it answered"))
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
    BufReader::new(stream.try_clone()?).take(LONGEST_COMMAND).read_line(&mut line)?;
    let mut out = stream;
    let mut reply = |answer: &Answer| -> io::Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        out.write_all(&line)
    };
    let done = match serde_json::from_str(&line) {
        Ok(command) => orders::carry_out(machine, command, &mut |so_far| {
            reply(&Answer::Progress(so_far.clone()))
        }),
        Err(error) => Err(io::Error::other(format!("not a command: {error}"))),
    };
    // If it is the client who left, it does not hear this either.
    reply(&done.unwrap_or_else(|error| Answer::Failed { why: error.to_string() }))
}
