//! Clients of services and sandboxes that hang, lie, or go and come back.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    process::Stdio,
    thread,
};

use imastage_client::{Client, SOCKET, wire::QuoteReply};
use imastage_sandbox::control::{Answer, Command as Ask, RUN_LINK, ask};
use tempfile::TempDir;

#[allow(dead_code)]
mod common;

use common::{Machine, Running, command, imastage, wait_for_end};

/// A state directory where `answer` answers requests, of which it is given the body.
fn fake(answer: impl Fn(&[u8], &mut UnixStream) + Send + 'static) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let body = request(&mut stream);
            answer(&body, &mut stream);
        }
    });
    dir
}

/// Reads a request, and gives its body.
fn request(stream: &mut UnixStream) -> Vec<u8> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.split_once("content-length: ");
    let length = length.map_or(0, |(_, rest)| rest.lines().next().unwrap().parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    body
}

fn reply(stream: &mut UnixStream, status: u16, body: &str) {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
}

/// Says that records `from` up to `to` come, and sends `count` of them, or all that are taken.
fn give_records(stream: &mut UnixStream, to: u64, count: u64) {
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\nimastage-epoch: 1\r\nimastage-from: 0";
    write!(stream, "{head}\r\nimastage-to: {to}\r\n\r\n").unwrap();
    let record = ima_log::RecordBuf::ima_ng(10, &ima_log::Bank::Sha256.hash(&[]), b"/file");
    for _ in 0..count {
        if stream.write_all(record.as_bytes()).is_err() {
            return;
        }
    }
}

fn path(dir: &TempDir) -> &str {
    dir.path().to_str().unwrap()
}

fn measure(machine: &Machine, prefix: &str, count: usize) {
    let paths = machine.files(prefix, count);
    match ask(machine.mount().as_ref(), &Ask::Measure { paths }, &mut |_| {}).unwrap() {
        Answer::Done(measured) => assert_eq!(measured.added, count as u64),
        other => panic!("{other:?}"),
    }
}

fn run_service(machine: &Machine) -> Running {
    let (mount, state) = (machine.mount(), machine.state());
    Running::start(&["--json", "run", "--source", &mount, "--state", &state])
}

#[test]
fn finding_10_a_service_that_is_silent_is_not_waited_for() {
    // The kernel takes connections, nobody answers them; or somebody begins to.
    let silent = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(silent.path().join(SOCKET)).unwrap();
    let half = fake(|_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n").unwrap();
        // Until the client has gone.
        let _ = stream.read(&mut [0]);
    });
    let pid = format!("the service (pid {}) does not answer", std::process::id());
    thread::scope(|scope| {
        for state in [path(&silent), path(&half)] {
            for args in [["status", "--state", state], ["log", "--state", state]] {
                let pid = &pid;
                scope.spawn(move || {
                    let answer = imastage(&args);
                    assert_eq!(answer.code, 3, "{args:?}: {}", answer.stderr);
                    let text =
                        format!("{}{}", answer.stderr, String::from_utf8_lossy(&answer.stdout));
                    assert!(text.contains(pid), "{args:?}: {text}");
                });
            }
        }
    });
}

#[test]
fn finding_10_a_sandbox_that_is_silent_is_not_waited_for() {
    let mount = tempfile::tempdir().unwrap();
    let run = mount.path().join(RUN_LINK);
    std::fs::create_dir(&run).unwrap();
    let _listener = UnixListener::bind(run.join("control.sock")).unwrap();
    let answer = imastage(&["sandbox", "status", "--mount", path(&mount)]);
    assert_eq!(answer.code, 3, "{}", answer.stderr);
    assert!(answer.stderr.contains("does not answer"), "{}", answer.stderr);
}

#[test]
fn finding_10_more_records_than_a_service_says_are_not_taken() {
    let never_ends = fake(|_, stream| give_records(stream, 3, u64::MAX));
    let too_few = fake(|_, stream| give_records(stream, 3, 2));
    for (state, why) in
        [(&never_ends, "more records than it says"), (&too_few, "1 records are missing")]
    {
        let answer = imastage(&["log", "--state", path(state), "--as", "json"]);
        assert_eq!(answer.code, 3, "{}", answer.stderr);
        assert!(answer.stderr.contains(why), "{}", answer.stderr);
        let mut records = 0;
        let result = Client::of_state(state.path()).unwrap().records(0, 3, &mut |_| {
            records += 1;
            Ok::<(), imastage_client::ClientError>(())
        });
        assert!(result.unwrap_err().to_string().contains(why));
    }
    // The answer need not be asked for that nobody can have.
    let client = Client::of_state(never_ends.path()).unwrap();
    let none = &mut |_: &[u8]| Ok::<(), imastage_client::ClientError>(());
    let error = client.records(0, u64::MAX, none).unwrap_err().to_string();
    assert!(error.contains("which nobody has"), "{error}");
}

