//! `imastage sandbox`: starts a sandbox, and sends requests to a running one.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::Subcommand;
use ima_log::Bank;
use imastage_sandbox::{
    Config, Dialect, Duplicates, Fault, Hazard, Kernel, Kexec, Sandbox, TpmChoice,
    control::{Answer, Command as Ask, Measured, ask},
};

use crate::{
    commands::wait_for_stop,
    exit::{Fail, Failure, Outcome},
    output::{Output, Progress},
};

/// IMA in user space: a measurement list behind a FUSE mount with securityfs's file names.
///
/// Runs until SIGINT (Ctrl-C) or SIGTERM. Measures on request of `sandbox measure` and, as root,
/// every program that is executed.
#[derive(clap::Args)]
#[command(after_help = crate::examples::SANDBOX)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    /// The mount point, a directory; created if it does not exist.
    #[arg(long, value_name = "DIR", required = true)]
    mount: Option<PathBuf>,
    /// The TPM that is extended: `swtpm` (started and stopped with the sandbox), a device such as
    /// /dev/tpm0, `unix:PATH`, `tcp:HOST:PORT`, or `none`.
    #[arg(long, value_name = "TPM", default_value = "swtpm")]
    tpm: TpmChoice,
    /// The interface of the files: `7.2` (Linux), `v4` (version 4 of the patches: A, D and N on the
    /// staged files) or `trim` (T:N on ima_trim_log).
    #[arg(long, default_value_t)]
    dialect: Dialect,
    /// Deleting staged records also deletes all digests, as with the boot parameter
    /// ima_flush_htable; N and T:N are refused then.
    #[arg(long)]
    flush_htable: bool,
    /// Do not detect duplicates, as with CONFIG_IMA_DISABLE_HTABLE. Overrides --flush-htable.
    #[arg(long)]
    no_htable: bool,
    /// The banks that have files, such as sha1,sha256; swtpm is started with these only [default:
    /// all banks of the TPM].
    #[arg(long, value_name = "BANK,...", value_delimiter = ',')]
    banks: Option<Vec<Bank>>,
    #[command(flatten)]
    kernel: KernelArgs,
    /// Measure kexec and trimming, as with a policy rule for CRITICAL_DATA.
    #[arg(long)]
    critical_data: bool,
    /// Measure only on request, not the programs that are executed.
    #[arg(long)]
    no_watch: bool,
    /// Reproduce a known bug of Linux 7.2: `lock-books` (the lock gets stuck or lost
    /// unless a writer has one file open and closes it in the thread that opened it), `no-memory` (D
    /// says ENOMEM and deletes all the same). May be given several times.
    #[arg(long, value_name = "NAME")]
    hazard: Vec<Hazard>,
    /// Break this rule of the interface, to test conformance tests.
    #[arg(long, value_name = "NAME", hide = true)]
    fault: Option<Fault>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Measure files, and all files below directories.
    #[command(after_help = crate::examples::SANDBOX_MEASURE)]
    Measure {
        #[command(flatten)]
        at: At,
        /// The PCR to extend, 0 to 23, as by a policy rule with pcr=N [default: the kernel's own].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..24))]
        pcr: Option<u32>,
        /// Files and directories.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Add violations, as for files that are written while they are measured.
    #[command(after_help = crate::examples::SANDBOX_VIOLATION)]
    Violation {
        #[command(flatten)]
        at: At,
        /// The names in the records; the files need not exist.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Measure a buffer (a record of template ima-buf).
    #[command(after_help = crate::examples::SANDBOX_CRITICAL_DATA)]
    CriticalData {
        #[command(flatten)]
        at: At,
        /// The name in the record.
        name: String,
        /// A file with the data, at most 500 kB [default: standard input].
        file: Option<PathBuf>,
    },
    /// Add the records of a binary list, and extend the TPM with them.
    #[command(after_help = crate::examples::SANDBOX_REPLAY)]
    Replay {
        #[command(flatten)]
        at: At,
        /// The list.
        list: PathBuf,
        /// At most N records a second [default: no limit].
        #[arg(long, value_name = "N")]
        rate: Option<u64>,
    },
    /// Suspend measuring, as the kernel does at shutdown: later requests are refused.
    #[command(after_help = crate::examples::SANDBOX_SUSPEND)]
    Suspend {
        #[command(flatten)]
        at: At,
        /// Also write the records for the next kernel, as before kexec.
        #[arg(long)]
        dump: bool,
    },
    /// Simulate kexec: records are carried over, the TPM keeps its state. Options tell how the next
    /// kernel differs from this one.
    #[command(after_help = crate::examples::SANDBOX_KEXEC)]
    Kexec {
        #[command(flatten)]
        at: At,
        /// Carry over at most N bytes of records; the rest is lost [default: the size that the
        /// kernel would reserve].
        #[arg(long, value_name = "BYTES")]
        capacity: Option<usize>,
        /// The next kernel does not restore records (CONFIG_IMA_KEXEC is off).
        #[arg(long)]
        forget: bool,
        #[command(flatten)]
        kernel: KernelArgs,
    },
    /// Reboot: the list is emptied and the TPM is reset. Requires --tpm swtpm or none. First stop
    /// the services that drain the list, as a machine does that shuts down.
    #[command(after_help = crate::examples::SANDBOX_REBOOT)]
    Reboot {
        #[command(flatten)]
        at: At,
    },
    /// Print the state.
    #[command(after_help = crate::examples::SANDBOX_STATUS)]
    Status {
        #[command(flatten)]
        at: At,
    },
}

/// How a kernel was built, and what it finds when it starts.
#[derive(clap::Args)]
struct KernelArgs {
    /// The PCR that is extended and that records name (CONFIG_IMA_MEASURE_PCR_IDX), 8 to 14
    /// [default: 10].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(8..15))]
    pcr: Option<u32>,
    /// IMA initialises late (CONFIG_IMA_INIT_LATE_SYNC, Linux 7.3): the first record is named
    /// boot_aggregate_late.
    #[arg(long)]
    late: bool,
    /// Banks that are extended with zero-padded SHA-1, because their hash algorithm is unavailable
    /// when IMA initialises: sha384,sha512 for a stock 6.1.
    #[arg(long, value_name = "BANK,...", value_delimiter = ',')]
    padded: Vec<Bank>,
    /// A kernel before 5.8: all banks are extended with padded SHA-1, and a violation extends them
    /// with 20 bytes of 0xff, padded with zeros.
    #[arg(long)]
    padded_violations: bool,
    /// IMA initialises before the TPM driver: boot_aggregate is zero and no PCR is extended, but
    /// programs can use the TPM.
    #[arg(long)]
    tpm_late: bool,
}

impl KernelArgs {
    /// `None` if none of them is given.
    fn kernel(self) -> Option<Kernel> {
        let default = Kernel::default();
        let kernel = Kernel {
            pcr: self.pcr.unwrap_or(default.pcr),
            late: self.late,
            padded: self.padded,
            padded_violations: self.padded_violations,
            tpm_late: self.tpm_late,
        };
        (self.pcr.is_some() || kernel != default).then_some(kernel)
    }
}

#[derive(clap::Args)]
struct At {
    /// Where the sandbox is mounted.
    #[arg(long, value_name = "DIR")]
    mount: PathBuf,
}

/// Runs `imastage sandbox`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let Some(action) = args.action else { return serve(args, out) };
    let (at, order) = match action {
        Action::Measure { at, pcr, paths } => {
            let paths = absolute(paths)?;
            let order = match pcr {
                None => Ask::Measure { paths },
                Some(pcr) => Ask::MeasureInto { pcr, paths },
            };
            (at, order)
        }
        Action::Violation { at, paths } => (at, Ask::Violation { paths: absolute(paths)? }),
        Action::CriticalData { at, name, file } => {
            let data = hex::encode(data(file.as_deref())?);
            (at, Ask::CriticalData { name, data })
        }
        Action::Replay { at, list, rate } => {
            (at, Ask::Replay { path: std::path::absolute(&list).input(list.display())?, rate })
        }
        Action::Suspend { at, dump } => (at, Ask::Suspend { dump }),
        Action::Kexec { at, capacity, forget, kernel } => {
            (at, Ask::Kexec(Kexec { capacity, forget, kernel: kernel.kernel() }))
        }
        Action::Reboot { at } => (at, Ask::Reboot),
        Action::Status { at } => (at, Ask::Status),
    };
    let mut progress = Progress::files();
    let answer = ask(&at.mount, &order, &mut |so_far| {
        progress.at(so_far.added + so_far.known + so_far.unreadable);
    })
    .environment("sandbox")?;
    drop(progress);
    tell(&answer, out)?;
    Ok(Outcome::Fine)
}

