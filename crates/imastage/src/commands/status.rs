use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use imastage_service::{
    Client, ClientError, status_at_rest,
    wire::{Activity, ExtendedWith, Parting, Status, Verdict},
};

use crate::{
    commands::state_dir,
    exit::{Fail, Failure, Outcome},
    output::{Output, Tone},
};

/// Tell what the service keeps, and whether it agrees with the TPM.
///
/// Asks the running service; if none runs, checks the whole state directory. Exit code 1 if records
/// are missing, altered or damaged, 3 if the service cannot drain or cannot compare at the moment.
#[derive(clap::Args)]
pub struct Args {
    /// The service's state directory [default: /var/lib/imastage as root, else
    /// ~/.local/state/imastage].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Ask the running service again and again, every so many seconds, until interrupted.
    #[arg(
        long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    watch: Option<u64>,
}

/// Runs `imastage status`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let state = state_dir(args.state)?;
    if let Some(seconds) = args.watch {
        return watch(&state, Duration::from_secs(seconds), out);
    }
    let status = match Client::of_state(&state).environment("runtime")?.status() {
        Ok(status) => status,
        Err(ClientError::Unreachable { .. }) => status_at_rest(&state)?,
        Err(error) => return Err(error.into()),
    };
    out.answer(&status, text(&status, out))?;
    if is_bad(&status) {
        return Ok(Outcome::EvidenceSaysNo);
    }
    let Activity { last_error, tpm_error, .. } = &status.since_start;
    match last_error.as_ref().or(tpm_error.as_ref()) {
        Some(error) => Err(Failure::environment(error)),
        None => Ok(Outcome::Fine),
    }
}

/// Never returns but for an output that is closed.
fn watch(state: &Path, pause: Duration, out: &Output) -> Result<Outcome, Failure> {
    let client = Client::of_state(state).environment("runtime")?;
    loop {
        let status = client.status();
        out.clear()?;
        match status {
            Ok(status) => out.answer(&status, text(&status, out))?,
            // It may be starting again.
            Err(error) => out.error(&error.to_string()),
        }
        thread::sleep(pause);
    }
}

/// Whether records are missing or damaged.
pub fn is_bad(status: &Status) -> bool {
    let is_bad = match status.verdict {
        Verdict::Unchecked | Verdict::InStep { .. } | Verdict::Behind { .. } => false,
        Verdict::Parted(_) | Verdict::Altered { .. } => true,
    };
    is_bad || !status.problems.is_empty()
}

/// The verdict in words.
pub fn verdict_text(verdict: &Verdict, out: &Output) -> String {
    match verdict {
        Verdict::Unchecked => out.paint(Tone::Dim, "not compared with a TPM"),
        Verdict::InStep { records } => out
            .paint(Tone::Good, format!("in step with the TPM: {records} records replay to PCR 10")),
        Verdict::Behind { records, waiting } => out.paint(
            Tone::Bad,
            format!(
                "behind the TPM: {records} records replay to what PCR 10 was, {waiting} wait in \
                 the list"
            ),
        ),
        Verdict::Parted(parting) => {
            let Parting { after, before, cause, time, text } = parting;
            let after = after.map_or("the beginning".to_owned(), |index| format!("index {index}"));
            out.paint(
                Tone::Bad,
                format!(
                    "{cause}: between {after} and index {before}, found at {time} (seconds since \
                     1970): {text}; nothing from there on can be verified before the next TPM reset"
                ),
            )
        }
        Verdict::Altered { index, why } => out.paint(
            Tone::Bad,
            format!("altered record: index {index}: {why}; it stays in the list"),
        ),
    }
}

fn text(status: &Status, out: &Output) -> String {
    let mut text = verdict_text(&status.verdict, out);
    for problem in &status.problems {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n{}", out.paint(Tone::Bad, problem));
    }
    let service = match status.pid {
        Some(pid) => format!(
            "service running (pid {pid}), draining {} ({})",
            status.since_start.source, status.since_start.dialect
        ),
        None => "no service is running".to_owned(),
    };
    let _ = write!(
        text,
        "\n{service}\nepoch {}: {} records stored, {} bytes",
        status.epoch, status.records, status.bytes
    );
    for (bank, pcr) in &status.banks {
        let way = match pcr.extended_with {
            Some(ExtendedWith::Own) | None => "",
            Some(ExtendedWith::Padded) => ", SHA-1 padded with zeros",
        };
        let _ = write!(text, "\nPCR 10 {bank:<6} {} (replayed{way})", pcr.replayed);
        if let Some(tpm) = &pcr.tpm {
            let in_step = matches!(status.verdict, Verdict::InStep { .. });
            let ahead = if in_step && *tpm != pcr.replayed {
                ", ahead by what is drained next"
            } else {
                ""
            };
            let _ = write!(text, "\n              {tpm} (TPM{ahead})");
        }
    }
    let activity = &status.since_start;
    if status.pid.is_some() {
        let _ = write!(
            text,
            "\nsince start: {} drains, {} records stored, {} deleted ({} bytes), files held {} us \
             (half), {} us (99 of 100), {} us (at most)",
            activity.drains,
            activity.stored,
            activity.deleted,
            activity.deleted_bytes,
            activity.hold_p50_us,
            activity.hold_p99_us,
            activity.longest_hold_us
        );
    }
    if let Some(error) = &activity.tpm_error {
        let _ = write!(text, "\n{}", out.paint(Tone::Bad, format!("not compared: TPM: {error}")));
    }
    if let Some(error) = &activity.last_error {
        let _ = write!(text, "\n{}", out.paint(Tone::Bad, format!("last drain: {error}")));
    }
    text
}
