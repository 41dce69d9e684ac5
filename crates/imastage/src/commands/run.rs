//! `imastage run`: starts the service with its list, its view and its configuration.

use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use imastage_sandbox::TpmChoice;
use imastage_service::{ClosedEpochs, Config, Service};
use imastage_source::{DEFAULT_DIR, DeleteMode, Dialect, Source, SourceError};
use imastage_tpm::Endpoint;
use imastage_view::ViewError;

use crate::{
    commands::{EMBEDDED, MACHINE, default_state_dir, status::health_text},
    config::Settings,
    exit::{Fail, Failure, Outcome},
    output::Output,
};

pub mod args;
mod check;
mod embedded;
mod event;
mod process;
mod supervise;

pub use args::{Args, DeleteModeName};
use embedded::Embedded;
pub use embedded::fuse_is_there;
pub use process::close_inherited;
use process::{ListProcess, replace_input};
use supervise::Supervisor;

impl Args {
    fn config(&self, state: PathBuf, tpm: Option<Endpoint>) -> Config {
        Config {
            every: Duration::from_millis(self.every),
            drain_at: self.drain_at,
            alert: self.alert.clone(),
            closed: ClosedEpochs { pack: self.pack, kept: self.kept.clone().into() },
            tpm,
            group: self.group,
            adopt: self.adopt,
            ..Config::new(state)
        }
    }
}

/// What the options of `imastage run` say of the places that `imastage doctor` examines.
pub struct Examined {
    /// The list's directory; `Err` says why there is none.
    pub source: Result<Option<PathBuf>, String>,
    /// The state directory.
    pub state: Option<PathBuf>,
    /// Where the view is to be mounted.
    pub view: Option<PathBuf>,
    /// The TPM.
    pub tpm: Option<String>,
}

impl Args {
    /// The places that `imastage doctor` examines.
    pub fn examined(self) -> Examined {
        let source = match self.source {
            Some(source)
                if source == Path::new("embedded") || source == Path::new("in-process") =>
            {
                Err(format!("source = '{}': not the list of this machine", source.display()))
            }
            source => Ok(source),
        };
        Examined { source, state: self.state, view: self.view, tpm: self.tpm }
    }
}

/// The list to be drained.
enum List {
    Embedded,
    InProcess,
    Directory(PathBuf),
}

impl Args {
    fn list(&self) -> Result<List, Failure> {
        Ok(match self.source.as_deref() {
            Some(source) if source == Path::new("embedded") => List::Embedded,
            Some(source) if source == Path::new("in-process") => List::InProcess,
            Some(source) => List::Directory(source.to_owned()),
            None if Dialect::of(Path::new(DEFAULT_DIR)).is_ok() => {
                return Err(Failure::input(format!(
                    "this machine has a measurement list: give --source {DEFAULT_DIR} for it, with \
                     --delete-mode none to delete nothing, or --source embedded for one to try things out"
                )));
            }
            None => List::Embedded,
        })
    }

    /// What is kept of a list that is no machine's is not kept where a machine's would be.
    fn state(&self, list: &List) -> Result<PathBuf, Failure> {
        match (list, &self.state) {
            (_, Some(given)) => Ok(given.clone()),
            (List::Embedded | List::InProcess, None) => default_state_dir(EMBEDDED),
            (List::Directory(_), None) => default_state_dir(MACHINE),
        }
    }

    /// The TPM that was chosen, if one was: `Some(None)` says that there is to be none.
    fn tpm(&self) -> Result<Option<Option<Endpoint>>, Failure> {
        Ok(match self.tpm.as_deref() {
            None => None,
            Some("none") => Some(None),
            Some(tpm) => Some(Some(tpm.parse::<Endpoint>().input("--tpm")?)),
        })
    }
}

/// The TPM that the list in a directory extends.
fn tpm_of(dir: &Path) -> Option<Endpoint> {
    imastage_sandbox::tpm_of(dir).or_else(Endpoint::system)
}
/// A long list takes longer; nobody waits for that.
const FIRST_DRAIN: Duration = Duration::from_secs(10);

