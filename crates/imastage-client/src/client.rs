//! A client of a running service.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use ima_log::{Bank, Decoder, Format, Printable};
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, runtime::Runtime};

use crate::wire::{
    EPOCH_HEADER, Pcrs, QuoteReply, QuoteRequest, Refusal, SOCKET, Status, TO_HEADER,
};

/// A client of a running service, with one connection per request. Every wait has a limit: the
/// process that answers at the socket may hang or be hostile.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Arc<Runtime>,
}

/// An answer that is read incrementally.
#[derive(Debug)]
pub struct RecordAnswer {
    runtime: Arc<Runtime>,
    body: Incoming,
    pid: Option<i32>,
    epoch: u64,
    to: u64,
    /// The number of bytes received, and the time spent waiting for them.
    received: u64,
    waited: Duration,
}

/// Why a request to a service failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing answers at the socket.
    #[error("{}: no service answers ({error}); start it with `imastage run`", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// A process listens at the socket and does not answer.
    #[error(
        "the service{} does not answer (waited {} s for {what}); see what it does with: \
         systemctl status imastage, journalctl -u imastage",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(),
        waited.as_secs()
    )]
    Silent {
        /// Its process, according to the kernel; `None` if it accepted no connection.
        pid: Option<i32>,
        /// The awaited event.
        what: &'static str,
        /// The time waited.
        waited: Duration,
    },
    /// The service refused the request.
    #[error("the service refused ({status}): {}", Printable::new(why))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The reason, from the service.
        why: String,
    },
    /// The connection broke before the answer was complete, for example because the service ended.
    #[error("the service's answer broke off: {}", Printable::new(_0))]
    Broken(String),
    /// The answer is malformed.
    #[error("the service's answer cannot be used: {}", Printable::new(_0))]
    Answer(String),
}

/// Answers other than records are small.
const LONGEST_ANSWER: usize = 1 << 20;

/// Timeout to accept a connection and to answer a request that needs no work.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Timeout for a quote: many can be requested at once, and each one needs a drain.
const LONGEST_QUOTE: Duration = Duration::from_secs(120);
/// Timeout for the next bytes of an answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The minimum rate of an answer in bytes per second of waiting, after the first minute.
const SLOWEST: u64 = 4 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// The maximum number of records in one answer: far more than any machine measures.
pub const MOST_RECORDS: u64 = 1 << 26;

impl Client {
    /// For the service of a state directory.
    ///
    /// # Errors
    /// [`io::Error`] if the runtime cannot be created.
    pub fn of_state(state: &Path) -> io::Result<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Client { socket: state.join(SOCKET), runtime: Arc::new(runtime) })
    }

    /// The service's state.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn status(&self) -> Result<Status, ClientError> {
        self.json(Method::GET, "/v1/status", None, LONGEST_WAIT)
    }

    /// A quote over a nonce.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn quote(&self, request: &QuoteRequest) -> Result<QuoteReply, ClientError> {
        let body = serde_json::to_vec(request).map_err(answer)?;
        self.json(Method::POST, "/v1/quote", Some(body), LONGEST_QUOTE)
    }

    /// The PCR values to which the first `at` records replay.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn pcrs(&self, at: u64) -> Result<Pcrs, ClientError> {
        self.json(Method::GET, &format!("/v1/pcrs?at={at}"), None, LONGEST_WAIT)
    }

    /// The records from index `from` up to, not including, `to`, in the binary sha1 form, in
    /// chunks that may end within a record: exactly this number of records.
    ///
    /// # Errors
    /// [`ClientError`], also if the service returns other records; the error of `sink`.
    pub fn records<E: From<ClientError>>(
        &self,
        mut from: u64,
        to: u64,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let wanted = to.saturating_sub(from);
        if wanted > MOST_RECORDS {
            let why = format!("it says that there are {wanted} records, which nobody has");
            return Err(ClientError::Answer(why).into());
        }
        loop {
            let mut answer = self.ask_for_records(from, Some(to), Duration::ZERO)?;
            let promised = answer.to().saturating_sub(from);
            if answer.to() > to || (promised == 0 && from < to) {
                let why = format!("records {from} to {to} were asked for, it gives {promised}");
                return Err(ClientError::Answer(why).into());
            }
            let mut count = Count::new(promised);
            while let Some(chunk) = answer.chunk()? {
                count.feed(&chunk)?;
                sink(&chunk)?;
            }
            count.end()?;
            if answer.to() >= to {
                return Ok(());
            }
            from = answer.to();
        }
    }

    /// Records from index `from` on, in the binary sha1 form: up to `to`, or all stored ones, or as
    /// many as the service returns at once. Without a record, waits for one, at most `wait` (whole
    /// seconds).
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
        self.runtime.block_on(async {
            let patience = LONGEST_WAIT + wait;
            let connection = self.connect().await?;
            let pid = connection.pid;
            let asked = connection.ask(Method::GET, &path, None);
            let response = within(patience, pid, "records", asked).await?;
            let header = |name| {
                let value = response.headers().get(name).and_then(|value| value.to_str().ok());
                let why = || ClientError::Answer(format!("it has no header {name}"));
                value.and_then(|value| value.parse().ok()).ok_or_else(why)
            };
            let (epoch, to) = (header(EPOCH_HEADER)?, header(TO_HEADER)?);
            Ok(RecordAnswer {
                runtime: Arc::clone(&self.runtime),
                body: response.into_body(),
                pid,
                epoch,
                to,
                received: 0,
                waited: Duration::ZERO,
            })
        })
    }

    fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        json: Option<Vec<u8>>,
        patience: Duration,
    ) -> Result<T, ClientError> {
        self.runtime.block_on(async {
            let connection = self.connect().await?;
            let pid = connection.pid;
            let asked = async {
                let response = connection.ask(method, path, json).await?;
                serde_json::from_slice(&collect(response.into_body()).await?).map_err(answer)
            };
            within(patience, pid, "an answer", asked).await
        })
    }

    async fn connect(&self) -> Result<Connection, ClientError> {
        /// The pause before a retry if the service accepts no more connections.
        const PAUSE: Duration = Duration::from_millis(20);
        let connected = async {
            loop {
                match UnixStream::connect(&self.socket).await {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        tokio::time::sleep(PAUSE).await;
                    }
                    result => return result,
                }
            }
        };
        let unreachable = |error| ClientError::Unreachable { path: self.socket.clone(), error };
        let connected = async { connected.await.map_err(unreachable) };
        let stream = within(LONGEST_WAIT, None, "a connection", connected).await?;
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        Ok(Connection { stream, pid })
    }
}

