//! `imastage run` among others on a machine: the service manager, its configuration, its log.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[allow(dead_code)]
mod common;

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    os::{
        fd::AsFd,
        unix::net::{UnixDatagram, UnixStream},
    },
    path::Path,
};

use common::{LONGEST, Machine, Running, command, imastage};
use rustix::process::Signal;

/// What a service manager is told.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn listen(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(LONGEST)).unwrap();
        Manager { socket, heard: Vec::new() }
    }

    /// Waits for a message with this line, and gives the message.
    fn wait_for(&mut self, line: &str) -> String {
        loop {
            let mut message = [0; 4096];
            let length = match self.socket.recv(&mut message) {
                Ok(length) => length,
                // A wait with a limit is not restarted: a machine that was paused interrupts it.
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => panic!("{line} was not said ({error}), only {:#?}", self.heard),
            };
            let message = String::from_utf8(message[..length].to_vec()).unwrap();
            self.heard.push(message.clone());
            if message.lines().any(|said| said.starts_with(line)) {
                return message;
            }
        }
    }
}

impl Manager {
    /// How many messages with this line have come so far that nobody waited for.
    fn said(&mut self, line: &str) -> usize {
        self.socket.set_nonblocking(true).unwrap();
        let (mut message, mut said) = ([0; 4096], 0);
        while let Ok(length) = self.socket.recv(&mut message) {
            let message = String::from_utf8_lossy(&message[..length]);
            said += usize::from(message.lines().any(|said| said.starts_with(line)));
        }
        self.socket.set_nonblocking(false).unwrap();
        said
    }
}

#[test]
fn a_service_manager_is_told_how_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("imastage.toml");
    let state = dir.path().join("state");
    let text = |every: u64, extra: &str| {
        format!(
            "source = 'in-process'\ntpm = 'none'\nstate = {state:?}\nevery = {every}\n{extra}\n"
        )
    };
    std::fs::write(&config, text(100, "")).unwrap();
    let notify = dir.path().join("notify");
    let mut manager = Manager::listen(&notify);
    let (mut log, stderr) = UnixStream::pair().unwrap();
    let mut command = command(&["--json", "run", "--config", config.to_str().unwrap()]);
    command.env("NOTIFY_SOCKET", &notify).env("RUST_LOG", "info").env("WATCHDOG_USEC", "400000");
    command.env("JOURNAL_STREAM", journal_stream(&stderr));
    command.stderr(std::os::fd::OwnedFd::from(stderr));
    let service = Running::of(&mut command);
    // Its copy of our end of the log.
    drop(command);

    let message = manager.wait_for("READY=1");
    // Programs that others execute are in the list as well, and it was drained once.
    let status = message.lines().find_map(|line| line.strip_prefix("STATUS=")).unwrap();
    let (records, rest) = status.split_once(' ').unwrap();
    assert!(records.parse::<u64>().is_ok_and(|records| records > 0), "{message}");
    assert!(rest.starts_with("records stored; not compared with a TPM"), "{message}");

    // As long as it lives, again and again.
    manager.wait_for("WATCHDOG=1");
    manager.wait_for("WATCHDOG=1");
    let metrics = get(&state.join("api.sock"), "/metrics");
    assert!(metrics.contains("\r\ncontent-type: text/plain; version=0.0.4"), "{metrics}");
    assert!(metrics.contains("\nimastage_verdict{verdict=\"unchecked\"} 1\n"), "{metrics}");

    // A key that a running service cannot change, and one that is wrong.
    std::fs::write(&config, text(100, "delete-mode = 'first-n'")).unwrap();
    service.signal(Signal::HUP);
    let message = manager.wait_for("RELOADING=1");
    assert!(message.contains("MONOTONIC_USEC="), "{message}");
    manager.wait_for("READY=1");
    std::fs::write(&config, text(3_600_000, "drain-at = 1000000\nalert = 'true'")).unwrap();
    service.signal(Signal::HUP);
    manager.wait_for("RELOADING=1");
    manager.wait_for("READY=1");
    std::fs::write(&config, text(100, "evry = 1")).unwrap();
    service.signal(Signal::HUP);
    manager.wait_for("RELOADING=1");
    manager.wait_for("READY=1");

    service.signal(Signal::TERM);
    manager.wait_for("STOPPING=1");
    assert_eq!(service.wait(), 0);

    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    let has =
        |line: &str| assert!(text.lines().any(|said| said.starts_with(line)), "{line}: {text}");
    has("<4>delete-mode: the new value takes effect when the service restarts");
    has("<6>every has a new value");
    has("<6>drain-at has a new value");
    has("<6>alert has a new value");
    has(
        "<6>the list is drained every 3600000 ms, and as soon as it has 1000000 records; the alert \
         command is true",
    );
    has("<3>configuration not applied, the previous one remains: ");
    assert!(text.contains("evry: there is no such key; the nearest is every"), "{text}");
    assert!(text.lines().all(|line| line.starts_with('<')), "{text}");
}

/// A request by hand, as any client may make it.
fn get(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// What systemd sets where standard error leads to the journal.
fn journal_stream(stderr: impl AsFd) -> String {
    let stat = rustix::fs::fstat(stderr).unwrap();
    format!("{}:{}", stat.st_dev, stat.st_ino)
}

#[test]
fn without_a_configuration_a_hangup_is_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let state = state.to_str().unwrap();
    let service =
        Running::start(&["run", "--source", "in-process", "--tpm", "none", "--state", state]);
    service.signal(Signal::HUP);
    assert_eq!(service.wait(), 0);
}

