//! PCR values as JSON: an object of objects.

use std::fmt;

use ima_log::Bank;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{PcrFileError, PcrHint, PcrValues, index, is_bank_name, value};

/// `{"sha256": {"10": "HEX"}}`; the outer object may be missing, then the values are of the hint's
/// bank; or be inside another one, `{"pcrs": {"sha256": ...}}`.
pub(super) fn parse(text: &str, hint: PcrHint) -> Result<PcrValues, PcrFileError> {
    let json: Json = serde_json::from_str(text).map_err(|e| PcrFileError::Json(e.to_string()))?;
    let mut reader = Reader { values: PcrValues::default(), unknown: None };
    reader.read(&json, hint.bank, false)?;
    match reader.unknown {
        Some(bank) if reader.values.values.is_empty() => Err(PcrFileError::UnknownBanks { bank }),
        _ => Ok(reader.values),
    }
}

struct Reader {
    values: PcrValues,
    /// The first bank that was skipped.
    unknown: Option<String>,
}

impl Reader {
    /// `of_bank`: a member's name said that these are values of `bank`.
    fn read(&mut self, json: &Json, bank: Option<Bank>, of_bank: bool) -> Result<(), PcrFileError> {
        let Json::Object(members) = json else { return Ok(()) };
        for (name, member) in members {
            let pcr = index(name.strip_prefix("PCR-").unwrap_or(name));
            match (pcr, name.parse(), member) {
                (Some(pcr), _, Json::Text(hex)) => self.add(bank, pcr, hex)?,
                (None, Ok(bank), _) if !of_bank => self.read(member, Some(bank), true)?,
                (None, Err(_), Json::Object(_)) if !of_bank && is_bank_name(name) => {
                    self.unknown.get_or_insert(name.clone());
                }
                (None, Err(_), _) if !of_bank => self.read(member, bank, false)?,
                _ => {
                    return Err(PcrFileError::Json(format!(
                        "{name:?} is neither the value of a PCR in hex nor a bank with its PCRs"
                    )));
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, bank: Option<Bank>, pcr: u32, hex: &str) -> Result<(), PcrFileError> {
        let bank = bank.ok_or_else(|| {
            PcrFileError::Json(format!(
                "the value of PCR {pcr} does not say of which bank it is: give the bank (--bank)"
            ))
        })?;
        let digits = hex.strip_prefix("0x").unwrap_or(hex);
        let value = value(bank, digits)
            .map_err(|problem| PcrFileError::Json(format!("PCR {pcr}: {problem}")))?;
        match self.values.values.insert((bank, pcr), value) {
            Some(other) if other != value => {
                Err(PcrFileError::Json(format!("two values for PCR {pcr} of bank {bank}")))
            }
            _ => Ok(()),
        }
    }
}

/// What matters here. `serde_json::Value` would keep the last of two members of one name.
enum Json {
    Object(Vec<(String, Json)>),
    Text(String),
    Other,
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PCR values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Json::Other)
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Other)
    }
}
