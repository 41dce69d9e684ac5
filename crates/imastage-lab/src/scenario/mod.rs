//! Scenarios on real kernels, each with a verdict.

mod attest;
mod capture;
mod cost;
mod doctor;
mod follow;
mod policy;
mod quotes;
mod replays;
mod report;
mod restart;
mod service;
mod signed;
mod templates;

pub use capture::capture;
pub use report::Report;

use crate::{error::LabError, kernel::Kernel, lab::Lab};

/// A named test on a kernel.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it shows, in one line.
    pub about: &'static str,
    /// Runs the scenario; [`LabError::Refuted`] is a negative verdict.
    pub run: fn(&Lab, &Kernel, &mut Report) -> Result<(), LabError>,
}

/// All scenarios.
pub const SCENARIOS: [Scenario; 11] = [
    Scenario {
        name: "follow",
        about: "the service follows a stock kernel: store and view are its list, byte for byte",
        run: follow::follow,
    },
    Scenario {
        name: "attest",
        about: "evidence from the guest, verified on the host, anchored in the endorsement key",
        run: attest::attest,
    },
    Scenario {
        name: "restart",
        about: "a reset starts an epoch, the old one is retained; power cuts at random moments",
        run: restart::restart,
    },
    Scenario {
        name: "kexec",
        about: "kexec: stock kernels lose the list, the store still attests; also with IMA_KEXEC",
        run: restart::kexec,
    },
    Scenario {
        name: "awkward",
        about: "violations, odd names, critical data: all files of the list, replayed to all banks",
        run: replays::awkward,
    },
    Scenario {
        name: "signed",
        about: "files signed with a fresh key, one altered afterwards",
        run: signed::signed,
    },
    Scenario {
        name: "templates",
        about: "every ima_hash and ima_template that a kernel accepts",
        run: templates::variants,
    },
    Scenario { name: "no-tpm", about: "a machine without a TPM", run: templates::no_tpm },
    Scenario {
        name: "doctor",
        about: "imastage doctor reports the properties and defects of a kernel",
        run: doctor::doctor,
    },
    Scenario {
        name: "policy",
        about: "ima_policy=tcb measures view and store; policy rules that exclude them",
        run: policy::policy,
    },
    Scenario {
        name: "cost",
        about: "figures: reading a long list; the service's cost for measuring (minutes)",
        run: cost::cost,
    },
];
