//! `imastage check`: a list examined without a quote, its digests, signatures and boot_aggregate.

mod templates;

use std::{fmt::Write as _, ops::ControlFlow, path::PathBuf};

use ima_log::{Event, FieldKind, Printable, Record, SigningKey, VerifyError, check_boot_aggregate};
use imastage_verifier::PcrValues;
use serde::Serialize;

use crate::{
    commands::evidence_files::read_pcrs,
    exit::{Fail, Failure, Outcome},
    input::List,
    output::{Output, Tone},
};

/// Check a list without a quote: every template digest and, on request, signatures and
/// boot_aggregate. Exit code 1 if a check fails.
///
/// A PCR protects neither a record's template name nor the content of a violation. With --key every
/// record must therefore have a known template, and a record whose template has no signature field
/// must not carry a signature, which would not be verified. Records of unknown templates are
/// reported without --key, too.
///
/// JSON: `records`, `violations`; `wrong` digests, the `first` of them; `signed`, `refused` and
/// `unsigned` records, `appended` (with an appended signature only, which is not verified), the first
/// `unverified` and with --unsigned `unsigned_records`; `unknown_templates`, the first
/// `of_unknown_template`; `relabelled`, the first `relabelled_records`; `aggregates` compared, what is
/// wrong in `boot_aggregate`, what they are over in `aggregated`, `late` ones (boot_aggregate_late), and
/// `called_boot_aggregate`: files of that name. Lists end at 1000 records.
#[derive(clap::Args)]
#[command(after_help = crate::examples::CHECK)]
pub struct Args {
    /// Verify file signatures with this key: a public key or an X.509 certificate, PEM or DER; may be
    /// given more than once.
    #[arg(long = "key", value_name = "FILE")]
    keys: Vec<PathBuf>,
    /// With --key: list the records without a signature.
    #[arg(long, requires = "keys")]
    unsigned: bool,
    /// With --key: accept records of this unknown template; may be given more than once.
    #[arg(long = "allow-template", value_name = "NAME", requires = "keys")]
    allowed: Vec<String>,
    /// Check boot_aggregate against these values of PCR 0 to 9: the output of tpm2_pcrread, its
    /// file (-F serialized -o) or `BANK INDEX HEX` lines.
    #[arg(long, value_name = "FILE")]
    pcrs: Option<PathBuf>,
    /// A measurement list (binary, ASCII, JSON lines or CEL, also in a gzip file), `-`, or a state
    /// directory.
    list: PathBuf,
}

/// What `--json` prints; the command's help tells what the members are.
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
    unverified: Vec<Problem>,
    /// How many others there are.
    refused: u64,
    /// Records without a signature, those with an appended one only included.
    unsigned: u64,
    /// Records that have no signature but an appended one, which is not verified.
    appended: u64,
    /// The first of the unsigned ones, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    unsigned_records: Option<Vec<Named>>,
    /// Records of templates that are not known, and the first of them.
    unknown_templates: u64,
    of_unknown_template: Vec<Unknown>,
    /// Records with a signature where their template has none, and the first of them.
    relabelled: u64,
    relabelled_records: Vec<Problem>,
    /// Records boot_aggregate that were compared.
    aggregates: u64,
    /// What is wrong with them.
    boot_aggregate: Vec<Problem>,
    /// The PCRs that the others are over.
    aggregated: Vec<Aggregated>,
    /// How many of the records are called boot_aggregate_late.
    late: u64,
    /// Records of files that are called boot_aggregate.
    called_boot_aggregate: Vec<Problem>,
}

#[derive(Serialize)]
struct Named {
    index: u64,
    name: Option<String>,
}

/// What is wrong with a record.
#[derive(Serialize)]
struct Problem {
    #[serde(flatten)]
    record: Named,
    why: String,
}

#[derive(Serialize)]
struct Unknown {
    #[serde(flatten)]
    record: Named,
    template: String,
}

#[derive(Serialize)]
struct Aggregated {
    index: u64,
    bank: &'static str,
    last_pcr: u32,
    /// "PCR 0 to 9 of bank sha256".
    #[serde(skip)]
    text: String,
    #[serde(skip)]
    odd: bool,
}

