use std::{collections::BTreeMap, fmt::Write as _, ops::ControlFlow, path::PathBuf};

use ima_log::{Bank, Digest, Extend, IMA_PCR, PrefixSearch};
use imastage_verifier::PcrValues;
use serde::Serialize;

use crate::{
    exit::{Fail, Failure, Outcome},
    input::List,
    output::{Output, Tone},
};

/// Replay a list: records, violations, PCR 10 in each bank, and which prefix matches given values.
#[derive(clap::Args)]
pub struct Args {
    /// PCR values to match: `BANK INDEX HEX` lines, evmctl's `PCR-NN: HEX` (then with --bank), or
    /// tpm2-tools' PCR file.
    #[arg(long, value_name = "FILE")]
    pcrs: Option<PathBuf>,
    /// Only these banks [default: all four, or those of FILE]: sha1, sha256, sha384, sha512.
    #[arg(long = "bank", value_name = "ALG")]
    banks: Vec<Bank>,
    /// A binary measurement list, `-`, or a state directory.
    list: PathBuf,
}

#[derive(Serialize)]
struct Answer {
    records: u64,
    violations: u64,
    banks: BTreeMap<&'static str, BankAnswer>,
}

#[derive(Serialize)]
struct BankAnswer {
    pcr: String,
    r#match: Option<Match>,
}

#[derive(Serialize)]
struct Match {
    records: u64,
    extend: &'static str,
}

/// Runs `imastage replay`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let targets = targets(&args)?;
    let banks = if args.banks.is_empty() { Bank::ALL.to_vec() } else { args.banks.clone() };
    let mut search = PrefixSearch::new(IMA_PCR);
    for bank in &banks {
        search.add_bank(*bank, targets.get(bank).copied());
    }
    List::open(&args.list)?.each(0, |_, record| {
        search.push(record);
        Ok(ControlFlow::Continue(()))
    })?;

    let matched = targets.keys().all(|bank| search.bank_match(*bank).is_some());
    let answer = Answer {
        records: search.records(),
        violations: search.violations(),
        banks: banks
            .iter()
            .map(|bank| {
                let found = search.bank_match(*bank).map(|found| Match {
                    records: found.records,
                    extend: extend_name(found.extend),
                });
                let pcr = search.value(*bank).map(|value| value.to_string());
                (bank.name(), BankAnswer { pcr: pcr.unwrap_or_default(), r#match: found })
            })
            .collect(),
    };
    out.answer(&answer, text(&search, &banks, &targets, out))?;
    Ok(if matched { Outcome::Fine } else { Outcome::EvidenceSaysNo })
}

/// The name of an extend kind in JSON and text.
pub fn extend_name(extend: Extend) -> &'static str {
    match extend {
        Extend::Own => "own",
        Extend::Sha1Padded => "sha1-padded",
    }
}

/// Reads a file of PCR values; `bank` is for files that name none.
pub fn read_pcrs(path: &std::path::Path, bank: Option<Bank>) -> Result<PcrValues, Failure> {
    let bytes = std::fs::read(path).input(path.display())?;
    PcrValues::parse(&bytes, bank).input(path.display())
}

/// The values of PCR 10 to match, by bank.
fn targets(args: &Args) -> Result<BTreeMap<Bank, Digest>, Failure> {
    let Some(path) = &args.pcrs else { return Ok(BTreeMap::new()) };
    let only = match args.banks.as_slice() {
        [bank] => Some(*bank),
        _ => None,
    };
    let values = read_pcrs(path, only)?;
    let wanted = if args.banks.is_empty() { Bank::ALL.to_vec() } else { args.banks.clone() };
    let targets: BTreeMap<Bank, Digest> =
        wanted.iter().filter_map(|bank| Some((*bank, values.get(*bank, IMA_PCR)?))).collect();
    match wanted.iter().find(|bank| !targets.contains_key(bank)) {
        Some(bank) if !args.banks.is_empty() => Err(Failure::input(format!(
            "{}: no value of PCR {IMA_PCR} in bank {bank}",
            path.display()
        ))),
        _ if targets.is_empty() => {
            Err(Failure::input(format!("{}: no value of PCR {IMA_PCR}", path.display())))
        }
        _ => Ok(targets),
    }
}

fn text(
    search: &PrefixSearch,
    banks: &[Bank],
    targets: &BTreeMap<Bank, Digest>,
    out: &Output,
) -> String {
    let mut text = format!("{} records, {} violations", search.records(), search.violations());
    for bank in banks {
        let value = search.value(*bank).map(|value| value.to_string()).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(text, "\nPCR {IMA_PCR} {bank:<6} {value}");
        if !targets.contains_key(bank) {
            continue;
        }
        let verdict = match search.bank_match(*bank) {
            Some(found) => {
                let all = if found.records == search.records() { "all " } else { "the first " };
                let extend = match found.extend {
                    Extend::Own => "",
                    Extend::Sha1Padded => ", extended with zero-padded SHA-1",
                };
                out.paint(Tone::Good, format!("matches {all}{} records{extend}", found.records))
            }
            None => out.paint(Tone::Bad, "matches no prefix of the list"),
        };
        let _ = write!(text, "\n              {verdict}");
    }
    text
}
