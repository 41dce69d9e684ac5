//! Reads a Canonical Event Log in any of its encodings, as a stream.

use super::cbor::{self, Reader, Stop};
use super::event::{Encoding, Event};
use super::json::Scanner;
use super::{json, tlv};
use crate::import::{Input, MAX_RECORD};
use crate::{Endian, ImportError, ImportErrorKind, Record};

/// Reads the IMA records of a Canonical Event Log, in whatever chunks it comes. Holds one record
/// and one chunk.
#[derive(Debug)]
pub struct Decoder {
    encoding: Encoding,
    input: Input,
    scanner: Scanner,
    pub(super) cbor_scanner: cbor::Scanner,
    state: State,
    endian: Option<Endian>,
    skipped: u64,
    ended: bool,
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The log: an array or a sequence.
    Begin,
    /// Records one after another, up to the end.
    Sequence,
    /// An element of the array; with `true`, the first or none.
    Element(bool),
    /// What follows an element of a JSON array.
    Separator,
    /// This many items of a CBOR array; `None`: up to the break.
    Items(Option<u64>),
    /// Nothing.
    End,
}

impl Decoder {
    /// A decoder at the beginning of a log.
    pub fn new(encoding: Encoding) -> Decoder {
        Decoder {
            encoding,
            input: Input::new(),
            scanner: Scanner::default(),
            cbor_scanner: cbor::Scanner::default(),
            state: State::Begin,
            endian: None,
            skipped: 0,
            ended: false,
        }
    }

