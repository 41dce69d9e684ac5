use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ima_log::Bank;
use imastage_source::{Source, SourceError};
use imastage_store::{EpochId, Reader, Recovery, Store, StoreError};
use imastage_tpm::{Endpoint, TpmError};

use crate::{
    api,
    attester::Attester,
    drain::{DrainError, Drainer, Flavour, ReadPcr, Round},
    view::{View, ViewError},
    wire::{Activity, Status, Verdict},
};

/// How a service is to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The state directory: the store, and the API's socket.
    pub state: PathBuf,
    /// How records leave the list.
    pub flavour: Flavour,
    /// The longest time between two drains.
    pub every: Duration,
    /// The TPM whose PCR 10 the list extends. Without one nothing can be compared or quoted.
    pub tpm: Option<Endpoint>,
}

/// A running service. Dropping it stops it after a last drain.
pub struct Service {
    shared: Arc<Shared>,
    drainer: Option<JoinHandle<()>>,
    api: Option<api::Running>,
}

/// Why a service could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The store cannot be used.
    #[error("{0}")]
    Store(#[from] StoreError),
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
    status: Mutex<Status>,
    requests: mpsc::Sender<Request>,
}

enum Request {
    /// Drain what is in the list now, then answer.
    Drain(mpsc::SyncSender<Result<(), String>>),
    /// Drain once more and end.
    Stop,
}

impl Service {
    /// Starts draining `source`.
    ///
    /// # Errors
    /// [`ServiceError`] if the state directory, the TPM or the socket cannot be used. That the list
    /// cannot be drained at the moment is no error: it is tried again.
    pub fn start(config: Config, source: Box<dyn Source>) -> Result<Service, ServiceError> {
        let mut store = Store::open(&config.state)?;
        report(store.recovery());
        let attester = config.tpm.as_ref().map(Attester::connect).transpose()?;
        let bank = attester.as_ref().map_or(Bank::Sha256, Attester::bank);
        enter_epoch(&mut store, attester.as_ref())?;
        let damage = damage(&config.state)?;
        let parted = parted(&config.state)?;

        let read_pcr = attester.clone().map(|attester| -> ReadPcr {
            Box::new(move || attester.pcr(bank).map_err(|error| error.to_string()))
        });
        let mut status = Status {
            verdict: parted,
            problems: damage,
            pid: Some(std::process::id()),
            epoch: 0,
            records: 0,
            bytes: 0,
            replayed: BTreeMap::new(),
            tpm: BTreeMap::new(),
            since_start: Activity { source: source.name(), ..Activity::default() },
        };
        let drainer = Drainer::new(source, store, config.flavour, bank, read_pcr, parted);
        describe(&mut status, &drainer, bank);

        let (requests, inbox) = mpsc::channel();
        let shared = Arc::new(Shared {
            state: config.state.clone(),
            attester,
            status: Mutex::new(status),
            requests,
        });
        let api = api::serve(Arc::clone(&shared))?;
        let looping = DrainLoop {
            shared: Arc::clone(&shared),
            drainer,
            bank,
            every: config.every,
            said: None,
        };
        let drainer = thread::Builder::new()
            .name("drain".into())
            .spawn(move || looping.run(&inbox))
            .map_err(ServiceError::Thread)?;
        Ok(Service { shared, drainer: Some(drainer), api: Some(api) })
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

    /// Shows what is stored as files in `dir`, for root and `group` to read, until the view is
    /// dropped: do that before the service is stopped, so that it can still drain.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn mount_view(&self, dir: &Path, group: Option<u32>) -> Result<View, ViewError> {
        View::mount(&self.shared, dir, group)
    }

    /// Drains once more and stops; gives the state at the end.
    pub fn stop(mut self) -> Status {
        self.end();
        self.status()
    }

