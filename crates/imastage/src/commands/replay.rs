mod report;
mod threads;

use std::path::PathBuf;

use ima_log::{Bank, Cause, Digest, Explain, Explanation, Extend, IMA_PCR, PrefixSearch, Record};
use serde::Serialize;

use crate::{
    commands::evidence_files::read_pcrs,
    exit::{Failure, Outcome},
    input::List,
    output::Output,
};

/// Replay a list: records, violations, every PCR that records name in each bank, and which prefix
/// matches given values.
///
/// With --pcrs, exit code 1 says that some PCR that records name does not have the value they lead
/// to, or was never extended.
#[derive(clap::Args)]
pub struct Args {
    /// PCR values to match: what tpm2_pcrread prints, its file (-F serialized -o) or tpm2_quote's,
    /// `BANK INDEX HEX` lines; with --bank also evmctl's `PCR-NN: HEX` or one value alone.
    #[arg(long, value_name = "FILE")]
    pcrs: Option<PathBuf>,
    /// Only these banks: sha1, sha256, sha384, sha512, sm3 [default: the first four, and those of
    /// FILE].
    #[arg(long = "bank", value_name = "ALG")]
    banks: Vec<Bank>,
    /// Only these PCRs, such as 10 or 10-12 [default: all that records name].
    #[arg(long = "pcr", value_name = "PCRS")]
    only: Vec<PcrSet>,
    /// On a mismatch, at how many records to look for one left out, repeated or altered, from the
    /// end; the work grows with the square.
    #[arg(long, value_name = "RECORDS", default_value_t = Explain::WINDOW)]
    window: usize,
    /// A measurement list, `-`, or a state directory.
    list: PathBuf,
}

/// The banks that TPMs of PCs have.
const USUAL: [Bank; 4] = [Bank::Sha1, Bank::Sha256, Bank::Sha384, Bank::Sha512];

/// The list, replayed, beside the values given.
struct Replayed {
    records: u64,
    violations: u64,
    /// Whether the first record is a `boot_aggregate`.
    from_boot_aggregate: bool,
    /// Whether its digest is zero: the kernel found no TPM.
    kernel_had_no_tpm: bool,
    /// The first record whose printed digest is not the one of its data.
    wrong_digest: Option<u64>,
    /// The list's own PCR.
    own: Option<u32>,
    pcrs: Vec<PcrAnswer>,
    explained: Option<Explained>,
}

/// One PCR of one bank.
struct PcrAnswer {
    pcr: u32,
    bank: Bank,
    value: Digest,
    compared: Compared,
}

/// A PCR beside the value given for it.
enum Compared {
    /// No value was given.
    NotGiven,
    /// This many records lead to it.
    Matches(Prefix, Extend),
    /// The given value is that of a TPM reset, and records name the PCR.
    NeverExtended,
    /// No number of records leads to it, or none that leads the list's own PCR to its value.
    Mismatch,
}

/// What explains a mismatch, if anything that was tried does.
struct Explained {
    pcr: u32,
    bank: Bank,
    found: Option<(Extend, Explanation)>,
    /// The first record that was tried.
    looked_from: u64,
}

/// One bank's replay.
struct Bankwise {
    bank: Bank,
    replay: ListReplay,
    /// Whether this one looks at printed digests as well.
    checks: bool,
    wrong_digest: Option<u64>,
    /// Values to explain while the list is read, as it cannot be read again.
    explains: Option<Explains>,
}

/// Looks for what explains that a list does not lead to a value, in each way to extend its bank.
struct Explains {
    window: usize,
    values: Vec<PcrTarget>,
    /// Begun at the first record, which tells the list's own PCR.
    begun: Vec<(Extend, Explain)>,
}

/// Runs `imastage replay`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let values = args.pcrs.as_deref().map(|path| given(&args, path)).transpose()?;
    let mut banks = args.banks.clone();
    if banks.is_empty() {
        banks.extend(USUAL);
        let given = |bank: &Bank| values.as_ref().is_some_and(|values| has_bank(values, *bank));
        banks.extend(Bank::ALL.into_iter().filter(|bank| !USUAL.contains(bank) && given(bank)));
    }
    let replayed = replay(&args, &banks, values.as_ref())?;
    if let (Some(path), Some(values), Some(own)) = (&args.pcrs, &values, replayed.own) {
        require_value(&args, path, values, own)?;
    }
    out.answer(&report::json(&replayed), report::text(&replayed, out))?;
    Ok(if replayed.is_met() { Outcome::Fine } else { Outcome::EvidenceSaysNo })
}

/// The values of PCR 10 to match, by bank.
fn targets(args: &Args) -> Result<BTreeMap<Bank, Digest>, Failure> {
    let Some(path) = &args.pcrs else { return Ok(BTreeMap::new()) };
    let only = match args.banks.as_slice() {
        [bank] => Some(*bank),
        _ => None,
    };
    read_pcrs(path, only)
}

fn has_bank(values: &PcrValues, bank: Bank) -> bool {
    (0..PcrSet::LIMIT).any(|pcr| values.get(bank, pcr).is_some())
}

/// Without a value of the list's own PCR nothing is compared, which must not look like a match.
fn require_value(
    args: &Args,
    path: &std::path::Path,
    values: &PcrValues,
    own: u32,
) -> Result<(), Failure> {
    let only = args.only.iter().fold(PcrSet::EMPTY, |all, pcrs| all.union(*pcrs));
    let pcr =
        if only.is_empty() || only.contains(own) { own } else { only.iter().next().unwrap_or(own) };
    let lacks = |bank: &&Bank| values.get(**bank, pcr).is_none();
    let file = path.display();
    let names = format!("the list's records name PCR {own}");
    match args.banks.iter().find(lacks) {
        Some(bank) => Err(Failure::input(format!(
            "{file}: no value of PCR {pcr} in bank {bank}: {names}; give it (tpm2_pcrread {bank}:{pcr})"
        ))),
        None if Bank::ALL.iter().all(|bank| values.get(*bank, pcr).is_none()) => {
            Err(Failure::input(format!(
                "{file}: no value of PCR {pcr}: {names}; give it (tpm2_pcrread sha256:{pcr})"
            )))
        }
        None => Ok(()),
    }
}