    /// Takes the next bytes of the log.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.input.feed(bytes);
    }

    /// Says that the log has ended: [`Decoder::next_record`] now knows a truncated one.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Whether [`Decoder::next_record`] would give a record.
    ///
    /// # Errors
    /// As [`Decoder::next_record`].
    pub fn has_record(&mut self) -> Result<bool, ImportError> {
        while !self.input.is_ready() {
            let going_on = match self.encoding {
                Encoding::Json => self.json_step()?,
                Encoding::Cbor => self.cbor_step()?,
                Encoding::Tlv => self.tlv_step()?,
            };
            if going_on {
                continue;
            }
            let complete = self.input.pending().is_empty()
                && matches!(self.state, State::Begin | State::Sequence | State::End);
            return match self.ended && !complete {
                true => Err(self.input.error(ImportErrorKind::Truncated)),
                false if self.input.pending().len() > MAX_RECORD => {
                    Err(self.input.error(ImportErrorKind::TooLong))
                }
                false => Ok(false),
            };
        }
        Ok(true)
    }

    /// The next IMA record; `None` when more bytes are needed, or none are left.
    ///
    /// # Errors
    /// [`ImportError`] when what comes next is not a record, or the log ended inside of one.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, ImportError> {
        self.has_record()?;
        self.input.take()
    }

    /// How many records came out so far.
    pub fn records(&self) -> u64 {
        self.input.records()
    }

    /// How many records of other content types were skipped so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The byte offset after the last record that was read.
    pub fn offset(&self) -> u64 {
        self.input.offset()
    }

    /// Reads on; `false` if there are too few bytes for that.
    fn json_step(&mut self) -> Result<bool, ImportError> {
        // The record separator (0x1e) of JSON text sequences, RFC 7464.
        let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0x1e);
        let pending = self.input.pending();
        let blanks = pending.iter().take_while(|byte| blank(byte)).count();
        let next = pending.get(blanks).copied();
        // An object that continues was begun to be scanned from here.
        self.input.pass(blanks);
        let Some(next) = next else { return Ok(false) };
        match (self.state, next) {
            (State::Begin, b'[') => self.after(1, State::Element(true)),
            (State::Begin, b'{') => self.after(0, State::Sequence),
            (State::Element(true) | State::Separator, b']') => self.after(1, State::End),
            (State::Separator, b',') => self.after(1, State::Element(false)),
            (State::Sequence | State::Element(_), b'{') => {
                let Some(len) = self.scanner.object(self.input.pending()) else {
                    return Ok(false);
                };
                let (pending, binary) = self.input.parts();
                let object = pending.get(..len).unwrap_or_default();
                let ready = json::event(object)
                    .and_then(|event| event.into_binary(&mut self.endian, binary))
                    .map_err(|kind| self.input.error(kind))?;
                let state =
                    if self.state == State::Sequence { State::Sequence } else { State::Separator };
                self.came(ready);
                self.after(len, state);
            }
            (state, _) => {
                let expected = match state {
                    State::Begin => "JSON: expected a record, or an array of records",
                    State::End => "JSON: expected nothing behind the array of records",
                    State::Separator => "JSON: expected , or ] behind a record",
                    _ => "JSON: expected a record, which is an object",
                };
                return Err(self.input.error(ImportErrorKind::Syntax(expected.into())));
            }
        }
        Ok(true)
    }

    /// Reads on; `false` if there are too few bytes for that.
    fn cbor_step(&mut self) -> Result<bool, ImportError> {
        let (pending, binary) = self.input.parts();
        let mut reader = Reader { rest: pending };
        let step = match self.state {
            State::End if pending.is_empty() => return Ok(false),
            State::Items(Some(0)) => Ok((State::End, None)),
            State::Begin if pending.first().is_some_and(|byte| byte >> 5 == cbor::ARRAY) => {
                reader.array().map(|items| (State::Items(items), None))
            }
            State::Items(None) if pending.first() == Some(&cbor::BREAK) => {
                reader.at_break().map(|_| (State::End, None))
            }
            State::End => {
                let why = "CBOR: expected nothing behind the array of records";
                Err(Stop::Wrong(ImportErrorKind::Syntax(why.into())))
            }
            state => {
                let next = match state {
                    State::Items(Some(items)) => State::Items(Some(items - 1)),
                    State::Items(None) => state,
                    _ => State::Sequence,
                };
                let mut into = |event: Event<'_>| event.into_binary(&mut self.endian, binary);
                // A record is read when all of it is there, so that none is read again and again.
                let whole = reader.expect_map().and_then(|()| self.cbor_scanner.item(pending));
                whole.and_then(|len| {
                    let record = pending.get(..len).filter(|record| record.len() <= MAX_RECORD);
                    let mut of_record = Reader { rest: record.ok_or(ImportErrorKind::TooLong)? };
                    reader.rest = pending.get(len..).unwrap_or_default();
                    Ok((next, Some(into(of_record.event()?)?)))
                })
            }
        };
        let len = pending.len() - reader.rest.len();
        match step {
            Ok((state, ready)) => {
                if let Some(ready) = ready {
                    self.came(ready);
                }
                self.after(len, state);
                Ok(true)
            }
            Err(Stop::More) => Ok(false),
            Err(Stop::Wrong(kind)) => Err(self.input.error(kind)),
        }
    }

    /// Reads on; `false` if there are too few bytes for that.
    fn tlv_step(&mut self) -> Result<bool, ImportError> {
        let (pending, binary) = self.input.parts();
        if pending.is_empty() {
            return Ok(false);
        }
        let read = tlv::record(pending)
            .and_then(|(event, len)| Ok((event.into_binary(&mut self.endian, binary)?, len)));
        match read {
            Ok((ready, len)) => {
                self.came(ready);
                self.after(len, State::Sequence);
                Ok(true)
            }
            Err(Stop::More) => Ok(false),
            Err(Stop::Wrong(kind)) => Err(self.input.error(kind)),
        }
    }

    fn came(&mut self, ready: bool) {
        if ready {
            self.input.set_ready();
        } else {
            self.skipped += 1;
        }
    }

    fn after(&mut self, len: usize, state: State) {
        self.input.pass(len);
        self.state = state;
    }
}
