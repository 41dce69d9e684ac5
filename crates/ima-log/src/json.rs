//! JSON lines: one record a line, readable by people and programs, and nothing lost.
//!
//! A line is an object with the members
//!
//! | member | what |
//! |---|---|
//! | `index` | the record's index in its list; not read back |
//! | `pcr` | the PCR index |
//! | `bank`, `digest` | the digest as the list of that bank has it, in hex; without `bank`: sha1 |
//! | `template` | the template's name |
//! | `violation` | whether the digest is all zeros |
//! | `endian` | `"big"` if the template data is in that byte order; otherwise absent |
//! | `fields` | the template data: one object for each field, in order |
//!
//! A field object has one member, named by the field's id:
//!
//! | field | value |
//! |---|---|
//! | `n`, `n-ng`, `xattrnames` | a string, without the NUL that ends it |
//! | `d-ng`, `d-ngv2`, `d-modsig` | `"ALGORITHM:HEX"` or `"TYPE:ALGORITHM:HEX"` |
//! | `iuid`, `igid` (4 bytes), `imode` (2 bytes) | a number |
//! | all others | a string of hex digits |
//! | any that does not have its usual form | a name: `{"hex": "…"}`; others: hex digits |
//! | of an unknown template | `unknown`: one field in hex; or only `data`: all of it in hex |
//!
//! ```
//! use ima_log::{Bank, RecordBuf, json};
//!
//! let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[b"#!/bin/sh\n"]), b"/usr/bin/true");
//! let mut line = Vec::new();
//! json::write_record(&record.record(), 0, Bank::Sha1, &mut line);
//!
//! let mut decoder = json::Decoder::new();
//! decoder.feed(&line);
//! assert_eq!(decoder.next_record()?, Some(record.record()));
//! # Ok::<(), ima_log::ImportError>(())
//! ```

use alloc::{borrow::Cow, vec::Vec};
use core::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use crate::import::{Binary, Input, Limited, MAX_RECORD, Text, check_data, push_string, syntax};
use crate::{
    Bank, Digest, Endian, Field, FieldKind, Format, ImportError, ImportErrorKind, MAX_FIELDS,
    ParseErrorKind, Record, Template, ascii,
};

/// Appends the line of a record, newline included, with its digest in `bank`: the printed one if
/// that is the record's own bank, the computed one otherwise.
pub fn write_record(record: &Record<'_>, index: u64, bank: Bank, out: &mut Vec<u8>) {
    let own = bank == record.format().bank;
    let digest = if own { record.printed_digest() } else { record.template_digest(bank) };
    out.extend_from_slice(b"{\"index\":");
    ascii::decimal(index, out);
    out.extend_from_slice(b",\"pcr\":");
    ascii::decimal(record.pcr().into(), out);
    out.extend_from_slice(b",\"bank\":");
    push_string(bank.name(), out);
    out.extend_from_slice(b",\"digest\":\"");
    ascii::hex(digest.as_bytes(), out);
    out.extend_from_slice(b"\",\"template\":");
    push_string(record.template().name(), out);
    out.extend_from_slice(b",\"violation\":");
    out.extend_from_slice(if record.is_violation() { b"true" } else { b"false" });
    if record.format().endian == Endian::Big {
        out.extend_from_slice(b",\"endian\":\"big\"");
    }
    out.extend_from_slice(b",\"fields\":[");
    let data = record.template_data();
    for (position, field) in record.fields().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        out.push(b'{');
        let unknown = if field.bytes.len() == data.len() { "data" } else { "unknown" };
        push_string(field.kind.map_or(unknown, FieldKind::id), out);
        out.push(b':');
        write_field(record, &field, out);
        out.push(b'}');
    }
    out.extend_from_slice(b"]}\n");
}

/// Reads JSON lines, in whatever chunks they come. Holds one line, what it says, and one chunk: a small
/// multiple of the line. Template data is at most [`crate::MAX_TEXT_DATA`], fields are at most
/// [`MAX_FIELDS`].
#[derive(Debug)]
pub struct Decoder {
    input: Input,
    /// How far the line was searched for its end.
    searched: usize,
    ended: bool,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new()
    }
}

impl Decoder {
    /// A decoder at the beginning of a list.
    pub fn new() -> Decoder {
        Decoder { input: Input::new(), searched: 0, ended: false }
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.input.feed(bytes);
    }