fn serve(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let Some(mount) = args.mount else { return Err(Failure::input("--mount DIR is missing")) };
    let duplicates = match (args.no_htable, args.flush_htable) {
        (true, flush) => {
            if flush {
                tracing::warn!("--flush-htable is ignored because of --no-htable");
            }
            Duplicates::Off
        }
        (false, true) => Duplicates::Flush,
        (false, false) => Duplicates::Detect,
    };
    let config = Config {
        dialect: args.dialect,
        duplicates,
        banks: args.banks,
        kernel: args.kernel.kernel().unwrap_or_default(),
        critical_data: args.critical_data,
        watch: !args.no_watch,
        hazards: args.hazard,
        ..Config::new(mount, args.tpm)
    };
    let stop = wait_for_stop()?;
    let sandbox = Sandbox::start_with(&config, args.fault).environment("sandbox")?;
    let watching = sandbox.watches_programs();
    let answer = serde_json::json!({
        "mount": config.mount,
        "dialect": config.dialect.to_string(),
        "tpm": sandbox.tpm_endpoint().map(ToString::to_string),
        "watching_programs": watching.is_ok(),
    });
    let programs = match watching {
        Ok(()) => "programs are measured as they are executed".to_owned(),
        Err(why) => format!("programs are not watched ({why})"),
    };
    let tpm = sandbox.tpm_endpoint().map_or("none".to_owned(), ToString::to_string);
    let text = format!(
        "mounted at {}; dialect {}; TPM: {tpm}; {programs}",
        config.mount.display(),
        config.dialect
    );
    out.answer(&answer, text)?;
    stop.wait();
    sandbox.stop();
    Ok(Outcome::Fine)
}

