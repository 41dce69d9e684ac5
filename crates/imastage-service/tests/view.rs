//! The view, mounted, beside a list that is drained all the time.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use ima_list::{Options, Part, SharedList};
use ima_log::{Bank, RecordBuf};
use imastage_service::{Config, Service};
use imastage_source::{
    Batch, DeleteMode, Dialect, Holders, InProcess, Look, Request, Sink, Source, SourceError,
};
use imastage_view::View;
use tempfile::TempDir;

#[allow(dead_code)]
mod common;

/// A list that can be refused.
struct FileClass {
    list: InProcess,
    refused: Arc<AtomicU64>,
}

impl FileClass {
    fn open(&mut self) -> Result<&mut InProcess, SourceError> {
        if self.refused.load(Ordering::Relaxed) > 0 {
            return Err(SourceError::GoingDown(Request::Stage));
        }
        Ok(&mut self.list)
    }
}

impl Source for FileClass {
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError> {
        self.open()?.look()
    }

    fn take(&mut self, sink: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError> {
        self.open()?.take(sink)
    }

    fn try_open(&mut self) -> Result<(), SourceError> {
        self.open()?.try_open()
    }

    fn count(&mut self) -> Result<u64, SourceError> {
        self.list.count()
    }

    fn dialect(&self) -> Dialect {
        self.list.dialect()
    }

    fn holders(&self) -> Holders {
        self.list.holders()
    }

    fn is_private(&self) -> bool {
        true
    }

    fn name(&self) -> String {
        "a list in this process".into()
    }
}

/// Fields are dropped in this order: the view before the service, the directory last.
struct Scene {
    view: Option<View>,
    service: Option<Service>,
    list: Arc<SharedList>,
    refused: Arc<AtomicU64>,
    added: Vec<RecordBuf>,
    dir: TempDir,
}

impl Scene {
    /// `None`, loudly, where FUSE cannot be had.
    fn new() -> Option<Scene> {
        if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
            eprintln!("SKIPPED: /dev/fuse: {error}");
            return None;
        }
        let mut scene = Scene {
            view: None,
            service: None,
            list: Arc::new(SharedList::new(Options::default())),
            refused: Arc::default(),
            added: Vec::new(),
            dir: tempfile::tempdir().unwrap(),
        };
        scene.start();
        Some(scene)
    }

    fn start(&mut self) {
        let source = FileClass {
            list: InProcess::new(Arc::clone(&self.list), DeleteMode::Stage),
            refused: Arc::clone(&self.refused),
        };
        let config = Config {
            every: Duration::from_secs(3600),
            ..Config::new(self.dir.path().join("state"))
        };
        let service = Service::start(config, Box::new(source)).unwrap();
        self.view = Some(service.mount_view(&self.dir.path().join("view"), Some(12345)).unwrap());
        self.service = Some(service);
    }

    fn stop(&mut self) {
        drop(self.view.take());
        drop(self.service.take());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("view").join(name)
    }

    /// Adds records of all lengths, violations among them.
    fn add(&mut self, count: usize) {
        for _ in 0..count {
            let i = self.added.len();
            let name = format!("/{}/{i}", "x".repeat(i * 7919 % 200));
            let record = match i % 10 {
                9 => RecordBuf::ima_ng_violation(10, Bank::Sha256, name.as_bytes()),
                _ => RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), name.as_bytes()),
            };
            let key = record.record().template_digest(Bank::Sha256);
            self.list.append(&record, &key, || {}).unwrap();
            self.added.push(record);
        }
    }

    fn expected(&self, file: &str) -> Vec<u8> {
        let bank = if file.ends_with("_sha256") { Bank::Sha256 } else { Bank::Sha1 };
        let mut expected = Vec::new();
        for record in &self.added {
            match file.starts_with("ascii") {
                true => record.record().write_ascii(bank, &mut expected),
                false => record.record().write_binary(bank, &mut expected),
            }
        }
        expected
    }
}

const LISTS: [&str; 6] = [
    "ascii_runtime_measurements",
    "ascii_runtime_measurements_sha1",
    "ascii_runtime_measurements_sha256",
    "binary_runtime_measurements",
    "binary_runtime_measurements_sha1",
    "binary_runtime_measurements_sha256",
];

