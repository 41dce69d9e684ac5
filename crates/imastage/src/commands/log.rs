//! `imastage log`: records as the service gives them.

use std::path::PathBuf;

use crate::{
    commands::{show::Shape, state_dir},
    exit::{Failure, Outcome},
    input::List,
    output::Output,
};

/// Show records as the running service gives them, in any form, and as they come.
///
/// Asks the service's socket, so it needs no right to read the state directory. With --from K, asks
/// for no records before K.
#[derive(clap::Args)]
#[command(after_help = crate::examples::LOG)]
pub struct Args {
    /// The service's state directory [default: /var/lib/imastage as root, else
    /// ~/.local/state/imastage].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// When all are shown, wait for more.
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
