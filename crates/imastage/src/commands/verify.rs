use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use ima_log::{Bank, Decoder, Format};
use imastage_service::{Client, wire::QuoteRequest};
use imastage_verifier::{
    Appraisal, Appraiser, PcrValues, PublicKey, Token, UnverifiedQuote, Verdict,
};
use serde::Serialize;

use crate::{
    commands::{
        evidence_files::{self, parse_nonce, read_key, read_pcrs},
        fresh_nonce,
        replay::extend_name,
    },
    exit::{Fail, Failure, Outcome},
    input::List,
    output::{Output, Tone},
};

/// Verify evidence: a quote and the records that belong to it.
///
/// With --quote, from files as tpm2-tools writes them. With --state, in person: a fresh nonce is
/// given to the running service, and its answer verified. With --token, the verifier goes on where
/// the last round ended: the list then begins with the record after the last one verified.
#[derive(clap::Args)]
pub struct Args {
    /// The quote (TPMS_ATTEST, tpm2_quote -m; or TPM2B_ATTEST).
    #[arg(long, value_name = "MSG", requires_all = ["signature", "nonce", "list"])]
    quote: Option<PathBuf>,
    /// Its signature (TPMT_SIGNATURE, tpm2_quote -s; or plain, tpm2_quote -f plain).
    #[arg(long, value_name = "SIG", requires = "quote")]
    signature: Option<PathBuf>,
    /// The attestation key this verifier trusts: the public half in PEM or DER, TPM2B_PUBLIC or
    /// TPMT_PUBLIC, or a certificate of it.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The nonce that was given, at least 16 bytes in hex.
    #[arg(long, value_name = "HEX", requires = "quote")]
    nonce: Option<String>,
    /// Take a nonce of fewer bytes, or none (''): the quote may then be a replay of an old one.
    #[arg(long, requires = "nonce")]
    allow_short_nonce: bool,
    /// Values of the other quoted PCRs: tpm2_quote's PCR file, what tpm2_pcrread prints, or `BANK
    /// INDEX HEX` lines.
    #[arg(long, value_name = "FILE")]
    pcrs: Option<PathBuf>,
    /// Ask the service of this state directory instead of reading files.
    #[arg(long, value_name = "DIR", conflicts_with = "quote", required_unless_present = "quote")]
    state: Option<PathBuf>,
    /// A bank to ask a quote for, with --state; may be given more than once [default: sha256].
    #[arg(long = "bank", value_name = "ALG", requires = "state")]
    banks: Vec<Bank>,
    /// What was verified up to now: read if it is there, written when verification passes.
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// A binary measurement list, `-`, or a state directory.
    #[arg(conflicts_with = "state")]
    list: Option<PathBuf>,
}

#[derive(Serialize)]
struct Answer {
    verdict: &'static str,
    /// Records from the first on that the quote covers.
    records: u64,
    /// Records behind those.
    excess: u64,
    /// Why the verdict is `fail`.
    reason: Option<String>,
    /// Where this round began.
    from: u64,
    violations: u64,
    /// Records of this round that name another PCR than 10: the quote says nothing about them.
    unproven: u64,
    /// How each quoted bank is extended.
    banks: BTreeMap<&'static str, &'static str>,
}

/// What there is to verify.
struct Evidence {
    message: Vec<u8>,
    signature: Vec<u8>,
    nonce: Vec<u8>,
    records: Records,
}

/// Where the records come from, the first one being the one after the token's.
enum Records {
    List(PathBuf),
    Service { client: Client, to: u64 },
}

/// Runs `imastage verify`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let key = read_key(&args.key)?;
    let pcrs = match &args.pcrs {
        Some(path) => read_pcrs(path, None)?,
        None => PcrValues::default(),
    };
    let token = args.token.as_deref().map(read_token).transpose()?.flatten();
    let from = token.as_ref().map_or(0, Token::next);
    let evidence = match &args.state {
        Some(state) => ask_service(state, &args.banks)?,
        None => read_files(&args)?,
    };

    let appraisal = appraise(&evidence, &key, pcrs, token.as_ref())?;
    if let (Some(path), Ok(Appraisal { token: Some(token), .. })) = (&args.token, &appraisal) {
        write_token(path, token)?;
    }
    let answer = answer(from, &appraisal);
    out.answer(&answer, text(&answer, out))?;
    Ok(if answer.verdict == "pass" { Outcome::Fine } else { Outcome::EvidenceSaysNo })
}

/// The outer error is that there is nothing to appraise, the inner one that it is not genuine.
fn appraise(
    evidence: &Evidence,
    key: &PublicKey,
    pcrs: PcrValues,
    token: Option<&Token>,
) -> Result<Result<Appraisal, String>, Failure> {
    let quote = UnverifiedQuote { message: &evidence.message, signature: &evidence.signature };
    let quote = match quote.verify(key, &evidence.nonce) {
        Ok(quote) => quote,
        Err(error) if error.is_other_file() => return Err(Failure::input(error)),
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut appraiser = match Appraiser::new(quote, pcrs, token) {
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
    })
}

fn ask_service(state: &Path, banks: &[Bank]) -> Result<Evidence, Failure> {
    let client = Client::of_state(state).environment("runtime")?;
    let nonce = fresh_nonce()?;
    let request = QuoteRequest {
        nonce: nonce.clone(),
        banks: banks.iter().map(ToString::to_string).collect(),
    };
    let reply = client.quote(&request)?;
    Ok(Evidence {
        message: hex::decode(&reply.message).input("the service's quote")?,
        signature: hex::decode(&reply.signature).input("the service's signature")?,
        nonce: hex::decode(nonce).input("nonce")?,
        records: Records::Service { client, to: reply.records },
    })
}

fn answer(from: u64, appraisal: &Result<Appraisal, String>) -> Answer {
    match appraisal {
        Ok(appraisal) => Answer {
            verdict: match appraisal.verdict {
                Verdict::Pass => "pass",
                Verdict::Fail => "fail",
            },
            records: appraisal.records,
            excess: appraisal.excess,
            reason: appraisal.reason.as_ref().map(ToString::to_string),
            from,
            violations: appraisal.violations,
            unproven: appraisal.unproven,
            banks: appraisal
                .banks
                .iter()
                .map(|state| (state.bank.name(), extend_name(state.extend)))
                .collect(),
        },
        Err(reason) => Answer {
            verdict: "fail",
            records: 0,
            excess: 0,
            reason: Some(reason.clone()),
            from,
            violations: 0,
            unproven: 0,
            banks: BTreeMap::new(),
        },
    }
}

fn text(answer: &Answer, out: &Output) -> String {
    let Answer { records, excess, from, violations, unproven, .. } = answer;
    let others = match unproven {
        0 => String::new(),
        n => format!("; {n} name another PCR than 10, and the quote says nothing about them"),
    };
    match &answer.reason {
        Some(reason) => format!("{}: {reason}", out.paint(Tone::Bad, answer.verdict)),
        None => format!(
            "{}: the quote covers the first {records} records (this round began with index {from}), \
             {violations} violations; {excess} records came after it{others}",
            out.paint(Tone::Good, answer.verdict)
        ),
    }
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
