//! Against a real TPM: swtpm.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use ima_log::{Bank, Digest};
use imastage_tpm::{Endpoint, KeyKind, PcrSelection, SharedTpm, Swtpm, Tpm, TpmError};
use tempfile::{TempDir, tempdir};

fn start() -> (TempDir, Swtpm, Tpm) {
    let dir = tempdir().unwrap();
    let (swtpm, tpm) = Swtpm::start(&dir.path().join("state")).unwrap();
    (dir, swtpm, tpm)
}

fn share(dir: &Path, tpm: Tpm) -> (SharedTpm, Endpoint) {
    let path = dir.join("tpm.sock");
    let shared = SharedTpm::new(tpm);
    shared.serve(UnixListener::bind(&path).unwrap()).unwrap();
    (shared, Endpoint::Unix(path))
}

#[test]
fn every_bank_is_extended_as_it_replays() {
    let (_dir, _swtpm, mut tpm) = start();
    let banks = tpm.banks().unwrap();
    assert_eq!(banks, Bank::ALL);
    let mut expected: Vec<Digest> = banks.iter().map(|bank| Digest::zero(*bank)).collect();
    for round in 0..3u8 {
        let values: Vec<Digest> = banks.iter().map(|bank| bank.hash(&[&[round]])).collect();
        tpm.pcr_extend(10, &values).unwrap();
        for (pcr, value) in expected.iter_mut().zip(&values) {
            *pcr = pcr.extended_with(value);
        }
    }
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
fn the_same_tpm_makes_the_same_key_and_counts_its_resets() {
    let dir = tempdir().unwrap();
    let state = dir.path().join("state");
    let mut seen = Vec::new();
    for _ in 0..2 {
        let (swtpm, mut tpm) = Swtpm::start(&state).unwrap();
        let key = tpm.attestation_key(KeyKind::EccP256).unwrap();
        seen.push((key.public_pem().to_owned(), tpm.clock().unwrap().reset_count));
        tpm.flush(key).unwrap();
        assert_eq!(tpm.pcr_read(Bank::Sha256, 10).unwrap(), Digest::zero(Bank::Sha256));
        tpm.pcr_extend(10, &[Bank::Sha256.hash(&[])]).unwrap();
        drop(tpm);
        drop(swtpm);
    }
    assert_eq!(seen[0].0, seen[1].0);
    assert_eq!(seen[0].1 + 1, seen[1].1);

    let (_dir, _swtpm, mut other) = start();
    let key = other.attestation_key(KeyKind::EccP256).unwrap();
    assert_ne!(key.public_pem(), seen[0].0);
}

#[test]
fn tpm2_tools_accept_our_quotes() {
    if Command::new("tpm2_checkquote").arg("--version").output().is_err() {
        eprintln!("SKIPPED: tpm2_checkquote is missing (apt-get install tpm2-tools)");
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
fn many_clients_share_one_tpm() {
    const CLIENTS: u8 = 4;
    const EXTENDS: usize = 50;
    let (dir, _swtpm, tpm) = start();
    let (shared, endpoint) = share(dir.path(), tpm);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let endpoint = &endpoint;
            scope.spawn(move || {
                let mut tpm = Tpm::connect(endpoint).unwrap();
                let pcr = if client % 2 == 0 { 10 } else { 16 };
                for i in 0..EXTENDS {
                    let value = Bank::Sha256.hash(&[&[client], &i.to_le_bytes()]);
                    tpm.pcr_extend(pcr, &[value]).unwrap();
                }
                let key = tpm.attestation_key(KeyKind::EccP256);
                // Four at once do not fit into three slots; whoever is refused is told so.
                match key {
                    Ok(key) => {
                        let quoted = [PcrSelection { bank: Bank::Sha256, pcrs: 1 << pcr }];
                        tpm.quote(&key, b"nonce", &quoted).unwrap();
                        tpm.flush(key).unwrap();
                    }
                    Err(TpmError::Refused { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            });
        }
    });
    // Every client's extends arrived, in some order: the PCR moved, and the TPM is well.
    assert!(!shared.lock().pcr_read(Bank::Sha256, 16).unwrap().is_zero());
}

#[test]
fn what_a_client_leaves_loaded_is_flushed() {
    let (dir, _swtpm, tpm) = start();
    let (_shared, endpoint) = share(dir.path(), tpm);
    for round in 0..10 {
        let mut tpm = Tpm::connect(&endpoint).unwrap();
        let since = Instant::now();
        // The previous client's key is flushed as soon as its end is noticed.
        loop {
            match tpm.attestation_key(KeyKind::EccP256) {
                Ok(_left_loaded) => break,
                Err(_) if since.elapsed() < Duration::from_secs(10) => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("round {round}: {error}"),
            }
        }
    }
}

#[test]
fn garbage_from_a_client_hurts_only_that_client() {
    let (dir, _swtpm, tpm) = start();
    let (_shared, endpoint) = share(dir.path(), tpm);
    let Endpoint::Unix(path) = &endpoint else { panic!() };
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 64],
        &[0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0x44],
        &[0x80, 1, 0, 0, 0, 10, 0xde, 0xad, 0xbe, 0xef],
        &[0x80, 2, 0, 0, 0, 14, 0, 0, 1, 0x31, 1, 2, 3, 4],
        &[0x80, 1],
    ] {
        let mut client = UnixStream::connect(path).unwrap();
        client.write_all(garbage).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // Refused by the TPM, or cut off: either is an answer.
        let _ = client.read_to_end(&mut answer);
        let mut tpm = Tpm::connect(&endpoint).unwrap();
        assert_eq!(tpm.banks().unwrap(), Bank::ALL);
    }
}

#[test]
fn refusals_are_named() {
    let (_dir, _swtpm, mut tpm) = start();
    let error = tpm.pcr_extend(99, &[Bank::Sha256.hash(&[])]).unwrap_err().to_string();
    assert!(error.contains("TPM2_PCR_Extend") && error.contains("TPM_RC_VALUE"), "{error}");
    let nowhere = Endpoint::Device("/nonexistent/tpm".into());
    let error = Tpm::connect(&nowhere).err().unwrap().to_string();
    assert!(error.contains("/nonexistent/tpm") && error.contains("no such TPM"), "{error}");
}

/// In the child this is where swtpm is started and waited for; elsewhere it does nothing.
#[test]
fn helper_that_is_killed() {
    let Some(state) = std::env::var_os("IMASTAGE_TEST_KILLED_STATE") else { return };
    let _alive = Swtpm::start(Path::new(&state)).unwrap();
    fs::write(Path::new(&state).join("ready"), "").unwrap();
    thread::sleep(Duration::from_secs(60));
}

#[test]
fn no_swtpm_survives_a_killed_owner() {
    let dir = tempdir().unwrap();
    let state = dir.path().join("state");
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_that_is_killed"])
        .env("IMASTAGE_TEST_KILLED_STATE", &state)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("swtpm to start", || state.join("ready").exists());
    assert_eq!(swtpms(&state), 1);
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_for("swtpm to end", || swtpms(&state) == 0);
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
        assert!(since.elapsed() < Duration::from_secs(20), "waited too long for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
