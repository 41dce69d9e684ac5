//! What `imastage verify` answers: the verdict, and what it rests on.

use std::collections::BTreeMap;

use ima_log::{Bank, BankPcrs, Extend};
use imastage_verifier::{Appraisal, BootAggregate, Verdict};
use serde::Serialize;

use crate::output::{Output, Tone};

/// The answer. Members are only added.
#[derive(Serialize)]
pub struct Answer {
    /// `pass` or `fail`.
    verdict: &'static str,
    /// Records from the first on that the quote covers.
    records: u64,
    /// Records behind those.
    excess: u64,
    /// Why the verdict is `fail`.
    reason: Option<String>,
    /// The index of this round's first record.
    from: u64,
    /// Violations among `records`: how many there are is proven, what they say is not.
    violations: u64,
    /// Records of this round that name a PCR that is not quoted.
    unproven: u64,
    /// The PCRs that they name.
    unproven_pcrs: Vec<u32>,
    /// Records of this round whose template is not known, and the index of the first: templates' names
    /// are not protected.
    unknown_templates: u64,
    first_unknown_template: Option<u64>,
    /// The PCR that the list's first record names.
    pcr: Option<u32>,
    /// How each quoted bank is extended: `own`, `sha1-padded` or `sha1-padded-violations`.
    banks: BTreeMap<&'static str, &'static str>,
    /// The proven values of the PCRs that records name, by bank and PCR.
    pcrs: BTreeMap<&'static str, BTreeMap<u32, String>>,
    /// `matches`, `not-quoted`, `overwritten`, `absent` or `not-compared`.
    boot_aggregate: &'static str,
    /// SHA-256 of the attestation key's SubjectPublicKeyInfo; null if the quote is not genuine.
    key: Option<String>,
    /// The TPM's counters and clock (milliseconds) when it made the quote.
    reset_count: Option<u32>,
    restart_count: Option<u32>,
    clock: Option<u64>,
    /// In words, what the verdict rests on and what it does not cover.
    #[serde(skip)]
    basis: Vec<String>,
}

impl Answer {
    /// `appraisal` is an error if the quote is not genuine.
    pub fn new(from: u64, appraisal: &Result<Appraisal, String>) -> Answer {
        let mut answer = Answer {
            verdict: "fail",
            records: 0,
            excess: 0,
            reason: None,
            from,
            violations: 0,
            unproven: 0,
            unproven_pcrs: Vec::new(),
            unknown_templates: 0,
            first_unknown_template: None,
            pcr: None,
            banks: BTreeMap::new(),
            pcrs: BTreeMap::new(),
            boot_aggregate: boot_aggregate_name(&BootAggregate::NotCompared),
            key: None,
            reset_count: None,
            restart_count: None,
            clock: None,
            basis: Vec::new(),
        };
        let appraisal = match appraisal {
            Ok(appraisal) => appraisal,
            Err(reason) => {
                answer.reason = Some(reason.clone());
                return answer;
            }
        };
        if appraisal.verdict == Verdict::Pass {
            answer.verdict = "pass";
            answer.basis = basis(appraisal);
        }
        let values = |state: &BankPcrs| {
            state.values().map(|(pcr, value)| (pcr, value.to_string())).collect()
        };
        let banks = || appraisal.banks.iter();
        answer.records = appraisal.records;
        answer.excess = appraisal.excess;
        answer.reason = appraisal.reason.as_ref().map(ToString::to_string);
        answer.violations = appraisal.violations;
        answer.unproven = appraisal.unprotected.not_quoted;
        answer.unproven_pcrs = appraisal.unprotected.not_quoted_pcrs.iter().collect();
        answer.unknown_templates = appraisal.unprotected.unknown_templates;
        answer.first_unknown_template = appraisal.unprotected.first_unknown_template;
        answer.pcr = appraisal.pcr;
        answer.banks = banks().map(|s| (s.bank().name(), s.extend_kind().name())).collect();
        answer.pcrs = banks().map(|state| (state.bank().name(), values(state))).collect();
        answer.boot_aggregate = boot_aggregate_name(&appraisal.boot_aggregate);
        answer.key = Some(appraisal.key.to_string());
        answer.reset_count = Some(appraisal.clock.reset_count);
        answer.restart_count = Some(appraisal.clock.restart_count);
        answer.clock = Some(appraisal.clock.clock);
        answer
    }

