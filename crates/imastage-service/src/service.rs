use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ima_log::{Bank, Extend, IMA_PCR, Replay};
use imastage_source::Source;
use imastage_store::{EpochId, Reader, Recovery, Store, StoreError};
use imastage_tpm::{Endpoint, TpmError};

use crate::{
    api,
    attester::Attester,
    banks::Banks,
    closed::{self, ClosedEpochs},
    compare::Comparison,
    drain::{DrainError, Drainer, ReadPcrs},
    drain_loop::{Answer, DrainLoop, Request, describe},
    epoch,
    memory::Memory,
    metrics::Metrics,
    pulse::{Pulse, Watched},
    view::{View, ViewError},
    wire::{Activity, BankStatus, Cause, Parting, Status, Verdict},
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
    view_failed: AtomicBool,
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
        report(store.recovery());
        let attester = config.tpm.as_ref().map(Attester::connect).transpose()?;
        let notes = imastage_store::notes(&config.state)?;
        let epoch = epoch::enter(&mut store, epoch_id(attester.as_ref()), &notes, source.as_mut())?;
        let known = Memory::load(&config.state, epoch, store.len());
        let memory = known.unwrap_or(Memory { epoch, in_step: 0 });
        let damage = damage(&config.state)?;
        let parted = parted(&config.state)?;
        let banks = match &attester {
            Some(attester) => replayed(&config.state, &store, attester.banks()),
            None => Banks::new(&[]),
        };

        let read_pcrs = attester.clone().map(|attester| -> ReadPcrs {
            Box::new(move || attester.pcrs().map_err(|error| error.to_string()))
        });
        let mut status = Status {
            verdict: parted.clone(),
            problems: damage,
            pid: Some(std::process::id()),
            epoch: 0,
            records: 0,
            bytes: 0,
            banks: BTreeMap::new(),
            since_start: Activity {
                source: source.name(),
                dialect: source.dialect().to_string(),
                ..Activity::default()
            },
        };
        let comparison = Comparison::new(banks, parted, memory.in_step);
        let pulse = Pulse::default();
        let source = Box::new(Watched::new(source, pulse.clone()));
        let drainer = Drainer::new(source, store, read_pcrs, comparison);
        describe(&mut status, &drainer);

        let (requests, inbox) = mpsc::channel();
        let shared = Arc::new(Shared {
            state: config.state.clone(),
            attester,
            metrics: Metrics::default(),
            pulse,
            view_failed: AtomicBool::new(false),
            status: Mutex::new(status),
            requests,
        });
        let api = api::serve(Arc::clone(&shared), config.group)?;
        let looping = DrainLoop::new(&config, Arc::clone(&shared), drainer, memory);
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
        self.view_failed.load(Ordering::SeqCst)
    }

    pub(crate) fn set_view_failed(&self, failed: bool) {
        self.view_failed.store(failed, Ordering::SeqCst);
    }

    /// The PCRs that the list extends.
    pub(crate) fn list_pcrs(&self) -> Vec<u32> {
        vec![IMA_PCR]
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

/// The state that a state directory tells when no service runs.
///
/// # Errors
/// [`StoreError`] if it is not a state directory or cannot be read.
pub fn status_at_rest(state: &Path) -> Result<Status, StoreError> {
    let reader = Reader::open(state)?;
    Ok(Status {
        verdict: parted(state)?,
        problems: damage(state)?,
        pid: None,
        epoch: reader.epoch().number,
        records: reader.len(),
        bytes: reader.bytes(),
        banks: reader
            .running()
            .iter()
            .map(|pcr| {
                let replayed = pcr.to_string();
                (pcr.bank().to_string(), BankStatus { replayed, tpm: None, extended_with: None })
            })
            .collect(),
        since_start: Activity::default(),
    })
}

/// Says what an interrupted commit had left.
fn report(recovery: &Recovery) {
    let Recovery { commit_bytes, record_bytes, kept } = recovery;
    if *commit_bytes + *record_bytes > 0 {
        tracing::info!("cut off what a crash interrupted: {record_bytes} bytes of records");
    }
    if let Some(kept) = kept {
        tracing::warn!(
            "the last commit was torn or damaged; what it may have covered is kept in {}",
            kept.display()
        );
    }
}

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

/// Replays what is stored in every bank of the TPM. Linear in the records. If they cannot be read
/// any more, as many banks are known as the store keeps.
fn replayed(state: &Path, store: &Store, banks: &[Bank]) -> Banks {
    let all = || -> Result<Banks, StoreError> {
        let mut replays = Banks::new(banks);
        let mut cursor = Reader::open(state)?.records(0)?;
        while let Some(record) = cursor.next_record()? {
            replays.push(&[record]);
        }
        Ok(replays)
    };
    all().unwrap_or_else(|error| {
        tracing::error!("not all banks of the TPM can be compared: {error}");
        let kept = banks.iter().filter_map(|bank| {
            let value = store.running(*bank)?;
            Some(vec![Replay::resume(value, Extend::Own)])
        });
        Banks::resume(kept.collect(), store.len())
    })
}

/// Reads everything that is stored again, and says in words what is damaged.
fn damage(state: &Path) -> Result<Vec<String>, StoreError> {
    let damage = imastage_store::check(state)?.damage;
    for found in &damage {
        tracing::error!("the store is damaged: {found}");
    }
    Ok(damage.iter().map(ToString::to_string).collect())
}

/// Whether TPM and store parted before, as was noted then: no later PCR of the epoch is reached.
fn parted(state: &Path) -> Result<Verdict, StoreError> {
    let notes = imastage_store::notes(state)?;
    let parting = notes.into_iter().find_map(|note| {
        Some(Parting {
            after: note.after,
            before: note.index,
            cause: cause(&note.kind)?,
            time: note.time,
            text: note.text,
        })
    });
    Ok(parting.map_or(Verdict::Unchecked, Verdict::Parted))
}

/// The cause that a note tells, if it tells of a parting.
fn cause(kind: &str) -> Option<Cause> {
    serde_json::from_value(kind.into()).ok()
}