fn absolute(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, Failure> {
    paths.into_iter().map(|path| std::path::absolute(&path).input(path.display())).collect()
}

fn data(file: Option<&Path>) -> Result<Vec<u8>, Failure> {
    const MOST: u64 = 500_000;
    let mut data = Vec::new();
    let name = file.unwrap_or(Path::new("standard input")).display();
    let read = match file {
        Some(file) => {
            std::fs::File::open(file).and_then(|file| file.take(MOST + 1).read_to_end(&mut data))
        }
        None => io::stdin().lock().take(MOST + 1).read_to_end(&mut data),
    };
    read.input(&name)?;
    if data.len() as u64 > MOST {
        return Err(Failure::input(format!("{name}: more than {MOST} bytes; give less at once")));
    }
    Ok(data)
}

fn tell(answer: &Answer, out: &Output) -> Result<(), Failure> {
    let (json, text) = match answer {
        Answer::Done(measured) => (serde_json::to_value(measured), measured_text(measured)),
        Answer::Kexec(carried) => {
            let lost = carried.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
            let text = format!(
                "{} of {} records are in the next kernel's list{lost}",
                carried.carried, carried.before
            );
            (serde_json::to_value(carried), text)
        }
        Answer::Status(status) => {
            let text = format!(
                "{} records measured, {} violations\n{} current, {} staged ({} bytes)\n\
                 {} trimmed\n{} bytes let go\n{} TPM extends failed",
                status.total,
                status.violations,
                status.current,
                status.staged,
                status.held_bytes,
                status.trimmed,
                status.freed_bytes,
                status.failed_extends,
            );
            (serde_json::to_value(status), text)
        }
        Answer::Progress(_) | Answer::Failed { .. } => {
            return Err(Failure::environment("the sandbox answered something else"));
        }
    };
    out.answer(&json.environment("sandbox")?, text)
}

fn measured_text(measured: &Measured) -> String {
    let Measured { added, known, unreadable, examples } = measured;
    let mut text = format!("{added} records added, {known} known already");
    if *unreadable > 0 {
        text += &format!(", {unreadable} unreadable, for example:");
        for example in examples {
            text += &format!("\n  {example}");
        }
    }
    text
}
