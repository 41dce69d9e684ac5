use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use imastage_conformance::{Group, Ktap, Measure, Options, RunError, run as conform};
use imastage_sandbox::control::{Command as Ask, ask};

use crate::{
    exit::{Fail, Failure, Outcome},
    output::Output,
};

/// Test whether the files in DIR behave as those of Linux 7.2 with staging.
///
/// DIR is securityfs's `ima` directory of a kernel, or of anything that stands in for one. Prints
/// KTAP; each case that failed with what was expected. Deletes every record in the list.
#[derive(clap::Args)]
pub struct Args {
    /// The directory, such as /sys/kernel/security/integrity/ima.
    dir: PathBuf,
    /// Run even though records are in the list: they are deleted, and no verifier can check this
    /// machine again before it is rebooted.
    #[arg(long)]
    destructive: bool,
    /// Run only the cases of one rule, such as 1.4.
    #[arg(long)]
    rule: Option<String>,
    /// A shell command that has one file measured, with {} for its path. Without it a sandbox is
    /// asked to, and elsewhere the file is executed.
    #[arg(long, value_name = "CMD")]
    measure: Option<String>,
}

/// Runs `imastage conformance`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let dir = args.dir.as_path();
    let measure: Box<Measure<'_>> = match &args.measure {
        Some(command) if !command.contains("{}") => {
            return Err(Failure::input("--measure: {} is missing, where the path is to stand"));
        }
        Some(command) => Box::new(move |paths| each(paths, |path| by_command(command, path))),
        None if ask(dir, &Ask::Status, &mut |_| {}).is_ok() => {
            Box::new(move |paths| by_sandbox(dir, paths))
        }
        None => Box::new(|paths| each(paths, by_executing)),
    };
    let rule = args.rule.as_deref();
    let options = Options { dir, measure: &*measure, destructive: args.destructive, rule };

    let (mut ktap, mut groups) = (Ktap::default(), Vec::new());
    let mut printed = Ok(());
    let mut begun = false;
    let counts = conform(&options, &mut |group: &Group| {
        if out.is_json() {
            groups.push(group.clone());
        } else if printed.is_ok() {
            let head = if begun { String::new() } else { Ktap::head(rule) + "\n" };
            printed = out.line(head + &ktap.group(group));
        }
        begun = true;
    });
    let counts = match counts {
        Err(error @ (RunError::WouldDelete { .. } | RunError::Rule { .. })) => {
            return Err(Failure::input(error));
        }
        counts => counts.environment("conformance")?,
    };
    printed?;
    let answer = serde_json::json!({ "groups": groups, "counts": counts });
    let totals =
        format!("# Totals: pass:{} fail:{} skip:{}", counts.passed, counts.failed, counts.skipped);
    out.answer(&answer, totals)?;
    Ok(if counts.failed == 0 { Outcome::Fine } else { Outcome::EvidenceSaysNo })
}

fn each(paths: &[PathBuf], measure: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    paths.iter().try_for_each(|path| measure(path))
}

fn by_sandbox(dir: &Path, paths: &[PathBuf]) -> io::Result<()> {
    ask(dir, &Ask::Measure { paths: paths.to_vec() }, &mut |_| {}).map(drop)
}

fn by_command(command: &str, path: &Path) -> io::Result<()> {
    // The path is an argument, so that a shell never reads it.
    let command = command.replace("{}", "\"$1\"");
    let mut shell = Command::new("/bin/sh");
    succeeds(shell.args(["-c", &command, "sh"]).arg(path))
}

fn by_executing(path: &Path) -> io::Result<()> {
    /// Another thread that is just starting a program may hold the file open for writing.
    const ATTEMPTS: usize = 100;
    for _ in 1..ATTEMPTS {
        match succeeds(&mut Command::new(path)) {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                thread::sleep(Duration::from_millis(1));
            }
            done => return done,
        }
    }
    succeeds(&mut Command::new(path))
}

fn succeeds(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{}: {}", output.status, said.trim())))
}
