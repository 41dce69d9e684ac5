//! When to drain, and what to do when that fails.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use imastage_client::{
    health::{Health, State},
    wire::Verdict,
};
use imastage_source::{Sight, SourceError};
use imastage_store::StoreError;

use crate::{
    alert::Alert,
    attester::Attester,
    clock,
    config::Config,
    drain::{
        compare::Comparison,
        describe::{describe, holder},
        drainer::Drainer,
        last_compared::LastCompared,
        round::{DrainError, Round},
    },
    handle::{Request, Shared},
    opening,
    told::Told,
};

/// How soon a store that is damaged is read again: after a repair the
/// administrator looks at the status.
const CHECK_AGAIN: Duration = Duration::from_secs(10);

/// The longest time between two attempts while records cannot be deleted, unless drains are rarer.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Drains when it is asked to, when enough records have gathered, and every so often.
pub(crate) struct DrainLoop {
    shared: Arc<Shared>,
    drainer: Drainer,
    every: Duration,
    drain_at: u64,
    last_compared: LastCompared,
    /// Records between two anchors.
    anchor_distance: u64,
    alert: Option<Alert>,
    /// What was logged and alerted last.
    told: Told,
    /// When the store is to be read again, if it is or may be damaged; `None` while that is done.
    check_at: Option<Instant>,
    /// How long to wait before it is tried again, while records cannot be deleted.
    pause: Option<Duration>,
    /// When the list was last drained, unless that failed.
    drained: Option<Instant>,
}

