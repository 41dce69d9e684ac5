//! HTTP on a Unix socket. `docs/openapi.yaml` describes it.

mod connections;
mod error;
mod metrics;
mod peer;
mod quote;
mod records;
mod work;

use std::{
    fs, io,
    os::unix::{self, fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRef, Query, State, rejection::QueryRejection},
    http::StatusCode,
    routing::{get, post},
};
use imastage_client::{
    SOCKET,
    health::Health,
    wire::{Pcr, Pcrs, Status},
};
use imastage_store::Reader;
use serde::Deserialize;
use tokio::{net::UnixListener, sync::watch};

use crate::{clock::now, config::ServiceError, handle::Shared};
use connections::Limits;
use error::Error;
use work::Work;

/// The maximum size of a request's body, which contains a nonce and a few names.
const LONGEST_REQUEST: usize = 4 << 10;

/// The API's thread. Dropping this ends it.
pub(crate) struct Running {
    work: Arc<Work>,
    stop: Option<watch::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
}

/// The data from which requests are answered.
#[derive(Clone)]
struct Api {
    shared: Arc<Shared>,
    work: Arc<Work>,
}

impl FromRef<Api> for Arc<Shared> {
    fn from_ref(api: &Api) -> Arc<Shared> {
        Arc::clone(&api.shared)
    }
}

impl FromRef<Api> for Arc<Work> {
    fn from_ref(api: &Api) -> Arc<Work> {
        Arc::clone(&api.work)
    }
}

/// Serves the API of `shared`.
pub(crate) fn serve(shared: Arc<Shared>, group: Option<u32>) -> Result<Running, ServiceError> {
    let socket = shared.state.join(SOCKET);
    let failed = |error| ServiceError::Socket { path: socket.clone(), error };
    let listener = bind(&socket, group).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(work::MOST_THREADS)
        .build()
        .map_err(failed)?;
    let work = Arc::new(Work::default());
    let app = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/quote", post(quote::quote))
        .route("/v1/records", get(records::records))
        .route("/v1/pcrs", get(pcrs))
        .route("/metrics", get(metrics::show))
        .layer(DefaultBodyLimit::max(LONGEST_REQUEST))
        .with_state(Api { shared, work: Arc::clone(&work) });
    let (stop, stopped) = watch::channel(());
    let serve = move || {
        runtime.block_on(async {
            match UnixListener::from_std(listener) {
                Ok(listener) => connections::serve(listener, app, Limits::default(), stopped).await,
                Err(error) => tracing::error!(%error, "cannot serve the API's socket"),
            }
        });
        // What the TPM is asked at the moment nobody waits for.
        runtime.shutdown_background();
    };
    let thread =
        thread::Builder::new().name("api".into()).spawn(serve).map_err(ServiceError::Thread)?;
    Ok(Running { work, stop: Some(stop), thread: Some(thread), socket })
}

impl Running {
    /// Refuses quotes and drains from now on, including those that wait: the service is about to
    /// stop. Other requests are answered until this is dropped.
    pub(crate) fn refuse(&self) {
        self.work.refuse();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.refuse();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // If it is gone already, all the better.
        let _ = fs::remove_file(&self.socket);
    }
}

/// Binds the socket for its owner and a group. The store's lock guarantees that no other service
/// uses this directory, so an existing socket is a remainder of a service that ended.
fn bind(socket: &Path, group: Option<u32>) -> io::Result<std::os::unix::net::UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(socket)?;
    if let Some(group) = group {
        unix::fs::chown(socket, None, Some(group))?;
        // To reach the socket; all other files are for the owner only.
        if let Some(state) = socket.parent() {
            unix::fs::chown(state, None, Some(group))?;
            fs::set_permissions(state, fs::Permissions::from_mode(0o710))?;
        }
    }
    fs::set_permissions(socket, fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// With the TPM's current values of the list's PCRs, if it answers soon.
async fn status(
    State(shared): State<Arc<Shared>>,
    State(work): State<Arc<Work>>,
) -> Result<Json<Status>, Error> {
    /// Shorter than a client's timeout.
    const PATIENCE: Duration = Duration::from_secs(2);
    let mut status = shared.status().clone();
    if let Some(attester) = &shared.attester {
        match work.pcrs(attester, shared.list_pcrs(), PATIENCE).await {
            Ok(values) => {
                for (bank, pcr, value) in values {
                    status.set_tpm(bank.name(), pcr, value.to_string());
                }
            }
            // All else can be told.
            Err(error) => {
                status.since_start.tpm_error = Some(error);
                status.health = Health::of(&status, now());
            }
        }
    }
    Ok(Json(status))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PcrParams {
    /// After how many records; all that are stored if missing.
    at: Option<u64>,
}

/// The PCR values to which records replay. Constant time.
async fn pcrs(
    State(shared): State<Arc<Shared>>,
    State(work): State<Arc<Work>>,
    params: Result<Query<PcrParams>, QueryRejection>,
) -> Result<Json<Pcrs>, Error> {
    let Query(params) = params?;
    let replayed = work.read(move || {
        let reader = Reader::open(&shared.state).map_err(Error::internal)?;
        let records = params.at.unwrap_or(reader.len());
        if records > reader.len() {
            let error = format!("at: {records} was asked for, {} are stored", reader.len());
            return Err(Error::new(StatusCode::RANGE_NOT_SATISFIABLE, error));
        }
        let replays = reader.running_at(records).map_err(Error::internal)?;
        let pcrs = replays.into_iter().map(|replay| Pcr {
            bank: replay.value().bank().to_string(),
            extended_with: replay.extend_kind(),
            value: replay.value().to_string(),
        });
        Ok(Pcrs { epoch: reader.epoch().number, records, pcrs: pcrs.collect() })
    });
    replayed.await.map(Json)
}
