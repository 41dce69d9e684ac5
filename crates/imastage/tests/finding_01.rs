//! Root of the attested machine against a verifier that has a token.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use imastage_sandbox::tpm_of;
use imastage_tpm::{ClockInfo, Endpoint, Tpm};

#[allow(dead_code)]
mod common;

use common::{Answer, Machine, Running, imastage};

const OWNER: u32 = 0x4000_0001;
const LOCKOUT: u32 = 0x4000_000a;
const CLEAR: u32 = 0x126;
const CLOCK_SET: u32 = 0x128;

/// The sandbox's TPM.
fn endpoint(machine: &Machine) -> Endpoint {
    tpm_of(Path::new(&machine.mount())).unwrap()
}

fn clock(machine: &Machine) -> ClockInfo {
    Tpm::connect(&endpoint(machine)).unwrap().clock().unwrap()
}

/// Sends a command for a hierarchy, with an empty authorization value, as any tool can.
fn command(machine: &Machine, code: u32, hierarchy: u32, parameters: &[u8]) {
    let authorization = [0x40, 0, 0, 9, 0, 0, 0, 0, 0];
    let size = 10 + 4 + 4 + authorization.len() + parameters.len();
    let mut command = vec![0x80, 2];
    for word in [size as u32, code, hierarchy, authorization.len() as u32] {
        command.extend(word.to_be_bytes());
    }
    command.extend(authorization);
    command.extend(parameters);
    let Endpoint::Unix(path) = endpoint(machine) else { panic!() };
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(&command).unwrap();
    let mut header = [0; 10];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(header[6..], [0; 4], "command {code:#x}");
}

fn order(machine: &Machine, order: &str, more: &[&str]) {
    let mount = machine.mount();
    let answer = imastage(&[&["sandbox", order, "--mount", &mount], more].concat());
    assert_eq!(answer.code, 0, "{}", answer.stderr);
}

fn measure(machine: &Machine, prefix: &str, count: usize) {
    let files = machine.files(prefix, count);
    let files: Vec<&str> = files.iter().map(|path| path.to_str().unwrap()).collect();
    order(machine, "measure", &files);
}

fn serve(machine: &Machine, state: &str) -> Running {
    Running::start(&["run", "--source", &machine.mount(), "--state", state, "--every", "50"])
}

/// The key that a state directory's service says it signs with, in a file.
fn key(machine: &Machine, state: &str, name: &str) -> String {
    let answer = imastage(&["attest", "--state", state, "--key"]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let path = machine.path(name);
    fs::write(&path, answer.text()).unwrap();
    path
}

fn verify(state: &str, key: &str, token: &str) -> Answer {
    imastage(&["--json", "verify", "--state", state, "--key", key, "--token", token])
}

#[test]
fn finding_01_continuity_does_not_survive_tpm2_clear() {
    let Some(machine) = Machine::start_with(&[]) else { return };
    order(&machine, "reboot", &[]);
    let resets = clock(&machine).reset_count;
    let (honest, forged) = (machine.path("honest"), machine.path("forged"));

    // A verifier has seen four records, and the next round would show a fifth.
    let service = serve(&machine, &honest);
    let enrolled = key(&machine, &honest, "enrolled.pem");
    let token = machine.path("token");
    measure(&machine, "good", 3);
    let round = verify(&honest, &enrolled, &token);
    assert_eq!((round.code, &round.json()["records"]), (0, &4.into()), "{}", round.stderr);
    let evidence = machine.path("evidence");
    let got = imastage(&["attest", "--state", &honest, "--out", &evidence]);
    assert_eq!(got.code, 0, "{}", got.stderr);
    let kept = fs::read(&token).unwrap();
    let clock_of_token =
        serde_json::from_slice::<serde_json::Value>(&kept).unwrap()["clock"].as_u64().unwrap();
    measure(&machine, "evil", 1);
    assert_eq!(service.stop(), 0);

    // Root makes a TPM that looks as it did before the fifth.
    command(&machine, CLEAR, LOCKOUT, &[]);
    assert_eq!(clock(&machine).reset_count, 0);
    while clock(&machine).reset_count < resets {
        order(&machine, "reboot", &[]);
    }
    command(&machine, CLOCK_SET, OWNER, &(clock_of_token + 5_000).to_be_bytes());
    order(&machine, "replay", &[&format!("{evidence}/list")]);
    let service = serve(&machine, &forged);

    // All but the key is unchanged.
    let theirs = key(&machine, &forged, "theirs.pem");
    let alone = verify(&forged, &theirs, &machine.path("no-token"));
    assert_eq!((alone.code, &alone.json()["records"]), (0, &4.into()), "{}", alone.stderr);
    assert_eq!(clock(&machine).reset_count, resets);
    assert!(clock(&machine).clock >= clock_of_token);

    for (key, why) in [(&enrolled, "signature"), (&theirs, "key")] {
        let round = verify(&forged, key, &token);
        assert_eq!(round.code, 1, "{}{}", round.text(), round.stderr);
        let answer = round.json();
        assert_eq!(answer["verdict"], "fail");
        assert!(answer["reason"].as_str().unwrap().contains(why), "{answer}");
        assert_eq!(fs::read(&token).unwrap(), kept);
    }
    assert_eq!(service.stop(), 0);
}
