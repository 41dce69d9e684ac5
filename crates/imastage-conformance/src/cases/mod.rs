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
    report::Recorder,
    target::{Target, Trouble},
};

pub(crate) type Cases = fn(&Target<'_>, &mut Recorder) -> Result<(), Trouble>;

/// A part of the interface.
pub(crate) struct Part {
    /// Its number, the same in all dialects.
    pub(crate) rule: &'static str,
    pub(crate) title: &'static str,
    pub(crate) cases: Cases,
    of: Of,
}

/// The configurations in which a part is tested.
#[derive(Clone, Copy)]
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
    part("1.9", "two descriptors of one writer", hazards::cases, Of::Hazards),
];

const fn part(rule: &'static str, title: &'static str, cases: Cases, of: Of) -> Part {
    Part { rule, title, cases, of }
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
}

/// The groups that `options` select.
pub(crate) fn groups<'a>(options: &'a Options<'_>) -> impl Iterator<Item = &'static Part> + 'a {
    let of_rule = move |part: &&Part| options.rule.is_none_or(|rule| rule == part.rule);
    PARTS.iter().filter(|part| part.is_of(options)).filter(of_rule)
}
