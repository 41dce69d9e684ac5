//! Findings on the kernel's interface: each is tried, the answer is reported.

use serde_json::Value;

use crate::{
    error::LabError,
    guest::reproduce::Finding,
    kernel::Kernel,
    lab::{LIST, Lab},
    machine::{Machine, Plan},
    scenario::report::Report,
    wire::Ask,
};

/// How a finding is tried.
enum Reproducer {
    /// A rule of `imastage conformance --hazards`, which fails if the kernel has the bug.
    Hazard(&'static str),
    /// A reproducer of the lab.
    Lab(Finding),
}

/// Findings by the name of their page in docs/upstream.
const FINDINGS: [(&str, Reproducer); 5] = [
    ("two-descriptors", Reproducer::Hazard("1.9.2")),
    ("writer-task-reuse", Reproducer::Hazard("1.9.3")),
    ("writer-lock-fork", Reproducer::Hazard("1.9.6")),
    ("delete-without-memory", Reproducer::Lab(Finding::DeleteWithoutMemory)),
    ("delete-while-staged", Reproducer::Lab(Finding::DeleteWhileStaged)),
];

/// Tries each finding in a machine of its own: some lock the list until reboot.
pub fn upstream(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    for (name, reproducer) in &FINDINGS {
        // D needs memory only with ima_flush_htable; N is accepted only without it.
        let append = match reproducer {
            Reproducer::Lab(Finding::DeleteWithoutMemory) => "ima_policy=tcb ima_flush_htable",
            _ => "ima_policy=tcb",
        };
        let plan = Plan { append: append.to_owned(), processors: 2, ..Plan::default() };
        let mut machine = lab.boot(kernel, &plan)?;
        let answer = match reproducer {
            Reproducer::Hazard(rule) => hazard(&mut machine, rule)?,
            Reproducer::Lab(finding) => reproduced(&mut machine, *finding)?,
        };
        report.saw(name, answer);
        machine.power_off()?;
    }
    Ok(())
}

/// The answer of a rule: yes with the first failed case, or no.
fn hazard(machine: &mut Machine, rule: &str) -> Result<String, LabError> {
    let args = ["conformance", "--destructive", "--hazards", "--rule", rule, LIST];
    let (code, said) = machine.imastage(&args)?;
    let groups = said["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
    let cases = groups.iter().filter_map(|group| group["cases"].as_array()).flatten();
    let failed: Vec<&Value> = cases.filter(|case| case["verdict"] == "failed").collect();
    match (code, failed.first()) {
        (0, None) => Ok(format!("no: rule {rule} passes")),
        (1, Some(case)) => Ok(format!(
            "yes: rule {rule}, {} cases failed; {}: expected {}, got {}",
            failed.len(),
            case["name"],
            case["expected"],
            case["got"]
        )),
        _ => Err(LabError::Refuted(format!("rule {rule}: code {code}: {said}"))),
    }
}

fn reproduced(machine: &mut Machine, finding: Finding) -> Result<String, LabError> {
    let (source, target) = ("debugfs".to_owned(), "/sys/kernel/debug".to_owned());
    machine.done(&Ask::Mount { source, target, kind: "debugfs".to_owned() }, &[])?;
    let said = machine.must_run("/init", &["reproduce", &finding.to_string()])?;
    Ok(String::from_utf8_lossy(&said).trim().to_owned())
}
