//! `imastage store export`: writes an epoch as files with the names of the kernel.

use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File},
    io::{BufWriter, ErrorKind, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use ima_log::{Bank, Digest, Extend, IMA_PCR, Record, Replay, json};
use imastage_store::Reader;

use crate::{
    exit::{Fail, Failure, Outcome},
    output::{Output, Progress, Tone},
};

#[derive(clap::Args)]
pub struct Args {
    /// The epoch [default: the latest].
    #[arg(long, value_name = "NUMBER")]
    epoch: Option<u64>,
    /// A bank whose files are written in addition to those of sha1 [default: the banks whose PCR is
    /// stored].
    #[arg(long = "bank", value_name = "ALG")]
    banks: Vec<Bank>,
    /// The directory to create.
    to: PathBuf,
}

/// A file that is written.
struct Form {
    path: PathBuf,
    file: BufWriter<File>,
    kind: Kind,
}

enum Kind {
    Binary(Bank),
    Ascii(Bank),
    JsonLines,
}

/// What the records lead to, PCR by PCR.
struct Pcrs {
    kept: Vec<Replay>,
    values: BTreeMap<u32, Vec<Replay>>,
}

/// PCRs of a TPM; evmctl expects as many lines.
const PCRS: u32 = 24;

/// Runs `imastage store export`.
pub fn run(args: Args, state: &Path, out: &Output) -> Result<Outcome, Failure> {
    let reader = match args.epoch {
        Some(number) => Reader::open_number(state, number)?,
        None => Reader::open(state)?,
    };
    let mut banks = if args.banks.is_empty() { reader.epoch().banks.clone() } else { args.banks };
    banks.sort_unstable();
    banks.dedup();
    match DirBuilder::new().mode(0o700).create(&args.to) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let why = "it is there already; name a directory that is not";
            return Err(Failure::input(format!("{}: {why}", args.to.display())));
        }
        made => made.environment(args.to.display())?,
    }

    let mut forms = Form::all(&args.to, &banks)?;
    let mut pcrs = Pcrs::new(&banks, &reader.epoch().padded);
    let mut progress = Progress::bytes(Some(reader.bytes()));
    let (mut cursor, mut bytes, mut index) = (reader.records(0)?, 0, 0);
    let mut buffer = Vec::new();
    while let Some(record) = cursor.next_record()? {
        for form in &mut forms {
            form.write(&record, index, &mut buffer)?;
        }
        pcrs.extend(&record);
        index += 1;
        bytes += record.as_bytes().len() as u64;
        progress.at(bytes);
    }
    let mut files: Vec<PathBuf> = Vec::new();
    for mut form in forms {
        form.file.flush().environment(form.path.display())?;
        files.push(form.path);
    }
    files.extend(pcrs.write(&args.to)?);

    // What is exported is evidence: it has to lead to what was stored.
    let pcr = reader.pcr().unwrap_or(IMA_PCR);
    let diverged = reader.running().iter().find(|running| {
        let value = pcrs.value(pcr, running.bank(), Extend::Own);
        value.is_some_and(|value| value != **running)
    });
    let mut text: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
    if let Some(running) = diverged {
        let bank = running.bank();
        let what = format!("PCR {pcr} ({bank}) is not reached: see `imastage store check`");
        text.push(out.paint(Tone::Bad, what));
    }
    let value = serde_json::json!({
        "epoch": reader.epoch().number,
        "records": index,
        "pcr": reader.pcr(),
        "files": files,
        "replays": diverged.is_none(),
    });
    out.answer(&value, text.join("\n"))?;
    Ok(if diverged.is_none() { Outcome::Fine } else { Outcome::EvidenceSaysNo })
}

impl Form {
    /// The kernel's files, one pair a bank, and JSON lines.
    fn all(to: &Path, banks: &[Bank]) -> Result<Vec<Form>, Failure> {
        let mut kinds = vec![
            ("binary_runtime_measurements".to_owned(), Kind::Binary(Bank::Sha1)),
            ("ascii_runtime_measurements".to_owned(), Kind::Ascii(Bank::Sha1)),
        ];
        for bank in banks {
            kinds.push((format!("binary_runtime_measurements_{bank}"), Kind::Binary(*bank)));
            kinds.push((format!("ascii_runtime_measurements_{bank}"), Kind::Ascii(*bank)));
        }
        kinds.push(("records.jsonl".to_owned(), Kind::JsonLines));
        kinds
            .into_iter()
            .map(|(name, kind)| {
                let path = to.join(name);
                let file = File::create_new(&path).environment(path.display())?;
                Ok(Form { path, file: BufWriter::with_capacity(256 << 10, file), kind })
            })
            .collect()
    }

    fn write(
        &mut self,
        record: &Record<'_>,
        index: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        buffer.clear();
        match self.kind {
            Kind::Binary(bank) => record.write_binary(bank, buffer),
            Kind::Ascii(bank) => record.write_ascii(bank, buffer),
            Kind::JsonLines => json::write_record(record, index, Bank::Sha1, buffer),
        }
        self.file.write_all(buffer).environment(self.path.display())
    }
}

impl Pcrs {
    fn new(banks: &[Bank], padded: &[Bank]) -> Pcrs {
        let own = banks.iter().map(|bank| Replay::new(*bank, Extend::Own));
        let padded = padded.iter().map(|bank| Replay::new(*bank, Extend::Sha1Padded));
        Pcrs { kept: own.chain(padded).collect(), values: BTreeMap::new() }
    }

    fn extend(&mut self, record: &Record<'_>) {
        if record.pcr() >= PCRS {
            return;
        }
        let pcrs = self.values.entry(record.pcr()).or_insert_with(|| self.kept.clone());
        pcrs.iter_mut().for_each(|pcr| pcr.extend(record));
    }

    /// `None` if the bank is not replayed.
    fn value(&self, pcr: u32, bank: Bank, extend: Extend) -> Option<Digest> {
        let pcrs = self.values.get(&pcr).unwrap_or(&self.kept);
        let is_it = |pcr: &&Replay| (pcr.value().bank(), pcr.extend_kind()) == (bank, extend);
        pcrs.iter().find(is_it).map(Replay::value)
    }

    /// A file for each bank, as evmctl reads them (`--pcrs sha256,FILE`).
    fn write(&self, to: &Path) -> Result<Vec<PathBuf>, Failure> {
        let mut paths = Vec::new();
        for kept in &self.kept {
            let (bank, extend) = (kept.value().bank(), kept.extend_kind());
            let path = to.join(match extend {
                Extend::Own => format!("pcrs-{bank}"),
                Extend::Sha1Padded | Extend::Sha1PaddedViolations => {
                    format!("pcrs-{bank}-padded")
                }
            });
            let lines: String = (0..PCRS)
                .filter_map(|pcr| {
                    Some(format!("PCR-{pcr:02}: {}\n", self.value(pcr, bank, extend)?))
                })
                .collect();
            std::fs::write(&path, lines).environment(path.display())?;
            paths.push(path);
        }
        Ok(paths)
    }
}
