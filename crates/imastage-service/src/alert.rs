//! A command that is run when the service's health changes.

use std::{
    process::{Command, Stdio},
    thread,
};

use imastage_client::{health::State, wire::Status};

/// A command for `sh -c`.
#[derive(Debug)]
pub struct Alert {
    command: String,
}

impl Alert {
    /// Runs `command` with `sh -c`.
    pub fn new(command: String) -> Alert {
        Alert { command }
    }

    /// Starts the command without waiting for it. Its environment has the name of the state in
    /// `IMASTAGE_STATE`, the verdict's name in `IMASTAGE_VERDICT`, and the status as JSON in
    /// `IMASTAGE_STATUS`.
    ///
    /// Must not be called while a file of the list is open for writing in this process: until a
    /// child calls execve, it has all of these files open, too.
    pub fn tell(&self, state: State, status: &Status) {
        let child = Command::new("sh")
            .arg("-c")
            .arg(&self.command)
            .env("IMASTAGE_STATE", state.name())
            .env("IMASTAGE_VERDICT", status.verdict.name())
            .env("IMASTAGE_STATUS", serde_json::to_string(status).unwrap_or_default())
            .stdin(Stdio::null())
            .spawn();
        let waited = child.and_then(|mut child| {
            let wait = move || match child.wait() {
                Ok(status) if status.success() => {}
                Ok(status) => tracing::warn!("the alert command failed: {status}"),
                Err(error) => tracing::warn!(%error, "cannot wait for the alert command"),
            };
            thread::Builder::new().name("alert".into()).spawn(wait)
        });
        if let Err(error) = waited {
            tracing::error!(%error, "cannot run the alert command");
        }
    }
}
