//! Replays a binary measurement list, and finds the records that lead to the value of a PCR.
//!
//! ```text
//! cargo run --example replay -- LIST
//! cargo run --example replay -- LIST 10 sha256 VALUE
//! ```
//!
//! LIST is a copy of `/sys/kernel/security/integrity/ima/binary_runtime_measurements`, VALUE what the
//! TPM has, such as `/sys/class/tpm/tpm0/pcr-sha256/10`. Exits with 1 if no records lead to VALUE.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, error::Error, fs, process::ExitCode};

use ima_log::{Bank, Digest, Format, ListReplay, PcrTarget, Records};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(2)
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (path, target) = match arguments[..] {
        [path] => (path, None),
        [path, pcr, bank, value] => {
            let value =
                Digest::from_hex(bank.parse()?, value).ok_or("VALUE: not a digest of the bank")?;
            (path, Some(PcrTarget { pcr: pcr.parse()?, value }))
        }
        _ => return Err("usage: replay LIST [PCR BANK VALUE]".into()),
    };

    let mut replay = ListReplay::new(target.map_or(Bank::ALL.to_vec(), |at| vec![at.value.bank()]));
    replay.look_for(target.as_slice());
    let list = fs::read(path)?;
    for record in Records::new(&list, Format::native(Bank::Sha1)) {
        replay.push(&record?);
    }

    println!("{} records, {} violations", replay.records(), replay.violations());
    if target.is_some() {
        let Some(found) = replay.agreement() else {
            println!(
                "no number of records leads to the value: records are missing, added or altered"
            );
            return Ok(ExitCode::FAILURE);
        };
        println!("the first {} records lead to the value", found.to);
        replay.settle(found.from);
        return Ok(ExitCode::SUCCESS);
    }
    for pcrs in replay.banks().iter().flat_map(|bank| bank.ways()) {
        for (pcr, value) in pcrs.values() {
            println!("PCR {pcr} {} (extend: {}): {value}", pcrs.bank(), pcrs.extend_kind().name());
        }
    }
    Ok(ExitCode::SUCCESS)
}
