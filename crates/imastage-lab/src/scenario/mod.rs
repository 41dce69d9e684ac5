//! Scenarios on real kernels, each with a verdict.

mod attest;
mod blocked;
mod capture;
mod clients;
mod conformance;
mod cost;
mod crash;
mod doctor;
mod drain;
mod follow;
mod kexec;
mod keylime;
mod policy;
mod quotes;
mod replays;
mod report;
mod restart;
mod service;
mod signed;
mod staging_cost;
mod templates;
mod upstream;

use std::fmt;

pub use capture::capture;
pub use report::Report;

use crate::{error::LabError, kernel::Kernel, lab::Lab};

/// A named test on a kernel.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it shows, in one line.
    pub about: &'static str,
    /// The kernels it is for.
    pub kernels: Kernels,
    /// Runs the scenario; [`LabError::Refuted`] is a negative verdict.
    pub run: fn(&Lab, &Kernel, &mut Report) -> Result<(), LabError>,
}

/// The kernels that a scenario is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// All.
    All,
    /// Kernels whose list only grows.
    WithoutStaging,
    /// Kernels with CONFIG_IMA_STAGING.
    WithStaging,
}

impl Kernels {
    /// Whether a kernel is one of them.
    pub fn include(self, kernel: &Kernel) -> bool {
        match self {
            Kernels::All => true,
            Kernels::WithoutStaging => !kernel.stages,
            Kernels::WithStaging => kernel.stages,
        }
    }
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kernels::All => "all kernels",
            Kernels::WithoutStaging => "kernels without staging",
            Kernels::WithStaging => "kernels with staging",
        })
    }
}

/// All scenarios.
pub const SCENARIOS: [Scenario; 21] = [
    Scenario {
        name: "follow",
        about: "the service follows a stock kernel: store and view are its list, byte for byte",
        kernels: Kernels::WithoutStaging,
        run: follow::follow,
    },
    Scenario {
        name: "drain",
        about: "the service stages and deletes: store and view have every record, once, in order",
        kernels: Kernels::WithStaging,
        run: drain::drain,
    },
    Scenario {
        name: "flush",
        about: "the same with ima_flush_htable: staging also forgets which files were measured",
        kernels: Kernels::WithStaging,
        run: drain::flush,
    },
    Scenario {
        name: "crash",
        about: "SIGKILLs while files are measured and another agent stages and reads",
        kernels: Kernels::WithStaging,
        run: crash::crash,
    },
    Scenario {
        name: "crash-long",
        about: "the same, ten times longer, and power cuts (minutes)",
        kernels: Kernels::WithStaging,
        run: crash::crash_long,
    },
    Scenario {
        name: "attest",
        about: "evidence from the guest, verified on the host, anchored in the endorsement key",
        kernels: Kernels::All,
        run: attest::attest,
    },
    Scenario {
        name: "restart",
        about: "a reset starts an epoch, the old one is retained; power cuts at random moments",
        kernels: Kernels::All,
        run: restart::restart,
    },
    Scenario {
        name: "kexec",
        about: "kexec: stock kernels lose the list, the store still attests; also with IMA_KEXEC",
        kernels: Kernels::WithoutStaging,
        run: kexec::kexec,
    },
    Scenario {
        name: "kexec-staged",
        about: "kexec with a staged batch or none, with the service stopped, killed or running",
        kernels: Kernels::WithStaging,
        run: kexec::staged,
    },
    Scenario {
        name: "awkward",
        about: "violations, odd names, critical data: all files of the list, replayed to all banks",
        kernels: Kernels::All,
        run: replays::awkward,
    },
    Scenario {
        name: "signed",
        about: "files signed with a fresh key, one altered afterwards",
        kernels: Kernels::All,
        run: signed::signed,
    },
    Scenario {
        name: "templates",
        about: "every ima_hash and ima_template that a kernel accepts",
        kernels: Kernels::All,
        run: templates::variants,
    },
    Scenario {
        name: "no-tpm",
        about: "a machine without a TPM",
        kernels: Kernels::All,
        run: templates::no_tpm,
    },
    Scenario {
        name: "doctor",
        about: "imastage doctor reports the properties and defects of a kernel",
        kernels: Kernels::All,
        run: doctor::doctor,
    },
    Scenario {
        name: "policy",
        about: "ima_policy=tcb measures view and store; policy rules that exclude them",
        kernels: Kernels::WithoutStaging,
        run: policy::policy,
    },
    Scenario {
        name: "clients",
        about: "evmctl, tail -f and Keylime's reader on the view while records are deleted",
        kernels: Kernels::WithStaging,
        run: clients::clients,
    },
    Scenario {
        name: "blocked",
        about: "a reader that stays, and a list whose lock the kernel has lost",
        kernels: Kernels::WithStaging,
        run: blocked::blocked,
    },
    Scenario {
        name: "conformance",
        about: "imastage conformance: every rule passes",
        kernels: Kernels::WithStaging,
        run: conformance::conformance,
    },
    Scenario {
        name: "upstream",
        about: "kernel findings of docs/upstream: yes or no for this kernel",
        kernels: Kernels::WithStaging,
        run: upstream::upstream,
    },
    Scenario {
        name: "cost",
        about: "figures: reading a long list; the service's cost for measuring (minutes)",
        kernels: Kernels::All,
        run: cost::cost,
    },
    Scenario {
        name: "staging-cost",
        about: "figures: measuring beside A, D, N; memory after each; reading (minutes)",
        kernels: Kernels::WithStaging,
        run: staging_cost::staging_cost,
    },
];
