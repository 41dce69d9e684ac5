//! The token that a verifier keeps between two rounds.

use std::collections::BTreeMap;

use ima_log::{Bank, BankPcrs, Digest, Extend, PcrSet};
use serde::{Deserialize, Serialize};

/// The state of a verifier between two rounds with one machine. It is not signed: the verifier must
/// store it itself, and never accept it from the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub(crate) next: u64,
    pub(crate) pcr: u32,
    pub(crate) banks: Vec<BankPcrs>,
    pub(crate) not_quoted: PcrSet,
    pub(crate) boot_aggregate: Option<Digest>,
    pub(crate) key: Digest,
    pub(crate) reset_count: u32,
    pub(crate) restart_count: u32,
    pub(crate) clock: u64,
    pub(crate) rounds: u64,
    pub(crate) violations: u64,
}

/// Why a token cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Not JSON, or not a token.
    #[error("not a token: {0}")]
    Json(String),
    /// Written by another version of this crate.
    #[error(
        "the token has version {0}, this program reads version {VERSION}: start from record 0 without \
         the token"
    )]
    Version(u64),
    /// Its fields contradict each other.
    #[error("the token is damaged: {0}")]
    Inconsistent(&'static str),
}

const VERSION: u64 = 2;

impl Token {
    /// Reads a token that [`Token::to_json`] wrote.
    ///
    /// # Errors
    /// [`TokenError`] if it is not a token, has another version, or contradicts itself.
    pub fn from_json(json: &[u8]) -> Result<Token, TokenError> {
        let error = |error: serde_json::Error| TokenError::Json(error.to_string());
        let Versioned { version } = serde_json::from_slice(json).map_err(error)?;
        if version != VERSION {
            return Err(TokenError::Version(version));
        }
        serde_json::from_slice::<Fields>(json).map_err(error)?.check()
    }

    /// The token as one line of JSON, without a newline.
    pub fn to_json(&self) -> String {
        let bank = |state: &BankPcrs| BankFields {
            bank: state.bank().name().to_owned(),
            extend: state.extend_kind().name().to_owned(),
            pcrs: state.values().map(|(pcr, value)| (pcr, value.to_string())).collect(),
        };
        let fields = Fields {
            version: VERSION,
            next: self.next,
            pcr: self.pcr,
            banks: self.banks.iter().map(bank).collect(),
            not_quoted: self.not_quoted.iter().collect(),
            boot_aggregate: self.boot_aggregate.map(|digest| AggregateFields {
                hash: digest.bank().name().to_owned(),
                value: digest.to_string(),
            }),
            key: self.key.to_string(),
            reset_count: self.reset_count,
            restart_count: self.restart_count,
            clock: self.clock,
            rounds: self.rounds,
            violations: self.violations,
        };
        // Integers, strings and lists of them cannot fail.
        serde_json::to_string(&fields).unwrap_or_default()
    }

    /// The index of the first record that is not verified yet, with which the next round's list
    /// starts.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The list's own PCR.
    pub fn pcr(&self) -> u32 {
        self.pcr
    }

    /// The PCRs that records name, after the record before [`Token::next`], in each bank the quotes
    /// cover.
    pub fn banks(&self) -> &[BankPcrs] {
        &self.banks
    }

    /// PCRs that earlier records name and no quote covered: those records are not proven.
    pub fn not_quoted(&self) -> PcrSet {
        self.not_quoted
    }

    /// The digest in the epoch's first record, if that is a `boot_aggregate`.
    pub fn boot_aggregate(&self) -> Option<Digest> {
        self.boot_aggregate
    }

    /// [`crate::PublicKey::fingerprint`] of the key that signed all rounds.
    pub fn key_fingerprint(&self) -> Digest {
        self.key
    }

    /// The number of rounds that passed.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// The number of violations among the verified records.
    pub fn violations(&self) -> u64 {
        self.violations
    }
}