#[test]
fn the_directory_is_the_kernels_without_staged_files() {
    let Some(mut scene) = Scene::new() else { return };
    scene.add(25);
    let mut names: Vec<String> = fs::read_dir(scene.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, [&LISTS[..], &["runtime_measurements_count", "violations"]].concat());
    for name in &names {
        let path = scene.path(name);
        let link = fs::symlink_metadata(&path).unwrap();
        if LISTS.contains(&&**name) && !name.contains("_sha") {
            assert!(link.is_symlink(), "{name}");
            assert_eq!(fs::read_link(&path).unwrap(), PathBuf::from(format!("{name}_sha1")));
        } else {
            assert!(link.is_file(), "{name}");
        }
        let meta = fs::metadata(&path).unwrap();
        let owner = rustix::process::geteuid().as_raw();
        assert_eq!((meta.uid(), meta.gid()), (owner, 12345), "{name}");
        assert_eq!(meta.permissions().mode() & 0o7777, 0o440, "{name}");
        assert!(File::options().append(true).open(&path).is_err(), "{name}");
    }
    assert!(fs::remove_file(scene.path("violations")).is_err());
    assert_eq!(fs::read_to_string(scene.path("runtime_measurements_count")).unwrap(), "25\n");
    assert_eq!(fs::read_to_string(scene.path("violations")).unwrap(), "2\n");
    // An open one can be asked again.
    let count = File::open(scene.path("runtime_measurements_count")).unwrap();
    let mut buffer = [0; 10];
    for so_far in [b"25\n", b"30\n"] {
        let len = count.read_at(&mut buffer, 0).unwrap();
        assert_eq!(&buffer[..len], so_far);
        scene.add(5);
        assert_eq!(count.read_at(&mut buffer, 2).unwrap(), 1);
        assert_eq!(count.read_at(&mut buffer, 3).unwrap(), 0);
    }
}

/// Runs a program as this user and groups, with a file as its standard input.
fn run_as(uid: u32, groups: &str, program: &[&str], stdin: File) -> std::process::Output {
    std::process::Command::new("setpriv")
        .args([format!("--reuid={uid}"), format!("--regid={uid}")])
        .arg(match groups {
            "" => "--clear-groups".to_owned(),
            groups => format!("--groups={groups}"),
        })
        .args(program)
        .stdin(stdin)
        .output()
        .unwrap()
}

#[test]
fn finding_05_who_may_not_read_has_nothing_drained() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can be another user");
        return;
    }
    let Some(mut scene) = Scene::new() else { return };
    // Others may enter the directories above, as where the package mounts the view.
    fs::set_permissions(scene.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = fs::metadata(scene.path("")).unwrap();
    assert_eq!((root.permissions().mode() & 0o7777, root.gid()), (0o750, 12345));
    let path = scene.path("ascii_runtime_measurements_sha1");
    let name = path.to_str().unwrap();
    let stored = |scene: &Scene| scene.service.as_ref().unwrap().status().records;
    let nobody = 65534;
    let nothing = || File::open("/dev/null").unwrap();

    let file = File::open(&path).unwrap();
    scene.add(3);
    let before = stored(&scene);
    for program in [&["stat", name][..], &["cat", name], &["ls", "-l", name]] {
        let output = run_as(nobody, "", program, nothing());
        assert!(!output.status.success(), "{program:?}");
    }
    // A file that was handed over can be asked about, and read.
    let stat = ["stat", "-L", "-c", "%s", "/proc/self/fd/0"];
    let output = run_as(nobody, "", &stat, file.try_clone().unwrap());
    assert_eq!(output.stdout, b"0\n", "{output:?}");
    assert_eq!(stored(&scene), before);

    // Who may read is told how large it is now.
    let size = |scene: &Scene| format!("{}\n", scene.expected("ascii").len()).into_bytes();
    let member = run_as(nobody, "4,12345", &["stat", "-c", "%s", name], nothing());
    assert_eq!(member.stdout, size(&scene), "{member:?}");
    scene.add(2);
    let by_gid = run_as(12345, "", &["stat", "-c", "%s", name], nothing());
    assert_eq!(by_gid.stdout, size(&scene), "{by_gid:?}");
    scene.add(2);
    assert_eq!(fs::metadata(&path).unwrap().len(), scene.expected("ascii").len() as u64);
    scene.add(2);
    let output = run_as(nobody, "", &["cat"], file);
    assert!(output.stdout == scene.expected("ascii"));
}

