//! Programs that know nothing of staging, unmodified, on the view: each fails on a list that was
//! drained, and passes on the view of the same records.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use ima_log::{AsciiDecoder, Bank, Digest, Extend, IMA_PCR, Replay};
use imastage_sandbox::control::{Answer, Command as Ask, ask};
use imastage_tpm::Tpm;
use serde_json::{Value, json};

#[allow(dead_code)]
mod common;

use common::{LONGEST, Machine, Running, imastage, wait_until};

const ASCII: &str = "ascii_runtime_measurements";

/// A service that drains a sandbox as often as it can, and shows a view.
struct Scene {
    service: Running,
    machine: Machine,
}

impl Scene {
    fn new() -> Option<Scene> {
        let machine = Machine::start()?;
        Some(Scene { service: start_service(&machine), machine })
    }

    fn view(&self) -> PathBuf {
        self.machine.path("view").into()
    }

    fn mount(&self) -> PathBuf {
        self.machine.mount().into()
    }

    fn measure(&self, prefix: &str, count: usize) {
        let paths = self.machine.files(prefix, count);
        match ask(&self.mount(), &Ask::Measure { paths }, &mut |_| {}).unwrap() {
            Answer::Done(measured) => assert_eq!(measured.added, count as u64),
            other => panic!("{other:?}"),
        }
    }

    /// What a quote would say now, and takes as long as one: who asks for more of a file at once is
    /// taken for one who is still at the same reading.
    fn pcr(&self, bank: Bank) -> Digest {
        let endpoint = imastage_sandbox::tpm_of(&self.mount()).unwrap();
        let value = Tpm::connect(&endpoint).unwrap().pcr_read(bank, IMA_PCR).unwrap();
        thread::sleep(Duration::from_millis(20));
        value
    }

    /// Runs `then` while files are measured, and the list is drained, all the time.
    fn while_measuring<T>(&self, then: impl FnOnce() -> T) -> T {
        /// Also if it panics.
        struct SetAtEnd<'a>(&'a AtomicBool);
        impl Drop for SetAtEnd<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut i = 0;
                while !done.load(Ordering::Relaxed) {
                    self.measure(&format!("meanwhile-{i}"), 5);
                    i += 1;
                }
            });
            let _done = SetAtEnd(&done);
            then()
        })
    }

    /// Waits until something was deleted from the list.
    fn trim(&self) {
        self.measure("trimmed", 20);
        wait_until("records are deleted", || {
            self.status()["since_start"]["deleted"].as_u64().is_some_and(|deleted| deleted > 0)
        });
    }

    fn status(&self) -> Value {
        imastage(&["--json", "status", "--state", &self.machine.state()]).json()
    }
}

fn start_service(machine: &Machine) -> Running {
    let (mount, state, view) = (machine.mount(), machine.state(), machine.path("view"));
    Running::start(&[
        "--json", "run", "--source", &mount, "--state", &state, "--every", "10", "--view", &view,
    ])
}

/// Another program that answers lines with lines of JSON.
struct Peer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Peer {
    /// A script in Python, with a keylime: `None`, loudly, if it is not installed.
    fn keylime(script: &str, version: &str, args: &[&Path]) -> Option<Peer> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let peers = root.join("../../target/peers");
        let mut command = Command::new(peers.join("bin/python"));
        if version != "7.14" {
            let library = peers.join(format!("keylime-{version}"));
            command.env("PYTHONPATH", &library);
            if !library.exists() {
                eprintln!("SKIPPED: no keylime {version} here; run scripts/install-keylime");
                return None;
            }
        }
        let spawned = command
            .arg(root.join("tests/peers").join(script))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = spawned else {
            eprintln!("SKIPPED: no keylime here; run scripts/install-keylime");
            return None;
        };
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Some(Peer { child, stdin, stdout })
    }

    fn ask(&mut self, line: &impl ToString) -> Value {
        writeln!(self.stdin, "{}", line.to_string()).unwrap();
        let mut answer = String::new();
        self.stdout.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// keylime's verifier, with an agent that is told which entry comes next and gives a list and the
/// number of its first entry.
struct KeylimeVerifier(Peer, u64);

impl KeylimeVerifier {
    fn new() -> Option<KeylimeVerifier> {
        Some(KeylimeVerifier(Peer::keylime("keylime_verifier.py", "7.14", &[])?, 0))
    }

    /// Quote first, list second: the kinds of failure.
    fn round(&mut self, scene: &Scene, agent: impl FnOnce(u64) -> (String, u64)) -> Vec<Value> {
        let pcr = scene.pcr(Bank::Sha256);
        let (list, from) = agent(self.1);
        let said = self.0.ask(&json!({ "pcr": pcr.to_string(), "list": list, "from": from }));
        self.1 = said["next"].as_u64().unwrap();
        said["failures"].as_array().unwrap().clone()
    }
}

/// Verifies rounds with one agent that keeps its place.
fn keylime_rounds(scene: &Scene, mut agent: impl FnMut(u64) -> (String, u64)) {
    let Some(mut verifier) = KeylimeVerifier::new() else { return };
    scene.while_measuring(|| {
        for round in 0..5 {
            let before = verifier.1;
            scene.measure(&format!("round-{round}"), 10);
            let failures = verifier.round(scene, &mut agent);
            assert_eq!(failures, [""; 0], "round {round}");
            assert!(verifier.1 >= before + 10, "round {round}: {} after {before}", verifier.1);
        }
    });
}

/// As an agent that reads the whole list each time.
fn read_all(path: &Path) -> (String, u64) {
    (retry(|| fs::read_to_string(path)), 0)
}

/// The kernel's own files cannot be opened while the service drains.
fn retry<T>(open: impl Fn() -> std::io::Result<T>) -> T {
    let since = Instant::now();
    loop {
        match open() {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                assert!(since.elapsed() < LONGEST, "{error}");
                thread::sleep(Duration::from_micros(200));
            }
            opened => return opened.unwrap(),
        }
    }
}

