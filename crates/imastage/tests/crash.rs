//! Killing the service at random moments loses nothing and doubles nothing.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use ima_log::{Bank, ListReplay, PcrTarget};
use imastage_client::Client;
use imastage_sandbox::{
    control::{Answer, Command as Ask, Status, ask},
    tpm_of,
};
use imastage_store::Reader;
use imastage_tpm::{PcrSelection, Tpm};

#[allow(dead_code)]
mod common;

use common::{Machine, Running, imastage};

/// How many measure at the same time.
const MEASURING: usize = 2;

/// Files that each of them measures at a time: few, because every restart reads all records again.
const FILES: usize = 5;

fn sandbox_status(mount: &str) -> Status {
    match ask(Path::new(mount), &Ask::Status, &mut |_| {}).unwrap() {
        Answer::Status(status) => status,
        other => panic!("{other:?}"),
    }
}

/// Random enough to choose moments by; seeded, so that a run can be repeated.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let seed = match std::env::var("IMASTAGE_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => u64::from(std::process::id()) | 1,
        };
        eprintln!("IMASTAGE_TEST_SEED={seed}");
        Random(seed)
    }

    /// Up to `below` milliseconds, in steps of microseconds.
    fn pause(&mut self, below: u64) {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        thread::sleep(Duration::from_micros(self.0 % (below * 1000)));
    }
}

/// Kills the service `kills` times while files are measured; after each restart and drain the
/// store must replay to the TPM's PCR.
fn kill_and_compare(mode: &str, kills: usize) {
    let Some(machine) = Machine::start() else { return };
    let (mount, state) = (machine.mount(), machine.state());
    let run = ["run", "--source", &mount, "--state", &state, "--delete-mode", mode, "--every", "3"];
    let mut random = Random::new();
    let mut tpm = Tpm::connect(&tpm_of(Path::new(&mount)).unwrap()).unwrap();
    let done = AtomicBool::new(false);
    let mut compared = 0;

    thread::scope(|scope| {
        for measuring in 0..MEASURING {
            let (machine, mount, done) = (&machine, &mount, &done);
            scope.spawn(move || {
                for round in 0.. {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    let paths = machine.files(&format!("{measuring}-{round}"), FILES);
                    let answer = ask(Path::new(mount), &Ask::Measure { paths }, &mut |_| {});
                    assert!(matches!(answer, Ok(Answer::Done(ref m)) if m.added == FILES as u64));
                    thread::sleep(Duration::from_millis(2));
                }
            });
        }
        // Whatever panics in here must not leave the others running for ever.
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _done = Done(&done);

        for kill in 0..kills {
            // Every other time it is killed while it starts: opening, aligning, first drain.
            if kill % 2 == 1 {
                let service = Running::spawn(&run);
                random.pause(40);
                service.kill();
            }
            let service = Running::start(&run);
            // Measuring continues, so all figures are bounds, asked for in this order:
            // what was in the list before the PCR was read, the PCR, what is stored after a drain,
            // what was in the list after that.
            let before = sandbox_status(&mount).total;
            let banks = [Bank::Sha1, Bank::Sha256];
            let selection = banks.map(|bank| PcrSelection { bank, pcrs: 1 << 10 });
            let pcrs = tpm.pcr_values(&selection).unwrap();
            drain(&state);
            let mut search = ListReplay::new(banks);
            let targets = pcrs.into_iter().map(|(_, pcr, value)| PcrTarget { pcr, value });
            search.look_for(&targets.collect::<Vec<_>>());
            let mut cursor = Reader::open(Path::new(&state)).unwrap().records(0).unwrap();
            while let Some(record) = cursor.next_record().unwrap() {
                search.push(&record);
            }
            let stored = search.records();
            let found = search.agreement().map(|prefix| prefix.to);
            let after = sandbox_status(&mount).total;
            // One record at most is in the list and not in the PCR yet.
            assert!(
                found.is_some_and(|records| records + 1 >= before),
                "kill {kill}: {found:?} of {stored} records replay to the TPM's PCR, {before} were \
                 in the list before"
            );
            assert!(stored <= after, "kill {kill}: {stored} are stored, {after} were measured");
            compared += 1;

            random.pause(60);
            service.kill();
        }
    });
    assert_eq!(compared, kills);

    // Nothing is measured any more: all of it is stored once, and that is what everyone says.
    let service = Running::start(&run);
    drain(&state);
    let total = sandbox_status(&mount).total;
    let status = imastage(&["--json", "status", "--state", &state]);
    assert_eq!(status.code, 0, "{}", status.text());
    assert_eq!(status.json()["records"], total);
    assert_eq!(status.json()["verdict"]["state"], "consistent");
    assert_eq!(service.stop(), 0);
    assert_eq!(machine.sandbox.stop(), 0);
}

/// Asking for a quote drains; more than one program is executed here, which root's sandbox
/// measures too, so ask in this process.
fn drain(state: &str) {
    let client = Client::of_state(Path::new(state)).unwrap();
    let request = imastage_client::wire::QuoteRequest { nonce: "00".into(), ..Default::default() };
    client.quote(&request).unwrap();
}

#[test]
fn fifty_kills_while_staging() {
    kill_and_compare("stage", 50);
}

#[test]
fn twenty_five_kills_while_deleting_n() {
    kill_and_compare("first-n", 25);
}
