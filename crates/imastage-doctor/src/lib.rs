//! Examines whether a machine is ready for the service: findings with reasons and remedies.
//!
//! [`examine`] changes nothing: it opens no file for writing, and has the list's files open (for
//! reading) only while it reads them. All input is treated as hostile.
#![forbid(unsafe_code)]

mod access;
mod agents;
mod finding;
mod kernel;
mod keylime;
mod list;
mod machine;
mod policy;
mod state;
mod stored;
mod tpm;
mod view;

pub use finding::{Examination, Finding, Severity};

use machine::Machine;

/// Examines a machine. Reads the whole list once, and the store if there is one. The most severe
/// findings come first.
pub fn examine(examination: &Examination) -> Vec<Finding> {
    let machine = Machine::new(examination);
    let mut findings = Vec::new();
    let kernel = kernel::examine(&machine, &mut findings);
    access::examine(&machine, &mut findings);
    state::examine(&examination.state, &mut findings);
    view::examine(&machine, &examination.view, &mut findings);
    if let Some(kernel) = &kernel {
        let tpm = tpm::examine(&machine, &mut findings);
        let list = list::examine(&machine, tpm, &examination.state, &mut findings);
        policy::examine(&machine, kernel, list.as_ref(), &mut findings);
        state::examine_growth(&examination.state, &machine, list.as_ref(), &mut findings);
        agents::examine(&machine, kernel, examination, &mut findings);
    }
    findings.sort_by_key(|finding| finding.severity);
    findings
}
