//! `imastage attest`: a quote by the running service and its records, written to files.

use std::{io::Write, path::PathBuf};

use ima_log::Bank;
use imastage_client::{Client, ClientError, wire::QuoteRequest};

use crate::{
    commands::{evidence_files::is_short_nonce, fresh_nonce, state_dir},
    exit::{Fail, Failure, Outcome},
    output::Output,
    private_dir::PrivateDir,
};

/// Write evidence of the running service: a quote over a nonce, and the records from an index on.
///
/// The files in DIR are those that `imastage verify` and tpm2-tools read: quote.msg, quote.sig,
/// ak.pub.pem, nonce (hex) and list (binary, from index K on). Only their owner can read them.
#[derive(clap::Args)]
#[command(after_help = crate::examples::ATTEST)]
pub struct Args {
    /// The service's state directory [default: /var/lib/imastage as root, else
    /// ~/.local/state/imastage].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The verifier's nonce, 1 to 64 bytes in hex; `imastage verify` requires at least 16 [default:
    /// a random one, which does not prove that the evidence is fresh].
    #[arg(long, value_name = "HEX")]
    nonce: Option<String>,
    /// The index of the first record.
    #[arg(long, value_name = "K", default_value_t = 0)]
    from: u64,
    /// A bank to quote; may be given more than once [default: sha256].
    #[arg(long = "bank", value_name = "ALG")]
    banks: Vec<Bank>,
    /// The directory for the evidence; created if it does not exist.
    #[arg(long, value_name = "DIR", required_unless_present = "key")]
    out: Option<PathBuf>,
    /// Print only the public part of the attestation key (PEM), to enrol this machine with a
    /// verifier.
    #[arg(long)]
    key: bool,
}

/// Runs `imastage attest`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let state = state_dir(args.state)?;
    let client = Client::of_state(&state).environment("runtime")?;
    let chosen_here = args.nonce.is_none();
    let nonce = args.nonce.map_or_else(fresh_nonce, Ok)?;
    let request = QuoteRequest {
        nonce: nonce.clone(),
        banks: args.banks.iter().map(ToString::to_string).collect(),
        ..QuoteRequest::default()
    };
    let reply = client.quote(&request).map_err(client_failure)?;
    let Some(dir) = args.out.filter(|_| !args.key) else {
        out.answer(&serde_json::json!({ "key": reply.key }), reply.key.trim_end())?;
        return Ok(Outcome::Fine);
    };

    if args.from > reply.records {
        return Err(Failure::input(format!(
            "record {} was asked for, {} are stored",
            args.from, reply.records
        )));
    }
    let out_dir = PrivateDir::open(&dir)?;
    let mut list = out_dir.create("list")?;
    client.records(args.from, reply.records, &mut |bytes| {
        list.write_all(bytes).environment(dir.join("list").display())
    })?;
    // What belongs together appears together.
    let files = [
        out_dir.write("quote.msg", &hex::decode(&reply.message).environment("quote")?)?,
        out_dir.write("quote.sig", &hex::decode(&reply.signature).environment("quote")?)?,
        out_dir.write("ak.pub.pem", reply.key.as_bytes())?,
        out_dir.write("nonce", format!("{nonce}\n").as_bytes())?,
        list,
    ];
    for file in files {
        file.finish()?;
    }

    let answer = serde_json::json!({
        "dir": dir, "nonce": nonce, "epoch": reply.epoch, "from": args.from,
        "records": reply.records, "nonce_from": if chosen_here { "attest" } else { "verifier" },
    });
    let dir = dir.display();
    let what = format!(
        "evidence in {dir}: quote over nonce {nonce}, records {} to {}",
        args.from, reply.records
    );
    let next = if chosen_here {
        "the nonce was made here: evidence that is verified with the nonce that came with it proves \
         no freshness, it may be a replay of an old quote; let the verifier choose the nonce, and \
         give it with --nonce"
            .to_owned()
    } else {
        let short = if is_short_nonce(&nonce) { " --allow-short-nonce" } else { "" };
        format!(
            "verify it with: imastage verify --quote {dir}/quote.msg --signature {dir}/quote.sig \
             --key TRUSTED.pem --nonce {nonce}{short} {dir}/list"
        )
    };
    out.answer(&answer, format!("{what}\n{next}"))?;
    Ok(Outcome::Fine)
}

/// A refusal about what was asked is the asker's fault, all else the environment's.
pub fn client_failure(error: ClientError) -> Failure {
    match &error {
        ClientError::Refused { status: 400..=499, .. } => Failure::input(error),
        _ => Failure::environment(error),
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        client_failure(error)
    }
}
