use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ima_log::{IMA_PCR, PcrSet, PcrTarget};
use imastage_source::Source;
use imastage_store::{EpochId, Store, StoreError};
use imastage_tpm::{Endpoint, TpmError};

use crate::{
    api, at_rest,
    attester::Attester,
    closed::{self, ClosedEpochs},
    compare::Comparison,
    drain::{AskTpm, DrainError, Drainer},
    drain_loop::{Answer, DrainLoop, Request, describe},
    epoch,
    health::{Health, now},
    last_compared::LastCompared,
    metrics::Metrics,
    pulse::{Pulse, Watched},
    view::{View, ViewError},
    wire::{Activity, Status, Verdict},
};

/// How a service is to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The state directory: the store, and the API's socket.
    pub state: PathBuf,
    /// The longest time between two drains.
    pub every: Duration,
    /// How many records may gather in the list before it is drained.
    pub drain_at: u64,
    /// A command for `sh -c` that is run on each change of verdict.
    pub alert: Option<String>,
    /// What becomes of earlier epochs.
    pub closed: ClosedEpochs,
    /// The TPM whose PCR 10 the list extends. Without one nothing can be compared or quoted.
    pub tpm: Option<Endpoint>,
    /// A group that may use the API besides the owner: it gets the socket, and may enter the state
    /// directory to reach it.
    pub group: Option<u32>,
    /// Delete from a list whose beginning is neither in this store nor the epoch's first record.
    pub adopt: bool,
}

impl Config {
    /// For a state directory, with the defaults.
    pub fn new(state: PathBuf) -> Config {
        Config {
            state,
            every: Duration::from_millis(Config::EVERY_MS),
            drain_at: Config::DRAIN_AT,
            alert: None,
            closed: ClosedEpochs::default(),
            tpm: None,
            group: None,
            adopt: false,
        }
    }

    /// The default of [`Config::every`], in milliseconds.
    pub const EVERY_MS: u64 = 500;

    /// The default of [`Config::drain_at`].
    pub const DRAIN_AT: u64 = 1000;
}

/// A running service. Dropping it stops it after a last drain.
pub struct Service {
    shared: Arc<Shared>,
    drainer: Option<JoinHandle<()>>,
    api: Option<api::Running>,
}

/// A service that answers and has not drained yet: what can be refused is refused before the first
/// record is deleted.
pub struct Prepared {
    // Dropped first: a client that waits for a drain then hears that there will be none.
    inbox: mpsc::Receiver<Request>,
    looping: DrainLoop,
    config: Config,
    service: Service,
}

