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
    drain::{DrainError, Drainer, Round},
    memory::Memory,
    service::Shared,
    wire::{BankStatus, ExtendedWith, Status},
};

/// What the drain loop is asked for.
pub(crate) enum Request {
    /// Drain what is in the list now, then answer.
    Drain(mpsc::SyncSender<Result<(), String>>),
    /// Drain once more and end.
    Stop,
}

/// Drains when it is asked to, when enough records have gathered, and every so often.
pub(crate) struct DrainLoop {
    shared: Arc<Shared>,
    drainer: Drainer,
    every: Duration,
    drain_at: u64,
    memory: Memory,
    /// The error that was logged last.
    said: Option<String>,
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
        DrainLoop { shared, drainer, every, drain_at, memory, said: None }
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self, inbox: &mpsc::Receiver<Request>) {
        let mut waiting = Vec::new();
        let mut stop = false;
        while !stop {
            match self.wait(inbox) {
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

    /// Waits until there is a reason to drain: a request, enough records, or that it is time.
    fn wait(&mut self, inbox: &mpsc::Receiver<Request>) -> Result<Request, RecvTimeoutError> {
        /// How often to count. The kernel answers that at once, whatever the list's length.
        const COUNT: Duration = Duration::from_millis(20);
        let until = Instant::now() + self.every;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(left.min(COUNT)) {
                Err(RecvTimeoutError::Timeout) if left > COUNT => {
                    // If it cannot be counted, the drain will say why.
                    if self.drainer.waiting().is_ok_and(|waiting| waiting < self.drain_at) {
                        continue;
                    }
                    return Err(RecvTimeoutError::Timeout);
                }
                result => return result,
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
            self.publish(&result.as_ref());
            match result {
                Err(DrainError::Source(SourceError::Busy { .. }))
                    if since.elapsed() + pause < PATIENCE =>
                {
                    thread::sleep(jitter(pause));
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => {
                    self.drainer.fall_behind();
                    self.publish(&Err(&error));
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

    fn publish(&mut self, result: &Result<&Round, &DrainError>) {
        let mut status = self.shared.status();
        let activity = &mut status.since_start;
        match result {
            Ok(round) => {
                activity.drains += u64::from(round.stored > 0);
                activity.stored += round.stored;
                activity.already_stored += round.already_stored;
                activity.deleted += round.deleted;
                activity.deleted_bytes += round.deleted_bytes;
                for held in &round.holds {
                    let held = u64::try_from(held.as_micros()).unwrap_or(u64::MAX);
                    activity.longest_hold_us = activity.longest_hold_us.max(held);
                }
                activity.last_error = None;
            }
            Err(error) => activity.last_error = Some(error.to_string()),
        }
        activity.tpm_error = self.drainer.tpm_error().map(ToOwned::to_owned);
        describe(&mut status, &self.drainer);
        drop(status);
        let in_step = self.drainer.comparison().in_step();
        if result.is_ok() && in_step != self.memory.in_step {
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
            Extend::Sha1Padded => ExtendedWith::Padded,
        });
        let (replayed, tpm) = (replay.value().to_string(), tpm.map(ToString::to_string));
        (replay.bank().to_string(), BankStatus { replayed, tpm, extended_with })
    });
    status.banks = kept.chain(compared).collect();
}

/// Between half and all of `pause`, so that two who wait for each other do not keep meeting.
fn jitter(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0) % 512;
    pause / 2 + pause / 2 * u32::try_from(random).unwrap_or(0) / 512
}
