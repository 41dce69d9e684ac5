//! Results in the format of the kernel's own tests.

use std::fmt::{self, Write};

use crate::{
    cases::groups,
    options::Options,
    report::{Group, Verdict},
};

/// Prints groups in the Kernel Test Anything Protocol, version 1: each group is a test, its cases
/// are its subtests (kernel documentation, dev-tools/ktap).
#[derive(Debug, Default)]
pub struct Ktap {
    groups: usize,
}

impl Ktap {
    /// The first lines of the output: version and plan, for the groups that `options` select.
    pub fn head(options: &Options<'_>) -> String {
        format!("KTAP version 1\n1..{}", groups(options).count())
    }

    /// The lines of the next group, without the last newline.
    pub fn group(&mut self, group: &Group) -> String {
        self.groups += 1;
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _: fmt::Result = self.write(group, &mut text);
        text
    }

    fn write(&self, group: &Group, out: &mut String) -> fmt::Result {
        let Group { rule, title, kernel_bug, cases } = group;
        writeln!(out, "  KTAP version 1")?;
        writeln!(out, "  # Subtest: {rule} {title}")?;
        writeln!(out, "  1..{}", cases.len())?;
        for (at, case) in cases.iter().enumerate() {
            // A # in a name would start a directive.
            let (number, name) = (at + 1, case.name.replace('#', "."));
            match &case.verdict {
                Verdict::Passed => writeln!(out, "  ok {number} {name}")?,
                Verdict::Failed { expected, got } => {
                    writeln!(out, "  # expected {expected}, got {got}")?;
                    if let Some(bug) = kernel_bug {
                        writeln!(out, "  # kernel bug: {bug}")?;
                    }
                    writeln!(out, "  not ok {number} {name}")?;
                }
                Verdict::Skipped { why } => writeln!(out, "  ok {number} {name} # SKIP {why}")?,
            }
        }
        let counts = group.counts();
        let verdict = if counts.failed == 0 { "ok" } else { "not ok" };
        write!(out, "{verdict} {} {rule} {title}", self.groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Case;

    #[test]
    fn groups_are_tests_and_cases_subtests() {
        let case = |name: &str, verdict| Case { name: name.into(), verdict };
        let failed = Verdict::Failed { expected: "EBUSY".into(), got: "ok".into() };
        let skipped = Verdict::Skipped { why: "needs root".into() };
        let cases = vec![case("a", Verdict::Passed), case("b # c", failed), case("d", skipped)];
        let group = Group { rule: "1.2", title: "open", kernel_bug: None, cases };
        let mut ktap = Ktap::default();
        assert_eq!(
            ktap.group(&group),
            "  KTAP version 1\n  # Subtest: 1.2 open\n  1..3\n  ok 1 a\n  \
             # expected EBUSY, got ok\n  not ok 2 b . c\n  ok 3 d # SKIP needs root\nnot ok 1 1.2 open"
        );
        let fine = Group { rule: "1.3", title: "write", cases: Vec::new(), ..group };
        assert!(ktap.group(&fine).ends_with("\nok 2 1.3 write"));
        let failed = Verdict::Failed { expected: "ok".into(), got: "EBUSY".into() };
        let cases = vec![case("a", failed)];
        let bug = Group { rule: "1.9.1", title: "fork", kernel_bug: Some("lost lock"), cases };
        let text = ktap.group(&bug);
        let lines = "  # expected ok, got EBUSY\n  # kernel bug: lost lock\n  not ok 1 a\n";
        assert!(text.contains(lines), "{text}");
    }
}
