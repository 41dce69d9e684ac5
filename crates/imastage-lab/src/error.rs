use std::{fmt, io, path::Path, process::ExitStatus};

/// Why a scenario did not come to its end, or ended badly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// A program or package is not there.
    #[error("{what} is missing: {how}")]
    Missing {
        /// What.
        what: String,
        /// How to get it.
        how: String,
    },
    /// The system refused something on this side.
    #[error("{doing}: {error}")]
    Io {
        /// What was being done, to what.
        doing: String,
        /// What the system said.
        error: io::Error,
    },
    /// A program that the lab needs failed.
    #[error("{program} ended with {status}: {said}")]
    Program {
        /// Its command line.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        said: String,
    },
    /// The guest could not do what it was asked.
    #[error("the guest was asked to {asked}: {said}")]
    Guest {
        /// What it was asked.
        asked: String,
        /// What it answered.
        said: String,
    },
    /// The guest does not answer, or not any more.
    #[error("the guest was asked to {asked}, but {why}; the end of its console:\n{console}")]
    Lost {
        /// What it was asked.
        asked: String,
        /// What happened.
        why: String,
        /// The end of its console.
        console: String,
    },
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// The scenario came to its verdict: what must hold does not.
    #[error("{0}")]
    Refuted(String),
}

impl LabError {
    /// Whether the scenario said no, rather than could not be run.
    pub fn is_verdict(&self) -> bool {
        matches!(self, LabError::Refuted(_))
    }
}

/// Says what was being done when the system refused.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl fmt::Display) -> Result<T, LabError>;

    fn at(self, path: &Path) -> Result<T, LabError>
    where
        Self: Sized,
    {
        self.doing(path.display())
    }
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Result<T, LabError> {
        self.map_err(|error| LabError::Io { doing: what.to_string(), error: error.into() })
    }
}

/// What must hold in a scenario.
pub(crate) fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), LabError> {
    if holds { Ok(()) } else { Err(LabError::Refuted(what())) }
}
