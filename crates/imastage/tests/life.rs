//! The whole loop as its users run it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::Value;

#[allow(dead_code)]
mod common;

use common::{Machine, Running, imastage, wait_until};

fn measure(machine: &Machine, prefix: &str, count: usize) {
    let mount = machine.mount();
    let files = machine.files(prefix, count);
    let mut args = vec!["--json", "sandbox", "measure", "--mount", &mount];
    args.extend(files.iter().map(|path| path.to_str().unwrap()));
    let answer = imastage(&args);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert_eq!(answer.json()["added"], count as u64);
}

fn start_service(machine: &Machine) -> Running {
    let (mount, state) = (machine.mount(), machine.state());
    Running::start(&["--json", "run", "--source", &mount, "--state", &state, "--every", "50"])
}

fn enrol(machine: &Machine) -> String {
    let answer = imastage(&["attest", "--state", &machine.state(), "--key"]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let path = machine.path("trusted.pem");
    fs::write(&path, answer.text()).unwrap();
    path
}

fn verify(machine: &Machine, key: &str, token: &str) -> (i32, Value) {
    let state = machine.state();
    let answer = imastage(&["--json", "verify", "--state", &state, "--key", key, "--token", token]);
    assert!(answer.code < 2, "{}", answer.stderr);
    (answer.code, answer.json())
}

#[test]
fn two_verifiers_with_different_positions_both_see_everything() {
    let Some(machine) = Machine::start() else { return };
    let service = start_service(&machine);
    let key = enrol(&machine);
    let (a, b) = (machine.path("a.json"), machine.path("b.json"));
    measure(&machine, "first", 30);
    let (code, first) = verify(&machine, &key, &a);
    assert_eq!((code, &first["verdict"], &first["from"]), (0, &"pass".into(), &0.into()));
    let seen = first["records"].as_u64().unwrap();
    assert!(seen >= 31, "{first}");

    measure(&machine, "second", 20);
    let (code, second) = verify(&machine, &key, &a);
    assert_eq!((code, second["from"].as_u64()), (0, Some(seen)), "{second}");
    assert!(second["records"].as_u64().unwrap() >= seen + 20);
    // The other one asks for the first time and gets all of it.
    let (code, other) = verify(&machine, &key, &b);
    assert_eq!((code, &other["from"]), (0, &0.into()));
    assert!(other["records"].as_u64() >= second["records"].as_u64());
    // Nothing new passes too, and says so.
    let (code, again) = verify(&machine, &key, &b);
    assert_eq!((code, again["from"].as_u64()), (0, other["records"].as_u64()), "{again}");

    assert_eq!(service.stop(), 0);
    // Down, it cannot be asked: the environment's fault, and what to do is said.
    let answer = imastage(&["verify", "--state", &machine.state(), "--key", &key, "--token", &a]);
    assert_eq!(answer.code, 3);
    assert!(answer.stderr.contains("start it with"), "{}", answer.stderr);
    // Up again, everybody continues where they were.
    let service = start_service(&machine);
    measure(&machine, "third", 5);
    let (code, third) = verify(&machine, &key, &a);
    assert_eq!((code, &third["from"]), (0, &second["records"]), "{third}");
    assert_eq!(service.stop(), 0);
}

const NONCE: &str = "c0ffee00c0ffee00c0ffee00c0ffee00";

#[test]
fn evidence_in_files_is_verified_anywhere() {
    let Some(machine) = Machine::start() else { return };
    let service = start_service(&machine);
    let key = enrol(&machine);
    measure(&machine, "file", 10);
    let (state, out) = (machine.state(), machine.path("evidence"));
    let answer = imastage(&[
        "--json", "attest", "--state", &state, "--out", &out, "--nonce", NONCE, "--bank", "sha1",
        "--bank", "sha256",
    ]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert_eq!(answer.json()["nonce"], NONCE);
    let file = |name: &str| format!("{out}/{name}");
    let (message, signature, list) = (file("quote.msg"), file("quote.sig"), file("list"));
    let check = |list: &str, nonce: &str| {
        common::verify([&message, &signature, &key, list], nonce, &["--json"])
    };
    let good = check(&list, NONCE);
    assert_eq!(good.code, 0, "{}", good.stderr);
    assert_eq!(good.json()["banks"], serde_json::json!({ "sha1": "own", "sha256": "own" }));
    // The state directory is as good as the list, and has more in it later.
    measure(&machine, "later", 4);
    imastage(&["attest", "--state", &state, "--out", &machine.path("again")]);
    let more = check(&state, NONCE);
    assert_eq!(more.code, 0, "{}", more.stderr);
    assert!(more.json()["excess"].as_u64().unwrap() >= 4);

    assert_eq!(check(&list, &NONCE.replace('c', "d")).code, 1);
    let bytes = fs::read(&list).unwrap();
    fs::write(&list, &bytes[..bytes.len() - 3]).unwrap();
    let cut = check(&list, NONCE);
    assert_eq!(cut.code, 2, "{}", cut.text());
    assert!(cut.stderr.contains("cut short"), "{}", cut.stderr);

    // What cannot be given is refused in words.
    let answer = imastage(&["attest", "--state", &state, "--out", &out, "--nonce", "xyz"]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    let answer = imastage(&["attest", "--state", &state, "--out", &out, "--from", "1000000"]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert_eq!(service.stop(), 0);
}

#[test]
fn a_reader_that_keeps_the_list_open_is_named_and_keeps_nobody_from_attesting() {
    let Some(machine) = Machine::start() else { return };
    let list = format!("{}/ascii_runtime_measurements", machine.mount());
    let held = fs::File::open(list).unwrap();
    let service = start_service(&machine);
    let state = machine.state();
    let answer = imastage(&["attest", "--state", &state, "--out", &machine.path("evidence")]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    // Nothing can be deleted, which is for the operator to mend.
    let me = format!("pid {}", std::process::id());
    let status = imastage(&["--json", "status", "--state", &state]);
    assert_eq!(status.code, 3);
    assert!(
        status.stderr.contains("in use by") && status.stderr.contains(&me),
        "{}",
        status.stderr
    );
    assert!(status.json()["since_start"]["last_error"].as_str().unwrap().contains(&me));
    assert_eq!(status.json()["verdict"]["state"], "consistent");
    drop(held);
    // It continues by itself.
    let answer = imastage(&["attest", "--state", &state, "--out", &machine.path("evidence")]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    // A program that another test starts has our files, too, until it is executed.
    wait_until("it can delete", || imastage(&["status", "--state", &state]).code == 0);
    assert_eq!(service.stop(), 0);
}

#[test]
fn one_service_a_state_directory() {
    let Some(machine) = Machine::start() else { return };
    let service = start_service(&machine);
    let (mount, state) = (machine.mount(), machine.state());
    let answer = imastage(&["run", "--source", &mount, "--state", &state]);
    assert_eq!(answer.code, 3);
    assert!(answer.stderr.contains("another service (pid "), "{}", answer.stderr);
    let answer = imastage(&["run", "--source", &mount, "--state", &state, "--delete-mode", "none"]);
    assert_eq!(answer.code, 3);
    assert!(answer.stderr.contains("locked by process"), "{}", answer.stderr);
    assert_eq!(service.stop(), 0);
    let answer = imastage(&["run", "--source", "/nonexistent", "--state", &state]);
    assert_eq!(answer.code, 3);
    assert!(answer.stderr.contains("binary_runtime_measurements: not found"), "{}", answer.stderr);
    // A way to delete records that the list does not know.
    let other = machine.path("other");
    fs::create_dir(&other).unwrap();
    fs::write(format!("{other}/binary_runtime_measurements"), "").unwrap();
    let chosen = ["--delete-mode", "stage"];
    let run = [&["run", "--source", &other, "--state", &state], &chosen[..]].concat();
    let answer = imastage(&run);
    assert_eq!(answer.code, 2);
    assert!(answer.stderr.contains("omit --delete-mode"), "{}", answer.stderr);
    let answer = imastage(&["status", "--state", &machine.path("files")]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
}

#[test]
fn the_embedded_list_comes_and_goes_with_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let state = state.to_str().unwrap();
    for source in ["embedded", "in-process"] {
        let service = Running::start(&["--json", "run", "--source", source, "--state", state]);
        let mount = format!("{state}/ima");
        let mode = fs::metadata(state).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let answer = imastage(&["--json", "sandbox", "measure", "--mount", &mount, "/usr/bin/env"]);
        assert_eq!(answer.code, 0, "{source}: {}", answer.stderr);
        let status = imastage(&["--json", "status", "--state", state]);
        assert_eq!(status.code, 0, "{source}: {}", status.text());
        assert_eq!(service.stop(), 0);
        // Each has a TPM of its own, so each is an epoch of its own.
        let rest = imastage(&["--json", "status", "--state", state]);
        assert_eq!(rest.code, 3, "{source}: {}", rest.text());
        assert!(rest.json()["records"].as_u64().unwrap() >= 2);
        assert_eq!(rest.json()["epoch"], if source == "embedded" { 1 } else { 2 });
        assert_eq!(imastage(&["sandbox", "status", "--mount", &mount]).code, 3);
    }
}

#[test]
fn the_demonstration_shows_what_it_should() {
    for extra in [&[][..], &["--no-fuse"]] {
        let answer = imastage(&[&["--json", "demo", "--files", "1500"], extra].concat());
        assert_eq!(answer.code, 0, "{}{}", answer.text(), answer.stderr);
        let json = answer.json();
        assert_eq!(json["as_expected"], true);
        let good = &json["good_day"];
        assert!(good["stored"].as_u64().unwrap() > 1000, "{good}");
        for verifier in good["verifiers"].as_array().unwrap() {
            assert_eq!(verifier["verdict"], "pass");
        }
        assert_eq!(json["altered_record"]["verify"]["verdict"], "fail");
        if extra.is_empty() {
            let status = &json["deleted_records"]["status"];
            assert_eq!(status["state"], "diverged");
            assert_eq!(status["after"].as_u64().unwrap() + 1, status["before"].as_u64().unwrap());
        }
    }
}
