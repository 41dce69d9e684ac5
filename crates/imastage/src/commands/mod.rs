//! One module a subcommand: its arguments, and what it does with our crates.

pub mod attest;
pub mod check;
pub mod conformance;
pub mod demo;
pub mod diff;
pub mod doctor;
mod evidence_files;
pub mod generate;
pub mod log;
pub mod replay;
mod retention;
pub mod run;
pub mod sandbox;
pub mod show;
pub mod source_process;
pub mod status;
pub mod store;
pub mod verify;

use std::path::PathBuf;

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::exit::{Fail, Failure};

/// The state directory that was given, or the default one; where there is none, that of an embedded
/// list.
fn state_dir(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(dir) = given {
        return Ok(dir);
    }
    let dir = default_state_dir(MACHINE)?;
    let embedded = default_state_dir(EMBEDDED)?;
    Ok(if !dir.exists() && embedded.exists() { embedded } else { dir })
}

/// The name of the state of a machine's list.
const MACHINE: &str = "imastage";
/// The name of the state of a list that is no machine's: it is not kept among evidence.
const EMBEDDED: &str = "imastage-embedded";

/// Where state of this name is kept.
fn default_state_dir(name: &str) -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib").join(name));
    }
    // XDG Base Directory Specification.
    if let Some(dir) = std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir).join(name));
    }
    match std::env::home_dir() {
        Some(home) => Ok(home.join(".local/state").join(name)),
        None => Err(Failure::input("there is no home directory; give --state DIR")),
    }
}

/// 32 random bytes in hex.
fn fresh_nonce() -> Result<String, Failure> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).environment("random numbers")?;
    Ok(hex::encode(nonce))
}

/// SIGINT and SIGTERM, caught from the moment this is made.
struct Stop(Signals);

fn wait_for_stop() -> Result<Stop, Failure> {
    Signals::new([SIGINT, SIGTERM]).map(Stop).environment("signals")
}

impl Stop {
    /// Waits for one of them.
    fn wait(mut self) {
        self.0.forever().next();
    }
}
