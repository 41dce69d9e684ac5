//! The cases, one module a part of the interface.

mod open;
mod requests;
mod write;

use crate::{
    report::Recorder,
    target::{Target, Trouble},
};

type Cases = fn(&Target<'_>, &mut Recorder) -> Result<(), Trouble>;

/// The parts of the interface: number in the rules, title, cases.
pub(crate) const GROUPS: [(&str, &str, Cases); 3] = [
    ("1.2", "who may open what when", open::cases),
    ("1.3", "what a write may say", write::cases),
    ("1.4", "every request in every state", requests::cases),
];