#[derive(Serialize)]
struct Wrong {
    index: u64,
    name: Option<String>,
    bank: &'static str,
    printed: String,
    computed: String,
}

/// How many records of a kind are named; a list all of whose records are wrong would fill the memory.
const NAMED: usize = 1000;

/// Runs `imastage check`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let mut answer = Answer::default();
    let mut keys = Vec::new();
    for path in &args.keys {
        let file = std::fs::read(path).input(path.display())?;
        keys.push(SigningKey::parse(&file).input(path.display())?);
    }
    if args.unsigned {
        answer.unsigned_records = Some(Vec::new());
    }
    let pcrs = args.pcrs.as_deref().map(|path| read_pcrs(path, None)).transpose()?;
    let mut of_unknown_template = 0;
    List::open(&args.list)?.each(0, |index, record| {
        answer.records += 1;
        answer.violations += u64::from(record.is_violation());
        answer.digest(index, record);
        if !keys.is_empty() {
            answer.signature(index, record, &keys);
        }
        if answer.template(index, record) {
            let allowed = args.allowed.iter().any(|name| name == record.template().name());
            of_unknown_template += u64::from(!allowed);
        }
        if record.event() == Some(Event::BootAggregate) {
            answer.late += u64::from(record.event_name() == Some(b"boot_aggregate_late"));
            if let Some(pcrs) = &pcrs {
                answer.aggregate(index, record, pcrs);
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    out.answer(&answer, text(&answer, &args, of_unknown_template, out))?;
    let mut problems = answer.wrong + answer.refused + answer.boot_aggregate.len() as u64;
    if !args.keys.is_empty() {
        problems += of_unknown_template + answer.relabelled;
    }
    Ok(if problems == 0 { Outcome::Fine } else { Outcome::EvidenceSaysNo })
}

impl Answer {
    fn digest(&mut self, index: u64, record: &Record<'_>) {
        if record.digest_is_right() {
            return;
        }
        self.wrong += 1;
        let bank = record.format().bank;
        push(&mut self.first, || Wrong {
            index,
            name: named(index, record).name,
            bank: bank.name(),
            printed: record.printed_digest().to_string(),
            computed: record.template_digest(bank).to_string(),
        });
    }

    fn signature(&mut self, index: u64, record: &Record<'_>, keys: &[SigningKey]) {
        match record.verify_signature(keys) {
            Ok(_) => self.signed += 1,
            Err(VerifyError::Unsigned) => {
                self.unsigned += 1;
                let appended = record
                    .fields()
                    .any(|f| f.kind == Some(FieldKind::Modsig) && !f.bytes.is_empty());
                self.appended += u64::from(appended);
                if let Some(records) = &mut self.unsigned_records {
                    push(records, || named(index, record));
                }
            }
            Err(error) => {
                self.refused += 1;
                push(&mut self.unverified, || problem(index, record, error));
            }
        }
    }

    /// Looks at what the template is called; says whether that is not known.
    fn template(&mut self, index: u64, record: &Record<'_>) -> bool {
        if let Some(field) = templates::hidden_signature(record) {
            self.relabelled += 1;
            push(&mut self.relabelled_records, || {
                let name = record.template().name();
                let why = format!(
                    "field {field} holds a file signature, which template {name} has not: it was \
                     relabelled, and nothing verifies the signature"
                );
                problem(index, record, why)
            });
        }
        let unknown = templates::is_unknown(record);
        if unknown {
            self.unknown_templates += 1;
            push(&mut self.of_unknown_template, || Unknown {
                record: named(index, record),
                template: record.template().name().to_owned(),
            });
        }
        unknown
    }

    /// After a kexec there is another one, over PCRs that are the same.
    fn aggregate(&mut self, index: u64, record: &Record<'_>, pcrs: &PcrValues) {
        match check_boot_aggregate(record, |bank, pcr| pcrs.get(bank, pcr)) {
            Ok(found) => {
                self.aggregates += 1;
                push(&mut self.aggregated, || Aggregated {
                    index,
                    bank: found.bank.name(),
                    last_pcr: found.last,
                    text: found.to_string(),
                    odd: found.is_of_mid_2020(),
                });
            }
            // A kernel's own is no violation and has no signature; and it begins the list.
            Err(_) if index > 0 && templates::is_of_a_file(record) => {
                push(&mut self.called_boot_aggregate, || {
                    problem(index, record, "a file of this name, not what a kernel records at boot")
                });
            }
            Err(error) => {
                self.aggregates += 1;
                push(&mut self.boot_aggregate, || problem(index, record, error));
            }
        }
    }
}

fn push<T>(list: &mut Vec<T>, element: impl FnOnce() -> T) {
    if list.len() < NAMED {
        list.push(element());
    }
}

fn named(index: u64, record: &Record<'_>) -> Named {
    Named { index, name: record.likely_name().map(|name| String::from_utf8_lossy(name).into()) }
}

fn problem(index: u64, record: &Record<'_>, why: impl std::fmt::Display) -> Problem {
    Problem { record: named(index, record), why: why.to_string() }
}

fn text(answer: &Answer, args: &Args, of_unknown_template: u64, out: &Output) -> String {
    let mut text = digests_text(answer, out);
    // Writing to a String cannot fail.
    if !args.keys.is_empty() {
        let tone = if answer.refused == 0 { Tone::Good } else { Tone::Bad };
        let words = format!("{} signatures verified, {} refused", answer.signed, answer.refused);
        let _ =
            write!(text, "\n{}, {} records without one", out.paint(tone, words), answer.unsigned);
        if answer.appended > 0 {
            let appended = answer.appended;
            let _ = write!(text, " ({appended} have an appended one, which is not verified)");
        }
    }
    if answer.unknown_templates > 0 {
        let fails = !args.keys.is_empty() && of_unknown_template > 0;
        let words = format!(
            "{} records of templates that are not known; template names are not protected by the PCR",
            answer.unknown_templates
        );
        let _ =
            write!(text, "\n{}", out.paint(if fails { Tone::Bad } else { Tone::Strong }, words));
        if fails {
            text += " (if they are right: --allow-template NAME)";
        }
        for Unknown { record, template } in &answer.of_unknown_template {
            let template = Printable::new(template);
            let _ = write!(text, "\n{}: template {template}", heading(record));
        }
        text += &more(answer.unknown_templates, answer.of_unknown_template.len());
    }
    if args.pcrs.is_some() && answer.boot_aggregate.is_empty() {
        let words = match answer.aggregates {
            0 => out.paint(Tone::Dim, "there is no boot_aggregate"),
            _ => out.paint(Tone::Good, "boot_aggregate is that of the PCRs"),
        };
        let _ = write!(text, "\n{words}");
    }
    for Aggregated { index, text: pcrs, .. } in answer.aggregated.iter().filter(|found| found.odd) {
        let _ = write!(text, "\nrecord {index}: boot_aggregate is that of {pcrs}");
    }
    if args.pcrs.is_some() && answer.late > 0 {
        text += "\nboot_aggregate_late: the kernel found its TPM late";
    }
    for (problems, count) in [
        (&answer.unverified, answer.refused),
        (&answer.relabelled_records, answer.relabelled),
        (&answer.boot_aggregate, 0),
        (&answer.called_boot_aggregate, 0),
    ] {
        for Problem { record, why } in problems {
            let _ = write!(text, "\n{}: {}", heading(record), Printable::new(why));
        }
        text += &more(count, problems.len());
    }
    if let Some(records) = &answer.unsigned_records {
        for record in records {
            let _ = write!(text, "\n{}: no signature", heading(record));
        }
        text += &more(answer.unsigned, records.len());
    }
    text
}

/// `record 423 (/usr/bin/x)`.
fn heading(record: &Named) -> String {
    match &record.name {
        Some(name) => format!("record {} ({})", record.index, Printable::new(name)),
        None => format!("record {}", record.index),
    }
}

fn more(count: u64, named: usize) -> String {
    match count.saturating_sub(named as u64) {
        0 => String::new(),
        more => format!("\n... and {more} more"),
    }
}

fn digests_text(answer: &Answer, out: &Output) -> String {
    let mut text = format!("{} records, {} violations: ", answer.records, answer.violations);
    if answer.wrong == 0 {
        text += &out.paint(Tone::Good, "all template digests match");
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
    text += &more(answer.wrong, answer.first.len());
    text
}