/// A connection, and the process that listens.
struct Connection {
    stream: UnixStream,
    pid: Option<i32>,
}

impl Connection {
    async fn ask(
        self,
        method: Method,
        path: &str,
        json: Option<Vec<u8>>,
    ) -> Result<Response<Incoming>, ClientError> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(self.stream)).await.map_err(broken)?;
        // Drives the connection; the request returns its errors.
        tokio::spawn(async move { drop(connection.await) });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "imastage")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(json.unwrap_or_default())))
            .map_err(answer)?;
        let response = sender.send_request(request).await.map_err(broken)?;
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

/// Counts the records of an answer, which must have the number that it states.
struct Count {
    decoder: Decoder,
    left: u64,
}

impl Count {
    fn new(promised: u64) -> Count {
        Count { decoder: Decoder::new(Format::native(Bank::Sha1)), left: promised }
    }

    fn feed(&mut self, chunk: &[u8]) -> Result<(), ClientError> {
        self.decoder.feed(chunk);
        while self.decoder.next_record().map_err(answer)?.is_some() {
            let left = self.left.checked_sub(1);
            self.left = left.ok_or_else(|| answer("it has more records than it says"))?;
        }
        Ok(())
    }

    fn end(&self) -> Result<(), ClientError> {
        self.decoder.finish().map_err(answer)?;
        match self.left {
            0 => Ok(()),
            left => Err(answer(format!("{left} records are missing at its end"))),
        }
    }
}

impl RecordAnswer {
    /// The index after the last record of this answer.
    pub fn to(&self) -> u64 {
        self.to
    }

    /// The number of the records' epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The next bytes, which may end within a record; `None` at the end.
    ///
    /// # Errors
    /// [`ClientError`] if the answer is incomplete or too slow.
    pub fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        let RecordAnswer { runtime, body, pid, .. } = self;
        let since = Instant::now();
        let next = async {
            while let Some(frame) = body.frame().await {
                if let Ok(bytes) = frame.map_err(broken)?.into_data() {
                    return Ok(Some(bytes));
                }
            }
            Ok(None)
        };
        let next = within(LONGEST_PAUSE, *pid, "more records", next);
        let bytes = runtime.block_on(next)?;
        self.waited += since.elapsed();
        self.received += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if self.waited > PATIENCE + Duration::from_secs(self.received / SLOWEST) {
            let (pid, waited) = (self.pid, self.waited);
            return Err(ClientError::Silent { pid, what: "records that hardly come", waited });
        }
        Ok(bytes)
    }
}

async fn within<T>(
    patience: Duration,
    pid: Option<i32>,
    what: &'static str,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    let silent = |_| Err(ClientError::Silent { pid, what, waited: patience });
    tokio::time::timeout(patience, work).await.unwrap_or_else(silent)
}

async fn collect(body: Incoming) -> Result<Bytes, ClientError> {
    let limited = http_body_util::Limited::new(body, LONGEST_ANSWER);
    Ok(limited.collect().await.map_err(answer)?.to_bytes())
}

fn broken(error: impl ToString) -> ClientError {
    ClientError::Broken(error.to_string())
}

fn answer(error: impl ToString) -> ClientError {
    ClientError::Answer(error.to_string())
}
