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
#[command(after_help = crate::examples::GENERATE)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One manual page for each subcommand, into a directory that exists.
    #[command(after_help = crate::examples::GENERATE_MAN)]
    Man {
        /// The directory.
        dir: PathBuf,
    },
    /// Completions, to standard output.
    #[command(after_help = crate::examples::GENERATE_COMPLETIONS)]
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
