//! `imastage-conformance`: the conformance tests as a program of its own, for kernel developers.
#![forbid(unsafe_code)]

use std::{
    error::Error,
    ffi::OsStr,
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use imastage_conformance::{Args, Group, HELPER, Ktap, RunError, run, serve_helper};

#[derive(Parser)]
#[command(name = "imastage-conformance", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

const EXIT_CODES: &str = "\
Exit codes: 0 no case failed; 1 a case failed; 2 usage, or records would be deleted; 3 environment
(no staging interface, no permission, list in use).";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().as_deref() == Some(OsStr::new(HELPER)) && args.next().is_none() {
        return ExitCode::from(if serve_helper().is_ok() { 0 } else { 3 });
    }
    let done = conform(&Cli::parse().args);
    done.unwrap_or_else(|error| {
        let usage = error.downcast_ref().is_some_and(RunError::is_usage);
        // Neither may prevent the exit code.
        if !usage {
            let _ = writeln!(io::stdout(), "KTAP version 1\n1..0 # SKIP {error}");
        }
        let _ = writeln!(io::stderr(), "imastage-conformance: {error}");
        ExitCode::from(if usage { 2 } else { 3 })
    })
}

fn conform(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let mut out = io::stdout();
    if args.list {
        for group in args.groups()? {
            writeln!(out, "{}", group.line())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let helper = std::env::current_exe()?;
    let options = args.options(&helper)?;
    let (mut head, mut ktap) = (Some(Ktap::head(&options)), Ktap::default());
    let mut printed = Ok(());
    let counts = run(&options, &mut |group: &Group| {
        let lines = head.take().into_iter().chain([ktap.group(group)]).collect::<Vec<_>>();
        if printed.is_ok() {
            printed = writeln!(out, "{}", lines.join("\n"));
        }
    })?;
    printed?;
    writeln!(
        out,
        "# Totals: pass:{} fail:{} skip:{}",
        counts.passed, counts.failed, counts.skipped
    )?;
    Ok(ExitCode::from(u8::from(counts.failed > 0)))
}
