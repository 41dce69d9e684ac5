//! Quotes that are asked for faster than a TPM makes them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use ima_list::{Options, SharedList};
use imastage_service::{Config, Service};
use imastage_source::{DeleteMode, InProcess};
use tempfile::TempDir;

#[allow(dead_code)]
mod common;
#[allow(dead_code)]
#[path = "common/relay.rs"]
mod relay;

use common::TestTpm;
use relay::{PATIENCE, PCR_READ, QUOTE, Relay};

/// Threads are counted, so one scene at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Fields are dropped in this order.
struct Scene {
    service: Option<Service>,
    relay: Relay,
    dir: TempDir,
    _tpm: TestTpm,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    fn new() -> Scene {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let tpm = TestTpm::start(dir.path());
        let relay = Relay::start(dir.path().join("tpm.sock"), &dir.path().join("relay.sock"));
        let list = Arc::new(SharedList::new(Options::default()));
        // It drains when it is asked to, and at no other time.
        let config = Config {
            every: Duration::from_secs(3600),
            tpm: Some(relay.endpoint.clone()),
            ..Config::new(dir.path().join("state"))
        };
        let source = InProcess::new(list, DeleteMode::Stage);
        let service = Service::start(config, Box::new(source)).unwrap();
        service.drain().unwrap();
        Scene { service: Some(service), relay, dir, _tpm: tpm, _alone: alone }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("state").join(imastage_client::SOCKET)
    }

    fn send(&self, request: &str, body: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        // If it was refused already, it does not take this.
        let _ = write!(
            stream,
            "{request} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: \
             close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream
    }

    fn ask_for_quote(&self) -> UnixStream {
        self.send("POST /v1/quote", r#"{"nonce":"0011","banks":["sha1"]}"#)
    }

    fn ask(&self, request: &str, body: &str) -> String {
        answer(self.send(request, body))
    }

    /// Holds all quotes at the TPM, and asks for the first.
    fn first_quote_is_held(&self) -> UnixStream {
        self.relay.close(Some(QUOTE));
        let first = self.ask_for_quote();
        self.relay.wait_until_one_is_held();
        first
    }
}

fn answer(mut stream: UnixStream) -> String {
    let mut answer = Vec::new();
    // A connection that was refused may break when it is read.
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        result => drop(result.unwrap()),
    }
    String::from_utf8(answer).unwrap()
}

/// Waits for what must come.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn finding_02_quotes_of_clients_that_hung_up_are_not_made() {
    let scene = Scene::new();
    let first = scene.first_quote_is_held();
    let threads = thread_count();
    for round in 0..50 {
        let asked: Vec<_> = (0..40).map(|_| scene.ask_for_quote()).collect();
        // One hangs up with a request behind its request, so that the server is not reading.
        for (at, mut stream) in asked.into_iter().enumerate() {
            if at == round % 40 {
                stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            }
        }
    }
    // Whoever came before this is known to the server by the time it is answered.
    let is_answered = || scene.ask("GET /v1/pcrs", "").starts_with("HTTP/1.1 200");
    wait_until("those who hung up leave their places", is_answered);
    assert!(thread_count() <= threads + 12, "{threads} threads became {}", thread_count());
    drop(first);
    scene.relay.open();
    // This one comes after all of those.
    let is_answered = || answer(scene.ask_for_quote()).starts_with("HTTP/1.1 200");
    wait_until("a quote", is_answered);
    assert_eq!(scene.relay.count(QUOTE), 2);
}

#[test]
fn finding_02_a_stop_refuses_queued_quotes_and_drains() {
    let mut scene = Scene::new();
    let first = scene.first_quote_is_held();
    let queued: Vec<_> = (0..30).map(|_| scene.ask_for_quote()).collect();
    let service = scene.service.take().unwrap();
    let stopping = thread::spawn(move || service.stop());
    // At once: the TPM does not answer yet.
    for stream in queued {
        let answer = answer(stream);
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("stopping"), "{answer}");
    }
    assert!(!stopping.is_finished());
    scene.relay.open();
    stopping.join().unwrap();
    drop(first);
    assert_eq!(scene.relay.count(QUOTE), 1);
    // The last drain looked at the PCR.
    let passed = scene.relay.passed();
    let mut behind = passed.iter().skip_while(|command| relay::code(command) != QUOTE).skip(1);
    assert!(behind.any(|command| relay::code(command) == PCR_READ && selects_all_banks(command)));
}

