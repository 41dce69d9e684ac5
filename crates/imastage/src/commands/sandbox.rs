use std::path::PathBuf;

use clap::Subcommand;
use imastage_sandbox::{
    Config, Fault, Sandbox, TpmChoice,
    control::{Answer, Command as Ask, Measured, ask},
};

use crate::{
    commands::wait_for_stop,
    exit::{Fail, Failure, Outcome},
    output::Output,
};

/// IMA in user space: a measurement list behind a FUSE mount with securityfs's file names.
///
/// Runs until it is told to stop (Ctrl-C, SIGTERM). Measures what `sandbox measure` asks for, and as
/// root every program that is executed.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    /// Where to mount it: a directory, made if it is not there.
    #[arg(long, value_name = "DIR", required = true)]
    mount: Option<PathBuf>,
    /// The TPM whose PCR 10 it extends: `swtpm` (one of its own, ends with it), a device such as
    /// /dev/tpm0, `unix:PATH`, `tcp:HOST:PORT`, or `none`.
    #[arg(long, value_name = "TPM", default_value = "swtpm")]
    tpm: TpmChoice,
    /// A rule of the interface to break, for tests of those who test it.
    #[arg(long, value_name = "NAME", hide = true)]
    fault: Option<Fault>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Measure files into the sandbox mounted at DIR; of directories, all files below.
    Measure {
        /// Where the sandbox is mounted.
        #[arg(long, value_name = "DIR")]
        mount: PathBuf,
        /// Files and directories.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Tell the state of the sandbox mounted at DIR.
    Status {
        /// Where the sandbox is mounted.
        #[arg(long, value_name = "DIR")]
        mount: PathBuf,
    },
}

/// Runs `imastage sandbox`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    match (args.action, args.mount) {
        (Some(Action::Measure { mount, paths }), _) => measure(&mount, paths, out),
        (Some(Action::Status { mount }), _) => status(&mount, out),
        (None, Some(mount)) => serve(Config { mount, tpm: args.tpm }, args.fault, out),
        (None, None) => Err(Failure::input("--mount DIR is missing")),
    }
}

fn serve(config: Config, fault: Option<Fault>, out: &Output) -> Result<Outcome, Failure> {
    let stop = wait_for_stop()?;
    let sandbox = Sandbox::start_with(&config, fault).environment("sandbox")?;
    let watching = sandbox.watches_programs();
    let answer = serde_json::json!({
        "mount": config.mount,
        "tpm": sandbox.tpm_endpoint().map(ToString::to_string),
        "watching_programs": watching.is_ok(),
    });
    let programs = match watching {
        Ok(()) => "programs are measured as they are executed".to_owned(),
        Err(why) => format!("programs are not watched ({why})"),
    };
    let tpm = sandbox.tpm_endpoint().map_or("none".to_owned(), ToString::to_string);
    out.answer(&answer, format!("mounted at {}; TPM: {tpm}; {programs}", config.mount.display()))?;
    stop.wait();
    sandbox.stop();
    Ok(Outcome::Fine)
}

fn measure(mount: &std::path::Path, paths: Vec<PathBuf>, out: &Output) -> Result<Outcome, Failure> {
    let paths = paths
        .into_iter()
        .map(|path| std::path::absolute(&path).input(path.display()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut progress = crate::output::Progress::files();
    let answer = ask(mount, &Ask::Measure { paths }, &mut |so_far| {
        progress.at(so_far.added + so_far.known + so_far.unreadable);
    })
    .environment("sandbox")?;
    drop(progress);
    let Answer::Done(measured) = answer else {
        return Err(Failure::environment("the sandbox answered something else"));
    };
    let Measured { added, known, unreadable, examples } = &measured;
    let mut text = format!("{added} records added, {known} files known already");
    if *unreadable > 0 {
        text += &format!(", {unreadable} unreadable, for example:");
        for example in examples {
            text += &format!("\n  {example}");
        }
    }
    out.answer(&measured, text)?;
    Ok(Outcome::Fine)
}

fn status(mount: &std::path::Path, out: &Output) -> Result<Outcome, Failure> {
    let answer = ask(mount, &Ask::Status, &mut |_| {}).environment("sandbox")?;
    let Answer::Status(status) = answer else {
        return Err(Failure::environment("the sandbox answered something else"));
    };
    let text = format!(
        "{} records measured, {} violations\n{} current, {} staged ({} bytes)\n{} bytes let go\n\
         {} TPM extends failed",
        status.total,
        status.violations,
        status.current,
        status.staged,
        status.held_bytes,
        status.freed_bytes,
        status.failed_extends,
    );
    out.answer(&status, text)?;
    Ok(Outcome::Fine)
}
