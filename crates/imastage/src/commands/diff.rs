//! `imastage diff`: compares two lists record by record.

use std::path::PathBuf;

use ima_log::{FieldKind, Record};
use serde::Serialize;

use crate::{
    exit::{Failure, Outcome},
    input::List,
    output::{Output, Tone},
};

/// Show the first record at which two lists differ, and whether one is a prefix of the other. Exits with 1 if they differ.
///
/// The lists may have different forms. Template digests are compared if both lists show those of
/// the same bank, otherwise the data that the digests are computed from.
#[derive(clap::Args)]
#[command(after_help = crate::examples::DIFF)]
pub struct Args {
    /// A measurement list (binary, ASCII, JSON lines or CEL, also in a gzip file), `-`, or a state
    /// directory.
    a: PathBuf,
    /// The other list.
    b: PathBuf,
}

#[derive(Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
enum Answer {
    /// All records are the same.
    Same { records: u64 },
    /// B goes on where A ends.
    AIsPrefix { records: u64, more: u64 },
    /// A goes on where B ends.
    BIsPrefix { records: u64, more: u64 },
    /// The records at `index` differ, and those before do not.
    Differs { index: u64, field: String, a: String, b: String },
}

/// Runs `imastage diff`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    if args.a.as_os_str() == "-" && args.b.as_os_str() == "-" {
        return Err(Failure::input("only one of the two lists can be standard input"));
    }
    let answer = compare(List::open(&args.a)?, List::open(&args.b)?)?;
    let text = match &answer {
        Answer::Same { records } => out.paint(Tone::Good, format!("same: {records} records")),
        Answer::AIsPrefix { records, more } => {
            format!("A is a prefix of B: {records} records are the same, then B has {more} more")
        }
        Answer::BIsPrefix { records, more } => {
            format!("B is a prefix of A: {records} records are the same, then A has {more} more")
        }
        Answer::Differs { index, field, a, b } => {
            let head = format!("the lists differ at record {index}, in its {field}");
            format!("{}\n  A {a}\n  B {b}", out.paint(Tone::Bad, head))
        }
    };
    out.answer(&answer, text)?;
    Ok(match answer {
        Answer::Same { .. } => Outcome::Fine,
        _ => Outcome::EvidenceSaysNo,
    })
}

fn compare(mut a: List, mut b: List) -> Result<Answer, Failure> {
    let mut records = 0;
    loop {
        match (a.next_record()?, b.next_record()?) {
            (None, None) => return Ok(Answer::Same { records }),
            (Some(_), None) => {
                return Ok(Answer::BIsPrefix { records, more: 1 + rest(&mut a)? });
            }
            (None, Some(_)) => {
                return Ok(Answer::AIsPrefix { records, more: 1 + rest(&mut b)? });
            }
            (Some((index, a)), Some((_, b))) => {
                if let Some((field, a, b)) = difference(&a, &b) {
                    return Ok(Answer::Differs { index, field, a, b });
                }
            }
        }
        records += 1;
    }
}

fn rest(list: &mut List) -> Result<u64, Failure> {
    let mut records = 0;
    while list.next_record()?.is_some() {
        records += 1;
    }
    Ok(records)
}

/// The first thing in which two records differ, by name, and what each has there.
fn difference(a: &Record<'_>, b: &Record<'_>) -> Option<(String, String, String)> {
    if a.as_bytes() == b.as_bytes() && a.format() == b.format() {
        return None;
    }
    let differ = |what: &str, a: String, b: String| (a != b).then(|| (what.to_owned(), a, b));
    differ("pcr", a.pcr().to_string(), b.pcr().to_string())
        .or_else(|| differ("template", a.template().name().into(), b.template().name().into()))
        .or_else(|| differ("violation", a.is_violation().to_string(), b.is_violation().to_string()))
        .or_else(|| field_difference(a, b))
        .or_else(|| {
            let same_bank = a.format().bank == b.format().bank;
            let (a, b) = (a.printed_digest().to_string(), b.printed_digest().to_string());
            if same_bank { differ("digest", a, b) } else { None }
        })
}

/// Fields are compared rather than the data they stand in, whose lengths have a byte order.
fn field_difference(a: &Record<'_>, b: &Record<'_>) -> Option<(String, String, String)> {
    let (mut of_a, mut of_b) = (a.fields(), b.fields());
    loop {
        let (a, b) = (of_a.next(), of_b.next());
        if a.is_none() && b.is_none() {
            return None;
        }
        if a != b {
            let kind = a.or(b).and_then(|field| field.kind);
            let show = |bytes: Option<&[u8]>| match (kind, bytes) {
                (_, None) => "nothing".to_owned(),
                (Some(FieldKind::N | FieldKind::NNg | FieldKind::XattrNames), Some(name)) => {
                    name.strip_suffix(&[0]).unwrap_or(name).escape_ascii().to_string()
                }
                (Some(FieldKind::DNg | FieldKind::DNgV2 | FieldKind::DModsig), Some(digest)) => {
                    match digest.iter().position(|byte| *byte == 0) {
                        Some(nul) => format!(
                            "{}{}",
                            digest[..nul].escape_ascii(),
                            hex::encode(&digest[nul + 1..])
                        ),
                        None => hex::encode(digest),
                    }
                }
                (_, Some(bytes)) => hex::encode(bytes),
            };
            let id = kind.map_or("data", FieldKind::id).to_owned();
            return Some((id, show(a.map(|a| a.bytes)), show(b.map(|b| b.bytes))));
        }
    }
}