    /// Whether [`Decoder::next_record`] would give a record.
    ///
    /// # Errors
    /// As [`Decoder::next_record`].
    pub fn has_record(&mut self) -> Result<bool, ImportError> {
        while !self.input.is_ready() {
            let pending = self.input.pending();
            let rest = pending.get(self.searched..).unwrap_or_default();
            match rest.iter().position(|byte| *byte == b'\n') {
                Some(end) => self.line(self.searched + end + 1)?,
                None if pending.len() > MAX_RECORD => {
                    return Err(self.input.error(ImportErrorKind::TooLong));
                }
                None if self.ended && !pending.is_empty() => self.line(pending.len())?,
                None => {
                    self.searched = pending.len();
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The next record; `None` when more bytes are needed, or none are left. Empty lines are
    /// skipped.
    ///
    /// # Errors
    /// [`ImportError`] when a line is not a record.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, ImportError> {
        self.has_record()?;
        self.input.take()
    }

    /// Says that the input has ended: [`Decoder::next_record`] now takes a last line without
    /// newline, too.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// How many records came out so far.
    pub fn records(&self) -> u64 {
        self.input.records()
    }

    /// The byte offset after the last line that was read.
    pub fn offset(&self) -> u64 {
        self.input.offset()
    }

    fn line(&mut self, len: usize) -> Result<(), ImportError> {
        let (pending, binary) = self.input.parts();
        let line = pending.get(..len).unwrap_or_default().trim_ascii();
        if !line.is_empty() {
            read_line(line, binary).map_err(|kind| self.input.error(kind))?;
            self.input.set_ready();
        }
        self.input.pass(len);
        self.searched = 0;
        Ok(())
    }
}

fn write_field(record: &Record<'_>, field: &Field<'_>, out: &mut Vec<u8>) {
    let hex = |bytes: &[u8], out: &mut Vec<u8>| {
        out.push(b'"');
        ascii::hex(bytes, out);
        out.push(b'"');
    };
    match field.kind {
        Some(FieldKind::N | FieldKind::NNg | FieldKind::XattrNames) => {
            let text = match record.template() {
                Template::Ima => Some(field.bytes),
                _ => field.bytes.strip_suffix(&[0]),
            };
            match text.map(core::str::from_utf8) {
                Some(Ok(text)) => push_string(text, out),
                _ => {
                    out.extend_from_slice(b"{\"hex\":");
                    hex(field.bytes, out);
                    out.push(b'}');
                }
            }
        }
        Some(FieldKind::DNg | FieldKind::DNgV2 | FieldKind::DModsig) => {
            let nul = field.bytes.iter().position(|byte| *byte == 0);
            let parts = nul.and_then(|nul| field.bytes.split_at_checked(nul));
            match parts.map(|(head, tail)| (core::str::from_utf8(head), tail)) {
                Some((Ok(head), tail)) if head.ends_with(':') => {
                    push_string(head, out);
                    out.pop();
                    ascii::hex(tail.get(1..).unwrap_or_default(), out);
                    out.push(b'"');
                }
                _ => hex(field.bytes, out),
            }
        }
        Some(FieldKind::IUid | FieldKind::IGid | FieldKind::IMode) => {
            let endian = record.format().endian;
            match (field.kind, field.bytes) {
                (Some(FieldKind::IMode), &[a, b]) => {
                    let wide = if endian == Endian::Big { [0, 0, a, b] } else { [a, b, 0, 0] };
                    ascii::decimal(endian.u32(wide).into(), out);
                }
                (Some(FieldKind::IUid | FieldKind::IGid), &[a, b, c, d]) => {
                    ascii::decimal(endian.u32([a, b, c, d]).into(), out);
                }
                _ => hex(field.bytes, out),
            }
        }
        _ => hex(field.bytes, out),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(default, rename = "index")]
    _index: u64,
    pcr: u32,
    #[serde(borrow, default = "sha1")]
    bank: Cow<'a, str>,
    #[serde(borrow)]
    digest: Cow<'a, str>,
    #[serde(borrow)]
    template: Cow<'a, str>,
    violation: Option<bool>,
    #[serde(borrow)]
    endian: Option<Cow<'a, str>>,
    #[serde(borrow)]
    fields: Limited<Member<'a>, MAX_FIELDS>,
}

/// A field: an object with one member.
struct Member<'a> {
    id: Cow<'a, str>,
    value: Value<'a>,
}

enum Value<'a> {
    Text(Cow<'a, str>),
    Number(u32),
    Hex(Cow<'a, str>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Member<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Member<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field, which is an object with one member")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Member<'de>, A::Error> {
                let entry = map.next_entry::<Text<'de>, Value<'de>>()?;
                let (id, value) = entry.ok_or_else(|| A::Error::invalid_length(0, &self))?;
                if map.next_key::<serde::de::IgnoredAny>()?.is_some() {
                    return Err(A::Error::invalid_length(2, &self));
                }
                Ok(Member { id: id.0, value })
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Value<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a number of 32 bits or {\"hex\": ...}")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
                Ok(Value::Text(text.into()))
            }

            fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
                Ok(Value::Text(Cow::Owned(text.into())))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Value<'de>, E> {
                let unexpected = serde::de::Unexpected::Unsigned(number);
                let small = u32::try_from(number);
                small.map(Value::Number).map_err(|_| E::invalid_value(unexpected, &self))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
                match map.next_key::<Text<'de>>()? {
                    Some(Text(key)) if key == "hex" => {}
                    _ => return Err(A::Error::custom("expected a member \"hex\"")),
                }
                let Text(hex) = map.next_value()?;
                if map.next_key::<serde::de::IgnoredAny>()?.is_some() {
                    return Err(A::Error::custom("expected \"hex\" and nothing else"));
                }
                Ok(Value::Hex(hex))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

fn sha1() -> Cow<'static, str> {
    Cow::Borrowed("sha1")
}

fn read_line(line: &[u8], out: &mut Binary) -> Result<(), ImportErrorKind> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| syntax(&error))?;
    let member = |name, expected| ImportErrorKind::Member { name, expected };
    let bank = line.bank.parse().map_err(|_| member("bank", "the name of a bank"))?;
    let endian = match line.endian.as_deref() {
        None | Some("little") => Endian::Little,
        Some("big") => Endian::Big,
        Some(_) => return Err(member("endian", "\"big\" or \"little\"")),
    };
    let digest = Digest::from_hex(bank, &line.digest)
        .ok_or(member("digest", "as many hex digits as the bank's digests have"))?;
    if line.violation.is_some_and(|violation| violation != digest.is_zero()) {
        return Err(member("violation", "true if the digest is all zeros, and false otherwise"));
    }
    let data = read_fields(&line.template, &line.fields.0, endian)?;
    out.set(Format { bank, endian }, line.pcr, digest.as_bytes(), &line.template, &data)
}

