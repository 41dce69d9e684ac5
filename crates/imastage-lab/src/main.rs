//! `imastage-lab`: runs named scenarios on real kernels.
#![forbid(unsafe_code)]

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use imastage_lab::{
    INTERRUPTED, KERNELS, Kernel, KernelName, LIST, Lab, LabError, Plan,
    guest::{
        self,
        agent::{self, Agent},
        reproduce::{Finding, reproduce},
    },
    scenario::{self, Report, SCENARIOS, Scenario},
};
use serde_json::json;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

/// Real kernels with IMA and a virtual TPM, in QEMU.
///
/// Exit codes: 0 success; 1 a scenario failed; 2 usage; 3 environment (a program is not installed,
/// a guest does not boot).
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// The directory of downloads [default: target/lab, or $IMASTAGE_LAB].
    #[arg(long, global = true, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List scenarios and kernels.
    List,
    /// Run one scenario or all.
    Run {
        /// The name of the scenario, or `all`.
        scenario: String,
        /// A kernel; can be repeated [default: 6.1-cloud, 6.12-cloud, and all kernels that are
        /// built].
        #[arg(long = "kernel", value_name = "K")]
        kernels: Vec<String>,
    },
    /// Boot a kernel, measure some files, and write the list, PCRs and console into a directory.
    Capture {
        /// The output directory; created if missing.
        out: PathBuf,
        /// The kernel.
        #[arg(long, value_name = "K", default_value = "6.12-cloud")]
        kernel: String,
        /// Additional words for the kernel's command line.
        #[arg(long, value_name = "WORDS", default_value = "ima_policy=tcb")]
        append: String,
    },
    /// Build a kernel from Debian's source (5 to 10 minutes; a further variant of the same version
    /// takes 1 to 2 minutes).
    BuildKernel {
        /// The kernel; `list` shows those that can be built.
        kernel: String,
    },
    /// In a guest: stage or delete until SIGTERM, as another agent does.
    #[command(hide = true)]
    Agent {
        /// What it does.
        agent: Agent,
        /// The pause after each request in milliseconds.
        pause: u64,
    },
    /// In a guest: try whether the kernel shows a behaviour.
    #[command(hide = true)]
    Reproduce {
        /// The behaviour.
        finding: Finding,
    },
    /// Open a console in a guest; `poweroff -f` or Ctrl-A X ends it.
    Shell {
        /// The kernel.
        #[arg(long, value_name = "K", default_value = "6.12-cloud")]
        kernel: String,
        /// Additional words for the kernel's command line.
        #[arg(long, value_name = "WORDS", default_value = "ima_policy=tcb")]
        append: String,
    },
}

fn main() -> ExitCode {
    // In a guest, the kernel starts this program as init.
    if std::process::id() == 1 {
        guest::run();
        return ExitCode::FAILURE;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            // If printing fails, the error cannot be reported either.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match obey(cli) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "imastage-lab: {error:#}");
            let verdict = error.downcast_ref::<LabError>().is_some_and(LabError::is_verdict);
            ExitCode::from(if verdict { 1 } else { 3 })
        }
    }
}

