//! HTTP on a Unix socket.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use ima_log::Bank;
use imastage_store::Reader;
use serde::Deserialize;
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    ServiceError, metrics,
    service::Shared,
    wire::{QuoteReply, QuoteRequest, Refusal, Status},
};

/// The API's socket in the state directory.
pub const SOCKET: &str = "api.sock";

/// Requests are a nonce and a few names.
const LONGEST_REQUEST: usize = 64 << 10;

/// The API's thread. Dropping this ends it.
pub(crate) struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
}

/// Serves the API of `shared`.
pub(crate) fn serve(shared: Arc<Shared>) -> Result<Running, ServiceError> {
    let socket = shared.state.join(SOCKET);
    let failed = |error| ServiceError::Socket { path: socket.clone(), error };
    let listener = bind(&socket).map_err(failed)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let app = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/quote", post(quote))
        .route("/v1/records", get(records))
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
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Binds the socket for its owner and group. The store's lock says that no other service lives in
/// this directory, so a socket that is there was left by one that died.
fn bind(socket: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// With PCR 10 as the TPM has it now.
async fn status(State(shared): State<Arc<Shared>>) -> Result<Json<Status>, Error> {
    let asked = tokio::task::spawn_blocking(move || {
        let mut status = shared.status().clone();
        if let Some(attester) = &shared.attester {
            for pcr in attester.pcrs().map_err(Error::internal)? {
                if let Some(bank) = status.banks.get_mut(&pcr.bank().to_string()) {
                    bank.tpm = Some(pcr.to_string());
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
    Json(request): Json<QuoteRequest>,
) -> Result<Json<QuoteReply>, Error> {
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
    let quote = attester.quote(&nonce, &banks).map_err(Error::internal)?;
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
struct Range {
    /// The first record's index.
    #[serde(default)]
    from: u64,
    /// The index behind the last record; all that are stored if missing.
    to: Option<u64>,
}

/// Streams records in the binary sha1 form.
async fn records(
    State(shared): State<Arc<Shared>>,
    Query(range): Query<Range>,
) -> Result<Response, Error> {
    /// Chunks on the way to a slow client.
    const AHEAD: usize = 4;
    let (sender, receiver) = mpsc::channel::<Result<Bytes, io::Error>>(AHEAD);
    let reader = Reader::open(&shared.state).map_err(Error::internal)?;
    let to = range.to.unwrap_or(reader.len());
    if range.from > to || to > reader.len() {
        let error = format!(
            "records {} to {to} were asked for, 0 to {} are stored",
            range.from,
            reader.len()
        );
        return Err(Error::new(StatusCode::RANGE_NOT_SATISFIABLE, error));
    }
    tokio::task::spawn_blocking(move || {
        let result = read(&reader, range.from, to, &mut |chunk| {
            sender.blocking_send(Ok(chunk)).map_err(|_| ())
        });
        if let Err(error) = result {
            // If the client is gone it does not want to know.
            let _ = sender.blocking_send(Err(io::Error::other(error)));
        }
    });
    let body = Body::from_stream(ReceiverStream::new(receiver));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// Gives the records `from` to `to` in chunks until `sink` wants no more.
fn read(
    reader: &Reader,
    from: u64,
    to: u64,
    sink: &mut dyn FnMut(Bytes) -> Result<(), ()>,
) -> Result<(), String> {
    const CHUNK: usize = 256 << 10;
    let mut cursor = reader.records(from).map_err(|error| error.to_string())?;
    let mut chunk = Vec::with_capacity(CHUNK);
    for _ in from..to {
        let record = cursor.next_record().map_err(|error| error.to_string())?;
        let Some(record) = record else {
            return Err(format!("the store ends before record {to}"));
        };
        chunk.extend_from_slice(record.as_bytes());
        if chunk.len() >= CHUNK && sink(Bytes::from(std::mem::take(&mut chunk))).is_err() {
            return Ok(());
        }
    }
    // Nobody left to take the rest is no error.
    let _ = sink(Bytes::from(chunk));
    Ok(())
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

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        (self.status, Json(Refusal { error: self.why })).into_response()
    }
}
