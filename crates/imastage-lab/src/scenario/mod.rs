//! What is tried on real kernels, each with a verdict.

mod attest;
mod capture;
mod cost;
mod doctor;
mod follow;
mod policy;
mod quotes;
mod replays;
mod restart;
mod service;
mod signed;
mod templates;

pub use capture::capture;

use std::collections::BTreeMap;

use crate::{Kernel, Lab, LabError};

/// Something to try on a kernel.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it shows, in a line.
    pub about: &'static str,
    /// Runs it; [`LabError::Refuted`] is its "no".
    pub run: fn(&Lab, &Kernel, &mut Report) -> Result<(), LabError>,
}

/// What was seen, for people and tables.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// By name.
    pub seen: BTreeMap<String, String>,
}

/// All of them.
pub const SCENARIOS: [Scenario; 11] = [
    Scenario {
        name: "follow",
        about: "the service follows a stock kernel: store and view are its list, byte for byte",
        run: follow::follow,
    },
    Scenario {
        name: "attest",
        about: "evidence from the guest, verified on this side, anchored in the endorsement key",
        run: attest::attest,
    },
    Scenario {
        name: "restart",
        about: "a reset begins an epoch and keeps the old one; the plug pulled at random moments",
        run: restart::restart,
    },
    Scenario {
        name: "kexec",
        about: "kexec: stock kernels forget, the store can still attest; with IMA_KEXEC (6.12-lab) too",
        run: restart::kexec,
    },
    Scenario {
        name: "awkward",
        about: "violations, odd names, critical data: all files of the list, replayed to all banks",
        run: replays::awkward,
    },
    Scenario {
        name: "signed",
        about: "files signed with a key made on the spot, one altered afterwards",
        run: signed::signed,
    },
    Scenario {
        name: "templates",
        about: "every ima_hash and ima_template a kernel can be told to use",
        run: templates::variants,
    },
    Scenario { name: "no-tpm", about: "a machine without a TPM", run: templates::no_tpm },
    Scenario {
        name: "doctor",
        about: "imastage doctor names what is true of the kernel, and what makes it unfit",
        run: doctor::doctor,
    },
    Scenario {
        name: "policy",
        about: "what ima_policy=tcb makes of view and store, and the rules that leave them out",
        run: policy::policy,
    },
    Scenario {
        name: "cost",
        about: "figures: reading a long list, what the service costs the measuring path (minutes)",
        run: cost::cost,
    },
];

impl Report {
    pub(crate) fn saw(&mut self, what: &str, value: impl ToString) {
        self.seen.insert(what.to_owned(), value.to_string());
    }
}
