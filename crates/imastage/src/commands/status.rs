//! `imastage status`: asks the service for its status and prints it.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

use bytesize::ByteSize;
use ima_log::{Extend, IMA_PCR, Printable};
use imastage_client::{
    Client, ClientError,
    health::{Health, Level, State},
    text::utc,
    wire::{BankStatus, PcrStatus, Status, Verdict},
};
use imastage_service::{holder, status_at_rest, status_unanswered};

use crate::{
    commands::state_dir,
    exit::{Fail, Failure, Outcome},
    output::{Output, Tone},
};

/// Show what the service stores, and whether it is consistent with the TPM.
///
/// Asks the running service; if none runs, checks the whole state directory. The first line is the
/// worst condition. Exit code 1 if records are missing, altered, damaged or not proven by the TPM;
/// 3 if the service cannot drain or compare at the moment, starts, reads stored records, does not
/// answer, or does not run.
#[derive(clap::Args)]
#[command(after_help = crate::examples::STATUS)]
pub struct Args {
    /// The service's state directory [default: /var/lib/imastage as root, else
    /// ~/.local/state/imastage].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Repeat every SECONDS seconds until interrupted.
    #[arg(
        long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    watch: Option<u64>,
    /// Show the PCR values of every bank.
    #[arg(short, long)]
    verbose: bool,
}

/// Runs `imastage status`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let state = state_dir(args.state)?;
    let client = Client::of_state(&state).environment("runtime")?;
    if let Some(seconds) = args.watch {
        return watch(&client, Duration::from_secs(seconds), args.verbose, out);
    }
    let status = ask(&state, &client)?;
    out.answer(&status, text(&status, args.verbose, out))?;
    match status.health.level() {
        Level::Fine => Ok(Outcome::Fine),
        Level::Evidence => Ok(Outcome::EvidenceSaysNo),
        Level::Environment => Err(Failure::environment(&status.health.reason)),
    }
}

/// What the service says; if none answers, why, and what the state directory tells.
fn ask(state: &Path, client: &Client) -> Result<Status, Failure> {
    let error = match client.status() {
        Ok(status) => return Ok(status),
        Err(error) => error,
    };
    let is_unreachable = matches!(error, ClientError::Unreachable { .. });
    match holder(state) {
        Some(pid) if is_unreachable => {
            let reason = format!("a service starts (pid {pid}), and does not answer yet");
            Ok(status_unanswered(state, pid, State::Starting, reason))
        }
        Some(pid) => Ok(status_unanswered(state, pid, State::NoAnswer, error.to_string())),
        None if is_unreachable => Ok(status_at_rest(state)?),
        // It may have ended just now; if there are no records either, that is no state directory.
        None => status_at_rest(state).or(Err(error.into())),
    }
}

/// Never returns but for an output that is closed.
fn watch(
    client: &Client,
    pause: Duration,
    verbose: bool,
    out: &Output,
) -> Result<Outcome, Failure> {
    loop {
        let status = client.status();
        out.clear()?;
        match status {
            Ok(status) => {
                out.answer(&status, format!("{}\n{}", utc_now(), text(&status, verbose, out)))?
            }
            // It may be starting again.
            Err(error) => out.error(&error.to_string()),
        }
        thread::sleep(pause);
    }
}

fn utc_now() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    utc(now.map_or(0, |since| since.as_secs()))
}

/// How the service is, in one line.
pub fn health_text(status: &Status, out: &Output) -> String {
    let Health { reason, .. } = &status.health;
    let tone = match (status.health.level(), &status.verdict) {
        (Level::Fine, Verdict::Consistent { .. }) => Tone::Good,
        (Level::Fine, _) => Tone::Dim,
        _ => Tone::Bad,
    };
    out.paint(tone, Printable::new(reason))
}

fn text(status: &Status, verbose: bool, out: &Output) -> String {
    let mut text = health_text(status, out);
    // Writing to a String cannot fail, here and below.
    for condition in status.health.conditions.iter().skip(1) {
        let _ = write!(text, "\n{}", out.paint(Tone::Bad, Printable::new(&condition.reason)));
    }
    for problem in status.problems.iter().skip(1) {
        let _ = write!(text, "\n{}", out.paint(Tone::Bad, Printable::new(problem)));
    }
    let activity = &status.since_start;
    if let (Some(pid), false) = (status.pid, activity.source.is_empty()) {
        let _ = write!(
            text,
            "\nservice running (pid {pid}), draining {} ({})",
            Printable::new(&activity.source),
            Printable::new(&activity.dialect)
        );
    }
    let _ = write!(
        text,
        "\nepoch {}: {} records stored, {}",
        status.epoch,
        status.records,
        ByteSize(status.bytes).display().si()
    );
    if !activity.source.is_empty() {
        let _ = write!(
            text,
            "\nsince start: {} drains, {} records stored, {} deleted ({}), files held p50 {} us, \
             p99 {} us, max {} us",
            activity.drains,
            activity.stored,
            activity.deleted,
            ByteSize(activity.deleted_bytes).display().si(),
            activity.hold_p50_us,
            activity.hold_p99_us,
            activity.longest_hold_us
        );
    }
    for (bank, replayed) in status.banks.iter().filter(|_| verbose) {
        pcrs_text(&mut text, bank, replayed, status);
    }
    text
}

/// A bank's PCRs as records replay, and as the TPM has them.
fn pcrs_text(text: &mut String, bank: &str, of: &BankStatus, status: &Status) {
    let way = match of.extended_with {
        Some(Extend::Own) | None => "",
        Some(Extend::Sha1Padded) => ", SHA-1 padded with zeros",
        Some(Extend::Sha1PaddedViolations) => ", SHA-1 and violations padded with zeros",
    };
    let own = PcrStatus {
        pcr: of.pcr.unwrap_or(IMA_PCR),
        replayed: of.replayed.clone(),
        tpm: of.tpm.clone(),
    };
    let others = of.pcrs.iter().filter(|other| other.pcr != own.pcr);
    for PcrStatus { pcr, replayed, tpm } in [&own].into_iter().chain(others) {
        // Writing to a String cannot fail, here and below.
        let _ = write!(text, "\nPCR {pcr} {bank:<6} {replayed} (replayed{way})");
        match tpm {
            Some(tpm) => {
                let consistent = matches!(status.verdict, Verdict::Consistent { .. });
                let ahead = if consistent && tpm != replayed {
                    ", ahead by what is drained next"
                } else {
                    ""
                };
                let _ = write!(text, "\n              {tpm} (TPM{ahead})");
            }
            None if *pcr != own.pcr && of.tpm.is_some() => {
                let _ =
                    write!(text, "\n              not checked: others than the kernel extend it");
            }
            None => {}
        }
    }
}
