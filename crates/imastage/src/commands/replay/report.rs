//! What `imastage replay` answers.

use std::{collections::BTreeMap, fmt::Write as _};

use ima_log::{Cause, Explanation, Extend};
use serde::Serialize;

use super::{Compared, Explained, PcrAnswer, Replayed};
use crate::output::{Output, Tone};

#[derive(Serialize)]
struct Answer {
    records: u64,
    violations: u64,
    /// Whether the first record is a `boot_aggregate` or `boot_aggregate_late`: if not, records before
    /// it are missing.
    from_boot_aggregate: bool,
    /// The first record whose printed digest is not the one of its template data.
    wrong_digest: Option<u64>,
    /// The list's own PCR: the one that its first record names.
    pcr: Option<u32>,
    /// The list's own PCR, by bank.
    banks: BTreeMap<&'static str, BankAnswer>,
    /// Other PCRs that records name, by PCR and bank.
    other_pcrs: BTreeMap<u32, BTreeMap<&'static str, BankAnswer>>,
}

#[derive(Serialize)]
struct BankAnswer {
    /// The value that the records lead to.
    pcr: String,
    /// Null if no value was given, or none of the records leads to it.
    r#match: Option<Match>,
    /// Why not; absent where something matches or nothing is to.
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<Explanations>,
}

#[derive(Serialize)]
struct Match {
    records: u64,
    extend: &'static str,
}

#[derive(Serialize)]
struct Explanations {
    /// What happened, and to which record; null if nothing that was tried explains the value.
    cause: Option<&'static str>,
    record: Option<u64>,
    /// How many records the value then stands for.
    records: Option<u64>,
    /// How the bank is extended then; null for banks other than the one that was explained.
    extend: Option<&'static str>,
    /// From which record on single records were tried.
    looked_from: Option<u64>,
}

/// The answer as JSON.
pub(super) fn json(replayed: &Replayed) -> impl Serialize + use<> {
    let mut banks = BTreeMap::new();
    let mut other_pcrs = BTreeMap::<u32, BTreeMap<_, _>>::new();
    for pcr in &replayed.pcrs {
        let answer = bank_answer(pcr, replayed.explained.as_ref());
        if Some(pcr.pcr) == replayed.own {
            banks.insert(pcr.bank.name(), answer);
        } else {
            other_pcrs.entry(pcr.pcr).or_default().insert(pcr.bank.name(), answer);
        }
    }
    Answer {
        records: replayed.records,
        violations: replayed.violations,
        from_boot_aggregate: replayed.from_boot_aggregate,
        wrong_digest: replayed.wrong_digest,
        pcr: replayed.own,
        banks,
        other_pcrs,
    }
}

/// The answer for people.
pub(super) fn text(replayed: &Replayed, out: &Output) -> String {
    let mut text = format!("{} records, {} violations", replayed.records, replayed.violations);
    for pcr in &replayed.pcrs {
        // Writing to a String cannot fail.
        let _ = write!(text, "\nPCR {} {:<6} {}", pcr.pcr, pcr.bank, pcr.value);
        if let Some(verdict) = verdict(pcr, replayed, out) {
            let _ = write!(text, "\n              {verdict}");
        }
    }
    if let Some(Explained { found: None, looked_from, .. }) = replayed.explained {
        let _ = write!(
            text,
            "\ntried, from record {looked_from} on: each record left out, repeated, altered, or a \
             violation; none explains the value. A record that is missing from this list cannot be \
             found: a PCR does not tell what extended it"
        );
    }
    if let Some(record) = replayed.wrong_digest {
        let _ = write!(
            text,
            "\nrecord {record} was altered: the digest it shows is not the one of its template data \
             (imastage check tells all of them)"
        );
    }
    if replayed.records > 0 && !replayed.from_boot_aggregate {
        text +=
            "\nthe list does not begin with boot_aggregate: records before its first are missing";
    }
    text
}

