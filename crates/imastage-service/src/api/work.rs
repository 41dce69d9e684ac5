//! Limits of the work for requests: work is started only for an open connection, with a maximum of
//! concurrent work of each kind.

use std::{sync::Arc, time::Duration, time::Instant};

use axum::http::StatusCode;
use imastage_tpm::PcrValue;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, oneshot};

use super::{connections::MOST_CONNECTIONS, error::Error, peer::Peer};
use crate::{attester::Attester, handle::Shared};

/// The maximum number of concurrent reads of stored records. Each is short, and processors are few.
const MOST_READS: usize = 8;

/// The maximum number of requests that wait for a drain. One drain answers all of them.
const MOST_DRAINS: usize = MOST_CONNECTIONS;

/// The threads for blocking work: one for quotes, one for PCRs, the others for reads.
pub(super) const MOST_THREADS: usize = MOST_READS + 2;

const STOPPING: &str = "the service is stopping";

/// Permits for concurrent work of each kind. A request waits for a permit before its work starts,
/// so a waiting request ends with its connection; started work keeps its permit until it is done.
pub(super) struct Work {
    quotes: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    drains: Arc<Semaphore>,
    told: Arc<Mutex<Option<Told>>>,
}

/// The PCR values of the last answer.
struct Told {
    /// The time of the request to the TPM.
    since: Instant,
    values: Result<Vec<PcrValue>, String>,
}

impl Default for Work {
    fn default() -> Work {
        let semaphore = |count| Arc::new(Semaphore::new(count));
        Work {
            // A TPM does one thing at a time.
            quotes: semaphore(1),
            reads: semaphore(MOST_READS),
            drains: semaphore(MOST_DRAINS),
            told: Arc::default(),
        }
    }
}

impl Work {
    /// Refuses all requests to the TPM or the drain loop, including those that wait.
    pub(super) fn refuse(&self) {
        self.quotes.close();
        self.drains.close();
    }

    /// Whether the service is stopping.
    pub(super) fn is_refused(&self) -> bool {
        self.drains.is_closed()
    }

    /// Runs a request to the TPM for a client.
    pub(super) async fn quote<T: Send + 'static>(
        &self,
        peer: &Peer,
        quote: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let place = place(&self.quotes).await?;
        // The end of the connection is not noticed while more requests of the client are unread.
        if peer.is_gone() {
            return Err(Error::new(StatusCode::BAD_REQUEST, "the client hung up"));
        }
        begin(place, quote).await
    }

    /// Runs a read of stored records.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        begin(place(&self.reads).await?, read).await
    }

    /// Drains the list.
    pub(super) async fn drain(&self, shared: &Shared) -> Result<(), Error> {
        let place = place(&self.drains).await?;
        let (answer, answered) = oneshot::channel();
        let failed = |why: String| {
            let why = format!("the list was not drained: {why}");
            Error::new(StatusCode::SERVICE_UNAVAILABLE, why)
        };
        let asked = shared.when_drained(Box::new(move |result| {
            drop(place);
            // The client may have closed the connection.
            let _ = answer.send(result);
        }));
        asked.map_err(failed)?;
        answered.await.map_err(|_| stopping())?.map_err(failed)
    }

    /// The PCR values at a time after this was called, or the reason if the TPM does not return
    /// them within
    /// `patience`. One request to the TPM answers all callers before it.
    pub(super) async fn pcrs(
        &self,
        attester: &Attester,
        pcrs: Vec<u32>,
        patience: Duration,
    ) -> Result<Vec<PcrValue>, String> {
        let asked = Instant::now();
        let answer = async {
            let mut told = Arc::clone(&self.told).lock_owned().await;
            if let Some(Told { since, values }) = &*told
                && *since >= asked
            {
                return values.clone();
            }
            let attester = attester.clone();
            // The next request follows the answer, even if no caller waits.
            let read = tokio::task::spawn_blocking(move || {
                let since = Instant::now();
                let values = attester.read_for_client(&pcrs).map_err(|error| error.to_string());
                *told = Some(Told { since, values: values.clone() });
                values
            });
            read.await.unwrap_or_else(|_| Err(STOPPING.to_owned()))
        };
        let too_long = |_| {
            let seconds = patience.as_secs();
            Err(format!("it has not told its PCRs for {seconds} s: it hangs, or has much to do"))
        };
        tokio::time::timeout(patience, answer).await.unwrap_or_else(too_long)
    }
}

/// Waits for a permit.
async fn place(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
    Arc::clone(places).acquire_owned().await.map_err(|_| stopping())
}

/// Runs blocking work, and keeps the permit meanwhile.
async fn begin<T: Send + 'static>(
    place: OwnedSemaphorePermit,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(move || {
        let result = work();
        drop(place);
        result
    });
    done.await.map_err(|_| stopping())?
}

/// The reason that no work is started.
pub(super) fn stopping() -> Error {
    Error::new(StatusCode::SERVICE_UNAVAILABLE, STOPPING)
}
