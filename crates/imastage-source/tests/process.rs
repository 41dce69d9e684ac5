//! A list in another process behaves as one in this process: the same steps on a mounted sandbox,
//! with and without `serve`, in every dialect.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs::{self, File},
    io::{Read, Write},
    num::NonZeroU64,
    os::unix::net::UnixStream,
    path::Path,
    sync::mpsc,
    thread,
};

use ima_log::{Bank, Format, RecordBuf, Records};
use ima_securityfs::Dialect as Interface;
use imastage_sandbox::{
    Config, Sandbox, TpmChoice,
    control::{Command as Ask, ask},
};
use imastage_source::{
    Batch, DeleteMode, Dialect, Holder, Holders, Look, Request, Sight, Sink, Source, SourceError,
    SourceProcess, open, serve,
};

/// A list behind a server, which runs in a thread here.
fn through_a_socket(
    source: Result<Box<dyn Source>, SourceError>,
) -> Result<SourceProcess, SourceError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // A batch stays on the server's thread.
    thread::spawn(move || serve(theirs, source));
    SourceProcess::connect(ours)
}

fn mounted(dialect: Interface) -> Option<(Sandbox, tempfile::TempDir)> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        eprintln!("SKIPPED: /dev/fuse: {error}");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(dir.path().join("ima"), TpmChoice::None);
    config.watch = false;
    config.dialect = dialect;
    Some((Sandbox::start(&config).unwrap(), dir))
}

/// Adds new records, one per number in `names`.
fn measure(dir: &Path, names: std::ops::Range<usize>) {
    let records = names.flat_map(|n| {
        let name = format!("/file/{n}");
        RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[name.as_bytes()]), name.as_bytes()).into_bytes()
    });
    let path = dir.join("records");
    fs::write(&path, records.collect::<Vec<u8>>()).unwrap();
    ask(&dir.join("ima"), &Ask::Replay { path, rate: None }, &mut |_| {}).unwrap();
}

fn count(bytes: &[u8]) -> u64 {
    Records::new(bytes, Format::native(Bank::Sha1)).map(Result::unwrap).count() as u64
}