#[test]
fn finding_05_a_view_that_somebody_unmounted_is_noticed() {
    let Some(mut scene) = Scene::new() else { return };
    let failed = |scene: &Scene| {
        use std::{io::Write, os::unix::net::UnixStream};
        let socket = scene.dir.path().join("state").join(imastage_client::SOCKET);
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.contains("\nimastage_view_failed 1\n")
    };
    assert!(!failed(&scene));
    let view = scene.path("");
    let unmounted = std::process::Command::new("fusermount3").arg("-u").arg(&view).status();
    assert!(unmounted.unwrap().success());
    common::wait_until("the service notices", || failed(&scene));
    let health = scene.service.as_ref().unwrap().status().health;
    assert_eq!(health.state.name(), "view-failing", "{health:?}");
    // The service continues, and shows it again when it is asked to.
    drop(scene.view.take());
    scene.add(3);
    scene.service.as_ref().unwrap().drain().unwrap();
    scene.view = Some(scene.service.as_ref().unwrap().mount_view(&view, Some(12345)).unwrap());
    assert!(!failed(&scene));
    assert!(fs::read(scene.path(LISTS[0])).unwrap() == scene.expected(LISTS[0]));
    // To end it oneself is no failure.
    drop(scene.view.take());
    assert!(!failed(&scene));
}

/// `cat` and many agents never ask how long a file is: they read until there is no more. The first
/// read at the end has what came since.
#[test]
fn one_read_at_the_end_has_all_that_came_since() {
    let Some(mut scene) = Scene::new() else { return };
    let mut buffer = vec![0; 8 << 20];
    for name in LISTS {
        let mut file = File::open(scene.path(name)).unwrap();
        let mut so_far = Vec::new();
        for count in [3, 1, 100, 0, 2000, 1] {
            scene.add(count);
            let expected = scene.expected(name);
            let len = file.read(&mut buffer).unwrap();
            so_far.extend_from_slice(&buffer[..len]);
            assert_eq!(so_far.len(), expected.len(), "{name}, {count} more");
            assert!(so_far == expected, "{name}, {count} more");
        }
    }
}

#[test]
fn files_that_are_open_grow_and_any_part_is_what_it_was() {
    let Some(mut scene) = Scene::new() else { return };
    let mut open: Vec<(&str, File, Vec<u8>)> = LISTS
        .iter()
        .map(|name| (*name, File::open(scene.path(name)).unwrap(), Vec::new()))
        .collect();
    let mut random = 1usize;
    // By nothing, by less than a page, by many; so many in all that marks are passed.
    for (round, count) in [0, 1, 1, 40, 0, 3000, 7, 500, 1].into_iter().enumerate() {
        scene.add(count);
        for (name, file, so_far) in &mut open {
            let expected = scene.expected(name);
            // One read is enough to get what is new, however often the size is asked for.
            let mut first = [0; 64];
            let len = file.read_at(&mut first, so_far.len() as u64).unwrap();
            let new = &expected[so_far.len()..];
            assert!(first[..len] == new[..new.len().min(64)], "{name}, round {round}: {len}");
            // Reads on where it was: exactly what is new.
            file.read_to_end(so_far).unwrap();
            assert!(*so_far == expected, "{name}, round {round}");
            assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), expected.len() as u64, "{name}");
            assert_eq!(file.metadata().unwrap().len(), expected.len() as u64);
            // Anyone else gets all of it, and any part.
            assert!(fs::read(scene.path(name)).unwrap() == expected, "{name}, round {round}");
            for _ in 0..20 {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let from = (random >> 33) % (expected.len() + 10);
                let mut part = vec![0; (random >> 20) % 9000];
                let len = file.read_at(&mut part, from as u64).unwrap();
                let rest = expected.get(from..).unwrap_or_default();
                assert!(part[..len] == rest[..rest.len().min(part.len())], "{name} at {from}");
            }
        }
        // Nothing of the list is left in memory.
        assert_eq!(scene.list.count(Part::Current) + scene.list.count(Part::Staged), 0);
    }
    // What was evicted from the page cache is rendered anew, from anywhere.
    for (name, file, so_far) in &open {
        for from in (0..so_far.len()).rev().step_by(50_000) {
            rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            let mut part = vec![0; 10_000.min(so_far.len() - from)];
            file.read_exact_at(&mut part, from as u64).unwrap();
            assert!(part == so_far[from..from + part.len()], "{name} at {from}");
        }
    }
}

