//! What requests cost, and the bounds of it: work is begun only for a connection that is there, and
//! no more of a kind at once than is of use.

use std::{sync::Arc, time::Duration, time::Instant};

use axum::http::StatusCode;
use imastage_tpm::PcrValue;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, oneshot};

use super::{connections::MOST_CONNECTIONS, error::Error, peer::Peer};
use crate::{attester::Attester, handle::Shared};

/// Pieces of stored records that are read at once. Each is short, and there are few processors.
const MOST_READS: usize = 8;

/// Drains that are waited for at once. One drain answers all of them.
const MOST_DRAINS: usize = MOST_CONNECTIONS;

/// The threads that block: one for a quote, one for the PCRs, the others read.
pub(super) const MOST_THREADS: usize = MOST_READS + 2;

const STOPPING: &str = "the service is stopping";

/// How much of each kind may be under way. A request waits for its place before anything is begun,
/// so what waits ends with its connection; what was begun keeps its place until it is done.
pub(super) struct Work {
    quotes: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    drains: Arc<Semaphore>,
    told: Arc<Mutex<Option<Told>>>,
}

/// The PCRs as a client was told them last.
struct Told {
    /// When they were asked for.
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
    /// Refuses all that would ask the TPM or the drain loop, and what waits for that at the moment.
    pub(super) fn refuse(&self) {
        self.quotes.close();
        self.drains.close();
    }

    /// Whether the service is stopping.
    pub(super) fn is_refused(&self) -> bool {
        self.drains.is_closed()
    }

    /// Has the TPM do something for a client.
    pub(super) async fn quote<T: Send + 'static>(
        &self,
        peer: &Peer,
        quote: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let place = place(&self.quotes).await?;
        // Clients that send more than one request at once are not seen to hang up.
        if peer.is_gone() {
            return Err(Error::new(StatusCode::BAD_REQUEST, "the client hung up"));
        }
        begin(place, quote).await
    }

    /// Reads something that is stored.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        begin(place(&self.reads).await?, read).await
    }

    /// Drains what is in the list now.
    pub(super) async fn drain(&self, shared: &Shared) -> Result<(), Error> {
        let place = place(&self.drains).await?;
        let (answer, answered) = oneshot::channel();
        let failed = |why: String| {
            let why = format!("the list was not drained: {why}");
            Error::new(StatusCode::SERVICE_UNAVAILABLE, why)
        };
        let asked = shared.when_drained(Box::new(move |result| {
            drop(place);
            // Who hung up need not know.
            let _ = answer.send(result);
        }));
        asked.map_err(failed)?;
        answered.await.map_err(|_| stopping())?.map_err(failed)
    }

    /// The PCRs as they are now or were after this was called; why not, if the TPM does not tell
    /// them within `patience`. One question answers all who asked before it.
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
            // The next one is asked for when this one is answered, whether somebody waits or not.
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

/// Waits for a place.
async fn place(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
    Arc::clone(places).acquire_owned().await.map_err(|_| stopping())
}

/// Does what may block, and keeps the place as long as that takes.
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

/// Why nothing is begun any more.
pub(super) fn stopping() -> Error {
    Error::new(StatusCode::SERVICE_UNAVAILABLE, STOPPING)
}
