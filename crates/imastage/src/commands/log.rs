//! `imastage log`: records as the service gives them.

use std::path::PathBuf;

use crate::{
    commands::{show::Shape, state_dir},
    exit::{Failure, Outcome},
    input::List,
    output::Output,
};

/// Show records of the running service in any form; with --follow also those that are stored later.
///
/// Uses the service's socket, so no permission to read the state directory is needed. With --from K
/// no earlier record is requested.
#[derive(clap::Args)]
#[command(after_help = crate::examples::LOG)]
pub struct Args {
    /// The service's state directory [default: /var/lib/imastage as root, else
    /// ~/.local/state/imastage].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Wait for more records after the last one.
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    shape: Shape,
}

/// Runs `imastage log`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let state = state_dir(args.state)?;
    args.shape.show(|| List::of_service(&state, args.follow), out)
}
