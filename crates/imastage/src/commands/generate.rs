//! `imastage generate`: manual pages and shell completions.

use std::{io, path::PathBuf};

use clap::{CommandFactory, Subcommand};
use clap_complete::Shell;

use crate::{
    Cli,
    exit::{Fail, Failure, Outcome},
};

/// Write manual pages and shell completions, for packages.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One manual page for each subcommand, into a directory that exists.
    Man {
        /// The directory.
        dir: PathBuf,
    },
    /// Completions, to standard output.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Runs `imastage generate`.
pub fn run(args: &Args) -> Result<Outcome, Failure> {
    let mut command = Cli::command();
    match &args.what {
        What::Man { dir } => {
            clap_mangen::generate_to(command, dir).environment(dir.display())?;
        }
        What::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command, "imastage", &mut script);
            io::Write::write_all(&mut io::stdout(), &script).environment("standard output")?;
        }
    }
    Ok(Outcome::Fine)
}