    fn end(&mut self) {
        // The API first: it asks for drains.
        drop(self.api.take());
        // If the loop has ended already there is nothing to stop.
        let _ = self.shared.requests.send(Request::Stop);
        if let Some(drainer) = self.drainer.take() {
            let _ = drainer.join();
        }
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

    fn ask_for_drain(&self) -> Result<mpsc::Receiver<Result<(), String>>, String> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.requests.send(Request::Drain(answer)).map_err(|_| STOPPED.to_owned())?;
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
        replayed: reader
            .running()
            .iter()
            .map(|pcr| (pcr.bank().to_string(), pcr.to_string()))
            .collect(),
        tpm: BTreeMap::new(),
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

/// Goes on with the epoch that is stored if it is the TPM's (without a TPM: this boot's), and begins
/// a new one if not.
fn enter_epoch(store: &mut Store, attester: Option<&Attester>) -> Result<(), StoreError> {
    let id = EpochId {
        tpm: attester
            .map(|attester| Bank::Sha256.hash(&[attester.public_pem().as_bytes()]).to_string()),
        reset_count: attester.map(|attester| attester.clock().reset_count),
        // Linux gives each boot a random one (Documentation/admin-guide/sysctl/kernel.rst).
        boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
            .unwrap_or_default(),
    };
    match store.epoch() {
        Some(epoch) if epoch.id.is_same(&id) => Ok(()),
        _ => store.begin_epoch(id, &[Bank::Sha1, Bank::Sha256]),
    }
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
    Ok(notes.first().map_or(Verdict::Unchecked, |note| Verdict::Parted {
        after: note.after,
        before: note.index,
    }))
}

struct DrainLoop {
    shared: Arc<Shared>,
    drainer: Drainer,
    bank: Bank,
    every: Duration,
    /// The error that was logged last.
    said: Option<String>,
}

impl DrainLoop {
    fn run(mut self, inbox: &mpsc::Receiver<Request>) {
        let mut waiting = Vec::new();
        let mut stop = false;
        while !stop {
            match inbox.recv_timeout(self.every) {
                Ok(Request::Drain(answer)) => waiting.push(answer),
                Ok(Request::Stop) | Err(RecvTimeoutError::Disconnected) => stop = true,
                Err(RecvTimeoutError::Timeout) => {}
            }
            // Whoever has asked by now is served by the drain that begins now.
            while let Ok(request) = inbox.try_recv() {
                match request {
                    Request::Drain(answer) => waiting.push(answer),
                    Request::Stop => stop = true,
                }
            }
            let result = self.drain_patiently().map_err(|error| error.to_string());
            for answer in waiting.drain(..) {
                // If it did not wait for the answer it does not need it.
                let _ = answer.send(result.clone());
            }
        }
    }

    /// Drains; while others use the list, tries again for a while.
    fn drain_patiently(&mut self) -> Result<(), DrainError> {
        const PATIENCE: Duration = Duration::from_secs(5);
        const LONGEST_PAUSE: Duration = Duration::from_millis(250);
        let since = Instant::now();
        let mut pause = Duration::from_millis(2);
        loop {
            let result = self.drainer.drain();
            self.publish(&result);
            match result {
                Err(DrainError::Source(SourceError::Busy { .. }))
                    if since.elapsed() + pause < PATIENCE =>
                {
                    thread::sleep(jitter(pause));
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => {
                    let words = error.to_string();
                    // Said once, not each time it is tried again.
                    if self.said.as_ref() != Some(&words) {
                        tracing::error!("the list was not drained, it is tried again: {words}");
                        self.said = Some(words);
                    }
                    return Err(error);
                }
                Ok(round) => {
                    if round.deleted > 0 {
                        tracing::debug!(?round, "drained");
                    }
                    self.said = None;
                    return Ok(());
                }
            }
        }
    }

    fn publish(&self, result: &Result<Round, DrainError>) {
        let mut status = self.shared.status();
        let activity = &mut status.since_start;
        match result {
            Ok(round) => {
                activity.drains += u64::from(round.deleted > 0);
                activity.stored += round.stored;
                activity.already_stored += round.already_stored;
                activity.deleted += round.deleted;
                activity.deleted_bytes += round.deleted_bytes;
                let held = u64::try_from(round.held.as_micros()).unwrap_or(u64::MAX);
                activity.longest_hold_us = activity.longest_hold_us.max(held);
                activity.last_error = None;
            }
            Err(error) => activity.last_error = Some(error.to_string()),
        }
        describe(&mut status, &self.drainer, self.bank);
    }
}

/// Brings the part of the state that the drainer knows up to date.
fn describe(status: &mut Status, drainer: &Drainer, bank: Bank) {
    let store = drainer.store();
    status.verdict = drainer.verdict();
    status.epoch = store.epoch().map_or(0, |epoch| epoch.number);
    status.records = store.len();
    status.bytes = store.bytes();
    status.replayed = Bank::ALL
        .into_iter()
        .filter_map(|bank| Some((bank.to_string(), store.running(bank)?.to_string())))
        .collect();
    status.tpm =
        drainer.tpm_pcr().map(|pcr| (bank.to_string(), pcr.to_string())).into_iter().collect();
}

/// Between half and all of `pause`, so that two who wait for each other do not keep meeting.
fn jitter(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0) % 512;
    pause / 2 + pause / 2 * u32::try_from(random).unwrap_or(0) / 512
}
