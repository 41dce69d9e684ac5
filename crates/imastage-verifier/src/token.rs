use ima_log::{Bank, Digest, Extend};
use serde::{Deserialize, Serialize};

/// "Verified up to here": what a verifier keeps between two rounds with one machine. It is the
/// verifier's own: not signed, so never to be taken from the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub(crate) next: u64,
    pub(crate) pcrs: Vec<BankState>,
    pub(crate) key: Digest,
    pub(crate) reset_count: u32,
    pub(crate) restart_count: u32,
    pub(crate) clock: u64,
    pub(crate) rounds: u64,
    pub(crate) violations: u64,
}

/// PCR 10 of one bank behind the records verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BankState {
    /// The bank.
    pub bank: Bank,
    /// What records extend it with. Means nothing yet while the value is zero.
    pub extend: Extend,
    /// The PCR's value.
    pub value: Digest,
}

/// Why a token cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Not JSON, or not a token's.
    #[error("not a token: {0}")]
    Json(String),
    /// Written by another version of this crate.
    #[error("the token has version {0}, this program knows {VERSION}: start without the token")]
    Version(u64),
    /// Its fields contradict each other.
    #[error("the token is damaged: {0}")]
    Inconsistent(&'static str),
}

const VERSION: u64 = 1;

impl Token {
    /// Reads a token that [`Token::to_json`] wrote.
    ///
    /// # Errors
    /// [`TokenError`] when it is none, is of another version, or contradicts itself.
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
        let fields = Fields {
            version: VERSION,
            next: self.next,
            pcrs: self
                .pcrs
                .iter()
                .map(|state| Pcr {
                    bank: state.bank.name().to_owned(),
                    extend: match state.extend {
                        Extend::Own => ExtendName::Own,
                        Extend::Sha1Padded | Extend::Sha1PaddedViolations => ExtendName::Sha1Padded,
                    },
                    value: state.value.to_string(),
                })
                .collect(),
            key: self.key.to_string(),
            reset_count: self.reset_count,
            restart_count: self.restart_count,
            clock: self.clock,
            rounds: self.rounds,
            violations: self.violations,
        };
        // Integers, strings and lists of them: nothing that could fail.
        serde_json::to_string(&fields).unwrap_or_default()
    }

    /// The index of the first record that is not verified yet: the next round's list begins with it.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// PCR 10 behind the record before [`Token::next`], in each bank the quotes cover.
    pub fn pcrs(&self) -> &[BankState] {
        &self.pcrs
    }

    /// [`crate::PublicKey::fingerprint`] of the key all rounds were signed with.
    pub fn key_fingerprint(&self) -> Digest {
        self.key
    }

    /// Rounds that passed.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// Violations among the records verified.
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
    pcrs: Vec<Pcr>,
    key: String,
    reset_count: u32,
    restart_count: u32,
    clock: u64,
    rounds: u64,
    violations: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pcr {
    bank: String,
    extend: ExtendName,
    value: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ExtendName {
    Own,
    Sha1Padded,
}

impl Fields {
    fn check(self) -> Result<Token, TokenError> {
        let inconsistent = |what| Err(TokenError::Inconsistent(what));
        let mut pcrs: Vec<BankState> = Vec::new();
        for pcr in &self.pcrs {
            let Ok(bank) = pcr.bank.parse::<Bank>() else {
                return inconsistent("bank: expected sha1, sha256, sha384 or sha512");
            };
            if pcrs.iter().any(|earlier| earlier.bank == bank) {
                return inconsistent("pcrs: a bank stands there twice");
            }
            let extend = match pcr.extend {
                ExtendName::Own => Extend::Own,
                ExtendName::Sha1Padded if bank == Bank::Sha1 => {
                    return inconsistent("extend: sha1 has nothing to pad");
                }
                ExtendName::Sha1Padded => Extend::Sha1Padded,
            };
            let Some(value) = Digest::from_hex(bank, &pcr.value) else {
                return inconsistent("value: expected as many hex digits as the bank's digest has");
            };
            pcrs.push(BankState { bank, extend, value });
        }
        let Some(key) = Digest::from_hex(Bank::Sha256, &self.key) else {
            return inconsistent("key: expected 64 hex digits");
        };
        if pcrs.is_empty() {
            return inconsistent("pcrs: no bank");
        }
        if self.next == 0 && pcrs.iter().any(|state| !state.value.is_zero()) {
            return inconsistent("value: no record is verified, but PCR 10 is not zero");
        }
        if pcrs.iter().any(|state| state.value.is_zero() != pcrs[0].value.is_zero()) {
            return inconsistent("value: PCR 10 is zero in some banks only");
        }
        if self.violations > self.next {
            return inconsistent("violations: more than records");
        }
        if self.rounds == 0 {
            return inconsistent("rounds: a token comes from a round");
        }
        Ok(Token {
            next: self.next,
            pcrs,
            key,
            reset_count: self.reset_count,
            restart_count: self.restart_count,
            clock: self.clock,
            rounds: self.rounds,
            violations: self.violations,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> Token {
        let state = |bank: Bank, extend| BankState { bank, extend, value: bank.hash(&[]) };
        Token {
            next: 7,
            pcrs: vec![
                state(Bank::Sha1, Extend::Own),
                state(Bank::Sha256, Extend::Own),
                state(Bank::Sha384, Extend::Sha1Padded),
            ],
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
    }

    #[test]
    fn other_versions_and_contradictions_are_refused() {
        let json = token().to_json();
        let with = |from: &str, to: &str| {
            assert!(json.contains(from), "{from} in {json}");
            Token::from_json(json.replacen(from, to, 1).as_bytes()).unwrap_err()
        };
        assert_eq!(with("\"version\":1", "\"version\":2,\"new\":0"), TokenError::Version(2));
        assert!(matches!(with("\"version\":1,", ""), TokenError::Json(_)));
        assert!(matches!(with("\"clock\"", "\"more\":1,\"clock\""), TokenError::Json(_)));
        assert!(matches!(with("\"next\":7", "\"next\":-7"), TokenError::Json(_)));
        assert!(matches!(with("own", "other"), TokenError::Json(_)));
        assert!(matches!(with("\"next\":7", "\"next\":0"), TokenError::Inconsistent(_)));
        assert!(matches!(with("\"next\":7", "\"next\":1"), TokenError::Inconsistent(_)));
        assert!(matches!(with("sha384", "sha1"), TokenError::Inconsistent(_)));
        assert!(matches!(with("sha384", "sha512"), TokenError::Inconsistent(_)));
        assert!(matches!(with("sha384", "md5"), TokenError::Inconsistent(_)));
        assert!(matches!(with("own", "sha1-padded"), TokenError::Inconsistent(_)));
        assert!(matches!(with("\"rounds\":3", "\"rounds\":0"), TokenError::Inconsistent(_)));
        let key = token().key.to_string();
        assert!(matches!(with(&key, &key[1..]), TokenError::Inconsistent(_)));
        let value = Bank::Sha256.hash(&[]).to_string();
        assert!(matches!(with(&value, &"0".repeat(64)), TokenError::Inconsistent(_)));
        let Token { pcrs: _, .. } = token();
        let none = Token { pcrs: Vec::new(), ..token() }.to_json();
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
