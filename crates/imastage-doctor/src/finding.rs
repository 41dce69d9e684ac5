//! The subject and the findings of an examination: plain data.

use std::path::PathBuf;

use bytesize::ByteSize;
use imastage_tpm::Endpoint;
use serde::Serialize;

/// The subject of an examination.
#[derive(Clone, Debug)]
pub struct Examination {
    /// The root of the machine's files: `/`, except in tests and for images of other machines.
    pub root: PathBuf,
    /// The directory with the list's files; `None` for the kernel's own.
    pub source: Option<PathBuf>,
    /// The service's state directory, which need not exist yet.
    pub state: PathBuf,
    /// The present or future mount point of the view, which agents should read.
    pub view: PathBuf,
    /// The TPM to use if sysfs does not show PCRs.
    pub tpm: Option<Endpoint>,
}

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The stable name of the check: `kernel.dialect`.
    pub check: &'static str,
    /// The severity.
    pub severity: Severity,
    /// The finding as text.
    pub found: String,
    /// The reason that it matters; empty if nothing is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// The remedy; empty if nothing is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
    /// Exact lines to write to a file or to run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
}

/// The severity of a finding, the most severe first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The service cannot work, or evidence will be lost.
    Problem,
    /// The check could not be made.
    Unknown,
    /// The service works, with a disadvantage.
    Warning,
    /// Information.
    Note,
    /// No objection.
    Ok,
}

impl Finding {
    pub(crate) fn new(
        check: &'static str,
        severity: Severity,
        found: impl Into<String>,
    ) -> Finding {
        Finding {
            check,
            severity,
            found: found.into(),
            why: String::new(),
            fix: String::new(),
            lines: Vec::new(),
        }
    }

    pub(crate) fn why(self, why: impl Into<String>) -> Finding {
        Finding { why: why.into(), ..self }
    }

    pub(crate) fn fix(self, fix: impl Into<String>) -> Finding {
        Finding { fix: fix.into(), ..self }
    }

    pub(crate) fn lines(self, lines: impl IntoIterator<Item = String>) -> Finding {
        Finding { lines: lines.into_iter().collect(), ..self }
    }
}

/// An agent is configured to read the kernel's files.
pub(crate) fn pointing(check: &'static str, severity: Severity, found: String) -> Finding {
    let why = if severity == Severity::Problem {
        "while it reads nobody can stage, and what was drained is missing in what it reads: its \
         verifier fails"
    } else {
        "that works on this kernel; on one that deletes records its verifier would fail"
    };
    Finding::new(check, severity, found).why(why)
}

/// A size for people, in decimal units: `1.2 MB`.
pub(crate) fn bytes(n: u64) -> String {
    ByteSize(n).display().si().to_string()
}

/// A number of things.
pub(crate) fn count(n: u64, one: &str) -> String {
    match n {
        1 => format!("1 {one}"),
        _ => format!("{n} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first() {
        let mut order = [Severity::Ok, Severity::Unknown, Severity::Problem, Severity::Note];
        order.sort();
        assert_eq!(order, [Severity::Problem, Severity::Unknown, Severity::Note, Severity::Ok]);
    }
}