/// A client's view of a list, step by step.
fn life(source: &mut dyn Source, dir: &Path) -> Vec<String> {
    let ima = dir.join("ima");
    let mut seen =
        vec![format!("{} {}", source.dialect(), source.name() == ima.display().to_string())];
    let mut see = |what: String| seen.push(what);
    see(format!("{:?}", source.try_open()));
    measure(dir, 0..3000);
    for _ in 0..2 {
        see(format!("count {:?}", source.count()));
        let mut read = Vec::new();
        source.look().unwrap().read(&mut |bytes| read.extend_from_slice(bytes)).unwrap();
        see(format!("look {}", count(&read)));
        read.clear();
        // The batch is dropped without a deletion.
        let batch = source.take(&mut |bytes| read.extend_from_slice(bytes)).unwrap().unwrap();
        see(format!("take {} {} {:?}", count(&read), batch.was_pending(), batch.position()));
    }
    // Records added during a look are read by it.
    let mut read = Vec::new();
    let mut look = source.look().unwrap();
    look.read(&mut |bytes| read.extend_from_slice(bytes)).unwrap();
    measure(dir, 3000..3010);
    look.read(&mut |bytes| read.extend_from_slice(bytes)).unwrap();
    drop(look);
    see(format!("look {}", count(&read)));
    // The error names the process that has the list open.
    let held = File::open(ima.join("binary_runtime_measurements")).unwrap();
    let outcome = match source.take(&mut |_| ()) {
        Ok(batch) => Ok(batch.is_some()),
        Err(error) => Err(error.to_string()),
    };
    // The server excludes its own process, which in this test is the holder.
    let named = |text: String| match text.split_once(" in use by ") {
        Some((file, _)) => format!("{} in use", file.replace(&ima.display().to_string(), "IMA")),
        None => text,
    };
    see(format!("{:?}", outcome.map_err(named)));
    drop(held);
    // Everything is deleted.
    for _ in 0..3 {
        let mut read = Vec::new();
        let Some(batch) = source.take(&mut |bytes| read.extend_from_slice(bytes)).unwrap() else {
            see("nothing".to_owned());
            continue;
        };
        let records = NonZeroU64::new(count(&read)).unwrap();
        see(format!("delete {records} {:?}", batch.delete(records)));
        see(format!("count {:?} trimmed {:?}", source.count(), source.trimmed()));
    }
    let mut left = Vec::new();
    if let Ok(mut list) = File::open(ima.join("binary_runtime_measurements")) {
        list.read_to_end(&mut left).unwrap();
    }
    see(format!("left {}", count(&left)));
    measure(dir, 3010..3020);
    // Too many records, in the modes with a number.
    let result = match source.take(&mut |_| ()).unwrap() {
        Some(batch) => {
            batch.delete(NonZeroU64::new(1000).unwrap()).map_err(|error| error.to_string())
        }
        None => Ok(()),
    };
    see(format!("{result:?}"));
    // Shutdown begins.
    ask(&ima, &Ask::Suspend { dump: false }, &mut |_| {}).unwrap();
    let mut read = Vec::new();
    let taken = match source.take(&mut |bytes| read.extend_from_slice(bytes)) {
        Ok(Some(batch)) => batch.delete(NonZeroU64::new(count(&read)).unwrap()),
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    see(format!("{taken:?}"));
    see(format!("{:?}", source.trimmed()));
    seen
}

#[test]
fn issue_10_list_in_another_process_behaves_as_one_in_this_process() {
    let cases = [
        (Interface::Linux72, None),
        (Interface::Linux72, Some(DeleteMode::FirstN)),
        (Interface::Linux72, Some(DeleteMode::None)),
        (Interface::V4, None),
        (Interface::V4, Some(DeleteMode::None)),
        (Interface::Trim, None),
        (Interface::Trim, Some(DeleteMode::None)),
    ];
    for (interface, mode) in cases {
        let Some((sandbox, dir)) = mounted(interface) else { return };
        let ima = dir.path().join("ima");
        let here = life(open(&ima, mode).unwrap().as_mut(), dir.path());
        sandbox.stop();

        let Some((sandbox, dir)) = mounted(interface) else { return };
        let ima = dir.path().join("ima");
        let mut source = through_a_socket(open(&ima, mode)).unwrap();
        let there = life(&mut source, dir.path());
        drop(source);
        sandbox.stop();
        assert_eq!(there, here, "{interface} {mode:?}");
        let follows = mode == Some(DeleteMode::None);
        let left = if follows { "left 3011" } else { "left 0" };
        assert!(here.iter().any(|seen| seen == left), "{interface} {mode:?} {here:#?}");
    }
}

#[test]
fn issue_10_follow_mode_reads_foreign_staged_records_and_opens_nothing_for_writing() {
    for interface in [Interface::Linux72, Interface::V4] {
        let Some((sandbox, dir)) = mounted(interface) else { return };
        let ima = dir.path().join("ima");
        let mut source = open(&ima, Some(DeleteMode::None)).unwrap();
        assert_eq!(source.dialect(), Dialect::Follow);
        assert!(source.others_may_delete());
        let mut take = || {
            let mut read = Vec::new();
            let batch = source.take(&mut |bytes| read.extend_from_slice(bytes))?;
            if let Some(batch) = batch {
                batch.delete(NonZeroU64::new(count(&read)).unwrap())?;
            }
            Ok::<_, SourceError>(count(&read))
        };
        measure(dir.path(), 0..50);
        assert_eq!(take().unwrap(), 51);
        let writer = || {
            let staged = ima.join("binary_runtime_measurements_staged");
            File::options().read(true).write(true).open(staged)
        };
        // No descriptor stays open, so others can write.
        let mut staged = writer().unwrap();
        staged.write_all(b"A\n").unwrap();
        // While a writer has a file open, no other process can read.
        assert!(matches!(take(), Err(SourceError::Busy { .. })));
        drop(staged);
        assert_eq!(take().unwrap(), 0);
        measure(dir.path(), 50..60);
        assert_eq!(take().unwrap(), 10);
        writer().unwrap().write_all(b"D\n").unwrap();
        measure(dir.path(), 60..200);
        // The list is longer than before and has other records.
        assert!(matches!(take(), Err(SourceError::Overtaken)));
        assert_eq!(take().unwrap(), 150);
        sandbox.stop();
    }
}

/// A list that answers each call with an error, or with nothing.
struct Scripted(mpsc::Receiver<SourceError>);

impl Source for Scripted {
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError> {
        Err(self.0.recv().unwrap())
    }

    fn take(&mut self, _: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError> {
        Err(self.0.recv().unwrap())
    }

    fn try_open(&mut self) -> Result<(), SourceError> {
        Err(self.0.recv().unwrap())
    }

    fn count(&mut self) -> Result<u64, SourceError> {
        Err(self.0.recv().unwrap())
    }

    fn dialect(&self) -> Dialect {
        Dialect::V4
    }

    fn trimmed(&mut self) -> Result<Option<u64>, SourceError> {
        Err(self.0.recv().unwrap())
    }

    fn holders(&self) -> Holders {
        let holder = |pid| Holder { pid, name: "x".into(), fd: 1, path: "/x".into() };
        // The server excludes itself from the holders.
        Holders { found: vec![holder(std::process::id()), holder(1)], sight: Sight::NoPtrace }
    }

    fn name(&self) -> String {
        "scripted".into()
    }
}

#[test]
fn issue_10_errors_and_holders_are_transmitted_unchanged() {
    let (errors, script) = mpsc::channel();
    let mut source = through_a_socket(Ok(Box::new(Scripted(script)))).unwrap();
    assert_eq!((source.dialect(), source.name().as_str()), (Dialect::V4, "scripted"));
    let make: [fn() -> SourceError; 7] = [
        || SourceError::LockLost { path: "/x".into() },
        || SourceError::Pending,
        || SourceError::GoingDown(Request::Stage),
        || SourceError::Nothing(Request::Trim { total: 1, records: 2 }),
        || SourceError::Missing { path: "/x".into() },
        || SourceError::DeadMount { path: "/x".into() },
        || SourceError::Io {
            path: "/x".into(),
            doing: "read",
            error: std::io::Error::from_raw_os_error(5),
        },
    ];
    for make in make {
        let expected = format!("{:?}", make());
        (0..5).for_each(|_| errors.send(make()).unwrap());
        assert_eq!(format!("{:?}", source.look().err().unwrap()), expected);
        assert_eq!(format!("{:?}", source.take(&mut |_| ()).err().unwrap()), expected);
        assert_eq!(format!("{:?}", source.try_open().err().unwrap()), expected);
        assert_eq!(format!("{:?}", source.count().err().unwrap()), expected);
        assert_eq!(format!("{:?}", source.trimmed().err().unwrap()), expected);
    }
    let Holders { found, sight } = source.holders();
    let pids: Vec<_> = found.iter().map(|holder| holder.pid).collect();
    assert_eq!((&pids[..], sight), (&[1][..], Sight::NoPtrace));
}

#[test]
fn issue_10_open_errors_are_transmitted_and_a_dead_server_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let error = through_a_socket(open(dir.path(), None)).err().unwrap();
    assert!(matches!(error, SourceError::Missing { .. }), "{error}");

    // The peer does not speak the protocol.
    for noise in
        [&b"\xff\xff\xff\xff"[..], b"\x01\x00\x00\x00\x63", b"\x01\x00\x00\x00\x02", b"\x01", b""]
    {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(noise).unwrap();
        drop(theirs);
        let error = SourceProcess::connect(ours).err().unwrap();
        assert!(matches!(error, SourceError::Lost { .. }), "{noise:?} {error}");
    }

    // The server ends during a request: every later request reports the loss.
    let (errors, script) = mpsc::channel();
    let mut source = through_a_socket(Ok(Box::new(Scripted(script)))).unwrap();
    drop(errors);
    assert!(matches!(source.count(), Err(SourceError::Lost { .. })));
    assert!(matches!(source.look().err(), Some(SourceError::Lost { .. })));
    assert!(matches!(source.try_open(), Err(SourceError::Lost { .. })));
    assert!(source.holders().found.is_empty());
}

#[test]
fn issue_10_request_out_of_sequence_ends_the_server() {
    for noise in [
        &b"\x01\x00\x00\x00\x01"[..],
        b"\x01\x00\x00\x00\x04",
        b"\x01\x00\x00\x00\xff",
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff",
    ] {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (_errors, script) = mpsc::channel();
        let server = thread::spawn(|| serve(theirs, Ok(Box::new(Scripted(script)))));
        ours.write_all(noise).unwrap();
        assert!(server.join().unwrap().is_err(), "{noise:?}");
    }
}
