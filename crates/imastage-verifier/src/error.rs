//! Why evidence cannot be appraised, and why it fails.

use std::fmt;

use ima_log::{AggregateError, Bank, Digest, PcrSet};

/// Input that is missing for an appraisal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppraisalError {
    /// The quote covers PCRs that no record extends, and their values are not given.
    #[error("the quote covers PCRs whose values are not known ({}): give them (--pcrs)", list(.0))]
    MissingValues(Vec<(Bank, u32)>),
    /// The token does not contain the quoted PCRs in all banks.
    #[error(
        "the quote covers bank {}, the token has {} only: quote those banks, or start from record 0 \
         without the token",
        names(.unknown), names(.known)
    )]
    TokenBanks {
        /// Quoted banks that the token does not contain.
        unknown: Vec<Bank>,
        /// Banks of the token.
        known: Vec<Bank>,
    },
    /// Records verified earlier name a PCR that is quoted for the first time.
    #[error(
        "the quote covers PCR {unknown}, which earlier records name, but no earlier quote covered it: \
         start from record 0 without the token"
    )]
    TokenPcrs {
        /// The PCRs.
        unknown: PcrSet,
    },
}

/// Why the appraisal fails.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The list's own PCR is not quoted.
    PcrNotQuoted {
        /// The list's own PCR.
        pcr: u32,
        /// The PCRs that are quoted.
        quoted: PcrSet,
        /// A bank to quote it in.
        bank: Bank,
    },
    /// Required PCRs are not quoted.
    PcrsNotCovered {
        /// Those PCRs.
        missing: PcrSet,
    },
    /// The list's own PCR is not quoted in the required banks.
    BanksNotCovered {
        /// The banks in which it is not quoted.
        missing: Vec<Bank>,
        /// Those in which it is.
        covered: Vec<Bank>,
        /// The PCR.
        pcr: u32,
    },
    /// The list's own PCR is quoted only in the sha1 bank, which has to be requested explicitly.
    Sha1Alone {
        /// The PCR.
        pcr: u32,
    },
    /// Banks that earlier rounds covered are not quoted.
    TokenBanksNotCovered {
        /// Those banks.
        missing: Vec<Bank>,
        /// The banks in which the list's own PCR is quoted.
        covered: Vec<Bank>,
    },
    /// PCRs that earlier rounds proved are not quoted.
    TokenPcrsNotCovered {
        /// Those PCRs.
        missing: PcrSet,
    },
    /// There are no records, and no earlier round had any.
    NoRecords,
    /// The quoted value of the list's own PCR is that after a TPM reset, although there are
    /// records.
    NeverExtended {
        /// The PCR.
        pcr: u32,
        /// Whether the list shows that its kernel found no TPM at boot.
        kernel_had_none: bool,
    },
    /// The PCRs of firmware and boot loader are quoted, and the list does not start with a
    /// boot_aggregate.
    NoBootAggregate,
    /// The first record is not the digest of the quoted PCRs of firmware and boot loader.
    BootAggregate(AggregateError),
    /// The quote is signed with another key than in earlier rounds.
    OtherKey {
        /// Fingerprint of the key of earlier rounds.
        expected: Digest,
        /// Fingerprint of the key of this quote.
        found: Digest,
    },
    /// The TPM was reset since the last round.
    Reset {
        /// The reset counter in the last round.
        before: u32,
        /// The value in this quote.
        now: u32,
    },
    /// The TPM's restart counter decreased.
    Restarts {
        /// The counter in the last round.
        before: u32,
        /// The value in this quote.
        now: u32,
    },
    /// The TPM's clock decreased.
    Clock {
        /// The clock in the last round, in milliseconds.
        before: u64,
        /// The value in this quote.
        now: u64,
    },
    /// A record's printed digest is not the digest of its template data.
    Altered {
        /// The record's index in the epoch.
        record: u64,
    },
    /// The records that name a PCR other than the list's own do not replay to its quoted value.
    PcrMismatch {
        /// The PCR.
        pcr: u32,
        /// A bank in which they differ.
        bank: Bank,
        /// The index of the first record of this round that names it.
        record: Option<u64>,
    },
    /// No prefix of the given records replays to the quote.
    NoMatch {
        /// The list's own PCR.
        pcr: u32,
        /// The number of replayed records.
        replayed: u64,
        /// The index of the first of them.
        from: u64,
        /// Whether the quoted PCRs changed since the token.
        moved: Moved,
        /// The number of TPM Restarts and Resumes since the token.
        restarts: u32,
        /// The reliability of the given values of the quoted PCRs.
        given: ValuesGiven,
        /// Quoted PCRs other than the list's own whose values are not given.
        unknown: Vec<(Bank, u32)>,
    },
}

/// Whether the quoted PCRs changed since the last round, if no records replay to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// There was no last round.
    NoToken,
    /// They changed: there are records that were not given.
    Yes,
    /// They changed, or a given value of another quoted PCR is wrong.
    Unknown,
}

