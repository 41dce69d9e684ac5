//! The process that has the list's files open (`imastage_source::serve`). It has one thread, starts no
//! program, and of a service's processes it alone keeps CAP_SYS_ADMIN.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
};

use imastage_source::{DeleteMode, ListLock, Source, SourceError};
use nix::sys::signal::{SigSet, Signal};

use crate::{
    commands::run::{DeleteModeName, close_inherited},
    exit::{Fail, Failure, Outcome},
};

/// Has a service's list open, and answers the service; started by `imastage run`.
///
/// Standard input is a socket to the service, standard output the device of a view to be mounted.
#[derive(clap::Args)]
pub struct Args {
    /// The list's directory.
    #[arg(long, value_name = "DIR")]
    source: PathBuf,
    /// As of `imastage run`.
    #[arg(long, value_name = "MODE")]
    delete_mode: Option<DeleteModeName>,
    /// The service's state directory, for others to see.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Where the view is to be mounted.
    #[arg(long, value_name = "DIR")]
    view: Option<PathBuf>,
}

/// Runs `imastage source-process`.
pub fn run(args: &Args) -> Result<Outcome, Failure> {
    close_inherited()?;
    // It ends with its service, and not before: the last drain is made after the signal to stop.
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill).environment("prctl")?;
    let stopping = SigSet::from_iter([Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM]);
    stopping.thread_block().environment("signals")?;
    rustix::thread::set_name(c"imastage-source").environment("prctl")?;
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().environment("socket")?);

    let mut held = None;
    let mut mounted = None;
    let source = open(args, &mut held).and_then(|source| {
        if let Some(view) = &args.view {
            mount(view)?;
            mounted = Some(view);
        }
        Ok(source)
    });
    let served = imastage_source::serve(socket, source);
    if let Some(view) = mounted
        && let Err(error) = imastage_mount::unmount(view)
    {
        tracing::warn!("{}: unmount: {error}", view.display());
    }
    drop(held);
    served.environment("the service of this process")?;
    Ok(Outcome::Fine)
}

fn open(args: &Args, held: &mut Option<ListLock>) -> Result<Box<dyn Source>, SourceError> {
    let mode = args.delete_mode.map(DeleteMode::from);
    let source = imastage_source::open(&args.source, mode)?;
    // Any number of services may follow a list.
    if source.dialect() != imastage_source::Dialect::Follow {
        *held = Some(ListLock::take(&args.source)?);
    }
    Ok(source)
}

fn mount(view: &Path) -> Result<(), SourceError> {
    imastage_mount::mount_read_only(io::stdout().as_fd(), view).map_err(|error| SourceError::Io {
        path: view.to_owned(),
        doing: "mount",
        error,
    })
}
