//! `imastage verify`: appraises evidence from files or from the service.

mod report;

use std::{
    fs,
    io::{self, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use ima_log::{Bank, Decoder, Format, PcrSet};
use imastage_client::{
    Client,
    wire::{PcrValue, QuoteRequest},
};
use imastage_verifier::{
    Appraisal, Appraiser, PcrValues, PublicKey, Requirements, Token, UnverifiedQuote,
};

use crate::{
    commands::{
        evidence_files::{self, parse_nonce, read_key, read_pcrs},
        fresh_nonce,
    },
    exit::{Fail, Failure, Outcome},
    input::List,
    output::Output,
};
use report::Answer;

/// Verify evidence: a quote and its records.
///
/// With --quote, verifies files as tpm2-tools writes them. With --state, sends a fresh nonce to the
/// running service and verifies its answer. With --token, resumes where the last round ended: the
/// list then begins with the record after the last one verified.
///
/// The verdict is `pass` if at least one record is proven, every record that names a quoted PCR is
/// proven, and the quote covers the list's own PCR (the one that its first record names) in the
/// required banks. boot_aggregate is compared if the quote covers its PCRs (--pcr 0-9).
#[derive(clap::Args)]
#[command(after_help = crate::examples::VERIFY)]
pub struct Args {
    /// The quote (TPMS_ATTEST, tpm2_quote -m; or TPM2B_ATTEST).
    #[arg(long, value_name = "MSG", requires_all = ["signature", "nonce", "list"])]
    quote: Option<PathBuf>,
    /// Its signature (TPMT_SIGNATURE, tpm2_quote -s; or plain, tpm2_quote -f plain).
    #[arg(long, value_name = "SIG", requires = "quote")]
    signature: Option<PathBuf>,
    /// The attestation key that this verifier trusts: its public part in PEM or DER, TPM2B_PUBLIC
    /// or TPMT_PUBLIC, or a certificate of it.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The nonce of this round, at least 16 bytes in hex.
    #[arg(long, value_name = "HEX", requires = "quote")]
    nonce: Option<String>,
    /// Accept a shorter nonce, or none (''): the quote may then be a replay of an old one.
    #[arg(long, requires = "nonce")]
    allow_short_nonce: bool,
    /// Values of the other quoted PCRs: tpm2_quote's PCR file, the output of tpm2_pcrread, or `BANK
    /// INDEX HEX` lines.
    #[arg(long, value_name = "FILE")]
    pcrs: Option<PathBuf>,
    /// Ask the service of this state directory instead of reading files.
    #[arg(long, value_name = "DIR", conflicts_with = "quote", required_unless_present = "quote")]
    state: Option<PathBuf>,
    /// A bank that must be quoted; may be given more than once. With --state it is also requested
    /// [default: any but sha1 alone; with --state sha256; with --token those of the token].
    #[arg(long = "bank", value_name = "ALG")]
    banks: Vec<Bank>,
    /// PCRs that must be quoted in addition to those that records name, such as 0-9. With --state
    /// they are also requested.
    #[arg(long = "pcr", value_name = "PCRS")]
    more_pcrs: Vec<PcrSet>,
    /// The state of this verifier: read if the file exists, written when verification passes.
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// A binary measurement list, `-`, or a state directory.
    #[arg(conflicts_with = "state")]
    list: Option<PathBuf>,
}

/// What there is to verify.
struct Evidence {
    message: Vec<u8>,
    signature: Vec<u8>,
    nonce: Vec<u8>,
    records: Records,
    /// PCR values that came with it.
    values: Option<PcrValues>,
}

/// Where the records come from, the first one being the one after the token's.
enum Records {
    List(PathBuf),
    Service { client: Client, to: u64 },
}

/// Runs `imastage verify`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let key = read_key(&args.key)?;
    let token = args.token.as_deref().map(read_token).transpose()?.flatten();
    let more_pcrs = PcrSet::from_iter(args.more_pcrs.iter().copied());
    let evidence = match &args.state {
        Some(state) => ask_service(state, &args.banks, more_pcrs, token.as_ref())?,
        None => read_files(&args)?,
    };
    let values = match &args.pcrs {
        Some(path) => read_pcrs(path, None)?,
        None => evidence.values.clone().unwrap_or_default(),
    };
    let requirements = Requirements { pcrs: more_pcrs, banks: args.banks.clone() };

    let appraisal = appraise(&evidence, &key, values, token.as_ref(), requirements)?;
    if let (Some(path), Ok(Appraisal { token: Some(token), .. })) = (&args.token, &appraisal) {
        write_token(path, token)?;
    }
    let answer = Answer::new(token.as_ref().map_or(0, Token::next), &appraisal);
    out.answer(&answer, answer.text(out))?;
    Ok(if answer.passed() { Outcome::Fine } else { Outcome::EvidenceSaysNo })
}

/// The outer error is that there is nothing to appraise, the inner one that it is not genuine.
fn appraise(
    evidence: &Evidence,
    key: &PublicKey,
    pcrs: PcrValues,
    token: Option<&Token>,
    requirements: Requirements,
) -> Result<Result<Appraisal, String>, Failure> {
    let quote = UnverifiedQuote { message: &evidence.message, signature: &evidence.signature };
    let quote = match quote.verify(key, &evidence.nonce) {
        Ok(quote) => quote,
        Err(error) if error.is_other_file() => return Err(Failure::input(error)),
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut appraiser = match Appraiser::new(quote, pcrs, token, requirements) {
        Ok(appraiser) => appraiser,
        Err(error) => return Err(Failure::input(error)),
    };
    match &evidence.records {
        Records::List(list) => List::open(list)?.each(0, |_, record| {
            appraiser.push(record);
            Ok(ControlFlow::Continue(()))
        })?,
        Records::Service { client, to } => {
            let from = token.map_or(0, Token::next);
            if from > *to {
                return Ok(Err(format!(
                    "{from} records were verified before, the machine now has {to}: it lost some, \
                     or began a new epoch; begin again without the token"
                )));
            }
            let mut decoder = Decoder::new(Format::native(Bank::Sha1));
            client.records(from, *to, &mut |bytes| {
                decoder.feed(bytes);
                while let Some(record) = decoder.next_record().input("the service's records")? {
                    appraiser.push(&record);
                }
                Ok::<(), Failure>(())
            })?;
            decoder.finish().input("the service's records")?;
        }
    }
    Ok(Ok(appraiser.finish()))
}

fn read_files(args: &Args) -> Result<Evidence, Failure> {
    let (Some(quote), Some(signature), Some(nonce), Some(list)) =
        (&args.quote, &args.signature, &args.nonce, &args.list)
    else {
        return Err(Failure::input("give --quote, --signature, --nonce and LIST, or --state"));
    };
    Ok(Evidence {
        message: evidence_files::read(quote)?,
        signature: evidence_files::read(signature)?,
        nonce: parse_nonce(nonce, args.allow_short_nonce)?,
        records: Records::List(list.clone()),
        values: None,
    })
}

fn ask_service(
    state: &Path,
    banks: &[Bank],
    pcrs: PcrSet,
    token: Option<&Token>,
) -> Result<Evidence, Failure> {
    let client = Client::of_state(state).environment("runtime")?;
    let nonce = fresh_nonce()?;
    // A token's banks cannot become fewer.
    let known = token.map(|token| token.banks().iter().map(|state| state.bank()).collect());
    let banks = if banks.is_empty() { known.unwrap_or_default() } else { banks.to_vec() };
    let request = QuoteRequest {
        nonce: nonce.clone(),
        banks: banks.iter().map(ToString::to_string).collect(),
        pcrs: pcrs.iter().collect(),
    };
    let reply = client.quote(&request)?;
    Ok(Evidence {
        message: hex::decode(&reply.message).input("the service's quote")?,
        signature: hex::decode(&reply.signature).input("the service's signature")?,
        nonce: hex::decode(nonce).input("nonce")?,
        records: Records::Service { client, to: reply.records },
        values: Some(values(&reply.pcrs)?),
    })
}

/// The values that the service says it quoted.
fn values(pcrs: &[PcrValue]) -> Result<PcrValues, Failure> {
    let line = |PcrValue { bank, pcr, value }: &PcrValue| format!("{bank} {pcr} {value}\n");
    let lines: String = pcrs.iter().map(line).collect();
    // A service that could not tell them gives none.
    if lines.is_empty() {
        return Ok(PcrValues::default());
    }
    PcrValues::parse(lines.as_bytes(), None).input("the service's PCR values")
}

fn read_token(path: &Path) -> Result<Option<Token>, Failure> {
    match fs::read(path) {
        Ok(json) => Token::from_json(&json).input(path.display()).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).input(path.display()),
    }
}

/// Replaces the file at once: a token that is half written would be lost.
fn write_token(path: &Path, token: &Token) -> Result<(), Failure> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).environment(dir.display())?;
    writeln!(file, "{}", token.to_json()).environment(path.display())?;
    file.as_file().sync_all().environment(path.display())?;
    file.persist(path).environment(path.display()).map(drop)
}