#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    version: u64,
    next: u64,
    pcr: u32,
    banks: Vec<BankFields>,
    not_quoted: Vec<u32>,
    boot_aggregate: Option<AggregateFields>,
    key: String,
    reset_count: u32,
    restart_count: u32,
    clock: u64,
    rounds: u64,
    violations: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BankFields {
    bank: String,
    extend: String,
    pcrs: BTreeMap<u32, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AggregateFields {
    hash: String,
    value: String,
}

impl Fields {
    fn check(self) -> Result<Token, TokenError> {
        let mut banks: Vec<BankPcrs> = Vec::new();
        for fields in &self.banks {
            let state = fields.check(self.pcr)?;
            if banks.iter().any(|earlier| earlier.bank() == state.bank()) {
                return inconsistent("banks: a bank is listed twice");
            }
            banks.push(state);
        }
        let Some(key) = Digest::from_hex(Bank::Sha256, &self.key) else {
            return inconsistent("key: expected 64 hex digits");
        };
        let boot_aggregate =
            self.boot_aggregate.as_ref().map(AggregateFields::check).transpose()?;
        if banks.is_empty() {
            return inconsistent("banks: expected at least one");
        }
        if self.next == 0 {
            return inconsistent("next: a round that passes proves a record");
        }
        if self.not_quoted.iter().any(|pcr| *pcr >= PcrSet::LIMIT) {
            return inconsistent("not_quoted: expected PCRs from 0 to 31");
        }
        if self.violations > self.next {
            return inconsistent("violations: more than records");
        }
        if self.rounds == 0 {
            return inconsistent("rounds: a token comes from a round");
        }
        Ok(Token {
            next: self.next,
            pcr: self.pcr,
            banks,
            not_quoted: self.not_quoted.into_iter().collect(),
            boot_aggregate,
            key,
            reset_count: self.reset_count,
            restart_count: self.restart_count,
            clock: self.clock,
            rounds: self.rounds,
            violations: self.violations,
        })
    }
}

impl BankFields {
    /// `own` is the list's own PCR.
    fn check(&self, own: u32) -> Result<BankPcrs, TokenError> {
        let Ok(bank) = self.bank.parse::<Bank>() else {
            return inconsistent("bank: expected sha1, sha256, sha384, sha512 or sm3");
        };
        let Ok(extend) = self.extend.parse::<Extend>() else {
            return inconsistent("extend: expected own, sha1-padded or sha1-padded-violations");
        };
        if bank == Bank::Sha1 && extend != Extend::Own {
            return inconsistent("extend: sha1 is extended with its own hash");
        }
        let mut values = Vec::new();
        for (pcr, value) in &self.pcrs {
            let Some(value) = Digest::from_hex(bank, value) else {
                return inconsistent("pcrs: expected as many hex digits as the bank's digest has");
            };
            if *pcr >= PcrSet::LIMIT {
                return inconsistent("pcrs: expected indexes from 0 to 31");
            }
            if value == Digest::reset(bank, *pcr) {
                return inconsistent("pcrs: a PCR that records extended has the value of a reset");
            }
            values.push((*pcr, value));
        }
        // The list's own first, as records name them.
        values.sort_by_key(|(pcr, _)| *pcr != own);
        if values.first().is_none_or(|(pcr, _)| *pcr != own) {
            return inconsistent("pcrs: no value of the list's own PCR");
        }
        Ok(BankPcrs::resume(bank, extend, values))
    }
}

impl AggregateFields {
    fn check(&self) -> Result<Digest, TokenError> {
        let bank = self.hash.parse::<Bank>().ok();
        match bank.and_then(|bank| Digest::from_hex(bank, &self.value)) {
            Some(digest) => Ok(digest),
            None => inconsistent("boot_aggregate: expected a known hash and its digest in hex"),
        }
    }
}

fn inconsistent<T>(what: &'static str) -> Result<T, TokenError> {
    Err(TokenError::Inconsistent(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> Token {
        let state = |bank: Bank, extend| {
            let values = [10, 11].map(|pcr: u32| (pcr, bank.hash(&[&pcr.to_be_bytes()])));
            BankPcrs::resume(bank, extend, values)
        };
        Token {
            next: 7,
            pcr: 10,
            banks: vec![
                state(Bank::Sha1, Extend::Own),
                state(Bank::Sha256, Extend::Own),
                state(Bank::Sha384, Extend::Sha1PaddedViolations),
            ],
            not_quoted: [12].into_iter().collect(),
            boot_aggregate: Some(Bank::Sha512.hash(&[])),
            key: Bank::Sha256.hash(&[b"key"]),
            reset_count: u32::MAX,
            restart_count: 1,
            clock: u64::MAX,
            rounds: 3,
            violations: 2,
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(Token::from_json(token().to_json().as_bytes()), Ok(token()));
        let late = Token { pcr: 11, ..token() };
        let again = Token::from_json(late.to_json().as_bytes()).unwrap();
        assert_eq!(again.banks()[0].values().map(|(pcr, _)| pcr).collect::<Vec<_>>(), [11, 10]);
    }

    #[test]
    fn other_versions_and_contradictions_are_refused() {
        let json = token().to_json();
        let with = |from: &str, to: &str| {
            assert!(json.contains(from), "{from} in {json}");
            Token::from_json(json.replacen(from, to, 1).as_bytes()).unwrap_err()
        };
        assert_eq!(with("\"version\":2", "\"version\":1,\"new\":0"), TokenError::Version(1));
        assert!(matches!(with("\"version\":2,", ""), TokenError::Json(_)));
        assert!(matches!(with("\"clock\"", "\"more\":1,\"clock\""), TokenError::Json(_)));
        assert!(matches!(with("\"next\":7", "\"next\":-7"), TokenError::Json(_)));
        let value = Bank::Sha256.hash(&[&10u32.to_be_bytes()]).to_string();
        for (from, to) in [
            ("own", "other"),
            ("\"next\":7", "\"next\":0"),
            ("\"next\":7", "\"next\":1"),
            ("sha384", "sha1"),
            ("sha384", "sha512"),
            ("sha384", "md5"),
            ("\"own\"", "\"sha1-padded\""),
            ("\"rounds\":3", "\"rounds\":0"),
            ("\"pcr\":10", "\"pcr\":12"),
            ("\"not_quoted\":[12]", "\"not_quoted\":[32]"),
            ("\"hash\":\"sha512\"", "\"hash\":\"sha256\""),
            (&token().key.to_string(), "00"),
            (&value, &"0".repeat(64)),
            ("\"11\":", "\"32\":"),
        ] {
            assert!(matches!(with(from, to), TokenError::Inconsistent(_)), "{from} {to}");
        }
        let none = Token { banks: Vec::new(), ..token() }.to_json();
        assert!(matches!(Token::from_json(none.as_bytes()), Err(TokenError::Inconsistent(_))));
    }

    proptest! {
        #[test]
        fn no_json_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let _ = Token::from_json(&bytes);
            let mut json = token().to_json().into_bytes();
            let at = at.index(json.len());
            json[at] = byte;
            if let Ok(token) = Token::from_json(&json) {
                prop_assert_eq!(Token::from_json(token.to_json().as_bytes()), Ok(token));
            }
        }
    }
}
