//! The options of `imastage run`.

use std::path::PathBuf;

use clap::ValueEnum;
use imastage_service::Config;
use imastage_source::DeleteMode;

use crate::commands::retention::RetentionArgs;

/// Drain a measurement list into a state directory, and serve the complete list.
///
/// Runs until SIGINT (Ctrl-C) or SIGTERM. `imastage attest`, `verify --state` and `status` reach it
/// through the state directory.
#[derive(clap::Args)]
#[command(after_help = crate::examples::RUN)]
pub struct Args {
    /// Read options from this file, whose keys are the names of the options. Command-line options
    /// take precedence. SIGHUP reads it again.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The list: a directory with securityfs's files, `embedded` (a sandbox in a process of its own
    /// or, without FUSE, in this one), or `in-process`. The way to delete records is detected; a
    /// list whose kernel cannot delete is followed [default: embedded, if the machine has no list
    /// of its own].
    #[arg(long, value_name = "DIR")]
    pub(super) source: Option<PathBuf>,
    /// The state directory [default: /var/lib/imastage as root, else ~/.local/state/imastage; for
    /// an embedded list: imastage-embedded beside it].
    #[arg(long, value_name = "DIR")]
    pub(super) state: Option<PathBuf>,
    /// How to delete records if the kernel supports both ways (Linux 7.2) [default: stage]. With
    /// `none` no record is deleted and no privilege is needed.
    #[arg(long, value_name = "MODE")]
    pub(super) delete_mode: Option<DeleteModeName>,
    /// Print what would be done and what would prevent it, and exit.
    #[arg(long)]
    pub(super) check: bool,
    /// Delete from this list although records before its first one are not in the state directory:
    /// another service deleted and stored them, or they are lost.
    #[arg(long)]
    pub(super) adopt: bool,
    /// The TPM that the list extends: a device, `unix:PATH`, `tcp:HOST:PORT` or `none` [default:
    /// the sandbox's own, or /dev/tpmrm0].
    #[arg(long, value_name = "TPM")]
    pub(super) tpm: Option<String>,
    /// The longest time between two drains, in milliseconds. Reading the kernel's list takes time
    /// quadratic in its length, so keep it short.
    #[arg(long, value_name = "MS", default_value_t = Config::EVERY_MS, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub(super) every: u64,
    /// Drain as soon as RECORDS records are in the list.
    #[arg(long, value_name = "RECORDS", default_value_t = Config::DRAIN_AT, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) drain_at: u64,
    /// Compress closed epochs when the service starts.
    #[arg(long)]
    pub(super) pack: bool,
    #[command(flatten)]
    pub(super) kept: RetentionArgs,
    /// Run this command (with `sh -c`) whenever a condition begins or ends. $IMASTAGE_STATE is the
    /// worst condition (ok, damaged, altered, diverged, not-extended, cannot-drain, lock-lost, busy,
    /// cannot-compare, ...), $IMASTAGE_VERDICT the verdict, $IMASTAGE_STATUS the output of
    /// `imastage --json status`.
    #[arg(long, value_name = "COMMAND")]
    pub(super) alert: Option<String>,
    /// Mount stored records on this directory as files with the kernel's names, as if nothing had
    /// been deleted: for agents that read the list themselves.
    #[arg(long, value_name = "DIR")]
    pub(super) view: Option<PathBuf>,
    /// The group that may read the view, by name or number [default: the service's own group].
    #[arg(long, value_name = "GROUP", requires = "view", value_parser = group)]
    pub(super) view_group: Option<u32>,
    /// The group that may use the service's socket, by name or number.
    #[arg(long, value_name = "GROUP", value_parser = group)]
    pub(super) group: Option<u32>,
}

/// As [`DeleteMode`].
#[derive(Clone, Copy, ValueEnum)]
pub enum DeleteModeName {
    /// Stage all records, store them, delete the staged list.
    Stage,
    /// Read, store, delete the first N.
    FirstN,
    /// Read and store; delete nothing, and open nothing for writing.
    None,
}

impl From<DeleteModeName> for DeleteMode {
    fn from(name: DeleteModeName) -> DeleteMode {
        match name {
            DeleteModeName::Stage => DeleteMode::Stage,
            DeleteModeName::FirstN => DeleteMode::FirstN,
            DeleteModeName::None => DeleteMode::None,
        }
    }
}

/// The keys of the configuration whose change takes effect at once.
pub const RELOADED: &[&str] = &["alert", "drain-at", "every"];

/// The number of a group that is given by name or number.
fn group(text: &str) -> Result<u32, String> {
    match nix::unistd::Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => text.parse().map_err(|_| "there is no such group".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
