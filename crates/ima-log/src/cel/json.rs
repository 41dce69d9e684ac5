//! A record in JSON, and where in a stream of bytes it ends.

use alloc::{borrow::Cow, string::ToString, vec::Vec};

use serde::Deserialize;

use super::{Content, Event, MAX_DIGESTS, bank_of, check_data, digest};
use crate::{Bank, ImportErrorKind};

/// Finds the end of a JSON object. Strings are told from structure, so that a brace in a string is
/// none; all else is left to the parser.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    scanned: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scanner {
    /// The length of the object that `bytes` begins with, or `None` if it goes on behind them.
    /// Given the same bytes and more, it goes on where it stopped.
    pub(super) fn object(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, byte) in bytes.iter().enumerate().skip(self.scanned) {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' if !self.in_string => self.depth += 1,
                b'}' if !self.in_string => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        *self = Scanner::default();
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        self.scanned = bytes.len();
        None
    }
}

#[derive(Deserialize)]
struct Record<'a> {
    pcr: Option<u32>,
    #[serde(borrow, default)]
    digests: Vec<RecordDigest<'a>>,
    #[serde(borrow)]
    content_type: NameOrNumber<'a>,
    #[serde(borrow)]
    content: RecordContent<'a>,
}

#[derive(Deserialize)]
struct RecordDigest<'a> {
    #[serde(borrow, rename = "hashAlg")]
    algorithm: NameOrNumber<'a>,
    #[serde(borrow)]
    digest: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NameOrNumber<'a> {
    Name(#[serde(borrow)] Cow<'a, str>),
    Number(u64),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RecordContent<'a> {
    ImaTemplate {
        #[serde(borrow)]
        template_name: Cow<'a, str>,
        #[serde(borrow)]
        template_data: Cow<'a, str>,
    },
    Text(#[serde(borrow)] Cow<'a, str>),
    Other(serde::de::IgnoredAny),
}

impl NameOrNumber<'_> {
    fn is(&self, name: &str, number: u64) -> bool {
        match self {
            NameOrNumber::Name(found) => found == name,
            NameOrNumber::Number(found) => *found == number,
        }
    }
}

/// Reads a record.
pub(super) fn event(object: &[u8]) -> Result<Event<'_>, ImportErrorKind> {
    let record: Record<'_> = serde_json::from_slice(object)
        .map_err(|error| ImportErrorKind::Syntax(error.to_string()))?;
    if record.digests.len() > MAX_DIGESTS {
        return Err(ImportErrorKind::Member { name: "digests", expected: "at most 16" });
    }
    let mut digests = Vec::new();
    for found in &record.digests {
        let bank = match &found.algorithm {
            NameOrNumber::Name(name) => bank_of(name),
            NameOrNumber::Number(number) => {
                u16::try_from(*number).ok().and_then(Bank::from_tpm_alg)
            }
        };
        digests.extend(digest(bank, &hex("digest", &found.digest)?)?);
    }
    let content = match record.content {
        RecordContent::ImaTemplate { template_name, template_data }
            if record.content_type.is("ima_template", super::IMA_TEMPLATE) =>
        {
            let data = hex("template_data", &template_data)?;
            check_data(&data)?;
            Content::ImaTemplate { name: template_name, data: data.into() }
        }
        RecordContent::Text(text) if record.content_type.is("ima_tlv", super::IMA_TLV) => {
            let data = hex("content", &text)?;
            check_data(&data)?;
            Content::ImaTlv(data.into())
        }
        _ if record.content_type.is("ima_template", super::IMA_TEMPLATE) => {
            let expected = "an object with template_name and template_data";
            return Err(ImportErrorKind::Member { name: "content", expected });
        }
        _ if record.content_type.is("ima_tlv", super::IMA_TLV) => {
            return Err(ImportErrorKind::Member { name: "content", expected: "hex digits" });
        }
        _ => Content::Other,
    };
    Ok(Event { pcr: record.pcr, digests, content })
}

fn hex(name: &'static str, text: &str) -> Result<Vec<u8>, ImportErrorKind> {
    hex::decode(text).map_err(|_| ImportErrorKind::Member { name, expected: "hex digits" })
}
