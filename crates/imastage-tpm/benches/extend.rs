//! How many PCR extends a second swtpm takes, over its own connection and through a shared one.
//! `cargo bench -p imastage-tpm`
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::{os::unix::net::UnixListener, thread, time::Instant};

use ima_log::{Bank, Digest};
use imastage_tpm::{Endpoint, SharedTpm, Swtpm, Tpm};

const EXTENDS: usize = 20_000;
const CLIENTS: usize = 4;

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let (_swtpm, mut tpm) = Swtpm::start(&dir.path().join("state")).unwrap();
    println!("swtpm, {EXTENDS} extends of PCR 10 a row; extends/s");
    println!("banks           direct     shared  {CLIENTS} clients");

    let path = dir.path().join("tpm.sock");
    let all = tpm.banks().unwrap();
    let banks: [&[Bank]; 2] = [&[Bank::Sha256], &all];
    let direct = banks.map(|banks| rate(&mut tpm, banks, EXTENDS));
    let shared = SharedTpm::new(tpm);
    let _serving = shared.serve(UnixListener::bind(&path).unwrap()).unwrap();
    let endpoint = Endpoint::Unix(path);
    for (banks, direct) in banks.into_iter().zip(direct) {
        let one = rate(&mut Tpm::connect(&endpoint).unwrap(), banks, EXTENDS);
        let since = Instant::now();
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                let mut tpm = Tpm::connect(&endpoint).unwrap();
                scope.spawn(move || rate(&mut tpm, banks, EXTENDS / CLIENTS));
            }
        });
        let many = EXTENDS as f64 / since.elapsed().as_secs_f64();
        let names = if banks.len() == 1 { "sha256" } else { "all banks" };
        println!("{names:<10} {direct:>11.0}{one:>11.0}{many:>11.0}");
    }
}

fn rate(tpm: &mut Tpm, banks: &[Bank], extends: usize) -> f64 {
    let values: Vec<Digest> = banks.iter().map(|bank| bank.hash(&[b"measured"])).collect();
    let since = Instant::now();
    for _ in 0..extends {
        tpm.pcr_extend(10, &values).unwrap();
    }
    extends as f64 / since.elapsed().as_secs_f64()
}
