//! Groups, cases and verdicts, and the recorder that cases write them to.

use std::fmt::Display;

use serde::Serialize;

use crate::{lock::Locked, target::Trouble};

/// The cases of one part of the interface.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// The number of the rule.
    pub rule: &'static str,
    /// The title of the group.
    pub title: &'static str,
    /// The kernel bug that a failed case shows, if the group tests for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_bug: Option<&'static str>,
    /// The cases, in the order they were run.
    pub cases: Vec<Case>,
}

/// A group that can be run.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// The number of the rule.
    pub rule: &'static str,
    /// The title of the group.
    pub title: &'static str,
    /// The dialects in which it is run.
    pub dialects: Vec<String>,
    /// The option without which it is not run.
    pub option: Option<&'static str>,
}

/// One checked behaviour.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// The state of the list and the action.
    pub name: String,
    /// The outcome.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// The outcome of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// The result is the expected one.
    Passed,
    /// The result differs.
    Failed {
        /// The expected result.
        expected: String,
        /// The actual result.
        got: String,
    },
    /// The case cannot be run in this environment.
    Skipped {
        /// The reason.
        why: String,
    },
}

/// Number of cases by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// Skipped.
    pub skipped: usize,
}

impl Group {
    /// The number of its cases by outcome.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        counts.add(self);
        counts
    }
}

impl Counts {
    pub(crate) fn add(&mut self, group: &Group) {
        for case in &group.cases {
            *match case.verdict {
                Verdict::Passed => &mut self.passed,
                Verdict::Failed { .. } => &mut self.failed,
                Verdict::Skipped { .. } => &mut self.skipped,
            } += 1;
        }
    }
}

/// Why cases are not run on a locked list.
pub(crate) const LOCKED: &str = "the list is locked against writers";

/// Collects the cases of a group.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) cases: Vec<Case>,
}

/// Attempts at a case that fails if another program is measured meanwhile.
const ATTEMPTS: usize = 20;

impl Recorder {
    /// Records a case that passes if `got` equals `expected`.
    pub(crate) fn expect(
        &mut self,
        name: impl Into<String>,
        expected: impl Display,
        got: impl Display,
    ) {
        let (expected, got) = (expected.to_string(), got.to_string());
        let verdict =
            if expected == got { Verdict::Passed } else { Verdict::Failed { expected, got } };
        self.cases.push(Case { name: name.into(), verdict });
    }

    /// Records a case that passes if `holds`.
    pub(crate) fn holds(
        &mut self,
        name: impl Into<String>,
        holds: bool,
        expected: impl Display,
        got: impl Display,
    ) {
        let verdict = if holds {
            Verdict::Passed
        } else {
            Verdict::Failed { expected: expected.to_string(), got: got.to_string() }
        };
        self.cases.push(Case { name: name.into(), verdict });
    }

    /// Records a case whose result changes if another program is measured meanwhile: `attempt` is
    /// repeated until the result is the expected one, at most [`ATTEMPTS`] times.
    pub(crate) fn quiet(
        &mut self,
        name: impl Into<String>,
        expected: impl Display,
        mut attempt: impl FnMut() -> Result<String, Trouble>,
    ) -> Result<(), Trouble> {
        let expected = expected.to_string();
        let mut got = attempt()?;
        for _ in 1..ATTEMPTS {
            if got == expected {
                break;
            }
            got = attempt()?;
        }
        self.expect(name, expected, got);
        Ok(())
    }

    /// Records a case that cannot be run in this environment.
    pub(crate) fn skip(&mut self, name: impl Into<String>, why: impl Display) {
        let verdict = Verdict::Skipped { why: why.to_string() };
        self.cases.push(Case { name: name.into(), verdict });
    }

    /// Records that the list is locked after the cases. Failures that follow from the lock become
    /// skips; the first EBUSY remains, since it shows where the lock was lost.
    pub(crate) fn locked(&mut self, locked: &Locked) {
        let busy = |case: &Case| match &case.verdict {
            Verdict::Failed { got, .. } => got.contains("EBUSY"),
            _ => false,
        };
        let first = self.cases.iter().position(busy).map_or(self.cases.len(), |at| at + 1);
        for case in self.cases.iter_mut().skip(first) {
            if matches!(case.verdict, Verdict::Failed { .. }) {
                case.verdict = Verdict::Skipped { why: LOCKED.into() };
            }
        }
        let name = "the list can be opened for writing after these cases";
        self.expect(name, "ok", locked);
    }

    /// Records that the rest of the group could not be run.
    pub(crate) fn broke_off(&mut self, trouble: &Trouble) {
        let verdict = Verdict::Failed { expected: "all steps".into(), got: trouble.to_string() };
        self.cases.push(Case { name: "all steps of the group were run".into(), verdict });
    }
}
