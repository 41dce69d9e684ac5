use std::{fmt::Write as _, ops::ControlFlow, path::PathBuf};

use ima_log::{Event, SigningKey, VerifyError, check_boot_aggregate};
use serde::Serialize;

use crate::{
    commands::evidence_files::read_pcrs,
    exit::{Fail, Failure, Outcome},
    input::List,
    output::{Output, Tone},
};

/// Check a list without a quote: every template digest, and if asked, signatures and boot_aggregate.
/// Exits with 1 if anything is wrong.
#[derive(clap::Args)]
pub struct Args {
    /// Verify file signatures with this key: a public key or an X.509 certificate, PEM or DER; may be
    /// given more than once.
    #[arg(long = "key", value_name = "FILE")]
    keys: Vec<PathBuf>,
    /// Check boot_aggregate against these values of PCR 0 to 9: what tpm2_pcrread prints, its file
    /// (-F serialized -o) or `BANK INDEX HEX` lines.
    #[arg(long, value_name = "FILE")]
    pcrs: Option<PathBuf>,
    /// A measurement list (binary, ASCII, JSON lines or CEL), `-`, or a state directory.
    list: PathBuf,
}

#[derive(Default, Serialize)]
struct Answer {
    records: u64,
    violations: u64,
    /// How many digests are wrong.
    wrong: u64,
    /// The first of them.
    first: Vec<Wrong>,
    /// File signatures that one of the keys made.
    signed: u64,
    /// The first of the others, and why they are not accepted.
    unverified: Vec<Unverified>,
    /// How many others there are.
    refused: u64,
    /// Records boot_aggregate that were compared.
    aggregates: u64,
    /// What is wrong with them.
    boot_aggregate: Vec<Unverified>,
}

#[derive(Serialize)]
struct Unverified {
    index: u64,
    why: String,
}

#[derive(Serialize)]
struct Wrong {
    index: u64,
    name: Option<String>,
    bank: &'static str,
    printed: String,
    computed: String,
}

/// How many wrong records are named; a list whose every digest is wrong would fill the memory.
const NAMED: usize = 1000;

/// Runs `imastage check`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let mut answer = Answer::default();
    let mut keys = Vec::new();
    for path in &args.keys {
        let file = std::fs::read(path).input(path.display())?;
        keys.push(SigningKey::parse(&file).input(path.display())?);
    }
    let pcrs = args.pcrs.as_deref().map(|path| read_pcrs(path, None)).transpose()?;
    List::open(&args.list)?.each(0, |index, record| {
        answer.records += 1;
        answer.violations += u64::from(record.is_violation());
        if !record.digest_is_right() {
            answer.wrong += 1;
            if answer.first.len() < NAMED {
                let bank = record.format().bank;
                let name = record.event_name().map(|name| String::from_utf8_lossy(name).into());
                answer.first.push(Wrong {
                    index,
                    name,
                    bank: bank.name(),
                    printed: record.printed_digest().to_string(),
                    computed: record.template_digest(bank).to_string(),
                });
            }
        }
        if !keys.is_empty() {
            match record.verify_signature(&keys) {
                Ok(_) => answer.signed += 1,
                Err(VerifyError::Unsigned) => {}
                Err(error) => {
                    answer.refused += 1;
                    if answer.unverified.len() < NAMED {
                        answer.unverified.push(Unverified { index, why: error.to_string() });
                    }
                }
            }
        }
        // After a kexec there is another one, over PCRs that are the same.
        if let Some(pcrs) = &pcrs
            && record.event() == Some(Event::BootAggregate)
        {
            answer.aggregates += 1;
            if let Err(error) = check_boot_aggregate(record, |bank, pcr| pcrs.get(bank, pcr))
                && answer.boot_aggregate.len() < NAMED
            {
                answer.boot_aggregate.push(Unverified { index, why: error.to_string() });
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    out.answer(&answer, text(&answer, &args, out))?;
    let fine = answer.wrong + answer.refused == 0 && answer.boot_aggregate.is_empty();
    Ok(if fine { Outcome::Fine } else { Outcome::EvidenceSaysNo })
}

fn text(answer: &Answer, args: &Args, out: &Output) -> String {
    let mut text = digests_text(answer, out);
    if !args.keys.is_empty() {
        let tone = if answer.refused == 0 { Tone::Good } else { Tone::Bad };
        let words = format!("{} signatures verified, {} refused", answer.signed, answer.refused);
        // Writing to a String cannot fail.
        let _ = write!(text, "\n{}", out.paint(tone, words));
    }
    if args.pcrs.is_some() && answer.boot_aggregate.is_empty() {
        let words = match answer.aggregates {
            0 => out.paint(Tone::Dim, "there is no boot_aggregate"),
            _ => out.paint(Tone::Good, "boot_aggregate is that of the PCRs"),
        };
        let _ = write!(text, "\n{words}");
    }
    for Unverified { index, why } in answer.unverified.iter().chain(&answer.boot_aggregate) {
        let _ = write!(text, "\nrecord {index}: {why}");
    }
    text
}

fn digests_text(answer: &Answer, out: &Output) -> String {
    let mut text = format!("{} records, {} violations: ", answer.records, answer.violations);
    if answer.wrong == 0 {
        text += &out.paint(Tone::Good, "every digest is the one of its data");
        return text;
    }
    text += &out.paint(Tone::Bad, format!("{} wrong digests", answer.wrong));
    for wrong in &answer.first {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\nrecord {} {:?}: {} {}, its data gives {}",
            wrong.index,
            wrong.name.as_deref().unwrap_or_default(),
            wrong.bank,
            wrong.printed,
            wrong.computed
        );
    }
    let unnamed = answer.wrong - answer.first.len() as u64;
    if unnamed > 0 {
        let _ = write!(text, "\n... and {unnamed} more");
    }
    text
}