#[test]
fn keylimes_verifier_over_several_rounds() {
    let Some(scene) = Scene::new() else { return };
    scene.trim();
    if let Some(mut verifier) = KeylimeVerifier::new() {
        let trimmed = scene.mount().join(ASCII);
        let failures = verifier.round(&scene, |_| read_all(&trimmed));
        assert_eq!(failures, ["ima.pcr_mismatch"]);
    }
    let list = scene.view().join(ASCII);
    keylime_rounds(&scene, |_| read_all(&list));
    assert_eq!(scene.service.stop(), 0);
}

#[test]
fn keylimes_agent_that_holds_the_list_open() {
    let Some(scene) = Scene::new() else { return };
    let agent = |list: PathBuf| {
        let mut agent = Peer::keylime("keylime_agent.py", "6.8", &[&list])?;
        Some(move |next: u64| {
            let said = agent.ask(&next);
            (said["list"].as_str().unwrap().to_owned(), said["from"].as_u64().unwrap())
        })
    };
    scene.trim();
    let Some(mut on_trimmed) = agent(scene.mount().join(ASCII)) else { return };
    if let Some(mut verifier) = KeylimeVerifier::new() {
        assert_eq!(verifier.round(&scene, &mut on_trimmed), ["ima.pcr_mismatch"]);
    }
    // And while it has the kernel's file open nothing can be staged.
    wait_until("the agent is named as the one in the way", || {
        let status = scene.status();
        let error = status["since_start"]["last_error"].as_str();
        error.is_some_and(|error| error.contains("in use by python"))
    });
    drop(on_trimmed);

    let Some(on_view) = agent(scene.view().join(ASCII)) else { return };
    keylime_rounds(&scene, on_view);
    assert_eq!(scene.service.stop(), 0);
}

/// How rust-keylime's agent reads: the file is opened once; pairs of an entry's number and its byte
/// offset are kept; it seeks to the best of them, reads to the end, and counts newlines. Asked for
/// an entry after the end it begins anew.
struct RustKeylime {
    file: File,
    places: Vec<(u64, u64)>,
}

impl RustKeylime {
    fn open(list: &Path) -> RustKeylime {
        RustKeylime { file: retry(|| File::open(list)), places: vec![(0, 0)] }
    }

    fn read(&mut self, next: u64) -> (String, u64) {
        let best = self.places.iter().filter(|(entry, _)| *entry <= next).max().unwrap();
        let (mut entry, offset) = *best;
        let mut text = String::new();
        self.file.seek(SeekFrom::Start(offset)).unwrap();
        self.file.read_to_string(&mut text).unwrap();
        let mut begin = (entry == next).then_some(0);
        for (at, _) in text.match_indices('\n') {
            entry += 1;
            if entry == next {
                begin = Some(at + 1);
            }
            self.places.push((entry, offset + at as u64 + 1));
        }
        match begin {
            Some(begin) => (text.split_off(begin), next),
            None => self.read(0),
        }
    }
}

