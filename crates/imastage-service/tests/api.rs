//! The API as `docs/openapi.yaml` describes it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use ima_list::{Options, SharedList};
use ima_log::{Bank, Extend, RecordBuf, Replay, cel, json};
use imastage_client::{
    Client,
    health::{Condition, Health, State},
    wire::{BankStatus, PcrStatus, Pcrs, Status, Verdict},
};
use imastage_service::{Config, Service};
use imastage_source::{DeleteMode, InProcess};
use tempfile::TempDir;

#[allow(dead_code)]
mod common;

/// Fields are dropped in this order.
struct Scene {
    service: Service,
    list: Arc<SharedList>,
    added: Vec<RecordBuf>,
    dir: TempDir,
}

impl Scene {
    fn new(records: usize) -> Scene {
        Scene::with_group(records, None)
    }

    fn with_group(records: usize, group: Option<u32>) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let list = Arc::new(SharedList::new(Options::default()));
        let every = Duration::from_secs(3600);
        let config = Config { every, group, ..Config::new(dir.path().join("state")) };
        let source = InProcess::new(Arc::clone(&list), DeleteMode::Stage);
        let service = Service::start(config, Box::new(source)).unwrap();
        let mut scene = Scene { service, list, added: Vec::new(), dir };
        scene.add(records);
        scene.service.drain().unwrap();
        scene
    }

    fn add(&mut self, count: usize) {
        for _ in 0..count {
            let record = common::record(self.added.len());
            let key = record.record().template_digest(Bank::Sha256);
            self.list.append(&record, &key, || {}).unwrap();
            self.added.push(record);
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("state").join(imastage_client::SOCKET)
    }

    fn client(&self) -> Client {
        Client::of_state(&self.dir.path().join("state")).unwrap()
    }

    /// Status, headers and body of an answer.
    fn ask(&self, request: &str) -> (u16, String, Vec<u8>) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        let (line, body) = request.split_once('\n').unwrap_or((request, ""));
        let (length, kind) = (body.len(), "content-type: application/json\r\nconnection: close");
        write!(
            stream,
            "{line} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n{kind}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let chunked = head.contains("transfer-encoding: chunked");
        let body = &answer[end + 4..];
        (status, head, if chunked { unchunk(body) } else { body.to_vec() })
    }

    fn get(&self, path: &str) -> Vec<u8> {
        let (status, head, body) = self.ask(&format!("GET {path}"));
        assert_eq!(status, 200, "{path}: {head}: {}", String::from_utf8_lossy(&body));
        body
    }

    fn refused(&self, request: &str) -> (u16, String) {
        let (status, _, body) = self.ask(request);
        let refusal: serde_json::Value = serde_json::from_slice(&body)
            .unwrap_or_else(|error| panic!("{request}: {error}: {status} {body:?}"));
        (status, refusal["error"].as_str().unwrap().to_owned())
    }
}

fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|part| part == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return whole;
        }
        whole.extend_from_slice(&body[end + 2..end + 2 + size]);
        body = &body[end + 2 + size + 2..];
    }
}

#[test]
fn records_in_every_form_and_bank() {
    let scene = Scene::new(300);
    for bank in Bank::ALL {
        let (mut binary, mut ascii, mut jsonl) = (Vec::new(), Vec::new(), Vec::new());
        for (index, record) in scene.added.iter().enumerate().take(290).skip(7) {
            record.record().write_binary(bank, &mut binary);
            record.record().write_ascii(bank, &mut ascii);
            json::write_record(&record.record(), index as u64, bank, &mut jsonl);
        }
        let mut log = Vec::new();
        let mut writer = cel::Writer::new(cel::Encoding::Json, &[bank]);
        writer.begin(None, &mut log);
        scene.added[7..290].iter().for_each(|record| writer.record(&record.record(), &mut log));
        writer.end(&mut log);
        for (form, expected) in
            [("binary", &binary), ("ascii", &ascii), ("jsonl", &jsonl), ("cel", &log)]
        {
            let path = format!("/v1/records?from=7&to=290&form={form}&bank={bank}");
            assert!(scene.get(&path) == *expected, "{path}");
        }
    }
    let all = scene.added.iter().flat_map(|record| record.as_bytes()).copied().collect::<Vec<_>>();
    assert!(scene.get("/v1/records") == all);
    let (_, head, _) = scene.ask("GET /v1/records?from=299");
    for header in ["imastage-epoch: 1", "imastage-from: 299", "imastage-to: 300"] {
        assert!(head.contains(header), "{head}");
    }
}

