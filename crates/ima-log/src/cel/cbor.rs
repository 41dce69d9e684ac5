//! As much CBOR (RFC 8949) as an event log needs.

use alloc::vec::Vec;

use super::event::{Content, Event, IMA_TEMPLATE, IMA_TLV, MAX_DIGESTS, digest};
use crate::import::check_data;
use crate::{Bank, ImportErrorKind};

// Major types.
const UINT: u8 = 0;
pub(super) const BYTES: u8 = 2;
pub(super) const TEXT: u8 = 3;
pub(super) const ARRAY: u8 = 4;
pub(super) const MAP: u8 = 5;
const TAG: u8 = 6;

pub(super) const INDEFINITE_ARRAY: u8 = 0x9f;
pub(super) const BREAK: u8 = 0xff;

/// How deeply items may be nested in a record.
const MAX_DEPTH: usize = 20;

/// Appends the head of an item, in its shortest form.
pub(super) fn head(major: u8, argument: u64, out: &mut Vec<u8>) {
    let major = major << 5;
    let bytes = argument.to_be_bytes();
    match argument {
        0..24 => out.push(major | argument as u8),
        24..0x100 => out.extend_from_slice(&[major | 24, argument as u8]),
        0x100..0x1_0000 => {
            out.push(major | 25);
            out.extend_from_slice(&bytes[6..]);
        }
        0x1_0000..0x1_0000_0000 => {
            out.push(major | 26);
            out.extend_from_slice(&bytes[4..]);
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&bytes);
        }
    }
}

/// Appends an unsigned integer.
pub(super) fn uint(value: u64, out: &mut Vec<u8>) {
    head(UINT, value, out);
}

/// Appends a byte or text string.
pub(super) fn string(major: u8, bytes: &[u8], out: &mut Vec<u8>) {
    head(major, bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Why an item cannot be read.
pub(super) enum Stop {
    /// The bytes end inside of it.
    More,
    /// It is wrong.
    Wrong(ImportErrorKind),
}

impl From<ImportErrorKind> for Stop {
    fn from(kind: ImportErrorKind) -> Stop {
        Stop::Wrong(kind)
    }
}

/// Reads items off the front of `rest`.
pub(super) struct Reader<'a> {
    pub(super) rest: &'a [u8],
}

/// The head of an item: its major type and argument; `None` where the length is indefinite.
struct Head {
    major: u8,
    argument: Option<u64>,
}

impl<'a> Reader<'a> {
    /// The number of items of an array; `None` if it has no length.
    pub(super) fn array(&mut self) -> Result<Option<u64>, Stop> {
        self.expect(ARRAY, "an array")
    }

    /// Skips the break that ends an item of indefinite length, if it is there.
    pub(super) fn at_break(&mut self) -> Result<bool, Stop> {
        match self.rest.split_first() {
            None => Err(Stop::More),
            Some((&BREAK, rest)) => {
                self.rest = rest;
                Ok(true)
            }
            Some(_) => Ok(false),
        }
    }

    /// Whether a record may begin here.
    pub(super) fn expect_map(&self) -> Result<(), Stop> {
        match self.rest.first() {
            None => Err(Stop::More),
            Some(first) if first >> 5 == MAP => Ok(()),
            Some(_) => Err(syntax("a record, which is a map").into()),
        }
    }

    /// A record (CEL section 5.2): `{0: recnum, 1: pcr, 3: digests, 9: content type, 10: content}`.
    pub(super) fn event(&mut self) -> Result<Event<'a>, Stop> {
        let mut pcr = None;
        let mut digests = None;
        let mut content_type = None;
        let mut content = None;
        let mut members = self.expect(MAP, "a record, which is a map")?;
        while self.more(&mut members)? {
            match self.number("the number of a member")? {
                1 => {
                    let index = self.number("a PCR index")?;
                    pcr = Some(u32::try_from(index).map_err(|_| syntax("a PCR index of 32 bits"))?);
                }
                3 => digests = Some(self.digests()?),
                9 => content_type = Some(self.number("a content type")?),
                10 => content = Some(self.item()?),
                _ => {
                    self.item()?;
                }
            }
        }
        let missing = |name| Stop::Wrong(ImportErrorKind::Missing(name));
        let item = content.ok_or(missing("content"))?;
        let mut reader = Reader { rest: item };
        let content = match content_type.ok_or(missing("content_type"))? {
            IMA_TEMPLATE => reader.ima_template()?,
            IMA_TLV => {
                let data = reader.string(BYTES, "a byte string")?;
                check_data(data)?;
                Content::ImaTlv(data.into())
            }
            _ => Content::Other,
        };
        Ok(Event { pcr, digests: digests.unwrap_or_default(), content })
    }

    fn digests(&mut self) -> Result<Vec<crate::Digest>, Stop> {
        let mut digests = Vec::new();
        let mut items = self.expect(ARRAY, "an array of digests")?;
        let mut count = 0;
        while self.more(&mut items)? {
            count += 1;
            if count > MAX_DIGESTS {
                return Err(syntax("at most 16 digests").into());
            }
            let (mut algorithm, mut value) = (None, None);
            let mut members = self.expect(MAP, "a digest, which is a map")?;
            while self.more(&mut members)? {
                match self.number("the number of a member")? {
                    0 => algorithm = Some(self.number("a hash algorithm")?),
                    1 => value = Some(self.string(BYTES, "a digest's bytes")?),
                    _ => {
                        self.item()?;
                    }
                }
            }
            let (Some(algorithm), Some(value)) = (algorithm, value) else {
                return Err(ImportErrorKind::Missing("hashAlg or digest").into());
            };
            let bank = u16::try_from(algorithm).ok().and_then(Bank::from_tpm_alg);
            digests.extend(digest(bank, value)?);
        }
        Ok(digests)
    }

    fn ima_template(&mut self) -> Result<Content<'a>, Stop> {
        let (mut name, mut data) = (None, None);
        let mut members = self.expect(MAP, "the content of a template, which is a map")?;
        while self.more(&mut members)? {
            match self.number("the number of a member")? {
                0 => name = Some(self.string(TEXT, "a template name")?),
                1 => data = Some(self.string(BYTES, "template data")?),
                _ => {
                    self.item()?;
                }
            }
        }
        let missing = |name| Stop::Wrong(ImportErrorKind::Missing(name));
        let name = core::str::from_utf8(name.ok_or(missing("template_name"))?)
            .map_err(|_| syntax("a template name in UTF-8"))?;
        let data = data.ok_or(missing("template_data"))?;
        check_data(data)?;
        Ok(Content::ImaTemplate { name: name.into(), data: data.into() })
    }

    /// Whether another item of an array, or member of a map, follows.
    fn more(&mut self, left: &mut Option<u64>) -> Result<bool, Stop> {
        match left {
            Some(0) => Ok(false),
            Some(left) => {
                *left -= 1;
                Ok(true)
            }
            None => Ok(!self.at_break()?),
        }
    }

    fn number(&mut self, what: &'static str) -> Result<u64, Stop> {
        self.expect(UINT, what)?.ok_or(syntax(what).into())
    }

    fn string(&mut self, major: u8, what: &'static str) -> Result<&'a [u8], Stop> {
        let len = self.expect(major, what)?.ok_or(syntax("a string of definite length"))?;
        self.take(len)
    }

    fn expect(&mut self, major: u8, what: &'static str) -> Result<Option<u64>, Stop> {
        let head = self.head()?;
        if head.major != major {
            return Err(syntax(what).into());
        }
        Ok(head.argument)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Stop> {
        if len > crate::import::MAX_RECORD as u64 {
            return Err(ImportErrorKind::TooLong.into());
        }
        let (taken, rest) = self.rest.split_at_checked(len as usize).ok_or(Stop::More)?;
        self.rest = rest;
        Ok(taken)
    }

    fn head(&mut self) -> Result<Head, Stop> {
        let (&first, rest) = self.rest.split_first().ok_or(Stop::More)?;
        self.rest = rest;
        let (major, info) = (first >> 5, first & 31);
        let argument = match info {
            0..24 => Some(u64::from(info)),
            24..28 => {
                let bytes = self.take(1 << (info - 24))?;
                Some(bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
            }
            31 if matches!(major, BYTES..=MAP) => None,
            _ => return Err(syntax("well-formed CBOR").into()),
        };
        Ok(Head { major, argument })
    }

    /// Skips any one item and gives its bytes.
    fn item(&mut self) -> Result<&'a [u8], Stop> {
        let len = Scanner::default().item(self.rest)?;
        self.take(len as u64)
    }
}

/// Finds the end of an item.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    /// Up to where the bytes are known.
    at: usize,
    /// Whether the item's head was read.
    begun: bool,
    /// How many items are missing of each that is open, the innermost last; `None`: up to the break.
    open: Vec<Option<u64>>,
    /// How many heads were read.
    #[cfg(test)]
    pub(super) heads: u64,
}

