use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, runtime::Runtime};

use crate::{
    api::SOCKET,
    wire::{Pcrs, QuoteReply, QuoteRequest, Refusal, Status, TO_HEADER},
};

/// Asks a running service. One connection a request.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Arc<Runtime>,
}

/// An answer that is read as it comes.
#[derive(Debug)]
pub struct RecordAnswer {
    runtime: Arc<Runtime>,
    body: Incoming,
    to: u64,
}

/// Why a service did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing answers at the socket.
    #[error("{}: no service answers ({error}); start it with `imastage run`", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The service refused.
    #[error("the service refused ({status}): {why}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Why, in the service's words.
        why: String,
    },
    /// The answer broke off or is no answer.
    #[error("the service's answer cannot be used: {0}")]
    Answer(String),
}

/// Answers other than records are small.
const LONGEST_ANSWER: usize = 1 << 20;

impl Client {
    /// For the service of a state directory.
    ///
    /// # Errors
    /// [`io::Error`] if no runtime can be made.
    pub fn of_state(state: &Path) -> io::Result<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Client { socket: state.join(SOCKET), runtime: Arc::new(runtime) })
    }

    /// The service's state.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn status(&self) -> Result<Status, ClientError> {
        self.runtime
            .block_on(async { json(self.send(Method::GET, "/v1/status", None).await?).await })
    }

    /// A quote over a nonce.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn quote(&self, request: &QuoteRequest) -> Result<QuoteReply, ClientError> {
        let body = serde_json::to_vec(request).map_err(answer)?;
        self.runtime
            .block_on(async { json(self.send(Method::POST, "/v1/quote", Some(body)).await?).await })
    }

    /// PCR 10 as the first `at` records replay.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn pcrs(&self, at: u64) -> Result<Pcrs, ClientError> {
        let path = format!("/v1/pcrs?at={at}");
        self.runtime.block_on(async { json(self.send(Method::GET, &path, None).await?).await })
    }

    /// The records from index `from` up to, not including, `to`, in the binary sha1 form, in
    /// chunks that may end inside a record.
    ///
    /// # Errors
    /// [`ClientError`]; whatever `sink` says.
    pub fn records<E: From<ClientError>>(
        &self,
        mut from: u64,
        to: u64,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let mut answer = self.ask_for_records(from, Some(to), Duration::ZERO)?;
            while let Some(chunk) = answer.chunk()? {
                sink(&chunk)?;
            }
            if answer.to() >= to {
                return Ok(());
            }
            if answer.to() <= from {
                return Err(ClientError::Answer("it gives no records".to_owned()).into());
            }
            from = answer.to();
        }
    }

    /// Records from index `from` on, in the binary sha1 form: up to `to`, or all that are stored, or
    /// as many as the service gives at once. If none is there yet it is waited for, at most `wait`
    /// (in whole seconds).
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask_for_records(
        &self,
        from: u64,
        to: Option<u64>,
        wait: Duration,
    ) -> Result<RecordAnswer, ClientError> {
        let mut path = format!("/v1/records?from={from}&wait={}", wait.as_secs());
        if let Some(to) = to {
            path += &format!("&to={to}");
        }
        let response = self.runtime.block_on(self.response(Method::GET, &path, None))?;
        let header = response.headers().get(TO_HEADER).and_then(|to| to.to_str().ok());
        let Some(to) = header.and_then(|to| to.parse().ok()) else {
            return Err(ClientError::Answer(format!("it has no header {TO_HEADER}")));
        };
        Ok(RecordAnswer { runtime: Arc::clone(&self.runtime), body: response.into_body(), to })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        json: Option<Vec<u8>>,
    ) -> Result<Incoming, ClientError> {
        Ok(self.response(method, path, json).await?.into_body())
    }

    async fn response(
        &self,
        method: Method,
        path: &str,
        json: Option<Vec<u8>>,
    ) -> Result<Response<Incoming>, ClientError> {
        let unreachable = |error| ClientError::Unreachable { path: self.socket.clone(), error };
        let stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(answer)?;
        // Drives the connection; its errors come out of the request.
        tokio::spawn(async move { drop(connection.await) });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "imastage")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(json.unwrap_or_default())))
            .map_err(answer)?;
        let response = sender.send_request(request).await.map_err(answer)?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        let body = collect(response.into_body()).await?;
        let why = match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => refusal.error,
            Err(_) => String::from_utf8_lossy(&body).into_owned(),
        };
        Err(ClientError::Refused { status: status.as_u16(), why })
    }
}

impl RecordAnswer {
    /// The index behind the last record of this answer.
    pub fn to(&self) -> u64 {
        self.to
    }

    /// The next bytes, which may end inside a record; `None` at the end.
    ///
    /// # Errors
    /// [`ClientError`] if the answer breaks off.
    pub fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        let RecordAnswer { runtime, body, .. } = self;
        runtime.block_on(async {
            while let Some(frame) = body.frame().await {
                if let Ok(bytes) = frame.map_err(answer)?.into_data() {
                    return Ok(Some(bytes));
                }
            }
            Ok(None)
        })
    }
}

async fn json<T: DeserializeOwned>(body: Incoming) -> Result<T, ClientError> {
    serde_json::from_slice(&collect(body).await?).map_err(answer)
}

async fn collect(body: Incoming) -> Result<Bytes, ClientError> {
    let limited = http_body_util::Limited::new(body, LONGEST_ANSWER);
    Ok(limited.collect().await.map_err(answer)?.to_bytes())
}

fn answer(error: impl ToString) -> ClientError {
    ClientError::Answer(error.to_string())
}
