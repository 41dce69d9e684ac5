//! Against a real TPM: swtpm.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ima_log::{Bank, Digest, Extend, RecordBuf, Replay};
use imastage_tpm::{Endpoint, KeyKind, PcrSelection, SharedTpm, Swtpm, Tpm, TpmError};
use tempfile::{TempDir, tempdir};

/// How long anything is waited for that should happen, however busy the machine is.
const LONGEST: Duration = Duration::from_secs(300);

fn start() -> (TempDir, Swtpm, Tpm) {
    let dir = tempdir().unwrap();
    let (swtpm, tpm) = Swtpm::start(&dir.path().join("state")).unwrap();
    (dir, swtpm, tpm)
}

#[test]
fn every_bank_is_extended_as_it_replays() {
    let (_dir, _swtpm, mut tpm) = start();
    let banks = tpm.banks().unwrap();
    assert_eq!(banks, [Bank::Sha1, Bank::Sha256, Bank::Sha384, Bank::Sha512]);
    let records = [
        RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[b"boot"]), b"boot_aggregate"),
        RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[b"sh"]), b"/bin/sh"),
        RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/var/log/messages"),
    ];
    let mut replays: Vec<_> = banks.iter().map(|b| Replay::new(*b, Extend::Own)).collect();
    for record in &records {
        let record = record.record();
        let values: Vec<Digest> =
            banks.iter().map(|bank| Extend::Own.value(*bank, &record)).collect();
        tpm.pcr_extend(10, &values).unwrap();
        replays.iter_mut().for_each(|replay| replay.extend(&record));
    }
    let expected: Vec<Digest> = replays.iter().map(Replay::value).collect();
    let read: Vec<Digest> = banks.iter().map(|bank| tpm.pcr_read(*bank, 10).unwrap()).collect();
    assert_eq!(read, expected);
    // Extending some banks leaves the others alone.
    tpm.pcr_extend(10, &[Bank::Sha256.hash(&[])]).unwrap();
    assert_eq!(tpm.pcr_read(Bank::Sha1, 10).unwrap(), expected[0]);
    assert_ne!(tpm.pcr_read(Bank::Sha256, 10).unwrap(), expected[1]);
}

#[test]
fn more_values_than_fit_one_answer_are_read() {
    let (_dir, _swtpm, mut tpm) = start();
    tpm.pcr_extend(3, &[Bank::Sha256.hash(&[b"3"])]).unwrap();
    let selection = [
        PcrSelection { bank: Bank::Sha256, pcrs: 0x00ff_ffff },
        PcrSelection { bank: Bank::Sha1, pcrs: 1 << 10 },
    ];
    let values = tpm.pcr_values(&selection).unwrap();
    assert_eq!(values.len(), 25);
    assert_eq!(values[24], (Bank::Sha1, 10, Digest::zero(Bank::Sha1)));
    for (at, (bank, pcr, value)) in values[..24].iter().enumerate() {
        assert_eq!((*bank, *pcr), (Bank::Sha256, at as u32));
        if at == 3 {
            assert_eq!(*value, tpm.pcr_read(Bank::Sha256, 3).unwrap());
            assert!(!value.is_zero());
        }
    }
}

#[test]
fn a_pcr_selected_twice_is_read_once() {
    let (_dir, _swtpm, mut tpm) = start();
    let bank = Bank::Sha256;
    let selection = [
        PcrSelection { bank, pcrs: 1 << 10 },
        PcrSelection { bank: Bank::Sha1, pcrs: 1 },
        PcrSelection { bank, pcrs: 1 << 10 | 1 << 7 },
    ];
    let zero = Digest::zero;
    let expected =
        [(bank, 7, zero(bank)), (bank, 10, zero(bank)), (Bank::Sha1, 0, zero(Bank::Sha1))];
    assert_eq!(tpm.pcr_values(&selection).unwrap(), expected);
    assert_eq!(tpm.pcr_values(&[]).unwrap(), []);
}