fn obey(cli: Cli) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::spawn(move || {
        for _ in signals.forever() {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
    let lab =
        || Lab::new(&std::env::current_exe()?, cli.cache.clone()).map_err(anyhow::Error::from);
    match cli.command {
        Command::Agent { agent, pause } => {
            let done = agent::run(agent, Path::new(LIST), Duration::from_millis(pause))?;
            line(json!({ "batches": done.batches, "held": done.held }))?;
        }
        Command::Reproduce { finding } => line(reproduce(finding, Path::new(LIST))?)?,
        Command::List => list(&lab()?, cli.json)?,
        Command::Run { scenario, kernels } => {
            return run(&lab()?, &scenario, kernels, cli.json);
        }
        Command::Capture { out, kernel, append } => {
            let lab = lab()?;
            let plan = Plan { append, ..Plan::default() };
            scenario::capture(&lab, &lab.kernel(&kernel)?, &plan, &out)?;
        }
        Command::BuildKernel { kernel } => {
            let kernel = lab()?.build_kernel(&kernel)?;
            if cli.json {
                line(json!({ "kernel": kernel.name, "package": kernel.package }))?;
            } else {
                line(format!("{} is built from {}", kernel.name, kernel.package))?;
            }
        }
        Command::Shell { kernel, append } => {
            let lab = lab()?;
            let plan = Plan { append, ..Plan::default() };
            imastage_lab::shell(&lab.kernel(&kernel)?, lab.programs(), &plan)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(lab: &Lab, as_json: bool) -> anyhow::Result<()> {
    let state = |kernel: &KernelName| match lab.is_cached(kernel.name) {
        true => "ready",
        false if kernel.is_built() => "build-kernel builds it",
        false => "downloaded when needed",
    };
    if as_json {
        let scenarios: Vec<_> = SCENARIOS
            .iter()
            .map(|s| json!({ "name": s.name, "about": s.about, "kernels": s.kernels.to_string() }))
            .collect();
        let kernels: Vec<_> = KERNELS
            .iter()
            .map(|kernel| json!({ "name": kernel.name, "state": state(kernel) }))
            .collect();
        return line(json!({ "scenarios": scenarios, "kernels": kernels }));
    }
    line("scenarios:")?;
    for scenario in &SCENARIOS {
        line(format!("  {:<12} {} ({})", scenario.name, scenario.about, scenario.kernels))?;
    }
    line("kernels:")?;
    for kernel in &KERNELS {
        line(format!("  {:<14} {}", kernel.name, state(kernel)))?;
    }
    Ok(())
}

fn run(lab: &Lab, name: &str, kernels: Vec<String>, as_json: bool) -> anyhow::Result<ExitCode> {
    let chosen: Vec<_> =
        SCENARIOS.iter().filter(|scenario| name == "all" || scenario.name == name).collect();
    if chosen.is_empty() {
        line(format!("no scenario {name}; see imastage-lab list"))?;
        return Ok(ExitCode::from(2));
    }
    let kernels = match kernels.is_empty() {
        true => {
            let built = KERNELS.iter().filter(|k| k.is_built() && lab.is_cached(k.name));
            let built = built.map(|kernel| kernel.name);
            ["6.1-cloud", "6.12-cloud"].into_iter().chain(built).map(str::to_owned).collect()
        }
        false => kernels,
    };
    let mut worst = 0;
    for name in kernels {
        let kernel = lab.kernel(&name).context(name)?;
        for scenario in &chosen {
            if !scenario.kernels.include(&kernel) {
                let why = format!("for {}", scenario.kernels);
                skipped(scenario, &kernel, &why, as_json)?;
                continue;
            }
            let since = Instant::now();
            let mut report = Report::default();
            let result = (scenario.run)(lab, &kernel, &mut report);
            let seconds = since.elapsed().as_secs_f32();
            let (verdict, code) = match &result {
                Ok(()) => ("pass", 0),
                Err(error) if error.is_verdict() => ("fail", 1),
                Err(_) => ("error", 3),
            };
            worst = worst.max(code);
            let why = result.as_ref().err().map(ToString::to_string);
            if as_json {
                line(json!({
                    "scenario": scenario.name, "kernel": kernel.name, "verdict": verdict,
                    "seconds": seconds, "why": why, "seen": report.seen,
                }))?;
            } else {
                line(format!("{verdict} {} on {} ({seconds:.1} s)", scenario.name, kernel.name))?;
                for (what, value) in &report.seen {
                    line(format!("    {what}: {value}"))?;
                }
                if let Some(why) = why {
                    line(format!("    {why}"))?;
                }
            }
            if matches!(result, Err(LabError::Interrupted)) {
                return Ok(ExitCode::from(3));
            }
        }
    }
    Ok(ExitCode::from(worst))
}

fn skipped(scenario: &Scenario, kernel: &Kernel, why: &str, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let (scenario, kernel) = (scenario.name, &kernel.name);
        return line(
            json!({ "scenario": scenario, "kernel": kernel, "verdict": "skip", "why": why }),
        );
    }
    line(format!("skip {} on {}: {why}", scenario.name, kernel.name))
}

fn line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).context("standard output")
}
