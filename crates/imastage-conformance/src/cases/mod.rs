//! The cases, one module a part of the interface.

mod concurrent;
mod counters;
mod files;
mod open;
mod permissions;
mod reads;
mod requests;
mod write;

use crate::{
    report::Recorder,
    target::{Target, Trouble},
};

pub(crate) type Cases = fn(&Target<'_>, &mut Recorder) -> Result<(), Trouble>;

/// The parts of the interface: number in the rules, title, cases.
pub(crate) const GROUPS: [(&str, &str, Cases); 8] = [
    ("1.1", "files", files::cases),
    ("1.2", "who may open what when", open::cases),
    ("1.2", "permissions", permissions::cases),
    ("1.3", "what a write may say", write::cases),
    ("1.4", "every request in every state", requests::cases),
    ("1.5", "what reads show", reads::cases),
    ("1.5", "records added during requests", concurrent::cases),
    ("1.6", "what the counters show", counters::cases),
];
