//! Starts and stops the parts of a service.

use std::{
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use imastage_client::{
    health::Health,
    wire::{Activity, Checking, Status, Verdict},
};
use imastage_source::Source;
use imastage_store::Store;
use imastage_view::{View, ViewError};

use crate::{
    api,
    attester::Attester,
    clock::now,
    closed,
    config::{Config, ServiceError},
    drain::{
        compare::Comparison, describe::describe, drainer::Drainer, epoch,
        last_compared::LastCompared, round::AskTpm, schedule::DrainLoop,
    },
    handle::{Request, Shared},
    metrics::Metrics,
    opening,
    pulse::{Pulse, Watched},
};

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
    pub fn prepare(config: Config, source: Box<dyn Source>) -> Result<Prepared, ServiceError> {
        Service::prepare_with(config, source, &mut |_, _| {})
    }

    /// As [`Service::prepare`]; says in `progress` how many of how many stored records were read, if
    /// that takes long: the first time that an epoch with many is opened.
    ///
    /// # Errors
    /// As [`Service::start`].
    pub fn prepare_with(
        config: Config,
        mut source: Box<dyn Source>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Prepared, ServiceError> {
        let mut store = Store::open(&config.state)?;
        opening::report(store.recovery());
        let attester = config.tpm.as_ref().map(Attester::connect).transpose()?;
        let notes = imastage_store::notes(&config.state)?;
        let epoch = epoch::enter(
            &mut store,
            opening::epoch_id(attester.as_ref()),
            &notes,
            source.as_mut(),
        )?;
        let known = LastCompared::load(&config.state, epoch, store.len());
        let last_compared = known.unwrap_or(LastCompared { epoch, ..LastCompared::default() });
        let (diverged, notes) = opening::diverged(&config.state)?;
        let pulse = Pulse::default();
        let kept = attester.as_ref().map(Attester::banks).unwrap_or_default();
        let consistent = last_compared.consistent;
        // What cannot be read or does not fit is found by reading everything.
        let anchor = opening::anchored(&config.state, kept, &last_compared, config.read_first)
            .unwrap_or_default();
        let resumed = anchor.map(|anchor| {
            opening::replayed(&config.state, kept, Some(anchor), &mut |_, _| pulse.beat())
        });
        let (comparison, damage) = match resumed {
            Some(Ok(banks)) => (Comparison::resumed(banks, diverged, consistent), Vec::new()),
            Some(Err(_)) | None => {
                let len = store.len();
                let damage = opening::damage(&config.state, &mut |records| {
                    pulse.beat();
                    // Checked, then replayed: each reads all.
                    progress(records / 2, len);
                })?;
                let comparison = match damage.first() {
                    None => {
                        let mut progress = |read, of| {
                            pulse.beat();
                            progress((of + read) / 2, of);
                        };
                        let banks = opening::replayed(&config.state, kept, None, &mut progress)?;
                        Comparison::new(banks, diverged, consistent)
                    }
                    Some(why) => {
                        let verdict = Verdict::Damaged { why: why.clone() };
                        Comparison::new(opening::committed(&store, kept), verdict, consistent)
                    }
                };
                (comparison, damage)
            }
        };
        let checking = comparison.is_resumed().then(|| Checking { of: store.len(), read: 0 });
        let mut status = Status {
            problems: damage,
            pid: Some(std::process::id()),
            since_start: Activity {
                source: source.name(),
                dialect: source.dialect().to_string(),
                checking,
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

    /// As [`Service::drain`], but waits at most `patience`; the drain continues.
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
        View::mount(Arc::clone(&self.shared) as _, dir, group)
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
        View::serve(Arc::clone(&self.shared) as _, device, dir, group)
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
    /// The state as it is now.
    pub fn status(&self) -> Status {
        self.service.status()
    }

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
