//! The service on a list in this process that can be made to misbehave, and its API.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs::File,
    io::Write,
    num::NonZeroU64,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ima_list::{Options, Part, SharedList};
use ima_log::{Bank, RecordBuf};
use imastage_client::{
    Client, ClientError,
    wire::{QuoteRequest, Verdict},
};
use imastage_service::{Config, Service};
use imastage_source::{
    Batch, DeleteMode, Dialect, Holders, InProcess, Look, Request, Sink, Source, SourceError,
};
use imastage_store::Reader;
use tempfile::TempDir;

/// What a kernel could do to us, each for a number of times.
#[derive(Default)]
struct Mischief {
    /// A byte of what is read is altered.
    altered_reads: AtomicU64,
    /// A read ends inside a record.
    short_reads: AtomicU64,
    /// A deletion is refused because the machine is going down.
    refused_deletions: AtomicU64,
    /// A deletion is done, and then fails.
    failed_deletions: AtomicU64,
}

struct Mischievous {
    source: InProcess,
    mischief: Arc<Mischief>,
}

struct MischievousBatch<'a> {
    batch: Box<dyn Batch + 'a>,
    mischief: &'a Mischief,
}

fn take(times: &AtomicU64) -> bool {
    times.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

fn spoil(mischief: &Mischief, mut bytes: Vec<u8>) -> Vec<u8> {
    if !bytes.is_empty() && take(&mischief.altered_reads) {
        // The last byte before a name's end: in the template data, so that the digest tells.
        let at = bytes.len() - 2;
        bytes[at] ^= 1;
    }
    if !bytes.is_empty() && take(&mischief.short_reads) {
        bytes.truncate(bytes.len() - 1);
    }
    bytes
}

impl Source for Mischievous {
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError> {
        self.source.look()
    }

    fn take(&mut self, sink: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError> {
        let mut bytes = Vec::new();
        let batch = self.source.take(&mut |chunk| bytes.extend_from_slice(chunk))?;
        sink(&spoil(&self.mischief, bytes));
        let mischief = &*self.mischief;
        Ok(batch.map(|batch| Box::new(MischievousBatch { batch, mischief }) as Box<dyn Batch>))
    }

    fn try_open(&mut self) -> Result<(), SourceError> {
        self.source.try_open()
    }

    fn count(&mut self) -> Result<u64, SourceError> {
        self.source.count()
    }

    fn dialect(&self) -> Dialect {
        self.source.dialect()
    }

    fn holders(&self) -> Holders {
        self.source.holders()
    }

    fn is_private(&self) -> bool {
        true
    }

    fn name(&self) -> String {
        "a mischievous list".into()
    }
}

impl Batch for MischievousBatch<'_> {
    fn was_pending(&self) -> bool {
        self.batch.was_pending()
    }

    fn delete(self: Box<Self>, records: NonZeroU64) -> Result<(), SourceError> {
        if take(&self.mischief.refused_deletions) {
            return Err(SourceError::GoingDown(Request::DeleteStaged));
        }
        self.batch.delete(records)?;
        if take(&self.mischief.failed_deletions) {
            return Err(SourceError::GoingDown(Request::DeleteStaged));
        }
        Ok(())
    }
}

struct Scene {
    dir: TempDir,
    list: Arc<SharedList>,
    mischief: Arc<Mischief>,
    added: Vec<Vec<u8>>,
}

impl Scene {
    fn new() -> Scene {
        Scene {
            dir: tempfile::tempdir().unwrap(),
            list: Arc::new(SharedList::new(Options::default())),
            mischief: Arc::default(),
            added: Vec::new(),
        }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn add(&mut self, count: usize) {
        for _ in 0..count {
            let name = format!("/file/{}", self.added.len());
            let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), name.as_bytes());
            let key = record.record().template_digest(Bank::Sha256);
            self.list.append(&record, &key, || {}).unwrap();
            self.added.push(record.into_bytes());
        }
    }

    fn start(&self, mode: DeleteMode) -> Service {
        let source = Mischievous {
            source: InProcess::new(Arc::clone(&self.list), mode),
            mischief: Arc::clone(&self.mischief),
        };
        let config = Config { every: Duration::from_secs(3600), ..Config::new(self.state()) };
        Service::start(config, Box::new(source)).unwrap()
    }

    /// Everything that was added is stored once, in order, and nothing is left in the list.
    fn assert_complete(&self) {
        assert_eq!(stored(&self.state()), self.added);
        assert_eq!(self.list.count(Part::Current) + self.list.count(Part::Staged), 0);
    }
}

