//! `imastage conformance`: the tests of `imastage-conformance`, run on a directory.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use imastage_conformance::{
    Dialect, Duplicates, Group, Ktap, Machine, Measure, Options, RunError, Step, detect,
    run as conform,
};
use imastage_sandbox::{
    Kexec,
    control::{Command as Ask, ask},
};

use crate::{
    exit::{Fail, Failure, Outcome},
    output::Output,
};

/// Test whether the files in DIR behave as a kernel's with staging do.
///
/// DIR is the `ima` directory in securityfs, or one that imitates it. Prints KTAP, with expected
/// and found for each case that failed. Deletes every record in the list. A sandbox is also
/// suspended, kexec'ed and rebooted.
#[derive(clap::Args)]
#[command(after_help = crate::examples::CONFORMANCE)]
pub struct Args {
    /// The directory, such as /sys/kernel/security/integrity/ima.
    dir: PathBuf,
    /// The expected interface: `7.2` (Linux), `v4` (version 4 of the patches: A, D and N on the
    /// staged files) or `trim` (T:N on ima_trim_log) [default: detected from the files].
    #[arg(long)]
    dialect: Option<Dialect>,
    /// Expect that deleting staged records also deletes all digests, as with the boot parameter
    /// ima_flush_htable; N and T:N are refused then.
    #[arg(long)]
    flush_htable: bool,
    /// Expect that duplicates are not detected, as with CONFIG_IMA_DISABLE_HTABLE. Overrides
    /// --flush-htable.
    #[arg(long)]
    no_htable: bool,
    /// Run although the list has records: they are deleted, and this machine cannot be verified
    /// before its next reboot.
    #[arg(long)]
    destructive: bool,
    /// Expect that the kernel measures kexec and trimming, as with a policy rule for CRITICAL_DATA.
    /// Runs only these cases (1.10).
    #[arg(long)]
    critical_data: bool,
    /// Also run the cases that fail on Linux 7.2 if a writer has two descriptors: the list is
    /// locked against writers afterwards until reboot.
    #[arg(long)]
    hazards: bool,
    /// Run only the cases of one rule: 1.1 files and system calls, 1.2 locking and permissions, 1.3
    /// request grammar, 1.4 requests in every state, 1.5 reads, 1.6 counters, 1.7 duplicates, 1.8
    /// shutdown and kexec, 1.9 hazards, 1.10 critical data.
    #[arg(long)]
    rule: Option<String>,
    /// A shell command that causes one file to be measured, with {} for its path [default: a
    /// request to the sandbox; elsewhere, executing the file].
    #[arg(long, value_name = "CMD")]
    measure: Option<String>,
}

/// Runs `imastage conformance`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let dir = args.dir.as_path();
    let is_sandbox = ask(dir, &Ask::Status, &mut |_| {}).is_ok();
    let measure: Box<Measure<'_>> = match &args.measure {
        Some(command) if !command.contains("{}") => {
            return Err(Failure::input("--measure: {} is missing, where the path is to stand"));
        }
        Some(command) => Box::new(move |paths| each(paths, |path| by_command(command, path))),
        None if is_sandbox => Box::new(move |paths| by_sandbox(dir, paths)),
        None => Box::new(|paths| each(paths, by_executing)),
    };
    let violate: Box<Measure<'_>> = Box::new(move |paths| {
        ask(dir, &Ask::Violation { paths: paths.to_vec() }, &mut |_| {}).map(drop)
    });
    let machine: Box<Machine<'_>> = Box::new(move |step| step_of_sandbox(dir, step));
    let options = Options {
        dir,
        dialect: args.dialect.map_or_else(|| detect(dir), Ok).environment("conformance")?,
        duplicates: match (args.no_htable, args.flush_htable) {
            (true, _) => Duplicates::Off,
            (false, true) => Duplicates::Flush,
            (false, false) => Duplicates::Detect,
        },
        measure: &*measure,
        violate: is_sandbox.then_some(&*violate),
        machine: is_sandbox.then_some(&*machine),
        destructive: args.destructive,
        critical_data: args.critical_data,
        hazards: args.hazards,
        rule: args.rule.as_deref(),
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
    let counts = match counts {
        Err(error @ (RunError::WouldDelete { .. } | RunError::Rule { .. })) => {
            return Err(Failure::input(error));
        }
        counts => counts.environment("conformance")?,
    };
    printed?;
    let answer = serde_json::json!({ "dialect": options.dialect.to_string(), "groups": groups, "counts": counts });
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

fn by_command(command: &str, path: &Path) -> io::Result<()> {
    // The path is an argument, so that a shell never reads it.
    let command = command.replace("{}", "\"$1\"");
    let mut shell = Command::new("/bin/sh");
    succeeds(shell.args(["-c", &command, "sh"]).arg(path))
}

fn by_executing(path: &Path) -> io::Result<()> {
    /// Another thread that is just starting a program may hold the file open for writing.
    const ATTEMPTS: usize = 60_000;
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
