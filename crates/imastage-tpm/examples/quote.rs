//! Quotes PCR 10 and writes what a verifier needs: the key, the quote and its signature.
//!
//! ```text
//! cargo run --example quote -- NONCE DIRECTORY ENDPOINT
//! cargo run --example quote -- 0123456789abcdef /tmp/quote /dev/tpmrm0
//! ```
//!
//! NONCE is in hex, as the verifier gave it. ENDPOINT is a device, `unix:PATH` or `tcp:HOST:PORT`.
//! Without one a software TPM (swtpm) is started, with its state in DIRECTORY. imastage-verifier's
//! example `verify` reads the files, and so does tpm2_checkquote.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, error::Error, fs, path::Path, process::ExitCode};

use ima_log::Bank;
use imastage_tpm::{KeyKind, PcrSelection, Swtpm, Tpm};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(2)
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (nonce, directory, endpoint) = match &arguments[..] {
        [nonce, directory] => (nonce, directory, None),
        [nonce, directory, endpoint] => (nonce, directory, Some(endpoint)),
        _ => return Err("usage: quote NONCE DIRECTORY [ENDPOINT]".into()),
    };
    let nonce = bytes(nonce).ok_or("NONCE: expected an even number of hex digits")?;
    let directory = Path::new(directory);
    fs::create_dir_all(directory)?;
    // swtpm runs until this is dropped.
    let (_swtpm, mut tpm) = match endpoint {
        Some(endpoint) => (None, Tpm::connect(&endpoint.parse()?)?),
        None => {
            let (swtpm, tpm) = Swtpm::start(&directory.join("swtpm"))?;
            (Some(swtpm), tpm)
        }
    };

    let key = tpm.attestation_key(KeyKind::EccP256)?;
    let selection = [PcrSelection { bank: Bank::Sha256, pcrs: 1 << 10 }];
    let quote = tpm.quote(&key, &nonce, &selection)?;
    fs::write(directory.join("ak.pub.pem"), key.public_pem())?;
    fs::write(directory.join("quote.msg"), &quote.message)?;
    fs::write(directory.join("quote.sig"), &quote.signature)?;
    for (bank, pcr, value) in tpm.pcr_values(&selection)? {
        println!("{bank} {pcr} {value}");
    }
    tpm.flush(key)?;
    Ok(ExitCode::SUCCESS)
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [_, _] => u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok(),
            _ => None,
        })
        .collect()
}
