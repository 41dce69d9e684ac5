use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::ValueEnum;
use imastage_sandbox::TpmChoice;
use imastage_service::{ClosedEpochs, Config, Service};
use imastage_source::{Flavour, Source, SourceError};
use imastage_tpm::Endpoint;

use crate::{
    commands::{retention::RetentionArgs, state_dir, status::health_text},
    config::Settings,
    exit::{Fail, Failure, Outcome},
    output::Output,
};

mod embedded;
mod supervise;

use embedded::Embedded;
pub use embedded::fuse_is_there;
use supervise::Supervisor;

/// Drain a measurement list into a state directory, for good, and answer for it.
///
/// Runs until it is told to stop (Ctrl-C, SIGTERM). `imastage attest`, `verify --state` and `status`
/// talk to it through the state directory.
#[derive(clap::Args)]
pub struct Args {
    /// Read options from this file, too: its keys are named as the options. What the command line
    /// says, wins. SIGHUP reads it again.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The list: a directory with securityfs's files, `embedded` (a sandbox in a process of its
    /// own, or where FUSE cannot be had, in this one), or `in-process`. How the directory's kernel
    /// lets go of records is found out by looking; if it does not, the list is followed.
    #[arg(long, value_name = "DIR", default_value = "embedded")]
    source: PathBuf,
    /// The state directory [default: /var/lib/imastage as root, else ~/.local/state/imastage].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// How records leave the list, where its kernel leaves the choice (Linux 7.2) [default: stage].
    #[arg(long, value_name = "FLAVOUR")]
    flavour: Option<FlavourName>,
    /// The TPM that the list extends: a device, `unix:PATH`, `tcp:HOST:PORT` or `none` [default:
    /// the sandbox's own, or /dev/tpmrm0].
    #[arg(long, value_name = "TPM")]
    tpm: Option<String>,
    /// The longest time between two drains, in milliseconds. Reading the kernel's list takes time
    /// quadratic in its length, so keep it short.
    #[arg(long, value_name = "MS", default_value_t = Config::EVERY_MS, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    every: u64,
    /// Drain as soon as so many records are in the list.
    #[arg(long, value_name = "RECORDS", default_value_t = Config::DRAIN_AT, value_parser = clap::value_parser!(u64).range(1..))]
    drain_at: u64,
    /// Compress closed epochs when the service starts, which is when one is closed.
    #[arg(long)]
    pack: bool,
    #[command(flatten)]
    kept: RetentionArgs,
    /// Run this command (with `sh -c`) whenever something begins or ends to be wrong. It finds the
    /// worst of it in $IMASTAGE_STATE (ok, damaged, altered, diverged, not-extended, cannot-drain, busy,
    /// cannot-compare, ...), the verdict in $IMASTAGE_VERDICT and all of `imastage --json status` in
    /// $IMASTAGE_STATUS.
    #[arg(long, value_name = "COMMAND")]
    alert: Option<String>,
    /// Show what is stored as files in this directory, named as the kernel's, as if nothing had ever
    /// been deleted: for agents that read the list themselves.
    #[arg(long, value_name = "DIR")]
    view: Option<PathBuf>,
    /// Who may read the view besides root: a group's name or number [default: our own group].
    #[arg(long, value_name = "GROUP", requires = "view", value_parser = group)]
    view_group: Option<u32>,
    /// Who may ask the service besides its owner, through the socket in the state directory: a
    /// group's name or number.
    #[arg(long, value_name = "GROUP", value_parser = group)]
    group: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum FlavourName {
    /// Stage all, store, delete what was staged.
    Stage,
    /// Read, store, delete the first N.
    DeleteN,
}

/// The keys of the configuration whose change takes effect at once.
pub const RELOADED: &[&str] = &["alert", "drain-at", "every"];

impl Args {
    fn config(&self, state: PathBuf, tpm: Option<Endpoint>) -> Config {
        Config {
            every: Duration::from_millis(self.every),
            drain_at: self.drain_at,
            alert: self.alert.clone(),
            closed: ClosedEpochs { pack: self.pack, kept: self.kept.clone().into() },
            tpm,
            group: self.group,
            ..Config::new(state)
        }
    }
}

/// A long list takes longer; nobody waits for that.
const FIRST_DRAIN: Duration = Duration::from_secs(10);

/// Runs `imastage run`.
pub fn run(args: Args, settings: Settings, out: &Output) -> Result<Outcome, Failure> {
    let supervisor = Supervisor::start()?;
    let settings = args.config.is_some().then_some(settings);
    let state = state_dir(args.state.clone())?;
    let flavour = args.flavour.map(|flavour| match flavour {
        FlavourName::Stage => Flavour::Stage,
        FlavourName::DeleteN => Flavour::DeleteN,
    });
    let chosen = match args.tpm.as_deref() {
        None => None,
        Some("none") => Some(None),
        Some(tpm) => Some(Some(tpm.parse::<Endpoint>().input("--tpm")?)),
    };
    let config = |tpm: Option<Endpoint>| args.config(state.clone(), tpm);

    // The records are for their owner's eyes, whoever makes the directory first.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&state);
    made.environment(state.display())?;
    let embedded = match args.source.to_str() {
        Some("embedded") => Some(Embedded::start(&state, &embedded_tpm(&chosen))?),
        Some("in-process") => Some(Embedded::in_process(&state, &embedded_tpm(&chosen))?),
        _ => None,
    };
    let service = match &embedded {
        Some(embedded) => Service::start(config(embedded.tpm()), embedded.source(flavour)?),
        None => {
            let mut source = open(&args.source, flavour)?;
            require_permission(source.as_mut())?;
            let found = || imastage_sandbox::tpm_of(&args.source).or_else(Endpoint::system);
            Service::start(config(chosen.unwrap_or_else(found)), source)
        }
    }
    .environment("service")?;
    let view = args.view.as_deref().map(|dir| service.mount_view(dir, args.view_group));
    let view = view.transpose().environment("view")?;

    // Whoever is told that it is ready may ask how it is. If it cannot drain, its health tells.
    let _ = service.drain_within(FIRST_DRAIN);
    let status = service.status();
    let text = format!(
        "draining {} ({}) into {}: {} records stored so far; Ctrl-C stops",
        status.since_start.source,
        status.since_start.dialect,
        state.display(),
        status.records
    );
    out.answer(&status, text)?;
    let ended = supervisor.supervise(&service, settings, out);
    drop(view);
    let shared_status = service.stop();
    if let Some(embedded) = embedded {
        embedded.stop();
    }
    let text = format!(
        "stopped: {} records stored; {}",
        shared_status.records,
        health_text(&shared_status, out)
    );
    out.answer(&shared_status, text)?;
    match ended {
        Some(why) => Err(Failure::environment(why)),
        None => Ok(Outcome::Fine),
    }
}

fn open(dir: &Path, flavour: Option<Flavour>) -> Result<Box<dyn Source>, Failure> {
    imastage_source::open(dir, flavour).map_err(|error| match error {
        SourceError::NoFlavour { .. } => Failure::input(error),
        _ => Failure::environment(error),
    })
}

/// A list that is busy will be free again; one that may never be held is no use waiting for.
fn require_permission(source: &mut dyn Source) -> Result<(), Failure> {
    match source.try_open() {
        Err(error @ (SourceError::NotPermitted { .. } | SourceError::Missing { .. })) => {
            Err(Failure::environment(error))
        }
        _ => Ok(()),
    }
}

/// The number of a group that is given by name or number.
fn group(text: &str) -> Result<u32, String> {
    match nix::unistd::Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => text.parse().map_err(|_| "there is no such group".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The TPM that a sandbox of ours extends, if the user chose one.
fn embedded_tpm(chosen: &Option<Option<Endpoint>>) -> TpmChoice {
    match chosen {
        None => TpmChoice::Swtpm,
        Some(None) => TpmChoice::None,
        Some(Some(endpoint)) => TpmChoice::At(endpoint.clone()),
    }
}
