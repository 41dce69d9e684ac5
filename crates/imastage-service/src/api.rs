//! HTTP on a Unix socket. `docs/openapi.yaml` describes it.

mod records;

use std::{
    fs, io,
    os::unix::{self, fs::PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread::{self, JoinHandle},
};

use axum::{
    Json, Router,
    extract::{
        DefaultBodyLimit, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::Listener,
};
use ima_log::{Bank, Extend};
use imastage_store::Reader;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
};

use crate::{
    ServiceError,
    health::{Health, now},
    metrics,
    service::Shared,
    wire::{ExtendedWith, Pcr, Pcrs, QuoteReply, QuoteRequest, Refusal, Status},
};

/// The API's socket in the state directory.
pub const SOCKET: &str = "api.sock";

/// Requests are a nonce and a few names.
const LONGEST_REQUEST: usize = 64 << 10;

/// Connections that are served at once.
const MOST_CONNECTIONS: usize = 64;

/// The API's thread. Dropping this ends it.
pub(crate) struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
}

/// Serves the API of `shared`.
pub(crate) fn serve(shared: Arc<Shared>, group: Option<u32>) -> Result<Running, ServiceError> {
    let socket = shared.state.join(SOCKET);
    let failed = |error| ServiceError::Socket { path: socket.clone(), error };
    let listener = bind(&socket, group).map_err(failed)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let app = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/quote", post(quote))
        .route("/v1/records", get(records::records))
        .route("/v1/pcrs", get(pcrs))
        .route("/metrics", get(metrics::show))
        .layer(DefaultBodyLimit::max(LONGEST_REQUEST))
        .with_state(shared);
    let (stop, stopped) = oneshot::channel::<()>();
    let serve = move || {
        runtime.block_on(async {
            let listener = match UnixListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => return tracing::error!(%error, "the API's socket cannot be served"),
            };
            let listener = Listening { listener, room: Arc::new(Semaphore::new(MOST_CONNECTIONS)) };
            tokio::select! {
                result = axum::serve(listener, app) => {
                    if let Err(error) = result {
                        tracing::error!(%error, "the API ended");
                    }
                }
                // Either way: told to stop, or nobody is left to tell.
                _ = stopped => {}
            }
        });
    };
    let thread =
        thread::Builder::new().name("api".into()).spawn(serve).map_err(ServiceError::Thread)?;
    Ok(Running { stop: Some(stop), thread: Some(thread), socket })
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // If it is gone already, all the better.
        let _ = fs::remove_file(&self.socket);
    }
}

