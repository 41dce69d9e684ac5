//! Verifies a quote over PCR 10 and finds the records of a measurement list that it proves.
//!
//! ```text
//! cargo run --example verify -- KEY MESSAGE SIGNATURE NONCE LIST [PCRS]
//! ```
//!
//! KEY is the attestation key's public half (`ak.pub.pem`), MESSAGE and SIGNATURE what
//! `tpm2_quote -m` and `-s` write, NONCE what the verifier gave, in hex, LIST a copy of
//! `/sys/kernel/security/integrity/ima/binary_runtime_measurements` read after the quote, and PCRS the
//! values of other quoted PCRs. Exits with 1 if the quote is not accepted or the records do not lead to it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, error::Error, fs, process::ExitCode};

use ima_log::{Bank, Format, Records};
use imastage_verifier::{Appraiser, PcrValues, PublicKey, Requirements, UnverifiedQuote};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(2)
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (key, message, signature, nonce, list, pcrs) = match &arguments[..] {
        [key, message, signature, nonce, list] => (key, message, signature, nonce, list, None),
        [key, message, signature, nonce, list, pcrs] => {
            (key, message, signature, nonce, list, Some(pcrs))
        }
        _ => return Err("usage: verify KEY MESSAGE SIGNATURE NONCE LIST [PCRS]".into()),
    };
    let key = PublicKey::from_bytes(&fs::read(key)?)?;
    let (message, signature) = (fs::read(message)?, fs::read(signature)?);
    let quote = UnverifiedQuote { message: &message, signature: &signature };
    let nonce = hex::decode(nonce).map_err(|error| format!("NONCE: {error}"))?;
    let quote = match quote.verify(&key, &nonce) {
        Ok(quote) => quote,
        Err(error) => {
            println!("the quote is not accepted: {error}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let values = match pcrs {
        Some(path) => PcrValues::parse(&fs::read(path)?, None)?,
        None => PcrValues::default(),
    };

    // A verifier that keeps the token of the last round gives it here and needs only newer records.
    let mut appraiser = Appraiser::new(quote, values, None, Requirements::default())?;
    for record in Records::new(&fs::read(list)?, Format::native(Bank::Sha1)) {
        appraiser.push(&record?);
    }
    let appraisal = appraiser.finish();
    if let Some(reason) = appraisal.reason {
        println!("the records do not lead to the quote: {reason}");
        return Ok(ExitCode::FAILURE);
    }
    println!("the quote proves {} records", appraisal.records);
    println!("{} of them are violations, whose content is not proven", appraisal.violations);
    println!("{} came after the quote: give them again with the next one", appraisal.excess);
    Ok(ExitCode::SUCCESS)
}
