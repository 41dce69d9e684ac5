//! The TLV encoding (CEL section 5.1): a type in one byte, a length in four, big-endian, and a value.

use alloc::vec::Vec;

use super::cbor::Stop;
use super::event::{Content, Event, IMA_TEMPLATE, IMA_TLV, MAX_DIGESTS, digest, extended};
use crate::import::{MAX_RECORD, check_data};
use crate::{Bank, ImportErrorKind, Record};

// Types of a record's elements, CEL Table 2; content has its `content_type` as type.
const RECNUM: u8 = 0;
const PCR: u8 = 1;
const NV_INDEX: u8 = 2;
const DIGESTS: u8 = 3;

// Types inside the content of a template.
const TEMPLATE_NAME: u8 = 0;
const TEMPLATE_DATA: u8 = 1;

/// More elements than a record or a template's content has.
const MAX_ELEMENTS: usize = 8;

/// Reads the record that `bytes` begins with, up to its content, and gives its length, too.
pub(super) fn record(bytes: &[u8]) -> Result<(Event<'_>, usize), Stop> {
    let mut reader = Reader { rest: bytes };
    let (mut pcr, mut digests) = (None, Vec::new());
    for at in 0..MAX_ELEMENTS {
        let (kind, value) = reader.element()?;
        if (at == 0) != (kind == RECNUM) {
            return Err(syntax("a record, which begins with its number (type 0)"));
        }
        match kind {
            RECNUM => drop(number(value)?),
            PCR => {
                let index = u32::try_from(number(value)?);
                pcr = Some(index.map_err(|_| syntax("a PCR index of 32 bits"))?);
            }
            NV_INDEX => {}
            DIGESTS => digests = read_digests(value)?,
            kind => {
                let content = match u64::from(kind) {
                    IMA_TEMPLATE => ima_template(value)?,
                    IMA_TLV => {
                        check_data(value)?;
                        Content::ImaTlv(value.into())
                    }
                    _ => Content::Other,
                };
                return Ok((Event { pcr, digests, content }, bytes.len() - reader.rest.len()));
            }
        }
    }
    Err(syntax("a record's content"))
}

/// Appends a record.
pub(super) fn write(
    record: &Record<'_>,
    recnum: u64,
    banks: &[Bank],
    tlv: Option<&[u8]>,
    out: &mut Vec<u8>,
) {
    element(RECNUM, &recnum.to_be_bytes(), out);
    // One byte, as readers expect; IMA's records may name what no TPM has.
    match u8::try_from(record.pcr()) {
        Ok(pcr) => element(PCR, &[pcr], out),
        Err(_) => element(PCR, &record.pcr().to_be_bytes(), out),
    }
    let mut digests = Vec::new();
    for bank in banks {
        // The type is the algorithm; those of all banks fit into it.
        element(bank.tpm_alg() as u8, extended(record, *bank).as_bytes(), &mut digests);
    }
    element(DIGESTS, &digests, out);
    if let Some(value) = tlv {
        element(IMA_TLV as u8, value, out);
        return;
    }
    let mut content = Vec::with_capacity(10 + 16 + record.template_data().len());
    element(TEMPLATE_NAME, record.template().name().as_bytes(), &mut content);
    element(TEMPLATE_DATA, record.template_data(), &mut content);
    element(IMA_TEMPLATE as u8, &content, out);
}

fn element(kind: u8, value: &[u8], out: &mut Vec<u8>) {
    out.push(kind);
    // A record's template data is at most 16 MiB.
    out.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(value);
}

/// Takes elements off the front of `rest`.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn element(&mut self) -> Result<(u8, &'a [u8]), Stop> {
        let (head, rest) = self.rest.split_first_chunk::<5>().ok_or(Stop::More)?;
        let [kind, len @ ..] = *head;
        let len = u32::from_be_bytes(len) as usize;
        if len > MAX_RECORD {
            return Err(ImportErrorKind::TooLong.into());
        }
        let (value, rest) = rest.split_at_checked(len).ok_or(Stop::More)?;
        self.rest = rest;
        Ok((kind, value))
    }

    /// The next element of a value that is all there; `None` after the last.
    fn inner(&mut self, what: &'static str) -> Result<Option<(u8, &'a [u8])>, Stop> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        self.element().map(Some).map_err(|stop| match stop {
            Stop::More => syntax(what),
            wrong => wrong,
        })
    }
}

/// A number of one to eight bytes: writers differ in how long a PCR index is.
fn number(value: &[u8]) -> Result<u64, Stop> {
    match value.len() {
        1..=8 => Ok(value.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))),
        _ => Err(syntax("a number of one to eight bytes")),
    }
}

fn read_digests(value: &[u8]) -> Result<Vec<crate::Digest>, Stop> {
    let (mut digests, mut reader) = (Vec::new(), Reader { rest: value });
    let mut count = 0;
    while let Some((algorithm, bytes)) = reader.inner("digests that end where their length says")? {
        count += 1;
        if count > MAX_DIGESTS {
            return Err(syntax("at most 16 digests"));
        }
        digests.extend(digest(Bank::from_tpm_alg(algorithm.into()), bytes)?);
    }
    Ok(digests)
}

fn ima_template(value: &[u8]) -> Result<Content<'_>, Stop> {
    let (mut name, mut data) = (None, None);
    let mut reader = Reader { rest: value };
    while let Some((kind, bytes)) = reader.inner("content that ends where its length says")? {
        match kind {
            TEMPLATE_NAME => name = Some(bytes),
            TEMPLATE_DATA => data = Some(bytes),
            _ => {}
        }
    }
    let missing = |name| Stop::Wrong(ImportErrorKind::Missing(name));
    let name = core::str::from_utf8(name.ok_or(missing("template_name"))?)
        .map_err(|_| syntax("a template name in UTF-8"))?;
    let data = data.ok_or(missing("template_data"))?;
    check_data(data)?;
    Ok(Content::ImaTemplate { name: name.into(), data: data.into() })
}

fn syntax(expected: &'static str) -> Stop {
    Stop::Wrong(ImportErrorKind::Syntax(["CEL-TLV: expected ", expected].concat()))
}