#[test]
fn refusals_say_what_is_wrong() {
    let scene = Scene::new(5);
    for (request, status, why) in [
        ("GET /v1/records?from=6", 416, "0 to 5 are stored"),
        ("GET /v1/records?from=3&to=2", 416, "records 3 to 2"),
        ("GET /v1/records?to=6", 416, "0 to 5 are stored"),
        ("GET /v1/records?from=-1", 400, "from"),
        ("GET /v1/records?form=xml", 400, "unknown variant `xml`"),
        ("GET /v1/records?bank=md5", 400, "bank md5"),
        ("GET /v1/records?wait=301", 400, "at most 300"),
        ("GET /v1/records?fron=1", 400, "unknown field `fron`"),
        ("GET /v1/pcrs?at=6", 416, "6 was asked for, 5 are stored"),
        ("POST /v1/quote\n{}", 422, "missing field `nonce`"),
        ("POST /v1/quote\n{\"nonce\": \"00\"}", 503, "no TPM"),
    ] {
        let (found, error) = scene.refused(request);
        assert!(found == status && error.contains(why), "{request}: {found} {error}");
    }
}

#[test]
fn pcrs_at_any_index() {
    let scene = Scene::new(50);
    for at in [0, 1, 33, 50] {
        let pcrs: Pcrs = serde_json::from_slice(&scene.get(&format!("/v1/pcrs?at={at}"))).unwrap();
        assert_eq!((pcrs.epoch, pcrs.records), (1, at as u64));
        assert_eq!(scene.client().pcrs(at as u64).unwrap(), pcrs);
        assert!(pcrs.pcrs.iter().any(|pcr| pcr.bank == "sha256"));
        for pcr in pcrs.pcrs {
            let mut replay = Replay::new(pcr.bank.parse().unwrap(), Extend::Own);
            scene.added[..at].iter().for_each(|record| replay.extend(&record.record()));
            assert_eq!(pcr.value, replay.value().to_string(), "{} at {at}", pcr.bank);
        }
    }
}

#[test]
fn who_waits_is_given_what_comes() {
    let mut scene = Scene::new(5);
    // What is in the list already is drained for him.
    scene.add(2);
    let waited = scene.get("/v1/records?from=5&wait=300");
    assert!(waited == [scene.added[5].as_bytes(), scene.added[6].as_bytes()].concat());
    // What comes later, when it comes.
    let later = thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut answer =
                scene.client().ask_for_records(7, None, Duration::from_secs(300)).unwrap();
            let mut bytes = Vec::new();
            while let Some(chunk) = answer.chunk().unwrap() {
                bytes.extend_from_slice(&chunk);
            }
            (answer.to(), bytes)
        });
        // Others are served meanwhile.
        assert!(scene.get("/v1/records?from=7").is_empty());
        let record = common::record(7);
        let key = record.record().template_digest(Bank::Sha256);
        scene.list.append(&record, &key, || {}).unwrap();
        scene.service.drain().unwrap();
        let (to, bytes) = waiting.join().unwrap();
        assert_eq!((to, &bytes[..]), (8, record.as_bytes()));
        to
    });
    // Nothing came: that is an answer, too.
    assert!(scene.get(&format!("/v1/records?from={later}&wait=1")).is_empty());
}

#[test]
fn more_connections_than_there_is_room_for_wait() {
    let scene = Scene::new(1);
    let idle: Vec<UnixStream> =
        (0..64).map(|_| UnixStream::connect(scene.socket()).unwrap()).collect();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| scene.get("/v1/records"));
        // Room is made by those who leave.
        drop(idle);
        assert_eq!(waiting.join().unwrap(), scene.added[0].as_bytes());
    });
}

#[test]
fn a_group_reaches_the_socket_and_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can give a file to any group");
        return;
    }
    let scene = Scene::with_group(1, Some(12345));
    let state = scene.dir.path().join("state");
    for entry in std::fs::read_dir(&state).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        let mode = meta.permissions().mode() & 0o777;
        match entry.path() == scene.socket() {
            true => assert_eq!((meta.gid(), mode), (12345, 0o660)),
            false => assert_eq!(mode & 0o77, 0, "{:?}", entry.path()),
        }
    }
    let meta = std::fs::metadata(&state).unwrap();
    assert_eq!((meta.gid(), meta.permissions().mode() & 0o777), (12345, 0o710));
}