#[test]
fn a_configuration_that_cannot_be_used_is_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("imastage.toml");
    std::fs::write(&config, "# a comment\nstat = '/x'\n").unwrap();
    let config = config.to_str().unwrap();
    let answer = imastage(&["run", "--config", config]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    let expected =
        format!("imastage: {config}:2: stat: there is no such key; the nearest is state\n");
    assert_eq!(answer.stderr, expected);
}

#[test]
fn every_subcommand_has_its_page_and_its_completions() {
    let dir = tempfile::tempdir().unwrap();
    let answer = imastage(&["generate", "man", dir.path().to_str().unwrap()]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let help = imastage(&["--help"]);
    let commands = help.text().split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let commands: Vec<_> = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(commands.contains(&"run"), "{commands:?}");
    for shell in ["bash", "zsh", "fish"] {
        let answer = imastage(&["generate", "completions", shell]);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        for command in &commands {
            assert!(answer.text().contains(command), "{shell}: {command}");
        }
    }
    for command in commands {
        let page = dir.path().join(format!("imastage-{command}.1"));
        let page = std::fs::read_to_string(&page).unwrap_or_else(|_| panic!("{}", page.display()));
        assert!(page.contains(".SH SYNOPSIS"), "{command}");
    }
    let run = std::fs::read_to_string(dir.path().join("imastage-run.1")).unwrap();
    assert!(run.contains("\\-\\-every"), "{run}");
    assert!(dir.path().join("imastage.1").exists());
    assert!(dir.path().join("imastage.toml.5").exists());
    assert!(!dir.path().join("imastage-generate.1").exists());
}

/// What is logged about an empty list, which is a warning, with an option, and `RUST_LOG` beside it.
#[test]
fn log_level_is_an_option_that_wins_over_rust_log() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let logged = |options: &[&str], rust_log: Option<&str>, journal: bool| {
        let (mut log, stderr) = UnixStream::pair().unwrap();
        let mut command = command(&[&["show", empty.to_str().unwrap()], options].concat());
        if let Some(level) = rust_log {
            command.env("RUST_LOG", level);
        }
        if journal {
            command.env("JOURNAL_STREAM", journal_stream(&stderr));
        }
        command.stdout(std::process::Stdio::null()).stderr(std::os::fd::OwnedFd::from(stderr));
        let status = command.status().unwrap();
        drop(command);
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        assert_eq!(status.code(), Some(if options.contains(&"loud") { 2 } else { 0 }), "{text}");
        text
    };
    let warned = |text: String| text.contains("empty: a list without records");
    assert!(warned(logged(&[], None, false)));
    assert!(!warned(logged(&[], Some("error"), false)));
    assert!(!warned(logged(&["--log-level", "error"], None, false)));
    assert!(!warned(logged(&["--log-level", "error"], Some("trace"), false)));
    assert!(warned(logged(&["--log-level", "warn"], Some("error"), false)));
    let text = logged(&["--json", "--log-level", "debug"], Some("error"), true);
    assert!(
        text.lines()
            .any(|line| line.starts_with("<4>") && line.contains("empty: a list without records"))
    );
    assert_eq!(logged(&["--json", "--log-level", "error"], None, true), "");
    assert!(logged(&["--log-level", "loud"], None, false).contains("possible values: error, warn"));
}

#[test]
fn status_is_watched() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let state = state.to_str().unwrap();
    let service =
        Running::start(&["run", "--source", "in-process", "--tpm", "none", "--state", state]);
    let mut watching = command(&["--json", "status", "--state", state, "--watch", "1"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let answers = BufReader::new(watching.stdout.take().unwrap()).lines().take(2);
    for answer in answers {
        let status: serde_json::Value = serde_json::from_str(&answer.unwrap()).unwrap();
        assert_eq!(status["verdict"]["state"], "unchecked");
    }
    watching.kill().unwrap();
    watching.wait().unwrap();
    assert_eq!(service.stop(), 0);
}

/// A process that does nothing until this is dropped.
struct Frozen<'a>(&'a Running);

impl<'a> Frozen<'a> {
    fn new(process: &'a Running) -> Frozen<'a> {
        process.signal(Signal::STOP);
        Frozen(process)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}

/// A kernel that does not answer any more is no life: the process is there, and its other threads go
/// on, but nothing is drained. How long that is watched is told by another service that is well, so
/// that a slow machine is watched for longer.
#[test]
fn a_watchdog_is_fed_only_while_the_list_answers() {
    const LINE: &str = "WATCHDOG=1";
    let Some(machine) = Machine::start() else { return };
    let start = |name: &str, args: &[&str]| {
        let notify = machine.dir.path().join(name);
        let manager = Manager::listen(&notify);
        let state = machine.path(&format!("state-{name}"));
        let mut command = command(&[&["run", "--state", &state], args].concat());
        command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "100000");
        (Running::of(&mut command), manager)
    };
    let (service, mut manager) = start("watched", &["--source", &machine.mount()]);
    let (well, mut clock) = start("clock", &["--source", "in-process", "--tpm", "none"]);
    manager.wait_for(LINE);

    let frozen = Frozen::new(&machine.sandbox);
    let mut fed = || {
        clock.said(LINE);
        (0..20).for_each(|_| drop(clock.wait_for(LINE)));
        manager.said(LINE)
    };
    // Until it is seen that the list does not answer, it is fed.
    fed();
    let fed = fed();
    assert!(fed <= 2, "{fed} times while nothing was drained");
    drop(frozen);
    manager.wait_for(LINE);
    // Who says something that nobody reads waits, and does not stop.
    drop((manager, clock));
    assert_eq!((service.stop(), well.stop()), (0, 0));
}