#[test]
fn a_read_has_all_that_was_in_the_list_when_it_began_however_many_read() {
    const READERS: usize = 8;
    let Some(mut scene) = Scene::new() else { return };
    let path = scene.path("ascii_runtime_measurements");
    let added = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let mut file = File::open(&path).unwrap();
                let (mut text, mut lines) = (Vec::new(), 0);
                while lines < 2000 {
                    let before = added.load(Ordering::SeqCst);
                    let from = text.len();
                    file.read_to_end(&mut text).unwrap();
                    assert_eq!(text.last().copied().unwrap_or(b'\n'), b'\n');
                    lines += text[from..].iter().filter(|byte| **byte == b'\n').count() as u64;
                    assert!(lines >= before, "{lines} of {before}");
                    // As long as a quote takes at least, and who reads slowly for what was new:
                    // sooner it would be taken for one who is still at the same reading.
                    let new = (text.len() - from) as u64;
                    thread::sleep(Duration::from_millis(6) + Duration::from_nanos(40 * new));
                }
            });
        }
        for i in 1..=2000 {
            scene.add(1);
            added.store(i, Ordering::SeqCst);
        }
    });
    assert!(fs::read(&path).unwrap() == scene.expected("ascii_runtime_measurements"));
}

#[test]
fn a_file_ends_even_if_records_come_faster_than_they_are_drained() {
    let Some(scene) = Scene::new() else { return };
    let done = std::sync::atomic::AtomicBool::new(false);
    let list = Arc::clone(&scene.list);
    thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0u64.. {
                let record =
                    RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), format!("/{i}").as_bytes());
                let key = record.record().template_digest(Bank::Sha256);
                list.append(&record, &key, || {}).unwrap();
                if done.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let mut file = File::open(scene.path(LISTS[0])).unwrap();
        let ended = file.read_to_end(&mut Vec::new());
        done.store(true, Ordering::Relaxed);
        ended.unwrap();
    });
}

#[test]
fn while_the_list_cannot_be_drained_what_is_stored_is_shown() {
    let Some(mut scene) = Scene::new() else { return };
    scene.add(3);
    let name = LISTS[0];
    let mut file = File::open(scene.path(name)).unwrap();
    let mut so_far = Vec::new();
    file.read_to_end(&mut so_far).unwrap();
    scene.refused.store(1, Ordering::Relaxed);
    let stored = scene.expected(name);
    scene.add(2);
    file.read_to_end(&mut so_far).unwrap();
    assert!(so_far == stored);
    assert!(fs::read(scene.path(name)).unwrap() == stored);
    scene.refused.store(0, Ordering::Relaxed);
    scene.service.as_ref().unwrap().drain().unwrap();
    file.read_to_end(&mut so_far).unwrap();
    assert!(so_far == scene.expected(name));
}

#[test]
fn it_can_be_stopped_and_started_also_while_a_file_is_open() {
    let Some(mut scene) = Scene::new() else { return };
    for held in [false, true, false] {
        scene.add(30);
        let file = File::open(scene.path(LISTS[0])).unwrap();
        let held = held.then_some(file);
        scene.stop();
        assert_eq!(fs::read_dir(scene.path("")).unwrap().count(), 0);
        drop(held);
        scene.start();
        for name in LISTS {
            assert!(fs::read(scene.path(name)).unwrap() == scene.expected(name), "{name}");
        }
    }
}