/// Runs `imastage run`.
pub fn run(args: Args, settings: Settings, out: &Output) -> Result<Outcome, Failure> {
    close_inherited()?;
    replace_input()?;
    let list = args.list()?;
    let state = args.state(&list)?;
    let chosen = args.tpm()?;
    if args.check {
        return check::run(&args, &list, &state, chosen, out);
    }
    let supervisor = Supervisor::start()?;
    let settings = args.config.is_some().then_some(settings);

    // What can be refused is refused before the list is touched.
    // The records are for their owner's eyes, whoever makes the directory first.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&state);
    made.environment(state.display())?;
    if let Some(view) = &args.view {
        let prepared = imastage_mount::prepare(view, None);
        let refused = |error| ViewError::Path { path: view.clone(), error };
        prepared.map_err(refused).environment("view")?;
    }
    let embedded = match list {
        List::Embedded => Some(Embedded::start(&state, &embedded_tpm(&chosen))?),
        List::InProcess => Some(Embedded::in_process(&state, &embedded_tpm(&chosen))?),
        List::Directory(_) => None,
    };
    let (source, dir) = match (&embedded, &list) {
        (Some(embedded), _) => match embedded.source(args.delete_mode.map(DeleteMode::from)) {
            Ok(source) => (Some(source), None),
            Err(dir) => (None, Some(dir)),
        },
        (None, List::Directory(dir)) => (None, Some(dir.as_path())),
        (None, _) => (None, None),
    };
    let tpm = match &embedded {
        Some(embedded) => embedded.tpm(),
        None => chosen.unwrap_or_else(|| dir.and_then(tpm_of)),
    };
    // Its end is waited for when all that follows is gone.
    let (source, view_device, ended) = match (source, dir) {
        (Some(source), _) => (source, None, None),
        (None, Some(dir)) => {
            process::refuse_to_hold(dir)?;
            let view = args.view.as_deref();
            let (process, source) = ListProcess::start(dir, args.delete_mode, &state, view)?;
            // Before there are other threads, which would keep it.
            process::drop_admin()?;
            let (device, ended) = process.watch(supervisor.events())?;
            (Box::new(source) as Box<dyn Source>, device, Some(ended))
        }
        (None, None) => return Err(Failure::input("there is no list")),
    };
    let mut source = source;
    require_permission(source.as_mut())?;
    let config = args.config(state.clone(), tpm);
    let prepared = Service::prepare_with(config, source, &mut supervise::reading_progress());
    let prepared = prepared.environment("service")?;
    let view = match (args.view.as_deref(), view_device) {
        (Some(dir), Some(device)) => Some(prepared.serve_view(device, dir, args.view_group)),
        (Some(dir), None) => Some(prepared.mount_view(dir, args.view_group)),
        (None, _) => None,
    };
    let view = view.transpose().environment("view")?;
    let service = prepared.begin().environment("service")?;

    // A client that is told that the service is ready may ask for its status at once.
    let _ = service.drain_within(FIRST_DRAIN);
    let status = service.status();
    let text = greeting(&list, &status.since_start.source, &status.since_start.dialect);
    let text = format!(
        "{text} into {}: {} records stored so far; Ctrl-C stops",
        state.display(),
        status.records
    );
    out.answer(&status, text)?;
    let lost = supervisor.supervise(&service, settings, out)?;
    drop(view);
    let status = service.stop();
    drop(ended);
    if let Some(embedded) = embedded {
        embedded.stop();
    }
    let health = health_text(&status, out);
    out.answer(&status, format!("stopped: {} records stored; {health}", status.records))?;
    match lost {
        Some(why) => Err(Failure::environment(why)),
        None => Ok(Outcome::Fine),
    }
}

fn greeting(list: &List, source: &str, dialect: &str) -> String {
    let what = match list {
        List::Embedded | List::InProcess => " an embedded list, not this machine's:",
        List::Directory(_) => "",
    };
    if dialect == Dialect::Follow.to_string() {
        format!("following{what} {source} (nothing is deleted)")
    } else {
        format!("draining{what} {source} ({dialect})")
    }
}

/// A list in use becomes free again, and one whose lock is lost is followed; without permission
/// neither works.
fn require_permission(source: &mut dyn Source) -> Result<(), Failure> {
    match source.try_open() {
        Ok(()) | Err(SourceError::Busy { .. } | SourceError::LockLost { .. }) => Ok(()),
        Err(error) => Err(Failure::environment(error)),
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
