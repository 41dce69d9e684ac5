mod threads;

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

use ima_log::{Bank, Cause, Digest, Explain, Explanation, Extend, IMA_PCR, PrefixSearch, Record};
use serde::Serialize;

use crate::{
    commands::evidence_files::read_pcrs,
    exit::{Failure, Outcome},
    input::List,
    output::{Output, Tone},
};

/// Replay a list: records, violations, PCR 10 in each bank, and which prefix matches given values.
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
    /// On a mismatch, at how many records to look for one left out, repeated or altered, from the
    /// end; the work grows with the square.
    #[arg(long, value_name = "RECORDS", default_value_t = Explain::WINDOW)]
    window: usize,
    /// A measurement list, `-`, or a state directory.
    list: PathBuf,
}

#[derive(Serialize)]
struct Answer {
    records: u64,
    violations: u64,
    /// Whether the first record is a `boot_aggregate`: if not, records before it are missing.
    from_boot_aggregate: bool,
    banks: BTreeMap<&'static str, BankAnswer>,
}

#[derive(Serialize)]
struct BankAnswer {
    pcr: String,
    r#match: Option<Match>,
    /// What explains that nothing matches; absent where something does or nothing is to.
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<Explained>,
}

#[derive(Serialize)]
struct Match {
    records: u64,
    extend: &'static str,
}

#[derive(Serialize)]
struct Explained {
    /// What happened, and to which record; null if nothing that was tried explains the value.
    cause: Option<&'static str>,
    record: Option<u64>,
    /// How many records the value then stands for.
    records: Option<u64>,
    extend: Option<&'static str>,
    /// From which record on single records were tried.
    looked_from: u64,
}

/// One bank's replay, and if nothing matches why not.
struct Bankwise {
    bank: Bank,
    search: PrefixSearch,
    explains: Vec<(Extend, Explain)>,
    explained: Option<(Extend, Explanation)>,
    looked_from: u64,
}

/// The banks that TPMs of PCs have.
const USUAL: [Bank; 4] = [Bank::Sha1, Bank::Sha256, Bank::Sha384, Bank::Sha512];

/// Runs `imastage replay`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let targets = targets(&args)?;
    let mut banks = args.banks.clone();
    if banks.is_empty() {
        banks.extend(USUAL);
        banks.extend(targets.keys().filter(|bank| !USUAL.contains(bank)));
    }
    // Standard input cannot be read again when something does not match.
    let once = args.list.as_os_str() == "-";
    let replays = banks.iter().map(|bank| {
        let target = targets.get(bank).copied();
        Bankwise::new(*bank, target, args.window, once)
    });
    let mut from_boot_aggregate = false;
    let look = |index, record: &Record<'_>| {
        if index == 0 {
            from_boot_aggregate = record.event_name() == Some(b"boot_aggregate");
        }
    };
    let list = List::open(&args.list)?;
    let mut replays =
        threads::run(list, replays.collect(), look, Bankwise::push, Bankwise::finished)?;

    let unmatched = |replay: &Bankwise| {
        targets.contains_key(&replay.bank) && replay.search.bank_match(replay.bank).is_none()
    };
    let matched = !replays.iter().any(unmatched);
    if !matched && !once {
        let explains = replays.iter().filter(|replay| unmatched(replay)).map(|replay| {
            Bankwise::new(replay.bank, targets.get(&replay.bank).copied(), args.window, true)
        });
        let list = List::open(&args.list)?;
        let explained = threads::run(
            list,
            explains.collect(),
            |_, _| {},
            Bankwise::push_to_explains,
            Bankwise::finished,
        )?;
        for explained in explained {
            let replay = replays.iter_mut().find(|replay| replay.bank == explained.bank);
            if let Some(replay) = replay {
                replay.explained = explained.explained;
                replay.looked_from = explained.looked_from;
            }
        }
    }

    let answer = Answer {
        records: replays.first().map_or(0, |replay| replay.search.records()),
        violations: replays.first().map_or(0, |replay| replay.search.violations()),
        from_boot_aggregate,
        banks: replays
            .iter()
            .map(|replay| (replay.bank.name(), replay.answer(unmatched(replay))))
            .collect(),
    };
    let text = text(&answer, &replays, &targets, out);
    out.answer(&answer, text)?;
    Ok(if matched { Outcome::Fine } else { Outcome::EvidenceSaysNo })
}

impl Bankwise {
    fn new(bank: Bank, target: Option<Digest>, window: usize, explain: bool) -> Bankwise {
        let mut search = PrefixSearch::new(IMA_PCR);
        search.add_bank(bank, target);
        let kinds: &[Extend] = match bank {
            Bank::Sha1 => &[Extend::Own],
            _ => &[Extend::Own, Extend::Sha1Padded],
        };
        let explains = target.filter(|_| explain).map(|target| {
            let explain = |kind| Explain::new(IMA_PCR, target, kind).window(window);
            kinds.iter().map(|kind| (*kind, explain(*kind))).collect()
        });
        let explains = explains.unwrap_or_default();
        Bankwise { bank, search, explains, explained: None, looked_from: 0 }
    }