fn stored(state: &Path) -> Vec<Vec<u8>> {
    let mut cursor = Reader::open(state).unwrap().records(0).unwrap();
    let mut records = Vec::new();
    while let Some(record) = cursor.next_record().unwrap() {
        records.push(record.as_bytes().to_vec());
    }
    records
}

const DELETE_MODES: [DeleteMode; 2] = [DeleteMode::Stage, DeleteMode::FirstN];

#[test]
fn what_cannot_be_read_is_neither_stored_nor_deleted() {
    for mode in DELETE_MODES {
        let mut scene = Scene::new();
        let service = scene.start(mode);
        scene.add(5);
        service.drain().unwrap();
        scene.add(5);
        for (times, said) in [
            (&scene.mischief.altered_reads, "template digest mismatch"),
            (&scene.mischief.short_reads, "record 4 at byte"),
        ] {
            times.store(1, Ordering::Relaxed);
            let error = service.drain().unwrap_err();
            assert!(error.contains(said), "{mode:?}: {error}");
            assert_eq!(stored(&scene.state()), scene.added[..5], "{mode:?}");
            let left = scene.list.count(Part::Current) + scene.list.count(Part::Staged);
            assert_eq!(left, 5, "{mode:?}");
            let status = service.status();
            assert!(status.since_start.last_error.unwrap().contains(said));
            // The one that was altered stays so until it was read well.
            let is_altered = matches!(status.verdict, Verdict::Altered { index: 9, .. });
            assert!(is_altered, "{mode:?}: {:?}", status.verdict);
        }
        // When the list is well again it continues by itself.
        service.drain().unwrap();
        scene.assert_complete();
        assert_eq!(service.status().since_start.last_error, None);
        assert_eq!(service.status().verdict, Verdict::Unchecked);
    }
}

#[test]
fn a_deletion_that_fails_doubles_nothing_whether_it_was_done_or_not() {
    for mode in DELETE_MODES {
        for done in [false, true] {
            let mut scene = Scene::new();
            let service = scene.start(mode);
            scene.add(3);
            let mischief = match done {
                false => &scene.mischief.refused_deletions,
                true => &scene.mischief.failed_deletions,
            };
            mischief.store(1, Ordering::Relaxed);
            // They are stored, so whoever asked has what they asked for; that they were not deleted
            // is told.
            service.drain().unwrap();
            let error = service.status().since_start.last_error.unwrap();
            assert!(error.contains("going down"), "{error}");
            assert_eq!(stored(&scene.state()), scene.added, "{mode:?}");
            scene.add(4);
            service.drain().unwrap();
            scene.assert_complete();
            let activity = service.status().since_start;
            assert_eq!(activity.last_error, None);
            assert_eq!(activity.already_stored, if done { 0 } else { 3 }, "{mode:?}");
        }
    }
}

