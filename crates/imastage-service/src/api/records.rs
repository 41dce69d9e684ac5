//! `GET /v1/records`: records from any index on, in any form.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use ima_log::{Bank, Record, cel, json};
use imastage_store::{Reader, StoreError};
use serde::{Deserialize, Deserializer, de};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Error;
use crate::{
    service::Shared,
    wire::{EPOCH_HEADER, FROM_HEADER, Form, TO_HEADER},
};

/// The most records in one answer. Who wants more asks again from where it ended.
const MOST_RECORDS: u64 = 1_000_000;
/// The longest time that growth is waited for, in seconds.
const LONGEST_WAIT: u64 = 300;
/// How often one who waits for growth looks. Drains are announced to nobody, and looking is cheap.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Params {
    /// The first record's index.
    #[serde(default)]
    from: u64,
    /// The index behind the last record; all that are stored if missing.
    to: Option<u64>,
    #[serde(default)]
    form: Form,
    #[serde(default, deserialize_with = "bank")]
    bank: Option<Bank>,
    /// If there is no record `from` yet, wait for it so many seconds.
    #[serde(default)]
    wait: u64,
}

fn bank<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bank>, D::Error> {
    let name = String::deserialize(deserializer)?;
    name.parse().map(Some).map_err(|error| de::Error::custom(format!("bank {name}: {error}")))
}

/// Streams records.
pub(super) async fn records(
    State(shared): State<Arc<Shared>>,
    params: Result<Query<Params>, QueryRejection>,
) -> Result<Response, Error> {
    /// Chunks on the way to a slow client.
    const AHEAD: usize = 4;
    let Query(params) = params?;
    let reader = open(&shared, &params).await?;
    let stored = reader.len();
    let (from, asked) = (params.from, params.to.unwrap_or(stored));
    if from > asked || asked > stored {
        let error = format!("records {from} to {asked} were asked for, 0 to {stored} are stored");
        return Err(Error::new(StatusCode::RANGE_NOT_SATISFIABLE, error));
    }
    let to = asked.min(from.saturating_add(MOST_RECORDS));
    let headers = [
        (header::CONTENT_TYPE, params.form.content_type().to_owned()),
        (HeaderName::from_static(EPOCH_HEADER), reader.epoch().number.to_string()),
        (HeaderName::from_static(FROM_HEADER), from.to_string()),
        (HeaderName::from_static(TO_HEADER), to.to_string()),
    ];
    let (sender, receiver) = mpsc::channel::<Result<Bytes, io::Error>>(AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut writer = Writer::new(params.form, params.bank);
        let result = read(&reader, from, to, &mut writer, &mut |chunk| {
            sender.blocking_send(Ok(chunk)).map_err(|_| Failed::Gone)
        });
        if let Err(Failed::Store(error)) = result {
            tracing::error!("records {from} to {to} cannot be given: {error}");
            // If the client is gone it does not want to know.
            let _ = sender.blocking_send(Err(io::Error::other(error)));
        }
    });
    Ok((headers, Body::from_stream(ReceiverStream::new(receiver))).into_response())
}

/// The store as it is when the first record that was asked for is there, or was waited for in vain.
async fn open(shared: &Arc<Shared>, params: &Params) -> Result<Reader, Error> {
    if params.wait > LONGEST_WAIT {
        let error = format!("wait: at most {LONGEST_WAIT} seconds, found {}", params.wait);
        return Err(Error::bad(error));
    }
    let until = Instant::now() + Duration::from_secs(params.wait);
    if params.wait > 0 && shared.status().records == params.from {
        let draining = Arc::clone(shared);
        // If it cannot be drained, what is stored counts; the drain loop tells why.
        let _ = tokio::task::spawn_blocking(move || draining.drain()).await;
    }
    while shared.status().records == params.from && Instant::now() < until {
        tokio::time::sleep(LOOK).await;
    }
    Reader::open(&shared.state).map_err(Error::internal)
}

/// Why not all records were given.
enum Failed {
    /// Nobody takes the answer any more.
    Gone,
    Store(StoreError),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Failed {
        Failed::Store(error)
    }
}

/// Gives the records `from` to `to` in chunks.
fn read(
    reader: &Reader,
    from: u64,
    to: u64,
    writer: &mut Writer,
    sink: &mut dyn FnMut(Bytes) -> Result<(), Failed>,
) -> Result<(), Failed> {
    const CHUNK: usize = 256 << 10;
    let mut cursor = reader.records(from)?;
    let mut chunk = Vec::with_capacity(CHUNK);
    writer.begin(&mut chunk);
    for index in from..to {
        // `to` is not behind the reader's end.
        let Some(record) = cursor.next_record()? else { break };
        writer.record(index, &record, &mut chunk);
        if chunk.len() >= CHUNK {
            sink(Bytes::from(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK))))?;
        }
    }
    writer.end(&mut chunk);
    sink(Bytes::from(chunk))
}

/// Writes records in one form.
enum Writer {
    Binary(Bank),
    Ascii(Bank),
    Jsonl(Bank),
    Cel(Option<cel::Writer>),
}

impl Writer {
    fn new(form: Form, bank: Option<Bank>) -> Writer {
        let shown = bank.unwrap_or(Bank::Sha1);
        match form {
            Form::Binary => Writer::Binary(shown),
            Form::Ascii => Writer::Ascii(shown),
            Form::Jsonl => Writer::Jsonl(shown),
            Form::Cel => {
                let banks = [bank.unwrap_or(Bank::Sha256)];
                Writer::Cel(Some(cel::Writer::new(cel::Encoding::Json, &banks)))
            }
        }
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if let Writer::Cel(Some(writer)) = self {
            writer.begin(None, out);
        }
    }

    fn record(&mut self, index: u64, record: &Record<'_>, out: &mut Vec<u8>) {
        match self {
            Writer::Binary(bank) => record.write_binary(*bank, out),
            Writer::Ascii(bank) => record.write_ascii(*bank, out),
            Writer::Jsonl(bank) => json::write_record(record, index, *bank, out),
            Writer::Cel(Some(writer)) => writer.record(record, out),
            Writer::Cel(None) => {}
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if let Writer::Cel(writer) = self
            && let Some(writer) = writer.take()
        {
            writer.end(out);
        }
    }
}
