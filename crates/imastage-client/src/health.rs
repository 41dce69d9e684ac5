//! How a service is: what is wrong, the worst first. The first line of `imastage status`, its exit
//! code, the log, the alert command and the metrics all say what is decided here.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What can be wrong, the worst first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The store cannot be read, or does not hold what was stored.
    Damaged,
    /// A record in the kernel's list is not as it was measured.
    Altered,
    /// Store and list do not lead to the TPM's PCRs.
    Diverged,
    /// The kernel does not extend this TPM.
    NotExtended,
    /// The TPM was reset under the running service.
    TpmReset,
    /// The list's first records are in another store.
    ForeignList,
    /// The list cannot be drained.
    CannotDrain,
    /// Records are stored and cannot be deleted until reboot: the kernel has lost the list's lock.
    LockLost,
    /// Records are stored and cannot be deleted, since others use the list.
    Busy,
    /// The TPM does not answer.
    CannotCompare,
    /// The view is gone, or does not answer.
    ViewFailing,
    /// A service runs, or holds the state directory, and does not answer.
    NoAnswer,
    /// A service reads the records that were stored before it started.
    Checking,
    /// A service starts.
    Starting,
    /// No service runs.
    NotRunning,
    /// Nothing is wrong.
    #[default]
    Ok,
}

/// How bad it is, and so the exit code of `imastage status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing is wrong: 0.
    Fine,
    /// Something about the machine or the service: 3.
    Environment,
    /// The evidence does not hold: 1.
    Evidence,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// What.
    pub state: State,
    /// In words: what, why, what to do.
    pub reason: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
}

/// Everything that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The worst of it; [`State::Ok`] if nothing is wrong.
    pub state: State,
    /// That in words; if nothing is wrong, what was proven.
    pub reason: String,
    /// All of it, the worst first.
    pub conditions: Vec<Condition>,
}

impl State {
    /// All there are, the worst first.
    pub const ALL: [State; 16] = [
        State::Damaged,
        State::Altered,
        State::Diverged,
        State::NotExtended,
        State::TpmReset,
        State::ForeignList,
        State::CannotDrain,
        State::LockLost,
        State::Busy,
        State::CannotCompare,
        State::ViewFailing,
        State::NoAnswer,
        State::Checking,
        State::Starting,
        State::NotRunning,
        State::Ok,
    ];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            State::Damaged => "damaged",
            State::Altered => "altered",
            State::Diverged => "diverged",
            State::NotExtended => "not-extended",
            State::TpmReset => "tpm-reset",
            State::ForeignList => "foreign-list",
            State::CannotDrain => "cannot-drain",
            State::LockLost => "lock-lost",
            State::Busy => "busy",
            State::CannotCompare => "cannot-compare",
            State::ViewFailing => "view-failing",
            State::NoAnswer => "no-answer",
            State::Checking => "checking",
            State::Starting => "starting",
            State::NotRunning => "not-running",
            State::Ok => "ok",
        }
    }

    /// How bad it is.
    pub fn level(self) -> Level {
        match self {
            State::Damaged | State::Altered | State::Diverged | State::NotExtended => {
                Level::Evidence
            }
            State::Ok => Level::Fine,
            _ => Level::Environment,
        }
    }
}

impl State {
    /// Whether a service does nothing more once it is so: it ends, and the service manager decides what
    /// comes next.
    pub fn is_final(self) -> bool {
        matches!(self, State::TpmReset | State::ForeignList)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Health {
    /// How bad the worst of it is.
    pub fn level(&self) -> Level {
        let levels = self.conditions.iter().map(|condition| condition.state.level());
        levels.max().unwrap_or(Level::Fine)
    }

    /// Without what need not be told yet: others who use the list mostly go soon.
    pub fn due(&self, now: u64) -> Vec<&Condition> {
        const PATIENCE_WITH_READERS: u64 = 5;
        let is_due = |condition: &&Condition| match condition.state {
            State::Busy => now.saturating_sub(condition.since) >= PATIENCE_WITH_READERS,
            // The start of a service is not alerted.
            State::Checking | State::Starting => false,
            _ => true,
        };
        self.conditions.iter().filter(is_due).collect()
    }
}