/// A small file system for the state directory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, loudly, where it cannot be had.
    fn mount(at: &Path) -> Option<SmallDisk> {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"]).arg(at).output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk(at.to_owned())),
            other => {
                eprintln!("SKIPPED: a tmpfs cannot be mounted (as root it can): {other:?}");
                None
            }
        }
    }

    fn remount(&self, options: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{options}")]).arg(&self.0);
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_takes_nothing_stops_deleting_and_when_it_does_again_it_goes_on() {
    let mut scene = Scene::new();
    let Some(disk) = SmallDisk::mount(&scene.state()) else { return };
    let service = scene.start(DeleteMode::Stage);
    scene.add(100);
    service.drain().unwrap();
    // All the room there is.
    let mut stuffing = File::create(scene.state().join("stuffing")).unwrap();
    while stuffing.write(&[0; 4096]).is_ok_and(|n| n > 0) {}
    scene.add(2000);
    for _ in 0..3 {
        let error = service.drain().unwrap_err();
        assert!(error.contains("nothing was deleted"), "{error}");
        let status = service.status();
        assert_eq!(status.since_start.last_error, Some(error));
        assert_eq!(status.records, 100);
        assert_eq!(scene.list.count(Part::Current) + scene.list.count(Part::Staged), 2000);
        // What was stored can be read.
        assert_eq!(stored(&scene.state()), scene.added[..100]);
    }
    disk.remount("size=8m");
    scene.add(5);
    service.drain().unwrap();
    scene.assert_complete();
    assert_eq!(service.status().since_start.last_error, None);
}

#[test]
fn what_others_staged_is_older_and_comes_first() {
    for mode in DELETE_MODES {
        let mut scene = Scene::new();
        scene.add(3);
        scene.list.stage().unwrap();
        scene.add(2);
        let service = scene.start(mode);
        service.drain().unwrap();
        scene.assert_complete();
        scene.add(3);
        scene.list.stage().unwrap();
        scene.add(2);
        service.drain().unwrap();
        scene.assert_complete();
    }
}

#[test]
fn delete_modes_can_be_changed_and_a_restart_goes_on() {
    let mut scene = Scene::new();
    for round in 0..6 {
        scene.add(round);
        let service = scene.start(DELETE_MODES[round % 2]);
        service.drain().unwrap();
        scene.add(1);
        let last = service.stop();
        assert_eq!(last.records, scene.added.len() as u64);
        assert_eq!(last.verdict, Verdict::Unchecked);
        scene.assert_complete();
    }
}

#[test]
fn the_api_gives_any_range_and_refuses_in_words() {
    let mut scene = Scene::new();
    scene.add(3000);
    let service = scene.start(DeleteMode::Stage);
    service.drain().unwrap();
    let client = Client::of_state(&scene.state()).unwrap();
    assert_eq!(client.status().unwrap().records, 3000);
    for (from, to) in [(0, 3000), (0, 0), (17, 18), (2999, 3000), (3000, 3000), (5, 2500)] {
        let mut bytes = Vec::new();
        client
            .records(from, to, &mut |chunk| {
                bytes.extend_from_slice(chunk);
                Ok::<(), ClientError>(())
            })
            .unwrap();
        assert_eq!(bytes, scene.added[from as usize..to as usize].concat(), "{from} to {to}");
    }
    let refused = |from, to| {
        let mut sink = |_: &[u8]| Ok::<(), ClientError>(());
        match client.records(from, to, &mut sink) {
            Err(ClientError::Refused { status, why }) => (status, why),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(2, 1).0, 416);
    let (status, why) = refused(0, 3001);
    assert!(status == 416 && why.contains("0 to 3000 are stored"), "{why}");

    // Without a TPM there is no quote, whatever is asked.
    let request = QuoteRequest { nonce: "00".into(), ..Default::default() };
    let error = client.quote(&request).unwrap_err().to_string();
    assert!(error.contains("no TPM"), "{error}");
    drop(service);
    assert!(matches!(client.status(), Err(ClientError::Unreachable { .. })));
}

#[test]
fn garbage_on_the_socket_hurts_nobody() {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };
    let scene = Scene::new();
    let service = scene.start(DeleteMode::Stage);
    let socket = scene.state().join(imastage_client::SOCKET);
    let huge = [b"POST /v1/quote HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10000000\r\n\r\n".to_vec(), vec![b' '; 100_000]].concat();
    for garbage in [
        b"\x00\xff\xfe".to_vec(),
        b"GET /v1/records?from=-1 HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"POST /v1/quote HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}".to_vec(),
        huge,
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // It may hang up before it has read all of it.
        let _ = stream.write_all(&garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(Client::of_state(&scene.state()).unwrap().status().unwrap().records, 0);
    drop(service);
}
