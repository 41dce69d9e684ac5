//! What is examined and what is found: plain data.

use std::path::PathBuf;

use bytesize::ByteSize;
use imastage_tpm::Endpoint;
use serde::Serialize;

/// What is to be examined.
#[derive(Clone, Debug)]
pub struct Examination {
    /// Where the machine's files begin; `/` but for tests and images of other machines.
    pub root: PathBuf,
    /// The directory with the list's files; `None` for the kernel's own.
    pub source: Option<PathBuf>,
    /// The service's state directory, which need not be there yet.
    pub state: PathBuf,
    /// Where the view is or will be mounted: what agents are to be pointed at.
    pub view: PathBuf,
    /// The TPM to ask where sysfs does not show PCRs.
    pub tpm: Option<Endpoint>,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, a name that does not change: `kernel.dialect`.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// Why it matters; empty where nothing is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// What to do; empty where nothing is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
    /// Lines to write or to run, exactly like this.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
}

/// How bad a finding is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The service cannot do its work, or evidence will be lost.
    Problem,
    /// It could not be looked at.
    Unknown,
    /// It works, but not as well as it could.
    Warning,
    /// Good to know.
    Note,
    /// As it should be.
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

/// An agent is pointed at the kernel's files.
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