    fn push(&mut self, record: &Record<'_>) {
        self.search.push(record);
        self.push_to_explains(record);
    }

    fn push_to_explains(&mut self, record: &Record<'_>) {
        self.explains.iter_mut().for_each(|(_, explain)| explain.push(record));
    }

    /// Looks for what explains that nothing matches.
    fn finished(mut self) -> Bankwise {
        if self.search.bank_match(self.bank).is_none() {
            self.looked_from = self.explains.first().map_or(0, |(_, e)| e.looked_from());
            self.explained = self
                .explains
                .iter()
                .find_map(|(extend, explain)| explain.find().map(|found| (*extend, found)));
        }
        self.explains.clear();
        self
    }

    fn answer(&self, unmatched: bool) -> BankAnswer {
        let pcr = self.search.value(self.bank).map(|value| value.to_string());
        let found = self.search.bank_match(self.bank);
        BankAnswer {
            pcr: pcr.unwrap_or_default(),
            r#match: found
                .map(|found| Match { records: found.records, extend: extend_name(found.extend) }),
            explanation: unmatched.then(|| Explained {
                cause: self.explained.map(|(_, found)| cause_name(found.cause)),
                record: self.explained.map(|(_, found)| found.record),
                records: self.explained.map(|(_, found)| found.records),
                extend: self.explained.map(|(extend, _)| extend_name(extend)),
                looked_from: self.looked_from,
            }),
        }
    }
}

fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::NotExtended => "not-extended",
        Cause::RepeatMissing => "repeat-missing",
        Cause::ViolationMissing => "violation-missing",
        Cause::WasViolation => "was-violation",
        Cause::DataAltered => "data-altered",
        Cause::ResetBefore => "reset-before",
        _ => "other",
    }
}

/// The name of an extend kind in JSON and text.
pub fn extend_name(extend: Extend) -> &'static str {
    match extend {
        Extend::Own => "own",
        Extend::Sha1Padded => "sha1-padded",
    }
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
    answer: &Answer,
    replays: &[Bankwise],
    targets: &BTreeMap<Bank, Digest>,
    out: &Output,
) -> String {
    let mut text = format!("{} records, {} violations", answer.records, answer.violations);
    let mut unexplained = false;
    for replay in replays {
        let bank = replay.bank;
        let value = replay.search.value(bank).map(|value| value.to_string()).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(text, "\nPCR {IMA_PCR} {bank:<6} {value}");
        if !targets.contains_key(&bank) {
            continue;
        }
        let verdict = match (replay.search.bank_match(bank), replay.explained) {
            (Some(found), _) => {
                let all = if found.records == answer.records { "all " } else { "the first " };
                let extend = extend_text(found.extend);
                out.paint(Tone::Good, format!("matches {all}{} records{extend}", found.records))
            }
            (None, Some((extend, found))) => {
                let why = format!("{}{}", cause_text(found), extend_text(extend));
                let no = out.paint(Tone::Bad, "matches no prefix of the list");
                format!("{no}\n              {why}")
            }
            (None, None) => {
                unexplained = true;
                out.paint(Tone::Bad, "matches no prefix of the list")
            }
        };
        let _ = write!(text, "\n              {verdict}");
    }
    if unexplained && replays.iter().all(|replay| replay.explained.is_none()) {
        let from = replays.iter().map(|replay| replay.looked_from).max().unwrap_or(0);
        let _ = write!(
            text,
            "\nno single record left out, repeated or altered explains it, looked for from record \
             {from} on"
        );
    }
    if answer.records > 0 && !answer.from_boot_aggregate {
        let _ = write!(
            text,
            "\nthe list does not begin with boot_aggregate: records before its first are missing"
        );
    }
    text
}

fn extend_text(extend: Extend) -> &'static str {
    match extend {
        Extend::Own => "",
        Extend::Sha1Padded => ", extended with zero-padded SHA-1",
    }
}

/// What happened, as a sentence.
fn cause_text(found: Explanation) -> String {
    let Explanation { cause, record, records } = found;
    let what = match cause {
        Cause::NotExtended => format!("record {record} never extended the PCR: without it"),
        Cause::RepeatMissing => format!("a second record like {record} is missing: with it"),
        Cause::ViolationMissing => {
            format!("a violation is missing before record {record}: with it")
        }
        Cause::WasViolation => format!("record {record} was a violation: as one"),
        Cause::DataAltered => {
            format!("the data of record {record} is not what was measured: by the printed digests")
        }
        Cause::ResetBefore => format!("the TPM was reset before record {record}: from there on"),
        _ => format!("record {record} is not what was measured: otherwise"),
    };
    format!("{what} the PCR stands for the first {records} records")
}
