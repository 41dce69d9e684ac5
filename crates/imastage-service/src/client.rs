use std::{
    io,
    path::{Path, PathBuf},
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::{
    api::SOCKET,
    wire::{QuoteReply, QuoteRequest, Refusal, Status},
};

/// Asks a running service. One connection a request.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
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
        Ok(Client { socket: state.join(SOCKET), runtime })
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

    /// The records from index `from` up to, not including, `to`, in the binary sha1 form, in
    /// chunks that may end inside a record.
    ///
    /// # Errors
    /// [`ClientError`]; whatever `sink` says.
    pub fn records<E: From<ClientError>>(
        &self,
        from: u64,
        to: u64,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.runtime.block_on(async {
            let path = format!("/v1/records?from={from}&to={to}");
            let mut body = self.send(Method::GET, &path, None).await?;
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(answer)?;
                if let Some(bytes) = frame.data_ref() {
                    sink(bytes)?;
                }
            }
            Ok(())
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        json: Option<Vec<u8>>,
    ) -> Result<Incoming, ClientError> {
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
            return Ok(response.into_body());
        }
        let body = collect(response.into_body()).await?;
        let why = match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => refusal.error,
            Err(_) => String::from_utf8_lossy(&body).into_owned(),
        };
        Err(ClientError::Refused { status: status.as_u16(), why })
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
