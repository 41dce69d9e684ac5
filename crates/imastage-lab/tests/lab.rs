//! Scenarios on Debian's 6.1 and 6.12, and on Linux 7.2 with CONFIG_IMA_STAGING if it is built: each
//! scenario on at least one kernel, those that depend on the kernel on all. Skipped with a message if
//! QEMU, swtpm or a kernel is not available.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::path::Path;

use imastage_lab::{
    Kernel, Lab, LabError, Plan,
    scenario::{Report, SCENARIOS},
};

fn on(kernel: &str, scenario: &str) {
    let scenario = SCENARIOS.iter().find(|known| known.name == scenario).unwrap();
    let Some((lab, kernel)) = lab_with(kernel) else { return };
    let mut report = Report::default();
    let result = (scenario.run)(&lab, &kernel, &mut report);
    eprintln!("{} on {}: {:#?}", scenario.name, kernel.name, report.seen);
    result.unwrap_or_else(|error| panic!("{} on {}: {error}", scenario.name, kernel.name));
}

fn lab_with(name: &str) -> Option<(Lab, Kernel)> {
    let skipped = |error: LabError| {
        eprintln!("SKIPPED: no scenario run on kernel {name}: {error}");
        None
    };
    let lab = match Lab::new(Path::new(env!("CARGO_BIN_EXE_imastage-lab")), None) {
        Ok(lab) => lab,
        Err(error @ LabError::Missing { .. }) => return skipped(error),
        Err(error) => panic!("{error}"),
    };
    match lab.kernel(name) {
        Ok(kernel) => Some((lab, kernel)),
        // Debian's archive is unreachable, or a kernel of the lab is not built.
        Err(error @ (LabError::Missing { .. } | LabError::Program { .. })) => skipped(error),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn kernel_that_does_not_boot_is_reported_with_its_console() {
    let Some((lab, kernel)) = lab_with("6.1-cloud") else { return };
    let append = "rdinit=/missing root=/dev/missing".to_owned();
    let error = lab.boot(&kernel, &Plan { append, ..Plan::default() }).err().unwrap();
    assert!(matches!(error, LabError::Lost { .. }), "{error}");
    let error = error.to_string();
    assert!(error.contains("the machine ended") && error.contains("Kernel panic"), "{error}");
}

macro_rules! scenarios {
    ($module:ident on $kernel:literal: $($test:ident: $name:literal;)*) => {
        mod $module {
            $(#[test] fn $test() { super::on($kernel, $name); })*
        }
    };
}

scenarios! { on_6_1 on "6.1-cloud":
    follow: "follow";
    attest: "attest";
    kexec: "kexec";
    awkward: "awkward";
    signed: "signed";
    no_tpm: "no-tpm";
    doctor: "doctor";
    policy: "policy";
}

scenarios! { on_6_12 on "6.12-cloud":
    follow: "follow";
    kexec: "kexec";
    awkward: "awkward";
    doctor: "doctor";
    policy: "policy";
}

scenarios! { on_7_2_staging on "7.2-staging":
    drain: "drain";
    flush: "flush";
    crash: "crash";
    attest: "attest";
    restart: "restart";
    kexec_staged: "kexec-staged";
    awkward: "awkward";
    templates: "templates";
    doctor: "doctor";
    clients: "clients";
    blocked: "blocked";
    conformance: "conformance";
    upstream: "upstream";
}
