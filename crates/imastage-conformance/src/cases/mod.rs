//! The cases, one module per part of the interface.

mod calls;
mod concurrent;
mod counters;
mod critical_data;
mod descriptors;
mod duplicates;
mod files;
mod going_down;
mod hazards;
mod open;
mod permissions;
mod position;
mod reads;
mod requests;
mod trim;
mod write;

use ima_list::Duplicates;
use ima_securityfs::Dialect;

use crate::{
    options::Options,
    report::{Listed, Recorder},
    target::{Target, Trouble},
};

pub(crate) type Cases = fn(&Target<'_>, &mut Recorder) -> Result<(), Trouble>;

/// A part of the interface.
pub(crate) struct Part {
    /// Its number, the same in all dialects.
    pub(crate) rule: &'static str,
    pub(crate) title: &'static str,
    pub(crate) cases: Cases,
    /// The kernel bug that a failed case shows.
    pub(crate) kernel_bug: Option<&'static str>,
    of: Of,
}

/// An option that a part needs.
pub(crate) struct Needed {
    pub(crate) option: &'static str,
    pub(crate) why: &'static str,
}

/// The configurations in which a part is tested.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Every,
    /// The group needs an empty list. Excluded: trim with flushed digests, which deletes nothing.
    Deleting,
    Staging,
    V4,
    Trim,
    /// The policy measures critical data.
    Critical,
    /// Linux 7.2, whose lock accounting can become wrong.
    Hazards,
}

/// All parts.
const PARTS: &[Part] = &[
    part("1.1", "files", files::cases, Of::Every),
    part("1.1", "other system calls", calls::cases, Of::Every),
    part("1.2", "concurrent opens", open::cases, Of::Every),
    part("1.2", "duplicated descriptors", descriptors::cases, Of::Every),
    part("1.2", "permissions", permissions::cases, Of::Every),
    part("1.3", "request grammar", write::cases, Of::Every),
    part("1.3", "T:N grammar", trim::grammar, Of::Trim),
    part("1.3", "file position of requests", position::cases, Of::V4),
    part("1.4", "every request in every state", requests::cases, Of::Staging),
    part("1.4", "T:N in every state", trim::requests, Of::Trim),
    part("1.5", "reads", reads::cases, Of::Deleting),
    part("1.5", "reads of T", trim::reads, Of::Trim),
    part("1.5", "records added during requests", concurrent::cases, Of::Deleting),
    part("1.6", "counters", counters::cases, Of::Deleting),
    part("1.7", "duplicate measurements", duplicates::cases, Of::Deleting),
    part("1.8", "shutdown and kexec", going_down::cases, Of::Deleting),
    part("1.10", "critical data", critical_data::cases, Of::Critical),
    // The list of Linux 7.2 stays locked after some of these.
    part("1.9.1", "one descriptor, inherited by a child", hazards::inherited, Of::Hazards),
    hazard("1.9.2", "two descriptors, one closed elsewhere", hazards::one_elsewhere, TWO),
    hazard("1.9.3", "the writing thread exits before its close", hazards::writer_gone, REUSED),
    hazard("1.9.4", "two descriptors, both closed elsewhere", hazards::both_elsewhere, TWO),
    hazard("1.9.5", "two descriptors, both closed by a child", hazards::both_by_a_child, TWO),
    hazard("1.9.6", "a descriptor reopened after fork", hazards::reopened_after_fork, FORK),
];

/// The kernel bugs that the hazards show.
const TWO: &str = "two descriptors of one writer";
const REUSED: &str = "writer recognized by a reusable task address";
const FORK: &str = "writer lock lost over fork";

const fn part(rule: &'static str, title: &'static str, cases: Cases, of: Of) -> Part {
    Part { rule, title, cases, kernel_bug: None, of }
}

const fn hazard(
    rule: &'static str,
    title: &'static str,
    cases: Cases,
    kernel_bug: &'static str,
) -> Part {
    Part { rule, title, cases, kernel_bug: Some(kernel_bug), of: Of::Hazards }
}

impl Part {
    fn is_of(&self, options: &Options<'_>) -> bool {
        let (dialect, trims) = (options.dialect, options.dialect == Dialect::Trim);
        let flush = options.duplicates == Duplicates::Flush;
        if options.critical_data {
            // With critical data, trimming adds a record: the list is never empty.
            return matches!(self.of, Of::Critical) && !(trims && flush);
        }
        match self.of {
            Of::Every => true,
            Of::Deleting => !(trims && flush),
            Of::Staging => dialect.stages(),
            Of::V4 => dialect == Dialect::V4,
            Of::Trim => trims && !flush,
            Of::Critical => false,
            Of::Hazards => options.hazards && dialect == Dialect::Linux72,
        }
    }

    /// Whether it is of this rule; `1.9` includes `1.9.1`.
    pub(crate) fn is_of_rule(&self, rule: &str) -> bool {
        self.rule.strip_prefix(rule).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// The dialects in which it is tested.
    fn dialects(&self) -> &'static [Dialect] {
        match self.of {
            Of::Every | Of::Deleting | Of::Critical => {
                &[Dialect::Linux72, Dialect::V4, Dialect::Trim]
            }
            Of::Staging => &[Dialect::Linux72, Dialect::V4],
            Of::V4 => &[Dialect::V4],
            Of::Trim => &[Dialect::Trim],
            Of::Hazards => &[Dialect::Linux72],
        }
    }

    /// The option without which it is not run.
    pub(crate) fn needed(&self) -> Option<Needed> {
        let (option, why) = match self.of {
            Of::Hazards => {
                ("--hazards", "these cases can lock the list of Linux 7.2 until the next boot")
            }
            Of::Critical => {
                ("--critical-data", "these cases need a policy that measures critical data")
            }
            _ => return None,
        };
        Some(Needed { option, why })
    }
}

/// The groups of `dialect` and `rule`, or of all, whatever options they need.
pub(crate) fn list(dialect: Option<Dialect>, rule: Option<&str>) -> Vec<Listed> {
    let of_dialect = |part: &&Part| dialect.is_none_or(|of| part.dialects().contains(&of));
    let of_rule = |part: &&Part| rule.is_none_or(|rule| part.is_of_rule(rule));
    let listed = |part: &Part| Listed {
        rule: part.rule,
        title: part.title,
        dialects: part.dialects().iter().map(Dialect::to_string).collect(),
        option: part.needed().map(|needed| needed.option),
    };
    PARTS.iter().filter(of_dialect).filter(of_rule).map(listed).collect()
}

/// The option that the groups of a rule need in `dialect`.
pub(crate) fn needed(dialect: Dialect, rule: &str) -> Option<Needed> {
    let of = |part: &&Part| part.is_of_rule(rule) && part.dialects().contains(&dialect);
    PARTS.iter().find(of).and_then(Part::needed)
}

/// The groups that `options` select.
pub(crate) fn groups<'a>(options: &'a Options<'_>) -> impl Iterator<Item = &'static Part> + 'a {
    let of_rule = move |part: &&Part| options.rule.is_none_or(|rule| part.is_of_rule(rule));
    PARTS.iter().filter(|part| part.is_of(options)).filter(of_rule)
}