#[test]
fn values_are_of_one_moment() {
    let (dir, _swtpm, tpm) = start();
    let path = dir.path().join("tpm.sock");
    let shared = SharedTpm::new(tpm);
    let _serving = shared.serve(UnixListener::bind(&path).unwrap()).unwrap();
    let unsteady = Arc::new(AtomicU64::new(0));
    let refused = Arc::clone(&unsteady);
    let read = move || {
        let mut tpm = Tpm::connect(&Endpoint::Unix(path)).unwrap();
        let selection = [PcrSelection { bank: Bank::Sha256, pcrs: 0xffff }];
        let mut steps = vec![Digest::zero(Bank::Sha256)];
        let mut step_of = |value: Digest| {
            while !steps.contains(&value) {
                assert!(steps.len() < 1_000_000);
                steps.push(steps[steps.len() - 1].extended_with(&Bank::Sha256.hash(&[])));
            }
            steps.iter().position(|step| *step == value).unwrap()
        };
        let mut reads = 0;
        while reads < 50 {
            let values = match tpm.pcr_values(&selection) {
                Ok(values) => values,
                Err(TpmError::Unsteady) => {
                    refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            refused.store(0, Ordering::Relaxed);
            reads += 1;
            let (first, last) = (step_of(values[0].2), step_of(values[15].2));
            assert!(first == last || first == last + 1, "PCR 0 at {first}, PCR 15 at {last}");
        }
    };
    let reading = thread::spawn(read);
    while !reading.is_finished() {
        // PCR 15 follows PCR 0.
        for pcr in [0, 15] {
            shared.lock().pcr_extend(pcr, &[Bank::Sha256.hash(&[])]).unwrap();
        }
        // Two responses in a row may now be of the same moment, however slow the machine is.
        let pause = 200 << unsteady.load(Ordering::Relaxed).min(10);
        thread::sleep(Duration::from_micros(pause));
    }
    reading.join().unwrap();
}

#[test]
fn only_allocated_banks_are_there() {
    let dir = tempdir().unwrap();
    let state = dir.path().join("state");
    let (swtpm, mut tpm) = Swtpm::start(&state).unwrap();
    tpm.allocate_banks(&[Bank::Sha256]).unwrap();
    // Not before it is reset.
    assert_eq!(tpm.banks().unwrap().len(), 4);
    let error = tpm.allocate_banks(&[Bank::Sm3]).unwrap_err();
    assert!(matches!(error, TpmError::NoPcr { bank: Bank::Sm3, .. }), "{error}");
    drop((tpm, swtpm));

    let (_swtpm, mut tpm) = Swtpm::start(&state).unwrap();
    assert_eq!(tpm.banks().unwrap(), [Bank::Sha256]);
    assert_eq!(tpm.pcr_read(Bank::Sha256, 10).unwrap(), Digest::zero(Bank::Sha256));
    let missing = |error: TpmError| match error {
        TpmError::NoPcr { bank: Bank::Sha1, pcr: 10 } => {}
        error => panic!("{error}"),
    };
    missing(tpm.pcr_read(Bank::Sha1, 10).unwrap_err());
    let both = [Bank::Sha256, Bank::Sha1].map(|bank| PcrSelection { bank, pcrs: 1 << 10 });
    missing(tpm.pcr_values(&both).unwrap_err());
    let key = tpm.attestation_key(KeyKind::EccP256).unwrap();
    missing(tpm.quote(&key, b"nonce", &both).unwrap_err());
    tpm.quote(&key, b"nonce", &both[..1]).unwrap();
}

#[test]
fn the_same_tpm_makes_the_same_key_and_counts_its_resets() {
    let dir = tempdir().unwrap();
    let state = dir.path().join("state");
    let mut seen = Vec::new();
    for _ in 0..2 {
        let (swtpm, mut tpm) = Swtpm::start(&state).unwrap();
        let pems = [KeyKind::EccP256, KeyKind::Rsa2048].map(|kind| {
            let key = tpm.attestation_key(kind).unwrap();
            let pem = key.public_pem().to_owned();
            tpm.flush(key).unwrap();
            pem
        });
        seen.push((pems, tpm.clock().unwrap().reset_count));
        assert_eq!(tpm.pcr_read(Bank::Sha256, 10).unwrap(), Digest::zero(Bank::Sha256));
        tpm.pcr_extend(10, &[Bank::Sha256.hash(&[])]).unwrap();
        drop(tpm);
        drop(swtpm);
    }
    assert_eq!(seen[0].0, seen[1].0);
    assert_eq!(seen[0].1 + 1, seen[1].1);

    let (_dir, _swtpm, mut other) = start();
    let key = other.attestation_key(KeyKind::EccP256).unwrap();
    assert_ne!(key.public_pem(), seen[0].0[0]);
}

#[test]
fn tpm2_tools_accept_our_quotes() {
    if Command::new("tpm2_checkquote").arg("--version").output().is_err() {
        // Not eprintln, which is shown of failing tests only.
        let why = "SKIPPED: tpm2_checkquote is missing (apt-get install tpm2-tools)";
        writeln!(std::io::stderr(), "{why}").unwrap();
        return;
    }
    let (dir, _swtpm, mut tpm) = start();
    for kind in [KeyKind::EccP256, KeyKind::Rsa2048] {
        let key = tpm.attestation_key(kind).unwrap();
        let nonce = [0x5a; 20];
        let selection = [
            PcrSelection { bank: Bank::Sha1, pcrs: 1 << 10 },
            PcrSelection { bank: Bank::Sha256, pcrs: 0x7ff },
        ];
        let quote = tpm.quote(&key, &nonce, &selection).unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let check = |nonce: &str| {
            Command::new("tpm2_checkquote")
                .arg("-u")
                .arg(file("key.pem", key.public_pem().as_bytes()))
                .arg("-m")
                .arg(file("msg", &quote.message))
                .arg("-s")
                .arg(file("sig", &quote.signature))
                .args(["-q", nonce, "-g", "sha256"])
                .output()
                .unwrap()
        };
        let good = check(&"5a".repeat(20));
        assert!(good.status.success(), "{kind:?}: {}", String::from_utf8_lossy(&good.stderr));
        assert!(!check(&"5b".repeat(20)).status.success());
        tpm.flush(key).unwrap();
    }
}

#[test]
fn refusals_are_named() {
    let (_dir, _swtpm, mut tpm) = start();
    let error = tpm.pcr_extend(99, &[Bank::Sha256.hash(&[])]).unwrap_err().to_string();
    assert!(error.contains("TPM2_PCR_Extend") && error.contains("TPM_RC_VALUE"), "{error}");
    let error = tpm.pcr_extend(10, &[Bank::Sm3.hash(&[])]).unwrap_err().to_string();
    assert!(error.contains("TPM_RC_HASH") && error.contains("does not know the hash"), "{error}");
    let no_such = tpm.pcr_read(Bank::Sha256, 24).unwrap_err();
    assert!(matches!(no_such, TpmError::NoPcr { bank: Bank::Sha256, pcr: 24 }), "{no_such}");
    let key = tpm.attestation_key(KeyKind::EccP256).unwrap();
    let beyond = [PcrSelection { bank: Bank::Sha1, pcrs: 1 << 31 | 1 << 10 }];
    let no_such = tpm.quote(&key, b"", &beyond).unwrap_err();
    assert!(matches!(no_such, TpmError::NoPcr { bank: Bank::Sha1, pcr: 31 }), "{no_such}");
    // A hash that swtpm does not know at all.
    let unknown = [Bank::Sha1, Bank::Sm3].map(|bank| PcrSelection { bank, pcrs: 1 << 10 });
    for no_such in [
        tpm.pcr_read(Bank::Sm3, 10).unwrap_err(),
        tpm.pcr_values(&unknown).unwrap_err(),
        tpm.quote(&key, b"nonce", &unknown).unwrap_err(),
    ] {
        assert!(matches!(no_such, TpmError::NoPcr { bank: Bank::Sm3, pcr: 10 }), "{no_such}");
    }
    let error = tpm.quote(&key, &[0; 67], &[]).unwrap_err().to_string();
    assert!(error.contains("TPM2_Quote") && error.contains("available: 66"), "{error}");
    let nowhere = Endpoint::Device("/nonexistent/tpm".into());
    let error = Tpm::connect(&nowhere).err().unwrap().to_string();
    assert!(error.contains("/nonexistent/tpm") && error.contains("no such TPM"), "{error}");
}

#[test]
fn two_swtpms_do_not_share_a_state() {
    let dir = tempdir().unwrap();
    // Longer than a socket's path may be.
    let state = dir.path().join("deep".repeat(30)).join("state");
    let (_swtpm, mut tpm) = Swtpm::start(&state).unwrap();
    let error = Swtpm::start(&state).err().unwrap().to_string();
    assert!(error.contains(state.to_str().unwrap()) && error.contains("lock"), "{error}");
    tpm.banks().unwrap();
    let error = Swtpm::start(&dir.path().join("a,b")).err().unwrap().to_string();
    assert!(error.contains("comma"), "{error}");
}

#[test]
fn swtpm_ends_with_its_owner_or_its_connection() {
    let dir = tempdir().unwrap();
    for owner_first in [true, false] {
        let (swtpm, mut tpm) = Swtpm::start(dir.path()).unwrap();
        assert_eq!(swtpms(dir.path()), 1);
        if owner_first {
            drop(swtpm);
            assert_eq!(swtpms(dir.path()), 0);
            assert!(matches!(tpm.banks(), Err(TpmError::Io { .. })));
        } else {
            drop(tpm);
            drop(swtpm);
            assert_eq!(swtpms(dir.path()), 0);
        }
    }
}

/// With no swtpm in its PATH.
#[test]
fn a_missing_swtpm_is_named_with_its_package() {
    const EMPTY: &str = "/nonexistent";
    if std::env::var_os("PATH").is_some_and(|path| path == EMPTY) {
        let dir = tempdir().unwrap();
        let error = Swtpm::start(dir.path()).err().unwrap();
        assert!(matches!(error, TpmError::SwtpmMissing { .. }), "{error}");
        assert!(error.to_string().contains("apt-get install swtpm"), "{error}");
        return;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_missing_swtpm_is_named_with_its_package"])
        .env("PATH", EMPTY)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

/// In the process that is killed this is where swtpm is started; elsewhere it does nothing.
#[test]
fn helper_that_is_killed() {
    let Some(state) = std::env::var_os("IMASTAGE_TEST_KILLED_STATE") else { return };
    // If the test itself is killed, this ends, too: its end of the pipe is closed.
    thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
    loop {
        // The swtpm of an owner that was killed may not have ended yet, or not even begun.
        if let Ok(_alive) = Swtpm::start(Path::new(&state)) {
            fs::write(Path::new(&state).join("ready"), "").unwrap();
        }
    }
}

#[test]
fn no_swtpm_survives_a_killed_owner() {
    let dir = tempdir().unwrap();
    let state = dir.path().join("state");
    let ready = state.join("ready");
    // Whatever it is doing: starting swtpm, connecting, ending it.
    for moment in 0..25 {
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "helper_that_is_killed"])
            .env("IMASTAGE_TEST_KILLED_STATE", &state)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("swtpm to start", || ready.exists());
        thread::sleep(Duration::from_micros(moment * 1_700));
        owner.kill().unwrap();
        owner.wait().unwrap();
        wait_for("swtpm to end", || swtpms(&state) == 0);
        fs::remove_file(&ready).unwrap();
    }
}

/// How many swtpm processes have this state directory.
fn swtpms(state: &Path) -> usize {
    let state = state.canonicalize().unwrap();
    let state = state.to_str().unwrap();
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .filter(|line| line.starts_with(b"swtpm") && String::from_utf8_lossy(line).contains(state))
        .count()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < LONGEST, "waited too long for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