impl DrainLoop {
    /// `last_compared` is what the next service is to know.
    pub(crate) fn new(
        config: &Config,
        shared: Arc<Shared>,
        drainer: Drainer,
        last_compared: LastCompared,
    ) -> DrainLoop {
        let Config { every, drain_at, .. } = *config;
        let alert = config.alert.clone().map(Alert::new);
        let comparison = drainer.comparison();
        let check_at = match (comparison.is_resumed(), comparison.is_damaged()) {
            (true, _) => Some(Instant::now()),
            (false, true) => Some(Instant::now() + CHECK_AGAIN),
            (false, false) => None,
        };
        DrainLoop {
            shared,
            drainer,
            every,
            drain_at,
            anchor_distance: config.read_first / 16,
            last_compared,
            alert,
            told: Told::default(),
            check_at,
            pause: None,
            drained: None,
        }
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
                    Request::Checked(damage, took) => self.checked(damage, took),
                    Request::Stop => stop = true,
                }
            }
            let result = self.drain_patiently().map_err(|error| error.to_string());
            for answer in waiting.drain(..) {
                answer(result.clone());
            }
            self.check_if_due();
        }
        self.compare_to_the_end();
    }

    /// What was measured during the last drain is in the PCR a moment later. Drains until all that is
    /// stored was compared, for a while.
    fn compare_to_the_end(&mut self) {
        const TRIES: u32 = 20;
        const PAUSE: Duration = Duration::from_millis(50);
        for _ in 0..TRIES {
            match *self.drainer.comparison().verdict() {
                Verdict::Consistent { records } if records < self.drainer.store().len() => {}
                _ => return,
            }
            thread::sleep(PAUSE);
            // Said by the drain itself.
            if self.drain_patiently().is_err() {
                return;
            }
        }
    }

    /// A store that is damaged may be restored while the service runs; one whose replay was resumed is
    /// read while the service runs.
    fn check_if_due(&mut self) {
        if self.check_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.check_at = None;
        let shared = Arc::clone(&self.shared);
        let check = move || {
            let since = Instant::now();
            let mut shown = 0;
            let mut progress = |read: u64| {
                const STEP: u64 = 1 << 14;
                if read >= shown + STEP
                    && let Some(checking) = &mut shared.status().since_start.checking
                {
                    shown = read;
                    checking.read = read.min(checking.of);
                }
            };
            let damage = match opening::damage(&shared.state, &mut progress) {
                Ok(damage) => damage,
                Err(error) => vec![error.to_string()],
            };
            shared.checked(damage, since.elapsed());
        };
        // It reads all that is stored: nobody waits for that.
        if thread::Builder::new().name("check".into()).spawn(check).is_err() {
            self.check_at = Some(Instant::now() + CHECK_AGAIN);
        }
    }

    /// Takes over what a check of the whole store found.
    fn checked(&mut self, damage: Vec<String>, took: Duration) {
        /// Of the time, as little as this goes into reading the store again.
        const PART: u32 = 20;
        let first = damage.first().cloned();
        {
            let mut status = self.shared.status();
            status.problems = damage;
            status.since_start.checking = None;
        }
        let comparison = self.drainer.comparison();
        // A divergence may be that of records that were altered, and are restored by now.
        let is_doubtful =
            comparison.is_damaged() || (comparison.is_resumed() && comparison.diverges());
        match first {
            Some(why) => {
                self.drainer.damaged(why);
                self.check_at = Some(Instant::now() + CHECK_AGAIN.max(took * PART));
            }
            None if is_doubtful => {
                tracing::info!("the store is whole; it is replayed");
                let banks = self.shared.attester.as_ref().map(Attester::banks);
                let (state, pulse) = (&self.shared.state, &self.shared.pulse);
                let replayed =
                    opening::replayed(state, banks.unwrap_or_default(), None, &mut |_, _| {
                        pulse.beat()
                    });
                let verdict = opening::diverged(&self.shared.state).map(|(verdict, _)| verdict);
                match (replayed, verdict) {
                    (Ok(banks), Ok(verdict)) => {
                        let comparison =
                            Comparison::new(banks, verdict, self.last_compared.consistent);
                        self.drainer.compare_anew(comparison);
                    }
                    (Err(error), _) | (_, Err(error)) => self.drainer.damaged(error.to_string()),
                }
            }
            None => {
                tracing::info!("all stored records were read: no damage was found");
                self.drainer.verified();
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
    /// are stored anyway.
    fn drain_patiently(&mut self) -> Result<(), DrainError> {
        const PATIENCE: Duration = Duration::from_secs(5);
        const LONGEST_STEP: Duration = Duration::from_millis(250);
        let since = Instant::now();
        let mut pause = Duration::from_millis(2);
        loop {
            self.shared.pulse.beat();
            let begun = Instant::now();
            let error = match self.drainer.drain() {
                Ok(round) => {
                    self.pause = None;
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
            let is_over_soon =
                is_transient(&error) && is_patient && waited < patience_with(&error).min(PATIENCE);
            if !is_over_soon && may_be_copied(&error) {
                match self.drainer.copy() {
                    Ok(round) => {
                        let state = match error {
                            DrainError::Source(SourceError::Busy { .. }) => State::Busy,
                            _ => state_of(&error),
                        };
                        if state == State::LockLost {
                            self.pause = Some(pause_after(begun.elapsed(), self.every));
                        } else {
                            self.give_up();
                        }
                        self.publish(&round, Some((&error, state)));
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
            pause = (pause * 2).min(LONGEST_STEP);
        }
    }

    fn fail(&mut self, error: DrainError) -> Result<(), DrainError> {
        self.drainer.fall_behind();
        self.give_up();
        if let DrainError::Store(StoreError::Damaged { .. } | StoreError::Unreadable { .. }) = error
        {
            self.check_at = Some(Instant::now());
        }
        self.publish(&Round::default(), Some((&error, state_of(&error))));
        Err(error)
    }

    /// Waits longer each time before it is tried again.
    fn give_up(&mut self) {
        let pause = self.pause.map_or(self.every, |pause| (pause * 2).min(LONGEST_PAUSE));
        self.pause = Some(jitter(pause.max(self.every)));
    }

    fn adjust(&mut self, config: Config) {
        let Config { every, drain_at, alert, .. } = config;
        tracing::info!(
            "the list is drained every {} ms, and as soon as it has {drain_at} records; the alert \
             command is {}",
            every.as_millis(),
            alert.as_deref().unwrap_or("none")
        );
        (self.every, self.drain_at) = (every, drain_at);
        self.alert = alert.map(Alert::new);
    }

    fn count_busy(&self, error: &DrainError) {
        let mut status = self.shared.status();
        match error {
            DrainError::Source(SourceError::Busy { holders, .. }) => {
                status.since_start.busy += 1;
                status.since_start.holders = holders.found.iter().map(holder).collect();
            }
            DrainError::Source(SourceError::LockLost { .. }) => status.since_start.holders.clear(),
            _ => {}
        }
    }

    /// Brings the state up to date after a drain. `error` is why it failed, or why it did not
    /// delete what it stored, and what that means.
    fn publish(&mut self, round: &Round, error: Option<(&DrainError, State)>) {
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
        activity.last_error = error.map(|(error, _)| error.to_string());
        activity.last_error_state = error.map(|(_, state)| state);
        let now = clock::now();
        if error.is_none() {
            activity.holders.clear();
        }
        if error.is_none_or(|(_, state)| matches!(state, State::Busy | State::LockLost)) {
            activity.drained = Some(now);
        }
        activity.tpm_error = self.drainer.tpm_error().map(ToOwned::to_owned);
        activity.compared = self.drainer.compared();
        describe(&mut status, &self.drainer);
        status.health = Health::of(&status, now);
        if self.told.tell(&status.health, now)
            && let Some(alert) = &self.alert
        {
            alert.tell(self.told.worst(), &status);
        }
        drop(status);
        let comparison = self.drainer.comparison();
        let consistent = comparison.consistent();
        if consistent != self.last_compared.consistent {
            if matches!(comparison.verdict(), Verdict::Consistent { .. }) {
                let distance = self.anchor_distance;
                self.last_compared.advance(comparison.replay(), consistent, distance);
            }
            self.last_compared.consistent = consistent;
            // A hint: a disk that does not take it has worse to tell.
            let _ = self.last_compared.save(&self.shared.state);
        }
    }
}

/// What a failed drain means for the service's health.
fn state_of(error: &DrainError) -> State {
    match error {
        DrainError::TpmReset { .. } => State::TpmReset,
        DrainError::Foreign { .. } => State::ForeignList,
        DrainError::Source(SourceError::LockLost { .. }) => State::LockLost,
        _ => State::CannotDrain,
    }
}

/// Whether it may be over in a moment.
fn is_transient(error: &DrainError) -> bool {
    use SourceError::{Busy, Overtaken};
    matches!(error, DrainError::Source(Busy { .. } | Overtaken) | DrainError::Moved)
}

/// Whether records may still be read.
fn may_be_copied(error: &DrainError) -> bool {
    use SourceError::{Busy, GoingDown, LockLost, NotPermitted, Refused};
    let DrainError::Source(error) = error else { return false };
    matches!(error, Busy { .. } | LockLost { .. } | GoingDown(_) | NotPermitted { .. } | Refused(_))
}

/// The time for which a drain is retried before records are copied.
fn patience_with(error: &DrainError) -> Duration {
    match error {
        // Either the holder was brief, or the lock is lost, which takes several refusals to decide.
        DrainError::Source(SourceError::Busy { holders, .. })
            if holders.found.is_empty() && holders.sight == Sight::Complete =>
        {
            Duration::MAX
        }
        // Most readers read once and close.
        _ => Duration::from_millis(200),
    }
}

/// The pause after a round that can only follow the list. Such a round reads the list from its
/// beginning, which is quadratic in a kernel, so it gets a limited part of the time.
fn pause_after(took: Duration, every: Duration) -> Duration {
    const PART: u32 = 20;
    (took * PART).clamp(every.min(LONGEST_PAUSE), LONGEST_PAUSE)
}

/// Between half and all of `pause`, so that two who wait for each other do not keep meeting.
fn jitter(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0) % 512;
    pause / 2 + pause / 2 * u32::try_from(random).unwrap_or(0) / 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_that_can_only_be_followed_is_read_often_unless_that_takes_long() {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        assert_eq!(pause_after(ms(1), ms(500)), ms(500));
        assert_eq!(pause_after(ms(100), ms(500)), s(2));
        assert_eq!(pause_after(s(3), ms(500)), LONGEST_PAUSE);
        assert_eq!(pause_after(ms(1), s(3600)), LONGEST_PAUSE);
    }
}
