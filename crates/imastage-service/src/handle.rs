//! What the drain loop, the API and the view share, and how they ask for a drain.

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use ima_log::{Bank, IMA_PCR};
use imastage_client::{health::Health, wire::Status};
use imastage_view::Origin;

use crate::{attester::Attester, clock::now, config::Config, metrics::Metrics, pulse::Pulse};

/// What the drain loop and the API share.
pub(crate) struct Shared {
    pub(crate) state: PathBuf,
    pub(crate) attester: Option<Attester>,
    pub(crate) metrics: Metrics,
    pub(crate) pulse: Pulse,
    pub(crate) status: Mutex<Status>,
    pub(crate) requests: mpsc::Sender<Request>,
}

/// What the drain loop is asked for.
pub(crate) enum Request {
    /// Drain what is in the list now, then answer.
    Drain(Answer),
    /// Go on as this says.
    Adjust(Box<Config>),
    /// The whole store was read again, which took so long: this is damaged, in words.
    Checked(Vec<String>, Duration),
    /// Drain once more and end.
    Stop,
}

/// What is done with how a drain went.
pub(crate) type Answer = Box<dyn FnOnce(Result<(), String>) + Send>;

impl Shared {
    pub(crate) fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was a view and it ended without the service's doing: agents read nothing.
    pub(crate) fn view_failed(&self) -> bool {
        self.status().since_start.view_error.is_some()
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

    /// As [`Shared::drain`], but waits at most `patience`; the drain continues.
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

impl Origin for Shared {
    fn state(&self) -> &Path {
        &self.state
    }

    fn banks(&self) -> Vec<Bank> {
        match &self.attester {
            Some(attester) => attester.banks().to_vec(),
            None => vec![Bank::Sha1, Bank::Sha256],
        }
    }

    fn drain_within(&self, patience: Duration) -> Result<(), String> {
        Shared::drain_within(self, patience)
    }

    fn set_view_failed(&self, failed: bool) {
        let mut status = self.status();
        status.since_start.view_error =
            failed.then(|| "it was unmounted; restart the service to mount it again".to_owned());
        status.health = Health::of(&status, now());
    }
}
