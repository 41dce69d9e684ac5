//! `imastage conformance` on real kernels.

use serde_json::Value;

use crate::{
    error::{LabError, must},
    kernel::Kernel,
    lab::{LIST, Lab},
    machine::Plan,
    scenario::report::Report,
};

/// Every rule passes, except for the hazards, which the scenario `upstream` tries.
pub fn conformance(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let duplicates: &[&str] = if kernel.hash_table { &[] } else { &["--no-htable"] };
    passes(lab, kernel, "ima_policy=tcb", duplicates, report)?;
    let critical = [duplicates, &["--critical-data"]].concat();
    passes(lab, kernel, "ima_policy=\"tcb|critical_data\"", &critical, report)?;
    if kernel.hash_table {
        passes(lab, kernel, "ima_policy=tcb ima_flush_htable", &["--flush-htable"], report)?;
    }
    Ok(())
}

fn passes(
    lab: &Lab,
    kernel: &Kernel,
    append: &str,
    options: &[&str],
    report: &mut Report,
) -> Result<(), LabError> {
    let plan = Plan { append: append.to_owned(), processors: 2, ..Plan::default() };
    let mut machine = lab.boot(kernel, &plan)?;
    let args = [&["conformance", "--destructive"], options, &[LIST]].concat();
    let (code, said) = machine.imastage(&args)?;
    let counts = &said["counts"];
    let what = if options.is_empty() { "default".to_owned() } else { options.join(" ") };
    report.saw(&what, format!("{} passed, {} skipped", counts["passed"], counts["skipped"]));
    must(code == 0 && counts["failed"] == 0 && counts["passed"] != 0, || {
        format!("{what}: code {code}: {}", failures(&said))
    })?;
    machine.power_off()
}

/// The failed cases, one per line; everything if there are none.
fn failures(said: &Value) -> String {
    let groups = said["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
    let cases = groups.iter().filter_map(|group| group["cases"].as_array()).flatten();
    let failed: Vec<String> =
        cases.filter(|case| case["verdict"] == "failed").map(Value::to_string).collect();
    if failed.is_empty() { said.to_string() } else { failed.join("\n") }
}