/// Why a service could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The store cannot be used.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The list cannot be looked at, and only that would tell to which epoch it belongs.
    #[error("{0}")]
    List(#[from] DrainError),
    /// The TPM cannot be used.
    #[error("{0}")]
    Tpm(#[from] TpmError),
    /// The API's socket cannot be made.
    #[error("{}: {error}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A thread cannot be made.
    #[error("thread: {0}")]
    Thread(io::Error),
}

/// What the drain loop and the API share.
pub(crate) struct Shared {
    pub(crate) state: PathBuf,
    pub(crate) attester: Option<Attester>,
    pub(crate) metrics: Metrics,
    pub(crate) pulse: Pulse,
    status: Mutex<Status>,
    requests: mpsc::Sender<Request>,
}

impl Service {
    /// Starts draining `source`.
    ///
    /// # Errors
    /// [`ServiceError`] if the state directory, the TPM or the socket cannot be used. That the list
    /// cannot be drained at the moment is no error: it is tried again.
    pub fn start(config: Config, source: Box<dyn Source>) -> Result<Service, ServiceError> {
        Service::prepare(config, source)?.begin()
    }

    /// Does all that starting needs but draining: opens the store, connects to the TPM, looks at the
    /// list without changing it, and listens.
    ///
    /// # Errors
    /// As [`Service::start`].
    pub fn prepare(config: Config, mut source: Box<dyn Source>) -> Result<Prepared, ServiceError> {
        let mut store = Store::open(&config.state)?;
        at_rest::report(store.recovery());
        let attester = config.tpm.as_ref().map(Attester::connect).transpose()?;
        let notes = imastage_store::notes(&config.state)?;
        let epoch = epoch::enter(&mut store, epoch_id(attester.as_ref()), &notes, source.as_mut())?;
        let known = LastCompared::load(&config.state, epoch, store.len());
        let last_compared = known.unwrap_or(LastCompared { epoch, consistent: 0 });
        let damage = at_rest::damage(&config.state)?;
        let (diverged, notes) = at_rest::diverged(&config.state)?;
        let pulse = Pulse::default();
        let kept = attester.as_ref().map(Attester::banks).unwrap_or_default();
        let comparison = match damage.first() {
            None => {
                let banks = at_rest::replayed(&config.state, kept, &pulse)?;
                Comparison::new(banks, diverged, last_compared.consistent)
            }
            Some(why) => {
                let verdict = Verdict::Damaged { why: why.clone() };
                Comparison::new(at_rest::committed(&store, kept), verdict, last_compared.consistent)
            }
        };
        let mut status = Status {
            problems: damage,
            pid: Some(std::process::id()),
            since_start: Activity {
                source: source.name(),
                dialect: source.dialect().to_string(),
                ..Activity::default()
            },
            ..Status::default()
        };
        let source = Box::new(Watched::new(source, pulse.clone()));
        let tpm = attester.clone().map(|attester| Box::new(attester) as Box<dyn AskTpm>);
        let drainer = Drainer::new(source, store, tpm, comparison, notes).adopting(config.adopt);
        describe(&mut status, &drainer);
        status.health = Health::of(&status, now());

        let (requests, inbox) = mpsc::channel();
        let shared = Arc::new(Shared {
            state: config.state.clone(),
            attester,
            metrics: Metrics::default(),
            pulse,
            status: Mutex::new(status),
            requests,
        });
        let api = api::serve(Arc::clone(&shared), config.group)?;
        let looping = DrainLoop::new(&config, Arc::clone(&shared), drainer, last_compared);
        let service = Service { shared, drainer: None, api: Some(api) };
        Ok(Prepared { inbox, looping, config, service })
    }

    /// The state as it is now.
    pub fn status(&self) -> Status {
        self.shared.status().clone()
    }

    /// Drains what is in the list now.
    ///
    /// # Errors
    /// Why it could not be drained, in words.
    pub fn drain(&self) -> Result<(), String> {
        self.shared.drain()
    }

    /// As [`Service::drain`], but waits for it no longer than `patience`; it goes on all the same.
    ///
    /// # Errors
    /// As [`Service::drain`].
    pub fn drain_within(&self, patience: Duration) -> Result<(), String> {
        self.shared.drain_within(patience)
    }

    /// Takes over [`Config::every`], [`Config::drain_at`] and [`Config::alert`], and drains; all else
    /// stays as it was when the service was started.
    pub fn adjust(&self, config: Config) {
        // If the loop has ended there is nothing to adjust.
        let _ = self.shared.requests.send(Request::Adjust(Box::new(config)));
    }

    /// Grows as long as the drain loop lives, whatever it is doing: for a watchdog.
    pub fn beats(&self) -> u64 {
        self.shared.pulse.beats()
    }

    /// Shows what is stored as files in `dir`, for root and `group` to read, until the view is
    /// dropped: do that before the service is stopped, so that it can still drain.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn mount_view(&self, dir: &Path, group: Option<u32>) -> Result<View, ViewError> {
        View::mount(&self.shared, dir, group)
    }

    /// As [`Service::mount_view`], where somebody else mounted `device` (/dev/fuse) there and will
    /// unmount it.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn serve_view(
        &self,
        device: OwnedFd,
        dir: &Path,
        group: Option<u32>,
    ) -> Result<View, ViewError> {
        View::serve(&self.shared, device, dir, group)
    }

    /// Drains once more and stops; gives the state at the end.
    pub fn stop(mut self) -> Status {
        self.end();
        self.status()
    }

    fn end(&mut self) {
        // Clients first, so that the last drain is: what waits for the TPM on their behalf is refused.
        if let Some(api) = &self.api {
            api.refuse();
        }
        // If the loop has ended already there is nothing to stop.
        let _ = self.shared.requests.send(Request::Stop);
        if let Some(drainer) = self.drainer.take() {
            let _ = drainer.join();
        }
        drop(self.api.take());
    }
}

impl Prepared {
    /// As [`Service::mount_view`].
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn mount_view(&self, dir: &Path, group: Option<u32>) -> Result<View, ViewError> {
        self.service.mount_view(dir, group)
    }

