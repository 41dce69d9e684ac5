//! `imastage replay`: the PCR values that a list leads to, compared with given ones.

mod report;
mod threads;

use std::path::PathBuf;

use ima_log::{
    Bank, Digest, Explain, Explanation, Extend, ListReplay, PcrSet, PcrTarget, Prefix, Record,
};
use imastage_verifier::PcrValues;

use crate::{
    commands::evidence_files::read_pcrs,
    exit::{Failure, Outcome},
    input::List,
    output::Output,
};

/// Replay a list: records, violations, every PCR that records name in each bank, and which prefix
/// matches given values.
///
/// With --pcrs, exit code 1 means that a PCR that records name does not have the value that the
/// records replay to, or was never extended.
#[derive(clap::Args)]
#[command(after_help = crate::examples::REPLAY)]
pub struct Args {
    /// PCR values to match: the output of tpm2_pcrread, its file (-F serialized -o), `BANK INDEX
    /// HEX` lines, evmctl's `PCR-NN: HEX` (requires --bank), or the value from sysfs.
    #[arg(long, value_name = "FILE")]
    pcrs: Option<PathBuf>,
    /// Only these banks: sha1, sha256, sha384, sha512, sm3 [default: the first four, and those of
    /// FILE].
    #[arg(long = "bank", value_name = "ALG")]
    banks: Vec<Bank>,
    /// Only these PCRs, such as 10 or 10-12 [default: all that records name].
    #[arg(long = "pcr", value_name = "PCRS")]
    only: Vec<PcrSet>,
    /// On a mismatch, search the last N records for one that is missing, repeated or altered; the
    /// work grows with the square of N.
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

impl Replayed {
    /// Whether every value given is the one that records lead to.
    fn is_met(&self) -> bool {
        let unmet =
            |pcr: &PcrAnswer| matches!(pcr.compared, Compared::NeverExtended | Compared::Mismatch);
        !self.pcrs.iter().any(unmet)
    }
}

fn replay(args: &Args, banks: &[Bank], values: Option<&PcrValues>) -> Result<Replayed, Failure> {
    let only = PcrSet::from_iter(args.only.iter().copied());
    // Standard input cannot be read again when something does not match.
    let once = args.list.as_os_str() == "-";
    let mut states: Vec<Bankwise> = banks
        .iter()
        .map(|bank| Bankwise::new(*bank, values, once.then_some(args.window)))
        .collect();
    // The sha1 bank computes anyway what a check needs.
    let checker = states.iter().position(|state| state.bank == Bank::Sha1).unwrap_or(0);
    if let Some(state) = states.get_mut(checker) {
        state.checks = true;
    }
    let mut first: Option<(bool, bool)> = None;
    let look = |index, record: &Record<'_>| {
        if index == 0 {
            first = Some((record.begins_kernel(), record.says_no_tpm()));
        }
    };
    let states =
        threads::run(List::open(&args.list)?, states, look, Bankwise::push, |state| state)?;

    let pcrs: Vec<PcrAnswer> = states
        .iter()
        .flat_map(|state| state.replay.named().iter().map(move |pcr| (pcr, state)))
        .filter(|(pcr, _)| only.is_empty() || only.contains(*pcr))
        .map(|(pcr, state)| state.answer(pcr, values))
        .collect();
    let counted = states.first().map(|state| &state.replay);
    let (from_boot_aggregate, kernel_had_no_tpm) = first.unwrap_or_default();
    let mut replayed = Replayed {
        records: counted.map_or(0, ListReplay::records),
        violations: counted.map_or(0, ListReplay::violations),
        from_boot_aggregate,
        kernel_had_no_tpm,
        wrong_digest: states.iter().find_map(|state| state.wrong_digest),
        own: counted.and_then(ListReplay::pcr),
        pcrs,
        explained: None,
    };
    replayed.pcrs.sort_by_key(|answer| (Some(answer.pcr) != replayed.own, answer.pcr));
    replayed.explained = if once {
        states.into_iter().find_map(|state| state.explains?.find(&replayed))
    } else {
        explain(args, &replayed, values)?
    };
    Ok(replayed)
}

/// Reads the list again to find out why it does not lead to a value: of one bank, because a record
/// that is wrong is wrong in all of them.
fn explain(
    args: &Args,
    replayed: &Replayed,
    values: Option<&PcrValues>,
) -> Result<Option<Explained>, Failure> {
    let Some((mismatch, values)) = replayed.mismatch().zip(values) else { return Ok(None) };
    let (pcr, bank) = (mismatch.pcr, mismatch.bank);
    let Some(value) = values.get(bank, pcr) else { return Ok(None) };
    let explains = ways(bank).map(|extend| (extend, Explain::new(pcr, value, extend)));
    let explains = explains.map(|(extend, explain)| (extend, explain.window(args.window)));
    let found = threads::run(
        List::open(&args.list)?,
        explains.collect(),
        |_, _| {},
        |(_, explain), record| explain.push(record),
        |(extend, explain)| (extend, explain.find(), explain.looked_from()),
    )?;
    let looked_from = found.iter().map(|(_, _, from)| *from).max().unwrap_or(0);
    let found = found.into_iter().find_map(|(extend, found, _)| Some((extend, found?)));
    Ok(Some(Explained { pcr, bank, found, looked_from }))
}

