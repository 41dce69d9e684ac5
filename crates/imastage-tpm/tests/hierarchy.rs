//! What TPM2_Clear and authorization values do to keys.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
};

use ima_log::Bank;
use imastage_tpm::{Credential, KeyKind, PcrSelection, Quote, SharedTpm, Swtpm, TpmError};
use tempfile::{TempDir, tempdir};

const OWNER: u32 = 0x4000_0001;
const LOCKOUT: u32 = 0x4000_000a;
const ENDORSEMENT: u32 = 0x4000_000b;
const CLEAR: u32 = 0x126;
const HIERARCHY_CHANGE_AUTH: u32 = 0x129;

/// A TPM that also takes commands as bytes.
struct Machine {
    shared: SharedTpm,
    swtpm: Option<Swtpm>,
    dir: TempDir,
}

impl Machine {
    fn start() -> Machine {
        let dir = tempdir().unwrap();
        let (swtpm, tpm) = Swtpm::start(&dir.path().join("state")).unwrap();
        let shared = SharedTpm::new(tpm);
        let socket = UnixListener::bind(dir.path().join("sock")).unwrap();
        shared.serve(socket).unwrap();
        Machine { shared, swtpm: Some(swtpm), dir }
    }

    fn reset(&mut self) {
        drop(self.swtpm.take());
        let (swtpm, tpm) = Swtpm::start(&self.dir.path().join("state")).unwrap();
        self.shared.replace(tpm);
        self.swtpm = Some(swtpm);
    }

    /// Sends a command for a hierarchy, with an empty authorization value.
    fn command(&self, code: u32, hierarchy: u32, parameters: &[u8]) {
        let authorization = [0x40, 0, 0, 9, 0, 0, 0, 0, 0];
        let size = 10 + 4 + 4 + authorization.len() + parameters.len();
        let mut command = vec![0x80, 2];
        for word in [size as u32, code, hierarchy, authorization.len() as u32] {
            command.extend(word.to_be_bytes());
        }
        command.extend(authorization);
        command.extend(parameters);
        let mut stream = UnixStream::connect(self.dir.path().join("sock")).unwrap();
        stream.write_all(&command).unwrap();
        let mut header = [0; 10];
        stream.read_exact(&mut header).unwrap();
        assert_eq!(header[6..], [0; 4], "command {code:#x}");
    }

    fn key(&self, kind: KeyKind) -> String {
        let mut tpm = self.shared.lock();
        let key = tpm.attestation_key(kind).unwrap();
        let pem = key.public_pem().to_owned();
        tpm.flush(key).unwrap();
        pem
    }
}

/// Reset and restart counter of a quote (Part 2, TPMS_ATTEST and TPMS_CLOCK_INFO).
fn counters(quote: &Quote) -> (u32, u32) {
    let message = &quote.message;
    let sized =
        |at: usize| at + 2 + usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
    let reset = sized(sized(6)) + 8;
    let word = |at: usize| u32::from_be_bytes(message[at..at + 4].try_into().unwrap());
    (word(reset), word(reset + 4))
}

#[test]
fn finding_01_a_cleared_tpm_makes_other_attestation_keys() {
    let machine = Machine::start();
    for kind in [KeyKind::EccP256, KeyKind::Rsa2048] {
        let (key, identity) = (machine.key(kind), machine.shared.lock().identity().unwrap());
        assert_eq!(machine.key(kind), key);
        machine.command(CLEAR, LOCKOUT, &[]);
        assert_eq!(machine.shared.lock().clock().unwrap().reset_count, 0);
        assert_ne!(machine.key(kind), key, "{kind:?}");
        // It is the same TPM anyway.
        assert_eq!(machine.shared.lock().identity().unwrap(), identity);
    }
}

#[test]
fn finding_01_a_key_of_a_cleared_tpm_cannot_be_activated_as_the_one_before() {
    let machine = Machine::start();
    let before = machine.shared.lock().attestation_key(KeyKind::EccP256).unwrap();
    let enrolled = before.public_area().clone();
    machine.command(CLEAR, LOCKOUT, &[]);
    let mut tpm = machine.shared.lock();
    let endorsement = tpm.endorsement_key(KeyKind::EccP256).unwrap();
    let now = tpm.attestation_key(KeyKind::EccP256).unwrap();
    let credential = |key| Credential::make(endorsement.public_area(), key, b"secret").unwrap();
    let stale = tpm.activate_credential(&endorsement, &now, &credential(&enrolled));
    assert!(matches!(stale, Err(TpmError::Refused { .. })), "{stale:?}");
    // But anew it is enrolled like any other.
    let fresh = credential(now.public_area());
    assert_eq!(tpm.activate_credential(&endorsement, &now, &fresh).unwrap(), b"secret");
}

/// For keys of the owner hierarchy a TPM adds a constant to the counters that it quotes.
#[test]
fn quoted_counters_move_as_those_of_the_clock_do() {
    let mut machine = Machine::start();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let mut tpm = machine.shared.lock();
        let key = tpm.attestation_key(KeyKind::EccP256).unwrap();
        let selection = [PcrSelection { bank: Bank::Sha256, pcrs: 1 << 10 }];
        let (reset, restart) = counters(&tpm.quote(&key, b"nonce", &selection).unwrap());
        let clock = tpm.clock().unwrap();
        seen.push((
            reset.wrapping_sub(clock.reset_count),
            restart.wrapping_sub(clock.restart_count),
        ));
        drop(tpm);
        machine.reset();
    }
    assert_eq!((seen[0], seen[1]), (seen[1], seen[2]));
    assert_ne!(seen[0], (0, 0));
}

#[test]
fn an_authorization_value_of_the_owner_is_named_with_what_to_do() {
    let machine = Machine::start();
    let identity = machine.shared.lock().identity().unwrap();
    machine.command(HIERARCHY_CHANGE_AUTH, OWNER, b"\x00\x06secret");
    let mut tpm = machine.shared.lock();
    let error = tpm.attestation_key(KeyKind::EccP256).unwrap_err();
    assert!(matches!(error, TpmError::OwnerAuth { .. }), "{error}");
    let error = error.to_string();
    assert!(error.contains("owner hierarchy") && error.contains("tpm2_changeauth"), "{error}");
    assert_eq!(tpm.identity().unwrap(), identity);
    drop(tpm);
    // The other hierarchy's is no concern of the key's.
    let machine = Machine::start();
    machine.command(HIERARCHY_CHANGE_AUTH, ENDORSEMENT, b"\x00\x06secret");
    machine.key(KeyKind::EccP256);
    let error = machine.shared.lock().identity().unwrap_err();
    assert!(matches!(error, TpmError::Refused { .. }), "{error}");
}
