use std::{fmt::Write as _, ops::ControlFlow, path::PathBuf};

use serde::Serialize;

use crate::{
    exit::{Failure, Outcome},
    input::List,
    output::{Output, Tone},
};

/// Check that every template digest is the one of its template data. Exits with 1 if one is not.
#[derive(clap::Args)]
pub struct Args {
    /// A measurement list (binary, JSON lines or CEL), `-`, or a state directory.
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
        Ok(ControlFlow::Continue(()))
    })?;
    out.answer(&answer, text(&answer, out))?;
    Ok(if answer.wrong == 0 { Outcome::Fine } else { Outcome::EvidenceSaysNo })
}

fn text(answer: &Answer, out: &Output) -> String {
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
