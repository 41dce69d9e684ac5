//! A command that is run when the verdict changes.

use std::{
    process::{Command, Stdio},
    thread,
};

use crate::wire::{Status, Verdict};

/// Runs a command once on each change of verdict.
#[derive(Debug)]
pub struct Alert {
    command: String,
    last: &'static str,
}

impl Alert {
    /// Runs `command` with `sh -c`. `verdict` is what is known already.
    pub fn new(command: String, verdict: &Verdict) -> Alert {
        Alert { command, last: subject(verdict) }
    }

    /// Runs the command if the verdict is another than before, and does not wait for it. It finds
    /// the verdict's name in `IMASTAGE_VERDICT`, and the whole status as JSON in
    /// `IMASTAGE_STATUS`.
    ///
    /// Call it while no file of the kernel's is held for writing: a child that has not come to its
    /// exec yet has all that is open here, and would hold it, too.
    pub fn tell(&mut self, status: &Status) {
        let subject = subject(&status.verdict);
        if subject == self.last {
            return;
        }
        self.last = subject;
        let child = Command::new("sh")
            .arg("-c")
            .arg(&self.command)
            .env("IMASTAGE_VERDICT", status.verdict.name())
            .env("IMASTAGE_STATUS", serde_json::to_string(status).unwrap_or_default())
            .stdin(Stdio::null())
            .spawn();
        let waited = child.and_then(|mut child| {
            let wait = move || match child.wait() {
                Ok(status) if status.success() => {}
                Ok(status) => tracing::warn!("the alert command failed: {status}"),
                Err(error) => tracing::warn!(%error, "the alert command is lost"),
            };
            thread::Builder::new().name("alert".into()).spawn(wait)
        });
        if let Err(error) = waited {
            tracing::error!(%error, "the alert command could not be run");
        }
    }
}

/// What there is to be told apart: that nothing is known to be wrong is no news.
fn subject(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Unchecked | Verdict::InStep { .. } => "fine",
        other => other.name(),
    }
}