impl Replayed {
    /// The mismatch that is explained: the list's own PCR before others, the bank that is replayed
    /// fastest.
    fn mismatch(&self) -> Option<&PcrAnswer> {
        let mismatches = self.pcrs.iter().filter(|pcr| matches!(pcr.compared, Compared::Mismatch));
        mismatches.min_by_key(|pcr| {
            let speed = match pcr.bank {
                Bank::Sha1 => 0,
                Bank::Sha256 => 1,
                _ => 2,
            };
            (Some(pcr.pcr) != self.own, pcr.pcr, speed)
        })
    }
}

impl Bankwise {
    /// `window` is given if the list can be read only once.
    fn new(bank: Bank, values: Option<&PcrValues>, window: Option<usize>) -> Bankwise {
        let targets: Vec<PcrTarget> = (0..PcrSet::LIMIT)
            .filter_map(|pcr| Some(PcrTarget { pcr, value: values?.get(bank, pcr)? }))
            .collect();
        let mut replay = match targets[..] {
            [] => ListReplay::with_own_hash([bank]),
            _ => ListReplay::new([bank]),
        };
        replay.look_for(&targets);
        let explains = window.filter(|_| !targets.is_empty()).map(|window| Explains {
            window,
            values: targets,
            begun: Vec::new(),
        });
        Bankwise { bank, replay, checks: false, wrong_digest: None, explains }
    }

    fn push(&mut self, record: &Record<'_>) {
        if let Some(explains) = &mut self.explains {
            explains.push(self.replay.records(), record);
        }
        if self.checks && self.wrong_digest.is_none() {
            if record.digest_is_right() {
                self.replay.push_checked(record);
                return;
            }
            self.wrong_digest = Some(self.replay.records());
        }
        self.replay.push(record);
    }

    fn answer(&self, pcr: u32, values: Option<&PcrValues>) -> PcrAnswer {
        let (bank, replay) = (self.bank, &self.replay);
        let value = replay.value(bank, pcr).unwrap_or(Digest::reset(bank, pcr));
        let is_own = replay.pcr() == Some(pcr);
        let own = replay.pcr().and_then(|own| replay.found(bank, own));
        let compared =
            match (values.and_then(|values| values.get(bank, pcr)), replay.found(bank, pcr)) {
                (None, _) => Compared::NotGiven,
                (Some(given), _) if is_own && given == Digest::reset(bank, pcr) => {
                    Compared::NeverExtended
                }
                // The records that lead there must be those that lead the list's own PCR to its value.
                (Some(given), Some((prefix, extend))) => match own {
                    Some((own, _)) if own.from > prefix.to || own.to < prefix.from => {
                        if given == Digest::reset(bank, pcr) {
                            Compared::NeverExtended
                        } else {
                            Compared::Mismatch
                        }
                    }
                    _ => Compared::Matches(prefix, extend),
                },
                (Some(_), None) => Compared::Mismatch,
            };
        PcrAnswer { pcr, bank, value, compared }
    }
}

impl Explains {
    fn push(&mut self, index: u64, record: &Record<'_>) {
        if index == 0
            && let Some(target) = self.values.iter().find(|target| target.pcr == record.pcr())
        {
            let PcrTarget { pcr, value } = *target;
            let explain = |extend| Explain::new(pcr, value, extend).window(self.window);
            self.begun = ways(value.bank()).map(|extend| (extend, explain(extend))).collect();
        }
        self.begun.iter_mut().for_each(|(_, explain)| explain.push(record));
    }

    fn find(self, replayed: &Replayed) -> Option<Explained> {
        let mismatch = replayed.mismatch()?;
        let (_, first) = self.begun.first()?;
        let looked_from = first.looked_from();
        let bank = self.values.first()?.value.bank();
        let is_it = Some(mismatch.pcr) == replayed.own && mismatch.bank == bank;
        let find = || self.begun.iter().find_map(|(extend, e)| Some((*extend, e.find()?)));
        is_it.then(|| Explained { pcr: mismatch.pcr, bank, found: find(), looked_from })
    }
}

/// The ways in which kernels extend a bank.
fn ways(bank: Bank) -> impl Iterator<Item = Extend> {
    Extend::ALL.into_iter().filter(move |extend| bank != Bank::Sha1 || *extend == Extend::Own)
}

/// The values to match.
fn given(args: &Args, path: &std::path::Path) -> Result<PcrValues, Failure> {
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
    let only = PcrSet::from_iter(args.only.iter().copied());
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