    /// As [`Service::serve_view`].
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn serve_view(
        &self,
        device: OwnedFd,
        dir: &Path,
        group: Option<u32>,
    ) -> Result<View, ViewError> {
        self.service.serve_view(device, dir, group)
    }

    /// Begins to drain.
    ///
    /// # Errors
    /// [`ServiceError::Thread`].
    pub fn begin(self) -> Result<Service, ServiceError> {
        let Prepared { inbox, looping, config, mut service } = self;
        let drainer = thread::Builder::new()
            .name("drain".into())
            .spawn(move || looping.run(&inbox))
            .map_err(ServiceError::Thread)?;
        service.drainer = Some(drainer);
        closed::tend(config.state, config.closed).map_err(ServiceError::Thread)?;
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    pub(crate) fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was a view and it ended without the service's doing: agents read nothing.
    pub(crate) fn view_failed(&self) -> bool {
        self.status().since_start.view_error.is_some()
    }

    pub(crate) fn set_view_failed(&self, failed: bool) {
        let mut status = self.status();
        status.since_start.view_error = failed
            .then(|| "somebody unmounted it; restart the service to have it again".to_owned());
        status.health = Health::of(&status, now());
    }

    /// The PCRs that the list extends, as far as they are known: its own first.
    pub(crate) fn list_pcrs(&self) -> Vec<u32> {
        let status = self.status();
        let mut pcrs = vec![status.pcr().unwrap_or(IMA_PCR)];
        let all = status.banks.values().flat_map(|bank| bank.pcrs.iter().map(|pcr| pcr.pcr));
        for pcr in all {
            if !pcrs.contains(&pcr) {
                pcrs.push(pcr);
            }
        }
        pcrs
    }

    /// Drains what is in the list now. Any number may ask at once; one drain serves all who asked
    /// before it began.
    pub(crate) fn drain(&self) -> Result<(), String> {
        self.ask_for_drain()?.recv().map_err(|_| STOPPED.to_owned())?
    }

    /// As [`Shared::drain`], but waits for it no longer than `patience`; it goes on all the same.
    pub(crate) fn drain_within(&self, patience: Duration) -> Result<(), String> {
        self.ask_for_drain()?.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => "the list is being drained, and it takes long".to_owned(),
            RecvTimeoutError::Disconnected => STOPPED.to_owned(),
        })?
    }

    /// Asks for a drain and has `answer` told how it went; if the service stops before, `answer` is
    /// dropped.
    pub(crate) fn when_drained(&self, answer: Answer) -> Result<(), String> {
        self.requests.send(Request::Drain(answer)).map_err(|_| STOPPED.to_owned())
    }

    /// Tells the drain loop what a check of the whole store found, and how long that took.
    pub(crate) fn checked(&self, damage: Vec<String>, took: Duration) {
        // If the loop has ended nobody needs to know.
        let _ = self.requests.send(Request::Checked(damage, took));
    }

    fn ask_for_drain(&self) -> Result<mpsc::Receiver<Result<(), String>>, String> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.when_drained(Box::new(move |result| {
            // If it did not wait for the answer it does not need it.
            let _ = answer.send(result);
        }))?;
        Ok(answered)
    }
}

const STOPPED: &str = "the service is stopping";

/// What tells the epoch of this boot from others.
fn epoch_id(attester: Option<&Attester>) -> EpochId {
    EpochId {
        tpm: attester.map(|attester| attester.identity().to_string()),
        reset_count: attester.map(|attester| attester.clock().reset_count),
        // Linux gives each boot a random one (Documentation/admin-guide/sysctl/kernel.rst).
        boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
            .unwrap_or_default(),
    }
}

impl AskTpm for Attester {
    fn pcrs(&mut self, pcrs: PcrSet) -> Result<Vec<PcrTarget>, String> {
        let pcrs: Vec<u32> = pcrs.iter().collect();
        let values = self.read(&pcrs).map_err(|error| error.to_string())?;
        Ok(values.into_iter().map(|(_, pcr, value)| PcrTarget { pcr, value }).collect())
    }

    fn reset_count(&mut self) -> Result<Option<u32>, String> {
        self.clock_now().map(|clock| Some(clock.reset_count)).map_err(|error| error.to_string())
    }
}
