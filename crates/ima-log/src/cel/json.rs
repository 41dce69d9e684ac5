//! A record in JSON, and where in a stream of bytes it ends.

use alloc::{borrow::Cow, vec::Vec};
use core::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::event::{Content, Event, MAX_DIGESTS, bank_of, digest};
use crate::import::{Limited, Scalar, Text, check_data, syntax};
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
    /// The length of the object that `bytes` begins with, or `None` if it continues after them.
    /// Given the same bytes and more, it continues where it stopped.
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
    digests: Limited<RecordDigest<'a>, MAX_DIGESTS>,
    #[serde(borrow)]
    content_type: Scalar<'a>,
    #[serde(borrow)]
    content: RecordContent<'a>,
}

#[derive(Deserialize)]
struct RecordDigest<'a> {
    #[serde(borrow, rename = "hashAlg")]
    algorithm: Scalar<'a>,
    #[serde(borrow)]
    digest: Cow<'a, str>,
}

/// The members of an object that make a template's content, or a string.
#[derive(Default)]
struct RecordContent<'a> {
    template_name: Option<Cow<'a, str>>,
    template_data: Option<Cow<'a, str>>,
    text: Option<Cow<'a, str>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for RecordContent<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = RecordContent<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object, a string or an array")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(RecordContent { text: Some(text.into()), ..RecordContent::default() })
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                let text = Some(Cow::Owned(text.into()));
                Ok(RecordContent { text, ..RecordContent::default() })
            }

            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(RecordContent::default())
            }

            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(RecordContent::default())
            }

            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(RecordContent::default())
            }

            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(RecordContent::default())
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(RecordContent::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(RecordContent::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut content = RecordContent::default();
                while let Some(Text(key)) = map.next_key()? {
                    let place = match &*key {
                        "template_name" => &mut content.template_name,
                        "template_data" => &mut content.template_data,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    if let Scalar::Text(text) = map.next_value()?
                        && place.replace(text).is_some()
                    {
                        return Err(A::Error::custom("a member of \"content\" stands there twice"));
                    }
                }
                Ok(content)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

fn is(scalar: &Scalar<'_>, name: &str, number: u64) -> bool {
    match scalar {
        Scalar::Text(found) => found == name,
        Scalar::Number(found) => *found == number,
        Scalar::Other => false,
    }
}

/// Reads a record.
pub(super) fn event(object: &[u8]) -> Result<Event<'_>, ImportErrorKind> {
    let record: Record<'_> = serde_json::from_slice(object).map_err(|error| syntax(&error))?;
    let mut digests = Vec::new();
    for found in &record.digests.0 {
        let bank = match &found.algorithm {
            Scalar::Text(name) => bank_of(name),
            Scalar::Number(number) => u16::try_from(*number).ok().and_then(Bank::from_tpm_alg),
            Scalar::Other => None,
        };
        digests.extend(digest(bank, &hex("digest", &found.digest)?)?);
    }
    let RecordContent { template_name, template_data, text } = record.content;
    let content = if is(&record.content_type, "ima_template", super::event::IMA_TEMPLATE) {
        let (Some(name), Some(data)) = (template_name, template_data) else {
            let expected = "an object with template_name and template_data";
            return Err(ImportErrorKind::Member { name: "content", expected });
        };
        let data = hex("template_data", &data)?;
        check_data(&data)?;
        Content::ImaTemplate { name, data: data.into() }
    } else if is(&record.content_type, "ima_tlv", super::event::IMA_TLV) {
        let expected = "hex digits";
        let text = text.ok_or(ImportErrorKind::Member { name: "content", expected })?;
        let data = hex("content", &text)?;
        check_data(&data)?;
        Content::ImaTlv(data.into())
    } else {
        Content::Other
    };
    Ok(Event { pcr: record.pcr, digests, content })
}

fn hex(name: &'static str, text: &str) -> Result<Vec<u8>, ImportErrorKind> {
    hex::decode(text).map_err(|_| ImportErrorKind::Member { name, expected: "hex digits" })
}
