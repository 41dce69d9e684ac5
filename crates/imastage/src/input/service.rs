//! The records that a running service gives.

use std::{path::Path, thread, time::Duration};

use ima_log::{Bank, Decoder, Format, Record};
use imastage_client::{Client, ClientError, MOST_RECORDS, RecordAnswer};

use crate::exit::{Fail, Failure};

/// Asks for records from an index on. If they are followed, a service that is started again is waited
/// for, and the next record is asked of it.
pub struct Service {
    client: Client,
    follow: bool,
    /// What it is answering, if it is, and how many records that still has to have.
    answer: Option<(RecordAnswer, u64)>,
    decoder: Decoder,
    /// The epoch of the records so far; `None` before the first answer.
    epoch: Option<u64>,
    given: u64,
    /// Whether it was said that the service does not answer.
    is_awaited: bool,
}

/// How long the service is asked to wait for records at a time.
const WAIT: Duration = Duration::from_secs(60);

impl Service {
    /// The service of a state directory.
    pub fn of_state(state: &Path, follow: bool) -> Result<Service, Failure> {
        Ok(Service {
            client: Client::of_state(state).environment("runtime")?,
            follow,
            answer: None,
            decoder: decoder(),
            epoch: None,
            given: 0,
            is_awaited: false,
        })
    }

    /// Whether records that come later are waited for.
    pub fn follows(&self) -> bool {
        self.follow
    }

    /// The record of this index, which begins with 0 again where another epoch does.
    pub fn next_record(&mut self, index: &mut u64) -> Result<Option<Record<'_>>, Failure> {
        /// How long to wait before a service that went is asked again.
        const PAUSE: Duration = Duration::from_secs(1);
        // Asked twice, because what is given borrows the decoder.
        while !self.decoder.has_record().environment("the service's answer")? {
            match self.go_on(index) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) if self.follow && self.epoch.is_some() && may_pass(&error) => {
                    if !self.is_awaited {
                        self.is_awaited = true;
                        tracing::warn!(
                            "{error}; waiting for the service to continue with record {index}"
                        );
                    }
                    (self.answer, self.decoder) = (None, decoder());
                    thread::sleep(PAUSE);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if let Some((_, left)) = &mut self.answer {
            let why = || ClientError::Answer("it has more records than it says".to_owned());
            *left = left.checked_sub(1).ok_or_else(why)?;
        }
        self.given += 1;
        if !self.follow && self.given > MOST_RECORDS {
            let why = format!("it does not end after {MOST_RECORDS} records");
            return Err(ClientError::Answer(why).into());
        }
        self.decoder.next_record().environment("the service's answer")
    }

    /// Takes more bytes, or asks for more; `false` at the end.
    fn go_on(&mut self, index: &mut u64) -> Result<bool, ClientError> {
        let (answer, left) = match &mut self.answer {
            Some(answer) => answer,
            None => {
                let Some(answer) = self.ask(index)? else { return Ok(false) };
                let promised = answer.to().saturating_sub(*index);
                self.answer.insert((answer, promised))
            }
        };
        match answer.chunk()? {
            Some(bytes) => self.decoder.feed(&bytes),
            None if self.decoder.finish().is_err() || *left > 0 => {
                let why = format!("{left} records are missing at its end");
                return Err(ClientError::Broken(why));
            }
            None => self.answer = None,
        }
        Ok(true)
    }

    /// Asks for the records from `index` on; `None` if there are no more.
    fn ask(&mut self, index: &mut u64) -> Result<Option<RecordAnswer>, ClientError> {
        let wait = if self.follow { WAIT } else { Duration::ZERO };
        let answer = match self.client.ask_for_records(*index, None, wait) {
            // There may be fewer, because they are another epoch's.
            Err(ClientError::Refused { status: 416, why }) if self.epoch.is_some() => {
                let epoch = self.client.status()?.epoch;
                if self.epoch == Some(epoch) {
                    return Err(ClientError::Refused { status: 416, why });
                }
                self.begin_epoch(epoch, index);
                self.client.ask_for_records(*index, None, wait)?
            }
            Ok(answer) if self.epoch.is_some_and(|epoch| epoch != answer.epoch()) => {
                self.begin_epoch(answer.epoch(), index);
                self.client.ask_for_records(*index, None, wait)?
            }
            answer => answer?,
        };
        self.epoch = Some(answer.epoch());
        if self.is_awaited {
            self.is_awaited = false;
            tracing::warn!("the service answers again");
        }
        Ok((self.follow || answer.to() > *index).then_some(answer))
    }

    fn begin_epoch(&mut self, epoch: u64, index: &mut u64) {
        tracing::warn!("epoch {epoch} has begun: its records follow from index 0");
        self.epoch = Some(epoch);
        *index = 0;
    }
}

/// Whether a service that is started again would answer.
fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } | ClientError::Silent { .. } | ClientError::Broken(_) => {
            true
        }
        ClientError::Refused { status, .. } => *status == 503,
        ClientError::Answer(_) => false,
    }
}

fn decoder() -> Decoder {
    Decoder::new(Format::native(Bank::Sha1))
}
