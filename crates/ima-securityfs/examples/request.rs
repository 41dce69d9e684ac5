//! Prints the request in one write to a file of the measurement list.
//!
//! ```text
//! cargo run --example request -- 7.2 binary_runtime_measurements_sha256_staged A
//! cargo run --example request -- trim ima_trim_log 0:100
//! ```
//!
//! Appends a newline to the request, as echo does. Exits with 1 if a kernel refuses the request.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, error::Error, process::ExitCode};

use ima_securityfs::{Bank, Dialect, FileName, Grammar, Request};

/// The banks of most TPMs: SHA-1, SHA-256, SHA-384 and SHA-512, as TPM_ALG_ID.
const BANKS: [Bank; 4] = [Bank(0x0004), Bank(0x000b), Bank(0x000c), Bank(0x000d)];

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(2)
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [dialect, name, request] = &arguments[..] else {
        return Err("usage: request 7.2|v4|trim FILE REQUEST".into());
    };
    let dialect: Dialect = dialect.parse()?;
    let file = FileName::parse(name.as_bytes(), dialect, &BANKS)
        .ok_or_else(|| format!("{name}: no such file in dialect {dialect}"))?;
    let grammar = Grammar { dialect, ..Grammar::default() };
    match Request::parse(format!("{request}\n").as_bytes(), file, 0, grammar) {
        Ok(request) => {
            println!("{request:?}");
            Ok(ExitCode::SUCCESS)
        }
        Err(errno) => {
            println!("write fails with {errno}");
            Ok(ExitCode::FAILURE)
        }
    }
}