/// The reliability of the values given for the quoted PCRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValuesGiven {
    /// No values were given.
    None,
    /// Some were given; they cannot be verified.
    Some,
    /// All were given, and match the quote's digest.
    Proven,
    /// All were given, and at least one is wrong: they do not match the quote's digest.
    Refuted,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::PcrNotQuoted { pcr, quoted, bank } => write!(
                f,
                "the list's records name PCR {pcr}, the quote covers {}: it proves no record; quote \
                 that PCR (tpm2_quote -l {bank}:{pcr})",
                Pcrs(*quoted)
            ),
            Reason::PcrsNotCovered { missing } => {
                write!(f, "the quote does not cover {}, which is required: quote it", Pcrs(*missing))
            }
            Reason::BanksNotCovered { missing, covered, pcr } => write!(
                f,
                "the quote covers PCR {pcr} in bank {}, required is {}: quote that bank as well",
                names(covered),
                names(missing)
            ),
            Reason::Sha1Alone { pcr } => write!(
                f,
                "the quote covers PCR {pcr} in bank sha1 alone, for which collisions can be computed: \
                 quote another bank (tpm2_quote -l sha256:{pcr}), or accept it (--bank sha1)"
            ),
            Reason::TokenBanksNotCovered { missing, covered } => write!(
                f,
                "the quote covers bank {}, earlier rounds covered {} as well: quote that bank, or \
                 start from record 0 without the token",
                names(covered),
                names(missing)
            ),
            Reason::TokenPcrsNotCovered { missing } => write!(
                f,
                "the quote does not cover {}, which earlier rounds proved: quote it, or start from \
                 record 0 without the token",
                Pcrs(*missing)
            ),
            Reason::NoRecords => {
                f.write_str("no records were given, so nothing is proven: give the measurement list")
            }
            Reason::NeverExtended { pcr, kernel_had_none: true } => write!(
                f,
                "PCR {pcr} was never extended, although there are records: the kernel found no TPM \
                 when it started (boot_aggregate is zero); the quote proves no record; build the TPM's \
                 driver into the kernel, or use CONFIG_IMA_INIT_LATE_SYNC (Linux 7.3)"
            ),
            Reason::NeverExtended { pcr, kernel_had_none: false } => write!(
                f,
                "PCR {pcr} was never extended, although there are records: the kernel that made this \
                 list does not extend this TPM, or measures into another PCR than the list says, or \
                 the TPM was reset since; the quote proves no record"
            ),
            Reason::NoBootAggregate => f.write_str(
                "the list does not begin with boot_aggregate, so nothing ties it to the quoted PCRs of \
                 firmware and boot loader: give the list from its first record",
            ),
            Reason::BootAggregate(error) => write!(
                f,
                "record 0: {error}: the list is not of the boot whose PCRs the quote covers"
            ),
            Reason::OtherKey { expected, found } => write!(
                f,
                "the quote is signed with key {found}, the rounds before with {expected}: another \
                 machine, or a new key (the TPM was cleared), which must start from record 0 without \
                 the token"
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
            Reason::PcrMismatch { pcr, bank, record } => {
                write!(f, "PCR {pcr} is quoted in bank {bank}, and the records that name it")?;
                if let Some(record) = record {
                    write!(f, " (the first is record {record})")?;
                }
                f.write_str(
                    " do not lead to its value: records are missing, added, altered or out of order",
                )?;
                match pcr {
                    0..=9 => f.write_str(
                        "; firmware and boot loader extend this PCR, too: do not quote it, and those \
                         records are reported as not proven",
                    ),
                    11..=15 => f.write_str("; or others than IMA extend this PCR, as systemd does"),
                    _ => Ok(()),
                }
            }
            Reason::NoMatch { pcr, replayed, from, moved, restarts, given, unknown } => {
                match moved {
                    Moved::NoToken => {}
                    Moved::Yes => write!(f, "PCR {pcr} has moved since the last round, but ")?,
                    Moved::Unknown => {
                        f.write_str("the quoted PCRs are not those of the last round, and ")?;
                    }
                }
                match replayed {
                    0 => write!(f, "no records were given from index {from} on")?,
                    n => write!(
                        f,
                        "none of the {n} records from index {from} on leads to the quoted PCR \
                         {pcr}: records are missing, added, altered or out of order"
                    )?,
                }
                match given {
                    ValuesGiven::None | ValuesGiven::Proven => {}
                    ValuesGiven::Some => write!(
                        f,
                        "; or a value given for another PCR than {pcr} is not the quoted one"
                    )?,
                    ValuesGiven::Refuted => f.write_str(
                        "; or a value given is not the quoted one: the values given do not hash to the \
                         quote's digest",
                    )?,
                }
                if !unknown.is_empty() {
                    write!(f, "; no values were given for {}: give them (--pcrs)", list(unknown))?;
                }
                match restarts {
                    0 => Ok(()),
                    n => write!(
                        f,
                        "; the TPM's restart counter rose by {n} since: a TPM Restart resets PCR \
                         {pcr}, so start from record 0 without the token if there was one"
                    ),
                }
            }
        }
    }
}

/// PCRs in a sentence.
struct Pcrs(PcrSet);

impl fmt::Display for Pcrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("no PCR") } else { write!(f, "PCR {}", self.0) }
    }
}

/// `sha256:0,1+sha1:7`, as in tpm2-tools.
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
