use std::fmt;

use ima_log::{Bank, Digest, IMA_PCR};

/// What is lacking for an appraisal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppraisalError {
    /// The quote covers PCRs whose values nobody told.
    #[error("the quote covers PCRs whose values are not known ({}): give them (--pcrs)", list(.0))]
    MissingValues(Vec<(Bank, u32)>),
    /// The token does not know PCR 10 of all banks quoted.
    #[error(
        "the quote covers PCR {IMA_PCR} of {}, the token knows it of {} only: quote those banks, or \
         start from record 0 without the token",
        names(.unknown), names(.known)
    )]
    TokenBanks {
        /// Banks quoted that the token lacks.
        unknown: Vec<Bank>,
        /// Banks of the token.
        known: Vec<Bank>,
    },
}

/// Why the evidence does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// PCR 10 is not among the quote's.
    Pcr10NotQuoted,
    /// Another key than in the rounds before signed the quote.
    OtherKey {
        /// Fingerprint of the key of the rounds before.
        expected: Digest,
        /// Fingerprint of the quote's.
        found: Digest,
    },
    /// The TPM was reset since the last round.
    Reset {
        /// The reset counter in the last round.
        before: u32,
        /// The quote's.
        now: u32,
    },
    /// The TPM's restart counter went back.
    Restarts {
        /// The counter in the last round.
        before: u32,
        /// The quote's.
        now: u32,
    },
    /// The TPM's clock went back.
    Clock {
        /// The clock in the last round, in milliseconds.
        before: u64,
        /// The quote's.
        now: u64,
    },
    /// A record's printed digest is not the digest of its template data.
    Altered {
        /// The record's index in the epoch.
        record: u64,
    },
    /// No number of the records given leads to the quote.
    NoMatch {
        /// How many records were replayed.
        replayed: u64,
        /// The index of the first of them.
        from: u64,
        /// Whether PCR 10 moved since the token.
        moved: Moved,
        /// TPM Restarts and Resumes since the token.
        restarts: u32,
        /// What was known of the values of the quoted PCRs.
        given: ValuesGiven,
    },
}

/// Whether PCR 10 moved since the last round, when no records lead to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// There was no last round.
    NoToken,
    /// It moved: there are records that were not given.
    Yes,
    /// It did, or a given value of another quoted PCR is wrong.
    Unknown,
}

/// How far the values given for the quoted PCRs could be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValuesGiven {
    /// None were needed: PCR 10 alone is quoted.
    NotNeeded,
    /// All were given, and the quote's digest proves them.
    Proven,
    /// Those of PCRs other than 10 were given, and had to be believed.
    Assumed,
    /// All were given, and the quote's digest says that one at least is wrong.
    Refuted {
        /// Whether PCRs other than 10 are quoted, whose values then may be the wrong ones.
        others: bool,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Pcr10NotQuoted => write!(
                f,
                "the quote does not cover PCR {IMA_PCR} in any bank, so it proves no record: quote \
                 it (tpm2_quote -l sha256:{IMA_PCR})"
            ),
            Reason::OtherKey { expected, found } => write!(
                f,
                "the quote is signed with key {found}, the rounds before with {expected}: another \
                 machine, or a new key, which must start from record 0 without the token"
            ),
            Reason::Reset { before, now } => write!(
                f,
                "TPM was reset since (reset counter {before} -> {now}): new epoch, start from record \
                 0 without the token"
            ),
            Reason::Restarts { before, now } => write!(
                f,
                "the TPM's restart counter went back ({before} -> {now}): a quote older than the \
                 last round's"
            ),
            Reason::Clock { before, now } => write!(
                f,
                "the TPM's clock went back ({before} ms -> {now} ms): a quote older than the last \
                 round's"
            ),
            Reason::Altered { record } => write!(
                f,
                "record {record} was altered: the digest it shows is not the one of its template data"
            ),
            Reason::NoMatch { replayed, from, moved, restarts, given } => {
                match moved {
                    Moved::NoToken => {}
                    Moved::Yes => write!(f, "PCR {IMA_PCR} has moved since the last round, but ")?,
                    Moved::Unknown => {
                        f.write_str("the quoted PCRs are not those of the last round, and ")?;
                    }
                }
                match replayed {
                    0 => write!(f, "no records were given from index {from} on")?,
                    n => write!(
                        f,
                        "none of the {n} records from index {from} on leads to the quoted PCR \
                         {IMA_PCR}: records are missing, added, altered or out of order"
                    )?,
                }
                match given {
                    ValuesGiven::NotNeeded | ValuesGiven::Proven => {}
                    ValuesGiven::Assumed => write!(
                        f,
                        "; or a value given for another PCR than {IMA_PCR} is not the quoted one"
                    )?,
                    ValuesGiven::Refuted { others: false } => write!(
                        f,
                        "; the value given for PCR {IMA_PCR} is not the quoted one either"
                    )?,
                    ValuesGiven::Refuted { others: true } => f.write_str(
                        "; or a value given for another PCR is not the quoted one: the values given \
                         do not hash to the quote's digest",
                    )?,
                }
                match restarts {
                    0 => Ok(()),
                    n => write!(
                        f,
                        "; the TPM's restart counter rose by {n} since: a TPM Restart resets PCR \
                         {IMA_PCR}, so start from record 0 without the token if there was one"
                    ),
                }
            }
        }
    }
}

/// `sha256:0,1+sha1:7`, as tpm2-tools write it.
fn list(pcrs: &[(Bank, u32)]) -> String {
    let mut text = String::new();
    let mut last = None;
    for (bank, index) in pcrs {
        if last == Some(bank) {
            text.push_str(&format!(",{index}"));
        } else {
            text.push_str(if last.is_some() { "+" } else { "" });
            text.push_str(&format!("{bank}:{index}"));
        }
        last = Some(bank);
    }
    text
}

fn names(banks: &[Bank]) -> String {
    banks.iter().map(|bank| bank.name()).collect::<Vec<_>>().join(", ")
}
