//! The cases, one module a part of the interface.

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
    Options,
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

/// Where a part is to be tried.
#[derive(Clone, Copy)]
enum Of {
    Every,
    /// The list must become empty before: not where a trimmed list is flushed, which deletes
    /// nothing.
    Deleting,
    Staging,
    V4,
    Trim,
    /// The kernel measures what it does itself.
    Critical,
    /// Linux 7.2's lock keeps books that can go wrong.
    Hazards,
}

/// All there are.
pub(crate) const PARTS: &[Part] = &[
    part("1.1", "files", files::cases, Of::Every),
    part("1.1", "other system calls", calls::cases, Of::Every),
    part("1.2", "who may open what when", open::cases, Of::Every),
    part("1.2", "copies of descriptors", descriptors::cases, Of::Every),
    part("1.2", "permissions", permissions::cases, Of::Every),
    part("1.3", "what a write may say", write::cases, Of::Every),
    part("1.3", "what T:N may say", trim::grammar, Of::Trim),
    part("1.3", "where a descriptor stands that writes", position::cases, Of::V4),
    part("1.4", "every request in every state", requests::cases, Of::Staging),
    part("1.4", "T:N in every state", trim::requests, Of::Trim),
    part("1.5", "what reads show", reads::cases, Of::Deleting),
    part("1.5", "what T reads show", trim::reads, Of::Trim),
    part("1.5", "records added during requests", concurrent::cases, Of::Deleting),
    part("1.6", "what the counters show", counters::cases, Of::Deleting),
    part("1.7", "what is measured twice", duplicates::cases, Of::Deleting),
    part("1.8", "a machine that goes down", going_down::cases, Of::Deleting),
    part("1.10", "what a kernel measures of its own doing", critical_data::cases, Of::Critical),
    part("1.9", "two descriptors of a writer", hazards::cases, Of::Hazards),
];

const fn part(rule: &'static str, title: &'static str, cases: Cases, of: Of) -> Part {
    Part { rule, title, cases, of }
}

impl Part {
    pub(crate) fn is_of(&self, options: &Options<'_>) -> bool {
        let (dialect, trims) = (options.dialect, options.dialect == Dialect::Trim);
        let flush = options.duplicates == Duplicates::Flush;
        if options.critical_data {
            // A list is never empty where trimming it adds a record.
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
