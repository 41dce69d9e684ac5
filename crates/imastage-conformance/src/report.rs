use std::fmt::Display;

use serde::Serialize;

use crate::target::Trouble;

/// The cases of one part of the interface.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// The part of the rules, by its number.
    pub rule: &'static str,
    /// What it is about.
    pub title: &'static str,
    /// In the order in which they were run.
    pub cases: Vec<Case>,
}

/// One thing that was tried.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// What was done, in which state.
    pub name: String,
    /// How it went.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// How a case went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// As expected.
    Passed,
    /// Otherwise.
    Failed {
        /// What the interface has.
        expected: String,
        /// What was seen.
        got: String,
    },
    /// It cannot be tried here.
    Skipped {
        /// Why.
        why: String,
    },
}

/// How many cases went how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// As expected.
    pub passed: usize,
    /// Otherwise.
    pub failed: usize,
    /// Not tried.
    pub skipped: usize,
}

impl Group {
    /// How its cases went.
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

/// Where the cases of a group are noted.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) cases: Vec<Case>,
}

/// How often a case is tried that needs a list which does not grow meanwhile.
const ATTEMPTS: usize = 20;

impl Recorder {
    /// Notes a case.
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

    /// Notes that something holds, or what was seen instead.
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

    /// Notes a case in which a record that others add at the wrong moment changes what is seen:
    /// tried from the beginning until it is as expected, or often enough.
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

    /// Notes a case that cannot be tried here.
    pub(crate) fn skip(&mut self, name: impl Into<String>, why: impl Display) {
        let verdict = Verdict::Skipped { why: why.to_string() };
        self.cases.push(Case { name: name.into(), verdict });
    }

    /// Notes that the rest of the group could not be run.
    pub(crate) fn broke_off(&mut self, trouble: &Trouble) {
        let verdict = Verdict::Failed { expected: "all steps".into(), got: trouble.to_string() };
        self.cases.push(Case { name: "the group was run to its end".into(), verdict });
    }
}
