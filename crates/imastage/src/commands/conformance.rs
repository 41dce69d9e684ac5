//! `imastage conformance`: the tests of `imastage-conformance`, run on a directory.

use std::{
    env, io,
    path::{Path, PathBuf},
};

use imastage_conformance::{
    Adding, Group, Ktap, Listed, Machine, Measure, Options, RunError, Step, run as conform,
    serve_helper,
};
use imastage_sandbox::{
    Kexec,
    control::{Command as Ask, ask},
};

use crate::{
    exit::{Fail, Failure, Outcome},
    output::Output,
};

// The description is that of the arguments of the library.
#[derive(clap::Args)]
#[command(after_help = crate::examples::CONFORMANCE)]
pub struct Args {
    #[command(flatten)]
    suite: imastage_conformance::Args,
}

/// Runs `imastage conformance`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let args = args.suite;
    if args.list {
        return list(&args.groups().map_err(failure)?, out);
    }
    let helper = env::current_exe().environment("conformance")?;
    let plain = args.options(&helper).map_err(failure)?;
    let dir = plain.dir;
    let is_sandbox = ask(dir, &Ask::Status, &mut |_| {}).is_ok();
    let measure: Box<Adding<'_>> = Box::new(move |paths| by_sandbox(dir, paths));
    let violate: Box<Adding<'_>> = Box::new(move |paths| {
        ask(dir, &Ask::Violation { paths: paths.to_vec() }, &mut |_| {}).map(drop)
    });
    let machine: Box<Machine<'_>> = Box::new(move |step| step_of_sandbox(dir, step));
    let options = match is_sandbox {
        true => Options {
            measure: args.measure.as_deref().map_or(Measure::Call(&*measure), Measure::Command),
            violate: Some(&*violate),
            machine: Some(&*machine),
            ..plain
        },
        false => plain,
    };

    let (mut ktap, mut groups) = (Ktap::default(), Vec::new());
    let mut printed = Ok(());
    let mut begun = false;
    let counts = conform(&options, &mut |group: &Group| {
        if out.is_json() {
            groups.push(group.clone());
        } else if printed.is_ok() {
            let head = if begun { String::new() } else { Ktap::head(&options) + "\n" };
            printed = out.line(head + &ktap.group(group));
        }
        begun = true;
    });
    let counts = counts.map_err(failure)?;
    printed?;
    let answer = serde_json::json!({ "dialect": options.dialect.to_string(), "groups": groups, "counts": counts });
    let totals =
        format!("# Totals: pass:{} fail:{} skip:{}", counts.passed, counts.failed, counts.skipped);
    out.answer(&answer, totals)?;
    Ok(if counts.failed == 0 { Outcome::Fine } else { Outcome::EvidenceSaysNo })
}

/// Runs `imastage conformance-helper`, the process that opens files and starts programs for a run.
pub fn run_helper() -> Result<Outcome, Failure> {
    serve_helper().environment("conformance-helper")?;
    Ok(Outcome::Fine)
}

fn list(groups: &[Listed], out: &Output) -> Result<Outcome, Failure> {
    let lines: Vec<String> = groups.iter().map(Listed::line).collect();
    out.answer(&serde_json::json!({ "groups": groups }), lines.join("\n"))?;
    Ok(Outcome::Fine)
}

fn failure(error: RunError) -> Failure {
    if error.is_usage() {
        return Failure::input(error);
    }
    Failure::environment(format!("conformance: {error}"))
}

fn by_sandbox(dir: &Path, paths: &[PathBuf]) -> io::Result<()> {
    ask(dir, &Ask::Measure { paths: paths.to_vec() }, &mut |_| {}).map(drop)
}

fn step_of_sandbox(dir: &Path, step: Step) -> io::Result<()> {
    let command = match step {
        Step::Suspend => Ask::Suspend { dump: false },
        Step::Dump => Ask::Suspend { dump: true },
        Step::Kexec => Ask::Kexec(Kexec::default()),
        // A reboot would reset the TPM, which may not be the sandbox's own.
        Step::Restart => Ask::Kexec(Kexec { forget: true, ..Kexec::default() }),
    };
    ask(dir, &command, &mut |_| {}).map(drop)
}
