//! How a command ends.

use std::{fmt, io};

use imastage_store::StoreError;

/// A command that did what it was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Fine,
    /// Exit code 1: the evidence was understood and does not hold.
    EvidenceSaysNo,
}

/// A command that could not.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    error: anyhow::Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Exit code 2: usage or unusable input.
    Input,
    /// Exit code 3: no TPM, no permission, busy.
    Environment,
}

/// Says which exit code an error leads to, and adds what was being done.
pub trait Fail<T> {
    /// The input is at fault: exit code 2.
    fn input(self, doing: impl fmt::Display) -> Result<T, Failure>;
    /// The machine is at fault: exit code 3.
    fn environment(self, doing: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> Fail<T> for Result<T, E> {
    fn input(self, doing: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(Kind::Input, error.into().context(doing.to_string())))
    }

    fn environment(self, doing: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| {
            Failure::new(Kind::Environment, error.into().context(doing.to_string()))
        })
    }
}

/// No permission, a system that refuses, or a directory that is in use: the machine's fault. Everything
/// else is what the directory holds. The error names it.
impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        let kind = if error.is_environment() { Kind::Environment } else { Kind::Input };
        Failure::new(kind, error.into())
    }
}

impl Failure {
    /// Usage or unusable input.
    pub fn input(why: impl fmt::Display) -> Failure {
        Failure::new(Kind::Input, anyhow::anyhow!("{why}"))
    }

    /// The machine lacks something, or something is busy.
    pub fn environment(why: impl fmt::Display) -> Failure {
        Failure::new(Kind::Environment, anyhow::anyhow!("{why}"))
    }

    /// Whether a reader closed the output early: it has what it wanted, which is no failure.
    pub fn is_closed_output(&self) -> bool {
        let is_closed = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
        self.error.chain().any(|cause| cause.downcast_ref().is_some_and(is_closed))
    }

    /// What went wrong: what was being done, then why. Some errors say why themselves.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for cause in self.error.chain().map(ToString::to_string) {
            if text.is_empty() {
                text = cause;
            } else if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
        }
        text
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self.kind {
            Kind::Input => 2,
            Kind::Environment => 3,
        }
    }

    fn new(kind: Kind, error: anyhow::Error) -> Failure {
        Failure { kind, error }
    }
}
