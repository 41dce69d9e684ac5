//! Suspend, kexec and reboot of a sandbox, and its configuration.

use std::{
    fs::{self, File},
    io::{Read, Seek, Write},
    sync::mpsc,
    thread,
};

use ima_log::{Bank, Event, Extend, Format, IMA_PCR, Record, Records, Replay};
use imastage_sandbox::{
    Carried, Dialect, Duplicates, Hazard, Kexec, TpmChoice,
    control::{Answer, Command as Ask, Status},
    tpm_of,
};
use imastage_tpm::Tpm;

use crate::mounted::{
    CURRENT, EACCES, EBUSY, EEXIST, EINVAL, EIO, ENOENT, ENOMEM, ESTALE, Mounted, STAGED, TRIM_LOG,
    raw, wait_until,
};

impl Mounted {
    fn status(&self) -> Status {
        match self.ask(&Ask::Status).unwrap() {
            Answer::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    fn kexec(&self, kexec: Kexec) -> Carried {
        match self.ask(&Ask::Kexec(kexec)).unwrap() {
            Answer::Kexec(carried) => carried,
            other => panic!("{other:?}"),
        }
    }

    pub fn tpm(&self) -> Tpm {
        Tpm::connect(&tpm_of(&self.mount()).unwrap()).unwrap()
    }

    /// Whether the records replay to the TPM's PCR 10 in each bank.
    fn agrees_with_tpm(&self, list: &[u8]) -> bool {
        let mut tpm = self.tpm();
        let records = || Records::new(list, Format::native(Bank::Sha1)).map(Result::unwrap);
        let banks = tpm.banks().unwrap();
        assert!(!banks.is_empty());
        banks.into_iter().all(|bank| {
            let value = tpm.pcr_read(bank, IMA_PCR).unwrap();
            let mut replay = Replay::new(bank, Extend::Own);
            records().for_each(|record| replay.extend(&record));
            replay.value() == value
        })
    }
}

fn each(list: &[u8], mut look: impl FnMut(&Record<'_>)) {
    Records::new(list, Format::native(Bank::Sha1)).for_each(|record| look(&record.unwrap()));
}

#[test]
fn kexec_carries_staged_and_current_records_without_a_tpm_reset() {
    let Some(mounted) = Mounted::with(TpmChoice::Swtpm, |config| config.critical_data = true)
    else {
        return;
    };
    mounted.add(&["a", "b"]);
    mounted.request(STAGED, "A\n").unwrap();
    mounted.add(&["c"]);
    let mut before = fs::read(mounted.file(STAGED)).unwrap();
    before.extend(fs::read(mounted.file(CURRENT)).unwrap());
    let resets = mounted.tpm().clock().unwrap().reset_count;

    let carried = mounted.kexec(Kexec::default());
    assert_eq!(carried, Carried { before: 6, carried: 6, why: None });
    let after = fs::read(mounted.file(CURRENT)).unwrap();
    assert!(after.starts_with(&before));
    assert_eq!(fs::read(mounted.file(STAGED)).unwrap(), b"");
    assert_eq!(
        mounted.records(CURRENT),
        ["boot_aggregate", "a", "b", "c", "kexec_load", "kexec_execute", "boot_aggregate"]
    );
    assert!(mounted.agrees_with_tpm(&after));
    assert_eq!(mounted.tpm().clock().unwrap().reset_count, resets);
    // These records contain the number of records before them, 4 before the first one.
    let mut said = Vec::new();
    each(&after, |record| {
        if let Some(Event::KexecLoad(sizes) | Event::KexecExecute(sizes)) = record.event() {
            said.push(sizes.measurements);
        }
    });
    assert_eq!(said, [4, 5]);
    // The next kernel measures known files again.
    mounted.add(&["d"]);
    let again = mounted.measure(&[mounted.dir.path().join("a")]);
    assert_eq!(again.added, 1);
}

#[test]
fn kexec_loses_records_that_exceed_the_buffer() {
    let Some(mounted) = Mounted::new(TpmChoice::Swtpm) else { return };
    mounted.add(&["a", "b", "c"]);
    let all = fs::read(mounted.file(CURRENT)).unwrap();
    let carried = mounted.kexec(Kexec { capacity: Some(24 + all.len() - 1), ..Kexec::default() });
    assert_eq!((carried.before, carried.carried), (4, 3));
    let why = carried.why.unwrap();
    assert!(why.contains("record 3"), "{why}");
    assert_eq!(mounted.records(CURRENT), ["boot_aggregate", "a", "b", "boot_aggregate"]);
    assert!(!mounted.agrees_with_tpm(&fs::read(mounted.file(CURRENT)).unwrap()));
    let carried = mounted.kexec(Kexec { forget: true, ..Kexec::default() });
    assert_eq!((carried.before, carried.carried), (4, 0));
    assert_eq!(mounted.records(CURRENT), ["boot_aggregate"]);
}

#[test]
fn reboot_resets_list_and_tpm_and_invalidates_open_files() {
    let Some(mounted) = Mounted::new(TpmChoice::Swtpm) else { return };
    mounted.add(&["a"]);
    let resets = mounted.tpm().clock().unwrap().reset_count;
    let mut open = File::options().read(true).write(true).open(mounted.file(STAGED)).unwrap();
    open.write_all(b"A\n").unwrap();
    let Answer::Status(status) = mounted.ask(&Ask::Reboot).unwrap() else { panic!() };
    assert_eq!((status.current, status.staged, status.total), (1, 0, 1));
    assert_eq!(raw(open.write(b"A\n").unwrap_err()), EIO);
    assert_eq!(raw(open.read(&mut [0; 10]).unwrap_err()), EIO);
    // The lock of the earlier boot is gone.
    mounted.request(STAGED, "A\n").unwrap();
    drop(open);
    mounted.request(STAGED, "D\n").unwrap();
    mounted.add(&["b"]);
    assert_eq!(mounted.records(CURRENT), ["b"]);
    assert_eq!(mounted.tpm().clock().unwrap().reset_count, resets + 1);
}

#[test]
fn list_replays_to_the_tpm_after_a_reboot() {
    let Some(mounted) = Mounted::new(TpmChoice::Swtpm) else { return };
    mounted.add(&["a"]);
    mounted.ask(&Ask::Reboot).unwrap();
    mounted.add(&["b"]);
    assert_eq!(mounted.records(CURRENT), ["boot_aggregate", "b"]);
    assert!(mounted.agrees_with_tpm(&fs::read(mounted.file(CURRENT)).unwrap()));
}

#[test]
fn suspended_machine_measures_nothing_and_refuses_requests() {
    for (dialect, staged, deleted, n) in [
        (Dialect::Linux72, Err(EACCES), Err(ENOENT), Err(ESTALE)),
        (Dialect::V4, Ok(()), Ok(()), Err(ENOENT)),
    ] {
        let Some(mounted) = Mounted::with(TpmChoice::None, |c| c.dialect = dialect) else { return };
        mounted.add(&["a", "b"]);
        mounted.ask(&Ask::Suspend { dump: false }).unwrap();
        let path = mounted.dir.path().join("late");
        fs::write(&path, "late").unwrap();
        let error = mounted.ask(&Ask::Measure { paths: vec![path] }).unwrap_err();
        assert!(error.to_string().contains("accepts no more records"), "{error}");
        assert_eq!(mounted.count(), 3);
        assert_eq!(mounted.request(STAGED, "A\n"), staged, "{dialect}");
        assert_eq!(mounted.request(STAGED, "D\n"), deleted, "{dialect}");
        let file = if dialect == Dialect::V4 { STAGED } else { CURRENT };
        assert_eq!(mounted.request(file, "1\n"), n, "{dialect}");
    }
}

#[test]
fn v4_accepts_all_requests_on_its_staged_files() {
    let Some(mounted) = Mounted::with(TpmChoice::None, |c| c.dialect = Dialect::V4) else { return };
    mounted.add(&["a", "b", "c"]);
    assert_eq!(mounted.request(CURRENT, "1\n"), Err(EINVAL));
    assert_eq!(mounted.request(STAGED, "5\n"), Err(ENOENT));
    mounted.request(STAGED, "2\n").unwrap();
    assert_eq!(mounted.records(CURRENT), ["b", "c"]);
    let mut file = File::options().read(true).write(true).open(mounted.file(STAGED)).unwrap();
    assert_eq!(raw(File::options().write(true).open(mounted.file(STAGED)).unwrap_err()), EBUSY);
    file.write_all(b"A\n").unwrap();
    assert_eq!(raw(file.write(b"1\n").unwrap_err()), EEXIST);
    let mut batch = Vec::new();
    file.read_to_end(&mut batch).unwrap();
    assert!(!batch.is_empty());
    // The file position is not 0 after the read.
    assert_eq!(raw(file.write(b"D\n").unwrap_err()), EINVAL);
    file.rewind().unwrap();
    file.write_all(b"D\n").unwrap();
    assert_eq!(mounted.count(), 0);
}

#[test]
fn trim_requires_the_current_total() {
    let Some(mounted) = Mounted::with(TpmChoice::None, |config| {
        config.dialect = Dialect::Trim;
        config.critical_data = true;
    }) else {
        return;
    };
    mounted.add(&["a", "b", "c"]);
    let trimmed = || fs::read_to_string(mounted.file(TRIM_LOG)).unwrap();
    assert_eq!(trimmed(), "0\n");
    assert!(!mounted.file(STAGED).exists());
    mounted.request(TRIM_LOG, "0:2").unwrap();
    assert_eq!(trimmed(), "2\n");
    assert_eq!(mounted.records(CURRENT), ["b", "c", "trim_ima_event_logs"]);
    assert_eq!(mounted.request(TRIM_LOG, "0:1"), Err(ESTALE));
    assert_eq!(mounted.request(TRIM_LOG, "2:9"), Err(ENOENT));
    assert_eq!(mounted.request(TRIM_LOG, ":1"), Err(EINVAL));
    mounted.request(TRIM_LOG, "2:0\n").unwrap();
    assert_eq!(mounted.status().trimmed, 2);
    assert_eq!(mounted.count(), 3);
}

#[test]
fn duplicates_are_detected_flushed_or_not_detected() {
    for (duplicates, before, after) in [
        (Duplicates::Detect, 0, 0),
        // The flush includes digests measured between A and D.
        (Duplicates::Flush, 0, 1),
        (Duplicates::Off, 1, 1),
    ] {
        let Some(mounted) = Mounted::with(TpmChoice::None, |c| c.duplicates = duplicates) else {
            return;
        };
        let path = mounted.dir.path().join("file");
        let measure_anew = || {
            // The same name and content, but another inode.
            let other = mounted.dir.path().join("other");
            fs::write(&other, "same").unwrap();
            fs::rename(&other, &path).unwrap();
            mounted.measure(std::slice::from_ref(&path)).added
        };
        assert_eq!(measure_anew(), 1, "{duplicates:?}");
        assert_eq!(measure_anew(), before, "{duplicates:?}");
        mounted.request(STAGED, "A\n").unwrap();
        assert_eq!(measure_anew(), before, "{duplicates:?}");
        mounted.request(STAGED, "D\n").unwrap();
        assert_eq!(measure_anew(), after, "{duplicates:?}");
        mounted.add(&["another"]);
        let n = mounted.request(CURRENT, "1\n");
        assert_eq!(n, if duplicates == Duplicates::Flush { Err(EINVAL) } else { Ok(()) });
    }
}

#[test]
fn only_configured_banks_have_files_and_pcrs() {
    let banks = vec![Bank::Sha256];
    let Some(mounted) = Mounted::with(TpmChoice::Swtpm, |c| c.banks = Some(banks.clone())) else {
        return;
    };
    mounted.add(&["a"]);
    assert_eq!(mounted.tpm().banks().unwrap(), banks);
    assert!(mounted.agrees_with_tpm(&fs::read(mounted.file(CURRENT)).unwrap()));
    for (bank, there) in [("sha1", true), ("sha256", true), ("sha384", false)] {
        let name = format!("ascii_runtime_measurements_{bank}_staged");
        assert_eq!(mounted.file(&name).exists(), there, "{bank}");
    }
}

#[test]
fn padded_banks_are_extended_and_shown_as_in_stock_6_1() {
    let padded = vec![Bank::Sha384];
    let Some(mounted) = Mounted::with(TpmChoice::Swtpm, |c| c.kernel.padded = padded) else {
        return;
    };
    mounted.add(&["a"]);
    mounted.ask(&Ask::Violation { paths: vec!["/v".into()] }).unwrap();
    let list = fs::read(mounted.file(CURRENT)).unwrap();
    let mut tpm = mounted.tpm();
    for (bank, extend) in [(Bank::Sha256, Extend::Own), (Bank::Sha384, Extend::Sha1Padded)] {
        let mut replay = Replay::new(bank, extend);
        each(&list, |record| replay.extend(record));
        assert_eq!(replay.value(), tpm.pcr_read(bank, IMA_PCR).unwrap(), "{bank}");
    }
    let mut expected = Vec::new();
    each(&list, |record| record.write_ascii_padded(Bank::Sha384.size(), &mut expected));
    assert_eq!(fs::read(mounted.file("ascii_runtime_measurements_sha384")).unwrap(), expected);
}

#[test]
fn violations_critical_data_and_replayed_lists_are_added() {
    let Some(mounted) = Mounted::new(TpmChoice::Swtpm) else { return };
    let paths = vec!["/one".into(), "/one".into()];
    let Answer::Done(done) = mounted.ask(&Ask::Violation { paths }).unwrap() else { panic!() };
    assert_eq!((done.added, mounted.status().violations), (2, 2));
    let data = |data: &str| Ask::CriticalData { name: "label".into(), data: data.into() };
    mounted.ask(&data("00ff")).unwrap();
    assert!(mounted.ask(&data("0g")).is_err());
    let list = fs::read(mounted.file(CURRENT)).unwrap();
    let path = mounted.dir.path().join("list");
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/corpus/debian-6.1/binary");
    let Answer::Done(done) =
        mounted.ask(&Ask::Replay { path: corpus.into(), rate: Some(100_000) }).unwrap()
    else {
        panic!()
    };
    assert!(done.added > 100, "{done:?}");
    let all = fs::read(mounted.file(CURRENT)).unwrap();
    assert!(all.starts_with(&list));
    assert!(mounted.agrees_with_tpm(&all));
    let replayed = fs::read(corpus).unwrap();
    assert!(all.ends_with(&replayed[replayed.len() / 2..]));
    // The error names a file that is not a list.
    fs::write(&path, "10 abcd ima-ng sha256:00 /file\n").unwrap();
    let error = mounted.ask(&Ask::Replay { path: path.clone(), rate: None }).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    fs::write(&path, &replayed[..replayed.len() - 1]).unwrap();
    assert!(mounted.ask(&Ask::Replay { path, rate: None }).is_err());
}

#[test]
fn lock_of_linux_7_2_can_get_stuck_or_lost() {
    for hazard in [false, true] {
        let Some(mounted) = Mounted::with(TpmChoice::None, |config| {
            config.hazards = if hazard { vec![Hazard::LockBooks] } else { vec![] };
        }) else {
            return;
        };
        let path = mounted.file(STAGED);
        let open = |write: bool| File::options().read(!write).write(write).open(&path);
        // One file, closed by another thread than the one that opened it: harmless.
        let opening = || (open(true).unwrap(), rustix::thread::gettid());
        let (file, thread) = thread::scope(|scope| scope.spawn(opening).join().unwrap());
        let thread = format!("/proc/self/task/{}", thread.as_raw_nonzero());
        // After the opening thread ends, another thread is mistaken for it.
        wait_until("the thread is gone", || !fs::exists(&thread).unwrap());
        assert_eq!(open(true).is_ok(), hazard);
        drop(file);
        drop(open(true).unwrap());
        // Two files, both closed by another thread.
        thread::scope(|scope| {
            let (opened, when_opened) = mpsc::channel();
            let opening = scope.spawn(move || {
                opened.send([(); 2].map(|()| open(true).unwrap())).unwrap();
                // The files are closed while this thread lives.
                thread::park();
            });
            drop(when_opened.recv().unwrap());
            opening.thread().unpark();
        });
        let stuck = File::options().write(true).open(&path).err().map(raw);
        assert_eq!(stuck, hazard.then_some(EBUSY));
        assert!(File::open(&path).is_ok());
    }
}

#[test]
fn delete_with_enomem_still_deletes_the_records() {
    let Some(mounted) = Mounted::with(TpmChoice::None, |config| {
        config.duplicates = Duplicates::Flush;
        config.hazards = vec![Hazard::NoMemory];
    }) else {
        return;
    };
    mounted.add(&["a"]);
    mounted.request(STAGED, "A\n").unwrap();
    assert_eq!(mounted.request(STAGED, "D\n"), Err(ENOMEM));
    assert_eq!(mounted.request(STAGED, "D\n"), Err(ENOENT));
    assert_eq!(mounted.records(STAGED), [""; 0]);
}
