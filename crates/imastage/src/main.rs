//! `imastage`: drain, keep and attest Linux IMA measurement lists.
#![forbid(unsafe_code)]

mod commands;
mod config;
mod examples;
mod exit;
mod input;
mod journal;
mod output;
mod private_dir;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use config::LoadError;
use exit::{Failure, Outcome};
use output::Output;

/// Offload, store and attest Linux IMA measurement lists.
///
/// Exit codes: 0 fine; 1 verification failed; 2 usage or unusable input; 3 environment (no TPM, no
/// permission, busy).
#[derive(Parser)]
#[command(version, max_term_width = 100, propagate_version = true)]
#[command(after_help = examples::IMASTAGE)]
struct Cli {
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// Log messages of this level and of more severe ones to standard error [default: what RUST_LOG
    /// says, else warn].
    #[arg(long, global = true, value_name = "LEVEL", value_parser = output::log_level())]
    log_level: Option<tracing::Level>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(commands::run::Args),
    Attest(commands::attest::Args),
    Verify(commands::verify::Args),
    Status(commands::status::Args),
    Doctor(commands::doctor::Args),
    Replay(commands::replay::Args),
    Show(commands::show::Args),
    Log(commands::log::Args),
    Check(commands::check::Args),
    Diff(commands::diff::Args),
    Store(commands::store::Args),
    Sandbox(commands::sandbox::Args),
    Conformance(commands::conformance::Args),
    Demo(commands::demo::Args),
    /// Open files and start programs for `imastage conformance`, which starts this process.
    #[command(hide = true)]
    ConformanceHelper,
    #[command(hide = true)]
    SourceProcess(commands::source_process::Args),
    #[command(hide = true)]
    Generate(commands::generate::Args),
}

fn main() -> ExitCode {
    let (cli, settings) = match config::load(std::env::args_os().collect()) {
        Ok(loaded) => loaded,
        Err(LoadError::Usage(error)) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            // Nowhere is left to say that nothing could be printed.
            let _ = error.print();
            return ExitCode::from(code);
        }
        Err(error) => return report(&Failure::input(error), &Output::new(false)),
    };
    output::init_log(cli.log_level);
    let out = Output::new(cli.json);
    let outcome = match cli.command {
        Command::Run(args) => commands::run::run(args, settings, &out),
        Command::Attest(args) => commands::attest::run(args, &out),
        Command::Verify(args) => commands::verify::run(args, &out),
        Command::Status(args) => commands::status::run(args, &out),
        Command::Doctor(args) => commands::doctor::run(args, &out),
        Command::Replay(args) => commands::replay::run(args, &out),
        Command::Show(args) => commands::show::run(args, &out),
        Command::Log(args) => commands::log::run(args, &out),
        Command::Check(args) => commands::check::run(args, &out),
        Command::Diff(args) => commands::diff::run(args, &out),
        Command::Store(args) => commands::store::run(args, &out),
        Command::Sandbox(args) => commands::sandbox::run(args, &out),
        Command::Conformance(args) => commands::conformance::run(args, &out),
        Command::ConformanceHelper => commands::conformance::run_helper(),
        Command::Demo(args) => commands::demo::run(args, &out),
        Command::SourceProcess(args) => commands::source_process::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
    };
    match outcome {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::EvidenceSaysNo) => ExitCode::from(1),
        Err(failure) => report(&failure, &out),
    }
}

/// Prints what went wrong, and gives the exit code.
fn report(failure: &Failure, out: &Output) -> ExitCode {
    if failure.is_closed_output() {
        return ExitCode::SUCCESS;
    }
    out.error(&failure.text());
    ExitCode::from(failure.code())
}
