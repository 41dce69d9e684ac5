use std::{fs, io::Write, path::PathBuf};

use ima_log::Bank;
use imastage_service::{Client, ClientError, wire::QuoteRequest};

use crate::{
    commands::{fresh_nonce, state_dir},
    exit::{Fail, Failure, Outcome},
    output::Output,
};

/// Get evidence from the running service: a quote over a nonce, and the records from an index on.
///
/// Writes into DIR what `imastage verify` and tpm2-tools read: quote.msg, quote.sig, ak.pub.pem,
/// nonce (hex) and list (binary, from index K on).
#[derive(clap::Args)]
pub struct Args {
    /// The service's state directory [default: /var/lib/imastage as root, else
    /// ~/.local/state/imastage].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The verifier's nonce, 1 to 64 bytes in hex [default: a random one].
    #[arg(long, value_name = "HEX")]
    nonce: Option<String>,
    /// The first record wanted.
    #[arg(long, value_name = "K", default_value_t = 0)]
    from: u64,
    /// A bank to quote; may be given more than once [default: sha256].
    #[arg(long = "bank", value_name = "ALG")]
    banks: Vec<Bank>,
    /// Where to write the evidence; made if it is not there.
    #[arg(long, value_name = "DIR", required_unless_present = "key")]
    out: Option<PathBuf>,
    /// Only print the attestation key's public half (PEM), to enrol this machine with a verifier.
    #[arg(long)]
    key: bool,
}

/// Runs `imastage attest`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let state = state_dir(args.state)?;
    let client = Client::of_state(&state).environment("runtime")?;
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
    fs::create_dir_all(&dir).environment(dir.display())?;
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        fs::write(&path, bytes).environment(path.display())
    };
    write("quote.msg", &hex::decode(&reply.message).environment("quote")?)?;
    write("quote.sig", &hex::decode(&reply.signature).environment("quote")?)?;
    write("ak.pub.pem", reply.key.as_bytes())?;
    write("nonce", format!("{nonce}\n").as_bytes())?;
    let path = dir.join("list");
    let mut list = fs::File::create(&path).environment(path.display())?;
    client.records(args.from, reply.records, &mut |bytes| {
        list.write_all(bytes).environment(path.display())
    })?;

    let answer = serde_json::json!({
        "dir": dir, "nonce": nonce, "epoch": reply.epoch, "from": args.from,
        "records": reply.records,
    });
    let text = format!(
        "evidence in {}: quote over nonce {nonce}, records {} to {}\nverify it with: imastage \
         verify --quote {dir}/quote.msg --signature {dir}/quote.sig --key TRUSTED.pem --nonce \
         {nonce} {dir}/list",
        dir.display(),
        args.from,
        reply.records,
        dir = dir.display(),
    );
    out.answer(&answer, text)?;
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