/// The template data that the fields make.
fn read_fields(
    name: &str,
    fields: &[Member<'_>],
    endian: Endian,
) -> Result<Vec<u8>, ImportErrorKind> {
    let template = Template::from_name(name.as_bytes()).ok_or(ParseErrorKind::NameBytes)?;
    let mismatch = || ImportErrorKind::Fields { expected: template.format().into() };
    let mut ids = template.format().split('|');
    let mut data = Vec::new();
    for field in fields {
        let Member { id, value } = field;
        let known = !template.format().is_empty();
        let all_of_it = !known && id == "data";
        let kind = match ids.next() {
            Some(expected) if known && id == expected => FieldKind::from_id(id),
            _ if !known && (id == "unknown" || all_of_it && fields.len() == 1) => None,
            _ => return Err(mismatch()),
        };
        let bytes = read_field(kind, value, template, endian)?;
        let len = u32::try_from(bytes.len()).map_err(|_| ImportErrorKind::TooLong)?;
        let behind_length = match template {
            Template::Ima => kind == Some(FieldKind::N),
            _ => !all_of_it,
        };
        if behind_length {
            data.extend_from_slice(&endian.bytes(len));
        }
        data.extend_from_slice(&bytes);
    }
    check_data(&data)?;
    Ok(data)
}

/// The bytes of a field; the inverse of [`write_field`].
fn read_field(
    kind: Option<FieldKind>,
    value: &Value<'_>,
    template: Template<'_>,
    endian: Endian,
) -> Result<Vec<u8>, ImportErrorKind> {
    let wrong = |expected| ImportErrorKind::Member { name: "fields", expected };
    let hex = |text: &str| hex::decode(text).map_err(|_| wrong("hex digits"));
    match (kind, value) {
        (Some(FieldKind::N | FieldKind::NNg | FieldKind::XattrNames), Value::Text(text)) => {
            let mut bytes = text.as_bytes().to_vec();
            if template != Template::Ima {
                bytes.push(0);
            }
            Ok(bytes)
        }
        (Some(FieldKind::N | FieldKind::NNg | FieldKind::XattrNames), Value::Hex(text)) => {
            hex(text)
        }
        (Some(FieldKind::DNg | FieldKind::DNgV2 | FieldKind::DModsig), Value::Text(text)) => {
            let Some(colon) = text.rfind(':') else { return hex(text) };
            let (head, digest) = text.split_at(colon + 1);
            let mut bytes = head.as_bytes().to_vec();
            bytes.push(0);
            bytes.extend(hex(digest)?);
            Ok(bytes)
        }
        (Some(FieldKind::IUid | FieldKind::IGid), Value::Number(number)) => {
            Ok(endian.bytes(*number).to_vec())
        }
        (Some(FieldKind::IMode), Value::Number(number)) => {
            let mode = u16::try_from(*number).map_err(|_| wrong("a mode below 65536"))?;
            let bytes = match endian {
                Endian::Little => mode.to_le_bytes(),
                Endian::Big => mode.to_be_bytes(),
            };
            Ok(bytes.to_vec())
        }
        (_, Value::Text(text)) => hex(text),
        _ => Err(wrong("a string; a number for iuid, igid and imode; {\"hex\": …} for a name")),
    }
}

#[cfg(test)]
mod tests;
