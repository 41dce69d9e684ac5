//! `imastage store`: checks, repairs, exports, packs and prunes the stored epochs.

mod export;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use clap::ArgGroup;
use imastage_store::{
    CheckReport, Damage, DirectoryReport, EpochSummary, Packing, RepairReport, StoreError,
    check_directory, check_epoch, epochs, pack, prune, repair,
};
use serde_json::{Value, json};

use crate::{
    commands::{retention::RetentionArgs, state_dir},
    exit::{Failure, Outcome},
    output::{Output, Tone},
};

/// Check, repair, export, pack and prune stored records.
#[derive(clap::Args)]
#[command(after_help = crate::examples::STORE)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    /// The service's state directory [default: /var/lib/imastage as root, else
    /// ~/.local/state/imastage].
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Read everything again: each record, digest, commit and running PCR.
    ///
    /// Reports for each damage its place, what was expected and what to do. Changes nothing, and
    /// may run beside the service. Exit code 1 if anything is damaged.
    #[command(after_help = crate::examples::STORE_CHECK)]
    Check {
        /// Only this epoch [default: all].
        #[arg(long, value_name = "NUMBER")]
        epoch: Option<u64>,
    },
    /// Repair what can be repaired without losing records; stop the service first.
    ///
    /// Stored records are never changed; everything that is truncated or overwritten is copied
    /// first. Exit code 1 if damage remains that only a backup can repair.
    #[command(after_help = crate::examples::STORE_REPAIR)]
    Repair {
        /// Only print what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Write an epoch's records as plain files with the kernel's file names.
    #[command(after_help = crate::examples::STORE_EXPORT)]
    Export(export::Args),
    /// Compress closed epochs; all commands and gunzip can still read them.
    #[command(after_help = crate::examples::STORE_PACK)]
    Pack,
    /// Remove closed epochs, the oldest first. The current epoch is never removed.
    #[command(after_help = crate::examples::STORE_PRUNE)]
    Prune(PruneArgs),
}

#[derive(clap::Args)]
#[command(group(ArgGroup::new("policy").required(true).multiple(true).args([
    "keep_epochs",
    "max_bytes",
    "max_age",
])))]
struct PruneArgs {
    #[command(flatten)]
    kept: RetentionArgs,
    /// Only print what would be removed.
    #[arg(long)]
    dry_run: bool,
}

/// Runs `imastage store`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let state = state_dir(args.state)?;
    match args.command {
        Command::Check { epoch } => {
            let mut directory = check_directory(&state)?;
            let mut all = match epochs(&state) {
                // No directory is there: that is in the report.
                Err(StoreError::Damaged { .. }) if !directory.damage.is_empty() => Vec::new(),
                all => all?,
            };
            if let Some(number) = epoch {
                all.retain(|epoch| epoch.number == number);
                if all.is_empty() {
                    let path = state.clone();
                    return Err(StoreError::NoSuchEpoch { path, asked: number }.into());
                }
            }
            let checked = all
                .into_iter()
                .map(|epoch| check_epoch(&state, epoch.number).map(|report| (epoch, report)));
            let checked = checked.collect::<Result<Vec<_>, _>>()?;
            // What its own epoch says is said there.
            let known = |path: &Path| {
                let mut damage = checked.iter().flat_map(|(_, report)| &report.damage);
                damage.any(|damage| damage.path == path)
            };
            directory.damage.retain(|damage| !known(&damage.path));
            tell_check(&directory, &checked, out)
        }
        Command::Repair { dry_run } => tell_repair(&repair(&state, dry_run)?, dry_run, out),
        Command::Export(args) => export::run(args, &state, out),
        Command::Pack => tell_pack(&pack(&state)?, out),
        Command::Prune(args) => {
            let PruneArgs { kept, dry_run } = args;
            tell_prune(&prune(&state, &kept.into(), dry_run)?, dry_run, out)
        }
    }
}

fn tell_check(
    directory: &DirectoryReport,
    checked: &[(EpochSummary, CheckReport)],
    out: &Output,
) -> Result<Outcome, Failure> {
    let mut text = String::new();
    for damage in &directory.damage {
        let line = out.paint(Tone::Bad, damage);
        let _ = writeln!(text, "{line}\n  {}", out.paint(Tone::Dim, damage.remedy));
    }
    for remark in &directory.remarks {
        let _ = writeln!(text, "{remark}");
    }
    let mut values = Vec::new();
    for (epoch, report) in checked {
        let is_fine = report.damage.is_empty();
        let verdict = match is_fine {
            true => out.paint(Tone::Good, "whole"),
            false => out.paint(Tone::Bad, format!("{} damaged", report.damage.len())),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}: {verdict}", headline(epoch));
        for damage in report.damage.iter().chain(&report.checkpoints) {
            let _ = writeln!(text, "  {damage}\n    {}", out.paint(Tone::Dim, damage.remedy));
        }
        values.push(json!({
            "epoch": epoch.number,
            "closed": epoch.closed,
            "packed": epoch.packed,
            "records": report.records,
            "disk_bytes": epoch.disk_bytes,
            "damage": report.damage.iter().map(damage_value).collect::<Vec<_>>(),
            "checkpoints": report.checkpoints.iter().map(damage_value).collect::<Vec<_>>(),
        }));
    }
    if checked.is_empty() && directory.damage.is_empty() {
        text.push_str("no records were stored yet");
    }
    let damage: Vec<Value> = directory.damage.iter().map(damage_value).collect();
    let directory_value = json!({ "damage": damage, "remarks": directory.remarks });
    out.answer(&json!({ "directory": directory_value, "epochs": values }), text.trim_end())?;
    let is_fine = directory.damage.is_empty();
    let is_fine = is_fine && checked.iter().all(|(_, report)| report.damage.is_empty());
    Ok(if is_fine { Outcome::Fine } else { Outcome::EvidenceSaysNo })
}

