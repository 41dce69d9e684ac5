//! A TPM (swtpm) that many use over one socket.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use ima_log::{Bank, Digest};
use imastage_tpm::{Endpoint, KeyKind, PcrSelection, Serving, SharedTpm, Swtpm, Tpm, TpmError};
use tempfile::{TempDir, tempdir};

/// How long anything is waited for that should happen, however busy the machine is: a test that goes
/// wrong fails, it does not hang.
const LONGEST: Duration = Duration::from_secs(300);

/// What swtpm has.
const BANKS: [Bank; 4] = [Bank::Sha1, Bank::Sha256, Bank::Sha384, Bank::Sha512];

/// Fields are dropped in this order.
struct Setup {
    shared: SharedTpm,
    serving: Serving,
    path: PathBuf,
    swtpm: Swtpm,
    dir: TempDir,
}

fn setup() -> Setup {
    let dir = tempdir().unwrap();
    let (swtpm, tpm) = Swtpm::start(&dir.path().join("state")).unwrap();
    let path = dir.path().join("tpm.sock");
    let shared = SharedTpm::new(tpm);
    let serving = shared.serve(UnixListener::bind(&path).unwrap()).unwrap();
    Setup { shared, serving, path, swtpm, dir }
}

impl Setup {
    fn connect(&self) -> Tpm {
        Tpm::connect(&Endpoint::Unix(self.path.clone())).unwrap()
    }

    fn raw(&self) -> UnixStream {
        let client = UnixStream::connect(&self.path).unwrap();
        client.set_read_timeout(Some(LONGEST)).unwrap();
        client
    }
}

