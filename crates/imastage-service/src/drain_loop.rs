//! When to drain, and what to do when that fails.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use ima_log::{Bank, Extend};
use imastage_source::SourceError;

use crate::{
    Config,
    alert::Alert,
    drain::{DrainError, Drainer, Round},
    memory::Memory,
    service::Shared,
    wire::{self, BankStatus, ExtendedWith, Status},
};

/// What the drain loop is asked for.
pub(crate) enum Request {
    /// Drain what is in the list now, then answer.
    Drain(Answer),
    /// Go on as this says.
    Adjust(Box<Config>),
    /// Drain once more and end.
    Stop,
}

/// What is done with how a drain went.
pub(crate) type Answer = Box<dyn FnOnce(Result<(), String>) + Send>;

/// Drains when it is asked to, when enough records have gathered, and every so often.
pub(crate) struct DrainLoop {
    shared: Arc<Shared>,
    drainer: Drainer,
    every: Duration,
    drain_at: u64,
    memory: Memory,
    alert: Option<Alert>,
    /// The error that was logged last.
    said: Option<String>,
    /// How long to wait before it is tried again, while records cannot be deleted.
    pause: Option<Duration>,
    /// When the list was last drained, unless that failed.
    drained: Option<Instant>,
}

impl DrainLoop {
    /// `memory` is what the next service is to know.
    pub(crate) fn new(
        config: &Config,
        shared: Arc<Shared>,
        drainer: Drainer,
        memory: Memory,
    ) -> DrainLoop {
        let Config { every, drain_at, .. } = *config;
        let verdict = drainer.comparison().verdict();
        let alert = config.alert.clone().map(|command| Alert::new(command, verdict));
        let (said, pause, drained) = (None, None, None);
        DrainLoop { shared, drainer, every, drain_at, memory, alert, said, pause, drained }
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self, inbox: &mpsc::Receiver<Request>) {
        let mut waiting = Vec::new();
        let mut stop = false;
        while !stop {
            let first = match self.wait(inbox) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Request::Stop),
            };
            // Whoever has asked by now is served by the drain that begins now.
            for request in first.into_iter().chain(inbox.try_iter()) {
                match request {
                    Request::Drain(answer) => waiting.push(answer),
                    Request::Adjust(config) => self.adjust(*config),
                    Request::Stop => stop = true,
                }
            }
            let result = self.drain_patiently().map_err(|error| error.to_string());
            for answer in waiting.drain(..) {
                answer(result.clone());
            }
        }
    }

    /// Waits until there is a reason to drain: a request, enough records, or that it is time.
    fn wait(&mut self, inbox: &mpsc::Receiver<Request>) -> Result<Request, RecvTimeoutError> {
        /// How often to count. The kernel answers that at once, whatever the list's length.
        const COUNT: Duration = Duration::from_millis(20);
        let mut until = Instant::now() + self.pause.unwrap_or(self.every);
        loop {
            self.shared.pulse.beat();
            let left = until.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(left.min(COUNT)) {
                Err(RecvTimeoutError::Timeout) if left > COUNT => {
                    // If it cannot be counted, the next drain will say why.
                    let is_enough = |waiting| waiting >= self.drain_at;
                    if !self.drainer.waiting().is_ok_and(is_enough) || self.pause.is_some() {
                        continue;
                    }
                    return Err(RecvTimeoutError::Timeout);
                }
                Err(RecvTimeoutError::Timeout) if self.is_idle() => until += self.every,
                result => return result,
            }
        }
    }

    /// Whether a drain could be spared: it reads the TPM twice, which others want to use, too. What
    /// the count does not tell (somebody staged, the PCR was extended without a record) can wait a
    /// little.
    fn is_idle(&mut self) -> bool {
        const LONGEST: Duration = Duration::from_secs(5);
        let is_new = |drained: Instant| drained.elapsed() < LONGEST.max(self.every);
        self.drained.is_some_and(is_new) && self.drainer.waiting().is_ok_and(|waiting| waiting == 0)
    }

    /// Drains; while others use the list, tries again for a while. Records that cannot be deleted
    /// are stored all the same.
    fn drain_patiently(&mut self) -> Result<(), DrainError> {
        /// How long readers may take, most of whom read once and go.
        const PATIENCE_WITH_READERS: Duration = Duration::from_millis(200);
        const PATIENCE: Duration = Duration::from_secs(5);
        const LONGEST_PAUSE: Duration = Duration::from_millis(250);
        let since = Instant::now();
        let mut pause = Duration::from_millis(2);
        loop {
            self.shared.pulse.beat();
            let error = match self.drainer.drain() {
                Ok(round) => {
                    self.pause = None;
                    self.said = None;
                    self.drained = Some(Instant::now());
                    self.publish(&round, None);
                    return Ok(());
                }
                Err(error) => error,
            };
            self.drained = None;
            self.count_busy(&error);
            // Those who stood there the last time are not waited for again.
            let is_patient = self.pause.is_none();
            let waited = since.elapsed() + pause;
            let is_over_soon = is_transient(&error) && is_patient && waited < PATIENCE_WITH_READERS;
            if !is_over_soon && may_be_copied(&error) {
                match self.drainer.copy() {
                    Ok(round) => {
                        self.give_up(&error, "its records are stored, and stay in the list");
                        self.publish(&round, Some(&error));
                        return Ok(());
                    }
                    // Whoever writes lets nobody read.
                    Err(DrainError::Source(SourceError::Busy { .. })) => {}
                    Err(error) => {
                        return self.fail(error);
                    }
                }
            }
            if !(is_transient(&error) && waited < PATIENCE) {
                return self.fail(error);
            }
            thread::sleep(jitter(pause));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn fail(&mut self, error: DrainError) -> Result<(), DrainError> {
        self.drainer.fall_behind();
        self.give_up(&error, "it is tried again");
        self.publish(&Round::default(), Some(&error));
        Err(error)
    }

    /// Says, once and not each time it is tried again, that the list could not be drained.
    fn give_up(&mut self, error: &DrainError, consequence: &str) {
        const LONGEST_PAUSE: Duration = Duration::from_secs(30);
        let pause = self.pause.map_or(self.every, |pause| (pause * 2).min(LONGEST_PAUSE));
        self.pause = Some(jitter(pause.max(self.every)));
        let words = error.to_string();
        if self.said.as_ref() != Some(&words) {
            tracing::error!("the list was not drained, {consequence}: {words}");
            self.said = Some(words);
        }
    }

    fn adjust(&mut self, config: Config) {
        let Config { every, drain_at, alert, .. } = config;
        tracing::info!(?every, drain_at, ?alert, "goes on as it is told");
        (self.every, self.drain_at) = (every, drain_at);
        let verdict = self.drainer.comparison().verdict();
        self.alert = alert.map(|command| Alert::new(command, verdict));
    }

    fn count_busy(&self, error: &DrainError) {
        if let DrainError::Source(SourceError::Busy { holders, .. }) = error {
            let mut status = self.shared.status();
            status.since_start.busy += 1;
            status.since_start.holders = holders.0.iter().map(holder).collect();
        }
    }

    /// Brings the state up to date after a drain. `error` is why it failed, or why it did not
    /// delete what it stored.
    fn publish(&mut self, round: &Round, error: Option<&DrainError>) {
        if round.deleted > 0 {
            tracing::debug!(?round, "drained");
        }
        let [half, most, longest] = self.shared.metrics.drained(round, error.is_some());
        let mut status = self.shared.status();
        let activity = &mut status.since_start;
        activity.drains += u64::from(round.stored > 0);
        activity.stored += round.stored;
        activity.already_stored += round.already_stored;
        activity.deleted += round.deleted;
        activity.deleted_bytes += round.deleted_bytes;
        activity.hold_p50_us = half;
        activity.hold_p99_us = most;
        activity.longest_hold_us = longest;
        activity.last_error = error.map(ToString::to_string);
        if error.is_none() {
            activity.holders.clear();
        }
        activity.tpm_error = self.drainer.tpm_error().map(ToOwned::to_owned);
        describe(&mut status, &self.drainer);
        if let Some(alert) = &mut self.alert {
            alert.tell(&status);
        }
        drop(status);
        let in_step = self.drainer.comparison().in_step();
        if in_step != self.memory.in_step {
            self.memory.in_step = in_step;
            // A hint: a disk that does not take it has worse to tell.
            let _ = self.memory.save(&self.shared.state);
        }
    }
}

/// Brings the part of the state that the drainer knows up to date.
pub(crate) fn describe(status: &mut Status, drainer: &Drainer) {
    let (store, comparison) = (drainer.store(), drainer.comparison());
    status.verdict = comparison.verdict().clone();
    status.epoch = store.epoch().map_or(0, |epoch| epoch.number);
    status.records = store.len();
    status.bytes = store.bytes();
    let kept = Bank::ALL.into_iter().filter_map(|bank| {
        let replayed = store.running(bank)?.to_string();
        Some((bank.to_string(), BankStatus { replayed, tpm: None, extended_with: None }))
    });
    let compared = comparison.banks().map(|replay| {
        let tpm = comparison.tpm().iter().find(|pcr| pcr.bank() == replay.bank());
        let extended_with = replay.extend().map(|extend| match extend {
            Extend::Own => ExtendedWith::Own,
            Extend::Sha1Padded | Extend::Sha1PaddedViolations => ExtendedWith::Padded,
        });
        let (replayed, tpm) = (replay.value().to_string(), tpm.map(ToString::to_string));
        (replay.bank().to_string(), BankStatus { replayed, tpm, extended_with })
    });
    status.banks = kept.chain(compared).collect();
}

/// Whether it may be over in a moment.
fn is_transient(error: &DrainError) -> bool {
    use SourceError::{Busy, Overtaken};
    matches!(error, DrainError::Source(Busy { .. } | Overtaken) | DrainError::Moved)
}

/// Whether records may still be read.
fn may_be_copied(error: &DrainError) -> bool {
    use SourceError::{Busy, GoingDown, NotPermitted, Refused};
    let DrainError::Source(error) = error else { return false };
    matches!(error, Busy { .. } | GoingDown(_) | NotPermitted { .. } | Refused(_))
}

fn holder(holder: &imastage_source::Holder) -> wire::Holder {
    let imastage_source::Holder { pid, name, fd, path } = holder.clone();
    wire::Holder { pid, name, fd, path }
}

/// Between half and all of `pause`, so that two who wait for each other do not keep meeting.
fn jitter(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0) % 512;
    pause / 2 + pause / 2 * u32::try_from(random).unwrap_or(0) / 512
}
