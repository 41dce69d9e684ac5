//! A service's life between its start and its end: signals, and what the service manager is told
//! (sd_notify(3)).

use std::{
    path::PathBuf,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use imastage_service::Service;
use sd_notify::NotifyState;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use super::{args::RELOADED, event::Event};
use crate::{
    Command,
    commands::status::health_text,
    config::{self, Settings},
    exit::{Fail, Failure},
    output::Output,
};

/// SIGHUP, SIGINT and SIGTERM, caught from the moment this is made.
pub struct Supervisor {
    caught: Signals,
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
}

impl Supervisor {
    /// Begins to catch signals.
    pub fn start() -> Result<Supervisor, Failure> {
        let caught = Signals::new([SIGHUP, SIGINT, SIGTERM]).environment("signals")?;
        let (sender, events) = mpsc::channel();
        Ok(Supervisor { caught, events, sender })
    }

    /// Where it hears of events.
    pub fn events(&self) -> mpsc::Sender<Event> {
        self.sender.clone()
    }

    /// Tells how the service goes until it is told to stop, or cannot go on: then it gives the reason.
    /// SIGHUP reads the configuration again; where there is none, the terminal is gone, and that is
    /// the end, too.
    pub fn supervise(
        self,
        service: &Service,
        settings: Option<Settings>,
        out: &Output,
    ) -> Result<Option<String>, Failure> {
        let Supervisor { mut caught, events, sender } = self;
        let forward = move || {
            for signal in caught.forever() {
                if sender.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(forward).environment("thread")?;
        let mut settings = settings;
        let mut lost = None;
        let mut told = String::new();
        let mut is_ready = false;
        let watchdog = sd_notify::watchdog_enabled();
        // Several times before it barks.
        let tick = watchdog.map_or(TICK, |patience| (patience / 4).min(TICK));
        let mut beats = service.beats();
        loop {
            let status = service.status();
            let text = format!("{} records stored; {}", status.records, health_text(&status, out));
            let mut conditions = status.health.conditions.iter();
            if let Some(last) = conditions.find(|condition| condition.state.is_final()) {
                tell(&[NotifyState::Status(&text)]);
                lost = Some(last.reason.clone());
                break;
            }
            if !is_ready {
                tell(&[NotifyState::Ready, NotifyState::Status(&text)]);
                is_ready = true;
            } else if text != told {
                tell(&[NotifyState::Status(&text)]);
            }
            told = text;
            match events.recv_timeout(tick) {
                Err(RecvTimeoutError::Timeout) => {
                    let now = service.beats();
                    if watchdog.is_some() && now != beats {
                        tell(&[NotifyState::Watchdog]);
                    }
                    beats = now;
                }
                Ok(Event::Signal(SIGHUP)) => {
                    let Some(settings) = &mut settings else { break };
                    match NotifyState::monotonic_usec_now() {
                        Ok(now) => tell(&[NotifyState::Reloading, now]),
                        Err(_) => tell(&[NotifyState::Reloading]),
                    }
                    reload(settings, service);
                    is_ready = false;
                }
                Ok(Event::ListLost(why)) => {
                    tracing::error!("the process that reads the list ended: {why}");
                    lost = Some(format!(
                        "the process that reads the list ended: {why}; what it had read is stored, and the \
                         rest is still in the list; restart the service"
                    ));
                    break;
                }
                Ok(Event::Signal(_)) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        tell(&[NotifyState::Stopping, NotifyState::Status("draining once more")]);
        Ok(lost)
    }
}

/// Logs how far stored records were read, and has the service manager wait: its start-up limit is for
/// services that hang.
pub fn reading_progress() -> impl FnMut(u64, u64) {
    const PAUSE: Duration = Duration::from_secs(2);
    /// Longer than a pause by far, in microseconds.
    const EXTENSION: u32 = 60_000_000;
    let mut last = Instant::now();
    move |read, of| {
        if last.elapsed() < PAUSE {
            return;
        }
        last = Instant::now();
        let text = format!("reading stored records: {read} of {of}");
        tracing::info!("{text}");
        tell(&[NotifyState::ExtendTimeoutUsec(EXTENSION), NotifyState::Status(&text)]);
    }
}

/// How often the service manager hears of it, if there is something new.
const TICK: Duration = Duration::from_secs(1);

/// Takes over what a service can change while it runs.
fn reload(settings: &mut Settings, service: &Service) {
    let (cli, new) = match config::load(std::env::args_os().collect()) {
        Ok(loaded) => loaded,
        Err(error) => {
            tracing::error!("configuration not applied, the previous one remains: {error}");
            return;
        }
    };
    for key in settings.changed(&new) {
        if RELOADED.contains(&key.as_str()) {
            tracing::info!("{key} has a new value");
        } else {
            tracing::warn!("{key}: the new value takes effect when the service restarts");
        }
    }
    settings.adopt(&new, RELOADED);
    if let Command::Run(args) = cli.command {
        // The state directory and the TPM are not looked at again.
        service.adjust(args.config(PathBuf::new(), None));
    }
    tracing::info!("configuration applied");
}

fn tell(states: &[NotifyState<'_>]) {
    // Without a service manager this says nothing to nobody; with one that does not listen, nothing
    // else can be done.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}
