//! `imastage doctor`: examines a machine and prints what was found.

use std::{fmt::Write as _, path::PathBuf};

use ima_log::Printable;
use imastage_doctor::{Examination, Finding, Severity, examine};
use imastage_tpm::Endpoint;
use serde::Serialize;

use crate::{
    commands::state_dir,
    config::load_run,
    exit::{Fail, Failure, Outcome},
    output::{Output, Tone},
};

/// Examine a machine before use: kernel, list, TPM, agents, state directory, permissions.
///
/// Reports what was found, why it matters and how to fix it. Changes nothing; keeps the list's
/// files open only while it reads them. Exit code 1 if there is a problem; 3 if there is none, but
/// a check was not possible.
#[derive(clap::Args)]
#[command(after_help = crate::examples::DOCTOR)]
pub struct Args {
    /// Take --source, --state, --view and --tpm from this configuration of `imastage run` unless
    /// they are given here.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The directory with the list's files [default: the kernel's, /sys/kernel/security/ima].
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
    /// The service's state directory [default: /var/lib/imastage as root, else
    /// ~/.local/state/imastage].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The mount point of the view, which agents read [default: /run/imastage/ima].
    #[arg(long, value_name = "DIR")]
    view: Option<PathBuf>,
    /// The TPM that the list extends: a device, `unix:PATH`, `tcp:HOST:PORT` or `none` [default:
    /// the sandbox's own, or /dev/tpmrm0].
    #[arg(long, value_name = "TPM")]
    tpm: Option<String>,
    /// Examine the files below this directory instead of /.
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    root: PathBuf,
}

/// Where the packaged service mounts its view.
const VIEW: &str = "/run/imastage/ima";

/// Where what was found begins, and where what to do about it.
const FOUND: usize = 9;
const ADVICE: usize = 14;

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    problems: usize,
    unknown: usize,
    warnings: usize,
    findings: &'a [Finding],
}

/// Runs `imastage doctor`.
pub fn run(mut args: Args, out: &Output) -> Result<Outcome, Failure> {
    if let Some(path) = args.config.take() {
        let configured = load_run(&path).map_err(Failure::input)?.examined();
        if args.source.is_none() {
            args.source = configured.source.map_err(|why| {
                let path = path.display();
                Failure::input(format!(
                    "{path}: {why}; give the directory of its files with --source"
                ))
            })?;
        }
        args.state = args.state.or(configured.state);
        args.view = args.view.or(configured.view);
        args.tpm = args.tpm.or(configured.tpm);
    }
    let is_this_machine = args.root.as_os_str() == "/";
    let tpm = match args.tpm.as_deref() {
        Some("none") => None,
        Some(tpm) => Some(tpm.parse::<Endpoint>().input("--tpm")?),
        None => match &args.source {
            Some(source) => imastage_sandbox::tpm_of(source),
            None => Endpoint::system().filter(|_| is_this_machine),
        },
    };
    let findings = examine(&Examination {
        root: args.root,
        source: args.source,
        state: state_dir(args.state)?,
        view: args.view.unwrap_or_else(|| PathBuf::from(VIEW)),
        tpm,
    });
    let number = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let (problems, unknown) = (number(Severity::Problem), number(Severity::Unknown));
    let warnings = number(Severity::Warning);
    let report = Report { problems, unknown, warnings, findings: &findings };
    out.answer(&report, text(&report, out))?;
    match (problems, unknown) {
        (0, 0) => Ok(Outcome::Fine),
        (0, _) => Err(Failure::environment(format!(
            "{} could not be looked at, as said above; is this root?",
            things(unknown, "thing")
        ))),
        _ => Ok(Outcome::EvidenceSaysNo),
    }
}

fn text(report: &Report<'_>, out: &Output) -> String {
    let mut text = String::new();
    for finding in report.findings {
        let (word, tone) = match finding.severity {
            Severity::Problem => ("problem", Tone::Bad),
            Severity::Unknown => ("unknown", Tone::Bad),
            Severity::Warning => ("warning", Tone::Strong),
            Severity::Note => ("note", Tone::Dim),
            Severity::Ok => ("ok", Tone::Good),
        };
        let padded = format!("{word:<7}");
        let label = out.paint(tone, padded);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{label}  {}", wrapped(&finding.found, FOUND));
        if !finding.why.is_empty() {
            let _ = writeln!(text, "         why: {}", wrapped(&finding.why, ADVICE));
        }
        if !finding.fix.is_empty() {
            let _ = writeln!(text, "         fix: {}", wrapped(&finding.fix, ADVICE));
        }
        for line in &finding.lines {
            let _ = writeln!(text, "              {}", Printable::new(line));
        }
    }
    let verdict = match (report.problems, report.unknown, report.warnings) {
        (0, 0, 0) => out.paint(Tone::Good, "ready"),
        (0, 0, warnings) => {
            out.paint(Tone::Good, format!("ready; {}", things(warnings, "warning")))
        }
        (problems, unknown, warnings) => {
            let unknown = if unknown == 0 { String::new() } else { format!(", {unknown} unknown") };
            let text = format!(
                "{}{unknown}, {}",
                things(problems, "problem"),
                things(warnings, "warning")
            );
            out.paint(Tone::Bad, text)
        }
    };
    text + &verdict
}

fn things(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// Broken into lines that fit 80 columns, of which all but the first are indented.
fn wrapped(text: &str, indent: usize) -> String {
    let mut lines = String::new();
    let mut column = indent;
    for word in Printable::new(text).to_string().split_whitespace() {
        let len = word.chars().count();
        if column > indent && column + 1 + len > 80 {
            lines.push('\n');
            lines.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else if column > indent {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += len;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_80_columns_and_lose_no_word() {
        let text = "a word and another ".repeat(20);
        let lines = format!("         why: {}", wrapped(&text, ADVICE));
        assert!(lines.lines().all(|line| line.len() <= 80) && lines.lines().count() > 4, "{lines}");
        let words: Vec<&str> = lines.split_whitespace().skip(1).collect();
        assert_eq!(words, text.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn terminals_are_not_told_what_to_do() {
        assert_eq!(wrapped("a\u{1b}[31mb\n", FOUND), r"a\x1b[31mb\n");
    }
}