fn verdict(pcr: &PcrAnswer, replayed: &Replayed, out: &Output) -> Option<String> {
    Some(match &pcr.compared {
        Compared::NotGiven => return None,
        Compared::Matches(prefix, extend) => {
            let all = if prefix.to == replayed.records { "all " } else { "the first " };
            let text = format!("matches {all}{} records{}", prefix.to, extend_text(*extend));
            out.paint(Tone::Good, text)
        }
        Compared::NeverExtended => {
            let why = if replayed.kernel_had_no_tpm {
                "the kernel found no TPM when it started (boot_aggregate is zero)"
            } else {
                "the kernel that made this list does not extend this TPM, or it was reset since"
            };
            let no = out.paint(Tone::Bad, "the value given was never extended: matches no record");
            format!("{no}\n              {why}")
        }
        Compared::Mismatch => {
            let no = out.paint(Tone::Bad, "matches no prefix of the list");
            let explained = replayed.explained.as_ref().filter(|e| is_of(e, pcr));
            match explained.and_then(|explained| explained.found) {
                Some((extend, found)) => {
                    format!("{no}\n              {}{}", cause_text(found), extend_text(extend))
                }
                None => no,
            }
        }
    })
}

fn bank_answer(pcr: &PcrAnswer, explained: Option<&Explained>) -> BankAnswer {
    let mut answer = BankAnswer { pcr: pcr.value.to_string(), r#match: None, explanation: None };
    // One bank is explained, and what is wrong with a record is wrong in every bank.
    let explained = explained.filter(|explained| explained.pcr == pcr.pcr);
    let found = explained.and_then(|explained| explained.found);
    let is_of_bank = explained.is_some_and(|explained| is_of(explained, pcr));
    match pcr.compared {
        Compared::NotGiven => {}
        Compared::Matches(prefix, extend) => {
            answer.r#match = Some(Match { records: prefix.to, extend: extend.name() });
        }
        Compared::NeverExtended => {
            answer.explanation = Some(Explanations {
                cause: Some("never-extended"),
                record: None,
                records: Some(0),
                extend: None,
                looked_from: None,
            });
        }
        Compared::Mismatch => {
            answer.explanation = Some(Explanations {
                cause: found.map(|(_, found)| cause_name(found.cause)),
                record: found.map(|(_, found)| found.record),
                records: found.map(|(_, found)| found.records),
                extend: found.filter(|_| is_of_bank).map(|(extend, _)| extend.name()),
                looked_from: explained.map(|explained| explained.looked_from),
            });
        }
    }
    answer
}

fn is_of(explained: &Explained, pcr: &PcrAnswer) -> bool {
    (explained.pcr, explained.bank) == (pcr.pcr, pcr.bank)
}

fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::NotExtended => "not-extended",
        Cause::RepeatMissing => "repeat-missing",
        Cause::ViolationMissing => "violation-missing",
        Cause::WasViolation => "was-violation",
        Cause::DataAltered => "data-altered",
        Cause::ResetBefore => "reset-before",
        _ => "other",
    }
}

fn extend_text(extend: Extend) -> &'static str {
    match extend {
        Extend::Own => "",
        Extend::Sha1Padded => ", extended with zero-padded SHA-1",
        Extend::Sha1PaddedViolations => {
            ", extended with zero-padded SHA-1, violations too (a kernel before 5.8)"
        }
    }
}

/// What happened, as a sentence.
fn cause_text(found: Explanation) -> String {
    let Explanation { cause, record, records } = found;
    let what = match cause {
        Cause::NotExtended => format!("record {record} never extended the PCR: without it"),
        Cause::RepeatMissing => format!("a second record like {record} is missing: with it"),
        Cause::ViolationMissing => {
            format!("a violation is missing before record {record}: with it")
        }
        Cause::WasViolation => format!("record {record} was a violation: as one"),
        Cause::DataAltered => {
            format!("the data of record {record} is not what was measured: by the printed digests")
        }
        Cause::ResetBefore => format!("the TPM was reset before record {record}: from there on"),
        _ => format!("record {record} is not what was measured: otherwise"),
    };
    format!("{what} the PCR stands for the first {records} records")
}