#[test]
fn finding_10_verify_ends_at_the_records_of_the_quote() {
    let Some(machine) = Machine::start() else { return };
    let service = run_service(&machine);
    measure(&machine, "some", 5);
    let (state, key) = (machine.state(), machine.path("ak.pem"));
    let answer = imastage(&["attest", "--state", &state, "--key"]);
    std::fs::write(&key, answer.text()).unwrap();
    for (records, why) in [(u64::MAX, "which nobody has"), (3, "more records than it says")] {
        let real = Client::of_state(state.as_ref()).unwrap();
        // A true quote over this verifier's nonce, and a lie about what belongs to it.
        let liar = fake(move |body, stream| match serde_json::from_slice(body) {
            Ok(asked) => {
                let quote = QuoteReply { records, ..real.quote(&asked).unwrap() };
                reply(stream, 200, &serde_json::to_string(&quote).unwrap());
            }
            Err(_) => give_records(stream, records, u64::MAX),
        });
        let answer = imastage(&["verify", "--state", path(&liar), "--key", &key]);
        assert_eq!(answer.code, 3, "{}{}", answer.text(), answer.stderr);
        assert!(answer.stderr.contains(why), "{}", answer.stderr);
    }
    assert_eq!(service.stop(), 0);
}

#[test]
fn finding_06_verify_asks_for_what_boot_aggregate_is_a_digest_of() {
    let Some(machine) = Machine::start() else { return };
    let service = run_service(&machine);
    measure(&machine, "some", 5);
    let (state, key) = (machine.state(), machine.path("ak.pem"));
    let answer = imastage(&["attest", "--state", &state, "--key"]);
    std::fs::write(&key, answer.text()).unwrap();
    let args = ["verify", "--state", &state, "--key", &key];
    let answer = imastage(&[&["--json"], &args[..], &["--pcr", "0-9"]].concat());
    assert_eq!(answer.code, 0, "{}{}", answer.text(), answer.stderr);
    assert_eq!(answer.json()["boot_aggregate"], "matches");
    let answer = imastage(&[&["--json"], &args[..]].concat());
    assert_eq!(answer.code, 0, "{}{}", answer.text(), answer.stderr);
    assert_eq!(answer.json()["boot_aggregate"], "not-quoted");
    assert_eq!(service.stop(), 0);
}

#[test]
fn finding_09_what_a_service_says_commands_no_terminal() {
    let state = fake(|_, stream| {
        let why = r#"no\r\u001b[2K\u001b[32mpass\u001b[0m\nimastage: pass"#;
        reply(stream, 503, &format!(r#"{{"error":"{why}"}}"#));
    });
    for command in ["status", "log"] {
        let answer = imastage(&[command, "--state", path(&state)]);
        assert_eq!(answer.code, 3);
        let text = format!("{}{}", answer.stderr, String::from_utf8_lossy(&answer.stdout));
        assert!(!text.contains(['\u{1b}', '\r']), "{text:?}");
        assert!(!text.lines().any(|line| line == "imastage: pass"), "{text:?}");
    }
}

#[test]
fn a_log_that_is_followed_goes_on_when_the_service_is_started_again() {
    let Some(machine) = Machine::start() else { return };
    let service = run_service(&machine);
    let state = machine.state();
    let args = ["log", "--state", &state, "--follow", "--as", "json"];
    let mut follow = command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut next = |index: u64| {
        let line = lines.next().unwrap().unwrap();
        let record: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(record["index"], index, "{line}");
    };
    measure(&machine, "first", 3);
    // boot_aggregate is one, too.
    (0..4).for_each(&mut next);
    assert_eq!(service.stop(), 0);
    measure(&machine, "second", 2);
    let service = run_service(&machine);
    (4..6).for_each(&mut next);
    follow.kill().unwrap();
    wait_for_end(&mut follow);
    assert_eq!(service.stop(), 0);
}
