//! The list in a process of its own, and what this process does without then.

use std::{
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use clap::ValueEnum;
use imastage_source::{Holders, STATE_ARGUMENT, SourceError, SourceProcess};
use rustix::thread::CapabilitySet;

use super::{args::DeleteModeName, event::Event};
use crate::{
    exit::{Fail, Failure},
    output::pass_log_level,
};

/// The process that has the list open (`imastage source-process`).
pub struct ListProcess {
    child: Child,
    /// The device through which the view's files are to be served that it mounted.
    view: Option<OwnedFd>,
}

/// The end of a [`ListProcess`]. Dropping it waits for that, which comes when its service is gone: then
/// the view is unmounted, and the list may have another service.
pub struct Ended(mpsc::Receiver<()>);

impl ListProcess {
    /// Starts it for the list in `dir`, and waits until it has it. It also mounts the `view`, if this
    /// process could: it will not be able to.
    pub fn start(
        dir: &Path,
        mode: Option<DeleteModeName>,
        state: &Path,
        view: Option<&Path>,
    ) -> Result<(ListProcess, SourceProcess), Failure> {
        let (ours, theirs) = UnixStream::pair().environment("socket")?;
        // Without a link to the program that was started, which an upgrade may replace.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("imastage").arg("source-process").arg(STATE_ARGUMENT).arg(state);
        command.arg("--source").arg(dir);
        if let Some(mode) = mode.and_then(|mode| mode.to_possible_value()) {
            command.arg("--delete-mode").arg(mode.get_name());
        }
        // Ctrl-C is for the service, which then drains once more.
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).process_group(0);
        let device = match view {
            Some(view) if has_admin()? => {
                let device = File::options().read(true).write(true).open("/dev/fuse");
                let device = OwnedFd::from(device.environment("/dev/fuse")?);
                let theirs = device.as_fd().try_clone_to_owned().environment("/dev/fuse")?;
                command.stdout(Stdio::from(theirs)).arg("--view").arg(view);
                Some(device)
            }
            _ => None,
        };
        pass_log_level(&mut command);
        let child = command.spawn().environment("the process that reads the list")?;
        // Its ends of the sockets: if it ends, that is to be seen.
        drop(command);
        let source = SourceProcess::connect(ours).map_err(refusal)?;
        Ok((ListProcess { child, view: device }, source))
    }

    /// Waits for its end in a thread, and tells `events`. Gives the view's device, if it mounted one.
    pub fn watch(self, events: mpsc::Sender<Event>) -> Result<(Option<OwnedFd>, Ended), Failure> {
        let ListProcess { mut child, view } = self;
        let (ended, end) = mpsc::sync_channel(1);
        let wait = move || {
            let why = match child.wait() {
                Ok(status) => describe(child.id(), status),
                Err(error) => format!("(pid {}) {error}", child.id()),
            };
            // The receiver is gone once the service shuts down.
            let _ = events.send(Event::ListLost(why));
            let _ = ended.send(());
        };
        thread::Builder::new().name("list".into()).spawn(wait).environment("thread")?;
        Ok((view, Ended(end)))
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(10);
        if let Err(mpsc::RecvTimeoutError::Timeout) = self.0.recv_timeout(PATIENCE) {
            tracing::warn!(
                "the process that reads the list does not end yet; it ends with this process"
            );
        }
    }
}

fn describe(pid: u32, status: ExitStatus) -> String {
    format!("(pid {pid}) {status}")
}

/// Closes the descriptors that this process inherited, except standard input, output and error: a
/// list file among them would keep the list in use while this process runs. To be called before any
/// thread is started or file opened.
pub fn close_inherited() -> Result<(), Failure> {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .environment("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // The descriptor that listed the others is already closed.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// Replaces standard input, which the service does not read, with `/dev/null`: a list file there
/// would keep the list in use.
pub fn replace_input() -> Result<(), Failure> {
    let null = File::open("/dev/null").environment("/dev/null")?;
    nix::unistd::dup2_stdin(null).environment("standard input")
}

/// Refuses a list of which standard output or error is a file.
pub fn refuse_to_hold(dir: &Path) -> Result<(), Failure> {
    let me = std::process::id();
    match Holders::find(dir).found.into_iter().find(|holder| holder.pid == me) {
        Some(holder) => Err(Failure::input(format!(
            "descriptor {} is {}: the service would keep its own list in use; start it without \
             that redirection",
            holder.fd,
            holder.path.display()
        ))),
        None => Ok(()),
    }
}

/// Whether this process has CAP_SYS_ADMIN.
pub fn has_admin() -> Result<bool, Failure> {
    let sets = rustix::thread::capabilities(None).environment("capabilities")?;
    Ok(sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Gives up CAP_SYS_ADMIN, for this thread and those that it starts.
pub fn drop_admin() -> Result<(), Failure> {
    // Programs that root starts have what is in the bounding set. To change it takes a capability that
    // the packaged unit does not have, and there no new privileges are to be had.
    let _ = rustix::thread::remove_capability_from_bounding_set(CapabilitySet::SYS_ADMIN);
    let mut sets = rustix::thread::capabilities(None).environment("capabilities")?;
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        set.remove(CapabilitySet::SYS_ADMIN);
    }
    // What is not permitted is not ambient, either.
    rustix::thread::set_capabilities(None, sets).environment("capabilities")
}

/// The exit code if a list cannot be opened.
pub(super) fn refusal(error: SourceError) -> Failure {
    match error {
        SourceError::NoDeleteMode { .. } => Failure::input(error),
        _ => Failure::environment(error),
    }
}