/// Whether some beginning of what follows `from` leads to the PCR, as rust-keylime's verifier, too,
/// asks; gives the number of the entry after it.
fn replays(text: &str, from: u64, running: &mut Replay, pcr: Digest) -> Result<u64, String> {
    let mut decoder = AsciiDecoder::new();
    decoder.feed(text.as_bytes());
    let mut entry = from;
    while running.value() != pcr {
        let record = decoder.next_record().map_err(|error| error.to_string())?;
        let Some(record) = record else {
            return Err(format!("{entry} entries, {} bytes, do not lead to it", text.len()));
        };
        running.extend(&record);
        entry += 1;
    }
    Ok(entry)
}

#[test]
fn rust_keylimes_way_of_remembering_offsets() {
    let Some(scene) = Scene::new() else { return };
    scene.trim();
    let begin = || Replay::new(Bank::Sha256, Extend::Own);
    {
        let pcr = scene.pcr(Bank::Sha256);
        let (text, _) = RustKeylime::open(&scene.mount().join(ASCII)).read(0);
        replays(&text, 0, &mut begin(), pcr).unwrap_err();
    }
    // Several verifiers at different places share one agent.
    let mut agent = RustKeylime::open(&scene.view().join(ASCII));
    let mut verifiers = [(0, begin()), (0, begin()), (0, begin())];
    scene.while_measuring(|| {
        for round in 0..12 {
            scene.measure(&format!("round-{round}"), 3);
            let (next, running) = &mut verifiers[round % (1 + round % 3)];
            let pcr = scene.pcr(Bank::Sha256);
            let (text, from) = agent.read(*next);
            assert_eq!(from, *next, "round {round}: it began anew");
            *next = replays(&text, from, running, pcr).unwrap();
        }
    });
    assert_eq!(scene.service.stop(), 0);
}

/// Lets evmctl match a binary list with what the TPM says: `None`, loudly, if it is not installed.
fn evmctl(scene: &Scene, list: &Path) -> Option<bool> {
    let mut command = Command::new("evmctl");
    command.arg("ima_measurement");
    for bank in [Bank::Sha1, Bank::Sha256] {
        let value = |pcr| if pcr == IMA_PCR { scene.pcr(bank) } else { Digest::zero(bank) };
        let lines: String = (0..24).map(|pcr| format!("PCR-{pcr:02}: {}\n", value(pcr))).collect();
        let path = scene.machine.path(bank.name());
        fs::write(&path, lines).unwrap();
        command.arg("--pcrs").arg(format!("{bank},{path}"));
    }
    let Ok(output) = command.arg(list).output() else {
        eprintln!("SKIPPED: no evmctl here; install ima-evm-utils");
        return None;
    };
    Some(output.status.success())
}

#[test]
fn evmctl_on_the_binary_list() {
    let Some(scene) = Scene::new() else { return };
    scene.trim();
    let binary = "binary_runtime_measurements";
    let trimmed = scene.machine.path("trimmed");
    fs::write(&trimmed, retry(|| fs::read(scene.mount().join(binary)))).unwrap();
    let Some(fine) = evmctl(&scene, Path::new(&trimmed)) else { return };
    assert!(!fine, "a list without its beginning");
    // It wants one prefix for both banks, and nothing is measured between reading one and the other.
    for round in 0..3 {
        scene.measure(&format!("round-{round}"), 10);
        assert_eq!(evmctl(&scene, &scene.view().join(binary)), Some(true), "round {round}");
    }
    assert_eq!(scene.service.stop(), 0);
}

#[test]
fn a_killed_services_view_is_replaced_and_has_the_same_bytes() {
    let Some(scene) = Scene::new() else { return };
    scene.measure("before", 50);
    let lists = [ASCII, "binary_runtime_measurements_sha256"];
    let read = |name: &str| fs::read(scene.machine.path("view") + "/" + name).unwrap();
    let before = lists.map(read);
    let held = File::open(scene.view().join(ASCII)).unwrap();
    let Scene { service, machine } = scene;
    service.kill();
    // Dead, or unmounted already.
    let left = fs::read_dir(machine.path("view"));
    assert!(left.map_or(true, |mut files| files.next().is_none()));
    let scene = Scene { service: start_service(&machine), machine };
    scene.measure("after", 10);
    for (name, before) in lists.into_iter().zip(before) {
        let after = fs::read(scene.view().join(name)).unwrap();
        assert!(after.len() > before.len() && after.starts_with(&before), "{name}");
    }
    drop(held);
    assert_eq!(scene.service.stop(), 0);
    assert_eq!(fs::read_dir(scene.machine.path("view")).unwrap().count(), 0);
}