fn tell_repair(reports: &[RepairReport], dry_run: bool, out: &Output) -> Result<Outcome, Failure> {
    let mut text = String::new();
    for RepairReport { number, done, left } in reports {
        for repair in done {
            let would = if dry_run { "would have " } else { "" };
            let _ =
                writeln!(text, "epoch {number}: {}: {would}{}", repair.path.display(), repair.what);
            if let Some(kept) = &repair.kept {
                let _ = writeln!(text, "  what was there is in {}", kept.display());
            }
        }
        for damage in left.iter().filter(|_| !dry_run) {
            let damage_line = out.paint(Tone::Bad, damage);
            let _ = writeln!(text, "epoch {number}: {damage_line}\n  {}", damage.remedy);
        }
    }
    if text.is_empty() {
        text.push_str("nothing is to be repaired");
    }
    let values: Vec<Value> = reports
        .iter()
        .map(|RepairReport { number, done, left }| {
            let done: Vec<Value> = done
                .iter()
                .map(|done| json!({ "path": done.path, "what": done.what, "kept": done.kept }))
                .collect();
            let left: Vec<Value> = left.iter().map(damage_value).collect();
            json!({ "epoch": number, "done": done, "left": left })
        })
        .collect();
    out.answer(&json!({ "dry_run": dry_run, "epochs": values }), text.trim_end())?;
    let is_fine = reports.iter().all(|report| report.left.is_empty());
    Ok(if is_fine { Outcome::Fine } else { Outcome::EvidenceSaysNo })
}

fn tell_pack(packings: &[Packing], out: &Output) -> Result<Outcome, Failure> {
    let mut text = String::new();
    for Packing { number, before, after, damage } in packings {
        let _ = match damage {
            Some(damage) => {
                let why = out.paint(Tone::Bad, format!("left as it is: {damage}"));
                writeln!(text, "epoch {number}: {why}")
            }
            None => writeln!(text, "epoch {number}: {before} bytes packed into {after}"),
        };
    }
    if packings.is_empty() {
        text.push_str("no closed epoch is to be packed");
    }
    let values: Vec<Value> = packings
        .iter()
        .map(|packing| {
            let Packing { number, before, after, damage } = packing;
            json!({ "epoch": number, "before": before, "after": after, "damage": damage })
        })
        .collect();
    out.answer(&json!({ "epochs": values }), text.trim_end())?;
    let is_fine = packings.iter().all(|packing| packing.damage.is_none());
    Ok(if is_fine { Outcome::Fine } else { Outcome::EvidenceSaysNo })
}

fn tell_prune(pruned: &[EpochSummary], dry_run: bool, out: &Output) -> Result<Outcome, Failure> {
    let removed = if dry_run { "would be removed" } else { "removed" };
    let mut text: Vec<String> =
        pruned.iter().map(|epoch| format!("{}: {removed}", headline(epoch))).collect();
    if text.is_empty() {
        text.push("no epoch is to be removed".to_owned());
    }
    let values: Vec<Value> = pruned
        .iter()
        .map(|epoch| {
            let EpochSummary { number, records, disk_bytes, .. } = epoch;
            json!({ "epoch": number, "records": records, "disk_bytes": disk_bytes })
        })
        .collect();
    out.answer(&json!({ "dry_run": dry_run, "removed": values }), text.join("\n"))?;
    Ok(Outcome::Fine)
}

fn headline(epoch: &EpochSummary) -> String {
    let kind = match (epoch.closed, epoch.packed) {
        (None, _) => "open",
        (Some(_), false) => "closed",
        (Some(_), true) => "closed, packed",
    };
    let EpochSummary { number, records, disk_bytes, .. } = epoch;
    format!("epoch {number} ({kind}): {records} records, {disk_bytes} bytes on disk")
}

fn damage_value(damage: &Damage) -> Value {
    let Damage { path, offset, records, what, remedy } = damage;
    json!({
        "path": path,
        "offset": offset,
        "from": records.start,
        "to": records.end,
        "what": what,
        "remedy": remedy.to_string(),
    })
}
