//! What is examined and what is found: plain data.

use std::path::PathBuf;

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

/// A size for people: bytes up to a kilobyte, then one decimal.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if n < 1000 {
        return format!("{n} bytes");
    }
    // Precise enough for one decimal.
    let mut size = n as f64 / 1000.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while size >= 999.95 {
        let Some(next) = units.next() else { break };
        size /= 1000.0;
        unit = Some(next);
    }
    format!("{size:.1} {}", unit.unwrap_or(&""))
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

    #[test]
    fn sizes_are_short() {
        let cases = [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (u64::MAX, "18446.7 PB"),
        ];
        for (n, text) in cases {
            assert_eq!(bytes(n), text);
        }
    }
}