/// What the description says there is: the parameters of each path and method. It reads as much of
/// YAML as the file has: names at depths that tell what they are.
fn described() -> BTreeMap<(String, String), BTreeSet<String>> {
    let yaml = include_str!("../../../docs/openapi.yaml");
    let paths = yaml.split_once("\npaths:\n").unwrap().1.split_once("\ncomponents:\n").unwrap().0;
    let mut described = BTreeMap::new();
    let (mut path, mut method) = (String::new(), String::new());
    for line in paths.lines() {
        let text = line.trim_start();
        match (line.len() - text.len(), text) {
            (2, name) => path = name.strip_suffix(':').unwrap().to_owned(),
            (4, name) => {
                method = name.strip_suffix(':').unwrap().to_uppercase();
                described.insert((method.clone(), path.clone()), BTreeSet::new());
            }
            (8, text) if text.starts_with("- name: ") => {
                let names = described.get_mut(&(method.clone(), path.clone())).unwrap();
                names.insert(text["- name: ".len()..].to_owned());
            }
            _ => {}
        }
    }
    described
}

#[test]
fn the_description_has_what_there_is_and_nothing_else() {
    let described = described();
    let source = include_str!("../src/api.rs");
    let routes: BTreeSet<(String, String)> = source
        .split(".route(\"")
        .skip(1)
        .map(|rest| {
            let (path, rest) = rest.split_once("\", ").unwrap();
            (rest.split('(').next().unwrap().to_uppercase(), path.to_owned())
        })
        .collect();
    assert_eq!(described.keys().cloned().collect::<BTreeSet<_>>(), routes);

    let scene = Scene::new(1);
    for ((method, path), parameters) in &described {
        let (status, _, _) = scene.ask(&format!("{method} {path}"));
        assert!(status != 404 && status != 405, "{method} {path}: {status}");
        if parameters.is_empty() {
            continue;
        }
        // A refused parameter is told which ones there are.
        let (status, error) = scene.refused(&format!("{method} {path}?nonsense=1"));
        assert_eq!(status, 400, "{path}: {error}");
        let known = error.split("expected").nth(1).unwrap();
        let known: BTreeSet<String> =
            known.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert_eq!(known, *parameters, "{path}: {error}");
    }
    // So are the forms and banks.
    let yaml = include_str!("../../../docs/openapi.yaml");
    for form in ["binary", "ascii", "jsonl", "cel"] {
        scene.get(&format!("/v1/records?form={form}"));
    }
    assert!(yaml.contains("enum: [binary, ascii, jsonl, cel]"));
    let banks = Bank::ALL.map(|bank| bank.to_string()).join(", ");
    assert!(yaml.contains(&format!("enum: [{banks}]")), "{banks}");
}

#[test]
fn the_description_has_every_member_of_the_status() {
    let yaml = include_str!("../../../docs/openapi.yaml");
    let yaml = yaml.split_whitespace().collect::<Vec<_>>().join(" ");
    let has = |text: String| assert!(yaml.contains(&text), "{text}");
    let list = |names: &[&str]| names.join(", ");
    has(format!("enum: [{}]", list(&State::ALL.map(State::name))));
    has(format!("enum: [{}]", list(&Verdict::NAMES)));
    let keys = |value: serde_json::Value| {
        let value = value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        let described = yaml.split("required: [").skip(1).map(|rest| {
            let names = rest.split(']').next().unwrap();
            names.split(", ").map(str::to_owned).collect::<BTreeSet<_>>()
        });
        assert!(described.into_iter().any(|names| names == value), "{value:?}");
    };
    let value = |value: Result<serde_json::Value, serde_json::Error>| value.unwrap();
    keys(value(serde_json::to_value(Status::default())));
    keys(value(serde_json::to_value(Health::default())));
    keys(value(serde_json::to_value(Condition::default())));
    keys(value(serde_json::to_value(BankStatus::default())));
    keys(value(serde_json::to_value(PcrStatus::default())));
}
