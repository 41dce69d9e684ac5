//! Errors of the lab, and a scenario's negative verdict.

use std::{fmt, io, path::Path, process::ExitStatus};

/// Why a scenario failed or could not be completed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// A program or package is missing.
    #[error("{what} is missing: {how}")]
    Missing {
        /// The name of the program or package.
        what: String,
        /// How to install it.
        how: String,
    },
    /// A system call failed on the host.
    #[error("{doing}: {error}")]
    Io {
        /// The operation and its object.
        doing: String,
        /// The error of the system call.
        error: io::Error,
    },
    /// A program on the host failed.
    #[error("{program} ended with {status}: {said}")]
    Program {
        /// Its command line.
        program: String,
        /// Its exit status.
        status: ExitStatus,
        /// The end of its output.
        said: String,
    },
    /// The guest failed to perform a request.
    #[error("request to the guest: {asked}: {said}")]
    Guest {
        /// The request.
        asked: String,
        /// The answer.
        said: String,
    },
    /// The guest does not answer.
    #[error("request to the guest: {asked}: {why}; end of the console:\n{console}")]
    Lost {
        /// The request.
        asked: String,
        /// The cause; [`io::ErrorKind::TimedOut`] if the guest runs and does not answer.
        why: io::Error,
        /// The end of the guest's console.
        console: String,
    },
    /// The lab received SIGINT or SIGTERM.
    #[error("interrupted")]
    Interrupted,
    /// The verdict of the scenario is negative.
    #[error("{0}")]
    Refuted(String),
}

impl LabError {
    /// Whether the scenario was run and its verdict is negative.
    pub fn is_verdict(&self) -> bool {
        matches!(self, LabError::Refuted(_))
    }
}

/// Adds the failed operation to an error.
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

/// Checks a condition of a scenario; `what` describes the failure.
pub(crate) fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), LabError> {
    if holds { Ok(()) } else { Err(LabError::Refuted(what())) }
}
