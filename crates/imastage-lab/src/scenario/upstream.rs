//! Findings on the kernel's interface: each is tried, the answer is reported.

use crate::{
    error::LabError,
    guest::reproduce::{FINDINGS, Finding},
    kernel::Kernel,
    lab::Lab,
    machine::Plan,
    scenario::report::Report,
    wire::Ask,
};

/// Runs each reproducer in a machine of its own: some lock the list until reboot.
pub fn upstream(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    for finding in FINDINGS {
        // D needs memory only with ima_flush_htable; N is accepted only without it.
        let append = match finding {
            Finding::DeleteWithoutMemory => "ima_policy=tcb ima_flush_htable",
            _ => "ima_policy=tcb",
        };
        let plan = Plan { append: append.to_owned(), ..Plan::default() };
        let mut machine = lab.boot(kernel, &plan)?;
        let (source, target) = ("debugfs".to_owned(), "/sys/kernel/debug".to_owned());
        machine.done(&Ask::Mount { source, target, kind: "debugfs".to_owned() }, &[])?;
        let name = finding.to_string();
        let said = machine.must_run("/init", &["reproduce", &name])?;
        report.saw(&name, String::from_utf8_lossy(&said).trim());
        machine.power_off()?;
    }
    Ok(())
}