#[test]
fn many_clients_share_one_tpm() {
    const EXTENDS: usize = 50;
    let setup = setup();
    let value =
        |client: u32, i: usize| Bank::Sha256.hash(&[&client.to_le_bytes(), &i.to_le_bytes()]);
    thread::scope(|scope| {
        for client in 0..4 {
            let mut tpm = setup.connect();
            scope.spawn(move || {
                for i in 0..EXTENDS {
                    tpm.pcr_extend(8 + client, &[value(client, i)]).unwrap();
                    if i % 10 != 0 {
                        continue;
                    }
                    // Four do not fit into three slots; whoever is refused is told so.
                    match tpm.attestation_key(KeyKind::EccP256) {
                        Ok(key) => {
                            let pcrs = [PcrSelection { bank: Bank::Sha256, pcrs: 1 << 8 }];
                            tpm.quote(&key, b"nonce", &pcrs).unwrap();
                            tpm.flush(key).unwrap();
                        }
                        Err(TpmError::Refused { code, .. }) => {
                            assert!(code.to_string().contains("OBJECT_MEMORY"), "{code}");
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        // And so does the process that shares it.
        for i in 0..EXTENDS {
            setup.shared.lock().pcr_extend(12, &[value(4, i)]).unwrap();
        }
    });
    for client in 0..5 {
        let expected = (0..EXTENDS)
            .fold(Digest::zero(Bank::Sha256), |pcr, i| pcr.extended_with(&value(client, i)));
        let read = setup.shared.lock().pcr_read(Bank::Sha256, 8 + client).unwrap();
        assert_eq!(read, expected, "client {client}");
    }
    all_slots_are_free(&setup.shared);
}

#[test]
fn what_a_client_leaves_loaded_is_flushed() {
    let setup = setup();
    for round in 0..10 {
        let mut tpm = setup.connect();
        let since = Instant::now();
        // Until the end of the previous client is noticed, its keys fill the slots.
        let mut loaded = 0;
        while loaded < 3 {
            match tpm.attestation_key(KeyKind::EccP256) {
                Ok(_left_loaded) => loaded += 1,
                Err(_) if since.elapsed() < LONGEST => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("round {round}: {error}"),
            }
        }
        let error = tpm.attestation_key(KeyKind::EccP256).unwrap_err().to_string();
        assert!(error.contains("OBJECT_MEMORY") && error.contains("tpm2_flushcontext"), "{error}");
    }
}

/// A sequence that is completed is gone, and the next one has the same handle.
#[test]
fn a_client_that_leaves_takes_nothing_of_others_along() {
    let setup = setup();
    let (mut first, mut second) = (setup.raw(), setup.raw());
    let start = hex("8001 0000000e 00000186 0000 000b");
    let handle = ask(&mut first, &start)[10..14].to_vec();
    let complete = |client: &mut UnixStream| {
        let mut command = hex("8002 00000021 0000013e");
        command.extend(&handle);
        command.extend(hex("00000009 40000009 0000 01 0000 0000 40000007"));
        code(&ask(client, &command))
    };
    assert_eq!(complete(&mut first), 0);
    assert_eq!(ask(&mut second, &start)[10..14], handle);
    hang_up(first);
    assert_eq!(complete(&mut second), 0);
    // The same if it is the sharing process that has the handle next.
    let key = setup.shared.lock().attestation_key(KeyKind::EccP256).unwrap();
    hang_up(second);
    setup.shared.lock().quote(&key, b"nonce", &[]).unwrap();
}

#[test]
fn clients_cannot_touch_what_others_have_loaded() {
    let setup = setup();
    let key = setup.shared.lock().attestation_key(KeyKind::EccP256).unwrap();
    let mut client = setup.raw();
    let flush = hex("8001 0000000e 00000165 80000000");
    assert_eq!(code(&ask(&mut client, &flush)), 0x1cb, "TPM_RC_HANDLE, parameter 1");
    let read_public = hex("8001 0000000e 00000173 80000000");
    assert_eq!(code(&ask(&mut client, &read_public)), 0x910, "TPM_RC_REFERENCE_H0");
    let handles = |client: &mut UnixStream| {
        let response = ask(client, &hex("8001 00000016 0000017a 00000001 80000000 00000010"));
        assert_eq!((code(&response), &response[10..15]), (0, &hex("00 00000001")[..]));
        assert_eq!(response[2..6], (response.len() as u32).to_be_bytes());
        response[15..].to_vec()
    };
    assert_eq!(handles(&mut client), hex("00000000"));
    let sequence = ask(&mut client, &hex("8001 0000000e 00000186 0000 000b"))[10..14].to_vec();
    assert_eq!(handles(&mut client), [hex("00000001"), sequence].concat());
    // A policy session of one client, used by another.
    let start_session = hex("8001 0000002b 00000176 40000007 40000007 0010 \
                             00000000000000000000000000000000 0000 01 0010 000b");
    let session = ask(&mut client, &start_session)[10..14].to_vec();
    assert_eq!(session[0], 3);
    let mut restart = hex("8001 0000000e 00000180");
    restart.extend(&session);
    assert_eq!(code(&ask(&mut client, &restart)), 0);
    let mut other = setup.raw();
    assert_eq!(code(&ask(&mut other, &restart)), 0x910);
    // TPM2_PCR_Extend, authorized by that session.
    let mut extend = hex("8002 0000001f 00000182 00000010 00000009");
    extend.extend(&session);
    extend.extend(hex("0000 00 0000 00000000"));
    assert_eq!(code(&ask(&mut other, &extend)), 0x918, "TPM_RC_REFERENCE_S0");
    // What belongs to nobody is everybody's.
    setup.connect().pcr_extend(16, &[Bank::Sha256.hash(&[])]).unwrap();
    setup.shared.lock().quote(&key, b"nonce", &[]).unwrap();
}

#[test]
fn clients_stay_when_the_tpm_is_reset() {
    let setup = setup();
    let mut client = setup.connect();
    let resets = client.clock().unwrap().reset_count;
    client.attestation_key(KeyKind::EccP256).unwrap();
    drop(setup.swtpm);
    let (_swtpm, tpm) = Swtpm::start(&setup.dir.path().join("state")).unwrap();
    setup.shared.replace(tpm);
    assert_eq!(client.clock().unwrap().reset_count, resets + 1);
    // What it had loaded is gone, and nobody takes another's handle for it.
    let mut other = Tpm::connect(&Endpoint::Unix(setup.path)).unwrap();
    other.attestation_key(KeyKind::EccP256).unwrap();
    client.attestation_key(KeyKind::EccP256).unwrap();
}

#[test]
fn garbage_from_a_client_hurts_only_that_client() {
    let setup = setup();
    let answered = [
        // Commands that there are not, a tag, handles that are missing.
        ("8001 0000000a deadbeef", 0x143),
        ("00c1 0000000a 00000144", 0x01e),
        ("8001 0000000c 00000173 8000", 0x142),
        // An authorization larger than its command.
        ("8002 00000012 00000182 0000000a ffffffff", 0x142),
        // The TPM itself refuses: no PCRs, trailing bytes.
        ("8001 0000000b 00000181 00", 0x095),
    ];
    let mut client = setup.raw();
    for (command, expected) in answered {
        assert_eq!(code(&ask(&mut client, &hex(command))), expected, "{command}");
    }
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 64],
        &[0; 10_000],
        &hex("8001 ffffffff 00000144"),
        &hex("8001 00000009 00000144"),
        &hex("8001"),
        &hex("8001 00000fff 00000144"),
    ] {
        let mut client = setup.raw();
        // It may be cut off before it has sent everything.
        let _ = client.write_all(garbage);
        let _ = client.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{garbage:x?}: {answer:x?}");
        assert_eq!(setup.connect().banks().unwrap(), BANKS);
    }
    // A client that sends many commands at once and reads no response blocks nobody.
    let mut greedy = setup.raw();
    greedy.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let clock = hex("8001 0000000a 00000181");
    let _ = greedy.write_all(&clock.repeat(100_000));
    assert_eq!(setup.connect().banks().unwrap(), BANKS);
    all_slots_are_free(&setup.shared);
}

#[test]
fn a_crowd_is_turned_away() {
    let setup = setup();
    let clock = hex("8001 0000000a 00000181");
    let mut crowd: Vec<_> = (0..SharedTpm::MAX_CLIENTS).map(|_| setup.raw()).collect();
    crowd.iter_mut().for_each(|client| assert_eq!(code(&ask(client, &clock)), 0));
    let mut answer = Vec::new();
    let _ = setup.raw().read_to_end(&mut answer);
    assert!(answer.is_empty(), "{answer:x?}");
    hang_up(crowd.remove(0));
    assert_eq!(code(&ask(&mut setup.raw(), &clock)), 0);
}

#[test]
fn stopping_lets_go_of_clients_keys_and_tpm() {
    let setup = setup();
    let mut client = setup.connect();
    let _key = client.attestation_key(KeyKind::EccP256).unwrap();
    let path = setup.path.clone();
    let Setup { shared, serving, swtpm: _swtpm, dir: _dir, .. } = setup;
    serving.stop();
    assert!(matches!(client.banks(), Err(TpmError::Io { .. })));
    let error = Tpm::connect(&Endpoint::Unix(path)).err().unwrap().to_string();
    assert!(error.contains("no TPM is served there"), "{error}");
    all_slots_are_free(&shared);
}

fn all_slots_are_free(shared: &SharedTpm) {
    let mut tpm = shared.lock();
    let keys = [0; 3].map(|_| tpm.attestation_key(KeyKind::EccP256).unwrap());
    for key in keys {
        tpm.flush(key).unwrap();
    }
}

fn ask(client: &mut UnixStream, command: &[u8]) -> Vec<u8> {
    client.write_all(command).unwrap();
    let mut response = vec![0; 4096];
    let len = read(client, &mut response);
    response.truncate(len);
    response
}

fn code(response: &[u8]) -> u32 {
    u32::from_be_bytes(response[6..10].try_into().unwrap())
}

/// Returns when all that the client had is flushed: only then the other side is closed.
fn hang_up(mut client: UnixStream) {
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read(&mut client, &mut [0]), 0);
}

/// One read. The client has a limit, and such a read is not restarted where a signal interrupts it.
fn read(client: &mut UnixStream, buffer: &mut [u8]) -> usize {
    loop {
        match client.read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            read => return read.unwrap(),
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}
