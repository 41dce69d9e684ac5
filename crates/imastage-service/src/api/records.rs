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
use imastage_store::{Cursor, Reader, StoreError};
use serde::{Deserialize, Deserializer, de};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{error::Error, work::Work};
use crate::handle::Shared;
use imastage_client::wire::{EPOCH_HEADER, FROM_HEADER, Form, TO_HEADER};

/// The maximum number of records in one answer; a client requests more from its end on.
const MOST_RECORDS: u64 = 1_000_000;
/// The maximum time to wait for new records, in seconds.
const LONGEST_WAIT: u64 = 300;
/// The interval at which a request that waits for records checks the store, which is cheap.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Params {
    /// The first record's index.
    #[serde(default)]
    from: u64,
    /// The index after the last record; all that are stored if missing.
    to: Option<u64>,
    #[serde(default)]
    form: Form,
    #[serde(default, deserialize_with = "bank")]
    bank: Option<Bank>,
    /// The time to wait for record `from` if it does not exist yet, in seconds.
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
    State(work): State<Arc<Work>>,
    params: Result<Query<Params>, QueryRejection>,
) -> Result<Response, Error> {
    let Query(params) = params?;
    let reader = open(&shared, &work, &params).await?;
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
    // One chunk waits for the client while the next one is prepared.
    let (sender, receiver) = mpsc::channel::<Result<Bytes, io::Error>>(1);
    tokio::spawn(async move {
        let writer = Writer::new(params.form, params.bank);
        let mut part = Part { reader, cursor: None, next: from, to, writer };
        while part.next < part.to || part.cursor.is_none() {
            // The thread is returned between two chunks: a client that does not read occupies none.
            let read = work.read(move || {
                let chunk = part.chunk();
                Ok((part, chunk))
            });
            let Ok((rest, chunk)) = read.await else { return };
            part = rest;
            let chunk = chunk.map_err(|error| {
                tracing::error!("cannot send records {from} to {to}: {error}");
                io::Error::other(error)
            });
            let is_last = chunk.is_err();
            // A client that closed the connection needs no more.
            if sender.send(chunk).await.is_err() || is_last {
                return;
            }
        }
    });
    Ok((headers, Body::from_stream(ReceiverStream::new(receiver))).into_response())
}

/// A reader of the store, after the first requested record exists or the time to wait has passed.
async fn open(shared: &Arc<Shared>, work: &Work, params: &Params) -> Result<Reader, Error> {
    if params.wait > LONGEST_WAIT {
        let error = format!("wait: at most {LONGEST_WAIT} seconds, found {}", params.wait);
        return Err(Error::bad(error));
    }
    let until = Instant::now() + Duration::from_secs(params.wait);
    if params.wait > 0 && shared.status().records == params.from {
        // If the drain fails, stored records are returned; the drain loop reports the reason.
        let _ = tokio::time::timeout_at(until.into(), work.drain(shared)).await;
    }
    while shared.status().records == params.from && Instant::now() < until && !work.is_refused() {
        tokio::time::sleep(LOOK).await;
    }
    let state = shared.state.clone();
    work.read(move || Reader::open(&state).map_err(Error::internal)).await
}

/// The rest of an answer.
struct Part {
    reader: Reader,
    /// `None` before the first chunk.
    cursor: Option<Cursor>,
    next: u64,
    to: u64,
    writer: Writer,
}

impl Part {
    /// The next chunk; the last one if `next` then equals `to`.
    fn chunk(&mut self) -> Result<Bytes, StoreError> {
        const CHUNK: usize = 128 << 10;
        let mut chunk = Vec::with_capacity(CHUNK);
        if self.cursor.is_none() {
            self.writer.begin(&mut chunk);
        }
        let cursor = match &mut self.cursor {
            Some(cursor) => cursor,
            None => self.cursor.insert(self.reader.records(self.next)?),
        };
        while self.next < self.to && chunk.len() < CHUNK {
            // `to` is not after the reader's end.
            let Some(record) = cursor.next_record()? else { break };
            self.writer.record(self.next, &record, &mut chunk);
            self.next += 1;
        }
        if chunk.len() < CHUNK {
            self.next = self.to;
        }
        if self.next == self.to {
            self.writer.end(&mut chunk);
        }
        Ok(Bytes::from(chunk))
    }
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
