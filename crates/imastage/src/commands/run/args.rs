//! The options of `imastage run`.

use std::path::PathBuf;

use clap::ValueEnum;
use imastage_service::Config;
use imastage_source::DeleteMode;

use crate::commands::retention::RetentionArgs;

/// Drain a measurement list into a state directory, for good, and answer for it.
///
/// Runs until it is told to stop (Ctrl-C, SIGTERM). `imastage attest`, `verify --state` and `status`
/// talk to it through the state directory.
#[derive(clap::Args)]
#[command(after_help = crate::examples::RUN)]
pub struct Args {
    /// Read options from this file, too: its keys are named as the options. What the command line
    /// says, wins. SIGHUP reads it again.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The list: a directory with securityfs's files, `embedded` (a sandbox in a process of its
    /// own, or where FUSE cannot be had, in this one), or `in-process`. How the directory's kernel
    /// lets go of records is found out by looking; if it does not, the list is followed. [default:
    /// embedded, where the machine has no list of its own]
    #[arg(long, value_name = "DIR")]
    pub(super) source: Option<PathBuf>,
    /// The state directory [default: /var/lib/imastage as root, else ~/.local/state/imastage; of a
    /// list that is not this machine's: imastage-embedded beside it].
    #[arg(long, value_name = "DIR")]
    pub(super) state: Option<PathBuf>,
    /// How to delete records, where the kernel supports both ways (Linux 7.2) [default: stage]. With
    /// `none` no record is deleted, whatever the kernel supports, and no privilege is needed.
    #[arg(long, value_name = "MODE")]
    pub(super) delete_mode: Option<DeleteModeName>,
    /// Say what would be done, and what would be in the way, and do nothing.
    #[arg(long)]
    pub(super) check: bool,
    /// Delete from this list although records before its first one are not in the state directory:
    /// somebody else deleted and keeps them, or nobody does.
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
    /// Compress closed epochs when the service starts, which is when one is closed.
    #[arg(long)]
    pub(super) pack: bool,
    #[command(flatten)]
    pub(super) kept: RetentionArgs,
    /// Run this command (with `sh -c`) whenever something begins or ends to be wrong. It finds the
    /// worst of it in $IMASTAGE_STATE (ok, damaged, altered, diverged, not-extended, cannot-drain, busy,
    /// cannot-compare, ...), the verdict in $IMASTAGE_VERDICT and all of `imastage --json status` in
    /// $IMASTAGE_STATUS.
    #[arg(long, value_name = "COMMAND")]
    pub(super) alert: Option<String>,
    /// Show what is stored as files in this directory, named as the kernel's, as if nothing had ever
    /// been deleted: for agents that read the list themselves.
    #[arg(long, value_name = "DIR")]
    pub(super) view: Option<PathBuf>,
    /// Who may read the view besides root: a group's name or number [default: our own group].
    #[arg(long, value_name = "GROUP", requires = "view", value_parser = group)]
    pub(super) view_group: Option<u32>,
    /// Who may ask the service besides its owner, through the socket in the state directory: a
    /// group's name or number.
    #[arg(long, value_name = "GROUP", value_parser = group)]
    pub(super) group: Option<u32>,
}

/// As [`DeleteMode`].
#[derive(Clone, Copy, ValueEnum)]
pub enum DeleteModeName {
    /// Stage all, store, delete what was staged.
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