    /// Whether the verdict is positive.
    pub fn passed(&self) -> bool {
        self.verdict == "pass"
    }

    /// For people.
    pub fn text(&self, out: &Output) -> String {
        if let Some(reason) = &self.reason {
            return format!("{}: {reason}", out.paint(Tone::Bad, self.verdict));
        }
        let Answer { records, excess, from, violations, .. } = self;
        let mut text = format!(
            "{}: the quote covers the first {records} records (this round began with index {from}), \
             {violations} violations; {excess} records came after it",
            out.paint(Tone::Good, self.verdict)
        );
        for line in &self.basis {
            text += &format!("\n      {line}");
        }
        text
    }
}

fn basis(appraisal: &Appraisal) -> Vec<String> {
    let mut lines = Vec::new();
    for state in appraisal.banks.iter().filter(|state| state.values().next().is_some()) {
        let pcrs: Vec<String> = state.values().map(|(pcr, _)| pcr.to_string()).collect();
        let how = how(state.extend_kind());
        lines.push(format!("proven by PCR {} of bank {}, {how}", pcrs.join(", "), state.bank()));
    }
    let clock = &appraisal.clock;
    lines.push(format!(
        "quoted with key {}, TPM reset count {}, restart count {}",
        appraisal.key, clock.reset_count, clock.restart_count
    ));
    lines.push(boot_aggregate(&appraisal.boot_aggregate));
    let unprotected = &appraisal.unprotected;
    if unprotected.not_quoted > 0 {
        let pcrs = match unprotected.not_quoted_pcrs {
            none if none.is_empty() => "a PCR that no TPM has".to_owned(),
            pcrs => format!("PCR {pcrs}, and the quote says nothing about them: quote it"),
        };
        lines.push(format!("not proven: {} name {pcrs}", count(unprotected.not_quoted, "record")));
    }
    if unprotected.violations > 0 {
        let violations = count(unprotected.violations, "violation");
        lines.push(format!("not proven: what {violations} of this round name; their number is"));
    }
    if let Some(first) = unprotected.first_unknown_template {
        let records = count(unprotected.unknown_templates, "record");
        lines.push(format!(
            "not protected: names of templates; {records} of this round have one that is not known \
             (the first is record {first}; imastage check)"
        ));
    }
    lines
}

fn how(extend: Extend) -> &'static str {
    match extend {
        Extend::Own => "extended with its own hash",
        Extend::Sha1Padded => "extended with zero-padded SHA-1: no stronger than SHA-1",
        Extend::Sha1PaddedViolations => {
            "extended with zero-padded SHA-1, violations too (a kernel before 5.8): no stronger than \
             SHA-1"
        }
    }
}

fn boot_aggregate(found: &BootAggregate) -> String {
    let quote = |bank: &Bank| match bank {
        Bank::Sha1 => "sha1:0-7".to_owned(),
        bank => format!("{bank}:0-9"),
    };
    match found {
        BootAggregate::Matches(bank) => {
            format!("boot_aggregate is the digest of the quoted PCRs {}", quote(bank))
        }
        BootAggregate::NotQuoted(bank) => format!(
            "boot_aggregate was not compared: the quote does not cover {} (--pcr 0-9)",
            quote(bank)
        ),
        BootAggregate::Overwritten(pcrs) => format!(
            "boot_aggregate cannot be compared: the list's records extend PCR {pcrs}, of which it is \
             a digest"
        ),
        _ => "boot_aggregate was not compared: the list does not begin with one of a known hash"
            .to_owned(),
    }
}

fn boot_aggregate_name(found: &BootAggregate) -> &'static str {
    match found {
        BootAggregate::Matches(_) => "matches",
        BootAggregate::NotQuoted(_) => "not-quoted",
        BootAggregate::Overwritten(_) => "overwritten",
        BootAggregate::Absent => "absent",
        _ => "not-compared",
    }
}

fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