/// Binds the socket for its owner and a group. The store's lock says that no other service lives in
/// this directory, so a socket that is there was left by one that died.
fn bind(socket: &Path, group: Option<u32>) -> io::Result<std::os::unix::net::UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(socket)?;
    if let Some(group) = group {
        unix::fs::chown(socket, None, Some(group))?;
        // To reach the socket, and nothing else: all else is for its owner only.
        if let Some(state) = socket.parent() {
            unix::fs::chown(state, None, Some(group))?;
            fs::set_permissions(state, fs::Permissions::from_mode(0o710))?;
        }
    }
    fs::set_permissions(socket, fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// With the list's PCRs as the TPM has them now.
async fn status(State(shared): State<Arc<Shared>>) -> Result<Json<Status>, Error> {
    let asked = tokio::task::spawn_blocking(move || {
        let mut status = shared.status().clone();
        if let Some(attester) = &shared.attester {
            match attester.read_for_client(&shared.list_pcrs()) {
                Ok(values) => {
                    for (bank, pcr, value) in values {
                        status.set_tpm(bank.name(), pcr, value.to_string());
                    }
                }
                // All else can be told.
                Err(error) => {
                    status.since_start.tpm_error = Some(error.to_string());
                    status.health = Health::of(&status, now());
                }
            }
        }
        Ok(status)
    });
    asked.await.map_err(|_| Error::internal("the request was dropped"))?.map(Json)
}

/// Quotes first, then drains: so the list is never behind the quote.
async fn quote(
    State(shared): State<Arc<Shared>>,
    request: Result<Json<QuoteRequest>, JsonRejection>,
) -> Result<Json<QuoteReply>, Error> {
    let Json(request) = request?;
    let made = tokio::task::spawn_blocking(move || make_quote(&shared, &request)).await;
    made.map_err(|_| Error::internal("the request was dropped"))?.map(Json)
}

fn make_quote(shared: &Shared, request: &QuoteRequest) -> Result<QuoteReply, Error> {
    let Some(attester) = &shared.attester else {
        return Err(Error::new(StatusCode::SERVICE_UNAVAILABLE, "this service has no TPM"));
    };
    let nonce =
        hex::decode(&request.nonce).map_err(|error| Error::bad(format!("nonce: {error}")))?;
    if !(1..=64).contains(&nonce.len()) {
        return Err(Error::bad(format!("nonce: expected 1 to 64 bytes, found {}", nonce.len())));
    }
    let mut banks = Vec::new();
    for name in &request.banks {
        let bank: Bank =
            name.parse().map_err(|error| Error::bad(format!("bank {name}: {error}")))?;
        if !attester.banks().contains(&bank) {
            return Err(Error::bad(format!("bank {bank}: the TPM has no such bank")));
        }
        if !banks.contains(&bank) {
            banks.push(bank);
        }
    }
    if banks.is_empty() {
        banks.push(attester.bank());
    }
    let (quote, _) =
        attester.quote(&nonce, &banks, &shared.list_pcrs()).map_err(Error::internal)?;
    shared.drain().map_err(|error| {
        Error::new(StatusCode::SERVICE_UNAVAILABLE, format!("the list was not drained: {error}"))
    })?;
    let status = shared.status();
    Ok(QuoteReply {
        epoch: status.epoch,
        records: status.records,
        message: hex::encode(&quote.message),
        signature: hex::encode(&quote.signature),
        key: attester.public_pem().to_owned(),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PcrParams {
    /// After how many records; all that are stored if missing.
    at: Option<u64>,
}

/// PCR 10 as records replay. Constant time.
async fn pcrs(
    State(shared): State<Arc<Shared>>,
    params: Result<Query<PcrParams>, QueryRejection>,
) -> Result<Json<Pcrs>, Error> {
    let Query(params) = params?;
    let replayed = tokio::task::spawn_blocking(move || {
        let reader = Reader::open(&shared.state).map_err(Error::internal)?;
        let records = params.at.unwrap_or(reader.len());
        if records > reader.len() {
            let error = format!("at: {records} was asked for, {} are stored", reader.len());
            return Err(Error::new(StatusCode::RANGE_NOT_SATISFIABLE, error));
        }
        let replays = reader.running_at(records).map_err(Error::internal)?;
        let pcrs = replays.into_iter().map(|replay| Pcr {
            bank: replay.value().bank().to_string(),
            extended_with: match replay.extend_kind() {
                Extend::Own => ExtendedWith::Own,
                Extend::Sha1Padded | Extend::Sha1PaddedViolations => ExtendedWith::Padded,
            },
            value: replay.value().to_string(),
        });
        Ok(Pcrs { epoch: reader.epoch().number, records, pcrs: pcrs.collect() })
    });
    replayed.await.map_err(|_| Error::internal("the request was dropped"))?.map(Json)
}

/// The socket, with no more connections at once than there is room for. Others wait.
struct Listening {
    listener: UnixListener,
    room: Arc<Semaphore>,
}

/// A connection, and its place.
struct Connection {
    stream: UnixStream,
    _place: Option<OwnedSemaphorePermit>,
}

impl Listener for Listening {
    type Io = Connection;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Connection, Self::Addr) {
        // Nobody closes it, so there is a place sooner or later.
        let place = Arc::clone(&self.room).acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Connection { stream, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Listener::local_addr(&self.listener)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

struct Error {
    status: StatusCode,
    why: String,
}

impl Error {
    fn new(status: StatusCode, why: impl ToString) -> Error {
        Error { status, why: why.to_string() }
    }

    fn bad(why: impl ToString) -> Error {
        Error::new(StatusCode::BAD_REQUEST, why)
    }

    fn internal(why: impl ToString) -> Error {
        Error::new(StatusCode::INTERNAL_SERVER_ERROR, why)
    }
}

impl From<QueryRejection> for Error {
    fn from(rejection: QueryRejection) -> Error {
        Error::new(rejection.status(), rejection.body_text())
    }
}

impl From<JsonRejection> for Error {
    fn from(rejection: JsonRejection) -> Error {
        Error::new(rejection.status(), rejection.body_text())
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        (self.status, Json(Refusal { error: self.why })).into_response()
    }
}
