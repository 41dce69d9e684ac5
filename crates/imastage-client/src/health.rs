//! The health of a service: its conditions, the most severe first. The first line of `imastage
//! status`, its exit code, the log, the alert command and the metrics all derive from it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A condition of a service, the most severe first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The store is damaged or cannot be read.
    Damaged,
    /// A record in the kernel's list was altered.
    Altered,
    /// Store and list do not replay to the TPM's PCRs.
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
    /// Records are stored and cannot be deleted, because other processes use the list.
    Busy,
    /// The TPM does not answer.
    CannotCompare,
    /// The view is unmounted, or does not answer.
    ViewFailing,
    /// A service runs, or holds the state directory, and does not answer.
    NoAnswer,
    /// A service reads the records that were stored before it started.
    Checking,
    /// A service starts.
    Starting,
    /// No service runs.
    NotRunning,
    /// No condition.
    #[default]
    Ok,
}

/// The severity of a condition, which determines the exit code of `imastage status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No condition: exit code 0.
    Fine,
    /// The machine or the service: exit code 3.
    Environment,
    /// The evidence: exit code 1.
    Evidence,
}

/// A condition with its text and start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// The condition.
    pub state: State,
    /// The text: the condition, its cause and the remedy.
    pub reason: String,
    /// Its start, in seconds since 1970.
    pub since: u64,
}

/// All conditions of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The most severe one; [`State::Ok`] if there is none.
    pub state: State,
    /// Its text; without a condition, what was proven.
    pub reason: String,
    /// All conditions, the most severe first.
    pub conditions: Vec<Condition>,
}

impl State {
    /// All states, the most severe first.
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

    /// Its severity.
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
    /// Whether the service exits in this state, and leaves the rest to the service manager.
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
    /// The severity of the most severe condition.
    pub fn level(&self) -> Level {
        let levels = self.conditions.iter().map(|condition| condition.state.level());
        levels.max().unwrap_or(Level::Fine)
    }

    /// Without conditions that are usually brief: other users of the list.
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