impl Scanner {
    /// The length of the item that `bytes` begins with. Given the same bytes and more after
    /// [`Stop::More`], it continues where it stopped.
    pub(super) fn item(&mut self, bytes: &[u8]) -> Result<usize, Stop> {
        loop {
            while self.open.last() == Some(&Some(0)) {
                self.open.pop();
            }
            if self.begun && self.open.is_empty() {
                (self.begun, self.open) = (false, Vec::new());
                return Ok(core::mem::take(&mut self.at));
            }
            let mut reader = Reader { rest: bytes.get(self.at..).unwrap_or_default() };
            if self.open.last() == Some(&None) && reader.at_break()? {
                self.at += 1;
                self.open.pop();
                continue;
            }
            #[cfg(test)]
            {
                self.heads += 1;
            }
            let head = reader.head()?;
            let items = match (head.major, head.argument) {
                (BYTES | TEXT, Some(len)) => {
                    reader.take(len)?;
                    None
                }
                (BYTES | TEXT | ARRAY, items) => Some(items),
                (MAP, None) => Some(None),
                (MAP, Some(members)) => {
                    Some(Some(members.checked_mul(2).ok_or(syntax("a map that ends"))?))
                }
                (TAG, _) => Some(Some(1)),
                // Integers, simple values and floats are all head.
                _ => None,
            };
            if let Some(Some(left)) = self.open.last_mut() {
                *left -= 1;
            }
            self.begun = true;
            self.at = bytes.len() - reader.rest.len();
            if let Some(items) = items {
                if self.open.len() == MAX_DEPTH {
                    return Err(syntax("items nested less deeply").into());
                }
                self.open.push(items);
            }
        }
    }
}

fn syntax(expected: &'static str) -> ImportErrorKind {
    ImportErrorKind::Syntax(["CBOR: expected ", expected].concat())
}