#[test]
fn finding_02_what_asks_for_the_state_queues_nothing() {
    let scene = Scene::new();
    scene.relay.close(None);
    let threads = thread_count();
    let before = scene.relay.passed().len();
    let mut asked: Vec<_> = (0..30).map(|_| scene.send("GET /v1/status", "")).collect();
    scene.relay.wait_until_one_is_held();
    // Half of them hang up, the others are told what is known.
    asked.truncate(15);
    for stream in asked {
        let answer = answer(stream);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("PCRs for 2 s"), "{answer}");
    }
    // Those who wait for records that come later have one drain among them.
    let waiting: Vec<_> =
        (0..30).map(|_| scene.send("GET /v1/records?from=0&wait=300", "")).collect();
    assert!(scene.ask("GET /v1/pcrs", "").starts_with("HTTP/1.1 200"));
    assert!(thread_count() <= threads + 12, "{threads} threads became {}", thread_count());
    drop(waiting);
    scene.relay.open();
    scene.service.as_ref().unwrap().drain().unwrap();
    let status = scene.ask("GET /v1/status", "");
    assert!(status.contains(r#""tpm_error":null"#), "{status}");
    // Of 60 requests: a few for the state, and two for each of a few drains.
    let passed = scene.relay.passed().len() - before;
    assert!(passed <= 12, "{passed} commands");
}

/// Whether a TPM2_PCR_Read asks for more banks than the quotes here: the drain does.
fn selects_all_banks(command: &[u8]) -> bool {
    command[10..14] != [0, 0, 0, 1]
}

#[test]
fn finding_02_requests_are_small() {
    let scene = Scene::new();
    for (body, status, why) in [
        (format!(r#"{{"nonce":"00","banks":[{}"sha1"]}}"#, r#""sha1","#.repeat(5)), 400, "at most"),
        (format!(r#"{{"nonce":"00","banks":[{}"x"]}}"#, r#""x","#.repeat(5000)), 413, ""),
        (r#"{"nonce":"00","banks":["sha1","sha1","nonsense"]}"#.to_owned(), 400, "nonsense"),
        (r#"{"nonce":"00","pcrs":[24]}"#.to_owned(), 400, "0 to 23, found 24"),
        (r#"{"nonce":"00","pcrs":[4294967296]}"#.to_owned(), 422, ""),
        (format!(r#"{{"nonce":"{}"}}"#, "00".repeat(65)), 400, "found 65"),
    ] {
        let answer = scene.ask("POST /v1/quote", &body);
        let begins = answer.starts_with(&format!("HTTP/1.1 {status}"));
        assert!(begins && answer.contains(why), "{}: {answer}", &body[..body.len().min(99)]);
    }
    assert_eq!(scene.relay.count(QUOTE), 0);
}

#[test]
fn a_quote_tells_the_pcrs_that_it_covers() {
    let scene = Scene::new();
    let ask = |body: &str| {
        let answer = scene.ask("POST /v1/quote", body);
        let json = answer.split_once("\r\n\r\n").unwrap().1;
        let reply: imastage_client::wire::QuoteReply =
            serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {answer}"));
        reply.pcrs.iter().map(|pcr| (pcr.bank.clone(), pcr.pcr)).collect::<Vec<_>>()
    };
    let sha1 = "sha1".to_owned();
    assert_eq!(ask(r#"{"nonce":"00","banks":["sha1"]}"#), [(sha1.clone(), 10)]);
    let all = ask(r#"{"nonce":"00","banks":["sha1","sha256"],"pcrs":[0,1,2,3,4,5,6,7,8,9,10,11]}"#);
    assert_eq!(all.len(), 24);
    assert_eq!(
        all[..12].iter().map(|(_, pcr)| *pcr).collect::<Vec<_>>(),
        (0..12).collect::<Vec<_>>()
    );
    assert!(all[..12].iter().all(|(bank, _)| *bank == sha1));
}

#[test]
fn a_tpm_that_came_back_is_used_again() {
    let scene = Scene::new();
    let before = scene.ask("GET /v1/status", "");
    assert!(before.contains(r#""tpm_error":null"#), "{before}");
    // Commands that are held when the connection ends are lost with it.
    scene.relay.cut();
    assert!(answer(scene.ask_for_quote()).starts_with("HTTP/1.1 200"));
    wait_until("the TPM is asked again", || {
        scene.ask("GET /v1/status", "").contains(r#""tpm_error":null"#)
    });
    scene.service.as_ref().unwrap().drain().unwrap();
}

/// The threads of this process.
fn thread_count() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}
