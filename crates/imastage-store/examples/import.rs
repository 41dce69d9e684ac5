//! Stores a binary measurement list as a new epoch, checks it, and prints the PCR it replays to.
//!
//! ```text
//! cargo run --example import -- LIST DIRECTORY
//! ```
//!
//! LIST is a copy of `/sys/kernel/security/integrity/ima/binary_runtime_measurements`; DIRECTORY is
//! made if it does not exist. Exits with 1 if the check finds damage.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, error::Error, fs, path::Path, process::ExitCode};

use ima_log::{Bank, Format, Records};
use imastage_store::{EpochId, Store, check};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(2)
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [list, directory] = &arguments[..] else {
        return Err("usage: import LIST DIRECTORY".into());
    };
    let (list, directory) = (fs::read(list)?, Path::new(directory));
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();

    let mut store = Store::open(directory)?;
    store.begin_epoch(EpochId { boot_id, ..EpochId::default() }, &[Bank::Sha1, Bank::Sha256])?;
    for record in Records::new(&list, Format::native(Bank::Sha1)) {
        store.append(&record?)?;
    }
    // From here on the records survive a power cut.
    store.commit()?;
    println!("{} records, {} violations", store.len(), store.violations());
    for bank in [Bank::Sha1, Bank::Sha256] {
        if let (Some(pcr), Some(value)) = (store.pcr(), store.running(bank)) {
            println!("PCR {pcr} {bank}: {value}");
        }
    }
    drop(store);

    let report = check(directory)?;
    report.damage.iter().for_each(|damage| println!("{damage}"));
    Ok(if report.damage.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
